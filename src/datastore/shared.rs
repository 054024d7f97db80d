//! What all parts of a running datastore share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use tokio::sync::{AcquireError, Semaphore, broadcast, mpsc, watch};

use crate::codec::admin::GenerationInfo;
use crate::codec::message::Bookmark;
use crate::config::datastore::DatastoreConfig;
use crate::env::clock::steady_ms;
use crate::env::quota::Quota;
use crate::env::shares::{Share, Shares};
use crate::env::watch::Watch;
use crate::log::generations::{self, NotesError};
use crate::log::{LogReader, REPAIR_REMEDY};
use crate::model::{Limits, MemberName, Redaction, Seq};
use crate::protocol::commit_clock::CommitClock;
use crate::protocol::feed::Ring;
use crate::state::StateStore;
use crate::trust::{LogMark, Proof, Role};

use super::audit::Audit;
use super::commit;
use super::compaction;
use super::contents::Contents;
use super::members::Members;
use super::pins::Pins;
use super::presences::OF_REPLICA;
use super::recovery::{self, Here};
use super::renewals::Renewals;
use super::snapshot::Snapshots;

/// Memory for recent batches.
const RING_BYTES: usize = 16 << 20;
/// What to do about a damaged index.
const RESTART: &str = "start the datastore again: it sets the index aside and rebuilds it from the log (systemctl restart gravwell_datastore)";
/// Requests of members for much of the log that are answered at the same time, and those of one member.
const READINGS_MAX: usize = 8;
const READINGS_OF_MEMBER: usize = 2;
/// How many requests of one member may follow the log.
const FOLLOWS_OF_MEMBER: usize = 2;
/// Push streams of one member: an honest one has one, and a few of connections that were lost.
const PUSHES_OF_MEMBER: usize = 8;
/// Of pushes that arrive, so many units are in memory at the same time, and at least so many of one member.
const ARRIVING_MAX: usize = (256 << 20) / ARRIVING_UNIT;
const ARRIVING_OF_MEMBER: usize = (16 << 20) / ARRIVING_UNIT;
/// A push of less needs no place: the number of streams bounds them.
pub(super) const ARRIVING_UNIT: usize = 64 << 10;
/// Of the log, so many MiB are under way to one member at the same time, or as much as these streams take. Members are few enough
/// for all of them together to be no concern.
const BLOCKS_OF_MEMBER: usize = 64;
const STREAMS_OF_MEMBER: usize = OF_REPLICA + FOLLOWS_OF_MEMBER + READINGS_OF_MEMBER;

/// Most bytes of the log that are handed to a stream at once, unless a transaction or a batch is larger.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
const _: () = assert!(ARRIVING_MAX >= 2 * crate::model::limits::HARD.txn_bytes_max.div_ceil(ARRIVING_UNIT));

/// Shared state of one datastore.
pub(super) struct Shared {
    pub config: DatastoreConfig,
    pub path: PathBuf,
    /// Where states are made that are needed for a moment.
    pub work: PathBuf,
    pub log: LogReader,
    pub state: StateStore,
    pub ring: RwLock<Ring>,
    /// Last durable sequence.
    pub head: watch::Sender<Seq>,
    /// Last sequence in the state index.
    pub applied: watch::Sender<Seq>,
    pub bookmarks: broadcast::Sender<Bookmark>,
    /// The last position that was signed.
    pub proof: watch::Sender<Option<Proof>>,
    pub commit: mpsc::Sender<commit::Request>,
    pub compaction: mpsc::Sender<compaction::Request>,
    pub members: Members,
    pub contents: Contents,
    pub audit: Audit,
    /// Joins that may be served at the same time.
    pub joins: Semaphore,
    pub snapshots: Snapshots,
    /// Requests for much of the log.
    pub readings: Shares<MemberName>,
    /// Requests that follow the log.
    pub follows: Arc<Quota<MemberName>>,
    pub renewals: Renewals,
    /// Push streams.
    pub pushes: Arc<Quota<MemberName>>,
    /// Large pushes from their header on until they wait for the commit thread.
    pub arriving: Shares<MemberName>,
    /// Parts of the log that are read, and not taken yet: see [`Shared::room_for_block`].
    pub blocks: Shares<MemberName>,
    /// Bounds the bytes that wait for the commit thread.
    pub queue_bytes: Arc<Semaphore>,
    pub limits: Limits,
    /// Bytes free on the file system, as last measured by the committer.
    pub disk_free: AtomicU64,
    /// What time it is for entries.
    pub clock: Mutex<CommitClock>,
    /// Snapshots that were served to members which have not subscribed yet.
    pub pins: Pins,
    /// Why writes are refused; empty when they are not.
    pub write_refusal: Mutex<String>,
    /// Why the datastore waits to be recovered; empty when it does not.
    pub recovery: Mutex<String>,
    /// Why the register does not count as the latest; empty when it does.
    pub register_shows: Mutex<String>,
    /// Held while the register and `recovery` change together, which may take as long as the disk does.
    pub evidence: Mutex<()>,
    /// What the audit showed at the start of a log that is not here: for as long as this process runs.
    pub audit_shows: Option<String>,
    pub address: std::net::SocketAddr,
    pub started: Instant,
    pub stopping: watch::Sender<bool>,
    /// Over its tasks and threads.
    pub watch: Watch,
    /// Name under which the datastore's own host administers.
    pub local: MemberName,
}

