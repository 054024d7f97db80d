//! Administration of the datastore, through its local socket or an administrator's connection.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use gravwell_env::quota::Held;
use gravwell_log::{ReadError, generations};
use gravwell_model::codec::admin::{
    CollectionInfo, CompactReport, ExportEnd, Finding, OriginInfo, Progress, RecordInfo, Request, VerifyReport,
};
use gravwell_model::codec::authority::EscrowInfo;
use gravwell_model::codec::message::{Kind, MESSAGE_BYTES_MAX, Outcome, Row, TxnOutcome};
use gravwell_model::codec::payload::encode_entry;
use gravwell_model::codec::redacted_frame::frames_for;
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::codec::txn::decode_txn;
use gravwell_model::{Collection, Entry, Key, MemberName, Seq};
use gravwell_runtime::tasks::shares::Share;
use gravwell_transport::answer::{self, Answer, Failure, RowBatch, damaged, refuse};
use gravwell_transport::local;
use gravwell_transport::trust::Role;
use gravwell_transport::wire::{self, WireError};

use super::access::{is_open_to_all, may_ask};
use super::commit_thread::wait_applied;
use super::shared::{BLOCK_BYTES, DatastoreRef, DatastoreState};
use super::{audit, backup_stream, blobs, compaction, inspect, push, rotation};

/// The client that makes a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Member name; the datastore's own name for local callers.
    pub name: MemberName,
    /// Role, which decides the allowed requests.
    pub role: Role,
    /// Origin for the audit: a network address, or a user of this host.
    pub from: String,
    /// Returns the reason why a member receives nothing of the log and the state, if any.
    pub withheld: Option<String>,
    /// ID of the connection; `None` for local callers.
    pub connection: Option<usize>,
}

/// Serves the local socket until the task is dropped. Its callers own the data directory.
pub(super) async fn listen(shared: DatastoreRef, listener: UnixListener) {
    let requests = local::Requests::new(listener);
    loop {
        let (stream, place) = requests.next().await;
        let shared = DatastoreRef::clone(&shared);
        tokio::spawn(async move {
            let from = audit::acts::local_user(stream.peer_cred());
            let caller =
                Caller { name: shared.local.clone(), role: Role::Admin, from, withheld: None, connection: None };
            let (mut receive, mut send) = stream.into_split();
            if let Err(error) = serve(&shared, &caller, &mut receive, &mut send).await {
                tracing::debug!(%error, "a local request ended early");
            }
            drop(place);
        });
    }
}

/// Serves one request.
///
/// # Errors
/// Returns an error if the client is gone.
pub(super) async fn serve<R, W>(
    shared: &DatastoreRef,
    caller: &Caller,
    receive: &mut R,
    send: &mut W,
) -> Result<(), WireError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let bytes_max = if caller.role == Role::Admin { MESSAGE_BYTES_MAX } else { REPORT_BYTES_MAX };
    let result = match answer::request(receive, bytes_max).await {
        Ok(request) => recorded(shared, caller, request, receive, send).await,
        Err(failure) => Err(failure),
    };
    Answer::new(send).end(result).await
}

/// Performs a request and records its caller in the audit. Requests that change something or disclose much are recorded
/// before they are performed.
async fn recorded<R, W>(
    shared: &DatastoreRef,
    caller: &Caller,
    request: Request,
    receive: &mut R,
    send: &mut W,
) -> Result<(), Failure>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    allow(caller, &request)?;
    let asked = audit::acts::of_request(caller, &request).filter(|_| !shared.audit.is_read_only());
    let noting = async {
        match &asked {
            Some(asked) if asked.is_change => shared.audit.note(&caller.name, asked.act.clone()).await,
            Some(asked) => shared.audit.note_soon(&caller.name, asked.act.clone()),
            None => {}
        }
    };
    let done = match request {
        // A revocation takes effect whatever the state of the disk, so it does not wait for its audit record. Its
        // answer does.
        request @ Request::Revoke { .. } => {
            let mut answer = Answer::new(send);
            tokio::join!(noting, answer_to(shared, caller, request, &mut answer)).1
        }
        Request::Submit { .. } => {
            noting.await;
            submit(shared, caller, receive, send).await
        }
        request => {
            noting.await;
            answer_to(shared, caller, request, &mut Answer::new(send)).await
        }
    };
    if let (Some(asked), Err(Failure::Request(error))) = (asked, &done) {
        shared.audit.note_soon(&caller.name, asked.failed(&error.message));
    }
    done
}

