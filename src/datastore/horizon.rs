//! How far the horizon may rise.

use crate::model::Seq;
use crate::planted::{self, Bug};

/// The highest horizon that members and the history window allow, and what keeps it from rising further.
#[must_use]
pub fn target(head: Seq, floor: Seq, history_ops: u64) -> (Seq, &'static str) {
    let floor = if planted::is(Bug::HorizonOffByOne) { floor.next().min(head) } else { floor };
    let window = Seq(head.0.saturating_sub(history_ops));
    if floor < window { (floor, "a member that is behind") } else { (window, "the history window") }
}
