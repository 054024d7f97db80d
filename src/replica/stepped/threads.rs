//! The threads of a replica, each moved on by hand: the applier, the outbox's thread, and the tasks that exchange outbox
//! and state. They exchange the messages of a running replica, and each step ends where another thread may act.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::task::{Context, Poll, Waker};

use tokio::sync::oneshot;

use gravwell_model::TxnId;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::tail::EntryBatch;

use super::super::exchange::{self, Answer, Course, Effect, Failure};
use super::super::leaving::Exchange;
use super::super::outbox_writer::{Draft, Heard, Request, Resubmission, SubmitError, Turn};
use super::super::receipts::Receipt;
use super::{SteppedReplica, applier};

/// Work of the threads.
#[derive(Default)]
pub(super) struct Threads {
    /// Messages that wait for the applier.
    to_apply: VecDeque<applier::Request>,
    /// The turn that the outbox's thread has begun.
    turn: Option<Turn>,
    /// Exchanges. There is more than one only if something is wrong.
    tasks: VecDeque<Task>,
}

/// A task that exchanges outbox and state.
struct Task {
    course: Course,
    directory: PathBuf,
    answer: Option<Answer>,
}

/// An answer that a thread may not have given yet.
pub struct Awaited<T>(oneshot::Receiver<Result<T, SubmitError>>);

impl<T> Awaited<T> {
    /// Returns the answer, once.
    pub fn take(&mut self) -> Option<Result<T, SubmitError>> {
        self.0.try_recv().ok()
    }
}

/// Result of a step of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExchangeProgress {
    /// There is no exchange.
    Idle,
    /// It waits for a thread.
    Waits,
    /// It went on.
    Went,
    /// The archive was written.
    Archived,
    /// The exchange ended early.
    Failed(String),
    /// The exchange is complete.
    Complete,
}

/// Returns the answer, if there is one.
fn given(answer: &mut Answer) -> Option<Result<(), Failure>> {
    let waiting = std::pin::pin!(answer.wait());
    match waiting.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(given) => Some(given),
        Poll::Pending => None,
    }
}

impl SteppedReplica {
    /// Hands a draft to the outbox's thread. Returns `None` if its queue is full.
    pub fn hand_draft(&self, draft: Draft) -> Option<Awaited<Receipt>> {
        let (reply, answer) = oneshot::channel();
        let read_in = draft.read_in.or_else(|| Some(self.history()));
        let draft = Draft { read_in, ..draft };
        self.refusals.try_send(Request::Submit(draft, reply)).ok().map(|()| Awaited(answer))
    }

    /// Hands a retry to the outbox's thread. Returns `None` if its queue is full.
    pub fn hand_retry(&self, id: TxnId, again: Resubmission) -> Option<Awaited<Receipt>> {
        let (reply, answer) = oneshot::channel();
        self.refusals.try_send(Request::Retry(id, again, reply)).ok().map(|()| Awaited(answer))
    }

    /// Hands a dismissal to the outbox's thread. Returns `None` if its queue is full.
    pub fn hand_dismissal(&self, id: TxnId) -> Option<Awaited<()>> {
        let (reply, answer) = oneshot::channel();
        self.refusals.try_send(Request::Dismiss(id, reply)).ok().map(|()| Awaited(answer))
    }

    /// Hands a batch of entries to the applier.
    pub fn hand_run(&mut self, run: EntryBatch) {
        self.threads.to_apply.push_back(applier::Request::Run(run));
    }

    /// Hands a bookmark to the applier.
    pub fn hand_bookmark(&mut self, bookmark: Bookmark) {
        self.threads.to_apply.push_back(applier::Request::Bookmark(bookmark));
    }

