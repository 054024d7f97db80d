//! The connection of one member: handshake, verdict, and the streams that follow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::{interval, sleep_until, timeout};

use gravwell_model::codec::message::{
    self, Announce, Compacted, Heartbeat, Hello, Kind, Open, Progress, RefusalCode, Refused, Subscribe, Welcome,
};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::{MemberName, Position, Seq};
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry::{self, log_rate_limit::LogRateLimit};
use gravwell_transport::flow_control;
use gravwell_transport::trust::{Proof, Role};
use gravwell_transport::wire::{self, WireError};

use super::access::may_open;
use super::feed::{self, FeedEnd};
use super::handshake::{Handshake, may_follow, refused};
use super::presences::PresenceId;
use super::read_only::{self, Here};
use super::shared::{DatastoreRef, now_ms};
use super::{admin, push, snapshot};

/// Timeout for a client's first message.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a member to show the latest register of members, if the present one is known not to be that. Members
/// wait longer for a welcome.
const SHOWING_TIMEOUT: Duration = Duration::from_secs(5);
/// Close codes on the wire.
const CLOSE_DONE: u32 = 0;
const CLOSE_REFUSED: u32 = 1;

/// Interval at which signed positions of one connection are examined: a member shows one, and verifying takes time.
const PROOF_EVERY: Duration = Duration::from_secs(1);

/// Interval at which announced addresses of one connection are accepted: each changed one is sent to all members.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);

static REFUSED: LogRateLimit = LogRateLimit::new();
static DOUBTED: LogRateLimit = LogRateLimit::new();

#[derive(Clone)]
pub(super) struct Session {
    pub shared: DatastoreRef,
    pub connection: quinn::Connection,
    pub member: MemberName,
    pub role: Role,
    /// Whether the connection carries only chunks.
    pub is_bulk: bool,
    /// Whether the control stream was opened.
    pub has_control: Arc<AtomicBool>,
}

/// Waits until `every` has passed since the last time.
async fn wait_since(last: Option<tokio::time::Instant>, every: Duration) {
    if let Some(last) = last {
        sleep_until(last + every).await;
    }
}

impl Session {
    /// Serves the connection until it ends.
    pub(super) async fn run(self, certificate: &[u8]) {
        let is_bulk = self.is_bulk;
        let presence = self.shared.members.arrive(&self.member, self.role, &self.connection, is_bulk);
        // A member revoked after the check of its certificate was not yet listed when the connections were closed.
        if self.shared.members.authorise(certificate) != Ok((self.member.clone(), self.role)) {
            self.connection.close(CLOSE_REFUSED.into(), b"the member was revoked");
            return self.shared.members.leave(presence);
        }
        telemetry::metrics::subscribers(self.shared.members.connected());
        let mut stopping = self.shared.stopping.subscribe();
        let result = tokio::select! {
            result = self.accept_streams(presence) => result,
            never = flow_control::give_way(&self.connection), if is_bulk => match never {},
            _ = stopping.wait_for(|stopping| *stopping) => {
                Err(refused(RefusalCode::Stopping, "the datastore is stopping").into())
            }
        };
        match &result {
            Err(WireError::Refused(refused)) => {
                if let Some(left_out) = REFUSED.note() {
                    tracing::warn!(member = %self.member, reason = refused.message, left_out, "connection refused");
                }
                self.connection.close(CLOSE_REFUSED.into(), refused.message.as_bytes());
            }
            Err(error) => {
                tracing::debug!(member = %self.member, %error, "connection ended");
                self.connection.close(CLOSE_DONE.into(), b"");
            }
            Ok(()) => self.connection.close(CLOSE_DONE.into(), b""),
        }
        self.shared.members.leave(presence);
        telemetry::metrics::subscribers(self.shared.members.connected());
    }

