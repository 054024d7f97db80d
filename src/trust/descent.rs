//! Descent of member registries: which of several go on from which.
//!
//! A registry's counters, its revision and its time show an order only within one line of descent. An older copy of a
//! datastore that was in use for a while has a later time and a higher revision than the registry from which a member
//! was revoked, and after a few enrolments a higher count of changes as well. Every choice between registries therefore
//! asks here first. Where one is not known to go on from another, an operator decides.

use std::collections::BTreeSet;

use super::leftover_registry::differing;
use super::{RegisterMark, Registry};

/// Maximum number of members named in a message.
const NAMED_MAX: usize = 8;

/// Whether a registry goes on from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Descent {
    /// It is known to, or both are at the same change.
    Known,
    /// It is not known to: they went apart, the other one is later, or too many changes lie between them.
    NotKnown,
    /// One of them is of a version that does not name its changes.
    Unnamed,
}

/// Returns whether `later` goes on from `earlier`.
pub(super) fn descent(later: &Registry, earlier: &Registry) -> Descent {
    let (here, there) = (later.mark(), earlier.mark());
    match later.has_passed(&there) {
        true => Descent::Known,
        false if here.name.is_empty() || there.name.is_empty() => Descent::Unnamed,
        false => Descent::NotKnown,
    }
}

/// Returns the first of `registers` that differs from the one at `chosen` in members, although that one is not known to
/// go on from it, directly or through others of them. Also returns the members that differ.
pub(super) fn left_out(registers: &[&Registry], chosen: usize) -> Option<(usize, BTreeSet<String>)> {
    let mut is_known = vec![false; registers.len()];
    is_known[chosen] = true;
    let mut to_ask = vec![chosen];
    while let Some(later) = to_ask.pop() {
        for other in 0..registers.len() {
            match descent(registers[later], registers[other]) {
                _ if is_known[other] => {}
                Descent::Known => {
                    is_known[other] = true;
                    to_ask.push(other);
                }
                // The chosen one is the latest as far as such a version tells. Of the others it says nothing.
                Descent::Unnamed => is_known[other] = later == chosen,
                Descent::NotKnown => {}
            }
        }
    }
    let unknown = (0..registers.len()).filter(|other| !is_known[*other]);
    let mut differing = unknown.map(|other| (other, differing(registers[chosen], registers[other])));
    differing.find(|(_, differing)| !differing.is_empty())
}

/// Returns the members in which a sealed registry differs from one that was put back earlier, unless it is known to go
/// on from the copy of which that one was made. `None` if that copy is not known.
pub(super) fn left_out_of(sealed: &Registry, put_back: &Registry) -> Option<BTreeSet<String>> {
    let from: RegisterMark = put_back.came_from()?;
    match sealed.has_passed(&from) {
        true => Some(BTreeSet::new()),
        false => Some(differing(put_back, sealed)),
    }
}

/// Lists names for a message.
pub(crate) fn listed(names: &BTreeSet<String>) -> String {
    let named: Vec<&str> = names.iter().map(String::as_str).take(NAMED_MAX).collect();
    let more = names.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    named.join(", ") + &more
}
