//! Tests of recent deletions: stored with the state, passed on with it, and discarded where they are incomplete.

use super::*;
use crate::engine::Slice;
use crate::{envelope, meta};
use gravwell_model::Deletions;
use gravwell_model::deletions::Changed;

const POSITION: [u8; 1] = [envelope::Table::Position as u8];

fn deleted_until(store: &StateStore) -> (Seq, Vec<(u64, String)>) {
    let deletions = store.snapshot().expect("snapshot").deletions().expect("deletions");
    let rows = deletions.rows().map(|(seq, name)| (seq.0, format!("{}/{}", name.0, name.1.as_str())));
    (deletions.complete_after(), rows.collect())
}

fn some(store: &StateStore) {
    apply(store, &[commit(1, 1, 1, 0, vec![put("c", "k", b"1"), put("c", "l", b"1"), delete("c", "never")])]);
    apply(store, &[commit(2, 1, 2, 0, vec![delete("c", "k")]), commit(3, 1, 3, 0, vec![delete("c", "l")])]);
    apply(store, &[commit(4, 1, 4, 0, vec![put("c", "l", b"2")])]);
}

#[test]
fn p04_deletions_survive_a_restart_and_a_put_ends_them() {
    let dir = tempfile::tempdir().expect("dir");
    let expected = (Seq(0), vec![(1, "c/never".to_owned()), (2, "c/k".to_owned())]);
    {
        let store = StateStore::open(dir.path(), CACHE_BYTES).expect("open");
        store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
        some(&store);
        assert_eq!(deleted_until(&store), expected);
        store.set_generation(Generation(2), vec![]).expect("a generation");
        store.persist().expect("persists");
    }
    let store = StateStore::open(dir.path(), CACHE_BYTES).expect("open");
    assert_eq!(deleted_until(&store), expected);
    apply(&store, &[commit(5, 1, 5, 0, vec![put("c", "k", b"3"), delete("c", "l")])]);
    assert_eq!(deleted_until(&store), (Seq(0), vec![(1, "c/never".to_owned()), (5, "c/l".to_owned())]));
    assert_eq!(store.check().expect("check").damage, []);
}

#[test]
fn p12_a_state_that_an_earlier_version_wrote_knows_of_no_deletion() {
    let engine = std::sync::Arc::new(crate::memory_engine::MemoryEngine::default());
    let store = StateStore::with_engine(Box::new(SharedEngine(engine.clone()))).expect("store");
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    some(&store);
    // Writes the position as an earlier version does: without the sum of the deletions.
    let row = store.engine().get(&POSITION).expect("reads").expect("a position");
    let summary = store.snapshot().expect("snapshot").deletions().expect("deletions").summary();
    let summary_bytes = postcard::to_stdvec(&summary).expect("encodes").len();
    let former = envelope::seal(&POSITION, row[..row.len() - summary_bytes].to_vec());
    store.engine().write(vec![(Slice::from(POSITION), Some(former))]).expect("writes");
    assert_eq!(meta::load_deletions(&*store.engine().snapshot()), Ok(None));
    drop(store);
    let store = StateStore::with_engine(Box::new(SharedEngine(engine))).expect("opens");
    assert_eq!(deleted_until(&store), (Seq(4), vec![]), "and the leftover rows are removed");
    apply(&store, &[commit(5, 1, 5, 0, vec![delete("c", "l")])]);
    assert_eq!(deleted_until(&store), (Seq(4), vec![(5, "c/l".to_owned())]));
}

