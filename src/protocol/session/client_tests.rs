//! The member's half of a connection against random messages, completions, failures and times.

use std::time::Duration;

use bytes::Bytes;
use gravwell_model::codec::message::{
    self, Compacted, Heartbeat, Hello, Kind, Open, Outcome, RefusalCode, Refused, TxnOutcome, Welcome,
};
use gravwell_model::{Digest, Generation, LineageEntry, LogId, Origin, OriginCounter, Position, Seq, TxnId, Verdict};
use proptest::prelude::*;

use super::READER;
use super::client::{ClientSession, Compared, Effect, End, Event, ForkPoint, Leave, PushId, Source};

const NOW: Duration = Duration::from_secs(1000);

fn position(seq: u64) -> Position {
    let (log_id, chain, digest) = (LogId([1; 16]), [1; 16], Digest::ZERO);
    Position { log_id, generation: Generation(1), seq: Seq(seq), chain, digest }
}

fn hello(position: Option<Position>) -> Hello {
    Hello { version_min: 1, version_max: 4, software: String::new(), position, external_addr: None }
}

fn welcome(head: u64, role: &str, verdict: Option<Verdict>) -> Welcome {
    Welcome {
        version: 4,
        software: String::new(),
        member: "web1".into(),
        role: role.into(),
        log_id: LogId([1; 16]),
        generation: Generation(1),
        lineage: vec![],
        head: Seq(head),
        horizon: Seq(0),
        verdict,
        heartbeat_ms: 1000,
        txn_bytes_max: 1,
        value_bytes_max: 1,
        key_bytes_max: 1,
    }
}

fn control<T: serde::Serialize>(kind: Kind, body: &T) -> Event {
    Event::Control(kind, message::encode_body(body).into())
}

fn fork() -> ForkPoint {
    ForkPoint { shared_to: Seq(5), theirs: vec![LineageEntry { generation: Generation(2), shared_to: Seq(5) }] }
}

/// A session whose effects are completed one by one by the test.
struct Script(ClientSession);

impl Script {
    fn welcomed(mine: Option<Position>, needs_snapshot: bool, welcome: &Welcome, compared: Compared) -> Script {
        let mut script = Script(ClientSession::new(NOW, &hello(mine), needs_snapshot, 1000));
        script.effects();
        script.on(control(Kind::Welcome, welcome));
        script.on(Event::Compared(compared));
        script
    }

    fn effects(&mut self) -> Vec<String> {
        let name = |effect: Effect| match effect {
            Effect::Send(kind, _) => format!("Send {kind:?}"),
            Effect::Read(source) => format!("Read {source:?}"),
            Effect::Leave(Leave::Lineage { is_restore, .. }) => format!("Leave Lineage {is_restore}"),
            Effect::Leave(leave) => format!("Leave {leave:?}"),
            Effect::ReportVerdict(verdict) => format!("ReportVerdict {verdict}"),
            Effect::Close(end) => format!("Close {end:?}"),
            Effect::OpenPush(PushId(id)) => format!("OpenPush {id}"),
            Effect::ClosePush(PushId(id)) => format!("ClosePush {id}"),
            effect => format!("{effect:?}").split(['(', ' ']).next().unwrap_or_default().to_owned(),
        };
        std::iter::from_fn(|| self.0.poll_effect()).map(name).collect()
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        self.0.handle_event(NOW, event);
        self.effects()
    }

    /// Completes what follows the adoption of a log.
    fn follow(&mut self) -> Vec<String> {
        self.on(Event::TakenOver { position: position(10), wants_resync: false });
        self.on(Event::TermsAdopted);
        self.on(Event::GenerationsLearned)
    }
}

const FOLLOWS: [&str; 7] =
    ["CheckGenerations", "Announce", "Send Subscribe", "Connected", "Read Control", "Read Tail", "OpenPush 0"];

#[test]
fn p05_a_member_follows_once_everything_before_is_done() {
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", None), Compared::default());
    assert_eq!(session.on(Event::TermsAdopted), [""; 0], "a completion that nothing waits for");
    assert_eq!(session.on(Event::Lifted), ["Accept", "TakeOver"]);
    assert_eq!(session.follow(), FOLLOWS);
    assert_eq!(session.on(control(Kind::Compacted, &Compacted { horizon: Seq(15) })), ["Horizon", "Close Compacted"]);
    assert_eq!(session.on(Event::Durable), [""; 0]);
}

