//! Counts and names membership changes, so that a registry can be distinguished from an earlier one and from one that
//! has diverged.
//!
//! Every write of the registry increments its revision, even a write of positions alone. An old registry that has been
//! in use for an hour therefore has a higher revision than the registry that it replaced, so changes are counted
//! separately. The latest changes have names, which show whether one registry descends from another. The datastore
//! signs the mark of the last change for its members. A mark that a member presents later is believed only if the
//! datastore signed it.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Registry;
use super::choices::GivenUp;
use crate::trust::proof::has_signed;
use crate::trust::{Authorities, Authority, MemberState, TrustError};
pub use gravwell_model::codec::authority::{RegisterMark, SignedMark};

/// Domain separator: prevents other signatures of the CA's key from being accepted as signed marks.
const DOMAIN: &[u8] = b"gravwell register v1\0";
/// Maximum number of changes whose names are kept. Copies that are further apart are not known to be of one descent.
const NAMED_MAX: usize = 1024;
/// Maximum number of former runs of changes that are kept, and of names in each of them.
const FORMER_MAX: usize = 4;
pub(super) const FORMER_NAMED_MAX: usize = 256;
/// Upper bound on the changes per millisecond. Counts stay below 2^53, which JSON represents exactly.
const CHANGES_PER_MS: u64 = 1 << 10;
/// A count that is ahead of the time is raised by at most the time divided by this, so that it is not ahead for much
/// longer: about 30 hours.
const BEHIND_DIVISOR: u64 = 16;
/// Hexadecimal digits of a change's name.
const NAME_CHARS: usize = 16;

fn message(mark: &RegisterMark) -> Vec<u8> {
    let bytes = postcard::to_extend(&(mark.count, &mark.name, mark.changed_ms), DOMAIN.to_vec());
    bytes.expect("invariant: encoding numbers and a text into memory cannot fail")
}

impl Authority {
    /// Signs a mark.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn sign_mark(&self, mark: RegisterMark) -> Result<SignedMark, TrustError> {
        let signature = STANDARD.encode(self.sign(&message(&mark))?);
        Ok(SignedMark { mark, signature })
    }
}

impl Authorities {
    /// Returns whether the current or the next CA has signed the mark. Signatures of former CAs do not count: their keys
    /// may have leaked, and the registry has passed all marks that they signed.
    #[must_use]
    pub fn have_signed(&self, signed: &SignedMark) -> bool {
        let Ok(signature) = STANDARD.decode(&signed.signature) else { return false };
        let mut counting = [Some(self.current()), self.next()].into_iter().flatten();
        counting.any(|authority| has_signed(authority.certificate(), &message(&signed.mark), &signature))
    }
}

/// Relation of another registry to the local one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The other registry is later.
    Later,
    /// The local registry does not descend from the other one.
    Apart,
}

/// The membership changes as stored in a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    pub(super) count: u64,
    #[serde(default)]
    pub(super) changed_ms: u64,
    /// Names of the latest changes, oldest first.
    pub(super) names: Vec<String>,
    /// Changes before each time that an operator put the registry back or accepted it, oldest first. Absent in files of
    /// versions that did not keep them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) former: Vec<Former>,
    /// Mark of a later registry that a member has presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shown: Option<RegisterMark>,
    /// Absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lasting: Option<Lasting>,
    /// Registries over which an operator chose this one, the latest choice last. Their changes are no evidence; later
    /// changes, and those of other registries, are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) given_up: Vec<GivenUp>,
}

/// The last change that was more than an invitation. Invitations are not restored from a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lasting {
    mark: RegisterMark,
    /// Hash of the members without their invitations.
    members: String,
}

/// A run of changes that ended when an operator put the registry back or chose it. Its counts do not continue in the
/// next run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Former {
    pub(super) count: u64,
    pub(super) names: Vec<String>,
    /// Earlier versions wrote this for a choice, and did not record what was given up: no registry that is not descended
    /// from this run is evidence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_decided: bool,
    /// The operator was asked, and `given_up` has the answer. So a change whose number follows this run and precedes the
    /// next one is evidence. Where nobody was asked, going back to this run was intended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_choice: bool,
}

