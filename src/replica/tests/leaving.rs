//! Local transactions of a member that leaves a lost history, until the new log commits or rejects them.

use std::collections::{BTreeMap, HashMap};

use crate::accepted_before;
use crate::leaving::{Own, found, with_required};
use crate::local_txns::{Others, Since};
use crate::outbox_records::{frames_of, restore};
use crate::outbox_writer::{Draft, OutboxWriter, Request, Step, SubmitError};
use crate::receipts::Stage;
use gravwell_log::journal::Journal;
use gravwell_model::deletions::Deleted;
use gravwell_model::limits::PushLimits;
use gravwell_model::{Condition, Limits, OriginRow, Reason};
use gravwell_protocol::outbox::RetainedTxn;
use gravwell_protocol::rebase::{Leaving, Lost};
use gravwell_protocol::sequencer::{Decision, Sequencer, Versions};
use gravwell_state::{StateError, StateSnapshot};

use super::*;

pub(super) const ME: u8 = 1;
pub(super) const OTHER: u8 = 2;
/// A member whose transactions arrive before the ones that are pushed again.
pub(super) const RIVAL: u8 = 3;

/// Returns the name of an object in collection `c`, or in the one that precedes a colon.
pub(super) fn place(text: &str) -> (Collection, Key) {
    let (collection, key) = text.split_once(':').unwrap_or(("c", text));
    (Collection::new(collection).expect("name"), Key::new(key).expect("key"))
}

fn present(text: &str) -> Condition {
    let (collection, key) = place(text);
    Condition::Present { collection, key }
}

pub(super) fn id(origin: u8, counter: u64) -> TxnId {
    TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) }
}

pub(super) fn version(key: &str, version: u64) -> Condition {
    let (collection, key) = place(key);
    Condition::Version { collection, key, version: Seq(version) }
}

pub(super) fn absent(key: &str) -> Condition {
    let (collection, key) = place(key);
    Condition::Absent { collection, key }
}

pub(super) fn txn(origin: u8, counter: u64, ops: &[(&str, Option<&'static str>)], conditions: Vec<Condition>) -> Txn {
    let op = |(key, value): &(&str, Option<&'static str>)| {
        let (collection, key) = place(key);
        match value {
            Some(value) => Op::Put { collection, key, value: Bytes::from_static(value.as_bytes()) },
            None => Op::Delete { collection, key },
        }
    };
    let ops = ops.iter().map(op).collect();
    Txn { id: id(origin, counter), settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops }
}

fn entries(txns: &[Txn]) -> Vec<Entry> {
    let member = MemberName::new("m").expect("name");
    let entry = |(seq, txn): (u64, &Txn)| {
        let body = EntryBody::Commit(txn.clone());
        Entry { seq: Seq(seq), time_ms: seq, member: member.clone(), body }
    };
    (1..).zip(txns).map(entry).collect()
}

pub(super) fn state_of(txns: &[Txn]) -> StateSnapshot {
    let state = StateStore::in_memory();
    state.init(LogId([1; 16]), Generation(1), vec![generation(1, 0)]).expect("begins");
    if !txns.is_empty() {
        state.apply(&entries(txns), Chain::default()).expect("applies");
    }
    state.snapshot().expect("a view")
}

/// The new log: its index, and the author of each entry.
struct Index<'a>(&'a StateSnapshot, &'a [Txn]);

impl Versions for Index<'_> {
    type Error = StateError;

    fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        self.0.version(collection, key)
    }

    fn author(&self, seq: Seq) -> Option<TxnId> {
        Some(self.1.get(usize::try_from(seq.0).ok()?.checked_sub(1)?)?.id)
    }

    fn deleted(&self, collection: &Collection, key: &Key) -> Result<Option<Deleted>, StateError> {
        Ok(Some(self.0.deletions()?.deleted(collection, key)))
    }
}

/// Two histories: `shared`, followed by `lost` or by `since`.
#[derive(Clone, Default)]
pub(super) struct Case {
    pub(super) shared: Vec<Txn>,
    pub(super) lost: Vec<Txn>,
    pub(super) since: Vec<Txn>,
    pub(super) pending: Vec<Txn>,
    /// The member has restarted before it rejoins.
    pub(super) is_restarted: bool,
    /// The outbox journal had no sequences of committed transactions, as that of an earlier version.
    pub(super) is_unrecorded: bool,
    /// An earlier state was restored on purpose.
    pub(super) is_restore: bool,
    /// It is unknown what others did since.
    pub(super) is_unknown: bool,
    /// Member that rejoins; `None` for [`ME`].
    pub(super) who: Option<u8>,
}

