//! Deletions of a lost history: a deleted object does not return because its author pushes it again.

use std::collections::BTreeMap;

use crate::conflict_archive::Change;
use crate::leaving::{DivergedStates, Own};
use crate::local_txns::{Others, Since, values};
use gravwell_model::Condition;
use gravwell_model::limits::PushLimits;
use gravwell_protocol::rebase::Lost;

use super::leaving::{Case, ME, OTHER, RIVAL, absent, place, state_of, txn, version};
use super::*;

fn present(key: &str) -> Condition {
    let (collection, key) = place(key);
    Condition::Present { collection, key }
}

/// Returns the final values of the log after members rejoin one after the other, each from its part of the lost
/// history, and the rejected list of each.
fn come_back(
    shared: &[Txn],
    since: &[Txn],
    order: &[(u8, &[Txn])],
    is_unknown: bool,
) -> (BTreeMap<String, Bytes>, BTreeMap<u8, Vec<Txn>>) {
    let (mut log, mut lists) = ([shared, since].concat(), BTreeMap::new());
    let mut values = BTreeMap::new();
    for (who, lost) in order {
        let since = log[shared.len()..].to_vec();
        let (shared, lost) = (shared.to_vec(), lost.to_vec());
        let played = Case { shared, lost, since, is_unknown, who: Some(*who), ..Case::default() }.plays(&[]);
        lists.insert(*who, played.listed().into_values().collect());
        (log, values) = (played.log, played.values);
    }
    (values, lists)
}

/// Returns both orders in which the two members can rejoin. The other one has not seen the last transaction.
fn orders(lost: &[Txn]) -> [[(u8, &[Txn]); 2]; 2] {
    let (deleter, maker) = ((ME, lost), (OTHER, &lost[..lost.len() - 1]));
    [[deleter, maker], [maker, deleter]]
}

/// Returns histories after one shared transaction, at whose end this member deletes everything called `k`.
fn deleted() -> Vec<(&'static str, Vec<Txn>)> {
    let made = txn(OTHER, 1, &[("k", Some("made"))], vec![]);
    let made_where_nothing_was = txn(OTHER, 1, &[("k", Some("made"))], vec![absent("k")]);
    let changed = txn(OTHER, 1, &[("k0", Some("changed"))], vec![version("k0", 1)]);
    let account = txn(OTHER, 1, &[("k", Some("bob")), ("k-name", Some("k")), ("k-password", Some("secret"))], vec![]);
    let upon = |key: &str| vec![present(key), version(key, 2)];
    let whole = &[("k", None), ("k-name", None), ("k-password", None), ("k-admin", None)];
    let updated = txn(ME, 1, &[("k", Some("updated"))], vec![version("k", 2)]);
    vec![
        ("on its creation", vec![made.clone(), txn(ME, 1, &[("k", None)], upon("k"))]),
        ("on its only creation", vec![made_where_nothing_was.clone(), txn(ME, 1, &[("k", None)], upon("k"))]),
        ("unconditionally", vec![made_where_nothing_was.clone(), txn(ME, 1, &[("k", None)], vec![])]),
        ("if present", vec![made_where_nothing_was, txn(ME, 1, &[("k", None)], vec![present("k")])]),
        ("on its change", vec![changed, txn(ME, 1, &[("k0", None)], upon("k0"))]),
        ("after a local change on top of it", vec![made, updated, txn(ME, 2, &[("k", None)], vec![])]),
        ("with all of its objects", vec![account, txn(ME, 1, whole, [upon("k"), vec![version("login", 1)]].concat())]),
    ]
}

#[test]
fn p04_what_was_deleted_in_a_lost_history_does_not_return_in_either_order() {
    let shared = [txn(RIVAL, 1, &[("k0", Some("base")), ("login", Some("of the author"))], vec![])];
    for (how, lost) in deleted() {
        for order in orders(&lost) {
            let (values, lists) = come_back(&shared, &[], &order, false);
            let left: Vec<&String> = values.keys().filter(|key| key.starts_with('k') && *key != "k0").collect();
            assert!(left.is_empty(), "deleted {how}, {} first: {left:?}", order[0].0);
            assert!(how != "on its change" || !values.contains_key("k0"), "{} first", order[0].0);
            assert!(lists[&ME].is_empty(), "deleted {how}: resolved, {:?}", lists[&ME]);
        }
    }
}

