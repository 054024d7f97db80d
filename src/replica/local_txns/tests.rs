use super::*;
use gravwell_model::{
    Chain, Collection, Entry, Generation, Key, Limits, LineageEntry, LogId, MemberName, OriginCounter, Reason,
};
use gravwell_state::StateStore;

const ME: u8 = 1;
const OTHER: u8 = 2;

/// Returns the name of an object in collection `c`, or in the one that precedes a colon.
fn name(text: &str) -> Named {
    let (collection, key) = text.split_once(':').unwrap_or(("c", text));
    (Collection::new(collection).expect("name"), Key::new(key).expect("key"))
}

fn txn(origin: u8, counter: u64, ops: &[(&str, Option<u8>)]) -> Txn {
    let op = |(key, value): &(&str, Option<u8>)| {
        let (collection, key) = name(key);
        match value {
            Some(value) => Op::Put { collection, key, value: Bytes::from(vec![*value]) },
            None => Op::Delete { collection, key },
        }
    };
    let id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) };
    let (settled, note, ops) = (OriginCounter(0), Bytes::new(), ops.iter().map(op).collect());
    Txn { id, settled, time_ms: 0, note, conditions: Vec::new(), ops }
}

fn entries(txns: &[Txn], from: u64) -> Vec<Entry> {
    let member = MemberName::new("m").expect("name");
    let entry = |(seq, txn): (u64, &Txn)| {
        let body = EntryBody::Commit(txn.clone());
        Entry { seq: Seq(seq), time_ms: seq, member: member.clone(), body }
    };
    (from..).zip(txns).map(entry).collect()
}

/// Members of the lost history had not seen a transaction that was rejected there and is committed in the new log.
#[test]
fn p08_what_was_rejected_in_the_lost_history_was_not_seen_there() {
    let other = txn(OTHER, 1, &[("k", Some(1))]);
    let rejected = EntryBody::Reject { id: other.id, settled: OriginCounter(0), reason: Reason::IdentityReused };
    let own = txn(ME, 1, &[("k", Some(2))]);
    let old = state_of(&[Entry { body: rejected, ..entries(std::slice::from_ref(&other), 1).remove(0) }]);
    let own = [Arc::new(own)];
    let mut since = Since::new(&old, &own);
    since.take(&entries(std::slice::from_ref(&other), 1)[0]).expect("reads");
    assert!(since.others.written.contains(&name("k")) && since.others.known.is_empty(), "{:?}", since.others);
}

fn state(txns: &[Txn]) -> StateSnapshot {
    state_of(&entries(txns, 1))
}

fn state_of(entries: &[Entry]) -> StateSnapshot {
    let state = StateStore::in_memory();
    let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
    state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
    if !entries.is_empty() {
        state.apply(entries, Chain::default()).expect("applies");
    }
    state.snapshot().expect("a view")
}

/// Returns counters and numbers of operations of the transactions pushed again. `history` follows `shared` in the
/// lost history, `since` in the new log.
fn again(shared: &[Txn], history: &[Txn], since: &[Txn]) -> Vec<(u64, usize)> {
    let all = |more: &[Txn]| state(&[shared, more].concat());
    let (old, new, shared_to) = (all(history), all(since), shared.len() as u64);
    let own = history.iter().filter(|txn| txn.id.origin == Origin([ME; 16])).cloned().map(Arc::new);
    let own: Vec<Arc<Txn>> = own.collect();
    let mut since_then = Since::new(&old, &own);
    entries(since, shared_to + 1).iter().for_each(|entry| since_then.take(entry).expect("reads"));
    let shown = new.deletions().expect("reads");
    let shown =
        written_after(&own, &new, &shown, Seq(shared_to)).expect("reads").expect("deletions known from the beginning");
    let lost = Lost::after(Seq(shared_to));
    let parted = DivergedHistories {
        old: &old,
        new: &new,
        lost: &lost,
        assumed: &Assumed::new(),
        limits: &PushLimits::default(),
    };
    let by_state = parted.again(&own, &shown, &mut BTreeSet::new()).expect("reads");
    let chosen = parted.again(&own, &since_then.others, &mut BTreeSet::new()).expect("reads");
    let is_chosen = |txn: &Arc<Txn>| chosen.iter().any(|chosen| chosen.id == txn.id);
    assert!(by_state.iter().all(is_chosen), "the state shows every transaction superseded in the log");
    let of_state = |condition: &&Condition| condition.mark().is_none();
    for condition in chosen.iter().flat_map(|txn| &txn.conditions).filter(of_state) {
        assert!(condition.holds(new.version(condition.collection(), condition.key()).expect("reads")));
    }
    chosen.iter().map(|txn| (txn.id.counter.0, txn.ops.len())).collect()
}

