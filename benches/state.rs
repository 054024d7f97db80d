//! Measures how fast a state applies small operations: `cargo bench --bench state [OPERATIONS]`.

use std::time::Instant;

use bytes::Bytes;
use gravwell_model::{
    Collection, Entry, EntryBody, Generation, Key, LogId, MemberName, Op, Origin, OriginCounter, Seq, Txn, TxnId,
};
use gravwell_state::StateStore;

const BATCH: u64 = 1024;

fn entry(seq: u64, key: u64, collection: &Collection, member: &MemberName, settled: u64) -> Entry {
    let key = Key::new(format!("object-{key:08}")).expect("key");
    let value = Bytes::from(format!("{{\"name\":\"value of the object\",\"revision\":{seq:012},\"enabled\":true}}"));
    let txn = Txn {
        id: TxnId { origin: Origin([(seq % 8) as u8; 16]), counter: OriginCounter(seq) },
        settled: OriginCounter(settled),
        time_ms: 0,
        note: Bytes::new(),
        conditions: vec![],
        ops: vec![Op::Put { collection: collection.clone(), key, value }],
    };
    Entry { seq: Seq(seq), time_ms: seq, member: member.clone(), body: EntryBody::Commit(txn) }
}

fn main() {
    let cache = std::env::var("CACHE_MIB").ok().and_then(|mib| mib.parse::<u64>().ok()).unwrap_or(32) << 20;
    let operations = std::env::args().find_map(|arg| arg.parse::<u64>().ok()).unwrap_or(1_000_000);
    let dir = tempfile::tempdir().expect("dir");
    let store = StateStore::open(dir.path(), cache).expect("open");
    store.init(LogId([1; 16]), Generation(1), vec![]).expect("init");
    let collection = Collection::new("objects").expect("name");
    let member = MemberName::new("bench").expect("name");
    let mut seq = 0;
    let mut phase = |name: &str, key_of: &dyn Fn(u64) -> u64, batch: u64, operations: u64| {
        let start = Instant::now();
        let mut applying = std::time::Duration::ZERO;
        for _ in 0..operations / batch {
            let entries = (0..batch).map(|i| entry(seq + 1 + i, key_of(seq + 1 + i), &collection, &member, 0));
            let entries = entries.collect::<Vec<_>>();
            seq += batch;
            let began = Instant::now();
            store.apply(&entries, [0; 16]).expect("apply");
            applying += began.elapsed();
        }
        let rate = (operations / batch * batch) as f64 / applying.as_secs_f64();
        println!("{name:<36} {rate:>10.0} operations/s ({:.2} s with creation)", start.elapsed().as_secs_f64());
    };
    let scattered = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    phase("new keys in order, 1,024 per batch", &|n| n, BATCH, operations);
    phase("20,000 keys repeatedly, 1,024 per batch", &|n| scattered(n) % 20_000, BATCH, operations);
    phase("scattered keys, 1,024 per batch", &|n| scattered(n) % operations, BATCH, operations);
    phase("scattered keys, 64 per batch", &|n| scattered(n) % operations, 64, operations / 2);
    phase("scattered keys, one by one", &|n| scattered(n) % operations, 1, operations / 20);
    let start = Instant::now();
    store.persist().expect("persist");
    println!("persist {:.3} s", start.elapsed().as_secs_f64());
    let start = Instant::now();
    let report = store.check().expect("check");
    assert_eq!(report.damage, vec![]);
    let rate = report.rows as f64 / start.elapsed().as_secs_f64();
    println!("check of {} rows {rate:.0} rows/s; {} bytes on disk", report.rows, store.disk_bytes());
    let start = Instant::now();
    drop(store);
    let store = StateStore::open(dir.path(), cache).expect("open");
    println!("close and open {:.3} s at {}", start.elapsed().as_secs_f64(), store.meta().expect("meta").seq);
}
