//! Snapshots that pin the horizon. A member that fetches the state needs the entries after it, but it does not pin the
//! floor until it has subscribed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::{MemberName, Seq};

/// Longest time for which a snapshot in transfer pins the horizon.
const SERVING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time for which the pin remains afterwards, while the member loads and verifies the snapshot and subscribes.
const LOADING_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy)]
struct Pin {
    seq: Seq,
    until: Instant,
}

/// The pins: at most one per member, each with a time limit.
#[derive(Default)]
pub(super) struct Pins(Mutex<BTreeMap<MemberName, Pin>>);

impl Pins {
    fn pins(&self) -> MutexGuard<'_, BTreeMap<MemberName, Pin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins the horizon while a snapshot of `seq` is sent to `member`.
    pub(super) fn begin(&self, member: &MemberName, seq: Seq, now: Instant) {
        self.pins().insert(member.clone(), Pin { seq, until: now + SERVING_MAX });
    }

    /// Ends a transfer. With `Some`, the snapshot was sent. With `None` the pin is removed, because the member has
    /// subscribed or the transfer failed.
    pub(super) fn end(&self, member: &MemberName, now: Option<Instant>) {
        let mut pins = self.pins();
        match now {
            Some(now) => drop(pins.get_mut(member).map(|pin| pin.until = now + LOADING_MAX)),
            None => drop(pins.remove(member)),
        }
    }

    /// Returns the lowest pinned sequence.
    pub(super) fn lowest(&self, now: Instant) -> Option<Seq> {
        let mut pins = self.pins();
        pins.retain(|_, pin| pin.until > now);
        pins.values().map(|pin| pin.seq).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_snapshot_holds_the_horizon_for_a_time() {
        let (pins, start) = (Pins::default(), Instant::now());
        let name = |name| MemberName::new(name).expect("name");
        pins.begin(&name("a"), Seq(5), start);
        pins.begin(&name("b"), Seq(9), start);
        assert_eq!(pins.lowest(start), Some(Seq(5)));
        pins.begin(&name("a"), Seq(12), start);
        assert_eq!(pins.lowest(start), Some(Seq(9)), "one of each member");
        pins.end(&name("b"), Some(start));
        assert_eq!(pins.lowest(start + LOADING_MAX + Duration::from_secs(1)), Some(Seq(12)));
        pins.end(&name("a"), None);
        assert_eq!(pins.lowest(start), None);
        pins.begin(&name("a"), Seq(1), start);
        assert_eq!(pins.lowest(start + SERVING_MAX), None, "not for ever");
    }
}
