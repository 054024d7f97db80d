//! Marks of member registries that a data directory knows, when a registry is put back into it.
//!
//! A registry that is put back counts as the latest from then on, and everything that shows another one is overruled. So
//! whatever shows a later one is compared before: the record next to the directory, the audit, the mark that a member has
//! presented, and, when a log is rebuilt, the connected members. If the registry lacks one of these changes, only an
//! operator who was told so can decide for it: members that were revoked in it would be enrolled again.

use std::path::Path;

use super::{
    Authorities, CaBackup, RecoveryKey, RegisterChoice, RegisterMark, Registry, Relation, TrustError, leftover_registry,
};

/// A mark that is known, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownMark {
    /// The mark.
    pub mark: RegisterMark,
    /// Name of the CA at that time, if it is recorded. A registry goes on counting when its CA is rotated.
    pub authority: Option<String>,
    /// Description of the place, for messages.
    pub place: String,
}

/// Checks that the registry that would be put back into the trust directory `dir` from `escrow` has every change in
/// `known` and every one that a member has presented to the registry in `dir`. With `wish` the operator chose between the
/// registry in `dir` and the one in `escrow`, and was told what is in the other one. Returns a message if a change is
/// given up because the operator wants an earlier registry.
///
/// # Errors
/// The message names both changes and the remedy.
pub fn check_known(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
    mut known: Vec<KnownMark>,
) -> Result<Option<String>, TrustError> {
    // The backup of another CA is refused in any case, with a better message.
    if Authorities::load(dir).is_ok() && !escrow.may_be_of(dir) {
        return Ok(None);
    }
    let sealed = escrow.register(key)?;
    let stays = leftover_registry::stays(escrow, key, dir, sealed.saved_ms(), wish)?.is_some();
    if stays && wish.is_none() {
        // It is put back as it is, and compared at the start.
        return Ok(None);
    }
    let here = leftover_registry::readable(dir).map(|(_, here)| here);
    if let Some(mark) = here.as_ref().and_then(Registry::shown) {
        known.push(KnownMark { mark, authority: None, place: format!("a member, as recorded in {}", dir.display()) });
    }
    let (chosen, other) = match &here {
        Some(here) if stays => (here, Some(&sealed)),
        here => (&sealed, here.as_ref()),
    };
    known.retain(|known| wish.is_none() || !other.is_some_and(|other| other.has_passed(&known.mark)));
    check_lacks_none(chosen, &known, is_earlier_wanted)
}

/// As [`check_known`], for a registry from `escrow` that takes the place of one that was put back before.
///
/// # Errors
/// As [`check_known`].
pub fn check_known_in(
    escrow: &CaBackup,
    key: &RecoveryKey,
    known: &[KnownMark],
    is_earlier_wanted: bool,
) -> Result<Option<String>, TrustError> {
    check_lacks_none(&escrow.register(key)?, known, is_earlier_wanted)
}

fn check_lacks_none(
    registry: &Registry,
    known: &[KnownMark],
    is_earlier_wanted: bool,
) -> Result<Option<String>, TrustError> {
    let lacking = known.iter().filter_map(|known| Some((known, registry.relation(&known.mark)?)));
    let Some((KnownMark { mark, authority, place }, relation)) = lacking.max_by_key(|(known, _)| known.mark.count)
    else {
        return Ok(None);
    };
    let of = authority.as_ref().map_or(String::new(), |name| format!(" under the certificate authority {name}"));
    let what = lacks(&registry.mark(), (mark, relation), &format!("{place} has recorded{of}"));
    if is_earlier_wanted {
        return Ok(Some(format!("{what}: revoke again the members that were revoked since")));
    }
    Err(TrustError::Refused(format!(
        "{what}: members revoked since then would be enrolled again; nothing was changed. Use a CA backup that has that \
         change: the identity/escrow of a member that was connected after it, or a backup of the datastore that was made \
         after it; if there is none, use --earlier-copy, and revoke again the members that were revoked since"
    )))
}

/// Describes that the registry with the mark `used` lacks the change that `seen` names. `who` has shown it.
fn lacks(used: &RegisterMark, (seen, relation): (&RegisterMark, Relation), who: &str) -> String {
    let used = if used.changed_ms == 0 { format!("change {}", used.count) } else { used.to_string() };
    let how = match relation {
        Relation::Later => "is earlier than",
        Relation::Apart => "does not descend from",
    };
    format!("the member registry of {used} {how} the one of {seen}, which {who}")
}

/// The registry that was put back for a log that is rebuilt, as it was before that: marks of members are compared with it.
pub struct UsedRegister {
    registry: Registry,
    is_put_back: bool,
}

