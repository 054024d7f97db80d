//! Export archive of all objects, and its import.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::codec::sealed::{MAGIC, Sealer, Unsealer};
use crate::env::{Fs as _, RealFs};
use crate::model::Op;
use crate::objects::backup::{self, BackupError, Item, Parts, Source, Written};
use crate::objects::cleaning::SLICE;
use crate::objects::contents::{self, Content};
use crate::objects::restored_names::RestoredNames;
use crate::objects::searches::{self, Search};
use crate::objects::sessions::{self, Session};
use crate::objects::store::Author;
use crate::objects::tokens::Token;
use crate::objects::users::{Admin, Lock};
use crate::objects::{Committed, Moment, Store, StoreError, Stored, Writes};
use crate::web::admission;
use crate::web::app::AppRef;
use crate::web::caller::Caller;
use crate::web::error::{ApiError, ApiResult};
use crate::web::form::Form;
use crate::web::guard::Need;
use crate::web::input::{Wishes, is_on};
use crate::web::routes::{Route, get, post};

/// Size of the pieces sent to the client.
const PIECE_BYTES: usize = 256 << 10;
/// Maximum bytes and operations of one transaction of a restore.
const TXN_BYTES: usize = 1 << 20;
const TXN_OPS: usize = 2000;
/// Largest backup that can be restored while the datastore is unreachable, because it is queued in memory.
const OFFLINE_BYTES_MAX: u64 = 64 << 20;

pub(in crate::web) fn routes() -> Vec<Route> {
    vec![
        get(
            "/api/backup",
            Need::Admin,
            "Streams an export archive of all objects; the header Password encrypts it.",
            download,
        )
        .for_downloads(),
        post(
            "/api/backup",
            Need::Admin,
            "Restores an export archive, which replaces all objects and ends all sessions.",
            restore,
        ),
    ]
}

/// Permission to run a backup or restore; one may run at a time.
struct Turn(AppRef);

/// Rejects logins while a restore runs.
struct Restoring<'a>(&'a Mutex<bool>);

