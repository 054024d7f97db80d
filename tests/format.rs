//! On-disk formats: golden files of every released format, and the tables of `log-format.md` compared with the code.
//!
//! Golden files are created once, by the version that is released with them, and never changed: a failure here means
//! that this version cannot read files written by another one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use gravwell_backup::repository::{Repository, Secret};
use gravwell_backup::restore::{RestoreEnd, rehearse};
use gravwell_backup::store::LocalStore;
use gravwell_chunks::{ChunkStore, Part, StoreOptions, decode_index, encode_index, format as pack, manifest};
use gravwell_config::datastore::DatastoreConfig;
use gravwell_env::{Fs, MemoryFs, SystemClock};
use gravwell_log::backup_stream::End;
use gravwell_log::format::{self, FileHeader, Footer, HeadSlot};
use gravwell_log::journal::Journal;
use gravwell_log::{Log, LogOptions, verify};
use gravwell_model::codec::audit::{Act, AuditEvent, AuditOp, AuditRecord, LogPoint, Value};
use gravwell_model::codec::frame::{self, FrameParts, encode_frame};
use gravwell_model::codec::payload::{decode_entry, decode_frames, encode_entry};
use gravwell_model::{
    ChunkId, Collection, Condition, Deletions, Digest, Entry, EntryBody, Generation, Key, LineageEntry, LogId,
    MemberName, Op, Origin, OriginCounter, Reason, Seq, Txn, TxnId,
};
use gravwell_transport::trust::{BackupKey, RecoveryKey};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("tests/golden/v1").join(name)
}

/// Path of a golden file of a structure that has a second version.
fn golden_v2(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("tests/golden/v2").join(name)
}

/// Compares with a golden file. If `GOLDEN_CREATE` is set, a missing file is created.
fn check_golden(name: &str, bytes: &[u8]) {
    check_file(&golden(name), bytes);
}

