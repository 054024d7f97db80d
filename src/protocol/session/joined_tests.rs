//! Both halves of a connection joined back to back, over a log that grows, is compacted, and loses its last entries,
//! with messages that take any time, and connections that break at any moment.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use gravwell_model::codec::frame::CHAIN_START;
use gravwell_model::codec::message::{self, Bookmark, Heartbeat, Hello, Kind, Open, Welcome};
use gravwell_model::codec::payload::encode_entry;
use gravwell_model::position::compare;
use gravwell_model::{
    Chain, Digest, Entry, EntryBody, Generation, LineageEntry, LogId, MemberName, Origin, OriginCounter, Position, Seq,
    Txn, TxnId,
};
use proptest::prelude::*;

use super::client::{self, ClientSession, Compared, ForkPoint, Leave, Source};
use super::reconnects::Reconnects;
use super::server::{self, Feed, Rights, ServerSession};
use crate::feed::{Block, Ring};

const LOG: LogId = LogId([1; 16]);

/// The datastore's log.
struct Log {
    entries: Vec<(Bytes, Chain)>,
    lineage: Vec<LineageEntry>,
    horizon: usize,
    ring: Ring,
    number: u64,
}

impl Log {
    fn head(&self) -> Seq {
        Seq(self.entries.len() as u64)
    }

    fn generation(&self) -> Generation {
        self.lineage.last().map_or(Generation(1), |entry| entry.generation)
    }

    fn chain_at(&self, seq: Seq) -> Chain {
        (seq.0 as usize).checked_sub(1).map_or(CHAIN_START, |at| self.entries[at].1)
    }

    fn position(&self, seq: Seq) -> Position {
        let (generation, chain) = (self.generation(), self.chain_at(seq));
        Position { log_id: LOG, generation, seq, chain, digest: Digest::ZERO }
    }

    fn push(&mut self) {
        self.number += 1;
        let id = TxnId { origin: Origin([7; 16]), counter: OriginCounter(self.number) };
        let (settled, note) = (OriginCounter(0), Bytes::new());
        let txn = Txn { id, settled, time_ms: 0, note, conditions: vec![], ops: vec![] };
        let (seq, member) = (self.head().next(), MemberName::new("web1").expect("a name"));
        let entry = Entry { seq, time_ms: 0, member, body: EntryBody::Commit(txn) };
        let mut frame = Vec::new();
        let chain = encode_entry(&entry, &self.chain_at(self.head()), 0, 0, &mut frame).expect("encodes");
        self.entries.push((frame.into(), chain));
        self.ring.push(self.block(seq));
    }

    fn block(&self, seq: Seq) -> Block {
        let (bytes, chain) = self.entries[seq.0 as usize - 1].clone();
        Block { first: seq, last: seq, bytes, chain }
    }

    /// Continues from an earlier sequence, in another generation.
    fn lose(&mut self, to: usize) {
        self.entries.truncate(to);
        self.horizon = self.horizon.min(to);
        self.ring = Ring::new(100);
        let generation = Generation(self.generation().0 + 1);
        self.lineage.push(LineageEntry { generation, shared_to: self.head() });
    }

    fn welcome(&self, hello: &Hello) -> Welcome {
        let head = self.position(self.head());
        let is_here = |mine: &&Position| mine.seq <= head.seq && mine.seq.0 as usize >= self.horizon;
        let chain = hello.position.as_ref().filter(is_here).map(|mine| self.chain_at(mine.seq));
        let verdict = hello.position.map(|mine| compare(&mine, &head, &self.lineage, chain));
        let (software, member, role) = (String::new(), "web1".into(), "webserver".into());
        let (generation, lineage, horizon) = (head.generation, self.lineage.clone(), Seq(self.horizon as u64));
        let (version, heartbeat_ms, log_id, head) = (4, 1000, LOG, head.seq);
        let (txn_bytes_max, value_bytes_max, key_bytes_max) = (1, 1, 1);
        Welcome {
            version,
            software,
            member,
            role,
            log_id,
            generation,
            lineage,
            head,
            horizon,
            verdict,
            heartbeat_ms,
            txn_bytes_max,
            value_bytes_max,
            key_bytes_max,
        }
    }
}