#[test]
fn p05_a_log_that_left_this_history_is_not_followed_before_the_state_is_exchanged() {
    let left = || Compared { fork: Some(fork()), ..Compared::default() };
    let verdict = Some(Verdict::Behind);
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", verdict), left());
    assert_eq!(session.on(Event::Lifted), ["AskReason"]);
    assert_eq!(session.on(Event::Reason(Some(true))), ["FetchState"]);
    assert_eq!(session.on(Event::Fetched { lacks_lost: true }), ["Leave Lineage true"]);
    assert_eq!(session.on(Event::Left), ["Accept", "TakeOver"]);
    assert_eq!(session.follow(), FOLLOWS);

    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", verdict), left());
    session.on(Event::Lifted);
    assert_eq!(session.on(Event::Reason(None)), ["ReportVerdict Forked", "ShowProof"], "an operator decides");
    assert_eq!(session.on(Event::ProofShown), ["Close Diverged(Forked)"]);

    let full = Compared { is_disk_full: true, ..left() };
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", verdict), full);
    assert_eq!(session.on(Event::Lifted), ["Close DiskFull"]);
}

#[test]
fn p05_a_fetched_state_that_lacks_something_leads_to_an_exchange() {
    let cases = [(true, Event::Left, "Leave Lost"), (false, Event::SwapForked, "Swap")];
    for (lacks_lost, next, expected) in cases {
        let mut session =
            Script::welcomed(Some(position(10)), true, &welcome(20, "webserver", None), Compared::default());
        assert_eq!(session.on(Event::Lifted), ["Accept", "FetchState"]);
        assert_eq!(session.on(Event::Fetched { lacks_lost }), [expected]);
        if let Event::SwapForked = next {
            assert_eq!(session.on(next), ["Leave Forked"]);
        }
        assert_eq!(session.on(Event::Left), ["TakeOver"]);
        assert_eq!(session.follow(), FOLLOWS);
    }
}

#[test]
fn p16_a_datastore_without_a_log_is_given_the_state() {
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(0, "webserver", None), Compared::default());
    assert_eq!(session.on(Event::Lifted), ["ReportVerdict Empty", "ShowProof"]);
    assert_eq!(session.on(Event::ProofShown), ["Donate"]);
    assert_eq!(session.on(Event::Donated), ["Close Diverged(Empty)"]);
}

#[test]
fn p11_pending_transactions_of_a_reader_are_rejected_once_the_head_at_the_welcome_is_reached() {
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, READER, None), Compared::default());
    session.on(Event::Lifted);
    assert_eq!(session.follow()[4..], ["Read Control", "Read Tail", "AwaitApplied"]);
    assert_eq!(session.on(Event::OutboxChanged { wants_resync: false }), [""; 0]);
    assert_eq!(session.on(Event::Reached), ["RefusePending"]);
    assert_eq!(session.on(Event::OutboxChanged { wants_resync: false }), ["RefusePending"]);
}

#[test]
fn pushes_pause_and_start_again_on_another_stream() {
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", None), Compared::default());
    session.on(Event::Lifted);
    session.follow();
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
    let answer = |stream, fate| Event::Outcome(PushId(stream), Outcome { id, fate });
    let deferred = || TxnOutcome::Deferred(Refused { code: RefusalCode::DiskFull, message: "the disk is full".into() });
    assert_eq!(session.on(answer(0, TxnOutcome::Committed(Seq(11)))), ["Answer"]);
    assert_eq!(session.on(answer(0, deferred())), ["Answer", "ClosePush 0"]);
    assert_eq!(session.on(answer(0, TxnOutcome::Committed(Seq(12)))), [""; 0], "the stream is closed");
    session.0.handle_timeout(NOW + Duration::from_millis(999));
    assert_eq!(session.effects(), [""; 0]);
    session.0.handle_timeout(NOW + Duration::from_secs(1));
    assert_eq!(session.effects(), ["OpenPush 1"]);
    assert_eq!(session.on(answer(0, deferred())), [""; 0], "a late answer of the former stream");
}

#[test]
fn one_report_is_sent_at_a_time() {
    let mut session = Script::welcomed(Some(position(10)), false, &welcome(20, "webserver", None), Compared::default());
    session.on(Event::Lifted);
    session.follow();
    let heartbeat = || control(Kind::Heartbeat, &Heartbeat { head: Seq(20), floor: Seq(3), time_ms: 0 });
    assert_eq!(session.on(heartbeat()), ["Heartbeat", "Report", "Read Control"]);
    assert_eq!(session.on(heartbeat()), ["Heartbeat", "Read Control"]);
    assert_eq!(session.on(heartbeat()), ["Heartbeat", "Read Control"]);
    assert_eq!(session.on(Event::Reported), ["Report"]);
    assert_eq!(session.on(Event::Reported), [""; 0]);
    session.on(Event::Durable);
    assert_eq!(session.0.poll_timeout(), Some(NOW + Duration::from_millis(100)));
}

