//! Injected faults, and their end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use gravwell_env::Fs;
use gravwell_env::memory_fs;
use gravwell_log::Log;
use gravwell_model::{Collection, Generation, Key, MemberName, Op, Origin, OriginCounter, Txn, TxnId};
use gravwell_protocol::session::client::PushId;
use gravwell_transport::trust::Role;

use super::datastore::{Disks, LOG, Proposal, log_options};
use super::network::{MS, Message, SECOND, Time};
use super::oracle::{Checked, Violation};
use super::plan::Fault;
use super::replica::JOURNAL;
use super::server::MIN_FREE;
use super::world::{CERTIFICATE_DAYS, Event, Truth, World};

const KINDS: [ErrorKind; 3] = [ErrorKind::Other, ErrorKind::StorageFull, ErrorKind::Interrupted];

impl World {
    /// Injects a fault and schedules the next one of its kind.
    pub fn strike(&mut self, fault: Fault, mean: Time) -> Checked {
        // Compactions continue as long as clients write.
        let goes_on = fault == Fault::Compaction && self.clients_write();
        if self.calm && !goes_on {
            return Ok(());
        }
        let wait = self.draw(2 * mean);
        self.after(wait, Event::Strike(fault, mean));
        let number = self.random.below(self.replicas.len());
        if !self.inflict(fault, number)? {
            return Ok(());
        }
        *self.summary.faults.entry(format!("{fault:?}")).or_default() += 1;
        self.note(|| format!("fault {fault:?} {number}"));
        Ok(())
    }

