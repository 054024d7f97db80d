//! Connections of members: the session machine of the product, over messages that arrive at once.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use gravwell_model::Seq;
use gravwell_model::codec::message::{
    self, Bookmark, Compacted, Heartbeat, Hello, Kind, Open, TxnOutcome, VERSION_MAX, VERSION_MIN,
};
use gravwell_model::codec::txn::decode_txn;
use gravwell_protocol::session::client::{ClientSession, Effect, Event, Source};
use gravwell_protocol::tail::EntryBatch;
use gravwell_replica::stepped::{SteppedReplica, SwapError};
use gravwell_state::StateStore;

use super::log::{fetch, part_of};
use super::member::Link;
use super::oracle::Checked;
use super::world::World;

fn control<T: serde::Serialize>(kind: Kind, body: &T) -> Event {
    Event::Control(kind, message::encode_body(body).into())
}

impl World {
    fn now(&self) -> Duration {
        Duration::from_millis(self.clock.load(Ordering::Relaxed))
    }

    /// Connects a member to the log, until it follows the log or starts to leave its history.
    pub fn greet(&mut self, number: usize) -> Checked {
        let now = self.now();
        let member = &mut self.members[number];
        let Some(stepped) = &member.running else { return Ok(()) };
        let position = stepped.claimed();
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            software: "simulated".into(),
            position,
            external_addr: None,
        };
        let session = ClientSession::new(now, &hello, member.reconnects.needs_snapshot(), 1000);
        member.link = Some(Link { session, reads_control: false, has_tail: false, fetched: None, fork: None });
        let welcome = self.log.welcome(&member.name, position.as_ref());
        self.session_event(number, control(Kind::Welcome, &welcome))
    }

    /// Passes an event to the session of a member, if it has one, and carries out the effects.
    pub fn session_event(&mut self, number: usize, event: Event) -> Checked {
        let now = self.now();
        let Some(link) = &mut self.members[number].link else { return Ok(()) };
        link.session.handle_event(now, event);
        while let Some(effect) = self.members[number].link.as_mut().and_then(|link| link.session.poll_effect()) {
            if let Some(event) = self.carry_out(number, effect)?
                && let Some(link) = &mut self.members[number].link
            {
                link.session.handle_event(now, event);
            }
        }
        Ok(())
    }

    /// Carries out an effect. Returns the event that completes it, unless that happens later.
    fn carry_out(&mut self, number: usize, effect: Effect) -> Result<Option<Event>, String> {
        let member = &mut self.members[number];
        let (Some(stepped), Some(link)) = (&mut member.running, &mut member.link) else { return Ok(None) };
        let effect = match stepped.carry_out(effect) {
            Ok(event) => {
                member.states.keep_terms(stepped.terms());
                member.states.keep_reached(stepped.reached());
                return Ok(event);
            }
            Err(effect) => effect,
        };
        Ok(match effect {
            Effect::Read(Source::Tail) if !std::mem::replace(&mut link.has_tail, true) => {
                Some(Event::Tail(Kind::Open, message::encode_body(&Open::Tail).into()))
            }
            Effect::Read(Source::Control) => {
                link.reads_control = true;
                None
            }
            Effect::LiftRefusal => Some(Event::Lifted),
            Effect::AskReason(theirs) => Some(Event::Reason(SteppedReplica::is_restore(&theirs, &self.log.known))),
            Effect::FetchState(_) => {
                let (path, state) = self.fetched(number)?;
                let member = &mut self.members[number];
                let (Some(stepped), Some(link)) = (&member.running, &mut member.link) else { return Ok(None) };
                let lacks_lost = stepped.lacks_lost(&state)?;
                link.fetched = Some((path, state));
                Some(Event::Fetched { lacks_lost })
            }
            Effect::Swap => Some(self.swap(number)?),
            Effect::Leave(leave) => {
                self.start_leaving(number, leave)?;
                None
            }
            Effect::ReportVerdict(verdict) => {
                return Err(format!("web{number} finds the log {verdict} without a known reason"));
            }
            Effect::LearnGenerations(_) => Some(Event::GenerationsLearned),
            Effect::Decode(..) => return Err("frames are not encoded here".into()),
            Effect::Apply(run) => {
                stepped.compare_arrived(&run.entries);
                let entries = run.entries.clone();
                stepped.apply(run).map_err(|error| error.to_string())?;
                if let Some(past) = member.past_mut() {
                    entries.into_iter().for_each(|entry| past.push(entry));
                }
                Some(Event::Queued)
            }
            Effect::CheckBookmark(bookmark) => {
                stepped.bookmark(bookmark).map_err(|error| error.to_string())?;
                Some(Event::Queued)
            }
            Effect::Report => Some(Event::Reported),
            Effect::Close(end) => {
                member.disconnected(Some(&end));
                None
            }
            _ => None,
        })
    }

    fn fetched(&mut self, number: usize) -> Result<(PathBuf, StateStore), String> {
        let (path, disk) = self.members[number].states.add();
        let store = StateStore::with_engine(Box::new(disk)).map_err(|error| error.to_string())?;
        Ok((path, fetch(&self.log.state, &store, Seq::ZERO)?))
    }

    fn swap(&mut self, number: usize) -> Result<Event, String> {
        let new = self.log.past.clone();
        let member = &mut self.members[number];
        let (Some(stepped), Some(link)) = (&mut member.running, &mut member.link) else {
            return Err("a state without a process".into());
        };
        let (path, state) = link.fetched.take().ok_or("no state was fetched")?;
        match stepped.swap(state.clone(), path.clone()).map_err(|error| error.to_string())? {
            Ok(()) => {
                member.pasts.insert(path, new);
                self.note("snapshot", || format!("web{number}"));
                Ok(Event::Swapped)
            }
            Err(SwapError::Forked(fork)) => {
                self.note("forked", || format!("web{number}: {fork}"));
                if let Some(link) = &mut self.members[number].link {
                    (link.fetched, link.fork) = (Some((path, state)), Some(fork));
                }
                Ok(Event::SwapForked)
            }
            Err(error) => Err(error.to_string()),
        }
    }

    /// Passes a message of the control stream to a session that reads it.
    fn control(&mut self, number: usize, event: Event) -> Checked {
        match &mut self.members[number].link {
            Some(link) if link.reads_control => link.reads_control = false,
            _ => return Ok(()),
        }
        self.session_event(number, event)
    }

    pub fn heartbeat(&mut self, number: usize, floor: Seq) -> Checked {
        let (head, time_ms) = (self.log.past.head(), self.clock.load(Ordering::Relaxed));
        self.control(number, control(Kind::Heartbeat, &Heartbeat { head, floor, time_ms }))
    }

    pub fn tail(&mut self, number: usize, count: usize) -> Checked {
        let head = self.log.past.head();
        let Some(stepped) = &self.members[number].running else { return Ok(()) };
        let from = stepped.position().map(|position| position.seq).ok_or("it follows without a position")?;
        if from < self.log.horizon {
            let horizon = self.log.horizon;
            return self.control(number, control(Kind::Compacted, &Compacted { horizon }));
        }
        let entries = self.log.past.after(from, count);
        if let Some(last) = entries.last().map(|entry| entry.seq) {
            let chain = self.log.past.chain_at(last);
            self.frames(number, EntryBatch { entries, chain })?;
        }
        if self.members[number].at() == Some(head)
            && let Some(meta) = self.log.state.meta()
        {
            let bookmark = Bookmark { seq: meta.seq, digest: meta.digest };
            self.session_event(number, Event::Tail(Kind::Bookmark, message::encode_body(&bookmark).into()))?;
            let problem = self.members[number].running.as_ref().map(SteppedReplica::problem).unwrap_or_default();
            if !problem.is_empty() {
                return Err(format!("web{number}: {problem}"));
            }
        }
        Ok(())
    }

    /// Passes entries to the session of a member. Its frames are not encoded, so the decoding is replaced.
    fn frames(&mut self, number: usize, run: EntryBatch) -> Checked {
        let now = self.now();
        let Some(link) = &mut self.members[number].link else { return Ok(()) };
        link.session.handle_event(now, Event::Tail(Kind::Frames, Bytes::new()));
        match link.session.poll_effect() {
            Some(Effect::Decode(intake, _)) => self.session_event(number, Event::Decoded(intake, vec![run])),
            other => Err(format!("web{number} does not decode frames: {other:?}")),
        }
    }

    pub fn push(&mut self, number: usize, count: usize, lost: usize) -> Checked {
        let now = self.now();
        if let Some(link) = &mut self.members[number].link {
            // A pause may be over.
            link.session.handle_timeout(now);
        }
        self.session_event(number, Event::Durable)?;
        for _ in 0..count {
            let member = &mut self.members[number];
            let (Some(stepped), Some(link)) = (&member.running, &mut member.link) else { return Ok(()) };
            let Some((push, body)) = stepped.next_push(&mut link.session) else { return Ok(()) };
            let txn = decode_txn(&body).map_err(|error| error.to_string())?;
            let (part, is_idle) = (part_of(&txn), txn.ops.is_empty());
            let (text, now_ms) = (format!("{txn:?}"), self.clock.load(Ordering::Relaxed));
            let (outcome, is_new) = self.log.commit(&member.name, txn, now_ms)?;
            let is_commit = is_new && matches!(outcome.fate, TxnOutcome::Committed(_));
            let fate = format!("{:?}", outcome.fate);
            self.note(if is_commit { "committed" } else { "answered" }, || format!("web{number}: {text}: {fate}"));
            if is_commit && !is_idle {
                match part.ok_or("a transaction without an author")? {
                    (change, true) => self.oracle.committed(&self.log.past, change)?,
                    (change, false) => self.oracle.part_committed(&self.log.past, change)?,
                }
            }
            if self.chance(lost) {
                self.members[number].hang_up();
                return Ok(());
            }
            self.session_event(number, Event::Outcome(push.stream, outcome))?;
        }
        Ok(())
    }
}
