//! Table 6: recent deletions, see [`gravwell_model::deletions`].
//!
//! Key: `0x06`, collection, `0x00`, key. Value: envelope around the sequence of the deletion, `u64` LE. The sum of the
//! rows is part of the row of the position, so a lost row is detected. A version that does not know this table writes
//! the position without the sum: then earlier deletions are unknown, and the rows it left are ignored.

use std::ops::Bound;

use super::engine::{Batch, EngineSnapshot, Rows, Slice, prefix_end};
use super::envelope::{self, Table};
use super::error::StateError;
use super::objects;
use gravwell_model::deletions::{Changed, Deletions, Named, Summary};
use gravwell_model::{Collection, Key, Seq};

fn key(collection: &Collection, key: &Key) -> Vec<u8> {
    objects::key_in(Table::Deletions, collection.as_str(), key.as_str())
}

fn decode((row_key, row): (Slice, Slice)) -> Result<(Named, Seq), StateError> {
    let name = objects::names(Table::Deletions, &row_key)?;
    let contents = envelope::open(Table::Deletions, &row_key, &row)?;
    let seq = contents.try_into().map(u64::from_le_bytes);
    Ok((name, Seq(seq.map_err(|_| Table::Deletions.damaged(&row_key, "the row has the wrong length"))?)))
}

fn rows(view: &dyn EngineSnapshot) -> Rows {
    let prefix = [Table::Deletions.number()];
    view.range(Bound::Included(prefix.to_vec()), prefix_end(&prefix))
}

pub(super) fn push(batch: &mut Batch, changed: Changed) {
    for ((collection, name), seq) in changed {
        let row_key = key(&collection, &name);
        let row = seq.map(|seq| {
            let mut out = envelope::begin(8);
            out.extend_from_slice(&seq.0.to_le_bytes());
            envelope::seal(&row_key, out)
        });
        batch.push((Slice::from(row_key), row));
    }
}

/// Loads the deletions of a view with position `at`; `summary` is their expected sum.
pub(super) fn load(view: &dyn EngineSnapshot, summary: Option<Summary>, at: Seq) -> Result<Deletions, StateError> {
    let Some(summary) = summary else { return Ok(Deletions::after(at)) };
    let bad = |what: &str| Table::Deletions.damaged(&[], what);
    let mut found = Deletions::after(summary.complete_after);
    for row in rows(view) {
        let (name, seq) = decode(row?)?;
        if seq > at {
            return Err(bad("a deletion is later than the state"));
        }
        found.restore(name, seq).map_err(bad)?;
    }
    if found.summary() == summary { Ok(found) } else { Err(bad("the rows do not match the summary")) }
}

/// Returns the sequence of the deletion of an object, if the rows are up to date and have it.
pub(super) fn get(
    view: &dyn EngineSnapshot,
    summary: Option<Summary>,
    collection: &Collection,
    name: &Key,
) -> Result<Option<Seq>, StateError> {
    let row_key = key(collection, name);
    match view.get(&row_key)?.filter(|_| summary.is_some()) {
        Some(row) => decode((Slice::from(row_key), row)).map(|(_, seq)| Some(seq)),
        None => Ok(None),
    }
}

/// Adds the removal of every row to `batch`: the rows are stale, left by a version that did not update them.
pub(super) fn discard(view: &dyn EngineSnapshot, batch: &mut Batch) -> Result<(), StateError> {
    for row in rows(view) {
        batch.push((row?.0, None));
    }
    Ok(())
}

/// Checks the deletions of a state with position `at`: none may be later, and no deleted object may exist.
pub(super) fn check(view: &dyn EngineSnapshot, deletions: &Deletions, at: Seq) -> Result<(), StateError> {
    for (seq, (collection, name)) in deletions.rows() {
        if seq > at {
            return Err(Table::Deletions.damaged(&key(collection, name), "the deletion is later than the state"));
        }
        if view.get(&objects::key(collection.as_str(), name.as_str()))?.is_some() {
            return Err(Table::Deletions.damaged(&key(collection, name), "the object exists"));
        }
    }
    Ok(())
}
