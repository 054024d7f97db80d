//! File that stores the rows of a search: written once from start to end, readable while it grows.
//!
//! ```text
//! head    "gwresult", version u32 = 1, CRC-32C of these 12 bytes u32
//! block   length of the body u32, rows u32, first time i64, last time i64, CRC-32C u32 over these 24 bytes and the body;
//!         then the body, rows: time i64, tag u16, length u32, that many bytes of JSON
//! end     a block with rows = 2^32-1, which holds the summary as JSON
//! ```
//!
//! Numbers are little-endian. A file without an end block was left by a webserver that exited while writing; its complete
//! blocks are valid. A block with a wrong checksum is never returned.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::row::{ROW_BYTES_MAX, ROW_HEAD_BYTES, Row};
use gravwell_objects::Timestamp;

const MAGIC: &[u8; 8] = b"gwresult";
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
const BLOCK_HEAD_BYTES: usize = 28;
const END: u32 = u32::MAX;
/// A block is written once it has this many bytes.
const BLOCK_BYTES: usize = 256 << 10;
/// Maximum length of a block: one row of maximum size and the rows before it.
const BLOCK_BYTES_MAX: usize = ROW_BYTES_MAX + BLOCK_BYTES + 64;
/// A file has at most one block per `BYTES_OF_BLOCK` plus `SMALL_BLOCKS`. Rows become visible while they arrive, so
/// blocks may be small at first. The limit bounds the block index, which is in memory while the file is open.
const BYTES_OF_BLOCK: u64 = 4 << 10;
const SMALL_BLOCKS: u64 = 16 << 10;
/// Number of time intervals in the histogram.
pub const BUCKETS: usize = 100;

/// Error of reading results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file could not be read.
    #[error("cannot read the results: {0}")]
    Io(#[from] std::io::Error),
    /// The content is invalid.
    #[error("the results are corrupt at byte {offset}: {what}")]
    Damaged {
        /// Offset of the invalid block in the file.
        offset: u64,
        /// Description of the defect.
        what: &'static str,
    },
}

/// Summary in the end block of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of rows.
    pub rows: u64,
    /// Number of rows in each of [`BUCKETS`] equal intervals of the time range, in order.
    pub histogram: Vec<u64>,
    /// Description of the search.
    #[serde(default)]
    pub about: About,
}

/// Description of a search, stored in its results so that it survives an export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Query as entered by the user.
    pub query: String,
    /// Query that was executed, if it differs from the entered one.
    #[serde(default)]
    pub effective_query: String,
    /// Names of the tags; rows refer to them by index.
    pub tags: Vec<String>,
    /// Columns, if the query defines them.
    pub columns: Option<Vec<String>>,
    /// Start of the time range, inclusive.
    pub since: Timestamp,
    /// End of the time range, exclusive.
    pub until: Timestamp,
    /// Time at which it started.
    pub started: Timestamp,
    /// Name chosen by the user.
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

/// Progress of writing a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of complete blocks.
    pub blocks: usize,
    /// Number of rows in them.
    pub rows: u64,
    /// Size of the file, in bytes.
    pub bytes: u64,
    /// Whether no more data will be written.
    pub is_finished: bool,
}

#[derive(Debug, Default)]
struct Index {
    blocks: Vec<Block>,
    summary: Option<Summary>,
    histogram: Vec<u64>,
}

/// Reader of a results file.
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

/// Maximum number of blocks of a file of `bytes` bytes.
fn most_blocks(bytes: u64) -> u64 {
    SMALL_BLOCKS + bytes / BYTES_OF_BLOCK
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, i64::from_le_bytes)
}

/// Writer of a results file.
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
    /// Creates a file; `range` is the time range of the histogram.
    ///
    /// # Errors
    /// If the file cannot be created.
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

    /// Sets the description of the search, which is stored in the end block.
    pub fn describe(&mut self, about: About) {
        self.about = about;
    }

    /// Returns a reader of the same file, usable while it grows.
    #[must_use]
    pub fn results(&self) -> Arc<Results> {
        Arc::clone(&self.results)
    }

    /// Returns the size so far in bytes, including rows not yet written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.offset + self.body.len() as u64
    }

    /// Adds a row.
    ///
    /// # Errors
    /// If the row is too large or the file cannot be written.
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
            // The last interval also covers the remainder of the division.
            if let Some(bucket) = self.histogram.get_mut(at.min(BUCKETS - 1)) {
                *bucket += 1;
            }
        }
    }

    /// Writes the buffered rows as a block, so that readers see them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn show(&mut self) -> std::io::Result<()> {
        // Once the limit of blocks is reached, rows become visible only in full blocks.
        let blocks = locked(&self.results.index).blocks.len() as u64;
        // One block is reserved for the last rows.
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

    /// Writes the end block and syncs the file.
    ///
    /// # Errors
    /// If the file cannot be written; complete blocks remain readable.
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
    /// Marks the file as finished, so that no reader waits for more rows.
    fn drop(&mut self) {
        self.results.progress.send_modify(|progress| progress.is_finished = true);
    }
}

