//! A replica of a simulated world: its disk, and its process while it is running.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gravwell_env::memory_fs::{MemoryFs, SmallRandom};
use gravwell_env::{Clock, Entropy};
use gravwell_log::journal::Journal;
use gravwell_model::codec::message::{Bookmark, Kind, Welcome};
use gravwell_model::{Collection, Condition, Generation, Key, MemberName, Origin, Position, Seq, TxnId};
use gravwell_protocol::push::Pusher;
use gravwell_protocol::session::client::ClientSession;
use gravwell_protocol::session::reconnects::Reconnects;
use gravwell_protocol::tail::EntryBatch;
use gravwell_replica::directory::StateStorage;
use gravwell_replica::resync::Loading;
use gravwell_replica::stepped::SteppedReplica;
use gravwell_replica::{Draft, Receipt, SubmitError};
use gravwell_replica::{Mark, Terms, Witnesses};
use gravwell_state::StateStore;
use gravwell_transport::trust::Role;

use super::engine::Disk;
use super::network::{ConnId, Time};

pub const JOURNAL: &str = "/outbox";
/// Size from which the journal is rewritten: small, so that it happens often.
pub const REWRITE_BYTES_MIN: u64 = 2 << 10;

/// The state directories of a replica; clones share them.
#[derive(Clone, Default)]
pub struct States(Arc<Mutex<Places>>);

#[derive(Default)]
struct Places {
    next: u64,
    states: BTreeMap<PathBuf, Disk>,
    current: Option<PathBuf>,
    /// Contents of the file of the high-water mark.
    mark: Option<String>,
    /// Whether the next change of the current state fails.
    fails: bool,
    has_lost_current: bool,
    /// The last terms of the datastore and the position of a mark, which have their own files.
    terms: Option<Terms>,
    reached: Option<Position>,
    /// Sequence of the snapshot from which the current state was filled, if the datastore did not know makers.
    filled: Seq,
}

impl States {
    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a new, empty state next to the current one.
    pub fn add(&self) -> (PathBuf, Disk) {
        let mut places = self.places();
        places.next += 1;
        let (path, disk) = (PathBuf::from(format!("state-{:04}", places.next)), Disk::default());
        places.states.insert(path.clone(), disk.clone());
        (path, disk)
    }

    /// Returns the current state, or a new one if there is none.
    pub fn current(&self) -> Disk {
        let found = {
            let places = self.places();
            places.current.as_ref().and_then(|path| places.states.get(path)).cloned()
        };
        found.unwrap_or_else(|| self.fresh())
    }

    /// Makes an empty state the current one; the previous state is kept until another one is complete.
    pub fn fresh(&self) -> Disk {
        let (path, disk) = self.add();
        self.places().current = Some(path);
        disk
    }

    /// Makes the next change of the current state fail.
    pub fn fail_next(&self) {
        self.places().fails = true;
    }

    pub fn heal(&self) {
        self.places().fails = false;
    }

    /// Removes a state that was fetched but not adopted.
    pub fn discard(&self, path: &Path) {
        let mut places = self.places();
        if places.current.as_deref() != Some(path) {
            places.states.remove(path);
        }
    }

    pub fn note_filled(&self, seq: Seq) {
        self.places().filled = seq;
    }

    pub fn filled(&self) -> Seq {
        self.places().filled
    }

    /// Returns the position of the state according to the mark.
    pub fn marked(&self) -> Seq {
        StateStorage::mark(self).ok().flatten().map_or(Seq::ZERO, |mark| mark.seq())
    }

    pub fn has_lost_current(&self) -> bool {
        self.places().has_lost_current
    }

    /// Returns the older states with the current mark.
    pub fn rolled_back(&self, to: &States) -> States {
        let older = self.rolled_back_with_mark(to);
        older.places().mark.clone_from(&self.places().mark);
        older
    }

    /// Returns the older states with their mark; everything else is current.
    pub fn rolled_back_with_mark(&self, to: &States) -> States {
        let older = to.copy();
        {
            let (mut older, here) = (older.places(), self.places());
            older.terms.clone_from(&here.terms);
            older.reached = here.reached;
        }
        older
    }

    /// Stores the last terms of the datastore.
    pub fn keep_terms(&self, terms: Option<Terms>) {
        self.places().terms = terms;
    }

    /// Stores the position of the last mark.
    pub fn keep_reached(&self, reached: Option<Position>) {
        self.places().reached = reached;
    }

    /// Returns whether any file other than the mark shows that a state at this position, or no state, is less than the former one.
    pub fn is_missed(&self, seq: Option<Seq>, generation: Generation) -> bool {
        let places = self.places();
        let is_later =
            |seq: Seq| places.reached.is_some_and(|reached| reached.generation == generation && reached.seq > seq);
        match seq {
            Some(seq) => is_later(seq) || places.terms.as_ref().is_some_and(|terms| terms.generation > generation),
            None => places.terms.is_some() || places.reached.is_some(),
        }
    }