#[test]
fn p04_nothing_that_was_overtaken_is_pushed_again() {
    let shared = [txn(OTHER, 1, &[("k", Some(1))])];
    let put = txn(ME, 1, &[("k", Some(2)), ("l", Some(2))]);
    assert_eq!(again(&shared, std::slice::from_ref(&put), &[]), [(1, 2)]);
    // Superseded in the lost history by a delete, or by another value.
    assert_eq!(again(&shared, &[put.clone(), txn(OTHER, 2, &[("k", None)])], &[]), []);
    assert_eq!(again(&shared, &[put.clone(), txn(OTHER, 2, &[("k", Some(3))])], &[]), []);
    // Superseded in the new log, also by a delete of an object that does not exist.
    for later in [Some(9), None] {
        let since = [txn(3, 1, &[("k", later)])];
        assert_eq!(again(&shared, std::slice::from_ref(&put), &since), []);
        assert_eq!(again(&[], std::slice::from_ref(&put), &since), []);
    }
    // A change that was known when the local one was made does not supersede it.
    let others = txn(OTHER, 2, &[("k", Some(3))]);
    assert_eq!(again(&shared, &[others.clone(), put.clone()], &[others]), [(1, 2)]);
    // Changes of other objects do not matter.
    assert_eq!(again(&shared, &[put], &[txn(3, 1, &[("z", None)])]), [(1, 2)]);
}

/// Returns the counters of the transactions pushed again if only the state of the new log can be read; `None` if
/// that is not enough.
fn again_by_state(shared: &[Txn], own: &[Txn], since: &[Txn], known_after: u64) -> Option<Vec<u64>> {
    let all = |more: &[Txn]| state(&[shared, more].concat());
    let (old, new, shared_to) = (all(own), all(since), Seq(shared.len() as u64));
    let own: Vec<Arc<Txn>> = own.iter().cloned().map(Arc::new).collect();
    let mut deletions = new.deletions().expect("reads");
    deletions.forget_to(Seq(known_after), &mut gravwell_model::deletions::Changed::new());
    let written = written_after(&own, &new, &deletions, shared_to).expect("reads")?;
    let lost = Lost::after(shared_to);
    let chosen = DivergedHistories {
        old: &old,
        new: &new,
        lost: &lost,
        assumed: &Assumed::new(),
        limits: &PushLimits::default(),
    }
    .again(&own, &written, &mut BTreeSet::new())
    .expect("reads");
    Some(chosen.iter().map(|txn| txn.id.counter.0).collect())
}

#[test]
fn p04_the_state_alone_shows_what_was_overtaken() {
    let shared = [txn(OTHER, 1, &[("k", Some(1)), ("gone", Some(1))]), txn(OTHER, 2, &[("gone", None)])];
    let own = [txn(ME, 1, &[("k", Some(2))]), txn(ME, 2, &[("new", Some(2)), ("gone", Some(2))])];
    let again = |since: &[Txn]| again_by_state(&shared, &own, since, 0).expect("known");
    assert_eq!(again(&[]), [1, 2], "earlier deletions are not in between");
    assert_eq!(again(&[txn(3, 1, &[("z", Some(1))]), txn(3, 2, &[("z", None)])]), [1, 2]);
    // Deleted in between: an object that existed, one created in between, and one that was always absent.
    assert_eq!(again(&[txn(3, 1, &[("k", None)])]), [2]);
    assert_eq!(again(&[txn(3, 1, &[("new", Some(5))]), txn(3, 2, &[("new", None)])]), [1]);
    assert_eq!(again(&[txn(3, 1, &[("new", None)])]), [1]);
    // Written in between, also after a deletion.
    assert_eq!(again(&[txn(3, 1, &[("k", Some(5))])]), [2]);
    assert_eq!(again(&[txn(3, 1, &[("gone", None)]), txn(3, 2, &[("gone", Some(5))])]), [1]);
    // The object reads as the local transaction wrote it.
    assert_eq!(again(&[txn(3, 1, &[("k", Some(2))])]), [1, 2]);
    // The known deletions start too late, or just in time.
    assert_eq!(again_by_state(&shared, &own, &[txn(3, 1, &[("k", None)])], 3), None);
    assert_eq!(again_by_state(&shared, &own, &[txn(3, 1, &[("k", None)])], 2), Some(vec![2]));
    // A local deletion is pushed again unless the object was written since.
    let deleting = [txn(ME, 1, &[("k", None)])];
    assert_eq!(again_by_state(&shared, &deleting, &[], 0), Some(vec![1]));
    assert_eq!(again_by_state(&shared, &deleting, &[txn(3, 1, &[("k", Some(9))])], 0), Some(vec![]));
    // One that was made and deleted again does not return in between.
    let passing = [txn(ME, 1, &[("new", Some(2))]), txn(ME, 2, &[("new", None)])];
    assert_eq!(again_by_state(&shared, &passing, &[], 0), Some(vec![1, 2]));
    assert_eq!(again_by_state(&shared, &passing, &[txn(3, 1, &[("new", None)])], 0), Some(vec![]));
}

