//! Tests of the owners of origins: stored with the state, and passed on with a base.

use super::*;
use crate::base::base_entries;
use gravwell_model::Maker;

fn by(member: &str, entry: Entry) -> Entry {
    Entry { member: MemberName::new(member).expect("name"), ..entry }
}

fn made_by(member: &str, counter: u64, hash: Option<[u8; 16]>) -> Option<Maker> {
    Some(Maker { member: MemberName::new(member).expect("name"), counter: OriginCounter(counter), hash })
}

/// Fills a new store from the base that a log gets from this store.
fn of_base(store: &StateStore) -> StateStore {
    let view = store.snapshot().expect("snapshot");
    let meta = store.meta().expect("a position");
    let entries: Vec<_> = base_entries(&view).expect("reads").collect::<Result<_, _>>().expect("entries");
    let target = Target {
        log_id: meta.log_id,
        generation: meta.generation,
        lineage: meta.lineage.clone(),
        seq: meta.seq,
        chain: meta.chain,
        time_ms: meta.time_ms,
        deletions_after: Some(Seq::ZERO),
        digest: Some(meta.digest),
    };
    let mut loader = StateStore::in_memory().loader().expect("a new store");
    for entries in entries.chunks(2) {
        loader.base(entries).expect("base");
    }
    for row in view.origins() {
        let (origin, row) = row.expect("row");
        loader.origin(origin, &row).expect("origin");
    }
    loader.finish(target).expect("matches its digest")
}

#[test]
fn p06_a_base_tells_whose_an_origin_is_and_not_what_it_held() {
    let store = empty();
    let refused = |origin: u8, counter| EntryBody::Reject {
        id: TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) },
        settled: OriginCounter(0),
        reason: Reason::LimitExceeded { message: "long".into() },
    };
    apply(&store, &[by("web1", commit(1, 1, 1, 0, vec![put("c", "k", b"1")])), by("web2", entry(2, refused(2, 1)))]);
    apply(&store, &[by("web1", commit(3, 1, 2, 0, vec![put("c", "k", b"2")])), by("web2", entry(4, refused(2, 2)))]);
    apply(&store, &[by("web3", commit(5, 3, 1, 0, vec![put("c", "l", b"1")]))]);
    let found = of_base(&store);
    for (origin, member, counter) in [(1, "web1", 2), (2, "web2", 2), (3, "web3", 1)] {
        let known = store.maker(Origin([origin; 16])).expect("reads");
        assert_eq!(known.as_ref().map(|maker| maker.hash.is_some()), Some(origin != 2), "{member}");
        assert_eq!(found.maker(Origin([origin; 16])).expect("reads"), made_by(member, counter, None));
    }
    // A base created from the new state contains the same owners.
    let again = of_base(&found);
    assert_eq!(again.maker(Origin([1; 16])).expect("reads"), made_by("web1", 2, None));
}

#[test]
fn p06_who_is_not_known_is_not_made_up() {
    let store = empty();
    let unknown = Entry { member: MemberName::unknown(), ..commit(1, 1, 1, 0, vec![put("c", "k", b"1")]) };
    apply(&store, &[unknown]);
    assert_eq!(of_base(&store).maker(Origin([1; 16])).expect("reads"), None);
}
