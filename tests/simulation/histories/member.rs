//! A member of a small world: its disks, and its replica while it is running.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gravwell_env::memory_fs::{MemoryFs, SmallRandom, Survival};
use gravwell_log::journal::Journal;
use gravwell_model::{Condition, Key, MemberName, Seq, TxnId};
use gravwell_protocol::outbox::{Outbox, RetentionLimits};
use gravwell_protocol::session::client::{ClientSession, End};
use gravwell_protocol::session::reconnects::Reconnects;
use gravwell_replica::History;
use gravwell_replica::conflict_archive::{self, Change};
use gravwell_replica::directory::StateStorage;
use gravwell_replica::stepped::{Exchange, SteppedReplica};
use gravwell_state::{Fork, StateStore};

use super::super::engine::Disk;
use super::super::replica::{JOURNAL, SimClock, SimEntropy, States};
use super::Number;
use super::log::{Past, change_of};

/// The version of an object that an author saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Absent,
    Present,
    /// As this change left it.
    As(Number),
}

/// An object that a client has read.
#[derive(Clone, Debug)]
pub struct Read {
    pub key: Key,
    pub condition: Condition,
    pub seen: Seen,
    pub read_in: History,
}

/// The last completed step of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Chosen,
    Archived,
    Prepared,
    Swapped,
}

/// Data for the checks after a history was abandoned.
#[derive(Clone)]
pub struct Left {
    /// The history before and after.
    pub old: Past,
    pub new: Past,
    /// Every member had everything up to this sequence, so own changes were no longer retained.
    pub floor: Seq,
    pub pending: BTreeSet<Number>,
    /// Own committed changes that were retained.
    pub kept: BTreeSet<Number>,
    /// The state knew the deletions after this sequence.
    pub deletions_after: Seq,
    pub is_restore: bool,
    pub path: PathBuf,
}

pub struct UnderWay {
    pub exchange: Exchange,
    pub step: Step,
}

/// A connection to the log.
pub struct Link {
    pub session: ClientSession,
    /// Whether the session reads the next message of the control stream.
    pub reads_control: bool,
    /// Whether the tail was opened.
    pub has_tail: bool,
    pub fetched: Option<(PathBuf, StateStore)>,
    /// Reason for which the fetched state did not replace the present one.
    pub fork: Option<Fork>,
}

pub struct Member {
    pub number: usize,
    pub name: MemberName,
    /// Limits of what its outbox retains.
    pub limits: RetentionLimits,
    /// Directory of the archive, which is written to real files.
    pub directory: PathBuf,
    pub fs: MemoryFs,
    pub states: States,
    /// The history that each state represents.
    pub pasts: BTreeMap<PathBuf, Past>,
    pub running: Option<SteppedReplica>,
    pub link: Option<Link>,
    pub under_way: Option<UnderWay>,
    /// Checked once the exchange is complete, even after a crash.
    pub left: Option<Left>,
    pub reconnects: Reconnects,
    pub is_cut_off: bool,
    pub reads: VecDeque<Read>,
    /// The highest floor received in its current history.
    pub floor: Seq,
    /// Own transactions whose sequences in its current history are durably in the outbox journal.
    pub recorded: BTreeSet<TxnId>,
}

impl Member {
    pub fn new(number: usize, root: &Path, limits: RetentionLimits) -> Member {
        let name = MemberName::new(format!("web{number}")).expect("name");
        let directory = root.join(name.to_string());
        std::fs::create_dir(&directory).expect("creates");
        Member {
            number,
            name,
            limits,
            directory,
            fs: MemoryFs::new(),
            states: States::default(),
            pasts: BTreeMap::new(),
            running: None,
            link: None,
            under_way: None,
            left: None,
            reconnects: Reconnects::default(),
            is_cut_off: false,
            reads: VecDeque::new(),
            floor: Seq::ZERO,
            recorded: BTreeSet::new(),
        }
    }