/// Returns the name of change number `at`, if `names`, which end with that of number `count`, reach back so far.
fn name_at(names: &[String], count: u64, at: u64) -> Option<&str> {
    let back = usize::try_from(count.checked_sub(at)?).ok()?;
    names.get(names.len().checked_sub(back.checked_add(1)?)?).map(String::as_str)
}

impl Changes {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn mark(&self) -> RegisterMark {
        let name = self.names.last().cloned().unwrap_or_default();
        RegisterMark { count: self.count, name, changed_ms: self.changed_ms }
    }

    /// Returns the name of change number `at`, as far as it is known, and whether another name is evidence.
    fn named(&self, at: u64) -> Option<(&str, bool)> {
        if let Some(name) = name_at(&self.names, self.count, at) {
            return Some((name, true));
        }
        let former = self.former.iter().find(|former| at <= former.count)?;
        name_at(&former.names, former.count, at).map(|name| (name, !former.is_decided))
    }

    pub(super) fn is_given_up(&self, seen: &RegisterMark) -> bool {
        self.given_up.iter().any(|other| other.has(seen))
    }

    fn relation(&self, seen: &RegisterMark) -> Option<Relation> {
        if self.is_given_up(seen) {
            return None;
        }
        if seen.count > self.count {
            return Some(Relation::Later);
        }
        let is_apart = match self.named(seen.count) {
            Some((name, is_evidence)) => is_evidence && name != seen.name,
            None => self.run_before_gap(seen.count).is_some_and(|run| run.is_choice),
        };
        (is_apart && !seen.name.is_empty()).then_some(Relation::Apart)
    }

    pub(super) fn has_passed(&self, mark: &RegisterMark) -> bool {
        !mark.name.is_empty() && self.named(mark.count).is_some_and(|(name, _)| name == mark.name)
    }

    /// Returns whether a change that `mark` names is known not to be one of these: it is later, has another name, or has a
    /// number between two runs. What an operator gave up is no exception.
    fn lacks(&self, mark: &RegisterMark) -> bool {
        !mark.name.is_empty()
            && !self.has_passed(mark)
            && (mark.count > self.count
                || self.named(mark.count).is_some()
                || self.run_before_gap(mark.count).is_some())
    }

    /// As `lacks`, but without changes that an operator gave up.
    fn misses(&self, mark: &RegisterMark) -> bool {
        let run_before = self.former.iter().rev().find(|run| run.count < mark.count);
        let is_evidence = match self.named(mark.count) {
            Some((_, is_evidence)) => is_evidence,
            None => mark.count > self.count || run_before.is_none_or(|run| !run.is_decided),
        };
        is_evidence && !self.is_given_up(mark) && self.lacks(mark)
    }

    /// Returns the run after whose end, and before the first change of the next one, change number `at` is, as far as the
    /// names reach.
    fn run_before_gap(&self, at: u64) -> Option<&Former> {
        let former = self.former.iter().map(|run| (run.count, run.names.len(), FORMER_NAMED_MAX));
        let next = former.skip(1).chain([(self.count, self.names.len(), NAMED_MAX)]);
        let mut gaps = self.former.iter().zip(next);
        // With fewer names than are kept, none was dropped.
        let is_in = |end: u64, (next, names, names_max): (u64, usize, usize)| {
            at > end && at <= next.saturating_sub(names as u64) && names < names_max
        };
        gaps.find(|(run, next)| is_in(run.count, *next)).map(|(run, _)| run)
    }

    /// Returns whether nothing was changed since an operator put the registry back or chose it.
    pub(super) fn is_unchanged(&self) -> bool {
        self.names.len() == 1 && !self.former.is_empty()
    }
}

