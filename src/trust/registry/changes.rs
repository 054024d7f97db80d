//! Changes of who may take part, counted and named: by them a register is told from an earlier one, and from one that went another way.
//!
//! Every write of the register has a revision, also one of positions alone, so an old register that is in use for an hour has a higher
//! one than the register that it took the place of. Changes are counted apart. The latest of them have names, so that of two
//! registers one is known to go on from the other, or not to. The datastore signs the last one for its members; what they show later
//! is believed as far as the datastore has signed it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::Registry;
pub use crate::codec::authority::{RegisterMark, SignedMark};
use crate::codec::jsonl::timestamp;
use crate::trust::proof::has_signed;
use crate::trust::{Authorities, Authority, TrustError};

/// Begins what is signed, so that no other signature of the authority's key can be taken for one.
const DOMAIN: &[u8] = b"gravwell register v1\0";
/// Changes of which the names are kept.
const NAMED_MAX: usize = 256;
/// A register that an operator takes for the latest is so much further, and counts from the time at which that was: no other one has
/// come as far, also not one that was taken for the latest before, and went on from there.
const ACCEPTED: u64 = 1 << 32;
/// Changes in a millisecond are fewer. The count stays below 2^53, which JSON keeps exact.
const CHANGES_PER_MS: u64 = 1 << 10;
/// Digits of a name.
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
    /// When there is no randomness.
    pub fn sign(authority: &Authority, mark: RegisterMark) -> Result<SignedMark, TrustError> {
        let signature = STANDARD.encode(authority.sign(&message(&mark))?);
        Ok(SignedMark { mark, signature })
    }

    /// Whether one of `authorities` has signed it, also one that was replaced.
    #[must_use]
    pub fn is_of(&self, authorities: &Authorities) -> bool {
        let Ok(signature) = STANDARD.decode(&self.signature) else { return false };
        authorities.all().iter().any(|certificate| has_signed(certificate, &message(&self.mark), &signature))
    }
}

/// How a register that was seen is related to the one that is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It has come further.
    Later,
    /// It is none that this one went on from.
    Apart,
}

/// What a register keeps of its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Changes {
    count: u64,
    #[serde(default)]
    changed_ms: u64,
    /// Names of the latest ones, the last one last.
    names: Vec<String>,
    /// A later register that a member has shown.
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
    /// Its changes. A version that counted none wrote its revision with every change, so that this is never less than before.
    pub(super) fn changes(&self) -> Changes {
        let (count, changed_ms) = (self.contents.revision.saturating_add(1), self.contents.saved_ms);
        self.contents.changes.clone().unwrap_or(Changes { count, changed_ms, ..Changes::default() })
    }

    /// How far it has come.
    #[must_use]
    pub fn mark(&self) -> RegisterMark {
        let Changes { count, changed_ms, mut names, .. } = self.changes();
        RegisterMark { count, name: names.pop().unwrap_or_default(), changed_ms }
    }

    /// How a register that was seen is related to this one; `None`: this one goes on from it, as far as is known.
    #[must_use]
    pub fn relation(&self, seen: &RegisterMark) -> Option<Relation> {
        self.changes().relation(seen)
    }

    /// Whether it is known to go on from `earlier`.
    #[must_use]
    pub fn goes_on_from(&self, earlier: &Registry) -> bool {
        let (mark, changes) = (earlier.mark(), self.changes());
        let is_named = changes.count.saturating_sub(mark.count) < changes.names.len() as u64 && !mark.name.is_empty();
        is_named && changes.relation(&mark).is_none()
    }

    /// A later register that a member has shown, or one that went another way.
    #[must_use]
    pub fn shown(&self) -> Option<RegisterMark> {
        self.changes().shown.filter(|shown| self.relation(shown).is_some())
    }

    /// Notes a register that a member has shown. False: it is no news.
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

    /// Counts a change.
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

    /// Takes this register for the latest, whatever others have come to: an operator said so. To be written.
    pub(in crate::trust) fn set_on(&mut self, now_ms: u64) {
        let mut changes = self.changes();
        let shown = changes.shown.take().map_or(0, |shown| shown.count);
        let further = changes.count.max(shown).max(self.contents.revision).saturating_add(ACCEPTED);
        changes.count = further.max(now_ms.saturating_mul(CHANGES_PER_MS));
        changes.names.clear();
        self.contents.changes = Some(changes);
        self.note_change(now_ms);
        self.is_dirty = true;
    }

    /// As `set_on`, durably; `least`, which was seen of another one, is passed as well.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn accept(&mut self, least: Option<&RegisterMark>, now_ms: u64) -> Result<(), TrustError> {
        if let Some(least) = least {
            let mut changes = self.changes();
            changes.count = changes.count.max(least.count);
            self.contents.changes = Some(changes);
        }
        self.set_on(now_ms);
        self.write(now_ms)
    }

    /// Takes over the changes of a copy of this one, of which `before` is the mark when the copy was made. What changed here since
    /// is a change more.
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

    /// A register with a member, and its text before that one is revoked.
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
        // It goes another way, and comes as far and further.
        for count in 0..3 {
            old.invite(&MemberName::new(format!("new{count}")).expect("name"), Role::Reader, 9, NOW + 3, false)
                .expect("invites");
            assert_eq!(old.relation(&latest.mark()), Some(Relation::Apart), "{count}");
            assert!(!old.goes_on_from(&latest));
        }
        // What was seen is kept until an operator takes it for the latest.
        assert!(old.note_shown(&latest.mark()) && !old.note_shown(&latest.mark()));
        let mut old = of(&old.text(NOW).expect("text"));
        assert_eq!(old.shown(), Some(latest.mark()));
        old.accept(None, NOW + 9).expect("accepts");
        assert_eq!((old.shown(), old.relation(&latest.mark())), (None, None));
        assert_eq!(latest.relation(&old.mark()), Some(Relation::Later));
        // So is a copy of before that, when it is put back later.
        old.revoke(&name(), NOW + 10).expect("revokes");
        let mut earliest = of(&before);
        earliest.accept(None, NOW + 20).expect("accepts");
        assert_eq!(earliest.relation(&old.mark()), None);
        assert!(earliest.mark().count < 1 << 53);
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
        // An upgrade, with a copy that was sealed just before it; and a version that counts none in between.
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
        // Also once that authority was replaced.
        Authorities::begin(&dirs[0], NOW).expect("begins");
        let ended = Authorities::finish(&dirs[0], crate::model::Generation(1), NOW).expect("ends");
        assert!(signed.is_of(&ended));
    }
}
