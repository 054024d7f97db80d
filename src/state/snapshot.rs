//! A consistent view of a state: objects, origins and position at one point in time.

use std::ops::Bound;
use std::sync::Arc;

use super::authors;
use super::deletions;
use super::engine::{End, EngineSnapshot, Row, Slice, prefix_end};
use super::envelope::Table;
use super::error::StateError;
use super::meta::{self, StateMeta};
use super::objects::{self, Object};
use super::origins::{self, OriginTable};
use super::store::{CheckReport, StateDamage};
use super::withheld::{self, WithheldObject};
use gravwell_env::damage::DamageRecord;
use gravwell_model::{Collection, Deletions, DigestSet, Key, Maker, Origin, OriginRow, Seq};

/// A view of a state at one point in time; cheap to clone.
#[derive(Clone)]
pub struct StateSnapshot {
    view: Arc<dyn EngineSnapshot>,
    meta: Option<Arc<StateMeta>>,
    /// Damage record of the state.
    damage: DamageRecord,
}

impl StateSnapshot {
    pub(super) fn new(
        view: Arc<dyn EngineSnapshot>,
        meta: Option<Arc<StateMeta>>,
        damage: DamageRecord,
    ) -> StateSnapshot {
        StateSnapshot { view, meta, damage }
    }

    fn checked<T>(&self, result: Result<T, StateError>) -> Result<T, StateError> {
        self.damage.checked(result, StateError::is_damage)
    }

    /// Reads and decodes one row. All reads of single rows use this function.
    fn row<T>(
        &self,
        row_key: &[u8],
        decode: impl FnOnce(&[u8], Slice) -> Result<T, StateError>,
    ) -> Result<Option<T>, StateError> {
        let read = self.view.get(row_key);
        self.checked(read.and_then(|row| row.map(|row| decode(row_key, row)).transpose()))
    }

    /// Reads and decodes the rows of a range. Reads of several rows use this function.
    fn rows<T, D: Fn(Row) -> Result<T, StateError> + Send>(
        &self,
        (low, high): (End, End),
        decode: D,
    ) -> impl Iterator<Item = Result<T, StateError>> + Send + use<T, D> {
        let (rows, damage) = (self.view.range(low, high), self.damage.clone());
        rows.map(move |row| damage.checked(row.and_then(&decode), StateError::is_damage))
    }

    /// Returns the position and sums of the view; `None` if the store was new or unfinished.
    #[must_use]
    pub fn meta(&self) -> Option<&Arc<StateMeta>> {
        self.meta.as_ref()
    }

