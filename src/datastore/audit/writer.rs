//! The thread that writes the audit. It follows the operation log, which has everything that was acknowledged, and
//! receives other acts from a queue. Commits do not wait for it. Entries that could not be recorded, for example
//! because the disk was full, are read from the log later, because compaction waits for the audit.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::shared::DatastoreRef;
use crate::stale_registry::Audited;
use gravwell_env::fs::{first_free, parent_dir};
use gravwell_env::real_fs::RealFs;
use gravwell_env::wait;
use gravwell_model::codec::audit::{Act, AuditEvent, AuditRecord, LogPoint};
use gravwell_model::{MemberName, Seq};
use gravwell_runtime::telemetry;

use super::backlog::Waiting;
use super::damage::{self, Damage};
use super::derive::{Former, OfLog, record};
use super::registry_progress;
use super::resume::{LogNow, resume};
use super::store::{AUDIT, AuditStore, Keep};

/// Most records, and bytes of records, per batch.
const BATCH_RECORDS: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;
/// Time for which entries accumulate before they are written, so that a busy log needs few syncs.
const GATHER: Duration = Duration::from_millis(25);
/// Interval of maintenance, and delay before a retry after a failure.
const TICK: Duration = Duration::from_secs(1);
/// Most buffers of members whose last act is remembered. A member has one buffer, and starts another one if it
/// was lost.
const SEEN_MAX: usize = 4096;

/// Acts to record.
pub(super) struct Acts {
    pub member: MemberName,
    pub acts: Vec<Act>,
    /// Whether the acts are kept in memory if they cannot be written. Otherwise the sender keeps them.
    pub is_kept: bool,
    /// Acknowledgement by an administrator: the last record it covers, and the address or user it came from.
    pub acknowledged: Option<(Seq, String)>,
    /// Receives the result once the acts are durable or have failed.
    pub reply: oneshot::Sender<Result<(), String>>,
}

pub(super) struct Writer {
    shared: DatastoreRef,
    requests: mpsc::Receiver<Acts>,
    store: Option<AuditStore>,
    former: Former,
    /// Acts without a waiting sender that could not be written yet.
    waiting: Waiting,
    /// Number of the last act from each incarnation of each member's buffer.
    seen: HashMap<(MemberName, String), u64>,
    tried: Option<Instant>,
    /// Last recorded progress of the registry, and the number of its record.
    registered: Option<(Audited, Seq)>,
    /// Whether the log had no entries when this process started.
    is_new_log: bool,
}

impl Writer {
    pub(super) fn new(shared: DatastoreRef, requests: mpsc::Receiver<Acts>, is_new_log: bool) -> Writer {
        let (waiting, seen) = (Waiting::default(), HashMap::new());
        let (store, former, tried, registered) = (None, Former::default(), None, None);
        Writer { shared, requests, store, former, waiting, seen, tried, registered, is_new_log }
    }

