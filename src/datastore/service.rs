//! The datastore as a service: starts all parts in order, serves until it is stopped, and drains.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use gravwell_chunks::ChunkStore;
use gravwell_config::datastore::{DatastoreConfig, Recovery};
use gravwell_env::clock::steady_ms;
use gravwell_env::data_dir::{self, DirectoryError};
use gravwell_env::scratch::Scratch;
use gravwell_log::RecoveryReport;
use gravwell_log::compaction::Compactor;
use gravwell_model::codec::admin::BackendInfo;
use gravwell_model::{MemberName, Seq};
use gravwell_protocol::commit_clock::CommitClock;
use gravwell_runtime::tasks::low_priority;
use gravwell_runtime::tasks::supervisor::Supervisor;

use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;
use gravwell_transport::admission::{Admission, Turn};
use gravwell_transport::endpoint::{self, HandshakeError, ServerEndpoint};
use gravwell_transport::trust::{Authorities, FloorPolicy, Refusal, Registry, Role, TrustError, tls};
use gravwell_transport::wire::WireError;
use gravwell_transport::{join, local};

use super::applier::Applier;
use super::archive::Archive;
use super::audit::Audit;
use super::blobs::{self, Blobs};
use super::commit_pipeline::CommitPipeline;
use super::commit_thread::{self, Committer};
use super::members::Members;
use super::open::{self, OpenError, Opened};
use super::pins::Pins;
use super::read_only::Here;
use super::renewals::Renewals;
use super::session::Session;
use super::shared::{
    DatastoreRef, DatastoreState, arriving, blocks, follows, join_permits, new_ring, now_ms, pushes, queue_permits,
    readings,
};
use super::snapshot::Snapshots;
use super::stale_registry::{self, Witness};
use super::{admin, audit, compaction, inspect, proofs, read_only};

/// Capacity of the commit thread's queue, in requests.
const COMMIT_QUEUE: usize = 8192;
/// Capacity of the applier's queue, in batches.
const APPLIER_QUEUE: usize = 64;
/// Interval at which members' positions are saved.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// Interval at which a failed write of a change in force is retried.
const SAVE_AGAIN_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for open work during a stop.
const DRAIN: Duration = Duration::from_secs(3);

/// Error of starting a datastore.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The log or the state cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The CA, the registry or a certificate cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// CA or registry are corrupt or missing.
    #[error(
        "{source}; or restore both from an encrypted CA backup: `gravwell-logctl --data-dir {home} authority restore \
         FILE --recovery-key KEY`, where FILE is a member's identity/escrow or a file written by `authority \
         backup`", home = home.display()
    )]
    TrustDamaged {
        /// The datastore's directory.
        home: PathBuf,
        /// Underlying error.
        source: TrustError,
    },
    /// The network address cannot be bound.
    #[error(
        "cannot listen on {address}: {source}; stop the process that uses it, or choose another address with --listen"
    )]
    Listen {
        /// Listen address.
        address: String,
        /// Underlying error.
        source: std::io::Error,
    },
    /// A thread or the local socket could not be created.
    #[error("{what}: {source}")]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// Underlying error.
        source: std::io::Error,
    },
    /// The state index cannot be read.
    #[error(transparent)]
    State(#[from] gravwell_state::StateError),
}

impl DatastoreError {
    /// Returns whether another process has locked the directory.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, DatastoreError::Directory(DirectoryError::InUse { .. }))
    }

    /// Returns whether the data on disk is corrupt.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let log = matches!(self, DatastoreError::Open(OpenError::Log(gravwell_log::OpenError::Damaged { .. })));
        log || matches!(self, DatastoreError::Open(OpenError::Loss(_)))
            || matches!(self, DatastoreError::Open(OpenError::Read(_) | OpenError::Rebuild(_) | OpenError::Notes(_)))
            || matches!(self, DatastoreError::TrustDamaged { .. })
    }

    /// Adds the datastore's directory to the remedy in the error message.
    fn of(self, home: &Path) -> DatastoreError {
        match self {
            DatastoreError::Trust(source @ TrustError::Damaged { .. }) => {
                DatastoreError::TrustDamaged { home: home.to_owned(), source }
            }
            other => other,
        }
    }
}

