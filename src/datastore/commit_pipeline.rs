//! The commit path without threads: sequences, writes and syncs a batch. Only then are entries and outcomes visible to
//! others. It is driven by the commit thread and the applier thread, and by the simulator.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gravwell_env::{Entropy as _, SystemEntropy};
use gravwell_log::{AppendError, Log, LogReader};
use gravwell_model::codec::message::{Bookmark, Outcome, RefusalCode, Refused, TxnOutcome};
use gravwell_model::deletions::Deleted;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{
    Chain, Collection, Entry, EntryBody, Key, Limits, MemberName, Origin, OriginCounter, Reason, Seq, Txn, TxnId,
};
use gravwell_protocol::CHECKPOINT_EVERY;
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::feed::Block;
use gravwell_protocol::sequencer::{Decision, Sequencer, Versions};
use gravwell_runtime::telemetry;
use gravwell_state::{StateError, StateStore};

/// Note of the transactions that the datastore writes on behalf of a revoked member.
const SETTLED_NOTE: &[u8] = br#"{"by":"gravwell_datastore","for":"settling the rejections of a revoked member"}"#;

/// Committed entries on their way to the state index.
#[derive(Clone, Debug)]
pub struct CommittedBatch {
    /// Consecutive entries; never empty.
    pub entries: Vec<Entry>,
    /// Chain after the last entry.
    pub chain: Chain,
}

/// A stream of transactions that were created in order. Once one is deferred, all later ones are deferred too, whatever
/// their origin, until the author opens a new stream. Clones refer to the same stream.
#[derive(Clone, Debug, Default)]
pub struct PushStream(Arc<AtomicBool>);

impl PushStream {
    /// Marks one of the stream's transactions as deferred.
    pub fn interrupt(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Checks whether more transactions of the stream may be accepted.
    ///
    /// # Errors
    /// Returns the refusal for transactions that follow a deferred one.
    pub fn check(&self) -> Result<(), Refused> {
        if !self.0.load(Ordering::SeqCst) {
            return Ok(());
        }
        let message = "an earlier transaction of the stream was deferred, so this one waits as well".into();
        Err(Refused { code: RefusalCode::Busy, message })
    }
}

/// A transaction to commit.
#[derive(Clone, Debug)]
pub struct Submission {
    /// The member that pushed it.
    pub member: MemberName,
    /// The transaction itself.
    pub txn: Txn,
    /// Reason to reject it, unless it was resolved before.
    pub objection: Option<Reason>,
    /// The stream on which it arrived.
    pub stream: PushStream,
    /// Whether an administrator submitted it. The number of its rejections is then unlimited, because an import
    /// acknowledges rejections only at its end.
    pub is_admins: bool,
}

/// Receiver of a batch once it may be visible. The methods are called in this order.
pub trait Outlet {
    /// Shows a durable batch to subscribers.
    fn publish(&mut self, block: Block);
    /// Passes a durable batch to the state index.
    fn index(&mut self, committed: CommittedBatch);
    /// Answers the transaction at index `place` of the submitted batch.
    fn answer(&mut self, place: usize, outcome: Outcome);
}

/// Result of committing a batch as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batch {
    /// Every transaction has its outcome.
    Done,
    /// The disk is full: nothing was written, and all transactions were deferred.
    DiskFull,
}

/// Durable versions (from the index) and their authors (from the log).
struct Durable<'a>(&'a StateStore, &'a Log);

impl Versions for Durable<'_> {
    type Error = StateError;

    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        self.0.version(collection, key)
    }

    /// The log records corruption when an entry cannot be read. Here the author then counts as unknown.
    fn author(&self, seq: Seq) -> Option<TxnId> {
        self.1.reader().entry(seq).ok().flatten()?.body.id()
    }

    fn value(&self, collection: &Collection, key: &Key) -> Result<Option<(Seq, bytes::Bytes)>, StateError> {
        Ok(self.0.get(collection, key)?.map(|object| (object.version, object.value)))
    }

    fn deleted(&self, collection: &Collection, key: &Key) -> Result<Option<Deleted>, StateError> {
        self.0.deleted(collection, key).map(Some)
    }
}

/// Reason why a segment could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// No disk space. Nothing was changed.
    #[error("{0}")]
    Full(String),
    /// The contents of the disk are unknown.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// The log with its sequencer: the only place that assigns sequences.
pub struct CommitPipeline {
    log: Log,
    sequencer: Sequencer,
    state: StateStore,
    /// Origin of transactions created in this process, generated for the first one.
    own: Option<Origin>,
}

