//! In-memory [`Engine`] for simulations and tests. Its contents are lost with the last handle.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};
use super::error::StateError;

type Map = Arc<BTreeMap<Slice, Slice>>;

/// A copy-on-write map: a change copies it while a snapshot uses it.
#[derive(Default)]
pub(crate) struct MemoryEngine(RwLock<Map>);

impl MemoryEngine {
    fn map(&self) -> Map {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine for MemoryEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut guard = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let map = Arc::make_mut(&mut guard);
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn persist(&self) -> Result<(), StateError> {
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn EngineSnapshot> {
        Box::new(MemorySnapshot(self.map()))
    }

    fn disk_bytes(&self) -> u64 {
        self.map().iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}

struct MemorySnapshot(Map);

impl EngineSnapshot for MemorySnapshot {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        Ok(self.0.get(key).cloned())
    }

    fn range(&self, low: End, high: End) -> Rows {
        let map = Arc::clone(&self.0);
        let mut low = low.map(Slice::from);
        let high = high.map(Slice::from);
        // An iterator cannot own the map that it borrows from, so each step searches for its position again.
        Box::new(std::iter::from_fn(move || {
            let (key, value) = map.range((low.clone(), high.clone())).next()?;
            low = std::ops::Bound::Excluded(key.clone());
            Some(Ok((key.clone(), value.clone())))
        }))
    }
}
