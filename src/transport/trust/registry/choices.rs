//! Choices of an operator between member registries.
//!
//! An operator who keeps or accepts one of several registries that differ gives up the others. The registry records which:
//! the ones that the operator was asked about, or that the command compared with, and nothing else. A revocation that
//! follows in one of them, or that another registry has, is evidence as before.

use serde::{Deserialize, Serialize};

use super::Registry;
use super::changes::{Changes, FORMER_NAMED_MAX, RegisterMark};
use crate::trust::TrustError;

/// Maximum number of names of changes that are remembered as given up. The oldest choices are forgotten first, and asked
/// about again. Every member in a registry of the maximum size may show a change of its own.
const NAMES_MAX: usize = 8192;

/// A registry that an operator gave up for another one: its changes, as far as they are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    #[serde(flatten)]
    changes: Changes,
    /// Only the last change is known by name. The others since this one are given up as well: the operator was told that
    /// the registry went back from the last change to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
}

impl GivenUp {
    /// Returns the changes of `registry`.
    #[must_use]
    pub fn of(registry: &Registry) -> GivenUp {
        let mut changes = Changes { shown: None, lasting: None, given_up: Vec::new(), ..registry.changes() };
        changes.names.drain(..changes.names.len().saturating_sub(FORMER_NAMED_MAX));
        GivenUp { changes, since: None }
    }

    /// Returns a registry of which only the last change is known.
    #[must_use]
    pub fn at(mark: &RegisterMark) -> GivenUp {
        let names = Some(&mark.name).filter(|name| !name.is_empty()).cloned().into_iter().collect();
        let changes = Changes { count: mark.count, changed_ms: mark.changed_ms, names, ..Changes::default() };
        GivenUp { changes, since: None }
    }

    /// Returns the registry with the last change `mark`, which is given up for one at change number `kept`. If that one is
    /// earlier, all changes between the two are given up, whatever their names.
    #[must_use]
    pub fn beyond(kept: u64, mark: &RegisterMark) -> GivenUp {
        GivenUp { since: Some(kept).filter(|kept| *kept < mark.count), ..GivenUp::at(mark) }
    }

    /// Returns whether the change that `seen` names is known to be one of its changes.
    pub(in crate::trust) fn has(&self, seen: &RegisterMark) -> bool {
        let is_between = self.since.is_some_and(|since| seen.count > since && seen.count < self.changes.count);
        is_between || self.changes.mark() == *seen || self.changes.has_passed(seen)
    }

    /// Returns whether nothing of `other` is given up that is not given up by this.
    fn covers(&self, other: &GivenUp) -> bool {
        let is_single = other.since.is_none() && other.changes.names.len() == 1 && other.changes.former.is_empty();
        self == other || (is_single && self.has(&other.changes.mark()))
    }

    fn names(&self) -> usize {
        let former = self.changes.former.iter().map(|run| run.names.len());
        1 + self.changes.names.len() + former.sum::<usize>()
    }
}

