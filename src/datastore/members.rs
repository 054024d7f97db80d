//! The datastore's members: the registry on disk and the current connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gravwell_model::codec::admin::{BackendInfo, Invitation, MemberInfo, PresenceInfo};
use gravwell_model::codec::audit::Act;
use gravwell_model::codec::message::{Announce, Hello, Progress};
use gravwell_model::{MemberName, Position, Seq};
use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;
use gravwell_transport::endpoint::{CLOSE_NOT_A_MEMBER, ServerEndpoint};
use gravwell_transport::join::Redeem;
use gravwell_transport::trust::{
    AuditMark, Authorities, CaBackup, LogMark, Member, MemberState, Proof, RecoveryKeys, Refusal, Registry,
    RegistryFile, Role, Token, TrustError,
};

use super::blobs::Connected;
use super::member_registry::NotDurable;
use super::presences::{PresenceId, Presences, Present};
use super::published::Published;
use super::read_only::{self, Here};
use super::shared::{DatastoreState, now_ms};
use super::stale_registry::{AllShown, Witness, beyond};

/// Addresses at which others reach a member.
#[derive(Clone, Default, PartialEq, Eq)]
struct Reachable {
    peer_addresses: Vec<String>,
    external_addr: Option<String>,
}

/// Most addresses of refused clients that are remembered; enough to report that there are some.
const STRANGERS_MAX: usize = 64;
/// Age from which a second connection counts as a duplicate. A lost connection is dropped earlier.
const TWICE_AFTER_MS: u64 = 15_000;

/// Registry, CA and connected members.
///
/// Methods that write the registry file block on the disk and must run on threads that may block. All others only take
/// locks that are held briefly.
pub(super) struct Members {
    pub(super) authorities: RwLock<Arc<Authorities>>,
    /// Fingerprints of the CAs that members reported as trusted.
    pub(super) trusting: Mutex<BTreeMap<MemberName, BTreeSet<String>>>,
    /// Whether the new CA signs certificates and members were informed of it.
    pub(super) is_issuing: AtomicBool,
    /// Endpoint that presents the datastore's certificate, and the certificate's names.
    pub(super) serving: Mutex<Option<(ServerEndpoint, Vec<String>)>>,
    /// Held only briefly, and never around `file`.
    registry: Mutex<Registry>,
    /// Held from a change of the registry until it is durable, so that changes are written in order.
    file: Mutex<RegistryFile>,
    /// Changes that are in force but not durable.
    pub(super) not_durable: Mutex<NotDurable>,
    /// Records the progress of the registry outside its file.
    pub(super) witness: Mutex<Option<Witness>>,
    /// Registries that members have shown.
    pub(super) shown: AllShown,
    presences: Mutex<Presences>,
    /// Addresses that members announced, kept while they are disconnected.
    reachable: Mutex<BTreeMap<MemberName, Reachable>>,
    published: Published,
    /// Addresses of clients that trust a different CA.
    strangers: Mutex<BTreeSet<IpAddr>>,
    retention_ms: u64,
    addresses: Vec<String>,
    pub(super) certificate_days: u32,
}

static JOINS_FAILED: LogRateLimit = LogRateLimit::new();

impl Redeem for DatastoreState {
    fn redeem(
        &self,
        name: &MemberName,
        secret: &[u8; 32],
        request_der: &[u8],
        from: IpAddr,
    ) -> Result<(Vec<u8>, Vec<u8>, Role), String> {
        let joined = match self.register_waits() {
            Some(waits) => Err(format!("no member is enrolled, because {waits}")),
            None => self.members.redeem(name, secret, request_der),
        };
        let (kind, what, count) = match &joined {
            Ok((.., role)) => ("join", format!("{name} joined as a {role}"), Some(1)),
            // A client without a token can retry without limit, so these records are rate-limited.
            Err(error) => ("join-failed", format!("{name}: {error}"), JOINS_FAILED.note().map(|left_out| left_out + 1)),
        };
        if let Some(count) = count {
            let (kind, happened_ms, from) = (kind.into(), now_ms(), from.to_string());
            self.audit.note_soon(&self.local, Act { kind, happened_ms, from, what, count, ..Act::default() });
        }
        joined
    }
}

