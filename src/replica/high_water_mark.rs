//! The high-water mark: how far a replica's state came, stored next to it.
//!
//! A state that lost its journal, or was replaced by an older copy, is sound in itself. The mark shows that it went
//! back. Such a state is out of date, so the replica is unhealthy until it has caught up with the datastore once.
//!
//! `high-water` is a line of JSON and, in the next line, the BLAKE3 of the first. It is replaced after the state was
//! made durable, about once a second while it changes. So the state may be ahead of the mark, never behind.

use serde::{Deserialize, Serialize};

use gravwell_env::checksummed_text;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::shared_after;
use gravwell_model::{Origin, OriginCounter, Position, Seq};
use gravwell_protocol::outbox::Outbox;
use gravwell_state::{StateError, StateMeta, StateStore};

const VERSION: u32 = 1;
/// Most origins in a mark. Only those matter whose transactions the outbox journal may hold, which are few.
const ORIGINS_MAX: usize = 4096;

/// A position that a state had durably reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    version: u32,
    /// Name of the state's directory, in case `current` cannot provide it; empty if unknown.
    #[serde(default)]
    pub state: String,
    /// Durable position of the state.
    pub position: Position,
    /// Counters up to which the state had decided the origins that the outbox still holds.
    #[serde(default)]
    pub decided: Vec<(Origin, OriginCounter)>,
}

impl Mark {
    /// Returns the mark of a state and its outbox; `None` if the state has no position.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub(super) fn of(state: &StateStore, name: String, outbox: &Outbox) -> Result<Option<Mark>, StateError> {
        let Some(position) = state.position() else { return Ok(None) };
        let mut decided = Vec::new();
        for origin in outbox.known_origins().into_iter().take(ORIGINS_MAX) {
            if let Some(row) = state.origin(origin)? {
                decided.push((origin, row.last_counter));
            }
        }
        Ok(Some(Mark::new(name, position, decided)))
    }

    /// Returns a mark of the state in the directory `state`.
    #[must_use]
    pub fn new(state: String, position: Position, decided: Vec<(Origin, OriginCounter)>) -> Mark {
        Mark { version: VERSION, state, position, decided }
    }

    /// Returns the contents of the file.
    #[must_use]
    pub fn encode(&self) -> String {
        checksummed_text::seal(&serde_json::to_string(self).expect("invariant: a mark has text keys only"))
    }

    /// Returns contents that replace a lost mark: the evidence of a loss. They are read as corruption, so that a later
    /// start knows of the loss even when the evidence is gone.
    #[must_use]
    pub fn lost(what: &str) -> String {
        checksummed_text::seal(&serde_json::json!({ "lost": what }).to_string())
    }

    /// Parses the contents of a file.
    ///
    /// # Errors
    /// Describes the problem with the contents.
    pub fn decode(text: &str) -> Result<Mark, String> {
        let text = checksummed_text::open(text)?;
        if let Ok(Noted { lost }) = serde_json::from_str(text) {
            return Err(lost);
        }
        let mark: Mark = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if mark.version != VERSION {
            return Err(format!("version {} is unknown to this version", mark.version));
        }
        Ok(mark)
    }

    /// Describes what a state that had reached this mark has lost; `None` if nothing.
    #[must_use]
    pub fn loss(&self, found: Option<&StateMeta>) -> Option<String> {
        if fault_injection::is(Bug::RollbackUnnoticed) {
            return None;
        }
        let Position { log_id, generation, seq, .. } = self.position;
        let Some(found) = found else {
            return Some(format!(
                "the state is lost: it was at sequence {seq} of log {log_id}, generation {generation}"
            ));
        };
        let is_there = match self.shared_to(found) {
            _ if found.log_id == log_id && found.generation == generation => {
                found.seq > seq || found.position() == self.position
            }
            // A later generation continues from the part shared with the marked one, and gave up the rest for a
            // known reason.
            Some(shared_to) => found.seq >= seq.min(shared_to),
            None => false,
        };
        if is_there {
            return None;
        }
        let (at, generation_at) = (found.seq, found.generation);
        if (at, generation_at) == (seq, generation) {
            let (was, is) = (self.position.digest, found.digest);
            return Some(format!("the state was replaced: at sequence {seq} its digest was {was} and is now {is}"));
        }
        Some(format!(
            "the state went back: it was at sequence {seq} of generation {generation} and is now at {at} of \
             {generation_at}"
        ))
    }

    /// Returns the last sequence that a state's later generation shares with the marked one; `None` if it does not
    /// descend from it.
    fn shared_to(&self, found: &StateMeta) -> Option<Seq> {
        let Position { log_id, generation, .. } = self.position;
        let descends = found.log_id == log_id && found.lineage.iter().any(|entry| entry.generation == generation);
        descends.then(|| shared_after(&found.lineage, generation).unwrap_or(Seq(u64::MAX)))
    }

    /// Returns the sequence of the state.
    #[must_use]
    pub fn seq(&self) -> Seq {
        self.position.seq
    }
}

