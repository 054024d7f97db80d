//! Following of a log by a member: the tail, heartbeats, progress reports, and pushes with their pauses.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use gravwell_model::codec::message::{self, BadMessage, Bookmark, Compacted, Heartbeat, Kind, Open, Outcome};
use gravwell_model::codec::message::{Refused, Welcome};
use gravwell_model::fault_injection::{self, Bug};

use crate::blob_gate::BlobGate;
use crate::outbox::Outbox;
use crate::push::{Next, Pusher};
use crate::tail::{EntryBatch, Intake};

use super::client::{Effect, End, Event, Push, PushId, Source};
use super::is_reader;

/// Shortest interval between progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Shortest time without a report after which one is sent.
const REPORT_AFTER_MIN: Duration = Duration::from_millis(100);
/// Pause after the datastore could not accept a transaction.
const DEFERRED_PAUSE: Duration = Duration::from_secs(1);

type Effects = VecDeque<Effect>;

/// State of the tail. The next message is read once everything in the former one is with the applier.
#[derive(Debug)]
enum Tail {
    /// The datastore has not opened it yet.
    Unopened(Intake),
    Reading(Intake),
    Decoding,
    Handing(Intake, VecDeque<EntryBatch>),
}

/// Progress reports.
#[derive(Debug)]
struct Reports {
    /// When the next one is due.
    due: Duration,
    /// Longest time between two.
    patience: Duration,
    /// One is being sent.
    is_sending: bool,
    /// Another one is to be sent after it.
    is_wanted: bool,
}

#[derive(Debug)]
enum Pushes {
    Open(PushId, Box<Pusher>),
    Paused {
        last: PushId,
        until: Duration,
    },
    /// This member may not write. Its pending transactions are rejected once the state has reached the head that the
    /// log had at the welcome: one of them may have been committed before that.
    Forbidden {
        is_level: bool,
    },
}

#[derive(Debug)]
pub(super) struct Following {
    tail: Tail,
    reports: Reports,
    pushes: Pushes,
}

impl Following {
    /// Starts. `heartbeat_ms` is the longer one of both sides' intervals.
    pub(super) fn new(
        now: Duration,
        intake: Intake,
        heartbeat_ms: u64,
        welcome: &Welcome,
        effects: &mut Effects,
    ) -> Following {
        effects.extend([Effect::Read(Source::Control), Effect::Read(Source::Tail)]);
        let patience = Duration::from_millis(heartbeat_ms.saturating_mul(2)).max(REPORT_AFTER_MIN);
        let reports = Reports { due: now + patience, patience, is_sending: false, is_wanted: false };
        let may_write = !is_reader(welcome) || fault_injection::is(Bug::PushedWhileForbidden);
        let pushes = if may_write {
            effects.push_back(Effect::OpenPush(PushId(0)));
            Pushes::Open(PushId(0), Box::default())
        } else {
            effects.push_back(Effect::AwaitApplied(welcome.head));
            Pushes::Forbidden { is_level: fault_injection::is(Bug::PendingRefusedEarly) }
        };
        Following { tail: Tail::Unopened(intake), reports, pushes }
    }

