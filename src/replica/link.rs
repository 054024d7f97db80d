//! The connection to the datastore: reconnects forever, performs the handshake, follows the tail, pushes the outbox,
//! reports progress.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use gravwell_env::{Clock, SystemClock};
use gravwell_log::generations;
use gravwell_model::address::host_and_port;
use gravwell_model::codec::message::{
    self, Announce, Bookmark, Compacted, Heartbeat, Hello, Kind, Open, Refused, Subscribe, VERSION_MAX, VERSION_MIN,
    Welcome,
};
use gravwell_model::{Generation, LineageEntry, Position, Verdict};
use gravwell_protocol::backoff::Backoff;
use gravwell_protocol::session::{NextStep, judge};
use gravwell_protocol::tail::{EntryBatch, FrameError, Intake};
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry;
use gravwell_transport::endpoint::{CLOSE_LEFT_BEHIND, CLOSE_NOT_A_MEMBER, CLOSE_REVOKED};
use gravwell_transport::wire::{self, WireError};
use gravwell_transport::{close_reason, pulse};

use super::CaBackupProblem;
use super::refusal::Refusals;
use super::shared::ReplicaRef;
use super::terms::Terms;
use super::{applier, leaving, outbox_writer, proofs, push, recovery_donor, rejoin, resync, role};

/// Longest wait for an answer while a connection is being set up.
const SETUP_TIMEOUT: Duration = Duration::from_secs(10);
/// A datastore that has not welcomed this member after this time may wait to be shown the latest register of members.
const SHOW_AFTER: Duration = Duration::from_millis(200);
/// Longest wait for a connection, over all addresses; a connector gives each address a shorter time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest backoff delay between two attempts.
const RETRY_CAP: Duration = Duration::from_secs(5);
/// Interval at which a log that is not followed is reported again.
const REPEAT_EVERY: Duration = Duration::from_secs(300);
/// Shortest interval between progress reports.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Reason for the end of a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Wire(WireError),
    #[error("{0}")]
    Connect(String),
    #[error("{0}")]
    NotAMember(String),
    #[error("no answer from the datastore within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("nothing received from the datastore at {address} for {ms} ms", ms = pulse::SILENCE_MAX.as_millis())]
    Silent { address: String },
    #[error(transparent)]
    Frames(#[from] FrameError),
    #[error("cannot apply the snapshot: {0}")]
    Resync(String),
    #[error("the log is compacted past this position; a snapshot is required")]
    Compacted,
    #[error("the state must be fetched again")]
    ResyncWanted,
    #[error(
        "the datastore closed the connection after receiving this member's position, which is in generation {0}; \
         upgrade the datastore, earlier versions cannot read such a number"
    )]
    Unread(Generation),
    #[error("the datastore is {0}")]
    Diverged(Verdict),
    #[error("{0}")]
    Revoked(String),
    /// The CA that signed this member's certificate was replaced while the member was offline.
    #[error("{0}")]
    LeftBehind(String),
    #[error("the replica is closing")]
    Closing,
}

impl From<Refused> for LinkError {
    fn from(refused: Refused) -> Self {
        WireError::from(refused).into()
    }
}

impl From<WireError> for LinkError {
    fn from(error: WireError) -> Self {
        match error {
            WireError::ClosedBy(close) if close.code == u64::from(CLOSE_REVOKED) => LinkError::Revoked(close.reason),
            WireError::ClosedBy(close) if close.code == u64::from(CLOSE_LEFT_BEHIND) => {
                LinkError::LeftBehind(close.reason)
            }
            WireError::ClosedBy(close) if close.code == u64::from(CLOSE_NOT_A_MEMBER) => {
                LinkError::NotAMember(close.reason)
            }
            error => LinkError::Wire(error),
        }
    }
}

impl From<quinn::ConnectionError> for LinkError {
    fn from(error: quinn::ConnectionError) -> Self {
        WireError::from(error).into()
    }
}

/// Error of a connection attempt.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// Message for the operator: the failed operation, the address, and the remedy.
    pub message: String,
    /// Whether the peer is not the datastore that this member joined: its certificate comes from another CA.
    pub is_foreign: bool,
    /// Whether the datastore's CA was replaced while this member was offline.
    pub is_rotated: bool,
}

