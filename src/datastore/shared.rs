//! State shared by all parts of a running datastore.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::{AcquireError, Semaphore, broadcast, mpsc, watch};

use gravwell_config::datastore::DatastoreConfig;
use gravwell_env::clock::steady_ms;
use gravwell_env::quota::Quota;
use gravwell_log::generations::{self, NotesError};
use gravwell_log::{LogReader, REPAIR_REMEDY};
use gravwell_model::codec::admin::GenerationInfo;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::{Limits, MemberName, Redaction, Seq};
use gravwell_protocol::commit_clock::CommitClock;
use gravwell_protocol::feed::Ring;
use gravwell_runtime::tasks::shares::{Share, Shares};
use gravwell_runtime::tasks::supervisor::Supervisor;
use gravwell_state::StateStore;
use gravwell_transport::trust::{LogMark, Proof, Role};

use super::archive::Archive;
use super::audit::Audit;
use super::blobs::Blobs;
use super::commit_thread;
use super::compaction;
use super::members::Members;
use super::pins::Pins;
use super::presences::OF_REPLICA;
use super::read_only::{self, Here};
use super::renewals::Renewals;
use super::snapshot::Snapshots;

/// Memory for recent batches.
const RING_BYTES: usize = 16 << 20;
/// Remedy for a corrupt index.
const RESTART: &str = "restart the datastore, which renames the index and rebuilds it from the log (systemctl restart \
                       gravwell_datastore)";
/// Most concurrent requests of members that read much of the log, in total and per member.
const READINGS_MAX: usize = 8;
const READINGS_OF_MEMBER: usize = 2;
/// Most requests per member that follow the log.
const FOLLOWS_OF_MEMBER: usize = 2;
/// Most push streams per member. A well-behaved client has one, plus a few of lost connections.
const PUSHES_OF_MEMBER: usize = 8;
/// Memory for incoming pushes, in units of `ARRIVING_UNIT`: in total, and at least per member.
const ARRIVING_MAX: usize = (256 << 20) / ARRIVING_UNIT;
const ARRIVING_OF_MEMBER: usize = (16 << 20) / ARRIVING_UNIT;
/// Bytes per unit. Smaller pushes need no permit, because the number of streams limits them.
pub(super) const ARRIVING_UNIT: usize = 64 << 10;
/// MiB of the log in transfer per member, unless its streams need more. The number of members is small enough that
/// their total needs no limit.
const BLOCKS_OF_MEMBER: usize = 64;
const STREAMS_OF_MEMBER: usize = OF_REPLICA + FOLLOWS_OF_MEMBER + READINGS_OF_MEMBER;

/// Target size of a block of the log, in bytes. A larger transaction or batch is not split.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
const _: () = assert!(ARRIVING_MAX >= 2 * gravwell_model::limits::HARD.txn_bytes_max.div_ceil(ARRIVING_UNIT));

/// Shared state of one datastore.
pub(super) struct DatastoreState {
    pub config: DatastoreConfig,
    pub path: PathBuf,
    /// Directory for temporary states.
    pub work: PathBuf,
    pub log: LogReader,
    pub state: StateStore,
    pub ring: RwLock<Ring>,
    /// Last durable sequence.
    pub head: watch::Sender<Seq>,
    /// Last sequence in the state index.
    pub applied: watch::Sender<Seq>,
    pub bookmarks: broadcast::Sender<Bookmark>,
    /// The last signed position.
    pub proof: watch::Sender<Option<Proof>>,
    pub commit: mpsc::Sender<commit_thread::Request>,
    pub compaction: mpsc::Sender<compaction::Request>,
    pub members: Members,
    pub contents: Blobs,
    pub audit: Audit,
    /// State of the continuous backup.
    pub archive: Arc<Archive>,
    /// Limits concurrent joins.
    pub joins: Semaphore,
    pub snapshots: Snapshots,
    /// Limits requests that read much of the log.
    pub readings: Shares<MemberName>,
    /// Limits requests that follow the log.
    pub follows: Arc<Quota<MemberName>>,
    pub renewals: Renewals,
    /// Limits push streams.
    pub pushes: Arc<Quota<MemberName>>,
    /// Limits the memory for large pushes, from their header until they are queued for the commit thread.
    pub arriving: Shares<MemberName>,
    /// Limits blocks of the log that were read but not yet sent: see [`DatastoreState::room_for_block`].
    pub blocks: Shares<MemberName>,
    /// Limits the bytes queued for the commit thread.
    pub queue_bytes: Arc<Semaphore>,
    /// Horizon at which the origins of the state were found to agree with the log.
    pub origins_agree_at: std::sync::Mutex<Option<Seq>>,
    pub limits: Limits,
    /// Bytes free on the file system, as last measured.
    pub disk_free: AtomicU64,
    /// Source of commit times.
    pub clock: Mutex<CommitClock>,
    /// Snapshots served to members that have not subscribed yet.
    pub pins: Pins,
    /// Reason for rejecting writes; empty if they are accepted.
    pub write_refusal: Mutex<String>,
    /// Reason for recovery mode; empty outside of it.
    pub recovery: Mutex<String>,
    /// Reason why the registry does not count as the latest; empty if it does.
    pub register_shows: Mutex<String>,
    /// Held while the registry and `recovery` change together, which may wait for the disk.
    pub evidence: Mutex<()>,
    /// Evidence of a lost or replaced log that the audit gave at startup. It remains valid while this process runs.
    pub audit_shows: Option<String>,
    pub address: std::net::SocketAddr,
    pub started: Instant,
    pub stopping: watch::Sender<bool>,
    /// Supervises the datastore's tasks and threads.
    pub watch: Supervisor,
    /// Member name used for administration on the datastore's own host.
    pub local: MemberName,
}

