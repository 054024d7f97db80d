//! Rebuilds a datastore with a lost log from its members: collects their states, chooses the most advanced one, and
//! builds the new log.
//!
//! The log keeps its identity and starts a new generation, which shares everything up to the chosen member's position.
//! It cannot be known whether later entries were acknowledged. Members at or behind that position continue normally. A
//! member with more entries rejoins automatically: see `replica/rejoin.rs`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_env::real_fs::RealFs;
use gravwell_log::repair::LOG;
use gravwell_log::salvage::salvage;
use gravwell_model::codec::admin::GenerationInfo;
use gravwell_model::position::Divergence;
use gravwell_model::{Digest, Generation, LineageEntry, LogId, Position, Seq};
use gravwell_state::{Fork, StateError, StateMeta, StateStore, descent};
use gravwell_transport::trust::{Authorities, LogMark, Proof, Role};

use super::index;
use super::open::{OpenError, STATE};
use super::repair::{RepairError, RepairOptions, RepairReport, agrees, is_given_up, repair};

/// A state that a member or a directory offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DonorOffer {
    /// Unique name in this recovery: the member's name, with its location if several offers have the same name.
    pub name: String,
    /// Name of the member.
    pub member: String,
    /// ID of its log.
    pub log_id: LogId,
    /// Generation of its log.
    pub generation: Generation,
    /// Ancestry of the generation.
    #[serde(skip)]
    pub lineage: Vec<LineageEntry>,
    /// Position of the state.
    pub seq: Seq,
    /// Digest of the state.
    pub digest: Digest,
    /// Commit time of its last entry, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Number of objects in the state.
    pub objects: u64,
    /// Role of the member; absent for a directory, which the operator has named.
    pub role: Option<Role>,
    /// Reason why it is used only if named explicitly or if there is no other; absent for a normal offer.
    pub reserve: Option<String>,
    /// The last position signed by the datastore that the member has.
    pub proof: Option<Proof>,
    /// Reason why it cannot be a source; absent if it can.
    pub unfit: Option<String>,
}

impl DonorOffer {
    /// Creates the offer of a state.
    #[must_use]
    pub fn of(name: &str, meta: &Arc<StateMeta>) -> DonorOffer {
        DonorOffer {
            name: name.to_owned(),
            member: name.to_owned(),
            log_id: meta.log_id,
            generation: meta.generation,
            lineage: meta.lineage.clone(),
            seq: meta.seq,
            digest: meta.digest,
            time_ms: meta.time_ms,
            objects: meta.digests.collections.values().map(|sum| sum.objects).sum(),
            role: None,
            reserve: meta.is_redacted.then(|| "it belongs to a reader and lacks secret values".to_owned()),
            proof: None,
            unfit: None,
        }
    }

    /// Renames the offer to distinguish it from others of the same member. Copies of one directory may have diverged.
    pub fn distinguish(&mut self, place: impl fmt::Display) {
        self.name = format!("{} in {place}", self.member);
    }

    /// Drops a proof that was not signed by one of the datastore's CAs or is of another log. Marks the offer as unfit
    /// if its state differs from the state that was signed at its sequence.
    pub fn judge_proof(&mut self, authorities: &Authorities) {
        let log_id = self.log_id;
        self.proof = self.proof.take().filter(|proof| proof.position.log_id == log_id && authorities.has_signed(proof));
        let Some(Position { generation, seq, digest, .. }) = self.proof.as_ref().map(|proof| proof.position) else {
            return;
        };
        if (generation, seq) == (self.generation, self.seq) && digest != self.digest {
            self.unfit = Some(format!("its state differs from the one that the datastore signed at {seq}"));
        }
    }

    /// Returns the sort key of the offer.
    fn rank(&self) -> (Generation, Seq) {
        (self.generation, self.seq)
    }

    /// Returns whether the datastore has signed exactly this state.
    fn is_signed_by(&self, proof: &Proof) -> bool {
        let Position { log_id, generation, seq, digest, .. } = proof.position;
        (log_id, generation, seq, digest) == (self.log_id, self.generation, self.seq, self.digest)
    }
}