impl<'a> Restoring<'a> {
    fn begin(restoring: &'a Mutex<bool>) -> Restoring<'a> {
        *restoring.lock().unwrap_or_else(PoisonError::into_inner) = true;
        Restoring(restoring)
    }
}

impl Drop for Restoring<'_> {
    fn drop(&mut self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

impl Turn {
    fn take(app: &AppRef) -> ApiResult<Turn> {
        let mut busy = app.backup.lock().unwrap_or_else(PoisonError::into_inner);
        if *busy {
            return Err(ApiError::conflict("another backup or restore is in progress; wait until it has finished"));
        }
        *busy = true;
        Ok(Turn(AppRef::clone(app)))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.backup.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Writer into a channel that feeds the response.
struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(source: &Source, parts: Parts, password: &str, to: Sender) -> Result<Written, BackupError> {
    let mut to = BufWriter::with_capacity(PIECE_BYTES, to);
    if password.is_empty() {
        return source.write(parts, &mut to);
    }
    let mut sealer = Sealer::new(to, password)?;
    let written = source.write(parts, &mut sealer)?;
    sealer.finish()?;
    Ok(written)
}

async fn download(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    wishes: Wishes,
) -> ApiResult<Response> {
    let turn = Turn::take(&app)?;
    let password = headers.get("password").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let parts = Parts {
        without_secrets: is_on(wishes.omit_sensitive.as_deref()),
        // The backup is complete unless the request explicitly excludes searches.
        without_searches: wishes.savedsearch.as_deref().is_some_and(|wish| !is_on(Some(wish))),
    };
    let source = Source::of(app.store.replica()).map_err(ApiError::internal)?;
    let (sender, receiver) = mpsc::channel(4);
    let lost = admission::ended(&app, &caller);
    tokio::task::spawn_blocking(move || {
        let _turn = turn;
        match write_all(&source, parts, &password, Sender(sender.clone())) {
            Ok(Written { objects, chunks, left_out }) => {
                let left_out = left_out.len();
                tracing::info!(user = caller.user, objects, chunks, left_out, "export archive written");
            }
            Err(error) => {
                tracing::warn!(%error, "export archive failed");
                // The client must not mistake a partial backup for a complete one.
                let _ = sender.blocking_send(Err(io::Error::other("the backup is incomplete")));
            }
        }
    });
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let now = Moment::now().text();
    let day = now.split('T').next().unwrap_or_default();
    let name = format!("attachment; filename=\"gravwell-{day}.gravbak\"");
    let head = [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((head, Body::from_stream(admission::until(stream, lost))).into_response())
}

/// A temporary file, removed on drop.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Interval, in received bytes, at which the free space is checked.
const CHECKED_BYTES: usize = 4 << 20;

/// Returns an error if less than `free_min` bytes are free.
fn check_room(data_dir: &Path, free_min: u64) -> ApiResult<()> {
    if RealFs.free_space(data_dir).is_ok_and(|free| free < free_min) {
        let message = "the disk of this webserver is too full for the backup; restore it with gravwell-logctl, or \
                       free disk space";
        return Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message));
    }
    Ok(())
}

/// Receives the form and writes its file to the disk.
async fn receive(data_dir: &Path, free_min: u64, mut form: Form) -> ApiResult<(Temporary, String)> {
    let path = data_dir.join(format!("restore-{}.tmp", uuid::Uuid::new_v4()));
    let (mut file, mut password) = (None, String::new());
    while let Some(mut field) = form.next().await? {
        match field.name() {
            Some("backup") => {
                let kept = Temporary(path.clone());
                let mut options = tokio::fs::OpenOptions::new();
                let mut to = options.create(true).write(true).truncate(true).mode(0o600).open(&path).await?;
                let mut unchecked = 0;
                while let Some(bytes) = field.chunk().await? {
                    unchecked += bytes.len();
                    if unchecked >= CHECKED_BYTES {
                        unchecked = 0;
                        check_room(data_dir, free_min)?;
                    }
                    to.write_all(&bytes).await?;
                }
                to.flush().await?;
                file = Some(kept);
            }
            Some("password") => {
                while let Some(bytes) = field.chunk().await? {
                    if password.len() + bytes.len() > 4096 {
                        return Err(ApiError::bad("the password is too long"));
                    }
                    password.push_str(std::str::from_utf8(&bytes).map_err(ApiError::bad)?);
                }
            }
            _ => field.skip().await?,
        }
    }
    let file = file.ok_or_else(|| ApiError::bad("the form has no part called backup"))?;
    Ok((file, password))
}

/// Opens the backup's lines, decrypting them if the backup is encrypted.
fn open(path: &Path, password: &str) -> Result<Box<dyn BufRead>, BackupError> {
    let mut file = File::open(path)?;
    let mut first = [0; MAGIC.len()];
    let is_sealed = file.read_exact(&mut first).is_ok() && first == *MAGIC;
    if !is_sealed {
        file.rewind()?;
        return Ok(Box::new(BufReader::new(file)));
    }
    if password.is_empty() {
        return Err(BackupError::Line { line: 1, reason: "the backup is encrypted; enter its password".into() });
    }
    Ok(Box::new(BufReader::new(Unsealer::new(BufReader::new(file), password)?)))
}

async fn restore(State(app): State<AppRef>, caller: Caller, headers: HeaderMap, form: Form) -> ApiResult<Json<Value>> {
    let _turn = Turn::take(&app)?;
    let (file, mut password) = receive(&app.config.data_dir, app.config.render_store_free_min, form).await?;
    if password.is_empty() {
        password = headers.get("password").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    }
    // The upload may have taken a while.
    let caller = caller.again(&app)?;
    let (path, secret) = (file.0.clone(), password.clone());
    let unfit = |error: BackupError| match error {
        BackupError::Io(error) if error.kind() == io::ErrorKind::InvalidData => ApiError::bad(error),
        BackupError::Line { .. } => ApiError::bad(format!("nothing was restored: {error}")),
        error => ApiError::internal(error),
    };
    let store = app.store.clone();
    let examined = tokio::task::spawn_blocking(move || {
        let mut names = RestoredNames::new(&store);
        backup::read(&mut open(&path, &secret)?, |item| match item {
            Item::Object(op) => names.check(&op).map_err(|fault| {
                let message = format!("nothing was restored: {fault}");
                io::Error::new(io::ErrorKind::InvalidData, message)
            }),
            Item::Chunk(..) => Ok(()),
        })
    });
    let examined = examined.await.map_err(ApiError::internal)?.map_err(unfit)?;
    if examined.object_bytes > OFFLINE_BYTES_MAX && !app.store.replica().is_connected() {
        let message = format!(
            "datastore is unreachable; backups larger than {OFFLINE_BYTES_MAX} bytes can be restored only while it is \
             online"
        );
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message));
    }
    tracing::warn!(user = caller.user, objects = examined.objects, "restoring a backup");
    let _restoring = Restoring::begin(&app.restoring);
    let (batches, mut ready) = mpsc::channel::<Vec<Op>>(2);
    let (path, objects) = (file.0.clone(), examined.objects);
    let replica = app.store.replica().clone();
    let chunks = contents::kept(&app.store)?.store().clone();
    // Searches that the backup does not contain keep their results.
    let is_left = examined.omits(Search::COLLECTION);
    let left = if is_left { searches::named_contents(&app.store)? } else { Default::default() };
    let before = Powers::read(&app.store)?;
    let producing = tokio::task::spawn_blocking(move || {
        let mut batch = Batch { ops: Vec::new(), bytes: 0, to: batches };
        // Deletions come first, so that a name that moves to another user is free before it is assigned.
        for row in replica.state().snapshot()?.objects() {
            let (collection, key, _) = row?;
            let is_kept = collection.as_str() == Content::COLLECTION && left.contains(key.as_str());
            if !is_kept && examined.lacks(&collection, &key) {
                batch.push(Op::Delete { collection, key })?;
            }
        }
        let mut is_durable = false;
        backup::read(&mut open(&path, &password)?, |item| match item {
            Item::Chunk(id, raw) => chunks.write(&id, &raw).map(|_| ()).map_err(io::Error::other),
            // Sessions of the backup are not restored, not even until all sessions are ended below.
            Item::Object(op) if op.collection().as_str() == Session::COLLECTION => Ok(()),
            Item::Object(op) => {
                if !std::mem::replace(&mut is_durable, true) {
                    chunks.sync().map_err(io::Error::other)?;
                }
                batch.push(op)
            }
        })?;
        batch.send()?;
        Ok::<_, BackupError>(())
    });
    let author = caller.author();
    let mut undecided = false;
    while let Some(ops) = ready.recv().await {
        undecided |= matches!(commit(&app, &author, ops).await?, Committed::Pending(_));
    }
    producing.await.map_err(ApiError::internal)?.map_err(unfit)?;
    end_all_sessions(&app, &author).await?;
    drop(file);
    let returned = Powers::read(&app.store)?.since(&before);
    returned.report(&app, &caller);
    Ok(Json(json!({ "Objects": objects, "Synced": !undecided, "Returned": returned.shown() })))
}

/// Objects that grant or deny access.
#[derive(Default)]
struct Powers {
    tokens: BTreeSet<String>,
    administrators: BTreeSet<String>,
    locked: BTreeSet<String>,
}

impl Powers {
    fn read(store: &Store) -> Result<Powers, StoreError> {
        // No turn: only an administrator restores a backup.
        let set = |keys: Vec<String>| keys.into_iter().collect();
        Ok(Powers {
            tokens: set(store.keys::<Token>("")?),
            administrators: set(store.keys::<Admin>("")?),
            locked: set(store.keys::<Lock>("")?),
        })
    }