fn check_file(path: &Path, bytes: &[u8]) {
    match std::fs::read(path) {
        Ok(expected) => assert_eq!(bytes, expected, "{} is not written as it was released", path.display()),
        Err(_) if std::env::var_os("GOLDEN_CREATE").is_some() => std::fs::write(path, bytes).expect("writes"),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// Like [`check_golden`], for a format that was added later. Returns the bytes of the file.
fn check_golden_v2(name: &str, bytes: &[u8]) -> Vec<u8> {
    check_file(&golden_v2(name), bytes);
    bytes.to_vec()
}

fn entries() -> Vec<Entry> {
    let (collection, key) = (Collection::new("users").expect("name"), Key::new("käte").expect("key"));
    let id = |counter| TxnId { origin: Origin([0xa1; 16]), counter: OriginCounter(counter) };
    let member = MemberName::new("web-1.example").expect("name");
    let at = |seq, body| Entry { seq: Seq(seq), time_ms: 1_700_000_000_000 + seq, member: member.clone(), body };
    let txn = |counter, conditions, ops| Txn {
        id: id(counter),
        settled: OriginCounter(counter / 2),
        time_ms: 1_699_999_999_000,
        note: Bytes::from_static(b"admin from 192.0.2.1"),
        conditions,
        ops,
    };
    let put = Op::Put { collection: collection.clone(), key: key.clone(), value: Bytes::from_static(b"{\"id\":300}") };
    let empty = Op::Put { collection: collection.clone(), key: key.clone(), value: Bytes::new() };
    let delete = Op::Delete { collection: collection.clone(), key: key.clone() };
    let conditions = vec![
        Condition::Absent { collection: collection.clone(), key: key.clone() },
        Condition::Present { collection: collection.clone(), key: key.clone() },
        Condition::Version { collection, key, version: Seq(300) },
    ];
    let reject = |counter, reason| EntryBody::Reject { id: id(counter), settled: OriginCounter(0), reason };
    let unknown = Entry {
        seq: Seq(7),
        time_ms: 0,
        member: MemberName::new("unknown").expect("name"),
        body: EntryBody::Unknown { kind: 9, payload: Bytes::from_static(b"of a later version") },
    };
    vec![
        at(1, EntryBody::Commit(txn(1, conditions, vec![put, delete]))),
        at(2, EntryBody::Commit(txn(2, vec![], vec![empty]))),
        at(3, reject(3, Reason::ConditionFailed { condition: "absent users/käte".into(), found: Some(Seq(2)) })),
        at(4, reject(4, Reason::LimitExceeded { message: "too long".into() })),
        at(5, reject(5, Reason::Forbidden { message: "readers cannot push".into() })),
        at(6, reject(6, Reason::IdentityReused)),
        unknown,
    ]
}

fn frames() -> (Vec<u8>, [u8; 16]) {
    let (mut bytes, mut chain) = (Vec::new(), frame::CHAIN_START);
    for (entry, index) in entries().iter().zip(0..) {
        chain = encode_entry(entry, &chain, index, 0, &mut bytes).expect("encodes");
    }
    (bytes, chain)
}

fn file_header() -> FileHeader {
    FileHeader {
        flags: 0,
        log_id: LogId([0x10; 16]),
        generation: Generation(2),
        first: Seq(1),
        covered_last: Seq(0),
        chain_before: frame::CHAIN_START,
    }
}

fn footer(bytes: &[u8], chain: [u8; 16]) -> Footer {
    Footer {
        count: 7,
        last: Seq(7),
        frame_chain: chain,
        chain_after: chain,
        time_first: 1_700_000_000_001,
        time_last: 1_700_000_000_006,
        frames_bytes: bytes.len() as u64,
        digest: Digest::ZERO,
        deletions_after: None,
    }
}

fn head_slot(counter: u64, chain: [u8; 16]) -> HeadSlot {
    let born = |generation| LineageEntry { generation: Generation(generation), shared_to: Seq(0) };
    HeadSlot {
        counter,
        log_id: LogId([0x10; 16]),
        generation: Generation(2),
        seq: Seq(7),
        chain,
        horizon: Seq(0),
        lineage: vec![born(1), born(2)],
    }
}

#[test]
fn p12_records_are_written_and_read_as_released() {
    let (bytes, chain) = frames();
    check_golden("records.bin", &bytes);
    let released = Bytes::from(std::fs::read(golden("records.bin")).expect("reads"));
    assert_eq!(decode_frames(&released, (Seq(0), frame::CHAIN_START)).expect("decodes"), (entries(), chain));
}

#[test]
fn p12_a_released_log_opens_and_verifies() {
    let (bytes, chain) = frames();
    let segment = [&file_header().encode()[..], &bytes, &footer(&bytes, chain).encode()].concat();
    check_golden("segment.bin", &segment);
    check_golden("head.bin", &[head_slot(4, chain).encode(), head_slot(3, chain).encode()].concat());
    let log = opened(&golden("segment.bin"), &golden("head.bin"));
    assert_eq!((log.log_id(), log.generation(), log.head()), (LogId([0x10; 16]), Generation(2), (Seq(7), chain)));
}

/// Opens a log with one golden segment and a head file, and compares its entries.
fn opened(segment: &Path, head: &Path) -> Log {
    let fs = MemoryFs::new();
    let dir = Path::new("/log");
    fs.create_dir_all(dir).expect("creates");
    for (released, name) in [(segment, format!("seg-{:020}-{:020}.log", 1, 7)), (head, "head".into())] {
        let file = fs.create(&dir.join(name)).expect("creates");
        file.write_at(&std::fs::read(released).expect("reads"), 0).expect("writes");
        file.sync_data().expect("syncs");
    }
    let report = verify(&fs, dir, &mut |_, _| {});
    assert_eq!((report.damages, report.records, report.head), (vec![], 7, Seq(7)));
    let (log, _) = Log::open(Arc::new(fs), dir, LogOptions::default()).expect("opens");
    let found: Vec<_> = log.reader().entries(Seq(0), Seq(7)).collect::<Result<_, _>>().expect("reads");
    assert_eq!(found, entries());
    log
}

#[test]
fn p12_a_log_in_a_generation_of_more_than_32_bits_opens() {
    let (bytes, chain) = frames();
    let generation = Generation((1_795_000_000_123 << 11) | 0x345);
    let header = FileHeader { generation, ..file_header() };
    let segment = [&header.encode()[..], &bytes, &footer(&bytes, chain).encode()].concat();
    let entry = |generation, shared_to| LineageEntry { generation, shared_to: Seq(shared_to) };
    let lineage = vec![entry(Generation(1), 0), entry(Generation(1_764_000_000), 4), entry(generation, 5)];
    let slot = |counter| HeadSlot { generation, lineage: lineage.clone(), ..head_slot(counter, chain) };
    let head = [slot(4).encode(), slot(3).encode()].concat();
    check_file(&golden_v2("log-segment.bin"), &segment);
    check_file(&golden_v2("log-head.bin"), &head);
    let log = opened(&golden_v2("log-segment.bin"), &golden_v2("log-head.bin"));
    assert_eq!((log.generation(), log.lineage(), log.head()), (generation, lineage, (Seq(7), chain)));
}

#[test]
fn p12_the_version_is_the_first_one_that_holds_the_generation() {
    let entry = |number| LineageEntry { generation: Generation(number), shared_to: Seq(3) };
    for (number, version) in [(1, 1), (u64::from(u32::MAX), 1), (u64::from(u32::MAX) + 1, 2), (Generation::MAX.0, 2)] {
        let header = FileHeader { generation: Generation(number), ..file_header() };
        assert_eq!((header.encode()[format::AT_FORMAT], FileHeader::decode(&header.encode())), (version, Ok(header)));
        let most = if version == 1 { format::NARROW_LINEAGE_MAX } else { format::LINEAGE_MAX };
        let mut slot = head_slot(7, [3; 16]);
        (slot.generation, slot.lineage) = (Generation(number), vec![entry(number); most]);
        assert_eq!((slot.encode()[format::AT_FORMAT], HeadSlot::decode(&slot.encode())), (version, Ok(slot)));
    }
    let sealed = |mut bytes: Vec<u8>, at: usize, number: u64| {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        let crc_at = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..].copy_from_slice(&crc.to_le_bytes());
        bytes
    };
    let wide = Generation(1 << 40);
    let header = FileHeader { generation: wide, ..file_header() }.encode().to_vec();
    let slot = HeadSlot { generation: wide, lineage: vec![entry(wide.0)], ..head_slot(7, [3; 16]) }.encode();
    let beyond = Generation::MAX.0 + 1;
    assert!(FileHeader::decode(&sealed(header, format::AT_GENERATION, beyond)).is_err());
    for at in [format::AT_SLOT_WIDE_GENERATION, format::AT_SLOT_LINEAGE] {
        assert!(HeadSlot::decode(&sealed(slot.clone(), at, beyond)).is_err(), "{at}");
    }
}

#[test]
fn p12_a_compacted_segment_says_which_deletions_it_has() {
    let (collection, key) = (Collection::new("users").expect("name"), Key::new("käte").expect("key"));
    let mut entry = entries().remove(1);
    if let EntryBody::Commit(txn) = &mut entry.body {
        txn.ops = vec![Op::Delete { collection: collection.clone(), key: key.clone() }];
    }
    let mut bytes = Vec::new();
    let chain = encode_entry(&entry, &frame::CHAIN_START, 0, frame::flag::PARTIAL, &mut bytes).expect("encodes");
    let header = FileHeader { flags: format::FLAG_COMPACTED, covered_last: Seq(7), ..file_header() };
    let footer = Footer { count: 1, chain_after: [7; 16], deletions_after: Some(Seq(1)), ..footer(&bytes, chain) };
    let segment = check_golden_v2("segment-base.bin", &[&header.encode()[..], &bytes, &footer.encode()].concat());
    let head = HeadSlot { chain: [7; 16], horizon: Seq(7), ..head_slot(4, chain) };
    let fs = MemoryFs::new();
    let dir = Path::new("/log");
    for (name, bytes) in [(format!("seg-{:020}-{:020}.log", 1, 7), segment), ("head".into(), head.encode().repeat(2))] {
        let file = fs.create(&dir.join(name)).expect("creates");
        file.write_at(&bytes, 0).expect("writes");
    }
    let (log, _) = Log::open(Arc::new(fs), dir, LogOptions::default()).expect("opens");
    let base = log.reader().base().expect("reads");
    assert_eq!((base.seq, base.deletions_after), (Seq(7), Seq(1)));
    // The deletions as sent from one state to another.
    let mut deletions = Deletions::after(Seq(1));
    deletions.restore((collection, key), Seq(2)).expect("a row");
    let sent = check_golden_v2("deletions.bin", &gravwell_model::codec::deletions::encode(&deletions));
    assert_eq!(gravwell_model::codec::deletions::decode(&sent), Ok(deletions));
}

#[test]
fn p12_golden_files_of_a_replicas_directory() {
    use gravwell_model::Position;
    use gravwell_model::codec::message::Welcome;
    use gravwell_replica::{Mark, Terms};
    let (log_id, generation) = (LogId([0x11; 16]), Generation(1_795_000_000));
    let position = Position { log_id, generation, seq: Seq(4711), chain: [0x22; 16], digest: Digest::ZERO };
    let mark = Mark::new("state-0002".into(), position, vec![(Origin([0xa1; 16]), OriginCounter(3))]);
    check_golden("high-water", mark.encode().as_bytes());
    let released = std::fs::read_to_string(golden("high-water")).expect("reads");
    assert_eq!(Mark::decode(&released), Ok(mark));
    let welcome = Welcome {
        version: 1,
        software: String::new(),
        member: "web-1.example".into(),
        role: "webserver".into(),
        log_id,
        generation,
        lineage: Vec::new(),
        head: Seq(0),
        horizon: Seq(0),
        verdict: None,
        heartbeat_ms: 5000,
        txn_bytes_max: 8 << 20,
        value_bytes_max: 4 << 20,
        key_bytes_max: 1024,
    };
    let place = tempfile::tempdir().expect("temp dir");
    Terms::of(&welcome).save(place.path()).expect("saves");
    check_golden("terms", &std::fs::read(place.path().join("terms")).expect("reads"));
    std::fs::copy(golden("terms"), place.path().join("terms")).expect("copies");
    assert_eq!(Terms::load(place.path()), Ok(Some(Terms::of(&welcome))));
}

/// The golden backups were created by `backup create` from a log that consists of the golden segment and head file.
#[test]
fn p12_a_released_backup_is_verified_and_restored() {
    let text = |name: &str| std::fs::read_to_string(golden(name)).expect("reads");
    let key: BackupKey = text("backup-keyed.key").parse().expect("a key");
    let recovery: RecoveryKey = text("backup-keyed.recovery").parse().expect("a key");
    let found = Repository::key_under(&LocalStore::new(&golden("backup-keyed")), &recovery, &key.name());
    assert_eq!(found.expect("reads"), Some(key.clone()), "the recovery key opens the copy that is there");
    let secrets = [
        ("backup-plain", Secret::None),
        ("backup-encrypted", Secret::Passphrase("correct horse")),
        ("backup-keyed", Secret::Key(&key)),
    ];
    for (name, secret) in secrets {
        let place = golden(name);
        let repository = Repository::open(Box::new(LocalStore::new(&place)), secret, false).expect("opens");
        let manifest = repository.manifests().expect("reads").0.pop().expect("a backup");
        let temp = tempfile::tempdir().expect("temp dir");
        let config = DatastoreConfig::for_dir(temp.path());
        let restored = |end| {
            rehearse(
                &repository,
                &manifest,
                temp.path(),
                &config,
                RestoreEnd { end, ..RestoreEnd::default() },
                &mut |_, _| {},
            )
            .expect("restores")
        };
        let whole = restored(None);
        assert_eq!((whole.seq, whole.digest, whole.records), (Seq(7), manifest.checkpoint.digest, 7));
        let part = restored(Some(End::Time(1_700_000_000_002)));
        assert_eq!((part.seq, part.objects, part.generation), (Seq(2), 1, Generation(3)));
    }
}

/// Returns one record of every event and of every kind of value.
fn audit_records() -> Vec<AuditRecord> {
    let member = MemberName::new("web-1.example").expect("name");
    let covered = |seq| LogPoint {
        log_id: LogId([0x10; 16]),
        generation: Generation(2),
        seq: Seq(seq),
        chain: [seq.to_le_bytes()[0]; 16],
    };
    let op =
        |is_delete, before, after| AuditOp {
            is_delete, collection: "users".into(), key: "käte".into(), before, after
        };
    let json = Value::Json(Bytes::from_static(b"{\"id\":300}"));
    let ops = vec![
        op(false, Value::None, json),
        op(true, Value::Unknown, Value::None),
        op(false, Value::Withheld(300), Value::None),
    ];
    let note = b"{\"uid\":1,\"user\":\"admin\"}".to_vec();
    let act = Act {
        kind: "login-failed".into(),
        happened_ms: 1_700_000_000_000,
        uid: Some(-1),
        user: "käte".into(),
        by: "admin".into(),
        from: "192.0.2.1".into(),
        what: "wrong password".into(),
        count: 3,
        id: "a1/7".into(),
    };
    let events = [
        AuditEvent::Commit { note, ops, more: 2 },
        AuditEvent::Reject { reason: Reason::IdentityReused },
        AuditEvent::Unknown { kind: 9 },
        AuditEvent::Gap { after: covered(3), reason: "compacted".into() },
        AuditEvent::Trimmed { to: Seq(0), chain: frame::CHAIN_START },
        AuditEvent::Act(act),
    ];
    let record = |(event, seq): (AuditEvent, u64)| AuditRecord {
        time_ms: 1_700_000_000_000 + seq,
        member: member.clone(),
        covered: covered(seq),
        event,
    };
    events.into_iter().zip(1..).map(record).collect()
}

#[test]
fn p12_a_released_audit_opens_and_verifies() {
    let (mut bytes, mut chain) = (Vec::new(), frame::CHAIN_START);
    for (record, seq) in audit_records().iter().zip(1..) {
        chain = encode_entry(&record.entry(Seq(seq)), &chain, 0, 0, &mut bytes).expect("encodes");
    }
    let header = FileHeader { flags: format::FLAG_TRIMMED, generation: Generation(1), ..file_header() };
    let lineage = vec![LineageEntry { generation: Generation(1), shared_to: Seq(0) }];
    let slot = |counter| HeadSlot {
        seq: Seq(6),
        generation: Generation(1),
        lineage: lineage.clone(),
        ..head_slot(counter, chain)
    };
    let segment = check_golden_v2("audit-segment.bin", &[&header.encode()[..], &bytes].concat());
    let head = check_golden_v2("audit-head.bin", &[slot(4).encode(), slot(3).encode()].concat());
    let fs = MemoryFs::new();
    let dir = Path::new("/audit");
    for (name, bytes) in [(format!("seg-{:020}-open.log", 1), segment), ("head".into(), head)] {
        fs.create(&dir.join(name)).expect("creates").write_at(&bytes, 0).expect("writes");
    }
    let report = verify(&fs, dir, &mut |_, _| {});
    assert_eq!((report.damages, report.records, report.head), (vec![], 6, Seq(6)));
    let options = gravwell_datastore::audit::store::options();
    let (log, _) = Log::open(Arc::new(fs), dir, options).expect("opens");
    let entries = log.reader().entries(Seq(0), Seq(6)).map(|entry| entry.expect("reads"));
    let found: Vec<_> = entries.map(|entry| AuditRecord::of(&entry).expect("decodes")).collect();
    assert_eq!(found, audit_records());
}

#[test]
fn p12_a_released_journal_opens() {
    let header = FileHeader { flags: format::FLAG_JOURNAL, generation: Generation(1), ..file_header() };
    let (mut bytes, mut chain) = (header.encode().to_vec(), frame::CHAIN_START);
    for (kind, seq) in [(16, 1), (17, 2), (18, 3)] {
        let parts = FrameParts { kind, flags: 0, batch_index: 0, seq: Seq(seq) };
        chain = encode_frame(parts, &chain, &[kind; 5], &mut bytes).expect("encodes");
    }
    check_golden("journal.bin", &bytes);
    let fs = MemoryFs::new();
    let file = fs.create(Path::new("/outbox/journal")).expect("creates");
    file.write_at(&std::fs::read(golden("journal.bin")).expect("reads"), 0).expect("writes");
    let (_, records) = Journal::open(Arc::new(fs), Path::new("/outbox")).expect("opens");
    let found: Vec<_> = records.into_iter().map(|record| (record.kind, record.payload)).collect();
    assert_eq!(found, [(16, vec![16; 5]), (17, vec![17; 5]), (18, vec![18; 5])]);
}

#[test]
fn p12_a_journal_with_a_head_opens() {
    let header =
        FileHeader { flags: format::FLAG_JOURNAL | format::FLAG_HEADED, generation: Generation(3), ..file_header() };
    let (mut bytes, mut chain) = (header.encode().to_vec(), frame::CHAIN_START);
    for (kind, seq) in [(16, 1), (17, 2), (19, 3)] {
        let parts = FrameParts { kind, flags: 0, batch_index: 0, seq: Seq(seq) };
        chain = encode_frame(parts, &chain, &[kind; 5], &mut bytes).expect("encodes");
    }
    let slot = |counter, generation, seq, chain| HeadSlot {
        counter,
        log_id: header.log_id,
        generation: Generation(generation),
        seq: Seq(seq),
        chain,
        horizon: Seq::ZERO,
        lineage: Vec::new(),
    };
    let head = [slot(8, 3, 3, chain).encode(), slot(7, 2, 9, [7; 16]).encode()].concat();
    let fs = MemoryFs::new();
    for (name, bytes) in [("journal", bytes), ("head", head)] {
        let bytes = check_golden_v2(&format!("outbox-{name}.bin"), &bytes);
        fs.create(&Path::new("/outbox").join(name)).expect("creates").write_at(&bytes, 0).expect("writes");
    }
    let (_, records) = Journal::open(Arc::new(fs), Path::new("/outbox")).expect("opens");
    let found: Vec<_> = records.into_iter().map(|record| (record.kind, record.payload)).collect();
    assert_eq!(found, [(16, vec![16; 5]), (17, vec![17; 5]), (19, vec![19; 5])]);
}

/// Returns a pack file with one raw and one compressed chunk, its index, and the chunks. The Zstandard frame is a run
/// of equal bytes, encoded by hand, so that the result does not depend on the compressor.
fn chunk_pack() -> (Vec<u8>, Vec<u8>, [Vec<u8>; 2]) {
    let chunks = [b"a chunk as it is".to_vec(), vec![b'a'; 1000]];
    let run = [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0xe8, 0x02, 0x43, 0x1f, 0x00, b'a'];
    let header = pack::PackHeader { number: 3, created_ms: 1_700_000_000_000 };
    let (mut bytes, mut rows) = (header.encode().to_vec(), Vec::new());
    let stored = [(pack::Encoding::Raw, &chunks[0][..]), (pack::Encoding::Zstd, &run)];
    for ((encoding, stored), raw) in stored.into_iter().zip(&chunks) {
        let (offset, durable) = (bytes.len() as u32, if bytes.len() == 32 { 0 } else { 32 });
        let (id, lengths) = (ChunkId::of(raw), (stored.len() as u32, raw.len() as u32));
        let stored_crc = crc32c::crc32c(stored);
        let frame = pack::FrameHeader { encoding, stored: lengths.0, raw: lengths.1, pack: 3, durable, id, stored_crc };
        bytes.extend_from_slice(&frame.encode());
        bytes.extend_from_slice(stored);
        rows.push(pack::Row { id, offset, stored: lengths.0, raw: lengths.1 });
    }
    let table = pack::Table { pack: header, covered: bytes.len() as u64, rows };
    (bytes, table.encode(), chunks)
}

#[test]
fn p12_a_released_chunk_pack_opens_and_verifies() {
    let (pack_bytes, index_bytes, chunks) = chunk_pack();
    check_golden("pack.bin", &pack_bytes);
    check_golden("pack-index.bin", &index_bytes);
    for with_index in [true, false] {
        let fs = MemoryFs::new();
        let dir = Path::new("/chunks");
        let files = [("pack.bin", pack::pack_name(3)), ("pack-index.bin", pack::table_name(3))];
        for (released, name) in files.into_iter().take(1 + usize::from(with_index)) {
            let file = fs.create(&dir.join(name)).expect("creates");
            file.write_at(&std::fs::read(golden(released)).expect("reads"), 0).expect("writes");
        }
        let opened = ChunkStore::open(dir, Arc::new(fs), Arc::new(SystemClock), StoreOptions::default());
        let (store, report) = opened.expect("opens");
        assert_eq!((report.damages, report.unfinished, report.chunks), (vec![], vec![], 2));
        for raw in &chunks {
            assert_eq!(store.read(&ChunkId::of(raw)).expect("reads").as_deref(), Some(&raw[..]));
        }
        assert_eq!(store.verify(&mut |_, _| {}).expect("verifies"), []);
    }
}

#[test]
fn p12_a_released_index_chunk_is_read() {
    let parts = [(b"one", 1), (b"two", 70_000), (b"max", 256 << 10)];
    let parts = parts.map(|(name, bytes)| Part { id: ChunkId::of(name), bytes });
    check_golden("index-chunk.bin", &encode_index(&parts));
    assert_eq!(decode_index(&std::fs::read(golden("index-chunk.bin")).expect("reads")), Ok(parts.to_vec()));
}

#[test]
fn p10_every_flipped_bit_of_a_record_is_noticed() {
    let (bytes, _) = frames();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_frames(&Bytes::from(damaged), (Seq(0), frame::CHAIN_START)).is_err(), "bit {bit}");
    }
}

