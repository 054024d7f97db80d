//! Typed access to objects through the replica.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use gravwell_model::limits::NOTE_BYTES_MAX;
use gravwell_model::{Collection, Condition, Key, Op, Reason, Seq, Txn, TxnId};
use gravwell_replica::{Draft, Object, OutboxQuota, ReadError, Receipt, Replica, Resubmission, Stage, SubmitError};
use gravwell_runtime::tasks::blocking;

use super::Timestamp;
use super::epochs;
use super::identities;
use super::invalid;
use super::record::{AsRead, Record, Stored};
use super::standing::{self, Standing};
use super::write_limits::{Spent, WriteLimits};
use super::writes::{Writes, place};

/// Maximum time a writer waits for the datastore's decision while the replica is connected.
const DECISION: Duration = Duration::from_secs(5);
/// Interval at which a waiting writer checks whether the datastore is still reachable.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Shorter timeout after a wait in vain, until a decision arrives in time again: the datastore may hang, and every
/// writer would wait.
const DOUBTFUL: Duration = Duration::from_millis(400);

/// How often a change is submitted again if the user or group on whose creation it depends is written at the same time.
const TRIES: usize = 4;

/// Maximum characters of each field of an audit note.
const NOTE_CHARS_MAX: usize = 1024;

/// Error while reading or encoding an object.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The replica failed to read its state.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored object is invalid.
    #[error("invalid {collection}/{key}: {reason}; replace or delete it")]
    Invalid {
        /// Collection of the object.
        collection: &'static str,
        /// Key of the object.
        key: String,
        /// Reason for the error.
        reason: String,
    },
    /// A value cannot be encoded.
    #[error("cannot encode object as JSON: {0}")]
    Write(#[from] serde_json::Error),
    /// Invalid key or collection name.
    #[error("{0}")]
    BadKey(String),
    /// The random number generator or the disk failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Reason why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A name or number is taken, or the object to be changed is gone.
    #[error("{0}")]
    Conflict(String),
    /// The object was changed since it was read. Reading it again and repeating the change may succeed.
    #[error("{0}")]
    Changed(String),
    /// The author exceeds the write rate; contains the time to wait.
    #[error("you make changes faster than this webserver allows; try again in a moment")]
    TooFast(Duration),
    /// The author has reached a quota.
    #[error("{0}")]
    TooMuch(String),
    /// The author's pending changes fill their share of the outbox.
    #[error(
        "your pending changes fill your share of the outbox; try again when the datastore has resolved them (you can \
         still delete objects and end sessions)"
    )]
    TooMuchWaits,
    /// The replica rejected the transaction.
    #[error(transparent)]
    Refused(SubmitError),
    /// Reading the object to be changed failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Progress of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitProgress {
    /// Committed at the datastore, with this sequence.
    At(Seq),
    /// Durable locally, but pending: the datastore is unreachable or slow.
    Pending(TxnId),
}

/// Author of a change, for the audit note of its transaction.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Author {
    /// UID of the user; 0 for the webserver itself.
    pub uid: i32,
    /// Name of the user.
    pub user: String,
    /// Address of the client.
    pub from: String,
    /// Name of the webserver.
    pub via: String,
    /// Description of the change.
    pub what: String,
    /// Administrator who acts as this user; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub su: String,
    /// Basis of the author's right to change accounts; not a part of the note.
    #[serde(skip)]
    pub standing: Standing,
}

impl Author {
    /// Encodes the note of a transaction. Long texts are shortened, so that it is never rejected.
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

    /// Decodes the author from a transaction's note.
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

/// Store of typed objects on top of the replica. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    replica: Replica,
    via: Arc<str>,
    /// Transactions whose authors are waiting for the decision, so that no notification is needed.
    attended: Arc<Mutex<HashSet<TxnId>>>,
    /// Whether the last wait for a decision was in vain.
    is_doubtful: Arc<AtomicBool>,
    /// Limits on the amount and rate of users' writes; `None` for no limits.
    allowance: Option<Arc<WriteLimits>>,
}

