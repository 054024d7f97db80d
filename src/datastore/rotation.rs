//! Rotation of the certificate authority at the datastore: the CAs that members must trust, the CA that signs their
//! certificates, and the steps that an operator requests.
//!
//! A member gets a certificate of the new CA once it has reported that it trusts that CA, and every other connected
//! member has, too. Members also connect to each other, and none should be shown a certificate that it cannot verify.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use gravwell_model::codec::authority::{
    AuthorityRotation, AuthorityStage, MemberAuthority, ReplacedAuthority, RootInfo, RootsInfo, RotationStep,
};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{Generation, MemberName};
use gravwell_transport::endpoint::{CLOSE_LEFT_BEHIND, ServerEndpoint};
use gravwell_transport::trust::{
    Authorities, Authority, End, Link, Member, MemberState, Refusal, TrustError, authority_name, fingerprint, tls,
};

use super::members::Members;
use super::proofs;
use super::shared::{DatastoreRef, now_ms};

/// Most trusted CAs that a member may report.
const KNOWN_MAX: usize = 8;
/// Length of a fingerprint in hex digits.
const PRINT_CHARS: usize = 64;

fn print_of(authority: &Authority) -> String {
    authority.fingerprint().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the stage of the rotation that a member has reached.
fn stage(member: &Member, authorities: &Authorities, trusts_next: bool) -> AuthorityStage {
    let is = |authority: &Authority, name: &str| authority_name(&authority.fingerprint()) == name;
    let Some(issuer) = member.issuer().filter(|issuer| !is(authorities.current(), issuer)) else {
        return if trusts_next { AuthorityStage::TrustsBoth } else { AuthorityStage::Present };
    };
    if authorities.next().is_some_and(|next| is(next, issuer)) {
        return AuthorityStage::New;
    }
    match authorities.former().iter().find(|former| former.name() == issuer).map(|former| former.end) {
        Some(End::TakenBack) => AuthorityStage::TakenBack,
        Some(End::Replaced) | None => AuthorityStage::Former,
    }
}

impl Members {
    pub(super) fn authorities(&self) -> Arc<Authorities> {
        Arc::clone(&self.authorities.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts presenting the datastore's own certificate for `names` at `endpoint`.
    pub(super) fn serve_at(&self, endpoint: &ServerEndpoint, names: &[String]) {
        let serving = Some((endpoint.clone(), names.to_vec()));
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = serving;
    }

    /// Returns whether members can connect.
    pub(super) fn is_serving(&self) -> bool {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Re-creates the datastore's own certificate, for `names` or else for the previous names.
    pub(super) fn renew_own(&self, names: Option<&[String]>) -> Result<(), String> {
        let mut serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((endpoint, for_names)) = serving.as_mut() else { return Ok(()) };
        let config = tls::server_config(&self.authorities(), names.unwrap_or(for_names), now_ms());
        endpoint.replace_certificate(config.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
        if let Some(names) = names {
            names.clone_into(for_names);
        }
        Ok(())
    }

    fn trusting(&self) -> MutexGuard<'_, BTreeMap<MemberName, BTreeSet<String>>> {
        self.trusting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trusts(&self, member: &MemberName, authority: &Authority) -> bool {
        self.trusting().get(member).is_some_and(|known| known.contains(&print_of(authority)))
    }

    /// Returns whether every connected member that others connect to trusts a CA.
    fn all_trust(&self, authority: &Authority) -> bool {
        let print = print_of(authority);
        let (presences, trusting) = (self.presences(), self.trusting());
        let mut following =
            presences.present.values().filter(|present| present.role.holds_replica() && !present.is_bulk);
        following.all(|present| trusting.get(&present.member).is_some_and(|known| known.contains(&print)))
    }

    /// Returns the CA that signs a member's next certificate. Returns `None` if the member must wait before it can get
    /// one of the new CA; the current CA then signs.
    fn issuing<'a>(&self, member: &MemberName, authorities: &'a Authorities) -> Option<&'a Authority> {
        match authorities.next() {
            None => Some(authorities.current()),
            Some(next) => (self.trusts(member, next) && self.all_trust(next)).then_some(next),
        }
    }

    /// Issues a new certificate for a connected member.
    pub(super) fn renew(&self, member: &MemberName, request: &[u8]) -> Result<Vec<u8>, String> {
        let renewed = self.change_when_durable(member, |registry| {
            let authorities = self.authorities();
            let authority = self.issuing(member, &authorities).unwrap_or(authorities.current());
            registry.renew(authority, member, request, self.certificate_days, now_ms())
        });
        self.publish_roster();
        renewed.map_err(|error| error.to_string())
    }

    /// Returns the CAs that a member must trust. Records those that it trusts and the certificate that it holds.
    pub(super) fn roots(
        &self,
        member: &MemberName,
        known: Vec<String>,
        certificate: &str,
    ) -> Result<RootsInfo, TrustError> {
        let known: BTreeSet<String> =
            known.into_iter().filter(|print| print.len() == PRINT_CHARS).take(KNOWN_MAX).collect();
        let (is_news, is_member) = {
            let mut registry = self.registry();
            (registry.note_held(member, certificate), registry.member(member).is_some())
        };
        if is_member {
            self.trusting().insert(member.clone(), known);
        }
        if is_news {
            self.save();
        }
        let authorities = self.authorities();
        let links = {
            let registry = self.registry();
            authorities.roots(|name| registry.is_in_use(name))?
        };
        let root = |link: Link| RootInfo { certificate: STANDARD.encode(link.root), word: STANDARD.encode(link.word) };
        let issuing = self.issuing(member, &authorities).map(print_of);
        // Members that reported their trust before the last one did are notified that they need not wait.
        let is_first = authorities.next().is_some_and(|next| self.all_trust(next));
        if is_first && !self.is_issuing.swap(true, Ordering::Relaxed) {
            self.published().repeat();
        }
        Ok(RootsInfo { roots: links.into_iter().map(root).collect(), issuing })
    }

    /// Returns the reason why a certificate is no longer valid, if the CA that signed it was replaced.
    pub(super) fn left_behind(&self, certificate: &[u8]) -> Option<Refusal> {
        let authorities = self.authorities();
        let former = authorities.replaced_issuer(certificate)?;
        let registry = self.registry();
        let name = match registry.holder(certificate) {
            Some(name) if registry.member(name).is_some_and(|member| member.state != MemberState::Enrolled) => {
                return None;
            }
            Some(name) => name.to_string(),
            // The member was enrolled again a moment ago. It is about to present its new certificate, and keeps its
            // outbox until then.
            None => "this member".into(),
        };
        Some(Refusal::LeftBehind(name, timestamp(former.ended_ms)))
    }

    /// Returns the members whose certificates were signed by an unknown CA, with the name of that CA.
    pub(super) fn of_no_authority(&self) -> Vec<(MemberName, String)> {
        let authorities = self.authorities();
        let known: BTreeSet<String> =
            authorities.all().iter().map(|certificate| authority_name(&fingerprint(certificate))).collect();
        let registry = self.registry();
        let enrolled = registry.members().filter(|member| member.state == MemberState::Enrolled);
        let issuers = enrolled.filter_map(|member| Some((member.name.clone(), member.issuer()?.to_owned())));
        issuers.filter(|(_, issuer)| !known.contains(issuer)).collect()
    }

    pub(super) fn rotation(&self) -> AuthorityRotation {
        let authorities = self.authorities();
        let connected: BTreeSet<String> = self.presence().into_iter().map(|presence| presence.name).collect();
        let registry = self.registry();
        let enrolled = registry.members().filter(|member| member.state == MemberState::Enrolled);
        let info = |member: &Member| {
            let trusts_next = authorities.next().is_some_and(|next| self.trusts(&member.name, next));
            MemberAuthority {
                name: member.name.to_string(),
                role: member.role.to_string(),
                stage: stage(member, &authorities, trusts_next),
                connected: connected.contains(member.name.as_str()),
                last_seen_ms: member.last_seen_ms,
            }
        };
        let replaced = authorities.former().iter().filter(|former| former.end == End::Replaced);
        AuthorityRotation {
            current: authority_name(&authorities.current().fingerprint()),
            next: authorities.next().map(|next| authority_name(&next.fingerprint())),
            replaced: replaced
                .map(|former| ReplacedAuthority { name: former.name(), replaced_ms: former.ended_ms })
                .collect(),
            members: enrolled.map(info).collect(),
            invited: registry.invited(now_ms()).map(ToString::to_string).collect(),
        }
    }

    /// Loads the CAs from disk after a step, whether or not the step was completed.
    fn adopt(&self, trust: &Path, done: Result<Authorities, TrustError>) -> Result<(), String> {
        let (authorities, failed) = match done {
            Ok(authorities) => (authorities, None),
            Err(error) => (Authorities::load(trust).map_err(|_| error.to_string())?, Some(error.to_string())),
        };
        self.registry().set_replaced(&authorities);
        *self.authorities.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authorities);
        self.is_issuing.store(false, Ordering::Relaxed);
        let shown = self.renew_own(None);
        failed.map_or(shown, Err)
    }

    fn start_rotation(&self, trust: &Path) -> Result<(), String> {
        // Earlier versions did not record who signed a certificate. Those certificates belong to the current CA.
        let name = authority_name(&self.authorities().current().fingerprint());
        let noted = self.change(|registry| {
            registry.note_issuer(&name);
            Ok(())
        });
        noted.map_err(|error| error.to_string())?;
        let _turn = self.file();
        let begun = Authorities::begin(trust, now_ms());
        self.adopt(trust, begun)
    }

    fn finish_rotation(&self, trust: &Path, without: &[MemberName], generation: Generation) -> Result<(), String> {
        // Held so that no member joins or renews during the check.
        let turn = self.file();
        let rotation = self.rotation();
        if rotation.next.is_some() {
            let is_waiting = |member: &&MemberAuthority| member.stage != AuthorityStage::New;
            let waiting: Vec<&str> =
                rotation.members.iter().filter(is_waiting).map(|member| member.name.as_str()).collect();
            if let Some(ready) = without.iter().find(|name| !waiting.contains(&name.as_str())) {
                return Err(format!("{ready} does not need --without; check the names against `status`"));
            }
            let unnamed: Vec<&str> =
                waiting.into_iter().filter(|name| !without.iter().any(|named| named.as_str() == *name)).collect();
            if !unnamed.is_empty() {
                return Err(format!(
                    "these members have no certificate of the new certificate authority: {}; wait until each was \
                     connected for a minute (an administrator or balancer runs any command), revoke those that never \
                     reconnect, or leave them behind with --without: they then have to be enrolled again, and keep \
                     their state and outbox",
                    unnamed.join(", ")
                ));
            }
        }
        self.adopt(trust, Authorities::finish(trust, generation, now_ms()))?;
        drop(turn);
        self.close_left_behind();
        Ok(())
    }

    fn abort_rotation(&self, trust: &Path, generation: Generation) -> Result<(), String> {
        let _turn = self.file();
        self.adopt(trust, Authorities::abort(trust, generation, now_ms()))
    }

    /// Closes the connections of members whose certificates were signed by a CA that is no longer valid.
    fn close_left_behind(&self) {
        let rotation = self.rotation();
        let is_left = |name: &MemberName| {
            let mut left = rotation.members.iter().filter(|member| member.stage == AuthorityStage::Former);
            left.any(|member| member.name == name.as_str())
        };
        let now = timestamp(now_ms());
        for present in self.presences().present.values().filter(|present| is_left(&present.member)) {
            let reason = Refusal::LeftBehind(present.member.to_string(), now.clone()).to_string();
            present.connection.close(CLOSE_LEFT_BEHIND.into(), reason.as_bytes());
        }
    }
}

/// Performs a step of the rotation.
///
/// # Errors
/// Returns the reason if the step was not performed.
pub(super) fn step(shared: &DatastoreRef, step: &RotationStep) -> Result<AuthorityRotation, String> {
    let (members, trust) = (&shared.members, super::service::trust_dir(&shared.path));
    let generation = shared.log.generation();
    match step {
        RotationStep::Status => return Ok(members.rotation()),
        RotationStep::Begin => members.start_rotation(&trust)?,
        RotationStep::Finish { without } => members.finish_rotation(&trust, without, generation)?,
        RotationStep::Abort => members.abort_rotation(&trust, generation)?,
    }
    members.publish_roster();
    // Members then check immediately which CAs they must trust.
    members.published().repeat();
    proofs::sign(shared);
    Ok(members.rotation())
}