#[test]
fn p04_what_was_deleted_together_with_a_change_that_is_left_out_does_not_return_unsaid() {
    let shared = [txn(RIVAL, 1, &[("j", Some("base"))], vec![])];
    let made = txn(OTHER, 1, &[("k", Some("made"))], vec![]);
    let overtaking = [txn(RIVAL, 2, &[("j", Some("theirs"))], vec![])];
    let upon = |conditions| txn(ME, 1, &[("j", Some("mine")), ("k", None)], conditions);
    let cases = [(upon(vec![]), true), (upon(vec![version("k", 2)]), false), (upon(vec![present("k")]), false)];
    for (both, is_overtaken) in cases {
        let since = if is_overtaken { &overtaking[..] } else { &[] };
        let lost = [made.clone(), both.clone()];
        let [first, second] = orders(&lost);
        let (values, lists) = come_back(&shared, since, &first, false);
        assert!(!values.contains_key("k"), "{both:?}");
        assert_ne!(values["j"], "mine");
        assert_eq!((lists[&ME].len(), lists[&OTHER].len()), (1, 1), "both authors are notified: {lists:?}");
        assert_eq!(lists[&ME][0].ops, both.ops);
        // The object exists again, and its deletion would remove it without the change, so its author decides.
        let (values, lists) = come_back(&shared, since, &second, false);
        let is_whole = values["j"] == "mine";
        assert_eq!(is_whole, both.conditions == [present("k")], "the condition holds again: {both:?}");
        assert_eq!((values.contains_key("k"), lists[&ME].len()), (!is_whole, usize::from(!is_whole)), "{both:?}");
    }
}

#[test]
fn p04_a_deletion_is_pushed_again_also_where_what_others_did_since_is_not_known() {
    let lost = [
        txn(OTHER, 1, &[("k", Some("made"))], vec![]),
        txn(ME, 1, &[("k", None), ("own", Some("mine"))], vec![version("k", 1)]),
    ];
    let [first, second] = orders(&lost);
    let played = Case { lost: lost.to_vec(), is_unknown: true, ..Case::default() }.plays(&[]);
    assert_eq!((played.committed.clone(), played.values.len(), played.listed().len()), (vec![1], 0, 1));
    let (values, _) = come_back(&[], &[], &[first[0]], true);
    assert!(values.is_empty());
    let maker = Case { lost: lost[..1].to_vec(), since: played.log, who: Some(OTHER), ..Case::default() }.plays(&[]);
    assert_eq!(
        (maker.value("k"), maker.listed().len()),
        (None, 1),
        "its creator receives the deletion and is notified"
    );
    let (values, lists) = come_back(&[], &[], &second, true);
    assert_eq!((values.contains_key("k"), lists[&ME].len()), (false, 1), "then no member pushes it again");
}

#[test]
fn p04_what_was_made_again_by_who_had_seen_the_deletion_stays() {
    let lost = [
        txn(OTHER, 1, &[("k", Some("made"))], vec![]),
        txn(ME, 1, &[("k", None)], vec![version("k", 1)]),
        txn(RIVAL, 1, &[("k", Some("made again"))], vec![absent("k")]),
    ];
    let (deleter, maker, again) = ((ME, &lost[..2]), (OTHER, &lost[..1]), (RIVAL, &lost[..]));
    for order in [[deleter, maker, again], [deleter, again, maker], [again, deleter, maker], [again, maker, deleter]] {
        let (values, lists) = come_back(&[], &[], &order, false);
        assert_eq!(values.get("k").map(|value| &value[..]), Some(&b"made again"[..]), "{order:?}");
        assert!(lists[&RIVAL].is_empty(), "{lists:?}");
    }
    // The deleting member has seen that as well, so it pushes nothing. Its author is told unless the log has that object:
    // the first maker may return before the second one.
    let played = Case { lost: lost.to_vec(), ..Case::default() }.plays(&[]);
    assert_eq!((played.committed.len(), played.listed().len()), (0, 1));
    let played = Case { lost: lost.to_vec(), since: lost[2..].to_vec(), ..Case::default() }.plays(&[]);
    assert_eq!((played.committed.len(), played.listed().len()), (0, 0));
}

