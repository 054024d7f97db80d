//! Rate limit of certificate renewals. Each renewal is written to disk and sent to all other members.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gravwell_env::quota::{Held, Quota};
use gravwell_model::MemberName;

/// A member may renew once per interval, with a burst of `AT_ONCE`, which is needed when CAs are rotated.
const EVERY: Duration = Duration::from_secs(10);
const AT_ONCE: u32 = 4;

/// Limits each member to one renewal at a time, and to the configured rate.
pub(super) struct Renewals {
    under_way: Arc<Quota<MemberName>>,
    /// Time at which each member's full burst is available again.
    whole: Mutex<BTreeMap<MemberName, Instant>>,
}

impl Default for Renewals {
    fn default() -> Renewals {
        Renewals { under_way: Quota::new(1), whole: Mutex::default() }
    }
}

impl Renewals {
    /// Starts a renewal of `member`.
    ///
    /// # Errors
    /// Returns an error if a renewal is in progress or it is too early for another one.
    pub(super) fn begin(&self, member: &MemberName, now: Instant) -> Result<Held<MemberName>, String> {
        let held = self.under_way.take(member.clone());
        let held = held.ok_or_else(|| format!("the certificate of {member} is already being renewed"))?;
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.retain(|_, whole| *whole > now);
        let from = whole.get(member).copied().unwrap_or(now);
        if from.saturating_duration_since(now) > EVERY * (AT_ONCE - 1) {
            let s = EVERY.as_secs();
            return Err(format!(
                "the certificate of {member} was renewed {AT_ONCE} times just now; try again in {s} s"
            ));
        }
        whole.insert(member.clone(), from + EVERY);
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_a_member_renews_one_certificate_at_a_time_and_few_in_a_while() {
        let (renewals, start) = (Renewals::default(), Instant::now());
        let name = |name| MemberName::new(name).expect("name");
        let (spy, web) = (name("spy"), name("web"));
        let held = renewals.begin(&spy, start).expect("the first");
        let why = renewals.begin(&spy, start).expect_err("one at a time");
        assert!(why.contains("is already being renewed"), "{why}");
        drop(held);
        for _ in 1..AT_ONCE {
            renewals.begin(&spy, start).expect("a few at once");
        }
        let why = renewals.begin(&spy, start).expect_err("no more");
        assert_eq!(why, "the certificate of spy was renewed 4 times just now; try again in 10 s");
        assert!(renewals.begin(&web, start).is_ok(), "other members have separate limits");
        assert!(renewals.begin(&spy, start + EVERY - Duration::from_millis(1)).is_err());
        assert!(renewals.begin(&spy, start + EVERY).is_ok());
        assert!(renewals.begin(&spy, start + EVERY).is_err());
        assert!(renewals.begin(&web, start + 9 * EVERY).is_ok());
        assert_eq!(renewals.whole.lock().expect("not poisoned").len(), 1, "a full bucket is dropped");
    }
}
