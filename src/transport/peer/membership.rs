//! The trusted view of other members: the roster, its age, and the reason if it is not trusted.
//!
//! It fails closed. A roster that cannot be read might be the one that revokes a member, so no member is trusted until
//! a valid one arrives, even after a restart. Revocations arrive in a separate message, which applies independently of
//! the roster. A roster that the datastore has not confirmed for too long is not trusted, because revocations may have
//! been missed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::trust::{Fingerprint, KeptRoster, Refusal, Role, Roster};
use gravwell_env::{Clock, SystemClock};
use gravwell_model::MemberName;
use gravwell_model::codec::message::{self, Kind, Revocations};

/// Interval in milliseconds at which the time of the last confirmation is stored.
const WRITTEN_EVERY_MS: u64 = 600_000;

/// The roster of one member, on its disk and in memory.
pub(super) struct Membership {
    data_dir: PathBuf,
    roster: watch::Sender<Arc<Roster>>,
    state: Mutex<State>,
    /// Maximum age of a trusted roster; `None` means no limit.
    age_max: Option<Duration>,
}

struct State {
    /// Wall-clock time of the last contact with the datastore, which survives a restart.
    confirmed_ms: u64,
    /// The same time by the monotonic clock, which cannot be set.
    confirmed: Instant,
    written_ms: u64,
    /// Reason why no roster is trusted.
    refused: Option<String>,
}

fn now_ms() -> u64 {
    SystemClock.now_ms()
}

