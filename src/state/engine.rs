//! The little that the state asks of a storage engine: one ordered map of rows, atomic batches, snapshots.
//!
//! [`Engine`] has two implementations: fjall on disk, and a map in memory for simulations. An engine is given rows
//! whose keys are never empty; it must apply a batch whole or not at all, keep batches in order across crashes, and
//! show a snapshot as of one instant. It need not be trusted with the contents.

use std::ops::Bound;

use super::error::StateError;

/// Bytes of a row: shared, cheap to clone.
pub type Slice = ::fjall::Slice;

/// A row as read: key with its table number, and value.
pub type Row = (Slice, Slice);

/// Rows in key order.
pub type Rows = Box<dyn Iterator<Item = Result<Row, StateError>> + Send>;

/// Where a range begins or ends.
pub type End = Bound<Vec<u8>>;

/// Changes that happen together: `None` removes the row.
pub type Batch = Vec<(Slice, Option<Slice>)>;

/// An ordered map with atomic batches.
pub trait Engine: Send + Sync {
    /// The row under `key`, as of the last batch.
    ///
    /// # Errors
    /// When the engine cannot read it.
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError>;

    /// Applies all changes or none; they survive the end of the process, though not yet a power cut.
    ///
    /// # Errors
    /// Any error means that the engine can no longer be used.
    fn write(&self, batch: Batch) -> Result<(), StateError>;

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// Any error means that the engine can no longer be used.
    fn persist(&self) -> Result<(), StateError>;

    /// A view of this instant.
    fn snapshot(&self) -> Box<dyn EngineSnapshot>;

    /// Bytes that the rows take on disk.
    fn disk_bytes(&self) -> u64;
}

/// A view of an engine at one instant.
pub trait EngineSnapshot: Send + Sync {
    /// The row under `key`.
    ///
    /// # Errors
    /// When the engine cannot read it.
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError>;

    /// Rows between two keys, in order. The iterator keeps its own hold on the view.
    fn range(&self, low: End, high: End) -> Rows;
}

/// The end of the range of all keys that begin with `prefix`.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> End {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}
