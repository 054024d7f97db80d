//! Rate limit for log lines about events that others can trigger at will: one line per interval, with the number of
//! suppressed ones.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum time between two lines.
const INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

/// Rate limiter for one kind of event.
#[derive(Debug)]
pub struct LogRateLimit(Mutex<State>);

impl Default for LogRateLimit {
    fn default() -> LogRateLimit {
        LogRateLimit::new()
    }
}

impl LogRateLimit {
    /// Creates a limiter without any event.
    #[must_use]
    pub const fn new() -> LogRateLimit {
        LogRateLimit(Mutex::new(State { last: None, left_out: 0 }))
    }

    /// Records an event. If it should be logged, returns the number of events suppressed since the last logged one.
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
        let (seldom, start) = (LogRateLimit::new(), Instant::now());
        assert_eq!(seldom.note_at(start), Some(0));
        for _ in 0..999 {
            assert_eq!(seldom.note_at(start + INTERVAL / 2), None);
        }
        assert_eq!(seldom.note_at(start + INTERVAL), Some(999));
        assert_eq!(seldom.note_at(start + INTERVAL), None);
        assert_eq!(seldom.note_at(start + INTERVAL * 3), Some(1));
    }
}