/// Of two local changes the first may have come before a change that the new log has again.
#[test]
fn p08_what_came_before_a_change_that_is_there_again_does_not_come_after_it() {
    let (first, second) = (txn(ME, 1, &[("k", Some(1))]), txn(ME, 2, &[("k", Some(3))]));
    let other = txn(OTHER, 1, &[("k", Some(2))]);
    let between = [first.clone(), other.clone(), second.clone()];
    assert_eq!(again(&[], &between, std::slice::from_ref(&other)), []);
    assert_eq!(again(&[], &between, &[]), [(1, 1), (2, 1)], "the other change is missing");
    let upon = Txn { conditions: vec![written_by(name("k"), first.id)], ..second };
    assert_eq!(again(&[], &[other.clone(), first, upon], &[other]), [(1, 1), (2, 1)], "no change came between");
}

#[test]
fn p04_what_depends_on_one_that_is_left_out_is_left_out() {
    let first = txn(ME, 1, &[("a", Some(1)), ("b", Some(1))]);
    let second = txn(ME, 2, &[("b", Some(2))]);
    assert_eq!(again(&[], &[first.clone(), second.clone()], &[]), [(1, 2), (2, 1)]);
    let both = txn(ME, 2, &[("b", Some(2)), ("k", Some(2))]);
    let overtaking = txn(OTHER, 1, &[("k", Some(3))]);
    assert_eq!(again(&[], &[first.clone(), both, overtaking], &[]), [], "b would have the value of the first change");
    let gone = txn(ME, 2, &[("a", None)]);
    assert_eq!(again(&[], &[first, gone], &[]), [(1, 2), (2, 1)]);
}

fn present(text: &str) -> Condition {
    let (collection, key) = name(text);
    Condition::Present { collection, key }
}

#[test]
fn p11_what_takes_a_right_away_is_pushed_again_whatever_others_wrote() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("admins:7", Some(1)), ("sessions:7/x", Some(1))])];
    let standing = vec![present("admins:1"), Condition::upon_lost(name("sessions:1/s").0, name("sessions:1/s").1)];
    let lock = [("locks:7", Some(2))];
    let demotion = [("admins:7", None)];
    let ends = [("sessions:7/x", None), ("session-epochs:7", Some(2)), ("token-epochs:7", Some(2))];
    for ops in [&lock[..], &demotion, &ends] {
        let revocation = Txn { conditions: standing.clone(), ..txn(ME, 1, ops) };
        let own = std::slice::from_ref(&revocation);
        let since: Vec<_> = ops.iter().map(|(key, _)| (*key, Some(3))).collect();
        for since in [vec![], vec![txn(3, 1, &since)], vec![txn(3, 1, &since), txn(3, 2, ops)]] {
            assert_eq!(again(&shared, own, &since), [(1, ops.len())], "{ops:?} {since:?}");
        }
        let (old, new) = (state(&[&shared[..], own].concat()), state(&shared));
        let lost = Lost::after(Seq(1));
        let parted = DivergedHistories {
            old: &old,
            new: &new,
            lost: &lost,
            assumed: &Assumed::new(),
            limits: &PushLimits::default(),
        };
        let pushed =
            parted.again(&[Arc::new(revocation.clone())], &Others::default(), &mut BTreeSet::new()).expect("reads");
        assert_eq!(pushed[0].conditions, [], "{ops:?}");
        // Given back later in the lost history, by others or by this member.
        let back: Vec<_> = ops.iter().map(|(key, value)| (*key, value.map_or(Some(4), |_| None))).collect();
        assert_eq!(again(&shared, &[revocation.clone(), txn(OTHER, 2, &back)], &[]), [], "{ops:?}");
        let own = [txn(ME, 1, ops), txn(ME, 2, &back)];
        assert_eq!(again(&shared, &own, &[]), [(1, ops.len()), (2, ops.len())], "{ops:?}");
    }
    // A later epoch supersedes none.
    let twice = [txn(ME, 1, &[("session-epochs:7", Some(2))]), txn(OTHER, 2, &[("session-epochs:7", Some(3))])];
    assert_eq!(again(&shared, &twice, &twice[1..]), [(1, 1)]);
}

