//! The member's half of a connection as a state machine: handshake, comparison, rejoin, resync, following and pushing.
//!
//! It decides the order and the conditions of everything that a connection leads to. It has no sockets, files and
//! clocks: the caller (a replica, or a simulator) passes [`Event`]s and the time to it, and carries out the [`Effect`]s
//! that it returns, in their order. An effect that needs the state, the disk or the applier is completed by an event.
//!
//! ```text
//!   Handshaking -> Comparing -> Lifting -+-> Asking -> Fetching -> Leaving -+-> TakingOver -> Adopting -> Learning
//!                                        |     |          |           ^     |                                 |
//!                                        |     v          +-> Swapping+-----+                             Following
//!                                        +-> Showing -> Donating
//! ```
//!
//! Times are durations since any fixed moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gravwell_model::codec::message::{self, BadMessage, Hello, Kind, Refused, Subscribe, Welcome};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Position, Seq, Verdict};

use crate::blob_gate::BlobGate;
use crate::outbox::Outbox;
use crate::tail::Intake;

use super::following::Following;
use super::{NextStep, is_redacted, judge};

pub use super::client_events::{Compared, Effect, End, Event, ForkPoint, Leave, Push, PushId, Source};

/// Longest wait for a welcome.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A datastore that has not welcomed this member after this time may wait to be shown the latest register of members.
const SHOW_AFTER: Duration = Duration::from_millis(200);
/// Longest wait for the reason of a fork, without which nothing is changed.
const REASON_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the origins of the generations. The log is followed without them.
const LEARN_TIMEOUT: Duration = Duration::from_secs(5);

/// Purpose of a fetched state.
#[derive(Clone, Copy, Debug)]
enum Purpose {
    Resync,
    Leave(Leave),
}

#[derive(Debug)]
enum State {
    Handshaking { hello: Greeting, until: Duration, show_at: Option<Duration> },
    Welcomed(Box<Welcomed>),
    Closed,
}

/// The start of a connection.
#[derive(Debug)]
struct Greeting {
    mine: Option<Position>,
    needs_snapshot: bool,
    heartbeat_ms: u64,
}

/// A connection on which the datastore has welcomed this member.
#[derive(Debug)]
struct Welcomed {
    hello: Greeting,
    welcome: Arc<Welcome>,
    verdict: Verdict,
    step: Step,
}

#[derive(Debug)]
enum Step {
    Comparing,
    Lifting {
        next: NextStep,
        compared: Compared,
    },
    Asking {
        verdict: Verdict,
        mine: Position,
        shared_to: Seq,
        until: Duration,
    },
    Fetching(Purpose),
    Swapping,
    Leaving(Leave),
    Showing(Verdict),
    Donating(Verdict),
    TakingOver,
    Adopting {
        position: Position,
        wants_resync: bool,
    },
    Learning {
        position: Position,
        wants_resync: bool,
        until: Duration,
    },
    Following(Box<Following>),
    /// The session ends; its state is replaced at once.
    Ending,
}

/// The member's half of one connection. See the module documentation.
#[derive(Debug)]
pub struct ClientSession {
    state: State,
    effects: VecDeque<Effect>,
}

fn send<T: serde::Serialize>(kind: Kind, body: &T) -> Effect {
    Effect::Send(kind, message::encode_body(body).into())
}

impl ClientSession {
    /// Starts a connection with this greeting. `needs_snapshot` states that the former one ended with
    /// [`End::Compacted`]; `heartbeat_ms` is the interval of progress reports that this member is configured with.
    #[must_use]
    pub fn new(now: Duration, hello: &Hello, needs_snapshot: bool, heartbeat_ms: u64) -> ClientSession {
        let effects = VecDeque::from([send(Kind::Hello, hello), Effect::Read(Source::Control)]);
        let hello = Greeting { mine: hello.position, needs_snapshot, heartbeat_ms };
        let state = State::Handshaking { hello, until: now + SETUP_TIMEOUT, show_at: Some(now + SHOW_AFTER) };
        ClientSession { state, effects }
    }

