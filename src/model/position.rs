//! Positions of replicas in a log, and their comparison.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::ids::{Generation, LogId, Seq};

/// Running hash over all records up to a sequence. Two logs with equal chains at a sequence have equal histories up to it.
pub type Chain = [u8; 16];

/// Identity of a history and a point in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Identity of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Last sequence applied.
    pub seq: Seq,
    /// Chain at that sequence.
    pub chain: Chain,
    /// State digest at that sequence.
    pub digest: Digest,
}

/// Start of one generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageEntry {
    /// The generation.
    pub generation: Generation,
    /// Last sequence (inclusive) of the history that it shares with its parent.
    pub shared_to: Seq,
}

/// Descent of the generations of a log, ordered by generation.
pub type Lineage = Vec<LineageEntry>;

/// Returns the last sequence that the generations of `lineage` after `generation` share with it; `None` if there is no
/// later generation.
#[must_use]
pub fn shared_after(lineage: &[LineageEntry], generation: Generation) -> Option<Seq> {
    lineage.iter().filter(|entry| entry.generation > generation).map(|entry| entry.shared_to).min()
}

/// Generations that only one of two logs has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Divergence {
    /// Last sequence that the generations of the first log alone share with their parents; `None` if there are none.
    pub first: Option<Seq>,
    /// Like `first`, for the second log.
    pub second: Option<Seq>,
}

impl Divergence {
    /// Compares two logs of the same identity. Generations are equal if their numbers and their starts are.
    #[must_use]
    pub fn of(first: &[LineageEntry], second: &[LineageEntry]) -> Divergence {
        let only = |here: &[LineageEntry], there: &[LineageEntry]| {
            here.iter().filter(|entry| !there.contains(entry)).map(|entry| entry.shared_to).min()
        };
        Divergence { first: only(first, second), second: only(second, first) }
    }

    /// Returns whether each log has a generation that the other one lacks, so that neither descends from the other.
    #[must_use]
    pub fn is_mutual(self) -> bool {
        self.first.is_some() && self.second.is_some()
    }

    /// Returns the last sequence that both share; `None` if they have the same generations.
    #[must_use]
    pub fn shared_to(self) -> Option<Seq> {
        self.first.into_iter().chain(self.second).min()
    }
}

/// Relation of a replica's position to a datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Equal histories and equal states.
    Same,
    /// The replica's history is a prefix of the datastore's: it may tail.
    Behind,
    /// The replica has seen entries that the datastore has not: the datastore was rolled back.
    Ahead,
    /// Both belong to the same log, but their histories or states differ.
    Forked,
    /// They belong to different logs.
    Foreign,
    /// The datastore has no entries while the replica has some: the datastore was wiped.
    Empty,
}

impl Verdict {
    /// Returns whether replication may continue.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Verdict::Same | Verdict::Behind)
    }

    /// Returns the remedy for the operator; empty for good verdicts.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Verdict::Same | Verdict::Behind => "",
            Verdict::Ahead => {
                "stop the datastore and restore its newest data directory, because it lacks entries that this replica \
                 has (an old copy was restored?); nothing was deleted here"
            }
            Verdict::Forked => {
                "decide which history is right, because the datastore and this replica have different histories of \
                 the same log; nothing was deleted here"
            }
            Verdict::Empty => {
                "if the datastore's log is lost, rebuild it: on its host, stop it and run `gravwell-logctl --data-dir \
                 D recover`, where D is its data directory (docs/recovery.md, Disaster); nothing was deleted here"
            }
            Verdict::Foreign => {
                "if the datastore was wiped or replaced, rebuild it: on its host, stop it, move its data directory D \
                 away, `mv D D.aside && mkdir -m 700 D && chown --reference=D.aside D`, and run `gravwell-logctl \
                 --data-dir D recover --authority FILE --recovery-key KEY`, where FILE is this member's \
                 identity/escrow (docs/recovery.md, Disaster); if it is another fleet's, correct `Datastore=`; \
                 nothing was deleted here"
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Same => "Same",
            Verdict::Behind => "Behind",
            Verdict::Ahead => "Ahead",
            Verdict::Forked => "Forked",
            Verdict::Foreign => "Foreign",
            Verdict::Empty => "Empty",
        })
    }
}