#[test]
fn p04_a_deletion_takes_nothing_away_that_its_author_had_not_seen() {
    let shared = vec![txn(RIVAL, 1, &[("s", Some("base"))], vec![])];
    let made = txn(OTHER, 1, &[("k", Some("made")), ("s", Some("changed"))], vec![]);
    let own = txn(ME, 1, &[("k", None), ("s", None)], vec![version("k", 2), version("s", 2)]);
    let case = Case { shared, lost: vec![made, own], ..Case::default() };
    let theirs = |key| txn(RIVAL, 2, &[(key, Some("theirs"))], vec![]);
    for key in ["k", "s"] {
        // Written after the log continued, or before the pushed transactions arrive.
        let since = Case { since: vec![theirs(key)], ..case.clone() }.plays(&[]);
        let faster = case.plays(&[theirs(key)]);
        for played in [&since, &faster] {
            assert_eq!(played.value(key), Some("theirs"));
            assert!(played.value("s").is_some(), "a transaction is not partly deleted");
        }
        assert_eq!((since.listed().len(), faster.committed.len()), (1, 0));
    }
    // The other object that it depends on does not exist, so it is unknown whether the deletion is still wanted.
    let upon = txn(ME, 1, &[("s", None)], vec![version("k", 2)]);
    let played = Case { lost: vec![case.lost[0].clone(), upon], ..case.clone() }.plays(&[]);
    assert_eq!((played.value("s"), played.listed().len()), (Some("base"), 1));
    // An earlier state was restored on purpose: all of it is given up.
    let restored = Case { is_restore: true, ..case }.plays(&[]);
    assert_eq!((restored.committed.len(), restored.value("s"), restored.listed().len()), (0, Some("base"), 1));
}

#[test]
fn p04_the_deletions_of_what_went_with_a_state_are_pushed_again_and_archived() {
    let (old, lost) = (state_of(&[]), Lost::after(Seq(0)));
    let new = state_of(&[txn(RIVAL, 1, &[("there", Some("theirs"))], vec![])]);
    let gone = [Arc::new(txn(ME, 1, &[("k", None), ("there", None), ("own", Some("mine"))], vec![version("k", 7)]))];
    let own = Own { kept: &[], lacking: &[], gone: &gone, limits: &PushLimits::default() };
    let (again, archived) = own.split((&old, &new), &lost, None, false).expect("reads");
    assert_eq!((again.len(), archived.len()), (1, 1));
    assert_eq!((&again[0].ops[..], &again[0].conditions[..]), (&gone[0].ops[..1], &[absent("k")][..]));
    assert_eq!(archived[0].ops, gone[0].ops);
}

/// Two members return at the same moment: each has looked at the new log before the other one pushes.
#[test]
fn p04_what_is_deleted_between_the_look_and_the_push_does_not_return() {
    let made = |conditions| txn(OTHER, 1, &[("k", Some("made"))], conditions);
    let deleted = txn(ME, 1, &[("k", None)], vec![version("k", 1)]);
    for conditions in [vec![], vec![absent("k")]] {
        let lost = [made(conditions), deleted.clone()];
        let (_, deletion) = Case { lost: lost.to_vec(), ..Case::default() }.begins();
        assert_eq!((deletion.len(), &deletion[0].conditions[..]), (1, &[absent("k")][..]), "it deletes nothing");
        let maker = Case { lost: lost[..1].to_vec(), who: Some(OTHER), ..Case::default() };
        assert_eq!((maker.plays(&[]).committed.len(), maker.plays(&[]).value("k")), (1, Some("made")));
        let played = maker.plays(&deletion);
        assert_eq!((played.committed.len(), played.value("k")), (0, None), "{:?}", lost[0].conditions);
        // It was read in the log that the deletion is there, so it is left out, and its author is told.
        let late = Case { since: deletion, ..maker }.plays(&[]);
        assert_eq!((late.committed.len(), late.value("k"), late.listed().len()), (0, None, 1));
    }
}

