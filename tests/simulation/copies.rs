//! Old copies, second copies, and incomplete copies of a disk: their effects, and the problems that must be reported.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use gravwell_env::Fs;
use gravwell_env::memory_fs::{MemoryFs, Survival};
use gravwell_model::{Position, Seq, Verdict};
use gravwell_state::StateStore;
use gravwell_transport::trust::Role;

use super::datastore::{Disks, LOG, Running};
use super::engine::Disk;
use super::faults::open_journal;
use super::network::{MS, SECOND, Time};
use super::oracle::{Checked, Remembered, Violation, broken};
use super::plan::Fault;
use super::replica::{JOURNAL, Node, REWRITE_BYTES_MIN, States};
use super::world::{Event, Truth, World};

/// A copy of the directory of a replica.
pub struct Copy {
    fs: MemoryFs,
    states: States,
    remembered: Remembered,
    was_damaged: bool,
    /// Position of its state.
    position: Option<Position>,
    /// See [`Node::was_at`]: its state may have been rolled back before the copy was made.
    was_at: Seq,
    came_to: Seq,
}

impl World {
    /// Keeps a copy of the state of a replica for later, or replaces the current state by the kept one, with the
    /// current mark. The replica then applies nothing and is killed before it has come as far again: the next start
    /// must know that, too.
    pub fn kill_behind(&mut self, number: usize) -> bool {
        if self.truth != Truth::Genuine || self.replicas[number].running.is_none() {
            return false;
        }
        let Some(copy) = self.copies.remove(&number) else {
            let copy = self.copy_replica(number);
            self.copies.extend(copy.map(|copy| (number, copy)));
            return false;
        };
        self.roll_back_state(number, &copy);
        let wait = 4 * SECOND + self.draw(4 * SECOND);
        self.stalled_until.insert(number, self.now + wait + SECOND);
        self.after(wait, Event::Undo(Fault::KilledBehind, number));
        true
    }

