//! Commit time of entries: the machine's clock, unless it jumps without confirmation.
//!
//! Commit times normally never decrease, so one wrong date would also be the date of all later entries. The clock is
//! therefore compared with the time of the last entry, the time since then according to a steady (monotonic) clock, and
//! the clocks of members. A jump that none of them confirms is ignored and reported. If a member confirms that the last
//! entries are dated in the future, later ones get the right time.

use gravwell_model::fault_injection::{self, Bug};

/// Difference of two clocks that is accepted without confirmation, in milliseconds.
pub const TOLERANCE_MS: u64 = 3_600_000;
/// Downtime of a datastore that is accepted without confirmation, in milliseconds.
pub const STOPPED_MS: u64 = 31 * 24 * TOLERANCE_MS;

/// 2026-01-01 in milliseconds since 1970: a clock that shows an earlier time is wrong.
pub const EARLIEST_MS: u64 = 1_767_225_600_000;

/// Estimate of the current time.
#[derive(Clone, Copy, Debug)]
pub struct CommitClock {
    /// Time at `since_ms`; 0 if unknown.
    known_ms: u64,
    /// Reading of the steady clock.
    since_ms: u64,
    /// Whether the machine's clock was confirmed since the start.
    is_settled: bool,
    skew_ms: i64,
    /// Whether the last entries turned out to be dated in the future.
    is_corrected: bool,
}

impl CommitClock {
    /// Starts after an entry of time `last_ms`, 0 if there is none. `steady_ms` is the reading of the steady clock.
    #[must_use]
    pub fn new(last_ms: u64, steady_ms: u64) -> CommitClock {
        CommitClock { known_ms: last_ms, since_ms: steady_ms, is_settled: false, skew_ms: 0, is_corrected: false }
    }

    fn expected(&self, steady_ms: u64) -> u64 {
        self.known_ms.saturating_add(steady_ms.saturating_sub(self.since_ms))
    }

    fn settle(&mut self, time_ms: u64, steady_ms: u64) {
        (self.known_ms, self.since_ms) = (time_ms, steady_ms);
    }

    /// Returns the current time, given the reading `wall_ms` of the machine's clock.
    pub fn now(&mut self, wall_ms: u64, steady_ms: u64) -> u64 {
        let expected = self.expected(steady_ms);
        let ahead = if self.is_settled { TOLERANCE_MS } else { STOPPED_MS };
        let earliest = expected.saturating_sub(TOLERANCE_MS);
        let is_believed = self.known_ms == 0 || fault_injection::is(Bug::ClockTakenOver);
        if is_believed || (earliest..=expected.saturating_add(ahead)).contains(&wall_ms) {
            self.settle(wall_ms, steady_ms);
            (self.is_settled, self.skew_ms) = (true, 0);
            return wall_ms;
        }
        let skew = i128::from(wall_ms) - i128::from(expected);
        self.skew_ms = i64::try_from(skew).unwrap_or(if skew < 0 { i64::MIN } else { i64::MAX });
        expected
    }

    /// Handles the time `theirs_ms` of a member's clock, or of data that the member created.
    pub fn member(&mut self, theirs_ms: u64, wall_ms: u64, steady_ms: u64) {
        if theirs_ms.abs_diff(wall_ms) <= TOLERANCE_MS {
            let goes_back = wall_ms.saturating_add(TOLERANCE_MS) < self.expected(steady_ms);
            if goes_back && wall_ms < EARLIEST_MS {
                return;
            }
            self.is_corrected |= goes_back;
            self.settle(wall_ms, steady_ms);
            (self.is_settled, self.skew_ms) = (true, 0);
        } else if theirs_ms < wall_ms && theirs_ms > self.expected(steady_ms) {
            // The current time is at least that.
            self.settle(theirs_ms, steady_ms);
        }
    }

    /// Returns, once, whether commit times must go back to the time returned by [`CommitClock::now`].
    pub fn take_correction(&mut self) -> bool {
        std::mem::take(&mut self.is_corrected)
    }

    /// Returns by how much the machine's clock is ahead of the commit time while it is ignored; 0 otherwise.
    #[must_use]
    pub fn skew_ms(&self) -> i64 {
        self.skew_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const YEARS: u64 = 80 * 365 * 24 * TOLERANCE_MS;
    const HOUR: u64 = TOLERANCE_MS;

    #[test]
    fn a_clock_jump_of_years_is_ignored_and_leaves_no_trace() {
        let mut clock = CommitClock::new(NOW, 0);
        assert_eq!(clock.now(NOW + 5000, 5000), NOW + 5000);
        assert_eq!(clock.now(NOW + YEARS, 6000), NOW + 6000, "the elapsed time counts");
        assert!(clock.skew_ms() > i64::try_from(YEARS - HOUR).expect("fits"));
        assert_eq!(clock.now(NOW + 2 * HOUR + YEARS, 2 * HOUR), NOW + 2 * HOUR);
        assert_eq!(clock.now(NOW + 2 * HOUR + 1, 2 * HOUR + 1), NOW + 2 * HOUR + 1, "correct again");
        assert_eq!(clock.skew_ms(), 0);
    }

    #[test]
    fn a_start_with_a_wrong_clock_goes_on_from_the_last_entry() {
        for wrong in [NOW + YEARS, 1000, NOW - 3 * HOUR] {
            let mut clock = CommitClock::new(NOW, 100);
            assert_eq!(clock.now(wrong, 100), NOW);
            assert_eq!(clock.now(wrong + 500, 600), NOW + 500, "time advances");
            assert_ne!(clock.skew_ms(), 0);
        }
        assert_eq!(
            CommitClock::new(NOW, 0).now(NOW + 20 * 24 * HOUR, 0),
            NOW + 20 * 24 * HOUR,
            "the datastore was stopped"
        );
        assert_eq!(CommitClock::new(0, 0).now(NOW, 0), NOW, "no time is known before the first entry");
    }

    #[test]
    fn members_confirm_a_jump_or_say_how_late_it_is() {
        let mut clock = CommitClock::new(NOW, 0);
        assert_eq!(clock.now(NOW, 0), NOW);
        let resumed = NOW + 9 * HOUR;
        assert_eq!(clock.now(resumed, 0), NOW);
        clock.member(resumed - 1000, resumed, 0);
        assert_eq!((clock.now(resumed, 0), clock.skew_ms()), (resumed, 0));
        clock.member(resumed + YEARS, resumed, 0);
        assert_eq!(clock.now(resumed, 0), resumed, "a member's wrong clock has no effect");
        let mut clock = CommitClock::new(NOW, 0);
        clock.member(NOW + 100 * 24 * HOUR, NOW + YEARS, 10);
        assert_eq!(clock.now(NOW + YEARS, 10), NOW + 100 * 24 * HOUR);
    }

    #[test]
    fn entries_of_the_future_do_not_date_those_after_them() {
        let mut clock = CommitClock::new(NOW + YEARS, 0);
        assert_eq!(clock.now(NOW, 0), NOW + YEARS, "the entries may be right and the clock wrong");
        assert!(!clock.take_correction());
        clock.member(NOW - 1000, NOW, 10);
        assert!(clock.take_correction() && !clock.take_correction());
        assert_eq!((clock.now(NOW + 5, 15), clock.skew_ms()), (NOW + 5, 0));
        // Two clocks without a battery may agree on a wrong time.
        let mut clock = CommitClock::new(NOW, 0);
        clock.member(1000, 2000, 10);
        assert!(!clock.take_correction());
        assert_eq!(clock.now(2000, 10), NOW + 10);
    }
}