/// Removes a transaction from the attended ones on drop.
struct Attending<'a>(&'a Mutex<HashSet<TxnId>>, TxnId);

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl Store {
    /// Wraps a replica; `via` is the name of this webserver in audit notes.
    #[must_use]
    pub fn new(replica: Replica, via: &str) -> Store {
        let (attended, is_doubtful) = (Arc::default(), Arc::default());
        Store { replica, via: via.into(), attended, is_doubtful, allowance: None }
    }

    /// Returns the store with limits on users' writes.
    #[must_use]
    pub fn with_allowance(self, allowance: WriteLimits) -> Store {
        Store { allowance: Some(Arc::new(allowance)), ..self }
    }

    /// Returns the limits on users' writes.
    #[must_use]
    pub fn allowance(&self) -> Option<&WriteLimits> {
        self.allowance.as_deref()
    }

    /// Charges operations to a user's allowance, or returns the reason why they cannot be made now.
    ///
    /// # Errors
    /// If the user writes too fast or too much.
    pub fn spend(&self, author: &Author, ops: &[Op]) -> Result<Option<Spent<'_>>, CommitError> {
        match &self.allowance {
            Some(allowance) if author.uid != 0 => allowance.spend(self, author, ops).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the underlying replica.
    #[must_use]
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Returns the name of this webserver.
    #[must_use]
    pub fn via(&self) -> &str {
        &self.via
    }

    /// Returns the time by which objects are deleted for their age; see [`Replica::confirmed_ms`].
    #[must_use]
    pub fn confirmed_now(&self) -> Timestamp {
        Timestamp::from_ms(self.replica.confirmed_ms())
    }

    /// Returns whether a caller awaits the decision on a transaction.
    #[must_use]
    pub fn is_attended(&self, id: TxnId) -> bool {
        self.attended.lock().unwrap_or_else(PoisonError::into_inner).contains(&id)
    }

    /// Reads an object.
    ///
    /// # Errors
    /// If the replica's state is corrupt or the object is invalid.
    pub fn get<T: Stored>(&self, key: &str) -> Result<Option<Record<T>>, StoreError> {
        if key.is_empty() {
            return Ok(None);
        }
        let (collection, key) = place::<T>(key)?;
        let Some(object) = self.replica.get(&collection, &key)? else { return Ok(None) };
        Ok(Some(understood::<T>(&key, AsRead::of(&object), object.value)?))
    }

    /// Returns whether an object exists.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn has<T: Stored>(&self, key: &str) -> Result<bool, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.replica.get(&collection, &key)?.is_some())
    }

    /// Reads an object; `None` if it is invalid, so that an invalid object grants nothing.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn valid<T: Stored>(&self, key: &str) -> Result<Option<Record<T>>, StoreError> {
        match self.get(key) {
            Err(error @ StoreError::Invalid { .. }) => {
                invalid::note(&error);
                Ok(None)
            }
            found => found,
        }
    }

    /// Reads an object. An invalid object is completed with members from `blank` where its own are missing or invalid.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
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

    /// Returns whether an object exists and, if so, whether its local value is committed at the datastore.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn synced<T: Stored>(&self, key: &str) -> Result<Option<bool>, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.raw(&collection, &key)?.map(|(_, as_read)| as_read.version().is_some()))
    }

    /// Reads the stored bytes of an object, valid or not, with its last write.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn raw(&self, collection: &Collection, key: &Key) -> Result<Option<(Bytes, AsRead)>, StoreError> {
        Ok(self.replica.get(collection, key)?.map(|object| (object.value.clone(), AsRead::of(&object))))
    }

    /// Returns the last write of an object, whether the object is valid or not; `None` if it does not exist.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn seen<T: Stored>(&self, key: &str) -> Result<Option<AsRead>, StoreError> {
        let (collection, key) = place::<T>(key)?;
        Ok(self.raw(&collection, &key)?.map(|(_, as_read)| as_read))
    }

    /// Visits the valid objects whose keys start with `prefix`, in key order, until `visit` breaks. Invalid objects are
    /// recorded ([`invalid::noting`]) and skipped: one of them must not hide all the others. A whole collection is read
    /// without blocking other tasks ([`blocking`]).
    ///
    /// # Errors
    /// If the replica's state is corrupt.
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
        Ok(aside_if_whole(prefix, || self.replica.each(&collection, prefix, each))?)
    }

    /// As [`Store::each`], but collects the objects selected by `wanted`. Only these are held in memory.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
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

    /// Returns the first valid object selected by `wanted`, in key order.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
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

    /// Returns all valid objects whose keys start with `prefix`. Meant for small collections.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn list<T: Stored>(&self, prefix: &str) -> Result<Vec<Record<T>>, StoreError> {
        self.select(prefix, |_| true)
    }

    /// As [`Store::each`], but fails on an invalid object, which could reference anything. Used before unreferenced
    /// objects are deleted.
    ///
    /// # Errors
    /// If the replica's state is corrupt or an object is invalid.
    pub fn each_whole<T: Stored>(&self, prefix: &str, mut visit: impl FnMut(T)) -> Result<(), StoreError> {
        let collection = Collection::new(T::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let mut wrong = None;
        let each = |key: Key, object: Object| match understood::<T>(&key, AsRead::of(&object), object.value) {
            Ok(record) => {
                visit(record.value);
                ControlFlow::Continue(())
            }
            Err(error) => {
                wrong = Some(error);
                ControlFlow::Break(())
            }
        };
        aside_if_whole(prefix, || self.replica.each(&collection, prefix, each))?;
        wrong.map_or(Ok(()), Err)
    }

    /// Returns the first keys that start with `prefix`, in order, at most `keys_max`.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn some_keys<T: Stored>(&self, prefix: &str, keys_max: usize) -> Result<Vec<String>, StoreError> {
        self.some_keys_after::<T>(prefix, None, keys_max)
    }

    /// As [`Store::some_keys`], but only keys greater than `after`.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn some_keys_after<T: Stored>(
        &self,
        prefix: &str,
        after: Option<&str>,
        keys_max: usize,
    ) -> Result<Vec<String>, StoreError> {
        self.some_keys_in(T::COLLECTION, prefix, after, keys_max)
    }

    /// As [`Store::some_keys_after`], for any collection.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn some_keys_in(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        keys_max: usize,
    ) -> Result<Vec<String>, StoreError> {
        let collection = Collection::new(collection).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let after = after.map(Key::new).transpose().map_err(|error| StoreError::BadKey(error.to_string()))?;
        let scan = || self.replica.scan(&collection, prefix, after.as_ref(), keys_max);
        let rows = aside_if_whole(prefix, scan)?;
        Ok(rows.into_iter().map(|(key, _)| key.as_str().to_owned()).collect())
    }

    /// Returns all keys that start with `prefix`, in order.
    ///
    /// # Errors
    /// If the replica's state is corrupt.
    pub fn keys<T: Stored>(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.some_keys::<T>(prefix, usize::MAX)
    }

    /// Waits until waiting for a decision is pointless: the replica is disconnected, or has received nothing from the
    /// datastore for as long as this caller has waited.
    async fn given_up(&self) {
        let since = Instant::now();
        let is_silent = || since.elapsed() >= DOUBTFUL && self.replica.silence() >= DOUBTFUL;
        while self.replica.is_connected() && !is_silent() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Makes a change. While the replica is connected, this waits for the datastore's decision. While it is
    /// disconnected, the change is durable locally, takes effect locally immediately and is decided later.
    ///
    /// # Errors
    /// If a condition fails, locally or at the datastore, or the local disk fails.
    pub async fn commit(&self, author: &Author, what: &str, mut writes: Writes) -> Result<CommitProgress, CommitError> {
        author.standing.require(self, &mut writes)?;
        // From here on the change may be committed even if the caller stops waiting.
        let spent =
            if writes.is_unmetered() { None } else { self.spend(author, writes.ops())?.map(Spent::until_refused) };
        let ops = writes.ops().to_vec();
        let committed = match self.begin(author, what, &writes).await {
            Ok((receipt, writes)) => self.decision(receipt, &writes).await,
            Err(error) => Err(error),
        };
        if let (Some(spent), Err(_)) = (spent, &committed) {
            spent.give_back();
        }
        if committed.is_ok() {
            epochs::follow(self, &ops).await;
        }
        committed
    }

    /// Makes a change of the webserver itself, and waits for its decision as [`Store::commit`] does.
    ///
    /// # Errors
    /// If a condition fails, locally or at the datastore, or the local disk fails.
    pub(super) async fn make(&self, what: &str, writes: &Writes) -> Result<(), CommitError> {
        let (receipt, writes) = self.begin(&Author::default(), what, writes).await?;
        self.decision(receipt, &writes).await.map(drop)
    }

    /// Prepares a rejected transaction for another attempt by `author`, whose present rights apply, regardless of who
    /// made the transaction originally.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn again(&self, author: &Author, txn: &Txn) -> Result<Resubmission, StoreError> {
        let mut writes = Writes::unconditional(txn.ops.clone(), "the retry keeps its conditions");
        author.standing.require(self, &mut writes)?;
        let writes = identities::bound(self, author, &writes)?;
        let kept = standing::left_out(&txn.ops, &txn.conditions);
        let is_left = |condition: &&Condition| !kept.contains(condition);
        let without = txn.conditions.iter().filter(is_left).cloned().collect();
        let note = Author { via: self.via.to_string(), ..author.clone() }.note()?;
        Ok(Resubmission { note: Some(note), without, with: writes.conditions(), ..Resubmission::default() })
    }

    /// First half of [`Store::commit`], for changes by the webserver itself, which are not charged and need no right.
    /// When this returns, the change is durable locally and has taken effect locally. Also returns the writes with the
    /// conditions under which they are made (`identities::bound`).
    ///
    /// # Errors
    /// If a condition fails locally, or the local disk fails.
    pub async fn begin(&self, author: &Author, what: &str, writes: &Writes) -> Result<(Receipt, Writes), CommitError> {
        let mut bound = identities::bound(self, author, writes)?;
        for _ in 0..TRIES {
            match self.submit(author, what, &bound).await {
                Err(CommitError::Conflict(said)) if bound.conditions() != writes.conditions() => {
                    // A user or group may have been rewritten after its last write was looked up. That write is visible
                    // a moment later.
                    tokio::time::sleep(LOOK_EVERY).await;
                    let again = identities::bound(self, author, writes)?;
                    if again.conditions() == bound.conditions() {
                        return Err(CommitError::Conflict(said));
                    }
                    bound = again;
                }
                submitted => return submitted.map(|receipt| (receipt, bound)),
            }
        }
        self.submit(author, what, &bound).await.map(|receipt| (receipt, bound))
    }

    async fn submit(&self, author: &Author, what: &str, writes: &Writes) -> Result<Receipt, CommitError> {
        let author = Author { via: self.via.to_string(), what: what.to_owned(), ..author.clone() };
        let room =
            if self.allowance.is_some() { WriteLimits::room(self, &author, writes)? } else { OutboxQuota::Whole };
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

    /// Second half of [`Store::commit`]: waits for the datastore's decision on `writes` while the replica is connected.
    ///
    /// # Errors
    /// If a condition fails at the datastore.
    pub async fn decision(&self, mut receipt: Receipt, writes: &Writes) -> Result<CommitProgress, CommitError> {
        let id = receipt.id();
        if !self.replica.is_connected() {
            return Ok(CommitProgress::Pending(id));
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
                // So that the position sent with the response includes the change.
                self.replica.barrier(seq, DECISION).await;
                Ok(CommitProgress::At(seq))
            }
            Stage::Rejected(_, reason) => {
                let refused = refused(writes, &reason);
                // The author receives the rejection in the response, so it need not stay on the list.
                if let Err(error) = self.replica.dismiss(id).await {
                    tracing::debug!(%error, "failed to dismiss a rejection that was already reported");
                }
                Err(refused)
            }
            Stage::Durable => Ok(CommitProgress::Pending(id)),
        };
        drop(attending);
        outcome
    }
}

/// Reads objects without blocking other tasks if they are a whole collection. What one user has is bounded, and read at
/// nearly every request.
fn aside_if_whole<T>(prefix: &str, read: impl FnOnce() -> T) -> T {
    if prefix.is_empty() { blocking::run(read) } else { read() }
}

/// Converts a failed condition or another rejection to an error for the author of a change.
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
            let read = Author::of(&note).expect("still JSON");
            assert!(read.uid == 7 && (what.len() > 1 || read == author));
        }
    }
}