impl Registry {
    pub(super) fn known_changes(&self) -> Cow<'_, Changes> {
        // Versions that count no changes wrote a new revision with every change, so starting from the revision never
        // lowers the count.
        let (count, changed_ms) = (self.contents.revision.saturating_add(1), self.contents.saved_ms);
        match &self.contents.changes {
            Some(changes) => Cow::Borrowed(changes),
            None => Cow::Owned(Changes { count, changed_ms, ..Changes::default() }),
        }
    }

    /// Returns the changes.
    pub(super) fn changes(&self) -> Changes {
        self.known_changes().into_owned()
    }

    /// Returns the mark of the latest change.
    #[must_use]
    pub fn mark(&self) -> RegisterMark {
        self.known_changes().mark()
    }

    /// Returns the mark of the latest change that was more than an invitation, as far as it is known.
    #[must_use]
    pub fn lasting_mark(&self) -> RegisterMark {
        let changes = self.known_changes();
        changes.lasting.as_ref().map_or_else(|| changes.mark(), |lasting| lasting.mark.clone())
    }

    /// Returns how a registry that was seen is related to this one; `None` if this one descends from it, as far as
    /// is known.
    #[must_use]
    pub fn relation(&self, seen: &RegisterMark) -> Option<Relation> {
        self.known_changes().relation(seen)
    }

    /// Returns whether this registry is known to descend from the one with this mark, or has it itself.
    #[must_use]
    pub fn has_passed(&self, mark: &RegisterMark) -> bool {
        self.known_changes().has_passed(mark)
    }

    /// Returns whether this registry is known to descend from `earlier`.
    #[must_use]
    pub fn goes_on_from(&self, earlier: &Registry) -> bool {
        self.has_passed(&earlier.mark())
    }

    /// Returns whether the change that `mark` names is known not to be one of this registry's.
    pub(in crate::trust) fn lacks(&self, mark: &RegisterMark) -> bool {
        self.known_changes().lacks(mark)
    }

    /// Returns the last change before this registry was put back from a copy, if nothing was changed in it since, and no
    /// operator chose it over others.
    pub(in crate::trust) fn came_from(&self) -> Option<RegisterMark> {
        let changes = self.known_changes();
        let former = changes.former.last().filter(|_| changes.is_unchanged())?;
        let is_asked = former.is_decided || former.is_choice;
        (!is_asked).then(|| self.mark_before()).flatten()
    }

    /// Returns the last change before this registry was put back or chosen, if nothing was changed in it since.
    pub(in crate::trust) fn mark_before(&self) -> Option<RegisterMark> {
        let changes = self.known_changes();
        let former = changes.former.last().filter(|_| changes.is_unchanged())?;
        Some(RegisterMark { count: former.count, name: former.names.last()?.clone(), changed_ms: 0 })
    }

    /// Returns the relation of a registry that was seen, which has a change that this one is known to lack, and the mark
    /// with which it was compared. As long as nothing was changed since an operator put this one back, it is compared as
    /// it was before. What an operator gave up is no evidence.
    pub(in crate::trust) fn missed(&self, seen: &RegisterMark) -> Option<(RegisterMark, Relation)> {
        let mut changes = self.changes();
        if changes.has_passed(seen) {
            return None;
        }
        if changes.is_unchanged()
            && let Some(former) = changes.former.pop_if(|former| !former.is_decided)
        {
            (changes.count, changes.names, changes.changed_ms) = (former.count, former.names, 0);
        }
        // It may have been in use after it was put back, in place of the one that was seen.
        let relation = changes.relation(seen).or_else(|| changes.misses(seen).then_some(Relation::Apart))?;
        Some((changes.mark(), relation))
    }

    /// Returns the mark of a later or diverged registry that a member has presented.
    #[must_use]
    pub fn shown(&self) -> Option<RegisterMark> {
        let changes = self.known_changes();
        changes.shown.as_ref().filter(|shown| changes.relation(shown).is_some()).cloned()
    }

    /// Records a mark that a member has presented. Returns `false` if it adds nothing new.
    pub fn note_shown(&mut self, seen: &RegisterMark) -> bool {
        let mut changes = self.changes();
        if self.relation(seen).is_none() || changes.shown.as_ref().is_some_and(|shown| shown.count >= seen.count) {
            return false;
        }
        changes.shown = Some(seen.clone());
        self.contents.changes = Some(changes);
        self.is_dirty = true;
        true
    }

    /// Counts a change and names it.
    pub(super) fn note_change(&mut self, now_ms: u64) {
        let mut changes = self.changes();
        changes.count = changes.count.saturating_add(1);
        changes.changed_ms = now_ms;
        let mut hasher = blake3::Hasher::new();
        let before = changes.names.last().or_else(|| changes.former.last().and_then(|former| former.names.last()));
        hasher.update(before.map_or(&[][..], |name| name.as_bytes()));
        hasher.update(&changes.count.to_le_bytes()).update(&now_ms.to_le_bytes());
        for member in self.members() {
            hasher.update(member.described().as_bytes());
        }
        changes.names.push(hasher.finalize().to_hex()[..NAME_CHARS].to_owned());
        let surplus = changes.names.len().saturating_sub(NAMED_MAX);
        changes.names.drain(..surplus);
        let mut hasher = blake3::Hasher::new();
        for member in self.members().filter(|member| member.state != MemberState::Invited) {
            hasher.update(member.lasting().as_bytes());
        }
        let members = hasher.finalize().to_hex()[..NAME_CHARS].to_owned();
        if changes.lasting.as_ref().is_none_or(|lasting| lasting.members != members) {
            changes.lasting = Some(Lasting { mark: changes.mark(), members });
        }
        self.contents.changes = Some(changes);
    }

    /// Makes this registry, which an operator put back from a copy, the latest, whatever others have reached. The caller
    /// must write it. Invitations are withdrawn: in the registries that it replaces they may have been redeemed. The names
    /// of its changes are kept, because they show which copies it descends from. Another name for one of them remains
    /// evidence of a registry that nobody gave up. `least`: the count of the registry that it replaces.
    pub(in crate::trust) fn set_on(&mut self, least: u64, now_ms: u64) {
        self.withdraw_invitations();
        self.start_run(least, false, now_ms);
    }

    /// Removes members that were only invited, and invitations of others. Returns whether there were any.
    pub(super) fn withdraw_invitations(&mut self) -> bool {
        let had_any = self.members().any(|member| member.state == MemberState::Invited || member.invite.is_some());
        self.contents.members.retain(|_, member| member.state != MemberState::Invited);
        self.contents.members.values_mut().for_each(|member| member.invite = None);
        had_any
    }

    /// Starts a run of changes with one whose number exceeds `least` and all that are known.
    ///
    /// The count follows the time. So a copy that is put back later has the greater count, whichever copy it is, and
    /// however often the same one was put back before. A count that is ahead of the time, because a clock ran ahead, is
    /// raised by an amount that grows with the time: then the same holds for copies of this registry, as long as the clock
    /// does not go back any further.
    pub(super) fn start_run(&mut self, least: u64, is_choice: bool, now_ms: u64) {
        let mut changes = self.changes();
        let shown = changes.shown.as_ref().map_or(0, |shown| shown.count);
        // What nobody was asked about remains evidence.
        changes.shown = changes.shown.take().filter(|_| is_choice);
        let mut names = std::mem::take(&mut changes.names);
        names.drain(..names.len().saturating_sub(FORMER_NAMED_MAX));
        if !names.is_empty() {
            changes.former.push(Former { count: changes.count, names, is_decided: false, is_choice });
        }
        changes.former.drain(..changes.former.len().saturating_sub(FORMER_MAX));
        let reached = changes.count.max(least).max(shown).max(self.contents.revision);
        let raised_max = now_ms / BEHIND_DIVISOR;
        let raised = now_ms.checked_sub(changes.changed_ms).map_or(raised_max, |since_ms| since_ms.min(raised_max));
        changes.count = now_ms.saturating_mul(CHANGES_PER_MS).max(reached.saturating_add(raised));
        changes.lasting = None;
        self.contents.changes = Some(changes);
        self.note_change(now_ms);
        self.is_dirty = true;
    }

    /// Adopts the changes of a copy of this registry; `before` is the mark at the time of the copy. Changes made here
    /// since then count as one more change.
    pub(super) fn adopt_changes(&mut self, before: &RegisterMark, changed: &Registry, now_ms: u64) {
        if self.mark() == *before {
            let shown = self.changes().shown;
            self.contents.changes = Some(Changes { shown, ..changed.changes() });
        } else {
            self.note_change(now_ms);
            self.is_dirty = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Role, checksummed_text};
    use gravwell_model::{MemberName, Seq};

    const NOW: u64 = 1_800_000_000_000;

    fn name() -> MemberName {
        MemberName::new("web1").expect("name")
    }

    fn of(text: &str) -> Registry {
        Registry::from_text(text, NOW).expect("reads")
    }

    /// Returns a registry with a revoked member, and its text from before the revocation.
    fn revoked() -> (Registry, String) {
        let mut registry = of("");
        registry.invite(&name(), Role::Webserver, 1000, NOW, false).expect("invites");
        registry.enrol(&name(), Role::Webserver, b"certificate", 90, NOW).expect("enrols");
        let before = registry.text(NOW).expect("text");
        registry.revoke(&name(), NOW + 1).expect("revokes");
        (registry, before)
    }

    #[test]
    fn p13_a_register_that_went_back_is_told_however_long_it_was_in_use_since() {
        let (latest, before) = revoked();
        let mut old = of(&before);
        assert_eq!(old.relation(&latest.mark()), Some(Relation::Later));
        assert!(latest.goes_on_from(&old) && !old.goes_on_from(&latest));
        assert_eq!(latest.relation(&old.mark()), None);
        // Positions are written all the time.
        for seq in 1..100 {
            old.note_position(&name(), Seq(seq), Seq(seq), NOW + seq);
            old.text(NOW + seq).expect("text");
        }
        assert!(old.revision() > latest.revision());
        assert_eq!(old.relation(&latest.mark()), Some(Relation::Later));
        // The old registry diverges, and reaches and exceeds the latest one's count.
        for count in 0..3 {
            old.invite(&MemberName::new(format!("new{count}")).expect("name"), Role::Reader, 9, NOW + 3, false)
                .expect("invites");
            assert_eq!(old.relation(&latest.mark()), Some(Relation::Apart), "{count}");
            assert!(!old.goes_on_from(&latest));
        }
        // The mark that was seen is kept until an operator accepts the registry as the latest.
        assert!(old.note_shown(&latest.mark()) && !old.note_shown(&latest.mark()));
        let mut old = of(&old.text(NOW).expect("text"));
        assert_eq!(old.shown(), Some(latest.mark()));
        old.accept(&latest.mark(), NOW + 9).expect("accepts");
        assert_eq!((old.shown(), old.relation(&latest.mark())), (None, None));
        assert_eq!(latest.relation(&old.mark()), Some(Relation::Later));
        // An earlier copy that is restored later can be accepted as well.
        old.revoke(&name(), NOW + 10).expect("revokes");
        let mut earliest = of(&before);
        earliest.accept(&old.mark(), NOW + 20).expect("accepts");
        assert_eq!(earliest.relation(&old.mark()), None);
        assert!(earliest.mark().count < 1 << 53);
    }

    #[test]
    fn p13_an_invitation_is_a_change_but_not_a_lasting_one() {
        let (mut registry, _) = revoked();
        let revoked = registry.mark();
        assert_eq!(registry.lasting_mark(), revoked);
        let new = MemberName::new("web2").expect("name");
        registry.invite(&new, Role::Webserver, 1000, NOW + 2, false).expect("invites");
        let mut registry = of(&registry.clone_text());
        assert_eq!((registry.lasting_mark(), registry.mark().count), (revoked.clone(), revoked.count + 1));
        registry.enrol(&new, Role::Webserver, b"another", 90, NOW + 3).expect("enrols");
        assert_eq!(registry.lasting_mark(), registry.mark());
        // Who was revoked is unknown to a copy from before that, and no longer revoked after another invitation.
        registry.invite(&name(), Role::Webserver, 1000, NOW + 4, false).expect("invites");
        assert_eq!(registry.lasting_mark(), registry.mark());
        registry.forget_invitations(0, NOW + 5).expect("puts back");
        assert_eq!(registry.lasting_mark(), registry.mark());
    }

    #[test]
    fn p13_no_invitation_outlives_the_registries_that_are_given_up() {
        let (mut registry, _) = revoked();
        let new = MemberName::new("web2").expect("name");
        registry.invite(&new, Role::Webserver, 1000, NOW, false).expect("invites");
        registry.invite(&MemberName::new("web3").expect("name"), Role::Webserver, 1000, NOW, false).expect("invites");
        registry.enrol(&new, Role::Webserver, b"another", 90, NOW).expect("enrols");
        registry.invite(&new, Role::Webserver, 1000, NOW, true).expect("invites again");
        registry.accept(&RegisterMark::default(), NOW + 1).expect("accepts");
        let left: Vec<_> = registry.members().map(|member| (member.name.as_str(), member.invite.is_some())).collect();
        assert_eq!(left, [("web1", false), ("web2", false)]);
    }

    #[test]
    fn p13_what_an_operator_accepts_is_later_than_all_that_was_accepted_before() {
        const SECOND: u64 = 1000;
        const HOUR: u64 = 3_600_000;
        let changed = |mut registry: Registry, now_ms: u64| {
            registry.set_on(0, now_ms);
            let text = registry.text(now_ms).expect("text");
            // In use for a while; its members see these marks.
            for count in 0..5 {
                let name = MemberName::new(format!("new{count}")).expect("name");
                registry.invite(&name, Role::Reader, 9, now_ms + count, false).expect("invites");
            }
            (text, registry.mark())
        };
        let (_, before) = revoked();
        // The clock is right, or ran ahead by some time when the first copy was accepted.
        for ahead in [0, SECOND, HOUR, 100 * 24 * HOUR] {
            let (copy, first) = changed(of(&before), NOW + ahead);
            let mut seen = vec![first];
            for number in 1..=3 {
                let (_, mark) = changed(of(&copy), NOW + HOUR + number * SECOND);
                assert!(seen.iter().all(|seen| seen.count < mark.count), "{ahead} {number}: {seen:?} {mark:?}");
                seen.push(mark);
            }
            // An earlier copy, and one in which the latest of them was seen.
            let mut earlier = of(&before);
            earlier.note_shown(seen.last().expect("some"));
            let (_, mark) = changed(earlier, NOW + HOUR + 5 * SECOND);
            assert!(seen.iter().all(|seen| seen.count < mark.count), "{ahead}: {seen:?} {mark:?}");
            assert!(mark.count < 1 << 53);
            if ahead <= HOUR {
                let (_, mark) = changed(of(&before), NOW + HOUR + 9 * SECOND);
                assert!(seen.iter().all(|seen| seen.count < mark.count), "{ahead}: {seen:?} {mark:?}");
            }
        }
    }

    #[test]
    fn p12_a_register_of_a_version_that_counts_no_changes_is_no_evidence_and_neither_is_what_comes_after_it() {
        let without = |text: &str| {
            let mut fields: serde_json::Map<_, _> =
                serde_json::from_str(checksummed_text::open(text).expect("opens")).expect("JSON");
            fields.remove("changes").expect("field exists");
            checksummed_text::seal(&serde_json::to_string(&fields).expect("JSON"))
        };
        let (mut latest, before) = revoked();
        let text = latest.text(NOW).expect("text");
        // An upgrade, with a copy that was sealed just before it, and a version in between that counts no changes.
        let (old, mut upgraded) = (of(&without(&before)), of(&without(&text)));
        assert_eq!(upgraded.relation(&old.mark()), None);
        assert_eq!(upgraded.relation(&latest.mark()), None);
        let first = upgraded.mark();
        let written = of(&upgraded.text(NOW).expect("text"));
        assert_eq!(written.relation(&first), None);
        let mut changed = of(&written.clone_text());
        changed.revoke(&name(), NOW + 2).expect("revokes");
        assert_eq!((changed.relation(&first), changed.relation(&written.mark())), (None, None));
        let again = of(&without(&changed.clone_text()));
        assert_eq!(again.relation(&changed.mark()), None, "also after a version in between");
        let mut accepted = of(&changed.clone_text());
        accepted.accept(&changed.mark(), NOW).expect("accepts");
        assert_eq!(of(&without(&accepted.clone_text())).relation(&accepted.mark()), None);
    }

    #[test]
    fn p13_a_register_that_came_back_is_known_to_descend_from_its_copies_and_not_from_another_branch() {
        let (a, before) = revoked();
        let mut b = of(&before);
        for number in 0..3 {
            let new = MemberName::new(format!("new{number}")).expect("name");
            b.invite(&new, Role::Reader, 9, NOW + 3, false).expect("invites");
        }
        // Branch B is put back by somebody who was not asked about branch A.
        let mut back = of(&b.clone_text());
        back.forget_invitations(0, NOW + 10).expect("forgets");
        let mut back = of(&back.clone_text());
        assert!(back.goes_on_from(&b) && back.goes_on_from(&of(&before)) && !back.goes_on_from(&a));
        assert_eq!(back.came_from().map(|mark| (mark.count, mark.name)), Some((b.mark().count, b.mark().name)));
        assert_eq!(back.relation(&a.mark()), Some(Relation::Apart), "A is evidence although B has more changes");
        assert!(back.note_shown(&a.mark()) && back.shown() == Some(a.mark()));
        let later = back.clone_text();
        // When the operator decides, it is no evidence any more, and the descent is still known.
        back.choose_over(&[GivenUp::of(&a)], NOW + 11).expect("gives up");
        assert_eq!((back.relation(&a.mark()), back.shown()), (None, None));
        assert!(back.goes_on_from(&b) && !back.goes_on_from(&a));
        let mut accepted = of(&later);
        accepted.accept(&a.mark(), NOW + 12).expect("accepts");
        assert_eq!((accepted.relation(&a.mark()), accepted.shown()), (None, None));
        // What is kept is bounded.
        for number in 0..20 {
            accepted.forget_invitations(0, NOW + 20 + number).expect("puts back");
        }
        assert_eq!(accepted.changes().former.len(), FORMER_MAX);
    }

    impl Registry {
        fn clone_text(&self) -> String {
            self.copy().text(NOW).expect("text")
        }
    }

    #[test]
    fn p13_a_mark_is_believed_as_far_as_the_authority_has_signed_it() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dirs = ["one", "other"].map(|name| temp.path().join(name));
        let [one, other] = dirs.each_ref().map(|dir| Authorities::open_or_create(dir, NOW).expect("makes"));
        let signed = one.current().sign_mark(revoked().0.mark()).expect("signs");
        assert!(one.have_signed(&signed) && !other.have_signed(&signed));
        let mut altered = signed.clone();
        altered.mark.count += 1;
        assert!(!one.have_signed(&altered));
        // The key of a CA that was replaced may have leaked, and that of an aborted rotation as well.
        let next = Authorities::begin(&dirs[0], NOW).expect("begins");
        let by_next = next.next().expect("a next CA").sign_mark(revoked().0.mark()).expect("signs");
        assert!(next.have_signed(&signed) && next.have_signed(&by_next));
        let aborted = Authorities::abort(&dirs[0], gravwell_model::Generation(1), NOW).expect("aborts");
        assert!(aborted.have_signed(&signed) && !aborted.have_signed(&by_next));
        Authorities::begin(&dirs[0], NOW).expect("begins");
        let ended = Authorities::finish(&dirs[0], gravwell_model::Generation(1), NOW).expect("ends");
        assert!(!ended.have_signed(&signed));
    }
}
