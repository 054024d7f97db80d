//! Tests that span several parts of a replica.

mod deleted;
mod evidence;
mod exchange;
mod leaving;
mod losses;
mod schedules;
mod swap;
mod witnesses;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::applier::Applier;
use super::directory::{Access, Directory, StateStorage};
use super::shared::ReplicaState;
use gravwell_model::{
    Chain, Collection, Entry, EntryBody, Generation, Key, LineageEntry, LogId, MemberName, Op, Origin, OriginCounter,
    Seq, Txn, TxnId,
};
use gravwell_protocol::outbox::Outbox;
use gravwell_state::StateStore;

const CACHE_BYTES: u64 = 1 << 20;

fn generation(number: u64, shared_to: u64) -> LineageEntry {
    let generation = Generation(number);
    LineageEntry { generation, shared_to: Seq(shared_to) }
}

fn entry(seq: u64, value: &'static str) -> Entry {
    let op = Op::Put {
        collection: Collection::new("c").expect("name"),
        key: Key::new(seq.to_string()).expect("key"),
        value: Bytes::from_static(value.as_bytes()),
    };
    let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(seq) };
    let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops: vec![op] };
    Entry { seq: Seq(seq), time_ms: seq, member: MemberName::new("m").expect("name"), body: EntryBody::Commit(txn) }
}

/// Fills a state of one log up to `seq`; all objects have the value `value`.
fn state(store: &StateStore, number: u64, seq: u64, value: &'static str) {
    store.init(LogId([1; 16]), generation(number, 0).generation, vec![generation(number, 0)]).expect("begins");
    let entries: Vec<Entry> = (1..=seq).map(|seq| entry(seq, value)).collect();
    store.apply(&entries, Chain::default()).expect("applies");
    store.persist().expect("persists");
}

/// Creates such a state in a directory.
fn state_in(path: &Path, number: u64, seq: u64, value: &'static str) -> StateStore {
    let store = StateStore::open(path, CACHE_BYTES).expect("opens");
    state(&store, number, seq, value);
    store
}

fn directory(path: &Path) -> Directory {
    // The former user of the directory may not have released it yet.
    Directory::open(path, Access::Serve, Duration::from_secs(30)).expect("opens")
}

fn applier(state: StateStore, home: impl StateStorage + 'static) -> (Applier, Arc<ReplicaState>) {
    let shared = Arc::new(ReplicaState::new(state, Outbox::default(), None));
    (Applier::new(Arc::clone(&shared), Box::new(home), tokio::sync::mpsc::channel(8).0), shared)
}
