//! Members whose threads are interleaved: the task of the connection, the applier, the outbox's thread and the clients
//! of a member each take one step at a time, in any order. A step ends at every message and wherever a thread releases
//! what others wait for, such as between the sync of the outbox journal and the publication of what was written.

use std::collections::VecDeque;
use std::io::ErrorKind;

use gravwell_env::memory_fs::Fault;
use gravwell_model::codec::admin::SeenVersion;
use gravwell_model::codec::message::{Bookmark, Welcome};
use gravwell_model::{Condition, Entry, Key, Seq, TxnId};
use gravwell_protocol::fatal::Fatal;
use gravwell_protocol::outbox::RejectedTxn;
use gravwell_protocol::tail::EntryBatch;
use gravwell_replica::directory::StateStorage;
use gravwell_replica::stepped::{Awaited, ExchangeProgress, SteppedReplica};
use gravwell_replica::{Draft, History, Receipt, Resubmission};

use super::Number;
use super::log::Past;
use super::member::{Read, Step};
use super::oracle::{Checked, Made};
use super::world::World;

/// More steps than the threads of a member can take before all of them wait.
const STEPS_MAX: usize = 10_000;
/// More parts than one step of an exchange has.
const STEP_PARTS_MAX: usize = 20;
/// Most requests in one batch of the outbox's thread.
const BATCH_MAX: usize = 4;

/// Work of the threads and the clients of a member.
#[derive(Default)]
pub struct Threads {
    asked: Vec<Asked>,
    /// Batches of entries that wait for the applier.
    runs: VecDeque<Vec<Entry>>,
    /// The last sequence that was handed over on this connection.
    pub intake: Seq,
    /// The log as the last connection knew it.
    known: Past,
    /// Whether the disk is full or about to fail.
    is_faulty: bool,
    /// Whether entries of the history that is left were handed over while it was left.
    is_late: bool,
}

/// A request of a client without an answer.
enum Asked {
    Draft { change: Number, answer: Option<Awaited<Receipt>> },
    Retry { conditions: Vec<Condition>, retried: Retried, answer: Option<Awaited<Receipt>> },
    Dismissal { change: Option<Number>, answer: Option<Awaited<()>> },
}

/// A change that its author retries.
pub struct Retried {
    pub change: Number,
    /// The objects that the author has read again.
    pub upon: Vec<Read>,
    pub versions: Vec<SeenVersion>,
    pub read_in: History,
}

impl Threads {
    /// The process ends: clients get no answer.
    pub fn crash(&mut self) {
        for asked in &mut self.asked {
            match asked {
                Asked::Draft { answer, .. } | Asked::Retry { answer, .. } => *answer = None,
                Asked::Dismissal { answer, .. } => *answer = None,
            }
        }
        (self.is_late, self.is_faulty) = (false, false);
        self.runs.clear();
    }

    pub fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.runs.is_empty()
    }
}

impl World {
    /// Lets one of the threads or clients of a member take a step.
    pub(super) fn act_threaded(&mut self, number: usize) -> Checked {
        // Threads are faster than clients and connections.
        for _ in 0..1 + self.random.below(4) {
            if self.members[number].running.is_none() {
                return if self.chance(40) { self.start(number) } else { Ok(()) };
            }
            match self.random.below(100) {
                0 => self.crash(number)?,
                1 => self.shut_down(number)?,
                2 => {
                    self.members[number].hang_up();
                    self.members[number].is_cut_off = true;
                }
                3..=5 => self.members[number].is_cut_off = false,
                6 => self.compact()?,
                7..=8 => self.upkeep(number)?,
                9 => self.fail(number),
                10..=11 => self.end_fault(number),
                12..=25 => self.submit(number)?,
                26..=31 => match self.first_rejected(number) {
                    Some(id) => {
                        let retries = self.chance(60);
                        self.deal_with(number, id, retries)?;
                    }
                    None => self.look(number)?,
                },
                32..=34 => self.look(number)?,
                35..=54 => {
                    let batch_max = 1 + self.random.below(BATCH_MAX);
                    self.move_outbox(number, batch_max)?;
                }
                55..=66 => {
                    self.move_applier(number)?;
                }
                67..=68 => self.hand_late(number),
                69..=82 => {
                    self.move_exchange(number)?;
                }
                _ => self.connection(number)?,
            }
            self.check(number)?;
        }
        Ok(())
    }