    /// Injects a fault; returns `false` if that is not possible now.
    fn inflict(&mut self, fault: Fault, number: usize) -> Result<bool, Violation> {
        let is_genuine = self.truth == Truth::Genuine;
        match fault {
            Fault::DatastoreKilled => self.stop_datastore(false, "killed"),
            Fault::DatastorePower => self.stop_datastore(true, "power cut"),
            Fault::DatastoreDisk => self.plan_disk_fault(None, 40),
            Fault::DatastoreFull => {
                self.bound_space(LOG);
                let wait = 2 * SECOND + self.draw(6 * SECOND);
                self.after(wait, Event::Undo(fault, number));
            }
            Fault::DatastoreIndexDamaged => {
                self.stop_datastore(true, "its index is damaged");
                if !self.disks.index.damage(&mut self.random) {
                    return Ok(false);
                }
            }
            Fault::SegmentDamaged => return Ok(is_genuine && self.damage_segment()),
            Fault::ReplicaKilled => self.stop_replica(number, false, "killed"),
            Fault::ReplicaPower => self.stop_replica(number, true, "power cut"),
            Fault::ReplicaDisk => self.plan_disk_fault(Some(number), 10),
            Fault::ReplicaFull => {
                let fs = &self.replicas[number].fs;
                let used = fs.used_bytes();
                fs.set_capacity(Some(used + self.random.next_u64() % 600));
                let longest = if self.chance(30) { 25 * SECOND } else { 6 * SECOND };
                let wait = 2 * SECOND + self.draw(longest);
                self.after(wait, Event::Undo(fault, number));
            }
            Fault::StateDamaged => {
                if !is_genuine || self.replicas[number].tampered {
                    return Ok(false);
                }
                let disk = self.replicas[number].states.current();
                let struck = disk.damage(&mut self.random);
                if struck {
                    let node = &mut self.replicas[number];
                    (node.damaged, node.was_damaged) = (true, true);
                }
                return Ok(struck);
            }
            Fault::StateFails if self.chance(30) => self.replicas[number].states.fail_next(),
            Fault::StateFails => self.replicas[number].states.current().fail_next(),
            Fault::JournalDamaged => return Ok(self.damage_journal(number)),
            Fault::Tampered => {
                let node = &mut self.replicas[number];
                if !is_genuine || node.running.is_none() || node.damaged {
                    return Ok(false);
                }
                node.tampered = true;
            }
            Fault::Partition | Fault::OneWay => {
                let longest = if self.chance(20) { 30 * SECOND } else { 4 * SECOND };
                let length = 200 * MS + self.draw(longest);
                let until = self.now + length;
                let side = if fault == Fault::Partition { 2 } else { self.random.below(2) };
                let way = &mut self.ways[number];
                if side != 1 {
                    way.up_blocked = until;
                }
                if side != 0 {
                    way.down_blocked = until;
                }
                self.after(length, Event::Heal(number));
            }
            Fault::LossyPeriod => {
                self.ways[number].loss = 300;
                self.ways[number].jitter = 80 * MS;
                let wait = SECOND + self.draw(4 * SECOND);
                self.after(wait, Event::Undo(fault, number));
            }
            Fault::Disconnected => {
                let ids: Vec<_> =
                    self.conns.iter().filter(|(_, conn)| conn.replica == number).map(|(id, _)| *id).collect();
                ids.into_iter().for_each(|id| self.cut(id));
            }
            Fault::ReconnectStorm => {
                let ids: Vec<_> = self.conns.keys().copied().collect();
                ids.into_iter().for_each(|id| self.cut(id));
            }
            Fault::LongAbsence => {
                let length = 20 * SECOND + self.draw(25 * SECOND);
                let until = self.now + length;
                let way = &mut self.ways[number];
                (way.up_blocked, way.down_blocked) = (until, until);
                self.after(length, Event::Heal(number));
            }
            Fault::Compaction => self.start_compaction()?,
            Fault::ClockJump => {
                let hours = 1 + self.random.below(30) as i64;
                self.clock_offset += if self.chance(50) { hours * 3_600_000 } else { -hours * 1_800_000 };
            }
            Fault::YearsJump => {
                let years = 1 + self.random.below(80) as i64;
                let years = if self.chance(60) { years } else { -years.min(50) };
                self.clock_offset = years * 365 * 86_400_000;
                let wait = SECOND + self.draw(20 * SECOND);
                self.after(wait, Event::Undo(fault, number));
            }
            Fault::ReplicaRolledBack => return self.roll_back(number),
            Fault::TwinMember => return self.twin(number),
            Fault::JournalShortened | Fault::JournalRemoved => return Ok(self.shorten_journal(number, fault)),
            Fault::OpenTailLost => return self.lose_tail(),
            Fault::LogDirectoryLost => return self.lose_log(),
            Fault::Revoked => return self.revoke(number),
            Fault::GenerationRaised => return self.raise_generation(),
            Fault::StateAndMarkLost => return self.lose_state_and_mark(number),
            Fault::OutboxReplaced => return Ok(self.replace_outbox(number)),
            Fault::RewriteCutOff => return Ok(self.interrupt_rewrite(number)),
            Fault::KilledBehind => return Ok(self.kill_behind(number)),
            Fault::IndexStalled => self.index_stalled_until = self.now + SECOND + self.draw(8 * SECOND),
            Fault::OldCopy => return Ok(self.use_old_copy()),
            Fault::OldCopyFollowed => return self.follow_old_copy(),
            Fault::Wiped => return Ok(self.wipe()),
            Fault::SlowApplier => {
                self.slow[number] = true;
                let wait = SECOND + self.draw(5 * SECOND);
                self.after(wait, Event::Undo(fault, number));
            }
        }
        Ok(true)
    }

    pub fn undo(&mut self, fault: Fault, number: usize) -> Checked {
        self.note(|| format!("end of {fault:?} {number}"));
        match fault {
            Fault::DatastoreFull => self.disks.fs.set_capacity(None),
            Fault::ReplicaFull => self.replicas[number].fs.set_capacity(None),
            Fault::LossyPeriod => {
                let plan = self.plan.way;
                let way = &mut self.ways[number];
                (way.loss, way.jitter) = (plan.loss, plan.jitter);
            }
            Fault::SlowApplier => self.slow[number] = false,
            Fault::KilledBehind => {
                self.stop_replica(number, false, "killed before it has caught up again");
                self.stalled_until.remove(&number);
            }
            Fault::RewriteCutOff => {
                self.stop_replica(number, true, "power cut");
                self.replicas[number].fs.set_capacity(None);
            }
            Fault::YearsJump => self.clock_offset = 0,
            Fault::OldCopyFollowed => self.leave_old_copy(),
            Fault::Revoked => self.take_back(number)?,
            Fault::OldCopy | Fault::Wiped => self.bring_back_genuine(),
            _ => {}
        }
        Ok(())
    }

