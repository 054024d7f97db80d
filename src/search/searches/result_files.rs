//! Results files and the disk space that they may use.
//!
//! Unsaved results are temporary. If a user reaches their share of the space, their oldest results are evicted first. If
//! the total is used up, or the disk is nearly full, the oldest results of the user with the most are evicted, unless
//! that user has less than the requester would have. Results that are being read or written are kept. This keeps results
//! from filling the disk that the replica needs.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use crate::results::Results;
use gravwell_runtime::telemetry::metrics;

/// Space is reserved in steps of this many bytes.
const STEP: u64 = 256 << 10;
/// Default limits: results use at most 1/`PART` of the disk, and one user at most 1/`PART` of that.
const PART: u64 = 4;
/// Maximum number of files that are kept open, and maximum memory of their indexes.
const OPENED_MAX: usize = 64;
const OPENED_BYTES_MAX: usize = 32 << 20;
const MIB: u64 = 1 << 20;

/// Limits on the space of results, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// All results; 0: a quarter of the disk.
    pub total: u64,
    /// Results of one user; 0: a quarter of all results.
    pub of_user: u64,
    /// No results are written while the disk has less free space.
    pub free_min: u64,
}

/// Reason why there is no space for more results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSpace {
    /// The user has reached their limit.
    #[error("your results exceed {} MiB (Render-Store-User-MB); delete searches that you do not need", .0 / MIB)]
    OfUser(u64),
    /// All results together have reached the limit.
    #[error("the results at this webserver exceed {} MiB (Render-Store-Total-MB); try again later", .0 / MIB)]
    OfAll(u64),
    /// The disk is nearly full.
    #[error("the disk of this webserver has less than {} MiB free (Render-Store-Min-Free-MB); free disk space", .0 / MIB)]
    Disk(u64),
}

/// One results file.
#[derive(Default)]
struct ResultFile {
    path: PathBuf,
    /// UID of the owner; `None`: not known yet.
    uid: Option<i32>,
    bytes: u64,
    since: Option<SystemTime>,
    is_growing: bool,
    /// Whether it was deleted; its space is counted until the last reader closes it.
    is_gone: bool,
    opened: Option<Arc<Results>>,
    readers: Vec<Weak<Results>>,
}

impl ResultFile {
    fn is_read(&self) -> bool {
        let others = self.readers.iter().map(Weak::strong_count).sum::<usize>();
        others > usize::from(self.opened.is_some())
    }

    fn may_go(&self) -> bool {
        self.uid.is_some() && !self.is_growing && !self.is_gone && !self.is_read()
    }

    fn read_by(&mut self, results: &Arc<Results>) {
        self.readers.retain(|reader| reader.strong_count() > 0);
        let reader = Arc::downgrade(results);
        if !self.readers.iter().any(|known| known.ptr_eq(&reader)) {
            self.readers.push(reader);
        }
    }
}

#[derive(Default)]
struct State {
    files: HashMap<String, ResultFile>,
    /// Sums over `files`.
    of_users: BTreeMap<i32, u64>,
    all: u64,
    /// Deleted files that may still have readers.
    gone: Vec<String>,
}

impl State {
    fn count(&mut self, uid: Option<i32>, add: u64, take: u64) {
        self.all = (self.all + add).saturating_sub(take);
        if let Some(uid) = uid {
            let its = self.of_users.entry(uid).or_default();
            *its = (*its + add).saturating_sub(take);
            if *its == 0 {
                self.of_users.remove(&uid);
            }
        }
    }

    fn insert(&mut self, id: &str, kept: ResultFile) {
        self.remove(id);
        self.count(kept.uid, kept.bytes, 0);
        self.files.insert(id.to_owned(), kept);
    }

    fn remove(&mut self, id: &str) -> Option<ResultFile> {
        let kept = self.files.remove(id)?;
        self.count(kept.uid, 0, kept.bytes);
        Some(kept)
    }

    fn set_bytes(&mut self, id: &str, bytes: u64) {
        let Some(kept) = self.files.get_mut(id) else { return };
        let (uid, before) = (kept.uid, std::mem::replace(&mut kept.bytes, bytes));
        self.count(uid, bytes, before);
    }

