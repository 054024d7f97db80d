//! Following of a log: order, continuity, and the comparison of digests at bookmarks.

use std::collections::VecDeque;

use bytes::Bytes;

use gravwell_model::codec::block::{BadBlock, decode_block};
use gravwell_model::codec::message::Bookmark;
use gravwell_model::{Chain, Digest, Entry, Seq};

use gravwell_model::fault_injection::{self, Bug};

use super::CHECKPOINT_EVERY;

/// Number of the replica's digests that are retained for bookmarks that arrive late.
const DIGESTS_MAX: usize = 64;

/// Entries to apply in one atomic step.
#[derive(Debug, PartialEq, Eq)]
pub struct EntryBatch {
    /// Consecutive entries, never empty. Only the last one may be at a checkpoint.
    pub entries: Vec<Entry>,
    /// Chain after the last entry.
    pub chain: Chain,
}

/// Reason why a tail cannot be followed further on this connection.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TailError {
    /// An entry is missing.
    #[error("the tail has a gap: expected sequence {expected}, received {found}")]
    Gap {
        /// Expected sequence.
        expected: Seq,
        /// Received sequence.
        found: Seq,
    },
}

/// Two states that should be equal differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state digest differs from the datastore's at sequence {seq}: {mine} here, {theirs} there")]
pub struct Divergence {
    /// Sequence of the states.
    pub seq: Seq,
    /// Digest of the replica.
    pub mine: Digest,
    /// Digest of the datastore.
    pub theirs: Digest,
}

