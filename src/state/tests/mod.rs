//! Tests of the guarantees of the state against a plain map as the model.

mod authors;
mod crash;
mod deletions;
mod redacted;
mod rows;

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use gravwell_model::position::Chain;
use gravwell_model::{
    Collection, Digest, DigestSet, Entry, EntryBody, Generation, Key, LineageEntry, LogId, MemberName, Op, Origin,
    OriginCounter, Reason, Seq, Txn, TxnId,
};

pub(super) const CACHE_BYTES: u64 = 8 << 20;

pub(super) fn collection(name: &str) -> Collection {
    Collection::new(name).expect("collection")
}

pub(super) fn key(name: &str) -> Key {
    Key::new(name).expect("key")
}

pub(super) fn put(c: &str, k: &str, value: &[u8]) -> Op {
    Op::Put { collection: collection(c), key: key(k), value: Bytes::copy_from_slice(value) }
}

pub(super) fn delete(c: &str, k: &str) -> Op {
    Op::Delete { collection: collection(c), key: key(k) }
}

pub(super) fn commit(seq: u64, origin: u8, counter: u64, settled: u64, ops: Vec<Op>) -> Entry {
    let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) };
    let settled = OriginCounter(settled);
    let txn = Txn { id, settled, time_ms: 7, note: Bytes::new(), conditions: vec![], ops };
    entry(seq, EntryBody::Commit(txn))
}

pub(super) fn entry(seq: u64, body: EntryBody) -> Entry {
    Entry { seq: Seq(seq), time_ms: 1000 + seq, member: MemberName::new("web1").expect("name"), body }
}

/// Stands in for the chain of the log.
pub(super) fn chain(seq: Seq) -> Chain {
    let hash = blake3::hash(&seq.0.to_le_bytes());
    *hash.as_bytes().first_chunk().expect("16 of 32")
}

pub(super) fn empty() -> StateStore {
    let store = StateStore::in_memory();
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    store
}

pub(super) fn apply(store: &StateStore, entries: &[Entry]) {
    let last = entries.last().map_or(Seq::ZERO, |entry| entry.seq);
    store.apply(entries, chain(last)).expect("apply");
}

/// The expected state as plain maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) objects: BTreeMap<(Collection, Key), Object>,
    pub(super) origins: OriginTable,
    pub(super) deletions: BTreeMap<(Collection, Key), Seq>,
}

impl Model {
    pub(super) fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Model {
        let mut model = Model::default();
        for entry in entries {
            model.origins.apply(entry);
            let EntryBody::Commit(txn) = &entry.body else { continue };
            for op in &txn.ops {
                let place = (op.collection().clone(), op.key().clone());
                match op.value() {
                    Some(_) => model.deletions.remove(&place),
                    None => model.deletions.insert(place.clone(), entry.seq),
                };
                match op.value() {
                    Some(value) => {
                        let object = Object { version: entry.seq, time_ms: entry.time_ms, value: value.clone() };
                        model.objects.insert(place, object)
                    }
                    None => model.objects.remove(&place),
                };
            }
        }
        model
    }

    pub(super) fn digests(&self) -> DigestSet {
        let mut digests = DigestSet::default();
        for ((collection, key), object) in &self.objects {
            digests.add_object(collection, key, object.version, &object.value);
        }
        for (origin, row) in self.origins.rows() {
            digests.replace_origin(origin, None, Some(row));
        }
        digests
    }

    fn assert_deletions(&self, snapshot: &StateSnapshot) {
        let found = snapshot.deletions().expect("deletions");
        let rows: BTreeMap<_, _> = found.rows().map(|(seq, name)| (name.clone(), seq)).collect();
        let known = self.deletions.iter().filter(|(_, seq)| **seq > found.complete_after());
        assert_eq!(rows, known.map(|(name, seq)| (name.clone(), *seq)).collect(), "all deletions since they are known");
    }

