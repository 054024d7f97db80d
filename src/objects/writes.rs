//! Operations and conditions of a webserver's transaction.
//!
//! A value computed from an object that was read is written under the condition that the object is unchanged
//! ([`Writes::update`], [`Writes::replace`], [`Writes::delete`]). A webserver that was disconnected therefore cannot
//! undo changes that were committed in the meantime: of two conflicting changes, the later one is rejected, and its
//! author is notified. The few unconditional writes have separate methods (`overwrite`, `…_whatever`), whose callers
//! state the reason.

use bytes::Bytes;

use gravwell_chunks::GcPin;
use gravwell_model::{Collection, Condition, Key, Op, Reason, TxnId};
use gravwell_replica::History;

use super::record::{AsRead, Record, Stored, written};
use super::{Store, StoreError};

/// Message if an object was changed since it was read.
const CHANGED: &str = "it was changed in the meantime; reload it and repeat the change";

/// Operations of one transaction with their conditions, and a message for each condition.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    ops: Vec<Op>,
    required: Vec<Required>,
    /// Pin the chunks that the operations reference until these are in the outbox.
    holds: Vec<GcPin>,
    /// Whether they are exempt from the author's limits.
    is_unmetered: bool,
    /// History in which the first object was read; `None` if no object was read.
    read_in: Option<History>,
}

/// A condition of the transaction.
#[derive(Clone, Debug)]
struct Required {
    condition: Condition,
    /// Message for the author if the condition does not hold; empty for the default text of the condition.
    meaning: String,
    /// Whether it compares an object with the value that was read.
    is_of_read: bool,
}

pub(super) fn place<T: Stored>(key: &str) -> Result<(Collection, Key), StoreError> {
    place_in(T::COLLECTION, key)
}

fn place_in(collection: &str, key: &str) -> Result<(Collection, Key), StoreError> {
    let collection = Collection::new(collection).map_err(|error| StoreError::BadKey(error.to_string()))?;
    let key = Key::new(key).map_err(|error| StoreError::BadKey(error.to_string()))?;
    Ok((collection, key))
}

impl Writes {
    /// Creates an empty set.
    #[must_use]
    pub fn new() -> Writes {
        Writes::default()
    }

    /// Wraps operations without conditions, for the reason given by the caller.
    #[must_use]
    pub fn unconditional(ops: Vec<Op>, _why: &'static str) -> Writes {
        Writes { ops, ..Writes::default() }
    }

    /// Wraps operations with conditions on objects that were read in a history.
    #[must_use]
    pub fn under(ops: Vec<Op>, conditions: Vec<Condition>, read_in: History) -> Writes {
        let mut writes = Writes { ops, read_in: Some(read_in), ..Writes::default() };
        conditions.into_iter().for_each(|condition| writes.add(condition, "", false));
        writes
    }

    /// Exempts the writes from the author's limits, for the reason given by the caller.
    #[must_use]
    pub fn unmetered(self, _why: &'static str) -> Writes {
        Writes { is_unmetered: true, ..self }
    }

    /// Returns whether they are exempt from the author's limits.
    #[must_use]
    pub fn is_unmetered(&self) -> bool {
        self.is_unmetered
    }

    /// Keeps a pin on chunks that the operations reference.
    pub fn hold(&mut self, hold: GcPin) {
        self.holds.push(hold);
    }

    /// Returns whether there are no operations.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Returns the number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Creates an object that must not exist; `taken` is the message if it does.
    ///
    /// # Errors
    /// If the object cannot be encoded.
    pub fn create<T: Stored>(&mut self, value: &T, taken: &str) -> Result<(), StoreError> {
        self.require_absent::<T>(&value.key(), taken)?;
        self.put(value)
    }

    /// Rewrites an object that must be unchanged since it was read, unknown members included; `gone` is the message if
    /// it was deleted.
    ///
    /// # Errors
    /// If the object cannot be encoded.
    pub fn update<T: Stored>(&mut self, record: &Record<T>, gone: &str) -> Result<(), StoreError> {
        self.require::<T>(&record.value.key(), gone)?;
        self.unchanged(record, CHANGED)?;
        self.put_back(record)
    }

