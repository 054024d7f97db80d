use super::*;
use crate::rebase::Lost;
use proptest::prelude::*;

fn collection() -> Collection {
    Collection::new("c").expect("name")
}

fn key(number: u8) -> Key {
    Key::new(format!("k{number}")).expect("key")
}

fn txn(counter: u64, keys: &[(u8, Option<u8>)]) -> Arc<Txn> {
    let op = |(k, value): &(u8, Option<u8>)| match value {
        Some(v) => Op::Put { collection: collection(), key: key(*k), value: Bytes::from(vec![*v]) },
        None => Op::Delete { collection: collection(), key: key(*k) },
    };
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    let ops = keys.iter().map(op).collect();
    Arc::new(Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops })
}

/// Returns the row of an origin with `counter` committed transactions, each at the sequence equal to its counter.
fn row_up_to(counter: u64) -> OriginRow {
    let mut row = OriginRow::default();
    for counter in 1..=counter {
        row.record(Seq(counter), OriginCounter(counter), OriginCounter(0), None);
    }
    row
}

fn reject(counter: u64) -> EntryBody {
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    EntryBody::Reject { id, settled: OriginCounter(0), reason: Reason::IdentityReused }
}

#[test]
fn p07_a_rejection_uncovers_what_was_below_and_blocks_nothing() {
    let mut outbox = Outbox::default();
    outbox.insert(txn(1, &[(1, Some(10))]));
    outbox.insert(txn(2, &[(1, Some(20)), (2, None)]));
    outbox.insert(txn(3, &[(3, Some(30))]));
    assert_eq!(outbox.look_up(&collection(), &key(1)), OverlayRead::Put(Bytes::from_static(&[20])));
    let first = EntryBody::Commit(Txn::clone(&txn(1, &[(1, Some(10))])));
    assert!(matches!(outbox.handle_applied(Seq(5), &first), Some(ResolvedTxn::Committed(..))));
    assert!(matches!(outbox.handle_applied(Seq(6), &reject(2)), Some(ResolvedTxn::Rejected(..))));
    assert_eq!(outbox.look_up(&collection(), &key(1)), OverlayRead::Untouched);
    assert_eq!(outbox.look_up(&collection(), &key(2)), OverlayRead::Untouched);
    assert_eq!(outbox.look_up(&collection(), &key(3)), OverlayRead::Put(Bytes::from_static(&[30])));
    assert_eq!((outbox.depth(), outbox.rejected().len()), (1, 1));
}

#[test]
fn p08_an_object_whose_creation_is_pending_is_told_from_one_that_is_only_changed() {
    let made = |counter: u64, number: u8, value: Option<u8>| {
        let (collection, key) = (collection(), key(number));
        let conditions = vec![Condition::Absent { collection, key }];
        Arc::new(Txn { conditions, ..Txn::clone(&txn(counter, &[(number, value)])) })
    };
    let mut outbox = Outbox::default();
    let writer = |outbox: &Outbox, number: u8| {
        outbox.last_writer_since_creation(&collection(), &key(number)).map(|id| id.counter.0)
    };
    outbox.insert(txn(1, &[(1, Some(10))]));
    outbox.insert(made(2, 2, Some(20)));
    assert_eq!((writer(&outbox, 1), writer(&outbox, 2), writer(&outbox, 3)), (None, Some(2), None));
    outbox.insert(txn(3, &[(2, Some(30))]));
    assert_eq!(writer(&outbox, 2), Some(3));
    outbox.insert(txn(4, &[(2, None)]));
    assert_eq!(writer(&outbox, 2), None, "it is deleted");
    outbox.insert(made(5, 2, Some(50)));
    assert_eq!(writer(&outbox, 2), Some(5));
    outbox.handle_row(Origin([1; 16]), &row_up_to(4));
    assert_eq!(writer(&outbox, 2), Some(5));
    outbox.handle_row(Origin([1; 16]), &row_up_to(5));
    assert_eq!(writer(&outbox, 2), None, "it is committed");
}

