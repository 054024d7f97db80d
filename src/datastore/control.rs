//! The control stream and the tail of one connection: maps them to events of the session machine, and the effects of
//! the machine to streams, the registry and the log. Order and conditions are in
//! [`gravwell_protocol::session::server`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until};

use gravwell_model::codec::message::{self, Bookmark, Heartbeat, Hello, Kind, Progress, RefusalCode, Welcome};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::{Position, Seq};
use gravwell_protocol::session::server::{Effect, End, Event, Rights, ServerSession};
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry;
use gravwell_transport::wire::{self, WireError};

use super::feed::{self, FeedEnd};
use super::handshake::refused;
use super::presences::PresenceId;
use super::read_only;
use super::session::Session;
use super::shared::{BLOCK_BYTES, DatastoreRef, now_ms};

type Job<'a> = Pin<Box<dyn Future<Output = Result<Done, WireError>> + Send + 'a>>;

/// Result of a job.
enum Done {
    Event(Event),
    /// A message was written to the control stream.
    Sent(quinn::SendStream),
    /// A message was read from the control stream; `None` at its end.
    Read(quinn::RecvStream, Option<(Kind, Bytes)>),
    /// Something was written to the tail.
    Fed(quinn::SendStream, Event),
}

/// The control stream of a connection.
pub(super) struct Control<'a> {
    session: &'a Session,
    presence: PresenceId,
    started: Instant,
    machine: ServerSession,
    /// Events of effects that were completed at once.
    events: VecDeque<Event>,
    jobs: FuturesUnordered<Job<'a>>,
    /// Streams, while no job has them.
    send: Option<quinn::SendStream>,
    receive: Option<quinn::RecvStream>,
    has_read: bool,
    tail: Option<quinn::SendStream>,
}