fn allow(caller: &Caller, request: &Request) -> Result<(), Failure> {
    if let Some(why) = caller.withheld.as_ref().filter(|_| !is_open_to_all(request)) {
        return Err(refuse(why));
    }
    if may_ask(caller.role, request) {
        return Ok(());
    }
    Err(refuse(format!("{} is a {}; this request needs the role admin", caller.name, caller.role)))
}

/// Capacity of the channel of entries on their way to the client.
const ENTRIES_WAITING: usize = 2;

/// Acquires a slot for a request that reads much of the log. Administrators need none: they may stop the
/// datastore anyway.
async fn share_of(shared: &DatastoreRef, caller: &Caller) -> Result<Option<Share>, Failure> {
    if caller.role == Role::Admin {
        return Ok(None);
    }
    shared.readings.take(Some(caller.name.clone()), 1).await.map(Some).map_err(refuse)
}

/// Acquires memory for a block of the log or the audit. Administrators need none.
async fn room_of(shared: &DatastoreRef, caller: &Caller) -> Result<Option<Share>, Failure> {
    match caller.role {
        Role::Admin => Ok(None),
        _ => shared.room_for_block(&caller.name).await.map(Some).map_err(refuse),
    }
}

/// Acquires one of a member's slots for long-lived requests that follow the log.
fn following_of(shared: &DatastoreRef, caller: &Caller) -> Result<Option<Held<MemberName>>, Failure> {
    if caller.role == Role::Admin {
        return Ok(None);
    }
    let most = shared.follows.max();
    let held = shared.follows.take(caller.name.clone());
    held.map(Some).ok_or_else(|| {
        refuse(format!("{} already follows the log {most} times; stop one of these requests", caller.name))
    })
}

/// Sends each item in its own message, so that the message size does not depend on their number.
async fn all<T: serde::Serialize, W: AsyncWrite + Unpin>(
    items: Vec<T>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    for item in items {
        answer.item(&item).await?;
    }
    Ok(())
}

async fn revoke<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    name: MemberName,
    remove: bool,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let (commit, gone) = (shared.commit.clone(), name.clone());
    let (shared, revoked) = (DatastoreRef::clone(shared), name.clone());
    let revoking = move || {
        let why = match shared.members.is_serving() {
            true => shared.members.revoke(&revoked, remove)?,
            false => shared.members.revoke_when_durable(&revoked, remove).map(|()| None)?,
        };
        shared.check_registry();
        Ok::<_, String>(why)
    };
    let why = run_blocking(revoking).await?.map_err(refuse)?;
    settle_soon(commit, gone);
    let revoked = serde_json::json!({ "name": name, "removed": remove, "durable": why.is_none(), "why": why });
    answer.item(&revoked).await
}

