//! The audit: a record of all actions and their authors, separate from the operation log and with its own retention.
//! Compaction does not affect it, and users recorded in it cannot shorten it.

pub(super) mod acts;
mod backlog;
mod damage;
mod derive;
mod rate;
mod reader;
mod registry_progress;
mod resume;
pub mod store;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use gravwell_env::view_fs::ViewFs;
use gravwell_log::{Log, LogReader};
use gravwell_model::codec::admin::Finding;
use gravwell_model::codec::audit::{Act, AuditPage, AuditReport, LogPoint};
use gravwell_model::{MemberName, Seq};
use gravwell_runtime::tasks::shares::Share;
use gravwell_transport::answer::{Failure, damaged, refuse};
use gravwell_transport::trust::AuditMark;

use super::admin::{Caller, run_blocking};
use super::shared::DatastoreRef;
use super::stale_registry::Audited;
use damage::Damage;
use writer::{Acts, Writer};

/// Capacity of the writer thread's queue, in requests.
const QUEUE: usize = 64;
/// Longest wait for a record to become durable. The record may still be written afterwards.
const PATIENCE: Duration = Duration::from_secs(2);

/// Handle to the audit for the other parts of the datastore.
pub(super) struct Audit {
    requests: mpsc::Sender<Acts>,
    /// Moved to the writer thread when it starts.
    received: Mutex<Option<mpsc::Receiver<Acts>>>,
    reader: watch::Sender<Option<LogReader>>,
    /// Whether the audit was compared with the registry's mark.
    is_checked: AtomicBool,
    /// Last entry of the operation log that the audit has recorded.
    covered: watch::Sender<Seq>,
    problem: Mutex<String>,
    /// Unacknowledged corruption record, if this audit replaced a corrupt one.
    damage: Mutex<Option<Damage>>,
    /// Number of acts dropped because too many were queued. Only the number is recorded.
    lost: AtomicU64,
    rates: rate::Rates,
}

impl Audit {
    /// Creates the audit of a log whose entries are readable from `horizon` on. Nothing is opened yet.
    pub(super) fn new(horizon: Seq) -> Audit {
        let (requests, received) = mpsc::channel(QUEUE);
        let (reader, covered) = (watch::channel(None).0, watch::channel(horizon).0);
        let (received, problem, lost) = (Mutex::new(Some(received)), Mutex::default(), AtomicU64::new(0));
        Audit {
            requests,
            received,
            reader,
            is_checked: AtomicBool::new(false),
            covered,
            problem,
            damage: Mutex::default(),
            lost,
            rates: rate::Rates::default(),
        }
    }

