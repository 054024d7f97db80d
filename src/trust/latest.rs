//! Which of several sealed copies of an authority is the latest: the clock of the datastore may have been wrong, and whoever was
//! revoked after the latest copy was made comes back with an earlier one.

use serde::{Deserialize, Serialize};

use super::{Escrow, RecoveryKey, TrustError, left};
use crate::codec::jsonl::timestamp;
use crate::model::Generation;

/// What orders sealed copies: the log's generation, how often the register was written, and only then the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CopyRank {
    /// Generation of the log, as the register knew it; zero: not yet.
    pub generation: Generation,
    /// How often it was changed who may take part.
    #[serde(default)]
    pub changes: u64,
    /// How often the register was written.
    pub revision: u64,
    /// When the copy was made, milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
}

/// The latest of several sealed copies.
#[derive(Debug)]
pub struct Latest {
    /// It.
    pub escrow: Escrow,
    /// Its place among the others.
    pub rank: CopyRank,
    /// Says it where another one was made later by its time, and knows other members: a clock was wrong, or the register went on
    /// from an earlier copy.
    pub doubt: Option<String>,
}

impl Escrow {
    /// Its place among copies of one authority, as it says under the seal.
    ///
    /// # Errors
    /// When `key` does not open it, or the register in it is damaged.
    pub fn rank(&self, key: &RecoveryKey) -> Result<CopyRank, TrustError> {
        let register = self.register(key)?;
        let generation = register.log_mark().map(|mark| mark.generation).unwrap_or_default();
        let (changes, revision) = (register.mark().count, register.revision());
        Ok(CopyRank { generation, changes, revision, made_ms: register.saved_ms() })
    }
}

/// The latest of the copies that `key` opens; `None`: there is no copy.
///
/// # Errors
/// When there are copies, and `key` opens none of them.
pub fn latest(escrows: Vec<Escrow>, key: &RecoveryKey) -> Result<Option<Latest>, TrustError> {
    let (mut opened, mut refused) = (Vec::new(), None);
    for escrow in escrows {
        match escrow.rank(key) {
            Ok(rank) => opened.push((rank, escrow)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let by_time = opened.iter().max_by_key(|(rank, _)| (rank.made_ms, *rank)).cloned();
    let Some(((rank, escrow), by_time)) = opened.into_iter().max_by_key(|(rank, _)| *rank).zip(by_time) else {
        return refused.map_or(Ok(None), Err);
    };
    let differing = left::differing(&escrow.register(key)?, &by_time.1.register(key)?);
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
    Ok(Some(Latest { escrow, rank, doubt }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MemberName;
    use crate::trust::{Authority, NewKey, Registry, Role};

    const NOW: u64 = 1_800_000_000_000;
    const DAY: u64 = 86_400_000;

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
        // The clock is two days ahead for a while, and right when the member is revoked.
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
        // Copies that differ in nothing leave no doubt, and neither do times that agree.
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
