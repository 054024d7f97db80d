//! Connections of the datastore: the session machine of the product, driven by simulated time and messages.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use gravwell_datastore::handshake::Handshake;
use gravwell_log::ReadError;
use gravwell_model::codec::message::{self, Bookmark, Heartbeat, Hello, Kind, Open, Progress, RefusalCode, Refused};
use gravwell_model::codec::redacted_frame::redact_frames;
use gravwell_model::{MemberName, Position, Seq};
use gravwell_protocol::session::server::{Effect, End, Event, Feed, Rights, ServerSession};
use gravwell_transport::trust::Role;

use super::datastore::{self, Session};
use super::network::{ConnId, MS, Message};
use super::oracle::{Checked, Violation};
use super::world::{self, World};

/// Maximum number of bytes per chunk of a tail sent to a subscriber.
const CHUNK_BYTES: usize = 2 << 10;
const HEARTBEAT_MS: u64 = 1000;

impl World {
    fn server_session(&mut self, id: ConnId) -> Option<&mut Session> {
        self.datastore.as_mut()?.sessions.get_mut(&id)
    }

    pub fn accept_session(&mut self, id: ConnId, member: MemberName, role: Role) {
        let Some(datastore) = &mut self.datastore else { return };
        let rights = Rights { may_write: role.may_write(), holds_replica: role.holds_replica() };
        let machine = ServerSession::new(rights, datastore.head);
        let (control, reads, fed, timer, snapshot_at) = (VecDeque::new(), false, None, None, None);
        let session = Session { member, role, machine, control, reads, fed, timer, snapshot_at };
        datastore.sessions.insert(id, session);
    }

    pub fn report_arrived(&mut self, id: ConnId, kind: Kind, body: Bytes) -> Checked {
        if let Some(session) = self.server_session(id) {
            session.control.push_back((kind, body));
        }
        self.serve(id)
    }

    pub fn server_event(&mut self, id: ConnId, event: Event) -> Checked {
        self.complete_at_server(id, event);
        self.serve(id)
    }

    fn complete_at_server(&mut self, id: ConnId, event: Event) {
        let now = Duration::from_micros(self.now);
        let Some(datastore) = &mut self.datastore else { return };
        if let Some(session) = datastore.sessions.get_mut(&id) {
            session.machine.handle_event(now, Event::Head(datastore.head));
            session.machine.handle_event(now, event);
        }
    }

    pub fn server_timeout(&mut self, id: ConnId) -> Checked {
        let now = self.now;
        let Some(session) = self.server_session(id) else { return Ok(()) };
        session.timer = session.timer.filter(|at| *at > now);
        session.machine.handle_timeout(Duration::from_micros(now));
        self.serve(id)
    }

    /// Handles that a subscriber has received what was sent.
    pub fn feed(&mut self, id: ConnId) -> Checked {
        // Flow control: a subscriber that receives nothing is sent nothing more, and may fall below the horizon.
        if self.conns.get(&id).is_some_and(|conn| conn.stalled.len() > 3) {
            self.after(100 * MS, world::Event::Feed(id));
            return Ok(());
        }
        let fed = self.server_session(id).and_then(|session| session.fed.take());
        fed.map_or(Ok(()), |event| self.server_event(id, event))
    }

    /// Passes waiting messages to the session and carries out its effects until there are no more of both.
    fn serve(&mut self, id: ConnId) -> Checked {
        while let Some(session) = self.server_session(id) {
            if let Some(effect) = session.machine.poll_effect() {
                self.serve_effect(id, effect)?;
            } else if session.reads
                && let Some((kind, body)) = session.control.pop_front()
            {
                session.reads = false;
                self.complete_at_server(id, Event::Control(kind, body));
            } else if !self.feed_next(id)? {
                break;
            }
        }
        let now = self.now;
        let Some(session) = self.server_session(id) else { return Ok(()) };
        let Some(due) = session.machine.poll_timeout() else { return Ok(()) };
        let due = u64::try_from(due.as_micros()).unwrap_or(u64::MAX).max(now);
        if session.timer.is_none_or(|at| due < at) {
            session.timer = Some(due);
            self.after(due - now, world::Event::ServerTimeout(id));
        }
        Ok(())
    }

