//! Counts and names membership changes, so that a registry can be distinguished from an earlier one and from one that
//! has diverged.
//!
//! Every write of the registry increments its revision, even a write of positions alone. An old registry that has been
//! in use for an hour therefore has a higher revision than the registry that it replaced, so changes are counted
//! separately. The latest changes have names, which show whether one registry descends from another. The datastore
//! signs the mark of the last change for its members. A mark that a member presents later is believed only if the
//! datastore signed it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Registry;
pub use crate::codec::authority::{RegisterMark, SignedMark};
use crate::codec::jsonl::timestamp;
use crate::trust::proof::has_signed;
use crate::trust::{Authorities, Authority, TrustError};

/// Domain separator: prevents other signatures of the CA's key from being accepted as signed marks.
const DOMAIN: &[u8] = b"gravwell register v1\0";
/// Maximum number of changes whose names are kept.
const NAMED_MAX: usize = 256;
/// Upper bound on the changes per millisecond. Counts stay below 2^53, which JSON represents exactly.
const CHANGES_PER_MS: u64 = 1 << 10;
/// A count that is ahead of the time is raised by at most the time divided by this, so that it is not ahead for much
/// longer: about 30 hours.
const BEHIND_DIVISOR: u64 = 16;
/// Hexadecimal digits of a change's name.
const NAME_CHARS: usize = 16;

impl std::fmt::Display for RegisterMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "change {} of {}", self.count, timestamp(self.changed_ms))
    }
}

fn message(mark: &RegisterMark) -> Vec<u8> {
    let bytes = postcard::to_extend(&(mark.count, &mark.name, mark.changed_ms), DOMAIN.to_vec());
    bytes.expect("invariant: encoding numbers and a text into memory cannot fail")
}

impl SignedMark {
    /// Signs a mark.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn sign(authority: &Authority, mark: RegisterMark) -> Result<SignedMark, TrustError> {
        let signature = STANDARD.encode(authority.sign(&message(&mark))?);
        Ok(SignedMark { mark, signature })
    }

    /// Returns whether one of `authorities`, including replaced ones, has signed the mark.
    #[must_use]
    pub fn is_of(&self, authorities: &Authorities) -> bool {
        let Ok(signature) = STANDARD.decode(&self.signature) else { return false };
        authorities.all().iter().any(|certificate| has_signed(certificate, &message(&self.mark), &signature))
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
    count: u64,
    #[serde(default)]
    changed_ms: u64,
    /// Names of the latest changes, oldest first.
    names: Vec<String>,
    /// Mark of a later registry that a member has presented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shown: Option<RegisterMark>,
}

impl Changes {
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    fn relation(&self, seen: &RegisterMark) -> Option<Relation> {
        let Some(back) = self.count.checked_sub(seen.count) else { return Some(Relation::Later) };
        let at = self.names.len().checked_sub(usize::try_from(back).ok()?.checked_add(1)?)?;
        (!seen.name.is_empty() && self.names[at] != seen.name).then_some(Relation::Apart)
    }
}

impl Registry {
    /// Returns the changes. Versions that count no changes wrote a new revision with every change, so starting from the
    /// revision never lowers the count.
    pub(super) fn changes(&self) -> Changes {
        let (count, changed_ms) = (self.contents.revision.saturating_add(1), self.contents.saved_ms);
        self.contents.changes.clone().unwrap_or(Changes { count, changed_ms, ..Changes::default() })
    }

    /// Returns the mark of the latest change.
    #[must_use]
    pub fn mark(&self) -> RegisterMark {
        let Changes { count, changed_ms, mut names, .. } = self.changes();
        RegisterMark { count, name: names.pop().unwrap_or_default(), changed_ms }
    }

    /// Returns how a registry that was seen is related to this one; `None` if this one descends from it, as far as
    /// is known.
    #[must_use]
    pub fn relation(&self, seen: &RegisterMark) -> Option<Relation> {
        self.changes().relation(seen)
    }

    /// Returns whether this registry is known to descend from `earlier`.
    #[must_use]
    pub fn goes_on_from(&self, earlier: &Registry) -> bool {
        let (mark, changes) = (earlier.mark(), self.changes());
        let is_named = changes.count.saturating_sub(mark.count) < changes.names.len() as u64 && !mark.name.is_empty();
        is_named && changes.relation(&mark).is_none()
    }

