//! Allocation of numbers for users and groups, unique even if two webservers without a connection to each other
//! assign them.
//!
//! While connected, a webserver leases ranges from a counter object (compare-and-set at commit). Without leases and
//! disconnected, it draws random numbers from the upper half of the range. In both cases, the object is created under
//! the condition that none exists: if two objects ever have the same number, the later one is rejected and reported,
//! together with everything that was made upon it ([`super::identities`]), rather than mixed up with the other.
//!
//! A lease must not outlive the knowledge that nobody else has it:
//!
//! - The counter goes back if an earlier state of the log is restored, or the log is recovered from a member that is
//!   behind, while the holders of later leases keep them. The counter therefore records the generation of the log. The
//!   first lease in another generation begins at a random distance above the counter (`REGION`).
//! - The remainder of a lease goes back if the directory or the machine of its holder is reverted. As an origin, a lease
//!   belongs to one process, and ends if the clock shows that the machine was reverted together with the process.
//! - It also ends when the process leaves the history in which it was committed, and when the counter is found below its
//!   end.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::sessions::random;
use super::store::Author;
use super::{CommitError, Committed, Store, StoreError, Writes};
use crate::env::fs::replace_file;
use crate::env::{Clock, RealFs, SystemClock};
use crate::model::{Generation, LogId};
use crate::replica::{History, Reverted};

/// Numbers per lease.
const LEASE: i32 = 64;
/// If fewer numbers are left, more are leased.
const LOW: i32 = 16;
/// Start of the range of random numbers.
const RANDOM_FROM: i32 = 1 << 30;
/// In a new generation of the log, numbers begin at a random multiple of this above the counter, so that they differ
/// from those leased in histories that are lost: with a probability of 1 - 1/[`REGIONS`] for each history in which no
/// more than this many were leased after the counter went back. A random region is necessary because several histories
/// may have gone on from one counter.
const REGION: i32 = 1 << 14;
/// Number of regions of which one is chosen. On average, a generation uses half of them: 2^23 numbers of 2^30.
const REGIONS: i32 = 1 << 10;
/// With fewer regions left, nothing is leased any more. All numbers are random ones then.
const REGIONS_MIN: i32 = 1 << 4;

/// Kind of number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// UIDs. The first administrator has UID 1.
    Users,
    /// GIDs of groups.
    Groups,
}

impl Numbers {
    /// All kinds of numbers.
    pub const ALL: [Numbers; 2] = [Numbers::Users, Numbers::Groups];

    fn name(self) -> &'static str {
        match self {
            Numbers::Users => "users",
            Numbers::Groups => "groups",
        }
    }

    fn first(self) -> i32 {
        match self {
            Numbers::Users => 2,
            Numbers::Groups => 1,
        }
    }
}

/// First number of a kind that no webserver has leased.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Counter {
    kind: String,
    next: i32,
    /// Generation of the log in which it was last written; `None` if an earlier version wrote it.
    #[serde(default)]
    generation: Option<u64>,
    /// Log of that generation.
    #[serde(default)]
    log_id: Option<LogId>,
}

impl Stored for Counter {
    const COLLECTION: &'static str = "id-leases";
    fn key(&self) -> String {
        self.kind.clone()
    }
}

/// The history of the log in which a lease is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Era {
    log_id: LogId,
    generation: Generation,
    /// Whether it is the log's only generation, so that no other history exists.
    is_first: bool,
    /// History that the process follows.
    history: History,
}

impl Era {
    /// Returns the present history; `None` if the state has no log yet.
    fn present(store: &Store) -> Option<Era> {
        // Read first: the state is of this history or of a later one.
        let history = store.replica().history();
        let meta = store.replica().state().meta()?;
        Some(Era { log_id: meta.log_id, generation: meta.generation, is_first: meta.lineage.len() <= 1, history })
    }

