//! Opening of a store: reads the contents of packs from their indexes, or scans the packs.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Condvar, Mutex};

use super::StoreOptions;
use super::compress::Codec;
use super::error::{ChunkError, Damage};
use super::format::{
    FRAME_HEADER_BYTES, Name, PACK_HEADER_BYTES, PackHeader, ROW_BYTES, Row, TABLE_CRC_BYTES, TABLE_HEADER_BYTES,
    Table, frame_bytes, pack_name, table_name,
};
use super::index::{Index, Location};
use super::pack::{Files, OpenPack, Pack, Packs, locked};
use super::scan::scan;
use super::store::{ChunkStore, StoreState, Writer};
use super::sync::Syncing;
use gravwell_env::clock::Clock;
use gravwell_env::fs::{File, Fs, read_exact_at, write_again};

/// Suffix of temporary files.
const UNFINISHED: &str = ".tmp";

/// Report of what opening a store found and changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Packs found.
    pub packs: u64,
    /// Chunks that are available.
    pub chunks: u64,
    /// Corrupt locations that had been durable. The chunks concerned are treated as missing.
    pub damages: Vec<Damage>,
    /// Incomplete writes of an earlier process. There is no evidence that they were ever durable.
    pub unfinished: Vec<Damage>,
    /// Indexes that were rebuilt from their packs.
    pub rebuilt: Vec<String>,
    /// Leftover files that were removed.
    pub removed: Vec<String>,
}

pub(super) fn open(
    dir: &Path,
    fs: Arc<dyn Fs>,
    clock: Arc<dyn Clock>,
    options: StoreOptions,
) -> Result<(ChunkStore, OpenReport), ChunkError> {
    let mut report = OpenReport::default();
    let (packs, tables) = tidy(&*fs, dir, &mut report)?;
    let shared = StoreState {
        files: Files::new(Arc::clone(&fs), dir.to_owned()),
        fs,
        dir: dir.to_owned(),
        clock,
        options,
        codec: Codec::default(),
        index: Index::new(),
        packs: Packs::default(),
        writer: Mutex::default(),
        syncing: Mutex::new(Syncing::default()),
        synced: Condvar::new(),
        poisoned: false.into(),
        damaged: Mutex::default(),
        collecting: Mutex::default(),
        held: Mutex::default(),
        latest: AtomicU32::default(),
    };
    bury(&shared, &packs, &tables, &mut report)?;
    let last = packs.last().max(tables.last());
    let mut writer = Writer { next: last.map_or(1, |last| last.saturating_add(1)), ..Writer::default() };
    for number in &packs {
        if is_stillborn(&shared, *number, tables.contains(number))? {
            shared.fs.remove(&dir.join(pack_name(*number))).map_err(ChunkError::io("remove", pack_name(*number)))?;
            report.removed.push(pack_name(*number));
            continue;
        }
        let found = examine(&shared, *number, tables.contains(number), &mut report)?;
        let is_last = packs.last() == Some(number);
        writer.active = take_in(&shared, found, is_last)?;
    }
    for damage in &report.damages {
        if let (Some(id), Some(Name::Pack(number))) = (damage.id, Name::parse(&damage.file))
            && shared.index.get(&id).is_none()
        {
            locked(&shared.damaged).insert(id, number);
        }
    }
    // After a process crash, changes that the earlier process made to the directory may not be durable yet.
    shared.fs.sync_dir(dir).map_err(ChunkError::io("sync", dir.display()))?;
    report.packs = packs.len() as u64;
    *locked(&shared.writer) = writer;
    let store = ChunkStore { shared: Arc::new(shared) };
    report.chunks = store.stats().chunks;
    Ok((store, report))
}

/// Removes temporary files; returns the numbers of packs and of indexes.
fn tidy(fs: &dyn Fs, dir: &Path, report: &mut OpenReport) -> Result<(BTreeSet<u32>, BTreeSet<u32>), ChunkError> {
    fs.create_dir_all(dir).map_err(ChunkError::io("create", dir.display()))?;
    let names = fs.list(dir).map_err(ChunkError::io("list", dir.display()))?;
    let (mut packs, mut tables) = (BTreeSet::new(), BTreeSet::new());
    for name in names {
        match Name::parse(&name) {
            Some(Name::Pack(number)) => drop(packs.insert(number)),
            Some(Name::Table(number)) => drop(tables.insert(number)),
            None if name.strip_suffix(UNFINISHED).and_then(Name::parse).is_some() => {
                fs.remove(&dir.join(&name)).map_err(ChunkError::io("remove", &name))?;
                report.removed.push(name);
            }
            None => {}
        }
    }
    Ok((packs, tables))
}

