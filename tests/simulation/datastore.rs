//! The datastore of a simulated world: its disk, and its process while it is running.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use gravwell_config::datastore::Recovery;
use gravwell_datastore::commit_pipeline::{CommitPipeline, CommittedBatch, Outlet};
use gravwell_datastore::open;
use gravwell_datastore::read_only::{self, Here};
use gravwell_env::memory_fs::{MemoryFs, SmallRandom, Survival};
use gravwell_log::liveness::{BaseChanges, BaseSummary};
use gravwell_log::{
    Compaction, CompactionOptions, CompactionProgress, LivenessIndex, Log, LogOptions, LogReader, MemoryLiveness,
};
use gravwell_model::codec::message::{Bookmark, Kind, Outcome};
use gravwell_model::{Chain, Collection, Key, Limits, MemberName, Origin, OriginRow, Position, Redaction, Seq, Txn};
use gravwell_protocol::commit_clock::CommitClock;
use gravwell_protocol::feed::{Block, Ring};
use gravwell_protocol::session::client::PushId;
use gravwell_protocol::session::server::{self, ServerSession};
use gravwell_state::StateStore;
use gravwell_transport::trust::{LogMark, Registry, Role};

use super::engine::Disk;
use super::network::{ConnId, MS, Time};

pub const LOG: &str = "/log";
pub const SEGMENT_BYTES: u64 = 6 << 10;
/// Size of the recent-batch cache: small, so that subscribers often read from segments.
const RING_BYTES: usize = 3 << 10;

/// Maximum length of values here; replicas allow longer ones, so an import is rejected late.
pub const VALUE_BYTES_MAX: usize = 90;

pub fn limits() -> Limits {
    Limits { value_bytes_max: VALUE_BYTES_MAX, ..Limits::default() }
}

/// Redaction for readers: the values of one of the two collections are withheld.
pub fn redaction() -> Redaction {
    Redaction::of([Collection::new("users").expect("name")])
}

/// Data that outlives the process.
#[derive(Clone, Default)]
pub struct Disks {
    pub fs: MemoryFs,
    pub index: Disk,
    pub members: String,
    pub liveness: Liveness,
    /// Whether the administrator gives up everything that the log lacks, even if members have it.
    pub gives_up: bool,
}

impl Disks {
    /// Returns another disk with the same contents, as a backup would copy them.
    pub fn copy(&self) -> Disks {
        let fs = self.fs.crash(Survival::Everything, 0);
        fs.set_capacity(None);
        Disks { fs, index: self.index.copy(), members: self.members.clone(), ..Disks::default() }
    }
}

/// The liveness index of compaction; clones share it.
#[derive(Clone, Default)]
pub struct Liveness(Arc<Mutex<MemoryLiveness>>);

impl Liveness {
    fn get(&self) -> std::sync::MutexGuard<'_, MemoryLiveness> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LivenessIndex for Liveness {
    fn summary(&self) -> std::io::Result<BaseSummary> {
        self.get().summary()
    }

    fn version(&self, collection: &Collection, key: &Key) -> std::io::Result<Option<Seq>> {
        self.get().version(collection, key)
    }

    fn origin(&self, origin: Origin) -> std::io::Result<Option<OriginRow>> {
        self.get().origin(origin)
    }

    fn commit(&mut self, changes: BaseChanges) -> std::io::Result<()> {
        self.get().commit(changes)
    }

    fn reset(&mut self) -> std::io::Result<()> {
        self.get().reset()
    }
}

/// One connection as seen by the datastore.
pub struct Session {
    pub member: MemberName,
    pub role: Role,
    pub machine: ServerSession,
    /// Messages that arrived and were not read yet, and whether the session is reading.
    pub control: VecDeque<(Kind, Bytes)>,
    pub reads: bool,
    /// Completes what was sent on the tail, once the subscriber has received it.
    pub fed: Option<server::Event>,
    /// When the session is called next because of the time.
    pub timer: Option<Time>,
    /// A snapshot is sent once the index has reached this sequence.
    pub snapshot_at: Option<Seq>,
}

/// A transaction that waits for the commit thread.
pub struct Proposal {
    pub member: MemberName,
    pub conn: ConnId,
    pub stream: PushId,
    pub txn: Txn,
}

/// The running process.
pub struct Running {
    pub ledger: CommitPipeline,
    pub reader: LogReader,
    pub state: StateStore,
    pub ring: Ring,
    pub head: Seq,
    pub chain: Chain,
    pub applied: Seq,
    pub backlog: VecDeque<CommittedBatch>,
    pub registry: Registry,
    /// Reason why it accepts no writes; empty if it does.
    pub recovery: String,
    mode: Recovery,
    pub clock: CommitClock,
    /// Whether its index was rebuilt from the log at this start.
    pub is_rebuilt: bool,
    pub sessions: BTreeMap<ConnId, Session>,
    pub queue: VecDeque<Proposal>,
    pub compaction: Option<Compaction<Liveness>>,
    pub started: Time,
}

pub fn log_options() -> LogOptions {
    LogOptions { segment_bytes: SEGMENT_BYTES, reserve_bytes: 2 << 10, ..LogOptions::default() }
}