    /// Returns other directories with the same contents.
    pub fn copy(&self) -> States {
        let places = self.places();
        let states = places.states.iter().map(|(path, disk)| (path.clone(), disk.copy())).collect();
        let (current, mark) = (places.current.clone(), places.mark.clone());
        let (next, filled) = (places.next, places.filled);
        let (terms, reached) = (places.terms.clone(), places.reached);
        let places = Places { next, states, current, mark, terms, reached, filled, ..Places::default() };
        States(Arc::new(Mutex::new(places)))
    }

    pub fn cut_power(&self, random: &mut SmallRandom) {
        self.places().states.values().for_each(|disk| disk.cut_power(random));
    }

    pub fn len(&self) -> usize {
        self.places().states.len()
    }
}

impl StateStorage for States {
    fn make_current(&mut self, path: &Path) -> Result<(), String> {
        let mut places = self.places();
        if std::mem::take(&mut places.fails) {
            return Err("simulated failure".into());
        }
        places.current = Some(path.to_owned());
        Ok(())
    }

    fn is_current(&self, path: &Path) -> bool {
        self.places().current.as_deref() == Some(path)
    }

    fn remove_others(&mut self, keep: &Path) -> Result<(), String> {
        let mut places = self.places();
        places.has_lost_current |= places.current.as_deref() != Some(keep);
        places.states.retain(|path, _| path == keep);
        Ok(())
    }

    fn mark(&self) -> Result<Option<Mark>, String> {
        self.places().mark.as_deref().map(Mark::decode).transpose()
    }

    fn set_mark(&mut self, mark: Option<&Mark>) -> Result<(), String> {
        self.places().mark = mark.map(Mark::encode);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), String> {
        self.places().states.remove(path);
        Ok(())
    }

    fn current(&self) -> Option<PathBuf> {
        self.places().current.clone()
    }

    fn witnesses(&self, _: Option<&Mark>) -> Witnesses {
        let places = self.places();
        Witnesses::kept(places.terms.clone(), places.reached)
    }

    fn note_lost(&mut self, what: &str) {
        self.places().mark = Some(Mark::lost(what));
    }
}

/// The clock of the world as seen by one process.
#[derive(Clone, Default)]
pub struct SimClock(pub Arc<AtomicU64>);

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Random bytes derived from the seed.
pub struct SimEntropy(pub Mutex<SmallRandom>);

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut random = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for chunk in bytes.chunks_mut(8) {
            let next = random.next_u64().to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
        Ok(())
    }
}

/// Messages that wait for the applier thread.
pub enum ToApply {
    Run(EntryBatch),
    Bookmark(Bookmark),
}

/// A snapshot that is being received.
pub struct Fetching {
    pub loading: Loading,
    pub path: PathBuf,
}

/// The connection as seen by the replica.
pub struct Link {
    pub id: ConnId,
    pub since: Time,
    pub greeted: Option<Position>,
    pub session: ClientSession,
    /// Messages that arrived and were not read yet, and whether the session is reading.
    pub control: VecDeque<(Kind, Bytes)>,
    pub tail: VecDeque<(Kind, Bytes)>,
    pub reads_control: bool,
    pub reads_tail: bool,
    /// Completions of effects that take time.
    pub completions: VecDeque<gravwell_protocol::session::client::Event>,
    /// When the session is called next because of the time.
    pub timer: Option<Time>,
    /// The session waits until the state has applied this sequence.
    pub awaits: Option<Seq>,
    /// Whether a snapshot that arrives belongs to a fetch of this connection.
    pub fetching: Option<Fetching>,
    pub fetched: Option<(StateStore, PathBuf)>,
    pub is_redacted: bool,
    /// Pushes of a member that does not ask its session.
    pub rogue: Pusher,
}

pub struct Running {
    pub stepped: SteppedReplica,
    pub link: Option<Link>,
    pub reconnects: Reconnects,
    /// The last welcome.
    pub welcome: Option<Arc<Welcome>>,
    pub queue: VecDeque<ToApply>,
    pub receipts: BTreeMap<TxnId, Receipt>,
    /// Whether it knows that it is a reader.
    pub knows_role: bool,
    /// Connection attempts belong to an incarnation of the process and an attempt number.
    pub attempt: u64,
}

pub struct Node {
    pub name: MemberName,
    pub role: Role,
    /// Role in its identity; the datastore may have changed the role since.
    joined_as: Role,
    pub certificate: Vec<u8>,
    pub fs: MemoryFs,
    pub states: States,
    pub running: Option<Running>,
    pub revoked: bool,
    /// It applied a tampered entry and has not noticed yet.
    pub tampered: bool,
    /// Rows were damaged: reads may fail until the state is fetched again.
    pub damaged: bool,
    pub was_damaged: bool,
    /// Damage that the last start found in a state into which none was injected: a power cut must leave a consistent state.
    pub unsound: Option<String>,
    /// It has reported the position of a state with damaged or altered rows, which the registry keeps permanently.
    pub has_misreported: bool,
    /// The last bookmark received by a replica that is known to differ.
    pub compared: Option<Bookmark>,
    /// Sequence that it has shown durably: it may not show less without reporting that.
    pub shown: Seq,
    /// Position when its state was replaced by an older one. The mark and the last persist may be older, and the
    /// journal may have been rewritten for this position.
    pub was_at: Seq,
    /// Highest position its state ever reached: the journal may have been rewritten for it, whatever happened to the state since.
    pub came_to: Seq,
    /// Its state was lost together with the mark that recorded its position.
    pub lost_mark: bool,
    /// An import that assigns its own transaction numbers.
    pub import: Import,
    /// Objects that clients base changes on, with the condition that they are unchanged.
    pub reads: VecDeque<(Collection, Key, Condition)>,
    pub life: u64,
}

