//! Serving of a tail: selects the blocks to send to a subscriber.
//!
//! Recent batches are in a [`Ring`], encoded once and shared by all subscribers. Older entries are read from segments.
//! Below the horizon, only the snapshot is available. No entry is ever skipped for a subscriber.

use std::collections::VecDeque;

use bytes::Bytes;

use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Chain, Seq};

/// Consecutive committed entries in their encoded form.
#[derive(Clone, Debug)]
pub struct Block {
    /// First sequence.
    pub first: Seq,
    /// Last sequence.
    pub last: Seq,
    /// Concatenated log frames.
    pub bytes: Bytes,
    /// Chain after the last entry.
    pub chain: Chain,
}

/// Recent-batch cache: the newest blocks, limited by their total size.
#[derive(Debug)]
pub struct Ring {
    blocks: VecDeque<Block>,
    bytes: usize,
    bytes_max: usize,
}

impl Ring {
    /// Creates an empty ring for about `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Ring {
        Ring { blocks: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Adds the next block. If it does not follow the last one, the ring is emptied first.
    pub fn push(&mut self, block: Block) {
        if self.blocks.back().is_some_and(|last| last.last.next() != block.first) {
            self.blocks.clear();
            self.bytes = 0;
        }
        self.bytes += block.bytes.len();
        self.blocks.push_back(block);
        while self.bytes > self.bytes_max && self.blocks.len() > 1 {
            if let Some(old) = self.blocks.pop_front() {
                self.bytes -= old.bytes.len();
            }
        }
    }

    /// Returns the blocks after `from`, up to about `bytes_max` bytes; `None` if the ring does not reach back that far
    /// or if `from` is within a block.
    #[must_use]
    pub fn after(&self, from: Seq, bytes_max: usize) -> Option<Vec<Block>> {
        let start = self.blocks.partition_point(|block| block.first <= from);
        let first = self.blocks.get(start)?;
        if first.first != from.next() {
            return None;
        }
        let mut taken = 0;
        let fits = |block: &&Block| {
            let fits = taken == 0 || taken + block.bytes.len() <= bytes_max;
            taken += block.bytes.len();
            fits
        };
        Some(self.blocks.range(start..).take_while(fits).cloned().collect())
    }
}

/// Action for a subscriber that has all entries up to `from`.
#[derive(Clone, Debug)]
pub enum Next {
    /// There is nothing to send: wait.
    Wait,
    /// Send these blocks.
    Send(Vec<Block>),
    /// Read the entries after this sequence from the log.
    Read(Seq),
    /// The entries are below the horizon: request the subscriber to fetch a snapshot.
    Compacted,
}

/// Returns the next action for a subscriber that has all entries up to `from`.
#[must_use]
pub fn next(ring: &Ring, from: Seq, head: Seq, horizon: Seq, bytes_max: usize) -> Next {
    if from >= head {
        return Next::Wait;
    }
    if let Some(blocks) = ring.after(from, bytes_max) {
        return Next::Send(blocks);
    }
    if fault_injection::is(Bug::SkipRingGap)
        && let Some(oldest) = ring.blocks.front()
        && oldest.first > from
    {
        return Next::Send(vec![oldest.clone()]);
    }
    if from < horizon && fault_injection::is(Bug::SkipToHorizon) {
        return Next::Read(horizon);
    }
    if from < horizon { Next::Compacted } else { Next::Read(from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u64, last: u64) -> Block {
        Block { first: Seq(first), last: Seq(last), bytes: Bytes::from(vec![0; 10]), chain: [0; 16] }
    }

    #[test]
    fn p02_ring_then_segments_then_snapshot() {
        let mut ring = Ring::new(30);
        for first in [1, 4, 7, 10] {
            ring.push(block(first, first + 2));
        }
        let head = Seq(12);
        assert!(matches!(next(&ring, Seq(12), head, Seq(0), 100), Next::Wait));
        assert!(matches!(next(&ring, Seq(0), head, Seq(0), 100), Next::Read(Seq(0))), "first block was evicted");
        assert!(matches!(next(&ring, Seq(0), head, Seq(2), 100), Next::Compacted));
        assert!(matches!(next(&ring, Seq(4), head, Seq(0), 100), Next::Read(Seq(4))), "within a block");
        let Next::Send(blocks) = next(&ring, Seq(3), head, Seq(3), 25) else { panic!("expected blocks") };
        assert_eq!(blocks.iter().map(|b| b.first.0).collect::<Vec<_>>(), [4, 7]);
        let Next::Send(blocks) = next(&ring, Seq(6), head, Seq(3), 1) else { panic!("expected one block") };
        assert_eq!(blocks.len(), 1, "a block larger than the bound is still sent");
    }

    #[test]
    fn a_gap_empties_the_ring() {
        let mut ring = Ring::new(1000);
        ring.push(block(1, 3));
        ring.push(block(9, 9));
        assert!(ring.after(Seq(0), 100).is_none());
        assert_eq!(ring.after(Seq(8), 100).expect("block").len(), 1);
    }
}
