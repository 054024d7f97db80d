//! The file in which a search keeps its rows: written once from begin to end, readable while it grows.
//!
//! ```text
//! head    "gwresult", version u32 = 1, CRC-32C of these 12 bytes u32
//! block   length of what follows the head of the block u32, rows u32, first time i64, last time i64, CRC-32C u32 over these
//!         24 bytes and what follows; then rows: time i64, tag u16, length u32, that many bytes of JSON
//! end     a block with rows = 2^32-1, which holds the summary as JSON
//! ```
//!
//! Numbers are little-endian. A file without an end is one whose webserver ended while it was written: its whole blocks
//! are good. A block whose checksum does not fit is never given to anybody.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::row::{ROW_BYTES_MAX, ROW_HEAD_BYTES, Row};
use crate::objects::Moment;

const MAGIC: &[u8; 8] = b"gwresult";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const BLOCK_HEAD_BYTES: usize = 28;
const END: u32 = u32::MAX;
/// A block is written when it has this many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// No block is longer: one largest row, and what was there before it.
const BLOCK_BYTES_MAX: usize = ROW_BYTES_MAX + BLOCK_BYTES + 64;
/// Blocks of a file are no more than one for so many bytes, and some: rows are shown while they come, so the first ones may be
/// small. What is known of each is in memory while the file is open.
const BYTES_OF_BLOCK: u64 = 4 << 10;
const SMALL_BLOCKS: u64 = 16 << 10;
/// Stretches of time in the histogram.
pub const BUCKETS: usize = 100;

/// Why results cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file.
    #[error("the results cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// What is in it.
    #[error("the results are damaged at byte {offset}: {what}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// What is known at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Rows.
    pub rows: u64,
    /// Rows in equal stretches of the range, first to last.
    pub histogram: Vec<u64>,
    /// What the search was.
    #[serde(default)]
    pub about: About,
}

/// What a search was, as its results say it wherever they are brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// What was typed.
    pub query: String,
    /// What was run, when that is something else.
    #[serde(default)]
    pub effective_query: String,
    /// Names of tags, by place.
    pub tags: Vec<String>,
    /// Columns, if the query says so.
    pub columns: Option<Vec<String>>,
    /// First time.
    pub since: Moment,
    /// First time after it.
    pub until: Moment,
    /// When it began.
    pub started: Moment,
    /// Name for people.
    #[serde(default)]
    pub name: String,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    offset: u64,
    length: usize,
    rows: u32,
    first_row: u64,
    first_time: i64,
    last_time: i64,
}

/// How far a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whole blocks.
    pub blocks: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether nothing more is written.
    pub is_finished: bool,
}

#[derive(Debug, Default)]
struct Index {
    blocks: Vec<Block>,
    summary: Option<Summary>,
    histogram: Vec<u64>,
}

/// A file of results, to be read.
#[derive(Debug)]
pub struct Results {
    file: File,
    path: PathBuf,
    index: Mutex<Index>,
    progress: watch::Sender<Progress>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let sum = crc32c::crc32c(&head[..12]);
    head[12..].copy_from_slice(&sum.to_le_bytes());
    head
}

fn block_head(rows: u32, times: (i64, i64), body: &[u8]) -> Option<[u8; BLOCK_HEAD_BYTES]> {
    let mut head = [0; BLOCK_HEAD_BYTES];
    head[..4].copy_from_slice(&u32::try_from(body.len()).ok()?.to_le_bytes());
    head[4..8].copy_from_slice(&rows.to_le_bytes());
    head[8..16].copy_from_slice(&times.0.to_le_bytes());
    head[16..24].copy_from_slice(&times.1.to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..24]), body);
    head[24..].copy_from_slice(&sum.to_le_bytes());
    Some(head)
}

/// How many blocks a file of so many bytes may have.
fn most_blocks(bytes: u64) -> u64 {
    SMALL_BLOCKS + bytes / BYTES_OF_BLOCK
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, i64::from_le_bytes)
}

