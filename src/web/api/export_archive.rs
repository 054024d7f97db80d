//! Export archive of all objects, and its import.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::DONE;
use crate::admission;
use crate::app::AppRef;
use crate::authorization::AccessRequirement;
use crate::caller::Caller;
use crate::error::{ApiError, ApiResult};
use crate::form::Form;
use crate::request_input::{QueryParams, is_on};
use crate::route::{Route, delete, get, post};
use gravwell_env::{Fs as _, RealFs};
use gravwell_model::Op;
use gravwell_objects::export_archive::{self, BackupError, Examined, Item, Parts, Source, Written};
use gravwell_objects::restores::{self, Check, Part, Plan, Returned, Run, Step};
use gravwell_objects::{CommitProgress, Timestamp, blobs};
use gravwell_transport::trust::encrypted_stream::{DecryptingReader, EncryptingWriter, MAGIC};

/// Size of the pieces sent to the client.
const PIECE_BYTES: usize = 256 << 10;
/// Largest backup that can be restored while the datastore is unreachable, because it is queued in memory.
const OFFLINE_BYTES_MAX: u64 = 64 << 20;
/// Added to the error of a restore that has changed objects.
const UNFINISHED: &str = "the restore is unfinished, and only administrators are served; log in and restore the backup \
                          again, or end the restore with DELETE /api/backup";
/// Warning in the header of an archive.
const MIXED: &str = "a restore is unfinished: this archive mixes objects from before it and from the restored archive";

pub(crate) fn routes() -> Vec<Route> {
    vec![
        get(
            "/api/backup",
            AccessRequirement::Admin,
            "Streams an export archive of all objects; the header Password encrypts it.",
            download,
        )
        .for_downloads(),
        post(
            "/api/backup",
            AccessRequirement::Admin,
            "Restores an export archive, which replaces all objects and ends all sessions.",
            restore,
        ),
        delete("/api/backup", AccessRequirement::Admin, "Ends a restore that was cut short; its changes stay.", end),
    ]
}

/// Permission to run a backup or restore; one may run at a time.
struct Turn(AppRef);

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
    let mut sealer = EncryptingWriter::new(to, password)?;
    let written = source.write(parts, &mut sealer)?;
    sealer.finish()?;
    Ok(written)
}

async fn download(
    State(app): State<AppRef>,
    caller: Caller,
    headers: HeaderMap,
    wishes: QueryParams,
) -> ApiResult<Response> {
    let turn = Turn::take(&app)?;
    let password = headers.get("password").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let parts = Parts {
        without_secrets: is_on(wishes.omit_sensitive.as_deref()),
        // The backup is complete unless the request explicitly excludes searches.
        without_searches: wishes.savedsearch.as_deref().is_some_and(|wish| !is_on(Some(wish))),
    };
    let source = Source::of(app.store.replica()).map_err(ApiError::internal)?;
    let is_mixed = restores::is_unfinished(&app.store)?;
    if is_mixed {
        tracing::warn!(user = caller.user, "exporting the objects of an unfinished restore");
    }
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
    let now = Timestamp::now().text();
    let day = now.split('T').next().unwrap_or_default();
    // The name stays with the file.
    let state = if is_mixed { "-unfinished-restore" } else { "" };
    let name = format!("attachment; filename=\"gravwell-{day}{state}.gravbak\"");
    let warning = is_mixed.then(|| [(header::WARNING, format!("199 - \"{MIXED}\""))]);
    let head = [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, name)];
    Ok((head, warning, Body::from_stream(admission::until(stream, lost))).into_response())
}

/// Name of the file of a received archive, around a UUID.
const RECEIVED: (&str, &str) = ("restore-", ".tmp");

/// Removes received archives that a webserver of an earlier version has left when it was killed. They contain all
/// secrets.
pub(crate) fn remove_leftovers(data_dir: &Path) {
    let is_received = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(RECEIVED.0)?.strip_suffix(RECEIVED.1));
        id.is_some_and(|id| uuid::Uuid::parse_str(id).is_ok())
    };
    // A directory that cannot be read is reported by what needs it.
    for entry in std::fs::read_dir(data_dir).into_iter().flatten().flatten().filter(is_received) {
        let file = entry.path();
        match std::fs::remove_file(&file) {
            Ok(()) => tracing::warn!(file = %file.display(), "removed an archive whose restore was cut short"),
            Err(error) => tracing::error!(%error, file = %file.display(), "failed to remove a received archive"),
        }
    }
}