/// Reason why no offer was chosen.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoSource {
    /// No member offers a state.
    #[error("no member with a state was found; pass member directories with --from, or wait longer with --wait")]
    Nobody,
    /// The members belong to several logs.
    #[error("the members belong to different logs ({0}); choose with --member, or pass only the right ones")]
    SeveralLogs(String),
    /// Equal positions with different states.
    #[error(
        "{0} and {1} are both at sequence {2} with different digests, so one of them is wrong; choose with --member"
    )]
    Disagree(String, String, Seq),
    /// An older generation holds more than the most advanced offer shares with it.
    #[error(
        "{older} of generation {generation} is at sequence {seq}, past the history that {newest} shares with it: a \
         restore or recovery abandoned it; choose with --member {newest} or --member {older}"
    )]
    OlderHasMore {
        /// The offer that would be chosen.
        newest: String,
        /// The offer that holds more.
        older: String,
        /// Generation of the older offer.
        generation: Generation,
        /// Position of the older offer.
        seq: Seq,
    },
    /// Neither generation descends from the other: two recoveries or restores were done independently.
    #[error(
        "{newest} is of generation {}, {other} of generation {}, and neither descends from the other; they share the \
         history up to {shared_to} only; choose the one to keep with --member {newest} or --member {other}; the other \
         member then pushes its local changes again or archives them when it reconnects (`gravwell-logctl quarantine`)",
        .generations.0, .generations.1
    )]
    Apart {
        /// The offer that would be chosen.
        newest: String,
        /// The offer of the other branch.
        other: String,
        /// Generations of `newest` and `other`.
        generations: (Generation, Generation),
        /// Last sequence that both have.
        shared_to: Seq,
    },
    /// No evidence confirms a generation.
    #[error(
        "{name} is of generation {generation}, at sequence {seq}; neither a signed position, nor the member registry, \
         nor most of the webserver members know that generation; choose it with --member {name}, or choose another one"
    )]
    UnknownGeneration {
        /// The offer that would be chosen.
        name: String,
        /// Generation of the offer.
        generation: Generation,
        /// Position of the offer.
        seq: Seq,
    },
    /// Only the member itself claims the most advanced state.
    #[error(
        "nothing confirms that the state of {name} at sequence {seq} is the log's: the last sequence that the \
         datastore signed is {signed}, and no other webserver member has the same state at {seq}; the datastore may \
         have failed during a write, or the member may have invented it; choose it with --member {name}, or another one"
    )]
    Unproven {
        /// The offer that would be chosen.
        name: String,
        /// Position of the offer.
        seq: Seq,
        /// The last signed sequence that any member has a proof of.
        signed: Seq,
    },
    /// A reader proves that it has more than any other member.
    #[error(
        "the reader {name} proves that sequence {seq} was reached, and no other member has it; a log built from its \
         state would lack the secret values, which readers do not receive; choose another member with --member and \
         import the missing changes from the reader's `export`, or stop the reader and pass its directory with --from"
    )]
    ReaderHasMore {
        /// Name of the reader.
        name: String,
        /// Position of the reader.
        seq: Seq,
    },
    /// One offer does not continue the other's history.
    #[error(
        "{chosen} and {other} have different histories of one log: {fork}; choose the one to keep with --member NAME; \
         the other member then pushes its local changes again or archives them when it reconnects (`gravwell-logctl \
         quarantine`)"
    )]
    Forked {
        /// The offer that would be chosen.
        chosen: String,
        /// The offer with entries that the chosen one lacks.
        other: String,
        /// First difference between them.
        fork: Fork,
    },
    /// Two states cannot be compared.
    #[error("cannot compare {chosen} and {other}: {reason}; choose with --member, or leave the damaged one out")]
    Unreadable {
        /// The offer that would be chosen.
        chosen: String,
        /// The offer compared with it.
        other: String,
        /// Cause of the failure.
        reason: String,
    },
}

