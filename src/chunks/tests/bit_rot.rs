//! Flips every bit of every file, truncates every file and removes it. Every read must return the original bytes or
//! report corruption, and writing the chunks again must repair the store. A sample by default; `GRAVWELL_BIT_ROT=all`
//! flips every bit.

use std::collections::BTreeMap;

use super::*;
use crate::format::{Name, TABLE_HEADER_BYTES};
use gravwell_env::fs::Fs as _;
use gravwell_env::memory_fs::Survival;

const COUNT: u64 = 26;

fn dir() -> &'static Path {
    Path::new("/chunks")
}

/// Creates finished packs, one of them rewritten, and a pack being written, with chunks before and after a checkpoint.
fn image() -> MemoryFs {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 100..112);
    write(&store, 0..8);
    store.evict(&(100..112).map(id).collect::<Vec<_>>(), store.cutoff(Duration::ZERO)).expect("evicts");
    write(&store, 112..116);
    write(&store, 8..23);
    // Too little garbage to rewrite a pack.
    store.evict(&(112..114).map(id).collect::<Vec<_>>(), store.cutoff(Duration::ZERO)).expect("evicts");
    store.checkpoint().expect("checkpoint");
    write(&store, 23..25);
    write(&store, 25..COUNT);
    assert_eq!((store.stats().chunks, store.stats().garbage_bytes > 0), (COUNT + 2, true));
    let names = fixture.fs.list(dir()).expect("lists");
    assert!(names.len() >= 6, "{names:?}");
    fixture.fs.crash(Survival::Everything, 0)
}

#[derive(Debug, Default)]
struct Totals {
    changes: u64,
    identical: u64,
    named: u64,
}

/// Opens a changed store and checks that every difference is reported for the file concerned.
fn judge(fs: &MemoryFs, file: &str, totals: &mut Totals, context: &str) {
    totals.changes += 1;
    let opened = ChunkStore::open(dir(), Arc::new(fs.clone()), Arc::new(Hand::default()), options());
    let (store, report) = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
    let mut named: Vec<Damage> = [report.damages.clone(), report.unfinished.clone()].concat();
    let mut lost = Vec::new();
    for n in 0..COUNT {
        match store.read(&id(n)) {
            Ok(Some(found)) => assert_eq!(&found[..], raw(n), "{context}: damaged data was returned"),
            Ok(None) => lost.push(n),
            Err(ChunkError::Damaged { id, file, offset, what }) => {
                assert!(!store.contains(&id), "{context}: a damaged chunk counts as present");
                named.push(Damage { id: Some(id), file, offset, what });
                lost.push(n);
            }
            Err(error) => panic!("{context}: {error}"),
        }
    }
    named.extend(store.verify(&mut |_, _| {}).expect("verifies"));
    assert!(lost.is_empty() || !named.is_empty(), "{context}: {lost:?} lost without a report");
    let other = |damage: &&Damage| Name::parse(&damage.file).map(number) != Name::parse(file).map(number);
    assert_eq!(named.iter().find(other), None, "{context}");
    if matches!(Name::parse(file), Some(Name::Table(_))) {
        assert!(lost.is_empty(), "{context}: a damaged index lost {lost:?}: {report:?}");
    }
    if named.is_empty() {
        totals.identical += 1
    } else {
        totals.named += 1
    }
    // As if fetched again from a member.
    write(&store, lost);
    check(&store, 0..COUNT, []);
    drop(store);
    let again = ChunkStore::open(dir(), Arc::new(fs.clone()), Arc::new(Hand::default()), options());
    let (store, _) = again.unwrap_or_else(|error| panic!("{context}: {error}"));
    check(&store, 0..COUNT, []);
}

fn number(name: Name) -> u32 {
    match name {
        Name::Pack(number) | Name::Table(number) => number,
    }
}

fn is_full() -> bool {
    std::env::var("GRAVWELL_BIT_ROT").is_ok_and(|value| value == "all")
}

fn copy(image: &MemoryFs) -> MemoryFs {
    image.crash(Survival::Everything, 0)
}

fn lengths(image: &MemoryFs) -> BTreeMap<String, u64> {
    let names = image.list(dir()).expect("lists");
    let length = |name: &String| image.contents(&dir().join(name)).expect("reads").len() as u64;
    names.into_iter().map(|name| (name.clone(), length(&name))).collect()
}

