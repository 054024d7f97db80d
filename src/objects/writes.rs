//! What a transaction of a webserver does, and on which conditions.
//!
//! What is computed from an object that was read is written on the condition that the object is still as it was read
//! ([`Writes::update`], [`Writes::replace`], [`Writes::delete`]), so a webserver that was cut off cannot undo what was committed
//! in the meantime: of two changes that meet, the later one is rejected, and its author learns it. The few writes that must
//! take effect whatever is there have names of their own (`overwrite`, `…_whatever`) and state the reason where they are made.

use bytes::Bytes;

use crate::chunks::Hold;
use crate::model::{Collection, Condition, Key, Op, Reason};
use crate::replica::History;

use super::StoreError;
use super::record::{AsRead, Record, Stored, written};

/// Said when an object was changed since it was read.
const CHANGED: &str = "it was changed in the meantime: read it again and repeat the change";

/// Operations of one transaction with what must hold for it, each condition with what it means to people.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    ops: Vec<Op>,
    required: Vec<Required>,
    /// Keep the chunks that the operations name, until these are in the outbox.
    holds: Vec<Hold>,
    /// Whether they cost their author nothing.
    is_unmetered: bool,
    /// The history in which what was read first was read; `None`: nothing was.
    read_in: Option<History>,
}

/// What must hold.
#[derive(Clone, Debug)]
struct Required {
    condition: Condition,
    /// What it means to people when it does not hold; empty: what the condition itself says.
    meaning: String,
    /// Whether it compares an object with what was read.
    is_of_read: bool,
}

pub(super) fn place<T: Stored>(key: &str) -> Result<(Collection, Key), StoreError> {
    let collection = Collection::new(T::COLLECTION).map_err(|error| StoreError::BadKey(error.to_string()))?;
    let key = Key::new(key).map_err(|error| StoreError::BadKey(error.to_string()))?;
    Ok((collection, key))
}

impl Writes {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Writes {
        Writes::default()
    }

    /// Operations as they are, without conditions, for a reason that is stated where it is called.
    #[must_use]
    pub fn whatever(ops: Vec<Op>, _why: &'static str) -> Writes {
        Writes { ops, ..Writes::default() }
    }

    /// Operations as they are, under conditions on what was read in a history.
    #[must_use]
    pub fn under(ops: Vec<Op>, conditions: Vec<Condition>, read_in: History) -> Writes {
        let mut writes = Writes { ops, read_in: Some(read_in), ..Writes::default() };
        conditions.into_iter().for_each(|condition| writes.add(condition, "", false));
        writes
    }

    /// The same without a bound on how much and how fast their author writes, for a reason that is stated where it is called.
    #[must_use]
    pub fn unmetered(self, _why: &'static str) -> Writes {
        Writes { is_unmetered: true, ..self }
    }

    /// Whether they cost their author nothing.
    #[must_use]
    pub fn is_unmetered(&self) -> bool {
        self.is_unmetered
    }

    /// Keeps the chunks that the operations name, until these are made.
    pub fn hold(&mut self, hold: Hold) {
        self.holds.push(hold);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Number of operations.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Creates an object that must not exist; `taken` is said when it does.
    ///
    /// # Errors
    /// When the object cannot be written.
    pub fn create<T: Stored>(&mut self, value: &T, taken: &str) -> Result<(), StoreError> {
        self.require_absent::<T>(&value.key(), taken)?;
        self.put(value)
    }

    /// Rewrites an object that must still be as it was read, unknown members included; `gone` is said when it was deleted.
    ///
    /// # Errors
    /// When the object cannot be written.
    pub fn update<T: Stored>(&mut self, record: &Record<T>, gone: &str) -> Result<(), StoreError> {
        self.require::<T>(&record.value.key(), gone)?;
        self.unchanged(record, CHANGED)?;
        self.put_back(record)
    }

    /// Puts an object in the place of what was read there, or of nothing; `changed` is said when there is something else now.
    ///
    /// # Errors
    /// When the object cannot be written.
    pub fn replace<T: Stored>(&mut self, found: Option<AsRead>, value: &T, changed: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&value.key())?;
        match found {
            Some(as_read) => self.add_read(as_read, (collection, key), changed, true),
            None => self.add(Condition::Absent { collection, key }, changed, true),
        }
        self.put(value)
    }