/// Reports the chunks of packs of which only the index exists, and removes the index.
fn bury(
    shared: &StoreState,
    packs: &BTreeSet<u32>,
    tables: &BTreeSet<u32>,
    report: &mut OpenReport,
) -> Result<(), ChunkError> {
    for number in tables.difference(packs) {
        let (pack, table) = (pack_name(*number), table_name(*number));
        // The store removes an index before its pack, so it did not remove this pack.
        let damage = |id, offset| Damage { id, file: pack.clone(), offset, what: "the file is missing".into() };
        report.damages.push(damage(None, 0));
        let rows = load_table(shared, *number, 0).map(|table| table.rows).unwrap_or_default();
        report.damages.extend(rows.iter().map(|row| damage(Some(row.id), u64::from(row.offset))));
        shared.fs.remove(&shared.dir.join(&table)).map_err(ChunkError::io("remove", &table))?;
        report.removed.push(table);
    }
    Ok(())
}

/// Returns whether a pack was created but never held a frame.
fn is_stillborn(shared: &StoreState, number: u32, has_table: bool) -> Result<bool, ChunkError> {
    let name = pack_name(number);
    let file = shared.fs.open(&shared.dir.join(&name)).map_err(ChunkError::io("open", &name))?;
    let length = file.len().map_err(ChunkError::io("read", &name))?;
    Ok(!has_table && length <= PACK_HEADER_BYTES as u64)
}

/// A pack as found on disk.
struct Found {
    number: u32,
    file: Arc<dyn File>,
    header: PackHeader,
    /// Whether the header has to be rewritten.
    is_headless: bool,
    length: u64,
    /// Length of the prefix covered by the index.
    covered: u64,
    rows: Vec<Row>,
    /// End of the last intact frame.
    end: u64,
    /// Whether there is corruption other than an incomplete tail.
    has_gaps: bool,
}

fn examine(shared: &StoreState, number: u32, has_table: bool, report: &mut OpenReport) -> Result<Found, ChunkError> {
    let name = pack_name(number);
    let file = shared.fs.open(&shared.dir.join(&name)).map_err(ChunkError::io("open", &name))?;
    let length = file.len().map_err(ChunkError::io("read", &name))?;
    let header = read_header(&*file, number);
    let table = if has_table { read_table(shared, number, header.as_ref().ok(), length, report) } else { None };
    let covered = table.as_ref().map_or(PACK_HEADER_BYTES as u64, |table| table.covered);
    let mut rows = table.as_ref().map(|table| table.rows.clone()).unwrap_or_default();
    if table.is_some() && covered > length {
        let what = format!("the file ends there, but {covered} bytes of it were durable");
        report.damages.push(Damage { id: None, file: name.clone(), offset: length, what });
        rows.retain(|row| {
            let is_there = u64::from(row.offset) + frame_bytes(row.stored) <= length;
            if !is_there {
                let what = "it is past the end of the file".into();
                let (file, offset) = (name.clone(), u64::from(row.offset));
                report.damages.push(Damage { id: Some(row.id), file, offset, what });
            }
            is_there
        });
    }
    let scanned = scan(&*file, number, covered.min(length), length);
    if let Err(what) = &header {
        let damage = Damage { id: None, file: name.clone(), offset: 0, what: what.clone() };
        let was_durable = table.is_some() || has_table;
        if was_durable { report.damages.push(damage) } else { report.unfinished.push(damage) }
    }
    let has_gaps = scanned.gaps.iter().any(|gap| gap.offset < scanned.end)
        || (table.is_some() && covered > length)
        || header.is_err();
    for gap in scanned.gaps {
        let what = format!("{} ({} bytes)", gap.what, gap.bytes);
        let damage = Damage { id: gap.id, file: name.clone(), offset: gap.offset, what };
        if gap.was_durable { report.damages.push(damage) } else { report.unfinished.push(damage) }
    }
    rows.extend(scanned.rows);
    let covered = if table.is_some() { covered } else { 0 };
    let is_headless = header.is_err();
    let known = header.ok().or(table.map(|table| table.pack));
    let header = known.unwrap_or_else(|| PackHeader { number, created_ms: shared.clock.now_ms() });
    Ok(Found { number, file, header, is_headless, length, covered, rows, end: scanned.end, has_gaps })
}