/// Received frames that are invalid.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frames cannot be decoded, or do not continue the chain.
    #[error("cannot decode the tail: {0}")]
    Block(#[from] BadBlock),
    /// The frames do not continue the sequence.
    #[error(transparent)]
    Tail(#[from] TailError),
}

/// Receiver of a tail. Verifies every frame against the chain before any of its contents is used.
#[derive(Debug)]
pub struct Intake {
    chain: Chain,
    is_redacted: bool,
    follower: Follower,
}

impl Intake {
    /// Continues after the entry at `from`, where the chain is `chain`. `is_redacted` states that values are withheld
    /// from this replica.
    #[must_use]
    pub fn new(from: Seq, chain: Chain, is_redacted: bool) -> Intake {
        Intake { chain, is_redacted, follower: Follower::new(from, Digest::ZERO) }
    }

    /// Receives a block of frames and splits it into batches.
    ///
    /// # Errors
    /// If the block is invalid. None of it is used in that case.
    pub fn handle_frames(&mut self, frames: Bytes) -> Result<Vec<EntryBatch>, FrameError> {
        let entries = decode_block(frames, self.chain, self.is_redacted)?;
        let chain = entries.last().map_or(self.chain, |(_, chain)| *chain);
        let runs = self.follower.handle_entries(entries)?;
        self.chain = chain;
        Ok(runs)
    }
}

/// A replica's progress in the tail that it follows.
#[derive(Debug)]
pub struct Follower {
    received: Seq,
    applied: VecDeque<(Seq, Digest)>,
    bookmarks: VecDeque<Bookmark>,
    equal_at: Option<Seq>,
}

impl Follower {
    /// Starts with a state at `seq` that has the digest `digest`.
    #[must_use]
    pub fn new(seq: Seq, digest: Digest) -> Follower {
        Follower { received: seq, applied: VecDeque::from([(seq, digest)]), bookmarks: VecDeque::new(), equal_at: None }
    }

    /// Returns the last sequence at which the replica's digest was equal to the datastore's.
    #[must_use]
    pub fn equal_at(&self) -> Option<Seq> {
        self.equal_at
    }

    /// Returns the last sequence received.
    #[must_use]
    pub fn received(&self) -> Seq {
        self.received
    }

    /// Receives consecutive entries, each with the chain after it, and splits them into batches.
    ///
    /// # Errors
    /// If an entry is missing or repeated. None of the block is used in that case.
    pub fn handle_entries(&mut self, entries: Vec<(Entry, Chain)>) -> Result<Vec<EntryBatch>, TailError> {
        let mut expected = self.received;
        for (entry, _) in &entries {
            expected = expected.next();
            if entry.seq != expected {
                return Err(TailError::Gap { expected, found: entry.seq });
            }
        }
        self.received = expected;
        let mut runs: Vec<EntryBatch> = Vec::new();
        let mut open = false;
        for (entry, chain) in entries {
            let ends = entry.seq.0.is_multiple_of(CHECKPOINT_EVERY);
            match runs.last_mut() {
                Some(run) if open => {
                    run.entries.push(entry);
                    run.chain = chain;
                }
                _ => runs.push(EntryBatch { entries: vec![entry], chain }),
            }
            open = !ends;
        }
        Ok(runs)
    }

    /// Handles the application of a batch: the state is at `seq` with `digest`.
    ///
    /// # Errors
    /// If a bookmark that waited for this sequence has a different digest.
    pub fn handle_applied(&mut self, seq: Seq, digest: Digest) -> Result<(), Divergence> {
        self.applied.push_back((seq, digest));
        if self.applied.len() > DIGESTS_MAX {
            self.applied.pop_front();
        }
        // Bookmarks of an earlier connection, or from the start of this one, may be queued behind later ones.
        let (due, later) = self.bookmarks.drain(..).partition(|bookmark| bookmark.seq <= seq);
        self.bookmarks = later;
        let due: VecDeque<Bookmark> = due;
        due.into_iter().try_for_each(|bookmark| self.compare(bookmark))
    }

    /// Receives a bookmark.
    ///
    /// # Errors
    /// If it differs from the replica's digest at its sequence. A bookmark at a sequence without such a digest is ignored.
    pub fn handle_bookmark(&mut self, bookmark: Bookmark) -> Result<(), Divergence> {
        let reached = self.applied.back().is_some_and(|(seq, _)| *seq >= bookmark.seq);
        if reached {
            return self.compare(bookmark);
        }
        self.bookmarks.push_back(bookmark);
        if self.bookmarks.len() > DIGESTS_MAX {
            self.bookmarks.pop_front();
        }
        Ok(())
    }

    fn compare(&mut self, Bookmark { seq, digest: theirs }: Bookmark) -> Result<(), Divergence> {
        if fault_injection::is(Bug::IgnoreDivergence) {
            return Ok(());
        }
        match self.applied.iter().find(|(at, _)| *at == seq) {
            Some((_, mine)) if *mine != theirs => Err(Divergence { seq, mine: *mine, theirs }),
            Some(_) => {
                self.equal_at = self.equal_at.max(Some(seq));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use gravwell_model::{EntryBody, MemberName};

    fn entries(from: u64, to: u64) -> Vec<(Entry, Chain)> {
        let entry = |seq| Entry {
            seq: Seq(seq),
            time_ms: 0,
            member: MemberName::new("m").expect("name"),
            body: EntryBody::Unknown { kind: 9, payload: Bytes::new() },
        };
        (from..=to).map(|seq| (entry(seq), [(seq % 251) as u8; 16])).collect()
    }

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    #[test]
    fn p02_runs_are_gap_free_and_end_at_checkpoints() {
        let mut follower = Follower::new(Seq(1000), digest(0));
        let runs = follower.handle_entries(entries(1001, 1030)).expect("consecutive");
        let ends: Vec<_> = runs.iter().map(|run| run.entries.last().expect("entry").seq.0).collect();
        assert_eq!(ends, [1024, 1030]);
        assert_eq!(runs[0].chain, [(1024 % 251) as u8; 16]);
        let gap = follower.handle_entries(entries(1032, 1033));
        assert_eq!(gap, Err(TailError::Gap { expected: Seq(1031), found: Seq(1032) }));
        assert!(follower.handle_entries(entries(1030, 1031)).is_err(), "a repeated entry is an error");
        assert_eq!(follower.received(), Seq(1030));
    }

    #[test]
    fn p09_a_different_digest_is_noticed_whichever_comes_first() {
        let mut follower = Follower::new(Seq(0), digest(0));
        assert_eq!(follower.handle_bookmark(Bookmark { seq: Seq(5), digest: digest(5) }), Ok(()));
        assert_eq!(follower.handle_applied(Seq(5), digest(5)), Ok(()));
        assert_eq!(follower.handle_bookmark(Bookmark { seq: Seq(7), digest: digest(7) }), Ok(()));
        assert!(follower.handle_applied(Seq(7), digest(8)).is_err());
        assert_eq!(follower.handle_applied(Seq(9), digest(9)), Ok(()));
        assert!(follower.handle_bookmark(Bookmark { seq: Seq(9), digest: digest(1) }).is_err());
        assert_eq!(
            follower.handle_bookmark(Bookmark { seq: Seq(6), digest: digest(1) }),
            Ok(()),
            "no local digest at that sequence"
        );
    }

    #[test]
    fn p09_a_bookmark_behind_a_later_one_is_compared_in_time() {
        let mut follower = Follower::new(Seq(0), digest(0));
        for (seq, byte) in [(9, 9), (5, 1)] {
            assert_eq!(follower.handle_bookmark(Bookmark { seq: Seq(seq), digest: digest(byte) }), Ok(()));
        }
        assert!(follower.handle_applied(Seq(5), digest(5)).is_err());
    }
}