#[test]
fn p12_a_position_that_the_datastore_cannot_read_is_named() {
    let wide = Position { generation: Generation(1 << 40), ..position(10) };
    let cases = [(wide, true, "Close Unread"), (wide, false, "Close Lost"), (position(10), true, "Close Lost")];
    for (mine, is_unexplained, expected) in cases {
        let mut session = Script(ClientSession::new(NOW, &hello(Some(mine)), false, 1000));
        session.effects();
        let effects = session.on(Event::Lost { is_unexplained });
        assert!(matches!(&effects[..], [close] if close.starts_with(expected)), "{effects:?}");
    }
}

#[test]
fn a_datastore_that_does_not_answer_is_shown_the_register_and_given_up() {
    let mut session = Script(ClientSession::new(NOW, &hello(None), false, 1000));
    session.effects();
    for (expected, effect) in [(Duration::from_millis(200), "ShowRegister"), (Duration::from_secs(10), "Close")] {
        assert_eq!(session.0.poll_timeout(), Some(NOW + expected));
        session.0.handle_timeout(NOW + expected);
        assert!(session.effects()[0].starts_with(effect));
    }
    assert_eq!(session.0.poll_timeout(), None);
}

/// Record of a session, for the checks of random runs.
#[derive(Default)]
struct Checks {
    /// Reads of a stream that wait for a message.
    reads: Vec<Source>,
    waits_for: Vec<Effect>,
    must_exchange: bool,
    is_exchanged: bool,
    is_reader: bool,
    is_level: bool,
    is_taken_over: bool,
    is_connected: bool,
    is_closed: bool,
    streams: Vec<(PushId, bool)>,
}

impl Checks {
    fn observe(&mut self, effect: Effect) {
        assert!(!self.is_closed, "{effect:?} after the end");
        match &effect {
            Effect::Read(source) => {
                assert!(!self.reads.contains(source), "{source:?} is read twice");
                self.reads.push(*source);
            }
            Effect::TakeOver(_) => {
                assert!(self.is_exchanged || !self.must_exchange, "taken over before the state is in place");
                self.is_taken_over = true;
            }
            Effect::Send(Kind::Subscribe, _) => assert!(self.is_taken_over && !self.is_connected),
            Effect::Connected(..) => self.is_connected = true,
            Effect::Heartbeat(_) | Effect::Apply(_) | Effect::CheckBookmark(_) | Effect::Report => {
                assert!(self.is_connected, "{effect:?} before the log is followed");
            }
            Effect::RefusePending => assert!(self.is_reader && self.is_level),
            Effect::OpenPush(id) => {
                assert!(!self.is_reader && self.is_connected);
                assert!(self.streams.iter().all(|(other, is_open)| other < id && !is_open));
                self.streams.push((*id, true));
            }
            Effect::ClosePush(id) => {
                let stream = self.streams.iter_mut().find(|(other, is_open)| other == id && *is_open);
                stream.expect("it is open").1 = false;
            }
            Effect::Close(_) => self.is_closed = true,
            _ => {}
        }
        let is_same = |other: &Effect| std::mem::discriminant(other) == std::mem::discriminant(&effect);
        if matches!(effect, Effect::Report | Effect::Apply(_) | Effect::Decode(..)) {
            assert!(!self.waits_for.iter().any(is_same), "{effect:?} before the former one is complete");
        }
        self.waits_for.push(effect);
    }

    /// Returns an event that completes an effect; `choice` selects among the possible results.
    fn completion(&mut self, effect: Effect, choice: u8) -> Option<Event> {
        let is = |bit: u8| choice & bit != 0;
        if choice == 255 {
            return Some(Event::Failed("failed".into()));
        }
        Some(match effect {
            Effect::Compare(mine, _) => {
                let fork = (mine.is_some() && is(1)).then(fork);
                let (is_lacking, wants_resync, is_disk_full) = (mine.is_none() || is(2), is(4), is(8) && is(16));
                self.must_exchange = fork.is_some() || is_lacking || wants_resync;
                Event::Compared(Compared { is_lacking, wants_resync, is_disk_full, fork })
            }
            Effect::LiftRefusal => Event::Lifted,
            Effect::AskReason(_) => Event::Reason(is(1).then_some(is(2))),
            Effect::FetchState(_) => Event::Fetched { lacks_lost: is(1) },
            Effect::Swap if is(1) => Event::SwapForked,
            Effect::Swap => {
                self.is_exchanged = true;
                Event::Swapped
            }
            Effect::Leave(_) => {
                self.is_exchanged = true;
                Event::Left
            }
            Effect::ShowProof => Event::ProofShown,
            Effect::Donate => Event::Donated,
            Effect::TakeOver(_) => Event::TakenOver { position: position(10), wants_resync: is(1) && is(2) && is(4) },
            Effect::AdoptTerms(_) => Event::TermsAdopted,
            Effect::LearnGenerations(_) => Event::GenerationsLearned,
            Effect::Decode(intake, _) => Event::Decoded(intake, Vec::new()),
            Effect::Apply(_) | Effect::CheckBookmark(_) => Event::Queued,
            Effect::Report => Event::Reported,
            Effect::AwaitApplied(_) => {
                self.is_level = true;
                Event::Reached
            }
            _ => return None,
        })
    }

