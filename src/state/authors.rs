//! Table 5: the author of the transactions of each origin, and the hash of the last transaction.
//!
//! Key: `0x05`, the 16 bytes of the origin. Value: envelope around the postcard of [`Maker`]. The rows are derived
//! from the entries that a store applies, or come with a snapshot; from compacted entries only the names can be
//! derived. They are not part of any digest: members with versions that lack this table have equal states.

use std::collections::HashMap;

use super::engine::{Batch, Engine, Slice};
use super::envelope::{self, Table};
use super::error::StateError;
use gravwell_model::codec::txn::contents_hash;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Entry, EntryBody, Maker, Origin, OriginCounter};

pub(super) fn key(origin: Origin) -> [u8; 17] {
    let mut out = [Table::Makers.number(); 17];
    out[1..].copy_from_slice(&origin.0);
    out
}

pub(super) fn row(origin: Origin, maker: &Maker) -> (Slice, Slice) {
    let row_key = key(origin);
    let out = postcard::to_extend(maker, envelope::begin(64)).expect("invariant: a row has no map");
    (Slice::from(row_key), envelope::seal(&row_key, out))
}

pub(super) fn decode(row_key: &[u8], row: &[u8]) -> Result<Maker, StateError> {
    let contents = envelope::open(Table::Makers, row_key, row)?;
    postcard::from_bytes(contents).map_err(|error| Table::Makers.damaged(row_key, error.to_string()))
}

pub(super) fn decode_named((row_key, row): (Slice, Slice)) -> Result<(Origin, Maker), StateError> {
    let origin = row_key.get(1..).and_then(|id| <[u8; 16]>::try_from(id).ok());
    let origin = origin.ok_or_else(|| Table::Makers.damaged(&row_key, "the key is malformed"))?;
    Ok((Origin(origin), decode(&row_key, &row)?))
}

/// Adds the makers derived from `entries` to `batch`.
pub(super) fn stage(engine: &dyn Engine, entries: &[Entry], batch: &mut Batch) -> Result<(), StateError> {
    let mut last = HashMap::<Origin, (&Entry, &Entry)>::new();
    for entry in entries {
        if let Some(id) = entry.body.id() {
            last.entry(id.origin).and_modify(|(_, last)| *last = entry).or_insert((entry, entry));
        }
    }
    for (origin, (first, last)) in last {
        let Some(id) = last.body.id() else { continue };
        let row_key = key(origin);
        let known = engine.get(&row_key)?.map(|row| decode(&row_key, &row)).transpose()?;
        let member = known.map_or_else(|| first.member.clone(), |maker| maker.member);
        let hash = match &last.body {
            EntryBody::Commit(txn) => Some(contents_hash(txn)),
            _ => None,
        };
        let (row_key, row) = row(origin, &Maker { member, counter: id.counter, hash });
        batch.push((row_key, Some(row)));
    }
    Ok(())
}

/// Adds the makers derived from compacted `entries` to `batch`: only the owner of an origin, without a hash, because
/// the entries are no longer complete. Records with counter 0 belong to no transaction of their origin.
pub(super) fn of_base(entries: &[Entry], batch: &mut Batch) {
    let known =
        entries.iter().filter(|entry| !entry.member.is_unknown() && !fault_injection::is(Bug::BaseWithoutMakers));
    let ids = known.filter_map(|entry| Some((entry.body.id()?, &entry.member)));
    let last: HashMap<_, _> = ids
        .filter(|(id, _)| id.counter > OriginCounter(0))
        .map(|(id, member)| (id.origin, (id.counter, member)))
        .collect();
    for (origin, (counter, member)) in last {
        let (row_key, row) = row(origin, &Maker { member: member.clone(), counter, hash: None });
        batch.push((row_key, Some(row)));
    }
}