/// A connection, and the messages in transit.
struct Connection {
    client: ClientSession,
    server: ServerSession,
    up: VecDeque<(Kind, Bytes)>,
    down: VecDeque<(Kind, Bytes)>,
    tail: VecDeque<(Kind, Bytes)>,
    /// Completions that may happen next.
    done: VecDeque<client::Event>,
    fed: VecDeque<server::Event>,
    reads_control: bool,
    reads_tail: bool,
    reads_reports: bool,
    hello: Hello,
    fetched: Option<(Position, Vec<LineageEntry>)>,
    /// The verdict on the member's position is bad.
    is_bad: bool,
}

struct World {
    now: Duration,
    log: Log,
    /// The member's state, and the lineage in it.
    mine: Option<Position>,
    lineage: Vec<LineageEntry>,
    reconnects: Reconnects,
    connection: Option<Connection>,
    reached: Seq,
}

impl World {
    fn new() -> World {
        let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
        let log = Log { entries: vec![], lineage, horizon: 0, ring: Ring::new(100), number: 0 };
        let (now, mine, lineage, reached) = (Duration::from_secs(1), None, vec![], Seq::ZERO);
        World { now, log, mine, lineage, reconnects: Reconnects::default(), connection: None, reached }
    }

    fn connect(&mut self) {
        let hello =
            Hello { version_min: 1, version_max: 4, software: String::new(), position: self.mine, external_addr: None };
        let rights = Rights { may_write: true, holds_replica: true };
        self.connection = Some(Connection {
            client: ClientSession::new(self.now, &hello, self.reconnects.needs_snapshot(), 1000),
            server: ServerSession::new(rights, self.log.head()),
            up: VecDeque::new(),
            down: VecDeque::new(),
            tail: VecDeque::new(),
            done: VecDeque::new(),
            fed: VecDeque::new(),
            reads_control: false,
            reads_tail: false,
            reads_reports: false,
            hello,
            fetched: None,
            is_bad: false,
        });
    }

    fn compare(&self, welcome: &Welcome) -> Compared {
        let theirs: Vec<LineageEntry> =
            welcome.lineage.iter().filter(|entry| !self.lineage.contains(entry)).cloned().collect();
        let shared_to = theirs.iter().map(|entry| entry.shared_to).min();
        let fork = self.mine.zip(shared_to).filter(|(mine, shared_to)| mine.seq > *shared_to);
        Compared {
            is_lacking: self.mine.is_none_or(|mine| mine.seq < welcome.horizon),
            fork: fork.map(|(_, shared_to)| ForkPoint { shared_to, theirs }),
            ..Compared::default()
        }
    }

