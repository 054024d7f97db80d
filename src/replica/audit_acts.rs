//! Audit acts of a member that are no transactions, such as failed logins, on their way to the datastore's audit log.
//!
//! They wait in a separate journal until the datastore has them durably. The journal is bounded: while the datastore is
//! unreachable for long, the user with the most acts has the latest of them merged into one that counts them, so nobody
//! hides acts of others. Each act has a unique number, so that one that is sent again after a lost answer is recorded
//! once.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use gravwell_env::entropy::{Entropy, SystemEntropy};
use gravwell_env::fs::Fs;
use gravwell_env::real_fs::RealFs;
use gravwell_env::{Clock, SystemClock};
use gravwell_log::journal::{Journal, JournalEntry, JournalError};
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::audit::Act;
use gravwell_runtime::telemetry::{self, log_rate_limit::LogRateLimit};

use super::{Replica, RequestError};

/// Directory of the journal within a replica's directory.
pub const ACTS: &str = "acts";
/// Most acts that wait in memory for the task that writes them.
const QUEUE: usize = 1024;
/// Most acts, and most bytes of them, that wait for the datastore.
const WAITING_MAX: usize = 10_000;
const WAITING_BYTES_MAX: usize = 8 << 20;
/// Bytes of acts in one request: more than the largest act, and less than a member may send in one request.
const BATCH_BYTES: usize = 40 << 10;
/// Acts that arrive within this time are written and sent together.
const GATHER: Duration = Duration::from_millis(100);
/// Delay after a failed request.
const AGAIN: Duration = Duration::from_secs(2);
/// The journal is rewritten when it exceeds twice the waiting acts by this much.
const WASTE_BYTES_MAX: u64 = 1 << 20;
/// Most numbers that may be missing from a corrupt journal although they were assigned.
const NUMBERS_IN_DOUBT: u64 = 1 << 32;

/// Description of an act that counts several.
const MERGED: &str = "more actions than are kept apart while the datastore is unreachable";
/// Kinds of acts that clients cause who are not identified; the user is the one whose name they enter.
const OF_STRANGERS: &str = "login";
/// Kind of an act that reports missing ones.
const GAP: &str = "gap";

/// Kinds of records in the journal.
const LIFE: u8 = 16;
const WAITS: u8 = 17;
const LOST: u8 = 18;
const SENT: u8 = 19;

static TROUBLE: LogRateLimit = LogRateLimit::new();

/// An act with its number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Numbered {
    /// Lifetime within which the number is unique; empty in records of earlier versions, which use that of the journal.
    #[serde(default)]
    life: String,
    number: u64,
    act: Act,
}

/// Dropped acts: how many, and the number of the last one, under which the gap is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lost {
    #[serde(default)]
    life: String,
    count: u64,
    last: u64,
}

/// Lifetime from one opening of the journal to the next, and the number of the next act. An act that was sent without
/// having been written, as on a full disk, has its number in no journal: later acts must not be mistaken for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Incarnation {
    id: String,
    next: u64,
}

/// Accepts acts; cheap to clone.
#[derive(Clone, Debug)]
pub struct Acts {
    to: mpsc::Sender<Act>,
    missed: Arc<AtomicU64>,
}