impl UsedRegister {
    /// Returns the registry in the encrypted backup.
    ///
    /// # Errors
    /// If the key does not open it.
    pub fn in_copy(escrow: &CaBackup, key: &RecoveryKey) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: escrow.register(key)?, is_put_back: false })
    }

    /// Returns the registry that was put back into the trust directory `dir`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn put_back_in(dir: &Path, now_ms: u64) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: Registry::open(dir, now_ms)?, is_put_back: true })
    }

    /// Describes the change that a member has shown and this registry lacks; `None` if it does not lack it, as far as
    /// is known.
    #[must_use]
    pub fn lacks(&self, seen: &RegisterMark, member: &str) -> Option<String> {
        let (used, relation) = match self.is_put_back {
            true => self.registry.before_put_back(seen),
            false => (self.registry.mark(), self.registry.relation(seen)),
        };
        Some(lacks(&used, (seen, relation?), &format!("{member} has shown")))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::MemberName;
    use crate::trust::{Authority, Role};

    const NOW: u64 = 1_800_000_000_000;

    fn invite(register: &mut Registry, name: &str) {
        let name = MemberName::new(name).expect("name");
        register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
    }

    fn known(mark: RegisterMark) -> Vec<KnownMark> {
        vec![KnownMark { mark, authority: Some("ab12".into()), place: "register.mark".into() }]
    }

    /// A trust directory, sealed copies of three of its states in a row, and the marks of these.
    fn three() -> (tempfile::TempDir, [CaBackup; 3], [RegisterMark; 3], RecoveryKey) {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let mut made = Vec::new();
        for name in ["web1", "web2", "web3"] {
            invite(&mut register, name);
            made.push((CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals"), register.mark()));
        }
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let (copies, marks): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        (temp, copies.try_into().expect("three"), marks.try_into().expect("three"), key)
    }

    #[test]
    fn p13_a_copy_that_lacks_a_change_that_is_known_is_not_put_back_unasked() {
        let (temp, [first, second, third], marks, key) = three();
        let dir = temp.path().join("trust");
        let check = |copy: &CaBackup, wish, earlier, seen: &RegisterMark| {
            check_known(copy, &key, &dir, (wish, earlier), known(seen.clone())).map_err(|error| error.to_string())
        };
        // Nothing is left of the registry, or it cannot be read.
        for damage in [true, false] {
            for name in ["members.json", "members.copy"] {
                let _ = if damage { fs::write(dir.join(name), "damaged") } else { fs::remove_file(dir.join(name)) };
            }
            assert_eq!(check(&third, None, false, &marks[2]), Ok(None));
            assert_eq!(check(&second, None, false, &marks[0]), Ok(None));
            for wish in [None, Some(RegisterChoice::Copy)] {
                let said = check(&second, wish, false, &marks[2]).expect_err("it lacks the last change");
                for word in [marks[1].to_string(), marks[2].to_string(), "ab12".into(), "--earlier-copy".into()] {
                    assert!(said.contains(&word), "{word}: {said}");
                }
                let said = check(&second, wish, true, &marks[2]).expect("the operator wants it").expect("it is told");
                assert!(said.contains(&marks[2].to_string()), "{said}");
            }
        }
        // An earlier registry was put in place of the present one, by copying files: choosing between the two is no
        // decision about the change that neither has.
        let old = temp.path().join("old");
        first.restore(&key, &old, NOW, None).expect("restores");
        let register = first.register(&key).expect("opens").copy().text(NOW).expect("text");
        for name in ["members.json", "members.copy"] {
            fs::write(dir.join(name), &register).expect("writes");
        }
        for wish in [RegisterChoice::Here, RegisterChoice::Copy] {
            check(&second, Some(wish), false, &marks[2]).expect_err("neither has the last change");
            assert_eq!(check(&third, Some(wish), false, &marks[2]), Ok(None), "the operator chose between these two");
        }
    }

    #[test]
    fn p13_what_a_member_has_shown_to_the_register_that_is_left_counts_too() {
        let (temp, [first, second, third], marks, key) = three();
        let dir = temp.path().join("trust");
        let mut register = first.register(&key).expect("opens");
        register.note_shown(&marks[2]);
        fs::write(dir.join("members.json"), register.text(NOW).expect("text")).expect("writes");
        fs::remove_file(dir.join("members.copy")).expect("removes");
        let check = |copy: &CaBackup| check_known(copy, &key, &dir, (Some(RegisterChoice::Copy), false), Vec::new());
        assert!(check(&second).is_err_and(|error| error.to_string().contains(&marks[2].to_string())));
        assert_eq!(check(&third).expect("it has that change"), None);
    }

    #[test]
    fn p13_a_register_that_was_put_back_is_compared_as_it_was_before() {
        let (temp, [_, second, _], marks, key) = three();
        let dir = temp.path().join("back");
        let used = UsedRegister::in_copy(&second, &key).expect("opens");
        let said = used.lacks(&marks[2], "web2").expect("it lacks the last change");
        assert!(said.contains("web2") && said.contains(&marks[1].to_string()), "{said}");
        second.restore(&key, &dir, NOW, None).expect("restores");
        let used = UsedRegister::put_back_in(&dir, NOW).expect("opens");
        assert_eq!(marks.each_ref().map(|mark| used.lacks(mark, "web2").is_some()), [false, false, true]);
        // When it has been in use since, what it gave up is no evidence.
        invite(&mut Registry::open(&dir, NOW).expect("opens"), "web4");
        assert_eq!(UsedRegister::put_back_in(&dir, NOW).expect("opens").lacks(&marks[2], "web2"), None);
    }
}
