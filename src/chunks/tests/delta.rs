//! Deltas and the selection of their bases.

use std::collections::HashMap;
use std::convert::Infallible;

use super::super::delta::{BASES_MAX, decode, encode};
use super::super::delta_base::{PAIRED_MAX, pair};
use super::super::*;
use gravwell_env::memory_fs::SmallRandom;
use gravwell_model::ChunkId;

/// Returns a row of about 100 bytes, as in exported tables; `edition` changes its values.
fn row(n: u64, edition: u64) -> String {
    let mut random = SmallRandom(n.wrapping_mul(31) ^ edition.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut next = || random.next_u64();
    format!(
        "{n},10.{}.{}.{},{:016x},host-{:05}.example.com,{},\"seen {} times\",{:08x}\n",
        next() % 256,
        next() % 256,
        next() % 256,
        next(),
        next() % 90_000,
        ["active", "retired", "unknown"][(next() % 3) as usize],
        next() % 1_000_000,
        next() as u32,
    )
}

type Chunks = HashMap<ChunkId, Vec<u8>>;

fn cut(contents: &[u8], chunks: &mut Chunks) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut out = |raw: &[u8]| {
        let part = Part { id: ChunkId::of(raw), bytes: raw.len() as u32 };
        chunks.insert(part.id, raw.to_vec());
        parts.push(part);
        Ok::<(), Infallible>(())
    };
    let mut cutter = Chunker::new();
    cutter.push(contents, &mut out).expect("never fails");
    cutter.finish(&mut out).expect("never fails");
    parts
}

/// Returns the number of bytes sent for a new edition: new chunks as deltas, and the new index chunks.
fn transfer(old: &[u8], new: &[u8]) -> usize {
    let mut chunks = Chunks::new();
    let (old, new) = (cut(old, &mut chunks), cut(new, &mut chunks));
    let mut bytes: usize = new.chunks(PARTS_MAX).map(|parts| encode_index(parts).len()).sum();
    for pairing in pair(&old, &new) {
        let raw = &chunks[&pairing.part.id];
        let bases: Vec<&[u8]> = pairing.bases.iter().map(|base| &chunks[&base.id][..]).collect();
        bytes += match encode(raw, &bases) {
            Some(delta) => {
                assert_eq!(decode(&delta, &bases, CHUNK_BYTES_MAX).as_ref(), Ok(raw));
                delta.len()
            }
            None => raw.len(),
        };
    }
    bytes
}

const ROWS: u64 = 60_000;

fn table(rows: impl Iterator<Item = String>) -> Vec<u8> {
    rows.collect::<String>().into_bytes()
}

#[test]
fn one_percent_of_the_rows_changed_transfers_less_than_five_percent() {
    let old = table((0..ROWS).map(|n| row(n, 0)));
    assert!((95..110).contains(&(old.len() as u64 / ROWS)), "{}", old.len() as u64 / ROWS);
    let mut random = SmallRandom(5);
    let changed: Vec<bool> = (0..ROWS).map(|_| random.below(100) == 0).collect();
    let new = table((0..ROWS).zip(&changed).map(|(n, changed)| row(n, u64::from(*changed))));
    let bytes = transfer(&old, &new);
    println!("1 % of {ROWS} rows changed: {bytes} of {} bytes, {:.2} %", new.len(), percent(bytes, &new));
    assert!(bytes * 20 < new.len(), "{bytes} of {}", new.len());
}

fn percent(bytes: usize, of: &[u8]) -> f64 {
    bytes as f64 * 100.0 / of.len() as f64
}

#[test]
fn rows_put_in_and_taken_out_transfer_little() {
    let old = table((0..ROWS).map(|n| row(n, 0)));
    let mut random = SmallRandom(6);
    let mut rows = Vec::new();
    for n in 0..ROWS {
        match random.below(200) {
            0 => {}
            1 => rows.extend([row(n, 0), row(n + ROWS, 3)]),
            _ => rows.push(row(n, 0)),
        }
    }
    let new = table(rows.into_iter());
    let bytes = transfer(&old, &new);
    println!("1 % of rows inserted or removed: {:.2} %", percent(bytes, &new));
    assert!(bytes * 20 < new.len(), "{bytes} of {}", new.len());
    // Rows inserted before all others, and at the end.
    let new = [row(1, 9).into_bytes(), old.clone(), row(2, 9).into_bytes()].concat();
    let bytes = transfer(&old, &new);
    assert!(bytes * 100 < new.len(), "{bytes} of {}", new.len());
    assert!(transfer(&old, &old) * 500 < old.len(), "index chunks only");
}

