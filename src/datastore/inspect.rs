//! Read-only reports of the datastore: status, history, and the state at an earlier sequence.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use gravwell_log::{LogReader, ReadError};
use gravwell_model::codec::admin::{SegmentInfo, Status};
use gravwell_model::codec::health::{self, Code, Health, Reason};
use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Entry, EntryBody, Key, Op, Seq};
use gravwell_state::StateStore;
use gravwell_transport::trust::{RecoveryKeys, TrustError, check_halves};

use super::blobs::Missing;
use super::install_marker;
use super::open::{OpenError, rebuild_state};
use super::shared::DatastoreRef;

pub(super) fn status(shared: &DatastoreRef) -> Status {
    let head = shared.head();
    let meta = shared.state.meta();
    let seq = meta.as_ref().map_or(Seq::ZERO, |meta| meta.seq);
    let incomplete = super::blobs::incomplete(shared);
    // Measured here, too, because nothing may be written for a long time. Only a successful write clears the state:
    // with a quota, writes fail although the disk has free space.
    if super::commit_thread::measure_disk(shared) == Some(true) {
        shared.set_refusal(super::commit_thread::DISK_IS_FULL);
    }
    let (refusal, recovery, audit) = (shared.refusal(), shared.recovery(), shared.audit.problem());
    let ended = shared.watch.ended();
    let damage = shared.damage().map(|(found, remedy)| Reason::new(Code::Damaged, found, remedy));
    let damage = damage.or_else(|| trust_damage(shared));
    let reason = match (recovery.is_empty(), refusal.is_empty()) {
        (false, _) => {
            let message = format!("the datastore waits for recovery, because {recovery}");
            let remedy = shared.recovery_remedy(&shared.path.display().to_string());
            let is_of_register = shared.register_waits().is_some_and(|waits| waits == recovery);
            let code = if is_of_register { Code::RegisterWentBack } else { Code::WaitsForRecovery };
            Some(Reason::new(code, message, remedy))
        }
        (true, false) => Some(Reason::new(Code::ReadOnly, room(shared, refusal), MAKE_ROOM)),
        (true, true) if !ended.is_empty() => Some(Reason::new(Code::TaskEnded, ended, health::START_AGAIN)),
        (true, true) if !audit.is_empty() => {
            let behind = head.since(shared.audit.covered());
            let message = format!("the audit cannot be written and lags by {behind} entries: {audit}");
            let remedy = "free some disk space, or check the directory `audit`; writing resumes automatically and \
                          nothing is lost, because compaction waits for it";
            Some(Reason::new(Code::AuditNotWritten, message, remedy))
        }
        (true, true) => None,
    };
    let not_written = shared.members.not_written();
    let reason = damage.or(reason).or_else(|| not_written.clone());
    let not_written = not_written.filter(|also| reason.as_ref() != Some(also));
    let (problem, remedy) =
        reason.iter().map(|reason| (reason.message.clone(), reason.remedy.clone())).next().unwrap_or_default();
    let mut status = Status {
        role: "datastore".into(),
        running: true,
        log_id: Some(shared.log.log_id()),
        generation: shared.log.generation(),
        seq,
        head,
        horizon: shared.log.horizon(),
        floor: shared.floor(),
        digest: meta.as_ref().map(|meta| meta.digest).unwrap_or_default(),
        verdict: "Same".into(),
        lag_ops: head.since(seq),
        connected: true,
        subscribers: shared.members.connected(),
        rotates_authority: shared.members.authorities().next().is_some(),
        rotates_recovery_key: RecoveryKeys::is_rotating(&super::service::trust_dir(&shared.path)),
        objects: meta.map_or(0, |meta| meta.digests.collections.values().map(|sum| sum.objects).sum()),
        log_bytes: shared.log.segments().iter().map(|segment| segment.bytes).sum(),
        disk_free_bytes: super::commit_thread::free_space(&shared.path).unwrap_or_default(),
        healthy: problem.is_empty(),
        remedy,
        problem,
        version: env!("CARGO_PKG_VERSION").into(),
        address: shared.address.to_string(),
        uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        clock_ms: super::shared::now_ms(),
        contents_incomplete: incomplete.len() as u64,
        contents_lost: incomplete.values().filter(|missing| **missing == Missing::Lost).count() as u64,
        refused_members: shared.members.strangers(),
        health: Health {
            reasons: reason.into_iter().chain(not_written).chain(attention(shared)).collect(),
            ..Health::default()
        },
        ..Status::default()
    };
    health::assess(&mut status);
    status
}

/// Returns the reason for rejecting writes, with the free and required space if the disk is full.
fn room(shared: &DatastoreRef, refusal: String) -> String {
    const MIB: u64 = 1 << 20;
    let (free, min) = (shared.disk_free.load(Ordering::Relaxed), shared.config.min_free_bytes);
    if refusal != super::commit_thread::DISK_IS_FULL || free >= min {
        return refusal;
    }
    format!("{refusal}: {} MiB are free, and `Datastore-Min-Free-MB` requires {}", free / MIB, min / MIB)
}

