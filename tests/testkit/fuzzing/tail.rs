//! Both ends of a tail: the recent-batch cache that serves it, and the follower that ingests it.

use bytes::Bytes;

use super::steps::Steps;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::{Chain, Digest, Entry, EntryBody, MemberName, Seq};
use gravwell_protocol::CHECKPOINT_EVERY;
use gravwell_protocol::feed::{Block, Next, Ring, next};
use gravwell_protocol::tail::{Follower, TailError};

fn entry(seq: u64) -> (Entry, Chain) {
    let member = MemberName::new("m").expect("invariant: a valid name");
    let body = EntryBody::Unknown { kind: 9, payload: Bytes::new() };
    (Entry { seq: Seq(seq), time_ms: 0, member, body }, chain_at(seq))
}

fn chain_at(seq: u64) -> Chain {
    u128::from(seq).to_le_bytes()
}

/// Returns the digest of a state at `seq`, or a different one.
fn digest_at(seq: u64, right: bool) -> Digest {
    let mut bytes = [u8::from(!right); 32];
    bytes[..8].copy_from_slice(&seq.to_le_bytes());
    Digest::from_bytes(bytes)
}

/// Blocks with gaps and repeats, batches applied late, and bookmarks that are early or late, correct or wrong.
pub fn follower(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let start = CHECKPOINT_EVERY - steps.below(20);
    let mut follower = Follower::new(Seq(start), digest_at(start, true));
    let (mut received, mut waiting) = (start, std::collections::VecDeque::new());
    let (mut applied, mut wrong) = (vec![start], Vec::<u64>::new());
    while !steps.is_done() {
        match steps.below(4) {
            0 => {
                let first = (received + 1 + steps.below(3)).saturating_sub(steps.below(3));
                let mut block: Vec<_> = (first..=first + steps.below(40)).map(entry).collect();
                let is_torn = block.len() > 2 && steps.one_in(4);
                if is_torn {
                    block.remove(1);
                }
                let good = first == received + 1 && !is_torn;
                match follower.handle_entries(block.clone()) {
                    Ok(runs) => {
                        assert!(good, "a gap was accepted: {first} after {received}");
                        let ends = runs.iter().map(|run| run.entries.last().map_or(0, |last| last.seq.0));
                        let ends: Vec<u64> = ends.collect();
                        assert!(runs.iter().zip(&ends).all(|(run, end)| run.chain == chain_at(*end)));
                        let inner = runs.iter().flat_map(|run| run.entries.iter().rev().skip(1));
                        assert!(inner.into_iter().all(|entry| !entry.seq.0.is_multiple_of(CHECKPOINT_EVERY)));
                        let all: Vec<Entry> = runs.into_iter().flat_map(|run| run.entries).collect();
                        assert!(all.iter().eq(block.iter().map(|(entry, _)| entry)), "the entries are unchanged");
                        received = block.last().map_or(received, |(entry, _)| entry.seq.0);
                        waiting.extend(ends);
                    }
                    Err(TailError::Gap { expected, found }) => assert!(!good && expected != found),
                }
                assert_eq!(follower.received(), Seq(received), "no entry is accepted after an error");
            }
            1 | 2 => {
                let Some(seq) = waiting.pop_front() else { continue };
                applied.push(seq);
                let result = follower.handle_applied(Seq(seq), digest_at(seq, true));
                assert!(
                    result.is_ok() || wrong.iter().any(|at| applied.contains(at)),
                    "no difference, but got {result:?}"
                );
                assert!(result.is_err() || !wrong.contains(&seq), "a difference at {seq} was not detected");
                if result.is_err() {
                    return;
                }
            }
            _ => {
                let (seq, right) = ((received + 4).saturating_sub(steps.below(40)), !steps.one_in(3));
                let result = follower.handle_bookmark(Bookmark { seq: Seq(seq), digest: digest_at(seq, right) });
                let is_known = applied.iter().rev().take(64).any(|at| *at == seq);
                assert_eq!(result.is_err(), is_known && !right, "a bookmark at {seq}: {result:?}");
                if result.is_err() {
                    return;
                }
                if !right && applied.last().is_some_and(|last| *last < seq) {
                    wrong.push(seq);
                }
                // The number of waiting bookmarks is bounded; which ones are evicted is unspecified.
                if wrong.len() > 8 {
                    return;
                }
            }
        }
    }
}

/// Blocks of any size, pushed with and without gaps, and subscribers at any position. No subscriber may skip entries.
pub fn ring(bytes: &[u8]) {
    let mut steps = Steps::new(bytes);
    let ring_bytes = usize::try_from(steps.below(200)).unwrap_or_default();
    let (mut ring, mut head, mut horizon) = (Ring::new(ring_bytes), 0, 0);
    while !steps.is_done() {
        match steps.below(4) {
            0 | 1 => {
                let first = head + 1 + if steps.one_in(6) { steps.below(5) } else { 0 };
                let last = first + steps.below(6);
                let bytes = Bytes::from(vec![0; 1 + usize::try_from(steps.below(60)).unwrap_or_default()]);
                ring.push(Block { first: Seq(first), last: Seq(last), bytes, chain: chain_at(last) });
                head = last;
            }
            2 => horizon = (horizon + steps.below(10)).min(head),
            _ => {
                let from = (head + 2).saturating_sub(steps.below(40));
                let bytes_max = usize::try_from(steps.below(120)).unwrap_or_default();
                match next(&ring, Seq(from), Seq(head), Seq(horizon), bytes_max) {
                    Next::Wait => assert!(from >= head),
                    Next::Read(after) => assert!(after == Seq(from) && from >= horizon && from < head),
                    Next::Compacted => assert!(from < horizon),
                    Next::Send(blocks) => {
                        let mut expected = Seq(from).next();
                        for block in &blocks {
                            assert_eq!(block.first, expected, "entries would be skipped");
                            expected = block.last.next();
                        }
                        assert!(!blocks.is_empty() && expected.0 <= head + 1);
                        let sent: usize = blocks.iter().map(|block| block.bytes.len()).sum();
                        assert!(blocks.len() == 1 || sent <= bytes_max);
                    }
                }
            }
        }
    }
}