#[test]
fn p06_another_transaction_under_the_same_identity_commits_nothing_of_ours() {
    let mut outbox = Outbox::keeping();
    outbox.insert(txn(1, &[(1, Some(10))]));
    outbox.insert(txn(2, &[(2, Some(20))]));
    let other = EntryBody::Commit(Txn::clone(&txn(1, &[(1, Some(99))])));
    outbox.compare_arrived(&other);
    let decided = outbox.handle_applied(Seq(5), &other);
    assert!(matches!(decided, Some(ResolvedTxn::Rejected(_, Seq(5), Reason::IdentityReused))), "{decided:?}");
    let settled = Txn { settled: OriginCounter(1), ..Txn::clone(&txn(2, &[(2, Some(20))])) };
    let settled = EntryBody::Commit(settled);
    outbox.compare_arrived(&settled);
    let decided = outbox.handle_applied(Seq(6), &settled);
    assert!(matches!(decided, Some(ResolvedTxn::Committed(..))), "the datastore may lower the settled counter");
    assert_eq!((outbox.rejected().len(), outbox.kept().count()), (1, 1));
}

#[test]
fn p07_what_is_refused_before_the_log_knows_it_can_come_again() {
    let mut outbox = Outbox::default();
    for counter in 1..=3 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    let reason = Reason::Forbidden { message: "a reader".into() };
    let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
    for counter in [2, 3] {
        assert!(matches!(outbox.refuse(id(counter), reason.clone()), Some(ResolvedTxn::Rejected(..))));
    }
    assert_eq!((outbox.depth(), outbox.rejected().len(), outbox.taken(Origin([1; 16]))), (1, 2, OriginCounter(1)));
    assert_eq!(outbox.refuse(id(2), reason.clone()), None, "it is no longer pending");
    outbox.insert(txn(2, &[(1, Some(1))]));
    assert_eq!((outbox.depth(), outbox.rejected().len()), (2, 1));
    outbox.refuse(id(1), reason.clone());
    outbox.refuse(id(2), reason);
    assert_eq!(
        (outbox.taken(Origin([1; 16])), outbox.look_up(&collection(), &key(1))),
        (OriginCounter(0), OverlayRead::Untouched)
    );
}

#[test]
fn p07_what_only_fills_a_counter_is_on_no_list_when_it_is_refused() {
    let mut outbox = Outbox::default();
    outbox.insert(txn(1, &[]));
    outbox.insert(txn(2, &[(1, Some(1))]));
    let reason = Reason::Forbidden { message: "a reader".into() };
    let ids: Vec<TxnId> = outbox.pending().map(|txn| txn.id).collect();
    let refused: Vec<_> = ids.iter().filter_map(|id| outbox.refuse(*id, reason.clone())).collect();
    assert_eq!(refused, [ResolvedTxn::Rejected(ids[1], Seq::ZERO, reason)]);
    assert_eq!((outbox.depth(), outbox.rejected().keys().collect::<Vec<_>>()), (0, vec![&ids[1]]));
}

#[test]
fn p06_an_origin_of_which_the_rest_was_refused_is_still_known() {
    let mut outbox = Outbox::default();
    outbox.insert(txn(1, &[(1, Some(1))]));
    outbox.insert(txn(2, &[(1, Some(2))]));
    outbox.handle_applied(Seq(5), &EntryBody::Commit(Txn::clone(&txn(1, &[(1, Some(1))]))));
    let id = txn(2, &[]).id;
    outbox.refuse(id, Reason::Forbidden { message: "a reader".into() });
    outbox.take_rejected(id);
    assert_eq!(outbox.known_origins(), [id.origin], "the journal still contains the first one");
}

#[test]
fn p07_what_the_log_that_goes_on_has_rejected_is_on_the_list_when_a_history_was_left() {
    let (mut outbox, origin) = (Outbox::keeping(), Origin([1; 16]));
    for counter in 1..=3 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    let mut row = OriginRow::default();
    row.record(Seq(5), OriginCounter(1), OriginCounter(0), None);
    row.record(Seq(6), OriginCounter(2), OriginCounter(0), Some(Reason::IdentityReused));
    let (decided, lost) = (BTreeMap::from([(origin, row)]), Lost::after(Seq(4)));
    let (again, archived, reason) = (Vec::new(), Vec::new(), Reason::IdentityReused);
    let leaving = Leaving { decided: &decided, again, archived, reason, lost: &lost };
    let requeued = outbox.requeued(leaving, || Origin([7; 16]));
    let listed: Vec<u64> = requeued.rejected().keys().map(|id| id.counter.0).collect();
    assert_eq!((listed, requeued.kept().count(), requeued.depth()), (vec![2], 1, 1));
}

