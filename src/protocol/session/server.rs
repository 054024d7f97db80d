//! The datastore's half of a connection as a state machine: handshake, evidence in the member's position, heartbeats,
//! lists and proofs, the member's reports, and the tail.
//!
//! Like the [member's half](super::client), it receives events and the time and returns effects. Messages of the member
//! are read one after the other; messages to it are sent one after the other on each stream, and those that only repeat
//! a present state are sent once, however often it changed in the meantime.
//!
//! ```text
//!   Greeting -> Welcoming -> Examining -> Sounding -> Serving
//! ```
//!
//! Times are durations since any fixed moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use gravwell_model::codec::message::{
    self, Announce, BadMessage, Bookmark, Compacted, Hello, Kind, Progress, RefusalCode, Refused, Subscribe, Welcome,
};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Position, Seq};

use crate::feed::{self, Block, Ring};

use super::may_follow;
use super::serving_tail::TailFeed;

/// Longest wait for a member to show the latest register of members, if the present one is known not to be that. Members
/// wait longer for a welcome.
pub const SHOWING_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval at which signed positions of one connection are examined: a member shows one, and verifying takes time.
pub const PROOF_EVERY: Duration = Duration::from_secs(1);
/// Interval at which announced addresses of one connection are accepted: each changed one is sent to all members.
pub const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

/// Properties of a member's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// It may push, so its unsigned position counts as evidence.
    pub may_write: bool,
    /// It holds a replica, so it may have a mark of the register of members.
    pub holds_replica: bool,
}

/// Input of the machine.
#[derive(Debug)]
pub enum Event {
    /// A message arrived on the control stream.
    Control(Kind, Bytes),
    /// The end of the log rose.
    Head(Seq),
    /// Completes [`Effect::Greet`].
    Greeted(Box<Welcome>),
    /// Completes [`Effect::Examine`].
    Examined,
    /// Completes [`Effect::AwaitSound`]: why the present register is not known to be the latest, if it is not.
    Sound(Option<String>),
    /// Completes [`Effect::AwaitShown`].
    Shown,
    /// Completes an effect that handles a message of the member.
    Taken,
    /// Completes an effect that sends a message on the control stream.
    Sent,
    /// Completes [`Effect::SendRoster`]: it must not be sent now.
    RosterWithheld,
    /// The membership list changed.
    RosterChanged,
    /// The list of revoked certificates changed.
    RevocationsChanged,
    /// There is another signed position.
    ProofChanged,
    /// The index has reached this bookmark.
    Bookmark(Bookmark),
    /// Completes an effect that sends on the tail: everything up to this sequence was sent.
    Fed(Seq),
    /// Completes [`Feed::Read`]: there is nothing to read at this time.
    NothingRead,
    /// Completes [`Feed::Read`]: the entries were compacted. This is the horizon.
    ReadCompacted(Seq),
    /// A step is refused.
    Refused(Refused),
}

/// Output of the machine.
#[derive(Debug)]
pub enum Effect {
    /// Reads the next message of the control stream.
    Read,
    /// Answers the greeting.
    Greet(Arc<Hello>),
    /// Examines the position that a greeting claims for evidence against the log.
    Examine(Position),
    /// Waits for at most this time until the register of members is known to be the latest.
    AwaitSound(Duration),
    /// Records the verdict.
    Welcomed(Arc<Welcome>),
    /// Sends a message on the control stream.
    Send(Kind, Bytes),
    /// Sends a heartbeat.
    SendHeartbeat,
    /// Sends the present membership list.
    SendRoster,
    /// Sends the revoked certificates.
    SendRevocations,
    /// Sends the last signed position, if there is one.
    SendProof,
    /// Waits until the member has shown its mark of the register, or reported that it has none.
    AwaitShown,
    /// Records an announced address.
    Announce(Announce),
    /// Records a progress report.
    Progress(Progress),
    /// Examines a signed position.
    ExamineProof(Bytes),
    /// Opens the tail after this sequence: its first messages are `Open` and the present bookmark.
    OpenTail(Seq),
    /// Sends a bookmark on the tail, on which everything up to this sequence was sent.
    SendBookmark(Bookmark, Seq),
    /// Closes the tail.
    CloseTail,
    /// Ends the connection. It is the last effect.
    Close(End),
}

