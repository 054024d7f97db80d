//! The connection to the datastore: reconnects without limit. [`super::driver`] carries out each connection.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use gravwell_log::generations;
use gravwell_model::address::host_and_port;
use gravwell_model::codec::message::{Announce, Welcome};
use gravwell_model::{Generation, Verdict};
use gravwell_protocol::session::client::End;
use gravwell_protocol::session::reconnects::Reconnects;
use gravwell_runtime::tasks::vital;
use gravwell_runtime::telemetry;
use gravwell_transport::endpoint::{CLOSE_LEFT_BEHIND, CLOSE_NOT_A_MEMBER, CLOSE_REVOKED};
use gravwell_transport::wire::WireError;
use gravwell_transport::{close_reason, pulse};

use super::CaBackupProblem;
use super::driver::Driver;
use super::refusal::Refusals;
use super::shared::ReplicaRef;
use super::terms::Terms;
use super::{applier, disk, outbox_writer};

/// Longest wait for a connection, over all addresses; a connector gives each address a shorter time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval at which a log that is not followed is reported again.
const REPEAT_EVERY: Duration = Duration::from_secs(300);

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
    #[error("cannot apply the snapshot: {0}")]
    Resync(String),
    /// The session ended for a reason that needs no further distinction.
    #[error(transparent)]
    Ended(End),
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

impl LinkError {
    /// Returns the reason for which this member ended the connection, if it did.
    fn end(&self) -> Option<&End> {
        match self {
            LinkError::Ended(end) => Some(end),
            _ => None,
        }
    }
}

impl From<End> for LinkError {
    fn from(end: End) -> Self {
        match end {
            End::Timeout(timeout) => LinkError::Timeout(timeout),
            End::Message(error) => WireError::from(error).into(),
            End::Refused(refused) => WireError::from(refused).into(),
            End::Diverged(verdict) => LinkError::Diverged(verdict),
            End::DiskFull => LinkError::Resync(disk::FULL.into()),
            End::Failed(reason) => LinkError::Resync(reason),
            End::Unread(generation) => LinkError::Unread(generation),
            End::Lost => WireError::Closed.into(),
            end @ (End::Compacted | End::ResyncWanted | End::Frames(_)) => LinkError::Ended(end),
        }
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
        let mut reconnects = Reconnects::default();
        let mut told: Option<(Verdict, Instant)> = None;
        loop {
            let since = Instant::now();
            let error = match self.attempt(reconnects.needs_snapshot()).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            reconnects.handle_end(since.elapsed(), error.end());
            self.shared.note_disconnected();
            self.shared.update_link(|link| link.trouble = error.to_string());
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
            let mut random = [0; 8];
            // Without randomness the delay is the longest one, which is safe.
            let drawn = getrandom::fill(&mut random).map_or(u64::MAX, |()| u64::from_le_bytes(random));
            sleep(reconnects.next_delay(drawn)).await;
        }
    }

    pub(super) fn refusals(&self) -> Refusals<'_> {
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
        Driver::open(self, connection, address, needs_snapshot).await?.run().await
    }

    /// Returns the `External-Addr`, unless the datastore would reject this member because of it.
    pub(super) fn reportable_address(&self) -> Option<String> {
        let text = self.external_addr.as_deref()?;
        match host_and_port(text) {
            Ok(_) => Some(text.to_owned()),
            Err(what) => {
                tracing::warn!(what, "External-Addr not announced; other members and balancers do not know it");
                None
            }
        }
    }

    /// Reports which generations of the log started for a reason that is not stored here.
    pub(super) async fn check_generations(&self, welcome: &Welcome) {
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
    pub(super) async fn adopt_terms(&self, terms: Terms) {
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

    pub(super) async fn hand_over(&self, request: applier::Request) -> Result<(), LinkError> {
        self.applier.send(request).await.map_err(|_| LinkError::Closing)
    }
}

pub(crate) fn software() -> String {
    format!("gravwell {}", env!("CARGO_PKG_VERSION"))
}
