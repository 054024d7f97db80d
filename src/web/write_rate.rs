//! How fast one user may change things: a bucket that fills at a fixed rate. So nobody fills the log, its history or the audit
//! with what others would have to read, and a burst of a page or of a script still passes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Administrators import and clean up: they may do this many times as much.
const ADMIN_FACTOR: u32 = 4;
/// Users of whom it is remembered how full their bucket is. Full ones need not be remembered.
const REMEMBERED_MAX: usize = 4096;

struct Bucket {
    /// Changes that may be made at once.
    left: f64,
    at: Instant,
}

/// The buckets of all users.
pub(super) struct WriteRate {
    per_s: u32,
    burst: u32,
    buckets: Mutex<HashMap<i32, Bucket>>,
}

impl WriteRate {
    /// `per_s` changes in a second, and `burst` at once; 0 changes in a second: as many as one likes.
    pub(super) fn new(per_s: u32, burst: u32) -> WriteRate {
        WriteRate { per_s, burst: burst.max(1), buckets: Mutex::default() }
    }

    /// Takes one change from a user's bucket.
    ///
    /// # Errors
    /// When it is empty: how long to wait.
    pub(super) fn take(&self, uid: i32, is_admin: bool) -> Result<(), Duration> {
        self.take_at(uid, is_admin, Instant::now())
    }

    fn take_at(&self, uid: i32, is_admin: bool, now: Instant) -> Result<(), Duration> {
        if self.per_s == 0 {
            return Ok(());
        }
        let factor = f64::from(if is_admin { ADMIN_FACTOR } else { 1 });
        let (rate, most) = (f64::from(self.per_s) * factor, f64::from(self.burst) * factor);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let filled = |bucket: &Bucket| bucket.left + now.saturating_duration_since(bucket.at).as_secs_f64() * rate;
        if buckets.len() >= REMEMBERED_MAX && !buckets.contains_key(&uid) {
            buckets.retain(|_, bucket| filled(bucket) < most);
        }
        let left = buckets.get(&uid).map_or(most, filled).min(most);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / rate));
        }
        buckets.insert(uid, Bucket { left: left - 1.0, at: now });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_a_burst_passes_and_then_the_rate_counts() {
        let (rate, start) = (WriteRate::new(50, 500), Instant::now());
        let passed =
            |uid, is_admin, at: Instant| (0..10_000).take_while(|_| rate.take_at(uid, is_admin, at).is_ok()).count();
        assert_eq!((passed(7, false, start), passed(1, true, start)), (500, 2000));
        assert_eq!(passed(8, false, start), 500, "each has a bucket of their own");
        let wait = rate.take_at(7, false, start).expect_err("it is empty");
        assert!(wait <= Duration::from_millis(20), "{wait:?}");
        assert_eq!(passed(7, false, start + Duration::from_secs(1)), 50);
        assert_eq!(passed(7, false, start + Duration::from_secs(3600)), 500);
        assert_eq!(WriteRate::new(0, 0).take_at(7, false, start), Ok(()));
    }

    #[test]
    fn p15_users_who_do_nothing_are_forgotten() {
        let (rate, start) = (WriteRate::new(1, 10), Instant::now());
        for uid in 0..10_000 {
            rate.take_at(uid, false, start + Duration::from_secs(uid.unsigned_abs().into())).expect("has room");
        }
        assert!(rate.buckets.lock().expect("not poisoned").len() <= REMEMBERED_MAX);
    }
}
