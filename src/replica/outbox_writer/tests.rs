use std::path::Path;

use super::*;
use crate::outbox_records::{KIND_CLOSED, KIND_REJECTED, KIND_RETRY, KIND_TXN, encoded, restore, retry, to_bytes};
use crate::shared::ReplicaState;
use gravwell_env::memory_fs::{MemoryFs, Survival};
use gravwell_model::{Chain, Collection, Entry, EntryBody, Generation, Key, LineageEntry, LogId, MemberName};
use gravwell_state::StateStore;

#[test]
fn p06_a_transaction_that_comes_twice_in_one_batch_is_not_taken_for_committed() {
    let mut writer = writer_on(&MemoryFs::new(), StateStore::in_memory(), Outbox::default());
    let shared = Arc::clone(&writer.shared);
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
    let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
    let draft = Draft { ops: vec![op], id: Some(id), ..Draft::default() };
    let (requests, answers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (reply, answer) = oneshot::channel();
            (Request::Submit(draft.clone(), reply), answer)
        })
        .unzip();
    writer.handle(requests).expect("written");
    for mut answer in answers {
        let receipt = answer.try_recv().expect("answered").expect("taken");
        assert_eq!(receipt.stage(), Stage::Durable);
    }
    assert_eq!((writer.journal.records(), shared.outbox().depth()), (1, 1));
}

#[test]
fn p06_a_state_that_is_to_be_fetched_again_says_nothing_of_what_was_decided() {
    let state = StateStore::in_memory();
    let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
    state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
    let delete = |key: &str| {
        vec![Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new(key).expect("key") }]
    };
    let (given, altered) = (delete("k"), delete("altered during apply"));
    let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: altered };
    let member = MemberName::new("m").expect("name");
    let entry = Entry { seq: Seq(1), time_ms: 1, member, body: EntryBody::Commit(txn) };
    state.apply(&[entry], Chain::default()).expect("applies");
    let mut writer = writer_on(&MemoryFs::new(), state, Outbox::default());
    let shared = Arc::clone(&writer.shared);
    let mut submit = || {
        let (reply, mut answer) = oneshot::channel();
        let draft = Draft { ops: given.clone(), id: Some(id), ..Draft::default() };
        writer.handle(vec![Request::Submit(draft, reply)]).expect("written");
        answer.try_recv().expect("answered").map(|receipt| receipt.stage())
    };
    assert_eq!(submit().expect("identity is known"), Stage::Rejected(Seq(1), Reason::IdentityReused));
    shared.request_resync("state differs".into());
    assert!(matches!(submit(), Err(SubmitError::NotNow(_))), "the log may have committed it");
    shared.note_resynced();
    assert!(submit().is_ok());
}

#[test]
fn p07_a_retry_is_one_record_and_those_of_two_are_still_read() {
    let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
    let txn = |counter| {
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let settled = OriginCounter(0);
        Txn { id, settled, time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op.clone()] }
    };
    let rejection = to_bytes(&RejectedV1 { id: txn(1).id, seq: Seq(5), reason: Reason::IdentityReused });
    let made = [(KIND_TXN, encoded(&txn(1))), (KIND_REJECTED, rejection)];
    let state = StateStore::in_memory();
    let of = |more: &[(u8, Vec<u8>)]| {
        let entries = [&made[..], more].concat();
        let (outbox, _) = restore(&entries, &state, Outbox::default()).expect("journal is valid");
        (outbox.depth(), outbox.rejected().len())
    };
    assert_eq!(of(&[]), (0, 1));
    assert_eq!(of(&[(KIND_RETRY, retry(txn(1).id, &txn(2)))]), (1, 0));
    assert_eq!(of(&[(KIND_TXN, encoded(&txn(2))), (KIND_CLOSED, to_bytes(&txn(1).id))]), (1, 0));
    assert_eq!(of(&[(KIND_TXN, encoded(&txn(1)))]), (1, 0), "resubmitted by its client");
}

#[test]
fn p14_nothing_is_accepted_after_a_failure_that_ends_the_process() {
    let mut writer = writer_on(&MemoryFs::new(), StateStore::in_memory(), Outbox::default());
    let shared = Arc::clone(&writer.shared);
    let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
    let mut submit = || {
        let (reply, mut answer) = oneshot::channel();
        let draft = Draft { ops: vec![op.clone()], ..Draft::default() };
        writer.handle(vec![Request::Submit(draft, reply)]).expect("written");
        answer.try_recv().expect("answered").map(|_| ())
    };
    submit().expect("is accepted");
    shared.watch.fail("the state cannot be written");
    assert!(matches!(submit(), Err(SubmitError::Failed)));
    assert!(shared.problem().contains("the state cannot be written"), "{}", shared.problem());
    assert_eq!(shared.outbox().depth(), 1);
}