    /// Deletes an object that must still be as it was read; `gone` is said when it was deleted already.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn delete<T: Stored>(&mut self, record: &Record<T>, gone: &str) -> Result<(), StoreError> {
        let key = record.value.key();
        self.require::<T>(&key, gone)?;
        self.unchanged(record, CHANGED)?;
        let (collection, key) = place::<T>(&key)?;
        self.ops.push(Op::Delete { collection, key });
        Ok(())
    }

    /// Writes an object whatever is there, for a reason that is stated where it is called.
    ///
    /// # Errors
    /// When the object cannot be written.
    pub fn overwrite<T: Stored>(&mut self, value: &T, _why: &'static str) -> Result<(), StoreError> {
        self.put(value)
    }

    /// Rewrites an object that must still exist, whatever else of it was changed, for a reason that is stated where it is
    /// called; `gone` is said when it was deleted.
    ///
    /// # Errors
    /// When the object cannot be written.
    pub fn overwrite_existing<T: Stored>(
        &mut self,
        record: &Record<T>,
        gone: &str,
        _why: &'static str,
    ) -> Result<(), StoreError> {
        self.require::<T>(&record.value.key(), gone)?;
        self.put_back(record)
    }

    /// Deletes what is at a key, whatever it is, for a reason that is stated where it is called.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn delete_whatever<T: Stored>(&mut self, key: &str, _why: &'static str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        self.ops.push(Op::Delete { collection, key });
        Ok(())
    }

    /// Puts bytes, or with `None` nothing, in the place of what was read there; `changed` is said when there is something else
    /// now.
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

    /// That an object is still as it was read.
    fn add_read(&mut self, as_read: AsRead, (collection, key): (Collection, Key), changed: &str, is_of_read: bool) {
        let read_in = as_read.read_in();
        self.read_in = Some(self.read_in.map_or(read_in, |earlier| earlier.min(read_in)));
        self.add(as_read.condition(collection, key), changed, is_of_read);
    }

    /// The history in which what they depend on was read; `None`: nothing was read.
    #[must_use]
    pub fn read_in(&self) -> Option<History> {
        self.read_in
    }

    /// Of the same condition the first meaning counts.
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

    /// An object must exist at commit; `gone` is said when it does not.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn require<T: Stored>(&mut self, key: &str, gone: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        self.add(Condition::Present { collection, key }, gone, false);
        Ok(())
    }

    /// No such object may exist at commit; `there` is said when one does.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn require_absent<T: Stored>(&mut self, key: &str, there: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        self.add(Condition::Absent { collection, key }, there, false);
        Ok(())
    }

    /// The object must still be as it was read; `changed` is said when it is not. A write of this
    /// webserver that is not decided is named by its transaction: when that is rejected, so is what was made upon it.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn unchanged<T: Stored>(&mut self, record: &Record<T>, changed: &str) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(&record.value.key())?;
        self.add_read(record.as_read, (collection, key), changed, true);
        Ok(())
    }

    /// The object must still be as it was read, or still not be there; `changed` is said when it is not. Reading it again is
    /// not the remedy.
    ///
    /// # Errors
    /// When the key cannot be one.
    pub fn require_as_read<T: Stored>(
        &mut self,
        key: &str,
        found: Option<AsRead>,
        changed: &str,
    ) -> Result<(), StoreError> {
        let (collection, key) = place::<T>(key)?;
        match found {
            Some(as_read) => self.add_read(as_read, (collection, key), changed, false),
            None => self.add(Condition::Absent { collection, key }, changed, false),
        }
        Ok(())
    }

    /// The operations.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The operations alone.
    #[must_use]
    pub fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// The conditions alone.
    #[must_use]
    pub fn conditions(&self) -> Vec<Condition> {
        self.required.iter().map(|required| required.condition.clone()).collect()
    }

    /// The condition that a rejection names.
    fn failed(&self, reason: &Reason) -> Option<&Required> {
        let Reason::ConditionFailed { condition, .. } = reason else { return None };
        self.required.iter().find(|required| required.condition.to_string() == *condition)
    }

    /// What a rejection means to people.
    pub(super) fn explain(&self, reason: &Reason) -> String {
        let failed = self.failed(reason).filter(|required| !required.meaning.is_empty());
        failed.map_or_else(|| reason.to_string(), |required| required.meaning.clone())
    }

    /// Whether a rejection is for a change of what was read, so that reading it again may help.
    pub(super) fn is_overtaken(&self, reason: &Reason) -> bool {
        self.failed(reason).is_some_and(|required| required.is_of_read)
    }
}