    /// Returns the first number to lease; `None` if too few are left to choose from.
    fn begin(&self, numbers: Numbers, counter: Option<&Counter>, random: u32) -> Option<i32> {
        let next = counter.map_or(numbers.first(), |counter| counter.next.max(numbers.first()));
        let is_known = |counter: &Counter| counter.generation.is_some() && counter.log_id.is_some();
        let is_same = match counter.filter(|counter| is_known(counter)) {
            Some(counter) => (counter.log_id, counter.generation) == (Some(self.log_id), Some(self.generation.0)),
            None => self.is_first,
        };
        let end_max = RANDOM_FROM - LEASE;
        if is_same {
            return (next <= end_max).then_some(next);
        }
        let first = next.checked_add(REGION - 1)? / REGION * REGION;
        let regions = ((end_max - first) / REGION).min(REGIONS);
        if first > end_max || regions < REGIONS_MIN {
            return None;
        }
        let region = i32::try_from(random % u32::try_from(regions).ok()?).ok()?;
        Some(first + region * REGION)
    }
}

/// The unused part of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct Range {
    next: i32,
    end: i32,
    /// History in which it was committed.
    #[serde(skip)]
    history: History,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Leases {
    users: Range,
    groups: Range,
}

impl Leases {
    fn of(&mut self, numbers: Numbers) -> &mut Range {
        match numbers {
            Numbers::Users => &mut self.users,
            Numbers::Groups => &mut self.groups,
        }
    }
}

#[derive(Debug)]
struct Held {
    leases: Leases,
    reverted: Reverted,
}

impl Held {
    /// Returns the leases. Ends them if the machine may have been reverted since the last call.
    fn leases(&mut self, clock: &dyn Clock) -> &mut Leases {
        if self.reverted.is_noticed(clock) && self.leases.users.end + self.leases.groups.end > 0 {
            tracing::warn!("clock jumped, possibly because the machine was reverted; dropping leased IDs");
            self.leases = Leases::default();
        }
        &mut self.leases
    }
}

/// Ranges leased by this process.
pub struct Ids {
    /// Shows what is leased, for support. It is never read: nothing in a directory shows whether the directory is a copy,
    /// or was reverted, since when numbers may have been assigned.
    file: PathBuf,
    clock: Box<dyn Clock>,
    held: Mutex<Held>,
}

impl std::fmt::Debug for Ids {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ids").field("file", &self.file).field("held", &self.held).finish_non_exhaustive()
    }
}

impl Ids {
    /// Starts without leases; `directory` is the webserver's.
    #[must_use]
    pub fn open(directory: &Path) -> Ids {
        Ids::with_clock(directory, Box::new(SystemClock))
    }

