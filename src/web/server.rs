//! The webserver process: starts every part in order, serves requests until it is stopped, and drains connections.

use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::ServiceExt;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum_server::Handle;
use tokio::sync::Notify;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tower_http::normalize_path::NormalizePath;
use tower_http::timeout::RequestBodyTimeoutLayer;

use gravwell_config::webserver::WebserverConfig;
use gravwell_datastore::Datastore;
use gravwell_env::fs::replace_file;
use gravwell_env::quota::Quota;
use gravwell_env::{RealFs, data_dir};
use gravwell_objects::bootstrap::{self, First, FirstPassword};
use gravwell_objects::cleanup::SLICE;
use gravwell_objects::quotas::Quotas;
use gravwell_objects::sessions::{self, FormerKey, Session};
use gravwell_objects::store::Author;
use gravwell_objects::write_limits::WriteLimits;
use gravwell_objects::write_rate::{Rates, WriteRate};
use gravwell_objects::{CommitError, Store, StoreError, Stored, Writes};
use gravwell_replica::blobs::{BlobOptions, Fetching};
use gravwell_replica::service::{PeerListening, Service, ServiceError};
use gravwell_replica::{ReplicaOptions, audit_acts};
use gravwell_runtime::telemetry::output;

use gravwell_model::codec::message::Open;
use gravwell_search::searches::{Bounds, Options, Searches};
use gravwell_search::source::{Indexer, http};
use gravwell_search::worker::Sandbox;

use super::api::system::JSON_BYTES_MAX;
use super::app::{App, AppRef};
use super::audit_acts::{Actor, Recorder};
use super::code_throttle::Codes;
use super::connections::Connections;
use super::host_names::OwnNames;
use super::login_throttle::LoginThrottle;
use super::process_control::{ControlRequest, ProcessControl};
use super::search_forwarding::Asked;
use super::upload_quota::Uploads;
use super::{body_drain, headers, lingering_close, listener, periodic_tasks, routes, standalone, tls, unauthenticated};

/// Read timeout: a client that sends nothing for this long while its request is awaited is disconnected.
pub(super) const SLOW_CLIENT: Duration = Duration::from_secs(30);
/// Time allowed for requests in progress when the process stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Additional time allowed after [`DRAIN`] for background work that requests started.
const RELEASE: Duration = Duration::from_secs(5);
/// Time within which audit records, including counts of repeated acts, are written.
const WRITE_DOWN: Duration = Duration::from_millis(300);
/// Name of the file in the data directory that holds the first administrator's password.
pub const PASSWORD_FILE: &str = "initial-admin-password";

/// Error returned when a webserver cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WebserverError {
    /// The replica or its connections could not be started.
    #[error(transparent)]
    Replica(#[from] ServiceError),
    /// The log of a standalone webserver could not be opened.
    #[error("cannot start in standalone mode: {0}")]
    OwnLog(String),
    /// The log of a standalone webserver is corrupt.
    #[error("cannot start in standalone mode: {0}")]
    OwnLogDamaged(String),
    /// The log of a standalone webserver is still in use by another webserver of this process.
    #[error("cannot start in standalone mode: {0}")]
    OwnLogInUse(String),
    /// The TLS certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] tls::CertificateError),
    /// The listening socket could not be bound.
    #[error(
        "cannot listen on {address}: {source}; check whether another process uses the port or it is below 1024, or \
         set another one with {setting}"
    )]
    Listen {
        /// Option that sets the address.
        setting: &'static str,
        /// Address that could not be bound.
        address: SocketAddr,
        /// Error of the operating system.
        source: std::io::Error,
    },
    /// A file, a setting or another resource cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// File, setting or resource concerned.
        what: String,
        /// Underlying error.
        source: std::io::Error,
    },
    /// Reading the state failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Committing a transaction that the webserver needs at startup failed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl WebserverError {
    /// Returns whether the directory or the address is still in use, by this or another process.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        use gravwell_env::data_dir::DirectoryError;
        use gravwell_replica::OpenError;
        match self {
            WebserverError::Replica(ServiceError::Open(OpenError::Directory(DirectoryError::InUse { .. })))
            | WebserverError::OwnLogInUse(_) => true,
            WebserverError::Listen { source, .. } => source.kind() == std::io::ErrorKind::AddrInUse,
            _ => false,
        }
    }

    /// Returns whether data on the disk is corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            WebserverError::Replica(error) => error.is_damage(),
            WebserverError::OwnLogDamaged(_) => true,
            _ => false,
        }
    }
}