pub(super) type SharedRef = Arc<Shared>;

pub(super) fn new_ring() -> RwLock<Ring> {
    RwLock::new(Ring::new(RING_BYTES))
}

pub(super) fn readings() -> Shares<MemberName> {
    Shares::new(READINGS_MAX, READINGS_OF_MEMBER)
}

pub(super) fn follows() -> Arc<Quota<MemberName>> {
    Quota::new(FOLLOWS_OF_MEMBER)
}

/// Whoever has all that it may have of streams finds room on each.
pub(super) fn blocks(limits: &Limits) -> Shares<MemberName> {
    Shares::new(Semaphore::MAX_PERMITS, BLOCKS_OF_MEMBER.max(STREAMS_OF_MEMBER * block_mib(limits)))
}

/// The most that one part of the log takes, in MiB.
fn block_mib(limits: &Limits) -> usize {
    (limits.txn_bytes_max.max(commit::BATCH_BYTES_MAX) + BLOCK_BYTES).div_ceil(1 << 20)
}

pub(super) fn pushes() -> Arc<Quota<MemberName>> {
    Quota::new(PUSHES_OF_MEMBER)
}

/// A member has room for two transactions of any size that is taken.
pub(super) fn arriving(limits: &Limits) -> Shares<MemberName> {
    Shares::new(ARRIVING_MAX, ARRIVING_OF_MEMBER.max(2 * limits.txn_bytes_max.div_ceil(ARRIVING_UNIT)))
}

pub(super) fn join_permits() -> Semaphore {
    Semaphore::new(crate::transport::join::AT_ONCE)
}

pub(super) fn queue_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(commit::QUEUE_BYTES_MAX))
}

impl Shared {
    pub(super) fn head(&self) -> Seq {
        *self.head.borrow()
    }

    /// What a member of a role is not given.
    pub(super) fn redaction_for(&self, role: Role) -> Option<Redaction> {
        (role == Role::Reader).then(|| self.config.redaction.clone())
    }

    /// Waits until there is room for another part of the log that `member` takes. It is held from before it is read until it was
    /// taken, so a reading that nobody waits for any more counts until it ends.
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

    /// Why writes wait for an operator; empty when they do not.
    pub(super) fn recovery(&self) -> String {
        Some(self.log_waits()).filter(|waits| !waits.is_empty()).or_else(|| self.register_waits()).unwrap_or_default()
    }

    /// What to do about it, for the data directory `dir`.
    pub(super) fn recovery_remedy(&self, dir: &str) -> String {
        match self.log_waits().is_empty() {
            true => Shared::register_remedy(dir),
            false => recovery::remedy(dir),
        }
    }

    /// How the generations of the log began.
    pub(super) fn generations(&self) -> Result<Vec<GenerationInfo>, NotesError> {
        let listed = generations::list(&self.path, self.log.log_id(), &self.log.lineage());
        self.log.damage().checked(listed, |_| true)
    }

