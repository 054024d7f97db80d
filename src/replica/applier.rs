//! The single writer of a replica's state: applies runs, settles the outbox, compares digests, swaps states.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::codec::message::Bookmark;
use crate::model::{Entry, EntryBody, Op, Origin, Seq};
use crate::planted::{self, Bug};
use crate::protocol::fatal::Fatal;
use crate::protocol::outbox::{Decided, RejectedTxn, touched};
use crate::protocol::tail::{Divergence, Follower, Run};
use crate::state::{StateError, StateStore};
use crate::telemetry;

use super::directory::Home;
use super::outbox_writer;
use super::receipts::Stage;
use super::shared::{Change, SharedRef, stop_process};

/// A state is made durable at least this often while it changes.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// And this soon after it stops changing.
const PERSIST_IDLE: Duration = Duration::from_millis(50);

pub(super) enum Request {
    Run(Run),
    Bookmark(Bookmark),
    /// A new state in its own directory takes the place of the old one.
    Swap(StateStore, PathBuf, oneshot::Sender<Result<(), String>>),
}

pub(super) struct Applier {
    shared: SharedRef,
    home: Box<dyn Home>,
    follower: Follower,
    outbox: mpsc::Sender<outbox_writer::Request>,
    unpersisted_since: Option<Instant>,
}

impl Applier {
    pub(super) fn new(shared: SharedRef, home: Box<dyn Home>, outbox: mpsc::Sender<outbox_writer::Request>) -> Applier {
        let follower = follower_of(&shared.state());
        Applier { shared, home, follower, outbox, unpersisted_since: Some(Instant::now()) }
    }

    /// Serves requests until all senders are gone, then makes the state durable.
    pub(super) fn run(mut self, runtime: &tokio::runtime::Handle, mut requests: mpsc::Receiver<Request>) {
        loop {
            let request = match self.unpersisted_since {
                None => requests.blocking_recv(),
                Some(since) => {
                    let wait = PERSIST_EVERY.saturating_sub(since.elapsed()).min(PERSIST_IDLE);
                    match runtime.block_on(async { tokio::time::timeout(wait, requests.recv()).await }) {
                        Ok(request) => request,
                        Err(_) => {
                            self.persist().unwrap_or_else(|failure| stop_process(&failure));
                            continue;
                        }
                    }
                }
            };
            let Some(request) = request else { break };
            self.handle(request).unwrap_or_else(|failure| stop_process(&failure));
            if self.unpersisted_since.is_some_and(|since| since.elapsed() >= PERSIST_EVERY) {
                self.persist().unwrap_or_else(|failure| stop_process(&failure));
            }
        }
        self.persist().unwrap_or_else(|failure| stop_process(&failure));
    }

    pub(super) fn handle(&mut self, request: Request) -> Result<(), Fatal> {
        match request {
            Request::Run(run) => self.apply(run)?,
            Request::Bookmark(bookmark) => {
                if let Err(divergence) = self.follower.handle_bookmark(bookmark) {
                    self.diverged(&divergence);
                } else if !self.shared.resync_wanted.load(Ordering::Acquire) {
                    self.note_compared(bookmark);
                }
            }
            Request::Swap(state, path, reply) => {
                let _ = reply.send(self.swap(state, path));
            }
        }
        Ok(())
    }

    fn apply(&mut self, run: Run) -> Result<(), Fatal> {
        if self.shared.resync_wanted.load(Ordering::Acquire) {
            return Ok(());
        }
        let state = self.shared.state();
        let Run { entries, chain } = run;
        let Some(last) = entries.last().map(|entry| entry.seq) else { return Ok(()) };
        // A block that was under way when the state was swapped is older than the new state.
        if state.meta().is_some_and(|meta| meta.seq >= last) {
            return Ok(());
        }
        if let Err(error) = state.apply(&entries, chain) {
            return self.failed(&error);
        }
        self.unpersisted_since.get_or_insert_with(Instant::now);
        let decided = {
            let mut outbox = self.shared.outbox_mut();
            entries.iter().filter_map(|entry| outbox.handle_applied(entry.seq, &entry.body)).collect::<Vec<_>>()
        };
        self.settle(decided);
        self.shared.applied.send_replace(last);
        self.shared.update_link(|link| link.head = link.head.max(last));
        self.announce(&entries);
        let digest = state.meta().map(|meta| meta.digest).unwrap_or_default();
        if let Err(divergence) = self.follower.handle_applied(last, digest) {
            self.diverged(&divergence);
        }
        Ok(())
    }