/// A running webserver.
pub struct Webserver {
    app: AppRef,
    service: Service,
    own_log: Option<Datastore>,
    handle: Handle<SocketAddr>,
    address: SocketAddr,
    tasks: JoinSet<()>,
    /// Notified to reload the certificate files.
    reread: Arc<Notify>,
    orders: Receiver<ControlRequest>,
}

pub(super) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> WebserverError {
    move |source| WebserverError::Io { what: what.to_string(), source }
}

fn search_options(config: &WebserverConfig) -> Result<Options, WebserverError> {
    let wrong =
        |what: &str, error: String| WebserverError::Io { what: what.into(), source: std::io::Error::other(error) };
    let tls = http::trust(&config.data_dir, config.indexer_authority.as_deref());
    let tls = tls.map_err(|error| wrong("Indexer-CA-File", error))?;
    let patience = Duration::from_secs(config.indexer_timeout_s);
    let indexers = config.indexers.iter().map(|text| Indexer::parse(text, &tls, patience));
    let indexers = indexers.collect::<Result<_, _>>().map_err(|error| wrong("Remote-Indexers", error))?;
    Ok(Options {
        dir: config.render_store.clone().unwrap_or_else(|| config.data_dir.join("searches")),
        bytes_max: config.render_store_limit.saturating_mul(1 << 20),
        room: Bounds {
            total: config.render_store_total,
            of_user: config.render_store_of_user,
            free_min: config.render_store_free_min.max(config.free_min_bytes),
        },
        run_seconds: config.search_seconds_max,
        per_user_max: config.searches_per_user,
        filters_max: config.search_filters_max,
        sandbox: if config.search_sandbox_required { Sandbox::Required } else { Sandbox::Preferred },
        keep_s: config.search_keep_s,
        history_max: config.history_max,
        tags_are_granted: config.capability_control,
        indexers: Arc::new(indexers),
    })
}

fn own_uuid(config: &WebserverConfig) -> Result<uuid::Uuid, WebserverError> {
    let file = config.data_dir.join("webserver-uuid");
    if let Some(text) = &config.uuid {
        let wrong = |error: uuid::Error| io("Webserver-UUID")(std::io::Error::other(error.to_string()));
        return uuid::Uuid::parse_str(text).map_err(wrong);
    }
    if let Some(uuid) = std::fs::read_to_string(&file).ok().and_then(|text| uuid::Uuid::parse_str(text.trim()).ok()) {
        return Ok(uuid);
    }
    let uuid = uuid::Uuid::new_v4();
    replace_file(&RealFs, &file, format!("{uuid}\n").as_bytes()).map_err(io(file.display()))?;
    Ok(uuid)
}

fn chunk_grace(config: &WebserverConfig) -> Duration {
    Duration::from_secs(config.chunk_grace_hours.saturating_mul(3600))
}

/// Returns the options for storing contents. A standalone webserver shares the chunk store of its own log, so that each
/// chunk is stored once.
fn contents_options(config: &WebserverConfig, own_log: Option<&Datastore>) -> BlobOptions {
    // The chunk store of a standalone log is not a cache: its chunks cannot be fetched again from another member.
    let fetching = if config.fetches_on_demand && own_log.is_none() {
        Fetching::OnDemand { cache_bytes_max: config.resource_cache_bytes_max }
    } else {
        Fetching::Eager
    };
    let grace = chunk_grace(config);
    let store = own_log.map(Datastore::chunk_store);
    BlobOptions { store, fetching, grace, bytes_per_s: config.chunk_bytes_per_s }
}

