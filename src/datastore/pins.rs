//! Snapshots that pin the horizon. A member that fetches the state needs the entries after it, but it does not pin the
//! floor until it has subscribed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gravwell_model::{MemberName, Seq};

/// Longest time for which a snapshot in transfer pins the horizon.
const SERVING_MAX: Duration = Duration::from_secs(24 * 3600);
/// Time for which the pin remains afterwards, while the member loads and verifies the snapshot and subscribes.
const LOADING_MAX: Duration = Duration::from_secs(600);

#[derive(Clone, Copy)]
struct Pin {
    seq: Seq,
    until: Instant,
}

/// Identifies a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Transfer(u64);

#[derive(Default)]
struct Held {
    next: u64,
    /// Pins of transfers under way.
    serving: BTreeMap<Transfer, Pin>,
    /// Pins of the last snapshot that each member received in full.
    loading: BTreeMap<MemberName, Pin>,
}

/// The pins: one per transfer, and one per member that has received a snapshot, each with a time limit.
#[derive(Default)]
pub(super) struct Pins(Mutex<Held>);

impl Pins {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pins the horizon while a snapshot of `seq` is sent.
    pub(super) fn begin(&self, seq: Seq, now: Instant) -> Transfer {
        let mut held = self.held();
        held.next += 1;
        let transfer = Transfer(held.next);
        held.serving.insert(transfer, Pin { seq, until: now + SERVING_MAX });
        transfer
    }

    /// Ends a transfer. If `member` has received the whole snapshot at `now`, that stays pinned for a while, and an
    /// earlier one of this member does not. After a transfer that failed, the earlier one stays pinned.
    pub(super) fn end(&self, transfer: Transfer, received: Option<(&MemberName, Instant)>) {
        let mut held = self.held();
        let pin = held.serving.remove(&transfer);
        if let (Some(pin), Some((member, now))) = (pin, received) {
            held.loading.insert(member.clone(), Pin { until: now + LOADING_MAX, ..pin });
        }
    }

    /// Removes the pin of the snapshot that a member has received, because it has subscribed.
    pub(super) fn end_loading(&self, member: &MemberName) {
        self.held().loading.remove(member);
    }

    /// Returns the lowest pinned sequence.
    pub(super) fn lowest(&self, now: Instant) -> Option<Seq> {
        let mut held = self.held();
        held.serving.retain(|_, pin| pin.until > now);
        held.loading.retain(|_, pin| pin.until > now);
        held.serving.values().chain(held.loading.values()).map(|pin| pin.seq).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_served_snapshot_holds_the_horizon_for_a_time() {
        let (pins, start) = (Pins::default(), Instant::now());
        let [a, b] = ["a", "b"].map(|name| MemberName::new(name).expect("name"));
        let first = pins.begin(Seq(5), start);
        let other = pins.begin(Seq(9), start);
        assert_eq!(pins.lowest(start), Some(Seq(5)));
        pins.end(first, Some((&a, start)));
        assert_eq!(pins.lowest(start), Some(Seq(5)));
        // Another transfer to the same member fails: the member may still load the first snapshot.
        let second = pins.begin(Seq(12), start);
        pins.end(second, None);
        assert_eq!(pins.lowest(start), Some(Seq(5)));
        // One that succeeds takes its place.
        let third = pins.begin(Seq(12), start);
        pins.end(third, Some((&a, start)));
        assert_eq!(pins.lowest(start), Some(Seq(9)), "one received snapshot of each member");
        pins.end(other, Some((&b, start)));
        assert_eq!(pins.lowest(start + LOADING_MAX), None, "not forever");
        pins.end_loading(&a);
        assert_eq!(pins.lowest(start), None);
        pins.begin(Seq(1), start);
        assert_eq!(pins.lowest(start + SERVING_MAX), None, "not forever");
    }
}