    /// The state was found equal to the datastore's.
    fn note_compared(&self, bookmark: Bookmark) {
        if *self.shared.applied.borrow() == bookmark.seq && !self.shared.problem().is_empty() {
            self.shared.set_problem("");
        }
    }

    fn settle(&self, decided: Vec<Decided>) {
        if decided.is_empty() {
            return;
        }
        let mut to_note = Vec::new();
        for decided in decided {
            match decided {
                Decided::Committed(id, seq) => self.shared.receipts.settle(id, Stage::Acknowledged(seq)),
                Decided::Rejected(id, seq, reason) => {
                    telemetry::metrics::rejections(&reason);
                    let found: Option<RejectedTxn> = self.shared.outbox().rejected().get(&id).cloned();
                    for (collection, key) in found.iter().flat_map(|rejected| touched(&rejected.txn)) {
                        let change = Change::Overlay { collection: collection.clone(), key: key.clone() };
                        let _ = self.shared.changes.send(change);
                    }
                    to_note.extend(found);
                    self.shared.receipts.settle(id, Stage::Rejected(seq, reason));
                }
            }
        }
        self.shared.note_outbox_change();
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
            let EntryBody::Commit(txn) = &entry.body else { continue };
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
        tracing::error!(%divergence, "the state must be fetched anew");
        self.shared.want_resync(format!("{divergence}; fetching the state anew"));
    }

    fn failed(&mut self, error: &StateError) -> Result<(), Fatal> {
        if error.remedy() == crate::state::Remedy::Stop {
            return Err(Fatal::of("what memory holds of the state can no longer be trusted")(error));
        }
        tracing::error!(%error, "the state must be fetched anew");
        self.shared.want_resync(format!("{error}; fetching the state anew"));
        Ok(())
    }

    pub(super) fn persist(&mut self) -> Result<(), Fatal> {
        self.unpersisted_since = None;
        let state = self.shared.state();
        let seq = state.meta().map_or(Seq::ZERO, |meta| meta.seq);
        if *self.shared.durable.borrow() == seq {
            return Ok(());
        }
        match state.persist() {
            Ok(()) => {
                self.shared.durable.send_replace(seq);
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn swap(&mut self, state: StateStore, path: PathBuf) -> Result<(), String> {
        state.persist().map_err(|error| error.to_string())?;
        self.home.make_current(&path)?;
        let meta = state.meta().ok_or("the fetched state has no position")?;
        self.follower = follower_of(&state);
        self.shared.replace_state(state.clone());
        if planted::is(Bug::SnapshotForgetsOutbox) {
            *self.shared.outbox_mut() = crate::protocol::outbox::Outbox::default();
        }
        let origins: Vec<Origin> = self.shared.outbox().origins();
        let mut decided = Vec::new();
        for origin in origins {
            match state.origin(origin) {
                Ok(Some(row)) => decided.extend(self.shared.outbox_mut().handle_row(origin, &row)),
                Ok(None) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        self.settle(decided);
        self.shared.set_problem("");
        self.shared.resync_wanted.store(false, Ordering::Release);
        self.shared.applied.send_replace(meta.seq);
        self.shared.durable.send_replace(meta.seq);
        self.shared.update_link(|link| link.head = link.head.max(meta.seq));
        let _ = self.shared.changes.send(Change::Replaced { seq: meta.seq });
        // Readers that still hold the old state keep its files open; the directory goes all the same.
        self.home.remove_others(&path)
    }
}

fn follower_of(state: &StateStore) -> Follower {
    state.meta().map_or_else(
        || Follower::new(Seq::ZERO, crate::model::Digest::ZERO),
        |meta| Follower::new(meta.seq, meta.digest),
    )
}