#[test]
fn p05_what_waits_upon_a_later_write_is_known() {
    let mut outbox = Outbox::default();
    let upon = |condition| Arc::new(Txn { conditions: vec![condition], ..Txn::clone(&txn(1, &[(1, Some(1))])) });
    outbox.insert(upon(Condition::written_by(collection(), key(1), txn(9, &[]).id)));
    assert!(!outbox.is_upon_later_than(Seq(0)), "a transaction mark is not a sequence");
    let version = Condition::Version { collection: collection(), key: key(1), version: Seq(5) };
    let (seq, reason) = (Seq(3), Reason::IdentityReused);
    outbox.restore_rejected(RejectedTxn { txn: upon(version), seq, reason });
    assert_eq!((outbox.is_upon_later_than(Seq(4)), outbox.is_upon_later_than(Seq(5))), (true, false));
}

#[test]
fn p07_what_fills_the_place_of_a_rejected_change_is_no_rejected_change() {
    let mut outbox = Outbox::default();
    outbox.insert(Arc::new(nothing(txn(1, &[]).id, 0)));
    outbox.insert(txn(2, &[(1, Some(1))]));
    let mut row = OriginRow::default();
    for counter in 1..=2 {
        row.record(Seq(counter), OriginCounter(counter), OriginCounter(0), Some(Reason::IdentityReused));
    }
    let decided = outbox.handle_row(Origin([1; 16]), &row);
    assert!(matches!(&decided[..], [ResolvedTxn::Rejected(id, ..)] if id.counter == OriginCounter(2)), "{decided:?}");
    assert_eq!((outbox.depth(), outbox.rejected().len()), (0, 1));
}

#[test]
fn p06_a_replaced_state_decides_by_its_row() {
    let mut outbox = Outbox::default();
    for counter in 1..=4 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    let mut row = OriginRow::default();
    row.record(Seq(8), OriginCounter(1), OriginCounter(0), None);
    row.record(Seq(9), OriginCounter(2), OriginCounter(0), Some(Reason::IdentityReused));
    row.record(Seq(10), OriginCounter(3), OriginCounter(0), None);
    let decided = outbox.handle_row(Origin([1; 16]), &row);
    assert_eq!(decided.len(), 3);
    assert!(matches!(&decided[1], ResolvedTxn::Rejected(id, Seq(9), _) if id.counter == OriginCounter(2)));
    assert_eq!(outbox.next_express(None).map(|(_, txn)| txn.id.counter), Some(OriginCounter(4)));
}

#[test]
fn p05_of_the_last_one_of_a_row_the_sequence_is_known() {
    let mut outbox = Outbox::keeping();
    for counter in 1..=3 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    let mut row = OriginRow::default();
    row.record(Seq(8), OriginCounter(1), OriginCounter(0), None);
    row.record(Seq(10), OriginCounter(2), OriginCounter(0), None);
    outbox.handle_row(Origin([1; 16]), &row);
    outbox.handle_applied(Seq(12), &EntryBody::Commit(Txn::clone(&txn(3, &[(1, Some(1))]))));
    let learnt: Vec<_> = outbox.kept().map(|kept| (kept.seq, kept.learnt)).collect();
    assert_eq!(
        learnt,
        [(Seq(10), ResolutionSource::Row), (Seq(10), ResolutionSource::LastOfRow), (Seq(12), ResolutionSource::Entry)]
    );
}

