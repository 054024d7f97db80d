//! The order of the steps in which outbox and state are exchanged when a history is left, see [`super::leaving`].
//!
//! Three threads take part: the task of the connection, the applier, which owns the state, and the thread of the outbox.
//! [`Course`] decides what follows what. It does nothing by itself: `rejoin` hands its effects to the threads, and
//! simulations do so by hand, with anything that other threads may do in between.
//!
//! - The applier has applied everything that it was given before.
//! - The archive is written. Transactions are still accepted.
//! - The thread of the outbox accepts nothing from here on.
//! - That thread makes the future outbox, because only there nothing is accepted meanwhile, and writes it to the journal.
//! - The applier replaces the state, if it is the one that was archived.
//! - The applier has the outbox replaced in memory. If it were for the task to do that, a task that ends in between
//!   would leave the former outbox with the new state.
//!
//! If the steps end before the state is replaced, the thread of the outbox writes the present outbox back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};

use gravwell_env::Entropy;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_state::StateStore;

use super::applier::{self, SwapError};
use super::leaving::Exchange;
use super::outbox_writer::{self, Step, Successor};
use super::shared::ReplicaState;

/// Held from before it is decided what to exchange until that is done: a second exchange would start from a state and an
/// outbox that the first one is about to replace.
pub(super) type Alone = OwnedMutexGuard<()>;

/// Waits until no exchange is under way, and keeps others from beginning one. Returns `None` if the history was left
/// meanwhile: what was known about it is of no use any more.
pub(super) async fn alone(shared: &ReplicaState) -> Option<Alone> {
    let history = shared.histories.present();
    let alone = lock(shared).lock_owned().await;
    (shared.histories.present() == history).then_some(alone)
}

/// Like [`alone`], but does not wait. Returns `None` if an exchange is under way.
#[cfg(any(test, feature = "testing"))]
pub(super) fn alone_now(shared: &ReplicaState) -> Option<Alone> {
    lock(shared).try_lock_owned().ok()
}

fn lock(shared: &ReplicaState) -> Arc<Mutex<()>> {
    if fault_injection::is(Bug::ExchangedTwice) { Arc::default() } else { Arc::clone(&shared.exchanging) }
}

/// A step, to be carried out by the driver.
pub(super) enum Effect {
    /// Hand this to the applier and wait for the answer.
    Apply(applier::Request, Answer),
    /// Write the archive.
    Archive(Arc<Exchange>),
    /// Hand this to the thread of the outbox.
    Hold(outbox_writer::Request),
    /// Wait for the answer of a thread that has its step already.
    Wait(Answer),
}

/// The answer of a thread to a step.
pub(super) enum Answer {
    Passed(oneshot::Receiver<()>),
    Prepared(oneshot::Receiver<Result<(), String>>),
    Swapped(oneshot::Receiver<Result<(), SwapError>>),
}

/// Reason for which an exchange ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The thread has ended.
    Closing,
    /// The step failed, and nothing has changed.
    Failed(String),
}

impl Answer {
    /// Waits for the answer. May be called again if the wait was given up.
    pub(super) async fn wait(&mut self) -> Result<(), Failure> {
        let outcome = match self {
            Answer::Passed(answer) => answer.await.map(Ok),
            Answer::Prepared(answer) => answer.await,
            Answer::Swapped(answer) => answer.await.map(|swapped| swapped.map_err(|error| error.to_string())),
        };
        outcome.map_err(|_| Failure::Closing)?.map_err(Failure::Failed)
    }
}

/// An exchange on its course. The effect that was returned last must be done before the next one is requested. An exchange
/// that failed is dropped.
pub(super) struct Course {
    exchange: Arc<Exchange>,
    side: PathBuf,
    entropy: Arc<dyn Entropy>,
    next: Next,
    /// Holds the thread of the outbox.
    steps: Option<Sender<Step>>,
    installed: Option<oneshot::Receiver<()>>,
    /// Only with [`Bug::InstallLeftToTask`].
    kept: Option<LastStep>,
    _alone: Alone,
}

