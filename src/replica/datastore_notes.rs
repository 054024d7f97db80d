//! Facts about the datastore's host that a connection shows: its clock, and whether it refuses changes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Difference between the clocks of two hosts from which an operator has to correct one of them, in milliseconds.
const SKEW_MS_MAX: i64 = 5 * 60 * 1000;
/// Time for which the datastore has to refuse changes before this is reported: a moment of back-pressure is normal.
const REFUSED_FOR: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Refused {
    reason: String,
    since: Instant,
}

#[derive(Debug, Default)]
struct Notes {
    /// The datastore's clock when it was heard last, in milliseconds since 1970-01-01 UTC; 0 if never.
    clock_ms: u64,
    /// By how much the own clock was ahead then.
    skew_ms: i64,
    refused: Option<Refused>,
}

/// Facts about the datastore's host.
#[derive(Debug, Default)]
pub(super) struct DatastoreNotes(Mutex<Notes>);

impl DatastoreNotes {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the datastore's clock beside the own one.
    pub(super) fn note_clock(&self, datastore_ms: u64, own_ms: u64) {
        let skew = i128::from(own_ms) - i128::from(datastore_ms);
        let mut notes = self.notes();
        notes.clock_ms = datastore_ms;
        notes.skew_ms = i64::try_from(skew).unwrap_or(if skew < 0 { i64::MIN } else { i64::MAX });
    }

    /// Returns the time that the fleet has reached for certain: the own clock's, unless that is ahead of both the
    /// datastore's clock when it was heard last and `logged_ms`, the time of the last entry.
    pub(super) fn confirmed_ms(&self, own_ms: u64, logged_ms: u64) -> u64 {
        own_ms.min(self.notes().clock_ms.max(logged_ms))
    }

    /// Returns by how many seconds the own clock is ahead of the datastore's, if that is too much.
    pub(super) fn skew_s(&self) -> Option<i64> {
        let skew_ms = self.notes().skew_ms;
        (skew_ms.unsigned_abs() > SKEW_MS_MAX.unsigned_abs()).then_some(skew_ms / 1000)
    }

    /// Records that the datastore deferred a transaction.
    pub(super) fn note_refused(&self, reason: &str) {
        let mut notes = self.notes();
        let since = notes.refused.as_ref().map_or_else(Instant::now, |refused| refused.since);
        notes.refused = Some(Refused { reason: reason.to_owned(), since });
    }

    /// Records that the datastore decided a transaction, or that the connection ended.
    pub(super) fn clear_refused(&self) {
        self.notes().refused = None;
    }

    /// Returns why the datastore has been refusing changes for a while; `None` if it does not.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused_for(REFUSED_FOR)
    }

    fn refused_for(&self, least: Duration) -> Option<String> {
        let notes = self.notes();
        notes.refused.as_ref().filter(|refused| refused.since.elapsed() >= least).map(|refused| refused.reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const DAY: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_clock_that_is_ahead_confirms_nothing() {
        let notes = DatastoreNotes::default();
        assert_eq!(notes.confirmed_ms(NOW, 0), 0, "nothing is known");
        assert_eq!(notes.confirmed_ms(NOW, NOW - DAY), NOW - DAY);
        notes.note_clock(NOW, NOW + 40 * DAY);
        assert_eq!(notes.confirmed_ms(NOW + 40 * DAY, NOW - DAY), NOW);
        assert_eq!(notes.skew_s(), Some(40 * 24 * 3600));
        notes.note_clock(NOW, NOW - DAY);
        assert_eq!(notes.confirmed_ms(NOW - DAY, NOW), NOW - DAY, "a clock that is behind deletes later");
        assert_eq!(notes.skew_s(), Some(-24 * 3600));
        notes.note_clock(NOW, NOW + 60_000);
        assert_eq!(notes.skew_s(), None);
        notes.note_clock(0, u64::MAX);
        assert_eq!(notes.skew_s(), Some(i64::MAX / 1000));
    }

    #[test]
    fn a_refusal_is_reported_once_it_lasts() {
        let notes = DatastoreNotes::default();
        notes.note_refused("the disk is full");
        assert_eq!(notes.refused(), None, "back-pressure of a moment");
        assert_eq!(notes.refused_for(Duration::ZERO).as_deref(), Some("the disk is full"));
        let since = notes.notes().refused.as_ref().map(|refused| refused.since);
        notes.note_refused("waits for recovery");
        assert_eq!(notes.notes().refused.as_ref().map(|refused| refused.since), since);
        notes.clear_refused();
        assert_eq!(notes.refused_for(Duration::ZERO), None);
    }
}