    /// Carries out one effect of the member.
    fn client_effect(&mut self, effect: client::Effect) {
        use client::{Effect, Event};
        let compared = match &effect {
            Effect::Compare(_, welcome) => Some(self.compare(welcome)),
            _ => None,
        };
        let Some(connection) = &mut self.connection else { return };
        let done = match effect {
            Effect::Send(kind, body) => return connection.up.push_back((kind, body)),
            Effect::Read(Source::Control) => return connection.reads_control = true,
            Effect::Read(Source::Tail) => return connection.reads_tail = true,
            Effect::Compare(..) => Event::Compared(compared.unwrap_or_default()),
            Effect::LiftRefusal => Event::Lifted,
            Effect::AskReason(_) => Event::Reason(Some(false)),
            Effect::FetchState(_) => {
                connection.fetched = Some((self.log.position(self.log.head()), self.log.lineage.clone()));
                Event::Fetched { lacks_lost: false }
            }
            Effect::Swap | Effect::Leave(Leave::Lineage { .. }) => {
                let (position, lineage) = connection.fetched.take().expect("it was fetched");
                let is_swap = matches!(effect, Effect::Swap);
                let is_later = self.mine.is_none_or(|mine| mine.seq <= position.seq);
                assert!(!is_swap || is_later, "the state went back without an exchange");
                (self.mine, self.lineage, self.reached) = (Some(position), lineage, position.seq);
                if is_swap { Event::Swapped } else { Event::Left }
            }
            Effect::TakeOver(welcome) => {
                let position = self.mine.expect("it has a state");
                self.mine = Some(Position { generation: welcome.generation, ..position });
                self.lineage.clone_from(&welcome.lineage);
                Event::TakenOver { position, wants_resync: false }
            }
            Effect::AdoptTerms(_) => Event::TermsAdopted,
            Effect::LearnGenerations(_) => Event::GenerationsLearned,
            Effect::Decode(mut intake, frames) => match intake.handle_frames(frames) {
                Ok(runs) => Event::Decoded(intake, runs),
                Err(error) => panic!("entries of another history: {error}"),
            },
            Effect::Apply(run) => {
                let mine = self.mine.as_mut().expect("it has a state");
                for entry in run.entries {
                    assert_eq!(entry.seq, mine.seq.next(), "an entry is missing or repeated");
                    mine.seq = entry.seq;
                }
                mine.chain = run.chain;
                self.reached = mine.seq;
                Event::Queued
            }
            Effect::CheckBookmark(_) => Event::Queued,
            Effect::Report => {
                let progress = message::Progress { applied: self.reached, ..message::Progress::default() };
                connection.up.push_back((Kind::Progress, message::encode_body(&progress).into()));
                Event::Reported
            }
            Effect::Close(end) => return self.disconnect(Some(&end)),
            Effect::ReportVerdict(verdict) => panic!("the log is {verdict}, and an exchange was possible"),
            _ => return,
        };
        connection.done.push_back(done);
    }

    fn disconnect(&mut self, end: Option<&client::End>) {
        self.connection = None;
        self.reconnects.handle_end(Duration::ZERO, end);
    }

    /// Carries out one effect of the datastore.
    fn server_effect(&mut self, effect: server::Effect) {
        use server::{Effect, Event};
        let head = self.log.head();
        let Some(connection) = &mut self.connection else { return };
        let done = match effect {
            Effect::Read => return connection.reads_reports = true,
            Effect::Greet(_) => {
                let welcome = self.log.welcome(&connection.hello);
                connection.is_bad = welcome.verdict.is_some_and(|verdict| !verdict.is_good());
                Event::Greeted(Box::new(welcome))
            }
            Effect::Examine(_) => Event::Examined,
            Effect::AwaitSound(_) => Event::Sound(None),
            Effect::Send(kind, body) => {
                connection.down.push_back((kind, body));
                Event::Sent
            }
            Effect::SendHeartbeat => {
                let heartbeat = Heartbeat { head, floor: Seq::ZERO, time_ms: 0 };
                connection.down.push_back((Kind::Heartbeat, message::encode_body(&heartbeat).into()));
                Event::Sent
            }
            Effect::SendRoster | Effect::SendRevocations | Effect::SendProof => Event::Sent,
            Effect::AwaitShown => Event::Shown,
            Effect::Announce(_) | Effect::ExamineProof(_) => Event::Taken,
            Effect::Progress(progress) => {
                assert!(progress.applied <= head);
                Event::Taken
            }
            Effect::OpenTail(from) => {
                connection.tail.push_back((Kind::Open, message::encode_body(&Open::Tail).into()));
                Event::Fed(from)
            }
            Effect::SendBookmark(bookmark, sent) => {
                connection.tail.push_back((Kind::Bookmark, message::encode_body(&bookmark).into()));
                Event::Fed(sent)
            }
            // A member that has left its history follows on its next connection: this verdict is of its former position.
            Effect::Close(_) if connection.is_bad => return self.disconnect(None),
            Effect::Close(end) => panic!("the datastore refuses a member that keeps the rules: {end}"),
            Effect::Welcomed(_) | Effect::CloseTail => return,
        };
        connection.fed.push_back(done);
    }