    pub(super) fn assert_is(&self, store: &StateStore) {
        let snapshot = store.snapshot().expect("snapshot");
        let objects = snapshot.objects().map(|row| row.map(|(c, k, object)| ((c, k), object)));
        let objects = objects.collect::<Result<Vec<_>, _>>().expect("objects");
        let expected = self.objects.iter().map(|(place, object)| (place.clone(), object.clone()));
        assert_eq!(objects, expected.collect::<Vec<_>>(), "objects, in the order of (collection, key)");
        assert_eq!(snapshot.origin_table().expect("origins"), self.origins);
        let meta = snapshot.meta().expect("meta");
        assert_eq!(meta.digests, self.digests());
        assert_eq!(meta.digest, meta.digests.overall());
        assert_eq!(store.meta().as_ref(), Some(meta));
        assert_eq!(snapshot.check().expect("check").damage, vec![]);
        self.assert_deletions(&snapshot);
        for ((collection, key), object) in &self.objects {
            assert_eq!(store.get(collection, key).expect("get").as_ref(), Some(object));
            assert_eq!(snapshot.version(collection, key).expect("version"), Some(object.version));
        }
    }
}

/// Names with an order that is easy to get wrong.
const COLLECTIONS: [&str; 4] = ["a", "ab", "a b", "\u{10FFFF}"];
const KEYS: [&str; 8] = ["\0", "\u{1}", "a", "a\0", "a\0b", "ab", "\u{7FF}", "\u{10FFFF}\u{10FFFF}"];

fn op() -> impl Strategy<Value = Op> {
    let value = prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..40));
    (prop::sample::select(&COLLECTIONS[..]), prop::sample::select(&KEYS[..]), value).prop_map(|(c, k, value)| {
        match value {
            Some(value) => put(c, k, &value),
            None => delete(c, k),
        }
    })
}

/// Entries from sequence 1 on: mostly commits, some rejections, some of unknown kinds.
pub(super) fn entries(most: usize) -> impl Strategy<Value = Vec<Entry>> {
    let step = (0u8..10, 0u8..3, prop::collection::vec(op(), 0..5));
    prop::collection::vec(step, 1..most).prop_map(|steps| {
        let mut counters = [0; 3];
        let numbered = (1..).zip(steps);
        let make = numbered.map(|(seq, (kind, origin, ops))| {
            if kind == 9 {
                return entry(seq, EntryBody::Unknown { kind: 77, payload: Bytes::from_static(b"?") });
            }
            let counter = &mut counters[usize::from(origin)];
            *counter += 1;
            let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(*counter) };
            let settled = OriginCounter(*counter / 2);
            if kind >= 7 {
                let reason = Reason::ConditionFailed { condition: format!("absent a/{seq}"), found: Some(Seq(seq)) };
                return entry(seq, EntryBody::Reject { id, settled, reason });
            }
            commit(seq, origin, *counter, settled.0, ops)
        });
        make.collect()
    })
}

/// Returns what compaction keeps of `entries`: the operations that are live after the last entry.
fn compacted(entries: &[Entry]) -> Vec<Entry> {
    let live = Model::of(entries);
    let mut kept = Vec::new();
    for entry in entries {
        let EntryBody::Commit(txn) = &entry.body else { continue };
        let mut txn = txn.clone();
        let mut seen = std::collections::BTreeSet::new();
        txn.ops.reverse();
        txn.ops.retain(|op| {
            let place = (op.collection().clone(), op.key().clone());
            let is_live = live.objects.get(&place).is_some_and(|object| object.version == entry.seq);
            is_live && op.value().is_some() && seen.insert(place)
        });
        if !txn.ops.is_empty() {
            kept.push(Entry { body: EntryBody::Commit(txn), ..entry.clone() });
        }
    }
    kept
}

fn cut(entries: &[Entry], sizes: &[usize]) -> Vec<Vec<Entry>> {
    let mut rest = entries;
    let mut out = Vec::new();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, after) = rest.split_at((*size).min(rest.len()));
        out.push(batch.to_vec());
        rest = after;
    }
    out
}