impl Webserver {
    /// Starts a webserver. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the directory is in use or corrupt, the address is in use, or the certificate cannot be used.
    pub async fn start(config: WebserverConfig) -> Result<Webserver, WebserverError> {
        let data_dir = config.data_dir.clone();
        data_dir::create(&data_dir).and_then(|()| data_dir::restrict_to_owner(&data_dir)).map_err(|error| {
            WebserverError::Io { what: "the data directory".into(), source: std::io::Error::other(error) }
        })?;
        let own_log = match standalone::is_wanted(&data_dir, &config.datastores) {
            true => Some(standalone::start(&data_dir).await?),
            false => None,
        };
        let datastores = match &own_log {
            Some(datastore) => vec![datastore.address().to_string()],
            None => config.datastores.clone(),
        };
        let contents = contents_options(&config, own_log.as_ref());
        let options = ReplicaOptions {
            contents: Some(contents),
            cache_bytes: config.cache_bytes,
            outbox_bytes_max: usize::try_from(config.outbox_bytes_max).unwrap_or(usize::MAX),
            external_addr: config.external_addr.clone(),
            roster_age_max: Some(config.membership_hours_max)
                .filter(|hours| *hours > 0)
                .map(|hours| Duration::from_secs(hours * 3600)),
            heartbeat_ms: config.update_interval_s * 1000,
            is_standalone: own_log.is_some(),
            free_min_bytes: config.free_min_bytes,
            reserve_bytes: config.reserve_bytes,
            ..ReplicaOptions::default()
        };
        let peers = if own_log.is_some() { PeerListening::Apart } else { PeerListening::On(config.peer_address()) };
        let service = Service::start(&data_dir, datastores, options, peers).await?;
        if let Some(own_log) = &own_log {
            service.replica.watch_over().include(own_log.watch_over().clone());
        }
        // No other process uses the directory now.
        super::api::export_archive::remove_leftovers(&data_dir);
        let uuid = own_uuid(&config)?;
        let via = service.replica.status().member.unwrap_or_else(|| uuid.to_string());
        let (acts, sending) = audit_acts::channel(&data_dir);
        let recorder = Arc::new(Recorder::new(acts));
        let store = Store::new(service.replica.clone(), &via).with_allowance(allowance(&config, Arc::clone(&recorder)));
        forget_former_keys(&store).await?;
        if !config.persist_logins {
            end_own_sessions(&store).await?;
        }
        let (window, known) = (Duration::from_secs(config.login_window_s), data_dir.join("known-places"));
        let searches = Searches::open(store.clone(), search_options(&config)?).map_err(io("Render-Store"))?;
        let (orders_given, orders) = ProcessControl::new(&config.log_level);
        let app = Arc::new(App {
            orders: orders_given,
            searches: Arc::new(searches),
            peers: service.peers.clone(),
            uuid,
            limiter: Arc::new(LoginThrottle::open(config.login_failures, window, &known).map_err(io("randomness"))?),
            codes: Codes::default(),
            recorder,
            started: Instant::now(),
            backup: std::sync::Mutex::default(),
            extending: std::sync::Mutex::default(),
            is_draining: AtomicBool::new(false),
            ending: tokio::sync::watch::Sender::new(false),
            streams: Quota::new(config.streams_of_user_max),
            uploads: Uploads::new(config.upload_bytes_of_user, chunk_grace(&config), &data_dir),
            stands_alone: own_log.is_some(),
            store,
            config,
        });
        let mut webserver = Webserver {
            service,
            own_log,
            handle: Handle::new(),
            address: app.config.listen_address(),
            tasks: JoinSet::new(),
            reread: Arc::new(Notify::new()),
            orders,
            app,
        };
        webserver.listen()?;
        if let Some(peers) = &webserver.service.peers {
            peers.serve(Open::Search, Arc::new(Asked(Arc::downgrade(&webserver.app))));
        }
        let sending = sending.run(webserver.app.store.replica().clone());
        webserver.tasks.spawn(webserver.service.replica.watch_over().lasting("audit records", sending));
        periodic_tasks::spawn(&webserver.app, &mut webserver.tasks);
        let searches = Arc::clone(&webserver.app.searches);
        webserver.tasks.spawn(async move { searches.probe().await });
        let first = first_administrator(AppRef::clone(&webserver.app));
        webserver.tasks.spawn(webserver.service.replica.watch_over().passing("first administrator", first));
        Ok(webserver)
    }

