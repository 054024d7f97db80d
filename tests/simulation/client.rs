//! Replicas in the simulated world, and the clients that use them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gravwell_env::memory_fs::Survival;
use gravwell_env::{Clock, Entropy};
use gravwell_model::{Collection, Condition, EntryBody, Key, Op, Origin, OriginCounter, Seq, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::session::client::{self as session, End};
use gravwell_replica::{Draft, Stage};
use gravwell_transport::trust::Role;

use super::network::{ConnId, MS, Message, SECOND};
use super::oracle::{Checked, Wanted, broken};
use super::replica::{REWRITE_BYTES_MIN, Running, ToApply};
use super::world::{Event, Truth, World};

/// Maximum number of own writes that a client remembers.
const READS_MAX: usize = 4;

impl World {
    pub fn start_replica(&mut self, number: usize) -> Checked {
        if self.replicas[number].running.is_some() {
            return Ok(());
        }
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let entropy: Arc<dyn Entropy> = self.entropy.clone();
        let node = &mut self.replicas[number];
        if let Err(error) = node.start(clock, entropy) {
            node.fs.heal();
            node.fs.set_capacity(None);
            self.note(|| format!("web{number} could not start: {error}"));
            let may_fail = self.plan.faults.iter().any(|(fault, _)| {
                use super::plan::Fault;
                matches!(fault, Fault::ReplicaDisk | Fault::ReplicaFull | Fault::StateFails | Fault::RewriteCutOff)
            });
            if !may_fail {
                broken!("web{number} does not start: {error}");
            }
            self.after(SECOND, Event::ReplicaStart(number));
            return Ok(());
        }
        let (life, seq) = (node.life, node.seq());
        if let Some(error) = &node.unsound {
            broken!("web{number} finds its state corrupt without an injected fault: {error}");
        }
        self.note(|| format!("web{number} started at {seq:?}"));
        self.after(0, Event::Connect(number, life, 0));
        self.after(self.plan.persist_every, Event::Persist(number, life));
        self.after(SECOND, Event::Report(number, life));
        self.check_replica(number)?;
        // Submissions that its journal does not contain now were never accepted.
        self.oracle.forget_unanswered(number);
        Ok(())
    }

    pub fn stop_replica(&mut self, number: usize, power: bool, why: &str) {
        let Some(running) = self.replicas[number].running.take() else { return };
        self.note(|| format!("web{number} stops: {why}, power={power}"));
        // A partially received state is removed at the next start.
        self.replicas[number].discard_fetched(running.link.as_ref());
        if let Some(link) = running.link {
            // The datastore notices later; messages in transit still arrive there.
            let wait = self.draw(3 * SECOND);
            self.after(wait, Event::ServerBroken(link.id));
        }
        let survival = [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Everything];
        let survival = survival[self.random.below(4)];
        let seed = self.random.next_u64();
        let node = &mut self.replicas[number];
        if power {
            node.fs = node.fs.crash(survival, seed);
            node.states.cut_power(&mut self.random);
        }
        node.fs.heal();
        node.states.current().heal();
        node.states.heal();
        let wait = self.draw(2 * SECOND);
        self.after(wait, Event::ReplicaStart(number));
    }

    /// Stops the replica after a fatal failure. Returns whether there was one.
    pub fn fatal(&mut self, number: usize, result: Result<(), Fatal>) -> bool {
        let Err(failure) = result else { return false };
        if self.journal_lost.is_none() && self.check_excuse("a replica stopped", &failure.to_string()).is_err() {
            self.journal_lost = Some(format!("web{number} stopped without an injected fault: {failure}"));
        }
        let power = self.chance(50);
        self.stop_replica(number, power, &failure.to_string());
        true
    }

    fn running(&mut self, number: usize, life: u64) -> Option<&mut Running> {
        let node = &mut self.replicas[number];
        if node.life == life { node.running.as_mut() } else { None }
    }

    pub fn connect(&mut self, number: usize, life: u64, attempt: u64) -> Checked {
        let Some(running) = self.running(number, life) else { return Ok(()) };
        if running.link.is_some() || running.attempt != attempt {
            return Ok(());
        }
        let way = self.ways[number];
        if self.datastore.is_none() || way.up_blocked > self.now || way.down_blocked > self.now {
            self.retry(number);
            return Ok(());
        }
        // A replica without an intact state, or with a state that does not show how far it had come, cannot
        // distinguish a wrong datastore from the right one; that is left to an operator.
        let node = &self.replicas[number];
        if self.truth != Truth::Genuine && (node.seq().is_none() || node.damaged || node.is_blind()) {
            self.retry(number);
            return Ok(());
        }
        self.start_session(number)
    }

    fn retry(&mut self, number: usize) {
        let random = self.random.next_u64();
        let node = &mut self.replicas[number];
        let life = node.life;
        let Some(running) = &mut node.running else { return };
        running.attempt += 1;
        let attempt = running.attempt;
        let delay = running.reconnects.next_delay(random);
        self.after(u64::try_from(delay.as_micros()).unwrap_or(SECOND) + MS, Event::Connect(number, life, attempt));
    }

    pub fn client_broken(&mut self, id: ConnId, why: &str) -> Checked {
        let found = self.replicas.iter().position(|node| {
            node.running.as_ref().and_then(|running| running.link.as_ref()).is_some_and(|link| link.id == id)
        });
        let Some(number) = found else { return Ok(()) };
        self.disconnected(number, None, why);
        Ok(())
    }

    /// Handles the end of a connection. `end` is the reason if the replica has closed it.
    pub fn disconnected(&mut self, number: usize, end: Option<&End>, why: &str) {
        self.note(|| format!("web{number} disconnected: {why}"));
        let now = self.now;
        let node = &mut self.replicas[number];
        let Some(running) = &mut node.running else { return };
        running.stepped.disconnect();
        let Some(link) = running.link.take() else { return };
        running.reconnects.handle_end(Duration::from_micros(now - link.since), end);
        // A partially received state is removed before another one is fetched.
        node.discard_fetched(Some(&link));
        self.retry(number);
    }

    pub fn at_replica(&mut self, id: ConnId, number: usize, message: Message) -> Checked {
        let link = self.replicas[number].running.as_mut().and_then(|running| running.link.as_mut());
        let Some(link) = link.filter(|link| link.id == id) else { return Ok(()) };
        match message {
            Message::Closed => return self.client_broken(id, "closed"),
            Message::Control(kind, body) => link.control.push_back((kind, body)),
            Message::Tail(kind, body) => link.tail.push_back((kind, body)),
            Message::Outcome(stream, outcome) => {
                self.session_event(number, id, session::Event::Outcome(stream, outcome))?;
                return self.check_receipts(number);
            }
            part => return self.snapshot_part(number, id, part),
        }
        self.session_poke(number)
    }

    pub fn enqueue(&mut self, number: usize, piece: ToApply) {
        let life = self.replicas[number].life;
        if let Some(running) = self.running(number, life) {
            running.queue.push_back(piece);
        }
        let wait = if self.slow[number] { self.draw(400 * MS) } else { self.draw(2 * MS) };
        let stall = self.stalled_until.get(&number).map_or(0, |until| until.saturating_sub(self.now));
        self.after(wait + stall, Event::Apply(number, life));
    }

    /// Simulates the applier thread processing the next message.
    pub fn apply(&mut self, number: usize, life: u64) -> Checked {
        let tamper = self.replicas[number].tampered;
        let Some(running) = self.running(number, life) else { return Ok(()) };
        let Some(next) = running.queue.pop_front() else { return Ok(()) };
        let mut compared = None;
        let result = match next {
            ToApply::Run(mut run) => {
                if tamper {
                    corrupt_entries(&mut run.entries);
                }
                running.stepped.apply(run)
            }
            ToApply::Bookmark(bookmark) => {
                compared = Some(bookmark);
                running.stepped.bookmark(bookmark)
            }
        };
        let seq = running.stepped.position().map(|position| position.seq);
        let node = &mut self.replicas[number];
        node.came_to = node.came_to.max(seq.unwrap_or_default());
        self.note(|| format!("web{number} applied up to {seq:?}"));
        if self.fatal(number, result) {
            return Ok(());
        }
        // The outbox writer either processes its messages now or is busy.
        if self.chance(60)
            && let Some(running) = self.running(number, life)
        {
            let kept = running.stepped.keep_journal(REWRITE_BYTES_MIN);
            if self.fatal(number, kept) {
                return Ok(());
            }
            self.note_durable(number, life);
        }
        self.replicas[number].compared = compared;
        self.check_receipts(number)?;
        self.check_replica(number)?;
        self.session_poke(number)
    }

    pub fn persist(&mut self, number: usize, life: u64) -> Checked {
        let Some(running) = self.running(number, life) else { return Ok(()) };
        let result = running.stepped.persist().and_then(|()| running.stepped.keep_journal(REWRITE_BYTES_MIN));
        if self.fatal(number, result) {
            return Ok(());
        }
        if let Some(durable) = self.note_durable(number, life) {
            self.oracle.durable(number, durable);
            let node = &mut self.replicas[number];
            node.shown = node.shown.max(durable);
        }
        self.after(self.plan.persist_every, Event::Persist(number, life));
        let link = self.running(number, life).and_then(|running| running.link.as_ref());
        let Some(id) = link.map(|link| link.id) else { return Ok(()) };
        self.session_event(number, id, session::Event::Durable)
    }

    /// Records the durable sequence. A state counts once it is durable: before a journal is rewritten, the state is persisted.
    fn note_durable(&mut self, number: usize, life: u64) -> Option<Seq> {
        let durable = self.running(number, life)?.stepped.durable();
        if self.replicas[number].damaged || self.replicas[number].tampered {
            return None;
        }
        // After a start the durable sequence is 0 until something was written.
        self.persisted[number] = self.persisted[number].max(Some(durable));
        Some(durable)
    }

    pub fn report(&mut self, number: usize, life: u64) -> Checked {
        if self.running(number, life).is_none() {
            return Ok(());
        }
        self.after(SECOND, Event::Report(number, life));
        self.check_silence(number)?;
        self.session_poke(number)?;
        self.check_receipts(number)
    }

    // ---- clients ----

    /// A client uses the webserver: writes, reads, handles rejections.
    pub fn client(&mut self, number: usize) -> Checked {
        if !self.clients_write() {
            return Ok(());
        }
        let wait = self.draw(2 * self.plan.pace);
        self.after(wait, Event::Client(number));
        if self.replicas[number].running.is_none() {
            return Ok(());
        }
        // Writes at a reader are rejected, or answered like all others.
        if self.replicas[number].role == Role::Reader && !self.chance(30) {
            return Ok(());
        }
        match self.random.below(20) {
            0 => self.deal_with_rejection(number)?,
            1 => self.reuse_identity(number)?,
            _ => self.write(number)?,
        }
        self.check_replica(number)
    }

    pub fn any_key(&mut self) -> (Collection, Key) {
        let collection = Collection::new(["dashboards", "users"][self.random.below(2)]).expect("name");
        let key = Key::new(format!("k{}", self.random.below(self.plan.keys))).expect("key");
        (collection, key)
    }

    /// Returns whether clients use the webservers at this time.
    pub fn clients_write(&self) -> bool {
        !self.calm || self.now < self.plan.calm_at + self.plan.steady
    }

    /// Returns the next transaction of an import, or the last one again: because it was not answered, or by mistake.
    fn next_import(&mut self, number: usize) -> Draft {
        let again = self.chance(10);
        let import = &mut self.replicas[number].import;
        if import.last.as_ref().is_some_and(|(_, answered)| !answered || again)
            && let Some(draft) = import.again()
        {
            return draft;
        }
        let (collection, key) = self.any_key();
        self.next_value += 1;
        let filler = if self.chance(5) { "y".repeat(super::datastore::VALUE_BYTES_MAX) } else { String::new() };
        let value = Bytes::from(format!("import{number} {} {filler}", self.next_value));
        let other = Key::new(format!("k{}", self.random.below(self.plan.keys))).expect("key");
        let condition = Condition::Absent { collection: collection.clone(), key: other };
        let conditions = if self.chance(30) { vec![condition] } else { Vec::new() };
        let seed = self.random.next_u64().to_le_bytes();
        let import = &mut self.replicas[number].import;
        let origin = *import.origin.get_or_insert_with(|| {
            import.counter = 0;
            let mut origin = [9; 16];
            origin[..8].copy_from_slice(&seed);
            Origin(origin)
        });
        import.counter += 1;
        let id = Some(TxnId { origin, counter: OriginCounter(import.counter) });
        let draft = Draft { ops: vec![Op::Put { collection, key, value }], conditions, id, ..Draft::default() };
        import.next(draft.clone());
        draft
    }

    /// Changes an object on the condition that it is unchanged since it was read, now or earlier: by the version in
    /// the state, or by the id of the pending transaction that wrote it.
    fn change_as_read(&mut self, number: usize) -> Option<Draft> {
        let before = if self.chance(60) { self.replicas[number].reads.pop_front() } else { None };
        let (collection, key, condition) = match before {
            Some(before) => before,
            None => {
                let (collection, key) = self.any_key();
                let running = self.replicas[number].running.as_ref()?;
                let object = running.stepped.get(&collection, &key).ok().flatten()?;
                let condition = match (object.version, object.pending) {
                    (Some(version), _) => {
                        Condition::Version { collection: collection.clone(), key: key.clone(), version }
                    }
                    (None, Some(id)) => Condition::written_by(collection.clone(), key.clone(), id),
                    (None, None) => return None,
                };
                (collection, key, condition)
            }
        };
        self.next_value += 1;
        let value = Bytes::from(format!("web{number} as read {}", self.next_value));
        let is_judged_upstream = self.chance(50);
        let ops = vec![Op::Put { collection, key, value }];
        Some(Draft { ops, conditions: vec![condition], is_judged_upstream, ..Draft::default() })
    }

    /// Remembers a write for a later change based on it.
    fn remember_write(&mut self, number: usize, draft: &Draft, id: TxnId) {
        if !self.chance(40) {
            return;
        }
        let Some(Op::Put { collection, key, .. }) = draft.ops.first() else { return };
        let condition = Condition::written_by(collection.clone(), key.clone(), id);
        let reads = &mut self.replicas[number].reads;
        reads.push_back((collection.clone(), key.clone(), condition));
        if reads.len() > READS_MAX {
            reads.pop_front();
        }
    }

    fn write(&mut self, number: usize) -> Checked {
        let count = 1 + self.random.below(3);
        let mut drafts = Vec::new();
        for _ in 0..count {
            if self.chance(15)
                && let Some(draft) = self.change_as_read(number)
            {
                drafts.push(draft);
                continue;
            }
            // Some clients leave the check of conditions to the datastore.
            let mut draft = Draft { is_judged_upstream: self.chance(12), ..Draft::default() };
            let ops = if self.chance(75) { 1 } else { 1 + self.random.below(5) };
            for _ in 0..ops {
                let (collection, key) = self.any_key();
                draft.ops.push(if self.chance(30) {
                    Op::Delete { collection, key }
                } else {
                    self.next_value += 1;
                    let filler = "x".repeat(self.random.below(60));
                    let value = Bytes::from(format!("web{number} {} {filler}", self.next_value));
                    Op::Put { collection, key, value }
                });
            }
            if self.chance(40) {
                let (collection, key) = self.any_key();
                let known = self.replicas[number].running.as_ref().and_then(|running| {
                    running.stepped.get(&collection, &key).ok().flatten().and_then(|object| object.version)
                });
                draft.conditions.push(match (self.random.below(3), known) {
                    (0, _) => Condition::Absent { collection, key },
                    (1, Some(version)) => Condition::Version { collection, key, version },
                    _ => Condition::Present { collection, key },
                });
            }
            drafts.push(draft);
        }
        if self.chance(15) {
            drafts.push(self.next_import(number));
        } else if self.chance(4) {
            drafts.extend(self.steal_origin(number));
        }
        let kept: Vec<Draft> = drafts.clone();
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let submitted = match running.stepped.submit(drafts) {
            Ok(submitted) => submitted,
            Err(failure) => {
                // None was answered: each of them may or may not have become durable.
                self.fatal(number, Err(failure));
                return self.adopt_unanswered(number, kept);
            }
        };
        for (draft, result) in kept.into_iter().zip(submitted) {
            match result {
                Ok(receipt) => {
                    let id = receipt.id();
                    self.note(|| format!("web{number} accepted {}/{}", id.origin, id.counter));
                    let is_excused = draft.id.is_some() && self.may_answer_wrong(number, &receipt.stage());
                    let is_pending = receipt.stage() == Stage::Durable;
                    self.remember_write(number, &draft, id);
                    if self.oracle.stolen.contains(&id) {
                        self.oracle.accept(id, number, draft.into())?;
                    } else if draft.id.is_some() {
                        self.oracle.accept_import(id, number, draft.into(), is_pending)?;
                        self.replicas[number].import.answered();
                    } else {
                        self.check_may_write(number)?;
                        self.oracle.accept(id, number, draft.into())?;
                    }
                    if let Some(running) = self.replicas[number].running.as_mut().filter(|_| !is_excused) {
                        running.receipts.insert(id, receipt);
                    }
                }
                Err(error) => {
                    self.note(|| format!("web{number} rejected a submission: {error}"));
                    let is_import = draft.id.is_some_and(|id| !self.oracle.stolen.contains(&id));
                    if is_import && self.replicas[number].import.refused(&error) {
                        continue;
                    }
                    let values = draft.ops.iter().filter_map(Op::value).cloned();
                    self.oracle.refused.extend(values);
                }
            }
        }
        self.session_poke(number)
    }

    /// Returns whether an answer about an identity may come from a state that was altered on its way, before any
    /// bookmark could reveal it.
    fn may_answer_wrong(&self, number: usize, stage: &Stage) -> bool {
        let node = &self.replicas[number];
        let has_noticed = node.running.as_ref().is_some_and(|running| running.stepped.wants_resync());
        node.tampered && !has_noticed && stage.is_final()
    }

    /// Records submissions without an answer: at the next start the journal shows which of them exist.
    fn adopt_unanswered(&mut self, number: usize, drafts: Vec<Draft>) -> Checked {
        drafts.iter().filter_map(|draft| draft.id).for_each(|id| self.oracle.unsure_again(id));
        self.oracle.unanswered(number, drafts.into_iter().map(Into::into));
        Ok(())
    }

    fn deal_with_rejection(&mut self, number: usize) -> Checked {
        let retry = self.chance(50);
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let Some(rejected) = running.stepped.rejected().into_iter().next() else { return Ok(()) };
        let id = rejected.txn.id;
        if retry {
            let wanted = Wanted::from(&*rejected.txn);
            match running.stepped.retry(id) {
                Ok(Ok(receipt)) => {
                    let new = receipt.id();
                    running.receipts.insert(new, receipt);
                    self.note(|| format!("web{number} tries {:?} again as {:?}", id.counter, new.counter));
                    self.oracle.dismissed(number, id);
                    self.oracle.accept(new, number, wanted)?;
                    return self.session_poke(number);
                }
                Ok(Err(_)) => {}
                Err(failure) => {
                    self.oracle.unsure_rejection(number, id);
                    self.oracle.unanswered(number, std::iter::once(wanted));
                    self.fatal(number, Err(failure));
                }
            }
            return Ok(());
        }
        match running.stepped.dismiss(id) {
            Ok(Ok(())) => self.oracle.dismissed(number, id),
            Ok(Err(_)) => {}
            Err(failure) => {
                self.oracle.unsure_rejection(number, id);
                self.fatal(number, Err(failure));
            }
        }
        Ok(())
    }

    /// Passes the outcomes in receipts to the oracle.
    pub fn check_receipts(&mut self, number: usize) -> Checked {
        self.check_refusals(number)?;
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let mut told = Vec::new();
        running.receipts.retain(|id, receipt| match receipt.stage() {
            Stage::Durable => true,
            Stage::Acknowledged(seq) => {
                told.push((*id, seq, false));
                false
            }
            Stage::Rejected(seq, _) => {
                told.push((*id, seq, true));
                false
            }
        });
        for (id, seq, rejected) in told {
            self.oracle.client_told(id, seq, rejected)?;
        }
        Ok(())
    }
}

fn corrupt_entries(entries: &mut [gravwell_model::Entry]) {
    for entry in entries {
        if let EntryBody::Commit(txn) = &mut entry.body {
            for op in &mut txn.ops {
                if let Op::Put { value, .. } = op {
                    *value = Bytes::from_static(b"not the written value");
                    return;
                }
            }
        }
    }
}