#[test]
fn decoders_are_total_on_short_bytes() {
    let (bytes, _) = frames();
    for length in 0..bytes.len() {
        let part = &bytes[..length];
        drop((frame::decode_frame(part), FileHeader::decode(part), Footer::decode(part), HeadSlot::decode(part)));
    }
    let (header, range) = frame::decode_frame(&bytes).expect("decodes");
    let payload = &bytes[range];
    for length in 0..payload.len() {
        assert!(decode_entry(&header, &Bytes::copy_from_slice(&payload[..length])).is_err(), "{length}");
    }
}

/// Parses the rows `| offset | size | field | …` of the table below a heading.
fn table(heading: &str) -> BTreeMap<String, (usize, usize)> {
    let text = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the root").join("log-format.md"),
    )
    .expect("reads");
    let lines = text.lines().skip_while(|line| *line != heading).skip(1);
    let section = lines.take_while(|line| !line.starts_with('#'));
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        let (offset, size) = (cells.get(1)?.parse().ok()?, cells.get(2)?.parse().ok()?);
        Some(((*cells.get(3)?).to_owned(), (offset, size)))
    };
    section.filter_map(row).collect()
}

/// Checks that a table contains all `fields` at their offsets, and that its rows fill `length` bytes without gaps.
fn check_table(heading: &str, length: usize, fields: &[(&str, usize)]) {
    let rows = table(heading);
    for (field, offset) in fields {
        assert_eq!(rows.get(*field).map(|row| row.0), Some(*offset), "{heading}: {field}");
    }
    let mut places: Vec<_> = rows.values().collect();
    places.sort();
    let mut end = 0;
    for (offset, size) in places {
        assert_eq!(*offset, end, "{heading}: gap or overlap");
        end += size;
    }
    assert_eq!(end, length, "{heading}");
}