#[test]
fn p10_a_lost_or_changed_deletion_is_noticed() {
    let row_key = [&[6], &b"c\0k"[..]].concat();
    let bad = [None, Some(envelope::seal(&row_key, [&envelope::begin(8)[..], &1u64.to_le_bytes()].concat()))];
    for row in bad {
        let store = empty();
        some(&store);
        store.engine().write(vec![(Slice::from(row_key.clone()), row)]).expect("writes");
        let damage = store.check().expect("check").damage;
        assert!(
            matches!(&damage[..], [StateDamage::Row(StateError::Damaged { table: "deletions", .. })]),
            "{damage:?}"
        );
    }
    let store = empty();
    some(&store);
    let mut row = store.engine().get(&row_key).expect("reads").expect("a row").to_vec();
    for bit in 0..row.len() * 8 {
        row[bit / 8] ^= 1 << (bit % 8);
        let rows = vec![(Slice::from(row_key.clone()), Some(Slice::from(row.clone())))];
        store.engine().write(rows).expect("writes");
        assert!(store.snapshot().expect("snapshot").deletions().is_err(), "bit {bit}");
        row[bit / 8] ^= 1 << (bit % 8);
    }
}

/// Fills a state from objects and origins and, if present, the given deletions.
fn filled(deletions: Option<Deletions>) -> Result<StateStore, StateError> {
    let source = empty();
    some(&source);
    let view = source.snapshot().expect("snapshot");
    let mut loader = StateStore::in_memory().loader().expect("loader");
    let deletions_after = deletions.as_ref().map(Deletions::complete_after);
    if let Some(deletions) = deletions {
        loader.deletions(deletions)?;
    }
    for row in view.objects() {
        let (c, k, object) = row.expect("row");
        loader.object(&c, &k, &object)?;
    }
    for row in view.origins() {
        let (origin, row) = row.expect("row");
        loader.origin(origin, &row)?;
    }
    let digest = Some(view.meta().expect("meta").digest);
    loader.finish(Target { deletions_after, ..target(Seq(4), digest) })
}

#[test]
fn p12_a_filled_state_knows_what_its_source_told_and_no_more() {
    let source = empty();
    some(&source);
    let told = source.snapshot().expect("snapshot").deletions().expect("deletions");
    assert_eq!(deleted_until(&filled(Some(told.clone())).expect("fills")), deleted_until(&source));
    assert_eq!(
        deleted_until(&filled(None).expect("fills")),
        (Seq(4), vec![]),
        "an earlier version does not know deletions"
    );
    let mut wrong = told.clone();
    wrong.take(&commit(4, 1, 4, 0, vec![delete("c", "l")]), &mut Changed::new());
    assert!(matches!(filled(Some(wrong)), Err(StateError::Damaged { table: "deletions", .. })), "the object exists");
    let mut wrong = told;
    wrong.take(&commit(5, 1, 5, 0, vec![delete("c", "m")]), &mut Changed::new());
    assert!(matches!(filled(Some(wrong)), Err(StateError::Damaged { table: "deletions", .. })), "later than the state");
}

#[test]
fn p04_a_base_made_of_a_state_gives_its_deletions_again() {
    let source = empty();
    some(&source);
    let view = source.snapshot().expect("snapshot");
    let origins: OriginTable = view.origins().map(|row| row.expect("row")).collect();
    for known in [Some(Seq(0)), Some(Seq(1)), None] {
        let base = base_entries(&view).expect("base");
        let horizon = Target { deletions_after: known, ..target(Seq(4), Some(view.meta().expect("meta").digest)) };
        let built = rebuild::rebuild(&StateStore::in_memory(), base, &origins, horizon, [], None, &mut |_| {});
        let built = built.expect("rebuilds");
        let (after, rows) = deleted_until(&source);
        let after = known.map_or(Seq(4), |known| known.max(after));
        let rows = rows.into_iter().filter(|(seq, _)| Seq(*seq) > after).collect();
        assert_eq!(deleted_until(&built), (after, rows));
    }
}

/// An engine that outlives its store.
struct SharedEngine(std::sync::Arc<crate::memory_engine::MemoryEngine>);

impl crate::engine::Engine for SharedEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Slice>, StateError> {
        self.0.get(key)
    }

    fn write(&self, batch: crate::engine::Batch) -> Result<(), StateError> {
        self.0.write(batch)
    }

    fn persist(&self) -> Result<(), StateError> {
        self.0.persist()
    }

    fn snapshot(&self) -> Box<dyn crate::engine::EngineSnapshot> {
        self.0.snapshot()
    }

    fn disk_bytes(&self) -> u64 {
        self.0.disk_bytes()
    }
}