impl Case {
    fn all(&self, more: &[Txn]) -> Vec<Txn> {
        [&self.shared, more].concat()
    }

    fn origin(&self) -> Origin {
        Origin([self.who.unwrap_or(ME); 16])
    }

    pub(super) fn outbox(&self, old: &StateSnapshot) -> Outbox {
        let mut outbox = Outbox::keeping();
        let (origin, all) = (self.origin(), self.all(&self.lost));
        for txn in all.iter().chain(&self.pending).filter(|txn| txn.id.origin == origin) {
            outbox.insert(Arc::new(txn.clone()));
        }
        if self.is_restarted {
            outbox.handle_row(origin, &old.origin(origin).expect("reads").expect("is known"));
            let sequence = |id| entries(&all).iter().find(|entry| entry.body.id() == Some(id)).map(|entry| entry.seq);
            outbox.take_recorded(|id| sequence(id).filter(|_| !self.is_unrecorded));
        } else {
            entries(&all).iter().for_each(|entry| drop(outbox.handle_applied(entry.seq, &entry.body)));
        }
        outbox
    }

    /// Returns the outbox after the member has left the lost history.
    pub(super) fn left(&self, outbox: &Outbox) -> Outbox {
        let (old, new) = (state_of(&self.all(&self.lost)), state_of(&self.all(&self.since)));
        let shared_to = Seq(self.shared.len() as u64);
        let kept: Vec<RetainedTxn> = outbox.kept().cloned().collect();
        let origin = self.origin();
        let row = new.origin(origin).expect("reads").unwrap_or_default();
        let counter = row.last_counter;
        let decided = BTreeMap::from([(origin, row)]);
        let lacking: Vec<Arc<Txn>> =
            kept.iter().filter(|kept| kept.txn.id.counter > counter).map(|kept| Arc::clone(&kept.txn)).collect();
        let left = |collection: &Collection, key: &Key| found(&old, collection, key);
        let lost = Lost::after(shared_to).with_own(kept.iter(), left).expect("reads");
        let lost = with_required(lost, outbox.conditions(), &old, &new).expect("reads");
        let others = (!self.is_restore && !self.is_unknown).then(|| self.others(&old, &lacking));
        let own = Own { kept: &kept, lacking: &lacking, gone: &[], limits: &PushLimits::default() };
        let (again, archived) = own.split((&old, &new), &lost, others.as_ref(), self.is_restore).expect("reads");
        let reason = Reason::Forbidden { message: "archived".into() };
        let mut fresh = 100;
        outbox.requeued(Leaving { decided: &decided, again, archived, reason, lost: &lost }, || {
            fresh += 1;
            Origin([fresh; 16])
        })
    }

    fn others(&self, old: &StateSnapshot, own: &[Arc<Txn>]) -> Others {
        let mut since = Since::new(old, own);
        let all = entries(&self.all(&self.since));
        all[self.shared.len()..].iter().for_each(|entry| since.take(entry).expect("reads"));
        since.others
    }

    /// Returns the new log after the member has left the lost history, and what it is about to push.
    pub(super) fn begins(&self) -> (Played, Vec<Txn>) {
        let old = state_of(&self.all(&self.lost));
        let outbox = self.left(&self.outbox(&old));
        let log = self.all(&self.since);
        let mut values = BTreeMap::new();
        log.iter().for_each(|txn| take(&mut values, txn));
        let pending = outbox.pending().map(|txn| Txn::clone(txn)).collect();
        (Played { committed: Vec::new(), values, log, outbox }, pending)
    }

    pub(super) fn plays(&self, rivals: &[Txn]) -> Played {
        let (mut played, pending) = self.begins();
        rivals.iter().for_each(|txn| assert!(played.commits(txn)));
        for txn in pending {
            if played.commits(&txn) && !txn.ops.is_empty() {
                played.committed.push(txn.id.counter.0);
            }
        }
        played
    }
}