impl CommitPipeline {
    /// Continues `log`; `state` must be at its head.
    ///
    /// # Errors
    /// Returns an error if the origins in the state cannot be read.
    pub fn new(log: Log, state: StateStore, limits: Limits) -> Result<CommitPipeline, StateError> {
        let snapshot = state.snapshot()?;
        let mut rows = snapshot.origins().collect::<Result<std::collections::HashMap<_, _>, _>>()?;
        let mut makers = snapshot.makers().collect::<Result<std::collections::HashMap<_, _>, _>>()?;
        drop(snapshot);
        let time_ms = state.meta().map_or(0, |meta| meta.time_ms);
        let mut head = log.head().0;
        if fault_injection::is(Bug::ForgetOrigins) {
            rows.clear();
            makers.clear();
        }
        if fault_injection::is(Bug::ReuseSequence) {
            head = Seq(head.0.saturating_sub(1));
        }
        let sequencer = Sequencer::new(head, time_ms, limits, rows).with_makers(makers);
        Ok(CommitPipeline { log, sequencer, state, own: None })
    }

    /// Allows the times of later entries to go back, see [`Sequencer::correct_time`].
    pub fn correct_time(&mut self, time_ms: u64) {
        self.sequencer.correct_time(time_ms);
    }

    /// Returns the log for maintenance.
    pub fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Returns the log, to close it.
    #[must_use]
    pub fn into_log(self) -> Log {
        self.log
    }

    /// Builds transactions without operations that resolve the rejections of the members selected by `of`, which will
    /// not ask for them again. Otherwise rows with these rejections would be kept forever and rewritten with every
    /// change of their origins.
    #[must_use]
    pub fn settling(&self, of: impl Fn(&MemberName) -> bool, time_ms: u64) -> Vec<Submission> {
        let settling = |(id, member): (TxnId, MemberName)| {
            let (settled, note) = (OriginCounter(id.counter.0 - 1), bytes::Bytes::from_static(SETTLED_NOTE));
            let txn = Txn { id, settled, time_ms, note, conditions: Vec::new(), ops: Vec::new() };
            Submission { member, txn, objection: None, stream: PushStream::default(), is_admins: true }
        };
        self.sequencer.unsettled(of).into_iter().map(settling).collect()
    }

    /// Closes the open segment, so that compaction can process it.
    ///
    /// # Errors
    /// Returns an error if there is no disk space, or the process must stop.
    pub fn seal(&mut self) -> Result<Seq, SealError> {
        match self.log.seal() {
            Ok(()) => Ok(self.log.head().0),
            Err(error @ AppendError::Full { .. }) => Err(SealError::Full(error.to_string())),
            Err(error) => Err(Fatal::of("the segment cannot be closed")(error).into()),
        }
    }

    /// Commits a batch. `admit` may defer a transaction before it is examined. `applied` is the sequence that the index
    /// has reached. `deferral` returns the refusal for all transactions when the disk turns out to be full.
    ///
    /// # Errors
    /// Any error means that the process must stop. Nothing of the batch was answered or made visible then.
    pub fn commit(
        &mut self,
        batch: Vec<Submission>,
        admit: &dyn Fn(&Txn) -> Result<(), Refused>,
        deferral: &dyn Fn() -> Refused,
        applied: Seq,
        now_ms: u64,
        outlet: &mut dyn Outlet,
    ) -> Result<Batch, Fatal> {
        self.sequencer.applied(applied);
        let mut entries = Vec::with_capacity(batch.len());
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut streams = Vec::with_capacity(batch.len());
        for Submission { member, txn, objection, stream, is_admins } in batch {
            let id = txn.id;
            let txn = if id.origin == Origin::default() { self.numbered(txn)? } else { txn };
            let fate = match stream.check().and_then(|()| admit(&txn)) {
                Err(refused) => TxnOutcome::Deferred(refused),
                Ok(()) => {
                    let durable = Durable(&self.state, &self.log);
                    self.sequencer.set_unbounded(is_admins);
                    let decision = self.sequencer.propose_unless(&member, txn, objection, now_ms, &durable);
                    fate_of(decision.map_err(Fatal::of("the state index cannot be read"))?, &mut entries)
                }
            };
            if matches!(fate, TxnOutcome::Deferred(_) | TxnOutcome::Gap(_)) {
                stream.interrupt();
            }
            streams.push(stream);
            outcomes.push(Outcome { id, fate });
        }
        let mut result = Batch::Done;
        if fault_injection::is(Bug::AnswerBeforeSync) {
            outcomes.drain(..).enumerate().for_each(|(place, outcome)| outlet.answer(place, outcome));
        }
        if !entries.is_empty() {
            match self.log.append(&entries) {
                Ok(written) => self.make_durable(written.bytes, entries, outlet)?,
                Err(AppendError::Full { .. }) => {
                    if !fault_injection::is(Bug::LeakSequence) {
                        self.sequencer.undo();
                    }
                    outcomes.iter_mut().for_each(|outcome| outcome.fate = TxnOutcome::Deferred(deferral()));
                    streams.iter().for_each(PushStream::interrupt);
                    result = Batch::DiskFull;
                }
                Err(error) => return Err(Fatal::of("the log cannot be written")(error)),
            }
        }
        outcomes.into_iter().enumerate().for_each(|(place, outcome)| outlet.answer(place, outcome));
        Ok(result)
    }

