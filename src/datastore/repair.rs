//! Repair of a corrupt datastore from a member. The member's state becomes the base of a new log, and all records of
//! the old log that continue it are copied unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_env::data_dir::{self, DirectoryError};
use gravwell_env::fs::parent_dir;
use gravwell_env::real_fs::{RealFs, create_dirs};
use gravwell_log::format::LINEAGE_MAX;
use gravwell_log::generations::{self, NotesError};
use gravwell_log::repair::{self, BuildError, LOG, NEW, REPAIRED, Reach, Start};
use gravwell_log::salvage::{Salvage, salvage};
use gravwell_log::{IoFailure, Log};
use gravwell_model::codec::admin::{Finding, GenerationCause, GenerationInfo};
use gravwell_model::position::{Divergence, shared_after};
use gravwell_model::{Digest, Generation, Lineage, LineageEntry, LogId, Origin, OriginCounter, Seq};
use gravwell_state::rebuild::{self, RebuildError};
use gravwell_state::{StateError, StateMeta, StateSnapshot, StateStore, Target, base_entries_left};
use gravwell_transport::trust::{Member, Registry};

use super::index;
use super::open::{OpenError, log_options};

/// Reason why a datastore was not repaired. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The directory is in use.
    #[error(
        "{0}: a datastore can be repaired only while it is stopped; run `systemctl stop` or terminate the process, \
         repair, then start it again"
    )]
    InUse(DirectoryError),
    /// The directory cannot be used.
    #[error(transparent)]
    Directory(DirectoryError),
    /// The member's state is unsound.
    #[error("cannot use the member's state: {0}; choose another member")]
    Member(String),
    /// The member belongs to another log.
    #[error("the member belongs to log {member}, but this datastore has log {log}; choose one of its members")]
    OtherLog {
        /// Log ID of the datastore.
        log: LogId,
        /// Log ID of the member.
        member: LogId,
    },
    /// The member's history differs from the log's.
    #[error("the member's history differs from this log's: {0}; choose another member")]
    OtherHistory(String),
    /// Acknowledged transactions would be lost.
    #[error("{}", loss(.0))]
    Loss(Box<RepairReport>),
    /// The leftover index of a lost log holds more than the chosen member.
    #[error(
        "{path}, the leftover state index of the log, is at sequence {index}, and the chosen member is at {member}; \
         nothing was changed; rebuild from the index with `gravwell-logctl --data-dir {dir} repair --from {path} \
         --accept-loss`; or, to ignore it, move it first, `mv {path} {path}.aside`, and run this command again",
        path = path.display(), dir = parent_dir(path).display()
    )]
    IndexHasMore {
        /// Path of the index.
        path: PathBuf,
        /// Sequence of the index.
        index: Seq,
        /// Sequence of the member.
        member: Seq,
    },
    /// A log with entries exists, which has to be repaired.
    #[error(
        "{path} holds a log up to sequence {known}, which is not replaced; if it is damaged, use `repair`; if it \
         belongs to another fleet, move it and its index first, {aside}, and run this command again",
        path = path.display(), aside = super::read_only::aside(&parent_dir(path).display().to_string())
    )]
    NotEmpty {
        /// Path of the log.
        path: PathBuf,
        /// Greatest sequence found in the log or its traces.
        known: Seq,
    },
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] IoFailure),
    /// The state index may prove a loss, but cannot be read for reasons unrelated to its contents.
    #[error("the state index may have more than the log, and cannot be examined now: {0}")]
    Index(OpenError),
    /// The file that records why generations started cannot be written.
    #[error(transparent)]
    Notes(#[from] NotesError),
    /// The new log failed verification.
    #[error("the new log failed verification and was not installed: {0}")]
    Wrong(String),
}

fn loss(report: &RepairReport) -> String {
    let holders = match &report.ask[..] {
        [] => "try the other members, starting with the one that connected last".to_owned(),
        names => format!("use the most advanced member; last known positions: {}", names.join(", ")),
    };
    let what = match report.lost {
        Some((first, last)) => format!("sequences {first} to {last}, which the datastore acknowledged, would be lost"),
        None => "the former end of the log is unknown, so acknowledged transactions may be lost".to_owned(),
    };
    format!(
        "{what}: the member ends at {}, and the remaining log at {}; nothing was changed; {holders}; only if no member \
         has them, pass --accept-loss",
        report.base, report.head
    )
}