/// A running datastore.
pub struct Datastore {
    shared: DatastoreRef,
    place: DirectoryClaim,
    threads: Vec<std::thread::JoinHandle<()>>,
    tasks: tokio::task::JoinSet<()>,
    /// Findings of the log recovery at startup.
    pub recovery: RecoveryReport,
}

/// The claim on the directory.
enum DirectoryClaim {
    /// Claimed for writing; no other process changes the directory.
    Write { _lock: std::fs::File, endpoint: Option<ServerEndpoint> },
    /// Opened read-only. Files that must be created go to `scratch`.
    Read { _lock: Option<std::fs::File>, scratch: Scratch },
}

impl DirectoryClaim {
    fn endpoint(&self) -> Option<&ServerEndpoint> {
        match self {
            DirectoryClaim::Write { endpoint, .. } => endpoint.as_ref(),
            DirectoryClaim::Read { .. } => None,
        }
    }
}

/// Handle to query the members of a running datastore.
#[derive(Clone)]
pub struct ConnectedMembers(DatastoreRef);

impl ConnectedMembers {
    /// Returns the webservers that a load balancer may send requests to.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendInfo> {
        self.0.members.backends()
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> DatastoreError {
    move |source| DatastoreError::Io { what, source }
}

impl Datastore {
    /// Opens the directory, performs recovery if needed, and listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Returns an error if the directory is in use or corrupt, or the address is in use. Nothing is served then.
    pub async fn start(config: DatastoreConfig) -> Result<Datastore, DatastoreError> {
        let home = config.data_dir.clone();
        Self::open(config, true).await.map_err(|error| error.of(&home))
    }

    /// Opens the directory for requests of this process, without listening.
    ///
    /// # Errors
    /// Like [`Datastore::start`].
    pub async fn open_offline(config: DatastoreConfig) -> Result<Datastore, DatastoreError> {
        let home = config.data_dir.clone();
        Self::open(config, false).await.map_err(|error| error.of(&home))
    }

    /// Opens the directory for read-only requests of this process. Nothing in it is created, changed or removed,
    /// whatever its condition.
    ///
    /// # Errors
    /// Like [`Datastore::start`]; also returns an error if there is no log.
    pub async fn open_to_read(config: DatastoreConfig) -> Result<Datastore, DatastoreError> {
        let home = config.data_dir.clone();
        Self::view(config).await.map_err(|error| error.of(&home))
    }

    async fn view(config: DatastoreConfig) -> Result<Datastore, DatastoreError> {
        let path = config.data_dir.clone();
        let lock = data_dir::claim_to_read(&path, "datastore", Duration::ZERO)?;
        let scratch = Scratch::new().map_err(io("cannot create a directory for temporary files"))?;
        let opened = {
            let (path, config, scratch) = (path.clone(), config.clone(), scratch.path().to_owned());
            let opening =
                move || open::open_to_read(&path, &scratch, &config, &mut |what| tracing::info!(what, "opening"));
            tokio::task::spawn_blocking(opening).await.map_err(std::io::Error::other).map_err(io("opening"))??
        };
        let trust = trust_dir(&path);
        check_trust(&trust, opened.0.log.head().0, config.recovery)?;
        let authorities = match trust.join("ca.key").exists() {
            true => Authorities::load(&trust)?,
            false => Authorities::open_or_create(&scratch.path().join("trust"), now_ms())?,
        };
        let registry = match config.recovery {
            Recovery::Off => Registry::open_or_begin(&trust, now_ms())?.detached(),
            Recovery::Auto | Recovery::Wait => Registry::open(&trust, now_ms())?.detached(),
        };
        let address = config.listen_address();
        Self::run(config, path, opened, authorities, registry, DirectoryClaim::Read { _lock: lock, scratch }, address)
    }