    /// Drops deleted files that no longer have readers.
    fn purge(&mut self) {
        let stays = |kept: &ResultFile| kept.is_gone && (kept.is_growing || kept.is_read());
        let (gone, over): (Vec<String>, Vec<String>) =
            std::mem::take(&mut self.gone).into_iter().partition(|id| self.files.get(id).is_some_and(stays));
        self.gone = gone;
        for id in over {
            if self.files.get(&id).is_some_and(|kept| kept.is_gone) {
                self.remove(&id);
            }
        }
    }

    fn of_user(&self, uid: i32) -> u64 {
        self.of_users.get(&uid).copied().unwrap_or_default()
    }

    /// Returns the number of files kept open and the memory of their indexes.
    fn opened(&self) -> (usize, usize) {
        let opened = self.files.values().filter_map(|kept| kept.opened.as_ref());
        opened.fold((0, 0), |(count, bytes), results| (count + 1, bytes + results.memory()))
    }

    /// Returns the oldest file of a user that may be evicted.
    fn oldest_of(&self, uid: i32) -> Option<String> {
        let its = self.files.iter().filter(|(_, kept)| kept.uid == Some(uid) && kept.may_go());
        its.min_by_key(|(id, kept)| (kept.since, (*id).clone())).map(|(id, _)| id.clone())
    }

    /// Returns the oldest evictable file of the user with the most bytes; users with fewer than `least` bytes
    /// are skipped.
    fn oldest_of_greatest(&self, least: u64) -> Option<String> {
        let mut users: Vec<_> = self.of_users.iter().filter(|(_, bytes)| **bytes >= least).collect();
        users.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
        users.into_iter().find_map(|(uid, _)| self.oldest_of(*uid))
    }
}

/// Results files of this webserver.
pub(super) struct ResultFiles {
    dir: PathBuf,
    bounds: Bounds,
    state: Mutex<State>,
}

