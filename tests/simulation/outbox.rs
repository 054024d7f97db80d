//! Faults of the outbox journal of a replica: a replaced directory, and an interrupted rewrite.

use std::path::Path;

use gravwell_env::Fs;
use gravwell_env::memory_fs::{self, MemoryFs, Survival};

use super::faults::open_journal;
use super::network::SECOND;
use super::plan::Fault;
use super::replica::JOURNAL;
use super::world::{Event, World};

/// Maximum free space in which a new head and a new witness do not fit, but most accepted transactions do.
const ROOM_BYTES: u64 = 3000;

impl World {
    /// Checks the result of a start with an outbox directory that is an older copy, belongs to another member or is
    /// missing, while everything next to it is unchanged. The original is not changed.
    pub fn replace_outbox(&mut self, number: usize) -> bool {
        if !self.is_journal_vouched_for(number) {
            return false;
        }
        let Some(older) = self.outboxes.remove(&number) else {
            let copy = self.replicas[number].fs.crash(Survival::Everything, 0);
            self.outboxes.insert(number, copy);
            return false;
        };
        self.stop_replica(number, false, "its outbox is replaced");
        let (what, other) = match self.random.below(4) {
            0 => ("is missing", None),
            1 => ("is another member's", self.outbox_of_another(number)),
            _ => ("is an older copy", Some(older)),
        };
        let copy = || self.replicas[number].fs.crash(Survival::Everything, 0);
        let (Ok(before), replaced) = (open_journal(&copy()), copy()) else { return false };
        if put_outbox(&replaced, other.as_ref()).is_err() {
            return false;
        }
        if open_journal(&replaced).is_ok_and(|after| after != before) {
            self.journal_lost = Some(format!("web{number}'s outbox {what}, which was not detected"));
        }
        true
    }

    fn outbox_of_another(&mut self, number: usize) -> Option<MemoryFs> {
        let name = &self.replicas[number].name;
        let others: Vec<&MemoryFs> =
            self.replicas.iter().filter(|node| node.name != *name).map(|node| &node.fs).collect();
        let other = others.get(self.random.below(others.len()))?;
        Some(other.crash(Survival::Everything, 0))
    }

    /// The disk fails after a rewritten journal has replaced the former one and before that is durable. The replica
    /// starts on it without room for a new head and accepts transactions until a power cut: the journal that it opened must remain.
    pub fn interrupt_rewrite(&mut self, number: usize) -> bool {
        let node = &mut self.replicas[number];
        let Some(running) = &mut node.running else { return false };
        // The first two name changes create the file and rename it.
        node.fs.fail_naming(2, memory_fs::Fault::Once(std::io::ErrorKind::Other));
        let kept = running.stepped.keep_journal(0);
        node.fs.heal();
        if self.fatal(number, kept) {
            return false;
        }
        self.stop_replica(number, false, "its disk failed while it rewrote its journal");
        let room = 600 + self.draw(ROOM_BYTES - 600);
        let fs = &self.replicas[number].fs;
        fs.set_capacity(Some(fs.used_bytes() + room));
        let wait = 4 * SECOND + self.draw(6 * SECOND);
        self.after(wait, Event::Undo(Fault::RewriteCutOff, number));
        true
    }
}

/// Replaces the outbox directory by that of another disk, or by an empty one.
fn put_outbox(fs: &MemoryFs, from: Option<&MemoryFs>) -> std::io::Result<()> {
    let outbox = Path::new(JOURNAL);
    for name in fs.list(outbox)? {
        fs.remove(&outbox.join(name))?;
    }
    let Some(from) = from else { return Ok(()) };
    for name in from.list(outbox)? {
        let path = outbox.join(name);
        fs.create(&path)?.write_at(&from.contents(&path)?, 0)?;
    }
    Ok(())
}