    fn listen(&mut self) -> Result<(), WebserverError> {
        let listener = listener::bind(self.address, "--listen")?;
        self.address = listener.local_addr().map_err(io("the listener"))?;
        let router = routes::router(&self.app)
            .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
            .layer(RequestBodyTimeoutLayer::new(SLOW_CLIENT))
            .layer(middleware::from_fn(body_drain::settle))
            .layer(middleware::from_fn_with_state(AppRef::clone(&self.app), headers::add))
            .layer(middleware::from_fn_with_state(AppRef::clone(&self.app), note_access))
            .layer(middleware::from_fn_with_state(AppRef::clone(&self.app), unauthenticated::bounded))
            .layer(middleware::from_fn(lingering_close::few_headers))
            .layer(tower_http::catch_panic::CatchPanicLayer::new());
        let service = NormalizePath::trim_trailing_slash(router);
        let service = ServiceExt::<Request>::into_make_service_with_connect_info::<SocketAddr>(service);
        let watch = self.service.replica.watch_over().clone();
        let config = &self.app.config;
        let (of_address, of_user) = (config.connections_of_address_max, config.connections_of_user_max);
        let connections = Connections::new(of_address, of_user, config.trusted_proxies.clone());
        if config.plain_http {
            let serving = listener::ended(listener::plain(listener, &self.handle, connections)?.serve(service));
            self.tasks.spawn(watch.lasting("listener", serving));
            return Ok(());
        }
        let files = tls::files(config)?;
        let names = Arc::new(OwnNames::new(tls::names(config), config.external_addr.as_deref()));
        let settings = files.load(&names)?;
        let following = files.follow(settings.clone(), Arc::clone(&self.reread), Arc::clone(&names));
        self.tasks.spawn(watch.lasting("renewal of the certificate", following));
        let serving =
            listener::ended(listener::secure(listener, settings, &self.handle, connections.clone())?.serve(service));
        self.tasks.spawn(watch.lasting("listener", serving));
        if !config.no_redirect {
            let address = SocketAddr::new(self.address.ip(), config.redirect_port);
            let (port, handle) = (self.address.port(), self.handle.clone());
            let redirecting = listener::redirect(address, port, handle, connections, names);
            self.tasks.spawn(watch.passing("redirection to HTTPS", redirecting));
        }
        Ok(())
    }

    /// Returns the address on which the webserver listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL for browsers.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.app.config.plain_http { "http" } else { "https" };
        let host = match self.address.ip() {
            ip if ip.is_unspecified() => "localhost".to_owned(),
            std::net::IpAddr::V6(ip) => format!("[{ip}]"),
            ip => ip.to_string(),
        };
        format!("{scheme}://{host}:{}", self.address.port())
    }

    /// Returns a one-line summary for operators and the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        format!("{}, {}", self.url(), self.service.summary())
    }

    /// Returns whether the own log of a standalone webserver commits within `patience`; true if there is none.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        match &self.own_log {
            Some(own_log) => own_log.is_alive(patience).await,
            None => true,
        }
    }

    /// Updates gauges; called periodically.
    pub fn measure(&self) {
        self.service.measure();
    }

    /// Waits for the next control request that an administrator sends through the API.
    pub async fn order(&mut self) -> ControlRequest {
        match self.orders.recv().await {
            Some(order) => order,
            // The sender lives as long as this webserver.
            None => std::future::pending().await,
        }
    }

    /// Reloads the certificate files now, as on SIGHUP.
    pub fn reload(&self) {
        self.reread.notify_one();
    }

    /// Stops the webserver: reports to load balancers that it is draining, stops listening, closes WebSocket connections
    /// and streams, waits a bounded time for requests in progress, and closes the replica. Afterwards the directory and
    /// the address are free, so that another webserver can start.
    pub async fn stop(mut self) {
        self.service.replica.watch_over().stop();
        self.app.is_draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(self.app.config.drain_s)).await;
        self.handle.graceful_shutdown(Some(DRAIN));
        self.app.ending.send_replace(true);
        self.app.searches.shut_down().await;
        let drained = async {
            while self.handle.connection_count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout(DRAIN, drained).await;
        self.handle.shutdown();
        if self.app.recorder.flush_all(WRITE_DOWN) {
            tokio::time::sleep(WRITE_DOWN).await;
        }
        self.tasks.shutdown().await;
        self.app.limiter.keep();
        let app = Arc::downgrade(&self.app);
        drop(self.app);
        let released = async {
            while app.strong_count() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(RELEASE, released).await.is_err() {
            tracing::warn!(count = app.strong_count(), "requests still in progress at shutdown; dropping them");
        }
        self.service.stop().await;
        if let Some(own_log) = self.own_log {
            own_log.stop().await;
        }
    }
}