    pub fn calm_down(&mut self) -> Checked {
        self.calm = true;
        self.note(|| "calm".into());
        (self.clock_offset, self.index_stalled_until) = (0, self.now);
        self.bring_back_genuine();
        for number in 0..self.replicas.len() {
            self.undo(Fault::ReplicaFull, number)?;
            self.undo(Fault::LossyPeriod, number)?;
            self.undo(Fault::SlowApplier, number)?;
            let way = &mut self.ways[number];
            (way.up_blocked, way.down_blocked) = (0, 0);
            self.replicas[number].fs.heal();
            self.replicas[number].states.current().heal();
            self.replicas[number].states.heal();
            self.after(0, Event::Heal(number));
            if self.replicas[number].revoked {
                self.take_back(number)?;
            }
        }
        self.disks.fs.heal();
        self.disks.fs.set_capacity(None);
        self.disks.index.heal();
        Ok(())
    }

    /// Makes one of the next operations of a disk fail: any of them, or one of the few that change names.
    fn plan_disk_fault(&mut self, replica: Option<usize>, within: usize) {
        let kind = KINDS[self.random.below(3)];
        let what = if self.chance(40) { memory_fs::Fault::Stop } else { memory_fs::Fault::Once(kind) };
        let (is_naming, after) = (self.chance(40), self.random.below(within) as u64);
        let fs = replica.map_or(&self.disks.fs, |number| &self.replicas[number].fs);
        match is_naming {
            true => fs.fail_naming(after % 8, what),
            false => fs.fail_at(fs.operations() + after, what),
        }
    }

    fn bound_space(&mut self, _directory: &str) {
        let used = self.disks.fs.used_bytes();
        let room = self.random.next_u64() % (2 * MIN_FREE);
        self.disks.fs.set_capacity(Some(used + room));
    }

    /// Flips a bit of a sealed segment of a stopped datastore.
    fn damage_segment(&mut self) -> bool {
        if self.flipped.is_some() {
            return false;
        }
        self.stop_datastore(true, "a segment is damaged");
        if self.datastore.is_some() {
            return false;
        }
        let names = self.disks.fs.list(Path::new(LOG)).unwrap_or_default();
        let mut sealed: Vec<String> =
            names.into_iter().filter(|name| name.ends_with(".log") && !name.contains("open")).collect();
        // The newest ones may not be sealed yet; the tail of an open one may be torn by the power cut itself.
        sealed.truncate(sealed.len().saturating_sub(2));
        if sealed.is_empty() {
            return false;
        }
        let path = PathBuf::from(LOG).join(&sealed[self.random.below(sealed.len())]);
        let length = self.disks.fs.contents(&path).map_or(0, |contents| contents.len());
        if length == 0 {
            return false;
        }
        let (offset, bit) = (self.random.below(length) as u64, self.random.below(8) as u8);
        if self.disks.fs.flip_bit(&path, offset, bit).is_err() {
            return false;
        }
        self.flipped = Some((path, offset, bit));
        true
    }

    /// Flips a bit in a copy of the journal of a stopped replica: the start must reject it or find the same records.
    fn damage_journal(&mut self, number: usize) -> bool {
        if self.replicas[number].running.is_none() || self.may_refuse_marks() {
            return false;
        }
        self.stop_replica(number, false, "its journal is damaged");
        let node = &mut self.replicas[number];
        let path = Path::new(JOURNAL).join("journal");
        let Ok(contents) = node.fs.contents(&path) else { return false };
        if contents.len() < 400 {
            return false;
        }
        // The last batch may be torn by the power cut; earlier batches must not be removed with it.
        let offset = self.random.below(contents.len() / 3) as u64;
        let bit = self.random.below(8) as u8;
        let copy = node.fs.crash(memory_fs::Survival::Everything, 0);
        if copy.flip_bit(&path, offset, bit).is_err() {
            return false;
        }
        let before = open_journal(&node.fs.crash(memory_fs::Survival::Everything, 0));
        let after = open_journal(&copy);
        if after.is_ok() && after != before {
            self.journal_lost =
                Some(format!("a flipped bit at byte {offset} of web{number}'s journal was not detected"));
        }
        true
    }