    /// The task of the connection takes a step.
    fn connection(&mut self, number: usize) -> Checked {
        let member = &self.members[number];
        let Some(stepped) = member.running.as_ref().filter(|_| !member.is_cut_off) else { return Ok(()) };
        if member.pusher.is_some() {
            if stepped.wants_resync() {
                self.members[number].hang_up();
                return Ok(());
            }
            return if self.chance(50) {
                let count = 1 + self.random.below(6);
                self.tail(number, count)
            } else {
                let count = 1 + self.random.below(3);
                self.push(number, count, 15)
            };
        }
        if stepped.is_exchanging() { Ok(()) } else { self.greet(number) }
    }

    /// The process ends in order: its tasks end wherever they are, its threads when they have nothing to do.
    fn shut_down(&mut self, number: usize) -> Checked {
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        stepped.end_tasks();
        self.members[number].hang_up();
        self.members[number].under_way = None;
        self.note("shut down", || format!("web{number}"));
        for _ in 0..STEPS_MAX {
            if !self.move_applier(number)? && !self.move_outbox(number, BATCH_MAX)? {
                break;
            }
        }
        self.members[number].crash(None);
        Ok(())
    }

    /// The disk of the outbox journal is full, or one operation on it fails.
    fn fail(&mut self, number: usize) {
        let (is_full, ahead) = (self.chance(50), self.random.below(6) as u64);
        let member = &mut self.members[number];
        member.threads.is_faulty = true;
        match is_full {
            true => member.fs.set_capacity(Some(member.fs.used_bytes() + 100 * ahead)),
            false => member.fs.fail_at(member.fs.operations() + ahead, Fault::Once(ErrorKind::Other)),
        }
        self.note("fault", || format!("web{number}, full={is_full}"));
    }

    pub(super) fn end_fault(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.fs.set_capacity(None);
        member.fs.heal();
        member.threads.is_faulty = false;
    }

    pub(super) fn end_faults(&mut self) {
        (0..self.members.len()).for_each(|number| self.end_fault(number));
    }

    /// The process stops because continuing could lose something.
    fn stopped(&mut self, number: usize, failure: &Fatal) -> Checked {
        if !self.members[number].threads.is_faulty {
            return Err(format!("web{number} stops: {failure}"));
        }
        self.note("stopped", || format!("web{number}: {failure}"));
        self.end_fault(number);
        self.crash(number)
    }

    /// A client hands over a change. Whether it is accepted is known later.
    pub(super) fn hand_draft(&mut self, number: usize, draft: Draft, made: Made, text: String) -> Checked {
        let change = self.oracle.made.len();
        let member = &mut self.members[number];
        let Some(stepped) = &member.running else { return Ok(()) };
        let Some(answer) = stepped.hand_draft(draft) else { return Ok(()) };
        member.threads.asked.push(Asked::Draft { change, answer: Some(answer) });
        self.oracle.made.push(Made { is_unanswered: true, ..made });
        self.note("handed over", || text);
        Ok(())
    }

    pub(super) fn hand_retry(&mut self, number: usize, rejected: &RejectedTxn, retried: Retried) -> Checked {
        let member = &mut self.members[number];
        let Some(stepped) = &member.running else { return Ok(()) };
        let again =
            Resubmission { upon: retried.versions.clone(), seen_in: retried.read_in, ..Resubmission::default() };
        let id = rejected.txn.id;
        let Some(answer) = stepped.hand_retry(id, again) else { return Ok(()) };
        let conditions = rejected.txn.conditions.clone();
        member.threads.asked.push(Asked::Retry { conditions, retried, answer: Some(answer) });
        Ok(())
    }

    pub(super) fn hand_dismissal(&mut self, number: usize, id: TxnId, change: Option<Number>) -> Checked {
        let member = &mut self.members[number];
        let Some(answer) = member.running.as_ref().and_then(|stepped| stepped.hand_dismissal(id)) else {
            return Ok(());
        };
        member.threads.asked.push(Asked::Dismissal { change, answer: Some(answer) });
        Ok(())
    }