fn disk(dir: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

impl ResultFiles {
    /// Indexes the files in a directory; `owner` returns the owner of a search, if known.
    pub(super) fn open(
        dir: &Path,
        bounds: Bounds,
        owner: impl Fn(&str) -> Option<i32>,
    ) -> std::io::Result<ResultFiles> {
        std::fs::create_dir_all(dir)?;
        let size = disk(dir).map_or(u64::MAX, |(size, _)| size);
        let total = if bounds.total == 0 { size / PART } else { bounds.total };
        let of_user = if bounds.of_user == 0 { total / PART } else { bounds.of_user };
        let mut state = State::default();
        for entry in std::fs::read_dir(dir)?.filter_map(Result::ok) {
            let path = entry.path();
            let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_owned();
            let id = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            if extension == "part" {
                let _ = std::fs::remove_file(&path);
            } else if let ("results", Ok(data)) = (extension.as_str(), entry.metadata()) {
                let (uid, since) = (owner(&id), data.modified().ok());
                state.insert(&id, ResultFile { path, uid, bytes: data.len(), since, ..ResultFile::default() });
            }
        }
        let bounds = Bounds { total, of_user, ..bounds };
        let stock = ResultFiles { dir: dir.to_owned(), bounds, state: Mutex::new(state) };
        metrics::result_store(stock.state().all);
        Ok(stock)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn file(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{id}.results"))
    }

    /// Returns the files whose owner is not known yet.
    pub(super) fn unowned(&self) -> Vec<String> {
        let state = self.state();
        state.files.iter().filter(|(_, kept)| kept.uid.is_none()).map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn set_owner(&self, id: &str, uid: i32) {
        let mut state = self.state();
        if let Some(kept) = state.remove(id) {
            state.insert(id, ResultFile { uid: Some(uid), ..kept });
        }
    }

    /// Returns results that are already open.
    pub(super) fn opened(&self, id: &str) -> Option<Arc<Results>> {
        let state = self.state();
        let kept = state.files.get(id).filter(|kept| !kept.is_gone)?;
        // Includes results that only readers still hold, so that they are not opened twice.
        kept.opened.clone().or_else(|| kept.readers.iter().find_map(Weak::upgrade))
    }

    /// Keeps results open for later readers.
    pub(super) fn keep_open(&self, id: &str, results: &Arc<Results>) {
        let mut state = self.state();
        let (opened, bytes) = state.opened();
        if opened >= OPENED_MAX || bytes + results.memory() > OPENED_BYTES_MAX {
            state.files.values_mut().for_each(|kept| kept.opened = None);
        }
        if let Some(kept) = state.files.get_mut(id) {
            kept.opened = Some(Arc::clone(results));
            kept.read_by(results);
        }
    }

    /// Deletes a file. Readers that have it open can continue.
    pub(super) fn forget(&self, id: &str) {
        let mut state = self.state();
        let path = match state.files.get_mut(id) {
            Some(kept) => {
                (kept.is_gone, kept.opened) = (true, None);
                kept.path.clone()
            }
            None => self.file(id),
        };
        let _ = std::fs::remove_file(path);
        state.gone.push(id.to_owned());
        state.purge();
        metrics::result_store(state.all);
    }

    /// Starts a file of a user at `path`.
    ///
    /// # Errors
    /// If there is no space for the first step.
    pub(super) fn begin(self: &Arc<Self>, id: &str, path: &Path, uid: i32) -> Result<Lease, NoSpace> {
        let since = Some(SystemTime::now());
        let kept =
            ResultFile { path: path.to_owned(), uid: Some(uid), since, is_growing: true, ..ResultFile::default() };
        self.state().insert(id, kept);
        let mut lease = Lease { stock: Arc::clone(self), id: id.to_owned(), granted: 0 };
        lease.grow(1)?;
        Ok(lease)
    }

    /// Returns the limit that prevents a user from using `more` bytes.
    fn shortage(&self, state: &State, uid: i32, more: u64) -> Option<NoSpace> {
        let Bounds { total, of_user, free_min } = self.bounds;
        if state.of_user(uid) + more > of_user {
            return Some(NoSpace::OfUser(of_user));
        }
        if state.all + more > total {
            return Some(NoSpace::OfAll(total));
        }
        let is_short = free_min > 0 && disk(&self.dir).is_some_and(|(_, free)| free < free_min.saturating_add(more));
        is_short.then_some(NoSpace::Disk(free_min))
    }

    fn make_room(&self, id: &str, more: u64) -> Result<(), NoSpace> {
        let mut state = self.state();
        state.purge();
        let Some(uid) = state.files.get(id).and_then(|kept| kept.uid) else { return Ok(()) };
        while let Some(shortage) = self.shortage(&state, uid, more) {
            let goes = match shortage {
                NoSpace::OfUser(_) => state.oldest_of(uid),
                NoSpace::OfAll(_) | NoSpace::Disk(_) => state.oldest_of_greatest(state.of_user(uid) + more),
            };
            // If no user has more, the requester's own results are evicted.
            let Some(goes) = goes.or_else(|| state.oldest_of(uid)) else { return Err(shortage) };
            if let Some(kept) = state.remove(&goes) {
                let _ = std::fs::remove_file(&kept.path);
                metrics::results_cleared_early();
                tracing::info!(id = goes, bytes = kept.bytes, "results evicted: {shortage}");
            }
        }
        let bytes = state.files.get(id).map_or(0, |kept| kept.bytes);
        state.set_bytes(id, bytes + more);
        metrics::result_store(state.all);
        Ok(())
    }
}

/// Permission to let a file grow.
pub struct Lease {
    stock: Arc<ResultFiles>,
    id: String,
    granted: u64,
}

impl Lease {
    /// Reserves space for a total of `bytes` bytes.
    ///
    /// # Errors
    /// If there is no space.
    pub fn grow(&mut self, bytes: u64) -> Result<(), NoSpace> {
        if bytes > self.granted {
            let more = (bytes - self.granted).next_multiple_of(STEP);
            self.stock.make_room(&self.id, more)?;
            self.granted += more;
        }
        Ok(())
    }

    /// Registers a reader of the growing file.
    pub(super) fn read_by(&self, results: &Arc<Results>) {
        if let Some(kept) = self.stock.state().files.get_mut(&self.id) {
            kept.read_by(results);
        }
    }

    /// Moves the file to another search and path.
    pub(super) fn rename(&mut self, id: &str, path: &Path) -> std::io::Result<()> {
        let mut state = self.stock.state();
        let Some(mut kept) = state.remove(&self.id) else { return Err(std::io::ErrorKind::NotFound.into()) };
        let renamed = std::fs::rename(&kept.path, path);
        if renamed.is_ok() {
            kept.path = path.to_owned();
            self.id = id.to_owned();
        }
        state.insert(&self.id, kept);
        renamed
    }
}

impl Drop for Lease {
    /// Counts the actual size of the file from now on.
    fn drop(&mut self) {
        let mut state = self.stock.state();
        let Some(kept) = state.files.get_mut(&self.id) else { return };
        kept.is_growing = false;
        match std::fs::metadata(&kept.path) {
            Ok(data) => state.set_bytes(&self.id, data.len()),
            Err(_) => {
                kept.is_gone = true;
                state.gone.push(self.id.clone());
            }
        }
        state.purge();
        metrics::result_store(state.all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Writer;

    const FILE: u64 = 2 * STEP;

    fn stock(dir: &Path, total: u64, of_user: u64) -> Arc<ResultFiles> {
        Arc::new(ResultFiles::open(dir, Bounds { total, of_user, free_min: 1 }, |_| None).expect("opens"))
    }

    /// Writes a file of two steps.
    fn keep(stock: &Arc<ResultFiles>, id: &str, uid: i32) -> Result<(), NoSpace> {
        let path = stock.file(id);
        let mut lease = stock.begin(id, &path, uid)?;
        std::fs::write(&path, vec![0; usize::try_from(FILE).expect("small")]).expect("writes");
        lease.grow(FILE)
    }

    fn ids(stock: &ResultFiles) -> Vec<String> {
        let files = std::fs::read_dir(stock.dir()).expect("a directory").filter_map(Result::ok);
        let mut ids: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        ids.sort();
        ids.iter().map(|name| name.trim_end_matches(".results").to_owned()).collect()
    }

    #[test]
    fn p15_a_users_oldest_results_make_room_for_their_own_newer_ones() {
        let temp = tempfile::tempdir().expect("temp dir");
        let stock = stock(temp.path(), 100 * FILE, 2 * FILE);
        keep(&stock, "other", 2).expect("fits");
        for id in ["a", "b", "c"] {
            keep(&stock, id, 1).expect("fits");
        }
        assert_eq!(ids(&stock), ["b", "c", "other"]);
        assert_eq!(stock.state().of_user(1), 2 * FILE);
        let growing = [stock.begin("d", &stock.file("d"), 1), stock.begin("e", &stock.file("e"), 1)];
        let mut growing: Vec<Lease> = growing.into_iter().map(|lease| lease.expect("fits")).collect();
        growing.iter_mut().for_each(|lease| lease.grow(FILE).expect("fits"));
        assert_eq!(ids(&stock), ["other"]);
        assert_eq!(growing[0].grow(FILE + 1), Err(NoSpace::OfUser(2 * FILE)), "growing results are kept");
        drop(growing);
        assert_eq!(stock.state().all, FILE, "dropped results use no room");
    }

    #[test]
    fn p15_who_has_most_gives_way_when_all_room_is_taken() {
        let temp = tempfile::tempdir().expect("temp dir");
        let stock = stock(temp.path(), 4 * FILE, 4 * FILE);
        keep(&stock, "m", 2).expect("fits");
        for id in ["a", "b", "c"] {
            keep(&stock, id, 1).expect("fits");
        }
        keep(&stock, "n", 2).expect("fits");
        assert_eq!(ids(&stock), ["b", "c", "m", "n"]);
        keep(&stock, "d", 1).expect("fits");
        assert_eq!(ids(&stock), ["c", "d", "m", "n"], "at an equal share, the requester's own results are evicted");
    }

    #[test]
    fn p15_what_is_read_stays_and_what_was_deleted_counts_while_it_is_read() {
        let temp = tempfile::tempdir().expect("temp dir");
        let stock = stock(temp.path(), 100 * FILE, 2 * FILE);
        keep(&stock, "a", 1).expect("fits");
        let path = temp.path().join("read");
        let results = Writer::create(&path, (0, 1)).expect("creates").results();
        std::fs::remove_file(path).expect("removes");
        stock.keep_open("a", &results);
        keep(&stock, "b", 1).expect("fits");
        keep(&stock, "c", 1).expect("fits");
        assert_eq!(ids(&stock), ["a", "c"], "the oldest results are still being read");
        stock.forget("a");
        assert_eq!((ids(&stock), stock.state().of_user(1)), (vec!["c".into()], 2 * FILE));
        drop(results);
        keep(&stock, "d", 1).expect("fits");
        assert_eq!(ids(&stock), ["c", "d"]);
    }

    #[test]
    fn p15_results_that_are_kept_open_take_little_memory_and_are_not_opened_twice() {
        let temp = tempfile::tempdir().expect("temp dir");
        let stock = stock(temp.path(), u64::MAX / 2, u64::MAX / 2);
        let open = |id: &str, blocks: i64| {
            keep(&stock, id, 1).expect("fits");
            let mut writer = Writer::create(&temp.path().join(format!("{id}.made")), (0, 1)).expect("creates");
            for time in 0..blocks {
                let data = bytes::Bytes::from_static(b"1");
                writer.push(&crate::row::Row { time, tag: 0, data }).expect("writes");
                writer.show().expect("writes");
            }
            stock.keep_open(id, &writer.results());
            writer.results()
        };
        let first = open("first", 10_000);
        let count = OPENED_BYTES_MAX / first.memory();
        assert!((2..OPENED_MAX).contains(&count), "{count}");
        for number in 1..count {
            open(&number.to_string(), 10_000);
        }
        assert_eq!(stock.state().opened().0, count);
        open("last", 10_000);
        let (opened, bytes) = stock.state().opened();
        assert!(opened == 1 && bytes <= OPENED_BYTES_MAX);
        assert!(stock.opened("1").is_none(), "results are closed");
        let again = stock.opened("first").expect("results are still open");
        assert!(Arc::ptr_eq(&first, &again));
    }

    #[test]
    fn p15_results_leave_room_on_the_disk() {
        let temp = tempfile::tempdir().expect("temp dir");
        let bounds = Bounds { total: u64::MAX, of_user: u64::MAX, free_min: u64::MAX };
        let stock = Arc::new(ResultFiles::open(temp.path(), bounds, |_| None).expect("opens"));
        let refused = stock.begin("a", &stock.file("a"), 1).map(drop);
        assert_eq!(refused, Err(NoSpace::Disk(u64::MAX)));
        assert_eq!((ids(&stock).len(), stock.state().files.len()), (0, 0));
    }

    #[test]
    fn p15_files_that_were_there_before_count() {
        let temp = tempfile::tempdir().expect("temp dir");
        let first = stock(temp.path(), 100 * FILE, 100 * FILE);
        ["a", "b"].iter().for_each(|id| keep(&first, id, 1).expect("fits"));
        std::fs::write(temp.path().join("c.part"), "half").expect("writes");
        let bounds = Bounds { total: 100 * FILE, of_user: 2 * FILE, free_min: 1 };
        let again = Arc::new(ResultFiles::open(temp.path(), bounds, |id| (id == "a").then_some(1)).expect("opens"));
        assert_eq!((ids(&again), again.unowned()), (vec!["a".into(), "b".into()], vec!["b".to_owned()]));
        assert_eq!(again.state().all, 2 * FILE);
        again.set_owner("b", 1);
        keep(&again, "d", 1).expect("fits");
        assert_eq!(again.state().of_user(1), 2 * FILE);
    }
}
