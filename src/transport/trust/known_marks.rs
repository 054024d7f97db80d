//! Marks of member registries that a data directory knows, when a registry is put back into it.
//!
//! A registry that is put back counts as the latest from then on, and everything that shows another one is overruled. So
//! whatever shows a later one is compared before: the record next to the directory, the audit, the mark that a member has
//! presented, and, when a log is rebuilt, the connected members. If the registry lacks one of these changes, only an
//! operator who was told so can decide for it: members that were revoked in it would be enrolled again.

use std::path::Path;

use super::descent::{Standing, described, standing};
use super::leftover_registry::differing;
use super::{
    Authorities, CaBackup, GivenUp, RecoveryKey, RegisterChoice, RegisterMark, Registry, Relation, TrustError,
    leftover_registry,
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

/// Registries that an operator gives up for the one that will be in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The registries. The one that is in place has to record them, see [`Registry::choose_over`].
    pub given_up: Vec<GivenUp>,
    /// Descriptions for the operator.
    pub said: Vec<String>,
}

impl Choice {
    /// Adds what is given up in `other`.
    pub fn extend(&mut self, other: Choice) {
        let new = other.given_up.into_iter().filter(|new| !self.given_up.contains(new)).collect::<Vec<_>>();
        self.given_up.extend(new);
        self.said.extend(other.said);
    }

    /// Records it durably in the registry in the trust directory `dir`, which is in place.
    ///
    /// # Errors
    /// If the registry cannot be read or written.
    pub fn record(&self, dir: &Path, now_ms: u64) -> Result<(), TrustError> {
        if self.given_up.is_empty() {
            return Ok(());
        }
        Registry::open(dir, now_ms)?.choose_over(&self.given_up, now_ms)
    }
}

/// Checks that the registry that would be in place in the trust directory `dir` after `escrow` was restored there has
/// every change in `known` and every one that a member has presented to the registry in `dir`. Every command that puts a
/// registry back asks here, whichever CA there is. With `wish` the operator chose between the registry in `dir` and the one
/// in `escrow`. Returns what the operator gives up by that, or by accepting that changes are lacking.
///
/// # Errors
/// The message names both changes and the remedy. Also if `dir` has a CA that the one in `escrow` does not continue.
pub fn check_known(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
    mut known: Vec<KnownMark>,
) -> Result<Choice, TrustError> {
    if Authorities::load(dir).is_ok() {
        escrow.check_goes_on_from(key, dir)?;
    }
    let sealed = escrow.register(key)?;
    let stays = leftover_registry::stays(escrow, key, dir, wish)?.is_some();
    if stays && wish.is_none() {
        // It is put back as it is, and compared at the start.
        return Ok(Choice::default());
    }
    let here = leftover_registry::readable(dir).map(|(_, here)| here);
    if let Some(mark) = here.as_ref().and_then(Registry::shown) {
        let place = format!("the registry in {} (a member showed it)", dir.display());
        known.push(KnownMark { mark, authority: None, place });
    }
    let (chosen, other) = match &here {
        Some(here) if stays => (here, Some(&sealed)),
        here => (&sealed, here.as_ref()),
    };
    // The changes of the other one are given up knowingly, or are those of the copy of which it was made.
    let is_judged = wish.is_some() || here.as_ref().is_some_and(|here| standing(here, &sealed) == Standing::Later);
    known.retain(|known| !is_judged || !other.is_some_and(|other| other.has_passed(&known.mark)));
    let mut choice = check_lacks_none(chosen, &known, is_earlier_wanted)?;
    if let Some((here, other)) = here.as_ref().zip(other).filter(|_| wish.is_some()) {
        let said = given_up(here, &sealed, stays);
        choice.extend(Choice { given_up: vec![GivenUp::of(other)], said: said.into_iter().collect() });
    }
    Ok(choice)
}