    /// Takes the answers that clients have got.
    fn hear_answers(&mut self, number: usize) {
        let mut accepted = Vec::new();
        for asked in std::mem::take(&mut self.members[number].threads.asked) {
            let kept = match asked {
                Asked::Draft { change, answer: Some(mut answer) } => match answer.take() {
                    None => Some(Asked::Draft { change, answer: Some(answer) }),
                    Some(given) => {
                        self.draft_answered(number, change, given.is_ok());
                        None
                    }
                },
                Asked::Retry { conditions, retried, answer: Some(mut answer) } => match answer.take() {
                    None => Some(Asked::Retry { conditions, retried, answer: Some(answer) }),
                    Some(given) => {
                        if given.is_ok() {
                            self.retry_accepted(number, &conditions, &retried);
                            accepted.push(retried.change);
                        }
                        None
                    }
                },
                Asked::Dismissal { change, answer: Some(mut answer) } => match answer.take() {
                    None => Some(Asked::Dismissal { change, answer: Some(answer) }),
                    Some(given) => {
                        if let Some(change) = change.filter(|_| given.is_ok()) {
                            self.dismissed(number, change);
                        }
                        None
                    }
                },
                ended => Some(ended),
            };
            self.members[number].threads.asked.extend(kept);
        }
        // Other retries of the same rejections have no effect.
        let is_void =
            |asked: &Asked| matches!(asked, Asked::Retry { retried, .. } if accepted.contains(&retried.change));
        self.members[number].threads.asked.retain(|asked| !is_void(asked));
    }

    fn draft_answered(&mut self, number: usize, change: Number, is_taken: bool) {
        let (past, pending) = (self.members[number].past(), self.members[number].pending());
        // A condition that an object is present is on the object that was there by then, if it was committed.
        let waits = |key: &Key| {
            let writes = |other: &&Number| **other != change && self.oracle.made[**other].value(key).is_some();
            pending.iter().any(|other| writes(&other))
        };
        let present = self.oracle.made[change].present.iter().filter(|(key, _)| !waits(key));
        let present = present.filter_map(|(key, earlier)| {
            let now: Vec<Number> = past.writers_since_creation(key).into_iter().flatten().collect();
            let earlier = earlier.iter().filter(|writer| !now.contains(writer)).copied();
            (!now.is_empty()).then(|| (key.clone(), earlier.chain(now.clone()).collect()))
        });
        let present = present.collect();
        let made = &mut self.oracle.made[change];
        (made.is_unanswered, made.is_refused, made.present) = (false, !is_taken, present);
        self.note(if is_taken { "accepted" } else { "refused" }, || format!("web{number}: change {change}"));
    }

    fn retry_accepted(&mut self, number: usize, conditions: &[Condition], retried: &Retried) {
        self.now_upon(retried.change, conditions, &retried.upon);
        let text = format!("web{number}: change {} based on {:?}", retried.change, retried.upon);
        self.note("retried", || text);
    }

    fn dismissed(&mut self, number: usize, change: Number) {
        self.oracle.made[change].is_dismissed = true;
        self.note("dismissed", || format!("web{number}: change {change}"));
    }

    /// Finds out what became of the requests that were not answered before a crash.
    pub(super) fn resolve_unanswered(&mut self, number: usize) {
        let (pending, listed) = (self.members[number].pending(), self.members[number].listed());
        let mut known = Vec::new();
        for asked in std::mem::take(&mut self.members[number].threads.asked) {
            match asked {
                Asked::Draft { .. } => {}
                Asked::Retry { conditions, retried, .. } => {
                    if pending.contains(&retried.change) && !known.contains(&retried.change) {
                        known.push(retried.change);
                        self.retry_accepted(number, &conditions, &retried);
                    }
                }
                Asked::Dismissal { change, .. } => {
                    let is_gone = |change: &Number| !listed.contains(change) && !pending.contains(change);
                    if let Some(change) = change.filter(is_gone) {
                        self.dismissed(number, change);
                    }
                }
            }
        }
    }

    /// Hands entries of the log to the applier.
    pub(super) fn hand_entries(&mut self, number: usize, count: usize) -> Checked {
        let member = &mut self.members[number];
        let Some(stepped) = &mut member.running else { return Ok(()) };
        let from = member.threads.intake;
        if from < self.log.horizon {
            member.needs_snapshot = true;
            member.hang_up();
            return Ok(());
        }
        member.threads.known = self.log.past.clone();
        let entries = self.log.past.after(from, count);
        if let Some(last) = entries.last().map(|entry| entry.seq) {
            stepped.compare_arrived(&entries);
            let chain = self.log.past.chain_at(last);
            stepped.hand_run(EntryBatch { entries: entries.clone(), chain });
            member.threads.runs.push_back(entries);
            member.threads.intake = last;
        }
        if member.threads.intake == self.log.past.head()
            && let Some(meta) = self.log.state.meta()
        {
            stepped.hand_bookmark(Bookmark { seq: meta.seq, digest: meta.digest });
        }
        Ok(())
    }

