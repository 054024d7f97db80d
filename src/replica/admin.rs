//! Administration of a replica through its local socket.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use gravwell_model::codec::admin::{
    CollectionInfo, DeletionInfo, DeletionsInfo, ExportEnd, Finding, OutboxItem, PendingInfo, RejectedInfo, Request,
    VerifyReport,
};
use gravwell_model::codec::json_lines;
use gravwell_model::codec::message::{Kind, MESSAGE_BYTES_MAX, Outcome, RefusalCode, Refused, Row, TxnOutcome};
use gravwell_model::codec::txn::decode_txn;
use gravwell_model::{Collection, Key, Origin, Reason, Seq, TxnId};
use gravwell_transport::answer::{self, Answer, Failure, RowBatch, damaged, refuse};
use gravwell_transport::local;
use gravwell_transport::wire::{self, WireError};

use super::blobs::Blobs;
use super::{Draft, Receipt, Replica, Stage, SubmitError};

/// Transactions of one stream that are larger than this many bytes are written one after the other.
const PIPELINED_BYTES_MAX: usize = 4 << 10;
/// Interval at which a wait for a decision checks whether the datastore can make one.
const DECISION_POLL: Duration = Duration::from_millis(500);
/// Interval at which a waiting request checks whether its condition can still be met.
const STANDSTILL_EVERY: Duration = Duration::from_millis(100);

/// Serves the local socket until the task is dropped.
pub async fn listen(replica: Replica, listener: UnixListener) {
    let requests = local::Requests::new(listener);
    loop {
        let (stream, place) = requests.next().await;
        let replica = replica.clone();
        tokio::spawn(async move {
            let (mut receive, mut send) = stream.into_split();
            if let Err(error) = serve(&replica, &mut receive, &mut send).await {
                tracing::debug!(%error, "local request ended early");
            }
            drop(place);
        });
    }
}

/// Serves one request.
///
/// # Errors
/// If the client is gone.
pub async fn serve<R, W>(replica: &Replica, receive: &mut R, send: &mut W) -> Result<(), WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let result = match answer::request(receive, MESSAGE_BYTES_MAX).await {
        Ok(Request::Submit { wait }) => submit(replica, wait, receive, send).await,
        Ok(request) => answer_to(replica, request, &mut Answer::new(send)).await,
        Err(failure) => Err(failure),
    };
    Answer::new(send).end(result).await
}

async fn answer_to<W: AsyncWrite + Unpin>(
    replica: &Replica,
    request: Request,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    match request {
        Request::Status => answer.item(&replica.status()).await,
        Request::Collections => {
            let meta = replica.state().meta();
            for (collection, sum) in meta.iter().flat_map(|meta| &meta.digests.collections) {
                let (objects, bytes, digest) = (sum.objects, sum.bytes, sum.digest);
                answer.item(&CollectionInfo { collection: collection.to_string(), objects, bytes, digest }).await?;
            }
            Ok(())
        }
        Request::Get { at: Some(_), .. } | Request::Export { at: Some(_), .. } => {
            Err(refuse("a replica has only the present state; ask the datastore for an earlier sequence"))
        }
        Request::Get { collection, key, at: None } => match replica.get(&collection, &key).map_err(damaged)? {
            Some(object) => answer.rows(&[as_row(&collection, key, object)]).await,
            None if replica.state().withheld(&collection, &key).map_err(damaged)?.is_some() => Err(refuse(format!(
                "the value of {collection}/{key} is withheld from readers; read it at a webserver or the datastore"
            ))),
            None => Ok(()),
        },
        Request::List { collection, prefix, limit } => list(replica, &collection, &prefix, limit, answer).await,
        Request::Export { at: None, .. } => export(replica, answer).await,
        Request::Outbox => outbox(replica, answer).await,
        Request::Retry { id, upon } => {
            let seen_in = replica.history();
            for id in chosen(replica, id) {
                replica.retry_upon(id, upon.clone(), seen_in).await.map_err(refuse)?;
                answer.item(&id).await?;
            }
            Ok(())
        }
        Request::Dismiss { id } => {
            for id in chosen(replica, id) {
                replica.dismiss(id).await.map_err(refuse)?;
                answer.item(&id).await?;
            }
            Ok(())
        }
        Request::OriginStatus { origin } => {
            let info = replica.origin(origin).map_err(damaged)?;
            answer.item(&info).await
        }
        Request::Barrier { seq, timeout_ms } => barrier(replica, seq, timeout_ms, answer).await,
        Request::Verify => verify(replica, answer).await,
        Request::BlobList | Request::BlobStats | Request::BlobVerify | Request::BlobCollect { .. } => {
            let contents = replica.contents();
            let contents = contents.ok_or_else(|| {
                refuse("this replica stores no blobs; run the command at a webserver or the datastore")
            })?;
            blobs(&contents, request, answer).await
        }
        Request::Upstream => {
            let reply = replica.request_from_datastore(&Request::Status).await.map_err(refuse)?;
            let items = reply.items.iter().map(|item| serde_json::from_slice::<serde_json::Value>(item));
            for item in items.collect::<Result<Vec<_>, _>>().map_err(refuse)? {
                answer.item(&item).await?;
            }
            Ok(())
        }
        Request::Deletions { after } => deletions(replica, after, answer).await,
        Request::Members
        | Request::Presence
        | Request::Backends
        | Request::Segments
        | Request::Tail { .. }
        | Request::History { .. }
        | Request::Record { .. }
        | Request::Compact { .. }
        | Request::Generations
        | Request::Proof
        | Request::Escrow { .. }
        | Request::Roots { .. }
        | Request::RotateAuthority { .. }
        | Request::Copy { .. }
        | Request::CopyChunks { .. }
        | Request::Audit { .. }
        | Request::AuditVerify { .. }
        | Request::AuditAcknowledge { .. }
        | Request::AuditActs { .. }
        | Request::Enroll { .. }
        | Request::Revoke { .. } => {
            Err(refuse("a replica has no log; run the command with the datastore's --data-dir"))
        }
        Request::Submit { .. } => Err(refuse("a submission requires a stream of transactions")),
    }
}