/// Options set by the operator.
#[derive(Clone, Copy, Debug, Default)]
pub struct RepairOptions<'a> {
    /// Dry run: report the plan without changing anything.
    pub dry_run: bool,
    /// Accept the loss of acknowledged transactions if it is unavoidable; a new generation starts then.
    pub accept_loss: bool,
    /// The old log is lost, and files in its place are ignored.
    pub log_is_lost: bool,
    /// A new generation must be greater than this one.
    pub above: Generation,
    /// The members' records of how the log's generations started.
    pub known: &'a [GenerationInfo],
}

/// Report of the repair, or of its plan in a dry run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepairReport {
    /// Whether a new log is in place.
    pub repaired: bool,
    /// Whether this was a dry run.
    pub dry_run: bool,
    /// Corruption found in the old log.
    pub damaged: Vec<Finding>,
    /// Reason why the registry's positions of members are unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub register: Option<String>,
    /// Sequence of the member's state, the new horizon.
    pub base: Seq,
    /// Digest of the state at `base`.
    pub digest: Digest,
    /// Number of records copied from the old log.
    pub carried: u64,
    /// Greatest sequence that is known to have been acknowledged.
    pub head_before: Option<Seq>,
    /// Last sequence of the new log.
    pub head: Seq,
    /// Generation of the new log.
    pub generation: Generation,
    /// First and last acknowledged sequence that is lost.
    pub lost: Option<(Seq, Seq)>,
    /// Number of objects lost because the state is a reader's, from which their values are withheld.
    pub withheld: u64,
    /// Members and their last known positions, most advanced first: candidates that may have the lost entries.
    pub ask: Vec<String>,
    /// Directory in which the corrupt log is kept.
    pub kept: Option<PathBuf>,
}

/// Evidence in the datastore's directory apart from its log.
#[derive(Default)]
struct Traces {
    index: Option<index::View>,
    members: Vec<(String, Seq)>,
    /// Reason why the registry could not be read.
    register: Option<String>,
}