/// Compares the position of a replica with that of a datastore.
///
/// `chain_at_replica` is the datastore's chain at the replica's sequence, if it is still known (from the horizon on).
/// Without it, a fork below the horizon cannot be detected here.
#[must_use]
pub fn compare(
    replica: &Position,
    head: &Position,
    lineage: &[LineageEntry],
    chain_at_replica: Option<Chain>,
) -> Verdict {
    if replica.log_id != head.log_id {
        return if head.seq == Seq::ZERO { Verdict::Empty } else { Verdict::Foreign };
    }
    if replica.generation > head.generation {
        return Verdict::Ahead;
    }
    // A generation that the log lacks did not lead to it, however the numbers compare.
    if !lineage.is_empty() && !lineage.iter().any(|entry| entry.generation == replica.generation) {
        return Verdict::Forked;
    }
    if shared_after(lineage, replica.generation).is_some_and(|shared| replica.seq > shared) {
        return Verdict::Forked;
    }
    if replica.seq > head.seq {
        return if head.seq == Seq::ZERO { Verdict::Empty } else { Verdict::Ahead };
    }
    if chain_at_replica.is_some_and(|chain| chain != replica.chain) {
        return Verdict::Forked;
    }
    if replica.seq == head.seq { Verdict::Same } else { Verdict::Behind }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(log: u8, generation: u64, seq: u64, chain: u8) -> Position {
        Position {
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            seq: Seq(seq),
            chain: [chain; 16],
            digest: Digest::ZERO,
        }
    }

    #[test]
    fn p05_every_pair_of_positions_is_named() {
        let lineage = [
            LineageEntry { generation: Generation(1), shared_to: Seq(0) },
            LineageEntry { generation: Generation(3), shared_to: Seq(50) },
        ];
        let head = at(1, 3, 100, 9);
        let cases = [
            (at(1, 3, 100, 9), Some([9; 16]), Verdict::Same),
            (at(1, 3, 100, 8), Some([9; 16]), Verdict::Forked),
            (at(1, 3, 70, 7), Some([7; 16]), Verdict::Behind),
            (at(1, 3, 70, 7), Some([6; 16]), Verdict::Forked),
            (at(1, 3, 70, 7), None, Verdict::Behind),
            (at(1, 1, 50, 7), Some([7; 16]), Verdict::Behind),
            (at(1, 1, 51, 7), Some([7; 16]), Verdict::Forked),
            (at(1, 3, 101, 7), None, Verdict::Ahead),
            (at(1, 2, 10, 7), Some([7; 16]), Verdict::Forked),
            (at(1, 4, 10, 7), None, Verdict::Ahead),
            (at(2, 3, 100, 9), None, Verdict::Foreign),
        ];
        for (replica, chain, verdict) in cases {
            assert_eq!(compare(&replica, &head, &lineage, chain), verdict, "{replica:?}");
        }
        assert_eq!(compare(&at(2, 1, 5, 1), &at(3, 1, 0, 0), &[], None), Verdict::Empty);
    }

    #[test]
    fn p05_lineages_say_what_two_logs_share() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let old = [entry(1, 0), entry(7, 50)];
        let new = [entry(1, 0), entry(7, 50), entry(8, 40)];
        let other = [entry(1, 0), entry(9, 60)];
        let same_number = [entry(1, 0), entry(7, 30)];
        let of = |first: &[LineageEntry], second: &[LineageEntry]| {
            let found = Divergence::of(first, second);
            (found.first.map(|seq| seq.0), found.second.map(|seq| seq.0), found.shared_to().map(|seq| seq.0))
        };
        assert_eq!(of(&old, &old), (None, None, None));
        assert_eq!(of(&old, &new), (None, Some(40), Some(40)));
        assert_eq!(of(&new, &old), (Some(40), None, Some(40)));
        assert_eq!(of(&new, &other), (Some(40), Some(60), Some(40)));
        assert_eq!(of(&old, &same_number), (Some(50), Some(30), Some(30)));
        assert!(Divergence::of(&new, &other).is_mutual() && !Divergence::of(&old, &new).is_mutual());
    }
}
