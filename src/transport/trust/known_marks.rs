//! Marks of member registries that a data directory knows, when a registry is put back into it.
//!
//! A registry that is put back counts as the latest from then on, and everything that shows another one is overruled. So
//! whatever shows a later one is compared before: the record next to the directory, the audit, the mark that a member has
//! presented, and, when a log is rebuilt, the connected members. If the registry lacks one of these changes, only an
//! operator who was told so can decide for it: members that were revoked in it would be enrolled again. The same holds for
//! a registry that is kept beside CA backups: an earlier command may have put it back, and the marks in CA backups are
//! signed, so that they are compared without the recovery key as well.

use std::path::Path;

use super::descent::{Standing, described, standing};
use super::leftover_registry::differing;
use super::{
    Authorities, CaBackup, FoundCopy, GivenUp, RecoveryKey, RegisterChoice, RegisterMark, Registry, Relation,
    TrustError, leftover_registry,
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

/// Checks that the registry that would be in place in the trust directory `dir` after `escrow` was restored there has
/// every change in `known` and every one that a member has presented to the registry in `dir`. Every command that puts a
/// registry back asks here, whichever CA there is. With `wish` the operator chose between the registry in `dir` and the one
/// in `escrow`. Returns a message if changes are given up because the operator wants so.
///
/// # Errors
/// The message names both changes and the remedy. Also if `dir` has a CA that the one in `escrow` does not continue.
pub fn check_known(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
    mut known: Vec<KnownMark>,
) -> Result<Option<String>, TrustError> {
    if Authorities::load(dir).is_ok() {
        escrow.check_goes_on_from(key, dir)?;
    }
    let sealed = escrow.register(key)?;
    let stays = leftover_registry::stays(escrow, key, dir, sealed.saved_ms(), wish)?.is_some();
    if stays && wish.is_none() {
        // It is put back as it is, and compared at the start.
        return Ok(None);
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
    let lacking = check_lacks_none(chosen, &known, is_earlier_wanted)?;
    let given_up = here.as_ref().filter(|_| wish.is_some()).and_then(|here| given_up(here, &sealed, stays));
    Ok(match (lacking, given_up) {
        (Some(lacking), Some(given_up)) => Some(format!("{lacking}; {given_up}")),
        (lacking, given_up) => lacking.or(given_up),
    })
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

/// Returns the last changes in `copies` that the registry `used`, which is kept in the trust directory `dir`, lacks as far
/// as is known, the latest first, with descriptions. Of copies that `key` does not open, only signed marks count.
#[must_use]
pub fn kept_lacks(
    used: &UsedRegister,
    dir: &Path,
    copies: &[FoundCopy],
    key: Option<&RecoveryKey>,
) -> Vec<(RegisterMark, String)> {
    // A CA that cannot be read is reported when the datastore starts.
    let Ok(authorities) = Authorities::load(dir) else { return Vec::new() };
    let marks = copies.iter().filter_map(|copy| {
        let sealed = key.and_then(|key| copy.escrow.register(key).ok());
        let mark = match (&sealed, &copy.escrow.mark) {
            (Some(sealed), _) if differing(&used.registry, sealed).is_empty() => return None,
            (Some(sealed), _) => sealed.mark(),
            (None, Some(signed)) if authorities.have_signed(signed) => signed.mark.clone(),
            (None, _) => return None,
        };
        let lacking = used.lacking(&mark, &format!("the CA backup in {} has", copy.place))?;
        Some((mark, lacking))
    });
    let mut marks: Vec<_> = marks.collect();
    marks.sort_by(|(one, _), (other, _)| (other.count, &other.name).cmp(&(one.count, &one.name)));
    marks.dedup_by(|(one, _), (other, _)| one == other);
    marks
}

/// Checks that the registry `used`, which is kept in the trust directory `dir`, has the changes of which `copies` have signed
/// marks. Returns those that it lacks, with descriptions, if the operator wants it all the same.
///
/// # Errors
/// The message names both changes and the remedies.
pub fn check_kept(
    used: &UsedRegister,
    dir: &Path,
    copies: &[FoundCopy],
    is_wanted: bool,
) -> Result<Vec<(RegisterMark, String)>, TrustError> {
    let all = kept_lacks(used, dir, copies, None);
    let Some((_, lacking)) = all.first().filter(|_| !is_wanted) else { return Ok(all) };
    Err(TrustError::Refused(format!(
        "{lacking}: members revoked since then would be enrolled again; nothing was changed. Pass the recovery key with \
         --recovery-key to use the registry of the CA backup, or use --register here to keep the present one, and \
         revoke again the members that were revoked since"
    )))
}

/// The registry of a log that is rebuilt. Marks of members are compared with it, as it was before it was put back.
pub struct UsedRegister {
    registry: Registry,
    is_unfinished: bool,
    /// The registries that an operator gave up for this one.
    given_up: Vec<GivenUp>,
}

impl UsedRegister {
    /// Returns the registry in the encrypted backup.
    ///
    /// # Errors
    /// If the key does not open it.
    pub fn in_copy(escrow: &CaBackup, key: &RecoveryKey) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: escrow.register(key)?, is_unfinished: false, given_up: Vec::new() })
    }

    /// Returns the registry in the trust directory `dir`, which was put back there or is kept. `is_unfinished`: by a command
    /// that is not complete. What the operator gave up in it was chosen before the members reported.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn put_back_in(dir: &Path, is_unfinished: bool, now_ms: u64) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: Registry::open(dir, now_ms)?, is_unfinished, given_up: Vec::new() })
    }

    /// Returns this registry, which an operator chose over `others`: changes that only those have are not lacking.
    #[must_use]
    pub fn over(mut self, others: &[GivenUp]) -> UsedRegister {
        self.given_up.extend_from_slice(others);
        self
    }

    /// Returns the registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Describes the change that a member has shown and this registry lacks; `None` if it does not lack it, as far as
    /// is known.
    #[must_use]
    pub fn lacks(&self, seen: &RegisterMark, member: &str) -> Option<String> {
        self.lacking(seen, &format!("{member} has shown"))
    }

    /// As `lacks`; `who` has shown the change.
    fn lacking(&self, seen: &RegisterMark, who: &str) -> Option<String> {
        if self.given_up.iter().any(|other| other.has(seen)) {
            return None;
        }
        let (used, relation) = self.registry.missed(seen, self.is_unfinished)?;
        Some(lacks(&used, (seen, relation), who))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::trust::{Authority, Role};
    use gravwell_model::MemberName;

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
                let check = |copy: &CaBackup| check_known(copy, &key, &old, (wish, false), known(register.mark()));
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
            let said = check_known(copy, &key, dir, (Some(wish), false), Vec::new()).expect("is decided");
            let said = said.expect("the other one has a revocation");
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
        assert_eq!(check_known(&third, &key, &dir, (None, false), Vec::new()).expect("it goes on"), None);
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

    #[test]
    fn p13_a_register_that_was_put_back_is_compared_as_it_was_before() {
        let (temp, [_, second, _], marks, key) = three();
        let dir = temp.path().join("back");
        let used = UsedRegister::in_copy(&second, &key).expect("opens");
        let said = used.lacks(&marks[2], "web2").expect("it lacks the last change");
        assert!(said.contains("web2") && said.contains(&marks[1].to_string()), "{said}");
        second.restore(&key, &dir, NOW, None).expect("restores");
        let lacking = |is_unfinished, marks: &[RegisterMark]| {
            let used = UsedRegister::put_back_in(&dir, is_unfinished, NOW).expect("opens");
            marks.iter().map(|mark| used.lacks(mark, "web2").is_some()).collect::<Vec<_>>()
        };
        let mut register = Registry::open(&dir, NOW).expect("opens");
        // Members have the mark of the registry that was put back, too.
        let shown = [&marks[..], &[register.mark()]].concat();
        for is_unfinished in [false, true] {
            assert_eq!(lacking(is_unfinished, &shown), [false, false, true, false], "{is_unfinished}");
        }
        let saved = fs::read(dir.join("members.json")).expect("reads");
        register.give_up_others(NOW).expect("gives up");
        assert_eq!(lacking(false, &shown), [false; 4], "an operator decided");
        assert_eq!(lacking(true, &shown), [false, false, true, false], "before the member reported");
        // Also when it has been in use since, until an operator decides.
        ["members.json", "members.copy"].iter().for_each(|name| fs::write(dir.join(name), &saved).expect("writes"));
        let mut register = Registry::open(&dir, NOW).expect("opens");
        invite(&mut register, "web4");
        let shown = [&shown[..], &[register.mark()]].concat();
        let used = || UsedRegister::put_back_in(&dir, false, NOW).expect("opens");
        assert!(used().lacks(&marks[2], "web2").is_some_and(|said| said.contains("does not descend from")));
        assert_eq!(lacking(false, &shown), [false, false, true, false, false]);
        // A backup of it is compared in the same way.
        let authority = Authority::load(&dir).expect("loads");
        let sealed = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let used = UsedRegister::in_copy(&sealed, &key).expect("opens");
        assert_eq!(
            shown.iter().map(|mark| used.lacks(mark, "web2").is_some()).collect::<Vec<_>>(),
            [false, false, true, false, false]
        );
        register.give_up_others(NOW).expect("gives up");
        assert_eq!(lacking(false, &shown), [false; 5]);
    }

    #[test]
    fn p13_a_register_that_was_chosen_over_another_is_compared_with_what_that_one_lacks_only() {
        let (temp, [first, second, _], marks, key) = three();
        let dir = temp.path().join("old");
        first.restore(&key, &dir, NOW, None).expect("restores");
        let register = first.register(&key).expect("opens").copy().text(NOW).expect("text");
        ["members.json", "members.copy"].iter().for_each(|name| fs::write(dir.join(name), &register).expect("writes"));
        let other = second.register(&key).expect("opens");
        let mark = other.mark();
        let used = UsedRegister::put_back_in(&dir, false, NOW).expect("opens").over(&[GivenUp::of(&other)]);
        assert_eq!(marks.each_ref().map(|mark| used.lacks(mark, "web2").is_some()), [false, false, true]);
        // Once it is written, the choice holds.
        Registry::open(&dir, NOW).expect("opens").choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
        let register = Registry::open(&dir, NOW).expect("opens");
        assert_eq!((register.relation(&mark), register.relation(&marks[0])), (None, None));
        // Nobody was asked about what follows in the registry that was given up.
        let later = RegisterMark { count: mark.count + 1, name: "0123456789abcdef".into(), ..mark };
        let mut register = register;
        assert_eq!(register.relation(&later), Some(Relation::Later));
        for name in ["web7", "web8", "web9"] {
            invite(&mut register, name);
        }
        assert_eq!(register.relation(&later), Some(Relation::Apart));
        assert!(register.note_shown(&later) && register.shown() == Some(later));
    }

    #[test]
    fn p13_a_register_that_is_kept_is_compared_with_the_signed_marks_of_copies_without_a_key() {
        let (temp, copies, marks, key) = three();
        let dir = temp.path().join("back");
        copies[0].restore(&key, &dir, NOW, None).expect("restores");
        let found =
            |escrow: &CaBackup| FoundCopy { escrow: escrow.clone(), place: "place".into(), order: None, is_own: false };
        let used = || UsedRegister::put_back_in(&dir, false, NOW).expect("opens");
        let lacks =
            |key, copies: &[CaBackup]| kept_lacks(&used(), &dir, &copies.iter().map(found).collect::<Vec<_>>(), key);
        assert_eq!(lacks(None, &copies[..1]), []);
        let said =
            check_kept(&used(), &dir, &copies.each_ref().map(found), false).expect_err("it lacks changes").to_string();
        for word in ["is earlier than", "the CA backup in place", "--recovery-key", "--register here"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        // The choice of the operator holds for each of the copies.
        let wanted = check_kept(&used(), &dir, &copies.each_ref().map(found), true).expect("is wanted");
        let given_up: Vec<_> = wanted.iter().map(|(mark, _)| GivenUp::at(mark)).collect();
        assert_eq!(wanted.iter().map(|(mark, _)| mark).collect::<Vec<_>>(), [&marks[2], &marks[1]]);
        let lacking = |used: &UsedRegister| marks.each_ref().map(|mark| used.lacks(mark, "web2").is_some());
        assert_eq!(lacking(&used()), [false, true, true]);
        assert_eq!(lacking(&used().over(&given_up)), [false; 3]);
        assert_eq!(lacks(Some(&key), &copies), [], "with the key, invitations are told from other changes");
        // A mark that the CA has not signed is no evidence, and neither is what an operator gave up.
        let mut forged = copies[2].clone();
        forged.mark.as_mut().expect("is signed").mark.count += 1;
        assert_eq!(lacks(None, &[forged]), []);
        let mut register = Registry::open(&dir, NOW).expect("opens");
        invite(&mut register, "web4");
        assert!(!lacks(None, &copies).is_empty());
        register.give_up_others(NOW).expect("gives up");
        assert_eq!(lacks(None, &copies), []);
    }

    #[test]
    fn p13_a_register_that_was_put_back_is_kept_beside_copies_that_were_made_of_it_since() {
        let (temp, [_, second, third], _, key) = three();
        for (copy, is_decided) in [(&third, false), (&second, true)] {
            let dir = temp.path().join(if is_decided { "chosen" } else { "back" });
            copy.restore(&key, &dir, NOW, is_decided.then_some(RegisterChoice::Copy)).expect("restores");
            let mut register = Registry::open(&dir, NOW).expect("opens");
            let authority = Authority::load(&dir).expect("loads");
            let since = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
            let found = [&second, &third, &since].map(|escrow| FoundCopy {
                escrow: escrow.clone(),
                place: "place".into(),
                order: None,
                is_own: false,
            });
            let used = UsedRegister::put_back_in(&dir, false, NOW).expect("opens");
            let lacking = check_kept(&used, &dir, &found, false).expect("nothing is lacking");
            assert_eq!(lacking, [], "it has the change of each of them, or an operator gave that up");
        }
    }
}
