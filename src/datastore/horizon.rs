//! Upper limit of the horizon.

use gravwell_model::Seq;
use gravwell_model::fault_injection::{self, Bug};

/// Returns the highest horizon that members and the history window allow, and the reason why it cannot rise further.
#[must_use]
pub fn target(head: Seq, floor: Seq, history_ops: u64) -> (Seq, &'static str) {
    let floor = if fault_injection::is(Bug::HorizonOffByOne) { floor.next().min(head) } else { floor };
    let window = Seq(head.0.saturating_sub(history_ops));
    if floor < window { (floor, "a member that is behind") } else { (window, "the history window") }
}
