//! The member registry that a command uses, compared with the ones that CA backups and members show.
//!
//! An earlier command may have put back the registry that a command keeps, from an earlier copy. So a registry that is kept
//! is compared like one that is put back. The marks in CA backups are signed, so they are compared without the recovery
//! key as well.

use std::path::Path;

use super::known_marks::{Choice, lacks};
use super::leftover_registry::differing;
use super::{
    Authorities, CaBackup, FoundCopy, GivenUp, RecoveryKey, RegisterMark, Registry, Relation, SignedMark, TrustError,
    listed,
};

/// The registry that a command uses. What others show is compared with it, as it was before it was put back.
pub struct UsedRegister {
    registry: Registry,
    /// The registries that an operator gave up for this one.
    given_up: Vec<GivenUp>,
}

/// A registry that has a change which the one in use is known to lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Description of the change.
    pub what: String,
    /// That registry, as far as it is known.
    pub other: GivenUp,
    mark: RegisterMark,
}

impl UsedRegister {
    /// Returns the registry in the encrypted backup.
    ///
    /// # Errors
    /// If the key does not open it.
    pub fn in_copy(escrow: &CaBackup, key: &RecoveryKey) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: escrow.register(key)?, given_up: Vec::new() })
    }

    /// Returns the registry in the trust directory `dir`, which was put back there or is kept.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn in_dir(dir: &Path, now_ms: u64) -> Result<UsedRegister, TrustError> {
        Ok(UsedRegister { registry: Registry::open(dir, now_ms)?, given_up: Vec::new() })
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

    /// Returns the registry alone.
    #[must_use]
    pub fn into_registry(self) -> Registry {
        self.registry
    }

    /// Returns the mark that names this registry in options: that of before it was put back, if it is unchanged since.
    #[must_use]
    pub fn named_mark(&self) -> RegisterMark {
        self.registry.mark_before().unwrap_or_else(|| self.registry.mark())
    }

    /// Describes the change that `who` has and this registry lacks; `None` if it does not lack it, as far as is known.
    #[must_use]
    pub fn lacks(&self, seen: &RegisterMark, who: &str) -> Option<Lacking> {
        if self.given_up.iter().any(|other| other.has(seen)) {
            return None;
        }
        let (used, relation) = self.registry.missed(seen)?;
        let other = match relation {
            Relation::Later => GivenUp::beyond(used.count, seen),
            Relation::Apart => GivenUp::at(seen),
        };
        Some(Lacking { what: lacks(&used, (seen, relation), who), other, mark: seen.clone() })
    }

    /// As `lacks`, of the marks that a member has shown. Only those that the CA signed count.
    #[must_use]
    pub fn lacks_shown(&self, marks: &[SignedMark], member: &str, authorities: &Authorities) -> Vec<Lacking> {
        let lacking = marks.iter().filter_map(|signed| {
            let lacking = self.lacks(&signed.mark, &format!("{member} has shown"))?;
            authorities.have_signed(signed).then_some(lacking)
        });
        lacking.collect()
    }

    /// Returns the last changes in `copies` that this registry lacks as far as is known, the latest first. Of copies that
    /// `key` does not open, only marks that one of `authorities` signed count.
    #[must_use]
    pub fn lacks_of(&self, copies: &[FoundCopy], key: Option<&RecoveryKey>, authorities: &Authorities) -> Vec<Lacking> {
        let lacking = copies.iter().filter_map(|copy| {
            let who = format!("the CA backup in {} has", copy.place);
            match (key.and_then(|key| copy.escrow.register(key).ok()), &copy.escrow.mark) {
                (Some(sealed), _) if differing(&self.registry, &sealed).is_empty() => None,
                (Some(sealed), _) => {
                    let lacking = self.lacks(&sealed.mark(), &who)?;
                    Some(Lacking { other: GivenUp::of(&sealed), ..lacking })
                }
                (None, Some(signed)) if authorities.have_signed(signed) => self.lacks(&signed.mark, &who),
                (None, _) => None,
            }
        });
        let mut lacking: Vec<_> = lacking.collect();
        let order = |lacking: &Lacking| (lacking.mark.count, lacking.mark.name.clone());
        lacking.sort_by_key(|lacking| std::cmp::Reverse(order(lacking)));
        lacking.dedup_by(|one, other| one.mark == other.mark);
        lacking
    }
}