impl Registry {
    /// Records durably that an operator chose this registry over `others`. Only their changes stop being evidence: a
    /// revocation that follows them, or that a third registry has, is one that the operator was not asked about.
    /// Invitations are withdrawn: in the others they may have been redeemed. Members that have one of the others take this
    /// one for the later one from now on.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn choose_over(&mut self, others: &[GivenUp], now_ms: u64) -> Result<(), TrustError> {
        if others.is_empty() {
            return Ok(());
        }
        let mut changes = self.changes();
        changes.given_up.retain(|known| !others.iter().any(|other| other.covers(known)));
        changes.given_up.extend_from_slice(others);
        let mut names: usize = changes.given_up.iter().map(GivenUp::names).sum();
        while names > NAMES_MAX && changes.given_up.len() > 1 {
            names -= changes.given_up.remove(0).names();
        }
        changes.shown = changes.shown.take().filter(|shown| !changes.is_given_up(shown));
        let reached = others.iter().map(|other| other.changes.count).max().unwrap_or_default();
        let is_later = reached < changes.count;
        if changes.is_unchanged()
            && let Some(before) = changes.former.last_mut()
        {
            before.is_choice = true;
        }
        self.contents.changes = Some(changes);
        let had_invitations = self.withdraw_invitations();
        match is_later {
            true if had_invitations => self.note_change(now_ms),
            true => {}
            false => self.start_run(reached, true, now_ms),
        }
        self.write(now_ms)
    }

    /// Accepts this registry, durably, over one of which a mark was seen.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn accept(&mut self, seen: &RegisterMark, now_ms: u64) -> Result<(), TrustError> {
        self.choose_over(&[GivenUp::beyond(self.mark().count, seen)], now_ms)
    }

    /// Returns whether an operator gave up the registry with this mark for this one.
    pub(in crate::trust) fn has_given_up(&self, seen: &RegisterMark) -> bool {
        self.known_changes().is_given_up(seen)
    }

    /// Returns whether this registry is at the change `name` with number `count`, or was put back or chosen at it and is
    /// unchanged since.
    #[must_use]
    pub fn is_at(&self, count: u64, name: &str) -> bool {
        let is_it = |mark: &RegisterMark| !name.is_empty() && mark.count == count && mark.name == name;
        is_it(&self.mark()) || self.mark_before().as_ref().is_some_and(is_it)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{MemberState, Relation, Role};
    use gravwell_model::MemberName;

    const NOW: u64 = 1_800_000_000_000;

    fn name(name: &str) -> MemberName {
        MemberName::new(name).expect("name")
    }

    fn invite(registry: &mut Registry, member: &str) {
        registry.invite(&name(member), Role::Webserver, 1000, NOW, false).expect("invites");
    }

    /// Returns registries in memory that go on from a common one: with these members in addition.
    fn branches<const N: usize>(members: [&[&str]; N]) -> [Registry; N] {
        let mut base = Registry::from_text("", NOW).expect("reads");
        ["web1", "web2"].iter().for_each(|member| invite(&mut base, member));
        members.map(|members| {
            let mut branch = base.copy();
            members.iter().for_each(|member| invite(&mut branch, member));
            branch
        })
    }

    fn later(mark: &RegisterMark, by: u64) -> RegisterMark {
        RegisterMark { count: mark.count + by, name: format!("{by:016x}"), changed_ms: NOW }
    }

    #[test]
    fn p11_an_invitation_is_withdrawn_when_another_registry_is_given_up() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut here = Registry::open(temp.path(), NOW).expect("opens");
        here.invite(&name("web1"), Role::Webserver, 1000, NOW, false).expect("invites");
        here.enrol(&name("web1"), Role::Webserver, b"certificate", 90, NOW).expect("enrols");
        let invited = name("web2");
        here.invite(&invited, Role::Webserver, 1000, NOW, false).expect("invites");
        here.invite(&name("web1"), Role::Webserver, 1000, NOW, true).expect("invites again");
        let before = here.mark();
        // It was redeemed there.
        let mut other = Registry::open(temp.path(), NOW).expect("opens").detached();
        other.enrol(&invited, Role::Webserver, b"another", 90, NOW).expect("enrols");
        here.choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
        let here = Registry::open(temp.path(), NOW).expect("opens");
        let left: Vec<_> = here.members().map(|member| (&member.name, member.state, member.invite.is_some())).collect();
        assert_eq!(left, [(&name("web1"), MemberState::Enrolled, false)]);
        assert_eq!((here.relation(&other.mark()), here.relation(&before)), (None, None));
        assert!(here.mark().count > before.count, "copies from before it are told from later ones");
    }

    #[test]
    fn p13_a_choice_gives_up_the_registry_that_was_asked_about_and_no_other() {
        // The other one has fewer changes, or more.
        for members in [&["b"][..], &["b", "b2", "b3"]] {
            let [mut here, other, third] = branches([&["a", "a2"], members, &["c", "c2", "c3", "c4"]]);
            let before = here.mark();
            here.choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
            let here = Registry::from_text(&here.copy().text(NOW).expect("text"), NOW).expect("reads");
            assert_eq!((here.relation(&other.mark()), here.relation(&before)), (None, None));
            assert!(here.mark().count > other.mark().count, "members with the other one receive this one");
            assert!(here.has_given_up(&other.mark()) && !here.has_given_up(&third.mark()));
            // A revocation that follows in the other one, and a third registry.
            for seen in [later(&other.mark(), 1), later(&other.mark(), 2), third.mark()] {
                assert!(here.relation(&seen).is_some(), "{members:?}: {seen:?}");
                assert!(here.copy().note_shown(&seen), "{members:?}: {seen:?}");
            }
        }
    }

    #[test]
    fn p13_a_registry_that_was_put_back_by_choice_gives_up_no_later_change() {
        let [copy, other, third] = branches([&["a"], &["b", "b2"], &["c", "c2", "c3"]]);
        let put_back = || {
            let mut registry = copy.copy();
            registry.forget_invitations(0, NOW).expect("puts back");
            registry
        };
        let mut here = put_back();
        assert!(here.came_from().is_some());
        here.choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
        assert_eq!(here.came_from(), None, "a later copy does not replace it unasked");
        assert_eq!(here.relation(&other.mark()), None);
        assert_eq!(here.relation(&later(&other.mark(), 1)), Some(Relation::Apart));
        assert_eq!(here.relation(&third.mark()), Some(Relation::Apart));
        assert!(here.is_at(copy.mark().count, &copy.mark().name) && here.is_at(here.mark().count, &here.mark().name));
        assert!(!here.is_at(other.mark().count, &other.mark().name));
        // If nobody was asked, going back was intended.
        assert_eq!(put_back().relation(&later(&copy.mark(), 1)), None);
    }

    #[test]
    fn p13_a_registry_that_is_accepted_gives_up_the_changes_since_then_up_to_the_one_that_was_seen() {
        let [mut here, latest, third] = branches([&[], &["b", "b2", "b3", "b4"], &["c"]]);
        let before = here.mark();
        let seen = latest.mark();
        here.accept(&seen, NOW).expect("accepts");
        assert_eq!(here.relation(&seen), None);
        // A member returns with a change between the two.
        assert_eq!(here.relation(&later(&before, 2)), None);
        assert_eq!(here.relation(&later(&seen, 1)), Some(Relation::Apart), "nobody was asked about what follows");
        // One that went apart is accepted alone.
        let [mut here, apart] = branches([&["a", "a2"], &["b", "b2"]]);
        here.accept(&apart.mark(), NOW).expect("accepts");
        assert_eq!(here.relation(&apart.mark()), None);
        assert_eq!(here.relation(&third.mark()), Some(Relation::Apart));
    }

    #[test]
    fn p13_evidence_that_was_shown_outlives_a_choice_about_another_registry() {
        let [mut here, other, third] = branches([&["a"], &["b", "b2"], &["c", "c2", "c3"]]);
        assert!(here.note_shown(&third.mark()));
        here.choose_over(&[GivenUp::of(&other)], NOW).expect("chooses");
        assert_eq!(here.shown(), Some(third.mark()));
        here.accept(&third.mark(), NOW).expect("accepts");
        assert_eq!(here.shown(), None);
    }

    #[test]
    fn p13_every_member_of_a_large_fleet_may_show_a_change_of_its_own() {
        let [mut here] = branches([&["a"]]);
        let seen: Vec<RegisterMark> = (0..NAMES_MAX as u64 / 2 + 9).map(|at| later(&here.mark(), at + 1)).collect();
        here.choose_over(&seen.iter().map(GivenUp::at).collect::<Vec<_>>(), NOW).expect("chooses");
        let given_up = seen.iter().filter(|seen| here.has_given_up(seen)).count();
        assert_eq!(given_up, NAMES_MAX / 2, "each is one name and its own entry");
        assert!(here.has_given_up(seen.last().expect("some")), "the oldest are forgotten first");
        // One that is chosen over again is kept once.
        here.choose_over(&[GivenUp::at(&seen[seen.len() - 1])], NOW).expect("chooses");
        assert_eq!(here.changes().given_up.len(), NAMES_MAX / 2);
    }
}