/// Returns the index of the most advanced offer. Readers are a source only if named explicitly. A member's claims are
/// trusted only as far as a signature, the registry (`mark`) or other members confirm them.
///
/// # Errors
/// Returns an error if there is no source, if the offers contradict each other, or if nothing confirms the most
/// advanced one.
pub fn choose(offers: &[DonorOffer], mark: Option<LogMark>) -> Result<usize, NoSource> {
    let is_source = |offer: &DonorOffer| offer.unfit.is_none() && offer.seq > Seq::ZERO;
    let sources =
        || offers.iter().enumerate().filter(|(_, offer)| is_source(offer) && offer.role != Some(Role::Reader));
    let whole: Vec<(usize, &DonorOffer)> = sources().filter(|(_, offer)| offer.reserve.is_none()).collect();
    let fit = if whole.is_empty() { sources().collect() } else { whole };
    let is_proven = |offer: &DonorOffer| offer.proof.as_ref().is_some_and(|proof| offer.is_signed_by(proof));
    // A reader donates no state, but its signed position still proves that entries existed.
    let mut readers = offers.iter().filter(|offer| offer.seq > Seq::ZERO && offer.role == Some(Role::Reader));
    let most = fit.iter().map(|(_, offer)| offer.rank()).max();
    if let Some(reader) = readers.find(|offer| is_proven(offer) && Some(offer.rank()) > most) {
        return Err(NoSource::ReaderHasMore { name: reader.name.clone(), seq: reader.seq });
    }
    let &(best, first) = fit
        .iter()
        .max_by_key(|(index, offer)| (offer.generation, offer.seq, std::cmp::Reverse(*index)))
        .ok_or(NoSource::Nobody)?;
    if let Some((_, other)) = fit.iter().find(|(_, offer)| offer.log_id != first.log_id) {
        let named = |offer: &DonorOffer| format!("{}: {}", offer.name, offer.log_id);
        return Err(NoSource::SeveralLogs(format!("{}, {}", named(first), named(other))));
    }
    let twin = |offer: &DonorOffer| offer.seq == first.seq && offer.generation == first.generation;
    if let Some((_, other)) = fit.iter().find(|(_, offer)| twin(offer) && offer.digest != first.digest) {
        return Err(NoSource::Disagree(first.name.clone(), other.name.clone(), first.seq));
    }
    let apart = |offer: &DonorOffer| Divergence::of(&offer.lineage, &first.lineage);
    if let Some((_, other)) = fit.iter().find(|(_, offer)| apart(offer).is_mutual()) {
        return Err(NoSource::Apart {
            newest: first.name.clone(),
            other: other.name.clone(),
            generations: (first.generation, other.generation),
            shared_to: apart(other).shared_to().unwrap_or_default(),
        });
    }
    // Whether these entries were abandoned on purpose cannot be determined here, so the operator decides.
    let has_more = |offer: &&(usize, &DonorOffer)| offer.1.generation < first.generation && offer.1.seq > first.seq;
    if let Some((_, older)) = fit.iter().find(has_more) {
        return Err(NoSource::OlderHasMore {
            newest: first.name.clone(),
            older: older.name.clone(),
            generation: older.generation,
            seq: older.seq,
        });
    }
    vouch(first, &fit, mark)?;
    Ok(best)
}

/// Checks that independent evidence confirms the most advanced offer. A directory named by the operator is trusted.
fn vouch(first: &DonorOffer, fit: &[(usize, &DonorOffer)], mark: Option<LogMark>) -> Result<(), NoSource> {
    if first.role.is_none() {
        return Ok(());
    }
    let is_agreeing = |offer: &DonorOffer| offer.rank() == first.rank() && offer.digest == first.digest;
    let others = || fit.iter().map(|(_, offer)| *offer).filter(|offer| offer.member != first.member);
    let in_generation = fit.iter().filter(|(_, offer)| offer.generation == first.generation).count();
    let is_registered = mark.is_some_and(|mark| (mark.log_id, mark.generation) == (first.log_id, first.generation));
    let proofs = || fit.iter().filter_map(|(_, offer)| offer.proof.as_ref());
    let of_generation = |proof: &&Proof| proof.position.generation == first.generation;
    let signed = proofs().filter(of_generation).map(|proof| proof.position.seq).max();
    let (name, seq) = (first.name.clone(), first.seq);
    if signed.is_none() && !is_registered && 2 * in_generation <= fit.len() {
        return Err(NoSource::UnknownGeneration { name, generation: first.generation, seq });
    }
    if proofs().any(|proof| first.is_signed_by(proof)) || others().any(is_agreeing) {
        return Ok(());
    }
    Err(NoSource::Unproven { name, seq, signed: signed.unwrap_or_default() })
}