    /// Replaces the object or absence that was found when reading; `changed` is the message if something else is
    /// there now.
    ///
    /// # Errors
    /// If the object cannot be encoded.
    pub fn replace<T: Stored>(&mut self, found: Option<AsRead>, value: &T, changed: &str) -> Result<(), StoreError> {
        self.as_read::<T>(&value.key(), found, changed)?;
        self.put(value)
    }

    /// Writes an object that gives a right, upon the object or absence that this webserver knows: a right that was given
    /// and revoked in the meantime does not return, although the object is absent as before; `changed` is the message.
    ///
    /// # Errors
    /// If the object cannot be encoded, or the state is corrupt.
    pub fn grant<T: Stored>(&mut self, store: &Store, value: &T, changed: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&value.key())?;
        // The position is read first, so that the absence is not older.
        let (position, read_in) = (store.replica().position(), store.replica().history());
        if let Some(found) = store.seen::<T>(&value.key())? {
            return self.replace(Some(found), value, changed);
        }
        let deletes = |op: &&Op| op.value().is_none() && (op.collection(), op.key()) == (&collection, &key);
        let own = store.replica().pending().into_iter().rfind(|txn| txn.ops.iter().any(|op| deletes(&op)));
        let absence = match (own, position) {
            (Some(own), _) => Condition::written_by(collection, key, own.id),
            (None, Some(position)) => Condition::absent_since(collection, key, position.seq),
            // Nothing was ever received.
            (None, None) => Condition::Absent { collection, key },
        };
        self.read_in = Some(self.read_in.map_or(read_in, |earlier| earlier.min(read_in)));
        self.require_absent::<T>(&value.key(), changed)?;
        self.add(absence, changed, false);
        self.put(value)
    }

    /// Deletes an object that must be unchanged since it was read; `gone` is the message if it was already deleted.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn delete<T: Stored>(&mut self, record: &Record<T>, gone: &str) -> Result<(), StoreError> {
        let key = record.value.key();
        self.require::<T>(&key, gone)?;
        self.unchanged(record, CHANGED)?;
        let (collection, key) = place::<T>(&key)?;
        self.ops.push(Op::Delete { collection, key });
        Ok(())
    }

    /// Writes an object unconditionally, for the reason given by the caller.
    ///
    /// # Errors
    /// If the object cannot be encoded.
    pub fn overwrite<T: Stored>(&mut self, value: &T, _why: &'static str) -> Result<(), StoreError> {
        self.put(value)
    }

    /// Rewrites an object that must still exist but may have been changed, for the reason given by the caller; `gone`
    /// is the message if it was deleted.
    ///
    /// # Errors
    /// If the object cannot be encoded.
    pub fn overwrite_existing<T: Stored>(
        &mut self,
        record: &Record<T>,
        gone: &str,
        _why: &'static str,
    ) -> Result<(), StoreError> {
        self.require::<T>(&record.value.key(), gone)?;
        self.put_back(record)
    }

    /// Deletes an object unconditionally, for the reason given by the caller.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn delete_unconditionally<T: Stored>(&mut self, key: &str, why: &'static str) -> Result<(), StoreError> {
        self.delete_unconditionally_at(T::COLLECTION, key, why)
    }

    /// As [`Writes::delete_unconditionally`], for an object of any collection.
    ///
    /// # Errors
    /// If the collection or key is invalid.
    pub fn delete_unconditionally_at(
        &mut self,
        collection: &str,
        key: &str,
        _why: &'static str,
    ) -> Result<(), StoreError> {
        let (collection, key) = place_in(collection, key)?;
        self.ops.push(Op::Delete { collection, key });
        Ok(())
    }

    /// Replaces the object that was found when reading with bytes, or deletes it for `None`; `changed` is the message
    /// if something else is there now.
    pub fn replace_at(
        &mut self,
        (collection, key): (Collection, Key),
        found: AsRead,
        value: Option<Bytes>,
        changed: &str,
    ) {
        self.add_read(found, (collection.clone(), key.clone()), changed, true);
        self.ops.push(match value {
            Some(value) => Op::Put { collection, key, value },
            None => Op::Delete { collection, key },
        });
    }

    /// Adds the condition that an object is unchanged since it was read.
    fn add_read(&mut self, as_read: AsRead, (collection, key): (Collection, Key), changed: &str, is_of_read: bool) {
        let read_in = as_read.read_in();
        self.read_in = Some(self.read_in.map_or(read_in, |earlier| earlier.min(read_in)));
        self.add(as_read.condition(collection, key), changed, is_of_read);
    }

    /// Returns the earliest history in which an object was read; `None`: none was read.
    #[must_use]
    pub fn read_in(&self) -> Option<History> {
        self.read_in
    }

    /// Of the same condition, the first message is used.
    fn add(&mut self, condition: Condition, meaning: &str, is_of_read: bool) {
        if self.required.iter().all(|known| known.condition != condition) {
            self.required.push(Required { condition, meaning: meaning.to_owned(), is_of_read });
        }
    }

    fn put<T: Stored>(&mut self, value: &T) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&value.key())?;
        self.ops.push(Op::Put { collection, key, value: written(value)? });
        Ok(())
    }

    fn put_back<T: Stored>(&mut self, record: &Record<T>) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&record.value.key())?;
        self.ops.push(Op::Put { collection, key, value: record.rewritten()? });
        Ok(())
    }

    /// Requires that an object exists at commit; `gone` is the message if it does not.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn require<T: Stored>(&mut self, key: &str, gone: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        self.add(Condition::Present { collection, key }, gone, false);
        Ok(())
    }

    /// Requires that an object does not exist at commit; `there` is the message if it does.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn require_absent<T: Stored>(&mut self, key: &str, there: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        self.add(Condition::Absent { collection, key }, there, false);
        Ok(())
    }

    /// Requires that an object is unchanged since it was read; `changed` is the message if it is not. A pending write
    /// of this webserver is identified by its transaction: if that is rejected, so are the changes based on it.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn unchanged<T: Stored>(&mut self, record: &Record<T>, changed: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&record.value.key())?;
        self.add_read(record.as_read, (collection, key), changed, true);
        Ok(())
    }

    /// Requires that an object is unchanged, or still absent, since it was read; `changed` is the message if it is not.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn as_read<T: Stored>(&mut self, key: &str, found: Option<AsRead>, changed: &str) -> Result<(), StoreError> {
        self.require_found::<T>(key, found, changed, true)
    }

    /// As [`Writes::as_read`], where reading the object again is not the remedy.
    ///
    /// # Errors
    /// If the key is invalid.
    pub fn require_as_read<T: Stored>(
        &mut self,
        key: &str,
        found: Option<AsRead>,
        changed: &str,
    ) -> Result<(), StoreError> {
        self.require_found::<T>(key, found, changed, false)
    }

    fn require_found<T: Stored>(
        &mut self,
        key: &str,
        found: Option<AsRead>,
        changed: &str,
        is_of_read: bool,
    ) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        match found {
            Some(as_read) => self.add_read(as_read, (collection, key), changed, is_of_read),
            None => self.add(Condition::Absent { collection, key }, changed, is_of_read),
        }
        Ok(())
    }

    /// Requires that a pending write of an object is committed, and the last one; `otherwise` is the message if it is not.
    /// Reading the object again is not the remedy.
    pub(super) fn require_pending(
        &mut self,
        place: (Collection, Key),
        (id, read_in): (TxnId, History),
        otherwise: &str,
    ) {
        self.add_read(AsRead::Pending(id, read_in), place, otherwise, false);
    }

    /// Returns the operations.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Returns the operations, without conditions.
    #[must_use]
    pub fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// Returns the conditions.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
        self.required.iter().map(|required| required.condition.clone()).collect()
    }

    /// Returns the condition that failed according to a rejection.
    fn failed(&self, reason: &Reason) -> Option<&Required> {
        let Reason::ConditionFailed { condition, .. } = reason else { return None };
        self.required.iter().find(|required| required.condition.to_string() == *condition)
    }

    /// Returns the message for a rejection.
    pub(super) fn explain(&self, reason: &Reason) -> String {
        let failed = self.failed(reason).filter(|required| !required.meaning.is_empty());
        failed.map_or_else(|| reason.to_string(), |required| required.meaning.clone())
    }

    /// Returns whether a rejection was caused by a change since an object was read, so that rereading may help.
    pub(super) fn is_overtaken(&self, reason: &Reason) -> bool {
        self.failed(reason).is_some_and(|required| required.is_of_read)
    }
}