#[test]
fn the_tables_of_the_specification_are_those_of_the_code() {
    let record = [
        ("magic", frame::AT_MAGIC),
        ("format", frame::AT_FORMAT),
        ("kind", frame::AT_KIND),
        ("flags", frame::AT_FLAGS),
        ("payload length", frame::AT_LENGTH),
        ("batch index", frame::AT_BATCH_INDEX),
        ("seq", frame::AT_SEQ),
        ("chain", frame::AT_CHAIN),
        ("payload crc", frame::AT_PAYLOAD_CRC),
        ("header crc", frame::AT_HEADER_CRC),
    ];
    check_table("### Frame header", frame::HEADER_BYTES, &record);
    let header = [
        ("format", format::AT_FORMAT),
        ("flags", format::AT_FLAGS),
        ("log id", format::AT_LOG_ID),
        ("generation", format::AT_GENERATION),
        ("first", format::AT_FIRST),
        ("covered last", format::AT_COVERED_LAST),
        ("chain before", format::AT_CHAIN_BEFORE),
        ("crc", format::AT_HEADER_CRC),
    ];
    check_table("### File header", format::HEADER_BYTES, &header);
    let footer = [
        ("count", format::AT_COUNT),
        ("last", format::AT_LAST),
        ("frame chain", format::AT_FRAME_CHAIN),
        ("chain after", format::AT_CHAIN_AFTER),
        ("time first", format::AT_TIME_FIRST),
        ("time last", format::AT_TIME_LAST),
        ("frames bytes", format::AT_FRAMES_BYTES),
        ("digest", format::AT_DIGEST),
        ("deletions", format::AT_DELETIONS),
        ("crc", format::AT_FOOTER_CRC),
    ];
    check_table("### Footer", format::FOOTER_BYTES, &footer);
    let slot = [
        ("counter", format::AT_SLOT_COUNTER),
        ("log id", format::AT_SLOT_LOG_ID),
        ("generation", format::AT_SLOT_GENERATION),
        ("lineage count", format::AT_SLOT_LINEAGE_COUNT),
        ("seq", format::AT_SLOT_SEQ),
        ("chain", format::AT_SLOT_CHAIN),
        ("horizon", format::AT_SLOT_HORIZON),
        ("lineage", format::AT_SLOT_LINEAGE),
        ("crc", format::AT_SLOT_CRC),
    ];
    check_table("### Head slot", format::SLOT_BYTES, &slot);
    let wide = slot.map(|(field, offset)| match field {
        "generation" => (field, format::AT_SLOT_WIDE_GENERATION),
        _ => (field, offset),
    });
    check_table("### Head slot, version 2", format::SLOT_BYTES, &wide);
}