impl<'a> Control<'a> {
    pub(super) fn new(
        session: &'a Session,
        presence: PresenceId,
        (send, receive): (quinn::SendStream, quinn::RecvStream),
    ) -> Control<'a> {
        let rights = Rights { may_write: session.role.may_write(), holds_replica: session.role.holds_replica() };
        Control {
            session,
            presence,
            started: Instant::now(),
            machine: ServerSession::new(rights, session.shared.head()),
            events: VecDeque::new(),
            jobs: FuturesUnordered::new(),
            send: Some(send),
            receive: Some(receive),
            has_read: false,
            tail: None,
        }
    }

    /// Serves the member until it closes the control stream.
    pub(super) async fn run(mut self) -> Result<(), WireError> {
        let shared = &self.session.shared;
        let published = shared.members.published();
        let (mut roster, mut revocations) = (published.watch_roster(), published.watch_revocations());
        let (mut head, mut proofs) = (shared.head.subscribe(), shared.proof.subscribe());
        let mut bookmarks = shared.bookmarks.subscribe();
        loop {
            self.carry_out_all()?;
            self.feed();
            let due = self.machine.poll_timeout().map(|at| self.started + at);
            let event = tokio::select! {
                Some(done) = self.jobs.next() => match self.finish(done?) {
                    Some(event) => event,
                    // The member has closed the stream.
                    None => return Ok(()),
                },
                Ok(()) = head.changed() => Event::Head(*head.borrow_and_update()),
                Ok(()) = roster.changed() => Event::RosterChanged,
                Ok(()) = revocations.changed() => Event::RevocationsChanged,
                Ok(()) = proofs.changed() => Event::ProofChanged,
                bookmark = bookmarks.recv() => match bookmark {
                    Ok(bookmark) => Event::Bookmark(bookmark),
                    Err(RecvError::Lagged(_)) => continue,
                    Err(closed) => return Err(std::io::Error::other(closed).into()),
                },
                () = sleep_until(due.unwrap_or(self.started)), if due.is_some() => {
                    self.machine.handle_timeout(self.started.elapsed());
                    continue;
                }
            };
            self.events.push_back(event);
        }
    }

    /// Passes waiting events to the machine and carries out its effects until there are no more of both.
    fn carry_out_all(&mut self) -> Result<(), WireError> {
        loop {
            while let Some(effect) = self.machine.poll_effect() {
                self.carry_out(effect)?;
            }
            let Some(event) = self.events.pop_front() else { return Ok(()) };
            // A member may already know the head that a watcher reports only later.
            let now = self.started.elapsed();
            self.machine.handle_event(now, Event::Head(self.session.shared.head()));
            self.machine.handle_event(now, event);
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), WireError> {
        let (session, shared) = (self.session, &self.session.shared);
        match effect {
            Effect::Close(End::Refused(refused)) => return Err(refused.into()),
            Effect::Close(End::Message(error)) => return Err(error.into()),
            Effect::Read => self.read(),
            Effect::Greet(hello) => self.start(greet(session, self.presence, hello)),
            Effect::Examine(position) => self.start(examine(session, position)),
            Effect::AwaitSound(timeout) => self
                .start(async move { Ok(Done::Event(Event::Sound(shared.wait_sound(&session.member, timeout).await))) }),
            Effect::Welcomed(welcome) => self.note_verdict(&welcome),
            Effect::Send(kind, body) => self.write(kind, body),
            Effect::SendHeartbeat => {
                let heartbeat = Heartbeat { head: shared.head(), floor: shared.floor(), time_ms: now_ms() };
                self.write(Kind::Heartbeat, message::encode_body(&heartbeat).into());
            }
            // A registry that went back lists members that were revoked: what members know of each other is kept. The
            // member may be the one whose mark shows it.
            Effect::SendRoster if shared.register_waits().is_some() => self.events.push_back(Event::RosterWithheld),
            Effect::SendRoster => {
                let roster = shared.members.published().watch_roster().borrow().clone();
                self.write(Kind::Roster, roster);
            }
            Effect::SendRevocations => {
                let revocations = shared.members.published().watch_revocations().borrow().clone();
                self.write(Kind::Revocations, revocations);
            }
            Effect::SendProof => {
                let proof = shared.proof.borrow().clone();
                match proof {
                    Some(proof) => self.write(Kind::Proof, proof.to_text().into_bytes().into()),
                    None => self.events.push_back(Event::Sent),
                }
            }
            Effect::AwaitShown => self.start(async move {
                shared.members.wait_shown(&session.member, session.connection.stable_id()).await;
                Ok(Done::Event(Event::Shown))
            }),
            Effect::Announce(announce) => {
                shared.members.announce(self.presence, &announce, session.connection.remote_address().ip());
                self.events.push_back(Event::Taken);
            }
            Effect::Progress(progress) => self.start(take_progress(session, self.presence, progress)),
            Effect::ExamineProof(body) => self.start(async move {
                let session = session.clone();
                let examining = move || session.examine_proof(&body);
                vital::spawn_blocking(examining).await.map_err(std::io::Error::other)?;
                Ok(Done::Event(Event::Taken))
            }),
            Effect::OpenTail(from) => self
                .start(async move { Ok(Done::Fed(feed::open(shared, &session.connection).await?, Event::Fed(from))) }),
            Effect::SendBookmark(bookmark, sent) => self.send_bookmark(bookmark, sent),
            Effect::CloseTail => self.tail = None,
        }
        Ok(())
    }

    fn start(&self, job: impl Future<Output = Result<Done, WireError>> + Send + 'a) {
        self.jobs.push(Box::pin(job));
    }

    /// Takes back what a job has used, and returns the event that it leads to; `None` at the end of the stream.
    fn finish(&mut self, done: Done) -> Option<Event> {
        Some(match done {
            Done::Event(event) => event,
            Done::Sent(send) => {
                self.send = Some(send);
                Event::Sent
            }
            Done::Read(receive, message) => {
                self.receive = Some(receive);
                let (kind, body) = message?;
                Event::Control(kind, body)
            }
            Done::Fed(tail, event) => {
                self.tail = Some(tail);
                event
            }
        })
    }

    fn read(&mut self) {
        let Some(mut receive) = self.receive.take() else { return };
        let is_first = !std::mem::replace(&mut self.has_read, true);
        self.start(async move {
            if is_first {
                let hello = wire::read_at_most(&mut receive, REPORT_BYTES_MAX).await?.ok_or(WireError::Closed)?;
                return Ok(Done::Read(receive, Some(hello)));
            }
            // A newer member may send other kinds after its greeting.
            let message = wire::read_known_at_most(&mut receive, REPORT_BYTES_MAX).await?;
            Ok(Done::Read(receive, message))
        });
    }

    /// Writes a message to the control stream. The machine starts the next one after it.
    fn write(&mut self, kind: Kind, body: Bytes) {
        let Some(mut send) = self.send.take() else { return };
        self.start(async move {
            wire::send_raw(&mut send, kind, &body).await?;
            Ok(Done::Sent(send))
        });
    }

    fn send_bookmark(&mut self, bookmark: Bookmark, sent: Seq) {
        let Some(mut tail) = self.tail.take() else { return };
        self.start(async move {
            wire::send(&mut tail, Kind::Bookmark, &bookmark).await?;
            Ok(Done::Fed(tail, Event::Fed(sent)))
        });
    }

    /// Starts the next step of the tail, if there is one.
    fn feed(&mut self) {
        let (session, shared) = (self.session, &self.session.shared);
        let next = {
            let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
            self.machine.poll_feed(&ring, shared.log.horizon(), BLOCK_BYTES)
        };
        let (Some(next), Some(mut tail)) = (next, self.tail.take()) else { return };
        self.start(async move {
            let redaction = shared.redaction_for(session.role);
            match feed::send_next(shared, &session.member, &mut tail, next, redaction.as_ref()).await {
                Ok(event) => Ok(Done::Fed(tail, event)),
                Err(FeedEnd::Wire(error)) => Err(error),
                Err(FeedEnd::Log(error)) => {
                    tracing::error!(%error, "failed to read the log");
                    Err(refused(RefusalCode::Internal, format!("the log cannot be read: {error}")).into())
                }
            }
        });
    }

    fn note_verdict(&self, welcome: &Welcome) {
        if let Some(bad) = welcome.verdict.filter(|verdict| !verdict.is_good()) {
            telemetry::metrics::verdict(bad);
            tracing::warn!(member = %self.session.member, verdict = %bad, "member position is inconsistent");
        }
    }
}

