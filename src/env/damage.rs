//! Damage that a running process has found in its stored data.
//!
//! Each store has one record, in which all of its reads note the damage they find; the status of the process is
//! derived from the records. So no reader has to report damage separately, and none can forget to.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Maximum number of distinct findings that are kept; further ones are only counted.
const KEPT: usize = 8;
/// Maximum length of a finding in characters.
const TEXT_CHARS_MAX: usize = 512;

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// Damage found by reads of one store; clones are handles of the same record.
#[derive(Clone, Default)]
pub struct DamageRecord(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    found: Vec<String>,
    more: u64,
    listener: Option<Listener>,
}

impl fmt::Debug for DamageRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DamageRecord").field(&self.lock().found).finish()
    }
}

impl DamageRecord {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records damage. A finding that is already recorded is not added again.
    pub fn note(&self, what: &dyn fmt::Display) {
        let text: String = what.to_string().chars().take(TEXT_CHARS_MAX).collect();
        let mut inner = self.lock();
        if inner.found.contains(&text) {
            return;
        }
        if inner.found.len() >= KEPT {
            inner.more += 1;
            return;
        }
        if let Some(listener) = &inner.listener {
            listener(&text);
        }
        inner.found.push(text);
    }

    /// Returns `result` unchanged and records its error if `is_damage` returns true.
    ///
    /// # Errors
    /// Returns the error of `result`.
    pub fn checked<T, E: fmt::Display>(
        &self,
        result: Result<T, E>,
        is_damage: impl FnOnce(&E) -> bool,
    ) -> Result<T, E> {
        if let Err(error) = &result
            && is_damage(error)
        {
            self.note(error);
        }
        result
    }

    /// Calls `listener` with each existing finding and with each new one. The listener must not read from the store.
    pub fn listen(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        let mut inner = self.lock();
        inner.found.iter().for_each(|found| listener(found));
        inner.listener = Some(Box::new(listener));
    }

    /// Returns a summary for display; `None` if nothing was found.
    #[must_use]
    pub fn summary(&self) -> Option<String> {
        let inner = self.lock();
        let first = inner.found.first()?;
        Some(match inner.found.len() as u64 - 1 + inner.more {
            0 => first.clone(),
            more => format!("{first} ({more} more)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn damage_is_noted_once_per_place_and_bounded() {
        let (record, heard) = (DamageRecord::default(), Arc::new(AtomicUsize::new(0)));
        assert_eq!(record.summary(), None);
        record.note(&"row 0");
        let counter = Arc::clone(&heard);
        record.listen(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        record.note(&"row 0");
        assert_eq!((record.summary().as_deref(), heard.load(Ordering::Relaxed)), (Some("row 0"), 1));
        for row in 1..100 {
            let _ = record.clone().checked(Err::<(), _>(format!("row {row}")), |_| true);
        }
        let _ = record.checked(Err::<(), _>("too busy"), |_| false);
        assert_eq!((record.summary().as_deref(), heard.load(Ordering::Relaxed)), (Some("row 0 (99 more)"), KEPT));
        record.note(&"é".repeat(TEXT_CHARS_MAX));
    }
}
