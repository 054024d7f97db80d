//! Changes of the member registry, and when they take effect.
//!
//! An invitation, a join or a new certificate takes effect once it is written; if the write fails, it did not happen. A
//! revocation takes effect immediately: connections are closed, the other members are notified, and the registry
//! refuses the member. A revocation that cannot be written is retried until it is durable, and the status reports it
//! until then.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use gravwell_model::MemberName;
use gravwell_model::codec::health::{Code, Reason};
use gravwell_transport::endpoint::CLOSE_REVOKED;
use gravwell_transport::trust::{Registry, RegistryFile, TrustError, listed};

use super::members::Members;
use super::shared::now_ms;
use super::stale_registry::Progress;

/// Changes in force that could not be written.
#[derive(Default)]
pub(super) struct NotDurable {
    names: Vec<MemberName>,
    why: String,
}

impl Members {
    fn not_durable(&self) -> MutexGuard<'_, NotDurable> {
        self.not_durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the registry if its file is out of date.
    fn write_now(&self, file: &mut RegistryFile) -> Result<(), TrustError> {
        let (unwritten, written) = {
            let mut registry = self.registry();
            (registry.unwritten(file, now_ms())?, Progress::of(&registry))
        };
        match (unwritten, self.waits_to_be_written()) {
            (None, _) => {}
            (Some(text), true) => file.write_at_any_price(&text)?,
            (Some(text), false) => file.write(&text)?,
        }
        self.note_written(written);
        let mut waiting = self.not_durable();
        if !waiting.names.is_empty() {
            if !waiting.why.is_empty() {
                tracing::info!("pending revocations are durable now");
            }
            *waiting = NotDurable::default();
        }
        Ok(())
    }

    /// Changes the registry. The change is visible immediately, and durable if this returns no error. If the write
    /// fails, it is repeated with the next change or by [`Members::save`].
    pub(super) fn change<T>(&self, how: impl FnOnce(&mut Registry) -> Result<T, TrustError>) -> Result<T, TrustError> {
        let mut file = self.file();
        let done = how(&mut self.registry())?;
        self.write_now(&mut file)?;
        Ok(done)
    }

    /// Changes the registry's data of one member. The change is visible only once it is durable. After an error nothing
    /// has changed.
    pub(super) fn change_when_durable<T>(
        &self,
        name: &MemberName,
        how: impl FnOnce(&mut Registry) -> Result<T, TrustError>,
    ) -> Result<T, TrustError> {
        let mut file = self.file();
        let (before, mark, mut changed) = {
            let registry = self.registry();
            (registry.member(name).cloned(), registry.mark(), registry.copy())
        };
        let done = how(&mut changed)?;
        let text = changed.text(now_ms())?;
        let written = file.write(&text);
        let is_all = {
            let mut registry = self.registry();
            registry.count_on_from(&changed);
            written?;
            registry.adopt(name, (before.as_ref(), &mark), &changed, now_ms())?;
            registry.mark() == changed.mark()
        };
        // Otherwise a revocation in the meantime is about to be written. The registry that has it does not descend from
        // the written one, so that one must not be recorded either.
        if is_all {
            self.note_written(Progress::of(&changed));
        }
        Ok(done)
    }

    /// Revokes a member: closes its connections and refuses new ones. This is in force when the call returns without an
    /// error. Returns the reason if the revocation is not durable yet.
    pub(super) fn revoke(&self, name: &MemberName, remove: bool) -> Result<Option<String>, String> {
        let revoke = |registry: &mut Registry| match remove {
            true => registry.remove(name, now_ms()),
            false => registry.revoke(name, now_ms()),
        };
        revoke(&mut self.registry()).map_err(|error| error.to_string())?;
        self.publish_roster();
        self.close(name, CLOSE_REVOKED, "the member was revoked; request a new token from an administrator");
        // From here on the call waits for the disk.
        let mut file = self.file();
        self.not_durable().names.push(name.clone());
        let written = self.write_now(&mut file);
        Ok(written.err().map(|error| {
            let why = error.to_string();
            tracing::error!(member = %name, why, "revocation is in force but not durable yet; will retry");
            self.not_durable().why.clone_from(&why);
            why
        }))
    }

    /// Like [`Members::revoke`], for a datastore that serves no members: if the write fails, the revocation did
    /// not happen.
    pub(super) fn revoke_when_durable(&self, name: &MemberName, remove: bool) -> Result<(), String> {
        let revoked = self.change_when_durable(name, |registry| match remove {
            true => registry.remove(name, now_ms()),
            false => registry.revoke(name, now_ms()),
        });
        revoked.map_err(|error| error.to_string())
    }

    /// Returns whether a change is in force but not durable.
    pub(super) fn waits_to_be_written(&self) -> bool {
        !self.not_durable().names.is_empty()
    }