#[test]
fn p11_what_does_more_than_take_rights_away_stands_on_its_conditions() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("passwords:7", Some(1)), ("sessions:1/s", Some(1))])];
    let reset = txn(ME, 1, &[("passwords:7", Some(2)), ("session-epochs:7", Some(2))]);
    let of_others = |key| txn(3, 1, &[(key, Some(3))]);
    let own = std::slice::from_ref(&reset);
    assert_eq!(again(&shared, own, &[of_others("session-epochs:7")]), [(1, 2)]);
    assert_eq!(again(&shared, own, &[of_others("passwords:7")]), []);
    // Others have written objects that must exist, which their keys show to be the same ones.
    let edits = [txn(ME, 1, &[("users:7", Some(2))]), txn(ME, 2, &[("sessions:1/s", Some(2))])];
    let conditions = vec![present("users:7"), present("sessions:1/s")];
    let own = [&edits[..], &[Txn { conditions, ..txn(ME, 3, &[("passwords:7", Some(2))]) }]].concat();
    let since = [of_others("users:7"), txn(3, 2, &[("sessions:1/s", Some(3))])];
    assert_eq!(again(&shared, &own, &since), [(3, 1)]);
    let deleted = [of_others("users:7"), txn(3, 2, &[("sessions:1/s", None)])];
    assert_eq!(again(&shared, &own, &deleted), []);
    // The rows of a deleted user are deleted only with the user.
    let deletion = txn(ME, 1, &[("users:7", None), ("cleanings:user/7", Some(1))]);
    let conditions = vec![written_by(name("cleanings:user/7"), deletion.id)];
    let own = [deletion, Txn { conditions, ..txn(ME, 2, &[("sessions:7/x", None)]) }];
    assert_eq!(again(&shared, &own, &[]), [(1, 2), (2, 1)]);
    assert_eq!(again(&shared, &own, &[of_others("users:7")]), []);
}

#[test]
fn p11_a_revocation_stays_although_a_later_one_was_lost_that_others_made() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("passwords:7", Some(1))])];
    let reset = txn(ME, 1, &[("session-epochs:7", Some(2)), ("passwords:7", Some(2))]);
    let later = txn(OTHER, 2, &[("session-epochs:7", Some(3))]);
    let (collection, key) = name("session-epochs:7");
    let conditions = vec![Condition::upon_lost(collection, key)];
    let upon = Txn { conditions, ..txn(ME, 2, &[("tokens:7/t", Some(2))]) };
    assert_eq!(again(&shared, &[reset.clone(), later.clone(), upon.clone()], &[]), [(1, 2)]);
    // Its password was overtaken, too.
    let password = txn(OTHER, 3, &[("passwords:7", Some(4))]);
    assert_eq!(again(&shared, &[reset, later, upon, password], &[]), []);
}

#[test]
fn p11_a_login_does_not_return_with_an_epoch_that_is_pushed_again() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("token-epochs:7", Some(1))])];
    for (epochs, made) in [("session-epochs:7", "sessions:7/x"), ("token-epochs:7", "tokens:7/x")] {
        let ends = txn(ME, 1, &[(epochs, Some(2))]);
        let conditions = vec![written_by(name(epochs), ends.id)];
        let login = Txn { conditions: conditions.clone(), ..txn(ME, 2, &[(made, Some(2))]) };
        let work = Txn { conditions, ..txn(ME, 3, &[("passwords:7", Some(2))]) };
        let own = [ends, login, work];
        assert_eq!(again(&shared, &own, &[]), [(1, 1), (2, 1), (3, 1)]);
        // Others have ended the logins or tokens in the new log, or later in the lost part.
        let since = [txn(3, 1, &[(epochs, Some(3))])];
        assert_eq!(again(&shared, &own, &since), [(1, 1)]);
        let history = [&own[..], &[txn(OTHER, 2, &[(epochs, Some(3))])]].concat();
        assert_eq!(again(&shared, &history, &[]), [(1, 1), (3, 1)]);
    }
}