async fn answer_to<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    caller: &Caller,
    request: Request,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    match request {
        Request::Status | Request::Upstream => answer.item(&inspect::status(shared)).await,
        Request::Members => all(shared.members.list(shared.head()), answer).await,
        Request::Presence => all(shared.members.presence(), answer).await,
        Request::Backends => all(shared.members.backends(), answer).await,
        Request::Collections => {
            let meta = shared.state.meta();
            for (collection, sum) in meta.iter().flat_map(|meta| &meta.digests.collections) {
                let (objects, bytes, digest) = (sum.objects, sum.bytes, sum.digest);
                answer.item(&CollectionInfo { collection: collection.to_string(), objects, bytes, digest }).await?;
            }
            Ok(())
        }
        Request::Generations => {
            let shared = DatastoreRef::clone(shared);
            for generation in run_blocking(move || shared.generations()).await?.map_err(damaged)? {
                answer.item(&generation).await?;
            }
            Ok(())
        }
        Request::Proof => {
            let proof = shared.proof.borrow().clone();
            match proof {
                Some(proof) => answer.item(&proof).await,
                None => Ok(()),
            }
        }
        request @ (Request::Escrow { .. } | Request::Roots { .. } | Request::RotateAuthority { .. }) => {
            about_authority(shared, caller, request, answer).await
        }
        Request::CopyChunks { ids } => backup_stream::serve_chunks(shared, &ids, answer).await,
        Request::Copy { of, have } => backup_stream::serve(shared, of, &have, answer).await,
        Request::Segments => {
            for segment in inspect::segments(&shared.log) {
                answer.item(&segment).await?;
            }
            Ok(())
        }
        Request::Get { collection, key, at } => get(shared, collection, key, at, answer).await,
        Request::List { collection, prefix, limit } => list(shared, collection, prefix, limit, answer).await,
        Request::Export { at, .. } => export(shared, at, answer).await,
        Request::Tail { from, to, follow: false } => {
            let _share = share_of(shared, caller).await?;
            tail(shared, caller, (from, to), false, answer).await
        }
        Request::Tail { from, to, follow } => {
            let _following = following_of(shared, caller)?;
            tail(shared, caller, (from, to), follow, answer).await
        }
        Request::History { collection, key } => history(shared, caller, collection, key, answer).await,
        Request::Record { seq } => record(shared, seq, answer).await,
        Request::OriginStatus { origin } => {
            wait_applied(shared, shared.head()).await;
            let row = shared.state.origin(origin).map_err(damaged)?.unwrap_or_default();
            answer.item(&OriginInfo { taken: row.last_counter, decided: row.last_counter }).await
        }
        Request::Verify => verify(shared, answer).await,
        request @ (Request::Audit { .. }
        | Request::AuditVerify { .. }
        | Request::AuditActs { .. }
        | Request::AuditAcknowledge { .. }) => about_audit(shared, caller, request, answer).await,
        Request::Compact { dry_run, history_ops } => compact(shared, dry_run, history_ops, answer).await,
        Request::Enroll { name, role, ttl_s, addresses, replace } => {
            if let Some(waits) = shared.register_waits() {
                return Err(refuse(format!(
                    "no member is enrolled, because {waits}: {}",
                    DatastoreState::register_remedy("D")
                )));
            }
            let role: Role = role.parse().map_err(refuse)?;
            let shared = DatastoreRef::clone(shared);
            let inviting = move || shared.members.invite(&name, role, ttl_s, addresses, replace);
            answer.item(&run_blocking(inviting).await?.map_err(refuse)?).await
        }
        Request::Revoke { name, remove } => revoke(shared, name, remove, answer).await,
        Request::BlobList => {
            let (all, store) = (blobs::all(shared).map_err(damaged)?, shared.contents.store.clone());
            let mut infos = run_blocking(move || all.examine_all(&store)).await?;
            blobs::mark_lost(shared, &mut infos);
            for info in infos {
                answer.item(&info).await?;
            }
            Ok(())
        }
        Request::BlobStats => {
            let (all, store) = (blobs::all(shared).map_err(damaged)?, shared.contents.store.clone());
            answer.item(&run_blocking(move || all.stats(&store)).await?).await
        }
        Request::BlobVerify => {
            let (progress, mut told) = mpsc::channel::<Progress>(16);
            let verifying = tokio::spawn({
                let shared = Arc::clone(shared);
                async move { blobs::verify(&shared, progress).await }
            });
            while let Some(progress) = told.recv().await {
                answer.item(&progress).await?;
            }
            answer.item(&verifying.await.map_err(refuse)?.map_err(refuse)?).await
        }
        Request::BlobCollect { dry_run, grace_s } => {
            let grace = grace_s.map(std::time::Duration::from_secs);
            answer.item(&blobs::collect(shared, grace, dry_run).await.map_err(refuse)?).await
        }
        Request::Barrier { seq, timeout_ms } => {
            let seq = seq.unwrap_or_else(|| shared.head());
            let timeout = std::time::Duration::from_millis(timeout_ms);
            if tokio::time::timeout(timeout, wait_applied(shared, seq)).await.is_err() {
                return Err(refuse(format!("sequence {seq} is not reached: the head is {}", shared.head())));
            }
            answer.item(&inspect::status(shared)).await
        }
        Request::Outbox | Request::Retry { .. } | Request::Dismiss { .. } | Request::Deletions { .. } => {
            Err(refuse("a datastore has no outbox; run the command with the --data-dir of a replica"))
        }
        Request::Submit { .. } => Err(refuse("a submission needs a stream of transactions")),
    }
}