    fn with_clock(directory: &Path, clock: Box<dyn Clock>) -> Ids {
        let file = directory.join("id-leases.json");
        if let Err(error) = std::fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "failed to remove the lease file of an earlier process");
        }
        let held = Held { leases: Leases::default(), reverted: Reverted::new(&*clock) };
        Ids { file, clock, held: Mutex::new(held) }
    }

    /// Returns a number that is assigned to no other object.
    ///
    /// # Errors
    /// If random bytes are unavailable, or the state is corrupt.
    pub fn next(&self, store: &Store, numbers: Numbers) -> Result<i32, StoreError> {
        let present = store.replica().history();
        let counter = store.valid::<Counter>(numbers.name())?;
        self.next_in(numbers, present, counter.map(|record| record.value.next))
    }

    /// As [`Ids::next`], in this history, in which the counter is at `leased_to`.
    fn next_in(&self, numbers: Numbers, present: History, leased_to: Option<i32>) -> Result<i32, StoreError> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let range = held.leases(&*self.clock).of(numbers);
        if range.history != present || leased_to.is_none_or(|leased_to| leased_to < range.end) {
            *range = Range::default();
        }
        if range.next < range.end {
            let number = range.next;
            range.next += 1;
            return Ok(number);
        }
        let random = i32::from_le_bytes(random::<4>()?);
        Ok(RANDOM_FROM | (random & (RANDOM_FROM - 1)))
    }

    /// Returns whether leased numbers of every kind are left.
    #[must_use]
    pub fn is_stocked(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let leases = held.leases(&*self.clock);
        [leases.users, leases.groups].iter().all(|range| range.next < range.end)
    }

    /// Leases more numbers if few are left; does nothing while the datastore is unreachable.
    ///
    /// # Errors
    /// If the counter cannot be read, or no numbers are left to lease.
    pub async fn refill(&self, store: &Store) -> Result<(), CommitError> {
        for numbers in Numbers::ALL {
            let present = store.replica().history();
            let left = {
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                let range = held.leases(&*self.clock).of(numbers);
                if range.history == present { range.end - range.next } else { 0 }
            };
            if left < LOW {
                self.lease(store, numbers).await?;
            }
        }
        Ok(())
    }

    async fn lease(&self, store: &Store, numbers: Numbers) -> Result<(), CommitError> {
        let Some(era) = Era::present(store).filter(|_| store.replica().is_connected()) else { return Ok(()) };
        let found = store.get::<Counter>(numbers.name())?;
        let random = u32::from_le_bytes(random::<4>().map_err(StoreError::Io)?);
        let begin = era.begin(numbers, found.as_ref().map(|record| &record.value), random).ok_or_else(|| {
            let name = numbers.name();
            CommitError::TooMuch(format!(
                "no IDs of {name} are left to lease below {RANDOM_FROM}; using random IDs above it"
            ))
        })?;
        let mut writes = Writes::new();
        let (generation, log_id) = (Some(era.generation.0), Some(era.log_id));
        let counter = Counter { kind: numbers.name().into(), next: begin + LEASE, generation, log_id };
        match found {
            None => writes.create(&counter, "another webserver is leasing IDs at this moment")?,
            Some(record) if record.version.is_none() => return Ok(()),
            Some(record) => {
                writes.replace(Some(record.as_read), &counter, "another webserver is leasing IDs at this moment")?;
            }
        }
        let what = format!("lease IDs for {}", numbers.name());
        // Only a committed lease is used: the range of a pending one may still go to another webserver. If the log was
        // left in the meantime, it is unknown in which history it was committed.
        if let Committed::At(_) = store.commit(&Author::default(), &what, writes).await?
            && Era::present(store).is_some_and(|present| present == era)
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let leases = held.leases(&*self.clock);
            *leases.of(numbers) = Range { next: begin, end: begin + LEASE, history: era.history };
            if let Err(error) = self.show(leases) {
                tracing::debug!(%error, "failed to write the lease file");
            }
        }
        Ok(())
    }

    fn show(&self, leases: &Leases) -> std::io::Result<()> {
        replace_file(&RealFs, &self.file, &serde_json::to_vec(leases)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const LOG: LogId = LogId([1; 16]);

    fn era(generation: u64) -> Era {
        Era { log_id: LOG, generation: Generation(generation), is_first: generation == 1, history: History::default() }
    }

    fn counter(next: i32, generation: Option<u64>) -> Counter {
        Counter { kind: "users".into(), next, generation, log_id: generation.map(|_| LOG) }
    }

    fn leased(ids: &Ids, next: i32, end: i32) {
        ids.held.lock().expect("lock").leases.users = Range { next, end, history: History::default() };
    }

    #[test]
    fn p06_a_lease_in_another_generation_begins_in_a_region_of_its_own() {
        let begin = |generation, counter: Option<Counter>, random| {
            era(generation).begin(Numbers::Users, counter.as_ref(), random)
        };
        assert_eq!(begin(1, None, 7), Some(2), "the first lease");
        assert_eq!(begin(1, Some(counter(66, Some(1))), 7), Some(66));
        assert_eq!(begin(1, Some(counter(66, None)), 7), Some(66), "a counter of an earlier version, without a loss");
        assert_eq!(begin(9, Some(counter(66, Some(9))), 7), Some(66), "another lease in the same generation");
        // A restore or recovery took the counter back, or may have.
        for known in [None, Some(counter(66, None)), Some(counter(66, Some(1))), Some(counter(66, Some(8)))] {
            let found: Vec<i32> = (0..3).filter_map(|random| begin(9, known.clone(), random)).collect();
            assert_eq!(found, [REGION, 2 * REGION, 3 * REGION], "{known:?}");
        }
        let of_other_log = Counter { log_id: Some(LogId([2; 16])), ..counter(66, Some(9)) };
        assert_eq!(begin(9, Some(of_other_log), 0), Some(REGION));
        assert_eq!(begin(9, Some(counter(REGION, Some(1))), 0), Some(REGION), "the last lease ended before the region");
        assert_eq!(begin(9, Some(counter(REGION + 1, Some(1))), 0), Some(2 * REGION));
    }

    #[test]
    fn p15_numbers_stay_below_the_random_ones_and_end_when_there_is_no_choice() {
        let begin = |next, random| era(9).begin(Numbers::Users, Some(&counter(next, Some(1))), random);
        let mut next = 2;
        let mut generations = 0;
        while let Some(begin) = begin(next, u32::MAX / 2 + 512) {
            assert!(begin >= next && begin + LEASE <= RANDOM_FROM, "{begin}");
            next = begin + LEASE;
            generations += 1;
        }
        assert!(generations > 100, "{generations}");
        for next in [RANDOM_FROM - LEASE, RANDOM_FROM - 1, RANDOM_FROM, i32::MAX] {
            assert_eq!((begin(next, 0), begin(next, 5)), (None, None), "{next}");
        }
        let same = |next| era(1).begin(Numbers::Users, Some(&counter(next, Some(1))), 0);
        assert_eq!((same(RANDOM_FROM - LEASE), same(RANDOM_FROM - LEASE + 1)), (Some(RANDOM_FROM - LEASE), None));
        assert_eq!(same(-5), Some(2));
    }

    #[test]
    fn p06_leased_numbers_are_given_once_and_by_one_process() {
        let temp = tempfile::tempdir().expect("temp dir");
        // The file of an earlier version, which may be a copy.
        let file = temp.path().join("id-leases.json");
        std::fs::write(&file, br#"{"users":{"next":5,"end":60},"groups":{"next":5,"end":60}}"#).expect("writes");
        let ids = Ids::open(temp.path());
        let next = |ids: &Ids| ids.next_in(Numbers::Users, History::default(), Some(7)).expect("number");
        assert!(next(&ids) >= RANDOM_FROM && !ids.is_stocked() && !file.exists());
        leased(&ids, 5, 7);
        ids.show(&ids.held.lock().expect("lock").leases).expect("writes");
        assert_eq!((next(&ids), next(&ids)), (5, 6));
        assert!(next(&ids) >= RANDOM_FROM);
        assert!(ids.next_in(Numbers::Groups, History::default(), Some(7)).expect("number") >= RANDOM_FROM);
        leased(&ids, 5, 7);
        assert!(next(&Ids::open(temp.path())) >= RANDOM_FROM, "another process on the directory or on a copy");
    }

    #[test]
    fn p06_a_lease_ends_with_its_history_and_when_the_counter_is_below_its_end() {
        let temp = tempfile::tempdir().expect("temp dir");
        let ids = Ids::open(temp.path());
        let first = History::default();
        for (history, leased_to) in [(History::after(first), Some(130)), (first, Some(66)), (first, None)] {
            leased(&ids, 66, 130);
            let number = ids.next_in(Numbers::Users, history, leased_to).expect("number");
            assert!(number >= RANDOM_FROM, "{history:?} {leased_to:?}");
            assert!(
                ids.next_in(Numbers::Users, first, Some(130)).expect("number") >= RANDOM_FROM,
                "the lease is dropped"
            );
        }
    }

    #[test]
    fn p06_a_lease_ends_when_the_machine_was_reverted() {
        struct At(Arc<AtomicU64>);
        impl Clock for At {
            fn now_ms(&self) -> u64 {
                self.0.load(Ordering::Relaxed)
            }
        }
        let temp = tempfile::tempdir().expect("temp dir");
        let now = Arc::new(AtomicU64::new(1_000_000));
        let ids = Ids::with_clock(temp.path(), Box::new(At(Arc::clone(&now))));
        let next = || ids.next_in(Numbers::Users, History::default(), Some(130)).expect("number");
        leased(&ids, 66, 130);
        assert_eq!(next(), 66);
        now.store(4_600_000, Ordering::Relaxed);
        assert!(next() >= RANDOM_FROM);
        leased(&ids, 66, 130);
        ids.held.lock().expect("lock").leases.groups = Range { next: 66, end: 130, history: History::default() };
        assert!(ids.is_stocked());
        now.store(4_000_000, Ordering::Relaxed);
        assert!(!ids.is_stocked(), "the next access notices it");
    }
}
