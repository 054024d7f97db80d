//! The datastore in the simulated world.

use gravwell_datastore::commit_pipeline::{self, Batch, PushStream, SealError, Submission};
use gravwell_datastore::handshake::refused;
use gravwell_datastore::{commit_thread, horizon, read_only, snapshot};
use gravwell_env::Fs;
use gravwell_env::memory_fs::Survival;
use gravwell_model::Seq;
use gravwell_model::codec::message::{Kind, Outcome, RefusalCode, TxnOutcome};
use gravwell_model::codec::txn::decode_txn;
use gravwell_protocol::session::client::PushId;
use gravwell_protocol::session::server;
use gravwell_transport::trust::Role;

use super::datastore::{self, LOG, Proposal, Released, Running, Session};
use super::network::{ConnId, MS, Message, SECOND};
use super::oracle::{Checked, Violation, broken};
use super::world::{Event, Truth, World};

/// Maximum clock jump that is believed: a host may have been switched off for that long.
const BELIEVED_MS: u64 = 32 * 86_400_000;
/// Below this free space writes are rejected.
pub const MIN_FREE: u64 = 6 << 10;

impl World {
    pub fn start_datastore(&mut self) -> Checked {
        if self.datastore.is_some() {
            return Ok(());
        }
        let now_ms = self.datastore_ms();
        let running = match Running::start(&mut self.disks, self.now, now_ms) {
            Ok(running) => running,
            Err(error) if self.flipped.is_some() && !(self.disk_may_fail() && error.contains("simulated")) => {
                // Damage is reported with its place; the test then repairs the file.
                let (path, offset, bit) = self.flipped.clone().unwrap_or_default();
                let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
                self.note(|| format!("did not start: {error}"));
                if !error.contains(&file) {
                    broken!("{file} is damaged, but the error does not name it: {error}");
                }
                self.disks.fs.flip_bit(&path, offset, bit).map_err(|error| Violation(error.to_string()))?;
                self.flipped = None;
                self.after(SECOND, Event::DatastoreStart);
                return Ok(());
            }
            Err(error) if self.disk_may_fail() && self.check_excuse("no start", &error).is_ok() => {
                self.note(|| format!("could not start: {error}"));
                self.disks.fs.heal();
                self.disks.fs.set_capacity(None);
                self.disks.index.heal();
                self.after(SECOND, Event::DatastoreStart);
                return Ok(());
            }
            Err(error) => broken!("the datastore does not start: {error}"),
        };
        let head = running.head;
        self.note(|| format!("datastore started at {head}, horizon {}", running.reader.horizon()));
        if self.truth == Truth::Genuine {
            self.oracle.recovered(head)?;
            self.check_waiting(&running.recovery)?;
            self.oracle.horizon = self.oracle.horizon.max(running.reader.horizon());
            if running.is_rebuilt {
                self.oracle.forget_contents(running.reader.horizon());
            }
            self.compare_log(&running)?;
            let state = running.state.clone();
            self.datastore = Some(running);
            self.check_committed("the datastore", &state)?;
        } else {
            self.datastore = Some(running);
        }
        self.is_commit_due = false;
        self.is_index_due = false;
        self.after(SECOND, Event::DatastoreUpkeep);
        Ok(())
    }

    /// Checks that a failure was caused by an injected fault.
    pub fn check_excuse(&self, what: &str, error: &str) -> Checked {
        let excuses = ["simulated", "full", "free space", "after an earlier failure"];
        if excuses.iter().any(|excuse| error.contains(excuse)) {
            return Ok(());
        }
        broken!("{what} without an injected fault: {error}");
    }

    /// Returns whether the plan contains faults of the datastore's disk, which may make a start fail.
    fn disk_may_fail(&self) -> bool {
        self.plan.faults.iter().any(|(fault, _)| {
            matches!(
                fault,
                super::plan::Fault::DatastoreDisk
                    | super::plan::Fault::DatastoreFull
                    | super::plan::Fault::DatastoreIndexDamaged
            )
        })
    }

