//! The storage engine interface of the state: one ordered map of rows, atomic batches, snapshots.
//!
//! [`Engine`] has two implementations: fjall on disk, and a map in memory for simulations. Keys of rows are never
//! empty. An engine must apply a batch completely or not at all, keep the order of batches across crashes, and provide
//! snapshots of one point in time. The state verifies the contents itself and does not rely on the engine for that.

use std::ops::Bound;

use super::error::StateError;

/// Bytes of a row; reference-counted and cheap to clone.
pub type Slice = ::fjall::Slice;

/// A row as read: the key, which starts with the table number, and the value.
pub type Row = (Slice, Slice);

/// Iterator over rows in key order.
pub type Rows = Box<dyn Iterator<Item = Result<Row, StateError>> + Send>;

/// Start or end of a range.
pub type End = Bound<Vec<u8>>;

/// Changes that are applied together; `None` removes the row.
pub type Batch = Vec<(Slice, Option<Slice>)>;

/// An ordered map with atomic batches.
pub trait Engine: Send + Sync {
    /// Returns the row under `key` as of the last batch.
    ///
    /// # Errors
    /// If the engine cannot read the row.
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError>;

    /// Applies all changes or none. They survive the end of the process, but not yet a power cut.
    ///
    /// # Errors
    /// Any error means that the engine can no longer be used.
    fn write(&self, batch: Batch) -> Result<(), StateError>;

    /// Makes everything written so far survive a power cut.
    ///
    /// # Errors
    /// Any error means that the engine can no longer be used.
    fn persist(&self) -> Result<(), StateError>;

    /// Returns a snapshot of the current rows.
    fn snapshot(&self) -> Box<dyn EngineSnapshot>;

    /// Returns the number of bytes that the rows occupy on disk.
    fn disk_bytes(&self) -> u64;
}

/// A snapshot of an engine at one point in time.
pub trait EngineSnapshot: Send + Sync {
    /// Returns the row under `key`.
    ///
    /// # Errors
    /// If the engine cannot read the row.
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError>;

    /// Returns the rows between two keys in order. The iterator keeps the snapshot alive.
    fn range(&self, low: End, high: End) -> Rows;
}

/// Returns the end of the range of all keys that start with `prefix`.
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