impl Running {
    /// Starts the process on its disks like a real datastore.
    pub fn start(disks: &mut Disks, now: Time, now_ms: u64) -> Result<Running, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let fs = Arc::new(disks.fs.clone());
        let mode = if disks.gives_up { Recovery::Off } else { Recovery::Auto };
        let (log, _) = Log::open(fs, Path::new(LOG), log_options()).map_err(|error| text(&error))?;
        let reader = log.reader();
        let usable = StateStore::with_engine(Box::new(disks.index.clone())).map_err(|error| text(&error));
        let usable = usable.map(|state| (open::level(&state, &reader), state));
        let is_rebuilt = !matches!(usable, Ok((Ok(()), _)));
        let state = match usable {
            Ok((Ok(()), state)) => state,
            Ok((Err(loss @ open::IndexMismatch::Loss { .. }), _)) if mode != Recovery::Off => return Err(text(&loss)),
            _ => {
                disks.index = Disk::default();
                let state = StateStore::with_engine(Box::new(disks.index.clone())).map_err(|error| text(&error))?;
                open::build(&state, &reader, reader.head().0, &mut |_| {}).map_err(|error| text(&error))?
            }
        };
        if state.meta().is_some_and(|meta| meta.generation != log.generation()) {
            state.set_generation(log.generation(), reader.lineage()).map_err(|error| text(&error))?;
        }
        let (head, reader_chain) = reader.head();
        let ledger = CommitPipeline::new(log, state.clone(), limits()).map_err(|error| text(&error))?;
        let mut registry = Registry::from_text(&disks.members, now_ms).map_err(|error| text(&error))?;
        let here = Here::of(&reader, head);
        let evidence = read_only::from_register(&here, &registry).filter(|evidence| read_only::counts(mode, evidence));
        if evidence.is_none() {
            read_only::enter(&here, &mut registry);
        }
        let last_ms = state.meta().map_or(0, |meta| meta.time_ms);
        Ok(Running {
            clock: CommitClock::new(last_ms, now / MS),
            is_rebuilt,
            ledger,
            reader,
            state,
            ring: Ring::new(RING_BYTES),
            head,
            chain: reader_chain,
            applied: head,
            backlog: VecDeque::new(),
            registry,
            recovery: evidence.unwrap_or_default(),
            mode,
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            compaction: None,
            started: now,
        })
    }

    /// Returns whether it accepts no writes, because there is evidence that its log has lost entries.
    pub fn waits(&self) -> bool {
        !self.recovery.is_empty()
    }

    /// Checks the position of a member for evidence about the log, like a session does. Returns whether the registry has changed.
    pub fn examine(&mut self, member: &MemberName, position: &Position, now_ms: u64) -> bool {
        let here = Here::of(&self.reader, self.head);
        let evidence = match self.registry.member(member) {
            Some(member) => here.shown_by(member, position),
            None => here.contradicted_by(member.as_str(), position),
        };
        let Some(evidence) = evidence.filter(|evidence| read_only::counts(self.mode, evidence)) else { return false };
        let is_noted = matches!(self.registry.note_contradiction(member, *position, now_ms), Ok(true));
        if is_noted && self.recovery.is_empty() {
            self.recovery = evidence;
        }
        is_noted
    }

    /// Records the position of the log in the registry, unless the registry contradicts it.
    pub fn note_log(&mut self) {
        if !self.waits() {
            let (log_id, generation, seq) = (self.reader.log_id(), self.reader.generation(), self.head);
            self.registry.note_log(LogMark { log_id, generation, seq });
        }
    }

    pub fn bookmark(&self) -> Option<Bookmark> {
        gravwell_datastore::commit_pipeline::bookmark(&self.state)
    }
}

/// Output of a commit, in order.
#[derive(Default)]
pub struct Released {
    pub blocks: Vec<Block>,
    pub committed: Vec<CommittedBatch>,
    pub answers: Vec<(usize, Outcome)>,
}

impl Outlet for Released {
    fn publish(&mut self, block: Block) {
        self.blocks.push(block);
    }

    fn index(&mut self, committed: CommittedBatch) {
        self.committed.push(committed);
    }

    fn answer(&mut self, place: usize, outcome: Outcome) {
        self.answers.push((place, outcome));
    }
}

pub fn start_compacting(
    running: &mut Running,
    disks: &Disks,
    target: Seq,
    random: &mut SmallRandom,
) -> Option<Compaction<Liveness>> {
    let garbage_ratio = if random.below(2) == 0 { 0.0 } else { 0.3 };
    compaction(running, disks, target, garbage_ratio)
}

/// Creates a compaction of segments with at least the given share of garbage.
pub fn compaction(running: &Running, disks: &Disks, target: Seq, garbage_ratio: f64) -> Option<Compaction<Liveness>> {
    let options = CompactionOptions { garbage_ratio, segment_bytes: SEGMENT_BYTES, dry_run: false };
    Compaction::new(running.reader.clone(), disks.liveness.clone(), target, options).ok()
}

/// Runs one step; returns `true` when compaction is complete.
pub fn step_compaction(running: &mut Running) -> Result<bool, String> {
    let Some(compaction) = &mut running.compaction else { return Ok(true) };
    match compaction.step() {
        Ok(CompactionProgress::Working { .. }) => Ok(false),
        Ok(CompactionProgress::Done(_)) => {
            running.compaction = None;
            Ok(true)
        }
        Err(error) => {
            running.compaction = None;
            Err(error.to_string())
        }
    }
}