pub(super) type DatastoreRef = Arc<DatastoreState>;

pub(super) fn new_ring() -> RwLock<Ring> {
    RwLock::new(Ring::new(RING_BYTES))
}

pub(super) fn readings() -> Shares<MemberName> {
    Shares::new(READINGS_MAX, READINGS_OF_MEMBER)
}

pub(super) fn follows() -> Arc<Quota<MemberName>> {
    Quota::new(FOLLOWS_OF_MEMBER)
}

/// The quota lets a member with the maximum number of streams make progress on each.
pub(super) fn blocks(limits: &Limits) -> Shares<MemberName> {
    Shares::new(Semaphore::MAX_PERMITS, BLOCKS_OF_MEMBER.max(STREAMS_OF_MEMBER * block_mib(limits)))
}

/// Returns the maximum size of one block of the log, in MiB.
fn block_mib(limits: &Limits) -> usize {
    (limits.of_pushed().txn_bytes_max.max(commit_thread::BATCH_BYTES_MAX) + BLOCK_BYTES).div_ceil(1 << 20)
}

pub(super) fn pushes() -> Arc<Quota<MemberName>> {
    Quota::new(PUSHES_OF_MEMBER)
}

/// The quota of a member is enough for two transactions of the maximum size.
pub(super) fn arriving(limits: &Limits) -> Shares<MemberName> {
    Shares::new(ARRIVING_MAX, ARRIVING_OF_MEMBER.max(2 * limits.of_pushed().txn_bytes_max.div_ceil(ARRIVING_UNIT)))
}

pub(super) fn join_permits() -> Semaphore {
    Semaphore::new(gravwell_transport::join::AT_ONCE)
}

pub(super) fn queue_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(commit_thread::QUEUE_BYTES_MAX))
}

impl DatastoreState {
    pub(super) fn head(&self) -> Seq {
        *self.head.borrow()
    }

    /// Returns the redaction that applies to members of a role.
    pub(super) fn redaction_for(&self, role: Role) -> Option<Redaction> {
        (role == Role::Reader).then(|| self.config.redaction.clone())
    }

    /// Waits until memory is available for another block of the log for `member`. It is held from before the read until
    /// the block was sent, so an abandoned read counts until it ends.
    pub(super) async fn room_for_block(&self, member: &MemberName) -> Result<Share, AcquireError> {
        let mib = u32::try_from(block_mib(&self.limits)).unwrap_or(u32::MAX);
        self.blocks.take(Some(member.clone()), mib).await
    }

    pub(super) fn floor(&self) -> Seq {
        self.members.floor(self.head())
    }