/// Returns a writer on a journal in memory.
fn writer_on(fs: &MemoryFs, state: StateStore, outbox: Outbox) -> OutboxWriter {
    let (journal, _) = Journal::open(Arc::new(fs.clone()), Path::new(OUTBOX)).expect("opens");
    let shared = Arc::new(ReplicaState::new(state, outbox, None));
    OutboxWriter::new(shared, journal, Arc::new(gravwell_env::SystemClock), Arc::new(gravwell_env::SystemEntropy))
}

const OUTBOX: &str = "/outbox";

fn put(key: &str) -> (Request, oneshot::Receiver<Result<Receipt, SubmitError>>) {
    let (reply, answer) = oneshot::channel();
    let (collection, key) = (Collection::new("c").expect("name"), Key::new(key).expect("key"));
    let draft = Draft { ops: vec![Op::Put { collection, key, value: vec![7; 1000].into() }], ..Draft::default() };
    (Request::Submit(draft, reply), answer)
}

fn puts(writer: &mut OutboxWriter, key: &str) -> Result<Receipt, SubmitError> {
    let (request, mut answer) = put(key);
    writer.handle(vec![request]).expect("handles the request");
    answer.try_recv().expect("answered")
}

/// Returns the records that a power cut would leave in the journal.
fn left_in(fs: &MemoryFs) -> Vec<(u8, Vec<u8>)> {
    let left = fs.crash(Survival::Nothing, 1);
    left.set_capacity(None);
    let (_, records) = Journal::open(Arc::new(left), Path::new(OUTBOX)).expect("opens");
    records.into_iter().map(|record| (record.kind, record.payload)).collect()
}

/// Returns the keys that the transactions in the journal write.
fn keys_in(fs: &MemoryFs) -> Vec<String> {
    let (outbox, _) = restore(&left_in(fs), &StateStore::in_memory(), Outbox::default()).expect("journal is valid");
    outbox.pending().flat_map(|txn| &txn.ops).map(|op| op.key().to_string()).collect()
}

fn other_outbox(key: &str) -> Outbox {
    let mut outbox = Outbox::default();
    let (collection, key) = (Collection::new("c").expect("name"), Key::new(key).expect("key"));
    let ops = vec![Op::Put { collection, key, value: vec![7; 1000].into() }];
    let id = TxnId { origin: Origin([9; 16]), counter: OriginCounter(1) };
    let (settled, note, conditions) = (OriginCounter(0), Bytes::new(), Vec::new());
    outbox.insert(Arc::new(Txn { id, settled, time_ms: 0, note, conditions, ops }));
    outbox
}

#[test]
fn p07_a_full_disk_ends_no_member_that_leaves_a_history() {
    let fs = MemoryFs::new();
    let mut writer = writer_on(&fs, StateStore::in_memory(), Outbox::default());
    puts(&mut writer, "a").expect("is accepted");
    // There is no room for the outbox that is to replace this one.
    fs.set_capacity(Some(fs.used_bytes() + 100));
    let (steps, receiver) = std::sync::mpsc::channel();
    let (reply, mut answer) = oneshot::channel();
    steps.send(Step::Prepare(Box::new(|| Ok(other_outbox("other"))), reply)).expect("is received");
    drop(steps);
    writer.handle(vec![Request::Exchange(receiver)]).expect("handles the request");
    assert!(answer.try_recv().expect("answered").is_err());
    fs.set_capacity(None);
    puts(&mut writer, "b").expect("is accepted");
    assert_eq!(keys_in(&fs), ["a", "b"]);
}

#[test]
fn p01_the_successor_of_an_outbox_has_all_that_was_accepted_before() {
    let fs = MemoryFs::new();
    let mut writer = writer_on(&fs, StateStore::in_memory(), Outbox::default());
    let shared = Arc::clone(&writer.shared);
    let (steps, receiver) = std::sync::mpsc::channel();
    let (prepared, _written) = oneshot::channel();
    let present = move || {
        let mut outbox = Outbox::default();
        for txn in shared.outbox().pending() {
            outbox.insert(Arc::clone(txn));
        }
        Ok(outbox)
    };
    steps.send(Step::Prepare(Box::new(present), prepared)).expect("is received");
    let (installed, _done) = oneshot::channel();
    steps.send(Step::Install(Seq(0), installed)).expect("is received");
    // Accepted in the same batch, on either side of the exchange.
    let (before, mut first) = put("a");
    let (after, mut second) = put("b");
    writer.handle(vec![before, Request::Exchange(receiver), after]).expect("handles the requests");
    assert!([&mut first, &mut second].into_iter().all(|answer| answer.try_recv().expect("answered").is_ok()));
    assert_eq!(keys_in(&fs), ["a", "b"]);
    assert_eq!(writer.shared.outbox().depth(), 2);
}