#[test]
fn other_contents_cost_no_more_than_themselves() {
    let mut random = SmallRandom(8);
    let mut noise = |bytes: usize| -> Vec<u8> { (0..bytes).map(|_| random.next_u64() as u8).collect() };
    let (old, new) = (noise(600_000), noise(500_000));
    let lists = 2 * 500_000 / CHUNK_BYTES_MIN * 36;
    assert!(transfer(&old, &new) < new.len() + lists);
    assert!(transfer(&[], &new) < new.len() + lists);
    assert!(encode(&new[..1000], &[]).is_none(), "without bases");
    assert!(encode(&new[..1000], &[&new[..1000]; BASES_MAX + 1]).is_none(), "too many bases");
}

#[test]
fn a_malformed_delta_is_rejected() {
    let base = table((0..600).map(|n| row(n, 0)));
    let raw = table((0..600).map(|n| row(n, u64::from(n == 300))));
    let bases = [&base[..]];
    let delta = encode(&raw, &bases).expect("pays");
    assert!(delta.len() < 400, "{}", delta.len());
    assert_eq!(decode(&delta, &bases, raw.len()), Ok(raw.clone()));
    let error = decode(&delta, &bases, raw.len() - 1).expect_err("bounded").to_string();
    assert!(error.contains("length of a chunk"), "{error}");
    for cut in 0..delta.len() {
        assert!(decode(&delta[..cut], &bases, CHUNK_BYTES_MAX).is_err(), "{cut}");
    }
    // With other bases it decodes to other bytes or fails; the hash detects that.
    assert_ne!(decode(&delta, &[&raw[..100]], CHUNK_BYTES_MAX).ok(), Some(raw.clone()));
    let mut longer = delta.clone();
    longer[4..8].copy_from_slice(&(raw.len() as u32 + 1).to_le_bytes());
    assert!(decode(&longer, &bases, CHUNK_BYTES_MAX).is_err());
}

fn parts(names: &str) -> Vec<Part> {
    names.bytes().map(|name| Part { id: ChunkId::of(&[name]), bytes: 60_000 }).collect()
}

fn pairs(old: &str, new: &str) -> Vec<(char, String)> {
    let name = |part: &Part| {
        let found = (b'!'..=b'~').find(|name| ChunkId::of(&[*name]) == part.id);
        char::from(found.expect("known"))
    };
    pair(&parts(old), &parts(new))
        .iter()
        .map(|pairing| (name(&pairing.part), pairing.bases.iter().map(name).collect()))
        .collect()
}

#[test]
fn chunks_are_paired_with_what_was_at_their_place() {
    let expect = |found: Vec<(char, String)>, expected: &[(char, &str)]| {
        let found: Vec<_> = found.iter().map(|(name, bases)| (*name, bases.as_str())).collect();
        assert_eq!(found, expected);
    };
    expect(pairs("abc", "abc"), &[]);
    expect(pairs("", "abc"), &[('a', ""), ('b', ""), ('c', "")]);
    expect(pairs("abc", ""), &[]);
    // Changed in place: the old chunk, and its neighbours within reach.
    expect(pairs("abcdef", "abXdef"), &[('X', "bcd")]);
    // No common chunks: interpolated.
    expect(pairs("abc", "XYZ"), &[('X', "ab"), ('Y', "abc"), ('Z', "bc")]);
    // Shifted by an insertion before it: aligned on the chunks that follow.
    expect(pairs("abcdef", "12abcXef"), &[('1', "a"), ('2', "a"), ('X', "cde")]);
    // Reordered chunks are not new.
    expect(pairs("abc", "cab"), &[]);
    // Repeated chunks are not used for alignment and are paired once.
    expect(pairs("aaaa", "aXaXa").into_iter().map(|(name, _)| (name, String::new())).collect(), &[('X', "")]);
}

proptest::proptest! {
    #[test]
    fn pairing_is_total(old in "[a-h]{0,40}", new in "[a-l]{0,40}") {
        let (old, new) = (parts(&old), parts(&new));
        let found = pair(&old, &new);
        let fresh: std::collections::HashSet<_> = new.iter().filter(|part| !old.contains(part)).collect();
        proptest::prop_assert_eq!(found.len(), fresh.len());
        for pairing in found {
            proptest::prop_assert!(fresh.contains(&pairing.part) && pairing.bases.len() <= PAIRED_MAX);
            proptest::prop_assert!(pairing.bases.iter().all(|base| old.contains(base)));
            proptest::prop_assert!(old.is_empty() || !pairing.bases.is_empty());
        }
    }
}
