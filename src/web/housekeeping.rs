//! Follow-up work of changes that took effect immediately: removes the data of deleted users, groups and search
//! histories, frees names without an owner, and starts the epochs that follow ends of sessions and tokens. Each transaction requires that the objects are as they were read, so
//! several webservers may do the same work, and it may be interrupted at any point.

use std::collections::VecDeque;
use std::time::Duration;

use gravwell_model::Op;
use gravwell_objects::claims::{Claims, Dispute};
use gravwell_objects::cleanup::{Cleaning, Cursor};
use gravwell_objects::sessions::Session;
use gravwell_objects::store::Author;
use gravwell_objects::tokens::Token;
use gravwell_objects::{CommitError, Record, Writes, cleanup, epochs, restores};
use gravwell_replica::{Change, Receipt};

use super::app::AppRef;

/// Interval at which pending work is looked up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Maximum number of slices in flight of one work item, chosen so that they take little memory.
const SLICES_MAX: usize = 4;
/// Time for which a dispute must persist, because restores and imports write names and owners one after the other.
const SETTLED: Duration = Duration::from_secs(3);
/// Collections of names and owners, and that of the mark of an unfinished restore, which hides their disputes.
const NAMED: [&str; 5] = ["users", "user-names", "groups", "group-names", "restores"];

/// Runs until dropped.
pub(super) async fn run(app: &AppRef) {
    tokio::join!(clean_up(app), free_names(app), follow_ends(app));
}

async fn follow_ends(app: &AppRef) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !app.store.replica().is_connected() {
            continue;
        }
        let tidied = async {
            epochs::tidy::<Session>(&app.store).await?;
            epochs::tidy::<Token>(&app.store).await
        };
        if let Err(error) = tidied.await {
            tracing::debug!(%error, "failed to start an epoch or delete an end; will retry");
        }
    }
}

async fn clean_up(app: &AppRef) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = clean_up_once(app).await {
            tracing::debug!(%error, "failed to delete leftovers of deleted objects; will retry");
        }
    }
}

async fn clean_up_once(app: &AppRef) -> Result<(), CommitError> {
    // An unfinished restore may not have written the owner yet.
    if restores::is_unfinished(&app.store)? {
        return Ok(());
    }
    for work in cleanup::due(&app.store)? {
        clear(app, &work).await?;
    }
    Ok(())
}

/// Removes the objects of one work item until none are left, a slice must be decided first, or the datastore is
/// unreachable; the next pass continues. Each slice has the same preconditions as the one before and is resolved after it,
/// so several may be in flight.
async fn clear(app: &AppRef, work: &Record<Cleaning>) -> Result<(), CommitError> {
    let mut under_way: VecDeque<(Receipt, Writes)> = VecDeque::new();
    let (mut cursor, mut is_end) = (Cursor::default(), false);
    loop {
        let is_halted = is_end || !app.store.replica().is_connected();
        if under_way.len() >= SLICES_MAX || is_halted {
            let Some((receipt, writes)) = under_way.pop_front() else { return Ok(()) };
            match app.store.decision(receipt, &writes).await {
                // Another webserver has done the work, the owner exists again, or an object was changed.
                Err(CommitError::Conflict(_) | CommitError::Changed(_)) => is_end = true,
                decided => drop(decided?),
            }
            continue;
        }
        let (store, next, mut from) = (app.store.clone(), work.clone(), std::mem::take(&mut cursor));
        let slicing = move || cleanup::slice(&store, &next, &mut from).map(|slice| (slice, from));
        let sliced = tokio::task::spawn_blocking(slicing).await;
        let ((writes, waits), moved) = sliced.map_err(|error| CommitError::Conflict(error.to_string()))??;
        (cursor, is_end) = (moved, waits);
        match app.store.begin(&Author::default(), "delete leftovers of deleted objects", &writes).await {
            Ok(begun) => under_way.push_back(begun),
            Err(CommitError::Conflict(_) | CommitError::Changed(_)) => is_end = true,
            Err(error) => return Err(error),
        }
    }
}

/// Frees names without an owner, and restores missing names of owners. Ambiguous disputes are left to `doctor --fix`.
async fn free_names(app: &AppRef) {
    let mut changes = app.store.replica().watch();
    let mut tried: Vec<Dispute> = Vec::new();
    loop {
        let before = disputes(app);
        tokio::time::sleep(SETTLED).await;
        tried.retain(|dispute| before.iter().any(|repair| repair.dispute == *dispute));
        let is_settled = !restores::is_unfinished(&app.store).unwrap_or(true);
        if is_settled && app.store.replica().is_connected() && !before.is_empty() {
            let read_in = app.store.replica().history();
            let now = disputes(app);
            let lasting = now.into_iter().filter(|repair| {
                let is_same = |other: &gravwell_objects::claims::Repair| other.dispute == repair.dispute;
                before.iter().any(is_same) && !tried.contains(&repair.dispute) && !repair.needs_a_decision()
            });
            for repair in lasting.collect::<Vec<_>>() {
                let ops: Vec<Op> = repair.ops.clone();
                let writes = Writes::under(ops, repair.conditions.clone(), read_in);
                if let Err(error) = app.store.commit(&Author::default(), &repair.what, writes).await {
                    tracing::debug!(%error, dispute = %repair.dispute, "failed to repair a name");
                }
                // A rejected repair is not retried forever.
                tried.push(repair.dispute);
            }
        }
        if !names_change(&mut changes).await {
            return;
        }
    }
}

fn disputes(app: &AppRef) -> Vec<gravwell_objects::claims::Repair> {
    let found = Claims::of(&app.store).and_then(|claims| claims.repairs());
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "failed to compare names with their owners");
        Vec::new()
    })
}

/// Waits until names or owners change; returns false when there will be no more changes.
async fn names_change(changes: &mut tokio::sync::broadcast::Receiver<Change>) -> bool {
    use tokio::sync::broadcast::error::RecvError;
    loop {
        let collection = match changes.recv().await {
            Ok(
                Change::Put { collection, .. }
                | Change::Deleted { collection, .. }
                | Change::Overlay { collection, .. },
            ) => collection,
            Ok(Change::Replaced { .. }) | Err(RecvError::Lagged(_)) => return true,
            Err(RecvError::Closed) => return false,
        };
        if NAMED.contains(&collection.as_str()) {
            return true;
        }
    }
}
