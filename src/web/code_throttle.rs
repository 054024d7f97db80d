//! Throttling of second-factor codes per user, regardless of origin: a client that tries them knows the password, and six
//! digits could be guessed quickly from many addresses. Recovery codes cannot be guessed, so they are not throttled.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong codes of a user within [`WINDOW`] after which further ones are rejected unchecked. Each webserver counts for
/// itself: at this rate, one in a thousand guessers at one webserver finds a code within six hours, and one in fifty of
/// those who use twenty webservers.
const WRONG_MAX: u32 = 5;
const WINDOW: Duration = Duration::from_secs(5 * 60);

struct Count {
    wrong: u32,
    first: Instant,
}

/// Counters of wrong codes. There are at most as many as users with a second factor.
#[derive(Default)]
pub(super) struct Codes(Mutex<HashMap<i32, Count>>);

impl Codes {
    /// Returns whether a code of a user may be checked. The attempt counts as wrong until [`Codes::right`] is called, so
    /// that concurrent attempts cannot exceed the limit.
    pub(super) fn may_try(&self, uid: i32) -> bool {
        self.may_try_at(uid, Instant::now())
    }

    fn may_try_at(&self, uid: i32, now: Instant) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.retain(|_, count| now.saturating_duration_since(count.first) < WINDOW);
        let count = counts.entry(uid).or_insert(Count { wrong: 0, first: now });
        if count.wrong >= WRONG_MAX {
            return false;
        }
        count.wrong += 1;
        true
    }

    /// Resets the counter after a valid code.
    pub(super) fn right(&self, uid: i32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_codes_hold_a_user_back_until_the_window_is_over() {
        let (codes, start) = (Codes::default(), Instant::now());
        for _ in 0..WRONG_MAX {
            assert!(codes.may_try_at(7, start));
        }
        assert!(!codes.may_try_at(7, start) && codes.may_try_at(8, start));
        assert!(!codes.may_try_at(7, start + WINDOW / 2));
        assert!(codes.may_try_at(7, start + WINDOW));
        codes.right(7);
        for _ in 0..WRONG_MAX {
            assert!(codes.may_try_at(7, start + WINDOW));
        }
        assert!(!codes.may_try_at(7, start + WINDOW));
    }
}