    /// Keeps a copy of the directory of a replica for later, or replaces the directory by the kept one. The registry
    /// does not know that: entries that the replica has passed are not retained for it again, and it counts as making
    /// progress only when it gets past its former position.
    pub fn roll_back(&mut self, number: usize) -> Result<bool, Violation> {
        if self.truth != Truth::Genuine {
            return Ok(false);
        }
        match self.copies.remove(&number) {
            Some(copy) if self.replicas[number].running.is_some() && self.chance(60) => {
                self.roll_back_state(number, &copy);
                Ok(true)
            }
            Some(copy) if self.replicas[number].running.is_some() => {
                self.stop_replica(number, true, "its directory is replaced by an old copy");
                self.forget_connections(number);
                // A later copy of the outbox would be newer than the outbox.
                self.outboxes.remove(&number);
                let node = &mut self.replicas[number];
                (node.fs, node.states) = (copy.fs, copy.states);
                (node.damaged, node.tampered) = (false, false);
                node.was_damaged = copy.was_damaged;
                // If everything is an old copy, the replica cannot detect that; only the datastore can.
                (node.shown, node.was_at, node.came_to) = (Seq::ZERO, copy.was_at, copy.came_to);
                self.oracle.rolled_back(number, copy.remembered);
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

    /// Replaces only the state by an older one: the mark next to it reveals that.
    fn roll_back_state(&mut self, number: usize, copy: &Copy) {
        self.stop_replica(number, true, "its state is replaced by an old copy");
        self.forget_connections(number);
        let node = &mut self.replicas[number];
        node.states = node.states.rolled_back(&copy.states);
        node.was_at = node.was_at.max(node.came_to).max(node.states.marked());
        (node.damaged, node.tampered) = (false, false);
        self.looked_at[number] = None;
    }

    fn copy_replica(&self, number: usize) -> Option<Copy> {
        let node = &self.replicas[number];
        if node.running.is_none() || node.damaged || node.tampered {
            return None;
        }
        let fs = node.fs.crash(Survival::Everything, 0);
        fs.set_capacity(None);
        let (states, was_damaged) = (node.states.copy(), node.was_damaged);
        let (was_at, came_to) = (node.was_at.max(states.marked()), node.came_to);
        let position = node.running.as_ref().and_then(|running| running.stepped.position());
        Some(Copy { fs, states, remembered: self.oracle.remember(number)?, was_damaged, position, was_at, came_to })
    }

    /// Replaces the state of a replica and its high-water mark by those of an old copy, or removes them. Everything
    /// else in the directory reveals that, as far as it has the information.
    pub fn lose_state_and_mark(&mut self, number: usize) -> Result<bool, Violation> {
        if self.truth != Truth::Genuine || self.replicas[number].running.is_none() {
            return Ok(false);
        }
        if !self.copies.contains_key(&number) && self.chance(70) {
            let copy = self.copy_replica(number);
            self.copies.extend(copy.map(|copy| (number, copy)));
            return Ok(false);
        }
        let is_lost = self.chance(25);
        self.stop_replica(number, true, "its state and its mark are lost");
        self.forget_connections(number);
        let copy = self.copies.get(&number).filter(|_| !is_lost);
        let node = &mut self.replicas[number];
        node.was_at = node.was_at.max(node.came_to).max(node.states.marked());
        let (older, position) = match copy {
            Some(copy) => (copy.states.copy(), copy.position),
            None => (States::default(), None),
        };
        node.states = node.states.rolled_back_with_mark(&older);
        let generation = position.map(|position| position.generation).unwrap_or_default();
        let seq = position.map(|position| position.seq);
        if !node.states.is_missed(seq, generation) {
            // No information about the lost state is left.
            node.shown = node.shown.min(seq.unwrap_or_default());
        }
        (node.damaged, node.tampered, node.lost_mark) = (false, false, true);
        self.looked_at[number] = None;
        Ok(true)
    }

    /// Drops all messages in transit.
    fn forget_connections(&mut self, number: usize) {
        self.conns.retain(|_, conn| conn.replica != number);
        if let Some(datastore) = &mut self.datastore {
            let conns = &self.conns;
            datastore.sessions.retain(|id, _| conns.contains_key(id));
        }
    }

    /// Starts a copy of the directory of a member in parallel.
    pub fn twin(&mut self, number: usize) -> Result<bool, Violation> {
        let is_first = self.replicas.len() == self.plan.replicas;
        if self.truth != Truth::Genuine || !is_first || self.replicas[number].revoked {
            return Ok(false);
        }
        let Some(copy) = self.copy_replica(number) else { return Ok(false) };
        let node = &self.replicas[number];
        let mut twin = Node::new(node.name.clone(), node.role, node.certificate.clone());
        (twin.fs, twin.states, twin.was_damaged) = (copy.fs, copy.states, copy.was_damaged);
        (twin.was_at, twin.came_to) = (copy.was_at, copy.came_to);
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

    /// Returns the replicas that are directories of the same member, including this one.
    pub fn twins_of(&self, number: usize) -> Vec<usize> {
        let name = &self.replicas[number].name;
        (0..self.replicas.len()).filter(|other| self.replicas[*other].name == *name).collect()
    }

    /// Returns whether a replica is running and the head of its outbox journal vouches for the whole journal: records
    /// that the head does not vouch for may be mistaken for a torn write.
    pub fn is_journal_vouched_for(&mut self, number: usize) -> bool {
        if self.may_refuse_marks() {
            return false;
        }
        let Some(running) = &mut self.replicas[number].running else { return false };
        let kept = running.stepped.keep_journal(REWRITE_BYTES_MIN);
        !self.fatal(number, kept)
    }

    /// Checks the result of a start with a truncated or missing journal on a copy. The original journal is not changed.
    pub fn shorten_journal(&mut self, number: usize, fault: Fault) -> bool {
        if !self.is_journal_vouched_for(number) {
            return false;
        }
        self.stop_replica(number, false, "its journal is truncated");
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
            self.journal_lost = Some(format!("web{number}'s truncated journal was not detected"));
        }
        true
    }

    /// Checks the result of a start with an open segment that lacks synced records, with everything else in place.
    pub fn lose_tail(&mut self) -> Result<bool, Violation> {
        let vouched = self.vouch_for_head();
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
        self.expect_refusal(copy, &format!("{} was cut to {to} bytes", path.display()), vouched)?;
        Ok(true)
    }

    /// Checks the result of a start without the log, with everything else in place.
    pub fn lose_log(&mut self) -> Result<bool, Violation> {
        let Some(copy) = self.copy_of_stopped("its log is not mounted") else { return Ok(false) };
        for name in copy.fs.list(Path::new(LOG)).unwrap_or_default() {
            if copy.fs.remove(&Path::new(LOG).join(name)).is_err() {
                return Ok(false);
            }
        }
        self.expect_refusal(copy, "the log was not there", Seq::ZERO)?;
        Ok(true)
    }

    /// Often an idle datastore updates its head file; the head file then vouches for the log up to the returned sequence.
    fn vouch_for_head(&mut self) -> Seq {
        let is_idle = self.chance(70);
        let Some(datastore) = self.datastore.as_mut().filter(|_| is_idle) else { return Seq::ZERO };
        if datastore.ledger.log().idle().is_ok() { datastore.head } else { Seq::ZERO }
    }

    /// Stops the datastore and returns a copy of its disk, sometimes without the index. The datastore restarts from the original.
    fn copy_of_stopped(&mut self, why: &str) -> Option<Disks> {
        if self.truth != Truth::Genuine || self.flipped.is_some() || self.datastore.is_none() {
            return None;
        }
        self.stop_datastore(false, why);
        let copy = self.disks.copy();
        let index = if self.chance(40) { Disk::default() } else { copy.index.clone() };
        Some(Disks { index, ..copy })
    }

    /// Checks that a loss is detected if any witness knows of it: the index, or the positions of members when the
    /// registry was written. Losses that neither knows of are the documented limit.
    fn expect_refusal(&mut self, mut copy: Disks, what: &str, vouched: Seq) -> Checked {
        let now_ms = self.datastore_ms();
        let index = StateStore::with_engine(Box::new(copy.index.clone())).ok().and_then(|index| index.meta());
        let index = index.map_or(Seq::ZERO, |meta| meta.seq);
        // Revoking a member withdraws the evidence it provides.
        let heard = self.replicas.iter().zip(&self.saved_reports).filter(|(node, _)| !node.revoked);
        let register = heard.filter_map(|(_, report)| report.map(|(_, applied, _)| applied)).max().unwrap_or_default();
        match Running::start(&mut copy, self.now, now_ms) {
            // The error contains log ids, which are random, so it is not part of the trace.
            Err(_) => {
                self.note(|| "refused".into());
                Ok(())
            }
            Ok(running) if running.head >= index.max(register).max(vouched) || running.waits() => Ok(()),
            Ok(running) => broken!(
                "{what}, the log ends at {} although the index knew {index}, the registry {register} and the head file \
                 {vouched}, and the datastore starts without reporting it",
                running.head
            ),
        }
    }

    /// Keeps an old copy of the disk of the datastore and of the directory of one replica, or runs both in a separate
    /// world: there the replica follows the copy, pushes to it and gets answers, until a member connects that is
    /// beyond the copy.
    pub fn follow_old_copy(&mut self) -> Result<bool, Violation> {
        if self.truth != Truth::Genuine || self.flipped.is_some() {
            return Ok(false);
        }
        let Some(copy) = self.followed.take() else {
            self.followed = self.copy_to_follow();
            return Ok(false);
        };
        let is_beyond = |node: &Node| {
            let durable = node.running.as_ref().map(|running| running.stepped.durable());
            durable.is_some_and(|durable| durable > copy.head) && !node.damaged && !node.tampered
        };
        let others = (0..self.replicas.len()).filter(|number| *number != copy.follower);
        let beyond: BTreeSet<usize> = others.filter(|number| is_beyond(&self.replicas[*number])).collect();
        let certificates = self.replicas.iter().map(|node| node.certificate.clone());
        let is_same = certificates.take(copy.certificates.len()).eq(copy.certificates.iter().cloned());
        if beyond.is_empty() || !is_same || self.replicas.iter().any(|node| node.revoked) {
            self.followed = Some(copy);
            return Ok(false);
        }
        let mut side = self.world_of(copy, beyond);
        let end = side.now + 14 * SECOND;
        side.note(|| "an old copy of the datastore starts".into());
        side.run_until(end)?;
        side.check_end()?;
        self.oracle.checks += side.oracle.checks;
        Ok(true)
    }

    fn copy_to_follow(&mut self) -> Option<FollowedCopy> {
        let follower = self.random.below(self.replicas.len());
        let head = self.datastore.as_ref()?.head;
        let certificates = self.replicas.iter().map(|node| node.certificate.clone()).collect();
        let copy = self.copy_replica(follower)?;
        if self.replicas[follower].role == Role::Reader || self.replicas.iter().any(|node| node.revoked) {
            return None;
        }
        Some(FollowedCopy { head, disks: self.disks.copy(), follower, copy, certificates })
    }

    fn world_of(&mut self, copy: FollowedCopy, beyond: BTreeSet<usize>) -> World {
        let mut side = self.aside();
        let FollowedCopy { head, disks, follower, copy, .. } = copy;
        side.oracle = self.oracle.as_of(head, follower, copy.remembered);
        side.disks = disks;
        for (number, node) in self.replicas.iter().enumerate() {
            let mut other = Node::new(node.name.clone(), node.role, node.certificate.clone());
            let fs = if number == follower { &copy.fs } else { &node.fs };
            let states = if number == follower { &copy.states } else { &node.states };
            (other.fs, other.states) = (fs.crash(Survival::Everything, 0), states.copy());
            other.was_damaged = if number == follower { copy.was_damaged } else { node.was_damaged };
            let (was_at, came_to) = (node.was_at, node.came_to);
            (other.was_at, other.came_to) =
                if number == follower { (copy.was_at, copy.came_to) } else { (was_at, came_to) };
            other.fs.set_capacity(None);
            side.replicas.push(other);
        }
        let count = side.replicas.len();
        side.ways = vec![side.plan.way; count];
        side.reported = vec![None; count];
        side.saved_reports = vec![None; count];
        side.persisted = vec![None; count];
        side.looked_at = vec![None; count];
        side.slow = vec![false; count];
        side.plan.pace = 300 * MS;
        side.after(0, Event::DatastoreStart);
        side.after(MS, Event::ReplicaStart(follower));
        side.after(200 * MS, Event::Client(follower));
        for number in &beyond {
            let wait = 2 * SECOND + side.draw(3 * SECOND);
            side.after(wait, Event::ReplicaStart(*number));
        }
        // The evidence provided by a member must survive a restart and the member's disconnection.
        side.after(8 * SECOND, Event::Undo(Fault::OldCopyFollowed, follower));
        side.fence = Some(Fence { beyond, shown: None });
        side
    }

    /// Disconnects the members that are beyond and restarts the datastore.
    pub fn leave_old_copy(&mut self) {
        let Some(fence) = &self.fence else { return };
        for number in fence.beyond.clone() {
            let way = &mut self.ways[number];
            (way.up_blocked, way.down_blocked) = (Time::MAX, Time::MAX);
        }
        self.stop_datastore(false, "restart");
    }

    /// Checks the reaction to the hello of a member: one that is beyond proves that nothing may be committed any more.
    pub fn check_fence(&mut self, number: usize, waits: &str) -> Checked {
        let head = self.oracle.head();
        match &mut self.fence {
            Some(fence) if fence.beyond.contains(&number) => {
                if waits.is_empty() {
                    broken!("web{number} is past the datastore, which continues at {head} without reporting it");
                }
                fence.shown.get_or_insert(head);
                Ok(())
            }
            Some(fence) if fence.shown.is_some() => Ok(()),
            _ if self.truth == Truth::Genuine && !self.replicas[number].tampered => self.check_waiting(waits),
            _ => Ok(()),
        }
    }

    /// Checks that the genuine datastore accepts writes: it has no reason not to.
    pub fn check_waiting(&self, waits: &str) -> Checked {
        if !waits.is_empty() && self.fence.is_none() {
            broken!("the datastore rejects writes without a reason: {waits}");
        }
        Ok(())
    }

    fn check_end(&self) -> Checked {
        let Some(Fence { shown: Some(shown), .. }) = self.fence else { return Ok(()) };
        let head = self.oracle.head();
        if head > shown {
            broken!("an old copy committed up to {head} after a member past it connected at {shown}");
        }
        if self.datastore.as_ref().is_some_and(|datastore| !datastore.waits()) {
            broken!("an old copy forgot at its restart that a member is past it");
        }
        Ok(())
    }
}

/// Old copies of the disk of a datastore and of the directory of one replica.
pub struct FollowedCopy {
    head: Seq,
    disks: Disks,
    follower: usize,
    copy: Copy,
    certificates: Vec<Vec<u8>>,
}

/// Members that are beyond the datastore of a world.
pub struct Fence {
    pub beyond: BTreeSet<usize>,
    /// Head of the log when the first of them connected.
    shown: Option<Seq>,
}

impl Fence {
    /// Checks that a member that is beyond is not made to follow.
    pub fn check_refused(&self, number: usize, refused: Option<Verdict>) -> Checked {
        match refused {
            Some(_) => Ok(()),
            None => broken!("web{number} is past an old copy of the datastore and has to follow it"),
        }
    }
}