fn take(values: &mut BTreeMap<String, Bytes>, txn: &Txn) {
    for op in &txn.ops {
        match op.value() {
            Some(value) => drop(values.insert(op.key().to_string(), value.clone())),
            None => drop(values.remove(op.key().as_str())),
        }
    }
}

pub(super) struct Played {
    /// Counters of the member's transactions that were committed.
    pub(super) committed: Vec<u64>,
    pub(super) values: BTreeMap<String, Bytes>,
    pub(super) log: Vec<Txn>,
    pub(super) outbox: Outbox,
}

impl Played {
    /// Returns whether the new log commits a transaction.
    pub(super) fn commits(&mut self, txn: &Txn) -> bool {
        let state = state_of(&self.log);
        let rows = state.origins().map(|row| row.expect("reads")).collect::<HashMap<Origin, OriginRow>>();
        let mut sequencer = Sequencer::new(Seq(self.log.len() as u64), 0, Limits::default(), rows);
        let member = MemberName::new("m").expect("name");
        // An earlier rejection leaves a gap in the counters, which does not matter here.
        let mut txn = txn.clone();
        let (name, expected) = (txn.id, sequencer.last_counter(txn.id.origin).next());
        txn.id.counter = expected;
        let decision = sequencer.propose(&member, txn.clone(), 0, &Index(&state, &self.log)).expect("reads");
        let is_committed = matches!(decision, Decision::Write(Entry { body: EntryBody::Commit(_), .. }));
        if is_committed {
            take(&mut self.values, &txn);
            self.log.push(Txn { id: name, ..txn });
        }
        is_committed
    }

    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(|value| std::str::from_utf8(value).expect("text"))
    }

    /// Returns the transactions on the rejected list, by the first value that each of them puts.
    pub(super) fn listed(&self) -> BTreeMap<String, Txn> {
        let listed = self.outbox.rejected().values().map(|rejected| Txn::clone(&rejected.txn));
        let text = |txn: &Txn| txn.ops[0].value().map(|value| String::from_utf8_lossy(value).into_owned());
        listed.map(|txn| (text(&txn).unwrap_or_default(), txn)).collect()
    }
}

#[test]
fn p08_an_archived_change_is_tried_again_upon_what_its_author_knew_and_upon_nothing_later() {
    let shared = vec![txn(OTHER, 1, &[("x", Some("base"))], vec![])];
    let one = txn(ME, 1, &[("x", Some("one"))], vec![]);
    let two = txn(ME, 2, &[("x", Some("two"))], vec![version("x", 2)]);
    let later = txn(OTHER, 2, &[("x", Some("later"))], vec![]);
    for (lost, since) in [(vec![one.clone(), two.clone()], vec![later.clone()]), (vec![one.clone()], vec![later])] {
        let case = Case { shared: shared.clone(), lost, since, ..Case::default() };
        let mut played = case.plays(&[]);
        assert_eq!((played.committed.len(), played.listed().len()), (0, case.lost.len()));
        for (name, txn) in played.listed() {
            assert!(!played.commits(&txn), "{name} overwrites an unseen change: {:?}", txn.conditions);
        }
        assert_eq!(played.value("x"), Some("later"));
    }
    // After a restore nothing came in between, so each applies upon the one before it.
    let case = Case { shared, lost: vec![one, two], is_restore: true, ..Case::default() };
    let mut played = case.plays(&[]);
    let listed = played.listed();
    assert!(!played.commits(&listed["two"]), "its base is missing");
    assert!(played.commits(&listed["one"]) && played.commits(&listed["two"]));
}

#[test]
fn p08_what_required_an_object_that_the_member_then_deleted_is_not_committed_upon_another_one() {
    let shared = vec![txn(OTHER, 1, &[("base", Some("base")), ("old", Some("old"))], vec![])];
    let upon = |counter, key| txn(ME, counter, &[("y", Some("upon it"))], vec![present(key)]);
    let deleting = |counter, key| txn(ME, counter, &[(key, None)], vec![present(key)]);
    let lost = vec![txn(OTHER, 2, &[("x", Some("one"))], vec![]), upon(1, "x"), deleting(2, "x")];
    let since = vec![txn(RIVAL, 1, &[("x", Some("another"))], vec![])];
    for since in [since, vec![]] {
        let case = Case { shared: shared.clone(), lost: lost.clone(), since: since.clone(), ..Case::default() };
        let played = case.plays(&[]);
        assert_eq!(played.value("y"), None, "{since:?}");
        assert!(played.listed().contains_key("upon it"), "{since:?}");
        assert_eq!(played.value("x").is_some(), !since.is_empty(), "{since:?}");
    }
    // An object that the new log has from the shared part is the same one.
    let case = Case { shared, lost: vec![upon(1, "old"), deleting(2, "old")], ..Case::default() };
    let played = case.plays(&[]);
    assert_eq!((played.committed.clone(), played.value("y"), played.value("old")), (vec![1, 2], Some("upon it"), None));
}