async fn note_access(State(app): State<AppRef>, request: Request, next: Next) -> Response {
    if app.config.no_access_log {
        return next.run(request).await;
    }
    let started = Instant::now();
    // The query string may hold private data.
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let from = super::authorization::address(&app, request.extensions(), request.headers());
    let response = next.run(request).await;
    let (status, micros) = (response.status().as_u16(), started.elapsed().as_micros());
    tracing::debug!(target: "gravwell::access", %from, %method, path, status, micros);
    response
}

/// Returns the write limits of users; writes that exceed the rate are recorded for the audit.
fn allowance(config: &WebserverConfig, recorder: Arc<Recorder>) -> WriteLimits {
    let rates = Rates {
        changes_per_s: config.writes_per_s,
        changes_burst: config.writes_burst,
        bytes_per_s: config.write_bytes_per_s,
        bytes_burst: config.write_bytes_burst,
    };
    let quotas = Quotas::new(config.objects_of_user_max, config.object_bytes_of_user_max);
    let told = move |author: &Author| {
        let who =
            Actor { uid: author.uid, user: author.user.clone(), by: author.su.clone(), from: author.from.clone() };
        recorder.note("writes-throttled", &who, "changes exceeded the rate limit");
    };
    WriteLimits::new(WriteRate::new(rates), quotas, Box::new(told))
}

/// Deletes the login-signing keys of this webserver that an earlier version stored.
async fn forget_former_keys(store: &Store) -> Result<(), WebserverError> {
    let own = store.list::<FormerKey>("")?.into_iter().filter(|key| key.value.webserver == store.via());
    let own: Vec<String> = own.map(|key| key.value.key()).collect();
    if own.is_empty() {
        return Ok(());
    }
    let mut writes = Writes::new();
    own.iter()
        .try_for_each(|key| writes.delete_unconditionally::<FormerKey>(key, "this version does not use such keys"))?;
    store.commit(&Author::default(), "delete obsolete login-signing keys", writes).await?;
    Ok(())
}

/// Ends the sessions that were started at this webserver by an earlier process (`Persist-Web-Logins=false`).
async fn end_own_sessions(store: &Store) -> Result<(), WebserverError> {
    let own = store.list::<Session>("")?.into_iter().filter(|session| session.value.webserver == store.via());
    let own: Vec<String> = own.map(|session| session.value.key()).collect();
    for keys in own.chunks(SLICE) {
        let mut writes = Writes::new();
        keys.iter().try_for_each(|key| writes.delete_unconditionally::<Session>(key, sessions::ENDED))?;
        store.commit(&Author::default(), "end the sessions of the previous process", writes).await?;
    }
    Ok(())
}