/// Checks for CA files deleted while the datastore runs with its in-memory copy.
fn trust_damage(shared: &DatastoreRef) -> Option<Reason> {
    let trust = super::service::trust_dir(&shared.path);
    let key = trust.join("ca.key");
    if shared.members.is_serving() && is_missing(&key) {
        return Some(Reason::new(Code::Damaged, format!("{} is missing", key.display()), PUT_TRUST_BACK));
    }
    check_halves(&trust).err().map(|error| of_trust(&error, Code::Damaged, PUT_TRUST_BACK))
}

/// Returns whether a file does not exist, and is not merely out of reach.
fn is_missing(path: &Path) -> bool {
    matches!(path.try_exists(), Ok(false))
}

/// Reports a file of the CA that could not be read. Only damage has the given code and remedy: a file that the operating
/// system does not give out must not be replaced.
fn of_trust(error: &TrustError, damaged: Code, remedy: &str) -> Reason {
    match error {
        TrustError::Io { .. } => Reason::new(Code::Problem, error.to_string(), READ_TRUST),
        _ => Reason::new(damaged, error.to_string(), remedy),
    }
}

/// Returns conditions that need an operator but do not stop the datastore.
fn attention(shared: &DatastoreRef) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let skew_s = shared.clock_skew_ms() / 1000;
    if skew_s != 0 {
        let side = if skew_s > 0 { "ahead of" } else { "behind" };
        let message = format!(
            "the clock of this host is {} s {side} the last entries and the members' clocks, so it is not trusted: \
             entries are dated by the time elapsed since the last one",
            skew_s.unsigned_abs()
        );
        reasons.push(Reason::new(Code::ClockSkew, message, SET_CLOCK));
    }
    reasons.extend(RecoveryKeys::load(&super::service::trust_dir(&shared.path)).err().as_ref().map(|error| {
        let remedy = "restore the key from your records: `gravwell-logctl --data-dir D authority recovery-key --set \
                      KEY`; until then, members keep their existing copies";
        of_trust(error, Code::RecoveryKeyDamaged, remedy)
    }));
    reasons.extend(shared.members.witness_damage().map(|(path, why)| {
        let message = format!(
            "{}, which records the position of the member registry, is damaged ({why}): a registry that went back is \
             noticed only when the audit or a member shows a later one",
            path.display()
        );
        let remedy = "compare `gravwell-logctl members` with the members that you expect, and revoke again those that \
                      should be revoked; then remove the damaged file, or its renamed copy once the registry is \
                      written again";
        Reason::new(Code::RegisterMarkDamaged, message, remedy)
    }));
    let strangers = shared.members.of_no_authority();
    if let Some((_, authority)) = strangers.first() {
        let names = strangers.iter().take(NAMED_MAX).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!(
            "certificates of {names} are from the certificate authority {authority}, which is unknown here: these \
             members cannot connect"
        );
        let remedy =
            format!("{PUT_TRUST_BACK}; or enroll them again with `enroll NAME --replace` here and `join TOKEN` there");
        reasons.push(Reason::new(Code::AuthorityMissing, message, remedy));
    }
    reasons.extend(shared.audit.damage().map(|damage| {
        let message = format!("record {} of the audit: {}", damage.record, damage.what);
        let remedy = "compare the damaged audit with exported copies and find out who changed it, then run \
                      `gravwell-logctl audit acknowledge` with the record that `audit verify` prints";
        Reason::new(Code::AuditDamaged, message, remedy)
    }));
    reasons.extend(shared.archive.reason());
    reasons.extend(contents_away(shared));
    let twice = shared.members.twice();
    reasons.extend(twice.into_iter().map(|message| Reason::new(Code::ConnectedTwice, message, RUNS_TWICE)));
    reasons
}

/// Reports incomplete blobs of which the rest may be at members that have not answered.
fn contents_away(shared: &DatastoreRef) -> Option<Reason> {
    let (mut count, mut members) = (0, BTreeSet::new());
    for missing in super::blobs::incomplete(shared).into_values() {
        if let Missing::WaitsFor(away) = missing {
            count += 1;
            members.extend(away.into_iter().map(|member| member.to_string()));
        }
    }
    let names = members.into_iter().collect::<Vec<_>>().join(", ");
    let message =
        format!("{count} blobs are incomplete, and members that may have the rest have not answered: {names}");
    let remedy =
        "start these members, or revoke those that will not return; missing chunks are then fetched automatically";
    (count > 0).then(|| Reason::new(Code::ContentsIncomplete, message, remedy))
}

/// Most members that a reason lists.
const NAMED_MAX: usize = 8;
const READ_TRUST: &str = "check the permissions of the file and the limit of open files; leave the file unchanged, \
                          because it may be intact";
const PUT_TRUST_BACK: &str = "stop the datastore and run `gravwell-logctl --data-dir D authority restore FILE \
                              --recovery-key KEY`, where FILE is a member's identity/escrow or a file written by \
                              `authority backup`";