    /// Returns a message of the datastore that a session which reads may receive.
    fn message(&self, source: Source, choice: u8, welcome: &Welcome, is_first: bool) -> Event {
        let garbage = || Bytes::from_static(b"\xff\xff\xff");
        match (source, choice % 8) {
            (Source::Control, _) if is_first && choice < 250 => control(Kind::Welcome, welcome),
            (Source::Control, 0) if choice > 128 => control(Kind::Compacted, &Compacted { horizon: Seq(1) }),
            (Source::Control, 1) if choice > 200 => {
                control(Kind::Refused, &Refused { code: RefusalCode::Stopping, message: String::new() })
            }
            (Source::Control, 2) => control(Kind::Welcome, welcome),
            (Source::Control, 3) => Event::Control(Kind::Roster, garbage()),
            (Source::Control, 4) if choice > 240 => Event::Control(Kind::Heartbeat, garbage()),
            (Source::Control, _) => control(Kind::Heartbeat, &Heartbeat { head: Seq(9), floor: Seq(1), time_ms: 0 }),
            (Source::Tail, 0) => Event::Tail(Kind::Open, message::encode_body(&Open::Tail).into()),
            (Source::Tail, 1) if choice > 200 => Event::Tail(Kind::Heartbeat, garbage()),
            (Source::Tail, 2) => Event::Tail(
                Kind::Bookmark,
                message::encode_body(&message::Bookmark { seq: Seq(10), digest: Digest::ZERO }).into(),
            ),
            (Source::Tail, _) => Event::Tail(Kind::Frames, garbage()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn p05_no_order_of_events_lets_a_member_follow_too_early(
        mine in proptest::option::of(0u64..30),
        head in 0u64..30,
        is_reader: bool,
        needs_snapshot: bool,
        steps in proptest::collection::vec((0u8..10, 0u8..=255, 0usize..8), 1..120),
    ) {
        let mine = mine.map(position);
        let welcome = welcome(head, if is_reader { READER } else { "webserver" }, None);
        let mut now = NOW;
        let mut session = ClientSession::new(now, &hello(mine), needs_snapshot, 1000);
        let mut checks = Checks { is_reader, ..Checks::default() };
        let mut is_first = true;
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
        for (step, choice, at) in steps {
            while let Some(effect) = session.poll_effect() {
                checks.observe(effect);
            }
            let event = match step {
                0..=4 if !checks.waits_for.is_empty() => {
                    let effect = checks.waits_for.remove(at % checks.waits_for.len());
                    checks.completion(effect, choice)
                }
                5..=6 if !checks.reads.is_empty() => {
                    let source = checks.reads.remove(at % checks.reads.len());
                    let message = checks.message(source, choice, &welcome, is_first);
                    is_first = false;
                    Some(message)
                }
                7 => {
                    let fate = match choice % 4 {
                        0 => TxnOutcome::Gap(OriginCounter(1)),
                        1 => TxnOutcome::Deferred(Refused { code: RefusalCode::Busy, message: String::new() }),
                        _ => TxnOutcome::Committed(Seq(9)),
                    };
                    Some(Event::Outcome(PushId(at as u64 % 3), Outcome { id, fate }))
                }
                8 => Some(match choice {
                    0..=99 => Event::Durable,
                    100..=249 => Event::OutboxChanged { wants_resync: false },
                    250..=252 => Event::OutboxChanged { wants_resync: true },
                    _ => Event::Lost { is_unexplained: choice == 255 },
                }),
                _ => {
                    now = session.poll_timeout().unwrap_or(now).max(now);
                    session.handle_timeout(now);
                    None
                }
            };
            if let Some(event) = event {
                session.handle_event(now, event);
            }
        }
        while let Some(effect) = session.poll_effect() {
            checks.observe(effect);
        }
    }
}

#[test]
fn the_reason_for_closing_is_worded() {
    assert_eq!(End::Timeout(super::client::SETUP_TIMEOUT).to_string(), "no answer from the datastore within 10 s");
    assert_eq!(End::Diverged(Verdict::Forked).to_string(), "the datastore is Forked");
}