/// The member that pushes an object again has deleted it itself in between.
#[test]
fn p04_what_is_deleted_between_an_own_deletion_and_what_follows_it_does_not_return() {
    let lost = [
        txn(OTHER, 1, &[("k", Some("first"))], vec![absent("k")]),
        txn(OTHER, 2, &[("k", None)], vec![version("k", 1)]),
        txn(OTHER, 3, &[("k", Some("second"))], vec![absent("k")]),
        txn(ME, 1, &[("k", None)], vec![version("k", 3)]),
    ];
    let (_, deletion) = Case { lost: lost.to_vec(), ..Case::default() }.begins();
    let maker = Case { lost: lost[..3].to_vec(), who: Some(OTHER), ..Case::default() };
    assert_eq!((maker.plays(&[]).committed.len(), maker.plays(&[]).value("k")), (3, Some("second")));
    // The object is not there before the first one, nor after the second one.
    for at in [0, 2] {
        let (mut played, pending) = maker.begins();
        for (number, txn) in pending.iter().enumerate() {
            if number == at {
                assert!(played.commits(&deletion[0]));
            }
            assert_eq!(played.commits(txn), number < at, "{number} when deleted before {at}");
        }
        assert_eq!(played.value("k"), None);
    }
}

/// A member that knows of a deletion of another one, and has made the object again since, has not read that deletion
/// in the state, but in the log that followed it.
#[test]
fn p04_what_was_made_again_is_pushed_upon_a_deletion_that_was_read() {
    let lost = [
        txn(OTHER, 1, &[("k", Some("made"))], vec![]),
        txn(RIVAL, 1, &[("k", None)], vec![version("k", 1)]),
        txn(ME, 1, &[("k", Some("made again"))], vec![absent("k")]),
    ];
    let since = vec![txn(RIVAL, 1, &[("k", None)], vec![absent("k")])];
    let played = Case { lost: lost.to_vec(), since, ..Case::default() }.plays(&[]);
    assert_eq!((played.committed.len(), played.value("k")), (1, Some("made again")));
    // One that is pushed after the look is not known to be the same one: its author is told.
    let played = Case { lost: lost.to_vec(), ..Case::default() }.plays(&[txn(RIVAL, 1, &[("k", None)], vec![])]);
    assert_eq!((played.committed.len(), played.value("k")), (0, None));
}

#[test]
fn p04_who_deleted_what_was_created_again_in_the_lost_history_is_told_that_it_is_back() {
    let shared = vec![txn(OTHER, 1, &[("k", Some("a"))], vec![])];
    let deleted = txn(ME, 1, &[("k", None)], vec![version("k", 1)]);
    let again = txn(OTHER, 2, &[("k", Some("b"))], vec![absent("k")]);
    let listed = |case: &Case| case.plays(&[]).listed().len();
    let case = Case { shared, lost: vec![deleted.clone(), again.clone()], ..Case::default() };
    for is_unknown in [false, true] {
        let played = Case { is_unknown, ..case.clone() }.plays(&[]);
        assert_eq!((played.value("k"), played.committed.len(), played.listed().len()), (Some("a"), 0, 1));
        // The one that was deleted went as well. Whoever has it may push it again.
        let lost = vec![case.shared[0].clone(), deleted.clone(), again.clone()];
        assert_eq!(listed(&Case { shared: vec![], lost, is_unknown, ..Case::default() }), 1);
    }
    // The log has the later object as well, or the deletion.
    let same = txn(RIVAL, 1, &[("k", Some("b"))], vec![]);
    assert_eq!(listed(&Case { since: vec![same], ..case.clone() }), 0);
    let theirs = [txn(RIVAL, 1, &[("k", None)], vec![]), txn(RIVAL, 2, &[("k", Some("c"))], vec![])];
    assert_eq!(listed(&Case { since: theirs[..1].to_vec(), ..case.clone() }), 0);
    assert_eq!(listed(&Case { since: theirs.to_vec(), ..case.clone() }), 0);
    assert_eq!(listed(&Case { since: theirs.to_vec(), is_unknown: true, ..case }), 1, "the deletion is unknown");
}

