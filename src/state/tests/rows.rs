//! Tests of key order, of damage detection in rows, and of the pieces of the origins table.

use std::ops::Bound;

use super::*;
use crate::engine::Slice;
use crate::memory_engine::MemoryEngine;
use gravwell_model::OriginRow;

#[test]
fn scans_follow_the_order_of_collection_and_key() {
    let dir = tempfile::tempdir().expect("dir");
    let disk = StateStore::open(dir.path(), CACHE_BYTES).expect("open");
    disk.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    for store in [empty(), disk] {
        scans_follow_the_order_in(&store);
    }
}

fn scans_follow_the_order_in(store: &StateStore) {
    let ops = COLLECTIONS.iter().flat_map(|c| KEYS.iter().map(|k| put(c, k, k.as_bytes()))).collect::<Vec<_>>();
    let model_of = |ops: Vec<Op>| Model::of(&[commit(1, 1, 1, 0, ops)]);
    apply(store, &[commit(1, 1, 1, 0, ops.clone())]);
    let model = model_of(ops);
    model.assert_is(store);
    let view = store.snapshot().expect("snapshot");
    let places = model.objects.keys().cloned().collect::<Vec<_>>();
    for (i, (c, k)) in places.iter().enumerate() {
        let after = view.objects_after(Some((c, k))).map(|row| row.map(|(c, k, _)| (c, k)));
        assert_eq!(after.collect::<Result<Vec<_>, _>>().expect("rows"), places[i + 1..]);
    }
    let prefixes = KEYS.iter().copied().chain(["", "a\0", "zz", "\u{10FFFF}"]);
    for prefix in prefixes {
        for from in KEYS.iter().flat_map(|k| [Bound::Included(*k), Bound::Excluded(*k)]).chain([Bound::Unbounded]) {
            for name in COLLECTIONS {
                let found = view.scan(&collection(name), prefix, from).map(|row| row.expect("row").0);
                let beyond = |k: &Key| match from {
                    Bound::Included(from) => k.as_str() >= from,
                    Bound::Excluded(from) => k.as_str() > from,
                    Bound::Unbounded => true,
                };
                let expected =
                    places.iter().filter(|(c, k)| c.as_str() == name && k.as_str().starts_with(prefix) && beyond(k));
                let expected = expected.map(|(_, k)| k.clone()).collect::<Vec<_>>();
                assert_eq!(found.collect::<Vec<_>>(), expected, "{name:?} {prefix:?} {from:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn row_keys_sort_as_their_names(
        a in ("[^\\pC]{1,4}", "\\PC{0,3}[\0-\u{ff}]{1,4}"),
        b in ("[^\\pC]{1,4}", "\\PC{0,3}[\0-\u{ff}]{1,4}"),
    ) {
        let order = objects::key(&a.0, &a.1).cmp(&objects::key(&b.0, &b.1));
        prop_assert_eq!(order, a.cmp(&b));
    }

    #[test]
    fn p10_every_bit_of_a_row_is_checked(
        value in prop::collection::vec(any::<u8>(), 0..50),
        bit in any::<prop::sample::Index>(),
    ) {
        let row_key = objects::key("c", "k");
        let row = objects::encode(&row_key, Seq(5), 9, &value);
        prop_assert!(objects::decode(&row_key, row.clone()).is_ok());
        prop_assert!(objects::decode(&objects::key("c", "l"), row.clone()).is_err());
        let mut bad = row.to_vec();
        let bit = bit.index(bad.len() * 8);
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = objects::decode(&row_key, Slice::from(bad)).err();
        let damaged = matches!(&error, Some(StateError::Damaged { table: "objects", .. }));
        prop_assert!(damaged, "{:?}", error);
        prop_assert!(objects::decode(&row_key, Slice::from(&row[..row.len() - 1])).is_err());
    }

    #[test]
    fn pieces_of_origins_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = OriginTable::decode([bytes.as_slice()]);
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        let _ = OriginTable::decode([versioned.as_slice()]);
    }
}

#[test]
fn p09_a_row_that_was_swapped_for_a_sound_one_is_found_by_the_check() {
    let engine = MemoryEngine::default();
    let store = StateStore::with_engine(Box::new(engine)).expect("store");
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    apply(&store, &[commit(1, 1, 1, 0, vec![put("c", "k", b"1"), put("d", "k", b"1")])]);
    let row_key = objects::key("c", "k");
    let older = objects::encode(&row_key, Seq(1), 1001, b"0");
    store.engine().write(vec![(Slice::from(row_key), Some(older))]).expect("write");
    let report = store.check().expect("check");
    assert_eq!(report.rows, 3);
    assert!(matches!(&report.damage[..], [StateDamage::Collection { collection, .. }] if collection.as_str() == "c"));
    let row_key = origins::key(Origin([1; 16]));
    store.engine().write(vec![(Slice::from(row_key), None)]).expect("write");
    assert!(matches!(store.check().expect("check").damage[..], [_, StateDamage::Origins { .. }]));
    let row_key = objects::key("d", "k");
    store.engine().write(vec![(Slice::from(row_key), Some(Slice::from(*b"\x01junk")))]).expect("write");
    assert!(matches!(store.check().expect("check").damage[..], [StateDamage::Row(StateError::Damaged { .. })]));
    let error = store.get(&collection("d"), &key("k")).expect_err("damaged");
    let text = "the state is damaged: table objects, key \"d/k\": the checksum does not match; it must be rebuilt";
    assert_eq!(error.to_string(), text);
    let batch = [commit(2, 1, 2, 0, vec![put("d", "k", b"2")])];
    assert!(matches!(store.apply(&batch, [0; 16]), Err(StateError::Damaged { .. })), "a damaged state is not extended");
}

#[test]
fn a_lost_sum_is_noticed_at_opening() {
    let store = empty();
    apply(&store, &[commit(1, 1, 1, 0, vec![put("c", "k", b"1")])]);
    store.engine().write(vec![(Slice::from(*b"\x02c"), None)]).expect("write");
    let error = meta::load(&*store.engine().snapshot()).expect_err("lost");
    assert!(matches!(error, StateError::DigestMismatch { .. }));
}

#[test]
fn large_origins_travel_in_bounded_pieces() {
    let mut table = OriginTable::default();
    let reason = |n: u64| Reason::Forbidden { message: format!("{n}{}", "x".repeat(4000)) };
    for origin in 0..4u8 {
        let rejected = (1..=600).map(|n| (OriginCounter(n), Seq(n), reason(n))).collect();
        let row = OriginRow { last_counter: OriginCounter(700), last_seq: Seq(9), rejected };
        table.insert(Origin([origin; 16]), row);
    }
    let pieces = table.encode();
    assert!(pieces.len() > 4);
    assert!(pieces.iter().all(|piece| piece.len() <= origins::PIECE_BYTES_MAX));
    let slices = || pieces.iter().map(Vec::as_slice);
    assert_eq!(OriginTable::decode(slices()), Ok(table));
    assert!(OriginTable::decode(slices().rev()).is_err());
    assert!(OriginTable::decode([&[2u8][..]]).is_err());
    assert_eq!(OriginTable::default().encode(), [[1]]);
}