    /// Without its mark the last batch of a journal looks like a torn one; a failing disk may reject only the mark.
    pub fn may_refuse_marks(&self) -> bool {
        let may_refuse = |(fault, _): &(Fault, Time)| {
            matches!(fault, Fault::ReplicaDisk | Fault::ReplicaFull | Fault::RewriteCutOff)
        };
        self.plan.faults.iter().any(may_refuse)
    }

    fn revoke(&mut self, number: usize) -> Result<bool, Violation> {
        let now_ms = self.datastore_ms();
        let node = &mut self.replicas[number];
        let Some(datastore) = &mut self.datastore else { return Ok(false) };
        if node.revoked || self.truth != Truth::Genuine {
            return Ok(false);
        }
        datastore.registry.revoke(&node.name, now_ms).map_err(|error| Violation(error.to_string()))?;
        self.disks.members = datastore.registry.text(now_ms).map_err(|error| Violation(error.to_string()))?;
        // Its open connections are closed, and transactions that it pushed but that are not committed yet are dropped.
        let name = node.name.clone();
        self.replicas.iter_mut().filter(|node| node.name == name).for_each(|node| node.revoked = true);
        let ids: Vec<_> = datastore.sessions.iter().filter(|(_, s)| s.member == name).map(|(id, _)| *id).collect();
        datastore.queue.retain(|proposal| proposal.member != name);
        datastore.sessions.retain(|_, session| session.member != name);
        for id in ids {
            self.send(id, Message::Closed);
        }
        let wait = 2 * SECOND + self.draw(15 * SECOND);
        self.after(wait, Event::Undo(Fault::Revoked, number));
        Ok(true)
    }

    /// An operator starts a later generation of the log, once or twice, as after a restore without loss.
    fn raise_generation(&mut self) -> Result<bool, Violation> {
        if self.truth != Truth::Genuine || self.flipped.is_some() || self.datastore.is_none() {
            return Ok(false);
        }
        self.stop_datastore(false, "its log starts a new generation");
        let times = 1 + self.random.below(2);
        for _ in 0..times {
            let fs = std::sync::Arc::new(self.disks.fs.clone());
            let Ok((mut log, _)) = Log::open(fs, Path::new(LOG), log_options()) else { return Ok(false) };
            let step = 1 + self.draw(1 << 20);
            if log.start_generation(Generation(log.generation().0 + step)).is_err() {
                return Ok(false);
            }
        }
        // Copies of an earlier generation are rejected for that reason alone.
        (self.old_copy, self.followed) = (None, None);
        Ok(true)
    }

    /// Enrolls a revoked member again with a new certificate.
    fn take_back(&mut self, number: usize) -> Checked {
        let now_ms = self.datastore_ms();
        // Sometimes the member may only read from now on: transactions that it still holds are rejected visibly.
        let becomes_reader = number > 0 && self.chance(25);
        let node = &mut self.replicas[number];
        if !node.revoked {
            return Ok(());
        }
        let Some(datastore) = self.datastore.as_mut().filter(|_| self.truth == Truth::Genuine) else {
            self.after(SECOND, Event::Undo(Fault::Revoked, number));
            return Ok(());
        };
        let text = |error: gravwell_transport::trust::TrustError| Violation(error.to_string());
        node.certificate.push(b'+');
        let role = if becomes_reader { Role::Reader } else { node.role };
        datastore.registry.invite(&node.name, role, 1000, now_ms, true).map_err(text)?;
        datastore.registry.enrol(&node.name, role, &node.certificate, CERTIFICATE_DAYS, now_ms).map_err(text)?;
        self.disks.members = datastore.registry.text(now_ms).map_err(text)?;
        // Two directories of one member join as one. A member that joins again reports its position again.
        let (name, certificate) = (node.name.clone(), node.certificate.clone());
        for (number, node) in self.replicas.iter_mut().enumerate().filter(|(_, node)| node.name == name) {
            (self.reported[number], self.saved_reports[number]) = (None, None);
            node.has_misreported = false;
            (node.revoked, node.role, node.certificate) = (false, role, certificate.clone());
        }
        Ok(())
    }