/// A boxed future.
pub type Pending<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Reaches the datastore of a replica.
pub trait Connector: Send + Sync + 'static {
    /// Opens an authenticated connection. Also returns the address.
    fn connect(&self) -> Pending<'_, Result<(quinn::Connection, String), ConnectError>>;

    /// Returns the certificates of the CAs whose signatures under positions are trusted.
    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        Vec::new()
    }

    /// Called on every good connection, for housekeeping such as renewing the certificate.
    fn on_connected(&self, connection: quinn::Connection) -> Pending<'_, ()>;

    /// Called while the datastore does not welcome this member: shows it the latest register of members known here. A
    /// datastore whose register went back serves only members that have a later one.
    fn show_register(&self, _: quinn::Connection) -> Pending<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Opens a second connection, for chunks.
    fn connect_bulk(&self) -> Pending<'_, Result<quinn::Connection, ConnectError>> {
        let message = "this connection does not carry chunks".to_owned();
        Box::pin(async move { Err(ConnectError { message, is_foreign: false, is_rotated: false }) })
    }

    /// Returns where other members reach this one; `None` if they do not.
    fn announcement(&self) -> Option<Announce> {
        None
    }

    /// Handles the membership list from the datastore, as [`Roster::encode`](gravwell_transport::trust::Roster::encode) writes it.
    fn on_roster(&self, _body: &[u8]) {}

    /// Handles [`Revocations`](gravwell_model::codec::message::Revocations) from the datastore.
    fn on_revocations(&self, _body: &[u8]) {}

    /// Called when the datastore is heard from: the last membership list is still valid.
    fn on_heard(&self) {}

    /// Returns why no other member is trusted, and whether that is a fault; `None` if those of the list are.
    fn membership_problem(&self) -> Option<(String, bool)> {
        None
    }

    /// Returns why the stored CA backup may not be the latest one, or is not known; `None` if it is intact.
    fn ca_backup_problem(&self) -> Option<CaBackupProblem> {
        None
    }
}

pub(super) struct LinkDriver {
    pub shared: ReplicaRef,
    pub applier: mpsc::Sender<applier::Request>,
    pub outbox: mpsc::Sender<outbox_writer::Request>,
    pub connector: Arc<dyn Connector>,
    pub external_addr: Option<String>,
    pub directory: PathBuf,
    pub cache_bytes: u64,
    pub heartbeat_ms: u64,
    /// Directory into which a state is being fetched, or was when the connection was given up.
    pub fetching: Mutex<Option<PathBuf>>,
}