    /// Returns the object under a key.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn get(&self, collection: &Collection, key: &Key) -> Result<Option<Object>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(objects::ObjectRow::into_object))
    }

    /// Returns the version of the object under a key.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn version(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        let row = self.row(&objects::key(collection.as_str(), key.as_str()), objects::decode)?;
        Ok(row.map(|row| row.version))
    }

    /// Returns all objects in the order of (collection, key).
    pub fn objects(&self) -> impl Iterator<Item = Result<(Collection, Key, Object), StateError>> + Send + use<> {
        self.objects_after(None)
    }

    /// Returns the objects after the given one in the order of (collection, key); all objects for `None`.
    pub fn objects_after(
        &self,
        after: Option<(&Collection, &Key)>,
    ) -> impl Iterator<Item = Result<(Collection, Key, Object), StateError>> + Send + use<> {
        self.rows(objects::range_after(after), |row| {
            let (collection, key, row) = objects::decode_named(row)?;
            Ok((collection, key, row.into_object()))
        })
    }

    /// Returns the objects of a collection with keys that start with `prefix` and follow the bound `from`, in key order.
    pub fn scan(
        &self,
        collection: &Collection,
        prefix: &str,
        from: Bound<&str>,
    ) -> impl Iterator<Item = Result<(Key, Object), StateError>> + Send + use<> {
        self.rows(objects::range_of(collection, prefix, from), |row| {
            let (_, key, row) = objects::decode_named(row)?;
            Ok((key, row.into_object()))
        })
    }

    /// Returns the objects with values withheld from this state; none unless the state is redacted.
    pub fn withheld(&self) -> impl Iterator<Item = Result<WithheldObject, StateError>> + Send + use<> {
        self.rows(withheld::range(), withheld::decode_named)
    }

    /// Returns the row of an origin.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn origin(&self, origin: Origin) -> Result<Option<OriginRow>, StateError> {
        self.row(&origins::key(origin), |row_key, row| origins::decode(row_key, &row))
    }

    /// Returns the rows of all origins, in ascending order of origin.
    pub fn origins(&self) -> impl Iterator<Item = Result<(Origin, OriginRow), StateError>> + Send + use<> {
        self.rows(range_of(Table::Origins), origins::decode_named)
    }

    /// Returns the author of the transactions of an origin; `None` if unknown.
    ///
    /// # Errors
    /// If its row cannot be read.
    pub fn maker(&self, origin: Origin) -> Result<Option<Maker>, StateError> {
        let row_key = authors::key(origin);
        self.view.get(&row_key)?.map(|row| authors::decode(&row_key, &row)).transpose()
    }

    /// Returns the author of the transactions of each origin, as far as known.
    pub fn makers(&self) -> impl Iterator<Item = Result<(Origin, Maker), StateError>> + Send + use<> {
        self.rows(range_of(Table::Makers), authors::decode_named)
    }

    /// Returns the recent deletions, and the sequence after which they are complete.
    ///
    /// # Errors
    /// If a row cannot be read or the rows do not add up; [`StateError::Uninitialised`] without a position.
    pub fn deletions(&self) -> Result<Deletions, StateError> {
        let at = self.meta.as_ref().ok_or(StateError::Uninitialised)?.seq;
        let summary = self.checked(meta::load_deletions(&*self.view))?;
        self.checked(deletions::load(&*self.view, summary, at))
    }

    /// Returns the sequence at which an object was deleted; `None` if it is not among the recent deletions.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn deleted_at(&self, collection: &Collection, key: &Key) -> Result<Option<Seq>, StateError> {
        let summary = self.checked(meta::load_deletions(&*self.view))?;
        self.checked(deletions::get(&*self.view, summary, collection, key))
    }

    /// Returns the rows of all origins at once.
    ///
    /// # Errors
    /// If a row cannot be read.
    pub fn origin_table(&self) -> Result<OriginTable, StateError> {
        self.origins().collect()
    }

    /// Reads every row and recomputes all sums; see [`super::StateStore::check`].
    ///
    /// # Errors
    /// [`StateError::Uninitialised`] if there are no sums to compare with.
    pub fn check(&self) -> Result<CheckReport, StateError> {
        let meta = self.meta.as_ref().ok_or(StateError::Uninitialised)?;
        let mut report = CheckReport::default();
        match self.add_up(&mut report.rows, meta.seq) {
            Ok(found) => compare(&meta.digests, &found, &mut report.damage),
            Err(error) => report.damage.push(StateDamage::Row(error)),
        }
        report.damage.iter().for_each(|damage| self.damage.note(damage));
        Ok(report)
    }

    fn add_up(&self, rows: &mut u64, at: Seq) -> Result<DigestSet, StateError> {
        let mut found = DigestSet::default();
        let (low, high) = objects::range_after(None);
        for row in self.view.range(low, high) {
            let (collection, key, object) = objects::decode_named(row?)?;
            found.add_object(&collection, &key, object.version, object.value());
            *rows += 1;
        }
        for object in self.withheld() {
            found.add_withheld(&object?.object);
            *rows += 1;
        }
        for row in self.origins() {
            let (origin, row) = row?;
            found.replace_origin(origin, None, Some(&row));
            *rows += 1;
        }
        for row in self.makers() {
            row?;
        }
        deletions::check(&*self.view, &self.deletions()?, at)?;
        Ok(found)
    }
}

/// Returns the range of all rows of a table.
fn range_of(table: Table) -> (End, End) {
    let prefix = [table.number()];
    (Bound::Included(prefix.to_vec()), prefix_end(&prefix))
}

fn compare(expected: &DigestSet, found: &DigestSet, damage: &mut Vec<StateDamage>) {
    let names = expected.collections.keys().chain(found.collections.keys());
    for collection in names.collect::<std::collections::BTreeSet<_>>() {
        let on_record = expected.collections.get(collection).copied().unwrap_or_default();
        let in_rows = found.collections.get(collection).copied().unwrap_or_default();
        if on_record != in_rows {
            damage.push(StateDamage::Collection {
                collection: collection.clone(),
                expected: on_record.digest,
                found: in_rows.digest,
                objects_expected: on_record.objects,
                objects_found: in_rows.objects,
            });
        }
    }
    if expected.origins != found.origins {
        damage.push(StateDamage::Origins { expected: expected.origins, found: found.origins });
    }
}