    async fn open(config: DatastoreConfig, listens: bool) -> Result<Datastore, DatastoreError> {
        let path = config.data_dir.clone();
        let patience = if listens { data_dir::PATIENCE } else { Duration::ZERO };
        let lock = {
            let path = path.clone();
            let claiming = move || {
                let lock = data_dir::claim(&path, "datastore", patience)?;
                if listens {
                    data_dir::restrict_to_owner(&path)?;
                }
                Ok::<_, data_dir::DirectoryError>(lock)
            };
            tokio::task::spawn_blocking(claiming).await.map_err(std::io::Error::other).map_err(io("starting"))??
        };
        inspect::remove_past(&path);
        let opened = {
            let (path, config) = (path.clone(), config.clone());
            let opening = move || {
                let opened = open::open(&path, &config, &mut |what| tracing::info!(what, "opening"))?;
                Ok::<_, OpenError>((opened, open::open_chunks(&path)?))
            };
            tokio::task::spawn_blocking(opening).await.map_err(std::io::Error::other).map_err(io("opening"))??
        };
        let trust = trust_dir(&path);
        check_trust(&trust, opened.0.log.head().0, config.recovery)?;
        // A registry that was never written does not count as lost as long as there is no CA.
        let mut registry = match config.recovery {
            Recovery::Off => {
                if let Some(aside) = Registry::set_aside(&trust)? {
                    tracing::error!(kept = %aside.display(), "creating a new certificate authority, because the key of \
                                                              the previous one is missing");
                }
                Registry::open_or_begin(&trust, now_ms())?
            }
            Recovery::Auto | Recovery::Wait => Registry::open(&trust, now_ms())?,
        };
        registry.establish(now_ms())?;
        let authorities = Authorities::open_or_create(&trust, now_ms())?;
        let mut endpoint = None;
        let mut address = config.listen_address();
        if listens {
            let server = tls::server_config(&authorities, &config.server_names, now_ms())?;
            let listening = endpoint::server(address, server, &authorities.current().reset_key())
                .map_err(|source| DatastoreError::Listen { address: address.to_string(), source })?;
            address = listening.local_addr().map_err(io("cannot read the address of the socket"))?;
            endpoint = Some(listening);
        }
        Self::run(config, path, opened, authorities, registry, DirectoryClaim::Write { _lock: lock, endpoint }, address)
    }