/// Resolves the rejections of a revoked member in the background; the answer does not wait for it.
fn settle_soon(commit: mpsc::Sender<super::commit_thread::Request>, gone: MemberName) {
    let (reply, _) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let _ = commit.send(super::commit_thread::Request::Settle([gone].into(), reply)).await;
    });
}

async fn about_authority<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    caller: &Caller,
    request: Request,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    match request {
        Request::Escrow { known, seen } => {
            let share = share_of(shared, caller).await?;
            let trust = super::service::trust_dir(&shared.path);
            let shared = DatastoreRef::clone(shared);
            shared.members.note_copy(&caller.name, known.as_deref());
            let (name, connection) = (caller.name.clone(), caller.connection);
            // The client may disconnect; its slot stays taken until this work is finished.
            let sealing = move || {
                let _share = share;
                seen.iter().for_each(|seen| shared.examine_register(&name, seen));
                connection.iter().for_each(|connection| shared.members.note_shown(&name, *connection));
                let continues = seen.is_some_and(|seen| shared.members.registry().has_passed(&seen.mark));
                let (stamp, text) = shared.members.escrow(&trust, known.as_deref())?;
                Ok(EscrowInfo { stamp, text, continues })
            };
            let info: Result<EscrowInfo, String> = run_blocking(sealing).await?;
            answer.item(&info.map_err(refuse)?).await
        }
        Request::Roots { known, certificate } => {
            let (shared, name) = (DatastoreRef::clone(shared), caller.name.clone());
            let asking = move || shared.members.roots(&name, known, &certificate);
            answer.item(&run_blocking(asking).await?.map_err(refuse)?).await
        }
        Request::RotateAuthority { step } => {
            let shared = DatastoreRef::clone(shared);
            answer.item(&run_blocking(move || rotation::step(&shared, &step)).await?.map_err(refuse)?).await
        }
        _ => Err(refuse("not a request about the certificate authority")),
    }
}

async fn about_audit<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    caller: &Caller,
    request: Request,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    match request {
        Request::Audit { from, since_ms, until_ms } => {
            let room = room_of(shared, caller).await?;
            let (frames, page, _room) = audit::page(shared, from, since_ms, until_ms, room).await?;
            if let Some(frames) = frames {
                answer.frames(&frames).await?;
            }
            answer.item(&page).await
        }
        Request::AuditVerify { at } => answer.item(&audit::verify(shared, at).await?).await,
        Request::AuditActs { acts } => {
            shared.audit.receive(&caller.name, acts).await.map_err(refuse)?;
            answer.item(&serde_json::json!({})).await
        }
        Request::AuditAcknowledge { to } => {
            audit::acknowledge(shared, caller, to).await?;
            answer.item(&serde_json::json!({ "acknowledged": to })).await
        }
        _ => Err(refuse("not a request about the audit")),
    }
}

pub(super) fn unreadable(error: ReadError) -> Failure {
    match error {
        ReadError::Compacted { .. } => refuse(error),
        error => damaged(error),
    }
}

/// Converts an error of work on the whole log or state, which corruption may have caused.
fn failed(shared: &DatastoreRef, error: impl std::fmt::Display) -> Failure {
    if shared.damage().is_some() { damaged(error) } else { refuse(error) }
}