    pub(super) fn refusal(&self) -> String {
        self.write_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn log_waits(&self) -> String {
        self.recovery.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the reason why writes wait for an operator; empty if they do not.
    pub(super) fn recovery(&self) -> String {
        Some(self.log_waits()).filter(|waits| !waits.is_empty()).or_else(|| self.register_waits()).unwrap_or_default()
    }

    /// Returns the remedy for the operator of the data directory `dir`.
    pub(super) fn recovery_remedy(&self, dir: &str) -> String {
        match self.log_waits().is_empty() {
            true => DatastoreState::register_remedy(dir),
            false => read_only::remedy(dir),
        }
    }

    /// Lists how the generations of the log started.
    pub(super) fn generations(&self) -> Result<Vec<GenerationInfo>, NotesError> {
        let listed = generations::list(&self.path, self.log.log_id(), &self.log.lineage());
        self.log.damage().checked(listed, |_| true)
    }

    /// Returns the corruption found by reads since the process started, and the remedy.
    pub(super) fn damage(&self) -> Option<(String, String)> {
        let log = self.log.damage().summary().map(|found| (found, REPAIR_REMEDY.to_owned()));
        let index =
            || self.state.damage().summary().map(|found| (format!("the state index: {found}"), RESTART.to_owned()));
        log.or_else(index)
    }

    /// Returns whether the process has to terminate, so that nothing more is accepted.
    pub(super) fn has_failed(&self) -> bool {
        self.watch.has_failed() || self.contents.store.health().is_err()
    }

    /// Enters recovery mode if there is evidence that the log lost entries. `note` records a member's evidence in the
    /// registry and returns whether it counts.
    pub(super) fn wait_for_recovery(&self, evidence: Option<String>, note: impl FnOnce() -> bool) {
        let Some(evidence) = evidence.filter(|evidence| read_only::counts(self.config.recovery, evidence)) else {
            return;
        };
        let _turn = self.evidence();
        if !note() {
            return;
        }
        let mut waits = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        if waits.is_empty() || read_only::is_better(&evidence, &waits) {
            tracing::error!(
                remedy = read_only::remedy(&self.path.display().to_string()),
                "datastore waits for recovery: {evidence}"
            );
            gravwell_runtime::telemetry::metrics::recovery_needed(true);
            *waits = evidence;
        }
    }

    /// Checks the registry again after revoking a member, because its position may have been the evidence.
    pub(super) fn check_registry(&self) {
        let _turn = self.evidence();
        let evidence = self.members.evidence(&Here::of(&self.log, self.head())).or_else(|| self.audit_shows.clone());
        let mut waits = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        if !waits.is_empty() && evidence.is_none() {
            tracing::warn!("no evidence of lost entries remains; accepting writes again");
            gravwell_runtime::telemetry::metrics::recovery_needed(self.register_waits().is_some());
            waits.clear();
        }
    }

    /// Records the log's position in the registry and saves the registry. Waits for the disk.
    pub(super) fn save_members(&self) {
        let _turn = self.evidence();
        // A registry that contradicts the log is evidence and must not be changed.
        if self.log_waits().is_empty() {
            let (log_id, generation, seq) = (self.log.log_id(), self.log.generation(), self.head());
            self.members.note_log(LogMark { log_id, generation, seq });
        }
        if let Some(mark) = self.audit.mark() {
            self.members.note_audit(mark);
        }
        self.members.save();
    }

    fn evidence(&self) -> MutexGuard<'_, ()> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> MutexGuard<'_, CommitClock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the commit time for an entry committed now.
    pub(super) fn commit_time(&self) -> u64 {
        let mut clock = self.clock();
        let before = clock.skew_ms();
        let now = clock.now(now_ms(), steady_ms());
        let skew_s = clock.skew_ms() / 1000;
        if (before == 0) != (skew_s == 0) {
            tracing::warn!(skew_s, "host clock jumped; not trusted until it agrees with the last entries or a member");
        }
        gravwell_runtime::telemetry::metrics::clock_skew(skew_s);
        now
    }

    /// Feeds the time of a member's transaction to the commit clock.
    pub(super) fn note_clock(&self, theirs_ms: u64) {
        self.clock().member(theirs_ms, now_ms(), steady_ms());
    }

    /// Returns whether commit times must go back, because the clock was wrong when the last entries were dated. Returns
    /// `true` only once.
    pub(super) fn take_time_correction(&self) -> bool {
        self.clock().take_correction()
    }

    /// Returns the difference between the host's clock and the commit time, in milliseconds; 0 while the clock
    /// is trusted.
    pub(super) fn clock_skew_ms(&self) -> i64 {
        self.commit_time();
        self.clock().skew_ms()
    }

    pub(super) fn set_refusal(&self, why: &str) {
        let mut refusal = self.write_refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if *refusal != why {
            if why.is_empty() {
                tracing::info!("accepting writes again");
            } else {
                tracing::warn!(why, "rejecting writes");
            }
            why.clone_into(&mut refusal);
        }
    }

    pub(super) fn disk_free(&self) -> u64 {
        self.disk_free.load(Ordering::Relaxed)
    }
}

/// Returns milliseconds since 1970-01-01 UTC, by the system clock.
pub(super) fn now_ms() -> u64 {
    gravwell_env::Clock::now_ms(&gravwell_env::SystemClock)
}
