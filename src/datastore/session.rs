//! The connection of one member, and its streams. What happens on the control stream and the tail is in
//! [`super::control`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use gravwell_model::codec::message::{Hello, Kind, Open, RefusalCode, Refused, Welcome};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::{MemberName, Position};
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry::{self, log_rate_limit::LogRateLimit};
use gravwell_transport::flow_control;
use gravwell_transport::trust::{Proof, Role};
use gravwell_transport::wire::{self, WireError};

use super::access::may_open;
use super::control::Control;
use super::handshake::{Handshake, refused};
use super::presences::PresenceId;
use super::read_only::Here;
use super::shared::DatastoreRef;
use super::{admin, push, snapshot};

/// Timeout for a client's first message.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Close codes on the wire.
const CLOSE_DONE: u32 = 0;
const CLOSE_REFUSED: u32 = 1;

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
                let served = Control::new(&self, presence, (send, receive)).run().await;
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

    /// Examines a signed position. It is trusted whichever member presents it.
    pub(super) fn examine_proof(&self, body: &[u8]) {
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

    pub(super) fn examine_position(&self, position: &Position, worded: impl Fn(&str) -> String) {
        let here = Here::of(&self.shared.log, self.shared.head());
        let evidence = self.shared.members.shown_by(&here, &self.member, position).map(|evidence| worded(&evidence));
        self.shared.wait_for_recovery(evidence, || self.shared.members.note_contradiction(&self.member, *position));
    }

    pub(super) fn welcome(&self, hello: &Hello) -> Result<Welcome, Refused> {
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