    pub(super) fn poll_timeout(&self) -> Duration {
        match &self.pushes {
            Pushes::Paused { until, .. } => self.reports.due.min(*until),
            _ => self.reports.due,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Duration, effects: &mut Effects) {
        if now >= self.reports.due {
            self.reports.report(now, effects);
        }
        if let Pushes::Paused { last: PushId(last), until } = self.pushes
            && now >= until
        {
            let next = PushId(last + 1);
            effects.push_back(Effect::OpenPush(next));
            self.pushes = Pushes::Open(next, Box::default());
        }
    }

    pub(super) fn poll_push(&mut self, outbox: &Outbox, gate: &BlobGate, body: &mut Vec<u8>) -> Option<Push> {
        let Pushes::Open(stream, pusher) = &mut self.pushes else { return None };
        let Next::Send(kind) = pusher.next(outbox, gate, body) else { return None };
        Some(Push { stream: *stream, kind, txn: pusher.latest() })
    }

    pub(super) fn handle_event(&mut self, now: Duration, event: Event, effects: &mut Effects) -> Result<(), End> {
        match event {
            Event::Control(kind, body) => return self.control(now, kind, body, effects),
            Event::Tail(kind, body) => return self.tail(kind, body, effects),
            Event::Decoded(intake, runs) => self.hand_over(intake, runs.into(), effects),
            Event::BadFrames(error) => return Err(error.into()),
            Event::Queued => match std::mem::replace(&mut self.tail, Tail::Decoding) {
                Tail::Handing(intake, runs) => self.hand_over(intake, runs, effects),
                tail => self.tail = tail,
            },
            Event::Reported => self.reports.reported(now, effects),
            Event::Durable => self.reports.due = self.reports.due.min(now + PROGRESS_EVERY),
            Event::Reached => {
                if let Pushes::Forbidden { is_level } = &mut self.pushes {
                    *is_level = true;
                    effects.push_back(Effect::RefusePending);
                }
            }
            Event::OutboxChanged { wants_resync: true } => return Err(End::ResyncWanted),
            Event::OutboxChanged { wants_resync: false } => {
                if let Pushes::Forbidden { is_level: true } = self.pushes {
                    effects.push_back(Effect::RefusePending);
                }
            }
            Event::Outcome(stream, outcome) => self.answered(now, stream, outcome, effects),
            _ => {}
        }
        Ok(())
    }

    fn control(&mut self, now: Duration, kind: Kind, body: Bytes, effects: &mut Effects) -> Result<(), End> {
        match kind {
            Kind::Roster => effects.push_back(Effect::Roster(body)),
            Kind::Revocations => effects.push_back(Effect::Revocations(body)),
            Kind::Proof => effects.push_back(Effect::Proof(body)),
            Kind::Heartbeat => {
                let heartbeat: Heartbeat = message::decode(kind, &body)?;
                effects.push_back(Effect::Heartbeat(heartbeat));
                // One packet carries the acknowledgement and the report.
                self.reports.report(now, effects);
            }
            Kind::Compacted => {
                let compacted: Compacted = message::decode(kind, &body)?;
                if !fault_injection::is(Bug::CompactedIgnored) {
                    effects.push_back(Effect::Horizon(compacted.horizon));
                    return Err(End::Compacted);
                }
            }
            Kind::Refused => return Err(message::decode::<Refused>(kind, &body)?.into()),
            // A newer datastore may send other kinds on this stream. They can be ignored.
            _ => {}
        }
        effects.push_back(Effect::Read(Source::Control));
        Ok(())
    }

    fn tail(&mut self, kind: Kind, body: Bytes, effects: &mut Effects) -> Result<(), End> {
        match (std::mem::replace(&mut self.tail, Tail::Decoding), kind) {
            (Tail::Unopened(_), Kind::Refused) => return Err(message::decode::<Refused>(kind, &body)?.into()),
            (Tail::Unopened(intake), Kind::Open) => {
                let _: Open = message::decode(kind, &body)?;
                self.tail = Tail::Reading(intake);
                effects.push_back(Effect::Read(Source::Tail));
            }
            (Tail::Unopened(_), found) => return Err(BadMessage::Unexpected { expected: "Open", found }.into()),
            (Tail::Reading(intake), Kind::Frames) => effects.push_back(Effect::Decode(intake, body)),
            (Tail::Reading(intake), Kind::Bookmark) => {
                let bookmark: Bookmark = message::decode(kind, &body)?;
                effects.push_back(Effect::CheckBookmark(bookmark));
                self.tail = Tail::Handing(intake, VecDeque::new());
            }
            (_, found) => {
                return Err(BadMessage::Unexpected { expected: "Frames or Bookmark", found }.into());
            }
        }
        Ok(())
    }

    /// Hands the next batch to the applier, or reads the next message after the last one.
    fn hand_over(&mut self, intake: Intake, mut runs: VecDeque<EntryBatch>, effects: &mut Effects) {
        match runs.pop_front() {
            Some(run) => {
                effects.push_back(Effect::Apply(run));
                self.tail = Tail::Handing(intake, runs);
            }
            None => {
                effects.push_back(Effect::Read(Source::Tail));
                self.tail = Tail::Reading(intake);
            }
        }
    }

    fn answered(&mut self, now: Duration, stream: PushId, outcome: Outcome, effects: &mut Effects) {
        let Pushes::Open(open, pusher) = &mut self.pushes else { return };
        if *open != stream {
            return;
        }
        let reply = pusher.handle_outcome(outcome);
        let pauses = reply.pauses();
        effects.push_back(Effect::Answer(reply));
        if pauses {
            effects.push_back(Effect::ClosePush(stream));
            self.pushes = Pushes::Paused { last: stream, until: now + DEFERRED_PAUSE };
        }
    }
}

impl Reports {
    fn report(&mut self, now: Duration, effects: &mut Effects) {
        self.due = now + self.patience;
        if self.is_sending {
            self.is_wanted = true;
            return;
        }
        self.is_sending = true;
        effects.push_back(Effect::Report);
    }

    fn reported(&mut self, now: Duration, effects: &mut Effects) {
        self.is_sending = false;
        if std::mem::take(&mut self.is_wanted) {
            self.report(now, effects);
        }
    }
}
