//! Single writer of a replica's state: applies batches of entries, resolves the outbox, compares digests, swaps states.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use gravwell_env::wait;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Entry, Op, Position, Seq};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::{RejectedTxn, ResolvedTxn};
use gravwell_protocol::tail::{Divergence, EntryBatch, Follower};
use gravwell_runtime::telemetry;
use gravwell_state::{Fork, StateError, StateStore, descent};

use super::directory::StateStorage;
use super::exchange::Replacement;
use super::high_water_mark::Mark;
use super::leaving::MOVED;
use super::opening::Lost;
use super::outbox_writer;
use super::shared::{Change, ReplicaRef, stop_process};

/// Longest time until a changing state is made durable.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// Idle time until a changed state is made durable.
const PERSIST_IDLE: Duration = Duration::from_millis(50);
/// Shortest interval between two high-water marks.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// Interval at which free space is checked while the disk is full.
const ROOM_EVERY: Duration = Duration::from_millis(100);
/// How long readers may still hold a replaced state.
const REOPEN_PATIENCE: Duration = Duration::from_secs(10);

pub(super) enum Request {
    Run(EntryBatch),
    Bookmark(Bookmark),
    /// Replaces the state by a new one in a separate directory.
    Swap(StateStore, PathBuf, Descent, oneshot::Sender<Result<(), SwapError>>),
    /// Replaces the state, and has the outbox replaced, because a history is left.
    Replace(Replacement, oneshot::Sender<Result<(), SwapError>>),
    /// Answered when everything before it is done.
    Barrier(oneshot::Sender<()>),
    /// Makes the state durable and writes the high-water mark.
    Persist(oneshot::Sender<()>),
}

/// Required relation of a new state to the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descent {
    /// It must continue the history of the old one.
    Required,
    /// Changes that only the old one has are archived already.
    Archived,
}

/// Reason for not adopting a state; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum SwapError {
    /// It lacks outcomes that this replica has applied.
    #[error("the fetched state does not continue this replica's: {0}")]
    Forked(Fork),
    /// It is incomplete, or the storage failed.
    #[error("{0}")]
    Failed(String),
}

pub(super) struct Applier {
    shared: ReplicaRef,
    home: Box<dyn StateStorage>,
    follower: Follower,
    outbox: mpsc::Sender<outbox_writer::Request>,
    unpersisted_since: Option<Instant>,
    /// Directory and cache bytes of the state; `None` for a state stored elsewhere.
    place: Option<(PathBuf, u64)>,
    /// Name and position of the state in the mark.
    marked: Option<(String, Position)>,
    /// Since when the mark is out of date.
    unmarked_since: Option<Instant>,
    /// A batch was skipped because the replica is closing: nothing may be applied after it.
    has_skipped: bool,
}

impl Applier {
    pub(super) fn new(
        shared: ReplicaRef,
        home: Box<dyn StateStorage>,
        outbox: mpsc::Sender<outbox_writer::Request>,
    ) -> Applier {
        let follower = follower_of(&shared.state());
        let marked = home.mark().ok().flatten().map(|mark| (mark.state, mark.position));
        let unpersisted_since = Some(Instant::now());
        Applier {
            shared,
            home,
            follower,
            outbox,
            unpersisted_since,
            place: None,
            marked,
            unmarked_since: None,
            has_skipped: false,
        }
    }

    /// Sets the directory and the cache bytes of the state.
    pub(super) fn at(mut self, path: PathBuf, cache_bytes: u64) -> Applier {
        self.place = Some((path, cache_bytes));
        self
    }

