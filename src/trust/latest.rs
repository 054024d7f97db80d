//! Choice of the latest of several CA backups. The datastore's clock may have been wrong, and members that were revoked
//! after the chosen backup was made regain access if an earlier one is restored.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::rotation::former_names;
use super::{Escrow, RecoveryKey, RecoveryKeys, RegisterChoice, TrustError, left};
use crate::codec::jsonl::timestamp;
use crate::model::Generation;

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
    pub escrow: Escrow,
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
    pub escrow: Escrow,
    /// Description of its location.
    pub place: String,
    /// Its rank among the others.
    pub rank: CopyRank,
    /// Warning if another backup has a later time but different members: a clock was wrong, or the registry continued
    /// from an earlier backup.
    pub doubt: Option<String>,
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

impl Escrow {
    /// Returns its rank among backups of the same CA, taken from the encrypted part.
    ///
    /// # Errors
    /// If `key` does not open it, or the registry in it is corrupt.
    pub fn rank(&self, key: &RecoveryKey) -> Result<CopyRank, TrustError> {
        let register = self.register(key)?;
        let generation = register.log_mark().map(|mark| mark.generation).unwrap_or_default();
        let (changes, revision) = (register.mark().count, register.revision());
        Ok(CopyRank { generation, changes, revision, made_ms: register.saved_ms() })
    }
}

