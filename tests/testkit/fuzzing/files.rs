//! Small files, and data loaded from them or into the state. If a checksum would reject nearly all inputs, the input is
//! also used with a valid checksum.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::steps::Steps;
use gravwell_env::fs::{Fs as _, parent_dir};
use gravwell_env::memory_fs::MemoryFs;
use gravwell_env::{SystemClock, SystemEntropy};
use gravwell_log::journal::Journal;
use gravwell_model::codec::message::{self, Kind, Row};
use gravwell_model::{Chain, Digest, DigestSet, Generation, LogId, Seq, Withheld};
use gravwell_replica::directory::{StateStorage, parse_current};
use gravwell_replica::stepped::SteppedReplica;
use gravwell_state::{Object, StateStore, Target, WithheldObject};
use gravwell_transport::trust::Registry;

const DIR: &str = "/outbox";

/// File of an outbox journal, without a head file. Records that were read stay readable, and appended records are
/// read, too.
pub fn journal(bytes: &[u8]) {
    let fs = MemoryFs::new();
    let file = Path::new(DIR).join("journal");
    let written = fs.create_dir_all(Path::new(DIR)).and_then(|()| {
        let made = fs.create(&file)?;
        made.write_at(bytes, 0)?;
        made.sync_data()
    });
    written.expect("invariant: writing to memory cannot fail");
    let Ok((mut journal, records)) = Journal::open(Arc::new(fs.clone()), Path::new(DIR)) else { return };
    journal.append(&[(200, b"more".to_vec())]).and_then(|()| journal.sync()).expect("accepts more");
    drop(journal);
    let (_, again) = Journal::open(Arc::new(fs), Path::new(DIR)).expect("opens again");
    assert_eq!(again.len(), records.len() + 1);
    assert!(again.iter().zip(&records).all(|(now, before)| now == before), "earlier records remain readable");
}

/// State directory without any files to swap.
struct Homeless;

impl StateStorage for Homeless {
    fn make_current(&mut self, _: &Path) -> Result<(), String> {
        Err("nowhere".into())
    }

    fn is_current(&self, _: &Path) -> bool {
        false
    }

    fn remove_others(&mut self, _: &Path) -> Result<(), String> {
        Err("nowhere".into())
    }
}

/// Records of an outbox journal, each preceded by kind and length: accepted or rejected as a whole.
pub fn entries(bytes: &[u8]) {
    let mut rest = bytes;
    let mut records = Vec::new();
    while let Some(([kind, length], after)) = rest.split_first_chunk::<2>() {
        let (payload, after) = after.split_at(usize::from(*length).min(after.len()));
        records.push((16 + kind % 4, payload.to_vec()));
        rest = after;
    }
    let open = || {
        let (journal, _) =
            Journal::open(Arc::new(MemoryFs::new()), Path::new(DIR)).expect("invariant: a new journal opens");
        let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
        let opened = SteppedReplica::open(
            StateStore::in_memory(),
            || Ok(StateStore::in_memory()),
            (journal, records.clone()),
            Box::new(Homeless),
            clock,
            entropy,
        );
        opened.map(|replica| (replica.pending(), replica.rejected()))
    };
    if let Ok((pending, rejected)) = open() {
        assert!(pending.len() + rejected.len() <= records.len());
        assert_eq!(open(), Ok((pending, rejected)));
    }
}

/// `members.json`, as given and with a valid checksum.
pub fn members(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Registry::examine(text);
    let body = text.trim_end();
    let _ = Registry::examine(&format!("{body}\n{}\n", blake3::hash(body.as_bytes()).to_hex()));
}

/// `current`, as given and with a valid checksum: it names a sibling directory or nothing.
pub fn current(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let sealed = format!("{text} {}", &blake3::hash(text.as_bytes()).to_hex()[..16]);
    for line in [text, &sealed] {
        if let Some(name) = parse_current(line) {
            assert_eq!(parent_dir(&PathBuf::from("d").join(&name)), Path::new("d"), "{name}");
            assert!(name.starts_with("state-"));
        }
    }
}

/// Rows of a snapshot, decoded from bytes and generated from choices: a finished state is consistent, and duplicate rows
/// prevent finishing.
pub fn rows(bytes: &[u8]) {
    if let Ok(rows) = message::decode::<Vec<Row>>(Kind::Rows, bytes) {
        load(&rows);
    }
    let mut steps = Steps::new(bytes);
    let mut made = Vec::new();
    while !steps.is_done() && made.len() < 40 {
        let (collection, key) = steps.name();
        let (version, value) = (Seq(steps.below(9)), Bytes::from(vec![b'1'; 1 + usize::from(steps.one_in(3))]));
        made.push(match steps.one_in(4) {
            true => Row::Withheld { version, time_ms: 0, object: Withheld::of(collection, key, version, &value) },
            false => Row::Object { collection, key, version, time_ms: 0, value },
        });
    }
    load(&made);
}

fn load(rows: &[Row]) {
    let store = StateStore::in_memory();
    let mut loader = store.loader().expect("a new store");
    loader.redact();
    let (mut promised, mut seen, mut twice) = (DigestSet::default(), BTreeSet::new(), false);
    for row in rows {
        match row {
            Row::Object { collection, key, version, time_ms, value } => {
                let object = Object { version: *version, time_ms: *time_ms, value: value.clone() };
                loader.object(collection, key, &object).expect("writes to memory");
                match seen.insert(format!("{collection}\0{}", key.as_str())) {
                    true => promised.add_object(collection, key, *version, value),
                    false => twice = true,
                }
            }
            Row::Origin { origin, row } => {
                loader.origin(*origin, row).expect("writes to memory");
                match seen.insert(format!("\0{origin}")) {
                    true => promised.replace_origin(*origin, None, Some(row)),
                    false => twice = true,
                }
            }
            Row::Withheld { version, time_ms, object } => {
                let row = WithheldObject { version: *version, time_ms: *time_ms, object: object.clone() };
                loader.withheld(&row).expect("writes to memory");
                match seen.insert(format!("{}\0{}", object.collection, object.key.as_str())) {
                    true => promised.add_withheld(object),
                    false => twice = true,
                }
            }
            Row::Maker { origin, maker } => loader.maker(*origin, maker).expect("writes to memory"),
        }
    }
    let digest: Digest = promised.overall();
    let target = Target {
        log_id: LogId([1; 16]),
        generation: Generation(1),
        lineage: Vec::new(),
        seq: Seq(9),
        chain: Chain::default(),
        time_ms: 0,
        deletions_after: None,
        digest: Some(digest),
    };
    match loader.finish(target) {
        Ok(store) => {
            assert!(!twice, "a duplicate row was not detected");
            assert_eq!(store.check().expect("has a position").damage, []);
            assert_eq!(store.meta().expect("has a position").digest, digest);
        }
        Err(error) => assert!(twice, "{error}"),
    }
}