    fn run(
        config: DatastoreConfig,
        path: PathBuf,
        (opened, chunks): (Opened, ChunkStore),
        authorities: Authorities,
        mut registry: Registry,
        place: DirectoryClaim,
        address: std::net::SocketAddr,
    ) -> Result<Datastore, DatastoreError> {
        let Opened { log, state, recovery } = opened;
        let (commit_sender, commit_requests) = mpsc::channel(COMMIT_QUEUE);
        let (compaction_sender, compaction_requests) = mpsc::channel(4);
        let (applier_sender, committed) = std::sync::mpsc::sync_channel(APPLIER_QUEUE);
        let (head, limits): (Seq, _) = (log.head().0, config.limits());
        let (reader, last_ms) = (log.reader(), state.meta().map_or(0, |meta| meta.time_ms));
        // A disk that was full when the log was opened had no room for it.
        let is_reserve_dropped = !log.has_reserve();
        let ledger = CommitPipeline::new(log, state.clone(), limits.clone())?;
        let addresses = config.advertised(address);
        let here = Here::of(&reader, head);
        // If recovery is off, writes are accepted and the entries in the audit's evidence are abandoned.
        let (point, audited) = audit::found_in(&path, &local_name());
        let audit_shows = point.and_then(|point| read_only::from_audit(&here, &point));
        let audit_shows = audit_shows.filter(|evidence| read_only::counts(config.recovery, evidence));
        let evidence = read_only::from_register(&here, &registry).or_else(|| audit_shows.clone());
        if evidence.is_none() || config.recovery == Recovery::Off {
            read_only::enter(&here, &mut registry);
        }
        let is_read_only = matches!(place, DirectoryClaim::Read { .. });
        let witness = Witness::open(&path, registry.has_mark(), is_read_only);
        let register_shows =
            stale_registry::examine(&mut registry, (&witness, audited), &authorities, config.recovery)?;
        registry.set_floor_policy(FloorPolicy {
            readers: config.readers_hold_compaction,
            lag_ops_max: config.member_lag_ops_max,
        });
        let members = Members::new(authorities, registry, config.retention_ms(), addresses, config.certificate_days);
        members.witnessed_by(witness);
        let grace = Duration::from_secs(config.chunk_grace_hours.saturating_mul(3600));
        let contents = Blobs::new(chunks, config.chunk_bytes_per_s, grace);
        let shared = Arc::new(DatastoreState {
            work: match &place {
                DirectoryClaim::Write { .. } => path.clone(),
                DirectoryClaim::Read { scratch, .. } => scratch.path().to_owned(),
            },
            path,
            contents,
            audit: Audit::new(reader.horizon()),
            archive: Arc::default(),
            log: reader,
            state,
            ring: new_ring(),
            head: watch::channel(head).0,
            applied: watch::channel(head).0,
            bookmarks: broadcast::channel(256).0,
            proof: watch::channel(None).0,
            commit: commit_sender,
            compaction: compaction_sender,
            members,
            snapshots: Snapshots::new(),
            readings: readings(),
            follows: follows(),
            renewals: Renewals::default(),
            pushes: pushes(),
            arriving: arriving(&limits),
            blocks: blocks(&limits),
            joins: join_permits(),
            queue_bytes: queue_permits(),
            origins_agree_at: std::sync::Mutex::default(),
            limits,
            disk_free: u64::MAX.into(),
            clock: std::sync::Mutex::new(CommitClock::new(last_ms, steady_ms())),
            pins: Pins::default(),
            write_refusal: std::sync::Mutex::default(),
            recovery: std::sync::Mutex::default(),
            register_shows: std::sync::Mutex::default(),
            evidence: std::sync::Mutex::default(),
            audit_shows,
            address,
            started: Instant::now(),
            stopping: watch::channel(false).0,
            watch: Supervisor::default(),
            local: local_name(),
            config,
        });
        // The registry already contains this evidence.
        shared.wait_for_recovery(evidence, || true);
        shared.wait_for_register(register_shows);
        let say =
            |found: &str| tracing::error!(found, "read found damage; it is reported in the status until repaired");
        shared.log.damage().listen(say);
        shared.state.damage().listen(say);
        let mut threads = Vec::new();
        let mut tasks = tokio::task::JoinSet::new();
        let compactor =
            Compactor::new(shared.log.clone(), &shared.work.join("base")).segment_bytes(shared.config.segment_bytes);
        let for_compaction = Arc::clone(&shared);
        let watch = shared.watch.clone();
        let spawn = |name, end: Option<fn(&'static str) -> !>, work: Box<dyn FnOnce() + Send>| {
            watch.thread(name, end, work).map_err(io("cannot start a thread"))
        };
        // Read-only commands may request a dry run of a compaction.
        let compacting = move || compaction::run(&for_compaction, compactor, compaction_requests);
        let compacting = spawn("compact", None, Box::new(compacting))?;
        if let DirectoryClaim::Read { .. } = place {
            threads.push(compacting);
            return Ok(Datastore { shared, place, threads, tasks, recovery });
        }
        let applier = Applier { shared: Arc::clone(&shared), committed };
        let committer = Committer {
            shared: Arc::clone(&shared),
            ledger,
            applier: applier_sender,
            disk_checked: None,
            is_reserve_dropped,
            unvouched_since: None,
        };
        threads.push(spawn("apply", Some(commit_thread::part_panicked), Box::new(move || applier.run()))?);
        let committing = move || committer.run(commit_requests);
        threads.push(spawn("commit", Some(commit_thread::part_panicked), Box::new(committing))?);
        threads.push(compacting);
        threads.push(spawn("audit", None, Box::new(Audit::work(&shared)))?);
        if let Some(endpoint) = place.endpoint() {
            listen(&shared, endpoint, &mut tasks)?;
            blobs::spawn(&shared, &mut tasks);
        }
        tasks.spawn(watch.lasting("member registry", save_members(Arc::clone(&shared))));
        Ok(Datastore { shared, place, threads, tasks, recovery })
    }

    /// Returns whether the datastore was opened read-only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.place, DirectoryClaim::Read { .. })
    }

    /// Serves one administrative request of this process.
    ///
    /// # Errors
    /// Returns an error if the other end closes the stream.
    pub async fn administer<R, W>(&self, receive: &mut R, send: &mut W) -> Result<(), WireError>
    where
        R: tokio::io::AsyncRead + Unpin,
        W: tokio::io::AsyncWrite + Unpin,
    {
        let from = audit::acts::own_user();
        let caller = admin::Caller {
            name: self.shared.local.clone(),
            role: Role::Admin,
            from,
            withheld: None,
            connection: None,
        };
        admin::serve(&self.shared, &caller, receive, send).await
    }

    /// Invites a member that reaches this datastore at its listen address.
    ///
    /// # Errors
    /// Returns an error if the name is taken or the registry cannot be written.
    pub fn invite(
        &self,
        name: &MemberName,
        role: Role,
        ttl_s: u64,
    ) -> Result<gravwell_model::codec::admin::Invitation, String> {
        let invited = self.shared.members.invite(name, role, ttl_s, vec![self.address().to_string()], false);
        invited.map_err(|error| error.to_string())
    }