    /// Returns the main function of the writer thread, which must be started only once.
    pub(super) fn work(shared: &DatastoreRef) -> impl FnOnce() + Send + 'static {
        let received = shared.audit.received.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shared = Arc::clone(shared);
        let is_new_log = shared.head() == Seq::ZERO;
        move || {
            if let Some(received) = received {
                Writer::new(shared, received, is_new_log).run();
            }
        }
    }

    /// Returns the last recorded entry of the operation log. Compaction does not go beyond it.
    pub(super) fn covered(&self) -> Seq {
        *self.covered.borrow()
    }

    fn set_covered(&self, seq: Seq) {
        self.covered.send_replace(seq);
    }

    fn set_reader(&self, reader: LogReader) {
        self.reader.send_replace(Some(reader));
    }

    fn set_checked(&self) {
        self.is_checked.store(true, Ordering::Release);
    }

    /// Returns the last durable record, once it is known that no unrecorded gap precedes it.
    pub(super) fn mark(&self) -> Option<AuditMark> {
        let is_checked = self.is_checked.load(Ordering::Acquire);
        let reader = self.reader.borrow().clone().filter(|_| is_checked)?;
        let (seq, chain) = reader.head();
        Some(AuditMark { log_id: reader.log_id(), seq, chain: reader::hex(&chain) })
    }

    /// Returns the reason why nothing can be recorded; empty if recording works.
    pub(super) fn problem(&self) -> String {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the unacknowledged corruption record, if any.
    pub(super) fn damage(&self) -> Option<Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_damage(&self, damage: Option<Damage>) {
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = damage;
    }

    /// Stores the problem and returns whether it changed.
    fn set_problem(&self, problem: String) -> bool {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *known != problem;
        *known = problem;
        is_news
    }

    /// Waits, with a timeout, until the audit has recorded the operation log up to `seq`.
    pub(super) async fn wait_covered(&self, seq: Seq) -> bool {
        let mut covered = self.covered.subscribe();
        tokio::time::timeout(PATIENCE, covered.wait_for(|covered| *covered >= seq)).await.is_ok()
    }

    /// Like [`Audit::wait_covered`], on a thread without a runtime.
    pub(super) fn wait_covered_blocking(&self, seq: Seq) {
        let mut covered = self.covered.subscribe();
        let _ = gravwell_env::wait::at_most(PATIENCE, covered.wait_for(|covered| *covered >= seq));
    }

    /// Records an act at the datastore itself. Waits until it is durable, with a timeout; recording continues after
    /// that. If the queue stays full, the act is only counted.
    pub(super) async fn note(&self, member: &MemberName, act: Act) {
        let (reply, recorded) = oneshot::channel();
        let acts = Acts { member: member.clone(), acts: vec![act.bounded()], is_kept: true, acknowledged: None, reply };
        match tokio::time::timeout(PATIENCE, self.requests.send(acts)).await {
            Ok(Ok(())) => drop(tokio::time::timeout(PATIENCE, recorded).await),
            Ok(Err(_)) | Err(_) => self.lose(),
        }
    }

    /// Counts an act that could not be queued; the number is recorded.
    fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// Records an act without waiting. If the queue is full, only the number of dropped acts is recorded.
    pub(super) fn note_soon(&self, member: &MemberName, act: Act) {
        let (reply, _) = oneshot::channel();
        let acts = Acts { member: member.clone(), acts: vec![act.bounded()], is_kept: true, acknowledged: None, reply };
        if self.requests.try_send(acts).is_err() {
            self.lose();
        }
    }

    /// Records acts that a member sent.
    ///
    /// # Errors
    /// Returns an error if they were not recorded; the member sends them again.
    pub(super) async fn receive(&self, member: &MemberName, acts: Vec<Act>) -> Result<(), String> {
        acts.iter().try_for_each(Act::check)?;
        if acts.iter().any(|act| act.kind == registry_progress::KIND) {
            return Err(format!("acts of kind {} are recorded by the datastore only", registry_progress::KIND));
        }
        self.rates.take(member, &acts, Instant::now())?;
        let (reply, recorded) = oneshot::channel();
        let acts = Acts { member: member.clone(), acts, is_kept: false, acknowledged: None, reply };
        let receiving = async {
            self.requests.send(acts).await.map_err(|_| "the datastore is stopping".to_owned())?;
            recorded.await.map_err(|_| "the datastore is stopping".to_owned())?
        };
        tokio::time::timeout(PATIENCE, receiving).await.map_err(|_| "the audit is busy".to_owned())?
    }

    /// Returns whether the datastore was opened read-only, so that no thread writes the audit.
    pub(super) fn is_read_only(&self) -> bool {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// Returns a reader of the audit, whether it is written by this process or opened read-only.
async fn reader_of(shared: &DatastoreRef) -> Result<LogReader, Failure> {
    let opened = shared.audit.reader.borrow().clone();
    if let Some(reader) = opened {
        return Ok(reader);
    }
    if !shared.audit.is_read_only() {
        // The audit is opened in parallel with other parts, so that startup does not wait for it.
        let mut opening = shared.audit.reader.subscribe();
        let opened = tokio::time::timeout(PATIENCE, opening.wait_for(Option::is_some)).await;
        if let Ok(Ok(reader)) = opened.map(|opened| opened.map(|reader| reader.clone()))
            && let Some(reader) = reader
        {
            return Ok(reader);
        }
        let problem = shared.audit.problem();
        let why = if problem.is_empty() { "it is still being opened; try again in a moment".into() } else { problem };
        return Err(refuse(format!("the audit cannot be read: {why}")));
    }
    let (dir, known) = (shared.path.join(store::AUDIT), shared.members.registry().audit_mark().cloned());
    let reader = run_blocking(move || view(dir, known)).await??;
    shared.audit.set_reader(reader.clone());
    Ok(reader)
}

/// Returns the last entry of the operation log recorded by the audit in the data directory `path`, if it can be read, and
/// the last recorded progress of the registry. `local` is the name under which the datastore itself records. Nothing is
/// changed.
pub(super) fn found_in(path: &std::path::Path, local: &MemberName) -> (Option<LogPoint>, Option<Audited>) {
    let (fs, dir) = (Arc::new(ViewFs::default()), path.join(store::AUDIT));
    if !gravwell_log::exists(&*fs, &dir).unwrap_or(false) {
        return (None, None);
    }
    let Ok((log, _)) = Log::open(fs, &dir, store::options()) else { return (None, None) };
    let point = store::covered(&log.reader()).ok().flatten().filter(|point| *point != LogPoint::default());
    (point, registry_progress::last(&log.reader(), local).map(|(audited, _)| audited))
}

fn view(dir: PathBuf, known: Option<AuditMark>) -> Result<LogReader, Failure> {
    let fs = Arc::new(ViewFs::default());
    if !gravwell_log::exists(&*fs, &dir).map_err(refuse)? {
        if let Some(AuditMark { seq, chain, .. }) = known {
            return Err(damaged(format!(
                "the audit in {} is missing: it had records up to {seq}, chain {chain}",
                dir.display()
            )));
        }
        return Err(refuse(format!(
            "there is no audit in {}; the datastore creates one when it starts",
            dir.display()
        )));
    }
    let (log, _) = Log::open(fs, &dir, store::options()).map_err(|error| match error {
        gravwell_log::OpenError::Damaged { first, more } => damaged(format!(
            "{first}{}; run `gravwell-logctl audit verify` for a full list, and keep a copy of {}: the datastore \
             renames a damaged audit when it starts and rebuilds one from the log, which has no logins, joins and \
             reads",
            gravwell_log::further(more),
            dir.display()
        )),
        gravwell_log::OpenError::Io(_) => refuse(error),
    })?;
    Ok(log.reader())
}

/// Returns a page of the audit: frames and the position after them. `room` is held while the page is read, and returned
/// with it.
pub(super) async fn page(
    shared: &DatastoreRef,
    from: Seq,
    since_ms: u64,
    until_ms: u64,
    room: Option<Share>,
) -> Result<(Option<bytes::Bytes>, AuditPage, Option<Share>), Failure> {
    let head = shared.head();
    let reader = reader_of(shared).await?;
    // Include actions that preceded this request.
    let is_whole = shared.audit.covered() >= head || shared.audit.wait_covered(head).await;
    let reading = move || (reader::page(&reader, from, since_ms, until_ms), room);
    let (found, room) = run_blocking(reading).await?;
    let reader::Page { block, horizon } = found.map_err(super::admin::unreadable)?;
    let covered = shared.audit.covered();
    let missing = if is_whole { 0 } else { head.since(covered) };
    let next = block.as_ref().map(|block| block.last);
    let page = AuditPage { next, horizon, covered, missing, problem: shared.audit.problem() };
    Ok((block.map(|block| block.bytes), page, room))
}

/// Records that an administrator acknowledges all corruption and gap records up to `to`.
pub(super) async fn acknowledge(shared: &DatastoreRef, caller: &Caller, to: Seq) -> Result<(), Failure> {
    if shared.audit.is_read_only() {
        return Err(refuse("the audit is open read-only; start the datastore to acknowledge records"));
    }
    let head = reader_of(shared).await?.head().0;
    if to > head || to == Seq::ZERO {
        return Err(refuse(format!("there is no record {to}: the last one is {head}, as `audit verify` prints")));
    }
    let (reply, recorded) = oneshot::channel();
    let acknowledged = Some((to, caller.from.clone()));
    let acts = Acts { member: caller.name.clone(), acts: Vec::new(), is_kept: false, acknowledged, reply };
    let recording = async {
        shared.audit.requests.send(acts).await.map_err(|_| "the datastore is stopping".to_owned())?;
        recorded.await.map_err(|_| "the datastore is stopping".to_owned())?
    };
    let recorded = tokio::time::timeout(PATIENCE, recording).await;
    recorded.unwrap_or_else(|_| Err("the audit is busy; try again".into())).map_err(refuse)
}

/// Verifies the audit, and returns the chain at `at`.
pub(super) async fn verify(shared: &DatastoreRef, at: Option<Seq>) -> Result<AuditReport, Failure> {
    match reader_of(shared).await {
        Ok(reader) => {
            let bytes_max = shared.config.audit_bytes_max;
            // A running datastore has recorded the discrepancy itself.
            let known = shared.members.registry().audit_mark().filter(|_| shared.audit.is_read_only()).cloned();
            let missing = known.and_then(|known| damage::missing(&reader, &known));
            let mut report = run_blocking(move || reader::verify(&reader, at)).await?.map_err(refuse)?;
            report.findings.extend(missing.map(|problem| Finding { place: "audit".into(), offset: None, problem }));
            report.ok = report.findings.is_empty();
            Ok(AuditReport { bytes_max, ..report })
        }
        // If the audit cannot be opened, its files are examined one by one, so that every corrupt location is reported.
        Err(Failure::Request(error)) if error.exit == 3 => {
            let dir = shared.path.join(store::AUDIT);
            run_blocking(move || reader::examine(&dir)).await
        }
        Err(failure) => Err(failure),
    }
}
