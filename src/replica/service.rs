//! A replica in a separate process, without a webserver around it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustls::pki_types::CertificateDer;
use tokio::sync::Notify;

use gravwell_env::data_dir;
use gravwell_model::codec::message::Announce;
use gravwell_runtime::telemetry::notify;
use gravwell_transport::endpoint::{self, ClientEndpoint};
use gravwell_transport::local;
use gravwell_transport::peer::Peers;
use gravwell_transport::trust::{Fingerprint, Identity, TrustError, fingerprint, tls};

use super::{CaBackupProblem, ConnectError, Connector, OpenError, Pending, Replica, ReplicaOptions, admin};

/// Error of starting the process.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The replica cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The keys for other members cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The identity cannot be read.
    #[error(
        "{source}; restore the file, or join again: `gravwell-logctl enroll NAME --replace` at the datastore, then \
         `gravwell-logctl --data-dir {home} join TOKEN`, which keeps state and outbox", home = home.display()
    )]
    Identity {
        /// Directory of the replica.
        home: PathBuf,
        /// Cause of the failure.
        source: TrustError,
    },
    /// Opening or a socket failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// Cause of the failure.
        source: std::io::Error,
    },
}

impl ServiceError {
    /// Returns whether files on the disk are corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            ServiceError::Open(error) => error.is_damage(),
            ServiceError::Trust(error) | ServiceError::Identity { source: error, .. } => {
                matches!(error, TrustError::Damaged { .. })
            }
            ServiceError::Io { .. } => false,
        }
    }
}

/// Order in which addresses are tried.
#[derive(Debug, Default)]
struct Favourites {
    /// Last address at which the datastore was followed.
    good: Option<String>,
    /// Address that has answered, but whose datastore was not followed, or not yet.
    tried: Option<String>,
}

impl Favourites {
    /// Orders addresses: the last good one comes first, and the one whose datastore was just rejected, such as an old
    /// copy, comes last.
    fn order(&mut self, addresses: &[String]) -> Vec<String> {
        let refused = self.tried.clone();
        let mut ordered = addresses.to_vec();
        ordered.sort_by_key(|address| match Some(address) {
            address if address == refused.as_ref() => 2,
            address if address == self.good.as_ref() => 0,
            _ => 1,
        });
        ordered
    }

    fn note_tried(&mut self, address: &str) {
        self.tried = Some(address.to_owned());
    }

    fn note_good(&mut self) {
        if let Some(address) = self.tried.take() {
            self.good = Some(address);
        }
    }
}

/// An endpoint, and the certificate that it presents.
struct Made {
    certificate: Fingerprint,
    endpoint: ClientEndpoint,
}

/// Connects with the identity of a data directory, and renews it in time.
pub struct MemberConnector {
    pub(super) data_dir: PathBuf,
    addresses: Vec<String>,
    endpoint: Mutex<Option<Made>>,
    bulk_endpoint: Mutex<Option<Made>>,
    favourites: Mutex<Favourites>,
    pub(super) peers: Option<Peers>,
    /// Certificate that `peers` present.
    shown: Mutex<Option<Fingerprint>>,
    /// Notified when the datastore reports a change of its members.
    pub(super) members_changed: Notify,
    /// When the age of the certificate was last checked.
    pub(super) looked_at: Mutex<Option<Instant>>,
    /// Reason for which the stored CA backup could not be read.
    pub(super) escrow_problem: Mutex<Option<CaBackupProblem>>,
}

impl MemberConnector {
    /// Uses the identity in `data_dir`; `addresses` replace those of the identity unless empty.
    #[must_use]
    pub fn new(data_dir: &Path, addresses: Vec<String>) -> MemberConnector {
        let (endpoint, bulk_endpoint) = (Mutex::default(), Mutex::default());
        let members_changed = Notify::new();
        MemberConnector {
            data_dir: data_dir.to_owned(),
            addresses,
            endpoint,
            bulk_endpoint,
            favourites: Mutex::default(),
            peers: None,
            shown: Mutex::default(),
            members_changed,
            looked_at: Mutex::default(),
            escrow_problem: Mutex::default(),
        }
    }

    /// Announces to the datastore where `peers` listen, and passes the membership list on to them.
    #[must_use]
    pub fn with_peers(mut self, peers: Peers) -> MemberConnector {
        self.peers = Some(peers);
        self
    }

    fn endpoint(&self, identity: &Identity, is_bulk: bool) -> Result<ClientEndpoint, String> {
        let cached = if is_bulk { &self.bulk_endpoint } else { &self.endpoint };
        let mut cached = cached.lock().unwrap_or_else(PoisonError::into_inner);
        let certificate = fingerprint(&identity.certificate().map_err(|error| error.to_string())?);
        match &*cached {
            Some(made) if made.certificate == certificate => return Ok(made.endpoint.clone()),
            _ => self.show_to_peers(certificate),
        }
        let protocol = if is_bulk { tls::ALPN_CHUNKS } else { tls::ALPN_LOG };
        let config = tls::member_config(identity, protocol).map_err(|error| error.to_string())?;
        let endpoint = if is_bulk { endpoint::bulk_client(config) } else { endpoint::client(config) };
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        Ok(cached.insert(Made { certificate, endpoint }).endpoint.clone())
    }

