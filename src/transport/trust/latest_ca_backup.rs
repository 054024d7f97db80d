//! Choice of the latest of several CA backups. The datastore's clock may have been wrong, and members that were revoked
//! after the chosen backup was made regain access if an earlier one is restored.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::descent::{self, listed};
use super::rotation::former_names;
use super::{CaBackup, RecoveryKey, RecoveryKeys, RegisterChoice, Registry, TrustError, leftover_registry};
use gravwell_model::Generation;
use gravwell_model::codec::json_lines::timestamp;

/// Sort order of CA backups: the log's generation first, then the registry's counters, and only then the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CopyRank {
    /// Generation of the log according to the registry; zero if it knew none yet.
    pub generation: Generation,
    /// Number of membership changes.
    #[serde(default)]
    pub changes: u64,
    /// Number of writes of the registry.
    pub revision: u64,
    /// Time of the backup in milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
}

/// A CA backup, and its location.
#[derive(Clone, Debug)]
pub struct FoundCopy {
    /// The encrypted backup.
    pub escrow: CaBackup,
    /// Description of its location, for messages.
    pub place: String,
    /// Position in a sequence of backups, independent of clocks; `None` if only its time is known.
    pub order: Option<usize>,
    /// Whether it is known to belong to the datastore being restored; otherwise its CA decides.
    pub is_own: bool,
}

/// The latest of several CA backups.
#[derive(Debug)]
pub struct Latest {
    /// The encrypted backup.
    pub escrow: CaBackup,
    /// Description of its location.
    pub place: String,
    /// Its rank among the others.
    pub rank: CopyRank,
    /// Warning if another backup has a later time but different members: a clock was wrong, or the registry continued
    /// from an earlier backup.
    pub doubt: Option<String>,
    /// Message if it is not known to go on from another one that differs in members: an operator has to choose.
    pub apart: Option<String>,
    /// Message if the key does not open a later backup.
    closed: Option<String>,
}

impl Latest {
    /// Returns an error if the key does not open a later backup, unless the caller accepts an earlier one.
    ///
    /// # Errors
    /// The message names the later backup and the remedy.
    pub fn check(&self, is_earlier_wanted: bool) -> Result<(), TrustError> {
        match &self.closed {
            Some(closed) if !is_earlier_wanted => Err(TrustError::Refused(closed.clone())),
            _ => Ok(()),
        }
    }
}

impl CaBackup {
    /// Returns its rank among backups of the same CA, taken from the encrypted part.
    ///
    /// # Errors
    /// If `key` does not open it, or the registry in it is corrupt.
    pub fn rank(&self, key: &RecoveryKey) -> Result<CopyRank, TrustError> {
        Ok(rank_of(&self.register(key)?))
    }
}

fn rank_of(register: &Registry) -> CopyRank {
    let generation = register.log_mark().map(|mark| mark.generation).unwrap_or_default();
    let (changes, revision) = (register.mark().count, register.revision());
    CopyRank { generation, changes, revision, made_ms: register.saved_ms() }
}

/// A backup that the key opens.
struct Opened {
    rank: CopyRank,
    register: Registry,
    copy: FoundCopy,
}

/// Opens the backups, and sorts them by rank, the latest first. Also returns those that `key` does not open.
fn opened(copies: Vec<FoundCopy>, key: &RecoveryKey) -> (Vec<Opened>, Vec<FoundCopy>, Option<TrustError>) {
    let (mut opened, mut closed, mut refused) = (Vec::new(), Vec::new(), None);
    for copy in copies {
        match copy.escrow.register(key) {
            Ok(register) => opened.push(Opened { rank: rank_of(&register), register, copy }),
            Err(error) => {
                closed.push(copy);
                refused = refused.or(Some(error));
            }
        }
    }
    opened.sort_by_key(|opened| std::cmp::Reverse(opened.rank));
    (opened, closed, refused)
}

/// Returns the latest of the backups that `key` opens; `None` if there is no backup. Backups that it does not open are
/// compared by their unencrypted fields. Their keepers can alter these, so they only cause an operator to be asked.
///
/// # Errors
/// If there are backups and `key` opens none of them.
pub fn latest(copies: Vec<FoundCopy>, key: &RecoveryKey) -> Result<Option<Latest>, TrustError> {
    let (opened, closed, refused) = opened(copies, key);
    if opened.is_empty() {
        return refused.map_or(Ok(None), Err);
    }
    Ok(choose(&opened, closed, key))
}