/// Describes offers that claim more than the chosen one.
#[must_use]
pub fn dissent(offers: &[DonorOffer], chosen: usize) -> Vec<String> {
    let first = &offers[chosen];
    let others = offers.iter().filter(|offer| offer.name != first.name && offer.log_id == first.log_id);
    let mut said: Vec<String> = others
        .filter(|offer| offer.rank() > first.rank() || (offer.rank() == first.rank() && offer.digest != first.digest))
        .map(|offer| {
            let (name, seq, generation) = (&offer.name, offer.seq, offer.generation);
            format!("not used: {name} is at sequence {seq} of generation {generation}, digest {}", offer.digest)
        })
        .collect();
    let of_log =
        offers.iter().filter_map(|offer| offer.proof.as_ref()).filter(|proof| proof.position.log_id == first.log_id);
    let signed = of_log.map(|proof| proof.position).max_by_key(|position| (position.generation, position.seq));
    if let Some(position) = signed.filter(|position| (position.generation, position.seq) > first.rank()) {
        let Position { seq, generation, .. } = position;
        said.push(format!(
            "LOST: the datastore signed sequence {seq} of generation {generation}, and no usable member has it"
        ));
    }
    said
}

/// Checks that the chosen state continues the history of another member's state.
///
/// # Errors
/// Returns [`NoSource::Forked`] if it does not, and [`NoSource::Unreadable`] if the states cannot be compared.
pub fn check_descent(chosen: (&str, &StateStore), other: &str, state: &StateStore) -> Result<(), NoSource> {
    let compared = state.snapshot().and_then(|earlier| descent::fork(&earlier, &chosen.1.snapshot()?));
    let (chosen, other) = (chosen.0.to_owned(), other.to_owned());
    match compared {
        Ok(None) => Ok(()),
        Ok(Some(fork)) => Err(NoSource::Forked { chosen, other, fork }),
        Err(error) => Err(NoSource::Unreadable { chosen, other, reason: error.to_string() }),
    }
}

/// Checks that a recovery may replace the log in the data directory `path`.
///
/// # Errors
/// Returns an error if a log holds, or may hold, entries. It has to be repaired, not replaced.
pub fn check_empty(path: &Path) -> Result<(), RepairError> {
    let log = path.join(LOG);
    if !log.exists() {
        return Ok(());
    }
    let found = salvage(&RealFs, &log, &mut |_, _| {})?;
    match found.known {
        Some(known) if known > Seq::ZERO => Err(RepairError::NotEmpty { path: log, known }),
        _ => Ok(()),
    }
}

/// Checks the leftover index of the lost log, which is evidence like a member's state. An index that has more entries
/// or a different history is not abandoned silently.
fn check_index(path: &Path, config: &DatastoreConfig, member: &StateStore) -> Result<(), RepairError> {
    let Some(index) = index::inspect_index(path, config).map_err(RepairError::Index)? else { return Ok(()) };
    let unfit = |error: StateError| RepairError::Member(error.to_string());
    let snapshot = member.snapshot().map_err(unfit)?;
    let meta = snapshot.meta().ok_or_else(|| unfit(StateError::Uninitialised))?;
    if index.meta.seq == Seq::ZERO {
        return Ok(());
    }
    if index.meta.log_id != meta.log_id {
        return Err(RepairError::OtherLog { log: index.meta.log_id, member: meta.log_id });
    }
    if is_given_up(&index.meta, &meta.lineage) {
        return Ok(());
    }
    if index.meta.seq > meta.seq {
        let (path, index, member) = (path.join(STATE), index.meta.seq, meta.seq);
        return Err(RepairError::IndexHasMore { path, index, member });
    }
    agrees(&index, &snapshot)
}

