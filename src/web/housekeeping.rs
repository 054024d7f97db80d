//! What follows a change that took effect at once: what is left of deleted users, groups and histories is cleared away, and
//! names that nobody bears become free. Everything is done under the condition that it is still as it was read, so it
//! does not matter how many webservers do it, or how often one of them is stopped in the middle.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::Op;
use crate::objects::claims::{Claims, Dispute};
use crate::objects::cleaning::{Cleaning, Cursor};
use crate::objects::store::Author;
use crate::objects::{CommitError, Record, Writes, cleaning};
use crate::replica::{Change, Receipt};

use super::app::AppRef;

/// Work is looked for this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Slices of one work that are on their way at once: so few that they take little memory.
const SLICES_MAX: usize = 4;
/// A dispute must have lasted this long: restores and imports write names and owners one after the other.
const SETTLED: Duration = Duration::from_secs(3);
/// Collections of names and owners.
const NAMED: [&str; 4] = ["users", "user-names", "groups", "group-names"];

/// Runs until dropped.
pub(super) async fn run(app: &AppRef) {
    tokio::join!(clear_away(app), free_names(app));
}

async fn clear_away(app: &AppRef) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Err(error) = clear_away_once(app).await {
            tracing::debug!(%error, "not everything that was deleted is cleared away yet");
        }
    }
}

async fn clear_away_once(app: &AppRef) -> Result<(), CommitError> {
    for work in cleaning::due(&app.store)? {
        clear(app, &work).await?;
    }
    Ok(())
}

/// Clears away what one object asks for, until nothing is left or the datastore is away. Each slice requires what the one before
/// it does, and is decided after it, so that some of them may be on their way at once.
async fn clear(app: &AppRef, work: &Record<Cleaning>) -> Result<(), CommitError> {
    let mut under_way: VecDeque<(Receipt, Writes)> = VecDeque::new();
    let (mut cursor, mut is_last) = (Cursor::default(), false);
    loop {
        let is_halted = is_last || !app.store.replica().is_connected();
        if under_way.len() >= SLICES_MAX || is_halted {
            let Some((receipt, writes)) = under_way.pop_front() else { return Ok(()) };
            match app.store.decision(receipt, &writes).await {
                // Another webserver has done it, or its owner is back.
                Err(CommitError::Conflict(_) | CommitError::Changed(_)) => is_last = true,
                decided => drop(decided?),
            }
            continue;
        }
        let (store, next, mut from) = (app.store.clone(), work.clone(), std::mem::take(&mut cursor));
        let slicing = move || cleaning::slice(&store, &next, &mut from).map(|slice| (slice, from));
        let sliced = tokio::task::spawn_blocking(slicing).await;
        let ((writes, is_end), moved) = sliced.map_err(|error| CommitError::Conflict(error.to_string()))??;
        (cursor, is_last) = (moved, is_end);
        match app.store.begin(&Author::default(), "clear away what was deleted", &writes).await {
            Ok(receipt) => under_way.push_back((receipt, writes)),
            Err(CommitError::Conflict(_) | CommitError::Changed(_)) => is_last = true,
            Err(error) => return Err(error),
        }
    }
}

/// Frees names that nobody bears, and gives owners their names back. What needs a decision is left to `doctor --fix`.
async fn free_names(app: &AppRef) {
    let mut changes = app.store.replica().watch();
    let mut tried: Vec<Dispute> = Vec::new();
    loop {
        let before = disputes(app);
        tokio::time::sleep(SETTLED).await;
        tried.retain(|dispute| before.iter().any(|repair| repair.dispute == *dispute));
        if app.store.replica().is_connected() && !before.is_empty() {
            let read_in = app.store.replica().history();
            let now = disputes(app);
            let lasting = now.into_iter().filter(|repair| {
                let is_same = |other: &crate::objects::claims::Repair| other.dispute == repair.dispute;
                before.iter().any(is_same) && !tried.contains(&repair.dispute) && !repair.needs_a_decision()
            });
            for repair in lasting.collect::<Vec<_>>() {
                let ops: Vec<Op> = repair.ops.clone();
                let writes = Writes::under(ops, repair.conditions.clone(), read_in);
                if let Err(error) = app.store.commit(&Author::default(), &repair.what, writes).await {
                    tracing::debug!(%error, dispute = %repair.dispute, "a name is not put right");
                }
                // What was refused once is not tried for ever.
                tried.push(repair.dispute);
            }
        }
        if !names_change(&mut changes).await {
            return;
        }
    }
}

fn disputes(app: &AppRef) -> Vec<crate::objects::claims::Repair> {
    let found = Claims::of(&app.store).and_then(|claims| claims.repairs());
    found.unwrap_or_else(|error| {
        tracing::debug!(%error, "names cannot be compared with their owners");
        Vec::new()
    })
}

/// Waits until names or owners change; false when there will be no more changes.
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