    // ---- the wrong datastore ----

    /// Keeps a copy for later, or starts the kept copy if every replica is beyond it.
    fn use_old_copy(&mut self) -> bool {
        if self.truth != Truth::Genuine || self.flipped.is_some() {
            return false;
        }
        let lowest =
            self.replicas.iter().map(|node| node.running.as_ref().map(|running| running.stepped.durable())).min();
        match self.old_copy.take() {
            Some((head, copy)) if lowest.flatten().is_some_and(|lowest| lowest > head) => {
                self.swap_disks(copy, Truth::OldCopy { head });
                true
            }
            kept => {
                let Some(datastore) = &self.datastore else {
                    self.old_copy = kept;
                    return false;
                };
                self.old_copy = Some((datastore.head, self.copy_disks()));
                false
            }
        }
    }

    /// Returns a copy of everything on the disk of the datastore, as a backup would contain it.
    fn copy_disks(&self) -> Disks {
        Disks { index: super::engine::Disk::default(), ..self.disks.copy() }
    }

    fn wipe(&mut self) -> bool {
        if self.truth != Truth::Genuine || self.flipped.is_some() {
            return false;
        }
        // The CA and the member registry are kept: otherwise no member could connect.
        let disks = Disks { members: self.disks.members.clone(), ..Disks::default() };
        self.swap_disks(disks, Truth::Wiped);
        true
    }

    fn swap_disks(&mut self, disks: Disks, truth: Truth) {
        self.stop_datastore(true, "its disk is replaced");
        // Sometimes the administrator forces it to accept writes, whatever its members report.
        let disks = Disks { gives_up: self.chance(50), ..disks };
        self.genuine = Some(std::mem::replace(&mut self.disks, disks));
        self.truth = truth;
        let fault = if truth == Truth::Wiped { Fault::Wiped } else { Fault::OldCopy };
        let wait = 4 * SECOND + self.draw(8 * SECOND);
        self.after(wait, Event::Undo(fault, 0));
        // Sometimes it commits transactions itself, so that two histories exist.
        if self.chance(60) {
            let wait = 2 * SECOND + self.draw(2 * SECOND);
            self.after(wait, Event::Fork);
        }
    }

    /// Makes the wrong datastore commit transactions that exist nowhere else.
    pub fn fork(&mut self) -> Checked {
        if self.truth == Truth::Genuine {
            return Ok(());
        }
        let count = 1 + self.random.below(80);
        let seed = self.random.next_u64();
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        let mut origin = [7; 16];
        origin[..8].copy_from_slice(&seed.to_le_bytes());
        for counter in 1..=count as u64 {
            let (collection, key) = (Collection::new("users").expect("name"), Key::new("fork").expect("key"));
            let txn = Txn {
                id: TxnId { origin: Origin(origin), counter: OriginCounter(counter) },
                settled: OriginCounter(0),
                time_ms: 0,
                note: bytes::Bytes::new(),
                conditions: Vec::new(),
                ops: vec![Op::Delete { collection, key }],
            };
            datastore.queue.push_back(Proposal {
                member: MemberName::new("datastore").expect("name"),
                conn: 0,
                stream: PushId(0),
                txn,
            });
        }
        self.after(0, Event::Commit);
        self.after(SECOND, Event::Compact);
        Ok(())
    }

    fn bring_back_genuine(&mut self) {
        let Some(genuine) = self.genuine.take() else { return };
        self.stop_datastore(true, "the original disk is back");
        self.disks = genuine;
        self.truth = Truth::Genuine;
        self.after(SECOND, Event::DatastoreStart);
    }
}

pub fn open_journal(fs: &memory_fs::MemoryFs) -> Result<Vec<(u8, Vec<u8>)>, ()> {
    let fs: std::sync::Arc<dyn Fs> = std::sync::Arc::new(fs.clone());
    let (_, records) = gravwell_log::journal::Journal::open(fs, Path::new(JOURNAL)).map_err(|_| ())?;
    Ok(records.into_iter().map(|record| (record.kind, record.payload)).collect())
}
