//! Deletions at the end of a restored log. Objects that granted access at that point in time, and may have been revoked
//! since, are deleted.
//!
//! The deletions are appended before the log is put in place, so these objects are never served.

use bytes::Bytes;

use super::restore::{RestoreError, of_state};
use gravwell_env::{Clock, Entropy, SystemClock, SystemEntropy};
use gravwell_log::Log;
use gravwell_model::{Collection, Entry, EntryBody, Key, MemberName, Op, Origin, OriginCounter, Txn, TxnId};
use gravwell_state::StateStore;

/// Most deletions in one transaction.
const OPS_MAX: usize = 10_000;
/// Member name on behalf of which the deletions are made.
const MEMBER: &str = "restore";

/// Deletes every object of `collections` at the end of `log` and returns their number. `state` must be at the head
/// of `log`.
///
/// # Errors
/// Returns an error if state or log cannot be read or written.
pub(super) fn append(log: &mut Log, state: &StateStore, collections: &[Collection]) -> Result<u64, RestoreError> {
    let objects = objects_of(state, collections)?;
    let failed = |error: &dyn std::fmt::Display| RestoreError::Failed(error.to_string());
    let mut origin = [0; 16];
    SystemEntropy.fill(&mut origin).map_err(|error| failed(&error))?;
    let member = MemberName::new(MEMBER).map_err(|error| failed(&error))?;
    for (counter, objects) in (1..).zip(objects.chunks(OPS_MAX)) {
        let delete = |(collection, key, _): &(Collection, Key, Bytes)| Op::Delete {
            collection: collection.clone(),
            key: key.clone(),
        };
        let now_ms = SystemClock.now_ms();
        let txn = Txn {
            id: TxnId { origin: Origin(origin), counter: OriginCounter(counter) },
            settled: OriginCounter(0),
            time_ms: now_ms,
            note: Bytes::from_static(b"ended by a restore"),
            conditions: Vec::new(),
            ops: objects.iter().map(delete).collect(),
        };
        let (seq, time_ms) = (log.head().0.next(), log.last_time_ms().max(now_ms));
        let entry = Entry { seq, time_ms, member: member.clone(), body: EntryBody::Commit(txn) };
        log.append(std::slice::from_ref(&entry)).map_err(|error| failed(&error))?;
        log.sync().map_err(|error| failed(&error))?;
        state.apply(&[entry], log.head().1).map_err(of_state)?;
    }
    Ok(objects.len() as u64)
}

/// Lists the objects of `collections`.
///
/// # Errors
/// Returns an error if the state cannot be read.
pub(super) fn objects_of(
    state: &StateStore,
    collections: &[Collection],
) -> Result<Vec<(Collection, Key, Bytes)>, RestoreError> {
    let view = state.snapshot().map_err(of_state)?;
    let mut found = Vec::new();
    for collection in collections {
        for row in view.scan(collection, "", std::ops::Bound::Unbounded) {
            let (key, object) = row.map_err(of_state)?;
            found.push((collection.clone(), key, object.value));
        }
    }
    Ok(found)
}
