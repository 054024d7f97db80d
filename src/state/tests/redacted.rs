//! Tests that a redacted state equals the full one except for the withheld values.

use super::*;
use crate::base::base_entries;
use gravwell_model::{Redaction, Withheld};

fn redaction() -> Redaction {
    Redaction::of([collection("a"), collection("a b")])
}

/// Returns the redacted copy of a full state.
fn copy(source: &StateStore) -> StateStore {
    let view = source.snapshot().expect("snapshot");
    let meta = view.meta().expect("meta");
    let mut loader = StateStore::in_memory().loader().expect("loader");
    loader.redact();
    loader.deletions(view.deletions().expect("deletions")).expect("load");
    for row in view.objects() {
        let (c, k, object) = row.expect("row");
        if redaction().hides(&c) {
            let (version, time_ms) = (object.version, object.time_ms);
            let object = Withheld::of(c, k, version, &object.value);
            loader.withheld(&WithheldObject { version, time_ms, object }).expect("load");
        } else {
            loader.object(&c, &k, &object).expect("load");
        }
    }
    for row in view.origins() {
        let (origin, row) = row.expect("row");
        loader.origin(origin, &row).expect("load");
    }
    let deletions_after = Some(view.deletions().expect("deletions").complete_after());
    let target = Target { deletions_after, ..target(meta.seq, Some(meta.digest)) };
    loader.finish(Target { chain: meta.chain, time_ms: meta.time_ms, ..target }).expect("matches its digest")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn p09_a_redacted_state_proves_that_it_is_equal(
        entries in entries(60),
        at in any::<prop::sample::Index>(),
        sizes in prop::collection::vec(1usize..12, 1..5),
    ) {
        let (before, after) = entries.split_at(at.index(entries.len()));
        let whole = empty();
        apply(&whole, before);
        let redacted = copy(&whole);
        for batch in cut(after, &sizes) {
            apply(&whole, &batch);
            apply(&redacted, &batch.into_iter().map(|entry| redaction().redact(entry)).collect::<Vec<_>>());
        }
        let (mine, theirs) = (redacted.meta().expect("meta"), whole.meta().expect("meta"));
        prop_assert_eq!((mine.position(), &mine.digests), (theirs.position(), &theirs.digests));
        prop_assert_eq!((mine.is_redacted, theirs.is_redacted), (true, false));
        prop_assert_eq!(redacted.check().expect("check").damage, vec![]);
        let (mine, theirs) = (redacted.snapshot().expect("view"), whole.snapshot().expect("view"));
        prop_assert_eq!(mine.deletions().expect("deletions"), theirs.deletions().expect("deletions"));
        let (mut shown, mut withheld) = (Vec::new(), Vec::new());
        for row in theirs.objects() {
            let (c, k, object) = row.expect("row");
            match redaction().hides(&c) {
                true => withheld.push(Withheld::of(c, k, object.version, &object.value)),
                false => shown.push((c, k, object)),
            }
        }
        prop_assert_eq!(mine.objects().collect::<Result<Vec<_>, _>>().expect("rows"), shown);
        let found = mine.withheld().map(|row| row.map(|row| row.object)).collect::<Result<Vec<_>, _>>();
        prop_assert_eq!(found.expect("rows"), withheld);
    }
}

#[test]
fn p11_a_whole_state_takes_nothing_that_lacks_values() {
    let entry = redaction().redact(commit(1, 1, 1, 0, vec![put("a", "k", b"hidden")]));
    let store = empty();
    assert_eq!(store.apply(&[entry], chain(Seq(1))), Err(StateError::RedactedEntry { seq: Seq(1) }));
    assert_eq!(store.meta().expect("meta").seq, Seq::ZERO);
    let object = Withheld::of(collection("a"), key("k"), Seq(1), b"hidden");
    let mut loader = StateStore::in_memory().loader().expect("loader");
    let row = WithheldObject { version: Seq(1), time_ms: 1, object };
    assert_eq!(loader.withheld(&row), Err(StateError::Redacted));
}

#[test]
fn p05_no_log_is_made_of_a_state_that_lacks_values() {
    let whole = empty();
    apply(&whole, &[commit(1, 1, 1, 0, vec![put("a", "k", b"hidden"), put("ab", "k", b"seen")])]);
    let redacted = copy(&whole);
    let found = redacted.withheld(&collection("a"), &key("k")).expect("reads").expect("exists");
    assert_eq!((found.version, found.object.value_bytes), (Seq(1), 6));
    assert_eq!(redacted.get(&collection("a"), &key("k")).expect("reads"), None);
    let view = redacted.snapshot().expect("view");
    assert_eq!(base_entries(&view).err(), Some(StateError::Redacted));
}