impl Acts {
    /// Returns a handle and the receiver of its acts.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn for_tests() -> (Acts, mpsc::Receiver<Act>) {
        let (to, from) = mpsc::channel(QUEUE * 8);
        (Acts { to, missed: Arc::default() }, from)
    }

    /// Queues an act to be recorded. Never waits: acts that come faster than they can be written are only counted.
    pub fn note(&self, act: Act) {
        if self.to.try_send(act.bounded()).is_err() {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Acts that wait for the datastore, and their journal.
struct Waiting {
    journal: Option<Journal>,
    life: Incarnation,
    acts: VecDeque<Numbered>,
    bytes: usize,
    lost: Lost,
}

/// The task that writes acts down and sends them.
pub struct Sending {
    from: mpsc::Receiver<Act>,
    missed: Arc<AtomicU64>,
    directory: PathBuf,
}

/// Returns both ends of the queue for acts at the replica in `directory`. Nothing is opened before [`Sending::run`].
#[must_use]
pub fn channel(directory: &Path) -> (Acts, Sending) {
    let (to, from) = mpsc::channel(QUEUE);
    let missed = Arc::new(AtomicU64::new(0));
    (Acts { to, missed: Arc::clone(&missed) }, Sending { from, missed, directory: directory.join(ACTS) })
}

fn random_id() -> Result<String, JournalError> {
    let mut id = [0; 8];
    let drawn = SystemEntropy.fill(&mut id);
    drawn.map_err(gravwell_log::IoFailure::at("draw random bytes for", ACTS))?;
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn encode<T: Serialize>(kind: u8, value: &T) -> JournalEntry {
    (kind, serde_json::to_vec(value).expect("invariant: encoding into memory cannot fail"))
}

impl Waiting {
    /// Opens the journal. A corrupt one is kept next to a new one, and a gap is recorded.
    fn open(fs: Arc<dyn Fs>, directory: PathBuf) -> Result<Waiting, JournalError> {
        match Waiting::load(Arc::clone(&fs), &directory) {
            Err(JournalError::Damaged(damage)) => {
                let kept = Journal::accept_loss(&fs, &directory)?;
                tracing::error!(%damage, kept, "journal of audit reports corrupt; kept the files");
                let mut waiting = Waiting::load(fs, &directory)?;
                // The datastore knows numbers assigned after the remaining records, and would take new acts with them
                // for known ones.
                waiting.life.next = waiting.life.next.saturating_add(NUMBERS_IN_DOUBT);
                waiting.rewrite();
                let what = format!("pending audit reports of this member may be missing: {damage}");
                waiting.take(vec![gap(what, 1)]);
                Ok(waiting)
            }
            loaded => loaded,
        }
    }

    fn load(fs: Arc<dyn Fs>, directory: &Path) -> Result<Waiting, JournalError> {
        let (journal, records) = Journal::open(fs, directory)?;
        let life = Incarnation { id: random_id()?, next: 1 };
        let is_new = !records.iter().any(|record| record.kind == LIFE);
        let (acts, lost) = (VecDeque::new(), Lost::default());
        let mut waiting = Waiting { journal: Some(journal), life, acts, bytes: 0, lost };
        for record in records {
            waiting.replay(record.kind, &record.payload);
        }
        waiting.life.id = random_id()?;
        if is_new {
            waiting.rewrite();
        }
        Ok(waiting)
    }

    /// Replays a record. Kinds of later versions are skipped: that does less harm than recording acts twice.
    fn replay(&mut self, kind: u8, payload: &[u8]) {
        match kind {
            LIFE => {
                if let Ok(life) = serde_json::from_slice(payload) {
                    self.life = life;
                }
            }
            WAITS => {
                if let Ok(mut numbered) = serde_json::from_slice::<Numbered>(payload) {
                    self.life.next = self.life.next.max(numbered.number + 1);
                    if numbered.life.is_empty() {
                        numbered.life.clone_from(&self.life.id);
                    }
                    self.bytes += weight(&numbered.act);
                    self.acts.push_back(numbered);
                }
            }
            LOST => {
                if let Ok(lost) = serde_json::from_slice::<Lost>(payload) {
                    let life = if lost.life.is_empty() { self.life.id.clone() } else { lost.life.clone() };
                    self.lost = Lost { life, ..lost };
                }
                self.life.next = self.life.next.max(self.lost.last + 1);
                self.drop_to(self.lost.last);
            }
            SENT => {
                let number = serde_json::from_slice(payload).unwrap_or(0);
                self.life.next = self.life.next.max(number + 1);
                self.sent_to(number);
            }
            _ => {}
        }
    }

    fn drop_to(&mut self, number: u64) {
        while self.acts.front().is_some_and(|act| act.number <= number) {
            self.bytes -= self.acts.pop_front().map_or(0, |act| weight(&act.act));
        }
    }

    fn sent_to(&mut self, number: u64) {
        if self.lost.last <= number {
            self.lost = Lost::default();
        }
        self.drop_to(number);
    }

    /// Takes acts and makes them durable. If the disk does not allow that, they wait in memory.
    fn take(&mut self, acts: Vec<Act>) {
        let mut records = Vec::with_capacity(acts.len());
        for act in acts {
            let numbered = Numbered { life: self.life.id.clone(), number: self.life.next, act };
            self.life.next += 1;
            records.push(encode(WAITS, &numbered));
            self.bytes += weight(&numbered.act);
            self.acts.push_back(numbered);
        }
        self.merge();
        let before = self.lost.clone();
        while self.is_too_much() {
            let Some(oldest) = self.acts.pop_front() else { break };
            self.bytes -= weight(&oldest.act);
            let count = self.lost.count + oldest.act.count.max(1);
            self.lost = Lost { life: oldest.life, count, last: oldest.number };
        }
        if self.lost != before {
            records.push(encode(LOST, &self.lost));
        }
        self.write(&records);
    }

    fn is_too_much(&self) -> bool {
        self.acts.len() > WAITING_MAX || self.bytes > WAITING_BYTES_MAX
    }

    /// Merges the latest acts of whoever has most of them until the others fit. An act is merged into the next one, which
    /// is sent later, so that the journal need not record it: after a crash the acts are merged again.
    fn merge(&mut self) {
        if !self.is_too_much() {
            return;
        }
        let mut causes: HashMap<Cause, (usize, usize)> = HashMap::new();
        for numbered in &self.acts {
            let (bytes, count) = causes.entry(cause(&numbered.act)).or_default();
            *bytes += weight(&numbered.act);
            *count += 1;
        }
        while self.is_too_much() {
            let several = causes.iter_mut().filter(|(_, (_, count))| *count > 1);
            let Some((most, (bytes, count))) = several.max_by_key(|(_, (bytes, _))| *bytes) else { return };
            let mut latest = (0..self.acts.len()).rev().filter(|at| cause(&self.acts[*at].act) == *most);
            let (Some(last), Some(at)) = (latest.next(), latest.next()) else { return };
            let Some(Numbered { act: former, .. }) = self.acts.remove(at) else { return };
            // The act at `last` has moved by one.
            let act = &mut self.acts[last - 1].act;
            let before = weight(&former) + weight(act);
            // Gaps are merged only if their texts are the same: the text names what is missing, and why.
            if act.kind != GAP {
                MERGED.clone_into(&mut act.what);
            }
            act.count = act.count.max(1) + former.count.max(1);
            let Act { kind, user, from, by, .. } = former;
            for (text, former) in
                [(&mut act.kind, kind), (&mut act.user, user), (&mut act.from, from), (&mut act.by, by)]
            {
                if *text != former {
                    text.clear();
                }
            }
            if act.kind.is_empty() {
                act.kind = "several".into();
            }
            let freed = before.saturating_sub(weight(act));
            (*bytes, *count) = (bytes.saturating_sub(freed), *count - 1);
            self.bytes -= freed;
        }
    }

    fn write(&mut self, records: &[JournalEntry]) {
        let Some(journal) = self.journal.as_mut() else { return };
        if let Err(error) = journal.append(records).and_then(|()| journal.sync()) {
            trouble(&error);
            if matches!(error, JournalError::Poisoned) {
                self.journal = None;
            }
            return;
        }
        if journal.bytes() > self.bytes as u64 * 2 + WASTE_BYTES_MAX {
            self.rewrite();
        }
    }

    /// Rewrites the journal with the waiting acts.
    fn rewrite(&mut self) {
        let lost = (self.lost.count > 0).then(|| encode(LOST, &self.lost));
        let acts = self.acts.iter().map(|act| encode(WAITS, act));
        let records: Vec<_> = std::iter::once(encode(LIFE, &self.life)).chain(lost).chain(acts).collect();
        if let Some(Err(error)) = self.journal.as_mut().map(|journal| journal.replace_with(&records)) {
            trouble(&error);
        }
    }

    /// Returns the acts to send next, and the number of the last one; `None` if none wait.
    fn batch(&self) -> Option<(Vec<Act>, u64)> {
        let lost = (self.lost.count > 0).then(|| Numbered {
            life: self.lost.life.clone(),
            number: self.lost.last,
            act: gap(
                "audit reports of this member were discarded because the datastore was unreachable for too long".into(),
                self.lost.count,
            ),
        });
        let (mut acts, mut last, mut bytes) = (Vec::new(), 0, 0);
        for Numbered { life, number, act } in lost.iter().chain(&self.acts) {
            let act = Act { id: format!("{life}/{number}"), ..act.clone() };
            bytes += serde_json::to_vec(&act).map_or(0, |json| json.len() + 1);
            if bytes > BATCH_BYTES && !acts.is_empty() {
                break;
            }
            acts.push(act);
            last = *number;
        }
        (!acts.is_empty()).then_some((acts, last))
    }

    /// Records that the datastore has everything up to a number.
    fn sent(&mut self, number: u64) {
        self.sent_to(number);
        self.write(&[encode(SENT, &number)]);
    }
}

fn gap(what: String, count: u64) -> Act {
    Act { kind: GAP.into(), happened_ms: SystemClock.now_ms(), what, count, ..Act::default() }.bounded()
}

/// Cause of an act.
#[derive(PartialEq, Eq, Hash)]
enum Cause {
    /// A user, if one is identified.
    User(Option<i32>),
    /// Unidentified clients who entered the name of a user.
    Strangers(Option<i32>),
    /// This member, which lacks acts for the reason in the text.
    Gap(String),
}

fn cause(act: &Act) -> Cause {
    match act.kind.as_str() {
        GAP => Cause::Gap(act.what.clone()),
        kind if kind.starts_with(OF_STRANGERS) => Cause::Strangers(act.uid),
        _ => Cause::User(act.uid),
    }
}

/// Estimates the bytes of an act.
fn weight(act: &Act) -> usize {
    act.kind.len() + act.user.len() + act.by.len() + act.from.len() + act.what.len() + 128
}

fn trouble(error: &dyn std::fmt::Display) {
    telemetry::metrics::audit_write_failure();
    if let Some(left_out) = TROUBLE.note() {
        tracing::warn!(%error, left_out, "failed to write audit reports; they wait in memory");
    }
}

impl Sending {
    /// Writes acts down and sends them until all handles are dropped.
    pub async fn run(self, replica: Replica) {
        let Sending { mut from, missed, directory } = self;
        let mut waiting = opened(directory).await;
        let mut rests_until: Option<tokio::time::Instant> = None;
        loop {
            let until = rests_until.unwrap_or_else(tokio::time::Instant::now);
            let arrived = match waiting.batch() {
                None => Some(from.recv().await),
                Some(_) => tokio::time::timeout_at(until, from.recv()).await.ok(),
            };
            let mut acts = match arrived {
                Some(None) => return,
                Some(Some(act)) => {
                    tokio::time::sleep(GATHER).await;
                    vec![act]
                }
                None => Vec::new(),
            };
            while acts.len() < QUEUE
                && let Ok(act) = from.try_recv()
            {
                acts.push(act);
            }
            let count = missed.swap(0, Ordering::Relaxed);
            acts.extend(
                (count > 0).then(|| gap("audit reports arrived faster than they could be written".into(), count)),
            );
            if !acts.is_empty() {
                waiting = run_blocking(waiting, move |waiting| waiting.take(acts)).await;
            }
            if rests_until.is_some_and(|until| until > tokio::time::Instant::now()) {
                continue;
            }
            let Some((batch, last)) = waiting.batch() else { continue };
            match replica.request_from_datastore(&Request::AuditActs { acts: batch }).await {
                Ok(_) => {
                    rests_until = None;
                    waiting = run_blocking(waiting, move |waiting| waiting.sent(last)).await;
                }
                Err(error) => {
                    if !matches!(error, RequestError::Away) {
                        tracing::debug!(%error, "failed to send audit reports to the datastore; will retry");
                    }
                    rests_until = Some(tokio::time::Instant::now() + AGAIN);
                }
            }
        }
    }
}

/// Opens the journal as soon as the operating system allows it.
async fn opened(directory: PathBuf) -> Waiting {
    loop {
        let directory = directory.clone();
        let opening = tokio::task::spawn_blocking(move || Waiting::open(Arc::new(RealFs), directory));
        match opening.await {
            Ok(Ok(waiting)) => return waiting,
            Ok(Err(error)) => trouble(&error),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Runs work that waits for the disk on a blocking thread.
async fn run_blocking(mut waiting: Waiting, work: impl FnOnce(&mut Waiting) + Send + 'static) -> Waiting {
    let working = tokio::task::spawn_blocking(move || {
        work(&mut waiting);
        waiting
    });
    match working.await {
        Ok(waiting) => waiting,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_env::memory_fs::{MemoryFs, Survival};

    fn act(number: usize) -> Act {
        Act { kind: "login-failed".into(), what: format!("number {number}"), count: 1, ..Act::default() }
    }

    fn open(fs: &MemoryFs) -> Waiting {
        Waiting::open(Arc::new(fs.clone()), PathBuf::from("/acts")).expect("opens")
    }

    /// Sends everything. Returns the acts that were sent.
    fn drain(waiting: &mut Waiting) -> Vec<Act> {
        let mut all = Vec::new();
        while let Some((acts, last)) = waiting.batch() {
            all.extend(acts);
            waiting.sent(last);
        }
        all
    }

    #[test]
    fn acts_wait_over_a_crash_and_keep_their_numbers() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        waiting.take((0..5).map(act).collect());
        let (first, _) = waiting.batch().expect("a batch");
        let fs = fs.crash(Survival::Nothing, 1);
        let mut waiting = open(&fs);
        assert_eq!(waiting.batch().expect("a batch").0, first, "the same numbers");
        assert_eq!(drain(&mut waiting), first);
        let fs = fs.crash(Survival::Nothing, 1);
        let mut waiting = open(&fs);
        assert!(waiting.batch().is_none(), "reports that were sent are not sent again");
        waiting.take(vec![act(9)]);
        let (next, last) = waiting.batch().expect("a batch");
        assert!(last == 6 && next[0].id.ends_with("/6"), "{next:?}");
    }

    #[test]
    fn an_act_sent_without_being_written_is_not_confused_with_later_acts() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        waiting.take(vec![act(1)]);
        let mut sent = drain(&mut waiting);
        // As on a disk that accepts no more writes.
        waiting.journal = None;
        waiting.take((2..50).map(act).collect());
        sent.extend(drain(&mut waiting));
        let mut waiting = open(&fs.crash(Survival::Nothing, 1));
        waiting.take((50..90).map(act).collect());
        let later = drain(&mut waiting);
        assert_eq!(later.len(), 40);
        assert!(later.iter().all(|later| sent.iter().all(|sent| sent.id != later.id)), "{later:?}");
    }

    #[test]
    fn p14_who_causes_many_acts_hides_none_of_others_and_stays_counted() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        let download = |uid: i32, number: usize| Act {
            kind: "download".into(),
            uid: Some(uid),
            user: format!("u{uid}"),
            from: format!("192.0.2.{}", number % 2),
            ..act(number)
        };
        let guess = Act { uid: Some(1), user: "admin".into(), ..act(0) };
        waiting.take(vec![download(7, 0), guess.clone()]);
        for begin in (0..WAITING_MAX + 500).step_by(500) {
            waiting.take((begin..begin + 500).map(|number| download(8, number)).collect());
            waiting.take(vec![act(begin)]);
        }
        waiting = open(&fs.crash(Survival::Nothing, 1));
        waiting.take(vec![download(7, 1)]);
        let sent = drain(&mut waiting);
        assert_eq!(sent.len(), WAITING_MAX);
        let is = |act: &Act, other: &Act| Act { id: String::new(), ..act.clone() } == *other;
        for other in [download(7, 0), guess, act(0), act(500), download(7, 1), download(8, 0)] {
            assert!(sent.iter().any(|act| is(act, &other)), "{other:?}");
        }
        let of_greedy: Vec<&Act> = sent.iter().filter(|act| act.uid == Some(8)).collect();
        assert_eq!(of_greedy.iter().map(|act| act.count).sum::<u64>(), (WAITING_MAX + 500) as u64);
        let merged = of_greedy.last().expect("some");
        assert_eq!((merged.user.as_str(), merged.what.as_str(), merged.from.as_str()), ("u8", MERGED, ""));
        let numbers = sent.iter().map(|act| act.id.rsplit_once('/').expect("id").1.parse().expect("a number"));
        assert!(numbers.collect::<Vec<u64>>().is_sorted());
        assert!(waiting.journal.as_ref().expect("a journal").bytes() < 8 << 20);
    }

    #[test]
    fn the_oldest_give_way_and_their_number_is_told_if_each_has_another_cause() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        let of = |number: usize| Act { uid: i32::try_from(number).ok(), ..act(number) };
        for begin in (0..WAITING_MAX + 500).step_by(500) {
            waiting.take((begin..begin + 500).map(of).collect());
        }
        waiting = open(&fs.crash(Survival::Nothing, 1));
        let sent = drain(&mut waiting);
        assert_eq!((sent.len(), sent[0].kind.as_str(), sent[0].count), (WAITING_MAX + 1, "gap", 500));
        assert_eq!(sent[1].what, "number 500");
        let numbers = sent.iter().map(|act| act.id.rsplit_once('/').expect("id").1.parse().expect("a number"));
        assert!(numbers.collect::<Vec<u64>>().is_sorted());
        assert!(waiting.journal.as_ref().expect("a journal").bytes() < 8 << 20);
    }

    #[test]
    fn p14_what_an_act_says_is_missing_is_kept_whatever_is_merged() {
        let mut waiting = open(&MemoryFs::new());
        let corrupt =
            gap("pending audit reports of this member may be missing: damage in journal at byte 300".into(), 1);
        waiting.take(vec![corrupt.clone()]);
        let of_nobody = |number| Act { kind: "refused".into(), ..act(number) };
        for begin in (0..WAITING_MAX + 1000).step_by(500) {
            waiting.take((begin..begin + 500).map(of_nobody).collect());
            waiting.take(vec![gap("audit reports arrived faster than they could be written".into(), 3)]);
        }
        let sent = drain(&mut waiting);
        assert!(sent.iter().any(|act| act.kind == GAP && act.what == corrupt.what && act.count == 1));
        let missed = sent.iter().filter(|act| act.kind == GAP && act.what.contains("faster"));
        assert_eq!(missed.map(|act| act.count).sum::<u64>(), 3 * (WAITING_MAX as u64 + 1000) / 500);
        assert!(sent.iter().any(|act| act.what == MERGED), "others are merged");
    }

    #[test]
    fn a_corrupt_journal_is_kept_and_reported() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        waiting.take((0..3).map(act).collect());
        waiting.take((3..6).map(act).collect());
        drop(waiting);
        fs.flip_bit(Path::new("/acts/journal"), 300, 3).expect("flips");
        let sent = drain(&mut open(&fs));
        assert!(sent.iter().any(|act| act.kind == "gap"), "{sent:?}");
        assert!(fs.exists(Path::new("/acts/journal.damaged-1")).expect("looks"));
    }

    #[test]
    fn p06_after_a_damage_no_number_is_given_a_second_time() {
        let number = |act: &Act| act.id.rsplit_once('/').expect("id").1.parse::<u64>().expect("a number");
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        waiting.take((0..3).map(act).collect());
        let copy = fs.crash(Survival::Nothing, 1);
        waiting.take((3..6).map(act).collect());
        let sent = drain(&mut waiting);
        drop(waiting);
        for name in ["journal", "head"] {
            let (from, to) = (copy.open(Path::new("/acts").join(name).as_path()), Path::new("/acts").join(name));
            let from = from.expect("opens");
            let mut bytes = vec![0; usize::try_from(from.len().expect("file length")).expect("fits")];
            gravwell_env::fs::read_exact_at(&*from, &mut bytes, 0).expect("reads");
            fs.create(&to).expect("creates").write_at(&bytes, 0).expect("writes");
        }
        let mut waiting = open(&fs);
        waiting.take(vec![act(9)]);
        let again = drain(&mut waiting);
        let last = sent.iter().map(number).max().expect("some");
        let is_known = |act: &&Act| number(act) <= last;
        let new: Vec<&str> = again.iter().filter(|act| !is_known(act)).map(|act| act.what.as_str()).collect();
        assert!(new.contains(&"number 9") && again.iter().any(|act| act.kind == "gap"), "{again:?}");
        assert!(again.iter().filter(is_known).all(|act| sent.contains(act)), "{again:?}");
    }

    #[test]
    fn every_batch_fits_into_a_request_of_a_member() {
        let fs = MemoryFs::new();
        let mut waiting = open(&fs);
        let long = "\u{1}".repeat(5000);
        let long =
            Act { kind: long.clone(), user: long.clone(), by: long.clone(), from: long.clone(), what: long, ..act(1) };
        waiting.take(vec![long.bounded(); 100]);
        let (mut count, bytes_max) = (0, gravwell_model::codec::report_limits::REPORT_BYTES_MAX);
        while let Some((acts, last)) = waiting.batch() {
            count += acts.len();
            let bytes = serde_json::to_vec(&Request::AuditActs { acts }).expect("JSON").len();
            assert!(bytes < bytes_max, "{bytes}");
            waiting.sent(last);
        }
        assert_eq!(count, 100);
    }
}