/// Next step of a tail.
#[derive(Debug)]
pub enum Feed {
    /// Send these blocks.
    Send(Vec<Block>),
    /// Read entries after this sequence from the log and send them.
    Read(Seq),
}

/// Reason for which a datastore ends a connection.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// A rule is violated, or a step failed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A message is malformed or not expected.
    #[error(transparent)]
    Message(#[from] BadMessage),
}

/// Messages of the member of one kind, of which one is handled per interval.
#[derive(Debug, Default)]
struct Paced {
    last: Option<Duration>,
    held: Option<Effect>,
}

impl Paced {
    /// Handles a message with this effect, at once or when the interval has passed.
    fn take(&mut self, now: Duration, every: Duration, effect: Effect, effects: &mut VecDeque<Effect>) {
        if self.last.is_some_and(|last| now < last + every) {
            self.held = Some(effect);
            return;
        }
        self.last = Some(now);
        effects.push_back(effect);
    }

    fn due(&self, every: Duration) -> Option<Duration> {
        self.held.as_ref().and(self.last).map(|last| last + every)
    }

    fn handle_timeout(&mut self, now: Duration, every: Duration, effects: &mut VecDeque<Effect>) {
        if self.due(every).is_some_and(|due| now >= due)
            && let Some(effect) = self.held.take()
        {
            self.last = Some(now);
            effects.push_back(effect);
        }
    }
}

/// Messages that wait for their turn on the control stream.
#[derive(Debug)]
struct ToSend {
    is_sending: bool,
    heartbeat: bool,
    revocations: bool,
    proof: bool,
    roster: bool,
    /// The roster was withheld, and is tried again with the next heartbeat.
    is_withheld: bool,
    compacted: Option<Seq>,
}

impl ToSend {
    /// Starts to send the next message.
    fn send(&mut self, has_shown: bool, effects: &mut VecDeque<Effect>) {
        if self.is_sending {
            return;
        }
        let effect = if std::mem::take(&mut self.revocations) {
            Effect::SendRevocations
        } else if let Some(horizon) = self.compacted.take() {
            Effect::Send(Kind::Compacted, message::encode_body(&Compacted { horizon }).into())
        } else if std::mem::take(&mut self.proof) {
            Effect::SendProof
        } else if self.roster && has_shown && !self.is_withheld {
            self.roster = false;
            Effect::SendRoster
        } else if std::mem::take(&mut self.heartbeat) {
            Effect::SendHeartbeat
        } else {
            return;
        };
        self.is_sending = true;
        effects.push_back(effect);
    }
}

/// A connection on which the member is welcome.
#[derive(Debug)]
struct Serving {
    welcome: Arc<Welcome>,
    heartbeat_every: Duration,
    heartbeat_at: Duration,
    /// Until when the membership list waits for the member's mark of the register; `None` once it does not.
    shows_until: Option<Duration>,
    to_send: ToSend,
    announcements: Paced,
    proofs: Paced,
    tail: TailFeed,
}

#[derive(Debug)]
enum State {
    Greeting,
    Welcoming(Arc<Hello>),
    Examining(Arc<Welcome>),
    Sounding(Arc<Welcome>),
    Serving(Box<Serving>),
    Closed,
}

/// The datastore's half of one connection. See the module documentation.
#[derive(Debug)]
pub struct ServerSession {
    rights: Rights,
    head: Seq,
    state: State,
    effects: VecDeque<Effect>,
}

impl ServerSession {
    /// Starts a connection of a member with these rights.
    #[must_use]
    pub fn new(rights: Rights, head: Seq) -> ServerSession {
        ServerSession { rights, head, state: State::Greeting, effects: VecDeque::from([Effect::Read]) }
    }

    /// Returns the next effect to carry out.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Returns the next step of the tail, to be completed by an event; `None` if there is none now. Call it again after
    /// any event. `horizon` is that of the log, and `bytes_max` about how much is sent at a time.
    pub fn poll_feed(&mut self, ring: &Ring, horizon: Seq, bytes_max: usize) -> Option<Feed> {
        let State::Serving(serving) = &mut self.state else { return None };
        match serving.tail.choose(|sent| feed::next(ring, sent, self.head, horizon, bytes_max))? {
            feed::Next::Wait => None,
            feed::Next::Send(blocks) => Some(Feed::Send(blocks)),
            feed::Next::Read(after) => Some(Feed::Read(after)),
            feed::Next::Compacted => {
                serving.compacted(horizon, &mut self.effects);
                None
            }
        }
    }