pub(super) fn read_header(file: &dyn File, number: u32) -> Result<PackHeader, String> {
    let mut bytes = [0; PACK_HEADER_BYTES];
    read_exact_at(file, &mut bytes, 0).map_err(|error| format!("cannot be read: {error}"))?;
    let header = PackHeader::decode(&bytes).map_err(|error| error.to_string())?;
    if header.number == number { Ok(header) } else { Err(format!("it is pack {}", header.number)) }
}

/// Returns the index of a pack, or `None` if it is unusable; the pack is scanned in that case.
fn read_table(
    shared: &StoreState,
    number: u32,
    header: Option<&PackHeader>,
    length: u64,
    report: &mut OpenReport,
) -> Option<Table> {
    match load_table(shared, number, length) {
        Ok(table) if header.is_none_or(|header| *header == table.pack) => Some(table),
        Ok(_) => {
            report.rebuilt.push(table_name(number));
            None
        }
        Err(what) => {
            report.damages.push(Damage { id: None, file: table_name(number), offset: 0, what });
            report.rebuilt.push(table_name(number));
            None
        }
    }
}

/// Reads the index of a pack of this length; returns a description of the error if it is invalid.
pub(super) fn load_table(shared: &StoreState, number: u32, pack_bytes: u64) -> Result<Table, String> {
    let text = |error: io::Error| format!("cannot be read: {error}");
    let file = shared.fs.open(&shared.dir.join(table_name(number))).map_err(text)?;
    let length = file.len().map_err(text)?;
    let frames_max = (pack_bytes.max(shared.options.pack_bytes)) / FRAME_HEADER_BYTES as u64;
    let allowed = (TABLE_HEADER_BYTES + TABLE_CRC_BYTES) as u64 + frames_max * ROW_BYTES as u64;
    if length > allowed {
        return Err(format!("{length} bytes: an index of this pack has at most {allowed}"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    read_exact_at(&*file, &mut bytes, 0).map_err(text)?;
    let table = Table::decode(&bytes).map_err(|error| error.to_string())?;
    if table.pack.number != number {
        return Err(format!("it is the index of pack {}", table.pack.number));
    }
    let within = |row: &Row| u64::from(row.offset) + frame_bytes(row.stored) <= table.covered;
    if table.rows.iter().all(within) { Ok(table) } else { Err("a row is past the covered range".into()) }
}

/// Adds a pack to the store. If it is the last one, writing may continue in it.
fn take_in(shared: &StoreState, found: Found, is_last: bool) -> Result<Option<OpenPack>, ChunkError> {
    let name = pack_name(found.number);
    let goes_on = is_last && !found.has_gaps && found.end < shared.options.pack_bytes / 2;
    if goes_on && found.end < found.length {
        found.file.set_len(found.end).map_err(ChunkError::io("cut", &name))?;
    }
    if found.is_headless {
        found.file.write_at(&found.header.encode(), 0).map_err(ChunkError::io("write", &name))?;
    }
    let has_news = found.is_headless || found.covered < found.end || (goes_on && found.end < found.length);
    if has_news {
        // After a failed sync, the bytes read may exist only in the page cache. They are rewritten before anything
        // relies on them.
        write_again(&*found.file, found.end.min(found.length)).map_err(ChunkError::io("sync", &name))?;
    }
    let header = found.header;
    let bytes = if goes_on { found.end } else { found.length };
    let is_tabled = found.covered == found.length && !found.has_gaps;
    let rows = if goes_on || !is_tabled { Some(found.rows.clone()) } else { None };
    let known = Pack { created_ms: header.created_ms, bytes, is_done: !goes_on, rows, ..Pack::default() };
    shared.packs.lock().insert(found.number, known);
    for row in &found.rows {
        shared.settle(row.id, Location::of(found.number, row));
    }
    if goes_on {
        if has_news {
            // The index records that these bytes are durable, so that the next open need not rewrite them.
            shared.write_table(header, found.end, false);
        }
        return Ok(Some(OpenPack { header, file: found.file, end: found.end, durable: found.end }));
    }
    if !is_tabled {
        // With an index of the whole file, the next open does not report the same gaps again.
        shared.write_table(header, found.length, true);
    }
    Ok(None)
}
