//! Lines of the log about what others can cause as often as they like: one in an interval, with how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

/// Events of one kind.
#[derive(Debug)]
pub struct Seldom(Mutex<State>);

impl Default for Seldom {
    fn default() -> Seldom {
        Seldom::new()
    }
}

impl Seldom {
    /// None has happened yet.
    #[must_use]
    pub const fn new() -> Seldom {
        Seldom(Mutex::new(State { last: None, left_out: 0 }))
    }

    /// One has happened. When it is to be written: how many were left out since the last one that was.
    pub fn note(&self) -> Option<u64> {
        self.note_at(Instant::now())
    }

    fn note_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_a_flood_is_one_line_in_an_interval_with_a_count() {
        let (seldom, start) = (Seldom::new(), Instant::now());
        assert_eq!(seldom.note_at(start), Some(0));
        for _ in 0..999 {
            assert_eq!(seldom.note_at(start + INTERVAL / 2), None);
        }
        assert_eq!(seldom.note_at(start + INTERVAL), Some(999));
        assert_eq!(seldom.note_at(start + INTERVAL), None);
        assert_eq!(seldom.note_at(start + INTERVAL * 3), Some(1));
    }
}