    /// Serves requests until all senders are dropped, then makes the state durable.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            let request = match self.next_due() {
                None => requests.blocking_recv(),
                Some(patience) => match wait::at_most(patience, requests.recv()) {
                    Some(request) => request,
                    None => {
                        self.persist().unwrap_or_else(|failure| stop_process(&self.shared, &failure));
                        continue;
                    }
                },
            };
            let Some(request) = request else { break };
            self.handle(request).unwrap_or_else(|failure| stop_process(&self.shared, &failure));
            if self.unpersisted_since.is_some_and(|since| since.elapsed() >= PERSIST_EVERY) {
                self.persist().unwrap_or_else(|failure| stop_process(&self.shared, &failure));
            }
        }
        self.close().unwrap_or_else(|failure| stop_process(&self.shared, &failure));
    }

    /// Returns how long to wait for a request before something is due.
    fn next_due(&self) -> Option<Duration> {
        let persist = |since: Instant| PERSIST_EVERY.saturating_sub(since.elapsed()).min(PERSIST_IDLE);
        let mark = |since: Instant| MARK_EVERY.saturating_sub(since.elapsed());
        self.unpersisted_since.map(persist).or(self.unmarked_since.map(mark))
    }

    pub(super) fn handle(&mut self, request: Request) -> Result<(), Fatal> {
        match request {
            Request::Run(run) => self.apply(run)?,
            Request::Bookmark(bookmark) => {
                if let Err(divergence) = self.follower.handle_bookmark(bookmark) {
                    self.diverged(&divergence);
                } else if !self.shared.wants_resync() {
                    self.note_compared();
                }
            }
            Request::Swap(state, path, descent, reply) => {
                let _ = reply.send(self.swap(state, path, descent)?);
            }
            Request::Replace(replacement, reply) => {
                let _ = reply.send(self.replace(replacement)?);
            }
            Request::Barrier(reply) => drop(reply.send(())),
            Request::Persist(reply) => {
                self.close()?;
                let _ = reply.send(());
            }
        }
        Ok(())
    }

    fn apply(&mut self, run: EntryBatch) -> Result<(), Fatal> {
        if self.shared.wants_resync() {
            return Ok(());
        }
        if self.has_skipped || !self.waits_for_room() {
            self.has_skipped = true;
            return Ok(());
        }
        let state = self.shared.state();
        let EntryBatch { mut entries, chain } = run;
        // Entries in transit when the state was swapped, or queued here across a reconnect, arrive twice.
        if let Some(meta) = state.meta() {
            entries.retain(|entry| entry.seq > meta.seq);
        }
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        if let Err(error) = state.apply(&entries, chain) {
            drop(state);
            let is_again = self.reopen(&error)?;
            return if is_again { self.apply(EntryBatch { entries, chain }) } else { self.failed(&error) };
        }
        telemetry::txn_trace::applied(&entries);
        self.unpersisted_since.get_or_insert_with(Instant::now);
        self.unmarked_since.get_or_insert_with(Instant::now);
        let decided = {
            let mut outbox = self.shared.outbox_mut();
            entries.iter().filter_map(|entry| outbox.handle_applied(entry.seq, &entry.body)).collect::<Vec<_>>()
        };
        // The outbox journal must never know more than the durable state: that would prove that the state went back.
        let is_noted = decided.iter().any(|decided| matches!(decided, ResolvedTxn::Rejected(..)));
        if is_noted && let Err(error) = state.persist() {
            tracing::warn!(%error, "failed to persist the state before writing a rejection");
        }
        let is_committed = decided.iter().any(|decided| matches!(decided, ResolvedTxn::Committed(..)));
        self.settle(decided);
        if is_committed {
            // If the queue is full, the writer finds the sequences when it handles the next request.
            let _ = self.outbox.try_send(outbox_writer::Request::Committed);
        }
        self.shared.applied.send_replace(last);
        self.shared.update_link(|link| link.head = link.head.max(last));
        self.announce(&entries);
        let digest = state.meta().map(|meta| meta.digest).unwrap_or_default();
        match self.follower.handle_applied(last, digest) {
            Err(divergence) => self.diverged(&divergence),
            Ok(()) if self.shared.lost().is_some() => self.note_compared(),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Waits while the disk is full, because the storage engine would stop for good. Returns false if the replica is
    /// closing; waiting entries are fetched after the next start.
    fn waits_for_room(&self) -> bool {
        while self.shared.disk.is_full() {
            if self.shared.is_closing.load(Ordering::Acquire) {
                return false;
            }
            std::thread::sleep(ROOM_EVERY);
        }
        true
    }

    /// Reopens the state after its storage engine stopped on a full disk, which leaves its files intact. Waits for free
    /// space first. Returns false if the engine stopped for another reason.
    fn reopen(&mut self, error: &StateError) -> Result<bool, Fatal> {
        let Some((place, cache_bytes)) = self.place.clone() else { return Ok(false) };
        if error.remedy() != gravwell_state::Remedy::Stop || !self.shared.disk.take_was_full() {
            return Ok(false);
        }
        tracing::error!(%error, "state closed after its disk was full; reopening when there is space");
        if !self.waits_for_room() {
            return Ok(true);
        }
        let former = self.shared.position();
        let reason = StateError::NotNow { dir: place.clone(), cause: error.to_string() };
        let opened = self.shared.reopen_state(reason, || {
            let started = Instant::now();
            loop {
                match StateStore::open(&place, cache_bytes) {
                    // A reader may still hold the former state.
                    Err(StateError::Locked { .. }) if started.elapsed() < REOPEN_PATIENCE => {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    opened => return opened,
                }
            }
        });
        opened.map_err(Fatal::of("cannot reopen the state"))?;
        let state = self.shared.state();
        self.follower = follower_of(&state);
        let to_note = self.shared.resolve_by(&state);
        self.note(to_note);
        self.unpersisted_since = Some(Instant::now());
        let meta = state.meta();
        self.shared.applied.send_replace(meta.as_ref().map_or(Seq::ZERO, |meta| meta.seq));
        // Entries that were shown and are missing now will be fetched. Until then the loss is reported.
        let mark = former.map(|position| Mark::new(name_of(&place), position, Vec::new()));
        if let Some(message) = mark.as_ref().and_then(|mark| mark.loss(meta.as_deref())) {
            tracing::error!(message, "reopened state lacks entries that were shown before");
            self.shared.note_lost(Lost { message, mark });
        }
        Ok(true)
    }

    /// Handles a comparison with the datastore, which may have found the state equal at its present position.
    fn note_compared(&mut self) {
        // The state may have caught up for the first time since a loss, so a mark may be due.
        self.unmarked_since.get_or_insert_with(Instant::now);
        let applied = *self.shared.applied.borrow();
        if self.follower.equal_at() != Some(applied) {
            return;
        }
        self.shared.find_again(applied);
        if !self.shared.problem().is_empty() {
            self.shared.set_problem("");
        }
    }

    fn settle(&self, decided: Vec<ResolvedTxn>) {
        self.note(self.shared.settle(decided));
    }

    /// Has rejections written to the outbox journal.
    fn note(&self, to_note: Vec<RejectedTxn>) {
        if !to_note.is_empty() {
            let _ = self.outbox.blocking_send(outbox_writer::Request::Note(to_note));
        }
    }

    fn announce(&self, entries: &[Entry]) {
        if self.shared.entries.receiver_count() > 0 {
            let _ = self.shared.entries.send(Arc::new(entries.to_vec()));
        }
        if self.shared.changes.receiver_count() == 0 {
            return;
        }
        for entry in entries {
            let Some((txn, _)) = entry.body.committed() else { continue };
            for op in &txn.ops {
                let (seq, collection, key) = (entry.seq, op.collection().clone(), op.key().clone());
                let change = match op {
                    Op::Put { .. } => Change::Put { seq, collection, key },
                    Op::Delete { .. } => Change::Deleted { seq, collection, key },
                };
                let _ = self.shared.changes.send(change);
            }
        }
    }

    fn diverged(&mut self, divergence: &Divergence) {
        tracing::error!(%divergence, "state diverged; it must be fetched again");
        self.shared.request_resync(format!("{divergence}; fetching the state again"));
    }

    fn failed(&mut self, error: &StateError) -> Result<(), Fatal> {
        if error.remedy() == gravwell_state::Remedy::Stop {
            return Err(Fatal::of("the in-memory state is not reliable after an error")(error));
        }
        tracing::error!(%error, "state corrupt; it must be fetched again");
        self.shared.request_resync(format!("{error}; fetching the state again"));
        Ok(())
    }

    pub(super) fn persist(&mut self) -> Result<(), Fatal> {
        self.unpersisted_since = None;
        let state = self.shared.state();
        let seq = state.meta().map_or(Seq::ZERO, |meta| meta.seq);
        if *self.shared.durable.borrow() != seq {
            if let Err(error) = state.persist() {
                drop(state);
                return if self.reopen(&error)? { Ok(()) } else { self.failed(&error) };
            }
            self.shared.durable.send_replace(seq);
        }
        if self.unmarked_since.is_none_or(|since| since.elapsed() >= MARK_EVERY) {
            self.mark();
        }
        Ok(())
    }

    /// Makes the state durable and writes the mark.
    fn close(&mut self) -> Result<(), Fatal> {
        self.persist()?;
        self.mark();
        Ok(())
    }

    /// Writes how far the durable state came, unless it lost something: then the former mark is the proof.
    pub(super) fn mark(&mut self) {
        self.unmarked_since = None;
        let may_lower = fault_injection::is(Bug::MarkLowered);
        if self.shared.lost().is_some() && !may_lower {
            return;
        }
        let state = self.shared.state();
        let Some(position) = state.position() else { return };
        if !may_lower && self.marked.as_ref().is_some_and(|(_, held)| is_lower(&position, held)) {
            tracing::error!(seq = %position.seq, "state precedes the high-water mark; keeping the mark");
            return;
        }
        let now = (self.place.as_ref().map(|(path, _)| name_of(path)).unwrap_or_default(), position);
        if self.marked.as_ref() == Some(&now) {
            return;
        }
        // Without the mark a loss may go unnoticed, but nothing is lost.
        if let Err(error) = self.write_mark(&state, &now.0) {
            tracing::warn!(error, "failed to write the high-water mark; will retry");
        }
        if self.marked.as_ref().map(|(_, position)| *position) != state.position() {
            self.unmarked_since = Some(Instant::now());
        }
    }

    /// Writes a mark for a state that is about to become current. It is written before `current`. After a crash between
    /// the two, the next start opens the complete state that the mark names; after a crash before both, the former one.
    /// The proof of a loss is not changed.
    fn mark_ahead(&mut self, state: &StateStore, path: &Path, descent: Descent) -> Result<Ahead, String> {
        if self.shared.lost().is_some() {
            return Ok(Ahead::Unmarked);
        }
        let former = self.home.mark()?;
        let position = state.position();
        let lowered = former.as_ref().filter(|_| descent == Descent::Required);
        let lowered = lowered.filter(|mark| position.is_some_and(|position| is_lower(&position, &mark.position)));
        if let Some(mark) = lowered
            && let Some(message) = mark.loss(state.meta().as_deref())
        {
            self.shared.note_lost(Lost { message, mark: Some(mark.clone()) });
            return Ok(Ahead::Unmarked);
        }
        self.write_mark(state, &name_of(path))?;
        Ok(Ahead::Marked(former))
    }

    /// Restores the former mark, because the new state did not become current.
    fn unmark(&mut self, ahead: Ahead) -> Result<(), String> {
        let Ahead::Marked(former) = ahead else { return Ok(()) };
        self.home.set_mark(former.as_ref())?;
        self.shared.reached.send_replace(former.as_ref().map(|mark| mark.position));
        self.marked = former.map(|mark| (mark.state, mark.position));
        Ok(())
    }

    fn write_mark(&mut self, state: &StateStore, name: &str) -> Result<(), String> {
        let mark = Mark::of(state, name.to_owned(), &self.shared.outbox()).map_err(|error| error.to_string())?;
        let Some(mark) = mark else { return Ok(()) };
        // Other threads write a new generation, so it may not be durable yet.
        state.persist().map_err(|error| error.to_string())?;
        self.home.set_mark(Some(&mark))?;
        self.shared.reached.send_replace(Some(mark.position));
        self.marked = Some((mark.state, mark.position));
        Ok(())
    }

    /// Returns the proof that `state` does not continue the history of the present one. A present state of another log
    /// proves nothing.
    ///
    /// # Errors
    /// If a row that matters cannot be read: then it is unknown whether the histories forked.
    fn fork(&self, state: &StateStore) -> Result<Option<Fork>, StateError> {
        let present = self.shared.state();
        let (here, there) = (present.meta(), state.meta());
        let is_of_one_log = here.zip(there).is_some_and(|(here, there)| here.log_id == there.log_id);
        if !is_of_one_log || fault_injection::is(Bug::ForkByNumber) {
            return Ok(None);
        }
        descent::fork(&present.snapshot()?, &state.snapshot()?)
    }

    /// Replaces the state by one of a log that has left its history. The inner error means that nothing has changed.
    fn replace(&mut self, mut replacement: Replacement) -> Result<Result<(), SwapError>, Fatal> {
        if replacement.has_moved() {
            return Ok(Err(SwapError::Failed(MOVED.into())));
        }
        if fault_injection::is(Bug::InstalledBeforeSwap) {
            replacement.install();
        }
        let (state, path) = (replacement.state().clone(), replacement.side().to_owned());
        let swapped = self.swap(state, path, Descent::Archived)?;
        if swapped.is_ok() {
            replacement.install();
        }
        Ok(swapped)
    }

    /// Replaces the state. The inner error means that nothing has changed.
    fn swap(&mut self, state: StateStore, path: PathBuf, descent: Descent) -> Result<Result<(), SwapError>, Fatal> {
        if let Err(error) = state.persist() {
            return Ok(Err(SwapError::Failed(error.to_string())));
        }
        let Some(meta) = state.meta() else {
            return Ok(Err(SwapError::Failed("the fetched state has no position".into())));
        };
        let mut is_unknown = false;
        if descent == Descent::Required {
            match self.fork(&state) {
                Ok(None) => {}
                Ok(Some(fork)) => return Ok(Err(SwapError::Forked(fork))),
                Err(error) => {
                    tracing::error!(%error, "failed to compare the fetched state with the present one; keeping both");
                    is_unknown = true;
                }
            }
        }
        if fault_injection::is(Bug::StateRemovedBeforeReplaced) {
            let _ = self.home.remove_others(&path);
        }
        let ahead = match self.mark_ahead(&state, &path, descent) {
            Ok(ahead) => ahead,
            Err(error) => return Ok(Err(SwapError::Failed(error))),
        };
        if let Err(error) = self.home.make_current(&path) {
            // The next start might open another state than the one served here.
            let is_named = self.home.is_current(&path);
            return if is_named {
                Err(Fatal::of("cannot sync the switch to a fetched state")(error))
            } else {
                self.unmark(ahead).map_err(Fatal::of(
                    "cannot restore the high-water mark after a failed switch to a fetched state",
                ))?;
                Ok(Err(SwapError::Failed(error)))
            };
        }
        let was_at = self.shared.position();
        self.follower = follower_of(&state);
        self.shared.replace_state(state.clone());
        if fault_injection::is(Bug::SnapshotForgetsOutbox) {
            *self.shared.outbox_mut() = gravwell_protocol::outbox::Outbox::default();
        }
        self.shared.set_problem("");
        self.shared.note_resynced();
        let to_note = self.shared.resolve_by(&state);
        // In an exchange the new outbox and its journal have them already, and its thread accepts no requests until
        // the end.
        if descent == Descent::Required {
            self.note(to_note);
        }
        self.shared.applied.send_replace(meta.seq);
        self.shared.durable.send_replace(meta.seq);
        self.shared.update_link(|link| link.head = link.head.max(meta.seq));
        // The fetched state was already compared with the datastore's digest.
        self.shared.find_again(meta.seq);
        let former = self.place.as_mut().map(|(place, _)| std::mem::replace(place, path.clone()));
        self.mark();
        let _ = self.shared.changes.send(Change::Replaced { seq: meta.seq });
        // Readers of the old state keep its files open; the directory is removed anyway. Leftovers are removed at the
        // next start.
        // A state that could not be compared may be the only one with what another history lacks.
        let (unknown, former) = if is_unknown { (former, None) } else { (None, former) };
        let kept = unknown.map_or(Ok(()), |former| self.home.set_aside(&former));
        let removed = kept.and_then(|()| match self.shared.lacks(&meta) {
            // The other states may hold the lost entries.
            true if was_at.is_some_and(|was_at| is_lower(&meta.position(), &was_at)) => Ok(()),
            true => former.map_or(Ok(()), |former| self.home.remove(&former)),
            false => self.home.remove_others(&path),
        });
        if let Err(error) = removed {
            tracing::warn!(error, "failed to remove a previous state");
        }
        Ok(Ok(()))
    }
}

/// Whether the mark was written before a state is put in place.
enum Ahead {
    /// It names the new state; this is the former mark.
    Marked(Option<Mark>),
    Unmarked,
}

/// Returns whether a position precedes another one of the same generation.
fn is_lower(position: &Position, held: &Position) -> bool {
    (position.log_id, position.generation) == (held.log_id, held.generation) && position.seq < held.seq
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn follower_of(state: &StateStore) -> Follower {
    state.meta().map_or_else(
        || Follower::new(Seq::ZERO, gravwell_model::Digest::ZERO),
        |meta| Follower::new(meta.seq, meta.digest),
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use gravwell_model::{
        Chain, Collection, EntryBody, Generation, Key, LineageEntry, LogId, MemberName, Origin, OriginCounter, Txn,
        TxnId,
    };
    use gravwell_protocol::outbox::Outbox;

    /// A directory for states that fails as configured.
    #[derive(Default)]
    struct Failing {
        swap: bool,
        is_named: bool,
    }

    impl StateStorage for Failing {
        fn make_current(&mut self, _: &std::path::Path) -> Result<(), String> {
            if self.swap { Err("the directory was not synced".into()) } else { Ok(()) }
        }

        fn is_current(&self, _: &std::path::Path) -> bool {
            self.is_named
        }

        fn remove_others(&mut self, _: &std::path::Path) -> Result<(), String> {
            Err("the directory is in use".into())
        }
    }

    fn state() -> StateStore {
        let state = StateStore::in_memory();
        let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
        state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
        state
    }

    fn entry(seq: u64) -> Entry {
        let op = Op::Put {
            collection: Collection::new("c").expect("name"),
            key: Key::new(seq.to_string()).expect("key"),
            value: Bytes::from_static(b"1"),
        };
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(seq) };
        let txn =
            Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] };
        Entry { seq: Seq(seq), time_ms: seq, member: MemberName::new("m").expect("name"), body: EntryBody::Commit(txn) }
    }

    fn applier(home: Failing) -> (Applier, ReplicaRef) {
        let shared = Arc::new(super::super::shared::ReplicaState::new(state(), Outbox::default(), None));
        (Applier::new(Arc::clone(&shared), Box::new(home), mpsc::channel(8).0), shared)
    }

    #[test]
    fn p02_runs_that_overlap_after_a_reconnect_are_no_reason_to_begin_anew() {
        let (mut applier, shared) = applier(Failing::default());
        for run in [1..=2, 2..=4, 3..=4, 5..=5] {
            let entries = run.map(entry).collect();
            applier.handle(Request::Run(EntryBatch { entries, chain: Chain::default() })).expect("applies");
        }
        assert_eq!(*shared.applied.borrow(), Seq(5));
        assert!(!shared.wants_resync(), "{}", shared.problem());
    }

    #[test]
    fn p10_a_swap_happens_wholly_or_not_and_what_is_unknown_stops_the_process() {
        let swap = |home: Failing| {
            let (mut applier, shared) = applier(home);
            let (reply, mut answer) = oneshot::channel();
            let stopped =
                applier.handle(Request::Swap(state(), PathBuf::from("side"), Descent::Required, reply)).is_err();
            shared.wants_resync();
            (stopped, answer.try_recv().ok().map(|answer| answer.is_ok()))
        };
        // Failing to remove a former state is no failure of the swap.
        assert_eq!(swap(Failing { swap: false, is_named: true }), (false, Some(true)));
        assert_eq!(swap(Failing { swap: true, is_named: false }), (false, Some(false)));
        assert_eq!(swap(Failing { swap: true, is_named: true }), (true, None));
    }
}
