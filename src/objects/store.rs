//! Reading and writing typed objects through the replica.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::model::limits::NOTE_BYTES_MAX;
use crate::model::{Collection, Condition, Key, Op, Reason, Seq, Txn, TxnId};
use crate::replica::{Again, Draft, Object, ReadError, Receipt, Replica, Room, Stage, SubmitError};

use super::allowance::{Allowance, Spent};
use super::invalid;
use super::record::{AsRead, Record, Stored};
use super::standing::{self, Standing};
use super::writes::{Writes, place};

/// A writer waits this long for the datastore's decision while the replica is connected.
const DECISION: Duration = Duration::from_secs(5);
/// While it waits it looks this often whether the datastore is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// After a wait in vain, until a decision comes in time again: the datastore may hang, and everybody would wait for it.
const DOUBTFUL: Duration = Duration::from_millis(400);

/// Characters of each part of a note.
const NOTE_CHARS_MAX: usize = 1024;

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The replica.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An object is not what its collection holds.
    #[error("invalid {collection}/{key}: {reason}; replace or delete it")]
    Invalid {
        /// Where.
        collection: &'static str,
        /// Which.
        key: String,
        /// Why.
        reason: String,
    },
    /// A value cannot be written.
    #[error("the object cannot be written as JSON: {0}")]
    Write(#[from] serde_json::Error),
    /// A name that cannot be a key.
    #[error("{0}")]
    BadKey(String),
    /// The randomness or the disk of this machine.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A name or number is taken, or what was to be changed is gone.
    #[error("{0}")]
    Conflict(String),
    /// What was to be changed has been changed since it was read. Reading it again and repeating the change may succeed.
    #[error("{0}")]
    Changed(String),
    /// Its author makes changes faster than they may.
    #[error("you make changes faster than this webserver takes them: wait a moment")]
    TooFast(Duration),
    /// Its author has as much as one user may have.
    #[error("{0}")]
    TooMuch(String),
    /// What waits for the datastore of this author is as much as may wait.
    #[error(
        "your changes fill your share of what can wait for the datastore: try again when it has decided them (deleting, and \
         ending sessions, is possible)"
    )]
    TooMuchWaits,
    /// The replica does not take it.
    #[error(transparent)]
    Refused(SubmitError),
    /// Reading what was to be changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How far a change has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// Committed at the datastore, at this sequence.
    At(Seq),
    /// Durable here, not decided yet: the datastore is away or slow.
    Pending(TxnId),
}

/// Who makes a change, for the audit note of its transaction.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Author {
    /// Number of the user; 0: the webserver itself.
    pub uid: i32,
    /// Name of the user.
    pub user: String,
    /// Address of the client.
    pub from: String,
    /// The webserver.
    pub via: String,
    /// What is done, in words.
    pub what: String,
    /// The administrator who acts as this user; empty: nobody does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub su: String,
    /// What the author's right to change accounts rests on; no part of the note.
    #[serde(skip)]
    pub standing: Standing,
}

impl Author {
    /// The note of a transaction. It may be shortened, and is never a reason to refuse one.
    fn note(mut self) -> Result<Bytes, StoreError> {
        let mut chars_max = NOTE_CHARS_MAX;
        loop {
            for text in [&mut self.what, &mut self.user, &mut self.from, &mut self.via, &mut self.su] {
                shorten(text, chars_max);
            }
            let note = serde_json::to_vec(&self).map_err(StoreError::Write)?;
            if note.len() <= NOTE_BYTES_MAX || chars_max == 0 {
                return Ok(note.into());
            }
            chars_max /= 2;
        }
    }

    /// The author of a transaction, if its note says so.
    #[must_use]
    pub fn of(note: &[u8]) -> Option<Author> {
        serde_json::from_slice(note).ok()
    }
}

fn shorten(text: &mut String, chars_max: usize) {
    if let Some((end, _)) = text.char_indices().nth(chars_max) {
        text.truncate(end);
        text.push('…');
    }
}

/// The replica, seen as a store of typed objects. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    replica: Replica,
    via: Arc<str>,
    /// Transactions whose makers are waiting for the answer, so that nobody else needs to tell them.
    attended: Arc<Mutex<HashSet<TxnId>>>,
    /// Whether the last wait for a decision was in vain.
    is_doubtful: Arc<AtomicBool>,
    /// How much and how fast users may write; `None`: without bounds.
    allowance: Option<Arc<Allowance>>,
}

