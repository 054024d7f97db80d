//! Detects that a machine was reverted to an earlier point in time together with the memory of a process on it.

use std::time::{Duration, Instant};

use gravwell_env::Clock;

/// Detects that the machine may have been reverted to an earlier time together with the memory of this process, which
/// would then assign the same numbers to other transactions. The wall clock advances in between, the monotonic one
/// does not.
#[derive(Debug)]
pub(crate) struct Reverted {
    wall_ms: u64,
    monotonic: Instant,
}

/// Corrections of the clock are mostly smaller than this.
const JUMP: Duration = Duration::from_secs(5);

impl Reverted {
    pub(crate) fn new(clock: &dyn Clock) -> Reverted {
        Reverted { wall_ms: clock.now_ms(), monotonic: Instant::now() }
    }

    /// Returns whether the two clocks diverged since the last call.
    pub(crate) fn is_noticed(&mut self, clock: &dyn Clock) -> bool {
        let before = std::mem::replace(self, Reverted::new(clock));
        let wall = Duration::from_millis(self.wall_ms.saturating_sub(before.wall_ms));
        let went_back = before.wall_ms > self.wall_ms;
        went_back || wall.abs_diff(self.monotonic.duration_since(before.monotonic)) > JUMP
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn p06_a_machine_that_was_reverted_is_noticed() {
        struct At(std::sync::atomic::AtomicU64);
        impl Clock for At {
            fn now_ms(&self) -> u64 {
                self.0.load(Ordering::Relaxed)
            }
        }
        let clock = At(1_000_000.into());
        let mut reverted = Reverted::new(&clock);
        assert!(!reverted.is_noticed(&clock));
        clock.0.store(1_900_000, Ordering::Relaxed);
        assert!(reverted.is_noticed(&clock), "forward");
        assert!(!reverted.is_noticed(&clock));
        clock.0.store(1_899_000, Ordering::Relaxed);
        assert!(reverted.is_noticed(&clock), "back");
    }
}
