//! A replica driven by hand: no threads, no network, no internal clock. Simulations use the parts of [`super::Replica`]
//! through it to take every step in any order.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use gravwell_env::{Clock, Entropy};
use gravwell_log::journal::Journal;
use gravwell_model::codec::admin::{GenerationInfo, SeenVersion};
use gravwell_model::codec::message::{Bookmark, Progress, Welcome};
use gravwell_model::{Collection, Entry, Key, LineageEntry, Position, Seq, Txn, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::{Outbox, OverlayRead, RejectedTxn, RetainedTxn};
use gravwell_protocol::push::{Next, Pusher};
use gravwell_protocol::session::client::{ClientSession, Effect, Event, Leave, Push};
use gravwell_protocol::tail::EntryBatch;
use gravwell_state::{Fork, StateStore};

use super::applier::{self, Applier, Descent};
use super::directory::StateStorage;
use super::history::History;
use super::leaving;
use super::opening::{self, Lost};
use super::outbox_records::{self, RestoreError};
use super::outbox_writer::{self, Draft, OutboxWriter, SubmitError};
use super::receipts::Receipt;
use super::shared::{ReplicaRef, ReplicaState};
use super::terms::Terms;
use super::view::{Object, ReadError};

pub use super::applier::SwapError;
pub use super::leaving::{Exchange, Leaving};

/// Result of a submission.
pub type Submitted = Result<Receipt, SubmitError>;

/// A replica driven by hand, see the module documentation.
pub struct SteppedReplica {
    shared: ReplicaRef,
    writer: OutboxWriter,
    applier: Applier,
    notes: mpsc::Receiver<outbox_writer::Request>,
    forks: u32,
    refusals: mpsc::Sender<outbox_writer::Request>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// The outbox that is already in the journal while the state is being exchanged.
    prepared: Option<Outbox>,
}

impl SteppedReplica {
    /// Checks that a state is sound, so that it may be shown to users.
    ///
    /// # Errors
    /// Describes the problem with the state.
    pub fn check_state(state: &StateStore) -> Result<(), String> {
        super::opening::check_sound(state, "state".as_ref()).map_err(|error| error.to_string())
    }

    /// Opens a replica from its parts. `state` is its current one; `fresh` creates an empty one to replace it.
    ///
    /// # Errors
    /// If the journal has a record that cannot be read.
    pub fn open(
        state: StateStore,
        fresh: impl FnOnce() -> Result<StateStore, String>,
        journal: (Journal, Vec<(u8, Vec<u8>)>),
        home: Box<dyn StateStorage>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<SteppedReplica, String> {
        SteppedReplica::open_with(Outbox::default, state, fresh, journal, home, clock, entropy)
    }

    /// Like [`SteppedReplica::open`], with another kind of outbox, such as [`Outbox::keeping`].
    ///
    /// # Errors
    /// If the journal has a record that cannot be read.
    pub fn open_with(
        kind: impl Fn() -> Outbox,
        mut state: StateStore,
        fresh: impl FnOnce() -> Result<StateStore, String>,
        (journal, entries): (Journal, Vec<(u8, Vec<u8>)>),
        mut home: Box<dyn StateStorage>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<SteppedReplica, String> {
        let mark = home.mark();
        let witnesses = home.witnesses(mark.as_ref().ok().and_then(Option::as_ref));
        let unknown = opening::unknown(&mark, &witnesses).map(opening::doubted);
        let is_mark_sound = mark.is_ok();
        let mark = mark.ok().flatten();
        let loss = |state: &StateStore| mark.as_ref().and_then(|mark| mark.loss(state.meta().as_deref()));
        let outbox = |state: &StateStore| {
            let decided = mark.iter().filter(|_| loss(state).is_some()).flat_map(|mark| mark.decided.clone());
            kind().without_overlay_of(decided)
        };
        let restoring = outbox_records::read(&entries);
        let mut restored = restoring.clone().finish(&state, outbox(&state));
        if let Err(RestoreError::State(_)) = restored {
            state = fresh()?;
            restored = restoring.clone().finish(&state, outbox(&state));
        }
        let (outbox, to_note) = restored.map_err(|error| error.to_string())?;
        let lost = match loss(&state) {
            Some(message) => Some(Lost { message, mark: mark.clone() }),
            None => {
                let meta = state.meta();
                let witnessed = witnesses.contradict(meta.as_deref());
                let noted = || restoring.contradict(meta.as_deref());
                let proven = witnessed.or_else(|| if unknown.is_none() { noted() } else { None });
                // The evidence may be gone at the next start.
                if let Some(what) = proven.as_ref().filter(|_| is_mark_sound) {
                    home.note_lost(what);
                }
                proven.or(unknown).map(Lost::unmarked)
            }
        };
        let is_unsure = lost.as_ref().is_some_and(|lost| lost.mark.is_none());
        let outbox = if is_unsure { outbox.doubted() } else { outbox };
        let shared = Arc::new(ReplicaState::new(state, outbox, None));
        shared.set_lost(lost);
        *shared.terms.lock().unwrap_or_else(PoisonError::into_inner) = witnesses.terms();
        shared.reached.send_replace(witnesses.reached());
        let (sender, notes) = mpsc::channel(4096);
        if !to_note.is_empty() {
            let _ = sender.try_send(outbox_writer::Request::Note(to_note));
        }
        let writer = OutboxWriter::new(Arc::clone(&shared), journal, Arc::clone(&clock), Arc::clone(&entropy));
        let place = home.current();
        let applier = Applier::new(Arc::clone(&shared), home, sender.clone());
        let applier = match place {
            Some(place) => applier.at(place, 0),
            None => applier,
        };
        let (forks, refusals, prepared) = (0, sender, None);
        Ok(SteppedReplica { shared, writer, applier, notes, forks, refusals, clock, entropy, prepared })
    }

    /// Submits drafts as one group.
    ///
    /// # Errors
    /// If the process must stop; no draft has been answered then.
    pub fn submit(&mut self, drafts: Vec<Draft>) -> Result<Vec<Submitted>, Fatal> {
        let (requests, answers): (Vec<_>, Vec<_>) = drafts
            .into_iter()
            .map(|draft| {
                let (reply, answer) = oneshot::channel();
                (outbox_writer::Request::Submit(draft, reply), answer)
            })
            .unzip();
        self.writer.handle(requests)?;
        Ok(answers.into_iter().map(|mut answer| answer.try_recv().unwrap_or(Err(SubmitError::Closed))).collect())
    }

    /// Removes a rejected transaction from the list.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn dismiss(&mut self, id: TxnId) -> Result<Result<(), SubmitError>, Fatal> {
        let (reply, mut answer) = oneshot::channel();
        self.writer.handle(vec![outbox_writer::Request::Dismiss(id, reply)])?;
        Ok(answer.try_recv().unwrap_or(Err(SubmitError::Closed)))
    }

    /// Submits a rejected transaction again.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn retry(&mut self, id: TxnId) -> Result<Submitted, Fatal> {
        self.retry_upon(id, Vec::new(), self.shared.histories.present())
    }

    /// Submits a rejected transaction again, upon versions that its author has seen in a history.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn retry_upon(&mut self, id: TxnId, seen: Vec<SeenVersion>, seen_in: History) -> Result<Submitted, Fatal> {
        let (reply, mut answer) = oneshot::channel();
        let again = outbox_writer::Resubmission { upon: seen, seen_in, ..Default::default() };
        self.writer.handle(vec![outbox_writer::Request::Retry(id, again, reply)])?;
        Ok(answer.try_recv().unwrap_or(Err(SubmitError::Closed)))
    }

    /// Writes queued rejections and known sequences to the journal, and rewrites the journal if it has
    /// `rewrite_bytes_min` bytes and most of its transactions are resolved.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn keep_journal(&mut self, rewrite_bytes_min: u64) -> Result<(), Fatal> {
        self.write_notes()?;
        self.writer.rewrite_if_worth_it(rewrite_bytes_min);
        self.writer.complete()
    }

    fn write_notes(&mut self) -> Result<(), Fatal> {
        let mut batch = Vec::new();
        while let Ok(request) = self.notes.try_recv() {
            batch.push(request);
        }
        if batch.is_empty() { Ok(()) } else { self.writer.handle(batch) }
    }

    /// Returns the replica's position.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.shared.position()
    }

    /// Returns the position sent in hello: the present one, or the one before the state lost something.
    #[must_use]
    pub fn claimed(&self) -> Option<Position> {
        self.shared.claimed()
    }

    /// Returns the position of the last high-water mark, which is also to be recorded elsewhere.
    #[must_use]
    pub fn reached(&self) -> Option<Position> {
        *self.shared.reached.borrow()
    }

    /// Returns the terms that the datastore sent last.
    #[must_use]
    pub fn terms(&self) -> Option<Terms> {
        self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Carries out an effect of the session machine that needs no network, directory or other thread. Returns the event
    /// that completes it, if there is one.
    ///
    /// # Errors
    /// Returns an effect that needs more.
    pub fn carry_out(&mut self, effect: Effect) -> Result<Option<Event>, Effect> {
        let effect = match self.shared.carry_out(effect, self.clock.now_ms()) {
            Ok(event) => return Ok(event),
            Err(effect) => effect,
        };
        match effect {
            Effect::AdoptTerms(welcome) => {
                self.adopt_terms(&welcome);
                Ok(Some(Event::TermsAdopted))
            }
            Effect::Answer(reply) => {
                let mut to_note = Vec::new();
                self.shared.handle_answer(reply, &mut to_note);
                self.note(to_note);
                Ok(None)
            }
            Effect::RefusePending => {
                self.note(self.shared.refuse_forbidden());
                Ok(None)
            }
            effect => Err(effect),
        }
    }

    fn note(&self, to_note: Vec<RejectedTxn>) {
        if !to_note.is_empty() {
            let _ = self.refusals.try_send(outbox_writer::Request::Note(to_note));
        }
    }

    fn adopt_terms(&self, welcome: &Welcome) {
        let terms = Some(Terms::of(welcome));
        // The terms are evidence that a state of this log and generation was here.
        if self.terms() != terms && self.shared.state().persist().is_ok() {
            *self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner) = terms;
        }
    }

    /// Applies a batch of entries.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn apply(&mut self, run: EntryBatch) -> Result<(), Fatal> {
        self.applier.handle(applier::Request::Run(run))
    }

    /// Handles a bookmark.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn bookmark(&mut self, bookmark: Bookmark) -> Result<(), Fatal> {
        self.applier.handle(applier::Request::Bookmark(bookmark))
    }

    /// Replaces the present state by a fetched one, which must continue its history.
    ///
    /// # Errors
    /// Outer: the process must stop. Inner: the state was not adopted.
    pub fn swap(&mut self, state: StateStore, path: PathBuf) -> Result<Result<(), SwapError>, Fatal> {
        let swapped = self.exchange_state(state, path, Descent::Required)?;
        self.forks += u32::from(matches!(swapped, Err(SwapError::Forked(_))));
        Ok(swapped)
    }

    fn exchange_state(
        &mut self,
        state: StateStore,
        path: PathBuf,
        descent: Descent,
    ) -> Result<Result<(), SwapError>, Fatal> {
        let (reply, mut answer) = oneshot::channel();
        self.applier.handle(applier::Request::Swap(state, path, descent, reply))?;
        Ok(answer.try_recv().unwrap_or_else(|error| Err(SwapError::Failed(error.to_string()))))
    }

    /// Returns whether a fetched state lacks transactions that were resolved before this replica's state was lost.
    ///
    /// # Errors
    /// If a state cannot be read.
    pub fn lacks_lost(&self, state: &StateStore) -> Result<bool, String> {
        leaving::lacks_what_was_lost(&self.shared, state).map_err(|error| error.to_string())
    }

    /// Returns whether one of these generations started because an earlier state was restored on purpose; `None` if the
    /// reason of one is unknown.
    #[must_use]
    pub fn is_restore(theirs: &[LineageEntry], known: &[GenerationInfo]) -> Option<bool> {
        leaving::is_restore(&theirs.iter().collect::<Vec<_>>(), known)
    }

    /// Starts to leave the present history for a fetched `state`. `fork` is the reason for which the state could not
    /// just replace the present one, if that was tried.
    ///
    /// # Errors
    /// If a state cannot be read.
    pub fn leave(&self, leave: Leave, state: StateStore, fork: Option<&Fork>) -> Result<Leaving, String> {
        let set = self.shared.set_for(leave, &state, fork)?;
        Leaving::new(Arc::clone(&self.shared), state, set).map_err(|error| error.to_string())
    }

    /// Returns the history that reads see now.
    #[must_use]
    pub fn history(&self) -> History {
        self.shared.histories.present()
    }

    /// Decides what happens to everything that the log lacks. `since` holds the log's entries after
    /// [`Leaving::reads_after`], if it still has them.
    ///
    /// # Errors
    /// If a state cannot be read.
    pub fn choose(&self, leaving: Leaving, since: Option<&[Entry]>) -> Result<Exchange, String> {
        let others = match (leaving.reads_after(), since) {
            (None, _) => Ok(None),
            (Some(_), None) => leaving.shown(),
            (Some(_), Some(entries)) => {
                let mut since = leaving.since();
                entries.iter().try_for_each(|entry| since.take(entry)).map(|()| Some(since.others))
            }
        };
        let chosen = others.and_then(|others| leaving.choose(others.as_ref()));
        chosen.map_err(|error| error.to_string())
    }

    /// First step of an exchange: writes the archive to the replica's directory. Transactions are still accepted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn archive(&self, exchange: &Exchange, directory: &Path) -> Result<(), String> {
        exchange.archive(directory).map(drop)
    }

    /// Second step: writes the future outbox to the journal. From here on no transactions are accepted.
    ///
    /// # Errors
    /// Outer: the process must stop. Inner: it cannot be written, and nothing has changed.
    pub fn prepare(&mut self, exchange: &Exchange) -> Result<Result<(), String>, Fatal> {
        // In a running replica, the request for an exchange is queued behind the rejections of entries applied before.
        self.write_notes()?;
        let requeued = match exchange.requeued(&*self.entropy) {
            Ok(requeued) => requeued,
            Err(error) => return Ok(Err(error)),
        };
        let written = self.writer.prepare(&requeued)?;
        self.prepared = written.is_ok().then_some(requeued);
        Ok(written)
    }

    /// Third step: the fetched state replaces the present one.
    ///
    /// # Errors
    /// Outer: the process must stop. Inner: nothing has changed, so call [`SteppedReplica::take_back`].
    pub fn swap_left(&mut self, exchange: &Exchange, path: PathBuf) -> Result<Result<(), SwapError>, Fatal> {
        self.exchange_state(exchange.state().clone(), path, Descent::Archived)
    }

    /// Last step: the outbox in memory is replaced by the one in the journal.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn install(&mut self, exchange: &Exchange) -> Result<(), Fatal> {
        match self.prepared.take() {
            Some(outbox) => self.writer.install(outbox, exchange.set().shared_to),
            None => Ok(()),
        }
    }

    /// Instead of the third or the last step: writes the present outbox back to the journal.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn take_back(&mut self) -> Result<(), Fatal> {
        match self.prepared.take() {
            Some(_) => self.writer.take_back(),
            None => Ok(()),
        }
    }

    /// Compares arriving entries with pending transactions, before they are applied.
    pub fn compare_arrived(&self, entries: &[Entry]) {
        self.shared.compare_arrived(entries);
    }

    /// Returns the committed transactions that would be pushed again.
    #[must_use]
    pub fn kept(&self) -> Vec<Arc<Txn>> {
        self.shared.outbox().kept().map(|kept| Arc::clone(&kept.txn)).collect()
    }

    /// Returns the kept committed transactions, each with its sequence if that is known exactly.
    #[must_use]
    pub fn sequences(&self) -> Vec<(TxnId, Option<Seq>)> {
        let exact = |kept: &RetainedTxn| (kept.txn.id, kept.learnt.is_exact().then_some(kept.seq));
        self.shared.outbox().kept().map(exact).collect()
    }

    /// Returns the number of fetched states that were rejected because they do not continue the present history.
    #[must_use]
    pub fn forks(&self) -> u32 {
        self.forks
    }

    /// Returns whether a pending transaction writes an object.
    #[must_use]
    pub fn is_pending(&self, collection: &Collection, key: &Key) -> bool {
        self.shared.outbox().look_up(collection, key) != OverlayRead::Untouched
    }

    /// Makes applied entries durable, and writes the mark.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn persist(&mut self) -> Result<(), Fatal> {
        self.applier.persist()?;
        self.applier.mark();
        Ok(())
    }

    /// Returns the next transaction that a session may push, with its body.
    pub fn next_push(&self, session: &mut ClientSession) -> Option<(Push, Bytes)> {
        let mut body = Vec::new();
        let push = session.poll_push(&self.shared.outbox(), &self.shared.gate(), &mut body)?;
        Some((push, body.into()))
    }

    /// Returns the next transaction that a member pushes that does not ask its session.
    pub fn next_rogue_push(&self, pusher: &mut Pusher) -> Option<Bytes> {
        let mut body = Vec::new();
        let next = pusher.next(&self.shared.outbox(), &self.shared.gate(), &mut body);
        matches!(next, Next::Send(_)).then(|| body.into())
    }

    /// Sets the role that the datastore reported for this member. A reader's writes are rejected from now on.
    pub fn take_role(&self, role: &str) {
        self.shared.set_forbidden(super::role::forbidden(role));
    }

    /// Returns the progress report for the datastore.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let durable = *self.shared.durable.borrow();
        self.shared.progress(durable)
    }

    /// Returns the last durably applied sequence.
    #[must_use]
    pub fn durable(&self) -> Seq {
        *self.shared.durable.borrow()
    }

    /// Returns whether the state must be fetched again.
    #[must_use]
    pub fn wants_resync(&self) -> bool {
        self.shared.wants_resync()
    }

    /// Handles the end of a connection.
    pub fn disconnect(&self) {
        self.shared.note_disconnected();
    }

    /// Returns whether an effect that waits for this sequence is complete.
    #[must_use]
    pub fn has_applied(&self, seq: Seq) -> bool {
        *self.shared.applied.borrow() >= seq
    }

    /// Returns the health problem; empty if there is none.
    #[must_use]
    pub fn problem(&self) -> String {
        self.shared.problem()
    }

    /// See [`super::Replica::get`].
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, ReadError> {
        self.shared.get(collection, key)
    }

    /// See [`super::Replica::scan`].
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn scan(&self, collection: &Collection, prefix: &str) -> Result<Vec<(Key, Object)>, ReadError> {
        self.shared.scan(collection, prefix, None, usize::MAX)
    }

    /// Returns the committed state.
    #[must_use]
    pub fn state(&self) -> StateStore {
        self.shared.state()
    }

    /// Returns the pending transactions, oldest first.
    #[must_use]
    pub fn pending(&self) -> Vec<Arc<Txn>> {
        self.shared.outbox().pending().cloned().collect()
    }

    /// Returns a counter that rises with every change of the outbox.
    #[must_use]
    pub fn changes(&self) -> u64 {
        *self.shared.outbox_changed.borrow()
    }

    /// Returns the rejected transactions that a user has to deal with.
    #[must_use]
    pub fn rejected(&self) -> Vec<RejectedTxn> {
        self.shared.outbox().rejected().values().cloned().collect()
    }
}