/// As [`latest`], but of the backups that go on from the one at `place` and of that one itself: an operator has named
/// it because the others went on apart from it.
///
/// # Errors
/// As [`latest`].
pub fn latest_of_branch(copies: Vec<FoundCopy>, key: &RecoveryKey, place: &str) -> Result<Option<Latest>, TrustError> {
    let (mut opened, closed, refused) = opened(copies, key);
    let Some(named) = opened.iter().find(|opened| opened.copy.place == place).map(|named| named.register.mark()) else {
        return refused.map_or(Ok(None), Err);
    };
    opened.retain(|opened| opened.copy.place == place || opened.register.has_passed(&named));
    Ok(choose(&opened, closed, key))
}

/// Chooses the first of `opened`, the latest by its rank.
fn choose(opened: &[Opened], mut closed: Vec<FoundCopy>, key: &RecoveryKey) -> Option<Latest> {
    let first = opened.first()?;
    let by_time = opened.iter().max_by_key(|opened| (opened.rank.made_ms, opened.rank))?;
    let (rank, found) = (first.rank, &first.copy);
    let differing = leftover_registry::differing(&first.register, &by_time.register);
    let is_in_doubt = by_time.rank.made_ms > rank.made_ms && !differing.is_empty();
    let said = |rank: &CopyRank| format!("revision {} of {}", rank.revision, timestamp(rank.made_ms));
    let doubt = is_in_doubt.then(|| {
        format!(
            "of the CA backups, one is the latest by revision ({}) and another by time ({}); they differ in {}: a \
             clock was wrong, or the datastore continued from an earlier backup",
            said(&rank),
            said(&by_time.rank),
            listed(&differing)
        )
    });
    let registers: Vec<&Registry> = opened.iter().map(|opened| &opened.register).collect();
    let apart = descent::left_out(&registers, 0).map(|(other, differing)| {
        let told = |opened: &Opened| {
            let (made, mark) = (timestamp(opened.rank.made_ms), opened.register.mark());
            format!("that of {made} ({}, {mark})", opened.copy.place)
        };
        format!(
            "of the CA backups, {} is not known to continue {}, and their member registries differ in {}: an older \
             copy of the datastore was in use for a while, and a member revoked in one registry may be enrolled in \
             the other",
            told(first),
            told(&opened[other]),
            listed(&differing)
        )
    });
    closed.retain(|copy| is_later(copy, found, rank.made_ms));
    let closed = closed.last().map(|last| question(last, closed.len(), (found, rank.made_ms), key));
    Some(Latest { escrow: found.escrow.clone(), place: found.place.clone(), rank, doubt, apart, closed })
}

/// Returns whether a backup that cannot be opened is later than `found`, which was made at `made_ms`.
fn is_later(closed: &FoundCopy, found: &FoundCopy, made_ms: u64) -> bool {
    let is_of_same = closed.is_own || closed.escrow.authority == found.escrow.authority;
    is_of_same
        && match (closed.order, found.order) {
            (Some(closed), Some(found)) => closed > found,
            _ => closed.escrow.made_ms > made_ms,
        }
}

/// Describes the keys that open a backup, according to its unencrypted fields.
fn keys_of(escrow: &CaBackup) -> String {
    match CaBackup::keys_of(escrow.known()) {
        Some(names) => format!("the recovery key {}", names.replace('+', " or ")),
        None => "another recovery key, which the backup does not name".into(),
    }
}

fn question(closed: &FoundCopy, count: usize, (found, made_ms): (&FoundCopy, u64), key: &RecoveryKey) -> String {
    let (place, made, keys) = (&closed.place, timestamp(closed.escrow.made_ms), keys_of(&closed.escrow));
    let others = if count > 1 { format!(" and {} others are", count - 1) } else { " is".into() };
    format!(
        "the given recovery key {} opens the CA backup of {} ({}), but not every later one: that of {made} \
         ({place}){others} encrypted with {keys}. Only the later one contains the enrollments and revocations since \
         then; nothing was changed. Use {keys}; if it is lost, use --earlier-copy to go back to the registry of {}, \
         and repeat the revocations since then",
        key.name(),
        timestamp(made_ms),
        found.place,
        timestamp(made_ms),
    )
}