    /// Checks that everything the log still contains was shown before; entries that were not seen yet are added to the history.
    pub fn compare_log(&mut self, running: &Running) -> Checked {
        let from = running.reader.horizon();
        for entry in running.reader.entries(from, running.head) {
            let entry = entry.map_err(|error| Violation(format!("the log cannot be read after a start: {error}")))?;
            self.oracle.shown(&entry)?;
        }
        Ok(())
    }

    /// Ends the process. With `power`, unsynced data is lost in the worst ways; otherwise the page cache survives.
    pub fn stop_datastore(&mut self, power: bool, why: &str) {
        if self.datastore.take().is_none() {
            return;
        }
        self.note(|| format!("datastore stops: {why}, power={power}"));
        // Reports are saved from time to time.
        self.reported = self.saved_reports.clone();
        if power {
            let survival = [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Everything];
            let survival = survival[self.random.below(4)];
            let seed = self.random.next_u64();
            self.disks.fs = self.disks.fs.crash(survival, seed);
            self.disks.index.cut_power(&mut self.random);
        }
        self.disks.fs.heal();
        self.disks.index.heal();
        let ids: Vec<ConnId> = self.conns.keys().copied().collect();
        for id in ids {
            if self.chance(70) {
                self.cut(id);
            }
        }
        let wait = self.draw(2 * SECOND);
        self.after(wait, Event::DatastoreStart);
    }

    pub fn server_broken(&mut self, id: ConnId) {
        self.conns.remove(&id);
        if let Some(datastore) = &mut self.datastore {
            datastore.sessions.remove(&id);
        }
    }

    pub fn at_datastore(&mut self, id: ConnId, replica: usize, message: Message) -> Checked {
        let now_ms = self.datastore_ms();
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        if !matches!(message, Message::Report(Kind::Hello, _)) && !datastore.sessions.contains_key(&id) {
            // A restarted datastore does not know the connection and closes it.
            self.conns.remove(&id);
            self.after(MS, Event::ClientBroken(id));
            return Ok(());
        }
        match message {
            Message::Report(Kind::Hello, body) => {
                let node = &self.replicas[replica];
                let (member, role) = match datastore.registry.authorise(&node.certificate, now_ms) {
                    Ok(found) => found,
                    Err(refusal) => {
                        if !node.revoked && self.truth == Truth::Genuine {
                            broken!("{} is a member and was rejected: {refusal}", node.name);
                        }
                        self.send(
                            id,
                            Message::control(Kind::Refused, &refused(RefusalCode::NotAMember, refusal.to_string())),
                        );
                        return Ok(());
                    }
                };
                if node.revoked && self.truth == Truth::Genuine {
                    broken!("{member} was revoked and is accepted again");
                }
                self.accept_session(id, member, role);
                self.report_arrived(id, Kind::Hello, body)?;
            }
            Message::Report(kind, body) => self.report_arrived(id, kind, body)?,
            Message::Push(stream, bytes) => {
                let Some(session) = datastore.sessions.get(&id) else { return Ok(()) };
                if !session.role.may_write() {
                    self.send(
                        id,
                        Message::control(Kind::Refused, &refused(RefusalCode::Forbidden, "a reader may not push")),
                    );
                    return Ok(());
                }
                let txn = decode_txn(&bytes).map_err(|error| Violation(format!("cannot decode a push: {error}")))?;
                datastore.queue.push_back(Proposal { member: session.member.clone(), conn: id, stream, txn });
                self.wake_commit();
            }
            Message::WantSnapshot => {
                let head = datastore.head;
                if let Some(session) = datastore.sessions.get_mut(&id) {
                    session.snapshot_at = Some(head);
                }
                self.serve_snapshots()?;
            }
            _ => {}
        }
        Ok(())
    }

    fn wake_commit(&mut self) {
        if !std::mem::replace(&mut self.is_commit_due, true) {
            let wait = self.draw(MS);
            self.after(wait, Event::Commit);
        }
    }

