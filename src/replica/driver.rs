//! Carries out one connection to the datastore: maps its streams to events of the session machine, and the effects of
//! the machine to streams, the applier, the outbox and the disk. Order and conditions are in
//! [`gravwell_protocol::session::client`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

use gravwell_env::{Clock, SystemClock};
use gravwell_model::codec::message::{self, Hello, Kind, Open, VERSION_MAX, VERSION_MIN};
use gravwell_protocol::outbox::RejectedTxn;
use gravwell_protocol::push::PushReply;
use gravwell_protocol::session::client::{ClientSession, Effect, End, Event, Source};
use gravwell_protocol::tail::{EntryBatch, Intake};
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry;
use gravwell_state::Fork;
use gravwell_transport::close_reason;
use gravwell_transport::wire::{self, WireError};

use super::link::{LinkDriver, LinkError, software};
use super::push::PushStreams;
use super::resync::Fetched;
use super::terms::Terms;
use super::{applier, blobs, outbox_writer, proofs, recovery_donor, rejoin, resync};

/// Frames from this size on are decoded off the async threads.
const LARGE_BYTES: usize = 64 << 10;

type Job<'a> = Pin<Box<dyn Future<Output = Result<Done, LinkError>> + Send + 'a>>;

/// Result of a job.
enum Done {
    Event(Event),
    Nothing,
    /// A message was written to the control stream.
    Sent(quinn::SendStream, Option<Event>),
    /// A message was read from the control stream.
    Control(quinn::RecvStream, Kind, Bytes),
    ControlLost(WireError),
    /// A message was read from the tail.
    Tail(quinn::RecvStream, Kind, Bytes),
    Fetched(Fetched, bool),
    /// The fetched state did not replace the present one.
    Forked(Fetched, Fork),
    /// Rejections are queued for the outbox journal.
    Noted,
}

/// Message to be written to the control stream.
enum ToSend {
    Message(Kind, Bytes),
    Report,
    Proof,
}

/// One connection.
pub(super) struct Driver<'a> {
    linker: &'a LinkDriver,
    connection: &'a quinn::Connection,
    address: String,
    started: Instant,
    machine: ClientSession,
    /// Events of effects that were completed at once.
    events: VecDeque<Event>,
    jobs: FuturesUnordered<Job<'a>>,
    /// Halves of the control stream, while no job has them.
    send: Option<quinn::SendStream>,
    receive: Option<quinn::RecvStream>,
    has_read: bool,
    to_send: VecDeque<ToSend>,
    tail: Option<quinn::RecvStream>,
    pushes: PushStreams<'a>,
    /// The fetched state, until a job takes it, and why it did not replace the present one.
    fetched: Option<Fetched>,
    fork: Option<Fork>,
    /// Rejections to be queued for the outbox journal.
    to_note: Vec<RejectedTxn>,
    is_noting: bool,
    /// Error that ended the control stream.
    lost: Option<WireError>,
}