#[test]
fn p10_no_bit_of_a_chunk_store_changes_unseen() {
    let (image, mut totals) = (image(), Totals::default());
    for (name, length) in lengths(&image) {
        let step = if is_full() { 1 } else { 1 + length / 160 };
        let near = (0..length.min(TABLE_HEADER_BYTES as u64 + 70)).step_by(if is_full() { 1 } else { 3 });
        for at in (0..length).step_by(step as usize).chain(near) {
            let bits = if is_full() { 0..8 } else { (at % 8) as u8..(at % 8) as u8 + 1 };
            for bit in bits {
                let fs = copy(&image);
                fs.flip_bit(&dir().join(&name), at, bit).expect("flips");
                judge(&fs, &name, &mut totals, &format!("{name} byte {at} bit {bit}"));
            }
        }
    }
    println!("chunks, bits flipped: {totals:?}");
    assert!(totals.named > totals.changes / 2, "{totals:?}");
}

#[test]
fn p10_no_file_of_a_chunk_store_is_cut_or_removed_unseen() {
    let (image, mut totals) = (image(), Totals::default());
    for (name, length) in lengths(&image) {
        let step = if is_full() { 1 } else { 1 + length / 40 };
        for at in (0..length).step_by(step as usize) {
            let fs = copy(&image);
            fs.open(&dir().join(&name)).and_then(|file| file.set_len(at)).expect("cuts");
            judge(&fs, &name, &mut totals, &format!("{name} cut at {at}"));
        }
        let fs = copy(&image);
        fs.remove(&dir().join(&name)).expect("removes");
        judge(&fs, &name, &mut totals, &format!("{name} removed"));
    }
    println!("chunks, files cut: {totals:?}");
}

#[test]
fn p10_a_chunk_that_cannot_be_read_for_a_while_is_found_again_and_never_collected() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..40);
    store.checkpoint().expect("checkpoint");
    let packs = |suffix: &str| {
        let names = fixture.fs.list(dir()).expect("lists");
        names.into_iter().filter(|name| name.ends_with(suffix)).count()
    };
    let live = (0..40).map(id).collect::<std::collections::HashSet<_>>();
    let collect = || store.collect(&live, store.cutoff(Duration::ZERO), false);
    let before = packs("");
    fixture.fs.fail_reads();
    let damages = store.verify(&mut |_, _| {}).expect("verifies");
    assert_eq!(damages.iter().filter(|damage| damage.id.is_some()).count(), 40);
    assert!((0..40).all(|n| !store.contains(&id(n))), "they are treated as missing");
    collect().expect("unreadable chunks are not removed");
    assert_eq!(packs(""), before);
    fixture.fs.heal();
    // One of them was fetched in the meantime: its former place is of no use any more.
    write(&store, 7..8);
    collect().expect("collects");
    for n in 0..40 {
        assert_eq!(store.read(&id(n)).expect("reads").as_deref(), Some(raw(n)), "{n}");
    }
    assert_eq!(store.stats().damaged, 0);
    let store = fixture.open().0;
    assert!((0..40).all(|n| store.contains(&id(n))));
}

#[test]
fn p10_a_pack_with_a_chunk_that_cannot_be_read_is_rewritten_only_when_nobody_needs_the_chunk() {
    let fixture = Fixture::new();
    let (store, _) = fixture.open();
    write(&store, 0..40);
    store.checkpoint().expect("checkpoint");
    let first = crate::format::pack_name(1);
    let length = fixture.fs.contents(&dir().join(&first)).expect("reads").len() as u64;
    fixture.fs.flip_bit(&dir().join(&first), length / 2, 0).expect("flips");
    let damages = store.verify(&mut |_, _| {}).expect("verifies");
    let [damage] = &damages[..] else { panic!("{damages:?}") };
    let lost = damage.id.expect("has an ID");
    // Most of the pack is garbage.
    let needed = |n: &u64| *n >= 20 || id(*n) == lost;
    let mut live = (0..40).filter(needed).map(id).collect::<std::collections::HashSet<_>>();
    store.collect(&live, store.cutoff(Duration::ZERO), false).expect("collects");
    assert!(fixture.fs.contents(&dir().join(&first)).is_ok(), "the remainder of the chunk is kept");
    live.remove(&lost);
    store.collect(&live, store.cutoff(Duration::ZERO), false).expect("collects");
    assert!(fixture.fs.contents(&dir().join(&first)).is_err(), "it is removed when unreferenced");
    assert_eq!(store.stats().damaged, 0);
}