/// Describes what the registry lacks that the operator chose of these two.
fn given_up(here: &Registry, sealed: &Registry, stays: bool) -> Option<String> {
    let (chosen, other, name) = match stays {
        true => (here, sealed, "the CA backup"),
        false => (sealed, here, "the former one"),
    };
    let is_passed = chosen.goes_on_from(other) || (!stays && standing(here, sealed) == Standing::Later);
    if is_passed || differing(chosen, other).is_empty() {
        return None;
    }
    let (mark, members) = (other.mark(), described(here, sealed));
    Some(format!(
        "the chosen member registry may lack changes up to {mark}, which {name} has; they differ in {members}: revoke \
         again those that are revoked there"
    ))
}

/// Returns every change in `known` that `registry` lacks, the latest first, if the operator accepts that.
fn check_lacks_none(registry: &Registry, known: &[KnownMark], is_earlier_wanted: bool) -> Result<Choice, TrustError> {
    let lacking = known.iter().filter_map(|known| Some((known, registry.relation(&known.mark)?)));
    let mut lacking: Vec<_> = lacking.collect();
    lacking.sort_by_key(|(known, _)| std::cmp::Reverse(known.mark.count));
    let mut choice = Choice::default();
    for (KnownMark { mark, authority, place }, relation) in lacking {
        let of = authority.as_ref().map_or(String::new(), |name| format!(" under the certificate authority {name}"));
        let what = lacks(&registry.mark(), (mark, relation), &format!("{place} has recorded{of}"));
        if !is_earlier_wanted {
            return Err(TrustError::Refused(format!(
                "{what}: members revoked since then would be enrolled again; nothing was changed. Use a CA backup that \
                 has that change: the identity/escrow of a member that was connected after it, or a backup of the \
                 datastore that was made after it; if there is none, use --earlier-copy, and revoke again the members \
                 that were revoked since"
            )));
        }
        choice.given_up.push(GivenUp::beyond(registry.mark().count, mark));
        choice.said.push(format!("{what}: revoke again the members that were revoked since"));
    }
    Ok(choice)
}