pub(super) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(refuse)
}

fn check_reached(shared: &DatastoreRef, at: Seq) -> Result<(), Failure> {
    let head = shared.head();
    if at > head { Err(refuse(format!("sequence {at} does not exist yet: the head is {head}"))) } else { Ok(()) }
}

fn frame(entry: &Entry) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    encode_entry(entry, &Default::default(), 0, 0, &mut bytes).map_err(refuse)?;
    Ok(bytes)
}

/// Streams the rows that a blocking producer passes to its callback.
async fn stream_rows<W, P>(answer: &mut Answer<'_, W>, produce: P) -> Result<(), Failure>
where
    W: AsyncWrite + Unpin,
    P: FnOnce(&mut dyn FnMut(Row) -> bool) -> Result<(), String> + Send + 'static,
{
    let (batches, mut ready) = mpsc::channel(4);
    let producing = tokio::task::spawn_blocking(move || {
        let mut batch = RowBatch::default();
        let result = produce(&mut |row| batch.push(row).is_none_or(|rows| batches.blocking_send(rows).is_ok()));
        let rest = batch.take();
        if !rest.is_empty() {
            let _ = batches.blocking_send(rest);
        }
        result
    });
    while let Some(rows) = ready.recv().await {
        answer.rows(&rows).await?;
    }
    producing.await.map_err(refuse)?.map_err(damaged)
}

async fn get<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    collection: Collection,
    key: Key,
    at: Option<Seq>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let row = match at {
        None => shared.state.get(&collection, &key).map_err(damaged)?.map(|object| {
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            Row::Object { collection, key, version, time_ms, value }
        }),
        Some(at) => {
            check_reached(shared, at)?;
            let log = shared.log.clone();
            run_blocking(move || inspect::object_at(&log, &collection, &key, at)).await?.map_err(unreadable)?
        }
    };
    match row {
        Some(row) => answer.rows(&[row]).await,
        None => Ok(()),
    }
}

async fn list<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    collection: Collection,
    prefix: String,
    limit: Option<u64>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let snapshot = shared.state.snapshot().map_err(damaged)?;
    let limit = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    stream_rows(answer, move |give| {
        for row in snapshot.scan(&collection, &prefix, std::ops::Bound::Unbounded).take(limit) {
            let (key, object) = row.map_err(|error| error.to_string())?;
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            if !give(Row::Object { collection: collection.clone(), key, version, time_ms, value }) {
                break;
            }
        }
        Ok(())
    })
    .await
}

async fn export<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    at: Option<Seq>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let past = match at {
        None => None,
        Some(at) => {
            check_reached(shared, at)?;
            let (path, cache, log) = (shared.work.clone(), shared.config.cache_bytes, shared.log.clone());
            let rebuilt = run_blocking(move || inspect::state_at(&path, cache, &log, at, &mut |_| {})).await?;
            Some(rebuilt.map_err(|error| failed(shared, error))?)
        }
    };
    let state = past.as_ref().map_or(&shared.state, |past| &past.state);
    let snapshot = state.snapshot().map_err(damaged)?;
    let end = snapshot.meta().map(|meta| ExportEnd { seq: meta.seq, digest: meta.digest });
    let result = stream_rows(answer, move |give| {
        for row in snapshot.objects() {
            let (collection, key, object) = row.map_err(|error| error.to_string())?;
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            if !give(Row::Object { collection, key, version, time_ms, value }) {
                break;
            }
        }
        Ok(())
    })
    .await;
    result?;
    match end {
        Some(end) => answer.item(&end).await,
        None => Ok(()),
    }
}