    /// Simulates the commit thread processing the queue.
    pub fn commit(&mut self) -> Checked {
        self.is_commit_due = false;
        let now_ms = self.datastore_ms();
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        let count = datastore.queue.len().min(1 + self.random.below(8));
        let batch: Vec<Proposal> = datastore.queue.drain(..count).collect();
        if batch.is_empty() {
            // An idle period, in which the head file is updated.
            if let Err(error) = datastore.ledger.log().idle() {
                self.stop_datastore(false, &error.to_string());
            }
            return Ok(());
        }
        let (wall_ms, steady_ms) = (now_ms, self.now / MS);
        batch.iter().for_each(|proposal| datastore.clock.member(proposal.txn.time_ms, wall_ms, steady_ms));
        let now_ms = datastore.clock.now(wall_ms, steady_ms);
        let conns: Vec<_> = batch.iter().map(|proposal| (proposal.conn, proposal.stream)).collect();
        let submission =
            // Each transaction as if it had a separate stream: the order among origins is random.
            |Proposal { member, txn, .. }: Proposal| Submission {
                member,
                txn,
                objection: None,
                stream: PushStream::default(),
                is_admins: false,
            };
        let txns = batch.into_iter().map(submission).collect();
        let free = self.disks.fs.free_space(LOG.as_ref()).unwrap_or(u64::MAX);
        let waits = datastore.recovery.clone();
        let admit = |txn: &gravwell_model::Txn| match waits.as_str() {
            "" => commit_thread::admit(txn, free, MIN_FREE),
            evidence => Err(read_only::refusal(evidence, "recover it")),
        };
        let mut released = Released::default();
        let applied = datastore.applied;
        let result = datastore.ledger.commit(txns, &admit, &commit_thread::disk_full, applied, now_ms, &mut released);
        // Output released before a failure has been seen.
        self.release(released, &conns)?;
        match result {
            Ok(Batch::Done) => {}
            Ok(Batch::DiskFull) => self.note(|| "the disk is full".into()),
            Err(failure) => {
                let power = self.chance(50);
                self.check_excuse("the datastore stopped", &failure.to_string())?;
                self.stop_datastore(power, &failure.to_string());
                return Ok(());
            }
        }
        let waits = self.datastore.as_ref().is_some_and(|datastore| !datastore.queue.is_empty());
        let pause = if waits { self.draw(MS) } else { 50 * MS };
        self.is_commit_due = waits;
        self.after(pause, Event::Commit);
        Ok(())
    }

    fn release(&mut self, released: Released, conns: &[(ConnId, PushId)]) -> Checked {
        let Released { blocks, committed, answers } = released;
        let genuine = self.truth == Truth::Genuine;
        for block in blocks {
            let (first, last) = (block.first, block.last);
            if genuine {
                let chain = self.datastore.as_ref().map(|datastore| datastore.chain).unwrap_or_default();
                let entries = gravwell_model::codec::block::decode_block(block.bytes.clone(), chain, false)
                    .map_err(|error| Violation(format!("cannot decode the published entries: {error}")))?;
                for (entry, _) in &entries {
                    self.check_author(entry)?;
                    self.check_time(entry)?;
                    self.oracle.shown(entry)?;
                }
                let after = entries.last().map(|(_, chain)| *chain).unwrap_or_default();
                if let Some(datastore) = &mut self.datastore {
                    datastore.chain = after;
                }
            }
            self.note(|| format!("published {first} to {last}"));
            let Some(datastore) = &mut self.datastore else { return Ok(()) };
            datastore.head = datastore.head.max(last);
            datastore.ring.push(block);
            let ids: Vec<ConnId> = datastore.sessions.keys().copied().collect();
            for id in ids {
                self.server_event(id, server::Event::Head(last))?;
            }
        }
        if let Some(datastore) = &mut self.datastore {
            datastore.backlog.extend(committed);
        }
        self.wake_index();
        for (place, outcome) in answers {
            if genuine {
                self.check_answer(&outcome)?;
            }
            if let Some((conn, stream)) = conns.get(place) {
                self.send(*conn, Message::Outcome(*stream, outcome));
            }
        }
        Ok(())
    }

