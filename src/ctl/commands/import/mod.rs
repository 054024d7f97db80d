//! `import`: commits a stream of transactions exactly once; pipelined and resumable.
//!
//! Each import has its own origin, and the counter of a transaction is the ordinal of its line among the valid lines.
//! The counter alone therefore identifies the transactions that were accepted before an interruption, permanently. The
//! origin is stored next to the data (see [`record`]) before the first transaction is sent.

mod lines;
mod record;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use gravwell_env::real_fs::create_dirs;
use gravwell_model::codec::admin::{OriginInfo, Request, Status};
use gravwell_model::codec::json_lines::{LINE_BYTES_MAX, check_depth, parse_line};
use gravwell_model::codec::message::{self, Kind, Outcome, TxnOutcome};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Origin, OriginCounter, Txn, TxnId};
use gravwell_transport::wire;

use crate::client::Client;
use crate::client::output::Output;
use crate::client::transact::note;
use crate::error::{CtlError, CtlResult};
use lines::{next_line, without_mark};
use record::Record;

/// Commit one transaction per line of a JSON-lines file.
///
/// A line looks like
/// {"ops":[{"put":{"collection":"c","key":"k","value":1}},{"delete":{"collection":"c","key":"k2"}}],
/// "if":[{"absent":{"collection":"c","key":"k"}}]}. Lines printed by `export` are accepted as well. To resume an
/// interrupted import, run the same command again; nothing is committed twice. The file may have grown in the
/// meantime, but a file that was shortened or changed is rejected.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// File to import; `-` is standard input, which cannot be resumed.
    pub file: PathBuf,
    /// Seconds to try to reach the process again if it becomes unreachable.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub retry_for: u64,
    /// Return once everything is durable locally, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Maximum number of transactions sent but not answered.
const WINDOW: usize = 4096;
/// Bytes of messages collected before they are written.
const CHUNK_BYTES: usize = 64 << 10;
const MESSAGES_MAX: u64 = 20;

#[derive(Default, Serialize)]
struct Summary {
    lines: u64,
    committed: u64,
    queued: u64,
    rejected: u64,
    bad_lines: u64,
    before: u64,
    /// Counter of the last transaction.
    #[serde(skip)]
    last: OriginCounter,
}

struct Source {
    file: Option<File>,
    record: Option<PathBuf>,
    known: Record,
    /// Whether a run before this one was interrupted.
    is_resumed: bool,
    /// Last transaction with a reported outcome.
    heard: AtomicU64,
    /// Number of rejections among the reported outcomes.
    rejected: AtomicU64,
    /// Acknowledged-rejections watermark: up to here, rejections were reported and this is recorded, so the datastore
    /// may forget them.
    settled: Arc<AtomicU64>,
}

/// Number of rejections after which the last reported outcome is recorded.
const SAVE_EVERY: u64 = 1024;

impl Source {
    fn new(file: Option<File>, record: Option<PathBuf>, known: Record, is_resumed: bool) -> Source {
        let (heard, rejected) = (known.heard.0, known.rejected.into());
        Source { file, record, known, is_resumed, heard: heard.into(), rejected, settled: Arc::new(heard.into()) }
    }