/// File contents written by [`Mark::lost`].
#[derive(Deserialize)]
struct Noted {
    lost: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Digest, DigestSet, Generation, LineageEntry, LogId};

    const FIRST: Generation = Generation(1);
    const SECOND: Generation = Generation(2);
    const THIRD: Generation = Generation(3);

    fn meta(generation: Generation, seq: u64) -> StateMeta {
        let entry = |(generation, shared_to)| LineageEntry { generation, shared_to: Seq(shared_to) };
        let lineage = [(FIRST, 0), (SECOND, 3), (THIRD, 8)].into_iter();
        StateMeta {
            log_id: LogId([1; 16]),
            generation,
            lineage: lineage.filter(|(earlier, _)| *earlier <= generation).map(entry).collect(),
            seq: Seq(seq),
            chain: [3; 16],
            time_ms: 0,
            digests: DigestSet::default(),
            digest: Digest::ZERO,
            is_redacted: false,
        }
    }

    fn mark(generation: Generation, seq: u64) -> Mark {
        let position = meta(generation, seq).position();
        Mark::new("state-0001".into(), position, vec![(Origin([2; 16]), OriginCounter(3))])
    }

    #[test]
    fn p09_a_state_that_went_back_is_told_from_one_that_went_on() {
        let loss = |mark: &Mark, meta: Option<StateMeta>| mark.loss(meta.as_ref()).is_some();
        assert!(!loss(&mark(FIRST, 5), Some(meta(FIRST, 5))) && !loss(&mark(FIRST, 5), Some(meta(FIRST, 6))));
        assert!(loss(&mark(FIRST, 5), Some(meta(FIRST, 4))) && loss(&mark(FIRST, 5), None));
        assert!(
            !loss(&mark(FIRST, 5), Some(meta(SECOND, 3))),
            "the log continued in another generation, which is followed"
        );
        assert!(loss(&mark(FIRST, 5), Some(meta(SECOND, 2))), "the later generation has entries that this state lacks");
        assert!(!loss(&mark(FIRST, 5), Some(meta(THIRD, 3))), "the first of two later generations gave up more");
        assert!(loss(&mark(SECOND, 7), Some(meta(THIRD, 6))) && !loss(&mark(SECOND, 9), Some(meta(THIRD, 8))));
        assert!(loss(&mark(SECOND, 3), Some(meta(FIRST, 5))), "an older copy does not know the generation");
        let other = StateMeta { chain: [4; 16], ..meta(FIRST, 5) };
        assert!(loss(&mark(FIRST, 5), Some(other)), "the same sequence of another history");
        assert!(loss(&mark(FIRST, 5), Some(StateMeta { log_id: LogId([9; 16]), ..meta(FIRST, 9) })));
    }

    #[test]
    fn p10_no_bit_of_a_mark_leads_to_another_mark() {
        let good = mark(SECOND, 7).encode().into_bytes();
        assert_eq!(Mark::decode(std::str::from_utf8(&good).expect("text")), Ok(mark(SECOND, 7)));
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let Ok(text) = std::str::from_utf8(&bad) else { continue };
                assert!(
                    Mark::decode(text).is_err() || Mark::decode(text) == Ok(mark(SECOND, 7)),
                    "byte {at}, bit {bit}"
                );
            }
            assert!(at + 1 == good.len() || Mark::decode(std::str::from_utf8(&good[..at]).expect("text")).is_err());
        }
    }
}