    fn check_answer(&mut self, outcome: &Outcome) -> Checked {
        match &outcome.fate {
            TxnOutcome::Committed(seq) => self.oracle.answered(outcome.id, *seq, false),
            TxnOutcome::Rejected(seq, _) => self.oracle.answered(outcome.id, *seq, true),
            TxnOutcome::Decided(seq) if !self.oracle.by_id.contains_key(&outcome.id) => {
                broken!("{:?} was answered as resolved at {seq}, which was never published", outcome.id)
            }
            _ => Ok(()),
        }
    }

    /// Checks that no entry has a time from a clock that is wrong by years for some time.
    fn check_time(&self, entry: &gravwell_model::Entry) -> Checked {
        let first = self.oracle.history.first().map_or(entry.time_ms, |entry| entry.time_ms);
        let latest = self.true_ms().max(first + self.now / MS) + BELIEVED_MS;
        if entry.time_ms > latest {
            broken!("sequence {} is dated {}, and it is {} now", entry.seq, entry.time_ms, self.true_ms());
        }
        Ok(())
    }

    fn check_author(&self, entry: &gravwell_model::Entry) -> Checked {
        let author = self.replicas.iter().find(|node| node.name == entry.member);
        if author.is_some_and(|node| node.role == gravwell_transport::trust::Role::Reader) {
            broken!("sequence {} was pushed by the reader {}", entry.seq, entry.member);
        }
        Ok(())
    }

    fn wake_index(&mut self) {
        if !std::mem::replace(&mut self.is_index_due, true) {
            let wait = if self.slow[0] { self.draw(300 * MS) } else { self.draw(MS) };
            self.after(wait, Event::Index);
        }
    }

    /// Simulates the applier thread processing the next batch.
    pub fn index(&mut self) -> Checked {
        self.is_index_due = false;
        if self.now < self.index_stalled_until {
            self.is_index_due = true;
            self.after(self.index_stalled_until - self.now, Event::Index);
            return Ok(());
        }
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        let Some(committed) = datastore.backlog.pop_front() else { return Ok(()) };
        let mut bookmarks = Vec::new();
        let mut last = datastore.applied;
        let applied = &mut |seq, bookmark| {
            last = seq;
            bookmarks.extend(bookmark);
        };
        if let Err(failure) = commit_pipeline::index(&datastore.state, &datastore.reader, &committed, applied) {
            let power = self.chance(50);
            self.stop_datastore(power, &failure.to_string());
            return Ok(());
        }
        datastore.applied = last;
        let is_level = datastore.backlog.is_empty();
        if is_level {
            bookmarks.extend(datastore.bookmark());
        }
        let state = datastore.state.clone();
        let ids: Vec<ConnId> = datastore.sessions.keys().copied().collect();
        if self.truth == Truth::Genuine {
            self.check_committed("the datastore", &state)?;
        }
        for bookmark in bookmarks {
            for id in &ids {
                self.server_event(*id, server::Event::Bookmark(bookmark))?;
            }
        }
        if !is_level {
            self.wake_index();
        }
        self.serve_snapshots()
    }

    /// Sends snapshots to waiting replicas once the index has reached the sequence they may have seen.
    pub fn serve_snapshots(&mut self) -> Checked {
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        let applied = datastore.applied;
        let ready = |session: &Session| session.snapshot_at.is_some_and(|at| at <= applied);
        let ids: Vec<ConnId> =
            datastore.sessions.iter().filter(|(_, session)| ready(session)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(datastore) = &mut self.datastore else { return Ok(()) };
            let Some(session) = datastore.sessions.get_mut(&id) else { continue };
            session.snapshot_at = None;
            let redaction = (session.role == Role::Reader).then(datastore::redaction);
            let text = |error: gravwell_state::StateError| Violation(format!("no snapshot: {error}"));
            let view = datastore.state.snapshot().map_err(text)?;
            let Some(meta) = view.meta().cloned() else { continue };
            self.note(|| format!("snapshot of {} for {id}", meta.seq));
            // Acts as a datastore of an earlier version, which sends less.
            let is_earlier = meta.seq.0 % 3 == 0;
            let rows = snapshot::rows_of(&view, !is_earlier, redaction);
            let rows: Vec<_> = rows.collect::<Result<_, _>>().map_err(text)?;
            let count = rows.len() as u64;
            self.send(id, Message::Begin(Box::new(snapshot::begin(&meta))));
            if !is_earlier {
                let deletions = view.deletions().map_err(text)?;
                self.send(id, Message::Deletions(Box::new(deletions)));
            }
            for batch in rows.chunks(7) {
                self.send(id, Message::Rows(batch.iter().map(|(row, _)| row.clone()).collect()));
            }
            self.send(id, Message::End(snapshot::end(&meta, count)));
        }
        Ok(())
    }

