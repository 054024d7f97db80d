//! Rate limits on users' writes: token buckets for changes and for bytes, refilled at fixed rates. No user can fill the
//! log, its history or the audit log with data that others must read, while a burst from a page or a script
//! still passes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Factor by which administrators may exceed the limits, for imports and cleanups.
const ADMIN_FACTOR: u32 = 4;
/// Number of remembered users above which full buckets are forgotten.
const REMEMBERED_MAX: usize = 4096;

/// Write limits of one user.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Changes per second; 0 for no limit.
    pub changes_per_s: u32,
    /// Maximum burst of changes.
    pub changes_burst: u32,
    /// Bytes per second; 0 for no limit.
    pub bytes_per_s: u64,
    /// Maximum burst of bytes.
    pub bytes_burst: u64,
}

/// A bucket: fill rate per second, and capacity.
#[derive(Clone, Copy)]
struct Kind {
    rate: f64,
    most: f64,
}

impl Kind {
    fn filled(self, left: f64, elapsed: Duration) -> f64 {
        if self.rate == 0.0 { self.most } else { (left + elapsed.as_secs_f64() * self.rate).min(self.most) }
    }

    /// Returns the time until the bucket contains `wanted`; `None` if it does already.
    fn lacks(self, left: f64, wanted: f64) -> Option<Duration> {
        (self.rate != 0.0 && left < wanted).then(|| Duration::from_secs_f64((wanted - left) / self.rate))
    }
}

struct Left {
    changes: f64,
    /// Negative after a change that was larger than the remaining amount.
    bytes: f64,
    at: Instant,
}

/// The buckets of all users.
#[derive(Debug)]
pub struct WriteRate {
    rates: Rates,
    left: Mutex<HashMap<i32, Left>>,
}

impl std::fmt::Debug for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} changes, {} bytes", self.changes, self.bytes)
    }
}

impl WriteRate {
    /// Creates limits with all buckets full.
    #[must_use]
    pub fn new(rates: Rates) -> WriteRate {
        WriteRate { rates, left: Mutex::default() }
    }

    /// Takes one change of the given size from a user's buckets.
    ///
    /// # Errors
    /// If a bucket is empty; returns the time to wait.
    pub fn take(&self, uid: i32, is_admin: bool, bytes: usize) -> Result<(), Duration> {
        self.take_at(uid, is_admin, Some(bytes), Instant::now())
    }

    /// Checks whether a change would be accepted now.
    ///
    /// # Errors
    /// If a bucket is empty; returns the time to wait.
    pub fn look(&self, uid: i32, is_admin: bool) -> Result<(), Duration> {
        self.take_at(uid, is_admin, None, Instant::now())
    }

    fn take_at(&self, uid: i32, is_admin: bool, bytes: Option<usize>, now: Instant) -> Result<(), Duration> {
        let Rates { changes_per_s, changes_burst, bytes_per_s, bytes_burst } = self.rates;
        if changes_per_s == 0 && bytes_per_s == 0 {
            return Ok(());
        }
        let factor = f64::from(if is_admin { ADMIN_FACTOR } else { 1 });
        let kind = |rate: f64, most: f64| Kind { rate: rate * factor, most: most * factor };
        let changes = kind(changes_per_s.into(), changes_burst.max(1).into());
        #[expect(clippy::cast_precision_loss, reason = "the limit need not be exact to the byte")]
        let amounts = kind(bytes_per_s as f64, bytes_burst.max(1) as f64);
        let mut known = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |left: &Left| {
            let elapsed = now.saturating_duration_since(left.at);
            (changes.filled(left.changes, elapsed), amounts.filled(left.bytes, elapsed))
        };
        if known.len() >= REMEMBERED_MAX && !known.contains_key(&uid) {
            known.retain(|_, left| filled(left) != (changes.most, amounts.most));
        }
        let (changes_left, bytes_left) = known.get(&uid).map_or((changes.most, amounts.most), filled);
        // A change may be larger than the remaining amount: the deficit must be refilled before the next one.
        if let Some(wait) = changes.lacks(changes_left, 1.0).max(amounts.lacks(bytes_left, 1.0)) {
            return Err(wait);
        }
        let Some(bytes) = bytes else { return Ok(()) };
        #[expect(clippy::cast_precision_loss, reason = "the limit need not be exact to the byte")]
        let bytes_left = bytes_left - bytes as f64;
        known.insert(uid, Left { changes: changes_left - 1.0, bytes: bytes_left, at: now });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { changes_per_s: 50, changes_burst: 500, bytes_per_s: 1000, bytes_burst: 10_000 };

    #[test]
    fn p15_a_burst_passes_and_then_the_rate_counts() {
        let (rate, start) = (WriteRate::new(RATES), Instant::now());
        let passed = |uid, is_admin, at: Instant| {
            (0..10_000).take_while(|_| rate.take_at(uid, is_admin, Some(0), at).is_ok()).count()
        };
        assert_eq!((passed(7, false, start), passed(1, true, start)), (500, 2000));
        assert_eq!(passed(8, false, start), 500, "each user has a separate bucket");
        let wait = rate.take_at(7, false, Some(0), start).expect_err("bucket is empty");
        assert!(wait <= Duration::from_millis(20), "{wait:?}");
        assert_eq!(passed(7, false, start + Duration::from_secs(1)), 50);
        assert_eq!(passed(7, false, start + Duration::from_secs(3600)), 500);
        let unbounded = Rates { changes_per_s: 0, changes_burst: 0, bytes_per_s: 0, bytes_burst: 0 };
        assert_eq!(WriteRate::new(unbounded).take_at(7, false, Some(usize::MAX), start), Ok(()));
    }

    #[test]
    fn p15_bytes_count_as_well_as_changes() {
        let (rate, start) = (WriteRate::new(RATES), Instant::now());
        let take = |bytes, after_s| rate.take_at(7, false, Some(bytes), start + Duration::from_secs(after_s));
        assert_eq!((take(9_999, 0), take(5_000, 0)), (Ok(()), Ok(())), "a change may exceed the remaining amount once");
        let wait = take(1, 0).expect_err("bucket has a deficit");
        assert!(wait > Duration::from_secs(4) && wait <= Duration::from_secs(6), "{wait:?}");
        assert_eq!(rate.take_at(8, false, Some(1), start), Ok(()), "other users have separate limits");
        assert!(take(1, 4).is_err() && take(1, 6).is_ok());
        let looked = (0..10_000).filter(|_| rate.take_at(9, false, None, start).is_ok()).count();
        assert_eq!(looked, 10_000, "a check consumes nothing");
    }

    #[test]
    fn p15_users_who_do_nothing_are_forgotten() {
        let (rate, start) = (WriteRate::new(Rates { changes_per_s: 1, changes_burst: 10, ..RATES }), Instant::now());
        for uid in 0..10_000 {
            rate.take_at(uid, false, Some(1), start + Duration::from_secs(uid.unsigned_abs().into()))
                .expect("has room");
        }
        assert!(rate.left.lock().expect("not poisoned").len() <= REMEMBERED_MAX);
    }
}