    /// Records that an outcome was reported.
    fn note(&self, counter: OriginCounter, is_rejection: bool) -> Result<(), CtlError> {
        self.heard.store(counter.0, Ordering::Relaxed);
        if is_rejection && (self.rejected.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(SAVE_EVERY) {
            return self.save();
        }
        Ok(())
    }

    /// Ends an import of which all transactions were sent and answered. Deletes the record once all are resolved; until
    /// then it is kept, so that the same command never commits them again. Returns whether the record was deleted.
    async fn finish(&self, client: &Client, last: OriginCounter) -> Result<bool, CtlError> {
        let Some(path) = &self.record else { return Ok(true) };
        let is_decided = has_decided(client, self.known.origin, last).await.unwrap_or(false);
        let _alone = record::lock_of(path)?;
        if is_decided {
            // Another command that imports the same file may have removed it already.
            record::remove(path)?;
            return Ok(true);
        }
        let heard = OriginCounter(self.heard.load(Ordering::Relaxed));
        let rejected = self.rejected.load(Ordering::Relaxed);
        Record { heard, rejected, last: Some(last), ..self.known.clone() }.save(path)?;
        Ok(false)
    }

    /// Records the last reported outcome.
    fn save(&self) -> Result<(), CtlError> {
        let _alone = self.record.as_deref().map(record::lock_of).transpose()?;
        self.save_locked()
    }

    /// Like [`Source::save`]; the caller has locked the records.
    fn save_locked(&self) -> Result<(), CtlError> {
        let heard = OriginCounter(self.heard.load(Ordering::Relaxed));
        if let Some(record) = &self.record {
            let rejected = self.rejected.load(Ordering::Relaxed);
            Record { heard, rejected, ..self.known.clone() }.save(record)?;
        }
        self.settled.store(heard.0, Ordering::Relaxed);
        Ok(())
    }
}

/// Returns whether all accepted transactions of `origin` up to `last` are committed or rejected, as far as the local
/// state knows.
async fn has_decided(client: &Client, origin: Origin, last: OriginCounter) -> Result<bool, CtlError> {
    let known: OriginInfo = client.item(&Request::OriginStatus { origin }).await?;
    Ok(known.decided >= last.min(known.taken))
}

/// Runs an import.
pub(super) async fn run(dir: &Path, json: bool, args: Import) -> CtlResult {
    let source = open(dir, &args.file).await?;
    let total = source.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    let bar = progress_bar(total);
    let mut summary;
    let mut down_since: Option<Instant> = None;
    let bad_reported = Arc::new(AtomicU64::new(0));
    // Archived changes before this import sent anything. Those of an interrupted run may be among them.
    let mut archived_before = source.is_resumed.then_some(0);
    let client = loop {
        summary = Summary::default();
        bar.reset();
        let attempt = async {
            let client = Client::open(dir).await.map_err(|error| (error, false))?;
            if archived_before.is_none() {
                archived_before = archived(&client).await.ok();
            }
            let sent = send(&client, &source, &args, &bar, &bad_reported, &mut summary).await;
            match sent {
                Ok(()) => Ok(client),
                Err((error, is_gone)) => {
                    client.close().await;
                    Err((error, is_gone))
                }
            }
        };
        match attempt.await {
            Ok(client) => break client,
            Err((error, is_gone)) => {
                if summary.committed + summary.queued > 0 {
                    down_since = None;
                }
                let since = *down_since.get_or_insert_with(Instant::now);
                let is_starting = down_since.is_some() && error.exit == 1;
                let may_retry = (is_gone || is_starting) && source.file.is_some();
                if !may_retry || since.elapsed() > Duration::from_secs(args.retry_for) {
                    bar.abandon();
                    source.save()?;
                    let hint = if source.record.is_some() { "; run the same command again to resume" } else { "" };
                    return Err(CtlError { message: format!("{}{hint}", error.message), exit: error.exit });
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    };
    // Includes the rejections of earlier attempts.
    summary.rejected = source.rejected.load(Ordering::Relaxed);
    let waited = if args.no_wait { Ok(()) } else { drain(&client).await };
    bar.finish_and_clear();
    let is_finished = source.finish(&client, summary.last).await;
    // What an abandoned history had committed is not committed again, even if it is only in an archive since.
    let may_be_archived = archived(&client).await? > archived_before.unwrap_or_default();
    client.close().await;
    report(json, &summary)?;
    let again = "run the same command again to check the outcome; nothing is committed twice";
    waited.map_err(|error| CtlError { message: format!("{}; {again}", error.message), exit: error.exit })?;
    if !is_finished? {
        complain!("some transactions are still pending; {again}");
    }
    if may_be_archived {
        complain!(
            "the log continued without some changes, which are archived; lines that count as committed may be among \
             them: see `gravwell-logctl quarantine list`"
        );
    }
    if may_be_archived || summary.bad_lines + summary.rejected > 0 {
        return Err(CtlError { message: String::new(), exit: 1 });
    }
    Ok(())
}

/// Returns the number of archived changes.
async fn archived(client: &Client) -> Result<u64, CtlError> {
    Ok(client.item::<Status>(&Request::Status).await?.quarantined)
}

fn progress_bar(total: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bytes}/{total_bytes} {bar:40} {msg} {eta}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn open(dir: &Path, path: &Path) -> Result<Source, CtlError> {
    if path == Path::new("-") {
        // Standard input cannot be resumed, so the process that receives a transaction may assign its id.
        let known = Record { origin: Origin::default(), ..Record::new(path.to_owned())? };
        return Ok(Source::new(None, None, known, false));
    }
    let mut file = File::open(path).map_err(|error| CtlError::new(format!("{}: {error}", path.display())))?;
    let imports = dir.join("imports");
    create_dirs(&imports, 0o700).map_err(|error| CtlError::new(format!("{}: {error}", imports.display())))?;
    // Two commands that start at the same time would otherwise create two records, and commit everything twice.
    let _alone = record::lock(&imports)?;
    forget_finished(dir, &imports, path, &mut file).await?;
    let (known, record, was_known) = record::find(&imports, path, &mut file)?;
    if was_known {
        complain!("resuming the interrupted import of {}", path.display());
    }
    let source = Source::new(Some(file), Some(record), known, was_known);
    source.save_locked()?;
    Ok(source)
}

/// Deletes the record of an earlier import from this path if all of it is resolved and the file has different
/// contents now.
async fn forget_finished(dir: &Path, imports: &Path, path: &Path, file: &mut File) -> CtlResult {
    let Some((last, earlier, at)) = record::replaced(imports, path, file) else { return Ok(()) };
    let client = Client::open(dir).await?;
    let is_decided = has_decided(&client, earlier.origin, last).await;
    client.close().await;
    match is_decided? {
        true => record::remove(&at),
        false => Ok(()),
    }
}

/// Returns a reader of the lines that the record of the import covers. Bytes appended from now on are not among them.
fn reader(source: &Source) -> Result<Box<dyn BufRead + Send>, CtlError> {
    let Some(file) = &source.file else { return Ok(Box::new(BufReader::new(std::io::stdin()))) };
    let mut file = file.try_clone().map_err(CtlError::new)?;
    file.rewind().map_err(CtlError::new)?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, file.take(source.known.length))))
}

/// Sends all transactions. The flag of an error is true if the process became unreachable and a retry may help.
async fn send(
    client: &Client,
    source: &Source,
    args: &Import,
    bar: &ProgressBar,
    bad_reported: &Arc<AtomicU64>,
    summary: &mut Summary,
) -> Result<(), (CtlError, bool)> {
    let gone = |error: CtlError| (error, true);
    let status: Status = client.item(&Request::Status).await.map_err(gone)?;
    let origin = source.known.origin;
    let known = client.item(&Request::OriginStatus { origin }).await;
    // Retrying does not help if the identity belongs to a different member.
    let known: OriginInfo = known.map_err(|error: CtlError| {
        let is_gone = error.exit != 3;
        (error, is_gone)
    })?;
    let wait = !args.no_wait && (status.role == "datastore" || status.connected);
    let call = client.call(&Request::Submit { wait }).await.map_err(gone)?;
    let (mut read, mut write) = (call.read, call.write);
    let (chunks, mut ready) = mpsc::channel::<Chunk>(4);
    let reader = reader(source).map_err(|error| (error, false))?;
    let bad_reported = Arc::clone(bad_reported);
    // Transactions that were accepted without a reported outcome are sent and answered again, so that a rejection among
    // them is reported.
    let taken = known.taken.min(OriginCounter(source.heard.load(Ordering::Relaxed)));
    let settled = Arc::clone(&source.settled);
    let parsing = tokio::task::spawn_blocking(move || parse(reader, (origin, taken), &settled, &bad_reported, &chunks));
    let (window, mut in_flight) = mpsc::channel::<(OriginCounter, u64)>(WINDOW);
    let sending = async {
        while let Some(chunk) = ready.recv().await {
            bar.inc(chunk.source_bytes);
            write.write_all(&chunk.messages).await.map_err(|error| gone(CtlError::new(error)))?;
            for line in chunk.lines {
                if window.send(line).await.is_err() {
                    return Err(gone(CtlError::new("the responses ended early")));
                }
            }
        }
        drop(window);
        Ok(())
    };
    let started = Instant::now();
    let hearing = async {
        let mut spoken = 0;
        while let Some((counter, line)) = in_flight.recv().await {
            let outcome: Outcome =
                wire::expect(&mut read, Kind::Outcome).await.map_err(|error| gone(CtlError::new(error)))?;
            if outcome.id.counter != counter {
                return Err((CtlError::new("the responses are out of order"), false));
            }
            let is_rejection = matches!(outcome.fate, TxnOutcome::Rejected(..));
            take_in(outcome.fate, line, summary, &mut spoken)?;
            source.note(counter, is_rejection).map_err(|error| (error, false))?;
            let count = summary.committed + summary.queued + summary.rejected;
            if count.is_multiple_of(1024) {
                let rate = count * 1000 / u64::try_from(started.elapsed().as_millis()).unwrap_or(1).max(1);
                bar.set_message(format!("{count} transactions, {rate}/s"));
            }
        }
        Ok(())
    };
    let result = tokio::try_join!(sending, hearing).map(|_| ());
    drop(ready);
    let parsed = parsing.await.map_err(|error| (CtlError::new(error), false))?;
    result?;
    let Parsed { lines, bad, before, last } = parsed.map_err(|error| (error, false))?;
    (summary.lines, summary.bad_lines, summary.before, summary.last) = (lines, bad, before, last);
    Ok(())
}

fn take_in(fate: TxnOutcome, line: u64, summary: &mut Summary, spoken: &mut u64) -> Result<(), (CtlError, bool)> {
    match fate {
        TxnOutcome::Committed(_) | TxnOutcome::Decided(_) => summary.committed += 1,
        TxnOutcome::Queued => summary.queued += 1,
        TxnOutcome::Rejected(_, reason) => {
            summary.rejected += 1;
            *spoken += 1;
            if *spoken <= MESSAGES_MAX {
                complain!("line {line}: rejected: {reason}");
            }
        }
        TxnOutcome::Gap(expected) => {
            return Err((CtlError::new(format!("line {line} is out of order: expected transaction {expected}")), true));
        }
        TxnOutcome::Deferred(refused) => return Err((CtlError::new(refused.message), true)),
    }
    Ok(())
}

struct Chunk {
    messages: Vec<u8>,
    lines: VecDeque<(OriginCounter, u64)>,
    source_bytes: u64,
}

/// Numbers of all lines, invalid lines and lines accepted before, and the counter of the last valid line.
struct Parsed {
    lines: u64,
    bad: u64,
    before: u64,
    last: OriginCounter,
}

/// Reads lines and encodes them as messages.
fn parse(
    mut reader: Box<dyn BufRead + Send>,
    (origin, taken): (Origin, OriginCounter),
    settled: &AtomicU64,
    bad_reported: &AtomicU64,
    chunks: &mpsc::Sender<Chunk>,
) -> Result<Parsed, CtlError> {
    let note = note();
    let (mut number, mut bad, mut counter) = (0, 0, OriginCounter(0));
    let mut line = Vec::new();
    let (mut messages, mut lines, mut source_bytes) = (Vec::new(), VecDeque::new(), 0);
    while let Some(piece) = next_line(&mut reader, &mut line, LINE_BYTES_MAX).map_err(CtlError::new)? {
        number += 1;
        source_bytes += piece.bytes;
        let text = if number == 1 { without_mark(&line) } else { line.as_slice() };
        let text = text.trim_ascii();
        if text.is_empty() && !piece.is_too_long {
            continue;
        }
        let parsed = match std::str::from_utf8(text) {
            _ if piece.is_too_long => Err(format!("line longer than {LINE_BYTES_MAX} bytes, skipped")),
            parsed => parsed.map_err(|error| error.to_string()),
        };
        let parsed = parsed.and_then(|text| parse_line(text).map_err(|error| error.to_string()));
        let checked = parsed.and_then(|line| check_depth(&line.0).map(|()| line).map_err(|error| error.to_string()));
        match checked {
            Err(error) => {
                bad += 1;
                if bad <= MESSAGES_MAX && bad_reported.fetch_max(number, Ordering::Relaxed) < number {
                    complain!("line {number}: {error}");
                }
            }
            Ok((ops, conditions)) => {
                counter = counter.next();
                if counter <= taken {
                    continue;
                }
                let id = TxnId { origin, counter };
                let settled = OriginCounter(settled.load(Ordering::Relaxed));
                let txn = Txn { id, settled, time_ms: 0, note: note.clone(), conditions, ops };
                let start = messages.len();
                messages.resize(start + message::HEADER_BYTES, 0);
                encode_txn(&txn, &mut messages);
                let header = message::header(Kind::Push, messages.len() - start - message::HEADER_BYTES);
                messages[start..start + message::HEADER_BYTES].copy_from_slice(&header);
                lines.push_back((counter, number));
            }
        }
        if messages.len() >= CHUNK_BYTES {
            let chunk = Chunk {
                messages: std::mem::take(&mut messages),
                lines: std::mem::take(&mut lines),
                source_bytes: std::mem::take(&mut source_bytes),
            };
            if chunks.blocking_send(chunk).is_err() {
                return Ok(Parsed { lines: number, bad, before: taken.0.min(counter.0), last: counter });
            }
        }
    }
    let _ = chunks.blocking_send(Chunk { messages, lines, source_bytes });
    Ok(Parsed { lines: number, bad, before: taken.0.min(counter.0), last: counter })
}

async fn drain(client: &Client) -> CtlResult {
    let status: Status = client.item(&Request::Status).await?;
    if status.role == "replica" && !status.connected {
        if status.outbox > 0 {
            complain!("{} transactions are durable in the outbox and will be pushed when connected", status.outbox);
        }
        return Ok(());
    }
    let timeout_ms = 600_000;
    client.item::<Status>(&Request::Barrier { seq: None, timeout_ms }).await.map(|_| ())
}

fn report(json: bool, summary: &Summary) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(summary)?;
    } else {
        let mut text = format!("{} lines: {} committed", summary.lines, summary.committed);
        for (count, what) in [
            (summary.queued, "queued"),
            (summary.before, "imported before"),
            (summary.rejected, "rejected"),
            (summary.bad_lines, "bad"),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        output.line(&text)?;
    }
    output.flush()
}