    /// Returns when [`ServerSession::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        let State::Serving(serving) = &self.state else { return None };
        let held = [serving.announcements.due(ANNOUNCE_EVERY), serving.proofs.due(PROOF_EVERY), serving.shows_until];
        held.into_iter().flatten().chain([serving.heartbeat_at]).min()
    }

    /// Handles the passage of time.
    pub fn handle_timeout(&mut self, now: Duration) {
        let State::Serving(serving) = &mut self.state else { return };
        if now >= serving.heartbeat_at {
            serving.heartbeat_at = now + serving.heartbeat_every;
            (serving.to_send.heartbeat, serving.to_send.is_withheld) = (true, false);
        }
        serving.shows_until = serving.shows_until.filter(|until| now < *until);
        serving.announcements.handle_timeout(now, ANNOUNCE_EVERY, &mut self.effects);
        serving.proofs.handle_timeout(now, PROOF_EVERY, &mut self.effects);
        serving.send(&mut self.effects);
    }

    /// Handles an event. One that does not fit the present state has no effect.
    pub fn handle_event(&mut self, now: Duration, event: Event) {
        if let Event::Head(head) = event {
            self.head = self.head.max(head);
            if let State::Serving(serving) = &mut self.state {
                serving.tail.wake();
            }
            return;
        }
        match self.advance(now, event) {
            Ok(state) => self.state = state,
            Err(end) => {
                self.state = State::Closed;
                self.effects.push_back(Effect::Close(end));
            }
        }
    }

    fn advance(&mut self, now: Duration, event: Event) -> Result<State, End> {
        let effects = &mut self.effects;
        Ok(match (std::mem::replace(&mut self.state, State::Closed), event) {
            (State::Closed, _) => State::Closed,
            (_, Event::Refused(refused)) => return Err(refused.into()),
            (State::Greeting, Event::Control(kind, body)) => {
                let hello = Arc::new(expect_hello(kind, &body)?);
                effects.push_back(Effect::Greet(Arc::clone(&hello)));
                State::Welcoming(hello)
            }
            (State::Welcoming(hello), Event::Greeted(welcome)) => {
                let welcome = Arc::new(*welcome);
                // The evidence is recorded before the member gets an answer. An unsigned position counts only from
                // members that may write.
                match hello.position.filter(|_| self.rights.may_write) {
                    Some(position) => {
                        effects.push_back(Effect::Examine(position));
                        State::Examining(welcome)
                    }
                    None => await_sound(welcome, effects),
                }
            }
            (State::Examining(welcome), Event::Examined) => await_sound(welcome, effects),
            // A member that may have been revoked in a later register is not welcomed.
            (State::Sounding(_), Event::Sound(Some(message))) => {
                return Err(Refused { code: RefusalCode::Diverged, message }.into());
            }
            (State::Sounding(welcome), Event::Sound(None)) => {
                State::Serving(Box::new(Serving::new(now, welcome, self.rights, effects)))
            }
            (State::Serving(mut serving), event) => {
                serving.handle_event(now, event, self.head, effects)?;
                serving.send(effects);
                State::Serving(serving)
            }
            (state, _) => state,
        })
    }
}

fn await_sound(welcome: Arc<Welcome>, effects: &mut VecDeque<Effect>) -> State {
    effects.push_back(Effect::AwaitSound(SHOWING_TIMEOUT));
    State::Sounding(welcome)
}

fn expect_hello(kind: Kind, body: &[u8]) -> Result<Hello, End> {
    match kind {
        Kind::Hello => {
            let hello: Hello = message::decode(kind, body)?;
            hello.check()?;
            Ok(hello)
        }
        Kind::Refused => Err(message::decode::<Refused>(kind, body)?.into()),
        found => Err(BadMessage::Unexpected { expected: "Hello", found }.into()),
    }
}

