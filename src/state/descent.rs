//! Checks whether one state continues the history of another.
//!
//! Every transaction that a log commits or rejects raises the counter of its origin at that sequence, and rows of
//! origins are never removed. So in every state that continues the history of a state at sequence `s`, the row of each
//! origin is unchanged, or its last outcome came after `s`. Anything else proves that the two histories forked,
//! independently of the horizon of the log, and a missing outcome is always detected.

use std::cmp::Ordering;
use std::fmt;

use super::error::StateError;
use super::snapshot::StateSnapshot;
use gravwell_model::{Origin, OriginCounter, OriginRow, Seq};

/// Maximum number of origins listed in a [`Fork`]; further ones are only counted.
const NAMED_MAX: usize = 16;

/// Outcomes of one origin that only the earlier history contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The origin.
    pub origin: Origin,
    /// Counter of the origin in the earlier history.
    pub counter: OriginCounter,
    /// Sequence of that outcome in the earlier history.
    pub seq: Seq,
    /// Counter of the origin in the other history.
    pub found: OriginCounter,
}

/// Proof that a state does not continue the history of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fork {
    /// Highest sequence at which both states have the same entry, below all differences: the histories are equal at
    /// least up to this sequence.
    pub shared_to: Seq,
    /// Lowest sequence at which the origins differ.
    pub differs_at: Seq,
    /// Origins for which the other history lacks outcomes, at most 16 of them.
    pub missing: Vec<Missing>,
    /// Number of origins in which the histories differ.
    pub origins: usize,
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the histories forked after sequence {}: {} origins differ", self.shared_to, self.origins)?;
        for Missing { origin, counter, seq, found } in self.missing.iter().take(3) {
            write!(f, "; of {origin} the outcomes {} to {counter} (at {seq}) are missing", found.next())?;
        }
        Ok(())
    }
}

/// Collects the differences between two tables of origins.
struct Comparison {
    at: Seq,
    fork: Fork,
    /// Sequence below which the rows show no difference.
    below: Seq,
    /// Sequences of entries that are equal in both.
    common: Vec<Seq>,
}

impl Comparison {
    fn differs(&mut self, from: Seq) {
        self.fork.origins += 1;
        self.below = self.below.min(from);
    }

    fn only_earlier(&mut self, origin: Origin, row: &OriginRow, found: OriginCounter) {
        self.differs(row.last_seq);
        if self.fork.missing.len() < NAMED_MAX {
            let (counter, seq) = (row.last_counter, row.last_seq);
            self.fork.missing.push(Missing { origin, counter, seq, found });
        }
    }

    fn only_later(&mut self, row: &OriginRow) {
        if row.last_seq <= self.at {
            self.differs(row.last_seq);
        }
    }

    fn both(&mut self, origin: Origin, earlier: &OriginRow, later: &OriginRow) {
        match later.last_counter.cmp(&earlier.last_counter) {
            Ordering::Less => self.only_earlier(origin, earlier, later.last_counter),
            Ordering::Equal if later.last_seq == earlier.last_seq => self.common.push(earlier.last_seq),
            Ordering::Equal => self.differs(earlier.last_seq.min(later.last_seq)),
            Ordering::Greater => self.only_later(later),
        }
    }
}

