//! Bandwidth limit for chunks: a token bucket that all streams of a process share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Burst allowed after a pause, as a duration at the configured rate.
const BURST: Duration = Duration::from_millis(100);

/// Limits the bandwidth with which a process sends chunks. Clones share the limit.
#[derive(Clone, Debug, Default)]
pub struct RateLimiter(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_s: u64,
    /// Earliest time at which the next byte may be sent.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// Creates a limiter; 0 means no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> RateLimiter {
        RateLimiter((bytes_per_s > 0).then(|| Arc::new(Bucket { bytes_per_s, next: Mutex::default() })))
    }

    /// Waits until `bytes` more may be sent. Callers are served in order.
    pub async fn pass(&self, bytes: usize) {
        let Some(bucket) = &self.0 else { return };
        let turn = bucket.take(bytes, Instant::now());
        sleep_until(turn).await;
    }
}

impl Bucket {
    /// Reserves `bytes` and returns the time at which they may be sent.
    fn take(&self, bytes: usize, now: Instant) -> Instant {
        let micros = (bytes as u64).saturating_mul(1_000_000) / self.bytes_per_s;
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = next.unwrap_or(earliest).max(earliest);
        *next = Some(turn + Duration::from_micros(micros));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_over_any_second_but_for_a_burst() {
        let bucket = Bucket { bytes_per_s: 1_000_000, next: Mutex::default() };
        let start = Instant::now();
        let mut last = start;
        for _ in 0..100 {
            last = bucket.take(50_000, start).max(last);
        }
        let took = last - start;
        assert!(took > Duration::from_millis(4_800) && took < Duration::from_millis(5_000), "{took:?}");
        let later = last + Duration::from_secs(60);
        assert!(bucket.take(50_000, later) <= later, "idle time is not accumulated, but the next may go immediately");
        assert!(bucket.take(500_000, later) <= later);
        assert!(bucket.take(1, later) > later);
    }
}
