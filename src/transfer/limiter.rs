//! The bandwidth cap for chunks: a token bucket that all streams of a process share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// Bounds what a process sends of chunks. Clones share the bound.
#[derive(Clone, Debug, Default)]
pub struct Limiter(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    bytes_per_s: u64,
    /// When the next byte may be sent.
    next: Mutex<Option<Instant>>,
}

impl Limiter {
    /// At most so many bytes a second; 0: no bound.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Limiter {
        Limiter((bytes_per_s > 0).then(|| Arc::new(Bucket { bytes_per_s, next: Mutex::default() })))
    }

    /// Waits until `bytes` more may be sent. Whoever asks first goes first.
    pub async fn pass(&self, bytes: usize) {
        let Some(bucket) = &self.0 else { return };
        let turn = bucket.take(bytes, Instant::now());
        sleep_until(turn).await;
    }
}

impl Bucket {
    /// When `bytes` may be sent.
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
        assert!(bucket.take(50_000, later) <= later, "a pause is not saved up, but the next may go at once");
        assert!(bucket.take(500_000, later) <= later);
        assert!(bucket.take(1, later) > later);
    }
}