impl LinkDriver {
    /// Keeps the replica connected until the task is dropped.
    pub(super) async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), RETRY_CAP);
        let mut needs_snapshot = false;
        let mut told: Option<(Verdict, Instant)> = None;
        loop {
            let since = Instant::now();
            let error = match self.attempt(needs_snapshot).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            needs_snapshot = matches!(error, LinkError::Compacted);
            self.shared.update_link(|link| {
                link.disconnect();
                link.trouble = error.to_string();
            });
            self.shared.gate().handle_disconnected();
            self.shared.datastore.clear_refused();
            self.refusals().learn(&error).await;
            if let LinkError::LeftBehind(why) = &error {
                self.shared.set_problem(why.clone());
            }
            match &error {
                LinkError::Diverged(verdict) => {
                    telemetry::metrics::verdict(*verdict);
                    // This may last for hours, and recurs at each attempt.
                    if told.is_none_or(|(last, at)| last != *verdict || at.elapsed() > REPEAT_EVERY) {
                        told = Some((*verdict, Instant::now()));
                        tracing::error!(%verdict, remedy = verdict.remedy(), "not following the datastore");
                    }
                }
                error => tracing::info!(%error, "disconnected"),
            }
            if since.elapsed() > Duration::from_secs(10) || needs_snapshot || matches!(error, LinkError::ResyncWanted) {
                backoff.reset();
            }
            let mut random = [0; 8];
            // Without randomness the delay is the longest one, which is safe.
            let drawn = getrandom::fill(&mut random).map_or(u64::MAX, |()| u64::from_le_bytes(random));
            sleep(backoff.next_delay(drawn)).await;
        }
    }

    fn refusals(&self) -> Refusals<'_> {
        Refusals { shared: &self.shared, outbox: &self.outbox, directory: &self.directory }
    }

    async fn attempt(&self, needs_snapshot: bool) -> Result<std::convert::Infallible, LinkError> {
        // An exchange outlives its connection. Before it completes, anything compared with the datastore's log may be
        // of either history, and a second exchange would start from a state that the first one is about to replace.
        drop(self.shared.exchanging.lock().await);
        let connecting = timeout(CONNECT_TIMEOUT, self.connector.connect()).await;
        let (connection, address) =
            connecting.map_err(|_| LinkError::Timeout(CONNECT_TIMEOUT))?.map_err(|error| self.unreachable(error))?;
        let note = |silence| self.shared.note_silence(silence);
        let result = tokio::select! {
            result = self.run_session(&connection, address.clone(), needs_snapshot) => result,
            () = pulse::lost(&connection, note) => {
                self.shared.contents.iter().for_each(|contents| contents.close_bulk());
                Err(LinkError::Silent { address })
            }
        };
        let result = match result {
            Err(LinkError::Wire(error)) => Err(close_reason::explained(&connection, error).await.into()),
            result => result,
        };
        connection.close(0u32.into(), b"bye");
        result
    }

    async fn run_session(
        &self,
        connection: &quinn::Connection,
        address: String,
        needs_snapshot: bool,
    ) -> Result<std::convert::Infallible, LinkError> {
        let (mut send, mut receive) = connection.open_bi().await?;
        let mine = self.shared.claimed();
        let hello = Hello {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            software: software(),
            position: mine,
            external_addr: self.reportable_address(),
        };
        wire::send(&mut send, Kind::Open, &Open::Control).await?;
        wire::send(&mut send, Kind::Hello, &hello).await?;
        let welcome = timeout(SETUP_TIMEOUT, wire::expect::<Welcome, _>(&mut receive, Kind::Welcome));
        let showing = async {
            sleep(SHOW_AFTER).await;
            self.connector.show_register(connection.clone()).await;
            std::future::pending::<std::convert::Infallible>().await
        };
        let welcome = tokio::select! {
            welcome = welcome => welcome.map_err(|_| LinkError::Timeout(SETUP_TIMEOUT))?,
            never = showing => match never {},
        };
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(error) => return Err(unread(close_reason::explained(connection, error).await, mine.as_ref())),
        };
        // A loss is judged by the position before it. The entries are fetched from the present position.
        let wanted = needs_snapshot || self.shared.is_lacking(&welcome) || self.shared.wants_resync();
        let lineage = self.shared.state().meta().map(|meta| meta.lineage.clone()).unwrap_or_default();
        let is_left = mine.as_ref().is_some_and(|mine| leaving::is_left(&self.shared, mine, &lineage, &welcome));
        let step = match judge(mine.as_ref(), &welcome, wanted) {
            // Positions alone do not show a fork if two generations were assigned the same number.
            NextStep::Tail(_) | NextStep::Snapshot if is_left => NextStep::Refuse(Verdict::Forked),
            step => step,
        };
        let verdict = match step {
            NextStep::Refuse(verdict) => verdict,
            _ => welcome.verdict.unwrap_or(Verdict::Behind),
        };
        self.shared.update_link(|link| {
            link.address = address;
            link.verdict = Some(verdict);
            (link.head, link.horizon) = (welcome.head, welcome.horizon);
            link.trouble.clear();
        });
        self.refusals().lift().await?;
        if let NextStep::Refuse(verdict) = step
            && !self.reconciles(connection, mine.as_ref(), &lineage, &welcome).await?
        {
            self.shared.set_problem(format!("the datastore is {verdict}"));
            proofs::show(&self.shared, &mut send).await?;
            if verdict == Verdict::Empty {
                recovery_donor::serve(&self.shared, &self.directory, connection).await;
            }
            return Err(LinkError::Diverged(verdict));
        }
        if !self.shared.wants_resync() {
            self.shared.set_problem("");
        }
        self.shared.set_forbidden(role::forbidden(&welcome.role));
        if step == NextStep::Snapshot {
            resync::fetch(self, connection, &welcome).await?;
        }
        rejoin::pass_former(self, &welcome).await?;
        let position = self.shared.take_over(&welcome).map_err(LinkError::Resync)?;
        self.shared.update_link(|link| link.is_welcome = true);
        self.adopt_terms(&welcome).await;
        self.fetch_generations(connection, &welcome).await;
        if let Some(announce) = self.connector.announcement() {
            wire::send(&mut send, Kind::Announce, &announce).await?;
        }
        wire::send(&mut send, Kind::Subscribe, &Subscribe { from: position.seq }).await?;
        self.shared.update_link(|link| link.connected = true);
        *self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection.clone());
        let heard = Notify::new();
        tracing::info!(member = welcome.member, seq = %position.seq, head = %welcome.head, "connected");
        tokio::select! {
            result = self.follow(connection, Intake::new(position.seq, position.chain, role::is_redacted(&welcome))) => result,
            result = self.listen(&mut receive, &heard) => result,
            result = self.report(&mut send, welcome.heartbeat_ms, &heard) => result,
            result = push::run(&self.shared, &self.outbox, connection), if self.shared.forbidden().is_none() => result,
            result = role::refuse_pending(&self.shared, &self.outbox, welcome.head),
                if self.shared.forbidden().is_some() => result,
            result = self.watch_for_resync() => result,
            result = proofs::keep(&self.shared, &self.directory) => result,
            result = self.serve_blob_chunks(connection) => result,
            never = async {
                self.connector.on_connected(connection.clone()).await;
                std::future::pending().await
            } => never,
        }
    }

    /// Returns the `External-Addr`, unless the datastore would reject this member because of it.
    fn reportable_address(&self) -> Option<String> {
        let text = self.external_addr.as_deref()?;
        match host_and_port(text) {
            Ok(_) => Some(text.to_owned()),
            Err(what) => {
                tracing::warn!(what, "External-Addr not announced; other members and balancers do not know it");
                None
            }
        }
    }

    /// Serves streams on which the datastore requests chunks that it has lost.
    async fn serve_blob_chunks(&self, connection: &quinn::Connection) -> Result<std::convert::Infallible, LinkError> {
        let server = self.shared.contents.as_ref().map(|contents| contents.server());
        Ok(super::blobs::give(server, connection).await?)
    }

    /// Follows a log that continued without this member's last entries, if the reason is known. Returns whether it
    /// is followed.
    async fn reconciles(
        &self,
        connection: &quinn::Connection,
        mine: Option<&Position>,
        lineage: &[LineageEntry],
        welcome: &Welcome,
    ) -> Result<bool, LinkError> {
        let Some(mine) = mine else { return Ok(false) };
        let reconciled = rejoin::run(self, connection, mine, lineage, welcome).await?;
        if reconciled {
            self.shared.update_link(|link| link.verdict = Some(Verdict::Behind));
        }
        Ok(reconciled)
    }

    /// Stores why the log's generations started, in case the datastore loses its disk.
    async fn fetch_generations(&self, connection: &quinn::Connection, welcome: &Welcome) {
        if let Err(error) = rejoin::learn(&self.directory, connection, welcome).await {
            tracing::warn!(error, "failed to store the origins of the log's generations");
        }
        let (directory, log_id, lineage) = (self.directory.clone(), welcome.log_id, welcome.lineage.clone());
        let examining = move || generations::problem_of_member(&directory, log_id, &lineage);
        match vital::spawn_blocking(examining).await {
            Ok(problem) => self.shared.set_unknown_generations(problem),
            Err(error) => tracing::warn!(%error, "failed to check the stored origins of the log's generations"),
        }
    }

    fn unreachable(&self, error: ConnectError) -> LinkError {
        if error.is_rotated {
            return LinkError::LeftBehind(error.message);
        }
        if !error.is_foreign {
            return LinkError::Connect(error.message);
        }
        let verdict = Verdict::Foreign;
        self.shared.update_link(|link| link.verdict = Some(verdict));
        self.shared.set_problem(error.message);
        LinkError::Diverged(verdict)
    }

    /// Adopts the datastore's terms. They hold until it sends others, also across a restart without it.
    async fn adopt_terms(&self, welcome: &Welcome) {
        let terms = Terms::of(welcome);
        *self.shared.limits.lock().unwrap_or_else(PoisonError::into_inner) = terms.limits();
        if self.shared.terms.lock().unwrap_or_else(PoisonError::into_inner).replace(terms.clone()).as_ref()
            == Some(&terms)
        {
            return;
        }
        let (directory, state) = (self.directory.clone(), self.shared.state());
        let saving = move || {
            // The terms are evidence that a state of this log and generation was here, so it must be durable first.
            state.persist().map_err(|error| error.to_string())?;
            terms.save(&directory).map_err(|error| error.to_string())
        };
        if let Ok(Err(error)) = vital::spawn_blocking(saving).await {
            tracing::warn!(
                error,
                "failed to store the datastore's terms; requesting them again on the next connection"
            );
        }
    }

    /// Receives frames and bookmarks.
    async fn follow(
        &self,
        connection: &quinn::Connection,
        mut intake: Intake,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut stream = connection.accept_uni().await?;
        let _: Open = wire::expect(&mut stream, Kind::Open).await?;
        loop {
            let (kind, body) = wire::read(&mut stream).await?.ok_or(WireError::Closed)?;
            match kind {
                Kind::Frames => {
                    let runs;
                    (intake, runs) = take_in(intake, body).await?;
                    for run in runs {
                        self.shared.compare_arrived(&run.entries);
                        self.hand_over(applier::Request::Run(run)).await?;
                    }
                }
                Kind::Bookmark => {
                    let bookmark: Bookmark = message::decode(kind, &body).map_err(WireError::from)?;
                    self.hand_over(applier::Request::Bookmark(bookmark)).await?;
                }
                found => {
                    let expected = "Frames or Bookmark";
                    return Err(WireError::from(message::BadMessage::Unexpected { expected, found }).into());
                }
            }
        }
    }

    pub(super) async fn hand_over(&self, request: applier::Request) -> Result<(), LinkError> {
        self.applier.send(request).await.map_err(|_| LinkError::Closing)
    }

    /// Receives messages on the control stream.
    async fn listen(
        &self,
        receive: &mut quinn::RecvStream,
        heard: &Notify,
    ) -> Result<std::convert::Infallible, LinkError> {
        loop {
            let (kind, body) = wire::read_known(receive).await?.ok_or(WireError::Closed)?;
            match kind {
                Kind::Roster => self.connector.on_roster(&body),
                Kind::Revocations => self.connector.on_revocations(&body),
                Kind::Proof => proofs::take(&self.shared, &*self.connector, &body),
                Kind::Heartbeat => {
                    let heartbeat: Heartbeat = message::decode(kind, &body).map_err(WireError::from)?;
                    self.shared.datastore.note_clock(heartbeat.time_ms, SystemClock.now_ms());
                    self.shared.update_link(|link| {
                        link.head = link.head.max(heartbeat.head);
                        link.floor = heartbeat.floor;
                    });
                    self.shared.outbox_mut().drop_below(heartbeat.floor);
                    self.connector.on_heard();
                    heard.notify_one();
                }
                Kind::Compacted => {
                    let compacted: Compacted = message::decode(kind, &body).map_err(WireError::from)?;
                    self.shared.update_link(|link| link.horizon = compacted.horizon);
                    return Err(LinkError::Compacted);
                }
                Kind::Refused => {
                    let refused: Refused = message::decode(kind, &body).map_err(WireError::from)?;
                    return Err(refused.into());
                }
                // A newer datastore may send other kinds on this stream. Unknown ones are not needed.
                _ => {}
            }
        }
    }

    /// Reports progress after changes and in answer to heartbeats, so that one packet serves both.
    async fn report(
        &self,
        send: &mut quinn::SendStream,
        heartbeat_ms: u64,
        heard: &Notify,
    ) -> Result<std::convert::Infallible, LinkError> {
        let patience = Duration::from_millis(heartbeat_ms.max(self.heartbeat_ms).saturating_mul(2).max(100));
        let mut durable = self.shared.durable.subscribe();
        loop {
            tokio::select! {
                () = heard.notified() => {}
                () = sleep(patience) => {}
                changed = durable.changed() => {
                    changed.map_err(|_| LinkError::Closing)?;
                    sleep(PROGRESS_EVERY).await;
                }
            }
            let applied = *durable.borrow_and_update();
            let progress = self.shared.progress(applied);
            telemetry::metrics::outbox(progress.outbox, progress.rejected);
            wire::send(send, Kind::Progress, &progress).await?;
        }
    }

    async fn watch_for_resync(&self) -> Result<std::convert::Infallible, LinkError> {
        let mut changed = self.shared.outbox_changed.subscribe();
        loop {
            if self.shared.wants_resync() {
                return Err(LinkError::ResyncWanted);
            }
            changed.changed().await.map_err(|_| LinkError::Closing)?;
        }
    }
}