/// Programs of the version before made no condition on the epoch.
#[test]
fn p11_a_login_without_a_condition_does_not_return_after_its_epoch() {
    for (epochs, made) in [("session-epochs:7", "sessions:7/x"), ("token-epochs:7", "tokens:7/x")] {
        let shared = [txn(OTHER, 1, &[("users:7", Some(1)), (epochs, Some(1))])];
        let ends = |origin, counter, value| txn(origin, counter, &[(epochs, Some(value))]);
        let login = txn(ME, 9, &[(made, Some(2))]);
        let only = std::slice::from_ref(&login);
        assert_eq!(again(&shared, only, &[]), [(9, 1)]);
        assert_eq!(again(&shared, only, &[txn(3, 1, &[("users:7", Some(2))])]), [(9, 1)]);
        assert_eq!(again(&shared, only, &[ends(3, 1, 3)]), []);
        // In the lost part, before or after the login, which the new log has again or not.
        let before = [ends(OTHER, 2, 3), login.clone()];
        assert_eq!(again(&shared, &before, &before[..1]), [(9, 1)]);
        assert_eq!(again(&shared, &before, &[]), []);
        assert_eq!(again(&shared, &[login.clone(), ends(OTHER, 2, 3)], &[]), []);
        let own = [ends(ME, 8, 2), login];
        assert_eq!(again(&shared, &own, &[]), [(8, 1), (9, 1)]);
        assert_eq!(again(&shared, &own, &[ends(3, 1, 3)]), [(8, 1)]);
        assert_eq!(again(&shared, &[&own[..], &[ends(OTHER, 2, 3)]].concat(), &[]), [(8, 1)]);
    }
}

#[test]
fn p11_a_login_that_starts_its_epoch_stands_on_that_like_on_all_else() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("second-factors:7", Some(1)), ("session-epochs:7", Some(1))])];
    for (epochs, made) in [("session-epochs:7", "sessions:7/x"), ("token-epochs:7", "tokens:7/x")] {
        let ops = [(epochs, Some(2)), (made, Some(2)), ("second-factors:7", Some(2)), ("sessions:7/old", None)];
        let begun = txn(ME, 1, &ops);
        let own = std::slice::from_ref(&begun);
        let ended = |counter| txn(OTHER, counter, &[(epochs, Some(3))]);
        assert_eq!(again(&shared, own, &[]), [(1, 4)]);
        assert_eq!(again(&shared, own, &[txn(3, 1, &[("second-factors:8", Some(3))])]), [(1, 4)]);
        // Others have ended the logins or tokens in the new log, or later in the lost part.
        assert_eq!(again(&shared, own, &[ended(2)]), []);
        assert_eq!(again(&shared, &[begun.clone(), ended(2)], &[]), []);
        // They did so before, and this member had seen it.
        assert_eq!(again(&shared, &[ended(2), begun.clone()], &[ended(2)]), [(1, 4)]);
        // What others have not written while the log was read must not be written until the login arrives.
        let (old, new) = (state(&[&shared[..], own].concat()), state(&shared));
        let lost = Lost::after(Seq(1));
        let parted = DivergedHistories {
            old: &old,
            new: &new,
            lost: &lost,
            assumed: &Assumed::new(),
            limits: &PushLimits::default(),
        };
        let pushed = parted.again(&[Arc::new(begun.clone())], &Others::default(), &mut BTreeSet::new()).expect("reads");
        let there = new.version(&name(epochs).0, &name(epochs).1).expect("reads");
        let absent_since = |text| Condition::absent_since(name(text).0, name(text).1, Seq(1));
        let as_it_is = there.map_or_else(|| absent_since(epochs), |seq| version(name(epochs), seq));
        assert!(pushed[0].conditions.contains(&as_it_is), "{:?}", pushed[0].conditions);
        // What else it does to take rights away remains.
        let (old, new) = (state(&[&shared[..], own].concat()), state(&[&shared[..], &[ended(2)]].concat()));
        let own = [Arc::new(begun)];
        let mut reading = Since::new(&old, &own);
        entries(&[ended(2)], 2).iter().for_each(|entry| reading.take(entry).expect("reads"));
        let parted = DivergedHistories {
            old: &old,
            new: &new,
            lost: &lost,
            assumed: &Assumed::new(),
            limits: &PushLimits::default(),
        };
        let (again, archived) = parted.choose(&own, &[], Some(&reading.others), false).expect("reads");
        assert_eq!((again.len(), &again[0].ops[..], archived.len()), (1, &own[0].ops[3..], 1));
    }
}