async fn history<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    caller: &Caller,
    collection: Collection,
    key: Key,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let (log, head, share) = (shared.log.clone(), shared.head(), share_of(shared, caller).await?);
    let (entries, mut found) = mpsc::channel(ENTRIES_WAITING);
    // The client may disconnect while the reader is still searching for the next match. The slot is released when the
    // reader notices.
    let reading = tokio::task::spawn_blocking(move || {
        let _share = share;
        inspect::history(&log, &collection, &key, head, |entry| match entries.blocking_send(entry) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        })
    });
    let redaction = shared.redaction_for(caller.role);
    while let Some(entry) = found.recv().await {
        let frames = frames_for(redaction.as_ref(), frame(&entry)?.into()).map_err(damaged)?;
        answer.frames(&frames).await?;
    }
    reading.await.map_err(refuse)?.map_err(unreadable)
}

async fn tail<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    caller: &Caller,
    (from, to): (Seq, Option<Seq>),
    follow: bool,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let redaction = shared.redaction_for(caller.role);
    let mut head = shared.head.subscribe();
    let mut sent = from;
    loop {
        let durable = *head.borrow_and_update();
        let end = to.map_or(durable, |to| to.min(durable));
        while sent < end {
            let (log, after) = (shared.log.clone(), sent);
            let room = room_of(shared, caller).await?;
            let (found, _room) = run_blocking(move || (log.frames(after, BLOCK_BYTES), room)).await?;
            let Some(block) = found.map_err(unreadable)? else { break };
            // The last block may contain entries after `to`. The client drops them.
            answer.frames(&frames_for(redaction.as_ref(), block.bytes).map_err(damaged)?).await?;
            sent = block.last;
        }
        if !follow || to.is_some_and(|to| sent >= to) {
            return Ok(());
        }
        head.changed().await.map_err(refuse)?;
    }
}

async fn record<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    seq: Seq,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    check_reached(shared, seq)?;
    if seq == Seq::ZERO {
        return Err(refuse(format!("there is no record 0; request one from 1 to {}", shared.head())));
    }
    let log = shared.log.clone();
    let found = run_blocking(move || log.read_record(seq)).await?.map_err(unreadable)?;
    let found = found.ok_or_else(|| {
        refuse(format!(
            "record {seq} was compacted away: all records are kept only from {} on (`segments` lists the files); look \
             for an earlier one in a backup (`backup list PLACE`, then `restore --at {seq}` into an empty directory)",
            shared.log.horizon().next()
        ))
    })?;
    answer.item(&RecordInfo::of(&found.file, found.offset, &found.bytes).map_err(damaged)?).await
}

async fn verify<W: AsyncWrite + Unpin>(shared: &DatastoreRef, answer: &mut Answer<'_, W>) -> Result<(), Failure> {
    let (progress, mut told) = mpsc::channel::<Progress>(16);
    let (path, cache, log, state) =
        (shared.work.clone(), shared.config.cache_bytes, shared.log.clone(), shared.state.clone());
    let working = tokio::task::spawn_blocking(move || check(&path, cache, &log, &state, &progress));
    while let Some(progress) = told.recv().await {
        answer.item(&progress).await?;
    }
    let mut report = working.await.map_err(refuse)?;
    for member in shared.members.presence() {
        // A member reports every reason here, such as a full disk. What is checked is the datastore's own data.
        let problem = member.unhealthy.map_or_else(String::new, |problem| format!("; unhealthy: {problem}"));
        report.members.push(format!("{}: applied {}{problem}", member.name, member.applied));
    }
    let recovery = shared.recovery();
    if !recovery.is_empty() {
        let problem = format!("the datastore waits for recovery, because {recovery}");
        report.findings.push(Finding { place: "log".into(), offset: None, problem });
    }
    report.findings.extend(shared.members.witness_damage().map(|(path, why)| Finding {
        place: path.display().to_string(),
        offset: None,
        problem: format!("the recorded position of the member registry is damaged ({why})"),
    }));
    if let Some(problem) = generations::problem(&shared.path, shared.log.log_id(), &shared.log.lineage()) {
        report.findings.push(Finding { place: generations::FILE.into(), offset: None, problem });
    }
    report.ok = report.findings.is_empty();
    answer.item(&report).await
}