    /// Returns the next effect to carry out.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn following(&self) -> Option<&Following> {
        match &self.state {
            State::Welcomed(welcomed) => match &welcomed.step {
                Step::Following(following) => Some(following),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns whether the log is followed.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.following().is_some()
    }

    /// Encodes the next transaction to push into `body`; `None` if nothing may be sent now. Call it again after any
    /// event, and after a change of outbox or gate.
    pub fn poll_push(&mut self, outbox: &Outbox, gate: &BlobGate, body: &mut Vec<u8>) -> Option<Push> {
        let State::Welcomed(welcomed) = &mut self.state else { return None };
        let Step::Following(following) = &mut welcomed.step else { return None };
        following.poll_push(outbox, gate, body)
    }

    /// Returns when [`ClientSession::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        match &self.state {
            State::Handshaking { until, show_at, .. } => Some(show_at.unwrap_or(*until).min(*until)),
            State::Welcomed(welcomed) => match &welcomed.step {
                Step::Asking { until, .. } | Step::Learning { until, .. } => Some(*until),
                Step::Following(following) => Some(following.poll_timeout()),
                _ => None,
            },
            State::Closed => None,
        }
    }

    /// Handles the passage of time.
    pub fn handle_timeout(&mut self, now: Duration) {
        match &mut self.state {
            State::Handshaking { until, .. } if now >= *until => self.close(End::Timeout(SETUP_TIMEOUT)),
            State::Handshaking { show_at, .. } if show_at.is_some_and(|at| now >= at) => {
                *show_at = None;
                self.effects.push_back(Effect::ShowRegister);
            }
            State::Welcomed(welcomed) => {
                if let Err(end) = welcomed.handle_timeout(now, &mut self.effects) {
                    self.close(end);
                }
            }
            State::Handshaking { .. } | State::Closed => {}
        }
    }

    /// Handles an event. One that does not fit the present state, such as a completion that arrives too late, has no
    /// effect.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        let result = match (std::mem::replace(&mut self.state, State::Closed), event) {
            (State::Closed, _) => return,
            (state, Event::Lost { is_unexplained }) => Err(lost(&state, is_unexplained)),
            (_, Event::Failed(error)) => Err(End::Failed(error)),
            (State::Handshaking { hello, .. }, Event::Control(kind, body)) => {
                Welcomed::new(hello, kind, &body, &mut self.effects).map(|welcomed| State::Welcomed(Box::new(welcomed)))
            }
            (State::Welcomed(mut welcomed), event) => {
                welcomed.handle_event(now, event, &mut self.effects).map(|()| State::Welcomed(welcomed))
            }
            (state @ State::Handshaking { .. }, _) => Ok(state),
        };
        match result {
            Ok(state) => self.state = state,
            Err(end) => self.close(end),
        }
    }

    fn close(&mut self, end: End) {
        self.state = State::Closed;
        self.effects.push_back(Effect::Close(end));
    }
}

/// Returns why a connection broke.
fn lost(state: &State, is_unexplained: bool) -> End {
    let State::Handshaking { hello, .. } = state else { return End::Lost };
    let wide = hello.mine.map(|mine| mine.generation).filter(|generation| generation.narrow().is_none());
    // Versions that cannot decode the generation close the connection without a reason.
    wide.filter(|_| is_unexplained).map_or(End::Lost, End::Unread)
}

type Effects = VecDeque<Effect>;

impl Welcomed {
    fn new(hello: Greeting, kind: Kind, body: &[u8], effects: &mut Effects) -> Result<Welcomed, End> {
        let welcome = Arc::new(expect_welcome(kind, body)?);
        effects.push_back(Effect::Compare(hello.mine, Arc::clone(&welcome)));
        Ok(Welcomed { hello, welcome, verdict: Verdict::Behind, step: Step::Comparing })
    }

    fn welcome(&self) -> Arc<Welcome> {
        Arc::clone(&self.welcome)
    }