    /// Returns the status reason for changes in force but not durable.
    pub(super) fn not_written(&self) -> Option<Reason> {
        let waiting = self.not_durable();
        if waiting.why.is_empty() {
            return None;
        }
        let names: BTreeSet<String> = waiting.names.iter().map(ToString::to_string).collect();
        let message = format!(
            "the revocation of {} is in force but not durable yet: {}; a restart before then would admit the \
             member again",
            listed(&names),
            waiting.why
        );
        let remedy = "free some disk space, or check the directory `trust`; the revocation is written as soon as \
                      possible: do not restart the datastore before then";
        Some(Reason::new(Code::RevocationNotDurable, message, remedy))
    }

    /// Writes changes made since the last write; positions are written lazily.
    pub(super) fn save(&self) {
        let mut file = self.file();
        if let Err(error) = self.write_now(&mut file) {
            let mut waiting = self.not_durable();
            if waiting.names.is_empty() {
                tracing::warn!(%error, "failed to store the members' positions; the floor will be too low, which is \
                                        safe");
            } else {
                waiting.why = error.to_string();
            }
            return;
        }
        file.keep_reserve();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stale_registry::Witness;
    use gravwell_transport::trust::{Authorities, MemberState, NewKey, Role, Token};

    /// Opens the members of a datastore in `trust`, with one enrolled member and its certificate.
    fn members(trust: &std::path::Path, name: &MemberName) -> (Members, Vec<u8>) {
        let mut registry = Registry::open(trust, now_ms()).expect("registry");
        let authority = Authorities::open_or_create(trust, now_ms()).expect("authority");
        let request = NewKey::generate(name).expect("a key").request_der;
        let secret = registry.invite(name, Role::Webserver, 60_000, now_ms(), false).expect("invites");
        let (certificate, _) =
            registry.redeem(authority.current(), name, &secret, &request, 90, now_ms()).expect("joins");
        (Members::new(authority, registry, u64::MAX, vec!["localhost:1".into()], 90), certificate)
    }

    fn on_disk(trust: &std::path::Path, name: &MemberName) -> Option<MemberState> {
        Registry::open(trust, now_ms()).expect("reopens").member(name).map(|member| member.state)
    }

    #[test]
    fn p11_a_revocation_is_in_force_at_once_and_is_written_as_soon_as_that_is_possible() {
        for remove in [false, true] {
            let temp = tempfile::tempdir().expect("temp dir");
            let trust = temp.path().join("trust");
            let name = MemberName::new("web1").expect("name");
            let (members, certificate) = members(&trust, &name);
            assert!(members.authorise(&certificate).is_ok());
            // A directory with the name of the temporary file makes the write fail.
            let in_the_way = trust.join("members.json.next");
            std::fs::create_dir(&in_the_way).expect("creates");
            let why = members.revoke(&name, remove).expect("revokes").expect("is not durable");
            assert!(why.contains("members.json.next"), "{why}");
            assert!(members.authorise(&certificate).is_err());
            assert_eq!(on_disk(&trust, &name), Some(MemberState::Enrolled));
            let reason = members.not_written().expect("is reported");
            assert_eq!(reason.code, Code::RevocationNotDurable);
            assert!(reason.message.contains("web1") && reason.message.contains(&why), "{reason:?}");
            members.save();
            assert!(members.waits_to_be_written(), "writing still fails");
            std::fs::remove_dir(&in_the_way).expect("removes");
            members.save();
            assert_eq!((members.waits_to_be_written(), members.not_written()), (false, None));
            let expected = if remove { None } else { Some(MemberState::Revoked) };
            assert_eq!(on_disk(&trust, &name), expected);
            assert!(trust.join("members.reserve").exists(), "the reserve is restored");
        }
    }

    #[test]
    fn p11_a_revocation_does_not_wait_for_a_change_that_waits_for_the_disk() {
        let temp = tempfile::tempdir().expect("temp dir");
        let trust = temp.path().join("trust");
        let name = MemberName::new("web1").expect("name");
        let (members, certificate) = members(&trust, &name);
        let disk = members.file();
        std::thread::scope(|scope| {
            let revoking = scope.spawn(|| members.revoke(&name, false));
            let started = std::time::Instant::now();
            while members.authorise(&certificate).is_ok() {
                assert!(started.elapsed() < std::time::Duration::from_secs(60), "it waited for the disk");
                std::thread::yield_now();
            }
            drop(disk);
            assert_eq!(revoking.join().expect("ends"), Ok(None));
        });
        assert_eq!(on_disk(&trust, &name), Some(MemberState::Revoked));
    }

    #[test]
    fn p13_what_is_recorded_of_a_register_is_never_ahead_of_what_was_written() {
        let temp = tempfile::tempdir().expect("temp dir");
        let trust = temp.path().join("trust");
        let (name, other) = (MemberName::new("web1").expect("name"), MemberName::new("web2").expect("name"));
        let (members, _) = members(&trust, &name);
        members.witnessed_by(Witness::open(temp.path(), false, false));
        members.save();
        let recorded = || Witness::open(temp.path(), false, true).noted().expect("is recorded").mark;
        let written = || Registry::open(&trust, now_ms()).expect("reopens");
        let before = recorded();
        // A member is revoked while the token of another one is being written.
        let invited = members.change_when_durable(&other, |changed| {
            members.registry().revoke(&name, now_ms()).expect("revokes");
            changed.invite(&other, Role::Webserver, 60_000, now_ms(), true)
        });
        invited.expect("is written");
        assert_eq!(written().relation(&recorded()), None, "a crash now leaves no evidence");
        assert_eq!(recorded(), before, "the registry that is written next does not descend from the written one");
        members.save();
        assert_eq!(recorded(), written().mark());
        assert_ne!(recorded(), before);
    }

    #[test]
    fn p11_a_member_that_waits_twice_is_listed_once() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (members, _) = members(&temp.path().join("trust"), &MemberName::new("web1").expect("name"));
        let names = ["web2", "web1", "web2"].map(|name| MemberName::new(name).expect("name"));
        *members.not_durable() = NotDurable { names: names.to_vec(), why: "the disk is full".into() };
        let message = members.not_written().expect("is reported").message;
        assert!(message.contains("the revocation of web1, web2 is in force"), "{message}");
    }

