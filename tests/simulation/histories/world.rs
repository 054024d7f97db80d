//! A small world from one seed: a log that is lost, members that return to it, and interruptions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gravwell_env::memory_fs::{SmallRandom, Survival};
use gravwell_model::codec::admin::SeenVersion;
use gravwell_model::{Collection, Condition, Generation, Key, Op, Seq, TxnId};
use gravwell_protocol::outbox::RetentionLimits;
use gravwell_protocol::session::client::{Event, Leave};
use gravwell_replica::Draft;
use gravwell_replica::directory::StateStorage;
use gravwell_replica::stepped::SteppedReplica;

use super::super::replica::REWRITE_BYTES_MIN;
use super::Number;
use super::log::{Ledger, Past, change_of, note, part_of};
use super::member::{Left, Member, Read, Seen, Step, UnderWay};
use super::oracle::{Checked, Made, Oracle};

/// Maximum number of reads that a client remembers.
const READS_MAX: usize = 6;
const TICKS: usize = 260;
/// Number of rounds in which everything must be delivered after the last fault.
const ROUNDS_MAX: usize = 200;
/// In every so many worlds members return at the same moment.
const MEETING_EVERY: u64 = 8;
const MEETS_AT: u64 = 4;

pub struct World {
    random: SmallRandom,
    pub clock: Arc<AtomicU64>,
    pub log: Ledger,
    pub members: Vec<Member>,
    pub oracle: Oracle,
    keys: Vec<Key>,
    /// Ticks at which the log is lost.
    losses: BTreeSet<usize>,
    generations: u64,
    /// Before the log is lost, an object is made and deleted that the one it is recovered from lacks.
    meets: bool,
    /// Ticks in which members do nothing but return.
    returning: usize,
    prints: bool,
    pub times: BTreeMap<&'static str, u64>,
    _root: tempfile::TempDir,
}

pub fn collection() -> Collection {
    Collection::new("c").expect("name")
}

/// Creates the directory in memory if possible, because the archive is synced.
fn root() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("temp dir")
}

/// Returns what the outboxes of a world retain. Some retain few puts, and some of these few deletions. It depends on
/// the seed alone, so that it shifts no random choice of the other worlds.
fn limits(seed: u64) -> RetentionLimits {
    match seed % 7 {
        0 | 2 => RetentionLimits { txns: 2, ..RetentionLimits::default() },
        4 => RetentionLimits { txns: 2, deletions: 1, ..RetentionLimits::default() },
        _ => RetentionLimits::default(),
    }
}