    /// Moves the outbox's thread on by one part of its turn. A new turn takes at most `batch_max` requests. Returns false
    /// if it has nothing to do.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn step_outbox(&mut self, batch_max: usize) -> Result<bool, Fatal> {
        let Some(turn) = self.threads.turn.take() else {
            let requests = self.take_requests(batch_max);
            let has_some = !requests.is_empty();
            self.threads.turn = has_some.then(|| self.writer.begin(requests));
            return Ok(has_some);
        };
        if turn.is_held() && fault_injection::is(Bug::AcceptedWhileHeld) {
            let requests = self.take_requests(batch_max);
            self.writer.handle(requests)?;
        }
        let mut waits = false;
        self.threads.turn = self.writer.advance(turn, |steps| match steps.try_recv() {
            Ok(step) => Heard::Step(step),
            Err(TryRecvError::Disconnected) => Heard::Ended,
            Err(TryRecvError::Empty) => {
                waits = true;
                Heard::Nothing
            }
        })?;
        Ok(!waits)
    }

    fn take_requests(&mut self, most: usize) -> Vec<Request> {
        std::iter::from_fn(|| self.notes.try_recv().ok()).take(most.max(1)).collect()
    }

    /// Lets the applier handle one message. Returns `None` if there is none, and whether it was a batch of entries.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn step_applier(&mut self) -> Result<Option<bool>, Fatal> {
        let Some(request) = self.threads.to_apply.pop_front() else { return Ok(None) };
        let is_run = matches!(request, applier::Request::Run(_));
        self.applier.handle(request).map(|()| Some(is_run))
    }

    /// Like [`SteppedReplica::keep_journal`], without handling requests: what the outbox's thread does between two turns.
    ///
    /// # Errors
    /// If the process must stop.
    pub fn keep_between_turns(&mut self, rewrite_bytes_min: u64) -> Result<(), Fatal> {
        if self.threads.turn.is_some() {
            return Ok(());
        }
        self.writer.rewrite_if_worth_it(rewrite_bytes_min);
        self.writer.complete()
    }

    /// Begins to exchange outbox and state. The archive is written to `directory`; the fetched state is in `side`.
    ///
    /// # Errors
    /// If another exchange is under way.
    pub fn begin_exchange(&mut self, exchange: Exchange, directory: &Path, side: PathBuf) -> Result<(), String> {
        let alone = exchange::alone_now(&self.shared).ok_or("another exchange is under way")?;
        let course = Course::new(Arc::new(exchange), side, Arc::clone(&self.entropy), alone);
        self.threads.tasks.push_back(Task { course, directory: directory.to_owned(), answer: None });
        Ok(())
    }

    /// Returns whether no connection may be made because an exchange is under way.
    #[must_use]
    pub fn is_exchanging(&self) -> bool {
        exchange::alone_now(&self.shared).is_none()
    }

    /// Moves an exchange on: takes the answer that it waits for, or begins the next step.
    pub fn step_exchange(&mut self) -> ExchangeProgress {
        // If there are several, they take turns.
        let Some(mut task) = self.threads.tasks.pop_front() else { return ExchangeProgress::Idle };
        let answered = task.answer.as_mut().map(given);
        let progress = match answered {
            Some(None) => ExchangeProgress::Waits,
            Some(Some(Ok(()))) => {
                task.answer = None;
                ExchangeProgress::Went
            }
            Some(Some(Err(Failure::Failed(reason)))) => return ExchangeProgress::Failed(reason),
            Some(Some(Err(Failure::Closing))) => return ExchangeProgress::Failed("a thread has ended".into()),
            None => match task.course.next_effect() {
                None => return ExchangeProgress::Complete,
                Some(effect) => match self.take_effect(&mut task, effect) {
                    Ok(progress) => progress,
                    Err(reason) => return ExchangeProgress::Failed(reason),
                },
            },
        };
        self.threads.tasks.push_back(task);
        progress
    }

    fn take_effect(&mut self, task: &mut Task, effect: Effect) -> Result<ExchangeProgress, String> {
        match effect {
            Effect::Apply(request, answer) => {
                self.threads.to_apply.push_back(request);
                task.answer = Some(answer);
            }
            Effect::Archive(exchange) => {
                exchange.archive(&task.directory)?;
                return Ok(ExchangeProgress::Archived);
            }
            Effect::Hold(request) => self.refusals.try_send(request).map_err(|error| error.to_string())?,
            Effect::Wait(answer) => task.answer = Some(answer),
        }
        Ok(ExchangeProgress::Went)
    }

    /// Ends the tasks, as at the end of a process. The threads go on.
    pub fn end_tasks(&mut self) {
        self.threads.tasks.clear();
    }

    /// Returns whether the applier has been asked to replace the state by one of a log that has left its history.
    #[must_use]
    pub fn is_replacing(&self) -> bool {
        self.threads.to_apply.iter().any(|request| matches!(request, applier::Request::Replace(..)))
    }

    /// Returns whether the journal has the outbox of an exchange that is not in memory yet.
    #[must_use]
    pub fn is_prepared(&self) -> bool {
        self.threads.turn.as_ref().is_some_and(Turn::is_prepared)
    }
}