impl<'a> Driver<'a> {
    /// Opens the control stream.
    pub(super) async fn open(
        linker: &'a LinkDriver,
        connection: &'a quinn::Connection,
        address: String,
        needs_snapshot: bool,
    ) -> Result<Driver<'a>, LinkError> {
        let (mut send, receive) = connection.open_bi().await?;
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            software: software(),
            position: linker.shared.claimed(),
            external_addr: linker.reportable_address(),
        };
        wire::send(&mut send, Kind::Open, &Open::Control).await?;
        Ok(Driver {
            linker,
            connection,
            address,
            started: Instant::now(),
            machine: ClientSession::new(Duration::ZERO, &hello, needs_snapshot, linker.heartbeat_ms),
            events: VecDeque::new(),
            jobs: FuturesUnordered::new(),
            send: Some(send),
            receive: Some(receive),
            has_read: false,
            to_send: VecDeque::new(),
            tail: None,
            pushes: PushStreams::new(linker, connection),
            fetched: None,
            fork: None,
            to_note: Vec::new(),
            is_noting: false,
            lost: None,
        })
    }

    /// Runs until the connection ends.
    pub(super) async fn run(mut self) -> Result<std::convert::Infallible, LinkError> {
        let shared = &self.linker.shared;
        let mut outbox_changed = shared.outbox_changed.subscribe();
        let mut durable = shared.durable.subscribe();
        loop {
            self.carry_out_all()?;
            self.pushes.fill(&mut self.machine);
            let due = self.machine.poll_timeout().map(|at| self.started + at);
            let event = tokio::select! {
                Some(done) = self.jobs.next() => self.finish(done?),
                event = self.pushes.next() => event?,
                changed = outbox_changed.changed() => {
                    changed.map_err(|_| LinkError::Closing)?;
                    Some(Event::OutboxChanged { wants_resync: shared.wants_resync() })
                }
                changed = durable.changed() => {
                    changed.map_err(|_| LinkError::Closing)?;
                    Some(Event::Durable)
                }
                () = sleep_until(due.unwrap_or(self.started)), if due.is_some() => {
                    self.machine.handle_timeout(self.started.elapsed());
                    None
                }
            };
            self.events.extend(event);
        }
    }

    /// Passes waiting events to the machine and carries out its effects until there are no more of both.
    fn carry_out_all(&mut self) -> Result<(), LinkError> {
        loop {
            while let Some(effect) = self.machine.poll_effect() {
                self.carry_out(effect)?;
            }
            let Some(event) = self.events.pop_front() else { break };
            self.machine.handle_event(self.started.elapsed(), event);
        }
        self.write();
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), LinkError> {
        self.observe(&effect);
        let effect = match self.linker.shared.carry_out(effect, SystemClock.now_ms()) {
            Ok(event) => {
                self.events.extend(event);
                return Ok(());
            }
            Err(effect) => effect,
        };
        let (linker, connection) = (self.linker, self.connection);
        match effect {
            Effect::Close(End::Lost) => return Err(self.lost.take().unwrap_or(WireError::Closed).into()),
            Effect::Close(end) => return Err(end.into()),
            Effect::Send(kind, body) => self.to_send.push_back(ToSend::Message(kind, body)),
            Effect::Report => self.to_send.push_back(ToSend::Report),
            Effect::ShowProof => self.to_send.push_back(ToSend::Proof),
            Effect::Announce => {
                if let Some(announce) = linker.connector.announcement() {
                    let body = message::encode_body(&announce);
                    self.to_send.push_back(ToSend::Message(Kind::Announce, body.into()));
                }
            }
            Effect::Read(Source::Control) => self.read_control(),
            Effect::Read(Source::Tail) => self.read_tail(),
            Effect::Roster(body) => linker.connector.on_roster(&body),
            Effect::Revocations(body) => linker.connector.on_revocations(&body),
            Effect::Proof(body) => proofs::take(&linker.shared, &*linker.connector, &body),
            Effect::Decode(intake, frames) => self.decode(intake, frames),
            Effect::OpenPush(id) => self.pushes.open(id),
            Effect::ClosePush(_) => self.pushes.close(),
            Effect::Answer(reply) => self.answer(reply),
            Effect::RefusePending => {
                let to_note = linker.shared.refuse_forbidden();
                self.note(to_note);
            }
            Effect::ShowRegister => self.start(async move {
                linker.connector.show_register(connection.clone()).await;
                Ok(Done::Nothing)
            }),
            effect => self.carry_out_later(effect),
        }
        Ok(())
    }

    /// Starts a job for an effect that takes time. Its completion is an event.
    fn carry_out_later(&mut self, effect: Effect) {
        let (linker, connection) = (self.linker, self.connection);
        match effect {
            Effect::LiftRefusal => {
                self.start(async move { linker.refusals().lift().await.map(|()| Done::Event(Event::Lifted)) });
            }
            Effect::AskReason(theirs) => {
                self.start(
                    async move { Ok(Done::Event(Event::Reason(rejoin::reason(linker, connection, &theirs).await))) },
                )
            }
            Effect::FetchState(welcome) => self.start(async move {
                let (fetched, lacks_lost) = resync::fetch(linker, connection, &welcome).await?;
                Ok(Done::Fetched(fetched, lacks_lost))
            }),
            Effect::Swap => self.with_fetched(|fetched| async move {
                Ok(match resync::swap(linker, &fetched).await? {
                    None => Done::Event(Event::Swapped),
                    Some(fork) => Done::Forked(fetched, fork),
                })
            }),
            Effect::Leave(leave) => {
                let fork = self.fork.take();
                self.with_fetched(move |fetched| async move {
                    rejoin::leave(linker, connection, &fetched, leave, fork.as_ref()).await?;
                    Ok(Done::Event(Event::Left))
                });
            }
            Effect::Donate => self.start(async move {
                recovery_donor::serve(&linker.shared, &linker.directory, connection).await;
                Ok(Done::Event(Event::Donated))
            }),
            Effect::AdoptTerms(welcome) => self.start(async move {
                linker.adopt_terms(Terms::of(&welcome)).await;
                Ok(Done::Event(Event::TermsAdopted))
            }),
            Effect::LearnGenerations(welcome) => self.start(async move {
                if let Err(error) = rejoin::learn(&linker.directory, connection, &welcome).await {
                    tracing::warn!(error, "failed to store the origins of the log's generations");
                }
                Ok(Done::Event(Event::GenerationsLearned))
            }),
            Effect::CheckGenerations(welcome) => self.start(async move {
                linker.check_generations(&welcome).await;
                Ok(Done::Nothing)
            }),
            Effect::Apply(run) => self.start(hand_over_run(linker, run)),
            Effect::CheckBookmark(bookmark) => self.start(async move {
                linker.hand_over(applier::Request::Bookmark(bookmark)).await?;
                Ok(Done::Event(Event::Queued))
            }),
            Effect::AwaitApplied(head) => {
                let mut applied = linker.shared.applied.subscribe();
                self.start(async move {
                    applied.wait_for(|applied| *applied >= head).await.map_err(|_| LinkError::Closing)?;
                    Ok(Done::Event(Event::Reached))
                });
            }
            // Everything else was carried out before.
            _ => {}
        }
    }

    /// Does what accompanies an effect outside of the replica's state.
    fn observe(&mut self, effect: &Effect) {
        let (linker, connection) = (self.linker, self.connection);
        match effect {
            Effect::Welcomed(..) => {
                let address = std::mem::take(&mut self.address);
                linker.shared.update_link(|link| link.address = address);
            }
            Effect::TakeOver(_) => linker.shared.update_link(|link| link.is_welcome = true),
            Effect::Heartbeat(_) => linker.connector.on_heard(),
            Effect::Connected(welcome, position) => {
                *linker.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
                tracing::info!(member = welcome.member, seq = %position.seq, head = %welcome.head, "connected");
                self.start(
                    async move { proofs::keep(&linker.shared, &linker.directory).await.map(|never| match never {}) },
                );
                self.start(async move { serve_blob_chunks(linker, connection).await });
                self.start(async move {
                    linker.connector.on_connected(connection.clone()).await;
                    Ok(Done::Nothing)
                });
            }
            _ => {}
        }
    }

    fn start(&self, job: impl Future<Output = Result<Done, LinkError>> + Send + 'a) {
        self.jobs.push(Box::pin(job));
    }

    /// Starts a job with the fetched state.
    fn with_fetched<F>(&mut self, job: impl FnOnce(Fetched) -> F)
    where
        F: Future<Output = Result<Done, LinkError>> + Send + 'a,
    {
        match self.fetched.take() {
            Some(fetched) => self.start(job(fetched)),
            None => self.events.push_back(Event::Failed("no state was fetched".into())),
        }
    }

    fn finish(&mut self, done: Done) -> Option<Event> {
        match done {
            Done::Event(event) => return Some(event),
            Done::Nothing => {}
            Done::Sent(send, event) => {
                self.send = Some(send);
                return event;
            }
            Done::Control(receive, kind, body) => {
                self.receive = Some(receive);
                return Some(Event::Control(kind, body));
            }
            Done::ControlLost(error) => {
                let is_unexplained = matches!(error, WireError::Closed);
                self.lost = Some(error);
                return Some(Event::Lost { is_unexplained });
            }
            Done::Tail(stream, kind, body) => {
                self.tail = Some(stream);
                return Some(Event::Tail(kind, body));
            }
            Done::Fetched(fetched, lacks_lost) => {
                self.fetched = Some(fetched);
                return Some(Event::Fetched { lacks_lost });
            }
            Done::Forked(fetched, fork) => {
                (self.fetched, self.fork) = (Some(fetched), Some(fork));
                return Some(Event::SwapForked);
            }
            Done::Noted => {
                self.is_noting = false;
                self.note(Vec::new());
            }
        }
        None
    }

    /// Writes the next message to the control stream, if none is being written.
    fn write(&mut self) {
        if self.to_send.is_empty() {
            return;
        }
        let (Some(mut send), Some(next)) = (self.send.take(), self.to_send.pop_front()) else { return };
        let linker = self.linker;
        self.start(async move {
            let event = match next {
                ToSend::Message(kind, body) => {
                    wire::send_raw(&mut send, kind, &body).await?;
                    None
                }
                ToSend::Report => {
                    let progress = linker.shared.progress(*linker.shared.durable.borrow());
                    telemetry::metrics::outbox(progress.outbox, progress.rejected);
                    wire::send(&mut send, Kind::Progress, &progress).await?;
                    Some(Event::Reported)
                }
                ToSend::Proof => {
                    proofs::show(&linker.shared, &mut send).await?;
                    Some(Event::ProofShown)
                }
            };
            Ok(Done::Sent(send, event))
        });
    }

    fn read_control(&mut self) {
        let Some(mut receive) = self.receive.take() else { return };
        let connection = self.connection;
        let is_first = !std::mem::replace(&mut self.has_read, true);
        self.start(async move {
            // A newer datastore may send other kinds after its welcome.
            let read = if is_first { wire::read(&mut receive).await } else { wire::read_known(&mut receive).await };
            match read.and_then(|message| message.ok_or(WireError::Closed)) {
                Ok((kind, body)) => Ok(Done::Control(receive, kind, body)),
                Err(error) => Ok(Done::ControlLost(close_reason::explained(connection, error).await)),
            }
        });
    }

    fn read_tail(&mut self) {
        let (stream, connection) = (self.tail.take(), self.connection);
        self.start(async move {
            let mut stream = match stream {
                Some(stream) => stream,
                None => connection.accept_uni().await?,
            };
            let (kind, body) = wire::read(&mut stream).await?.ok_or(WireError::Closed)?;
            Ok(Done::Tail(stream, kind, body))
        });
    }

    /// Decodes a block of frames, a large one off the async threads.
    fn decode(&mut self, intake: Intake, frames: Bytes) {
        if frames.len() < LARGE_BYTES {
            return self.events.push_back(decoded(intake, frames));
        }
        self.start(async move { decode_aside(intake, frames).await.map(Done::Event) });
    }

    fn answer(&mut self, reply: PushReply) {
        let mut to_note = Vec::new();
        if let Some(reason) = self.linker.shared.handle_answer(reply, &mut to_note) {
            tracing::warn!(reason, "datastore defers transactions; they wait in the outbox");
        }
        self.note(to_note);
    }

    /// Queues rejections for the outbox journal, in their order.
    fn note(&mut self, to_note: Vec<RejectedTxn>) {
        self.to_note.extend(to_note);
        if self.is_noting || self.to_note.is_empty() {
            return;
        }
        self.is_noting = true;
        let (outbox, noted) = (&self.linker.outbox, std::mem::take(&mut self.to_note));
        self.start(async move {
            let _ = outbox.send(outbox_writer::Request::Note(noted)).await;
            Ok(Done::Noted)
        });
    }
}