    /// Assigns an ID to a transaction created in this process. Earlier ones are resolved, and no client asks for their
    /// outcomes again.
    fn numbered(&mut self, txn: Txn) -> Result<Txn, Fatal> {
        let origin = match self.own {
            Some(origin) => origin,
            None => {
                let mut bytes = [0; 16];
                SystemEntropy.fill(&mut bytes).map_err(Fatal::of("cannot draw random bytes for an origin"))?;
                *self.own.insert(Origin(bytes))
            }
        };
        let settled = self.sequencer.last_counter(origin);
        Ok(Txn { id: TxnId { origin, counter: settled.next() }, settled, ..txn })
    }

    fn make_durable(&mut self, bytes: bytes::Bytes, entries: Vec<Entry>, outlet: &mut dyn Outlet) -> Result<(), Fatal> {
        let Some((first, last)) = entries.first().zip(entries.last()).map(|(first, last)| (first.seq, last.seq)) else {
            return Ok(());
        };
        if fault_injection::is(Bug::PublishBeforeSync) {
            outlet.publish(Block { first, last, bytes: bytes.clone(), chain: Chain::default() });
        }
        let syncing = std::time::Instant::now();
        let durable = self.log.sync().map_err(Fatal::of("the log cannot be synced"))?;
        telemetry::metrics::fsync(syncing.elapsed());
        self.sequencer.keep();
        let chain = durable.chain();
        if !fault_injection::is(Bug::PublishBeforeSync) {
            outlet.publish(Block { first, last, bytes, chain });
        }
        outlet.index(CommittedBatch { entries, chain });
        Ok(())
    }
}

fn fate_of(decision: Decision, entries: &mut Vec<Entry>) -> TxnOutcome {
    match decision {
        Decision::Write(entry) => {
            let fate = match &entry.body {
                EntryBody::Reject { reason, .. } => {
                    telemetry::metrics::rejections(reason);
                    TxnOutcome::Rejected(entry.seq, reason.clone())
                }
                _ => TxnOutcome::Committed(entry.seq),
            };
            entries.push(entry);
            fate
        }
        Decision::Committed(seq) => TxnOutcome::Decided(seq),
        Decision::Rejected(seq, reason) => TxnOutcome::Rejected(seq, reason),
        Decision::Gap(expected) => TxnOutcome::Gap(expected),
        Decision::Unsettled(count) => TxnOutcome::Deferred(unsettled(count)),
    }
}

/// Returns the refusal for a member with too many unacknowledged rejections.
fn unsettled(count: usize) -> Refused {
    let message = format!(
        "{count} rejections of this member are not acknowledged yet, so later transactions wait until they are, which \
         happens automatically; upgrade a member of an older version, or revoke one that never acknowledges them"
    );
    Refused { code: RefusalCode::Busy, message }
}

/// Applies a committed batch to the state index in runs that end at checkpoints; the chain at each checkpoint is read
/// from the log. Calls `applied` for every run, with a bookmark if the run ended at a checkpoint.
///
/// # Errors
/// Any error means that the process must stop. The next start rebuilds the index from the log.
pub fn index(
    state: &StateStore,
    log: &LogReader,
    committed: &CommittedBatch,
    applied: &mut dyn FnMut(Seq, Option<Bookmark>),
) -> Result<(), Fatal> {
    let CommittedBatch { entries, chain } = committed;
    for run in entries.chunk_by(|entry, _| !entry.seq.0.is_multiple_of(CHECKPOINT_EVERY)) {
        let Some(last) = run.last().map(|entry| entry.seq) else { continue };
        let is_end = entries.last().is_some_and(|entry| entry.seq == last);
        let chain = if is_end { *chain } else { chain_at(log, last)? };
        state.apply(run, chain).map_err(Fatal::of("the state index cannot be written (the next start rebuilds it)"))?;
        applied(last, last.0.is_multiple_of(CHECKPOINT_EVERY).then(|| bookmark(state)).flatten());
    }
    Ok(())
}

/// Returns the digest of the state at its current position.
#[must_use]
pub fn bookmark(state: &StateStore) -> Option<Bookmark> {
    state.meta().map(|meta| Bookmark { seq: meta.seq, digest: meta.digest })
}

fn chain_at(log: &LogReader, seq: Seq) -> Result<Chain, Fatal> {
    let what = "the log cannot be read";
    log.chain_at(seq).map_err(Fatal::of(what))?.ok_or_else(|| Fatal { what, cause: format!("no chain at {seq}") })
}