    /// Presents to other members the certificate that the datastore sees: the member may have joined again, or
    /// renewed it.
    fn show_to_peers(&self, certificate: Fingerprint) {
        let Some(peers) = &self.peers else { return };
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *shown == Some(certificate) {
            return;
        }
        match peers.take_identity() {
            Ok(()) => *shown = Some(certificate),
            Err(error) => tracing::warn!(%error, "failed to present the new certificate to other members; using the \
                                                  old one"),
        }
    }

    async fn try_all(&self, is_bulk: bool) -> Result<(quinn::Connection, String), ConnectError> {
        let plain = |message: String| ConnectError { message, is_foreign: false, is_rotated: false };
        let identity = Identity::load(&self.data_dir).map_err(|error| plain(error.to_string()))?;
        let endpoint = self.endpoint(&identity, is_bulk).map_err(plain)?;
        let addresses = if self.addresses.is_empty() { identity.addresses() } else { &self.addresses };
        if addresses.is_empty() {
            return Err(plain("the identity contains no datastore address".into()));
        }
        let ordered = self.favourites().order(addresses);
        let errors = match endpoint.connect_any(&ordered).await {
            Ok(found) => return Ok(found),
            Err(errors) => errors,
        };
        // The member may have joined again in the meantime, and have another identity now.
        self.forget_endpoints();
        let is_foreign = errors.iter().any(|error| matches!(error, endpoint::ConnectError::Foreign { .. }));
        let is_rotated = errors.iter().any(|error| matches!(error, endpoint::ConnectError::Rotated { .. }));
        Err(ConnectError { message: endpoint::summary(&errors), is_foreign, is_rotated })
    }

    async fn connect_and_note(&self) -> Result<(quinn::Connection, String), ConnectError> {
        let found = self.try_all(false).await?;
        self.favourites().note_tried(&found.1);
        Ok(found)
    }

    fn favourites(&self) -> std::sync::MutexGuard<'_, Favourites> {
        self.favourites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn forget_endpoints(&self) {
        *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.bulk_endpoint.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Connector for MemberConnector {
    fn connect(&self) -> Pending<'_, Result<(quinn::Connection, String), ConnectError>> {
        Box::pin(self.connect_and_note())
    }

    fn connect_bulk(&self) -> Pending<'_, Result<quinn::Connection, ConnectError>> {
        Box::pin(async { Ok(self.try_all(true).await?.0) })
    }

    fn authorities(&self) -> Vec<CertificateDer<'static>> {
        Identity::load(&self.data_dir).and_then(|identity| identity.roots()).unwrap_or_default()
    }

    fn announcement(&self) -> Option<Announce> {
        self.peers.as_ref().and_then(Peers::announcement)
    }

    fn on_roster(&self, body: &[u8]) {
        self.members_changed.notify_one();
        if let Some(peers) = &self.peers {
            peers.handle_roster(body);
        }
    }

    fn on_revocations(&self, body: &[u8]) {
        if let Some(peers) = &self.peers {
            peers.handle_revocations(body);
        }
    }

    fn on_heard(&self) {
        if let Some(peers) = &self.peers {
            peers.confirm_roster();
        }
    }

    fn membership_problem(&self) -> Option<(String, bool)> {
        self.peers.as_ref()?.membership_problem()
    }

    fn ca_backup_problem(&self) -> Option<CaBackupProblem> {
        self.escrow_problem()
    }

    fn show_register(&self, connection: quinn::Connection) -> Pending<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.show_mark(&connection).await {
                tracing::debug!(error, "failed to send the latest known member registry");
            }
        })
    }

    fn on_connected(&self, connection: quinn::Connection) -> Pending<'_, ()> {
        self.favourites().note_good();
        Box::pin(async move {
            self.keep_up(&connection).await;
        })
    }
}

/// Connections of a replica with other members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerListening {
    /// There are none.
    Apart,
    /// The replica connects to other members, which do not connect to it.
    Outgoing,
    /// The replica listens for other members at this address.
    On(SocketAddr),
}

impl PeerListening {
    fn address(self) -> Option<SocketAddr> {
        match self {
            PeerListening::On(address) => Some(address),
            PeerListening::Apart | PeerListening::Outgoing => None,
        }
    }
}

/// Returns the host in `External-Addr`, which may include a scheme and a port.
fn host_of(external_addr: Option<&str>) -> Vec<String> {
    let Some(text) = external_addr else { return Vec::new() };
    let text = text.split_once("://").map_or(text, |(_, rest)| rest);
    let text = text.split('/').next().unwrap_or_default();
    let host = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, _)) => host,
        None => text.rsplit_once(':').map_or(text, |(host, _)| host),
    };
    if host.is_empty() { Vec::new() } else { vec![host.to_owned()] }
}

/// A running replica with its local socket.
pub struct Service {
    /// The replica that this service runs.
    pub replica: Replica,
    /// Connections with other members; `None` without an identity, or if none are wanted.
    pub peers: Option<Peers>,
    listener: tokio::task::JoinHandle<()>,
}

