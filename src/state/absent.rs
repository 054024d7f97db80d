//! The stand-in of an engine that is being opened again: it answers everything with the reason.

use super::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};
use super::error::StateError;

/// An engine without rows, of which nothing can be read: a reader never takes it for an empty one.
pub(super) struct Absent(pub StateError);

impl Engine for Absent {
    fn get(&self, _: &[u8]) -> Result<Option<Slice>, StateError> {
        Err(self.0.clone())
    }

    fn write(&self, _: Batch) -> Result<(), StateError> {
        Err(self.0.clone())
    }

    fn persist(&self) -> Result<(), StateError> {
        Err(self.0.clone())
    }

    fn snapshot(&self) -> Box<dyn EngineSnapshot> {
        Box::new(Absent(self.0.clone()))
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

impl EngineSnapshot for Absent {
    fn get(&self, _: &[u8]) -> Result<Option<Slice>, StateError> {
        Err(self.0.clone())
    }

    fn range(&self, _: End, _: End) -> Rows {
        Box::new(std::iter::once(Err(self.0.clone())))
    }
}