/// Returns the fork between two histories; `None` if `later` continues the history of `earlier`. Both must be states
/// of one log.
///
/// # Errors
/// If a row of either state cannot be read: then nothing is proven.
pub fn fork(earlier: &StateSnapshot, later: &StateSnapshot) -> Result<Option<Fork>, StateError> {
    let at = earlier.meta().map(|meta| meta.seq).unwrap_or_default();
    let mut found = Comparison { at, fork: Fork::default(), below: Seq(u64::MAX), common: Vec::new() };
    let (mut mine, mut theirs) = (earlier.origins(), later.origins());
    let (mut left, mut right) = (mine.next().transpose()?, theirs.next().transpose()?);
    loop {
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((left, _)), Some((right, _))) => left.cmp(right),
        };
        let advanced = (order.is_le(), order.is_ge());
        match (&left, &right) {
            (Some((origin, row)), _) if order.is_lt() => found.only_earlier(*origin, row, OriginCounter(0)),
            (_, Some((_, row))) if order.is_gt() => found.only_later(row),
            (Some((origin, earlier)), Some((_, later))) => found.both(*origin, earlier, later),
            _ => {}
        }
        if advanced.0 {
            left = mine.next().transpose()?;
        }
        if advanced.1 {
            right = theirs.next().transpose()?;
        }
    }
    if found.fork.origins == 0 {
        return Ok(None);
    }
    let Comparison { mut fork, below, mut common, .. } = found;
    for row in earlier.objects() {
        let (collection, key, object) = row?;
        if object.version < below
            && later
                .get(&collection, &key)?
                .is_some_and(|other| other.version == object.version && other.value == object.value)
        {
            common.push(object.version);
        }
    }
    fork.differs_at = below;
    fork.shared_to = common.into_iter().filter(|seq| *seq < below).max().unwrap_or_default();
    Ok(Some(fork))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::StateStore;
    use gravwell_model::{
        Chain, Collection, Entry, EntryBody, Generation, Key, LineageEntry, LogId, MemberName, Op, Reason, Txn, TxnId,
    };

    /// Creates the state after the given outcomes: the origin of each, and whether it was committed.
    fn state(outcomes: &[(u8, bool)]) -> StateSnapshot {
        let state = StateStore::in_memory();
        let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
        state.init(LogId([1; 16]), Generation(1), lineage).expect("new");
        let mut counters = std::collections::BTreeMap::<u8, u64>::new();
        let entries: Vec<Entry> = (1..)
            .zip(outcomes)
            .map(|(seq, (origin, is_committed))| {
                let counter = counters.entry(*origin).or_default();
                *counter += 1;
                let id = TxnId { origin: Origin([*origin; 16]), counter: OriginCounter(*counter) };
                let key = Key::new(origin.to_string()).expect("key");
                let value = Bytes::from(format!("{origin} {counter}"));
                let op = Op::Put { collection: Collection::new("c").expect("name"), key, value };
                let settled = OriginCounter(0);
                let (note, conditions, ops) = (Bytes::new(), Vec::new(), vec![op]);
                let body = if *is_committed {
                    EntryBody::Commit(Txn { id, settled, time_ms: 0, note, conditions, ops })
                } else {
                    EntryBody::Reject { id, settled, reason: Reason::IdentityReused }
                };
                Entry { seq: Seq(seq), time_ms: seq, member: MemberName::new("m").expect("name"), body }
            })
            .collect();
        if !entries.is_empty() {
            state.apply(&entries, Chain::default()).expect("applies");
        }
        state.snapshot().expect("a view")
    }

    #[test]
    fn p05_a_fork_names_what_is_missing_and_up_to_where_both_are_the_same() {
        let earlier = state(&[(1, true), (2, true), (3, true), (3, true)]);
        let later = state(&[(1, true), (2, true), (4, true), (4, true), (4, true)]);
        let fork = fork(&earlier, &later).expect("reads").expect("forked");
        let missing =
            Missing { origin: Origin([3; 16]), counter: OriginCounter(2), seq: Seq(4), found: OriginCounter(0) };
        assert_eq!(fork, Fork { shared_to: Seq(2), differs_at: Seq(4), missing: vec![missing], origins: 1 });
        assert!(fork.to_string().contains("forked after sequence 2"), "{fork}");
    }

    #[test]
    fn p05_the_same_outcomes_in_another_order_are_a_fork() {
        let earlier = state(&[(1, true), (2, true), (3, true)]);
        let later = state(&[(1, true), (3, true), (2, true), (4, true)]);
        assert_eq!(fork(&earlier, &later).expect("reads").map(|fork| fork.shared_to), Some(Seq(1)));
    }

    proptest! {
        /// A state continues its past; a state that lacks an outcome is a fork; the reported shared prefix is really shared.
        #[test]
        fn p05_a_state_that_lacks_an_outcome_is_a_fork_and_one_that_continues_is_none(
            shared in prop::collection::vec((0u8..4, any::<bool>()), 0..12),
            mine in prop::collection::vec((0u8..4, any::<bool>()), 0..6),
            theirs in prop::collection::vec((0u8..5, any::<bool>()), 0..9),
        ) {
            let all = |more: &[(u8, bool)]| [&shared[..], more].concat();
            let (ours, other) = (all(&mine), all(&theirs));
            prop_assert_eq!(fork(&state(&shared), &state(&ours)).expect("reads"), None);
            let found = fork(&state(&ours), &state(&other)).expect("reads");
            let outcomes = |of: &[(u8, bool)], origin| of.iter().filter(|(from, _)| *from == origin).count();
            let lacks = (0..5).any(|origin| outcomes(&ours, origin) > outcomes(&other, origin));
            let continues = other.len() >= ours.len() && ours.iter().zip(&other).all(|(a, b)| a.0 == b.0);
            prop_assert!(!lacks || found.is_some(), "a missing outcome was not detected");
            prop_assert!(!(continues && found.is_some()), "a continuation was reported as a fork");
            if let Some(fork) = found {
                let to = usize::try_from(fork.shared_to.0).expect("small");
                prop_assert!(to < ours.len().min(other.len()) + 1);
                let last = |of: &[(u8, bool)]| of.get(to.wrapping_sub(1)).map(|(origin, _)| *origin);
                prop_assert_eq!(last(&ours), last(&other), "both have the same entry there");
            }
        }
    }
}