    fn serve_effect(&mut self, id: ConnId, effect: Effect) -> Checked {
        let replica = self.conns.get(&id).map(|conn| conn.replica);
        let event = match effect {
            Effect::Read => {
                if let Some(session) = self.server_session(id) {
                    session.reads = true;
                }
                return Ok(());
            }
            Effect::Greet(hello) => self.greeted(id, replica, &hello),
            Effect::Examine(position) => self.examined(id, &position),
            Effect::AwaitSound(_) => {
                // The position of a reader counts only once it is signed.
                let may_write = self.server_session(id).is_some_and(|session| session.role.may_write());
                self.check_evidence(replica.filter(|_| may_write))?;
                Some(Event::Sound(None))
            }
            Effect::ExamineProof(body) => {
                let position: Position =
                    message::decode(Kind::Proof, &body).map_err(|error| Violation(error.to_string()))?;
                self.examined(id, &position);
                self.check_evidence(replica)?;
                Some(Event::Taken)
            }
            Effect::Welcomed(_) => {
                let truth = self.truth;
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.welcomed_by = Some(truth);
                }
                None
            }
            Effect::Send(kind, body) => {
                self.send(id, Message::Control(kind, body));
                Some(Event::Sent)
            }
            Effect::SendHeartbeat => {
                let (floor, time_ms) = (self.floor(), self.datastore_ms());
                let head = self.datastore.as_ref().map(|datastore| datastore.head).unwrap_or_default();
                self.send(id, Message::control(Kind::Heartbeat, &Heartbeat { head, floor, time_ms }));
                Some(Event::Sent)
            }
            // Lists of members are not part of this simulation, and signed positions are sent by members only.
            Effect::SendRoster | Effect::SendRevocations | Effect::SendProof => Some(Event::Sent),
            Effect::AwaitShown => Some(Event::Shown),
            Effect::Announce(_) => Some(Event::Taken),
            Effect::Progress(progress) => {
                if let Some(replica) = replica {
                    self.take_progress(id, replica, &progress);
                }
                Some(Event::Taken)
            }
            Effect::OpenTail(from) => {
                let bookmark = self.datastore.as_ref().and_then(datastore::Running::bookmark);
                self.send(id, Message::Tail(Kind::Open, message::encode_body(&Open::Tail).into()));
                bookmark.into_iter().for_each(|bookmark| self.send_bookmark(id, bookmark));
                Some(Event::Fed(from))
            }
            Effect::SendBookmark(bookmark, sent) => {
                self.send_bookmark(id, bookmark);
                Some(Event::Fed(sent))
            }
            Effect::CloseTail => None,
            Effect::Close(end) => {
                self.refuse_connection(id, &end);
                None
            }
        };
        event.into_iter().for_each(|event| self.complete_at_server(id, event));
        Ok(())
    }

    /// Checks what follows from the position of a replica, once it was examined.
    fn check_evidence(&mut self, replica: Option<usize>) -> Checked {
        let waits = self.datastore.as_ref().map(|datastore| datastore.recovery.clone()).unwrap_or_default();
        replica.map_or(Ok(()), |replica| self.check_fence(replica, &waits))
    }

    fn send_bookmark(&mut self, id: ConnId, bookmark: Bookmark) {
        self.send(id, Message::Tail(Kind::Bookmark, message::encode_body(&bookmark).into()));
    }

    fn refuse_connection(&mut self, id: ConnId, end: &End) {
        self.note(|| format!("{id} is refused: {end}"));
        if let End::Refused(refused) = end {
            self.send(id, Message::control(Kind::Refused, refused));
        }
        self.send(id, Message::Closed);
        if let Some(datastore) = &mut self.datastore {
            datastore.sessions.remove(&id);
        }
    }

    fn greeted(&mut self, id: ConnId, replica: Option<usize>, hello: &Hello) -> Option<Event> {
        let now_ms = self.datastore_ms();
        // If the clock went back, silence counts from now on.
        if self.truth == world::Truth::Genuine
            && let Some(replica) = replica
        {
            for reported in [&mut self.reported, &mut self.saved_reports] {
                if let Some((at, ..)) = &mut reported[replica] {
                    *at = (*at).min(now_ms);
                }
            }
        }
        let datastore = self.datastore.as_ref()?;
        let session = datastore.sessions.get(&id)?;
        let limits = datastore::limits();
        let greeter =
            Handshake { log: &datastore.reader, head: datastore.head, limits: &limits, heartbeat_ms: HEARTBEAT_MS };
        let welcome = greeter.welcome(session.member.as_str(), session.role, hello);
        Some(welcome.map_or_else(Event::Refused, |welcome| Event::Greeted(Box::new(welcome))))
    }

    fn examined(&mut self, id: ConnId, position: &Position) -> Option<Event> {
        let now_ms = self.datastore_ms();
        let datastore = self.datastore.as_mut()?;
        let member = datastore.sessions.get(&id)?.member.clone();
        if datastore.examine(&member, position, now_ms)
            && let Ok(text) = datastore.registry.text(now_ms)
        {
            self.disks.members = text;
        }
        Some(Event::Examined)
    }

    fn take_progress(&mut self, id: ConnId, replica: usize, progress: &Progress) {
        let now_ms = self.datastore_ms();
        let Some(datastore) = &mut self.datastore else { return };
        let head = datastore.head;
        let Some(session) = datastore.sessions.get(&id) else { return };
        let may_note = !datastore.waits();
        let is_first = may_note && datastore.registry.note_position(&session.member, progress.applied, head, now_ms);
        if is_first && let Ok(text) = datastore.registry.text(now_ms) {
            self.disks.members = text;
        }
        self.replicas[replica].has_misreported |= self.replicas[replica].is_doubtful();
        // A member counts from its first report on, whatever happens to the datastore.
        let twins = self.twins_of(replica);
        if twins.iter().all(|twin| self.saved_reports[*twin].is_none()) {
            self.saved_reports[replica] = Some((now_ms, progress.applied, now_ms));
        }
        // If one member has two directories, the registry stores the higher report.
        let known = twins.iter().chain([&replica]).filter_map(|twin| self.reported[*twin]);
        let (_, before, advanced) = known.max_by_key(|(_, applied, _)| *applied).unwrap_or((now_ms, Seq::ZERO, now_ms));
        let gets_on = progress.applied > before || progress.applied >= head;
        let advanced = if gets_on { now_ms } else { advanced };
        twins.into_iter().for_each(|twin| self.reported[twin] = None);
        self.reported[replica] = Some((now_ms, progress.applied.max(before), advanced));
    }

    /// Sends the next blocks of a tail, if there are some to be sent now.
    fn feed_next(&mut self, id: ConnId) -> Result<bool, Violation> {
        let is_stalled = self.conns.get(&id).is_some_and(|conn| conn.stalled.len() > 3);
        let Some(datastore) = &mut self.datastore else { return Ok(false) };
        let (head, horizon) = (datastore.head, datastore.reader.horizon());
        let Some(session) = datastore.sessions.get_mut(&id) else { return Ok(false) };
        if session.fed.is_some() {
            return Ok(false);
        }
        if is_stalled {
            session.fed = Some(Event::Head(head));
            self.after(100 * MS, world::Event::Feed(id));
            return Ok(false);
        }
        let event = match session.machine.poll_feed(&datastore.ring, horizon, CHUNK_BYTES) {
            None => return Ok(false),
            Some(Feed::Send(blocks)) => {
                let blocks = blocks.into_iter().map(|block| (block.last, block.bytes)).collect();
                Event::Fed(self.send_blocks(id, blocks)?)
            }
            Some(Feed::Read(after)) => match datastore.reader.frames(after, CHUNK_BYTES) {
                Ok(Some(block)) => Event::Fed(self.send_blocks(id, vec![(block.last, block.bytes)])?),
                Ok(None) => Event::NothingRead,
                Err(ReadError::Compacted { .. }) => Event::ReadCompacted(horizon),
                Err(error) => {
                    self.note(|| format!("the log cannot be read: {error}"));
                    let message = format!("the log cannot be read: {error}");
                    Event::Refused(Refused { code: RefusalCode::Internal, message })
                }
            },
        };
        if let Some(session) = self.server_session(id) {
            session.fed = Some(event);
        }
        // A slow subscriber gets the next chunk after it has received this one.
        let wait = self.draw(20 * MS);
        self.after(wait, world::Event::Feed(id));
        Ok(true)
    }

    fn send_blocks(&mut self, id: ConnId, blocks: Vec<(Seq, Bytes)>) -> Result<Seq, Violation> {
        let is_reader = self.server_session(id).is_some_and(|session| session.role == Role::Reader);
        let last = blocks.last().map(|(last, _)| *last).unwrap_or_default();
        for (_, bytes) in blocks {
            let bytes = match is_reader {
                true => redact_frames(&datastore::redaction(), bytes).map_err(|error| Violation(error.to_string()))?,
                false => bytes,
            };
            self.send(id, Message::Tail(Kind::Frames, bytes));
        }
        Ok(last)
    }
}