    pub fn start(&mut self, clock: &Arc<AtomicU64>, seed: u64) -> Result<(), String> {
        let open = |disk: Disk| StateStore::with_engine(Box::new(disk)).map_err(|error| error.to_string());
        let state = open(self.states.current())?;
        SteppedReplica::check_state(&state)?;
        let at = state.position().map_or(Seq::ZERO, |position| position.seq);
        let path = StateStorage::current(&self.states).ok_or("no current state")?;
        let past = self.pasts.entry(path.clone()).or_default();
        if past.head() < at {
            return Err(format!("{} is at {at}, and was at {} at most", self.name, past.head()));
        }
        *past = past.up_to(at);
        self.pasts.retain(|other, _| *other == path);
        let (journal, records) =
            Journal::open(Arc::new(self.fs.clone()), Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        let entries = records.into_iter().map(|record| (record.kind, record.payload)).collect();
        let fresh = || Err("the outbox cannot be restored".to_owned());
        let entropy = Arc::new(SimEntropy(Mutex::new(SmallRandom(seed))));
        let home = Box::new(self.states.clone());
        let clock = Arc::new(SimClock(Arc::clone(clock)));
        let limits = self.limits;
        let kind = move || Outbox::keeping_within(limits);
        let stepped = SteppedReplica::open_with(kind, state, fresh, (journal, entries), home, clock, entropy)?;
        stepped.take_role("webserver");
        self.running = Some(stepped);
        Ok(())
    }

    /// Checks the sequences that it knows of its own committed transactions.
    pub fn check_sequences(&self) -> Result<(), String> {
        let past = self.past();
        for (id, seq) in self.running.iter().flat_map(SteppedReplica::sequences) {
            match seq {
                None if self.recorded.contains(&id) => {
                    return Err(format!("{}: the recorded sequence of {id:?} is unknown", self.name));
                }
                Some(seq) if past.entry(seq).and_then(|entry| entry.body.id()) != Some(id) => {
                    return Err(format!("{}: {id:?} is not at {seq}", self.name));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends the process immediately; with a power cut, disks lose data that was not synced.
    pub fn crash(&mut self, power: Option<(Survival, &mut SmallRandom)>) {
        (self.running, self.link, self.under_way) = (None, None, None);
        self.reconnects = Reconnects::default();
        self.reads.clear();
        if let Some((survival, random)) = power {
            self.fs = self.fs.crash(survival, random.next_u64());
            self.states.cut_power(random);
        }
    }

    /// Returns the history that its state represents.
    pub fn past(&self) -> Past {
        StateStorage::current(&self.states).and_then(|path| self.pasts.get(&path)).cloned().unwrap_or_default()
    }

    pub fn past_mut(&mut self) -> Option<&mut Past> {
        self.pasts.get_mut(&StateStorage::current(&self.states)?)
    }

    pub fn at(&self) -> Option<Seq> {
        self.running.as_ref()?.position().map(|position| position.seq)
    }

    /// Returns the pending changes in order.
    pub fn pending(&self) -> Vec<Number> {
        self.running.iter().flat_map(SteppedReplica::pending).filter_map(|txn| change_of(&txn)).collect()
    }

    /// Returns whether a pending transaction deletes an object, be it a whole change or a part of one.
    pub fn will_delete(&self, key: &Key) -> bool {
        let mut pending = self.running.iter().flat_map(SteppedReplica::pending);
        pending.any(|txn| txn.ops.iter().any(|op| op.key() == key && op.value().is_none()))
    }

    /// Returns the own committed changes that are retained.
    pub fn kept(&self) -> BTreeSet<Number> {
        self.running.iter().flat_map(SteppedReplica::kept).filter_map(|txn| change_of(&txn)).collect()
    }

    /// Returns the sequence after which its state knows all deletions.
    pub fn deletions_after(&self) -> Result<Seq, String> {
        let Some(stepped) = self.running.as_ref().filter(|stepped| stepped.position().is_some()) else {
            return Ok(Seq::ZERO);
        };
        let deletions = stepped.state().snapshot().and_then(|view| view.deletions());
        deletions.map(|deletions| deletions.complete_after()).map_err(|error| error.to_string())
    }

    pub fn listed(&self) -> Vec<Number> {
        self.running.iter().flat_map(SteppedReplica::rejected).filter_map(|rejected| change_of(&rejected.txn)).collect()
    }

    /// Returns all archived changes with the position at which the history was abandoned.
    pub fn archive(&self) -> Result<Vec<(Seq, Change)>, String> {
        let mut all = Vec::new();
        for file in conflict_archive::files(&self.directory).map_err(|error| error.to_string())? {
            let (set, changes) = conflict_archive::read(&file)?;
            all.extend(changes.into_iter().map(|change| (set.seq, change)));
        }
        Ok(all)
    }

    pub fn hang_up(&mut self) {
        self.disconnected(None);
    }

    /// Handles the end of a connection. `end` is the reason if the member has closed it.
    pub fn disconnected(&mut self, end: Option<&End>) {
        if self.link.take().is_some() {
            self.reconnects.handle_end(Duration::ZERO, end);
        }
        if let Some(stepped) = &self.running {
            stepped.disconnect();
        }
    }

    pub fn is_following(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.session.is_following())
    }
}