/// Takes a transaction off the list of attended ones, however its maker ends.
struct Attending<'a>(&'a Mutex<HashSet<TxnId>>, TxnId);

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Store {
    /// Wraps a replica; `via` names this webserver in audit notes.
    #[must_use]
    pub fn new(replica: Replica, via: &str) -> Store {
        let (attended, is_doubtful) = (Arc::default(), Arc::default());
        Store { replica, via: via.into(), attended, is_doubtful, allowance: None }
    }

    /// The same store with bounds on what users write.
    #[must_use]
    pub fn with_allowance(self, allowance: Allowance) -> Store {
        Store { allowance: Some(Arc::new(allowance)), ..self }
    }

    /// How much and how fast users may write.
    #[must_use]
    pub fn allowance(&self) -> Option<&Allowance> {
        self.allowance.as_deref()
    }

    /// Takes what operations of a user cost, or says why they cannot be made now.
    ///
    /// # Errors
    /// When they come too fast, or are too much.
    pub fn spend(&self, author: &Author, ops: &[Op]) -> Result<Option<Spent<'_>>, CommitError> {
        match &self.allowance {
            Some(allowance) if author.uid != 0 => allowance.spend(self, author, ops).map(Some),
            _ => Ok(None),
        }
    }

    /// The replica.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Name of this webserver.
    #[must_use]
    pub fn via(&self) -> &str {
        &self.via
    }

    /// Whether somebody waits for the decision on a transaction.
    #[must_use]
    pub fn is_attended(&self, id: TxnId) -> bool {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// One object.
    ///
    /// # Errors
    /// When the replica's state is damaged or the object is not understood.
    pub fn get<T: Stored>(&self, key: &str) -> Result<Option<Record<T>>, StoreError> {
        if key.is_empty() {
            return Ok(None);
        }
        let (collection, key) = place::<T>(key)?;
        let Some(object) = self.replica.get(&collection, &key)? else { return Ok(None) };
        Ok(Some(understood::<T>(&key, AsRead::of(&object), object.value)?))
    }

    /// Whether an object exists.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn has<T: Stored>(&self, key: &str) -> Result<bool, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.replica.get(&collection, &key)?.is_some())
    }

    /// One object, or nothing when it is invalid: what an invalid object would allow is not allowed.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn valid<T: Stored>(&self, key: &str) -> Result<Option<Record<T>>, StoreError> {
        match self.get(key) {
            Err(error @ StoreError::Invalid { .. }) => {
                invalid::note(&error);
                Ok(None)
            }
            found => found,
        }
    }

    /// One object; an invalid one is made valid by `blank`, which lends it the members that it lacks or that do not fit.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn get_completed<T: Stored>(
        &self,
        key: &str,
        blank: &serde_json::Value,
    ) -> Result<Option<Record<T>>, StoreError> {
        let (collection, at) = place::<T>(key)?;
        let Some((value, as_read)) = self.raw(&collection, &at)? else { return Ok(None) };
        if invalid::check::<T>(key, &value).is_ok() {
            return self.get(key);
        }
        let made = invalid::completed(blank, &value, |bytes| invalid::check::<T>(key, bytes).is_ok());
        let made =
            made.map_err(|reason| StoreError::Invalid { collection: T::COLLECTION, key: key.to_owned(), reason })?;
        understood::<T>(&at, as_read, made.into()).map(Some)
    }

    /// Whether an object exists, and if so, whether the datastore has it as it is here.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn synced<T: Stored>(&self, key: &str) -> Result<Option<bool>, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.raw(&collection, &key)?.map(|(_, as_read)| as_read.version().is_some()))
    }

    /// An object as it is stored, whatever it is, and its last write.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn raw(&self, collection: &Collection, key: &Key) -> Result<Option<(Bytes, AsRead)>, StoreError> {
        Ok(self.replica.get(collection, key)?.map(|object| (object.value.clone(), AsRead::of(&object))))
    }

    /// The last write of an object, whether the object is valid or not; `None` when there is none.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn seen<T: Stored>(&self, key: &str) -> Result<Option<AsRead>, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.raw(&collection, &key)?.map(|(_, as_read)| as_read))
    }

    /// The valid objects whose keys start with `prefix`, in key order, one at a time until `visit` has seen enough. Those
    /// that are not valid are noted ([`invalid::noting`]) and left out: one of them must not hide all the others.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn each<T: Stored>(
        &self,
        prefix: &str,
        mut visit: impl FnMut(Record<T>) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let collection = Collection::new(T::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let each = |key: Key, object: Object| match understood::<T>(&key, AsRead::of(&object), object.value) {
            Ok(record) => visit(record),
            Err(error) => {
                invalid::note(&error);
                ControlFlow::Continue(())
            }
        };
        Ok(self.replica.each(&collection, prefix, each)?)
    }

    /// As [`Store::each`], those that are wanted: only they are held in memory.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn select<T: Stored>(
        &self,
        prefix: &str,
        mut wanted: impl FnMut(&T) -> bool,
    ) -> Result<Vec<Record<T>>, StoreError> {
        let mut found = Vec::new();
        self.each::<T>(prefix, |record| {
            if wanted(&record.value) {
                found.push(record);
            }
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// The first valid object that is wanted, in key order.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn first<T: Stored>(
        &self,
        prefix: &str,
        mut wanted: impl FnMut(&T) -> bool,
    ) -> Result<Option<Record<T>>, StoreError> {
        let mut found = None;
        self.each::<T>(prefix, |record| {
            if !wanted(&record.value) {
                return ControlFlow::Continue(());
            }
            found = Some(record);
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// All valid objects whose keys start with `prefix`: for kinds of which there is little.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn list<T: Stored>(&self, prefix: &str) -> Result<Vec<Record<T>>, StoreError> {
        self.select(prefix, |_| true)
    }

    /// As [`Store::each`], for decisions that remove what no object names: an invalid one may name anything.
    ///
    /// # Errors
    /// When the replica's state is damaged or an object is invalid.
    pub fn each_whole<T: Stored>(&self, prefix: &str, mut visit: impl FnMut(T)) -> Result<(), StoreError> {
        let collection = Collection::new(T::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let mut wrong = None;
        self.replica.each(&collection, prefix, |key, object| {
            match understood::<T>(&key, AsRead::of(&object), object.value) {
                Ok(record) => {
                    visit(record.value);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    wrong = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        wrong.map_or(Ok(()), Err)
    }

    /// The first keys that start with `prefix`, in order, at most `keys_max`.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn some_keys<T: Stored>(&self, prefix: &str, keys_max: usize) -> Result<Vec<String>, StoreError> {
        self.some_keys_after::<T>(prefix, None, keys_max)
    }

    /// The same, after a key.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn some_keys_after<T: Stored>(
        &self,
        prefix: &str,
        after: Option<&str>,
        keys_max: usize,
    ) -> Result<Vec<String>, StoreError> {
        let collection = Collection::new(T::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let after = after.map(Key::new).transpose().map_err(|error| StoreError::BadKey(error.to_string()))?;
        let rows = self.replica.scan(&collection, prefix, after.as_ref(), keys_max)?;
        Ok(rows.into_iter().map(|(key, _)| key.as_str().to_owned()).collect())
    }

    /// The keys that start with `prefix`, in order.
    ///
    /// # Errors
    /// When the replica's state is damaged.
    pub fn keys<T: Stored>(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.some_keys::<T>(prefix, usize::MAX)
    }

    /// Waits until there is no reason to wait for a decision: the replica is disconnected, or nothing at all has been heard
    /// from the datastore for as long as this caller has waited.
    async fn given_up(&self) {
        let since = Instant::now();
        let is_silent = || since.elapsed() >= DOUBTFUL && self.replica.silence() >= DOUBTFUL;
        while self.replica.is_connected() && !is_silent() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Makes a change. While the replica is connected this waits for the datastore's decision; while it is cut off, the
    /// change is durable here, takes effect here at once and is decided later.
    ///
    /// # Errors
    /// When a condition fails, here or at the datastore, or the local disk refuses.
    pub async fn commit(&self, author: &Author, what: &str, mut writes: Writes) -> Result<Committed, CommitError> {
        author.standing.require(self, &mut writes)?;
        // From here on it may be committed although nobody waits for that any more.
        let spent =
            if writes.is_unmetered() { None } else { self.spend(author, writes.ops())?.map(Spent::until_refused) };
        let committed = match self.begin(author, what, &writes).await {
            Ok(receipt) => self.decision(receipt, &writes).await,
            Err(error) => Err(error),
        };
        if let (Some(spent), Err(_)) = (spent, &committed) {
            spent.give_back();
        }
        committed
    }

    /// How a rejected transaction is made again by an author: on the ground of what the author may do now, whoever made it before.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn again(&self, author: &Author, txn: &Txn) -> Result<Again, StoreError> {
        let mut writes = Writes::whatever(txn.ops.clone(), "its conditions are kept where it is made again");
        author.standing.require(self, &mut writes)?;
        let kept = standing::left_out(&txn.ops, &txn.conditions);
        let is_left = |condition: &&Condition| !kept.contains(condition);
        let without = txn.conditions.iter().filter(is_left).cloned().collect();
        let note = Author { via: self.via.to_string(), ..author.clone() }.note()?;
        Ok(Again { note: Some(note), without, with: writes.conditions(), ..Again::default() })
    }

    /// The first half of [`Store::commit`] for changes of the webserver itself, which cost nothing and need no right: the change is durable here, and takes effect here, when
    /// this returns.
    ///
    /// # Errors
    /// When a condition fails here, or the local disk refuses.
    pub async fn begin(&self, author: &Author, what: &str, writes: &Writes) -> Result<Receipt, CommitError> {
        let author = Author { via: self.via.to_string(), what: what.to_owned(), ..author.clone() };
        let room = if self.allowance.is_some() { Allowance::room(self, &author, writes)? } else { Room::Whole };
        let note = author.note()?;
        let (ops, conditions, read_in) = (writes.ops().to_vec(), writes.conditions(), writes.read_in());
        let draft = Draft { ops, conditions, note, read_in, room, ..Draft::default() };
        self.replica.submit(draft).await.map_err(|error| match error {
            SubmitError::Condition(reason) => refused(writes, &reason),
            SubmitError::ShareIsFull => CommitError::TooMuchWaits,
            error @ SubmitError::RejectedFill { .. } => CommitError::TooMuch(error.to_string()),
            error => CommitError::Refused(error),
        })
    }

    /// The second half: waits for the datastore's decision on `writes`, while the replica is connected.
    ///
    /// # Errors
    /// When a condition fails at the datastore.
    pub async fn decision(&self, mut receipt: Receipt, writes: &Writes) -> Result<Committed, CommitError> {
        let id = receipt.id();
        if !self.replica.is_connected() {
            return Ok(Committed::Pending(id));
        }
        self.attended.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        let attending = Attending(&self.attended, id);
        let patience = if self.is_doubtful.load(Ordering::Relaxed) { DOUBTFUL } else { DECISION };
        let decided = tokio::select! {
            decided = receipt.decided(patience) => decided,
            () = self.given_up() => Stage::Durable,
        };
        self.is_doubtful.store(!decided.is_final(), Ordering::Relaxed);
        let outcome = match decided {
            Stage::Acknowledged(seq) => {
                // So that the position told with the answer includes the change.
                self.replica.barrier(seq, DECISION).await;
                Ok(Committed::At(seq))
            }
            Stage::Rejected(_, reason) => {
                let refused = refused(writes, &reason);
                // Whoever made it is told now; it need not wait on the list.
                if let Err(error) = self.replica.dismiss(id).await {
                    tracing::debug!(%error, "a rejection that was answered stays on the list");
                }
                Err(refused)
            }
            Stage::Durable => Ok(Committed::Pending(id)),
        };
        drop(attending);
        outcome
    }
}

/// What a failed condition or another rejection means to the author of a change.
fn refused(writes: &Writes, reason: &Reason) -> CommitError {
    let said = writes.explain(reason);
    if writes.is_overtaken(reason) { CommitError::Changed(said) } else { CommitError::Conflict(said) }
}

fn understood<T: Stored>(key: &Key, as_read: AsRead, value: Bytes) -> Result<Record<T>, StoreError> {
    let invalid = |reason| StoreError::Invalid { collection: T::COLLECTION, key: key.to_string(), reason };
    let record = Record::<T>::read(value, as_read).map_err(|error| invalid(invalid::reason_for::<T>(&error)))?;
    if record.value.key() == key.as_str() {
        return Ok(record);
    }
    Err(invalid(invalid::misplaced::<T>(&record.value.key())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_shortened_and_never_too_long() {
        for what in ["x", &"x".repeat(100_000), &"\u{1}".repeat(5000), &"\u{2028}é".repeat(3000)] {
            let author = Author { uid: 7, user: what.to_owned(), what: what.to_owned(), ..Author::default() };
            let note = author.clone().note().expect("note");
            assert!(note.len() <= NOTE_BYTES_MAX, "{}", note.len());
            let read = Author::of(&note).expect("it stays JSON");
            assert!(read.uid == 7 && (what.len() > 1 || read == author));
        }
    }
}
