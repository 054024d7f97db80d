//! Delay before the next connection attempt: exponential with full jitter and a cap, repeated without limit.
//!
//! "Full jitter" draws uniformly between zero and the current limit, which spreads a fleet that lost its datastore at
//! one moment (Brooker, "Exponential Backoff and Jitter", 2015).

use std::time::Duration;

/// State of the delay.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Creates a delay that starts at `first` and never exceeds `cap`.
    #[must_use]
    pub fn new(first: Duration, cap: Duration) -> Backoff {
        Backoff { first, cap, failures: 0 }
    }

    /// Resets the delay after a successful connection.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Counts a failure and returns the delay before the next attempt; `random` is uniform over all `u64`.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let bound = self.first.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures = self.failures.saturating_add(1);
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(random % bound_us.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_cap_and_stay_below_it() {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let delays: Vec<_> = (0..40).map(|_| backoff.next_delay(u64::MAX / 3)).collect();
        assert!(delays.iter().all(|delay| *delay < Duration::from_secs(2)));
        assert!(delays[0] < Duration::from_millis(50));
        assert!(backoff.next_delay(1_999_999) > Duration::from_millis(1900));
        backoff.reset();
        assert!(backoff.next_delay(u64::MAX) < Duration::from_millis(50));
    }
}
