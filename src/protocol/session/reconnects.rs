//! Attempts of a member to connect: the delay between them, and whether the next connection fetches a state.

use std::time::Duration;

use super::client::End;
use crate::backoff::Backoff;

/// First and longest delay between two attempts.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// After a connection that lasted longer, the delay starts again at the first one.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Attempts of a member to connect.
#[derive(Clone, Copy, Debug)]
pub struct Reconnects {
    backoff: Backoff,
    needs_snapshot: bool,
}

impl Default for Reconnects {
    fn default() -> Reconnects {
        Reconnects { backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY), needs_snapshot: false }
    }
}

impl Reconnects {
    /// Returns whether the tail was refused to this member, so that the next connection has to fetch a state.
    #[must_use]
    pub fn needs_snapshot(&self) -> bool {
        self.needs_snapshot
    }

    /// Handles the end of an attempt that took this long. `end` is the reason for which this member ended the
    /// connection; `None` if there was no connection, or it broke.
    pub fn handle_end(&mut self, lasted: Duration, end: Option<&End>) {
        self.needs_snapshot = matches!(end, Some(End::Compacted));
        // A state is fetched without delay.
        if lasted > GOOD_AFTER || matches!(end, Some(End::Compacted | End::ResyncWanted)) {
            self.backoff.reset();
        }
    }

    /// Returns the delay before the next attempt; `random` is uniform over all `u64`.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        self.backoff.next_delay(random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_has_to_fetch_a_state_connects_again_at_once() {
        let mut reconnects = Reconnects::default();
        for _ in 0..20 {
            reconnects.handle_end(Duration::ZERO, None);
            reconnects.next_delay(0);
        }
        assert!(reconnects.next_delay(u64::MAX) > FIRST_DELAY && !reconnects.needs_snapshot());
        for (lasted, end, needs_snapshot) in [
            (Duration::ZERO, Some(End::Compacted), true),
            (Duration::ZERO, Some(End::ResyncWanted), false),
            (GOOD_AFTER + FIRST_DELAY, None, false),
        ] {
            let mut after = reconnects;
            after.handle_end(lasted, end.as_ref());
            assert_eq!(after.needs_snapshot(), needs_snapshot, "{end:?}");
            assert!(after.next_delay(u64::MAX) < FIRST_DELAY, "{end:?}");
        }
    }
}