/// Creates the first administrator once the replica has caught up with the datastore: only then is it known that
/// none exists.
async fn first_administrator(app: AppRef) {
    let wanted = if app.config.default_password { FirstPassword::WellKnown } else { FirstPassword::Random };
    let file = app.config.data_dir.join(PASSWORD_FILE);
    let is_kept = AtomicBool::new(false);
    let mut told = None;
    loop {
        let status = app.store.replica().status();
        if status.connected && status.lag_ops == 0 && status.generation.0 > 0 {
            is_kept.store(false, Ordering::Relaxed);
            let keep = |password: &str| {
                let is_random = wanted == FirstPassword::Random;
                is_kept.store(is_random, Ordering::Relaxed);
                if is_random { write_password(&file, password) } else { Ok(()) }
            };
            match bootstrap::ensure(&app.store, &wanted, keep).await {
                // If still pending, the administrator is in this webserver's state, or another webserver turns out to
                // be first.
                Ok(First::Made { password, .. }) => return announce(&file, &wanted, &password),
                Ok(First::Exists) => {
                    // Another webserver created the administrator concurrently, so this password was never set.
                    if is_kept.load(Ordering::Relaxed) {
                        let _ = std::fs::remove_file(&file);
                    }
                    return;
                }
                Err(error) => {
                    let reason = Some(error.to_string());
                    if told != reason {
                        tracing::warn!(%error, "failed to create the first administrator; will retry");
                        told = reason;
                    }
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn write_password(file: &Path, password: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    // The existing file is from an earlier attempt and may be readable by others.
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut to = std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(file)?;
    to.write_all(format!("{password}\n").as_bytes())?;
    to.sync_all()
}

/// Prints the path of the password file. Prints the password itself only to a terminal, because other output is kept, for
/// example in a journal that others read.
fn announce(file: &Path, wanted: &FirstPassword, password: &str) {
    if *wanted == FirstPassword::WellKnown {
        tracing::warn!("the first administrator has the default password; change it now");
        return;
    }
    let (name, file) = (bootstrap::NAME, file.display());
    if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        output::answer(format_args!("First administrator: {name} with the password {password}"));
    }
    output::answer(format_args!("The password of the first administrator, {name}, is in {file} until it is changed."));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn p14_each_part_that_ends_is_named() {
        gravwell_runtime::tasks::supervisor::Supervisor::obey_orders();
        let temp = tempfile::tempdir().expect("temp dir");
        let config = WebserverConfig {
            listen: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            port: 0,
            redirect_port: 0,
            ..WebserverConfig::for_dir(temp.path())
        };
        let webserver = Webserver::start(config).await.expect("starts");
        let replica = webserver.service.replica.clone();
        let ending = replica.watch_over().end_each(|| replica.status().problem);
        let names = tokio::time::timeout(Duration::from_secs(60), ending).await.expect("every part is named");
        let expected = [
            "audit records",
            "connection to the datastore",
            "contents",
            "counts of repeated actions",
            "housekeeping",
            "listener",
            "local socket",
            "rejection notifications",
            "removal of searches",
            "renewal of the certificate",
            "scan for invalid objects",
            "sweeper",
            "sweeper of searches",
        ];
        assert_eq!(names, expected);
        let hindrance = super::super::api::system::hindrance(&webserver.app, &replica.status());
        assert!(hindrance.is_some_and(|why| why.contains("start the process again")));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p14_each_part_of_its_own_log_that_ends_is_named() {
        gravwell_runtime::tasks::supervisor::Supervisor::obey_orders();
        let temp = tempfile::tempdir().expect("temp dir");
        let config = WebserverConfig {
            listen: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            port: 0,
            redirect_port: 0,
            ..WebserverConfig::for_dir(temp.path())
        };
        let webserver = Webserver::start(config).await.expect("starts");
        let own_log = webserver.own_log.as_ref().expect("standalone mode has a log");
        let replica = webserver.service.replica.clone();
        assert!(webserver.is_alive(Duration::from_secs(60)).await);
        let ending = own_log.watch_over().end_each(|| replica.status().problem);
        let names = tokio::time::timeout(Duration::from_secs(60), ending).await.expect("every part is named");
        assert!(names.contains(&"member registry") && names.contains(&"listener"), "{names:?}");
        let hindrance = super::super::api::system::hindrance(&webserver.app, &replica.status());
        assert!(hindrance.is_some_and(|why| why.contains("member registry")));
    }
}