/// Returns why no welcome arrived.
fn unread(error: WireError, mine: Option<&Position>) -> LinkError {
    let wide = mine.map(|mine| mine.generation).filter(|generation| generation.narrow().is_none());
    match (error, wide) {
        // Versions that cannot decode the generation close the connection without a reason.
        (WireError::Closed, Some(generation)) => LinkError::Unread(generation),
        (error, _) => error.into(),
    }
}

/// Decodes a block of frames, a large one off the async threads.
async fn take_in(mut intake: Intake, frames: Bytes) -> Result<(Intake, Vec<EntryBatch>), LinkError> {
    if frames.len() < 64 << 10 {
        let runs = intake.handle_frames(frames)?;
        return Ok((intake, runs));
    }
    let decoding = vital::spawn_blocking(move || intake.handle_frames(frames).map(|runs| (intake, runs)));
    Ok(decoding.await.map_err(|_| LinkError::Closing)??)
}

pub(crate) fn software() -> String {
    format!("gravwell {}", env!("CARGO_PKG_VERSION"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Chain, Seq};

    #[test]
    fn p15_the_log_is_taken_in_though_others_have_taken_the_threads() {
        // The bytes do not matter, as long as there are many.
        let taken_in = take_in(Intake::new(Seq::ZERO, Chain::default(), false), vec![7; 256 << 10].into());
        assert!(matches!(vital::testing::without_threads(taken_in), Err(LinkError::Frames(_))));
    }
}