#[test]
fn p08_an_object_whose_key_is_not_used_twice_is_the_same_one_whoever_wrote_it() {
    let shared = vec![txn(OTHER, 1, &[("users:7", Some("pat"))], vec![])];
    let edit = |origin, counter, value| txn(origin, counter, &[("users:7", Some(value))], vec![present("users:7")]);
    let upon = |counter, key, value| txn(ME, counter, &[(key, Some(value))], vec![present("users:7")]);
    let since = vec![edit(RIVAL, 1, "pat of the new log")];
    for edit in [edit(ME, 1, "pat of the lost part"), edit(OTHER, 2, "pat of the lost part")] {
        let lost = vec![edit, upon(2, "y", "committed")];
        let pending = vec![upon(3, "z", "pending")];
        let case = Case { shared: shared.clone(), lost, since: since.clone(), pending, ..Case::default() };
        let played = case.plays(&[]);
        assert_eq!((played.value("y"), played.value("z")), (Some("committed"), Some("pending")));
        assert_eq!(played.value("7"), Some("pat of the new log"));
    }
}

/// A member renames user 2 from eve to fay, and user 3 from bob to eve.
fn renames() -> Case {
    let shared = vec![
        txn(OTHER, 1, &[("2", Some("eve")), ("eve", Some("2"))], vec![]),
        txn(OTHER, 2, &[("3", Some("bob")), ("bob", Some("3"))], vec![]),
    ];
    let rename = |counter, uid, from, to, read| {
        let conditions = vec![version(uid, read), version(from, read), absent(to)];
        txn(ME, counter, &[(uid, Some(to)), (from, None), (to, Some(uid))], conditions)
    };
    let lost = vec![rename(1, "2", "eve", "fay", 1), rename(2, "3", "bob", "eve", 2)];
    Case { shared, lost, ..Case::default() }
}

#[test]
fn p08_what_was_made_upon_an_own_change_that_is_left_out_is_left_out() {
    let whole = renames().plays(&[]);
    assert_eq!((whole.committed.clone(), whole.value("eve"), whole.value("2")), (vec![1, 2], Some("3"), Some("fay")));
    let fay = txn(RIVAL, 1, &[("4", Some("fay")), ("fay", Some("4"))], vec![absent("fay")]);
    let is_as_before = |played: &Played| {
        let values = ["2", "3", "eve", "bob", "fay"].map(|key| played.value(key).map(str::to_owned));
        assert_eq!(values, ["eve", "bob", "2", "3", "4"].map(|value| Some(value.to_owned())));
        assert_eq!(played.committed, Vec::<u64>::new());
    };
    // Another user is called fay before the member rejoins, or before its pushed transactions arrive.
    let before = Case { since: vec![fay.clone()], ..renames() }.plays(&[]);
    is_as_before(&before);
    assert_eq!(before.listed().len(), 2, "their author is notified");
    is_as_before(&renames().plays(&[fay]));
    // User 2 is deleted. That also leaves nothing called eve, but it has not made the second rename possible.
    let gone = txn(RIVAL, 1, &[("2", None), ("eve", None)], vec![]);
    let played = renames().plays(&[gone]);
    assert_eq!((played.committed.len(), played.value("3"), played.value("eve")), (0, Some("bob"), None));
}