async fn hand_over_run(linker: &LinkDriver, run: EntryBatch) -> Result<Done, LinkError> {
    linker.shared.compare_arrived(&run.entries);
    linker.hand_over(applier::Request::Run(run)).await?;
    Ok(Done::Event(Event::Queued))
}

/// Serves streams on which the datastore requests chunks that it has lost.
async fn serve_blob_chunks(linker: &LinkDriver, connection: &quinn::Connection) -> Result<Done, LinkError> {
    let server = linker.shared.contents.as_ref().map(|contents| contents.server());
    match blobs::give(server, connection).await? {}
}

fn decoded(mut intake: Intake, frames: Bytes) -> Event {
    match intake.handle_frames(frames) {
        Ok(runs) => Event::Decoded(intake, runs),
        Err(error) => Event::BadFrames(error),
    }
}

async fn decode_aside(intake: Intake, frames: Bytes) -> Result<Event, LinkError> {
    vital::spawn_blocking(move || decoded(intake, frames)).await.map_err(|_| LinkError::Closing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Chain, Seq};

    #[test]
    fn p15_the_log_is_taken_in_though_others_have_taken_the_threads() {
        // The bytes do not matter, as long as there are many.
        let decoded = decode_aside(Intake::new(Seq::ZERO, Chain::default(), false), vec![7; 256 << 10].into());
        assert!(matches!(vital::testing::without_threads(decoded), Ok(Event::BadFrames(_))));
    }
}