    /// Returns the access that was restored: new tokens and administrators, and users that are no longer locked.
    fn since(&self, before: &Powers) -> Powers {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect();
        Powers {
            tokens: new(&self.tokens, &before.tokens),
            administrators: new(&self.administrators, &before.administrators),
            locked: new(&before.locked, &self.locked),
        }
    }

    fn shown(&self) -> Value {
        json!({ "Tokens": self.tokens, "Administrators": self.administrators, "Unlocked": self.locked })
    }

    /// Reports the access in the audit and the log, so that an administrator reviews it: it had been withdrawn before.
    fn report(&self, app: &AppRef, caller: &Caller) {
        let kinds = [("token", &self.tokens), ("administrator", &self.administrators), ("unlocked user", &self.locked)];
        for (kind, key) in kinds.into_iter().flat_map(|(kind, keys)| keys.iter().map(move |key| (kind, key))) {
            tracing::warn!(kind, key, "restore returned access that had been withdrawn");
            app.recorder.note("restored-access", &caller.into(), format!("returned by a restore: {kind} {key}"));
        }
    }
}

/// Operations collected for a transaction.
struct Batch {
    ops: Vec<Op>,
    bytes: usize,
    to: mpsc::Sender<Vec<Op>>,
}

impl Batch {
    fn push(&mut self, op: Op) -> io::Result<()> {
        self.bytes += op.key().len() + op.value().map_or(0, Bytes::len);
        self.ops.push(op);
        if self.bytes >= TXN_BYTES || self.ops.len() >= TXN_OPS { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> io::Result<()> {
        self.bytes = 0;
        let ops = std::mem::take(&mut self.ops);
        if ops.is_empty() {
            return Ok(());
        }
        self.to.blocking_send(ops).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// Reason for writing a backup without regard to existing objects.
const WHAT_WAS: &str = "a restore replaces the current objects";

/// Reason for exempting a restore from write limits.
const ONE: &str = "a restore counts as one action of an administrator";

async fn commit(app: &AppRef, author: &Author, ops: Vec<Op>) -> ApiResult<Committed> {
    Ok(app.store.commit(author, "restore a backup", Writes::whatever(ops, WHAT_WAS).unmetered(ONE)).await?)
}

async fn end_all_sessions(app: &AppRef, author: &Author) -> ApiResult<()> {
    // No turn: only an administrator restores a backup.
    for keys in app.store.keys::<Session>("")?.chunks(SLICE) {
        let mut writes = Writes::new();
        keys.iter().try_for_each(|key| writes.delete_whatever::<Session>(key, sessions::ENDED))?;
        app.store.commit(author, "end all sessions after a restore", writes.unmetered(ONE)).await?;
    }
    Ok(())
}