fn target(seq: Seq, digest: Option<Digest>) -> Target {
    Target {
        log_id: LogId([1; 16]),
        generation: Generation(1),
        lineage: vec![],
        seq,
        chain: chain(seq),
        time_ms: 1000 + seq.0,
        deletions_after: None,
        digest,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn p09_batching_changes_nothing(entries in entries(60), sizes in prop::collection::vec(1usize..12, 1..5)) {
        let store = empty();
        for batch in cut(&entries, &sizes) {
            apply(&store, &batch);
        }
        Model::of(&entries).assert_is(&store);
    }

    #[test]
    fn a_view_does_not_move(entries in entries(40), at in any::<prop::sample::Index>()) {
        let (before, after) = entries.split_at(at.index(entries.len()));
        let store = empty();
        apply(&store, before);
        let snapshot = store.snapshot().expect("snapshot");
        apply(&store, after);
        let objects = snapshot.objects().collect::<Result<Vec<_>, _>>().expect("objects");
        let expected = Model::of(before);
        let expected_objects = expected.objects.iter().map(|((c, k), o)| (c.clone(), k.clone(), o.clone()));
        prop_assert_eq!(objects, expected_objects.collect::<Vec<_>>());
        prop_assert_eq!(&snapshot.meta().expect("meta").digests, &expected.digests());
        prop_assert_eq!(snapshot.check().expect("check").damage, vec![]);
        Model::of(&entries).assert_is(&store);
    }

    #[test]
    fn rebuilding_from_a_compacted_log_gives_the_same_state(
        entries in entries(60),
        at in any::<prop::sample::Index>(),
    ) {
        let (old, tail) = entries.split_at(at.index(entries.len()));
        let horizon = Seq(old.len() as u64);
        let model = Model::of(&entries);
        let pieces = Model::of(old).origins.encode();
        let origins = OriginTable::decode(pieces.iter().map(Vec::as_slice)).expect("origins");
        let mut seen = Vec::new();
        let store = rebuild::rebuild(
            &StateStore::in_memory(),
            compacted(old).into_iter().map(Ok::<_, String>),
            &origins,
            target(horizon, Some(Model::of(old).digests().overall())),
            tail.iter().map(|entry| Ok((entry.clone(), chain(entry.seq)))),
            Some(model.digests().overall()),
            &mut |seq| seen.push(seq),
        ).expect("rebuild");
        model.assert_is(&store);
        prop_assert_eq!(store.meta().expect("meta").seq, Seq(entries.len() as u64));
        prop_assert!(seen.is_sorted());
    }

    #[test]
    fn rows_carry_a_state_to_another_store(entries in entries(60), spoil in 0usize..4) {
        let source = empty();
        apply(&source, &entries);
        let view = source.snapshot().expect("snapshot");
        let meta = view.meta().expect("meta");
        let copy = StateStore::in_memory();
        let mut loader = copy.loader().expect("loader");
        let mut spoilt = false;
        for row in view.objects() {
            let (c, k, mut object) = row.expect("row");
            if !spoilt && spoil > 0 {
                spoilt = true;
                match spoil {
                    1 => object.version = object.version.next(),
                    2 => object.value = Bytes::from_static(b"something that no test ever writes into an object"),
                    _ => continue,
                }
            }
            loader.object(&c, &k, &object).expect("load");
        }
        for row in view.origins() {
            let (origin, row) = row.expect("row");
            loader.origin(origin, &row).expect("load");
        }
        match loader.finish(target(meta.seq, Some(meta.digest))) {
            Ok(store) => {
                prop_assert!(!spoilt, "an altered row must be detected");
                Model::of(&entries).assert_is(&store);
            }
            Err(error) => {
                prop_assert!(spoilt, "{}", error);
                let mismatch = matches!(error, StateError::DigestMismatch { .. });
                prop_assert!(mismatch, "{}", error);
                prop_assert_eq!(error.remedy(), Remedy::Rebuild);
                prop_assert_eq!(copy.meta(), None);
            }
        }
    }
}

#[test]
fn p02_only_the_next_entries_are_applied() {
    let store = empty();
    apply(&store, &[commit(1, 1, 1, 0, vec![put("c", "k", b"1")])]);
    let before = store.meta();
    let offers: [&[u64]; 5] = [&[1], &[3], &[2, 4], &[2, 2], &[0]];
    for seqs in offers {
        let entries = seqs.iter().map(|seq| commit(*seq, 1, *seq, 0, vec![delete("c", "k")])).collect::<Vec<_>>();
        let error = store.apply(&entries, chain(Seq(9))).expect_err("refused");
        assert!(matches!(error, StateError::OutOfOrder { .. }), "{seqs:?}: {error}");
        assert_eq!(error.remedy(), Remedy::Refused);
        assert_eq!(store.meta(), before);
    }
    apply(&store, &[]);
    assert_eq!(store.meta(), before);
    assert_eq!(store.get(&collection("c"), &key("k")).expect("get").expect("object").value, "1");
}

#[test]
fn p04_a_key_changed_often_in_one_batch_has_its_last_word() {
    let store = empty();
    let batch = [
        commit(1, 1, 1, 0, vec![put("c", "gone", b"1"), put("c", "kept", b"1"), delete("c", "kept")]),
        commit(2, 1, 2, 0, vec![delete("c", "gone"), put("c", "kept", b"2"), put("c", "kept", b"3")]),
    ];
    apply(&store, &batch);
    Model::of(&batch).assert_is(&store);
    let kept = store.get(&collection("c"), &key("kept")).expect("get").expect("object");
    assert_eq!((kept.version, kept.value), (Seq(2), Bytes::from_static(b"3")));
    assert_eq!(store.get(&collection("c"), &key("gone")).expect("get"), None);
}

#[test]
fn a_store_is_begun_once() {
    let store = StateStore::in_memory();
    assert_eq!(store.meta(), None);
    assert_eq!(store.apply(&[commit(1, 1, 1, 0, vec![])], [0; 16]), Err(StateError::Uninitialised));
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    let again = store.init(LogId([2; 16]), Generation(1), vec![]);
    assert_eq!(again, Err(StateError::AlreadyInitialised { seq: Seq(0) }));
    assert!(store.loader().is_err());
    store.set_generation(Generation(2), vec![]).expect("generation");
    assert_eq!(store.position().expect("position").generation, Generation(2));
    assert_eq!(store.snapshot().expect("snapshot").meta(), store.meta().as_ref());
}

#[test]
fn every_state_is_given_its_action() {
    let store = empty();
    apply(&store, &[commit(1, 1, 1, 0, vec![]), commit(2, 1, 2, 0, vec![])]);
    let meta = store.meta().expect("meta");
    let rebuild = |reason| Action::Rebuild { reason };
    let loss = |reason| Action::Loss { reason };
    // Generation 4 was started after an operator abandoned everything after sequence 1.
    let entry = |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
    let lineage = [entry(1, 0), entry(2, 5), entry(3, 9), entry(4, 1)];
    let against = |log: u8, generation, horizon, head, meta| {
        let chain_at = |seq: Seq| Some(chain(seq));
        let lineage: Vec<_> = lineage.iter().filter(|entry| entry.generation.0 <= generation).copied().collect();
        let log = LogView {
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            lineage: &lineage,
            horizon: Seq(horizon),
            head: Seq(head),
            chain_at: &chain_at,
        };
        rebuild::verify_against(meta, &log)
    };
    assert_eq!(against(1, 1, 0, 2, Some(&meta)), Action::Use);
    assert_eq!(against(1, 2, 2, 9, Some(&meta)), Action::CatchUp { from: Seq(2) });
    assert_eq!(against(1, 1, 0, 2, None), rebuild(RebuildReason::Missing));
    assert_eq!(against(2, 1, 0, 2, Some(&meta)), loss(LossReason::OtherLog));
    assert_eq!(against(1, 0, 0, 2, Some(&meta)), loss(LossReason::LaterGeneration));
    assert_eq!(against(1, 1, 0, 1, Some(&meta)), loss(LossReason::Ahead));
    assert_eq!(against(1, 3, 0, 1, Some(&meta)), loss(LossReason::Ahead), "generation 3 shares more than the log has");
    assert_eq!(against(1, 4, 0, 1, Some(&meta)), rebuild(RebuildReason::GivenUp));
    // If two generations do not include each other, the higher number proves nothing.
    let apart = [2, 9].map(|number| StateMeta {
        generation: Generation(number),
        lineage: vec![entry(1, 0), entry(number, 1)],
        ..(*meta).clone()
    });
    for meta in &apart {
        assert_eq!(against(1, 4, 0, 9, Some(meta)), rebuild(RebuildReason::GivenUp));
        assert_eq!(against(1, 1, 0, 9, Some(meta)), loss(LossReason::LaterGeneration), "an older copy of the log");
    }
    let begun = StateMeta { seq: Seq(0), ..(*meta).clone() };
    assert_eq!(against(2, 1, 0, 2, Some(&begun)), rebuild(RebuildReason::Empty));
    assert_eq!(against(1, 1, 3, 9, Some(&meta)), rebuild(RebuildReason::BelowHorizon));
    let other = StateMeta { chain: [0; 16], ..(*meta).clone() };
    assert_eq!(against(1, 1, 0, 9, Some(&other)), loss(LossReason::OtherHistory));
}