#[test]
fn p08_own_changes_that_are_pushed_again_are_committed_upon_each_other() {
    let shared = vec![txn(OTHER, 1, &[("y", Some("base"))], vec![])];
    let first = txn(ME, 1, &[("y", Some("first"))], vec![]);
    let upon = txn(ME, 2, &[("x", Some("upon y"))], vec![version("y", 2)]);
    let twice = txn(ME, 2, &[("y", Some("again"))], vec![]);
    let rival = [txn(RIVAL, 1, &[("y", Some("theirs"))], vec![])];
    for second in [upon, twice] {
        let case = Case { shared: shared.clone(), lost: vec![first.clone(), second], ..Case::default() };
        assert_eq!(case.plays(&[]).committed, [1, 2]);
        let played = case.plays(&rival);
        assert_eq!((played.committed.len(), played.value("y"), played.value("x")), (0, Some("theirs"), None));
    }
}

#[test]
fn p08_what_was_made_upon_a_lost_change_of_others_is_not_pushed_again_without_it() {
    let shared = vec![txn(OTHER, 1, &[("y", Some("no"))], vec![])];
    let others = txn(OTHER, 2, &[("y", Some("yes"))], vec![]);
    let own = |key| txn(ME, 1, &[(key, Some("while y is yes"))], vec![version("y", 2)]);
    for key in ["x", "y"] {
        for since in [vec![], vec![others.clone()]] {
            let case = Case { shared: shared.clone(), lost: vec![others.clone(), own(key)], since, ..Case::default() };
            let played = case.plays(&[]);
            assert_eq!((played.committed.len(), played.listed().len()), (0, 1), "{key}");
            let listed = played.listed();
            assert!(listed["while y is yes"].conditions.iter().any(Condition::is_upon_lost), "{key}");
        }
    }
    // A condition on the shared part is not changed, nor is one that requires absence.
    let own = txn(ME, 1, &[("x", Some("x"))], vec![version("y", 1), absent("z")]);
    let case = Case { shared, lost: vec![own], ..Case::default() };
    assert_eq!(case.plays(&[]).committed, [1]);
    assert_eq!(case.plays(&[txn(RIVAL, 1, &[("z", Some("z"))], vec![])]).committed.len(), 0);
    assert_eq!(case.plays(&[txn(RIVAL, 1, &[("y", Some("other"))], vec![])]).committed.len(), 0);
}

#[test]
fn p04_what_others_deleted_in_the_lost_history_does_not_return_half() {
    let lost = vec![
        txn(ME, 1, &[("x", Some("first"))], vec![absent("x")]),
        txn(OTHER, 1, &[("x", None)], vec![]),
        txn(ME, 2, &[("x", Some("second"))], vec![absent("x")]),
    ];
    let played = Case { lost, ..Case::default() }.plays(&[]);
    assert_eq!((played.committed.len(), played.value("x")), (0, None));
    assert_eq!(played.listed().into_keys().collect::<Vec<_>>(), ["second"]);
}

#[test]
fn p05_what_waits_goes_on_from_an_own_committed_change_also_after_a_restart() {
    let shared = vec![txn(OTHER, 1, &[("y", Some("base")), ("z", Some("base"))], vec![])];
    let lost = vec![
        txn(ME, 1, &[("y", Some("own"))], vec![]),
        txn(ME, 2, &[("z", Some("own, superseded"))], vec![]),
        txn(OTHER, 2, &[("o", Some("others"))], vec![]),
    ];
    let since = vec![txn(RIVAL, 1, &[("z", Some("theirs"))], vec![])];
    let pending = vec![
        txn(ME, 3, &[("y", Some("on own"))], vec![version("y", 2)]),
        txn(ME, 4, &[("z", Some("on superseded"))], vec![version("z", 3)]),
        txn(ME, 5, &[("o", Some("on others"))], vec![version("o", 4)]),
    ];
    for is_restarted in [false, true] {
        let case = Case {
            shared: shared.clone(),
            lost: lost.clone(),
            since: since.clone(),
            pending: pending.clone(),
            is_restarted,
            ..Case::default()
        };
        let played = case.plays(&[]);
        assert_eq!(played.committed, [1, 3], "restarted: {is_restarted}");
        assert_eq!((played.value("y"), played.value("z"), played.value("o")), (Some("on own"), Some("theirs"), None));
    }
}