impl Traces {
    /// Collects the evidence. With `log_is_lost` the index is ignored.
    fn of(path: &Path, config: &DatastoreConfig, log_is_lost: bool) -> Result<Traces, RepairError> {
        let index = if log_is_lost { None } else { index::inspect_index(path, config).map_err(RepairError::Index)? };
        let (registry, register) = match Registry::open(&path.join("trust"), super::shared::now_ms()) {
            Ok(registry) => (Some(registry), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let members = registry.iter().flat_map(Registry::members);
        let place = |member: &Member| Some((member.name.to_string(), member.applied?));
        let mut members: Vec<_> = members.filter_map(place).collect();
        members.sort_by_key(|(_, applied)| std::cmp::Reverse(*applied));
        Ok(Traces { index, members, register })
    }

    fn known(&self) -> Option<Seq> {
        self.members.iter().map(|(_, applied)| *applied).chain(self.index.iter().map(|index| index.meta.seq)).max()
    }
}

/// Repairs the stopped datastore in `path` from a member's state. Calls `progress` during long work.
///
/// # Errors
/// Returns an error if the directory is in use, the member does not match, or entries would be lost. Nothing was
/// changed then.
pub fn repair(
    path: &Path,
    config: &DatastoreConfig,
    member: &StateStore,
    options: RepairOptions<'_>,
    progress: &mut dyn FnMut(&str),
) -> Result<RepairReport, RepairError> {
    let patience = std::time::Duration::ZERO;
    let claimed = match options.dry_run {
        true => data_dir::claim_to_read(path, "datastore", patience),
        false => data_dir::claim(path, "datastore", patience).map(Some),
    };
    let _lock = claimed.map_err(|error| match error {
        error @ DirectoryError::InUse { .. } => RepairError::InUse(error),
        other => RepairError::Directory(other),
    })?;
    if !options.dry_run {
        repair::finish_swap(&RealFs, path)?;
    }
    progress("examining the log");
    let examined = if options.log_is_lost { "log.lost" } else { LOG };
    let old = salvage(&RealFs, &path.join(examined), &mut |_, _| {})?;
    let mut report = RepairReport { dry_run: options.dry_run, head_before: old.known, ..RepairReport::default() };
    let traces = Traces::of(path, config, options.log_is_lost)?;
    report.register.clone_from(&traces.register);
    progress("checking the member's state");
    let (snapshot, meta) = sound(member)?;
    let (withheld, digest) = left_of(&snapshot, &meta, options)?;
    let (generation, lineage) = descent(&old, &meta, traces.index.as_ref().map(|index| &*index.meta))?;
    let ends = old.known.unwrap_or_default();
    let known = ends.max(traces.known().unwrap_or_default());
    if old.is_good() && known.max(meta.seq) <= ends {
        report.head = ends;
        return Ok(report);
    }
    let place = |damage: &gravwell_log::Damage| Finding {
        place: damage.file.clone(),
        offset: Some(damage.offset),
        problem: damage.to_string(),
    };
    report.damaged = old.damages.iter().map(place).collect();
    if old.is_good() {
        let problem = format!("the log ends at {ends}, but sequence {} was acknowledged", known.max(meta.seq));
        report.damaged.push(Finding { place: LOG.to_owned(), offset: None, problem });
    }
    covers(&snapshot, &meta, &old)?;
    if let Some(index) = traces.index.as_ref().filter(|index| !is_given_up(&index.meta, &lineage)) {
        agrees(index, &snapshot)?;
    }
    let reach = repair::reach(&old, (meta.seq, meta.chain))?;
    report.head_before = old.known.max(traces.known());
    (report.base, report.digest, report.carried, report.head) = (meta.seq, digest, reach.carried, reach.head);
    report.withheld = withheld;
    let (log_id, seq, chain, time_ms) = (meta.log_id, meta.seq, meta.chain, meta.time_ms);
    let deletions = snapshot.deletions().map_err(|error| RepairError::Member(error.to_string()))?;
    let mut start =
        Start { log_id, generation, lineage, seq, chain, time_ms, deletions_after: deletions.complete_after() };
    let is_raised = judge(path, &mut report, &mut start, &old, &traces, options)?;
    if options.dry_run {
        return Ok(report);
    }
    progress("building the new log");
    build(path, config, &start, &snapshot, &old, reach)?;
    progress("checking the new log");
    check(path, config, &start, digest, reach)?;
    note_generations(path, &start, is_raised, options)?;
    report.kept = repair::swap(&RealFs, path)?;
    if options.log_is_lost {
        super::install_marker::complete(path);
    }
    report.repaired = true;
    Ok(report)
}

/// Records why generations started. This happens before their log is in place, because a record of a nonexistent
/// generation is harmless.
fn note_generations(
    path: &Path,
    start: &Start,
    is_raised: bool,
    options: RepairOptions<'_>,
) -> Result<(), RepairError> {
    let mut infos = options.known.to_vec();
    infos.extend(start.lineage.last().filter(|_| is_raised).map(|entry| began(entry, options)));
    Ok(generations::learn(path, start.log_id, &infos)?)
}

fn began(entry: &LineageEntry, options: RepairOptions<'_>) -> GenerationInfo {
    let beginning = if options.log_is_lost { GenerationCause::Recovered } else { GenerationCause::Repaired };
    let LineageEntry { generation, shared_to } = *entry;
    GenerationInfo { generation, shared_to, beginning, time_ms: super::shared::now_ms() }
}

/// Verifies the member's state up to its last row.
fn sound(member: &StateStore) -> Result<(StateSnapshot, Arc<StateMeta>), RepairError> {
    let unfit = |error: StateError| RepairError::Member(error.to_string());
    let snapshot = member.snapshot().map_err(unfit)?;
    let meta = snapshot.meta().cloned().ok_or_else(|| unfit(StateError::Uninitialised))?;
    match snapshot.check().map_err(unfit)?.damage.first() {
        Some(damage) => Err(RepairError::Member(damage.to_string())),
        None => Ok((snapshot, meta)),
    }
}

/// Returns the number of objects without values, and the digest of the others. A reader's state can only be the base of
/// a log that is recreated.
fn left_of(
    snapshot: &StateSnapshot,
    meta: &StateMeta,
    options: RepairOptions<'_>,
) -> Result<(u64, Digest), RepairError> {
    let unfit = |error: StateError| RepairError::Member(error.to_string());
    if meta.is_redacted && !options.log_is_lost {
        return Err(unfit(StateError::Redacted));
    }
    let mut left = (0, meta.digest);
    for row in snapshot.withheld() {
        let row = row.map_err(unfit)?;
        left = (left.0 + 1, left.1.minus(row.object.contribution));
    }
    Ok(left)
}

/// Returns the last sequence that a log shares with a state that does not lead to it.
fn left_at(meta: &StateMeta, log: &[LineageEntry]) -> Option<Seq> {
    // Without a lineage, only the generation number shows which one is later.
    if meta.lineage.is_empty() {
        return shared_after(log, meta.generation).filter(|shared_to| meta.seq > *shared_to);
    }
    let found = Divergence::of(log, &meta.lineage);
    let shared_to = found.shared_to().filter(|_| found.first.is_some())?;
    (found.is_mutual() || meta.seq > shared_to).then_some(shared_to)
}

/// Returns whether each of two logs has a generation that the other lacks.
fn apart(one: &[LineageEntry], other: &[LineageEntry]) -> bool {
    !one.is_empty() && !other.is_empty() && Divergence::of(one, other).is_mutual()
}

/// Returns generation and lineage of the log, after checking that the member's state is on it.
fn descent(old: &Salvage, meta: &StateMeta, index: Option<&StateMeta>) -> Result<(Generation, Lineage), RepairError> {
    let head = old.head.as_ref();
    let index = index.filter(|index| old.log_id.is_none_or(|log| log == index.log_id));
    // An index of an abandoned log is no evidence about the present one.
    let index = index.filter(|index| head.is_none_or(|head| !apart(&head.lineage, &index.lineage)));
    if let Some(log) = old.log_id.or(index.map(|index| index.log_id)).filter(|log| *log != meta.log_id) {
        return Err(RepairError::OtherLog { log, member: meta.log_id });
    }
    let candidates = [
        head.map(|head| (head.generation, &head.lineage)),
        index.map(|index| (index.generation, &index.lineage)),
        Some((meta.generation, &meta.lineage)),
    ];
    let newest = candidates.into_iter().flatten().max_by_key(|(generation, _)| *generation);
    let (generation, lineage) = newest.map(|(generation, lineage)| (generation, lineage.clone())).unwrap_or_default();
    if old.generation > generation {
        let found = old.generation;
        return Err(RepairError::OtherHistory(format!(
            "the log is of generation {found}, but the newest generation known to head file, index and member is \
             {generation}"
        )));
    }
    let logs = [head.map(|head| &head.lineage), index.map(|index| &index.lineage)];
    if let Some(shared_to) = logs.into_iter().flatten().find_map(|log| left_at(meta, log)) {
        let (seq, member) = (meta.seq, meta.generation);
        return Err(RepairError::OtherHistory(format!(
            "it is at {seq} in generation {member}, which the log shares only up to {shared_to}"
        )));
    }
    match old.contradiction(meta.seq, meta.chain)? {
        Some(what) => Err(RepairError::OtherHistory(what)),
        None => Ok((generation, lineage)),
    }
}

/// Checks that the member has every transaction up to its position that the log still shows. Origins are random and
/// never reused. So an origin that the member lacks, or with a lower counter, belongs to another history.
fn covers(snapshot: &StateSnapshot, meta: &StateMeta, old: &Salvage) -> Result<(), RepairError> {
    let mut greatest = BTreeMap::<Origin, (OriginCounter, Seq)>::new();
    repair::entries_to(old, meta.seq, |entry| {
        if let Some(id) = entry.body.id() {
            let row = greatest.entry(id.origin).or_default();
            *row = (*row).max((id.counter, entry.seq));
        }
    })?;
    for (origin, (counter, seq)) in greatest {
        let row = snapshot.origin(origin).map_err(|error| RepairError::Member(error.to_string()))?;
        if row.is_none_or(|row| row.last_counter < counter) {
            return Err(RepairError::OtherHistory(format!("it lacks the transaction at {seq}, which the log has")));
        }
    }
    Ok(())
}

/// Returns whether the generations in `lineage` abandoned the index, so that it proves nothing.
pub(super) fn is_given_up(index: &StateMeta, lineage: &[LineageEntry]) -> bool {
    left_at(index, lineage).is_some()
}

/// Returns an error if the index and the member's state have diverged.
pub(super) fn agrees(index: &index::View, member: &StateSnapshot) -> Result<(), RepairError> {
    let unreadable = |error: StateError| RepairError::Index(error.into());
    let at = member.meta().map(|meta| meta.seq).unwrap_or_default();
    let own = index.state.snapshot().map_err(unreadable)?;
    let (earlier, later) = if index.meta.seq <= at { (&own, member) } else { (member, &own) };
    match gravwell_state::descent::fork(earlier, later).map_err(unreadable)? {
        Some(fork) => Err(RepairError::OtherHistory(format!("it and the state index D/state differ: {fork}"))),
        None => Ok(()),
    }
}

/// Checks whether acknowledged entries would be lost and whether that is allowed. Returns whether a new
/// generation starts.
fn judge(
    path: &Path,
    report: &mut RepairReport,
    start: &mut Start,
    old: &Salvage,
    traces: &Traces,
    options: RepairOptions<'_>,
) -> Result<bool, RepairError> {
    report.generation = start.generation;
    let known = report.head_before.unwrap_or_default();
    // Without any trace of the log itself, its end is unknown.
    let complete = known <= report.head && old.known.is_some();
    if complete {
        return Ok(false);
    }
    report.lost = (known > report.head).then_some((report.head.next(), known));
    report.ask = traces.members.iter().map(|(name, applied)| format!("{name} at {applied}")).collect();
    if !options.accept_loss {
        return Err(RepairError::Loss(Box::new(report.clone())));
    }
    if start.lineage.len() >= LINEAGE_MAX {
        return Err(RepairError::Wrong(format!("a log has at most {LINEAGE_MAX} generations")));
    }
    start.generation = generations::next(path, start.log_id, start.generation.max(options.above), options.known)?;
    // Without these values the new log shares nothing with earlier generations. Members that have the values archive
    // the changes that it lacks.
    let shared_to = if report.withheld > 0 { Seq::ZERO } else { report.head };
    start.lineage.push(LineageEntry { generation: start.generation, shared_to });
    report.generation = start.generation;
    Ok(true)
}

/// Removes leftovers of an earlier attempt, then builds the log in `log.new`.
fn build(
    path: &Path,
    config: &DatastoreConfig,
    start: &Start,
    snapshot: &StateSnapshot,
    old: &Salvage,
    expected: Reach,
) -> Result<(), RepairError> {
    remove_leftovers(path)?;
    let mut base = base_entries_left(snapshot).map_err(|error| RepairError::Member(error.to_string()))?;
    repair::entries_to(old, start.seq, |entry| base.remember(entry))?;
    let built = repair::build(&RealFs, &path.join(NEW), start, base, old, config.segment_bytes);
    let reach = built.map_err(|error| match error {
        BuildError::Base(error) => RepairError::Member(error.to_string()),
        BuildError::Io(failure) => RepairError::Io(failure),
        error @ BuildError::Encode(_) => RepairError::Wrong(error.to_string()),
    })?;
    if reach == expected { Ok(()) } else { Err(RepairError::Wrong(format!("it ends at {}", reach.head))) }
}

/// Opens the new log, verifies every byte, and checks that replaying it yields the member's digest.
fn check(
    path: &Path,
    config: &DatastoreConfig,
    start: &Start,
    digest: Digest,
    reach: Reach,
) -> Result<(), RepairError> {
    let wrong = |what: String| RepairError::Wrong(what);
    let new = path.join(NEW);
    let (log, _) = Log::open(Arc::new(RealFs), &new, log_options(config)).map_err(|error| wrong(error.to_string()))?;
    let verified = log.reader().verify(&mut |_, _| {})?;
    if let Some(damage) = verified.damages.first() {
        return Err(wrong(damage.to_string()));
    }
    if log.head() != (reach.head, reach.chain) || log.horizon() != start.seq || log.log_id() != start.log_id {
        return Err(wrong(format!("it ends at {} and starts at {}", log.head().0, log.horizon())));
    }
    let side = path.join("state.rebuild");
    remove(&side)?;
    let reader = log.reader();
    let base = reader.base().map_err(|error| wrong(error.to_string()))?;
    let target = Target {
        log_id: start.log_id,
        generation: start.generation,
        lineage: start.lineage.clone(),
        seq: start.seq,
        chain: base.chain,
        time_ms: base.time_ms,
        deletions_after: Some(base.deletions_after),
        digest: Some(digest),
    };
    let origins = base.origins.into_iter().collect();
    let tail = reader.chained_entries(start.seq, reach.head);
    create_dirs(&side, 0o700).map_err(IoFailure::at("create", side.display()))?;
    let store = StateStore::open(&side, config.cache_bytes).map_err(|error| wrong(error.to_string()))?;
    let rebuilt = rebuild::rebuild(&store, reader.base_entries(), &origins, target, tail, None, &mut |_| {});
    drop(store);
    let outcome = rebuilt.map(drop).map_err(|error: RebuildError<_>| wrong(error.to_string()));
    remove(&side)?;
    outcome?;
    log.close().map_err(|error| wrong(error.to_string()))
}

fn remove(path: &Path) -> Result<(), RepairError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(IoFailure::at("remove", path.display())(error).into())
        }
        _ => Ok(()),
    }
}

fn remove_leftovers(path: &Path) -> Result<(), RepairError> {
    [NEW, REPAIRED].iter().try_for_each(|name| remove(&path.join(name)))
}

/// Finishes an interrupted swap before the log is opened.
pub(super) fn finish(path: &Path) -> Result<(), OpenError> {
    if repair::finish_swap(&RealFs, path).map_err(gravwell_log::OpenError::from)? {
        tracing::info!("finished an interrupted repair and installed the repaired log");
    }
    Ok(())
}

/// Removes leftovers of an interrupted repair once the log was opened, because they must never replace it.
pub(super) fn clean(path: &Path) {
    if let Err(error) = remove_leftovers(path) {
        tracing::warn!(%error, "failed to remove leftover files of an interrupted repair");
    }
}