impl World {
    pub fn new(seed: u64, prints: bool) -> World {
        let mut random = SmallRandom(seed ^ 0x4849_5354);
        let root = root();
        let meets = seed % MEETING_EVERY == MEETS_AT;
        let count = if meets { 3 } else { 2 + random.below(2) };
        let keys = (0..2 + random.below(4)).map(|number| Key::new(format!("k{number}")).expect("key")).collect();
        let losses = (0..1 + random.below(3)).map(|_| 40 + random.below(TICKS - 60)).collect();
        World {
            random,
            clock: Arc::new(AtomicU64::new(1_800_000_000_000)),
            log: Ledger::new(),
            members: (0..count).map(|number| Member::new(number, root.path(), limits(seed))).collect(),
            oracle: Oracle::default(),
            keys,
            losses,
            generations: 1,
            meets,
            returning: 0,
            prints,
            times: BTreeMap::new(),
            _root: root,
        }
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    pub fn note(&mut self, what: &'static str, text: impl FnOnce() -> String) {
        *self.times.entry(what).or_default() += 1;
        if self.prints {
            println!("{what}: {}", text());
        }
    }

    pub fn checks(&self) -> u64 {
        self.oracle.checks
    }

    pub fn run(&mut self) -> Checked {
        for number in 0..self.members.len() {
            self.start(number)?;
        }
        for tick in 0..TICKS {
            self.clock.fetch_add(1000, Ordering::Relaxed);
            if self.losses.contains(&tick) {
                if self.meets { self.meet()? } else { self.lose()? }
            }
            let number = self.random.below(self.members.len());
            match self.returning {
                0 => self.act(number)?,
                _ => self.come_closer(number)?,
            }
            self.check(number)?;
        }
        self.deliver()?;
        if self.chance(50) {
            for number in 0..self.members.len() {
                while let Some(id) = self.first_rejected(number) {
                    self.deal_with(number, id, true)?;
                }
            }
            self.deliver()?;
        }
        self.oracle.at_the_end(&self.members, &self.log.past)
    }

    fn check(&mut self, number: usize) -> Checked {
        let member = &self.members[number];
        let is_between = member.under_way.as_ref().is_some_and(|under_way| under_way.step >= Step::Prepared);
        if member.running.is_none() || is_between {
            return Ok(());
        }
        self.oracle.accounts(member, &self.log.past)
    }

    fn act(&mut self, number: usize) -> Checked {
        if self.members[number].running.is_none() {
            return if self.chance(40) { self.start(number) } else { Ok(()) };
        }
        match self.random.below(100) {
            0..=2 => self.crash(number),
            3..=5 => {
                self.members[number].hang_up();
                self.members[number].is_cut_off = true;
                Ok(())
            }
            6..=12 => {
                self.members[number].is_cut_off = false;
                Ok(())
            }
            13..=14 => self.compact(),
            15..=18 => self.upkeep(number),
            19..=44 => self.submit(number),
            45..=50 => match self.first_rejected(number) {
                Some(id) => {
                    let retries = self.chance(60);
                    self.deal_with(number, id, retries)
                }
                None => self.look(number),
            },
            51..=56 => self.look(number),
            _ => self.follow(number),
        }
    }

    /// One member creates an object and another deletes it; the first does not see the deletion, and a third sees neither. The log
    /// continues from the third, and all return at the same moment.
    fn meet(&mut self) -> Checked {
        self.deliver()?;
        let (maker, deleter, behind) = (0, 1, 2);
        let key = self.key();
        if self.log.past.value(&key).is_some() {
            self.offer(deleter, (std::slice::from_ref(&key), true), (Draft::default(), Vec::new()))?;
            self.deliver()?;
        }
        self.members[behind].hang_up();
        self.members[behind].is_cut_off = true;
        // Sometimes the same member deletes and creates it again.
        let deletes = if self.chance(30) { vec![false, true, false] } else { vec![false] };
        for is_delete in deletes {
            let upon = self.conditions(maker, std::slice::from_ref(&key))?;
            self.offer(maker, (std::slice::from_ref(&key), is_delete), upon)?;
            self.push(maker, 1, 0)?;
            self.tail(maker, usize::MAX)?;
        }
        self.tail(deleter, usize::MAX)?;
        let upon = self.conditions(deleter, std::slice::from_ref(&key))?;
        self.offer(deleter, (&[key], true), upon)?;
        self.push(deleter, 1, 0)?;
        self.tail(deleter, usize::MAX)?;
        for member in &mut self.members {
            member.hang_up();
            member.is_cut_off = false;
        }
        self.generations += 1;
        self.returning = 30 + self.random.below(60);
        self.recover(behind)
    }

    /// Runs one step of a member that only returns.
    fn come_closer(&mut self, number: usize) -> Checked {
        self.returning -= 1;
        if self.members[number].running.is_none() { self.start(number) } else { self.follow(number) }
    }

    /// Runs one step of following the log or of abandoning a history.
    fn follow(&mut self, number: usize) -> Checked {
        if self.members[number].under_way.is_some() {
            return if self.chance(8) { self.crash(number) } else { self.step(number) };
        }
        if self.members[number].is_cut_off {
            return Ok(());
        }
        if !self.members[number].is_following() {
            return self.greet(number);
        }
        if self.chance(50) {
            let count = 1 + self.random.below(6);
            self.tail(number, count)
        } else {
            let count = 1 + self.random.below(3);
            self.push(number, count, 15)
        }
    }

    fn start(&mut self, number: usize) -> Checked {
        let seed = self.random.next_u64();
        let clock = Arc::clone(&self.clock);
        self.members[number].start(&clock, seed)?;
        let at = self.members[number].at();
        self.note("start", || format!("web{number} at {at:?}"));
        self.members[number].check_sequences()?;
        let member = &mut self.members[number];
        let current = StateStorage::current(&member.states);
        match member.left.take() {
            // The exchange was complete except for its last step, which the start has completed.
            Some(left) if Some(&left.path) == current.as_ref() => self.check_left(number, &left)?,
            _ => {}
        }
        self.check(number)
    }

    fn check_left(&mut self, number: usize, left: &Left) -> Checked {
        let shared_to = left.old.shared_with(&left.new);
        self.members[number].floor = left.floor.min(shared_to);
        let text = format!("web{number} continues at {} of {shared_to}", left.new.head());
        self.note("left", || text);
        self.oracle.left(&self.members[number], left, &self.keys)
    }

    fn crash(&mut self, number: usize) -> Checked {
        let power = self.chance(50);
        let survival = [Survival::Nothing, Survival::Prefix, Survival::Sectors, Survival::Everything];
        let survival = survival[self.random.below(4)];
        let what = match self.members[number].under_way.as_ref().map(|under_way| under_way.step) {
            None => "crash",
            Some(Step::Chosen) => "crash before the archive",
            Some(Step::Archived) => "crash after the archive",
            Some(Step::Prepared) => "crash after the outbox was prepared",
            Some(Step::Swapped) => "crash after the state was swapped",
        };
        self.note(what, || format!("web{number}, power={power}"));
        let member = &mut self.members[number];
        // Changes that are not retained any more are in the durable state: with the real limits, thousands of changes would
        // have to follow them between two syncs of the state.
        if power
            && member.limits.txns < RetentionLimits::default().txns
            && let Some(stepped) = &mut member.running
        {
            stepped.persist().map_err(|error| error.to_string())?;
        }
        let cut = power.then_some((survival, &mut self.random));
        self.members[number].crash(cut);
        Ok(())
    }

    fn upkeep(&mut self, number: usize) -> Checked {
        let rewrite = if self.chance(30) { 0 } else { REWRITE_BYTES_MIN };
        if self.members[number].under_way.is_some() {
            return Ok(());
        }
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        stepped.persist().map_err(|error| error.to_string())?;
        stepped.keep_journal(rewrite).map_err(|error| error.to_string())?;
        let exact = stepped.sequences().into_iter().filter(|(_, seq)| seq.is_some());
        self.members[number].recorded = exact.map(|(id, _)| id).collect();
        self.members[number].check_sequences()?;
        if self.members[number].is_following() && self.chance(50) {
            let floor = self.floor();
            self.members[number].floor = self.members[number].floor.max(floor);
            return self.heartbeat(number, floor);
        }
        Ok(())
    }

    /// Returns the sequence that every member is known to have durably in the current history.
    fn floor(&self) -> Seq {
        let durable = |member: &Member| match &member.running {
            Some(stepped) => stepped.durable().min(member.past().shared_with(&self.log.past)),
            None => Seq::ZERO,
        };
        self.members.iter().map(durable).min().unwrap_or_default()
    }

    fn compact(&mut self) -> Checked {
        let head = self.log.past.head().0 as usize;
        let horizon = Seq(self.random.below(head + 1) as u64);
        let forgotten = if self.chance(30) { Seq(self.random.below(head + 1) as u64) } else { Seq::ZERO };
        self.log.compact(horizon, forgotten);
        self.note("compaction", || format!("to {horizon}, deletions up to {forgotten} are forgotten"));
        Ok(())
    }

    /// Makes the log continue from an earlier position.
    fn lose(&mut self) -> Checked {
        self.generations += 1 + self.random.below(2) as u64;
        let head = self.log.past.head();
        // Sometimes a member that has not abandoned an earlier history restores that history.
        let is_any = self.chance(15);
        let is_source = |member: &&Member| {
            let past = member.past();
            let is_descended = past.shared_with(&self.log.past) == past.head();
            past.head() > Seq::ZERO && (is_descended || (is_any && member.left.is_none()))
        };
        let sources: Vec<usize> = self.members.iter().filter(is_source).map(|member| member.number).collect();
        for member in &mut self.members {
            member.hang_up();
        }
        if self.chance(70)
            && let Some(source) = sources.get(self.random.below(sources.len().max(1))).copied()
        {
            return self.recover(source);
        }
        let generation = Generation(self.generations);
        let to = Seq(self.random.below(head.0 as usize + 1) as u64);
        let horizon = Seq(self.random.below(to.0 as usize + 1) as u64);
        let forgotten = if self.chance(50) { Seq::ZERO } else { Seq(self.random.below(to.0 as usize + 1) as u64) };
        self.log.restore(generation, to, horizon, forgotten);
        self.note("restored", || format!("generation {generation}: {head} to {to}"));
        Ok(())
    }

    /// Continues the log from the state of a member, durable or not, in the latest generation. A stopped member is started from its
    /// disk.
    fn recover(&mut self, source: usize) -> Checked {
        let (generation, head) = (Generation(self.generations), self.log.past.head());
        if self.members[source].running.is_none() {
            self.start(source)?;
        }
        let past = self.members[source].past();
        self.come_back(&past);
        let Some(stepped) = &self.members[source].running else { return Ok(()) };
        self.log.recover(generation, &stepped.state(), past);
        let to = self.log.past.head();
        self.note("recovered", || format!("generation {generation} from web{source}: {head} to {to}"));
        Ok(())
    }

    /// Marks the changes that return because the log continues from a past that contains them.
    fn come_back(&mut self, past: &Past) {
        let shared_to = self.log.past.shared_with(past);
        let back = past.commits().filter(|(seq, _)| *seq > shared_to).filter_map(|(_, txn)| change_of(txn));
        for change in back {
            let made = &mut self.oracle.made[change];
            (made.is_back, made.let_go) = (true, None);
        }
    }

    fn key(&mut self) -> Key {
        let number = self.random.below(self.keys.len());
        self.keys[number].clone()
    }

    /// A client reads an object, to base a change on it later.
    fn look(&mut self, number: usize) -> Checked {
        let key = self.key();
        let read = self.read(number, key)?;
        let reads = &mut self.members[number].reads;
        reads.extend(read);
        while reads.len() > READS_MAX {
            reads.pop_front();
        }
        Ok(())
    }

    fn read(&self, number: usize, key: Key) -> Result<Option<Read>, String> {
        let member = &self.members[number];
        let Some(stepped) = &member.running else { return Ok(None) };
        let read_in = stepped.history();
        let collection = collection();
        let found = stepped.get(&collection, &key).map_err(|error| error.to_string())?;
        let name = (collection, key.clone());
        let (condition, seen) = match found.map(|object| (object.version, object.pending)) {
            None => (Condition::Absent { collection: name.0, key: name.1 }, Seen::Absent),
            Some((Some(version), _)) => {
                let change = member.past().last_write(&key).and_then(|write| write.change);
                let change = change.ok_or_else(|| format!("web{number} reads {key}, which was never written"))?;
                (Condition::Version { collection: name.0, key: name.1, version }, Seen::As(change))
            }
            Some((None, Some(id))) => {
                let writer = stepped.pending().into_iter().find(|txn| txn.id == id);
                let change = writer.and_then(|txn| change_of(&txn)).ok_or("a pending write without its writer")?;
                (Condition::written_by(name.0, name.1, id), Seen::As(change))
            }
            Some((None, None)) => return Err(format!("web{number} reads {key} without a version")),
        };
        Ok(Some(Read { key, condition, seen, read_in }))
    }

    /// Returns the conditions of a client that changes these objects.
    fn conditions(&mut self, number: usize, keys: &[Key]) -> Result<(Draft, Vec<(Key, Seen)>), String> {
        let (mut draft, mut seen) = (Draft::default(), Vec::new());
        for key in keys {
            let earlier = self.members[number].reads.iter().find(|read| read.key == *key).cloned();
            let read = match (self.random.below(100), earlier) {
                (0..=29, _) => continue,
                (30..=54, Some(read)) => Some(read),
                _ => self.read(number, key.clone())?,
            };
            let Some(mut read) = read else { continue };
            if matches!(read.seen, Seen::As(_)) && self.chance(15) {
                read.condition = Condition::Present { collection: collection(), key: key.clone() };
                read.seen = Seen::Present;
            }
            draft.read_in = Some(draft.read_in.map_or(read.read_in, |read_in| read_in.min(read.read_in)));
            draft.conditions.push(read.condition);
            seen.push((read.key, read.seen));
        }
        if draft.read_in.is_some() && self.chance(20) && self.is_present(number, draft.read_in) {
            draft.read_in = None;
        }
        Ok((draft, seen))
    }

    fn is_present(&self, number: usize, read_in: Option<gravwell_replica::History>) -> bool {
        self.members[number].running.as_ref().map(SteppedReplica::history) == read_in
    }

    fn submit(&mut self, number: usize) -> Checked {
        let is_held = self.members[number].under_way.as_ref().is_some_and(|under_way| under_way.step >= Step::Prepared);
        if is_held {
            return Ok(());
        }
        let mut keys = vec![self.key()];
        if self.chance(35) {
            keys.push(self.key());
        }
        keys.sort();
        keys.dedup();
        let (draft, seen) = self.conditions(number, &keys)?;
        // The second object is only read.
        if keys.len() > 1 && self.chance(25) && seen.iter().any(|(key, _)| *key == keys[1]) {
            keys.pop();
        }
        let is_same = self.chance(8);
        let is_delete = self.chance(25);
        let value = is_same.then(|| Bytes::from_static(b"same"));
        self.offer_value(number, (&keys, is_delete), value, (draft, seen))
    }

    /// A client puts or deletes objects.
    fn offer(&mut self, number: usize, what: (&[Key], bool), upon: (Draft, Vec<(Key, Seen)>)) -> Checked {
        self.offer_value(number, what, None, upon)
    }

    fn offer_value(
        &mut self,
        number: usize,
        (keys, is_delete): (&[Key], bool),
        value: Option<Bytes>,
        (draft, seen): (Draft, Vec<(Key, Seen)>),
    ) -> Checked {
        let change = self.oracle.made.len();
        let value = value.unwrap_or_else(|| Bytes::from(format!("v{change}")));
        let op = |key: Key| match is_delete {
            true => Op::Delete { collection: collection(), key },
            false => Op::Put { collection: collection(), key, value: value.clone() },
        };
        let ops: Vec<Op> = keys.iter().cloned().map(op).collect();
        let is_judged_upstream = self.chance(30);
        let note = note(change, ops.len());
        let draft = Draft { ops: ops.clone(), note, is_judged_upstream, ..draft };
        let text = format!("web{number}: change {change} {ops:?} upon {seen:?}");
        let past = self.members[number].past();
        let writers = |key: &Key| past.writers_since_creation(key).into_iter().flatten().collect();
        // A condition that an object is present holds for any object if the one that was seen was pending and is rejected.
        let is_pending = |key: &Key| {
            self.members[number].running.as_ref().is_some_and(|stepped| stepped.is_pending(&collection(), key))
        };
        let required = seen.iter().filter(|(key, seen)| *seen == Seen::Present && !is_pending(key)).map(|(key, _)| key);
        let present = required.map(|key| (key.clone(), writers(key))).collect();
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        let submitted = stepped.submit(vec![draft]).map_err(|error| error.to_string())?;
        let is_taken = submitted.iter().all(Result::is_ok);
        if is_taken {
            self.oracle.made.push(Made {
                author: number,
                ops,
                seen,
                present,
                is_dismissed: false,
                let_go: None,
                lost_after: None,
                saw: BTreeSet::new(),
                is_passed: false,
                absent_since: BTreeSet::new(),
                is_tried_again: false,
                is_back: false,
            });
        }
        self.note(if is_taken { "accepted" } else { "refused" }, || text);
        Ok(())
    }

    fn first_rejected(&mut self, number: usize) -> Option<TxnId> {
        let rejected = self.members[number].running.as_ref()?.rejected();
        let at = self.random.below(rejected.len());
        rejected.get(at).map(|rejected| rejected.txn.id)
    }

    /// The author retries a rejected change or dismisses it.
    fn deal_with(&mut self, number: usize, id: TxnId, retries: bool) -> Checked {
        let is_held = self.members[number].under_way.as_ref().is_some_and(|under_way| under_way.step >= Step::Prepared);
        let Some(stepped) = self.members[number].running.as_ref().filter(|_| !is_held) else { return Ok(()) };
        let found = stepped.rejected().into_iter().find(|rejected| rejected.txn.id == id);
        let Some(rejected) = found else { return Ok(()) };
        let Some(change) = change_of(&rejected.txn) else {
            // The deletions of an archived change, which is on the list as a whole as well.
            part_of(&rejected.txn).ok_or("a rejected transaction without an author")?;
            let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
            return stepped.dismiss(id).map_err(|error| error.to_string())?.map_err(|error| error.to_string());
        };
        let read_in = stepped.history();
        let mut upon = Vec::new();
        if retries && self.chance(40) {
            for key in self.keys.clone() {
                upon.extend(self.read(number, key)?);
            }
        }
        let seen = |read: &Read| match &read.condition {
            Condition::Version { collection, key, version } => {
                Some(SeenVersion { collection: collection.clone(), key: key.clone(), version: *version })
            }
            _ => None,
        };
        let versions: Vec<SeenVersion> = upon.iter().filter_map(seen).collect();
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        if retries {
            let retried = stepped.retry_upon(id, versions, read_in).map_err(|error| error.to_string())?;
            if retried.is_ok() {
                self.now_upon(change, &rejected.txn.conditions, &upon);
                self.note("retried", || format!("web{number}: change {change} based on {upon:?}"));
                return Ok(());
            }
        }
        let Some(stepped) = &mut self.members[number].running else { return Ok(()) };
        stepped.dismiss(id).map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.oracle.made[change].is_dismissed = true;
        self.note("dismissed", || format!("web{number}: change {change}"));
        Ok(())
    }

    /// Records the objects that an author has read again before retrying a change: the change now depends on these versions.
    fn now_upon(&mut self, change: Number, conditions: &[Condition], upon: &[Read]) {
        let is_raised = |read: &&Read| {
            let of_it = |condition: &&Condition| condition.key() == &read.key;
            let raised = |condition: &Condition| !matches!(condition, Condition::Present { .. });
            matches!(read.condition, Condition::Version { .. }) && conditions.iter().filter(of_it).any(raised)
        };
        let made = &mut self.oracle.made[change];
        made.is_tried_again = true;
        // A lost deletion is pushed again with weaker conditions; if it is rejected, it is listed and retried with these.
        if made.lost_after.is_some() && made.ops.iter().all(|op| op.value().is_none()) {
            made.seen.retain(|(key, _)| conditions.iter().any(|condition| condition.key() == key));
        }
        for read in upon.iter().filter(is_raised) {
            made.seen.retain(|(key, seen)| *key != read.key || *seen == Seen::Present);
            made.seen.push((read.key.clone(), read.seen));
            if let Seen::As(seen) = read.seen {
                made.saw.insert(seen);
            }
        }
    }

    /// Starts to leave a history for the state that a connection has fetched.
    pub fn start_leaving(&mut self, number: usize, leave: Leave) -> Checked {
        let member = &mut self.members[number];
        let (Some(stepped), Some(link)) = (&member.running, &mut member.link) else { return Ok(()) };
        let Some((path, state)) = link.fetched.take() else { return Err("no state was fetched".into()) };
        let leaving = stepped.leave(leave, state, link.fork.take().as_ref())?;
        let since = leaving.reads_after().map(|after| self.log.since(after));
        let what = match &since {
            None => "nothing to push again",
            Some(Some(_)) => "the log has the changes of others",
            Some(None) => "the log lacks the changes of others",
        };
        let exchange = stepped.choose(leaving, since.flatten().as_deref())?;
        let pending = member.pending().into_iter().collect();
        let left = Left {
            old: member.past(),
            new: self.log.past.clone(),
            floor: member.floor,
            pending,
            kept: member.kept(),
            deletions_after: member.deletions_after()?,
            is_restore: exchange.set().is_restore,
            path,
        };
        self.note(what, || format!("web{number} leaves the history at {}", left.old.shared_with(&left.new)));
        let member = &mut self.members[number];
        member.left = Some(left);
        member.under_way = Some(UnderWay { exchange, step: Step::Chosen });
        Ok(())
    }

    fn step(&mut self, number: usize) -> Checked {
        let fails = self.chance(3);
        let member = &mut self.members[number];
        let (Some(stepped), Some(mut under_way), Some(left)) =
            (&mut member.running, member.under_way.take(), member.left.clone())
        else {
            return Err("an exchange without a process".into());
        };
        under_way.step = match under_way.step {
            Step::Chosen => {
                stepped.archive(&under_way.exchange, &member.directory)?;
                Step::Archived
            }
            Step::Archived => {
                let mut left = left;
                left.pending = member.pending().into_iter().collect();
                let Some(stepped) = &mut member.running else { return Ok(()) };
                stepped.prepare(&under_way.exchange).map_err(|error| error.to_string())??;
                // The sequences belong to the state that is not in place yet.
                member.recorded.clear();
                self.oracle.prepared(number, &left);
                member.left = Some(left);
                Step::Prepared
            }
            Step::Prepared => {
                if fails {
                    member.states.fail_next();
                }
                let swapped = stepped.swap_left(&under_way.exchange, left.path.clone());
                if swapped.map_err(|error| error.to_string())?.is_err() {
                    stepped.take_back().map_err(|error| error.to_string())?;
                    member.states.discard(&left.path);
                    member.left = None;
                    self.note("rolled back", || format!("web{number}"));
                    return self.session_event(number, Event::Failed("simulated failure".into()));
                }
                member.pasts.insert(left.path.clone(), left.new.clone());
                Step::Swapped
            }
            Step::Swapped => {
                stepped.install(&under_way.exchange).map_err(|error| error.to_string())?;
                member.left = None;
                self.check_left(number, &left)?;
                // The connection may have ended before.
                return self.session_event(number, Event::Left);
            }
        };
        member.under_way = Some(under_way);
        Ok(())
    }

    fn is_level(&self) -> bool {
        self.members.iter().all(|member| {
            member.is_following()
                && member.under_way.is_none()
                && member.pending().is_empty()
                && member.at() == Some(self.log.past.head())
        })
    }

    /// Delivers everything without further faults.
    fn deliver(&mut self) -> Checked {
        let mut rounds = 0;
        while !self.is_level() {
            rounds += 1;
            if rounds > ROUNDS_MAX {
                let waiting: Vec<String> =
                    self.members.iter().map(|member| format!("{:?}", member.pending())).collect();
                return Err(format!("some changes are not delivered: {waiting:?} are pending"));
            }
            for number in 0..self.members.len() {
                self.clock.fetch_add(1000, Ordering::Relaxed);
                if self.members[number].running.is_none() {
                    self.start(number)?;
                }
                self.members[number].is_cut_off = false;
                match (self.members[number].under_way.is_some(), self.members[number].is_following()) {
                    (true, _) => self.step(number)?,
                    (false, false) => self.greet(number)?,
                    (false, true) => {
                        self.push(number, 4, 0)?;
                        self.tail(number, 8)?;
                    }
                }
                self.check(number)?;
                let member = &mut self.members[number];
                if let Some(stepped) = member.running.as_mut().filter(|_| member.under_way.is_none()) {
                    stepped.keep_journal(u64::MAX).map_err(|error| error.to_string())?;
                }
            }
        }
        self.compare()
    }

    /// Checks that all members show the contents of the log.
    fn compare(&mut self) -> Checked {
        for member in &self.members {
            let Some(stepped) = &member.running else { return Err("it does not run".into()) };
            for key in &self.keys {
                let shown = stepped.get(&collection(), key).map_err(|error| error.to_string())?;
                let (shown, there) = (shown.map(|object| object.value), self.log.past.value(key));
                self.oracle.checks += 1;
                if shown != there {
                    return Err(format!("{} shows {shown:?} as {key}, but the log has {there:?}", member.name));
                }
            }
        }
        Ok(())
    }
}