/// Returns an error if `key`, which opens `escrow`, is a former key in the trust directory `dir`, because later backups
/// exist under its successor. Succeeds anyway if the existing registry is kept or the caller accepts an earlier backup.
///
/// # Errors
/// The message names both keys and the remedy. Also fails if the existing registry cannot be compared with the backup.
pub fn check_key_counts(
    escrow: &CaBackup,
    key: &RecoveryKey,
    dir: &Path,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
) -> Result<(), TrustError> {
    let made_ms = escrow.rank(key)?.made_ms;
    if is_earlier_wanted || !escrow.may_be_of(dir) || leftover_registry::stays(escrow, key, dir, wish)?.is_some() {
        return Ok(());
    }
    let present = match RecoveryKeys::load(dir) {
        Err(TrustError::Damaged { .. }) => None,
        loaded => loaded?,
    };
    let is_present = present.as_ref().is_some_and(|keys| keys.all().contains(key));
    // A recorded former name identifies a former key even if the current keys are unreadable.
    let is_former = former_names(dir)?.iter().any(|name| name.trim() == key.name());
    let other = match present {
        _ if is_present => return Ok(()),
        Some(keys) => format!("the recovery key {}", keys.current.name()),
        None if is_former => "its successor".into(),
        None => return Ok(()),
    };
    let (given, made) = (key.name(), timestamp(made_ms));
    Err(TrustError::Refused(format!(
        "{} lists the given recovery key {given} as a former one: CA backups later than this one, of {made}, are \
         encrypted with {other}. Only those contain the enrollments and revocations since then; nothing was changed. \
         Use such a backup (a member's identity/escrow, or `restore` from a backup) and {other}; if there is none, \
         use --earlier-copy to go back to the registry of {made}, and repeat the revocations since then",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Authority, NewKey, Registry, Role};
    use gravwell_model::MemberName;

    const NOW: u64 = 1_800_000_000_000;
    const DAY: u64 = 86_400_000;

    fn found(escrows: Vec<CaBackup>) -> Vec<FoundCopy> {
        let found = |escrow| FoundCopy { escrow, place: "here".into(), order: None, is_own: false };
        escrows.into_iter().map(found).collect()
    }

    fn latest(escrows: Vec<CaBackup>, key: &RecoveryKey) -> Result<Option<Latest>, TrustError> {
        super::latest(found(escrows), key)
    }

    #[test]
    fn p13_a_later_copy_that_the_key_does_not_open_is_never_passed_over_in_silence() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        register.save(NOW).expect("saves");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let mut seal = |at: u64| CaBackup::seal(&dir, &authority, &mut register, at).expect("seals");
        let early = seal(NOW);
        let old = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let new = RecoveryKeys::begin(&dir).expect("begins").next.expect("a next key");
        let during = seal(NOW + 1);
        RecoveryKeys::finish(&dir, &new).expect("ends");
        let late = seal(NOW + DAY);
        let copies = [early.clone(), during.clone(), late.clone()];
        let check = |copies: Vec<FoundCopy>, key: &RecoveryKey| {
            let latest = super::latest(copies, key).expect("opens").expect("one");
            latest.check(true).expect("is accepted");
            latest.check(false).map(|()| latest.escrow)
        };
        // Both keys open the backup made during the rotation; the former key is rejected with a notice of the
        // later backup.
        assert_eq!(check(found(copies.to_vec()), &new).expect("opens the last"), late);
        assert_eq!(check(found(copies[..2].to_vec()), &old).expect("is the last"), during);
        for copies in [copies.to_vec(), vec![late.clone(), early.clone()]] {
            let said = check(found(copies), &old).expect_err("is not the last").to_string();
            let late = timestamp(NOW + DAY);
            for word in [old.name().as_str(), &new.name(), &late, "--earlier-copy", "nothing was changed"] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
        // If the order is known, clocks are ignored: the later backup claims an earlier time.
        let ordered = |times: [u64; 2]| {
            let with = |escrow: &CaBackup, made_ms, order| {
                let mut escrow = escrow.clone();
                escrow.made_ms = made_ms;
                FoundCopy { escrow, place: format!("backup {order}"), order: Some(order), is_own: false }
            };
            vec![with(&early, NOW, 1), with(&late, times[0], 2), with(&late, times[1], 0)]
        };
        let said = check(ordered([1, NOW + DAY]), &old).expect_err("is not the last").to_string();
        assert!(said.contains("backup 2") && !said.contains("backup 0"), "{said}");
        assert!(check(ordered([1, NOW + DAY]).split_off(1), &new).is_ok());
        // Backups of another CA are ignored unless they are known to belong to this datastore.
        let mut stranger = found(vec![early, late]);
        stranger[1].escrow.authority = "f".repeat(64);
        assert!(check(stranger.clone(), &old).is_ok());
        stranger[1].is_own = true;
        assert!(check(stranger, &old).is_err());
    }

    /// Two branches of one register: a member is revoked in the first, and others are enrolled in the second.
    fn branches() -> (tempfile::TempDir, [CaBackup; 3], RecoveryKey) {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let name = |name: &str| MemberName::new(name).expect("name");
        let enrol = |register: &mut Registry, member: &str| {
            let request = NewKey::generate(&name(member)).expect("a key").request_der;
            let secret = register.invite(&name(member), Role::Webserver, 1000, NOW, false).expect("invites");
            register.redeem(&authority, &name(member), &secret, &request, 30, NOW).expect("joins");
        };
        ["web1", "web2"].iter().for_each(|member| enrol(&mut register, member));
        let common = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let mut other = register.copy();
        register.revoke(&name("web2"), NOW + 1).expect("revokes");
        let first = CaBackup::seal(&dir, &authority, &mut register, NOW + 2).expect("seals");
        ["web4", "web5"].iter().for_each(|member| enrol(&mut other, member));
        let second = CaBackup::seal(&dir, &authority, &mut other, NOW + DAY).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        (temp, [common, first, second], key)
    }

    #[test]
    fn p13_of_two_branches_none_is_taken_unasked_although_one_has_more_changes_and_a_later_time() {
        let (_temp, [common, first, second], key) = branches();
        let at = |escrow: &CaBackup, place: &str| FoundCopy {
            escrow: escrow.clone(),
            place: place.into(),
            order: None,
            is_own: false,
        };
        let copies = || vec![at(&common, "common"), at(&first, "first"), at(&second, "second")];
        let found = super::latest(copies(), &key).expect("opens").expect("one");
        let apart = found.apart.expect("registries diverged");
        for word in ["web2", "web4", "web5", "first", "second", &timestamp(NOW + 2), &timestamp(NOW + DAY)] {
            assert!(apart.contains(word), "{word}: {apart}");
        }
        assert!(!apart.contains("common"), "{apart}");
        for branch in [[&common, &first], [&common, &second]] {
            let copies = branch.iter().map(|escrow| at(escrow, "here")).collect();
            let found = super::latest(copies, &key).expect("opens").expect("one");
            assert_eq!((found.apart, found.doubt, &found.escrow), (None, None, branch[1]));
        }
        // The operator names one.
        for (place, wanted) in [("first", &first), ("second", &second)] {
            let found = latest_of_branch(copies(), &key, place).expect("opens").expect("one");
            assert_eq!((found.apart, &found.escrow), (None, wanted), "{place}");
        }
        let found = latest_of_branch(copies(), &key, "common").expect("opens").expect("one");
        assert!(found.apart.is_some(), "both branches continue it");
    }

    #[test]
    fn p13_a_copy_that_was_put_back_is_known_to_go_on_from_earlier_ones() {
        let (temp, [common, first, second], key) = branches();
        let dir = temp.path().join("back");
        first.restore(&key, &dir, NOW + 3, None).expect("restores");
        let authority = Authority::load(&dir).expect("loads");
        let mut register = Registry::open(&dir, NOW + 4).expect("opens");
        let back = CaBackup::seal(&dir, &authority, &mut register, NOW + 5).expect("seals");
        let found = latest(vec![common.clone(), back.clone(), first.clone()], &key).expect("opens").expect("one");
        assert_eq!((found.escrow, found.apart), (back.clone(), None));
        let found = latest(vec![back.clone(), second.clone()], &key).expect("opens").expect("one");
        assert!(found.apart.is_some_and(|apart| apart.contains("web2")));
        // An earlier attempt has put the first branch back.
        for (escrow, exceeds) in [(&second, true), (&common, false), (&first, false)] {
            assert_eq!(escrow.exceeds(&key, &dir, NOW + 6, None).expect("compares"), exceeds);
        }
        let checked = crate::trust::check_known(&second, &key, &dir, (None, false), Vec::new());
        let said = checked.expect_err("an operator decides").to_string();
        assert!(said.contains("web2 (revoked here") && said.contains("--register copy"), "{said}");
    }

    #[test]
    fn p13_copies_that_are_far_apart_are_of_one_descent_through_those_between_them() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        register.save(NOW).expect("saves");
        let (mut memory, mut copies) = (register.copy(), Vec::new());
        let name = MemberName::new("web1").expect("name");
        memory.invite(&name, Role::Reader, 1000, NOW, false).expect("invites");
        for number in 0..3000u64 {
            memory.enrol(&name, Role::Reader, &number.to_le_bytes(), 30, NOW + number).expect("enrols");
            if number % 900 == 0 {
                copies.push(CaBackup::seal(&dir, &authority, &mut memory, NOW + number).expect("seals"));
            }
        }
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let found = latest(copies.clone(), &key).expect("opens").expect("one");
        assert_eq!((&found.escrow, found.apart), (copies.last().expect("one"), None));
        let ends = vec![copies[0].clone(), copies.last().expect("one").clone()];
        assert!(latest(ends, &key).expect("opens").expect("one").apart.is_some(), "too many changes in between");
    }

    #[test]
    fn p13_a_former_key_brings_no_earlier_register_back_unasked_where_its_successor_is_known() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let name = MemberName::new("web2").expect("name");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        register.save(NOW).expect("saves");
        let copy = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let old = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let check =
            |wish, earlier| check_key_counts(&copy, &old, &dir, (wish, earlier)).map_err(|error| error.to_string());
        let new = RecoveryKeys::begin(&dir).expect("begins").next.expect("a next key");
        assert_eq!(check(None, false), Ok(()), "it is still valid");
        RecoveryKeys::finish(&dir, &new).expect("ends");
        let other = MemberName::new("web3").expect("name");
        register.invite(&other, Role::Webserver, 1000, NOW + 1, false).expect("invites");
        assert_eq!(check(None, false), Ok(()), "the remaining registry is kept");
        for file in ["members.json", "members.copy"] {
            std::fs::remove_file(dir.join(file)).expect("removes");
        }
        let said = check(None, false).expect_err("is a former key");
        for word in [old.name().as_str(), &new.name(), &timestamp(NOW), "--earlier-copy"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(check(None, true), Ok(()));
        std::fs::remove_file(dir.join("recovery.key")).expect("removes");
        assert!(check(None, false).expect_err("is recorded as a former key").contains("its successor"));
        let former = dir.join("recovery.former");
        let names = std::fs::read(&former).expect("reads");
        std::fs::write(&former, [0xff, 0xfe]).expect("writes");
        let said = check(None, false).expect_err("former keys cannot be read");
        assert!(said.contains("recovery.former"), "{said}");
        std::fs::write(&former, names).expect("writes");
        assert!(check(None, false).is_err());
        std::fs::remove_file(&former).expect("removes");
        assert_eq!(check(None, false), Ok(()), "no former key is known");
    }

    #[test]
    fn p13_the_latest_copy_is_told_by_its_revision_and_a_clock_that_was_wrong_is_named() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let name = MemberName::new("web3").expect("name");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let request = NewKey::generate(&name).expect("a key").request_der;
        let secret = register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        register.redeem(&authority, &name, &secret, &request, 30, NOW).expect("joins");
        // The clock is two days ahead for a while, and correct when the member is revoked.
        let ahead = CaBackup::seal(&dir, &authority, &mut register, NOW + 2 * DAY).expect("seals");
        register.revoke(&name, NOW + 1000).expect("revokes");
        let revoked = CaBackup::seal(&dir, &authority, &mut register, NOW + 1000).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was created");
        for copies in [vec![ahead.clone(), revoked.clone()], vec![revoked.clone(), ahead.clone()]] {
            let found = latest(copies, &key).expect("opens").expect("one");
            assert_eq!(found.escrow, revoked);
            let doubt = found.doubt.expect("the times contradict the revisions");
            for word in ["web3", "revision", "clock"] {
                assert!(doubt.contains(word), "{word}: {doubt}");
            }
        }
        // Backups with the same members cause no doubt, and neither do consistent times.
        let again = CaBackup::seal(&dir, &authority, &mut register, NOW + 500).expect("seals");
        assert_eq!(latest(vec![revoked.clone(), again.clone()], &key).expect("opens").expect("one").doubt, None);
        let later = CaBackup::seal(&dir, &authority, &mut register, NOW + 3 * DAY).expect("seals");
        let found = latest(vec![later.clone(), ahead.clone()], &key).expect("opens").expect("one");
        assert_eq!((found.escrow, found.doubt), (later, None));
        assert!(latest(Vec::new(), &key).expect("no backup is no error").is_none());
        let other = RecoveryKey::open_or_create(&temp.path().join("other")).expect("makes");
        assert!(latest(vec![ahead], &other).is_err());
    }
}
