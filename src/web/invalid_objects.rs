//! Tracking of invalid objects while the log is applied: counts them for the metric, and logs each once.

use std::collections::{BTreeSet, HashSet};

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use gravwell_model::{Collection, Key};
use gravwell_objects::invalid::{self, Invalid};
use gravwell_objects::kinds::KINDS;
use gravwell_objects::{Store, StoreError};
use gravwell_replica::Change;
use gravwell_runtime::telemetry::metrics;

/// Maximum number of keys checked in one batch.
const GATHERED: usize = 256;

type Known = BTreeSet<(&'static str, String)>;

/// Follows the changes of the state until dropped.
pub(super) async fn follow(store: &Store) {
    let mut changes = store.replica().watch();
    let mut known = Known::new();
    loop {
        match everything(store).await {
            Ok(found) => {
                found.iter().filter(|found| !known.contains(&place(found))).for_each(say);
                known = found.iter().map(place).collect();
            }
            Err(error) => tracing::warn!(%error, "failed to scan for invalid objects"),
        }
        count(&known);
        if !follow_changes(store, &mut changes, &mut known).await {
            return;
        }
    }
}

fn place(invalid: &Invalid) -> (&'static str, String) {
    (invalid.collection, invalid.key.clone())
}

fn say(invalid: &Invalid) {
    tracing::warn!("{invalid}");
}

async fn everything(store: &Store) -> Result<Vec<Invalid>, String> {
    let store = store.clone();
    let found = tokio::task::spawn_blocking(move || invalid::scan(&store)).await;
    found.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn count(known: &Known) {
    for kind in KINDS {
        let count = known.iter().filter(|(collection, _)| *collection == kind.collection).count();
        metrics::objects_invalid(kind.collection, count);
    }
}

/// Checks changed objects. Returns true if all objects must be scanned again, and false if no more changes will come.
async fn follow_changes(store: &Store, changes: &mut Receiver<Change>, known: &mut Known) -> bool {
    let mut next = Some(changes.recv().await);
    loop {
        let mut concerned: HashSet<(Collection, Key)> = HashSet::new();
        while let Some(change) = next.take() {
            match change {
                Ok(
                    Change::Put { collection, key, .. }
                    | Change::Deleted { collection, key, .. }
                    | Change::Overlay { collection, key },
                ) => drop(concerned.insert((collection, key))),
                Ok(Change::Replaced { .. }) | Err(RecvError::Lagged(_)) => return true,
                Err(RecvError::Closed) => return false,
            }
            if concerned.len() < GATHERED {
                next = changes.try_recv().ok().map(Ok);
            }
        }
        let before = known.len();
        for (collection, key) in concerned {
            if let Err(error) = look(store, &collection, &key, known) {
                tracing::debug!(%error, "failed to validate an object");
            }
        }
        if known.len() != before {
            count(known);
        }
        next = Some(changes.recv().await);
    }
}

fn look(store: &Store, collection: &Collection, key: &Key, known: &mut Known) -> Result<(), StoreError> {
    match invalid::at(store, collection, key)? {
        Some(invalid) => {
            if known.insert(place(&invalid)) {
                say(&invalid);
            }
        }
        None => known.retain(|(of, which)| *of != collection.as_str() || which != key.as_str()),
    }
    Ok(())
}