impl Members {
    pub(super) fn redeem(
        &self,
        name: &MemberName,
        secret: &[u8; 32],
        request_der: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>, Role), String> {
        // The current CA signs, because the token names it and the member knows no other yet.
        let redeem = |registry: &mut Registry| {
            let authorities = self.authorities();
            let authority = authorities.current();
            let (certificate, role) =
                registry.redeem(authority, name, secret, request_der, self.certificate_days, now_ms())?;
            Ok((certificate, authority.certificate().to_vec(), role))
        };
        let (certificate, authority, role) =
            self.change_when_durable(name, redeem).map_err(|error| error.to_string())?;
        self.publish_roster();
        // Closes connections of a former holder of the name, which may have had another role.
        self.close(name, CLOSE_NOT_A_MEMBER, "the member was enrolled again; join with a new token");
        tracing::info!(member = %name, %role, "joined");
        Ok((certificate, authority, role))
    }
}

impl Members {
    pub(super) fn new(
        authorities: Authorities,
        mut registry: Registry,
        retention_ms: u64,
        addresses: Vec<String>,
        certificate_days: u32,
    ) -> Members {
        registry.set_replaced(&authorities);
        let (registry, file) = registry.into_parts();
        let (presences, reachable) = (Mutex::default(), Mutex::default());
        let published = Published::new(registry.revoked_certificates());
        let members = Members {
            authorities: RwLock::new(Arc::new(authorities)),
            trusting: Mutex::default(),
            is_issuing: AtomicBool::default(),
            serving: Mutex::default(),
            registry: Mutex::new(registry),
            file: Mutex::new(file),
            not_durable: Mutex::default(),
            witness: Mutex::default(),
            shown: AllShown::default(),
            presences,
            reachable,
            published,
            strangers: Mutex::default(),
            retention_ms,
            addresses,
            certificate_days,
        };
        members.publish_roster();
        members
    }

    /// Records that a client rejected this datastore's certificate.
    pub(super) fn note_stranger(&self, from: IpAddr) {
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() < STRANGERS_MAX {
            strangers.insert(from.to_canonical());
        }
    }

    /// Returns the number of addresses from which members of another log tried to connect. Returns 0 if this log has
    /// enrolled members. Without any, the datastore may have been wiped.
    pub(super) fn strangers(&self) -> u64 {
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        let has_members = strangers > 0
            && self
                .registry()
                .members()
                .any(|member| member.state == MemberState::Enrolled && member.role.holds_replica());
        if has_members { 0 } else { strangers }
    }

    /// Returns the lists that are sent to members.
    pub(super) fn published(&self) -> &Published {
        &self.published
    }

    /// Sends the roster to all members if it has changed.
    pub(super) fn publish_roster(&self) {
        let mut roster = self.registry().roster();
        let reachable = self.reachable.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for member in &mut roster.members {
            let Some(Reachable { peer_addresses, external_addr }) = reachable.get(&member.name) else { continue };
            member.peer_addresses.clone_from(peer_addresses);
            member.external_addr.clone_from(external_addr);
        }
        self.published.publish(&roster);
    }