/// Returns what a member archives of two histories after `shared`, if it pushes `again`, as key, sequence, version in the
/// new log and whether that was seen. It knows what others did unless `is_unknown`.
fn archived(shared: &[Txn], lost: &[Txn], since: &[Txn], again: &[Txn], is_unknown: bool) -> Vec<Change> {
    let (old, new) = (state_of(&[shared, lost].concat()), state_of(&[shared, since].concat()));
    let shared_to = Seq(shared.len() as u64);
    let deletions = old.deletions().expect("reads");
    let mut others = Since::new(&old, &[]).with_deletions(&deletions);
    for (seq, txn) in (shared_to.0 + 1..).zip(since) {
        let (member, body) = (MemberName::new("m").expect("name"), EntryBody::Commit(txn.clone()));
        others.take(&Entry { seq: Seq(seq), time_ms: seq, member, body }).expect("reads");
    }
    let others = if is_unknown { Others::default() } else { others.others };
    let again: Vec<Arc<Txn>> = again.iter().cloned().map(Arc::new).collect();
    let mut changes = Vec::new();
    let apart = DivergedStates { old: &old, new: &new, shared_to, others: &others };
    let give = |change| {
        changes.push(change);
        Ok(())
    };
    apart.differences(&values(&again), give).expect("reads");
    changes
}

#[test]
fn p04_what_a_member_has_seen_deleted_in_a_lost_history_is_archived() {
    let shared = [
        txn(RIVAL, 1, &[("s", Some("base")), ("again", Some("base"))], vec![]),
        txn(RIVAL, 2, &[("again", None)], vec![]),
    ];
    let made = txn(OTHER, 1, &[("k", Some("made"))], vec![]);
    let deleted = txn(RIVAL, 3, &[("k", None)], vec![]);
    let shown = |lost: &[Txn], since: &[Txn], again: &[Txn], is_unknown| -> Vec<(String, Option<u64>, u64, bool)> {
        let of = |change: &Change| {
            assert_eq!((change.value.is_none(), change.time_ms), (true, None));
            let there = change.there.expect("is known").0;
            (change.key.to_string(), change.seq.map(|seq| seq.0), there, change.is_seen)
        };
        archived(&shared, lost, since, again, is_unknown).iter().map(of).collect()
    };
    let k = |there, is_seen| vec![("k".to_owned(), Some(4), there, is_seen)];
    let lost = [made.clone(), deleted.clone()];
    for is_unknown in [false, true] {
        let shown = |since: &[Txn], again: &[Txn]| shown(&lost, since, again, is_unknown);
        assert_eq!(shown(&[], &[]), k(0, false), "its creator may push it again");
        assert_eq!(shown(&[], std::slice::from_ref(&deleted)), [], "it is pushed again");
        assert_eq!(shown(std::slice::from_ref(&made), &[]), k(3, !is_unknown), "its creator has pushed it again");
        assert_eq!(shown(std::slice::from_ref(&deleted), &[]), [], "the log has the deletion");
        let theirs = txn(RIVAL, 9, &[("k", Some("theirs"))], vec![]);
        assert_eq!(shown(std::slice::from_ref(&theirs), &[]), k(3, false), "another member has written it");
        let both = shown(&[deleted.clone(), theirs], &[]);
        assert_eq!(both, if is_unknown { k(4, false) } else { vec![] }, "the log has the deletion and a later object");
    }
    // A shared object, and one that was deleted in the shared part before.
    let made_again = txn(OTHER, 2, &[("again", Some("made again"))], vec![]);
    let both = txn(RIVAL, 4, &[("again", None), ("s", None)], vec![]);
    let found = shown(&[made_again, both], &[], &[], false);
    assert_eq!(found, [("s".to_owned(), Some(4), 1, false), ("again".to_owned(), Some(4), 0, false)]);
}