impl Membership {
    /// Loads the stored roster from the data directory.
    pub(super) fn load(data_dir: &Path, age_max: Option<Duration>) -> Membership {
        let KeptRoster { roster, confirmed_ms, refused } = KeptRoster::load(data_dir);
        // A time in the future was written while the clock was wrong.
        let confirmed_ms = confirmed_ms.min(now_ms());
        let state = State { confirmed_ms, confirmed: Instant::now(), written_ms: confirmed_ms, refused };
        Membership {
            data_dir: data_dir.to_owned(),
            roster: watch::channel(Arc::new(roster)).0,
            state: Mutex::new(state),
            age_max,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn roster(&self) -> Arc<Roster> {
        self.roster.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Roster>> {
        self.roster.subscribe()
    }

    /// Returns the reason why no other member is trusted; `None` if the members of the roster are.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.state();
        if let Some(why) = &state.refused {
            return Some(format!(
                "no other member is trusted, because the membership list from the datastore was rejected ({why})"
            ));
        }
        let by_host = Duration::from_millis(now_ms().saturating_sub(state.confirmed_ms));
        let age = by_host.max(state.confirmed.elapsed());
        let bound = self.age_max.filter(|bound| age > *bound && !self.roster.borrow().members.is_empty())?;
        let hours = |span: Duration| span.as_secs() / 3600;
        Some(format!(
            "no other member is trusted, because the datastore has been unreachable for {} h and the membership list \
             is valid for {} h (Membership-Max-Age-Hours)",
            hours(age),
            hours(bound)
        ))
    }

    /// Returns whether the last roster was rejected, which is a fault, unlike an outdated roster.
    pub(super) fn is_refused(&self) -> bool {
        self.state().refused.is_some()
    }

    /// Returns the member that owns a certificate.
    pub(super) fn authorise(&self, certificate: &Fingerprint) -> Result<(MemberName, Role), Refusal> {
        match self.problem() {
            Some(problem) => Err(Refusal::Unverifiable(problem)),
            None => self.roster().authorise_print(certificate, now_ms()),
        }
    }

    /// Replaces the roster by an encoded one from the datastore. If it is invalid, no member is trusted from now on.
    pub(super) fn handle_roster(&self, body: &[u8]) {
        match Roster::decode(body) {
            Ok(roster) => self.replace(roster),
            Err(why) => self.refuse(&why),
        }
    }

    pub(super) fn replace(&self, mut roster: Roster) {
        roster.remember_addresses(&self.roster());
        let was_refused = {
            let mut state = self.state();
            (state.confirmed_ms, state.confirmed) = (now_ms(), Instant::now());
            state.refused.take().is_some()
        };
        let is_new = roster != *self.roster();
        if is_new {
            self.roster.send_replace(Arc::new(roster));
        }
        if is_new || was_refused {
            self.keep();
        }
    }

    fn refuse(&self, why: &str) {
        tracing::error!(
            why,
            "rejected an invalid membership list; no other member is trusted until the datastore sends another"
        );
        self.state().refused = Some(gravwell_model::codec::report_limits::reportable(why));
        // Addresses come again with the next roster.
        self.roster.send_replace(Arc::default());
        self.keep();
    }

    /// Removes revoked certificates from the roster, as instructed by the datastore, without waiting for the next roster.
    pub(super) fn handle_revocations(&self, body: &[u8]) {
        match message::decode::<Revocations>(Kind::Revocations, body) {
            Ok(revocations) => self.revoke(&revocations.certificates),
            Err(error) => self.refuse(&error.to_string()),
        }
    }

    fn revoke(&self, certificates: &[Fingerprint]) {
        let mut roster = Roster::clone(&self.roster());
        if roster.revoke(certificates) {
            self.roster.send_replace(Arc::new(roster));
            self.keep();
        }
    }

    /// Records that the datastore is reachable; it would have sent a roster if the members had changed.
    pub(super) fn confirm(&self) {
        let is_due = {
            let mut state = self.state();
            (state.confirmed_ms, state.confirmed) = (now_ms(), Instant::now());
            state.confirmed_ms.saturating_sub(state.written_ms) >= WRITTEN_EVERY_MS
        };
        if is_due {
            self.keep();
        }
    }

    fn keep(&self) {
        let kept = {
            let mut state = self.state();
            state.written_ms = state.confirmed_ms;
            let (confirmed_ms, refused) = (state.confirmed_ms, state.refused.clone());
            KeptRoster { roster: Roster::clone(&self.roster()), confirmed_ms, refused }
        };
        if let Err(error) = kept.save(&self.data_dir) {
            tracing::warn!(%error, "failed to store the membership list; a restart uses the previous one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Identity, RosterCertificate, RosterMember};

    const AGE_MAX: Option<Duration> = Some(Duration::from_secs(24 * 3600));

    fn roster(names: &[(&str, u8)]) -> Roster {
        let member = |(name, byte): &(&str, u8)| RosterMember {
            name: MemberName::new(*name).expect("name"),
            role: Role::Webserver,
            certificates: vec![RosterCertificate {
                fingerprint: format!("{byte:02x}").repeat(32),
                expires_ms: u64::MAX,
            }],
            peer_addresses: Vec::new(),
            external_addr: None,
        };
        Roster { members: names.iter().map(member).collect(), ..Roster::default() }
    }

    fn dir() -> tempfile::TempDir {
        let temp = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(Identity::dir(temp.path())).expect("creates");
        temp
    }

    #[test]
    fn p11_a_roster_that_cannot_be_read_closes_the_port_until_a_good_one_arrives() {
        let good = roster(&[("a", 1), ("b", 2)]).encode();
        let mut newer = roster(&[("a", 1)]);
        newer.version += 1;
        let too_long = vec![b' '; crate::trust::ROSTER_BYTES_MAX + 1];
        let faults: [&[u8]; 5] = [&too_long, &good[..good.len() - 1], b"", &[0xff; 40], &newer.encode()];
        for fault in faults {
            let temp = dir();
            let membership = Membership::load(temp.path(), AGE_MAX);
            assert!(membership.authorise(&[1; 32]).is_err() && membership.problem().is_none(), "none arrived yet");
            membership.handle_roster(&good);
            assert!(membership.authorise(&[1; 32]).is_ok());
            membership.handle_roster(fault);
            for membership in [membership, Membership::load(temp.path(), AGE_MAX)] {
                assert!(matches!(membership.authorise(&[1; 32]), Err(Refusal::Unverifiable(_))));
                assert!(membership.is_refused() && membership.problem().is_some());
                membership.confirm();
                assert!(membership.authorise(&[1; 32]).is_err(), "contact with the datastore is not sufficient");
            }
            let membership = Membership::load(temp.path(), AGE_MAX);
            membership.handle_roster(&good);
            assert!(membership.authorise(&[1; 32]).is_ok() && membership.problem().is_none());
            assert!(Membership::load(temp.path(), AGE_MAX).authorise(&[2; 32]).is_ok(), "also after a restart");
        }
    }

    #[test]
    fn p11_a_revocation_applies_without_a_roster_and_over_a_restart() {
        let temp = dir();
        let membership = Membership::load(temp.path(), AGE_MAX);
        membership.handle_roster(&roster(&[("a", 1), ("b", 2)]).encode());
        let body = |certificates: &[Fingerprint]| {
            message::encode(Kind::Revocations, &Revocations { certificates: certificates.to_vec() })
                [message::HEADER_BYTES..]
                .to_vec()
        };
        membership.handle_revocations(&body(&[[2; 32], [9; 32]]));
        for membership in [membership, Membership::load(temp.path(), AGE_MAX)] {
            assert!(membership.authorise(&[1; 32]).is_ok());
            assert_eq!(membership.authorise(&[2; 32]), Err(Refusal::Unknown));
        }
        let membership = Membership::load(temp.path(), AGE_MAX);
        membership.handle_revocations(&[7]);
        assert!(membership.authorise(&[1; 32]).is_err(), "an invalid revocation may concern any member");
    }

    #[test]
    fn p11_a_roster_counts_only_for_its_time_and_again_when_the_datastore_is_there() {
        let temp = dir();
        let hour = 3_600_000;
        let kept = |hours: u64| KeptRoster {
            roster: roster(&[("a", 1)]),
            confirmed_ms: now_ms() - hours * hour,
            refused: None,
        };
        for (hours, age_max, counts) in [(23, AGE_MAX, true), (25, AGE_MAX, false), (1000, None, true)] {
            kept(hours).save(temp.path()).expect("keeps");
            let membership = Membership::load(temp.path(), age_max);
            assert_eq!(membership.authorise(&[1; 32]).is_ok(), counts, "{hours} h");
            assert_eq!(membership.problem().is_none(), counts, "{hours} h");
            membership.confirm();
            assert!(membership.authorise(&[1; 32]).is_ok());
            let again = Membership::load(temp.path(), age_max);
            assert!(again.authorise(&[1; 32]).is_ok(), "also after a restart");
        }
        // A clock that was ahead must not extend the lifetime of a roster.
        KeptRoster { confirmed_ms: u64::MAX, ..kept(0) }.save(temp.path()).expect("keeps");
        let membership = Membership::load(temp.path(), AGE_MAX);
        assert!(membership.state().confirmed_ms <= now_ms());
    }
}