    /// Stores the addresses that a member announces, within the limits of [`Announce::check`]. `seen` is the source
    /// address of its connection.
    pub(super) fn announce(&self, id: PresenceId, announce: &Announce, seen: IpAddr) {
        let with_port = |host: &str| {
            if host.contains(':') { format!("[{host}]:{}", announce.port) } else { format!("{host}:{}", announce.port) }
        };
        let mut peer_addresses: Vec<String> = announce.hosts.iter().map(|host| with_port(host)).collect();
        let seen = with_port(&seen.to_canonical().to_string());
        if !peer_addresses.contains(&seen) {
            peer_addresses.push(seen);
        }
        if announce.port == 0 {
            peer_addresses.clear();
        }
        let (member, external_addr) = {
            let mut presences = self.presences();
            let Some(present) = presences.present.get_mut(&id) else { return };
            present.info.peer_addresses.clone_from(&peer_addresses);
            (present.member.clone(), present.info.external_addr.clone())
        };
        let now = Reachable { peer_addresses, external_addr };
        self.reachable.lock().unwrap_or_else(PoisonError::into_inner).insert(member, now);
        self.publish_roster();
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file(&self) -> MutexGuard<'_, RegistryFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn presences(&self) -> MutexGuard<'_, Presences> {
        self.presences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the holder of a certificate, if the certificate is valid.
    pub(super) fn authorise(&self, certificate: &[u8]) -> Result<(MemberName, Role), Refusal> {
        if let Some(refusal) = self.left_behind(certificate) {
            return Err(refusal);
        }
        let (authorised, is_changed) = {
            let mut registry = self.registry();
            let retired = registry.retired();
            (registry.authorise(certificate, now_ms()), registry.retired() != retired)
        };
        // The first use of a renewed certificate retires the previous one.
        if is_changed {
            self.publish_roster();
        }
        authorised
    }

    pub(super) fn arrive(
        &self,
        member: &MemberName,
        role: Role,
        connection: &quinn::Connection,
        is_bulk: bool,
    ) -> PresenceId {
        let info = PresenceInfo {
            name: member.to_string(),
            role: role.to_string(),
            address: connection.remote_address().to_string(),
            since_ms: now_ms(),
            ..PresenceInfo::default()
        };
        let connection = connection.clone();
        self.presences().add(Present { info, member: member.clone(), connection, role, is_bulk })
    }

    /// Returns whether another connection of a member is accepted when at most `most` connections are allowed.
    pub(super) fn has_place_for(&self, member: &MemberName, most: u64) -> bool {
        let presences = self.presences();
        presences.count() < most || presences.has(member)
    }

    /// Stores the details that a member sends in its hello, within the limits of [`Hello::check`].
    pub(super) fn greet(&self, id: PresenceId, hello: &Hello) {
        let (member, external_addr) = {
            let mut presences = self.presences();
            let Some(present) = presences.present.get_mut(&id) else { return };
            // Only webservers serve users.
            let external_addr = hello.external_addr.clone().filter(|_| present.role == Role::Webserver);
            present.info.external_addr.clone_from(&external_addr);
            present.info.software.clone_from(&hello.software);
            (present.member.clone(), external_addr)
        };
        self.registry().note_address(&member, external_addr.as_deref());
    }

    /// Records a member's progress. Returns whether this is its first report, which must be saved immediately.
    #[must_use]
    pub(super) fn progress(&self, id: PresenceId, progress: &Progress, head: Seq, may_note: bool) -> bool {
        let (member, role) = {
            let mut presences = self.presences();
            let Some(present) = presences.present.get_mut(&id) else { return false };
            present.info.applied = progress.applied;
            present.info.outbox = progress.outbox;
            present.info.rejected = progress.rejected;
            present.info.unhealthy.clone_from(&progress.unhealthy);
            (present.member.clone(), present.role)
        };
        // While the datastore waits for recovery, the registry is evidence and must not change.
        // A position beyond the head cannot raise the floor.
        may_note && role.holds_replica() && self.registry().note_position(&member, progress.applied, head, now_ms())
    }

    pub(super) fn leave(&self, id: PresenceId) {
        self.presences().present.remove(&id);
    }

    pub(super) fn connected(&self) -> u64 {
        self.presences().count()
    }

    /// Returns connected members that may hold blobs, with a connection for requests: the bulk connection if there
    /// is one. Webservers come first: readers do not take part in keeping blobs complete.
    pub(super) fn connections(&self) -> Vec<Connected> {
        let presences = self.presences();
        let mut by_member: BTreeMap<&MemberName, &Present> = BTreeMap::new();
        for present in presences.present.values().filter(|present| present.role.holds_replica()) {
            let known = by_member.entry(&present.member).or_insert(present);
            if present.is_bulk {
                *known = present;
            }
        }
        let mut all: Vec<_> = by_member.into_iter().collect();
        all.sort_by_key(|(_, present)| present.role != Role::Webserver);
        all.into_iter().map(|(member, present)| (member.clone(), present.connection.clone())).collect()
    }

    /// Returns enrolled members that may hold blobs, connected or not.
    pub(super) fn holders(&self) -> Vec<MemberName> {
        let registry = self.registry();
        let may_hold = |member: &&Member| member.state == MemberState::Enrolled && member.role.holds_replica();
        registry.members().filter(may_hold).map(|member| member.name.clone()).collect()
    }

    pub(super) fn presence(&self) -> Vec<PresenceInfo> {
        let presences = self.presences();
        presences.present.values().filter(|present| !present.is_bulk).map(|present| present.info.clone()).collect()
    }

    /// Describes members with two connections that coexist for longer than a lost connection is kept, with
    /// their addresses.
    pub(super) fn twice(&self) -> Vec<String> {
        let now = now_ms();
        let presences = self.presences();
        let mut by_member: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for present in presences.present.values().filter(|present| !present.is_bulk && present.role.holds_replica()) {
            if now.saturating_sub(present.info.since_ms) > TWICE_AFTER_MS {
                by_member.entry(&present.info.name).or_default().push(&present.info.address);
            }
        }
        let twice = by_member.into_iter().filter(|(_, addresses)| addresses.len() > 1);
        twice.map(|(name, addresses)| format!("member {name} is connected twice: {}", addresses.join(", "))).collect()
    }

    pub(super) fn floor(&self, head: Seq) -> Seq {
        self.registry().floor(now_ms(), self.retention_ms, head)
    }

    pub(super) fn list(&self, head: Seq) -> Vec<MemberInfo> {
        let connected: Vec<String> = self.presence().into_iter().map(|presence| presence.name).collect();
        let now = now_ms();
        let registry = self.registry();
        let info = |member: &Member| MemberInfo {
            name: member.name.to_string(),
            role: member.role.to_string(),
            state: member.state.to_string(),
            connected: connected.iter().any(|name| *name == member.name.as_str()),
            applied: member.applied,
            lag_ops: member.applied.map(|applied| head.since(applied)),
            last_seen_ms: member.last_seen_ms,
            counts: registry.counts(member, now, self.retention_ms, head),
            expires_ms: member.certificate_expires_ms(),
            external_addr: member.external_addr.clone(),
            copy_keys: member.copy_keys.clone(),
        };
        registry.members().map(info).collect()
    }

    pub(super) fn revoked(&self) -> BTreeSet<MemberName> {
        let registry = self.registry();
        let revoked = registry.members().filter(|member| member.state == MemberState::Revoked);
        revoked.map(|member| member.name.clone()).collect()
    }

    /// Returns the enrolled webservers, for a load balancer.
    pub(super) fn backends(&self) -> Vec<BackendInfo> {
        let (present, now) = (self.presence(), now_ms());
        let registry = self.registry();
        let is_served = |member: &&Member| {
            let is_webserver = member.role == Role::Webserver && member.state == MemberState::Enrolled;
            let is_present = || present.iter().any(|present| present.name == member.name.as_str());
            is_webserver && (is_present() || registry.is_heard(member, now, self.retention_ms))
        };
        let info = |member: &Member| {
            let its = present.iter().filter(|present| present.name == member.name.as_str());
            let newest = its.max_by_key(|present| present.since_ms);
            let reported = newest.and_then(|present| present.external_addr.clone());
            BackendInfo {
                name: member.name.to_string(),
                external_addr: reported.or_else(|| member.external_addr.clone()),
                connected: newest.is_some(),
                unhealthy: newest.and_then(|present| present.unhealthy.clone()),
            }
        };
        registry.members().filter(is_served).map(info).collect()
    }

    pub(super) fn invite(
        &self,
        name: &MemberName,
        role: Role,
        ttl_s: u64,
        addresses: Vec<String>,
        replace: bool,
    ) -> Result<Invitation, String> {
        let addresses = if addresses.is_empty() { self.addresses.clone() } else { addresses };
        let ttl_ms = ttl_s.saturating_mul(1000);
        let secret = self.change_when_durable(name, |registry| registry.invite(name, role, ttl_ms, now_ms(), replace));
        let secret = secret.map_err(|error| error.to_string())?;
        let expires_ms = now_ms().saturating_add(ttl_ms);
        let token = Token::new(addresses, self.authorities().current().fingerprint(), secret, name.clone(), expires_ms);
        Ok(Invitation { name: name.to_string(), role: role.to_string(), token: token.to_string(), expires_ms })
    }

    pub(super) fn close(&self, name: &MemberName, code: u32, why: &str) {
        for present in self.presences().present.values().filter(|present| present.member == *name) {
            present.connection.close(code.into(), format!("{name}: {why}").as_bytes());
        }
    }

    /// Returns the encrypted backup of CA and registry for a member. The text is `None` if the member already has
    /// this version.
    ///
    /// There is none while a later registry is known: it would take the place of one that contains that registry, at
    /// members, in files and in backups.
    pub(super) fn escrow(
        &self,
        trust: &std::path::Path,
        known: Option<&str>,
    ) -> Result<(String, Option<String>), String> {
        // One call at a time: the first one creates the recovery key.
        let _turn = self.file();
        let mut copy = self.registry().copy();
        if let Some(waits) = beyond(&copy) {
            return Err(format!("no encrypted CA backup is made, because {waits}"));
        }
        let keys = RecoveryKeys::open_or_create(trust).map_err(|error| error.to_string())?;
        let authorities = self.authorities();
        let stamp = CaBackup::stamp_of(&copy, &authorities, &keys);
        if known == Some(stamp.as_str()) {
            return Ok((stamp, None));
        }
        let escrow =
            CaBackup::seal(trust, authorities.current(), &mut copy, now_ms()).map_err(|error| error.to_string())?;
        let text = escrow.to_text().map_err(|error| error.to_string())?;
        Ok((stamp, Some(text)))
    }

    /// Records which encrypted backup a member has, as shown by the stamp it presents.
    pub(super) fn note_copy(&self, member: &MemberName, known: Option<&str>) {
        self.registry().note_copy(member, known.and_then(CaBackup::keys_of));
    }

    pub(super) fn sign(&self, position: Position) -> Result<Proof, TrustError> {
        Proof::sign(self.authorities().current(), position, now_ms())
    }

    /// Returns whether one of this datastore's CAs has signed a position.
    pub(super) fn has_signed(&self, proof: &Proof) -> bool {
        self.authorities().has_signed(proof)
    }

    /// Returns whether the current CA has signed a position.
    pub(super) fn signs(&self, proof: &Proof) -> bool {
        proof.is_of(self.authorities().current().certificate())
    }

    /// Returns the registry's evidence that the log lost entries or was replaced.
    pub(super) fn evidence(&self, here: &Here<'_>) -> Option<String> {
        read_only::from_register(here, &self.registry().copy())
    }

    /// Returns the evidence against the log in a member's position.
    pub(super) fn shown_by(&self, here: &Here<'_>, member: &MemberName, position: &Position) -> Option<String> {
        let member = self.registry().member(member).cloned()?;
        here.shown_by(&member, position)
    }

    pub(super) fn note_log(&self, mark: LogMark) {
        self.registry().note_log(mark);
    }

    pub(super) fn note_audit(&self, mark: AuditMark) {
        self.registry().note_audit(mark);
    }

    /// Records permanently a member's position that contradicts the log. Returns `false` if it is no longer a member.
    pub(super) fn note_contradiction(&self, member: &MemberName, position: Position) -> bool {
        let noted = self.change(|registry| registry.note_contradiction(member, position, now_ms()));
        noted.unwrap_or_else(|error| {
            tracing::error!(%error, "failed to store a member's proof of the log position; it is lost at a restart");
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use gravwell_model::{Digest, Generation, LogId};

    #[tokio::test]
    async fn p13_an_answer_on_a_former_connection_does_not_show_the_register_of_a_new_one() {
        let temp = tempfile::tempdir().expect("temp dir");
        let registry = Registry::open(temp.path(), now_ms()).expect("registry");
        let authority = Authorities::open_or_create(temp.path(), now_ms()).expect("authority");
        let members = Members::new(authority, registry, u64::MAX, vec!["localhost:1".into()], 90);
        let name = MemberName::new("web1").expect("name");
        let has_shown = async |connection| {
            tokio::time::timeout(Duration::from_millis(50), members.wait_shown(&name, connection)).await.is_ok()
        };
        assert!(!has_shown(1).await);
        members.note_shown(&name, 1);
        assert!(has_shown(1).await && !has_shown(2).await);
        members.note_shown(&name, 2);
        assert!(has_shown(2).await);
    }

    #[test]
    fn p14_no_reading_of_the_register_waits_while_it_is_written() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut registry = Registry::open(temp.path(), now_ms()).expect("registry");
        let authority = Authorities::open_or_create(temp.path(), now_ms()).expect("authority");
        let (name, other) = (MemberName::new("web1").expect("name"), MemberName::new("web2").expect("name"));
        registry.invite(&name, Role::Webserver, 1000, now_ms(), false).expect("invites");
        registry.enrol(&name, Role::Webserver, b"certificate", 90, now_ms()).expect("enrols");
        let members = Members::new(authority, registry, u64::MAX, vec!["localhost:1".into()], 90);
        let position = Position {
            log_id: LogId([7; 16]),
            generation: Generation(1),
            seq: Seq(5),
            chain: [7; 16],
            digest: Digest::ZERO,
        };
        let writes: [&(dyn Fn() + Sync); 4] = [
            &|| drop(members.invite(&other, Role::Reader, 60, Vec::new(), true).expect("invites")),
            &|| assert!(members.note_contradiction(&name, position)),
            &|| assert!(members.escrow(temp.path(), None).expect("seals").1.is_some()),
            &|| assert_eq!(members.revoke(&name, false).expect("revokes"), None),
        ];
        for write in writes {
            let before = std::fs::read(temp.path().join("members.json")).expect("reads");
            // The lock simulates a slow disk.
            let disk = members.file();
            std::thread::scope(|scope| {
                let (written, is_written) = mpsc::channel();
                scope.spawn(move || {
                    write();
                    let _ = written.send(());
                });
                let (read, is_read) = mpsc::channel();
                let members = &members;
                scope.spawn(move || {
                    let _ = members.authorise(b"certificate");
                    let _ = (members.floor(Seq(9)), members.list(Seq(9)), members.strangers());
                    members.note_log(LogMark { log_id: LogId([7; 16]), generation: Generation(1), seq: Seq(9) });
                    let _ = read.send(());
                });
                is_read.recv_timeout(Duration::from_secs(60)).expect("reads while the file is being written");
                assert!(is_written.try_recv().is_err(), "answered before the change was durable");
                assert_eq!(std::fs::read(temp.path().join("members.json")).expect("reads"), before);
                drop(disk);
                is_written.recv_timeout(Duration::from_secs(60)).expect("writes");
            });
        }
        let back = Registry::open(temp.path(), now_ms()).expect("reopens");
        let states: Vec<_> = back.members().map(|member| (member.name.clone(), member.state.to_string())).collect();
        assert_eq!(states, [(name, "revoked".into()), (other, "invited".into())]);
    }
}
