//! The storage engine of the state on a simulated disk: of the batches that are not persisted, a prefix survives a power cut.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gravwell_env::memory_fs::SmallRandom;
use gravwell_state::StateError;
use gravwell_state::engine::{Batch, End, Engine, EngineSnapshot, Rows, Slice};

type Map = Arc<BTreeMap<Slice, Slice>>;

#[derive(Default)]
struct Rest {
    rows: Map,
    /// Inverse of each batch that is not persisted, oldest first.
    undo: Vec<Batch>,
    fails: bool,
}

/// One simulated database; clones share it.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Rest>>);

impl Disk {
    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns another disk with the same contents.
    pub fn copy(&self) -> Disk {
        let rows = Arc::clone(&self.rest().rows);
        Disk(Arc::new(Mutex::new(Rest { rows, ..Rest::default() })))
    }

    /// Simulates a power cut: keeps the persisted batches and some of the later ones, in order.
    pub fn cut_power(&self, random: &mut SmallRandom) {
        let mut rest = self.rest();
        let kept = random.below(rest.undo.len() + 1);
        while rest.undo.len() > kept {
            let Some(undo) = rest.undo.pop() else { break };
            let rows = Arc::make_mut(&mut rest.rows);
            for (key, value) in undo {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
        }
        rest.undo.clear();
        rest.fails = false;
    }

    /// Makes the next write or persist fail, like a full or broken disk.
    pub fn fail_next(&self) {
        self.rest().fails = true;
    }

    pub fn heal(&self) {
        self.rest().fails = false;
    }

    /// Flips one bit of the value of one row.
    pub fn damage(&self, random: &mut SmallRandom) -> bool {
        let mut rest = self.rest();
        if rest.rows.is_empty() {
            return false;
        }
        let place = random.below(rest.rows.len());
        let Some((key, value)) = rest.rows.iter().nth(place).map(|(key, value)| (key.clone(), value.to_vec())) else {
            return false;
        };
        let mut value = value;
        if value.is_empty() {
            return false;
        }
        let at = random.below(value.len());
        value[at] ^= 1 << random.below(8);
        Arc::make_mut(&mut rest.rows).insert(key, Slice::from(value));
        true
    }

    fn check(rest: &mut Rest) -> Result<(), StateError> {
        if std::mem::take(&mut rest.fails) {
            return Err(StateError::Stopped { cause: "simulated failure".into() });
        }
        Ok(())
    }
}

impl Engine for Disk {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        Ok(self.rest().rows.get(key).cloned())
    }

    fn write(&self, batch: Batch) -> Result<(), StateError> {
        let mut rest = self.rest();
        Disk::check(&mut rest)?;
        let mut undo = Batch::new();
        {
            let rows = Arc::make_mut(&mut rest.rows);
            for (key, value) in batch {
                let old = match value {
                    Some(value) => rows.insert(key.clone(), value),
                    None => rows.remove(&key),
                };
                undo.push((key, old));
            }
        }
        undo.reverse();
        rest.undo.push(undo);
        Ok(())
    }

    fn persist(&self) -> Result<(), StateError> {
        let mut rest = self.rest();
        Disk::check(&mut rest)?;
        rest.undo.clear();
        Ok(())
    }

    fn snapshot(&self) -> Box<dyn EngineSnapshot> {
        Box::new(View(Arc::clone(&self.rest().rows)))
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}

struct View(Map);

impl EngineSnapshot for View {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        Ok(self.0.get(key).cloned())
    }

    fn range(&self, low: End, high: End) -> Rows {
        let range = (low.map(Slice::from), high.map(Slice::from));
        let rows: Vec<_> = self.0.range(range).map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
        Box::new(rows.into_iter())
    }
}