fn as_row(collection: &Collection, key: Key, object: super::Object) -> Row {
    let version = object.version.unwrap_or(Seq::ZERO);
    Row::Object { collection: collection.clone(), key, version, time_ms: object.time_ms, value: object.value }
}

async fn list<W: AsyncWrite + Unpin>(
    replica: &Replica,
    collection: &Collection,
    prefix: &str,
    limit: Option<u64>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    const PAGE: usize = 512;
    let mut left = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let mut after: Option<Key> = None;
    while left > 0 {
        let page = replica.scan(collection, prefix, after.as_ref(), left.min(PAGE)).map_err(damaged)?;
        left -= page.len();
        let is_last = page.len() < PAGE;
        after = page.last().map(|(key, _)| key.clone());
        let rows: Vec<Row> = page.into_iter().map(|(key, object)| as_row(collection, key, object)).collect();
        if !rows.is_empty() {
            answer.rows(&rows).await?;
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

async fn deletions<W: AsyncWrite + Unpin>(
    replica: &Replica,
    after: Seq,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let state = replica.state();
    if state.meta().is_none() {
        return Err(refuse("this replica has no state yet, so its deletions are unknown"));
    }
    let read = move || {
        let snapshot = state.snapshot()?;
        let (seq, lineage) = snapshot.meta().map(|meta| (meta.seq, meta.lineage.clone())).unwrap_or_default();
        Ok::<_, gravwell_state::StateError>((seq, lineage, snapshot.deletions()?))
    };
    let (seq, lineage, known) = tokio::task::spawn_blocking(read).await.map_err(refuse)?.map_err(damaged)?;
    answer.item(&DeletionsInfo { complete_after: known.complete_after(), seq, lineage }).await?;
    for (seq, (collection, key)) in known.rows().filter(|(seq, _)| *seq > after) {
        answer.item(&DeletionInfo { collection: collection.clone(), key: key.clone(), seq }).await?;
    }
    Ok(())
}

async fn export<W: AsyncWrite + Unpin>(replica: &Replica, answer: &mut Answer<'_, W>) -> Result<(), Failure> {
    let snapshot = replica.state().snapshot().map_err(damaged)?;
    let end = snapshot.meta().map(|meta| ExportEnd { seq: meta.seq, digest: meta.digest });
    let (batches, mut ready) = mpsc::channel(4);
    let reading = tokio::task::spawn_blocking(move || {
        let mut batch = RowBatch::default();
        for row in snapshot.objects() {
            let (collection, key, object) = row?;
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            if let Some(rows) = batch.push(Row::Object { collection, key, version, time_ms, value })
                && batches.blocking_send(rows).is_err()
            {
                return Ok(());
            }
        }
        let _ = batches.blocking_send(batch.take());
        Ok::<_, gravwell_state::StateError>(())
    });
    while let Some(rows) = ready.recv().await {
        answer.rows(&rows).await?;
    }
    reading.await.map_err(refuse)?.map_err(damaged)?;
    match end {
        Some(end) => answer.item(&end).await,
        None => Ok(()),
    }
}

async fn outbox<W: AsyncWrite + Unpin>(replica: &Replica, answer: &mut Answer<'_, W>) -> Result<(), Failure> {
    for txn in replica.pending() {
        let (id, time_ms) = (txn.id, txn.time_ms);
        answer.item(&OutboxItem::Pending(PendingInfo { id, time_ms, txn: json_lines::txn_to_json(&txn) })).await?;
    }
    for rejected in replica.rejected() {
        let (id, seq, reason) = (rejected.txn.id, rejected.seq, rejected.reason.to_string());
        let (time_ms, txn) = (rejected.txn.time_ms, json_lines::txn_to_json(&rejected.txn));
        answer.item(&OutboxItem::Rejected(RejectedInfo { id, seq, reason, time_ms, txn })).await?;
    }
    Ok(())
}

fn chosen(replica: &Replica, id: Option<TxnId>) -> Vec<TxnId> {
    id.map_or_else(|| replica.rejected().iter().map(|rejected| rejected.txn.id).collect(), |id| vec![id])
}

async fn barrier<W: AsyncWrite + Unpin>(
    replica: &Replica,
    seq: Option<Seq>,
    timeout_ms: u64,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let timeout = Duration::from_millis(timeout_ms);
    let waiting = async {
        match seq {
            Some(seq) => replica.barrier(seq, timeout).await,
            None => replica.drain(timeout).await,
        }
    };
    let (reached, standstill) = tokio::select! {
        biased;
        reached = waiting => (reached, None),
        why = standstill(replica) => (false, Some(why)),
    };
    let status = replica.status();
    if !reached {
        let what = seq
            .map_or_else(|| "the outbox has not drained".to_owned(), |seq| format!("sequence {seq} was not reached"));
        let within = standstill
            .map_or_else(|| format!(" within {timeout_ms} ms"), |why| format!("; waiting stopped because {why}"));
        return Err(refuse(format!(
            "{what}{within}: sequence {}, head {}, outbox {}, {}",
            status.seq,
            status.head,
            status.outbox,
            if status.connected { "connected".to_owned() } else { format!("not connected: {}", replica.trouble()) }
        )));
    }
    answer.item(&status).await
}

/// Waits until there is nothing left to wait for. Returns the reason.
async fn standstill(replica: &Replica) -> &'static str {
    loop {
        if let Some(why) = replica.standstill() {
            return why;
        }
        tokio::time::sleep(STANDSTILL_EVERY).await;
    }
}

async fn verify<W: AsyncWrite + Unpin>(replica: &Replica, answer: &mut Answer<'_, W>) -> Result<(), Failure> {
    let state = replica.state();
    let opening =
        replica.findings().into_iter().map(|problem| Finding { place: "directory".into(), offset: None, problem });
    let lost = replica.lost().map(|problem| Finding { place: "state".into(), offset: None, problem });
    let mut findings: Vec<Finding> = opening.chain(lost).collect();
    if state.meta().is_none() {
        return answer.item(&VerifyReport { ok: findings.is_empty(), findings, ..VerifyReport::default() }).await;
    }
    let report = tokio::task::spawn_blocking(move || state.check()).await.map_err(refuse)?.map_err(damaged)?;
    let finding = |problem: String| Finding { place: "state".into(), offset: None, problem };
    findings.extend(report.damage.iter().map(|damage| finding(damage.to_string())));
    let status = replica.status();
    let digest = status.digest;
    let ok = findings.is_empty();
    answer
        .item(&VerifyReport { ok, records: report.rows, seq: status.seq, digest, findings, ..VerifyReport::default() })
        .await
}

async fn blobs<W: AsyncWrite + Unpin>(
    contents: &Blobs,
    request: Request,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    match request {
        Request::BlobList => {
            let (all, store) = (contents.all().map_err(damaged)?, contents.store().clone());
            let infos = tokio::task::spawn_blocking(move || all.examine_all(&store)).await.map_err(refuse)?;
            let asked = contents.incomplete();
            for mut info in infos {
                info.lost = asked.get(&info.content).copied().unwrap_or(false);
                answer.item(&info).await?;
            }
            Ok(())
        }
        Request::BlobVerify => {
            let (progress, mut told) = mpsc::channel(16);
            let verifying = tokio::spawn({
                let contents = contents.clone();
                async move { contents.verify(progress).await }
            });
            while let Some(progress) = told.recv().await {
                answer.item(&progress).await?;
            }
            answer.item(&verifying.await.map_err(refuse)?.map_err(refuse)?).await
        }
        Request::BlobCollect { dry_run, grace_s } => {
            let grace = grace_s.map(Duration::from_secs);
            answer.item(&contents.collect(grace, dry_run).await.map_err(refuse)?).await
        }
        _ => answer.item(&contents.stats().await.map_err(refuse)?).await,
    }
}

async fn submit<R, W>(replica: &Replica, wait: bool, receive: &mut R, send: &mut W) -> Result<(), Failure>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    type Answering = tokio::sync::oneshot::Receiver<Result<Receipt, SubmitError>>;
    let (queue, mut queued) = mpsc::channel::<(TxnId, Answering)>(8192);
    let take_in = async {
        while let Some((kind, body)) = wire::read(receive).await? {
            if kind != Kind::Push {
                return Err(refuse(format!("expected a transaction, found a message {kind:?}")));
            }
            let txn = decode_txn(&body).map_err(refuse)?;
            let id = txn.id;
            let is_numbered = id.origin != Origin::default();
            let draft = Draft {
                ops: txn.ops,
                conditions: txn.conditions,
                note: txn.note,
                id: is_numbered.then_some(id),
                is_judged_upstream: true,
                time_ms: txn.time_ms,
                settled: if is_numbered { txn.settled } else { Default::default() },
                read_in: None,
                room: super::OutboxQuota::Whole,
            };
            replica.wait_for_room(body.len()).await;
            let mut answering = replica.submit_pipelined(draft).await.map_err(refuse)?;
            if body.len() > PIPELINED_BYTES_MAX {
                // Otherwise many large transactions could be on their way to the disk without being counted.
                let (done, answered) = tokio::sync::oneshot::channel();
                let _ = done.send(answering.await.map_err(refuse)?);
                answering = answered;
            }
            if queue.send((id, answering)).await.is_err() {
                break;
            }
        }
        drop(queue);
        Ok(())
    };
    let give_out = async {
        while let Some((id, answering)) = queued.recv().await {
            let fate = match answering.await.map_err(refuse)? {
                Ok(receipt) => fate_of(replica, receipt, wait).await,
                Err(SubmitError::Gap { expected, .. }) => TxnOutcome::Gap(expected),
                Err(SubmitError::Forbidden(reason) | SubmitError::Condition(reason)) => {
                    TxnOutcome::Rejected(Seq::ZERO, reason)
                }
                Err(SubmitError::Limit(limit)) if id.origin == Origin::default() => {
                    TxnOutcome::Rejected(Seq::ZERO, Reason::LimitExceeded { message: limit.to_string() })
                }
                Err(error) => TxnOutcome::Deferred(Refused { code: RefusalCode::Busy, message: error.to_string() }),
            };
            wire::send(send, Kind::Outcome, &Outcome { id, fate }).await?;
        }
        Ok(())
    };
    tokio::try_join!(take_in, give_out).map(|_| ())
}

/// Returns what became of a transaction. With `wait` this is its decision, unless the datastore cannot make one now.
async fn fate_of(replica: &Replica, mut receipt: Receipt, wait: bool) -> TxnOutcome {
    let mut stage = receipt.stage();
    while wait && stage == Stage::Durable && replica.is_connected() && replica.writes_refused().is_none() {
        stage = receipt.decided(DECISION_POLL).await;
    }
    match stage {
        Stage::Durable => TxnOutcome::Queued,
        Stage::Acknowledged(seq) => TxnOutcome::Committed(seq),
        Stage::Rejected(seq, reason) => TxnOutcome::Rejected(seq, reason),
    }
}