#[test]
fn p11_who_ended_all_logins_has_ended_them_although_that_login_is_lost() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("sessions:7/thief", Some(1))])];
    let upon_lost = |text| Condition::upon_lost(name(text).0, name(text).1);
    let login = Txn { conditions: vec![upon_lost("passwords:7")], ..txn(ME, 1, &[("sessions:7/x", Some(2))]) };
    let ends = [("sessions:7/x", None), ("sessions:7/thief", None), ("session-epochs:7", Some(2))];
    for epoch in [absent(name("session-epochs:7")), upon_lost("session-epochs:7")] {
        let conditions = vec![present("sessions:7/x"), epoch, absent(name("locks:7"))];
        let everywhere = Txn { conditions, ..txn(ME, 2, &ends) };
        assert_eq!(again(&shared, &[login.clone(), everywhere.clone()], &[]), [(2, 3)]);
        let since = [txn(3, 1, &[("session-epochs:7", Some(3))])];
        assert_eq!(again(&shared, &[login.clone(), everywhere], &since), [(2, 3)]);
    }
    // What is deleted only while it is unchanged is not a revocation: a token that has expired.
    let shared = [txn(OTHER, 1, &[("users:7", Some(1)), ("tokens:7/old", Some(1))])];
    let conditions = vec![version(name("tokens:7/old"), Seq(1))];
    let create = Txn { conditions, ..txn(ME, 1, &[("tokens:7/new", Some(2)), ("tokens:7/old", None)]) };
    let old = state(&[&shared[..], std::slice::from_ref(&create)].concat());
    let since = [txn(3, 1, &[("tokens:7/old", Some(3)), ("tokens:7/new", Some(3))])];
    let (new, own) = (state(&[&shared[..], &since].concat()), [Arc::new(create)]);
    let mut reading = Since::new(&old, &own);
    entries(&since, 2).iter().for_each(|entry| reading.take(entry).expect("reads"));
    let lost = Lost::after(Seq(1));
    let parted = DivergedHistories {
        old: &old,
        new: &new,
        lost: &lost,
        assumed: &Assumed::new(),
        limits: &PushLimits::default(),
    };
    let (again, archived) = parted.choose(&own, &[], Some(&reading.others), false).expect("reads");
    assert_eq!((again.len(), archived.len()), (0, 1), "{again:?}");
}

#[test]
fn p08_what_gives_a_right_is_archived_with_the_version_that_it_was_given_upon() {
    let shared = [txn(OTHER, 1, &[("users:7", Some(1))])];
    let given = ["memberships:7/3", "admins:7", "sessions:7/x", "tokens:7/t"];
    let ops: Vec<_> = given.iter().map(|key| (*key, Some(2))).collect();
    // A power failure has taken the state back: it has none of them.
    let old = state(&shared);
    let revoked: Vec<_> = given.iter().map(|key| (*key, None)).collect();
    let new = state(&[&shared[..], &[txn(3, 1, &ops), txn(3, 2, &revoked)]].concat());
    let lost = Lost::after(Seq(1));
    let parted = DivergedHistories {
        old: &old,
        new: &new,
        lost: &lost,
        assumed: &Assumed::new(),
        limits: &PushLimits::default(),
    };
    let upon_lost = given.map(|key| Condition::upon_lost(name(key).0, name(key).1));
    for conditions in [vec![], given.map(|key| absent(name(key))).to_vec()] {
        let gone = [Arc::new(Txn { conditions, ..txn(ME, 1, &ops) })];
        let (again, archived) = parted.choose(&[], &gone, Some(&Others::default()), false).expect("reads");
        assert_eq!((again.len(), archived.len()), (0, 1));
        assert!(upon_lost.iter().all(|condition| archived[0].conditions.contains(condition)), "{archived:?}");
    }
}

#[test]
fn p11_who_lost_the_role_in_the_new_log_takes_no_rights_away_there() {
    let shared = [txn(OTHER, 1, &[("admins:1", Some(1)), ("admins:7", Some(1)), ("sessions:1/s", Some(1))])];
    let standing = vec![present("admins:1"), absent(name("locks:1")), present("sessions:1/s")];
    let lock = Txn { conditions: standing, ..txn(ME, 1, &[("locks:7", Some(2))]) };
    let (old, own) = (state(&[&shared[..], std::slice::from_ref(&lock)].concat()), [Arc::new(lock)]);
    let ended = txn(3, 1, &[("sessions:1/s", None)]);
    let judged = [txn(3, 1, &[("admins:1", None)]), txn(3, 1, &[("locks:1", Some(1))])];
    let kept = [vec![present("admins:1")], vec![absent(name("locks:1"))]];
    for (since, kept) in std::iter::once((ended, vec![])).chain(judged.into_iter().zip(kept)) {
        let new = state(&[&shared[..], std::slice::from_ref(&since)].concat());
        let mut reading = Since::new(&old, &own);
        entries(&[since], 2).iter().for_each(|entry| reading.take(entry).expect("reads"));
        let shown = written_after(&own, &new, &new.deletions().expect("reads"), Seq(1)).expect("reads").expect("known");
        let lost = Lost::after(Seq(1));
        let parted = DivergedHistories {
            old: &old,
            new: &new,
            lost: &lost,
            assumed: &Assumed::new(),
            limits: &PushLimits::default(),
        };
        for others in [&reading.others, &shown] {
            assert_eq!(parted.again(&own, others, &mut BTreeSet::new()).expect("reads")[0].conditions, kept);
        }
    }
}