#[test]
fn p06_what_waits_goes_on_from_what_another_history_has_decided() {
    let origin = Origin([1; 16]);
    let mut outbox = Outbox::keeping();
    for counter in 1..=6 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    outbox.handle_row(origin, &row_up_to(4));
    let ids = |outbox: &Outbox| outbox.pending().map(|txn| (txn.id.counter.0, txn.ops.len())).collect::<Vec<_>>();
    let decided = BTreeMap::from([(origin, row_up_to(2))]);
    let kept: Vec<_> = outbox.kept().map(|kept| Arc::clone(&kept.txn)).collect();
    let lost = Lost::after(Seq(2));
    let requeued = |outbox: &Outbox, decided: &BTreeMap<Origin, OriginRow>, again| {
        let (archived, reason) = (Vec::new(), Reason::IdentityReused);
        outbox.requeued(Leaving { decided, again, archived, reason, lost: &lost }, || Origin([7; 16]))
    };
    assert_eq!(ids(&requeued(&outbox, &decided, kept)), [(3, 1), (4, 1), (5, 1), (6, 1)]);
    let filled = requeued(&outbox, &decided, Vec::new());
    assert_eq!(ids(&filled), [(3, 0), (4, 0), (5, 1), (6, 1)], "counters are filled");
    assert_eq!(filled.kept().map(|kept| kept.seq).collect::<Vec<_>>(), [Seq(4); 2], "others may not have them");
    assert_eq!(filled.taken(origin), OriginCounter(6));
    assert_eq!(requeued(&outbox, &BTreeMap::new(), Vec::new()).depth(), 6);
    outbox = Outbox::keeping();
    outbox.insert(txn(9000, &[(1, Some(1))]));
    outbox.insert(txn(9001, &[(1, Some(2))]));
    let requeued = requeued(&outbox, &decided, Vec::new());
    assert_eq!(ids(&requeued), [(1, 1), (2, 1)], "too many, so they get another origin");
    assert!(requeued.pending().all(|txn| txn.id.origin == Origin([7; 16])));
    assert_eq!(requeued.look_up(&collection(), &key(1)), OverlayRead::Put(Bytes::from_static(&[2])));
}

#[test]
fn p07_what_waited_and_was_decided_in_the_log_that_goes_on_has_its_answer() {
    let origin = Origin([1; 16]);
    let mut outbox = Outbox::keeping();
    for counter in 1..=5 {
        outbox.insert(txn(counter, &[(1, Some(1))]));
    }
    // In the abandoned history, only the first one was resolved.
    outbox.handle_row(origin, &row_up_to(1));
    let mut row = OriginRow::default();
    for counter in 1..=4 {
        let reason = [1, 3].contains(&counter).then_some(Reason::IdentityReused);
        row.record(Seq(10 + counter), OriginCounter(counter), OriginCounter(0), reason);
    }
    let (decided, lost) = (BTreeMap::from([(origin, row)]), Lost::after(Seq(0)));
    let (again, archived, reason) = (Vec::new(), Vec::new(), Reason::IdentityReused);
    let leaving = Leaving { decided: &decided, again, archived, reason, lost: &lost };
    let left = outbox.requeued(leaving, || Origin([7; 16]));
    let counters = |txns: Vec<&Arc<Txn>>| txns.iter().map(|txn| txn.id.counter.0).collect::<Vec<_>>();
    let listed: Vec<_> = left.rejected().values().map(|rejected| (rejected.txn.id.counter.0, rejected.seq)).collect();
    assert_eq!(listed, [(1, Seq(11)), (3, Seq(13))], "their author is notified");
    assert_eq!(counters(left.kept().map(|kept| &kept.txn).collect()), [2, 4], "others may not have them");
    assert_eq!(
        left.kept().map(|kept| kept.learnt).collect::<Vec<_>>(),
        [ResolutionSource::Row, ResolutionSource::LastOfRow]
    );
    assert_eq!(counters(left.pending().collect()), [5]);
}

proptest! {
    #[test]
    fn the_overlay_equals_a_replay_of_pending_transactions(
        steps in prop::collection::vec((prop::collection::vec((0..4u8, prop::option::of(any::<u8>())), 1..4), any::<bool>()), 1..30)
    ) {
        let mut outbox = Outbox::default();
        let mut model: VecDeque<Arc<Txn>> = VecDeque::new();
        let mut seq = 0;
        for (counter, (ops, decide)) in (1..).zip(&steps) {
            let txn = txn(counter, ops);
            model.push_back(Arc::clone(&txn));
            outbox.insert(txn);
            if *decide && let Some(first) = model.pop_front() {
                seq += 1;
                outbox.handle_applied(Seq(seq), &EntryBody::Commit(Txn::clone(&first)));
            }
            let mut view: BTreeMap<Key, OverlayRead> = BTreeMap::new();
            for op in model.iter().flat_map(|txn| &txn.ops) {
                view.insert(op.key().clone(), as_overlaid(&op.value().cloned()));
            }
            prop_assert_eq!(outbox.scan(&collection(), ""), view.into_iter().collect::<Vec<_>>());
        }
    }
}