/// Answers a greeting. Reads the log.
async fn greet(session: &Session, presence: PresenceId, hello: Arc<Hello>) -> Result<Done, WireError> {
    let session = session.clone();
    let greeting = move || {
        let welcome = session.welcome(&hello)?;
        session.shared.members.greet(presence, &hello);
        Ok(welcome)
    };
    let welcome = vital::spawn_blocking(greeting).await.map_err(std::io::Error::other)?;
    Ok(Done::Event(welcome.map_or_else(Event::Refused, |welcome| Event::Greeted(Box::new(welcome)))))
}

/// Records the evidence in a position. Reads the log and writes the registry.
async fn examine(session: &Session, position: Position) -> Result<Done, WireError> {
    let session = session.clone();
    let examining = move || session.examine_position(&position, read_only::unsigned);
    vital::spawn_blocking(examining).await.map_err(std::io::Error::other)?;
    Ok(Done::Event(Event::Examined))
}

async fn take_progress(session: &Session, presence: PresenceId, progress: Progress) -> Result<Done, WireError> {
    let shared = &session.shared;
    let head = shared.head();
    telemetry::metrics::member_lag(session.member.as_str(), head.since(progress.applied));
    let may_note = shared.recovery().is_empty();
    if shared.members.progress(presence, &progress, head, may_note) {
        let shared = DatastoreRef::clone(shared);
        let saving = move || shared.members.save();
        vital::spawn_blocking(saving).await.map_err(std::io::Error::other)?;
    }
    shared.pins.end_loading(&session.member);
    Ok(Done::Event(Event::Taken))
}