#[test]
fn p05_what_was_made_and_then_changed_is_pushed_again_after_a_restart() {
    let case = Case {
        shared: vec![txn(OTHER, 1, &[("y", Some("base"))], vec![])],
        lost: vec![
            txn(ME, 1, &[("x", Some("made"))], vec![absent("x")]),
            txn(ME, 2, &[("x", Some("changed"))], vec![version("x", 2)]),
            txn(ME, 3, &[("z", Some("last"))], vec![]),
        ],
        ..Case::default()
    };
    for is_restarted in [false, true] {
        let played = Case { is_restarted, ..case.clone() }.plays(&[]);
        assert_eq!(played.committed, [1, 2, 3], "restarted: {is_restarted}");
        assert_eq!(played.value("x"), Some("changed"));
    }
    // Without the sequence it is unknown whether the second one was made upon the first one. Both are listed.
    let played = Case { is_restarted: true, is_unrecorded: true, ..case }.plays(&[]);
    assert_eq!(played.committed, [3]);
    let listed: Vec<_> = played.outbox.rejected().values().map(|rejected| rejected.txn.ops.clone()).collect();
    assert_eq!(
        listed,
        [txn(ME, 1, &[("x", Some("made"))], vec![]).ops, txn(ME, 2, &[("x", Some("changed"))], vec![]).ops]
    );
}

#[test]
fn p05_own_changes_of_the_shared_part_are_pushed_again_after_a_second_and_deeper_loss() {
    let shared: Vec<Txn> = (1..=2).map(|number| txn(OTHER, number, &[("pad", Some("pad"))], vec![])).collect();
    let own = txn(ME, 1, &[("own", Some("acknowledged"))], vec![]);
    let lost = vec![txn(OTHER, 3, &[("y", Some("lost"))], vec![])];
    let first = Case { shared: [&shared[..], std::slice::from_ref(&own)].concat(), lost, ..Case::default() };
    let outbox = first.left(&first.outbox(&state_of(&first.all(&first.lost))));
    assert_eq!((outbox.kept().count(), outbox.depth()), (1, 0));
    let second = Case { shared, lost: vec![own], ..Case::default() };
    let outbox = second.left(&outbox);
    assert_eq!(outbox.pending().map(|txn| txn.id).collect::<Vec<_>>(), [id(ME, 1)]);
}

#[test]
fn p08_a_change_that_requires_a_lost_object_is_not_committed_upon_another_one_of_its_name() {
    let pending = txn(ME, 2, &[("y", Some("based on x"))], vec![present("x")]);
    let made = |who, value| txn(who, 1, &[("x", Some(value))], vec![absent("x")]);
    let case =
        |lost: Vec<Txn>, since: Vec<Txn>| Case { lost, since, pending: vec![pending.clone()], ..Case::default() };
    // The member made the first x itself, or somebody else did.
    let own = case(vec![made(ME, "of me")], vec![made(OTHER, "another one")]);
    let mut others = case(vec![made(OTHER, "of other")], vec![made(RIVAL, "another one")]);
    others.pending = vec![txn(ME, 1, &[("y", Some("based on x"))], vec![present("x")])];
    for case in [own, others] {
        let played = case.plays(&[]);
        assert_eq!(played.values.get("y"), None, "{:?}", played.log);
        assert_eq!(played.values["x"], "another one");
    }
    // Nobody else made one: it is made again, and the change with it.
    let played = case(vec![made(ME, "of me")], vec![]).plays(&[]);
    assert_eq!((&played.values["x"][..], &played.values["y"][..]), (&b"of me"[..], &b"based on x"[..]));
    // It is there from the shared part, or with the same value.
    let mut shared = case(vec![txn(OTHER, 2, &[("x", Some("changed"))], vec![])], vec![]);
    shared.shared = vec![made(OTHER, "shared")];
    shared.pending = vec![txn(ME, 1, &[("y", Some("based on x"))], vec![present("x")])];
    assert!(shared.plays(&[]).values.contains_key("y"));
    let mut again = case(vec![made(OTHER, "the same")], vec![made(OTHER, "the same")]);
    again.pending = vec![txn(ME, 1, &[("y", Some("based on x"))], vec![present("x")])];
    assert!(again.plays(&[]).values.contains_key("y"));
}