#[test]
fn p11_of_a_deletion_that_is_left_out_what_takes_rights_away_is_pushed() {
    let rows = ["users:7", "admins:7", "memberships:7/3", "sessions:7/x", "tokens:7/t", "session-epochs:7"];
    let made: Vec<_> = rows.iter().map(|key| (*key, Some(1))).chain([("admins:1", Some(1))]).collect();
    let shared = [txn(OTHER, 1, &made)];
    let conditions = vec![version(name("users:7"), Seq(1)), present("admins:1"), present("sessions:1/s")];
    let ops: Vec<_> = rows.iter().map(|key| (*key, None)).collect();
    let deletion = Txn { conditions, ..txn(ME, 1, &ops) };
    let (old, own) = (state(&[&shared[..], std::slice::from_ref(&deletion)].concat()), [Arc::new(deletion)]);
    let chosen = |since: &[(&str, Option<u8>)]| {
        let since = [txn(3, 1, since)];
        let new = state(&[&shared[..], &since].concat());
        let mut reading = Since::new(&old, &own);
        entries(&since, 2).iter().for_each(|entry| reading.take(entry).expect("reads"));
        let lost = Lost::after(Seq(1));
        let parted = DivergedHistories {
            old: &old,
            new: &new,
            lost: &lost,
            assumed: &Assumed::new(),
            limits: &PushLimits::default(),
        };
        parted.choose(&own, &[], Some(&reading.others), false).expect("reads")
    };
    let (again, archived) = chosen(&[("users:7", Some(2)), ("admins:7", Some(2))]);
    assert_eq!(again[0].ops, own[0].ops[1..5]);
    assert!(again[0].conditions.is_empty() && again.len() == 1, "{again:?}");
    // The rest is for its author to decide, and names nothing that is taken away already.
    let named: Vec<_> = archived[0].conditions.iter().map(|condition| condition.collection().as_str()).collect();
    assert_eq!(named, ["users", "admins", "sessions", "session-epochs"]);
    // The author's own role was judged in the new log: it is still there, or not.
    let (again, _) = chosen(&[("users:7", Some(2)), ("admins:1", Some(2))]);
    assert_eq!(again[0].conditions, [present("admins:1")]);
    let (again, archived) = chosen(&[("users:7", Some(2)), ("admins:1", None)]);
    assert_eq!((again.len(), archived.len()), (0, 1));
}

/// A transaction that was pushed again before names another position of another log.
#[test]
fn p04_since_when_an_object_is_absent_is_asked_anew() {
    let since = |seq: u64| Condition::absent_since(name("k").0, name("k").1, Seq(seq));
    let shared = [txn(OTHER, 1, &[("s", Some(1))])];
    let before = Txn { conditions: vec![absent(name("k")), since(1)], ..txn(ME, 1, &[("k", Some(2))]) };
    let (old, own) = (state(&[&shared[..], std::slice::from_ref(&before)].concat()), [Arc::new(before)]);
    let others = [txn(OTHER, 2, &[("s", Some(2))]), txn(OTHER, 3, &[("s", Some(3))])];
    let new = state(&[&shared[..], &others[..1]].concat());
    let lost = Lost::after(Seq(1));
    let parted = DivergedHistories {
        old: &old,
        new: &new,
        lost: &lost,
        assumed: &Assumed::new(),
        limits: &PushLimits::default(),
    };
    // The log was read to its end, or its state alone was.
    for (read, to) in [(&others[..], 3), (&[], 2)] {
        let mut reading = Since::new(&old, &own);
        entries(read, 2).iter().for_each(|entry| reading.take(entry).expect("reads"));
        let again = parted.again(&own, &reading.others, &mut BTreeSet::new()).expect("reads");
        assert_eq!(again[0].conditions, [absent(name("k")), since(to)]);
    }
}

