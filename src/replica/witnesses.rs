//! Other evidence in a replica's directory of how far its state came. It is checked at every start, because the
//! high-water mark may be lost, or go back, together with the state.
//!
//! In normal operation, even after a crash, none of it is newer than the state:
//!
//! - `current` names a state that exists;
//! - `terms`, the membership list and the encrypted CA backup are written when a state of that log and generation is
//!   durable;
//! - `proof` carries the position of a mark that was written before;
//! - a rejection is written to the outbox journal when the state that knows it is durable.

use std::path::Path;

use gravwell_model::Position;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_state::StateMeta;
use gravwell_transport::trust::{Identity, KeptRoster, Proof};

use super::directory::{self, Directory};
use super::high_water_mark::Mark;
use super::proofs;
use super::terms::Terms;

/// The files of a directory that show how far its state came.
pub struct Witnesses {
    /// Message about a state that `current` names and that is missing.
    missing: Option<String>,
    /// `None` if this replica was never connected.
    terms: Result<Option<Terms>, String>,
    /// `None` if this replica was never connected, or its datastore signs nothing.
    proof: Result<Option<Proof>, String>,
    reached: Option<Position>,
    /// Whether the datastore has sent its membership list, or an encrypted CA backup.
    was_sent: bool,
}

impl Witnesses {
    /// Returns evidence from only these two: the last terms, and the position of the last mark, as stored next to the
    /// last signed position.
    #[must_use]
    pub fn kept(terms: Option<Terms>, reached: Option<Position>) -> Witnesses {
        Witnesses { missing: None, terms: Ok(terms), proof: Ok(None), reached, was_sent: false }
    }

    /// Returns the terms that the datastore sent last, if they can be read.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn terms(&self) -> Option<Terms> {
        self.terms.as_ref().ok().and_then(Option::clone)
    }

    /// Returns the position of the last mark, as recorded elsewhere.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn reached(&self) -> Option<Position> {
        self.reached
    }

    /// Reads the evidence. `mark` is the high-water mark, if it can be read.
    pub(super) fn of(directory: &Directory, mark: Option<&Mark>) -> Witnesses {
        let path = directory.path();
        let (proof, reached) = match proofs::read(path) {
            Ok(kept) => (Ok(kept.as_ref().map(|kept| kept.proof.clone())), kept.and_then(|kept| kept.reached)),
            Err(error) => (Err(error), None),
        };
        let was_sent = KeptRoster::is_kept(path)
            || Identity::escrow(path).exists()
            || Identity::damaged_escrows(path).is_ok_and(|damaged| !damaged.is_empty());
        Witnesses { missing: missing(path, mark), terms: Terms::load(path), proof, reached, was_sent }
    }

    /// Returns whether this replica was ever connected. By then a state was durable.
    pub(super) fn was_connected(&self) -> bool {
        self.was_sent || !matches!((&self.terms, &self.proof), (Ok(None), Ok(None)))
    }

    /// Describes how the state at `found` (`None` if there is none) falls short of the former one; `None` if nothing
    /// shows a loss.
    pub(super) fn contradict(&self, found: Option<&StateMeta>) -> Option<String> {
        if fault_injection::is(Bug::RollbackUnnoticed) || fault_injection::is(Bug::WitnessesNotAsked) {
            return None;
        }
        // A state is in place before `current` names it, so a missing one did exist, even if it was never filled.
        if self.missing.is_some() {
            return self.missing.clone();
        }
        match found {
            None => self.contradict_absence(),
            Some(found) => self.contradict_position(found),
        }
    }

    fn contradict_absence(&self) -> Option<String> {
        if let Some(Position { seq, generation, .. }) = self.reached {
            return Some(format!(
                "the state is lost: `proof` shows that it was at sequence {seq} of generation {generation}"
            ));
        }
        let connected = match &self.terms {
            Ok(Some(terms)) => format!("to log {}, generation {} (`terms`)", terms.log_id, terms.generation),
            Err(problem) => format!("before ({problem})"),
            Ok(None) if self.was_connected() => "before (`proof`, `identity/roster` or `identity/escrow`)".to_owned(),
            Ok(None) => return None,
        };
        Some(format!("the state is lost: this replica was connected {connected}"))
    }

    fn contradict_position(&self, found: &StateMeta) -> Option<String> {
        let (seq, generation) = (found.seq, found.generation);
        if let Some(reached) = self.reached.filter(|reached| is_behind(found, reached)) {
            return Some(format!(
                "the state went back: `proof` shows that it was at sequence {} of generation {}, and it is at {seq} \
                 of {generation}",
                reached.seq, reached.generation
            ));
        }
        let Ok(Some(terms)) = &self.terms else { return None };
        if terms.log_id != found.log_id {
            return Some(format!(
                "the state was replaced: it is of log {}, and `terms` shows that this replica was last connected to \
                 log {}",
                found.log_id, terms.log_id
            ));
        }
        (terms.generation > generation).then(|| {
            format!(
                "the state went back: `terms` shows that it was in generation {}, and it is in {generation}",
                terms.generation
            )
        })
    }
}

/// Returns whether a state precedes a position that it once had. A state of another log, or of a later generation that
/// does not descend from that of the position, was fetched since then.
fn is_behind(found: &StateMeta, reached: &Position) -> bool {
    if found.log_id != reached.log_id {
        return false;
    }
    if found.generation <= reached.generation {
        return (found.generation, found.seq) < (reached.generation, reached.seq);
    }
    let is_descended = found.lineage.iter().any(|entry| entry.generation == reached.generation);
    is_descended && Mark::new(String::new(), *reached, Vec::new()).loss(Some(found)).is_some()
}

/// Describes a state that `current` names and that is missing. If there is a mark, only a state later than the marked
/// one counts: an earlier one was replaced.
fn missing(path: &Path, mark: Option<&Mark>) -> Option<String> {
    let name = directory::missing_current(path)?;
    if name.is_empty() {
        return Some("the state is lost: `current` is corrupt, and there is no state".into());
    }
    let marked = mark.and_then(|mark| directory::number(Path::new(&mark.state)));
    let is_later = directory::number(Path::new(&name)) > marked;
    is_later.then(|| format!("the state is lost: `current` names {name}, which is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Chain, Digest, DigestSet, Generation, LineageEntry, LogId, Seq};

    fn meta(log: u8, generation: u64, seq: u64) -> StateMeta {
        let entry =
            |(generation, shared_to)| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        StateMeta {
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            lineage: [(1, 0), (2, 3), (4, 8)]
                .into_iter()
                .filter(|(number, _)| *number <= generation)
                .map(entry)
                .collect(),
            seq: Seq(seq),
            chain: Chain::default(),
            time_ms: 0,
            digests: DigestSet::default(),
            digest: Digest::ZERO,
            is_redacted: false,
        }
    }

    #[test]
    fn p13_a_state_before_a_position_that_it_had_is_behind() {
        let behind = |(log, generation, seq), reached: (u64, u64)| {
            is_behind(&meta(log, generation, seq), &meta(1, reached.0, reached.1).position())
        };
        assert!(behind((1, 1, 4), (1, 5)) && !behind((1, 1, 5), (1, 5)) && !behind((1, 1, 6), (1, 5)));
        assert!(behind((1, 1, 9), (2, 5)), "an earlier generation");
        assert!(behind((1, 2, 2), (1, 5)) && !behind((1, 2, 3), (1, 5)), "a later generation that gave up the rest");
        assert!(!behind((1, 4, 1), (3, 5)), "a history that diverged from the previous one, which is archived");
        assert!(!behind((2, 1, 1), (1, 5)), "another log");
    }
}
