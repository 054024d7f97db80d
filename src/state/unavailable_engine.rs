//! Stand-in for an engine that is being reopened: every read and write fails with the reason.

use super::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};
use super::error::StateError;

/// An engine of which nothing can be read, so no reader mistakes it for an empty one.
pub(super) struct UnavailableEngine(pub StateError);

impl Engine for UnavailableEngine {
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
        Box::new(UnavailableEngine(self.0.clone()))
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

impl EngineSnapshot for UnavailableEngine {
    fn get(&self, _: &[u8]) -> Result<Option<Slice>, StateError> {
        Err(self.0.clone())
    }

    fn range(&self, _: End, _: End) -> Rows {
        Box::new(std::iter::once(Err(self.0.clone())))
    }
}