    #[test]
    fn p13_what_could_not_be_written_has_not_happened() {
        let temp = tempfile::tempdir().expect("temp dir");
        let trust = temp.path().join("trust");
        let (name, other) = (MemberName::new("web1").expect("name"), MemberName::new("web2").expect("name"));
        let (members, certificate) = members(&trust, &name);
        let token = members.invite(&name, Role::Reader, 60, Vec::new(), true).expect("invites");
        let secret = token.token.parse::<Token>().expect("a token").secret;
        let in_the_way = trust.join("members.json.next");
        std::fs::create_dir(&in_the_way).expect("creates");
        let revision = members.registry().revision();
        members.invite(&other, Role::Reader, 60, Vec::new(), false).expect_err("cannot be written");
        let request = NewKey::generate(&name).expect("a key").request_der;
        let join = || members.redeem(&name, &secret, &request);
        join().expect_err("cannot be written");
        members.renew(&name, &request).expect_err("cannot be written");
        members.revoke_when_durable(&name, true).expect_err("cannot be written");
        // The former holder of the name is unchanged, and the token is still valid.
        assert_eq!(members.authorise(&certificate), Ok((name.clone(), Role::Webserver)));
        assert!(members.registry().member(&other).is_none());
        assert!(members.registry().revision() > revision, "revisions are unique");
        std::fs::remove_dir(&in_the_way).expect("removes");
        members.save();
        assert_eq!((on_disk(&trust, &name), on_disk(&trust, &other)), (Some(MemberState::Enrolled), None));
        let (renewed, ..) = join().expect("joins");
        assert_eq!(members.authorise(&renewed), Ok((name.clone(), Role::Reader)));
        assert!(members.authorise(&certificate).is_err());
    }

    #[test]
    fn p11_a_joining_that_is_being_written_does_not_undo_a_revocation() {
        let temp = tempfile::tempdir().expect("temp dir");
        let trust = temp.path().join("trust");
        let name = MemberName::new("web1").expect("name");
        let (members, certificate) = members(&trust, &name);
        let renewed = members.change_when_durable(&name, |changed| {
            members.registry().revoke(&name, now_ms()).expect("revokes");
            let request = NewKey::generate(&name).expect("a key").request_der;
            changed.renew(members.authorities().current(), &name, &request, 90, now_ms())
        });
        assert!(renewed.expect_err("was revoked").to_string().contains("at the same time"));
        assert!(members.authorise(&certificate).is_err());
        members.save();
        assert_eq!(on_disk(&trust, &name), Some(MemberState::Revoked));
        // Progress reported by a member during the change is kept.
        let other = MemberName::new("web2").expect("name");
        members.invite(&other, Role::Reader, 60, Vec::new(), false).expect("invites");
        let invited = members.change_when_durable(&other, |changed| {
            members.registry().note_address(&other, Some("web2:1"));
            changed.invite(&other, Role::Webserver, 60_000, now_ms(), true)
        });
        assert!(invited.is_ok());
        assert_eq!(
            members.registry().member(&other).and_then(|member| member.external_addr.clone()),
            Some("web2:1".into())
        );
    }
}