impl Serving {
    fn new(now: Duration, welcome: Arc<Welcome>, rights: Rights, effects: &mut VecDeque<Effect>) -> Serving {
        effects.push_back(Effect::Send(Kind::Welcome, message::encode_body(&*welcome).into()));
        effects.push_back(Effect::Welcomed(Arc::clone(&welcome)));
        effects.push_back(Effect::Read);
        if rights.holds_replica {
            effects.push_back(Effect::AwaitShown);
        }
        let heartbeat_every = Duration::from_millis(welcome.heartbeat_ms.max(1));
        let to_send = ToSend {
            is_sending: true,
            heartbeat: true,
            revocations: true,
            proof: true,
            roster: true,
            is_withheld: false,
            compacted: None,
        };
        Serving {
            welcome,
            heartbeat_every,
            heartbeat_at: now + heartbeat_every,
            shows_until: rights.holds_replica.then_some(now + SHOWING_TIMEOUT),
            to_send,
            announcements: Paced::default(),
            proofs: Paced::default(),
            tail: TailFeed::default(),
        }
    }

    fn send(&mut self, effects: &mut VecDeque<Effect>) {
        self.to_send.send(self.shows_until.is_none(), effects);
    }

    fn handle_event(
        &mut self,
        now: Duration,
        event: Event,
        head: Seq,
        effects: &mut VecDeque<Effect>,
    ) -> Result<(), End> {
        match event {
            Event::Control(kind, body) => return self.control(now, kind, body, head, effects),
            Event::Taken => effects.push_back(Effect::Read),
            Event::Shown => self.shows_until = None,
            Event::Sent => self.to_send.is_sending = false,
            Event::RosterWithheld => {
                (self.to_send.is_sending, self.to_send.is_withheld) = (false, true);
                self.to_send.roster = true;
            }
            Event::RosterChanged => self.to_send.roster = true,
            Event::RevocationsChanged => self.to_send.revocations = true,
            Event::ProofChanged => self.to_send.proof = true,
            Event::Bookmark(bookmark) => self.tail.bookmark(bookmark, effects),
            Event::Fed(seq) => self.tail.fed(seq, effects),
            Event::NothingRead => self.tail.wake_reader(),
            Event::ReadCompacted(horizon) => self.compacted(horizon, effects),
            _ => {}
        }
        Ok(())
    }

    fn control(
        &mut self,
        now: Duration,
        kind: Kind,
        body: Bytes,
        head: Seq,
        effects: &mut VecDeque<Effect>,
    ) -> Result<(), End> {
        match kind {
            Kind::Announce => {
                let announce: Announce = message::decode(kind, &body)?;
                announce.check()?;
                self.announcements.take(now, ANNOUNCE_EVERY, Effect::Announce(announce), effects);
            }
            Kind::Subscribe => {
                let Subscribe { from } = message::decode(kind, &body)?;
                self.subscribe(from, head, effects)?;
                effects.push_back(Effect::Read);
            }
            Kind::Progress => {
                let progress: Progress = message::decode(kind, &body)?;
                progress.check()?;
                effects.push_back(Effect::Progress(progress));
            }
            // None is left out: each may be evidence.
            Kind::Proof => self.proofs.take(now, PROOF_EVERY, Effect::ExamineProof(body), effects),
            // A newer member may send other messages on this stream. Unknown messages can be ignored.
            _ => effects.push_back(Effect::Read),
        }
        Ok(())
    }

    fn subscribe(&mut self, from: Seq, head: Seq, effects: &mut VecDeque<Effect>) -> Result<(), End> {
        may_follow(&self.welcome, from, head)?;
        if !self.tail.open() {
            // Replacing a running tail would leave its current read of the log behind.
            let message = "the log is already followed on this stream".into();
            return Err(Refused { code: RefusalCode::Protocol, message }.into());
        }
        effects.push_back(Effect::OpenTail(from));
        Ok(())
    }

    fn compacted(&mut self, horizon: Seq, effects: &mut VecDeque<Effect>) {
        self.tail = TailFeed::default();
        effects.push_back(Effect::CloseTail);
        if !fault_injection::is(Bug::CompactedNotSent) {
            self.to_send.compacted = Some(horizon);
        }
        self.send(effects);
    }
}