/// Describes that the registry with the mark `used` lacks the change that `seen` names. `who` has shown it.
pub(super) fn lacks(used: &RegisterMark, (seen, relation): (&RegisterMark, Relation), who: &str) -> String {
    let used = if used.changed_ms == 0 { format!("change {}", used.count) } else { used.to_string() };
    let how = match relation {
        Relation::Later => "is earlier than",
        Relation::Apart => "does not descend from",
    };
    format!("the member registry of {used} {how} the one of {seen}, which {who}")
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::trust::{Authority, Role};
    use gravwell_model::MemberName;

    pub(in crate::trust) const NOW: u64 = 1_800_000_000_000;

    pub(in crate::trust) fn invite(register: &mut Registry, name: &str) {
        let name = MemberName::new(name).expect("name");
        register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
    }

    fn said(choice: Choice) -> Option<String> {
        Some(choice.said.join("; ")).filter(|said| !said.is_empty())
    }

    fn known(mark: RegisterMark) -> Vec<KnownMark> {
        vec![KnownMark { mark, authority: Some("ab12".into()), place: "register.mark".into() }]
    }

    /// A trust directory, sealed copies of three of its states in a row, and the marks of these.
    pub(in crate::trust) fn three() -> (tempfile::TempDir, [CaBackup; 3], [RegisterMark; 3], RecoveryKey) {
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
            let checked = check_known(copy, &key, &dir, (wish, earlier), known(seen.clone()));
            checked.map(said).map_err(|error| error.to_string())
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
        let check =
            |copy: &CaBackup| check_known(copy, &key, &dir, (Some(RegisterChoice::Copy), false), Vec::new()).map(said);
        assert!(check(&second).is_err_and(|error| error.to_string().contains(&marks[2].to_string())));
        assert_eq!(check(&third).expect("it has that change"), None);
    }

    #[test]
    fn p13_a_copy_of_a_ca_that_replaced_the_one_here_is_compared_with_what_is_known_too() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (dir, old) = (temp.path().join("trust"), temp.path().join("old"));
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        ["web1", "web2"].iter().for_each(|name| invite(&mut register, name));
        let first = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        first.restore(&key, &old, NOW, None).expect("restores");
        Authorities::begin(&dir, NOW).expect("begins");
        let rotated = Authorities::finish(&dir, gravwell_model::Generation(1), NOW).expect("ends");
        let seal = |register: &mut Registry| CaBackup::seal(&dir, rotated.current(), register, NOW).expect("seals");
        invite(&mut register, "web3");
        let copy = seal(&mut register);
        register.revoke(&MemberName::new("web2").expect("name"), NOW).expect("revokes");
        let latest = seal(&mut register);
        for is_sound in [true, false] {
            for name in ["members.json", "members.copy"].iter().filter(|_| !is_sound) {
                std::fs::write(old.join(name), "damaged").expect("writes");
            }
            for wish in [None, Some(RegisterChoice::Copy)] {
                let check =
                    |copy: &CaBackup| check_known(copy, &key, &old, (wish, false), known(register.mark())).map(said);
                let said = check(&copy).map_err(|error| error.to_string()).expect_err("it lacks the revocation");
                assert!(said.contains(&register.mark().to_string()) && said.contains("--earlier-copy"), "{said}");
                let done = check(&latest).expect("it has that change");
                assert!(done.is_none_or(|said| wish.is_some() && is_sound && !said.contains("may lack")), "{wish:?}");
            }
        }
        // One of a CA that has not replaced it is refused.
        let said = check_known(&first, &key, &dir, (None, true), Vec::new()).expect_err("of a former CA").to_string();
        assert!(said.contains("which was replaced"), "{said}");
    }

    #[test]
    fn p13_a_chosen_register_is_named_with_the_members_in_which_the_other_one_differs() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let name = MemberName::new("web2").expect("name");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        invite(&mut register, "web2");
        register.enrol(&name, Role::Webserver, b"certificate", 30, NOW).expect("enrols");
        let before = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        register.revoke(&name, NOW + 1).expect("revokes");
        let later = CaBackup::seal(&dir, &authority, &mut register, NOW + 1).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let old = temp.path().join("old");
        before.restore(&key, &old, NOW + 2, None).expect("restores");
        for (copy, dir, wish) in [(&later, &old, RegisterChoice::Here), (&before, &dir, RegisterChoice::Copy)] {
            let choice = check_known(copy, &key, dir, (Some(wish), false), Vec::new()).expect("is decided");
            assert_eq!(choice.given_up.len(), 1, "the other one alone");
            let said = said(choice).expect("the other one has a revocation");
            assert!(said.contains("web2 (") && said.contains("revoked") && said.contains("revoke again"), "{said}");
        }
    }

    #[test]
    fn p13_a_later_register_is_recognised_beside_one_that_was_put_back_from_an_earlier_copy() {
        let (temp, [first, second, third], _, key) = three();
        let back = |copy: &CaBackup, name: &str| {
            let dir = temp.path().join(name);
            copy.restore(&key, &dir, NOW + 10, None).expect("restores");
            dir
        };
        let dir = back(&second, "fresh");
        let exceeds = |copy: &CaBackup, dir: &Path| copy.exceeds(&key, dir, NOW + 11, None).expect("compares");
        assert_eq!([&first, &second, &third].map(|copy| exceeds(copy, &dir)), [false, false, true]);
        assert_eq!(check_known(&third, &key, &dir, (None, false), Vec::new()).expect("it goes on"), Choice::default());
        let put_back = crate::trust::restore_trust(&third, &key, &dir, NOW + 12, None).expect("replaces");
        assert!(!put_back.has_kept_register && put_back.aside.is_some());
        assert_eq!([&first, &second, &third].map(|copy| exceeds(copy, &dir)), [false; 3]);
        // After it was in use, an operator decides where members differ.
        let dir = back(&second, "used");
        let mut register = Registry::open(&dir, NOW).expect("opens");
        invite(&mut register, "web4");
        register
            .enrol(&MemberName::new("web4").expect("name"), Role::Reader, b"certificate", 30, NOW + 13)
            .expect("enrols");
        assert_eq!([&first, &second, &third].map(|copy| exceeds(copy, &dir)), [false, false, true]);
        let said = check_known(&third, &key, &dir, (None, false), Vec::new()).expect_err("asks").to_string();
        assert!(said.contains("--register here") && said.contains("web4"), "{said}");
    }
}
