//! Allocation of numbers for users and groups, unique even if two webservers without a connection to each other
//! assign them.
//!
//! While connected, a webserver leases ranges from a counter object (compare-and-set at commit) and keeps the remainder
//! in a local file. Without leases and disconnected, it draws random numbers from the upper half of the range. In both
//! cases, the object is created under the condition that none exists: if two objects ever have the same number, the
//! later one is rejected and reported, rather than mixed up with the other.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::sessions::random;
use super::store::Author;
use super::{CommitError, Committed, Store, Writes};
use crate::env::RealFs;
use crate::env::fs::replace_file;

/// Numbers per lease.
const LEASE: i32 = 64;
/// If fewer numbers are left, more are leased.
const LOW: i32 = 16;
/// Start of the range of random numbers.
const RANDOM_FROM: i32 = 1 << 30;

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
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Counter {
    kind: String,
    next: i32,
}

impl Stored for Counter {
    const COLLECTION: &'static str = "id-leases";
    fn key(&self) -> String {
        self.kind.clone()
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Range {
    next: i32,
    end: i32,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
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

/// Ranges leased by this webserver.
#[derive(Debug)]
pub struct Ids {
    file: PathBuf,
    leases: Mutex<Leases>,
}

impl Ids {
    /// Reads the remainder of earlier leases from `directory`; an unreadable file is treated as missing.
    #[must_use]
    pub fn open(directory: &Path) -> Ids {
        let file = directory.join("id-leases.json");
        let leases =
            std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Ids { file, leases: Mutex::new(leases) }
    }

    /// Returns a number that is assigned to no other object.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn next(&self, numbers: Numbers) -> std::io::Result<i32> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = *leases;
        let range = taken.of(numbers);
        if range.next < range.end {
            let number = range.next;
            range.next += 1;
            // The lease is saved before the number is used: without the file the number would be assigned twice.
            if self.save(&taken).is_ok() {
                *leases = taken;
                return Ok(number);
            }
        }
        let random = i32::from_le_bytes(random::<4>()?);
        Ok(RANDOM_FROM | (random & (RANDOM_FROM - 1)))
    }

    fn save(&self, leases: &Leases) -> std::io::Result<()> {
        replace_file(&RealFs, &self.file, &serde_json::to_vec(leases)?)
    }

    /// Returns whether leased numbers of every kind are left.
    #[must_use]
    pub fn is_stocked(&self) -> bool {
        let leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        [leases.users, leases.groups].iter().all(|range| range.next < range.end)
    }

    /// Leases more numbers if few are left; does nothing while the datastore is unreachable.
    ///
    /// # Errors
    /// If the counter cannot be read, or the local disk fails.
    pub async fn refill(&self, store: &Store) -> Result<(), CommitError> {
        for numbers in Numbers::ALL {
            let left = {
                let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
                let range = leases.of(numbers);
                range.end - range.next
            };
            if left < LOW {
                self.lease(store, numbers).await?;
            }
        }
        Ok(())
    }

    async fn lease(&self, store: &Store, numbers: Numbers) -> Result<(), CommitError> {
        if !store.replica().is_connected() {
            return Ok(());
        }
        let found = store.get::<Counter>(numbers.name())?;
        let begin = found.as_ref().map_or(numbers.first(), |record| record.value.next);
        if begin >= RANDOM_FROM - LEASE {
            return Ok(());
        }
        let mut writes = Writes::new();
        let counter = Counter { kind: numbers.name().into(), next: begin + LEASE };
        match found {
            None => writes.create(&counter, "another webserver leases numbers at this moment")?,
            Some(record) if record.version.is_none() => return Ok(()),
            Some(record) => {
                writes.replace(Some(record.as_read), &counter, "another webserver leases numbers at this moment")?;
            }
        }
        let what = format!("lease numbers for {}", numbers.name());
        // Only a committed lease is used: the range of a pending one may still go to another webserver.
        if let Committed::At(_) = store.commit(&Author::default(), &what, writes).await? {
            let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
            let mut taken = *leases;
            *taken.of(numbers) = Range { next: begin, end: begin + LEASE };
            if self.save(&taken).is_ok() {
                *leases = taken;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leased_numbers_are_given_once_even_over_a_restart_and_then_random_ones() {
        let temp = tempfile::tempdir().expect("temp dir");
        let ids = Ids::open(temp.path());
        ids.leases.lock().expect("lock").users = Range { next: 5, end: 7 };
        assert_eq!(ids.next(Numbers::Users).expect("number"), 5);
        let ids = Ids::open(temp.path());
        assert_eq!(ids.next(Numbers::Users).expect("number"), 6);
        assert!(ids.next(Numbers::Users).expect("number") >= RANDOM_FROM);
        assert!(ids.next(Numbers::Groups).expect("number") >= RANDOM_FROM);
    }

    #[test]
    fn a_number_is_not_given_when_that_cannot_be_written_down() {
        let temp = tempfile::tempdir().expect("temp dir");
        let ids = Ids::open(&temp.path().join("missing"));
        ids.leases.lock().expect("lock").users = Range { next: 5, end: 7 };
        assert!(ids.next(Numbers::Users).expect("number") >= RANDOM_FROM);
    }
}