#[test]
fn p06_what_is_given_again_after_a_recovery_is_the_one_that_was_rewritten() {
    let given = txn(ME, 1, &[("x", Some("1"))], vec![]);
    let upon = txn(ME, 2, &[("z", Some("2"))], vec![version("x", 1)]);
    let case = Case { lost: vec![given.clone(), upon.clone()], ..Case::default() };
    let outbox = case.left(&case.outbox(&state_of(&case.lost)));
    for original in [&given, &upon] {
        let now = outbox.find(original.id).expect("pending");
        assert_ne!(now.conditions, original.conditions);
        assert!(now.is_rewritten_from(original), "{now:?}");
        let other = txn(ME, original.id.counter.0, &[("x", Some("3"))], original.conditions.clone());
        assert!(!now.is_rewritten_from(&other), "its content differs");
    }
    let more = Txn { conditions: vec![version("x", 1), absent("q")], ..upon };
    assert!(!outbox.find(more.id).expect("pending").is_rewritten_from(&more));
}

/// Returns a writer on a directory, with the shared state of a replica.
fn writer(directory: &Path, lineage: Vec<LineageEntry>, committed: &[Txn]) -> (OutboxWriter, Arc<ReplicaState>) {
    let (journal, _) = Journal::open_dir(directory).expect("opens");
    let state = StateStore::in_memory();
    state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
    if !committed.is_empty() {
        state.apply(&entries(committed), Chain::default()).expect("applies");
    }
    let shared = Arc::new(ReplicaState::new(state, Outbox::keeping(), None));
    let (clock, entropy) = (Arc::new(gravwell_env::SystemClock), Arc::new(gravwell_env::SystemEntropy));
    (OutboxWriter::new(Arc::clone(&shared), journal, clock, entropy), shared)
}

fn submit(writer: &mut OutboxWriter, draft: Draft) -> Result<Stage, SubmitError> {
    let (reply, mut answer) = tokio::sync::oneshot::channel();
    writer.handle(vec![Request::Submit(draft, reply)]).expect("written");
    answer.try_recv().expect("answered").map(|receipt| receipt.stage())
}

/// The author of an import, or a process that embeds a replica, submits again what was not answered.
#[test]
fn p06_what_an_abandoned_history_had_accepted_is_not_committed_again_by_an_author_that_numbers_its_own() {
    let (temp, other) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let all: Vec<Txn> = (1..=2003).map(|counter| txn(ME, counter, &[("x", Some("1"))], vec![])).collect();
    let (_, shared) = writer(temp.path(), vec![generation(1, 0)], &all);
    // Only the last ones are kept, too far from the start for their counters.
    {
        let mut outbox = shared.outbox_mut();
        for txn in &all[2000..] {
            outbox.insert(Arc::new(txn.clone()));
        }
        entries(&all).iter().for_each(|entry| drop(outbox.handle_applied(entry.seq, &entry.body)));
        outbox.insert(Arc::new(txn(ME, 2004, &[("x", Some("2"))], vec![])));
    }
    let lineage = vec![generation(1, 0), generation(2, 0)];
    let (mut writer, present) = writer(other.path(), lineage, &[]);
    let mut requeued = {
        let outbox = shared.outbox();
        let again: Vec<Arc<Txn>> = outbox.kept().map(|kept| Arc::clone(&kept.txn)).collect();
        let (decided, lost, reason) = (BTreeMap::new(), Lost::after(Seq(0)), Reason::IdentityReused);
        let leaving = Leaving { decided: &decided, again, archived: Vec::new(), reason, lost: &lost };
        outbox.requeued(leaving, || Origin([7; 16]))
    };
    accepted_before::note(&shared, &present.state(), &mut requeued).expect("reads");
    assert!(requeued.pending().all(|txn| txn.id.origin == Origin([7; 16])), "they have another identity");
    assert_eq!(requeued.depth(), 4);
    let (origin, other) = (id(ME, 1).origin, id(OTHER, 1).origin);
    let known = |outbox: &Outbox| (outbox.taken(origin).0, outbox.answered_before(origin).0, outbox.taken(other).0);
    assert_eq!(known(&requeued), (2004, 2004, 0));
    // The journal has it.
    let frames: Vec<_> = frames_of(&requeued, None).collect();
    let (read, _) = restore(&frames, &present.state(), Outbox::keeping()).expect("journal is valid");
    assert_eq!(known(&read), (2004, 2004, 0));
    *present.outbox_mut() = requeued;
    let mut again = |counter| {
        let Txn { id, ops, .. } = txn(ME, counter, &[("x", Some("1"))], vec![]);
        submit(&mut writer, Draft { id: Some(id), ops, ..Draft::default() })
    };
    assert_eq!(again(1).expect("known"), Stage::Acknowledged(Seq(0)), "it is archived");
    assert_eq!(again(2001).expect("known"), Stage::Durable, "it waits under another identity");
    assert_eq!(again(2004).expect("known"), Stage::Durable);
    assert_eq!(present.outbox().depth(), 4, "nothing was accepted again");
    assert!(matches!(again(2006), Err(SubmitError::Gap { expected: OriginCounter(2005), .. })));
    assert_eq!(again(2005).expect("is new"), Stage::Durable);
    assert_eq!(present.outbox().depth(), 5);
    // The datastore has none of the earlier ones, which are not missing.
    assert_eq!(present.outbox_mut().note_gap(origin, OriginCounter(1)), 0);
    let filled = present.outbox().gap_before(&txn(ME, 2005, &[], vec![]), None).expect("a counter to fill");
    assert_eq!((filled.id, filled.ops.len()), (id(ME, 1), 0));
}