impl UsedRegister {
    /// Describes the registries in `copies` that an operator gave up for this one before, if they differ from it in members.
    #[must_use]
    pub fn given_up_before(&self, copies: &[FoundCopy], key: &RecoveryKey) -> Vec<String> {
        let described = copies.iter().filter_map(|copy| {
            let sealed = copy.escrow.register(key).ok()?;
            let (mark, differing) = (sealed.mark(), differing(&self.registry, &sealed));
            let is_told = self.registry.has_given_up(&mark) && !differing.is_empty();
            is_told.then(|| {
                format!(
                    "the member registry of {mark}, which the CA backup in {} has, was given up before; it differs in {}: \
                     revoke again those that are revoked there",
                    copy.place,
                    listed(&differing)
                )
            })
        });
        described.collect()
    }
}

/// Returns the choice of an operator who gives up what is lacking.
impl From<Vec<Lacking>> for Choice {
    fn from(lacking: Vec<Lacking>) -> Choice {
        let said = |lacking: &Lacking| format!("{}: revoke again the members that were revoked since", lacking.what);
        Choice {
            said: lacking.iter().map(said).collect(),
            given_up: lacking.into_iter().map(|lacking| lacking.other).collect(),
        }
    }
}

/// CA backups that were given to a command.
#[derive(Debug, Default)]
pub struct GivenCopies {
    /// Those that can be read.
    pub found: Vec<FoundCopy>,
    /// Others, which cannot be read.
    pub unread: Vec<UnreadCopy>,
}

/// A CA backup that cannot be read.
#[derive(Debug)]
pub struct UnreadCopy {
    /// The reason, with its place.
    pub why: String,
    /// Option that continues without it alone, if there is one.
    pub option: Option<String>,
}

impl GivenCopies {
    /// Returns the copies that can be read, and descriptions of the others, which the operator does without.
    ///
    /// # Errors
    /// If there are others, and `is_wanted` is not set: one of them may be the latest.
    pub fn readable(self, is_wanted: bool) -> Result<(Vec<FoundCopy>, Vec<String>), TrustError> {
        if let Some(UnreadCopy { why, option }) = self.unread.first().filter(|_| !is_wanted) {
            let option = option.as_ref().map_or(String::new(), |option| format!("{option} or "));
            return Err(TrustError::Refused(format!(
                "{why}; nothing was changed, because this CA backup may be the latest; make it readable, or use \
                 {option}--earlier-copy to continue without it and revoke again the members revoked since the backup that \
                 is used"
            )));
        }
        let said = |unread: UnreadCopy| format!("{}; continuing without it: it may have later revocations", unread.why);
        Ok((self.found, self.unread.into_iter().map(said).collect()))
    }
}

/// A registry that a command keeps, and what is given up for it.
pub struct KeptRegister {
    /// `None` if it cannot be read, or the CA cannot: then nothing was compared with it.
    pub used: Option<UsedRegister>,
    /// The registries that the operator gives up.
    pub choice: Choice,
}

/// Options of an operator who keeps a registry.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepWish {
    /// `--register here`: keep the registry, over all that is given.
    pub is_chosen: bool,
    /// `--earlier-copy`: accept a registry that lacks changes.
    pub is_earlier_wanted: bool,
}