    /// Returns the sequence that all members within retention have durably.
    pub fn floor(&self) -> Seq {
        let now_ms = self.datastore_ms();
        let floor = |datastore: &Running| datastore.registry.floor(now_ms, self.plan.retention / MS, datastore.head);
        self.datastore.as_ref().map(floor).unwrap_or_default()
    }

    /// Returns the limit up to which the horizon may rise.
    pub fn compaction_target(&self) -> Option<Seq> {
        let datastore = self.datastore.as_ref()?;
        let floor = self.floor();
        // The index must have applied the entries that are about to be dropped.
        Some(horizon::target(datastore.head, floor, self.plan.history_ops).0.min(datastore.applied))
    }

    pub fn start_compaction(&mut self) -> Checked {
        if self.datastore.as_ref().is_some_and(datastore::Running::waits) {
            return Ok(());
        }
        let Some(mut target) = self.compaction_target() else { return Ok(()) };
        // The administrator of another disk drops the entries that members would need to notice that it is another one.
        if let Some(datastore) = self.datastore.as_ref().filter(|_| self.truth != Truth::Genuine) {
            target = datastore.applied;
        }
        let (chance, limit) = (self.chance(80), self.compaction_limit());
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        if datastore.compaction.is_some() {
            return Ok(());
        }
        if chance && let Err(error) = datastore.ledger.seal() {
            self.note(|| format!("not sealed: {error}"));
            if let SealError::Fatal(failure) = error {
                self.check_excuse("the datastore stopped", &failure.to_string())?;
                self.stop_datastore(false, &failure.to_string());
            }
            return Ok(());
        }
        let horizon = datastore.reader.horizon();
        self.limit = limit;
        datastore.compaction = datastore::start_compacting(datastore, &self.disks, target, &mut self.random);
        self.note(|| format!("compaction from horizon {horizon} up to {target}"));
        self.after(MS, Event::CompactStep);
        Ok(())
    }

    pub fn compact_step(&mut self) -> Checked {
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        let before = datastore.reader.horizon();
        let done = datastore::step_compaction(datastore);
        let after = datastore.reader.horizon();
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                self.note(|| format!("compaction failed: {error}"));
                self.check_excuse("compaction failed", &error)?;
                true
            }
        };
        if after > before && self.truth == Truth::Genuine {
            self.note(|| format!("the horizon rises from {before} to {after}"));
            self.oracle.horizon = self.oracle.horizon.max(after);
            self.check_horizon(after)?;
        }
        if !done {
            let wait = self.draw(30 * MS);
            self.after(wait, Event::CompactStep);
        }
        Ok(())
    }

    /// Saves the positions of members and persists the index, as done periodically.
    pub fn datastore_upkeep(&mut self) -> Checked {
        let now_ms = self.datastore_ms();
        let Some(datastore) = &mut self.datastore else { return Ok(()) };
        if datastore.started + SECOND > self.now + 1 {
            return Ok(());
        }
        if let Err(error) = datastore.state.persist() {
            self.stop_datastore(true, &error.to_string());
            return Ok(());
        }
        datastore.note_log();
        if let Ok(text) = datastore.registry.text(now_ms) {
            self.disks.members = text;
            self.saved_reports = self.reported.clone();
        }
        self.after(3 * SECOND, Event::DatastoreUpkeep);
        Ok(())
    }
}