const MAKE_ROOM: &str =
    "free some disk space, or compact; to shrink the audit, which compaction does not, lower Datastore-Audit-Max-MB";
const SET_CLOCK: &str = "set the clock of this host; it is trusted again as soon as a member commits a transaction";
const RUNS_TWICE: &str =
    "the member's directory was copied and both copies run; stop one and join it under another name";

/// Lists the segment files.
pub fn segments(log: &LogReader) -> Vec<SegmentInfo> {
    let info = |segment: gravwell_log::SegmentInfo| {
        let state = match (segment.sealed, segment.compacted) {
            (false, _) => "open",
            (true, true) => "compacted",
            (true, false) => "sealed",
        };
        SegmentInfo {
            file: segment.file,
            first: segment.first,
            last: segment.last,
            bytes: segment.bytes,
            state: state.into(),
            garbage_bytes: segment.garbage_bytes,
        }
    };
    log.segments().into_iter().map(info).collect()
}

/// Calls `visit` with the entries that touch one object, oldest first and reduced to the operations on it, until
/// `visit` breaks. Only one entry is held in memory.
pub fn history(
    log: &LogReader,
    collection: &Collection,
    key: &Key,
    to: Seq,
    mut visit: impl FnMut(Entry) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    for entry in log.history(to) {
        let mut entry = entry?;
        if let EntryBody::Commit(txn) = &mut entry.body {
            txn.ops.retain(|op| op.collection() == collection && op.key() == key);
            if !txn.ops.is_empty() && visit(entry).is_break() {
                break;
            }
        }
    }
    Ok(())
}

/// Returns one object as of an earlier sequence.
pub fn object_at(log: &LogReader, collection: &Collection, key: &Key, at: Seq) -> Result<Option<Row>, ReadError> {
    if at < log.horizon() {
        return Err(ReadError::Compacted { from: at, horizon: log.horizon() });
    }
    let mut last = None;
    history(log, collection, key, at, |entry| {
        last = Some(entry);
        ControlFlow::Continue(())
    })?;
    Ok(last.and_then(|entry| {
        let EntryBody::Commit(txn) = entry.body else { return None };
        match txn.ops.into_iter().next_back() {
            Some(Op::Put { collection, key, value }) => {
                Some(Row::Object { collection, key, version: entry.seq, time_ms: entry.time_ms, value })
            }
            _ => None,
        }
    }))
}

/// A state as of an earlier sequence, in a temporary directory that is deleted on drop.
pub struct PastState {
    /// The rebuilt state.
    pub state: StateStore,
    directory: PathBuf,
}

impl Drop for PastState {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory) {
            tracing::warn!(%error, directory = %self.directory.display(), "failed to remove a temporary directory");
        }
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);
const PAST_PREFIX: &str = "past-";

/// Rebuilds the state as of `at` in a directory under `path`.
///
/// # Errors
/// Returns an error if `at` is below the horizon or the log is corrupt.
pub fn state_at(
    path: &std::path::Path,
    cache_bytes: u64,
    log: &LogReader,
    at: Seq,
    progress: &mut dyn FnMut(&str),
) -> Result<PastState, OpenError> {
    if at < log.horizon() {
        return Err(ReadError::Compacted { from: at, horizon: log.horizon() }.into());
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory = path.join(format!("{PAST_PREFIX}{}-{number}", std::process::id()));
    let state = rebuild_state(&directory, cache_bytes, log, at, progress)?;
    Ok(PastState { state, directory })
}

/// Removes directories left by an interrupted [`state_at`] or trial restore.
pub fn remove_past(path: &std::path::Path) {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let is_left = |name: &str| name.starts_with(PAST_PREFIX) || name == install_marker::REHEARSAL;
    for entry in entries.filter(|entry| is_left(&entry.file_name().to_string_lossy())) {
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// Recomputes the state's digest from the log alone and compares it with the index.
///
/// # Errors
/// Returns an error if the log cannot be read to its end.
pub fn compare_with_log(
    path: &std::path::Path,
    cache_bytes: u64,
    log: &LogReader,
    state: &StateStore,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<String>, OpenError> {
    let Some(meta) = state.meta() else { return Ok(vec!["the state index has no position".into()]) };
    let past = state_at(path, cache_bytes, log, meta.seq, progress)?;
    let Some(replayed) = past.state.meta() else { return Ok(vec!["the log contains no state".into()]) };
    let mut findings = Vec::new();
    let names: BTreeSet<_> = meta.digests.collections.keys().chain(replayed.digests.collections.keys()).collect();
    for name in names {
        let (index, log) = (meta.digests.collections.get(name), replayed.digests.collections.get(name));
        if index != log {
            findings.push(format!("collection {name}: the index has {index:?}, the log results in {log:?}"));
        }
    }
    if meta.digests.origins != replayed.digests.origins {
        findings.push("the origins of the index differ from those of the log".into());
    }
    Ok(findings)
}