/// Writes results.
pub struct Writer {
    file: File,
    results: Arc<Results>,
    body: Vec<u8>,
    rows: u32,
    times: (i64, i64),
    offset: u64,
    row: u64,
    range: (i64, i64),
    histogram: Vec<u64>,
    about: About,
}

impl Writer {
    /// Begins a file; the range is that of the histogram.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, range: (i64, i64)) -> std::io::Result<Writer> {
        let mut file = File::options().create_new(true).read(true).write(true).open(path)?;
        file.write_all(&head())?;
        let results = Arc::new(Results {
            file: file.try_clone()?,
            path: path.to_owned(),
            index: Mutex::default(),
            progress: watch::Sender::new(Progress { bytes: HEAD_BYTES as u64, ..Progress::default() }),
        });
        Ok(Writer {
            file,
            results,
            body: Vec::with_capacity(BLOCK_BYTES + 4096),
            rows: 0,
            times: (i64::MAX, i64::MIN),
            offset: HEAD_BYTES as u64,
            row: 0,
            range,
            histogram: vec![0; BUCKETS],
            about: About::default(),
        })
    }

    /// Says what the search is; it stands at the end of the file.
    pub fn describe(&mut self, about: About) {
        self.about = about;
    }

    /// The same file, to be read while it grows.
    #[must_use]
    pub fn results(&self) -> Arc<Results> {
        Arc::clone(&self.results)
    }

    /// Bytes so far, those not yet in the file included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offset + self.body.len() as u64
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn push(&mut self, row: &Row) -> std::io::Result<()> {
        if row.data.len() > ROW_BYTES_MAX {
            return Err(std::io::Error::other("a row is too large"));
        }
        row.write(&mut self.body);
        self.rows += 1;
        self.times = (self.times.0.min(row.time), self.times.1.max(row.time));
        self.count(row.time);
        if self.body.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    fn count(&mut self, time: i64) {
        let (since, until) = self.range;
        if (since..until).contains(&time) {
            let width = (until.abs_diff(since) / BUCKETS as u64).max(1);
            let at = usize::try_from(time.abs_diff(since) / width).unwrap_or(usize::MAX);
            // What is left of the range by division belongs to the last stretch.
            if let Some(bucket) = self.histogram.get_mut(at.min(BUCKETS - 1)) {
                *bucket += 1;
            }
        }
    }

    /// Writes what there is as a block, so that readers see it.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn show(&mut self) -> std::io::Result<()> {
        // Beyond the small ones that there may be, rows are shown when there are enough of them.
        let blocks = locked(&self.results.index).blocks.len() as u64;
        // The last one comes in any case.
        let has_room = blocks + 1 < most_blocks(self.bytes());
        if has_room { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let head = block_head(self.rows, self.times, &self.body).ok_or_else(|| std::io::Error::other("too large"))?;
        self.file.write_all(&head)?;
        self.file.write_all(&self.body)?;
        let block = Block {
            offset: self.offset,
            length: self.body.len(),
            rows: self.rows,
            first_row: self.row,
            first_time: self.times.0,
            last_time: self.times.1,
        };
        self.offset += (BLOCK_HEAD_BYTES + self.body.len()) as u64;
        self.row += u64::from(self.rows);
        let blocks = {
            let mut index = locked(&self.results.index);
            index.blocks.push(block);
            index.histogram.clone_from(&self.histogram);
            index.blocks.len()
        };
        self.body.clear();
        (self.rows, self.times) = (0, (i64::MAX, i64::MIN));
        self.results.progress.send_replace(Progress { blocks, rows: self.row, bytes: self.offset, is_finished: false });
        Ok(())
    }

    /// Writes the end and makes the file durable.
    ///
    /// # Errors
    /// When the disk refuses; what is whole stays readable.
    pub fn finish(mut self) -> std::io::Result<Summary> {
        let written = self.flush().and_then(|()| {
            let summary = Summary { rows: self.row, histogram: self.histogram.clone(), about: self.about.clone() };
            let body = serde_json::to_vec(&summary)?;
            let head = block_head(END, (0, 0), &body).ok_or_else(|| std::io::Error::other("too large"))?;
            self.file.write_all(&head)?;
            self.file.write_all(&body)?;
            self.file.sync_data()?;
            self.offset += (BLOCK_HEAD_BYTES + body.len()) as u64;
            locked(&self.results.index).summary = Some(summary.clone());
            Ok(summary)
        });
        let bytes = self.offset;
        self.results.progress.send_modify(|progress| (progress.bytes, progress.is_finished) = (bytes, true));
        written
    }
}