#[test]
fn p08_a_change_that_was_read_in_a_lost_history_is_not_made_upon_the_present_one() {
    let temp = tempfile::tempdir().expect("temp dir");
    let base = txn(OTHER, 1, &[("x", Some("1"))], vec![]);
    let (mut writer, shared) = writer(temp.path(), vec![generation(1, 0)], &[base]);
    let before = shared.histories.present();
    let draft = |read, read_in, is_judged_upstream| Draft {
        ops: txn(ME, 1, &[("x", Some("2"))], vec![]).ops,
        conditions: vec![version("x", read)],
        read_in: Some(read_in),
        is_judged_upstream,
        ..Draft::default()
    };
    // The state was ahead, and is exchanged for one that assigns its sequences again.
    let (steps, receiver) = std::sync::mpsc::channel();
    let (prepared, _written) = tokio::sync::oneshot::channel();
    let (installed, _done) = tokio::sync::oneshot::channel();
    steps.send(Step::Prepare(Box::new(|| Ok(Outbox::keeping())), prepared)).expect("is received");
    steps.send(Step::Install(Seq(0), installed)).expect("is received");
    writer.handle(vec![Request::Exchange(receiver)]).expect("exchanged");
    let refused = submit(&mut writer, draft(1, before, false));
    assert!(matches!(refused, Err(SubmitError::Condition(_))), "{refused:?}");
    // A transaction that its author has numbered, or that only the datastore checks, is pushed but cannot be committed.
    submit(&mut writer, draft(1, before, true)).expect("is accepted");
    let pending: Vec<Condition> = shared.outbox().pending().flat_map(|txn| txn.conditions.clone()).collect();
    assert!(pending.len() == 1 && pending[0].is_upon_lost(), "{pending:?}");
    let (mut writer, shared) = self::writer(&temp.path().join("again"), vec![generation(1, 0)], &[]);
    submit(&mut writer, draft(1, shared.histories.present(), false)).expect("was read in the present history");
}

#[test]
fn p06_what_was_committed_is_known_again_under_rewritten_conditions() {
    let temp = tempfile::tempdir().expect("temp dir");
    let given = txn(ME, 1, &[("x", Some("1"))], vec![]);
    let rewritten = Txn { conditions: vec![absent("x")], ..given.clone() };
    let draft = |value: &'static str| Draft {
        ops: txn(ME, 1, &[("x", Some(value))], vec![]).ops,
        id: Some(given.id),
        ..Draft::default()
    };
    let recovered = vec![generation(1, 0), generation(2, 0)];
    let cases = [(recovered, "1", true), (vec![generation(1, 0)], "1", false), (vec![generation(1, 0)], "2", false)];
    for (number, (lineage, value, is_it)) in cases.into_iter().enumerate() {
        let directory = temp.path().join(number.to_string());
        let (mut writer, _) = writer(&directory, lineage, std::slice::from_ref(&rewritten));
        let stage = submit(&mut writer, draft(value)).expect("is known");
        let expected =
            if is_it { Stage::Acknowledged(Seq(1)) } else { Stage::Rejected(Seq(1), Reason::IdentityReused) };
        assert_eq!(stage, expected, "case {number}");
    }
}