/// Creates a file without a name, so that nothing is left of it when the process ends, however that happens.
fn unnamed(data_dir: &Path) -> io::Result<File> {
    let path = data_dir.join(format!("{}{}{}", RECEIVED.0, uuid::Uuid::new_v4(), RECEIVED.1));
    let file = File::options().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
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
async fn receive(data_dir: &Path, free_min: u64, mut form: Form) -> ApiResult<(File, String)> {
    let (mut file, mut password) = (None, String::new());
    while let Some(mut field) = form.next().await? {
        match field.name() {
            Some("backup") => {
                let place = data_dir.to_owned();
                let created = tokio::task::spawn_blocking(move || unnamed(&place)).await.map_err(ApiError::internal)?;
                let mut to = tokio::fs::File::from_std(created?);
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
                file = Some(to.into_std().await);
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
fn open(file: &File, password: &str) -> Result<Box<dyn BufRead>, BackupError> {
    // The position is shared: it is read by one at a time.
    let mut file = file.try_clone()?;
    file.rewind()?;
    let mut first = [0; MAGIC.len()];
    let is_sealed = file.read_exact(&mut first).is_ok() && first == *MAGIC;
    if !is_sealed {
        file.rewind()?;
        return Ok(Box::new(BufReader::new(file)));
    }
    if password.is_empty() {
        return Err(BackupError::Line { line: 1, reason: "the backup is encrypted; enter its password".into() });
    }
    Ok(Box::new(BufReader::new(DecryptingReader::new(BufReader::new(file), password)?)))
}

async fn restore(State(app): State<AppRef>, caller: Caller, headers: HeaderMap, form: Form) -> ApiResult<Json<Value>> {
    let turn = Turn::take(&app)?;
    let (file, mut password) = receive(&app.config.data_dir, app.config.render_store_free_min, form).await?;
    if password.is_empty() {
        password = headers.get("password").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    }
    // The upload may have taken a while.
    let caller = caller.again(&app)?;
    let archive = Archive { file: Arc::new(file), password };
    let (store, examined) = (app.store.clone(), archive.clone());
    let plan = tokio::task::spawn_blocking(move || {
        let refused = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut check = Check::new(&store);
        let examined = examined.read(|item| match item {
            Item::Object(op) => check.object(&op).map_err(refused),
            Item::Chunk(..) => Ok(()),
        })?;
        Ok::<_, BackupError>(check.plan(examined).map_err(refused)?)
    });
    let plan = plan.await.map_err(ApiError::internal)?.map_err(|error| match error {
        BackupError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            ApiError::bad(format!("nothing was restored: {error}"))
        }
        BackupError::Line { .. } => ApiError::bad(format!("nothing was restored: {error}")),
        error => ApiError::internal(error),
    })?;
    if plan.examined.object_bytes > OFFLINE_BYTES_MAX && !app.store.replica().is_connected() {
        let message = format!(
            "datastore is unreachable; backups larger than {OFFLINE_BYTES_MAX} bytes can be restored only while it is \
             online"
        );
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message));
    }
    tracing::warn!(user = caller.user, objects = plan.examined.objects, "restoring a backup");
    // A client that disconnects does not cut the restore short.
    let carrying_out = tokio::spawn(async move {
        let _turn = turn;
        carry_out(&app, &caller, plan, archive).await
    });
    carrying_out.await.map_err(ApiError::internal)?
}

/// A received archive.
#[derive(Clone)]
struct Archive {
    file: Arc<File>,
    password: String,
}

impl Archive {
    fn read(&self, take: impl FnMut(Item) -> io::Result<()>) -> Result<Examined, BackupError> {
        export_archive::read(&mut open(&self.file, &self.password)?, take)
    }
}

async fn carry_out(app: &AppRef, caller: &Caller, plan: Plan, archive: Archive) -> ApiResult<Json<Value>> {
    let chunks = blobs::kept(&app.store)?.store().clone();
    let run = Run::begin(&plan, &caller.author()).await?;
    let (returned, objects) = (plan.returned.clone(), plan.examined.objects);
    let unfinished = |error: ApiError| {
        tracing::error!(error = error.message(), "a restore was cut short");
        error.after(UNFINISHED).with("Unfinished", true)
    };
    let (steps, mut ready) = mpsc::channel::<Step>(2);
    let producing = tokio::task::spawn_blocking(move || {
        let mut are_written = false;
        let pass = |take: &mut dyn FnMut(Op) -> io::Result<()>| {
            let mut is_durable = are_written;
            archive.read(|item| match item {
                Item::Chunk(..) if are_written => Ok(()),
                Item::Chunk(id, raw) => chunks.write(&id, &raw).map(|_| ()).map_err(io::Error::other),
                Item::Object(op) => {
                    if !std::mem::replace(&mut is_durable, true) {
                        chunks.sync().map_err(io::Error::other)?;
                    }
                    take(op)
                }
            })?;
            are_written = true;
            Ok::<_, BackupError>(())
        };
        plan.steps(pass, |step| steps.blocking_send(step).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    });
    let (mut is_undecided, mut is_reported) = (false, false);
    while let Some(step) = ready.recv().await {
        // Reported before it is in force, so that a killed process leaves nothing unreported.
        if step.part == Part::Rights && !std::mem::replace(&mut is_reported, true) {
            report(&returned, app, caller);
        }
        let committed = run.commit(step).await.map_err(|error| unfinished(error.into()))?;
        is_undecided |= matches!(committed, CommitProgress::Pending(_));
    }
    let produced = producing.await.map_err(ApiError::internal).and_then(|done| done.map_err(ApiError::internal));
    produced.map_err(unfinished)?;
    let Returned { tokens, administrators, unlocked } = returned;
    let returned = json!({ "Tokens": tokens, "Administrators": administrators, "Unlocked": unlocked });
    Ok(Json(json!({ "Objects": objects, "Synced": !is_undecided, "Returned": returned })))
}

/// Reports access that had been withdrawn and returns, so that an administrator reviews it.
fn report(returned: &Returned, app: &AppRef, caller: &Caller) {
    for (kind, key) in returned.all() {
        tracing::warn!(kind, key, "restore returns access that had been withdrawn");
        app.recorder.note("restored-access", &caller.into(), format!("returned by a restore: {kind} {key}"));
    }
}

/// Ends an unfinished restore. Its changes stay.
async fn end(State(app): State<AppRef>, caller: Caller) -> ApiResult<Json<Value>> {
    let writes = restores::end(&app.store)?.ok_or_else(|| ApiError::not_found("unfinished restore"))?;
    app.store.commit(&caller.author(), "end an unfinished restore", writes).await?;
    app.recorder.note("restore-ended", &(&caller).into(), "ended an unfinished restore; its changes stay");
    tracing::warn!(user = caller.user, "unfinished restore ended");
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_an_uploaded_archive_has_no_name_and_is_read_from_its_beginning_each_time() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut file = unnamed(temp.path()).expect("creates");
        assert_eq!(std::fs::read_dir(temp.path()).expect("lists").count(), 0);
        file.write_all(b"one\ntwo\n").expect("writes");
        for _ in 0..2 {
            let lines = open(&file, "").expect("opens").lines();
            assert_eq!(lines.collect::<Result<Vec<_>, _>>().expect("reads"), ["one", "two"]);
        }
    }

    #[test]
    fn p11_archives_that_an_earlier_version_left_are_removed() {
        let temp = tempfile::tempdir().expect("temp dir");
        let left = format!("restore-{}.tmp", uuid::Uuid::new_v4());
        let others = ["restore-notes.tmp", "restore.tmp", "gravwell.conf"];
        for name in others.into_iter().chain([left.as_str()]) {
            std::fs::write(temp.path().join(name), "contents").expect("writes");
        }
        remove_leftovers(temp.path());
        let found: std::collections::BTreeSet<_> =
            std::fs::read_dir(temp.path()).expect("reads").map(|entry| entry.expect("reads").file_name()).collect();
        assert_eq!(found, others.into_iter().map(Into::into).collect());
        remove_leftovers(&temp.path().join("missing"));
    }
}
