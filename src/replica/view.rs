//! Reads: the committed state, overlaid with the replica's own pending transactions.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use gravwell_model::{Collection, Key, Seq, TxnId};
use gravwell_protocol::outbox::OverlayRead;
use gravwell_state::StateError;

use super::handle::Replica;
use super::history::History;
use super::shared::ReplicaState;

/// Error of a read. A corrupt state is fetched again automatically.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReadError(#[from] StateError);

impl ReadError {
    /// Returns whether the error is temporary: the data to be read is intact.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self.0, StateError::NotNow { .. } | StateError::Unavailable { .. })
    }
}

/// An object as the replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Value of the object.
    pub value: Bytes,
    /// Sequence of its last write; `None` while that is pending.
    pub version: Option<Seq>,
    /// Transaction of its last write, while that is pending.
    pub pending: Option<TxnId>,
    /// Time of its last write, in milliseconds since 1970-01-01 UTC; 0 while that is pending.
    pub time_ms: u64,
    /// History in which it was read.
    pub read_in: History,
}

impl Replica {
    /// Returns the last transaction that wrote an object whose creation is pending, and the history in which that was
    /// read; `None` if its creation is not pending.
    #[must_use]
    pub fn pending_creation(&self, collection: &Collection, key: &Key) -> Option<(TxnId, History)> {
        let read_in = self.history();
        self.shared.outbox().last_writer_since_creation(collection, key).map(|id| (id, read_in))
    }
}

impl ReplicaState {
    /// Returns one object, own pending transactions included.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub(super) fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, ReadError> {
        let read_in = self.histories.present();
        // Read the overlay first: a transaction leaves it only after the state has applied it.
        let (overlaid, writer) = {
            let outbox = self.outbox();
            (outbox.look_up(collection, key), outbox.last_writer(collection, key))
        };
        match overlaid {
            OverlayRead::Put(value) => Ok(Some(of_outbox(value, writer, read_in))),
            OverlayRead::Deleted => Ok(None),
            OverlayRead::Untouched => Ok(self.state().get(collection, key)?.map(|object| of_state(object, read_in))),
        }
    }

    /// Returns the objects of a collection whose keys start with `prefix` and come after `after`, in key order, at most
    /// `limit`; own pending transactions included.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub(super) fn scan(
        &self,
        collection: &Collection,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Object)>, ReadError> {
        let mut found = Vec::new();
        if limit > 0 {
            self.each(collection, prefix, after, |key, object| {
                found.push((key, object));
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        Ok(found)
    }

    /// Visits objects one at a time, in key order, until `visit` breaks. Only one object is held in memory.
    pub(super) fn each(
        &self,
        collection: &Collection,
        prefix: &str,
        after: Option<&Key>,
        mut visit: impl FnMut(Key, Object) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let read_in = self.histories.present();
        let overlay: Vec<_> = {
            let outbox = self.outbox();
            let touched = outbox.scan(collection, prefix).into_iter();
            let touched = touched.filter(|(key, _)| after.is_none_or(|after| key > after));
            touched.map(|(key, overlaid)| (outbox.last_writer(collection, &key), key, overlaid)).collect()
        };
        let mut overlay = overlay.into_iter().peekable();
        let snapshot = self.state().snapshot()?;
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_str()));
        let shown = |(writer, key, overlaid)| match overlaid {
            OverlayRead::Put(value) => Some((key, of_outbox(value, writer, read_in))),
            OverlayRead::Deleted | OverlayRead::Untouched => None,
        };
        for row in snapshot.scan(collection, prefix, from) {
            let (key, object) = row?;
            while let Some(pending) = overlay.next_if(|(_, pending, _)| *pending < key) {
                if shown(pending).is_some_and(|(key, object)| visit(key, object).is_break()) {
                    return Ok(());
                }
            }
            let found = match overlay.next_if(|(_, pending, _)| *pending == key) {
                Some(pending) => shown(pending),
                None => Some((key, of_state(object, read_in))),
            };
            if found.is_some_and(|(key, object)| visit(key, object).is_break()) {
                return Ok(());
            }
        }
        let _ = overlay.filter_map(shown).try_for_each(|(key, object)| visit(key, object));
        Ok(())
    }
}

fn of_state(object: gravwell_state::Object, read_in: History) -> Object {
    let gravwell_state::Object { value, version, time_ms } = object;
    Object { value, version: Some(version), pending: None, time_ms, read_in }
}

fn of_outbox(value: Bytes, writer: Option<TxnId>, read_in: History) -> Object {
    Object { value, version: None, pending: writer, time_ms: 0, read_in }
}