    /// Returns the mark of a later or diverged registry that a member has presented.
    #[must_use]
    pub fn shown(&self) -> Option<RegisterMark> {
        self.changes().shown.filter(|shown| self.relation(shown).is_some())
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
        hasher.update(changes.names.last().map_or(&[][..], |name| name.as_bytes()));
        hasher.update(&changes.count.to_le_bytes()).update(&now_ms.to_le_bytes());
        for member in self.members() {
            hasher.update(member.described().as_bytes());
        }
        changes.names.push(hasher.finalize().to_hex()[..NAME_CHARS].to_owned());
        let surplus = changes.names.len().saturating_sub(NAMED_MAX);
        changes.names.drain(..surplus);
        self.contents.changes = Some(changes);
    }

    /// Makes this registry the latest, whatever others have reached, because an operator decided so. The caller must
    /// write it.
    ///
    /// The count follows the time of acceptance. So a copy that is accepted later has the greater count, whichever copy
    /// it is, and however often the same one was accepted before. A count that is ahead of the time, because a clock ran
    /// ahead, is raised by an amount that grows with the time: then the same holds for copies of this registry, as long
    /// as the clock does not go back any further.
    pub(in crate::trust) fn set_on(&mut self, now_ms: u64) {
        let mut changes = self.changes();
        let shown = changes.shown.take().map_or(0, |shown| shown.count);
        let reached = changes.count.max(shown).max(self.contents.revision);
        let raised_max = now_ms / BEHIND_DIVISOR;
        let raised = now_ms.checked_sub(changes.changed_ms).map_or(raised_max, |since_ms| since_ms.min(raised_max));
        changes.count = now_ms.saturating_mul(CHANGES_PER_MS).max(reached.saturating_add(raised));
        changes.names.clear();
        self.contents.changes = Some(changes);
        self.note_change(now_ms);
        self.is_dirty = true;
    }

    /// As `set_on`, but durable. The new count also exceeds `least`, a mark of another registry.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn accept(&mut self, least: Option<&RegisterMark>, now_ms: u64) -> Result<(), TrustError> {
        if let Some(least) = least {
            let mut changes = self.changes();
            changes.count = changes.count.max(least.count);
            self.contents.changes = Some(changes);
        }
        self.set_on(now_ms);
        self.write(now_ms)
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
    use crate::model::{MemberName, Seq};
    use crate::trust::{Role, summed};

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
        old.accept(None, NOW + 9).expect("accepts");
        assert_eq!((old.shown(), old.relation(&latest.mark())), (None, None));
        assert_eq!(latest.relation(&old.mark()), Some(Relation::Later));
        // An earlier copy that is restored later can be accepted as well.
        old.revoke(&name(), NOW + 10).expect("revokes");
        let mut earliest = of(&before);
        earliest.accept(None, NOW + 20).expect("accepts");
        assert_eq!(earliest.relation(&old.mark()), None);
        assert!(earliest.mark().count < 1 << 53);
    }

    #[test]
    fn p13_what_an_operator_accepts_is_later_than_all_that_was_accepted_before() {
        const SECOND: u64 = 1000;
        const HOUR: u64 = 3_600_000;
        let changed = |mut registry: Registry, now_ms: u64| {
            registry.set_on(now_ms);
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
                serde_json::from_str(summed::open(text).expect("opens")).expect("JSON");
            fields.remove("changes").expect("is there");
            summed::seal(&serde_json::to_string(&fields).expect("JSON"))
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
        assert_eq!(again.relation(&changed.mark()), None, "and after a version in between, too");
        let mut accepted = of(&changed.clone_text());
        accepted.accept(None, NOW).expect("accepts");
        assert_eq!(of(&without(&accepted.clone_text())).relation(&accepted.mark()), None);
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
        let signed = SignedMark::sign(one.current(), revoked().0.mark()).expect("signs");
        assert!(signed.is_of(&one) && !signed.is_of(&other));
        let mut altered = signed.clone();
        altered.mark.count += 1;
        assert!(!altered.is_of(&one));
        // Holds even after that CA was replaced.
        Authorities::begin(&dirs[0], NOW).expect("begins");
        let ended = Authorities::finish(&dirs[0], crate::model::Generation(1), NOW).expect("ends");
        assert!(signed.is_of(&ended));
    }
}