    /// Another connection, which is about to end, hands over entries of a history that is being left.
    fn hand_late(&mut self, number: usize) {
        let member = &mut self.members[number];
        let is_leaving = member.under_way.as_ref().is_some_and(|under_way| under_way.step < Step::Swapped);
        let Some(stepped) = member.running.as_mut().filter(|_| is_leaving && !member.threads.is_late) else { return };
        if stepped.is_replacing() {
            return;
        }
        let Some(at) = stepped.position().map(|position| position.seq) else { return };
        let known = &member.threads.known;
        let past = StateStorage::current(&member.states).and_then(|path| member.pasts.get(&path));
        if known.head() <= at || past.is_none_or(|past| known.shared_with(past) != at) {
            return;
        }
        let entries = known.after(at, 2);
        let Some(last) = entries.last().map(|entry| entry.seq) else { return };
        stepped.compare_arrived(&entries);
        stepped.hand_run(EntryBatch { entries: entries.clone(), chain: known.chain_at(last) });
        member.threads.runs.push_back(entries);
        member.threads.is_late = true;
        self.note("late entries", || format!("web{number}: up to {last}"));
    }

    /// The applier handles one message. Returns whether there was one.
    pub(super) fn move_applier(&mut self, number: usize) -> Result<bool, String> {
        let fails = self.is_threaded && self.chance(3);
        let member = &mut self.members[number];
        let Some(stepped) = &mut member.running else { return Ok(false) };
        if fails && member.under_way.is_some() {
            member.states.fail_next();
        }
        let position = |stepped: &SteppedReplica| stepped.position().map_or(Seq::ZERO, |position| position.seq);
        let before = position(stepped);
        let handled = match stepped.step_applier() {
            Ok(handled) => handled,
            Err(failure) => return self.stopped(number, &failure).map(|()| false),
        };
        let after = position(stepped);
        if handled == Some(true) {
            let run = member.threads.runs.pop_front().ok_or("the applier has a batch that was not handed over")?;
            if let Some(past) = member.past_mut() {
                run.into_iter()
                    .filter(|entry| entry.seq > before && entry.seq <= after)
                    .for_each(|entry| past.push(entry));
            }
        }
        let current = StateStorage::current(&member.states);
        if let Some(left) = member.left.as_ref().filter(|left| Some(&left.path) == current.as_ref())
            && !member.pasts.contains_key(&left.path)
        {
            member.pasts.insert(left.path.clone(), left.new.clone());
            member.advance(Step::Swapped);
        }
        Ok(handled.is_some())
    }

    pub(super) fn drain_applier(&mut self, number: usize) -> Checked {
        for _ in 0..STEPS_MAX {
            if !self.move_applier(number)? {
                return Ok(());
            }
        }
        Err(format!("web{number}: the applier does not come to an end"))
    }

    /// Before the generation of a log is adopted, what the former connection has handed over is applied. Returns false if
    /// that moved the state, so that the connection ends.
    pub(super) fn passes_former(&mut self, number: usize, welcome: &Welcome) -> Result<bool, String> {
        let position = |world: &World| world.members[number].running.as_ref().and_then(SteppedReplica::position);
        let before = position(self);
        if before.is_none_or(|before| before.generation == welcome.generation) {
            return Ok(true);
        }
        self.drain_applier(number)?;
        let is_there = position(self) == before;
        if !is_there {
            self.members[number].hang_up();
            self.note("moved before a new generation", || format!("web{number}"));
        }
        Ok(is_there)
    }

    /// The outbox's thread takes a part of its turn. Returns whether it had something to do.
    pub(super) fn move_outbox(&mut self, number: usize, batch_max: usize) -> Result<bool, String> {
        let member = &mut self.members[number];
        let pending = member.pending().into_iter().collect();
        let Some(stepped) = &mut member.running else { return Ok(false) };
        let (was_prepared, history) = (stepped.is_prepared(), stepped.history());
        let moved = match stepped.step_outbox(batch_max) {
            Ok(moved) => moved,
            Err(failure) => return self.stopped(number, &failure).map(|()| false),
        };
        let (is_prepared, is_installed) = (stepped.is_prepared(), stepped.history() != history);
        if !was_prepared
            && is_prepared
            && let Some(left) = &mut member.left
        {
            left.pending = pending;
            self.oracle.prepared(number, left);
            // The sequences belong to the state that is not in place yet.
            member.recorded.clear();
            member.advance(Step::Prepared);
        }
        self.hear_answers(number);
        let member = &mut self.members[number];
        if is_installed {
            member.advance(Step::Installed);
            if let Some(left) = member.left.take() {
                self.check_left(number, &left)?;
            }
        }
        Ok(moved)
    }

