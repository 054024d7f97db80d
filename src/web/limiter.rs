//! Failed logins are counted, by name and by address, so that guessing is slow.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Failures of one address, of whatever names, are allowed this many times as often as those of one name.
const ADDRESS_FACTOR: u32 = 10;
/// Names and addresses that are remembered; beyond, the oldest are forgotten.
const REMEMBERED_MAX: usize = 50_000;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    Name(String),
    Address(IpAddr),
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    first: Instant,
}

/// What is to be done with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Allowed,
    /// The name has failed too often: refused until the window is over.
    NameLocked,
    /// The address has failed too often.
    AddressLocked,
}

/// The right to be judged, tried and noted.
pub(super) struct Turn(#[expect(dead_code, reason = "held for its end")] Option<OwnedSemaphorePermit>);

/// Counts failures within a window.
pub(super) struct Limiter {
    /// Attempts that are judged and not noted yet: as many as may go beyond the count.
    turns: Arc<Semaphore>,
    count_max: u32,
    window: Duration,
    failures: Mutex<HashMap<Who, Failures>>,
}

impl Limiter {
    /// Allows `count_max` failures of a name within `window`; 0 in either: no limit.
    pub(super) fn new(count_max: u32, window: Duration) -> Limiter {
        Limiter { turns: Arc::new(Semaphore::new(1)), count_max, window, failures: Mutex::default() }
    }

    fn is_off(&self) -> bool {
        self.count_max == 0 || self.window.is_zero()
    }

    /// Waits until an attempt may be made.
    pub(super) async fn turn(&self) -> Turn {
        if self.is_off() {
            return Turn(None);
        }
        Turn(Arc::clone(&self.turns).acquire_owned().await.ok())
    }

    /// Judges an attempt before the password is looked at.
    pub(super) fn judge(&self, name: &str, address: IpAddr) -> Attempt {
        if self.is_off() {
            return Attempt::Allowed;
        }
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |who: &Who| failures.get(who).filter(|f| f.first.elapsed() < self.window).map_or(0, |f| f.count);
        if count(&Who::Address(address)) >= self.count_max.saturating_mul(ADDRESS_FACTOR) {
            return Attempt::AddressLocked;
        }
        if count(&Who::Name(name.to_lowercase())) >= self.count_max { Attempt::NameLocked } else { Attempt::Allowed }
    }

    /// Notes how an attempt went.
    pub(super) fn note(&self, name: &str, address: IpAddr, succeeded: bool) {
        if self.is_off() {
            return;
        }
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let name = Who::Name(name.to_lowercase());
        if succeeded {
            failures.remove(&name);
            return;
        }
        if failures.len() >= REMEMBERED_MAX {
            failures.retain(|_, failure| failure.first.elapsed() < self.window);
        }
        if failures.len() >= REMEMBERED_MAX {
            failures.clear();
        }
        for who in [name, Who::Address(address)] {
            let fresh = Failures { count: 0, first: Instant::now() };
            let failure = failures.entry(who).or_insert(fresh);
            if failure.first.elapsed() >= self.window {
                *failure = fresh;
            }
            failure.count = failure.count.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_back_after_its_failures_and_an_address_after_many_names() {
        let limiter = Limiter::new(3, Duration::from_secs(60));
        let (here, there) = ("127.0.0.1".parse().expect("ip"), "127.0.0.2".parse().expect("ip"));
        for _ in 0..3 {
            assert_eq!(limiter.judge("Bob", here), Attempt::Allowed);
            limiter.note("bob", here, false);
        }
        assert_eq!(limiter.judge("BOB", there), Attempt::NameLocked);
        assert_eq!(limiter.judge("eve", here), Attempt::Allowed);
        limiter.note("bob", here, true);
        assert_eq!(limiter.judge("bob", here), Attempt::Allowed);
        for number in 0..30 {
            limiter.note(&format!("n{number}"), there, false);
        }
        assert_eq!(limiter.judge("eve", there), Attempt::AddressLocked);
        assert_eq!(limiter.judge("eve", here), Attempt::Allowed);
    }

    #[test]
    fn the_window_ends_and_zero_means_no_limit() {
        let here = "::1".parse().expect("ip");
        let limiter = Limiter::new(1, Duration::from_nanos(1));
        limiter.note("bob", here, false);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(limiter.judge("bob", here), Attempt::Allowed);
        let off = Limiter::new(0, Duration::from_secs(60));
        off.note("bob", here, false);
        assert_eq!(off.judge("bob", here), Attempt::Allowed);
    }
}
