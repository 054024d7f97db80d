//! Descent of member registries: which of several go on from which.
//!
//! A registry's counters, its revision and its time show an order only within one line of descent. An older copy of a
//! datastore that was in use for a while has a later time and a higher revision than the registry from which a member
//! was revoked, and after a few enrolments a higher count of changes as well. Every choice between registries therefore
//! asks here first. Where one is not known to go on from another, an operator decides.

use std::collections::BTreeSet;

use super::leftover_registry::differing;
use super::{MemberState, Registry};

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
                // An operator was asked about the two.
                Descent::NotKnown => is_known[other] = registers[later].has_given_up(&registers[other].mark()),
            }
        }
    }
    let unknown = (0..registers.len()).filter(|other| !is_known[*other]);
    let mut differing = unknown.map(|other| (other, differing(registers[chosen], registers[other])));
    differing.find(|(_, differing)| !differing.is_empty())
}

/// How the registry in a copy is related to the one that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing shows that it has a change that the one here lacks, or an operator gave up that change.
    Passed,
    /// It goes on from the one here, or from the copy of which that one was made.
    Later,
    /// It has a change that the one here lacks, and is not known to go on from it.
    Apart,
}

/// Returns how `sealed` is related to `here`. Every command that puts a registry back, or keeps one beside a copy, decides
/// by this.
///
/// Neither a higher revision nor a later time shows that a registry is later: one that went on from an earlier copy has
/// both. They decide only between registries that do not name their changes, and between two of the same change, which
/// differ in positions.
pub(super) fn standing(here: &Registry, sealed: &Registry) -> Standing {
    let generation = |register: &Registry| register.log_mark().map(|mark| mark.generation).unwrap_or_default();
    let is_saved_earlier = here.revision() < sealed.revision()
        && here.saved_ms() <= sealed.saved_ms()
        && generation(here) <= generation(sealed);
    let is_put_back_from_earlier = || here.came_from().is_some_and(|from| sealed.has_passed(&from));
    match descent(sealed, here) {
        Descent::Unnamed if is_saved_earlier => Standing::Later,
        Descent::Unnamed => Standing::Passed,
        Descent::Known if sealed.mark() != here.mark() || is_saved_earlier => Standing::Later,
        Descent::Known => Standing::Passed,
        Descent::NotKnown if here.goes_on_from(sealed) || here.has_given_up(&sealed.mark()) => Standing::Passed,
        Descent::NotKnown if is_put_back_from_earlier() => Standing::Later,
        Descent::NotKnown if here.lacks(&sealed.mark()) => Standing::Apart,
        Descent::NotKnown => Standing::Passed,
    }
}

/// Describes how the members in which the two differ stand here and in a CA backup, those that are revoked in one first.
pub(super) fn described(here: &Registry, sealed: &Registry) -> String {
    let names = differing(here, sealed);
    let state = |register: &Registry, name: &String| {
        let member = register.members().find(|member| member.name.as_str() == name.as_str());
        member.map_or("unknown".to_owned(), |member| member.state.to_string())
    };
    let differs = |name: &String| match (state(here, name), state(sealed, name)) {
        (here, there) if there == here => format!("{name} (other certificates)"),
        (here, there) => format!("{name} ({here} here, {there} in the CA backup)"),
    };
    let mut sorted: Vec<&String> = names.iter().collect();
    let revoked = MemberState::Revoked.to_string();
    sorted.sort_by_key(|name| (state(here, name) == revoked) == (state(sealed, name) == revoked));
    shortened(sorted.into_iter().map(differs))
}

/// Lists names for a message.
pub fn listed(names: &BTreeSet<String>) -> String {
    shortened(names.iter().cloned())
}

fn shortened(texts: impl ExactSizeIterator<Item = String>) -> String {
    let surplus = texts.len().saturating_sub(NAMED_MAX);
    let more = if surplus > 0 { format!(" and {surplus} more") } else { String::new() };
    texts.take(NAMED_MAX).collect::<Vec<_>>().join(", ") + &more
}