impl Results {
    /// Opens a file that is no longer written, and indexes its complete blocks.
    ///
    /// # Errors
    /// If it is not a results file.
    pub fn open(path: &Path) -> Result<Arc<Results>, ResultsError> {
        Results::read(path, u64::MAX)
    }

    /// Opens a file of unknown origin.
    ///
    /// # Errors
    /// If it is not a results file, or has more blocks than a writer would create.
    pub fn open_foreign(path: &Path) -> Result<Arc<Results>, ResultsError> {
        Results::read(path, most_blocks(std::fs::metadata(path)?.len()))
    }

    fn read(path: &Path, blocks_max: u64) -> Result<Arc<Results>, ResultsError> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut found = [0; HEAD_BYTES];
        file.read_exact(&mut found)?;
        if found != head() {
            return Err(ResultsError::Damaged { offset: 0, what: "not a results file of version 1" });
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
                return Err(ResultsError::Damaged { offset: block.offset, what: "too many blocks" });
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
            return Err(ResultsError::Damaged { offset, what: "block too long" });
        }
        if offset + (BLOCK_HEAD_BYTES + length) as u64 > size {
            return Ok(None);
        }
        // A writer never creates blocks without rows. The file was truncated here, or crafted to consume memory.
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
            return Err(ResultsError::Damaged { offset: block.offset, what: "checksum mismatch" });
        }
        Ok(Bytes::from(bytes).slice(BLOCK_HEAD_BYTES..))
    }

    /// Returns the path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the progress of the writer.
    #[must_use]
    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Subscribes to the progress, which changes with every block.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Returns the summary, if the file has an end block.
    #[must_use]
    pub fn summary(&self) -> Option<Summary> {
        locked(&self.index).summary.clone()
    }

    /// Returns the number of rows so far in each interval of the time range.
    #[must_use]
    pub fn histogram(&self) -> Vec<u64> {
        locked(&self.index).histogram.clone()
    }

    /// Returns the rows of one block; `None` past the last one.
    ///
    /// # Errors
    /// If the block is corrupt or the file cannot be read.
    pub fn block(&self, number: usize) -> Result<Option<Vec<Row>>, ResultsError> {
        let Some(block) = locked(&self.index).blocks.get(number).copied() else { return Ok(None) };
        let damaged = || ResultsError::Damaged { offset: block.offset, what: "rows exceed their block" };
        let mut body = self.body(&block)?;
        let mut rows = Vec::with_capacity((block.rows as usize).min(body.len() / ROW_HEAD_BYTES));
        while !body.is_empty() {
            rows.push(Row::take(&mut body).ok_or_else(damaged)?);
        }
        if rows.len() == block.rows as usize { Ok(Some(rows)) } else { Err(damaged()) }
    }

    /// Returns the memory of the block index, in bytes.
    #[must_use]
    pub fn memory(&self) -> usize {
        locked(&self.index).blocks.capacity() * size_of::<Block>()
    }

    /// Returns the size of one block in bytes; 0 past the last one.
    #[must_use]
    pub fn block_bytes(&self, number: usize) -> usize {
        locked(&self.index).blocks.get(number).map_or(0, |block| BLOCK_HEAD_BYTES + block.length)
    }

    /// Returns at most `bytes_max` bytes of the file starting at `offset`; empty at the end of the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn piece(&self, offset: u64, bytes_max: usize) -> std::io::Result<Vec<u8>> {
        let left = usize::try_from(self.file.metadata()?.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(bytes_max)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Returns the number of the block that contains a row.
    fn block_of(&self, row: u64) -> usize {
        locked(&self.index).blocks.partition_point(|block| block.first_row + u64::from(block.rows) <= row)
    }

    /// Returns rows starting at `first`: at most `rows_max`, and slightly more than `bytes_max` bytes at most.
    ///
    /// # Errors
    /// If a block is corrupt or the file cannot be read.
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

    /// Returns whether a block may contain rows of a time range.
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
        let results = Results::open_foreign(&path).expect("own results can be imported");
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
        assert_eq!(
            (opened.progress().blocks, opened.memory(), opened.summary()),
            (0, 0, None),
            "the file is truncated there"
        );
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
        // Flips two bits of every byte; the bit positions change from byte to byte.
        for bit in (0..good.len()).flat_map(|byte| [byte * 8 + byte % 8, byte * 8 + (byte + 3) % 8]) {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).expect("writes");
            let read = Results::open(&path).and_then(|results| {
                let rows = results.page(0, 10, usize::MAX)?;
                Ok((rows, results.summary()))
            });
            // The end block may be lost, which readers notice. Returned rows are always the original ones.
            if let Ok((rows, summary)) = read {
                assert!(rows == whole || (rows.is_empty() && summary.is_none()), "bit {bit}");
                assert!(summary.is_none_or(|summary| summary.rows == 3), "bit {bit}");
            }
        }
    }
}