    async fn accept_streams(&self, presence: PresenceId) -> Result<(), WireError> {
        let mut streams = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => {
                    let Ok((send, receive)) = stream else { return Ok(()) };
                    let session = self.clone();
                    streams.spawn(async move { session.serve(presence, send, receive).await });
                }
                Some(ended) = streams.join_next() => match ended {
                    Ok(Ok(())) => {}
                    // On a bulk connection the streams are independent.
                    Ok(Err(WireError::Refused(refused))) if !self.is_bulk => return Err(refused.into()),
                    Ok(Err(error)) => tracing::debug!(member = %self.member, %error, "stream ended"),
                    Err(error) => tracing::error!(member = %self.member, %error, "stream task failed"),
                },
            }
        }
    }

    async fn serve(
        self,
        presence: PresenceId,
        mut send: quinn::SendStream,
        mut receive: quinn::RecvStream,
    ) -> Result<(), WireError> {
        let open =
            timeout(GREETING_TIMEOUT, wire::expect_at_most::<Open, _>(&mut receive, Kind::Open, REPORT_BYTES_MAX));
        let open = open.await.map_err(|_| refused(RefusalCode::Protocol, "no handshake was received"))??;
        if !matches!(open, Open::Control | Open::Admin)
            && let Some(why) = self.shared.withheld_from(&self.member)
        {
            return refuse(&mut send, RefusalCode::Diverged, why).await;
        }
        match open {
            open if !may_open(self.role, open) => {
                let message = format!("{} is a {}, which may not request this", self.member, self.role);
                refuse(&mut send, RefusalCode::Forbidden, message).await
            }
            // Other streams would be read at the low priority of chunks and queue behind them.
            open if self.is_bulk && open != Open::Chunks => {
                refuse(&mut send, RefusalCode::Protocol, "this connection is for chunks only").await
            }
            Open::Control if self.has_control.swap(true, Ordering::Relaxed) => {
                Err(refused(RefusalCode::Protocol, "a connection has one control stream").into())
            }
            Open::Control => {
                let served = self.control(presence, &mut send, &mut receive).await;
                // Report the violated rule to the client.
                served.map_err(|error| match error {
                    WireError::Message(bad) => refused(RefusalCode::Protocol, bad.to_string()).into(),
                    error => error,
                })
            }
            Open::Push => match self.shared.pushes.take(self.member.clone()) {
                Some(_held) => push::serve(&self.shared, &self.member, &mut send, &mut receive).await,
                None => {
                    let message = format!("{} already has {} push streams", self.member, self.shared.pushes.max());
                    refuse(&mut send, RefusalCode::Busy, message).await
                }
            },
            Open::Snapshot | Open::StateAndDeletions | Open::WholeState => {
                snapshot::serve(&self.shared, (&self.member, self.role), open, &mut send).await
            }
            Open::Renew => self.renew(&mut send, &mut receive).await,
            Open::Admin => {
                let from = self.connection.remote_address().ip().to_string();
                let withheld = self.shared.withheld_from(&self.member);
                let connection = Some(self.connection.stable_id());
                let caller = admin::Caller { name: self.member.clone(), role: self.role, from, withheld, connection };
                admin::serve(&self.shared, &caller, &mut receive, &mut send).await?;
                let _ = send.finish();
                Ok(())
            }
            Open::Chunks => self.shared.contents.serve(self.role.may_write(), &mut send, &mut receive).await,
            Open::Tail | Open::Search => {
                Err(refused(RefusalCode::Protocol, "the datastore does not serve this stream").into())
            }
        }
    }

    async fn renew(&self, send: &mut quinn::SendStream, receive: &mut quinn::RecvStream) -> Result<(), WireError> {
        let (kind, request) = wire::read_at_most(receive, REPORT_BYTES_MAX).await?.ok_or(WireError::Closed)?;
        if kind != Kind::Renew {
            return Err(refused(RefusalCode::Protocol, "expected a renewal request").into());
        }
        // A later register, which is to be put back, would not know the new certificate.
        if let Some(waits) = self.shared.register_waits() {
            return refuse(send, RefusalCode::Busy, format!("certificates are not renewed, because {waits}")).await;
        }
        // Renewing waits for the disk and notifies all other members.
        let turn = match self.shared.renewals.begin(&self.member, Instant::now()) {
            Ok(turn) => turn,
            Err(why) => return refuse(send, RefusalCode::Busy, why).await,
        };
        let session = self.clone();
        let renewing = move || {
            let _turn = turn;
            session.shared.members.renew(&session.member, &request)
        };
        match vital::spawn_blocking(renewing).await.map_err(std::io::Error::other)? {
            Ok(certificate) => wire::send_raw(send, Kind::Renewed, &certificate).await?,
            Err(reason) => wire::send(send, Kind::Refused, &refused(RefusalCode::Forbidden, reason)).await?,
        }
        let _ = send.finish();
        Ok(())
    }

    async fn control(
        &self,
        presence: PresenceId,
        send: &mut quinn::SendStream,
        receive: &mut quinn::RecvStream,
    ) -> Result<(), WireError> {
        let hello: Hello = wire::expect_at_most(receive, Kind::Hello, REPORT_BYTES_MAX).await?;
        hello.check()?;
        // Reads the log, and records the evidence in the member's position before the member gets an answer.
        let session = self.clone();
        let greeted = move || session.greeted(presence, &hello);
        let welcome = vital::spawn_blocking(greeted).await.map_err(std::io::Error::other)??;
        // A member that may have been revoked in a later register is not welcomed. It shows meanwhile what it has.
        if let Some(why) = self.shared.wait_sound(&self.member, SHOWING_TIMEOUT).await {
            return Err(refused(RefusalCode::Diverged, why).into());
        }
        wire::send(send, Kind::Welcome, &welcome).await?;
        if let Some(bad) = welcome.verdict.filter(|verdict| !verdict.is_good()) {
            telemetry::metrics::verdict(bad);
            tracing::warn!(member = %self.member, verdict = %bad, "member position is inconsistent");
        }
        let published = self.shared.members.published();
        let mut shown = std::pin::pin!(timeout(SHOWING_TIMEOUT, self.shows_register()));
        let mut has_shown = false;
        let (mut roster, mut revocations) = (published.watch_roster(), published.watch_revocations());
        roster.mark_changed();
        revocations.mark_changed();
        let mut heartbeats = interval(Duration::from_millis(welcome.heartbeat_ms));
        let mut proofs = self.shared.proof.subscribe();
        proofs.mark_changed();
        let mut tail = std::pin::pin!(futures_pending());
        let mut is_fed = false;
        let (wanted, mut subscription) = tokio::sync::mpsc::channel::<Seq>(1);
        let listen = self.listen(presence, receive, wanted);
        let mut listen = std::pin::pin!(listen);
        loop {
            tokio::select! {
                result = &mut listen => return result,
                _ = heartbeats.tick() => {
                    let (head, floor) = (self.shared.head(), self.shared.floor());
                    wire::send(send, Kind::Heartbeat, &Heartbeat { head, floor, time_ms: now_ms() }).await?;
                }
                Ok(()) = revocations.changed() => {
                    let revocations = revocations.borrow_and_update().clone();
                    wire::send_raw(send, Kind::Revocations, &revocations).await?;
                }
                _ = &mut shown, if !has_shown => has_shown = true,
                // A registry that went back lists members that were revoked: what members know of each other is kept. The
                // member may be the one whose mark shows it.
                Ok(()) = roster.changed(), if has_shown && self.shared.register_waits().is_none() => {
                    let roster = roster.borrow_and_update().clone();
                    wire::send_raw(send, Kind::Roster, &roster).await?;
                }
                Ok(()) = proofs.changed() => {
                    let proof = proofs.borrow_and_update().clone();
                    if let Some(proof) = proof {
                        wire::send_raw(send, Kind::Proof, proof.to_text().as_bytes()).await?;
                    }
                }
                Some(from) = subscription.recv() => {
                    may_follow(&welcome, from, self.shared.head())?;
                    // Replacing a running tail would leave its current read of the log behind.
                    if std::mem::replace(&mut is_fed, true) {
                        return Err(refused(RefusalCode::Protocol, "the log is already followed on this stream").into());
                    }
                    tail.set(self.feed(from));
                }
                end = &mut tail => match end {
                    FeedEnd::Compacted => {
                        tail.set(futures_pending());
                        is_fed = false;
                        wire::send(send, Kind::Compacted, &Compacted { horizon: self.shared.log.horizon() }).await?;
                    }
                    FeedEnd::Log(error) => {
                        tracing::error!(%error, "failed to read the log");
                        return Err(refused(RefusalCode::Internal, format!("the log cannot be read: {error}")).into());
                    }
                    FeedEnd::Wire(error) => return Err(error),
                },
            }
        }
    }

    /// Waits until the member has presented its mark of the registry over this connection, or has reported that it has
    /// none.
    async fn shows_register(&self) {
        if self.role.holds_replica() {
            self.shared.members.wait_shown(&self.member, self.connection.stable_id()).await;
        }
    }

    fn greeted(&self, presence: PresenceId, hello: &Hello) -> Result<Welcome, Refused> {
        let welcome = self.welcome(hello)?;
        self.shared.members.greet(presence, hello);
        self.examine(hello);
        Ok(welcome)
    }

    /// Examines a member's position for evidence against the log. An unsigned position counts only from members that
    /// may write. A reader has to present a signed one, which a member sends when its position contradicts the log.
    fn examine(&self, hello: &Hello) {
        if let Some(position) = hello.position.filter(|_| self.role.may_write()) {
            self.examine_position(&position, read_only::unsigned);
        }
    }

    /// Examines a signed position. It is trusted whichever member presents it.
    fn examine_proof(&self, body: &[u8]) {
        match Proof::from_bytes(body) {
            Ok(proof) if self.shared.members.has_signed(&proof) => {
                self.examine_position(&proof.position, str::to_owned);
            }
            Ok(_) => self.doubt("this certificate authority did not sign it"),
            Err(error) => self.doubt(&error),
        }
    }

    /// Logs a signed position that is not trusted. Rate-limited, because a member can send any number of them.
    fn doubt(&self, why: &str) {
        if let Some(left_out) = DOUBTED.note() {
            tracing::warn!(member = %self.member, why, left_out, "member presented a signed position that is not \
                                                                  trusted");
        }
    }

    fn examine_position(&self, position: &Position, worded: impl Fn(&str) -> String) {
        let here = Here::of(&self.shared.log, self.shared.head());
        let evidence = self.shared.members.shown_by(&here, &self.member, position).map(|evidence| worded(&evidence));
        self.shared.wait_for_recovery(evidence, || self.shared.members.note_contradiction(&self.member, *position));
    }

    fn feed(&self, from: Seq) -> Feeding {
        let (shared, member, connection) = (Arc::clone(&self.shared), self.member.clone(), self.connection.clone());
        let redaction = shared.redaction_for(self.role);
        Box::pin(async move {
            match feed::serve(&shared, &member, &connection, from, redaction.as_ref()).await {
                Ok(never) => match never {},
                Err(end) => end,
            }
        })
    }

    async fn listen(
        &self,
        presence: PresenceId,
        receive: &mut quinn::RecvStream,
        wanted: tokio::sync::mpsc::Sender<Seq>,
    ) -> Result<(), WireError> {
        let (mut examined, mut announced) = (None, None);
        while let Some((kind, body)) = wire::read_known_at_most(receive, REPORT_BYTES_MAX).await? {
            match kind {
                Kind::Announce => {
                    let announce: Announce = message::decode(kind, &body)?;
                    announce.check()?;
                    wait_since(announced, ANNOUNCE_EVERY).await;
                    self.shared.members.announce(presence, &announce, self.connection.remote_address().ip());
                    announced = Some(tokio::time::Instant::now());
                }
                Kind::Subscribe => {
                    let subscribe: Subscribe = message::decode(kind, &body)?;
                    let _ = wanted.send(subscribe.from).await;
                }
                Kind::Progress => {
                    let progress: Progress = message::decode(kind, &body)?;
                    progress.check()?;
                    let head = self.shared.head();
                    telemetry::metrics::member_lag(self.member.as_str(), head.since(progress.applied));
                    let may_note = self.shared.recovery().is_empty();
                    if self.shared.members.progress(presence, &progress, head, may_note) {
                        let shared = DatastoreRef::clone(&self.shared);
                        let saving = move || shared.members.save();
                        vital::spawn_blocking(saving).await.map_err(std::io::Error::other)?;
                    }
                    self.shared.pins.end_loading(&self.member);
                }
                Kind::Proof => {
                    // None is left out: each may be evidence.
                    wait_since(examined, PROOF_EVERY).await;
                    let session = self.clone();
                    let examining = move || session.examine_proof(&body);
                    vital::spawn_blocking(examining).await.map_err(std::io::Error::other)?;
                    examined = Some(tokio::time::Instant::now());
                }
                // A newer member may send other messages on this stream. Unknown messages can be ignored.
                _ => {}
            }
        }
        Ok(())
    }

    fn welcome(&self, hello: &Hello) -> Result<Welcome, Refused> {
        let shared = &self.shared;
        let heartbeat_ms = shared.config.heartbeat_ms();
        let greeter = Handshake { log: &shared.log, head: shared.head(), limits: &shared.limits, heartbeat_ms };
        greeter.welcome(self.member.as_str(), self.role, hello)
    }
}

/// Refuses a stream; the connection remains open.
async fn refuse(send: &mut quinn::SendStream, code: RefusalCode, message: impl Into<String>) -> Result<(), WireError> {
    wire::send(send, Kind::Refused, &refused(code, message)).await?;
    let _ = send.finish();
    Ok(())
}

type Feeding = std::pin::Pin<Box<dyn Future<Output = FeedEnd> + Send>>;

fn futures_pending() -> Feeding {
    Box::pin(std::future::pending())
}