    pub(super) fn drain_outbox(&mut self, number: usize) -> Checked {
        for _ in 0..STEPS_MAX {
            if !self.move_outbox(number, usize::MAX)? {
                return Ok(());
            }
        }
        Err(format!("web{number}: the outbox's thread does not come to an end"))
    }

    /// The task that exchanges outbox and state takes a step. Returns whether it went on.
    pub(super) fn move_exchange(&mut self, number: usize) -> Result<bool, String> {
        let member = &mut self.members[number];
        let Some(stepped) = &mut member.running else { return Ok(false) };
        match stepped.step_exchange() {
            ExchangeProgress::Idle | ExchangeProgress::Waits => return Ok(false),
            ExchangeProgress::Went => {}
            ExchangeProgress::Archived => member.advance(Step::Archived),
            ExchangeProgress::Failed(reason) => {
                // Of the disk of the journal, or of the directory of the states.
                if !member.threads.is_late && !reason.contains("simulated") {
                    return Err(format!("web{number}: the exchange failed: {reason}"));
                }
                if let Some(left) = member.left.take() {
                    member.states.discard(&left.path);
                }
                member.under_way = None;
                member.threads.is_late = false;
                member.hang_up();
                self.note("rolled back", || format!("web{number}: {reason}"));
            }
            ExchangeProgress::Complete => {
                member.threads.is_late = false;
                let Some(under_way) = member.under_way.take() else { return Ok(true) };
                let is_awaited = under_way.is_awaited || !self.is_threaded;
                let is_current = under_way.welcome.generation == self.log.generation;
                if is_awaited && is_current && !self.members[number].is_cut_off {
                    self.connect(number, &under_way.welcome)?;
                }
            }
        }
        Ok(true)
    }

    /// Takes one of the durable steps of an exchange, while nothing else happens.
    pub(super) fn step(&mut self, number: usize) -> Checked {
        let fails = self.chance(3);
        let at = |world: &World| world.members[number].under_way.as_ref().map(|under_way| under_way.step);
        let Some(before) = at(self) else { return Err("an exchange without a process".into()) };
        if before == Step::Prepared && fails {
            self.members[number].states.fail_next();
        }
        for _ in 0..STEP_PARTS_MAX {
            self.move_exchange(number)?;
            self.drain_applier(number)?;
            if before != Step::Chosen {
                while at(self) == Some(before) && self.move_outbox(number, usize::MAX)? {}
            }
            match at(self) {
                Some(step) if step == before || step == Step::Installed => {}
                // The state was not replaced: the outbox is written back.
                None if before == Step::Prepared => return self.drain_outbox(number),
                _ => return Ok(()),
            }
        }
        Err(format!("web{number}: the exchange does not go on after {before:?}"))
    }

    /// Lets the threads of a member come to an end.
    pub(super) fn settle(&mut self, number: usize) -> Checked {
        for _ in 0..STEPS_MAX {
            let moved = [self.move_applier(number)?, self.move_outbox(number, BATCH_MAX)?, self.move_exchange(number)?];
            if !moved.contains(&true) {
                if self.members[number].running.as_ref().is_some_and(SteppedReplica::wants_resync) {
                    self.members[number].hang_up();
                }
                return Ok(());
            }
        }
        Err(format!("web{number}: its threads do not come to an end"))
    }

    /// Waits for the answer to a retry, and dismisses what could not be retried.
    pub(super) fn end_dealing(&mut self, number: usize, id: TxnId) -> Checked {
        if !self.is_threaded {
            return Ok(());
        }
        self.settle(number)?;
        let rejected = self.members[number].running.iter().flat_map(SteppedReplica::rejected);
        if rejected.map(|rejected| rejected.txn.id).any(|other| other == id) {
            self.deal_with(number, id, false)?;
            self.settle(number)?;
        }
        Ok(())
    }

    /// The applier makes the state durable, and the outbox's thread keeps its journal, if neither has begun anything.
    pub(super) fn upkeep_threaded(&mut self, number: usize, rewrite_bytes_min: u64) -> Checked {
        let is_applier = self.chance(50);
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        let kept = match is_applier {
            true => stepped.persist(),
            false => stepped.keep_between_turns(rewrite_bytes_min),
        };
        if let Err(failure) = kept {
            return self.stopped(number, &failure);
        }
        self.drop_below_floor(number)
    }
}