/// Checks files, chain and digests. Also used on a directory that no process has open.
pub fn check(
    path: &std::path::Path,
    cache_bytes: u64,
    log: &gravwell_log::LogReader,
    state: &gravwell_state::StateStore,
    progress: &mpsc::Sender<Progress>,
) -> VerifyReport {
    let tell = |stage: &str, done, total| {
        let _ = progress.try_send(Progress { stage: stage.into(), done, total });
    };
    let mut report = VerifyReport::default();
    let files = match log.verify(&mut |done, total| tell("log", done, total)) {
        Ok(files) => files,
        Err(error) => {
            report.findings.push(Finding { place: "log".into(), offset: None, problem: error.to_string() });
            return report;
        }
    };
    (report.files, report.records, report.bytes) = (files.segments as u64, files.records, files.bytes);
    for damage in &files.damages {
        let (place, offset) = (damage.file.clone(), Some(damage.offset));
        report.findings.push(Finding { place, offset, problem: damage.to_string() });
    }
    let finding = |place: &str, problem: String| Finding { place: place.into(), offset: None, problem };
    match state.check() {
        Ok(checked) => {
            report.findings.extend(checked.damage.iter().map(|damage| finding("state", damage.to_string())));
        }
        Err(error) => report.findings.push(finding("state", error.to_string())),
    }
    if report.findings.is_empty() {
        match inspect::compare_with_log(path, cache_bytes, log, state, &mut |what| tell(what, 0, 0)) {
            Ok(findings) => report.findings.extend(findings.into_iter().map(|problem| finding("state", problem))),
            Err(error) => report.findings.push(finding("log", error.to_string())),
        }
    }
    if let Some(meta) = state.meta() {
        (report.seq, report.digest) = (meta.seq, meta.digest);
    }
    report.ok = report.findings.is_empty();
    report
}

async fn compact<W: AsyncWrite + Unpin>(
    shared: &DatastoreRef,
    dry_run: bool,
    history_ops: Option<u64>,
    answer: &mut Answer<'_, W>,
) -> Result<(), Failure> {
    let (progress, mut told) = mpsc::channel::<Progress>(16);
    let (reply, result) = tokio::sync::oneshot::channel::<Result<CompactReport, String>>();
    let request = compaction::Request { dry_run, history_ops, progress, reply };
    shared.compaction.send(request).await.map_err(|_| refuse("the datastore is stopping"))?;
    while let Some(progress) = told.recv().await {
        answer.item(&progress).await?;
    }
    let report = result.await.map_err(|_| refuse("the datastore is stopping"))?;
    answer.item(&report.map_err(|error| failed(shared, error))?).await
}

async fn submit<R, W>(shared: &DatastoreRef, caller: &Caller, receive: &mut R, send: &mut W) -> Result<(), Failure>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (reply, mut outcomes) = mpsc::unbounded_channel::<Outcome>();
    let unanswered = tokio::sync::Semaphore::new(super::push::UNANSWERED_MAX);
    let stream = super::commit_pipeline::PushStream::default();
    let take_in = async {
        while let Some((kind, body)) = wire::read(receive).await? {
            if kind != Kind::Push {
                return Err(refuse(format!("expected a transaction, found a message {kind:?}")));
            }
            let txn = decode_txn(&body).map_err(refuse)?;
            unanswered.acquire().await.map_err(refuse)?.forget();
            let source = super::commit_thread::Source { member: &caller.name, is_admins: true, stream: &stream };
            push::submit(shared, source, txn, false, &reply).await.map_err(refuse)?;
        }
        drop(reply);
        Ok(())
    };
    let give_out = async {
        while let Some(outcome) = outcomes.recv().await {
            // A client can read its committed transactions once it has the outcome.
            if let TxnOutcome::Committed(seq) | TxnOutcome::Rejected(seq, _) = &outcome.fate {
                wait_applied(shared, *seq).await;
            }
            wire::send(send, Kind::Outcome, &outcome).await?;
            unanswered.add_permits(1);
        }
        Ok(())
    };
    tokio::try_join!(take_in, give_out).map(|_| ())
}