#[test]
fn the_tables_of_chunk_packs_are_those_of_the_code() {
    let header = [
        ("format", pack::AT_FORMAT),
        ("number", pack::AT_PACK_NUMBER),
        ("created", pack::AT_PACK_CREATED),
        ("crc", pack::AT_PACK_CRC),
    ];
    check_table("### Pack header", pack::PACK_HEADER_BYTES, &header);
    let frame = [
        ("format", pack::AT_FORMAT),
        ("encoding", pack::AT_ENCODING),
        ("stored length", pack::AT_STORED),
        ("raw length", pack::AT_RAW),
        ("pack", pack::AT_FRAME_PACK),
        ("durable", pack::AT_DURABLE),
        ("id", pack::AT_ID),
        ("stored crc", pack::AT_STORED_CRC),
        ("header crc", pack::AT_FRAME_CRC),
    ];
    check_table("### Chunk frame header", pack::FRAME_HEADER_BYTES, &frame);
    let index = [
        ("format", pack::AT_FORMAT),
        ("number", pack::AT_PACK_NUMBER),
        ("count", pack::AT_COUNT),
        ("created", pack::AT_PACK_CREATED),
        ("covered", pack::AT_COVERED),
    ];
    check_table("### Pack index header", pack::TABLE_HEADER_BYTES, &index);
    let row =
        [("offset", pack::AT_ROW_OFFSET), ("stored length", pack::AT_ROW_STORED), ("raw length", pack::AT_ROW_RAW)];
    check_table("### Pack index row", pack::ROW_BYTES, &row);
    check_table("### Index chunk", manifest::INDEX_HEADER_BYTES, &[("count", 8)]);
}