#[test]
fn p07_an_outbox_that_finds_no_room_to_be_written_back_accepts_nothing_until_there_is_some() {
    let fs = MemoryFs::new();
    let mut writer = writer_on(&fs, StateStore::in_memory(), Outbox::default());
    puts(&mut writer, "a").expect("is accepted");
    let (steps, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let exchanging = scope.spawn(|| writer.handle(vec![Request::Exchange(receiver)]));
        let (reply, answer) = oneshot::channel();
        steps.send(Step::Prepare(Box::new(|| Ok(other_outbox("other"))), reply)).expect("is received");
        answer.blocking_recv().expect("answered").expect("space is left");
        // The state is not exchanged, and the disk is full by now.
        fs.set_capacity(Some(fs.used_bytes() + 100));
        drop(steps);
        exchanging.join().expect("no panic").expect("handles the request");
    });
    assert_eq!(keys_in(&fs), ["other"], "as after a crash at this point");
    assert!(matches!(puts(&mut writer, "b"), Err(SubmitError::Disk(_))));
    assert_eq!(keys_in(&fs), ["other"]);
    fs.set_capacity(None);
    puts(&mut writer, "c").expect("is accepted");
    assert_eq!(keys_in(&fs), ["a", "c"]);
}

#[test]
fn p05_sequences_are_written_with_the_next_transaction_or_soon() {
    let (fs, state) = (MemoryFs::new(), StateStore::in_memory());
    let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq::ZERO }];
    state.init(LogId([1; 16]), Generation(1), lineage).expect("begins");
    let mut writer = writer_on(&fs, state.clone(), Outbox::keeping());
    let commits = |writer: &OutboxWriter, seq| {
        let pending: Vec<_> = writer.shared.outbox().pending().map(|txn| Txn::clone(txn)).collect();
        for (txn, seq) in pending.into_iter().zip(seq..) {
            let member = MemberName::new("m").expect("name");
            let entry = Entry { seq: Seq(seq), time_ms: seq, member, body: EntryBody::Commit(txn) };
            state.apply(std::slice::from_ref(&entry), Chain::default()).expect("applies");
            writer.shared.outbox_mut().handle_applied(entry.seq, &entry.body);
        }
    };
    let known = || {
        let (outbox, _) = restore(&left_in(&fs), &state, Outbox::keeping()).expect("journal is valid");
        outbox.exact_sequences().map(|(_, seq)| seq.0).collect::<Vec<_>>()
    };
    puts(&mut writer, "a").expect("is accepted");
    puts(&mut writer, "b").expect("is accepted");
    commits(&writer, 1);
    writer.handle(vec![Request::Committed]).expect("handles the request");
    assert_eq!((writer.journal.records(), known()), (2, vec![2]), "no additional sync");
    puts(&mut writer, "c").expect("is accepted");
    assert_eq!((writer.journal.records(), known()), (4, vec![1, 2]));
    commits(&writer, 3);
    writer.complete().expect("handles the request");
    writer.complete().expect("handles the request");
    assert_eq!((writer.journal.records(), known()), (5, vec![1, 2, 3]));
    // The journal is written anew.
    writer.holds_prepared = true;
    writer.take_back().expect("handles the request");
    assert_eq!((writer.journal.records(), known()), (4, vec![1, 2, 3]));
    writer.complete().expect("handles the request");
    assert_eq!(writer.journal.records(), 4);
}

#[test]
fn p06_a_rejection_is_dealt_with_once_even_by_two_in_one_batch() {
    let mut writer = writer_on(&MemoryFs::new(), StateStore::in_memory(), Outbox::default());
    let shared = Arc::clone(&writer.shared);
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
    let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
    let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] };
    let rejected = RejectedTxn { txn: Arc::new(txn), seq: Seq(1), reason: Reason::IdentityReused };
    shared.outbox_mut().restore_rejected(rejected);
    let mut answers = Vec::new();
    let mut retry = || {
        let (reply, answer) = oneshot::channel();
        answers.push(answer);
        Request::Retry(id, Resubmission::default(), reply)
    };
    let (first, second) = (retry(), retry());
    let (reply, mut dismissed) = oneshot::channel();
    writer.handle(vec![first, second, Request::Dismiss(id, reply)]).expect("written");
    let taken: Vec<bool> = answers.iter_mut().map(|answer| answer.try_recv().expect("answered").is_ok()).collect();
    assert_eq!((taken, shared.outbox().depth()), (vec![true, false], 1));
    assert!(matches!(dismissed.try_recv().expect("answered"), Err(SubmitError::NotRejected(_))));
}