/// A client that imports a file through a replica: numbers transactions from 1, and resubmits those that were not answered.
#[derive(Default)]
pub struct Import {
    pub origin: Option<Origin>,
    pub counter: u64,
    /// The last submitted transaction, and whether it was answered.
    pub last: Option<(Draft, bool)>,
    is_again: bool,
}

impl Import {
    /// Returns the last transaction, for resubmission.
    pub fn again(&mut self) -> Option<Draft> {
        self.is_again = true;
        self.last.as_ref().map(|(draft, _)| draft.clone())
    }

    /// Records the first submission of the next transaction.
    pub fn next(&mut self, draft: Draft) {
        (self.last, self.is_again) = (Some((draft, false)), false);
    }

    pub fn answered(&mut self) {
        if let Some((_, answered)) = &mut self.last {
            *answered = true;
        }
    }

    /// Records a rejected submission. The next transaction reuses its number, unless an earlier unanswered submission
    /// may have been accepted. Returns true if the outcome is unknown, so that the transaction is resubmitted or the
    /// import restarts.
    pub fn refused(&mut self, error: &SubmitError) -> bool {
        let is_unknown = matches!(error, SubmitError::Gap { .. });
        match self.last.take() {
            Some((draft, false)) if self.is_again && !is_unknown => {
                self.last = Some((draft, false));
                return true;
            }
            // The resubmission was a mistake and was rejected: the first one stays valid.
            Some((draft, true)) if !is_unknown => {
                self.last = Some((draft, true));
                return true;
            }
            _ if is_unknown => self.origin = None,
            _ => self.counter -= 1,
        }
        is_unknown
    }
}

impl Node {
    pub fn new(name: MemberName, role: Role, certificate: Vec<u8>) -> Node {
        Node {
            name,
            role,
            joined_as: role,
            certificate,
            fs: MemoryFs::new(),
            states: States::default(),
            running: None,
            revoked: false,
            tampered: false,
            damaged: false,
            was_damaged: false,
            unsound: None,
            has_misreported: false,
            compared: None,
            shown: Seq::ZERO,
            was_at: Seq::ZERO,
            came_to: Seq::ZERO,
            lost_mark: false,
            import: Import::default(),
            reads: VecDeque::new(),
            life: 0,
        }
    }

    /// Starts the process on its disks like [`gravwell_replica::Replica::open`].
    pub fn start(&mut self, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Result<(), String> {
        let open = |disk: Disk| StateStore::with_engine(Box::new(disk)).map_err(|error| error.to_string());
        let found = open(self.states.current()).and_then(|state| SteppedReplica::check_state(&state).map(|()| state));
        self.unsound = found.as_ref().err().filter(|_| !self.was_damaged).cloned();
        let state = found.or_else(|_| open(self.states.fresh()))?;
        let journal =
            Journal::open(Arc::new(self.fs.clone()), Path::new(JOURNAL)).map_err(|error| error.to_string())?;
        let (journal, records) = journal;
        let entries = records.into_iter().map(|record| (record.kind, record.payload)).collect();
        let fresh = || open(self.states.fresh());
        let stepped =
            SteppedReplica::open(state, fresh, (journal, entries), Box::new(self.states.clone()), clock, entropy)?;
        stepped.take_role(&self.joined_as.to_string());
        self.life += 1;
        self.running = Some(Running {
            stepped,
            link: None,
            reconnects: Reconnects::default(),
            welcome: None,
            queue: VecDeque::new(),
            receipts: BTreeMap::new(),
            knows_role: self.joined_as == Role::Reader,
            attempt: 0,
        });
        Ok(())
    }

    /// Returns whether it has not reached its former position again and cannot know that position.
    pub fn is_blind(&self) -> bool {
        self.lost_mark && self.seq().unwrap_or_default() < self.shown.max(self.was_at)
    }

    /// Returns whether its state contains, or contained, values that were never written.
    pub fn is_doubtful(&self) -> bool {
        self.damaged || self.tampered || self.was_damaged
    }

    /// Removes a partially received state after its connection has ended.
    pub fn discard_fetched(&self, link: Option<&Link>) {
        let Some(link) = link else { return };
        let fetching = link.fetching.as_ref().map(|fetching| &fetching.path);
        for path in fetching.into_iter().chain(link.fetched.as_ref().map(|(_, path)| path)) {
            self.states.discard(path);
        }
    }

    /// Returns the sequence of the committed state; `None` if there is no state.
    pub fn seq(&self) -> Option<Seq> {
        self.running.as_ref().and_then(|running| running.stepped.position()).map(|position| position.seq)
    }
}