/// Returns counters and operations of what is pushed again, and the counters of what is archived, with these limits.
fn within(limits: &PushLimits, shared: &[Txn], own: &[Txn]) -> (Vec<(u64, usize)>, Vec<u64>) {
    let (old, new) = (state(&[shared, own].concat()), state(shared));
    let own: Vec<Arc<Txn>> = own.iter().cloned().map(Arc::new).collect();
    let (lost, assumed) = (Lost::after(Seq(shared.len() as u64)), Assumed::new());
    let parted = DivergedHistories { old: &old, new: &new, lost: &lost, assumed: &assumed, limits };
    let (again, archived) = parted.choose(&own, &[], Some(&Others::default()), false).expect("reads");
    assert!(again.iter().all(|txn| limits.check(txn).is_ok()), "the datastore accepts what is pushed");
    let again = again.iter().map(|txn| (txn.id.counter.0, txn.ops.len())).collect();
    (again, archived.iter().map(|txn| txn.id.counter.0).collect())
}

/// Puts and deletions at the limits of authors, of objects that the new log has or lacks.
#[test]
fn p04_what_was_accepted_is_not_too_large_to_be_pushed_again() {
    let names: Vec<String> = (0..8).map(|number| format!("k{number}")).collect();
    let of = |value: Option<u8>| names.iter().map(|name| (name.as_str(), value)).collect::<Vec<_>>();
    let shared = [txn(OTHER, 1, &of(Some(1)))];
    let all = [txn(ME, 1, &of(None)), txn(ME, 2, &of(Some(2))), txn(ME, 3, &of(Some(3))), txn(ME, 4, &of(None))];
    let bytes = all.iter().map(Txn::bytes_estimate).max().expect("some");
    let by_ops = Limits { ops_max: names.len(), ..Limits::default() };
    let by_bytes = Limits { txn_bytes_max: bytes, ..Limits::default() };
    for of_authors in [by_ops, by_bytes] {
        assert!(all.iter().all(|txn| of_authors.check(txn).is_ok()));
        let limits = PushLimits { of_authors, counts_added: false };
        assert_eq!(within(&limits, &shared, &all[..1]), (vec![(1, 8)], vec![]), "{limits:?}");
        assert_eq!(within(&limits, &shared, &all[1..2]), (vec![(2, 8)], vec![]), "{limits:?}");
        assert_eq!(within(&limits, &[], &all[1..3]), (vec![(2, 8), (3, 8)], vec![]), "{limits:?}");
        assert!(within(&limits, &shared, &all).1.is_empty(), "{limits:?}");
        // A datastore of an earlier version would reject them, and the log would have the rejection for good.
        let limits = PushLimits { counts_added: true, ..limits };
        assert_eq!(within(&limits, &shared, &all[..1]), (vec![], vec![1]), "{limits:?}");
        assert_eq!(within(&limits, &[], &all[1..3]), (vec![], vec![2, 3]), "{limits:?}");
        // What depends on one that is left out is left out as well.
        let upon = Txn { conditions: vec![written_by(name("k1"), all[1].id)], ..txn(ME, 3, &[("z", Some(1))]) };
        assert_eq!(within(&limits, &[], &[all[1].clone(), upon]), (vec![], vec![2, 3]), "{limits:?}");
    }
}

/// Comparing each object with each condition and operation would take minutes here, and hours at the limits.
#[test]
fn p04_a_transaction_of_many_operations_and_conditions_is_pushed_again() {
    let names: Vec<String> = (0..6_000).map(|number| format!("k{number}")).collect();
    let of = |value: Option<u8>| names.iter().map(|name| (name.as_str(), value)).collect::<Vec<_>>();
    let shared = [txn(OTHER, 1, &of(Some(1)))];
    let present = |text: &String| Condition::Present { collection: name(text).0, key: name(text).1 };
    let deletion = Txn { conditions: names.iter().map(present).collect(), ..txn(ME, 1, &of(None)) };
    let again = Txn { conditions: names.iter().map(|text| absent(name(text))).collect(), ..txn(ME, 2, &of(Some(2))) };
    let own = [deletion, again, txn(ME, 3, &of(None))];
    let count = names.len();
    let expected = (1..=3).map(|counter| (counter, count)).collect();
    assert_eq!(within(&PushLimits::default(), &shared, &own), (expected, vec![]));
}

/// A record of the journal must be able to hold what is listed.
#[test]
fn p04_the_conditions_of_an_archived_transaction_fit_into_the_journal() {
    let put = Op::Put { collection: name("k").0, key: name("k").1, value: vec![0; HARD.txn_bytes_max - 1000].into() };
    let large = Txn { ops: vec![put], ..txn(ME, 1, &[]) };
    let many = (0..100).map(|number| absent(name(&format!("k{number}")))).collect::<Vec<_>>();
    let lost = Condition::upon_lost(name("k").0, name("k").1);
    assert_eq!(listed(&large, many).conditions, [lost]);
    let few = vec![absent(name("k"))];
    assert_eq!(listed(&large, few.clone()).conditions, few);
}