    /// Runs until the datastore stops, and then records pending entries and acts.
    pub(super) fn run(mut self) {
        let mut stopping = self.shared.stopping.subscribe();
        let mut applied = self.shared.applied.subscribe();
        applied.mark_changed();
        let mut kept = Instant::now();
        self.open_waiting();
        loop {
            let waiting = async {
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => Wake::Stop,
                    Some(acts) = self.requests.recv() => Wake::Acts(acts),
                    Ok(()) = applied.changed() => Wake::Applied,
                }
            };
            let wake = wait::at_most(TICK, waiting);
            let is_last = matches!(wake, Some(Wake::Stop));
            if matches!(wake, Some(Wake::Applied)) {
                std::thread::sleep(GATHER);
            }
            applied.mark_unchanged();
            self.work(if let Some(Wake::Acts(acts)) = wake { Some(acts) } else { None });
            if kept.elapsed() >= TICK || is_last {
                kept = Instant::now();
                self.keep_house();
            }
            if is_last {
                return self.close();
            }
        }
    }

    /// Records pending entries and acts.
    fn work(&mut self, first: Option<Acts>) {
        let mut asked: Vec<Acts> = first.into_iter().collect();
        while asked.len() < 64
            && let Ok(acts) = self.requests.try_recv()
        {
            asked.push(acts);
        }
        let rests = self.tried.is_some_and(|tried| tried.elapsed() < TICK);
        let recorded = match rests {
            true => Err(self.shared.audit.problem()),
            false => self.open().and_then(|()| self.record_acts(&asked)),
        };
        // The reply concerns only the acts, not the entries.
        for acts in asked {
            if recorded.is_err() && acts.is_kept {
                let lost = self.waiting.keep(&acts.member, acts.acts);
                self.shared.audit.lost.fetch_add(lost, Ordering::Relaxed);
            }
            let _ = acts.reply.send(recorded.clone());
        }
        match recorded.and_then(|()| self.catch_up()).and_then(|()| self.record_register()) {
            Ok(()) => {
                self.tried = None;
                self.shared.audit.set_problem(String::new());
            }
            Err(error) if !rests => self.fail(&error),
            Err(_) => {}
        }
    }

    /// Opens the file for waiting acts and loads those left by an earlier process.
    fn open_waiting(&mut self) {
        match self.waiting.open(&self.shared.path) {
            Ok(None) => {}
            Ok(Some(aside)) => {
                tracing::error!(kept = %aside.display(), "failed to read pending audit acts; kept the file");
                let what = format!("pending acts cannot be read; the file is kept as {}", aside.display());
                let act = Act {
                    kind: "gap".into(),
                    happened_ms: self.shared.commit_time(),
                    what,
                    count: 1,
                    ..Act::default()
                };
                let lost = self.waiting.keep(&self.shared.local, vec![act.bounded()]);
                self.shared.audit.lost.fetch_add(lost, Ordering::Relaxed);
            }
            Err(error) => tracing::debug!(%error, "no space for pending audit acts"),
        }
    }

    fn fail(&mut self, error: &str) {
        telemetry::metrics::audit_write_failure();
        self.tried = Some(Instant::now());
        // The remembered values may be ahead of the recorded entries.
        self.former = Former::default();
        if self.shared.audit.set_problem(error.to_owned()) {
            tracing::error!(error, "failed to write the audit; it will catch up from the log");
        }
    }

    /// Opens the audit if it is not open. A corrupt one is renamed, and its replacement records that.
    fn open(&mut self) -> Result<(), String> {
        if self.store.as_ref().is_some_and(|store| !store.is_lost()) {
            return Ok(());
        }
        self.store = None;
        let dir = self.shared.path.join(AUDIT);
        let keep = Keep { ms: self.shared.config.audit_ms(), bytes: self.shared.config.audit_bytes_max };
        let opened = AuditStore::open(Arc::new(RealFs), &dir, keep);
        let (store, aside) = match opened {
            Err(error) if error.is_damage() => {
                let aside = set_aside(&dir).map_err(|io| format!("{error}; it cannot be renamed: {io}"))?;
                tracing::error!(%error, kept = %aside.display(), "audit is damaged; renamed it and started a new one");
                (AuditStore::open(Arc::new(RealFs), &dir, keep).map_err(text)?, Some((aside, error)))
            }
            opened => (opened.map_err(text)?, None),
        };
        self.seen = super::reader::seen(&store.reader());
        self.registered = registry_progress::last(&store.reader(), &self.shared.local);
        self.shared.audit.set_reader(store.reader());
        let known = self.shared.members.registry().audit_mark().cloned();
        let missing = known.filter(|_| aside.is_none()).and_then(|known| damage::missing(&store.reader(), &known));
        if let Some(missing) = &missing {
            tracing::error!(missing, "audit does not match the member registry");
        }
        self.store = Some(store);
        let damaged =
            aside.map(|(aside, error)| format!("the audit was damaged ({error}) and is kept as {}", aside.display()));
        self.resume(damaged.or(missing))?;
        self.check_for_damage();
        // From now on the registry may record the position of this audit.
        self.shared.audit.set_checked();
        self.shared.save_members();
        Ok(())
    }

    fn check_for_damage(&self) {
        let Some(store) = &self.store else { return };
        self.say_damage(damage::find(&self.shared.path, &store.reader()));
    }

    fn say_damage(&self, damage: Option<Damage>) {
        if let (Some(store), Some(damage)) = (&self.store, &damage)
            && let Err(error) = damage::note(&self.shared.path, &store.reader(), damage)
        {
            tracing::warn!(%error, "failed to store the damage record of the audit");
        }
        self.shared.audit.set_damage(damage);
    }

    /// Stores next to the audit that corruption and gap records up to `to` were acknowledged.
    fn acknowledged(&self, to: Seq) {
        let Some(store) = &self.store else { return };
        if let Err(error) = damage::acknowledge(&self.shared.path, &store.reader(), to) {
            tracing::warn!(%error, "failed to store the acknowledgement of audit damage; it is lost at the next start");
        }
        self.shared.audit.set_damage(self.shared.audit.damage().filter(|damage| damage.record > to));
    }

    /// Determines where to continue in the operation log, and records the discontinuity, if any.
    fn resume(&mut self, damaged: Option<String>) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        let covered = store.covered();
        // The audit is evidence of a lost log. If it followed the present log, that evidence would be overwritten.
        if let Some(point) = covered.filter(|_| self.shared.audit_shows.is_some() && damaged.is_none()) {
            self.shared.audit.set_covered(point.seq);
            return Ok(());
        }
        let log = self.of_log();
        let now = LogNow::of(&self.shared.log, covered).map_err(text)?;
        let resumed = resume(covered, &now, self.is_new_log);
        let chain = self.shared.log.chain_at(resumed.from).map_err(text)?.unwrap_or_default();
        let point = log.point(resumed.from, chain);
        let happened_ms = self.shared.commit_time();
        let act =
            |what: String| Act { kind: damage::KIND.into(), happened_ms, what, count: 1, ..Act::default() }.bounded();
        let said = damaged.clone().map(|what| AuditEvent::Act(act(what)));
        let events: Vec<AuditEvent> = said.into_iter().chain(resumed.said).collect();
        let count = events.len() as u64;
        let local = self.shared.local.clone();
        self.append(events.into_iter().map(|event| (local.clone(), event)).collect(), point)?;
        self.shared.audit.set_covered(point.seq);
        if let (Some(what), Some(store)) = (damaged, &self.store) {
            let record = Seq(store.reader().head().0.0.saturating_sub(count) + 1);
            self.say_damage(Some(Damage { record, what }));
        }
        Ok(())
    }

    fn of_log(&self) -> OfLog {
        OfLog { log_id: self.shared.log.log_id(), generation: self.shared.log.generation() }
    }

    fn covered(&self) -> LogPoint {
        let store = self.store.as_ref().and_then(AuditStore::covered);
        store.unwrap_or_else(|| self.of_log().point(self.shared.audit.covered(), Default::default()))
    }

    fn append(&mut self, events: Vec<(MemberName, AuditEvent)>, covered: LogPoint) -> Result<(), String> {
        let time_ms = self.shared.commit_time();
        let record = |(member, event)| AuditRecord { time_ms, member, covered, event };
        self.append_records(&events.into_iter().map(record).collect::<Vec<_>>())
    }

    fn append_records(&mut self, records: &[AuditRecord]) -> Result<(), String> {
        let Some(store) = self.store.as_mut() else { return Err("the audit is not open".into()) };
        let seq = store.append(records).map_err(text)?;
        telemetry::metrics::audit(seq);
        Ok(())
    }

    /// Records waiting acts, then the requested ones. Acts that are already recorded are skipped.
    fn record_acts(&mut self, asked: &[Acts]) -> Result<(), String> {
        let local = self.shared.local.clone();
        let lost_count = self.shared.audit.lost.load(Ordering::Relaxed);
        let count = lost_count + self.waiting.lost_before();
        let lost = (count > 0).then(|| {
            let what = "acts were not recorded, because too many were pending".to_owned();
            let happened_ms = self.shared.commit_time();
            (local, Act { kind: "gap".into(), happened_ms, what, count, ..Act::default() })
        });
        let acknowledging = asked.iter().filter_map(|acts| Some((&acts.member, acts.acknowledged.as_ref()?)));
        let acknowledging: Vec<_> = acknowledging.collect();
        let asked = asked.iter().flat_map(|acts| acts.acts.iter().map(|act| (acts.member.clone(), act.clone())));
        let all: Vec<_> = self.waiting.acts().cloned().chain(lost).chain(asked).collect();
        let mut seen = HashMap::new();
        let mut events = Vec::with_capacity(all.len());
        for (member, act) in all {
            if let Some((life, number)) = super::reader::number(&act) {
                let place = (member.clone(), life.to_owned());
                let last = seen.get(&place).or_else(|| self.seen.get(&place)).copied().unwrap_or(0);
                if number <= last {
                    continue;
                }
                seen.insert(place, number);
            }
            events.push((member, AuditEvent::Act(act)));
        }
        events.extend(
            acknowledging.iter().map(|(member, (to, from))| {
                ((*member).clone(), AuditEvent::Acknowledged { to: *to, from: from.clone() })
            }),
        );
        if events.is_empty() {
            self.waiting.clear();
            return Ok(());
        }
        self.append(events, self.covered())?;
        if self.seen.len() > SEEN_MAX {
            self.seen.clear();
        }
        self.seen.extend(seen);
        self.waiting.clear();
        self.shared.audit.lost.fetch_sub(lost_count, Ordering::Relaxed);
        acknowledging.iter().for_each(|(_, (to, _))| self.acknowledged(*to));
        Ok(())
    }

    /// Records the entries that the state has applied, in batches.
    fn catch_up(&mut self) -> Result<(), String> {
        loop {
            let from = self.shared.audit.covered();
            let snapshot = self.shared.state.snapshot().map_err(text)?;
            let to = snapshot.meta().map_or(from, |meta| meta.seq);
            if to <= from {
                return Ok(());
            }
            if self.former.is_new() {
                self.former.begin(snapshot.clone());
            }
            self.record_entries(from, to)?;
            self.former.begin(snapshot);
        }
    }

    fn record_entries(&mut self, from: Seq, to: Seq) -> Result<(), String> {
        let log = self.of_log();
        let (mut records, mut bytes) = (Vec::new(), 0);
        for entry in self.shared.log.clone().chained_entries(from, to) {
            let (entry, chain) = entry.map_err(text)?;
            let made = record(&entry, chain, log, &mut self.former).map_err(text)?;
            bytes += weight(&made);
            records.push(made);
            if records.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES {
                self.append_entries(&mut records)?;
                bytes = 0;
            }
        }
        self.append_entries(&mut records)
    }

    fn append_entries(&mut self, records: &mut Vec<AuditRecord>) -> Result<(), String> {
        self.append_records(records)?;
        if let Some(last) = records.last() {
            self.shared.audit.set_covered(last.covered.seq);
        }
        records.clear();
        Ok(())
    }

    /// Records the progress of the registry, if it is another one than the last recorded.
    fn record_register(&mut self) -> Result<(), String> {
        let Some(store) = &self.store else { return Ok(()) };
        let Some(audited) = self.shared.members.audited() else { return Ok(()) };
        let reader = store.reader();
        let is_recorded =
            |(known, seq): &(Audited, Seq)| *known == audited && !registry_progress::is_due_again(&reader, *seq);
        if self.registered.as_ref().is_some_and(is_recorded) {
            return Ok(());
        }
        let act = registry_progress::act(&audited, self.shared.commit_time());
        let local = self.shared.local.clone();
        self.append(vec![(local, AuditEvent::Act(act))], self.covered())?;
        self.registered = Some((audited, reader.head().0));
        Ok(())
    }

    fn keep_house(&mut self) {
        self.open_waiting();
        let behind = self.shared.head().since(self.shared.audit.covered());
        telemetry::metrics::audit_behind(behind);
        let (now_ms, local) = (self.shared.commit_time(), self.shared.local.clone());
        match self.store.as_mut().map(|store| store.keep_house(now_ms, &local)) {
            Some(Ok(Some(carried))) => self.say_damage(Some(carried)),
            Some(Err(error)) => {
                telemetry::metrics::audit_write_failure();
                tracing::warn!(%error, "failed to remove old audit records or to write the audit's head");
            }
            _ => {}
        }
        if let Some(store) = &self.store {
            telemetry::metrics::audit_bytes(store.bytes(), self.shared.config.audit_bytes_max);
        }
    }

    fn close(self) {
        if let Some(store) = self.store
            && let Err(error) = store.close()
        {
            tracing::warn!(%error, "audit was not closed cleanly; recorded acts are durable");
        }
    }
}

enum Wake {
    Stop,
    Acts(Acts),
    Applied,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Estimates the size of a record, in bytes.
fn weight(record: &AuditRecord) -> usize {
    match &record.event {
        AuditEvent::Commit { note, ops, .. } => {
            let value = |value: &gravwell_model::codec::audit::Value| match value {
                gravwell_model::codec::audit::Value::Json(json) => json.len(),
                _ => 0,
            };
            let op =
                |op: &gravwell_model::codec::audit::AuditOp| op.key.len() + value(&op.before) + value(&op.after) + 32;
            note.len() + ops.iter().map(op).sum::<usize>() + 128
        }
        _ => 256,
    }
}

/// Renames a corrupt audit, so that its data is kept and a new one can be created.
fn set_aside(dir: &std::path::Path) -> std::io::Result<PathBuf> {
    let aside = first_free(|number| dir.with_extension(format!("damaged-{number}")));
    let aside = aside.ok_or(std::io::ErrorKind::AlreadyExists)?;
    std::fs::rename(dir, &aside)?;
    std::fs::File::open(parent_dir(dir))?.sync_all()?;
    Ok(aside)
}