/// Returns the sequence of the index in `path` if the index holds more than a history with `lineage` that ends at
/// `seq`. A corrupt index is ignored.
///
/// # Errors
/// Returns an error if the index cannot be read for reasons unrelated to its contents.
pub fn index_beyond(
    path: &Path,
    config: &DatastoreConfig,
    seq: Seq,
    lineage: &[LineageEntry],
) -> Result<Option<Seq>, OpenError> {
    let Some(index) = index::inspect_index(path, config)? else { return Ok(None) };
    // A generation that is not in the history starts after the shared part.
    let is_other = |entry: &&LineageEntry| lineage.iter().all(|known| known.generation != entry.generation);
    let shared = index.meta.lineage.iter().filter(is_other).map(|entry| entry.shared_to).min();
    let ends = shared.map_or(seq, |shared| shared.min(seq));
    Ok(Some(index.meta.seq).filter(|found| *found > ends))
}

/// Rebuilds the log in the data directory `path` from a member's state, in a generation above `above`. `known` are the
/// members' records of how the log's generations started.
///
/// # Errors
/// Returns an error if the state is unsound or the new log cannot be written. Nothing was changed then.
pub fn recover(
    path: &Path,
    config: &DatastoreConfig,
    member: &StateStore,
    above: Generation,
    known: &[GenerationInfo],
    dry_run: bool,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport, RepairError> {
    check_empty(path)?;
    check_index(path, config, member)?;
    let options = RepairOptions { dry_run, accept_loss: true, log_is_lost: true, above, known };
    repair(path, config, member, options, progress)
}

/// Directory for a member's state while the log is built.
#[must_use]
pub fn side(path: &Path) -> PathBuf {
    path.join("state.recover")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(name: &str, log: u8, generation: u64, seq: u64, digest: u8) -> DonorOffer {
        DonorOffer {
            name: name.into(),
            member: name.into(),
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            lineage: Vec::new(),
            seq: Seq(seq),
            digest: Digest::from_bytes([digest; 32]),
            time_ms: 0,
            objects: 0,
            role: None,
            reserve: None,
            proof: None,
            unfit: None,
        }
    }

    fn choose(offers: &[DonorOffer]) -> Result<usize, NoSource> {
        super::choose(offers, None)
    }

    #[test]
    fn p05_the_most_advanced_member_is_chosen_and_contradictions_are_named() {
        let damaged = DonorOffer { unfit: Some("damaged".into()), ..offer("d", 1, 1, 99, 9) };
        let offers = [offer("a", 1, 1, 5, 5), offer("b", 1, 1, 9, 9), offer("c", 1, 1, 9, 9), damaged];
        assert_eq!(choose(&offers), Ok(1));
        assert_eq!(choose(&[offer("a", 1, 1, 9, 5), offer("b", 1, 2, 9, 9)]), Ok(1), "the newer generation");
        let older = choose(&[offer("a", 1, 1, 50, 5), offer("b", 1, 2, 9, 9)]);
        assert!(matches!(older, Err(NoSource::OlderHasMore { .. })), "{older:?}");
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let of_line = |name, generation, shared_to| DonorOffer {
            lineage: vec![entry(1, 0), entry(generation, shared_to)],
            ..offer(name, 1, generation, 9, 9)
        };
        let apart = choose(&[of_line("a", 7, 4), of_line("b", 8, 5)]);
        let Err(NoSource::Apart { newest, other, shared_to, .. }) = apart else { panic!("{apart:?}") };
        assert_eq!((newest.as_str(), other.as_str(), shared_to), ("b", "a", Seq(4)));
        assert_eq!(choose(&[of_line("a", 7, 4), of_line("b", 7, 4)]), Ok(0));
        assert_eq!(choose(&[]), Err(NoSource::Nobody));
        assert_eq!(choose(&[offer("a", 1, 1, 0, 0)]), Err(NoSource::Nobody));
        assert!(matches!(choose(&[offer("a", 1, 1, 5, 5), offer("b", 2, 1, 9, 9)]), Err(NoSource::SeveralLogs(_))));
        assert!(matches!(choose(&[offer("a", 1, 1, 9, 5), offer("b", 1, 1, 9, 9)]), Err(NoSource::Disagree(..))));
    }
}
