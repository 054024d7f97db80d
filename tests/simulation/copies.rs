//! Old copies, second copies, and copies of a disk that lack something: what becomes of them, and what must be said of it.

use std::path::{Path, PathBuf};

use gravwell::env::Fs;
use gravwell::env::memory::{MemoryFs, Survival};

use super::datastore::{Disks, LOG, Running};
use super::faults::open_journal;
use super::oracle::{Checked, Remembered, Violation, broken};
use super::plan::Fault;
use super::promises::{JOURNAL_HAS_HEAD, WITNESSES_ARE_ASKED};
use super::replica::{JOURNAL, Node, States};
use super::world::{Event, Truth, World};

/// A copy of a replica's directory.
pub struct Copy {
    fs: MemoryFs,
    states: States,
    remembered: Remembered,
    was_damaged: bool,
}

impl World {
    /// Keeps a copy of a replica's directory for later, or puts the kept one in its place.
    pub fn roll_back(&mut self, number: usize) -> Result<bool, Violation> {
        if self.truth != Truth::Genuine {
            return Ok(false);
        }
        match self.copies.remove(&number) {
            Some(copy) if self.replicas[number].running.is_some() => {
                self.stop_replica(number, true, "its directory is replaced by an old copy");
                self.forget_connections(number);
                let node = &mut self.replicas[number];
                (node.fs, node.states) = (copy.fs, copy.states);
                (node.damaged, node.tampered) = (false, false);
                node.was_damaged = copy.was_damaged;
                // An old copy of everything is not known here to be old: only the datastore can tell.
                node.shown = gravwell::model::Seq::ZERO;
                self.oracle.rolled_back(number, copy.remembered);
                (self.reported[number], self.saved_reports[number]) = (None, None);
                self.persisted[number] = None;
                self.looked_at[number] = None;
                Ok(true)
            }
            kept => {
                let copy = kept.or_else(|| self.copy_replica(number));
                self.copies.extend(copy.map(|copy| (number, copy)));
                Ok(false)
            }
        }
    }

    fn copy_replica(&self, number: usize) -> Option<Copy> {
        let node = &self.replicas[number];
        if node.running.is_none() || node.damaged || node.tampered {
            return None;
        }
        let fs = node.fs.crash(Survival::Everything, 0);
        fs.set_capacity(None);
        let (states, was_damaged) = (node.states.copy(), node.was_damaged);
        Some(Copy { fs, states, remembered: self.oracle.remember(number)?, was_damaged })
    }

    /// Nothing that is under way arrives any more.
    fn forget_connections(&mut self, number: usize) {
        self.conns.retain(|_, conn| conn.replica != number);
        if let Some(datastore) = &mut self.datastore {
            let conns = &self.conns;
            datastore.sessions.retain(|id, _| conns.contains_key(id));
        }
    }

    /// A copy of a member's directory is started beside it.
    pub fn twin(&mut self, number: usize) -> Result<bool, Violation> {
        let is_first = self.replicas.len() == self.plan.replicas;
        if self.truth != Truth::Genuine || !is_first || self.replicas[number].revoked {
            return Ok(false);
        }
        let Some(copy) = self.copy_replica(number) else { return Ok(false) };
        let node = &self.replicas[number];
        let mut twin = Node::new(node.name.clone(), node.role, node.certificate.clone());
        (twin.fs, twin.states, twin.was_damaged) = (copy.fs, copy.states, copy.was_damaged);
        let number = self.replicas.len();
        self.replicas.push(twin);
        self.oracle.doubled(number, copy.remembered);
        self.ways.push(self.plan.way);
        self.reported.push(None);
        self.saved_reports.push(None);
        self.persisted.push(None);
        self.looked_at.push(None);
        self.slow.push(false);
        self.after(0, Event::ReplicaStart(number));
        let wait = self.draw(self.plan.pace);
        self.after(wait, Event::Client(number));
        Ok(true)
    }

    /// What the start would say of a journal that ends early, or is not there. The right one stays in its place.
    pub fn shorten_journal(&mut self, number: usize, fault: Fault) -> bool {
        if !JOURNAL_HAS_HEAD || self.replicas[number].running.is_none() || self.may_refuse_marks() {
            return false;
        }
        self.stop_replica(number, false, "its journal ends early");
        let node = &self.replicas[number];
        let path = Path::new(JOURNAL).join("journal");
        let copy = node.fs.crash(Survival::Everything, 0);
        let Ok(before) = open_journal(&node.fs.crash(Survival::Everything, 0)) else { return false };
        let length = copy.contents(&path).map_or(0, |contents| contents.len());
        let done = match fault {
            Fault::JournalRemoved => copy.remove(&path),
            _ => {
                let to = self.random.next_u64() % (length as u64).max(1);
                copy.open(&path).and_then(|file| file.set_len(to))
            }
        };
        if done.is_err() {
            return false;
        }
        if open_journal(&copy).is_ok_and(|after| after != before) {
            self.journal_lost = Some(format!("web{number}'s journal ended early, and it went unnoticed"));
        }
        true
    }

    /// What the start would say of an open segment that lacks what was synced, with everything else in its place.
    pub fn lose_tail(&mut self) -> Result<bool, Violation> {
        let Some(copy) = self.copy_of_stopped("its open segment loses its tail") else { return Ok(false) };
        let names = copy.fs.list(Path::new(LOG)).unwrap_or_default();
        let Some(open) = names.into_iter().find(|name| name.contains("open") && name.ends_with(".log")) else {
            return Ok(false);
        };
        let path = PathBuf::from(LOG).join(open);
        let length = copy.fs.contents(&path).map_or(0, |contents| contents.len() as u64);
        let to = self.random.next_u64() % length.max(1);
        if copy.fs.open(&path).and_then(|file| file.set_len(to)).is_err() {
            return Ok(false);
        }
        self.expect_refusal(copy, &format!("{} was cut to {to} bytes", path.display()))?;
        Ok(true)
    }

    /// What the start would say when the log is not there, with everything else in its place.
    pub fn lose_log(&mut self) -> Result<bool, Violation> {
        let Some(copy) = self.copy_of_stopped("its log is not mounted") else { return Ok(false) };
        for name in copy.fs.list(Path::new(LOG)).unwrap_or_default() {
            if copy.fs.remove(&Path::new(LOG).join(name)).is_err() {
                return Ok(false);
            }
        }
        self.expect_refusal(copy, "the log was not there")?;
        Ok(true)
    }

    /// A copy of the disk of a datastore that ends; it starts again from the right one.
    fn copy_of_stopped(&mut self, why: &str) -> Option<Disks> {
        if !WITNESSES_ARE_ASKED || self.truth != Truth::Genuine || self.flipped.is_some() || self.datastore.is_none() {
            return None;
        }
        self.stop_datastore(false, why);
        Some(self.disks.copy())
    }

    /// Nothing that was acknowledged may be missing in silence, and the witness of it stays.
    fn expect_refusal(&mut self, mut copy: Disks, what: &str) -> Checked {
        let now_ms = self.datastore_ms();
        match Running::start(&mut copy, self.now, now_ms) {
            Err(error) => {
                self.note(|| format!("refused: {error}"));
                Ok(())
            }
            Ok(running) if running.head >= self.oracle.told && running.head >= self.oracle.head() => Ok(()),
            Ok(running) if running.waits() => Ok(()),
            Ok(running) => broken!(
                "{what}, the log ends at {} instead of {}, and the datastore starts as if nothing were wrong",
                running.head,
                self.oracle.head()
            ),
        }
    }
}