impl Service {
    /// Opens `data_dir`, connects if it has an identity, and serves the local socket.
    ///
    /// # Errors
    /// If the directory is in use, its outbox is corrupt, or the address for other members is taken.
    pub async fn start(
        data_dir: &Path,
        addresses: Vec<String>,
        options: ReplicaOptions,
        listening: PeerListening,
    ) -> Result<Service, ServiceError> {
        let (external_addr, roster_age_max) = (options.external_addr.clone(), options.roster_age_max);
        let (path, opening) = (data_dir.to_owned(), options);
        let replica = tokio::task::spawn_blocking(move || Replica::open(&path, opening))
            .await
            .map_err(|error| ServiceError::Io { what: "opening", source: std::io::Error::other(error) })??;
        data_dir::restrict_to_owner(data_dir).map_err(OpenError::Directory)?;
        let socket = local::listen(data_dir).map_err(|source| ServiceError::Io { what: "the local socket", source })?;
        let mut peers = None;
        if Identity::exists(data_dir) {
            Identity::load(data_dir).map_err(|source| ServiceError::Identity { home: data_dir.to_owned(), source })?;
            let mut connector = MemberConnector::new(data_dir, addresses);
            if listening != PeerListening::Apart {
                let begun = Peers::start(
                    data_dir,
                    listening.address(),
                    host_of(external_addr.as_deref()),
                    roster_age_max,
                    replica.watch_over(),
                )?;
                if let Some(contents) = replica.contents() {
                    contents.attach(&begun);
                }
                connector = connector.with_peers(begun.clone());
                peers = Some(begun);
            }
            replica.connect(Arc::new(connector));
        } else {
            tracing::warn!("no identity; working offline. Join with `gravwell-logctl --data-dir DIR join TOKEN`");
        }
        let listener =
            tokio::spawn(replica.watch_over().lasting("local socket", admin::listen(replica.clone(), socket)));
        Ok(Service { replica, peers, listener })
    }

    /// Returns a one-line summary for operators and for the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let status = self.replica.status();
        if !status.healthy {
            return status.problem;
        }
        let connection = if status.connected { "connected" } else { "disconnected" };
        format!("{connection}, sequence {} of {}, outbox {}", status.seq, status.head, status.outbox)
    }

    /// Updates gauges; to be called now and then.
    pub fn measure(&self) {
        gravwell_runtime::telemetry::metrics::health(self.replica.status().health.level.word());
    }

    /// Stops serving and closes the replica.
    pub async fn stop(self) {
        notify::stopping();
        self.replica.watch_over().stop();
        self.listener.abort();
        if let Some(peers) = &self.peers {
            peers.close();
        }
        self.replica.close().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_good_address_comes_first_and_a_refused_one_last() {
        let addresses = ["a", "b", "c"].map(str::to_owned);
        let mut favourites = Favourites::default();
        assert_eq!(favourites.order(&addresses), ["a", "b", "c"]);
        favourites.note_tried("b");
        favourites.note_good();
        assert_eq!(favourites.order(&addresses), ["b", "a", "c"]);
        favourites.note_tried("b");
        assert_eq!(favourites.order(&addresses), ["a", "c", "b"]);
        favourites.note_tried("c");
        assert_eq!(
            favourites.order(&addresses),
            ["b", "a", "c"],
            "the working address comes first again when the other one fails"
        );
    }

    /// A connector that never connects.
    struct Nowhere;

    impl Connector for Nowhere {
        fn connect(&self) -> Pending<'_, Result<(quinn::Connection, String), ConnectError>> {
            Box::pin(std::future::pending())
        }

        fn on_connected(&self, _: quinn::Connection) -> Pending<'_, ()> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p14_each_part_that_ends_is_named() {
        gravwell_runtime::tasks::supervisor::Supervisor::obey_orders();
        let temp = tempfile::tempdir().expect("temp dir");
        let options =
            ReplicaOptions { contents: Some(crate::blobs::BlobOptions::default()), ..ReplicaOptions::default() };
        let service = Service::start(temp.path(), Vec::new(), options, PeerListening::Apart).await.expect("starts");
        service.replica.connect(Arc::new(Nowhere));
        let ending = service.replica.watch_over().end_each(|| service.replica.status().problem);
        let names = tokio::time::timeout(Duration::from_secs(60), ending).await.expect("each is named");
        assert_eq!(names, ["connection to the datastore", "contents", "local socket"]);
        assert!(service.summary().contains("start the process again"), "{}", service.summary());
    }

    #[test]
    fn the_host_of_an_external_address() {
        let cases = [
            ("web1.example.com:443", "web1.example.com"),
            ("https://web1:8443/x", "web1"),
            ("10.0.0.1", "10.0.0.1"),
            ("[fd00::1]:443", "fd00::1"),
        ];
        for (text, host) in cases {
            assert_eq!(host_of(Some(text)), [host], "{text}");
        }
        assert!(host_of(None).is_empty() && host_of(Some(":443")).is_empty());
    }
}