    fn handle_timeout(&mut self, now: Duration, effects: &mut Effects) -> Result<(), End> {
        match &mut self.step {
            Step::Asking { until, .. } if now >= *until => Err(End::Timeout(REASON_TIMEOUT)),
            Step::Learning { position, wants_resync, until } if now >= *until => {
                let (position, wants_resync) = (*position, *wants_resync);
                self.follow(now, position, wants_resync, effects)
            }
            Step::Following(following) => {
                following.handle_timeout(now, effects);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn handle_event(&mut self, now: Duration, event: Event, effects: &mut Effects) -> Result<(), End> {
        match (std::mem::replace(&mut self.step, Step::Ending), event) {
            (Step::Comparing, Event::Compared(compared)) => self.compared(compared, effects),
            (Step::Lifting { next, compared }, Event::Lifted) => return self.decide(now, next, compared, effects),
            // An operator has to decide.
            (Step::Asking { verdict, .. }, Event::Reason(None)) => self.refuse(verdict, effects),
            (Step::Asking { mine, shared_to, .. }, Event::Reason(Some(is_restore))) => {
                let left_by = self.welcome.generation;
                self.fetch(Purpose::Leave(Leave::Lineage { mine, left_by, shared_to, is_restore }), effects);
            }
            (Step::Fetching(purpose), Event::Fetched { lacks_lost }) => self.fetched(purpose, lacks_lost, effects),
            (Step::Swapping, Event::Swapped) => self.take_over(effects),
            (Step::Swapping, Event::SwapForked) => self.leave(Leave::Forked, effects),
            (Step::Leaving(leave), Event::Left) => self.left(leave, effects),
            (Step::Showing(verdict), Event::ProofShown) => return self.shown(verdict, effects),
            (Step::Donating(verdict), Event::Donated) => return Err(End::Diverged(verdict)),
            (Step::TakingOver, Event::TakenOver { position, wants_resync }) => {
                self.enter(Step::Adopting { position, wants_resync }, Effect::AdoptTerms(self.welcome()), effects);
            }
            (Step::Adopting { position, wants_resync }, Event::TermsAdopted) => {
                let learning = Step::Learning { position, wants_resync, until: now + LEARN_TIMEOUT };
                self.enter(learning, Effect::LearnGenerations(self.welcome()), effects);
            }
            (Step::Learning { position, wants_resync, .. }, Event::GenerationsLearned) => {
                return self.follow(now, position, wants_resync, effects);
            }
            (Step::Following(mut following), event) => {
                following.handle_event(now, event, effects)?;
                self.step = Step::Following(following);
            }
            (step, _) => self.step = step,
        }
        Ok(())
    }

    fn enter(&mut self, step: Step, effect: Effect, effects: &mut Effects) {
        self.step = step;
        effects.push_back(effect);
    }

    fn compared(&mut self, compared: Compared, effects: &mut Effects) {
        // A loss is judged by the position before it. The entries are fetched from the present position.
        let wants_snapshot = self.hello.needs_snapshot || compared.is_lacking || compared.wants_resync;
        let is_left = compared.fork.is_some() && !fault_injection::is(Bug::LeftUnchecked);
        let next = match judge(self.hello.mine.as_ref(), &self.welcome, wants_snapshot) {
            // Positions alone do not show a fork if two generations were assigned the same number.
            NextStep::Tail(_) | NextStep::Snapshot if is_left => NextStep::Refuse(Verdict::Forked),
            next => next,
        };
        self.verdict = match next {
            NextStep::Refuse(verdict) => verdict,
            _ => self.welcome.verdict.unwrap_or(Verdict::Behind),
        };
        effects.push_back(Effect::Welcomed(self.welcome(), self.verdict));
        self.enter(Step::Lifting { next, compared }, Effect::LiftRefusal, effects);
    }

    fn decide(&mut self, now: Duration, next: NextStep, compared: Compared, effects: &mut Effects) -> Result<(), End> {
        match (next, compared.fork.zip(self.hello.mine)) {
            (NextStep::Refuse(_), Some(_)) if compared.is_disk_full => return Err(End::DiskFull),
            (NextStep::Refuse(verdict), Some((ForkPoint { shared_to, theirs }, mine))) => {
                if fault_injection::is(Bug::GenerationBeforeSwap) {
                    effects.push_back(Effect::TakeOver(self.welcome()));
                }
                let asking = Step::Asking { verdict, mine, shared_to, until: now + REASON_TIMEOUT };
                self.enter(asking, Effect::AskReason(theirs), effects);
            }
            (NextStep::Refuse(verdict), None) => self.refuse(verdict, effects),
            (NextStep::Snapshot, _) => {
                self.accept(effects);
                if compared.is_disk_full {
                    return Err(End::DiskFull);
                }
                self.fetch(Purpose::Resync, effects);
            }
            (NextStep::Tail(_), _) => {
                self.accept(effects);
                self.take_over(effects);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, verdict: Verdict, effects: &mut Effects) {
        effects.push_back(Effect::ReportVerdict(verdict));
        self.enter(Step::Showing(verdict), Effect::ShowProof, effects);
    }

    fn shown(&mut self, verdict: Verdict, effects: &mut Effects) -> Result<(), End> {
        match verdict {
            Verdict::Empty => self.enter(Step::Donating(verdict), Effect::Donate, effects),
            verdict => return Err(End::Diverged(verdict)),
        }
        Ok(())
    }

    fn fetch(&mut self, purpose: Purpose, effects: &mut Effects) {
        self.enter(Step::Fetching(purpose), Effect::FetchState(self.welcome()), effects);
    }

    fn fetched(&mut self, purpose: Purpose, lacks_lost: bool, effects: &mut Effects) {
        match purpose {
            Purpose::Leave(leave) => self.leave(leave, effects),
            Purpose::Resync if lacks_lost => self.leave(Leave::Lost, effects),
            Purpose::Resync if fault_injection::is(Bug::FollowedBeforeSwap) => self.take_over(effects),
            Purpose::Resync => self.enter(Step::Swapping, Effect::Swap, effects),
        }
    }

    fn leave(&mut self, leave: Leave, effects: &mut Effects) {
        self.enter(Step::Leaving(leave), Effect::Leave(leave), effects);
    }

    fn left(&mut self, leave: Leave, effects: &mut Effects) {
        if let Leave::Lineage { .. } = leave {
            self.verdict = Verdict::Behind;
            self.accept(effects);
        }
        self.take_over(effects);
    }

    fn accept(&self, effects: &mut Effects) {
        effects.push_back(Effect::Accept(self.welcome(), self.verdict));
    }

    fn take_over(&mut self, effects: &mut Effects) {
        self.enter(Step::TakingOver, Effect::TakeOver(self.welcome()), effects);
    }

    fn follow(
        &mut self,
        now: Duration,
        position: Position,
        wants_resync: bool,
        effects: &mut Effects,
    ) -> Result<(), End> {
        effects.extend([Effect::CheckGenerations(self.welcome()), Effect::Announce]);
        effects.push_back(send(Kind::Subscribe, &Subscribe { from: position.seq }));
        effects.push_back(Effect::Connected(self.welcome(), position));
        if wants_resync {
            return Err(End::ResyncWanted);
        }
        let intake = Intake::new(position.seq, position.chain, is_redacted(&self.welcome));
        let heartbeat_ms = self.hello.heartbeat_ms.max(self.welcome.heartbeat_ms);
        let following = Following::new(now, intake, heartbeat_ms, &self.welcome, effects);
        self.step = Step::Following(Box::new(following));
        Ok(())
    }
}

fn expect_welcome(kind: Kind, body: &[u8]) -> Result<Welcome, End> {
    match kind {
        Kind::Welcome => Ok(message::decode(kind, body)?),
        Kind::Refused => Err(message::decode::<Refused>(kind, body)?.into()),
        found => Err(BadMessage::Unexpected { expected: "Welcome", found }.into()),
    }
}