    /// Starts the next step of the tail.
    fn feed(&mut self) {
        let horizon = Seq(self.log.horizon as u64);
        let Some(connection) = &mut self.connection else { return };
        let Some(next) = connection.server.poll_feed(&self.log.ring, horizon, 50) else { return };
        let blocks = match next {
            Feed::Send(blocks) => blocks,
            Feed::Read(after) if after < horizon => {
                return connection.fed.push_back(server::Event::ReadCompacted(horizon));
            }
            Feed::Read(after) => vec![self.log.block(after.next())],
        };
        let last = blocks.last().map(|block| block.last).unwrap_or_default();
        connection.tail.extend(blocks.into_iter().map(|block| (Kind::Frames, block.bytes)));
        connection.fed.push_back(server::Event::Fed(last));
    }

    fn server_event(&mut self, event: server::Event) {
        let (now, head) = (self.now, self.log.head());
        if let Some(connection) = &mut self.connection {
            connection.server.handle_event(now, server::Event::Head(head));
            connection.server.handle_event(now, event);
        }
    }

    /// Takes one step of the connection. `choice` selects among those that are possible.
    fn step(&mut self, choice: usize) {
        let now = self.now;
        let Some(connection) = &mut self.connection else { return self.connect() };
        if let Some(effect) = connection.client.poll_effect() {
            return self.client_effect(effect);
        }
        if let Some(effect) = connection.server.poll_effect() {
            return self.server_effect(effect);
        }
        let next = |reads: &mut bool, queue: &mut VecDeque<(Kind, Bytes)>| {
            let message = if *reads { queue.pop_front() } else { None };
            *reads &= message.is_none();
            message
        };
        match choice % 5 {
            0 => {
                if let Some((kind, body)) = next(&mut connection.reads_control, &mut connection.down) {
                    connection.client.handle_event(now, client::Event::Control(kind, body));
                }
            }
            1 => {
                if let Some((kind, body)) = next(&mut connection.reads_tail, &mut connection.tail) {
                    connection.client.handle_event(now, client::Event::Tail(kind, body));
                }
            }
            2 => {
                if let Some((kind, body)) = next(&mut connection.reads_reports, &mut connection.up) {
                    self.server_event(server::Event::Control(kind, body));
                }
            }
            3 => {
                if let Some(event) = connection.done.pop_front() {
                    connection.client.handle_event(now, event);
                }
            }
            _ => match connection.fed.pop_front() {
                Some(event) => self.server_event(event),
                None => self.feed(),
            },
        }
    }

    /// Lets something happen to the log, the connection or the time.
    fn strike(&mut self, what: u8, choice: usize) {
        match what {
            0..=5 => {
                self.log.push();
                self.server_event(server::Event::Bookmark(Bookmark { seq: self.log.head(), digest: Digest::ZERO }));
            }
            6 => self.log.horizon = self.log.horizon.max(choice % (self.log.entries.len() + 1)),
            // A datastore that loses entries was restarted.
            7 => {
                self.log.lose(choice % (self.log.entries.len() + 1));
                self.disconnect(None);
            }
            8 => self.disconnect(None),
            _ => self.pass(),
        }
    }

    /// Lets the time pass until something is due.
    fn pass(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let due = [connection.client.poll_timeout(), connection.server.poll_timeout()];
        self.now = due.into_iter().flatten().min().unwrap_or(self.now).max(self.now);
        connection.client.handle_timeout(self.now);
        connection.server.handle_timeout(self.now);
    }

    fn is_level(&self) -> bool {
        self.mine.is_some_and(|mine| mine.seq == self.log.head())
            && self.connection.as_ref().is_some_and(|connection| connection.client.is_following())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn p02_both_halves_reach_the_head_of_the_log_through_any_losses_and_delays(
        steps in proptest::collection::vec((0u8..24, 0usize..1000), 1..400),
    ) {
        let mut world = World::new();
        for (what, choice) in steps {
            if what < 10 && choice % 4 == 0 {
                world.strike(what, choice / 4);
            } else {
                world.step(choice);
            }
        }
        let mut rounds = 0;
        while !world.is_level() {
            rounds += 1;
            prop_assert!(rounds < 5000, "at {:?} of {}", world.mine, world.log.head());
            world.step(rounds);
            // Nothing else is due for longer than it takes to deliver everything.
            if rounds % 100 == 0 {
                world.pass();
            }
        }
        let head = world.log.position(world.log.head());
        prop_assert_eq!(world.mine, Some(head));
    }
}
