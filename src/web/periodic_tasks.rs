//! Periodic work of a webserver: notifies authors of rejected changes, and deletes expired objects.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinSet;

use gravwell_model::TxnId;
use gravwell_objects::cleanup::SLICE;
use gravwell_objects::notifications::{self, LIFE_S, Notification, REJECTED};
use gravwell_objects::sessions::{self, Session};
use gravwell_objects::store::Author;
use gravwell_objects::users::FIRST;
use gravwell_objects::{
    CommitError, Stored, Timestamp, Writes, blobs, epochs, identities, rejection_messages, restores,
};
use gravwell_protocol::outbox::RejectedTxn;
use gravwell_runtime::tasks::blocking;

use super::app::AppRef;
use super::{housekeeping, invalid_objects};

/// Interval at which counts of repeated acts are recorded.
const COUNTS_EVERY: Duration = Duration::from_secs(5);
/// Interval at which expired objects are deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(300);
/// Interval at which searches are checked.
const SEARCHES_EVERY: Duration = Duration::from_secs(30);
/// Lifetime of the notification of a rejection; on the page of rejections it stays until it is handled.
const REJECTION_LIFE_S: u64 = 14 * LIFE_S;

/// Starts the periodic tasks, which run until they are dropped.
pub(super) fn spawn(app: &AppRef, tasks: &mut JoinSet<()>) {
    let watch = app.store.replica().watch_over();
    let of = || AppRef::clone(app);
    let (telling, sweeping, searches) = (of(), of(), of());
    let (following, damage, keeping) = (of(), of(), of());
    tasks.spawn(watch.lasting("rejection notifications", async move { notify_of_rejections(&telling).await }));
    tasks.spawn(watch.lasting("sweeper", async move { sweep(&sweeping).await }));
    tasks.spawn(watch.lasting("sweeper of searches", async move { sweep_searches(&searches).await }));
    tasks.spawn(watch.lasting("removal of searches", async move { following.searches.follow().await }));
    tasks.spawn(watch.lasting("scan for invalid objects", async move { invalid_objects::follow(&damage.store).await }));
    let counting = of();
    tasks.spawn(watch.lasting("counts of repeated actions", async move { count_acts(&counting).await }));
    tasks.spawn(watch.lasting("housekeeping", async move { housekeeping::run(&keeping).await }));
}

async fn count_acts(app: &AppRef) {
    loop {
        tokio::time::sleep(COUNTS_EVERY).await;
        app.recorder.flush();
    }
}

async fn notify_of_rejections(app: &AppRef) {
    let mut changed = app.store.replica().watch_outbox();
    let mut told: HashSet<TxnId> = HashSet::new();
    loop {
        changed.borrow_and_update();
        let rejected = app.store.replica().rejected();
        let listed: HashSet<TxnId> = rejected.iter().map(|rejected| rejected.txn.id).collect();
        told.retain(|id| listed.contains(id));
        for rejection in rejected {
            let id = rejection.txn.id;
            if told.contains(&id) || app.store.is_attended(id) {
                continue;
            }
            match tell(app, &rejection).await {
                Ok(()) => drop(told.insert(id)),
                Err(error) => tracing::warn!(%error, "failed to notify author of rejected change; will retry"),
            }
        }
        // A request that was to report the rejection may end before doing so.
        let waited = tokio::time::timeout(Duration::from_secs(2), changed.changed()).await;
        if matches!(waited, Ok(Err(_))) {
            return;
        }
    }
}

/// Returns the notification id of a rejected transaction. It is the same after a restart, so that it is reported once.
fn number_of(id: TxnId) -> u64 {
    let mut bytes = id.origin.0.to_vec();
    bytes.extend(id.counter.0.to_be_bytes());
    let hash = blake3::hash(&bytes);
    let first = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
    (u64::from_le_bytes(first) >> 11).max(1)
}

async fn tell(app: &AppRef, rejection: &RejectedTxn) -> Result<(), CommitError> {
    let id = number_of(rejection.txn.id);
    let author = Author::of(&rejection.txn.note).filter(|author| author.uid != 0);
    let Some(author) = author else {
        if epochs::are_starts(&rejection.txn.ops) {
            // The ends that it followed remain, and housekeeping starts another epoch.
            let dismissed = app.store.replica().dismiss(rejection.txn.id).await;
            return dismissed.map_err(CommitError::Refused);
        }
        tracing::warn!(reason = %rejection.reason, "change of this webserver rejected");
        return Ok(());
    };
    if app.store.has::<Notification>(&id.to_string())? {
        return Ok(());
    }
    let sent = Timestamp::now();
    // If another user has the number of the author, an administrator is notified.
    let is_there = identities::is_author_there(&app.store, &author, &rejection.txn)?;
    let (uid, whose) = if is_there { (author.uid, String::new()) } else { (FIRST, format!(" (by {})", author.user)) };
    let notification = Notification {
        id,
        uid,
        kind: REJECTED,
        sent,
        expires: sent.plus(REJECTION_LIFE_S),
        msg: format!(
            "Change rejected{whose}: {}: {}.",
            author.what,
            rejection_messages::rejection_message(&rejection.txn.conditions, &rejection.reason)
        ),
        origin: app.uuid,
        level: "error".into(),
        link: "/#/rejections".into(),
        ..Notification::default()
    };
    let mut writes = Writes::new();
    writes.overwrite(&notification, "its ID is derived from the rejection")?;
    app.store.commit(&Author::default(), "notify the author of a rejected change", writes).await.map(drop)
}

async fn sweep_searches(app: &AppRef) {
    loop {
        let swept = async {
            if restores::is_unfinished(&app.store)? {
                return Ok(());
            }
            app.searches.note_interrupted().await?;
            app.searches.sweep().await
        };
        if let Err(error) = swept.await {
            tracing::debug!(%error, "failed to delete expired searches; will retry");
        }
        tokio::time::sleep(SEARCHES_EVERY).await;
    }
}

async fn sweep(app: &AppRef) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        blocking::run(|| app.limiter.keep());
        if let Err(error) = sweep_once(app).await {
            tracing::debug!(%error, "failed to delete expired objects; will retry");
        }
    }
}

async fn delete_all<T: Stored>(
    app: &AppRef,
    keys: &[String],
    what: &str,
    why: &'static str,
) -> Result<(), CommitError> {
    for keys in keys.chunks(SLICE) {
        let mut writes = Writes::new();
        keys.iter().try_for_each(|key| writes.delete_unconditionally::<T>(key, why))?;
        app.store.commit(&Author::default(), what, writes).await?;
    }
    Ok(())
}

async fn sweep_once(app: &AppRef) -> Result<(), CommitError> {
    // Blobs come before the resources that reference them.
    if restores::is_unfinished(&app.store)? {
        return Ok(());
    }
    let ended: Vec<String> =
        notifications::ended(&app.store, app.uuid)?.iter().map(|record| record.value.key()).collect();
    let shown = "it has expired";
    delete_all::<Notification>(app, &ended, "delete expired notifications", shown).await?;
    let ended = sessions::ended(&app.store)?;
    delete_all::<Session>(app, &ended, "delete expired sessions", sessions::ENDED).await?;
    for content in blobs::abandoned(&app.store)? {
        if let Some(writes) = blobs::removal(&app.store, &content)? {
            app.store.commit(&Author::default(), "delete the blob of an aborted upload", writes).await?;
        }
    }
    Ok(())
}