    /// Returns the chunk store, for a webserver that runs the datastore within its own process.
    #[must_use]
    pub fn chunk_store(&self) -> ChunkStore {
        self.shared.contents.store.clone()
    }

    /// Returns the listen address.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.shared.address
    }

    /// Returns a one-line status for operators and the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let shared = &self.shared;
        let recovery = shared.recovery();
        if !recovery.is_empty() {
            return format!("waits for recovery: {recovery}");
        }
        if let Some((damage, _)) = shared.damage() {
            return damage;
        }
        let ended = shared.watch.ended();
        if !ended.is_empty() {
            return ended;
        }
        let refusal = shared.refusal();
        let writes = if refusal.is_empty() { String::new() } else { format!(", writes rejected: {refusal}") };
        format!(
            "head {}, horizon {}, floor {}, {} members connected{writes}",
            shared.head(),
            shared.log.horizon(),
            shared.floor(),
            shared.members.connected()
        )
    }

    /// Returns a handle to query the members while the datastore runs.
    #[must_use]
    pub fn roster(&self) -> ConnectedMembers {
        ConnectedMembers(Arc::clone(&self.shared))
    }

    /// Issues a new certificate of the datastore for the configured names. Members are not affected.
    ///
    /// # Errors
    /// Returns an error if the certificate cannot be issued; the current one stays in use.
    pub fn renew_certificate(&self, names: &[String]) -> Result<(), String> {
        self.shared.members.renew_own(Some(names))
    }

    /// Returns the supervisor of the datastore's tasks and threads.
    #[must_use]
    pub fn watch_over(&self) -> &Supervisor {
        &self.shared.watch
    }

    /// Returns whether the commit thread answers within `patience`. Without that thread the process is useless.
    pub async fn is_alive(&self, patience: Duration) -> bool {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.shared.commit.send(commit_thread::Request::Ping(reply)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(patience, asking).await.is_ok_and(|answer| answer.is_some())
    }

    /// Returns the state of the continuous backup, which the caller runs.
    #[must_use]
    pub fn archive(&self) -> Arc<Archive> {
        Arc::clone(&self.shared.archive)
    }

    /// Updates gauges; must be called periodically.
    pub fn measure(&self) {
        gravwell_runtime::telemetry::metrics::archive_behind(self.shared.archive.is_behind());
        let segments = self.shared.log.segments();
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        gravwell_runtime::telemetry::metrics::log(
            bytes,
            segments.len() as u64,
            self.shared.log.horizon(),
            self.shared.floor(),
        );
        gravwell_runtime::telemetry::metrics::disk_free(self.shared.disk_free());
        gravwell_runtime::telemetry::metrics::health(inspect::status(&self.shared).health.level.word());
    }

    /// Stops the datastore: no new work is accepted, open work is finished or refused, and the log is closed cleanly.
    pub async fn stop(mut self) {
        self.shared.watch.stop();
        self.shared.stopping.send_replace(true);
        self.tasks.abort_all();
        if let Some(endpoint) = self.place.endpoint() {
            endpoint.close(b"the datastore is stopping");
            let _ = std::fs::remove_file(self.shared.path.join(local::SOCKET));
        }
        let (reply, stopped) = oneshot::channel();
        if self.shared.commit.send(commit_thread::Request::Stop(reply)).await.is_ok() {
            let _ = tokio::time::timeout(DRAIN, stopped).await;
        }
        if !self.is_read_only() {
            save_now(&self.shared).await;
        }
        self.shared.contents.checkpoint().await;
        if let Some(endpoint) = self.place.endpoint() {
            let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
        let Datastore { shared, threads, .. } = self;
        drop(shared);
        let joining = tokio::task::spawn_blocking(move || {
            let mut threads = threads.into_iter();
            for thread in threads.by_ref().take(2) {
                let _ = thread.join();
            }
            // Compaction stops immediately unless it is in the middle of its work, which can be interrupted at any
            // point. The same applies to the audit.
            let deadline = Instant::now() + Duration::from_millis(500);
            while threads.as_slice().iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let _ = tokio::time::timeout(DRAIN, joining).await;
    }
}

/// Returns the name under which the datastore itself records acts.
pub(super) fn local_name() -> MemberName {
    MemberName::new("datastore").unwrap_or_else(|_| unreachable!("invariant: the name is well-formed"))
}

async fn save_members(shared: DatastoreRef) {
    // The first save creates the reserve.
    let mut saved: Option<Instant> = None;
    loop {
        if saved.is_none_or(|saved| saved.elapsed() >= SAVE_EVERY) || shared.members.waits_to_be_written() {
            saved = Some(Instant::now());
            save_now(&shared).await;
        }
        tokio::time::sleep(SAVE_AGAIN_EVERY).await;
    }
}

async fn save_now(shared: &DatastoreRef) {
    let saving = Arc::clone(shared);
    if let Err(error) = tokio::task::spawn_blocking(move || saving.save_members()).await {
        tracing::error!(%error, "failed to save the member registry");
    }
}

/// Checks that the CA exists if the log has entries, unless the command that installed the log wrote an empty registry.
fn check_trust(trust: &Path, head: Seq, mode: Recovery) -> Result<(), TrustError> {
    let is_there = |name: &str| trust.join(name).exists();
    let is_new = !is_there("ca.pem") && Registry::is_unused(trust);
    if is_there("ca.key") || is_new || head == Seq::ZERO || mode == Recovery::Off {
        return Ok(());
    }
    let what = "it is missing although there is a log; restore it, or start with --recovery off to create a new \
                certificate authority, which every member has to join again";
    Err(TrustError::Damaged { path: trust.join("ca.key"), what: what.into() })
}

/// Renews the datastore's own certificate long before it expires.
async fn renew_certificate(shared: DatastoreRef) {
    loop {
        tokio::time::sleep(Duration::from_secs(30 * 24 * 3600)).await;
        match shared.members.renew_own(None) {
            Ok(()) => tracing::info!("renewed the datastore's certificate"),
            Err(error) => tracing::error!(error, "failed to renew the datastore's certificate"),
        }
    }
}

/// Serves the local socket and `endpoint`.
fn listen(
    shared: &DatastoreRef,
    endpoint: &ServerEndpoint,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<(), DatastoreError> {
    let (socket, watch) =
        (local::listen(&shared.path).map_err(io("cannot listen on the local socket"))?, &shared.watch);
    tasks.spawn(watch.lasting("local socket", admin::listen(Arc::clone(shared), socket)));
    tasks.spawn(watch.lasting("listener", accept(Arc::clone(shared), endpoint.clone())));
    shared.members.serve_at(endpoint, &shared.config.server_names);
    tasks.spawn(watch.lasting("renewal of the certificate", renew_certificate(Arc::clone(shared))));
    tasks.spawn(watch.lasting("signed positions", proofs::run(Arc::clone(shared))));
    Ok(())
}

async fn accept(shared: DatastoreRef, endpoint: ServerEndpoint) {
    let admission = Admission::default();
    while let Some(arrival) = endpoint.accept(&admission).await {
        let (shared, from) = (Arc::clone(&shared), arrival.from.ip());
        tokio::spawn(async move {
            match arrival.handshake().await {
                // Boxed, so that the future of an unauthenticated client does not allocate the space that a member's
                // session needs.
                Ok((connection, turn)) => Box::pin(serve(shared, connection, turn)).await,
                Err(error) => {
                    if matches!(&error, HandshakeError::Failed(error) if endpoint::is_distrusted(error)) {
                        shared.members.note_stranger(from);
                    }
                    tracing::debug!(%error, "handshake failed");
                }
            }
        });
    }
}

/// Log rate limits for refusals that unauthenticated clients can trigger at will.
static JOINS_REFUSED: LogRateLimit = LogRateLimit::new();
static CONNECTIONS_REFUSED: LogRateLimit = LogRateLimit::new();

async fn serve(shared: DatastoreRef, connection: quinn::Connection, turn: Turn) {
    if endpoint::is_join(&connection) {
        let joined = join::serve(&connection, Arc::clone(&shared) as _, turn, &shared.joins).await;
        if let (Err(error), Some(left_out)) = (&joined, joined.as_ref().err().and_then(|_| JOINS_REFUSED.note())) {
            tracing::warn!(%error, address = %connection.remote_address(), left_out, "join rejected");
        }
        return;
    }
    let authorised = endpoint::peer_certificate(&connection)
        .ok_or_else(|| (endpoint::CLOSE_NOT_A_MEMBER, "no certificate was presented; join first".to_owned()))
        .and_then(|certificate| {
            shared.members.authorise(&certificate).map_err(|refusal| {
                let code = match refusal {
                    Refusal::Revoked(_) => endpoint::CLOSE_REVOKED,
                    Refusal::LeftBehind(..) => endpoint::CLOSE_LEFT_BEHIND,
                    _ => endpoint::CLOSE_NOT_A_MEMBER,
                };
                (code, refusal.to_string())
            })
        });
    match authorised {
        Ok((member, role)) => {
            if !shared.members.has_place_for(&member, shared.config.subscribers_max) {
                connection.close(3u32.into(), b"too many members are connected; retry later");
                return;
            }
            drop(turn);
            endpoint::trusted(&connection);
            let certificate = endpoint::peer_certificate(&connection).unwrap_or_default();
            let is_bulk = endpoint::is_bulk(&connection);
            let session = Session { shared, connection, member, role, is_bulk, has_control: Arc::default() };
            if is_bulk {
                let serving = low_priority::handle().spawn(async move { session.run(&certificate).await });
                let _ = serving.await;
            } else {
                session.run(&certificate).await;
            }
        }
        Err((code, reason)) => {
            if let Some(left_out) = CONNECTIONS_REFUSED.note() {
                tracing::warn!(reason, address = %connection.remote_address(), left_out, "connection refused");
            }
            connection.close(code.into(), reason.as_bytes());
        }
    }
}

/// Path of the trust directory within a data directory.
#[must_use]
pub fn trust_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("trust")
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::codec::message::{RefusalCode, TxnOutcome};
    use gravwell_model::{Collection, Key, Op, Origin, OriginCounter, Txn, TxnId};

    #[tokio::test(flavor = "multi_thread")]
    async fn p14_each_part_that_ends_is_named() {
        gravwell_runtime::tasks::supervisor::Supervisor::obey_orders();
        let temp = tempfile::tempdir().expect("temp dir");
        let mut config = DatastoreConfig::for_dir(temp.path());
        (config.listen, config.port) = (Some(std::net::Ipv4Addr::LOCALHOST.into()), 0);
        let datastore = Datastore::start(config).await.expect("starts");
        let said = || inspect::status(&datastore.shared).problem;
        let ending = datastore.shared.watch.end_each(said);
        let names = tokio::time::timeout(Duration::from_secs(60), ending).await.expect("all names are reported");
        let expected = [
            "garbage collection of chunks",
            "health of the chunk store",
            "listener",
            "local socket",
            "member registry",
            "renewal of the certificate",
            "repair of chunks",
            "requests for missing chunks",
            "scrubbing of chunks",
            "signed positions",
        ];
        assert_eq!(names, expected);
        assert!(datastore.summary().contains("start the process again"), "{}", datastore.summary());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p14_nothing_is_accepted_after_a_failure_that_ends_the_process() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut config = DatastoreConfig::for_dir(temp.path());
        (config.listen, config.port) = (Some(std::net::Ipv4Addr::LOCALHOST.into()), 0);
        let datastore = Datastore::start(config).await.expect("starts");
        let shared = &datastore.shared;
        let commit = async |counter| {
            let collection = Collection::new("c").expect("name");
            let txn = Txn {
                id: TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) },
                settled: OriginCounter(0),
                time_ms: 0,
                note: bytes::Bytes::new(),
                conditions: Vec::new(),
                ops: vec![Op::Delete { collection, key: Key::new("k").expect("key") }],
            };
            let (reply, mut outcomes) = mpsc::unbounded_channel();
            let stream = super::super::commit_pipeline::PushStream::default();
            let source = commit_thread::Source { member: &local_name(), is_admins: true, stream: &stream };
            commit_thread::propose(shared, source, txn, None, None, &reply).await.expect("sends");
            outcomes.recv().await.expect("replies").fate
        };
        assert_eq!(commit(1).await, TxnOutcome::Committed(Seq(1)));
        shared.watch.fail("the state index cannot be written");
        let refused = commit(2).await;
        assert!(matches!(&refused, TxnOutcome::Deferred(why) if why.code == RefusalCode::Stopping), "{refused:?}");
        assert_eq!((shared.head(), inspect::status(shared).healthy), (Seq(1), false));
    }
}