/// Lets the thread of the outbox go on with the prepared one, and the answer to that.
type LastStep = (Sender<Step>, oneshot::Sender<()>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Barrier,
    Archive,
    Hold,
    Prepare,
    Swap,
    Install,
    End,
}

impl Course {
    /// The state to adopt is in `side`.
    pub(super) fn new(exchange: Arc<Exchange>, side: PathBuf, entropy: Arc<dyn Entropy>, alone: Alone) -> Course {
        Course { exchange, side, entropy, next: Next::Barrier, steps: None, installed: None, kept: None, _alone: alone }
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Returns what to do next; `None` if the exchange is complete.
    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        let (effect, next) = match self.next {
            Next::Barrier => {
                let (reply, passed) = oneshot::channel();
                (Effect::Apply(applier::Request::Barrier(reply), Answer::Passed(passed)), Next::Archive)
            }
            Next::Archive => (Effect::Archive(Arc::clone(&self.exchange)), Next::Hold),
            Next::Hold => {
                let (steps, receiver) = mpsc::channel();
                self.steps = Some(steps);
                (Effect::Hold(outbox_writer::Request::Exchange(receiver)), Next::Prepare)
            }
            Next::Prepare => (Effect::Wait(self.prepare()), Next::Swap),
            Next::Swap => (self.swap(), Next::Install),
            Next::Install => (self.install()?, Next::End),
            Next::End => return None,
        };
        self.next = next;
        Some(effect)
    }

    fn prepare(&self) -> Answer {
        let (exchange, entropy) = (Arc::clone(&self.exchange), Arc::clone(&self.entropy));
        let mut successor: Successor = Box::new(move || exchange.requeued(&*entropy));
        if fault_injection::is(Bug::SuccessorBesideWriter) {
            let made = successor();
            successor = Box::new(move || made);
        }
        let (reply, prepared) = oneshot::channel();
        // If the thread has ended, the answer says so.
        let _ = self.steps.as_ref().map(|steps| steps.send(Step::Prepare(successor, reply)));
        Answer::Prepared(prepared)
    }

    fn swap(&mut self) -> Effect {
        let (installed, done) = oneshot::channel();
        self.installed = Some(done);
        let mut last = self.steps.take().map(|steps| (steps, installed));
        if fault_injection::is(Bug::InstallLeftToTask) {
            self.kept = last.take();
        }
        let replacement = Replacement { exchange: Arc::clone(&self.exchange), side: self.side.clone(), last };
        let (reply, swapped) = oneshot::channel();
        Effect::Apply(applier::Request::Replace(replacement, reply), Answer::Swapped(swapped))
    }

    fn install(&mut self) -> Option<Effect> {
        if let Some((steps, installed)) = self.kept.take() {
            let _ = steps.send(Step::Install(self.exchange.set().shared_to, installed));
        }
        self.installed.take().map(|installed| Effect::Wait(Answer::Passed(installed)))
    }
}

/// The state that replaces the present one, and the means to have the outbox replaced then.
pub(super) struct Replacement {
    exchange: Arc<Exchange>,
    side: PathBuf,
    last: Option<LastStep>,
}

impl Replacement {
    pub(super) fn state(&self) -> &StateStore {
        self.exchange.state()
    }

    /// Returns the directory of the state.
    pub(super) fn side(&self) -> &Path {
        &self.side
    }

    /// Returns whether the present state is not the one that is archived.
    pub(super) fn has_moved(&self) -> bool {
        self.exchange.has_moved()
    }

    /// Has the outbox replaced in memory.
    pub(super) fn install(&mut self) {
        let Some((steps, installed)) = self.last.take() else { return };
        // The thread of the outbox ends only with the process.
        let _ = steps.send(Step::Install(self.exchange.set().shared_to, installed));
    }
}