/// Compares the registry that a command keeps in the trust directory `dir` with the CA backups that were given, without the
/// recovery key. `settled`: what was given up for it before.
///
/// # Errors
/// If it lacks a change, or may lack one, and the operator did not choose it. The message names both changes and the
/// remedies. Also if the operator chose it and it cannot be read.
pub fn keep_registry(
    dir: &Path,
    copies: GivenCopies,
    settled: &[GivenUp],
    wish: KeepWish,
    now_ms: u64,
) -> Result<KeptRegister, TrustError> {
    let is_wanted = wish.is_chosen || wish.is_earlier_wanted;
    let (copies, said) = copies.readable(is_wanted)?;
    let mut choice = Choice { given_up: Vec::new(), said };
    let loaded = UsedRegister::in_dir(dir, now_ms).and_then(|used| Ok((used, Authorities::load(dir)?)));
    let (used, authorities) = match loaded {
        Ok((used, authorities)) => (used.over(settled), authorities),
        Err(error) if wish.is_chosen => return Err(error),
        // It is not missing: the datastore does not start with it, and the command that repairs it compares.
        Err(error) => {
            choice.said.push(format!(
                "{error}; nothing was compared with it: repair it with `gravwell-logctl authority restore` before the \
                 datastore is started"
            ));
            return Ok(KeptRegister { used: None, choice });
        }
    };
    let lacking = used.lacks_of(&copies, None, &authorities);
    if let Some(Lacking { what, .. }) = lacking.first().filter(|_| !is_wanted) {
        return Err(TrustError::Refused(format!(
            "{what}: members revoked since then would be enrolled again; nothing was changed. Pass the recovery key with \
             --recovery-key to use the registry of the CA backup, or use --register here to keep the present one, and \
             revoke again the members that were revoked since"
        )));
    }
    choice.extend(lacking.into());
    let used = used.over(&choice.given_up);
    Ok(KeptRegister { used: Some(used), choice })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::trust::known_marks::tests::{NOW, invite, three};
    use crate::trust::{Authority, RegisterChoice};

    #[test]
    fn p13_a_register_that_was_put_back_is_compared_as_it_was_before() {
        let (temp, [_, second, _], marks, key) = three();
        let dir = temp.path().join("back");
        let used = UsedRegister::in_copy(&second, &key).expect("opens");
        let said = used.lacks(&marks[2], "web2 has").expect("it lacks the last change").what;
        assert!(said.contains("web2") && said.contains(&marks[1].to_string()), "{said}");
        second.restore(&key, &dir, NOW, None).expect("restores");
        let lacking = |marks: &[RegisterMark]| {
            let used = UsedRegister::in_dir(&dir, NOW).expect("opens");
            marks.iter().map(|mark| used.lacks(mark, "web2 has").is_some()).collect::<Vec<_>>()
        };
        let mut register = Registry::open(&dir, NOW).expect("opens");
        // Members have the mark of the registry that was put back, too.
        let shown = [&marks[..], &[register.mark()]].concat();
        assert_eq!(lacking(&shown), [false, false, true, false]);
        let saved = fs::read(dir.join("members.json")).expect("reads");
        register.choose_over(&[GivenUp::at(&marks[2])], NOW).expect("gives up");
        assert_eq!(lacking(&shown), [false; 4], "an operator decided");
        let later = RegisterMark { count: marks[2].count + 1, ..marks[2].clone() };
        assert_eq!(lacking(&[later]), [true], "nobody was asked about the change after it");
        // Also when it has been in use since, until an operator decides.
        ["members.json", "members.copy"].iter().for_each(|name| fs::write(dir.join(name), &saved).expect("writes"));
        let mut register = Registry::open(&dir, NOW).expect("opens");
        invite(&mut register, "web4");
        let shown = [&shown[..], &[register.mark()]].concat();
        let used = || UsedRegister::in_dir(&dir, NOW).expect("opens");
        assert!(used().lacks(&marks[2], "web2 has").is_some_and(|lacking| lacking.what.contains("does not descend")));
        assert_eq!(lacking(&shown), [false, false, true, false, false]);
        // A backup of it is compared in the same way.
        let authority = Authority::load(&dir).expect("loads");
        let sealed = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let used = UsedRegister::in_copy(&sealed, &key).expect("opens");
        assert_eq!(
            shown.iter().map(|mark| used.lacks(mark, "web2 has").is_some()).collect::<Vec<_>>(),
            [false, false, true, false, false]
        );
        register.choose_over(&[GivenUp::at(&marks[2])], NOW).expect("gives up");
        assert_eq!(lacking(&shown), [false; 5]);
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
        let used = UsedRegister::in_dir(&dir, NOW).expect("opens").over(&[GivenUp::of(&other)]);
        assert_eq!(marks.each_ref().map(|mark| used.lacks(mark, "web2 has").is_some()), [false, false, true]);
        // Once it is written, the choice holds.
        Registry::open(&dir, NOW).expect("opens").choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
        let register = Registry::open(&dir, NOW).expect("opens");
        assert_eq!((register.relation(&mark), register.relation(&marks[0])), (None, None));
        // Nobody was asked about what follows in the registry that was given up.
        let later = RegisterMark { count: mark.count + 1, name: "0123456789abcdef".into(), ..mark };
        let mut register = register;
        assert_eq!(register.relation(&later), Some(Relation::Apart));
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
        let used = || UsedRegister::in_dir(&dir, NOW).expect("opens");
        let authorities = Authorities::load(&dir).expect("loads");
        let lacks = |key, copies: &[CaBackup]| {
            used().lacks_of(&copies.iter().map(found).collect::<Vec<_>>(), key, &authorities)
        };
        let kept = |is_chosen: bool, is_earlier_wanted: bool| {
            let given = GivenCopies { found: copies.iter().map(found).collect(), unread: Vec::new() };
            keep_registry(&dir, given, &[], KeepWish { is_chosen, is_earlier_wanted }, NOW)
        };
        assert_eq!(lacks(None, &copies[..1]), []);
        let said = kept(false, false).err().expect("it lacks changes").to_string();
        for word in ["is earlier than", "the CA backup in place", "--recovery-key", "--register here"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        // The choice of the operator holds for each of the copies.
        for (is_chosen, is_earlier_wanted) in [(true, false), (false, true)] {
            let KeptRegister { used, choice } = kept(is_chosen, is_earlier_wanted).expect("is wanted");
            assert_eq!(choice.given_up, [2, 1].map(|at: usize| GivenUp::beyond(marks[0].count, &marks[at])));
            assert_eq!(choice.said.len(), 2, "each of them is named");
            let used = used.expect("is readable");
            assert_eq!(marks.each_ref().map(|mark| used.lacks(mark, "web2 has").is_some()), [false; 3]);
        }
        let lacking = |used: &UsedRegister| marks.each_ref().map(|mark| used.lacks(mark, "web2 has").is_some());
        assert_eq!(lacking(&used()), [false, true, true]);
        assert_eq!(lacks(Some(&key), &copies), [], "with the key, invitations are told from other changes");
        // A mark that the CA has not signed is no evidence, and neither is what an operator gave up.
        let mut forged = copies[2].clone();
        forged.mark.as_mut().expect("is signed").mark.count += 1;
        assert_eq!(lacks(None, &[forged]), []);
        let mut register = Registry::open(&dir, NOW).expect("opens");
        invite(&mut register, "web4");
        assert!(!lacks(None, &copies).is_empty());
        register.choose_over(&[GivenUp::at(&marks[2]), GivenUp::at(&marks[1])], NOW).expect("gives up");
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
            if is_decided {
                let over = GivenUp::of(&third.register(&key).expect("opens"));
                register.choose_over(&[over], NOW).expect("chooses");
            }
            let given = GivenCopies { found: found.to_vec(), unread: Vec::new() };
            let kept = keep_registry(&dir, given, &[], KeepWish::default(), NOW).expect("nothing is lacking");
            assert_eq!(kept.choice, Choice::default(), "it has each change, or an operator gave that up");
        }
    }

    #[test]
    fn p13_a_copy_that_cannot_be_read_hides_none_of_the_others() {
        let (temp, copies, marks, key) = three();
        let dir = temp.path().join("back");
        copies[0].restore(&key, &dir, NOW, None).expect("restores");
        let given = || GivenCopies {
            found: vec![FoundCopy { escrow: copies[2].clone(), place: "place".into(), order: None, is_own: false }],
            unread: vec![UnreadCopy { why: "web3/identity/escrow is damaged".into(), option: None }],
        };
        let keep = |is_chosen| {
            let wish = KeepWish { is_chosen, is_earlier_wanted: false };
            keep_registry(&dir, given(), &[], wish, NOW)
        };
        let said = keep(false).err().expect("it may be the latest").to_string();
        assert!(said.contains("web3/identity/escrow") && said.contains("--earlier-copy"), "{said}");
        let choice = keep(true).expect("the operator chose the one here").choice;
        assert_eq!(choice.given_up, [GivenUp::beyond(marks[0].count, &marks[2])]);
        assert!(choice.said.iter().any(|said| said.contains("web3/identity/escrow")), "{:?}", choice.said);
    }

    #[test]
    fn p13_a_registry_that_cannot_be_read_is_not_taken_for_one_that_is_missing() {
        let (temp, copies, _, key) = three();
        let dir = temp.path().join("back");
        copies[0].restore(&key, &dir, NOW, None).expect("restores");
        ["members.json", "members.copy"].iter().for_each(|name| fs::write(dir.join(name), "damaged").expect("writes"));
        let keep = |is_chosen| {
            let wish = KeepWish { is_chosen, is_earlier_wanted: false };
            keep_registry(&dir, GivenCopies::default(), &[], wish, NOW)
        };
        let kept = keep(false).expect("the log can be rebuilt beside it");
        let said = kept.choice.said.join("; ");
        assert!(kept.used.is_none() && said.contains("members.json") && said.contains("authority restore"), "{said}");
        assert!(keep(true).is_err(), "a choice could not be recorded");
        copies[2].exceeds(&key, &dir, NOW, None).expect_err("it cannot be compared");
    }
}
