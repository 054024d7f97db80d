//! Reading: the committed state with the replica's own undecided transactions on top.

use std::ops::Bound;

use bytes::Bytes;

use crate::model::{Collection, Key, Seq};
use crate::protocol::outbox::Overlaid;
use crate::state::StateError;

use super::shared::Shared;

/// Why a read failed. A damaged state is being fetched anew by itself.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ReadError(#[from] StateError);

impl ReadError {
    /// Whether it passes by itself: nothing is wrong with what was to be read.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(self.0, StateError::NotNow { .. } | StateError::Unavailable { .. })
    }
}

/// An object as the replica sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Contents.
    pub value: Bytes,
    /// Sequence of its last write; `None` while its last write is not yet decided.
    pub version: Option<Seq>,
    /// When it was last written, milliseconds since 1970-01-01 UTC; 0 while not decided.
    pub time_ms: u64,
}

impl Shared {
    /// One object, own undecided transactions included.
    ///
    /// # Errors
    /// When the state is damaged.
    pub(super) fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, ReadError> {
        // The overlay first: a transaction leaves it only after the state has taken it in.
        let overlaid = self.outbox().look_up(collection, key);
        match overlaid {
            Overlaid::Put(value) => Ok(Some(Object { value, version: None, time_ms: 0 })),
            Overlaid::Deleted => Ok(None),
            Overlaid::Untouched => Ok(self.state().get(collection, key)?.map(of_state)),
        }
    }

    /// The objects of a collection whose keys start with `prefix` and come after `after`, in key order, at most
    /// `limit`; own undecided transactions included.
    ///
    /// # Errors
    /// When the state is damaged.
    pub(super) fn scan(
        &self,
        collection: &Collection,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Object)>, ReadError> {
        let overlay = self.outbox().scan(collection, prefix);
        let mut overlay = overlay.into_iter().filter(|(key, _)| after.is_none_or(|after| key > after)).peekable();
        let snapshot = self.state().snapshot()?;
        let from = after.map_or(Bound::Unbounded, |after| Bound::Excluded(after.as_str()));
        let mut found = Vec::new();
        let put = |found: &mut Vec<_>, key, overlaid| {
            if let Overlaid::Put(value) = overlaid {
                found.push((key, Object { value, version: None, time_ms: 0 }));
            }
        };
        for row in snapshot.scan(collection, prefix, from) {
            let (key, object) = row?;
            while let Some((pending, overlaid)) = overlay.next_if(|(pending, _)| *pending < key) {
                put(&mut found, pending, overlaid);
            }
            if found.len() >= limit {
                break;
            }
            match overlay.next_if(|(pending, _)| *pending == key) {
                Some((key, overlaid)) => put(&mut found, key, overlaid),
                None => found.push((key, of_state(object))),
            }
        }
        for (key, overlaid) in overlay {
            if found.len() >= limit {
                break;
            }
            put(&mut found, key, overlaid);
        }
        found.truncate(limit);
        Ok(found)
    }
}

fn of_state(object: crate::state::Object) -> Object {
    Object { value: object.value, version: Some(object.version), time_ms: object.time_ms }
}