/// Returns the latest of the backups that `key` opens; `None` if there is no backup. Backups that it does not open are
/// compared by their unencrypted fields. Their keepers can alter these, so they only cause an operator to be asked.
///
/// # Errors
/// If there are backups and `key` opens none of them.
pub fn latest(copies: Vec<FoundCopy>, key: &RecoveryKey) -> Result<Option<Latest>, TrustError> {
    let (mut opened, mut closed, mut refused) = (Vec::new(), Vec::new(), None);
    for copy in copies {
        match copy.escrow.rank(key) {
            Ok(rank) => opened.push((rank, copy)),
            Err(error) => {
                closed.push(copy);
                refused = refused.or(Some(error));
            }
        }
    }
    let by_time = opened.iter().max_by_key(|(rank, _)| (rank.made_ms, *rank)).cloned();
    let Some(((rank, found), by_time)) = opened.into_iter().max_by_key(|(rank, _)| *rank).zip(by_time) else {
        return refused.map_or(Ok(None), Err);
    };
    let differing = left::differing(&found.escrow.register(key)?, &by_time.1.escrow.register(key)?);
    let is_in_doubt = by_time.0.made_ms > rank.made_ms && !differing.is_empty();
    let said = |rank: &CopyRank| format!("revision {} of {}", rank.revision, timestamp(rank.made_ms));
    let doubt = is_in_doubt.then(|| {
        format!(
            "of the sealed copies of the authority one is the latest by its revision ({}), and another by its time ({}); they differ \
             in {}: a clock was wrong, or the datastore went on from an earlier copy",
            said(&rank),
            said(&by_time.0),
            differing.into_iter().collect::<Vec<_>>().join(", ")
        )
    });
    closed.retain(|copy| is_later(copy, &found, rank.made_ms));
    let closed = closed.last().map(|last| question(last, closed.len(), (&found, rank.made_ms), key));
    Ok(Some(Latest { escrow: found.escrow, place: found.place, rank, doubt, closed }))
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
fn keys_of(escrow: &Escrow) -> String {
    match Escrow::keys_of(escrow.known()) {
        Some(names) => format!("the recovery key {}", names.replace('+', " or ")),
        None => "another recovery key, which it does not name".into(),
    }
}

fn question(closed: &FoundCopy, count: usize, (found, made_ms): (&FoundCopy, u64), key: &RecoveryKey) -> String {
    let (place, made, keys) = (&closed.place, timestamp(closed.escrow.made_ms), keys_of(&closed.escrow));
    let others = if count > 1 { format!(" and {} others are", count - 1) } else { " is".into() };
    format!(
        "the recovery key {}, which was given, opens the sealed copy of the authority of {} ({}), but not every later one: that of \
         {made} ({place}){others} sealed under {keys}. Who was enrolled or revoked since is in the later one alone; nothing was \
         changed. Give {keys}; or, where it is lost, say --earlier-copy to go back to the register of {}, and revoke again who was \
         revoked since",
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
    escrow: &Escrow,
    key: &RecoveryKey,
    dir: &Path,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
) -> Result<(), TrustError> {
    let made_ms = escrow.rank(key)?.made_ms;
    if is_earlier_wanted || !escrow.may_be_of(dir) || left::stays(escrow, key, dir, made_ms, wish)?.is_some() {
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
        None if is_former => "the one that took its place".into(),
        None => return Ok(()),
    };
    let (given, made) = (key.name(), timestamp(made_ms));
    Err(TrustError::Refused(format!(
        "{} tells the recovery key {given}, which was given, as a former one: copies later than this one, of {made}, are sealed under \
         {other}. Who was enrolled or revoked since is in those alone; nothing was changed. Give such a copy (a member's \
         identity/escrow, or `restore` from a backup) and {other}; or, where there is none, say --earlier-copy to go back to the \
         register of {made}, and revoke again who was revoked since",
        dir.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MemberName;
    use crate::trust::{Authority, NewKey, Registry, Role};

    const NOW: u64 = 1_800_000_000_000;
    const DAY: u64 = 86_400_000;

    fn found(escrows: Vec<Escrow>) -> Vec<FoundCopy> {
        let found = |escrow| FoundCopy { escrow, place: "here".into(), order: None, is_own: false };
        escrows.into_iter().map(found).collect()
    }

    fn latest(escrows: Vec<Escrow>, key: &RecoveryKey) -> Result<Option<Latest>, TrustError> {
        super::latest(found(escrows), key)
    }

    #[test]
    fn p13_a_later_copy_that_the_key_does_not_open_is_never_passed_over_in_silence() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        register.save(NOW).expect("saves");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let mut seal = |at: u64| Escrow::seal(&dir, &authority, &mut register, at).expect("seals");
        let early = seal(NOW);
        let old = RecoveryKey::load(&dir).expect("reads").expect("was made");
        let new = RecoveryKeys::begin(&dir).expect("begins").next.expect("a new one");
        let during = seal(NOW + 1);
        RecoveryKeys::finish(&dir, &new).expect("ends");
        let late = seal(NOW + DAY);
        let copies = [early.clone(), during.clone(), late.clone()];
        let check = |copies: Vec<FoundCopy>, key: &RecoveryKey| {
            let latest = super::latest(copies, key).expect("opens").expect("one");
            latest.check(true).expect("is wanted");
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
            let with = |escrow: &Escrow, made_ms, order| {
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

    #[test]
    fn p13_a_former_key_brings_no_earlier_register_back_unasked_where_its_successor_is_known() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let name = MemberName::new("web2").expect("name");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        register.save(NOW).expect("saves");
        let copy = Escrow::seal(&dir, &authority, &mut register, NOW).expect("seals");
        let old = RecoveryKey::load(&dir).expect("reads").expect("was made");
        let check =
            |wish, earlier| check_key_counts(&copy, &old, &dir, (wish, earlier)).map_err(|error| error.to_string());
        let new = RecoveryKeys::begin(&dir).expect("begins").next.expect("a new one");
        assert_eq!(check(None, false), Ok(()), "it counts still");
        RecoveryKeys::finish(&dir, &new).expect("ends");
        let other = MemberName::new("web3").expect("name");
        register.invite(&other, Role::Webserver, 1000, NOW + 1, false).expect("invites");
        assert_eq!(check(None, false), Ok(()), "the register that is left stays");
        for file in ["members.json", "members.copy"] {
            std::fs::remove_file(dir.join(file)).expect("removes");
        }
        let said = check(None, false).expect_err("is a former one");
        for word in [old.name().as_str(), &new.name(), &timestamp(NOW), "--earlier-copy"] {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(check(None, true), Ok(()));
        std::fs::remove_file(dir.join("recovery.key")).expect("removes");
        assert!(check(None, false).expect_err("is known as a former one").contains("took its place"));
        let former = dir.join("recovery.former");
        let names = std::fs::read(&former).expect("reads");
        std::fs::write(&former, [0xff, 0xfe]).expect("writes");
        let said = check(None, false).expect_err("which keys are former ones cannot be read");
        assert!(said.contains("recovery.former"), "{said}");
        std::fs::write(&former, names).expect("writes");
        assert!(check(None, false).is_err());
        std::fs::remove_file(&former).expect("removes");
        assert_eq!(check(None, false), Ok(()), "nothing is known");
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
        let ahead = Escrow::seal(&dir, &authority, &mut register, NOW + 2 * DAY).expect("seals");
        register.revoke(&name, NOW + 1000).expect("revokes");
        let revoked = Escrow::seal(&dir, &authority, &mut register, NOW + 1000).expect("seals");
        let key = RecoveryKey::load(&dir).expect("reads").expect("was made");
        for copies in [vec![ahead.clone(), revoked.clone()], vec![revoked.clone(), ahead.clone()]] {
            let found = latest(copies, &key).expect("opens").expect("one");
            assert_eq!(found.escrow, revoked);
            let doubt = found.doubt.expect("the times say something else");
            for word in ["web3", "revision", "clock"] {
                assert!(doubt.contains(word), "{word}: {doubt}");
            }
        }
        // Backups with the same members cause no doubt, and neither do consistent times.
        let again = Escrow::seal(&dir, &authority, &mut register, NOW + 500).expect("seals");
        assert_eq!(latest(vec![revoked.clone(), again.clone()], &key).expect("opens").expect("one").doubt, None);
        let later = Escrow::seal(&dir, &authority, &mut register, NOW + 3 * DAY).expect("seals");
        let found = latest(vec![later.clone(), ahead.clone()], &key).expect("opens").expect("one");
        assert_eq!((found.escrow, found.doubt), (later, None));
        assert!(latest(Vec::new(), &key).expect("there is none").is_none());
        let other = RecoveryKey::open_or_create(&temp.path().join("other")).expect("makes");
        assert!(latest(vec![ahead], &other).is_err());
    }
}