    /// What reads have found damaged while this process runs, and what to do about it.
    pub(super) fn damage(&self) -> Option<(String, String)> {
        let log = self.log.damage().summary().map(|found| (found, REPAIR_REMEDY.to_owned()));
        let index =
            || self.state.damage().summary().map(|found| (format!("the state index: {found}"), RESTART.to_owned()));
        log.or_else(index)
    }

    /// Whether the process has to end, so that nothing more is accepted.
    pub(super) fn has_failed(&self) -> bool {
        self.watch.has_failed() || self.contents.store.health().is_err()
    }

    /// Takes no writes from now on, when there is evidence that the log lost entries. `note` writes down in the register what
    /// a member showed, and says whether it counts.
    ///
    pub(super) fn wait_for_recovery(&self, evidence: Option<String>, note: impl FnOnce() -> bool) {
        let Some(evidence) = evidence.filter(|evidence| recovery::counts(self.config.recovery, evidence)) else {
            return;
        };
        let _turn = self.evidence();
        if !note() {
            return;
        }
        let mut waits = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        if waits.is_empty() || recovery::is_better(&evidence, &waits) {
            tracing::error!(
                remedy = recovery::remedy(&self.path.display().to_string()),
                "the datastore waits to be recovered: {evidence}"
            );
            crate::telemetry::metrics::recovery_needed(true);
            *waits = evidence;
        }
    }

    /// Looks at the register again, after a member was revoked whose position was evidence.
    pub(super) fn look_at_register(&self) {
        let _turn = self.evidence();
        let evidence = self.members.evidence(&Here::of(&self.log, self.head())).or_else(|| self.audit_shows.clone());
        let mut waits = self.recovery.lock().unwrap_or_else(PoisonError::into_inner);
        if !waits.is_empty() && evidence.is_none() {
            tracing::warn!("nothing speaks of lost entries any more: writes are accepted again");
            crate::telemetry::metrics::recovery_needed(self.register_waits().is_some());
            waits.clear();
        }
    }

    /// Notes in the register where the log stands, and writes what changed in it. Waits for the disk.
    pub(super) fn save_members(&self) {
        let _turn = self.evidence();
        // What a register says that contradicts the log is evidence: it stays.
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

    /// The time that an entry is given now.
    pub(super) fn commit_time(&self) -> u64 {
        let mut clock = self.clock();
        let before = clock.skew_ms();
        let now = clock.now(now_ms(), steady_ms());
        let skew_s = clock.skew_ms() / 1000;
        if (before == 0) != (skew_s == 0) {
            tracing::warn!(
                skew_s,
                "the clock of this host jumped; it is believed when it agrees with the last entries or a member"
            );
        }
        crate::telemetry::metrics::clock_skew(skew_s);
        now
    }

    /// A member dated something.
    pub(super) fn note_clock(&self, theirs_ms: u64) {
        self.clock().member(theirs_ms, now_ms(), steady_ms());
    }

    /// Whether commit times are to go back, because a clock was wrong when the last entries were dated. Reported once.
    pub(super) fn take_time_correction(&self) -> bool {
        self.clock().take_correction()
    }

    /// How far the clock of this host is from the time that entries are given, in milliseconds; 0 when it is believed.
    pub(super) fn clock_skew_ms(&self) -> i64 {
        self.commit_time();
        self.clock().skew_ms()
    }

    pub(super) fn set_refusal(&self, why: &str) {
        let mut refusal = self.write_refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if *refusal != why {
            if why.is_empty() {
                tracing::info!("writes are accepted again");
            } else {
                tracing::warn!(why, "writes are refused");
            }
            why.clone_into(&mut refusal);
        }
    }

    pub(super) fn disk_free(&self) -> u64 {
        self.disk_free.load(Ordering::Relaxed)
    }
}

/// Milliseconds since 1970-01-01 UTC, by the machine's clock.
pub(super) fn now_ms() -> u64 {
    crate::env::Clock::now_ms(&crate::env::SystemClock)
}
