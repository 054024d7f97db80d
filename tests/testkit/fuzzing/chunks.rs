//! Pack files, chunk indexes, and deltas.

use std::path::Path;
use std::sync::Arc;

use super::steps::Steps;
use gravwell_chunks::delta_base::{PAIRED_MAX, pair};
use gravwell_chunks::format::{
    Encoding, FRAME_HEADER_BYTES, FrameHeader, PACK_HEADER_BYTES, PackHeader, Table, pack_name, table_name,
};
use gravwell_chunks::{CHUNK_BYTES_MAX, ChunkError, ChunkStore, Part, StoreOptions, decode_index, delta, encode_index};
use gravwell_env::SystemClock;
use gravwell_env::fs::Fs as _;
use gravwell_env::memory_fs::MemoryFs;
use gravwell_model::ChunkId;

const DIR: &str = "/chunks";

fn put(fs: &MemoryFs, name: &str, bytes: &[u8]) {
    let written = fs.create(&Path::new(DIR).join(name)).and_then(|file| {
        file.write_at(bytes, 0)?;
        file.sync_data()
    });
    written.expect("invariant: writing to memory cannot fail");
}

fn open(fs: &MemoryFs) -> ChunkStore {
    let options = StoreOptions { reserve_bytes: 0, ..StoreOptions::default() };
    let opened = ChunkStore::open(Path::new(DIR), Arc::new(fs.clone()), Arc::new(SystemClock), options);
    opened.expect("opens despite damage").0
}

/// Opens the store and checks that every chunk that it returns matches its ID, that further chunks can be written, and
/// that all readable chunks stay readable.
fn examine(fs: &MemoryFs) {
    let store = open(fs);
    let mut sound = Vec::new();
    for id in store.ids() {
        match store.read(&id) {
            Ok(Some(raw)) => {
                assert_eq!(ChunkId::of(&raw), id);
                sound.push(id);
            }
            Err(ChunkError::Damaged { .. }) => assert!(!store.contains(&id)),
            other => panic!("unexpected result: {other:?}"),
        }
    }
    sound.push(ChunkId::of(b"another one"));
    store.write(&sound[sound.len() - 1], b"another one").and_then(|_| store.sync()).expect("accepts more");
    drop(store);
    let store = open(fs);
    assert!(sound.iter().all(|id| store.read(id).is_ok_and(|raw| raw.is_some())), "earlier chunks remain readable");
}

/// Pack file: the raw input, and the input as frames with a valid header and valid checksums.
pub fn pack(bytes: &[u8]) {
    let fs = MemoryFs::new();
    put(&fs, &pack_name(1), bytes);
    examine(&fs);
    let fs = MemoryFs::new();
    let (mut made, mut rest) = (PackHeader { number: 1, created_ms: 1 }.encode().to_vec(), bytes);
    while let Some(([kind, length], after)) = rest.split_first_chunk::<2>() {
        let (stored, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        let header = FrameHeader {
            encoding: if kind & 1 == 0 { Encoding::Raw } else { Encoding::Zstd },
            stored: stored.len() as u32,
            raw: if kind & 2 == 0 { stored.len() as u32 } else { u32::from(*kind) * 1000 },
            pack: 1 + u32::from(kind & 4 != 0),
            durable: u32::from(*kind) * 8,
            id: ChunkId::of(stored),
            stored_crc: crc32c::crc32c(stored),
        };
        // Some frames follow garbage bytes.
        made.extend_from_slice(&stored[..usize::from(kind >> 4).min(stored.len())]);
        made.extend_from_slice(&header.encode());
        made.extend_from_slice(stored);
    }
    put(&fs, &pack_name(1), &made);
    examine(&fs);
}

/// Index of a pack file: the raw input, and the input with a valid checksum. It must never make the store return
/// wrong data.
pub fn pack_index(bytes: &[u8]) {
    if let Ok(table) = Table::decode(bytes) {
        assert_eq!(Table::decode(&table.encode()), Ok(table));
    }
    let mut pack = PackHeader { number: 1, created_ms: 1 }.encode().to_vec();
    pack.resize(PACK_HEADER_BYTES + FRAME_HEADER_BYTES + 30, 7);
    let mut sealed = bytes.to_vec();
    sealed.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    for table in [bytes, &sealed] {
        let fs = MemoryFs::new();
        put(&fs, &pack_name(1), &pack);
        put(&fs, &table_name(1), table);
        examine(&fs);
    }
}

/// Index chunk: a decoded list encodes to the same bytes, and delta bases can be selected between two lists.
pub fn index_chunk(bytes: &[u8]) {
    let Ok(parts) = decode_index(bytes) else { return };
    assert_eq!(encode_index(&parts), bytes);
    let mut steps = Steps::new(bytes);
    let mut other: Vec<Part> = parts.iter().filter(|_| !steps.one_in(3)).copied().collect();
    other.reverse();
    let pairs = pair(&other, &parts);
    assert!(pairs.len() <= parts.len() && pairs.iter().all(|pairing| pairing.bases.len() <= PAIRED_MAX));
}

/// Delta: the raw input, and a delta that the encoder produces from the two halves of the input.
pub fn delta_of_a_chunk(bytes: &[u8]) {
    let (base, rest) = bytes.split_at(bytes.len() / 2);
    if let Ok(raw) = delta::decode(bytes, &[base], 5000) {
        assert!(raw.len() <= 5000);
    }
    if let Ok(raw) = delta::decode(rest, &[base, base], CHUNK_BYTES_MAX) {
        assert!(raw.len() <= CHUNK_BYTES_MAX);
    }
    let raw = [base, rest, base].concat();
    if let Some(delta) = delta::encode(&raw, &[rest, base]) {
        assert!(delta.len() < raw.len());
        assert_eq!(delta::decode(&delta, &[rest, base], raw.len()), Ok(raw));
    }
}