impl Drop for Writer {
    /// However writing ends, nobody waits for more.
    fn drop(&mut self) {
        self.results.progress.send_modify(|progress| progress.is_finished = true);
    }
}

impl Results {
    /// Opens a file that is not written any more, and finds its whole blocks.
    ///
    /// # Errors
    /// When it is not a file of results.
    pub fn open(path: &Path) -> Result<Arc<Results>, ResultsError> {
        Results::read(path, u64::MAX)
    }

    /// The same with a file of which it is not known who wrote it.
    ///
    /// # Errors
    /// When it is not a file of results, or has more blocks than such files have.
    pub fn open_foreign(path: &Path) -> Result<Arc<Results>, ResultsError> {
        Results::read(path, most_blocks(std::fs::metadata(path)?.len()))
    }

    fn read(path: &Path, blocks_max: u64) -> Result<Arc<Results>, ResultsError> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut found = [0; HEAD_BYTES];
        file.read_exact(&mut found)?;
        if found != head() {
            return Err(ResultsError::Damaged { offset: 0, what: "these are no results of version 1" });
        }
        let results = Results {
            file,
            path: path.to_owned(),
            index: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
        };
        let (mut offset, mut row) = (HEAD_BYTES as u64, 0);
        let mut index = Index::default();
        while let Some((block, rows)) = results.block_at(offset, size, row)? {
            offset += (BLOCK_HEAD_BYTES + block.length) as u64;
            if rows == END {
                let body = results.body(&block)?;
                index.summary = serde_json::from_slice(&body).ok();
                break;
            }
            row += u64::from(rows);
            index.blocks.push(block);
            if index.blocks.len() as u64 > blocks_max {
                return Err(ResultsError::Damaged {
                    offset: block.offset,
                    what: "there are more blocks than files have",
                });
            }
        }
        index.histogram = index.summary.as_ref().map(|summary| summary.histogram.clone()).unwrap_or_default();
        let progress = Progress { blocks: index.blocks.len(), rows: row, bytes: offset, is_finished: true };
        results.progress.send_replace(progress);
        *locked(&results.index) = index;
        Ok(Arc::new(results))
    }

    fn block_at(&self, offset: u64, size: u64, first_row: u64) -> Result<Option<(Block, u32)>, ResultsError> {
        if offset + BLOCK_HEAD_BYTES as u64 > size {
            return Ok(None);
        }
        let mut head = [0; BLOCK_HEAD_BYTES];
        self.file.read_exact_at(&mut head, offset)?;
        let (length, rows) = (u32_at(&head, 0) as usize, u32_at(&head, 4));
        if length > BLOCK_BYTES_MAX {
            return Err(ResultsError::Damaged { offset, what: "a block is longer than blocks are" });
        }
        if offset + (BLOCK_HEAD_BYTES + length) as u64 > size {
            return Ok(None);
        }
        // None is written without rows: here it broke off, or somebody made it so that it takes memory.
        if rows == 0 {
            return Ok(None);
        }
        let (first_time, last_time) = (i64_at(&head, 8), i64_at(&head, 16));
        Ok(Some((Block { offset, length, rows, first_row, first_time, last_time }, rows)))
    }

    fn body(&self, block: &Block) -> Result<Bytes, ResultsError> {
        let mut bytes = vec![0; BLOCK_HEAD_BYTES + block.length];
        self.file.read_exact_at(&mut bytes, block.offset)?;
        let (head, body) = bytes.split_at(BLOCK_HEAD_BYTES);
        if crc32c::crc32c_append(crc32c::crc32c(&head[..24]), body) != u32_at(head, 24) {
            return Err(ResultsError::Damaged { offset: block.offset, what: "a checksum does not fit" });
        }
        Ok(Bytes::from(bytes).slice(BLOCK_HEAD_BYTES..))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How far it is written.
    #[must_use]
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Tells of every block.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The end, if the file has one.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        locked(&self.index).summary.clone()
    }

    /// Rows so far in equal stretches of the range.
    #[must_use]
    pub fn histogram(&self) -> Vec<u64> {
        locked(&self.index).histogram.clone()
    }

    /// The rows of one block; `None` beyond the last one.
    ///
    /// # Errors
    /// When the block is damaged or the disk fails.
    pub fn block(&self, number: usize) -> Result<Option<Vec<Row>>, ResultsError> {
        let Some(block) = locked(&self.index).blocks.get(number).copied() else { return Ok(None) };
        let damaged = || ResultsError::Damaged { offset: block.offset, what: "rows do not fit into their block" };
        let mut body = self.body(&block)?;
        let mut rows = Vec::with_capacity((block.rows as usize).min(body.len() / ROW_HEAD_BYTES));
        while !body.is_empty() {
            rows.push(Row::take(&mut body).ok_or_else(damaged)?);
        }
        if rows.len() == block.rows as usize { Ok(Some(rows)) } else { Err(damaged()) }
    }

    /// Bytes of memory that it takes while it is open.
    #[must_use]
    pub fn memory(&self) -> usize {
        locked(&self.index).blocks.capacity() * size_of::<Block>()
    }

    /// Bytes of one block; 0 beyond the last one.
    #[must_use]
    pub fn block_bytes(&self, number: usize) -> usize {
        locked(&self.index).blocks.get(number).map_or(0, |block| BLOCK_HEAD_BYTES + block.length)
    }

    /// At most `bytes_max` bytes of the file itself from `offset` on; none at its end.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn piece(&self, offset: u64, bytes_max: usize) -> std::io::Result<Vec<u8>> {
        let left = usize::try_from(self.file.metadata()?.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(bytes_max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Number of the block that holds a row.
    fn block_of(&self, row: u64) -> usize {
        locked(&self.index).blocks.partition_point(|block| block.first_row + u64::from(block.rows) <= row)
    }

    /// Rows from `first` on, at most `rows_max` of them and little more than `bytes_max` bytes.
    ///
    /// # Errors
    /// When a block is damaged or the disk fails.
    pub fn page(&self, first: u64, rows_max: usize, bytes_max: usize) -> Result<Vec<Row>, ResultsError> {
        let (mut page, mut bytes, mut number) = (Vec::new(), 0, self.block_of(first));
        while page.len() < rows_max && bytes < bytes_max {
            let begin = locked(&self.index).blocks.get(number).map_or(0, |block| block.first_row);
            let Some(rows) = self.block(number)? else { break };
            let skipped = usize::try_from(first.saturating_sub(begin)).unwrap_or(usize::MAX);
            for row in rows.into_iter().skip(skipped).take(rows_max - page.len()) {
                bytes += row.data.len();
                page.push(row);
                if bytes >= bytes_max {
                    break;
                }
            }
            number += 1;
        }
        Ok(page)
    }

    /// Whether a block may hold rows of a range.
    #[must_use]
    pub fn may_hold(&self, number: usize, since: i64, until: i64) -> bool {
        locked(&self.index).blocks.get(number).is_some_and(|block| block.last_time >= since && block.first_time < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: i64, bytes: usize) -> Row {
        Row { time: number, tag: 3, data: Bytes::from(format!("\"{}\"", "x".repeat(bytes))) }
    }

    fn written(path: &Path, rows: i64, bytes: usize) -> Summary {
        let mut writer = Writer::create(path, (0, rows.max(1))).expect("creates");
        (0..rows).for_each(|number| writer.push(&row(number, bytes)).expect("writes"));
        writer.finish().expect("finishes")
    }

    #[test]
    fn what_was_written_is_read() {
        let temp = tempfile::tempdir().expect("temp dir");
        for rows in [0, 1, 1000] {
            let path = temp.path().join(rows.to_string());
            let summary = written(&path, rows, 1000);
            let results = Results::open(&path).expect("opens");
            assert_eq!((results.summary(), results.progress().rows), (Some(summary), rows as u64));
            assert_eq!(results.histogram().iter().sum::<u64>(), rows as u64);
            let all = results.page(0, usize::MAX, usize::MAX).expect("reads");
            assert!(all == (0..rows).map(|number| row(number, 1000)).collect::<Vec<_>>());
            for first in [0, 1, 255, 256, 700, 999, 1000, 5000] {
                let page = results.page(first, 3, usize::MAX).expect("reads");
                let wanted: Vec<i64> = (first as i64..rows).take(3).collect();
                assert_eq!(page.iter().map(|row| row.time).collect::<Vec<_>>(), wanted);
            }
            assert!(results.page(0, usize::MAX, 1500).expect("reads").len() <= 2);
        }
    }

    #[test]
    fn a_file_is_read_while_it_grows_and_after_it_was_cut_off() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("r");
        let mut writer = Writer::create(&path, (0, 10)).expect("creates");
        let results = writer.results();
        writer.push(&row(1, 10)).expect("writes");
        assert_eq!(results.progress().rows, 0);
        writer.flush().expect("flushes");
        assert_eq!(results.block(0).expect("reads").expect("a block"), [row(1, 10)]);
        writer.push(&row(2, 10)).expect("writes");
        drop(writer);
        assert!(results.progress().is_finished);
        let size = std::fs::metadata(&path).expect("size").len();
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&[7; 20]))
            .expect("appends");
        let again = Results::open(&path).expect("opens");
        assert_eq!((again.progress().rows, again.progress().bytes, again.summary()), (1, size, None));
    }

    #[test]
    fn p15_a_file_has_few_blocks_and_none_without_rows() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("r");
        let mut writer = Writer::create(&path, (0, 1)).expect("creates");
        for number in 0..20_000 {
            writer.push(&row(number, 5)).expect("writes");
            writer.show().expect("shows");
        }
        let summary = writer.finish().expect("finishes");
        let results = Results::open_foreign(&path).expect("what is written here is taken elsewhere");
        assert_eq!((results.progress().rows, results.summary()), (20_000, Some(summary)));
        assert!(results.progress().blocks as u64 > SMALL_BLOCKS && results.memory() < 4 << 20);
        let whole = std::fs::read(&path).expect("reads");
        let made = |block: &[u8], count: usize| {
            let path = temp.path().join("made");
            std::fs::write(&path, [&whole[..HEAD_BYTES], &block.repeat(count)].concat()).expect("writes");
            path
        };
        let empty = made(&block_head(0, (0, 0), b"").expect("small"), 1000);
        let opened = Results::open(&empty).expect("opens");
        assert_eq!((opened.progress().blocks, opened.memory(), opened.summary()), (0, 0, None), "it broke off there");
        let mut body = Vec::new();
        row(1, 1).write(&mut body);
        let small = [&block_head(1, (1, 1), &body).expect("small")[..], &body].concat();
        let many = made(&small, 2 * usize::try_from(SMALL_BLOCKS).expect("few"));
        assert!(matches!(Results::open_foreign(&many), Err(ResultsError::Damaged { .. })));
    }

    #[test]
    fn no_flipped_bit_goes_unnoticed() {
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("r");
        written(&path, 3, 5);
        let good = std::fs::read(&path).expect("reads");
        let whole = Results::open(&path).and_then(|results| results.page(0, 10, usize::MAX)).expect("reads");
        // Two bits of every byte, which are others from byte to byte.
        for bit in (0..good.len()).flat_map(|byte| [byte * 8 + byte % 8, byte * 8 + (byte + 3) % 8]) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).expect("writes");
            let read = Results::open(&path).and_then(|results| {
                let rows = results.page(0, 10, usize::MAX)?;
                Ok((rows, results.summary()))
            });
            // The end may be lost, which is noticed as such; rows are never others than they were.
            if let Ok((rows, summary)) = read {
                assert!(rows == whole || (rows.is_empty() && summary.is_none()), "bit {bit}");
                assert!(summary.is_none_or(|summary| summary.rows == 3), "bit {bit}");
            }
        }
    }
}
