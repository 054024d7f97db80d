//! Table 3: the permanent rows of all origins; also their representation outside a store.
//!
//! Key: `0x03`, the 16 bytes of the origin. Value: envelope around the postcard of [`OriginRow`]. An absent row means
//! that no transaction of this origin was ever sequenced.
//!
//! Compaction keeps only live operations, from which these rows can no longer be derived. So they are sent alongside
//! the compacted segments, as *pieces* created by [`OriginTable::encode`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::engine::Slice;
use super::envelope::{self, Table};
use super::error::StateError;
use gravwell_model::{Entry, EntryBody, Origin, OriginCounter, OriginRow, Reason, Seq};

pub(super) fn key(origin: Origin) -> [u8; 17] {
    let mut out = [Table::Origins.number(); 17];
    out[1..].copy_from_slice(&origin.0);
    out
}

pub(super) fn encode(row_key: &[u8], row: &OriginRow) -> Slice {
    let out = postcard::to_extend(row, envelope::begin(64)).expect("invariant: a row has no map or unsized sequence");
    envelope::seal(row_key, out)
}

pub(super) fn decode(row_key: &[u8], row: &[u8]) -> Result<OriginRow, StateError> {
    let contents = envelope::open(Table::Origins, row_key, row)?;
    postcard::from_bytes(contents).map_err(|error| Table::Origins.damaged(row_key, error.to_string()))
}

pub(super) fn decode_named((row_key, row): (Slice, Slice)) -> Result<(Origin, OriginRow), StateError> {
    let origin = row_key.get(1..).and_then(|id| <[u8; 16]>::try_from(id).ok());
    let origin = origin.ok_or_else(|| Table::Origins.damaged(&row_key, "the key is malformed"))?;
    Ok((Origin(origin), decode(&row_key, &row)?))
}

/// Returns the outcome that an entry records for its origin, in the form of [`OriginRow::record`].
pub(super) fn outcome(entry: &Entry) -> Option<(Origin, OriginCounter, OriginCounter, Option<&Reason>)> {
    match &entry.body {
        EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => {
            Some((txn.id.origin, txn.id.counter, txn.settled, None))
        }
        EntryBody::Reject { id, settled, reason } => Some((id.origin, id.counter, *settled, Some(reason))),
        EntryBody::Unknown { .. } => None,
    }
}

/// Maximum size in bytes of a piece created by [`OriginTable::encode`], unless a single rejection is larger.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// Maximum size in bytes of a piece that is decoded; larger ones are rejected unread.
const PIECE_BYTES_READ_MAX: usize = 2 * PIECE_BYTES_MAX;
/// Format version: the first byte of a piece.
const PIECE_FORMAT: u8 = 1;

/// In-memory table of the rows of all origins at one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginTable(BTreeMap<Origin, OriginRow>);

/// A malformed piece.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a part of the origins table is malformed: {what}")]
pub struct BadPiece {
    what: String,
}

#[derive(Serialize, Deserialize)]
struct PieceRowV1 {
    origin: [u8; 16],
    last_counter: u64,
    last_seq: u64,
    rejected: Vec<(OriginCounter, Seq, Reason)>,
}

impl OriginTable {
    /// Applies one entry; entries must be applied in the order of their sequences.
    pub fn apply(&mut self, entry: &Entry) {
        if let Some((origin, counter, settled, rejected)) = outcome(entry) {
            self.0.entry(origin).or_default().record(entry.seq, counter, settled, rejected.cloned());
        }
    }

    /// Returns the row of one origin.
    #[must_use]
    pub fn get(&self, origin: Origin) -> Option<&OriginRow> {
        self.0.get(&origin)
    }

    /// Inserts or replaces a row.
    pub fn insert(&mut self, origin: Origin, row: OriginRow) {
        self.0.insert(origin, row);
    }

    /// Returns all rows in ascending order of origin.
    pub fn rows(&self) -> impl Iterator<Item = (Origin, &OriginRow)> {
        self.0.iter().map(|(origin, row)| (*origin, row))
    }

    /// Returns the number of origins.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no origins.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Encodes the table as pieces of at most [`PIECE_BYTES_MAX`] bytes each. There is at least one piece, so "no
    /// origins" differs from "no table". Equal tables give equal pieces.
    #[must_use]
    pub fn encode(&self) -> Vec<Vec<u8>> {
        let mut pieces = vec![vec![PIECE_FORMAT]];
        for (origin, row) in &self.0 {
            let mut push = |rejected: Vec<_>| {
                let part = PieceRowV1 {
                    origin: origin.0,
                    last_counter: row.last_counter.0,
                    last_seq: row.last_seq.0,
                    rejected,
                };
                let bytes = postcard::to_stdvec(&part).expect("invariant: a row has no map or unsized sequence");
                let full = pieces.last().is_none_or(|piece| piece.len() + bytes.len() > PIECE_BYTES_MAX);
                if full {
                    pieces.push(vec![PIECE_FORMAT]);
                }
                if let Some(piece) = pieces.last_mut() {
                    piece.extend_from_slice(&bytes);
                }
            };
            // A row with many rejections is split into parts, so that no piece exceeds its maximum size.
            let mut part = Vec::new();
            let mut part_bytes = 0;
            for rejection in &row.rejected {
                part_bytes += 32 + rejection.2.to_string().len();
                if part_bytes > PIECE_BYTES_MAX / 4 && !part.is_empty() {
                    push(std::mem::take(&mut part));
                    part_bytes = 0;
                }
                part.push(rejection.clone());
            }
            push(part);
        }
        pieces
    }

    /// Decodes the pieces of one table in order.
    ///
    /// # Errors
    /// If a piece is malformed, too large or out of order.
    pub fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<OriginTable, BadPiece> {
        let mut table = BTreeMap::<Origin, OriginRow>::new();
        let bad = |what: &str| BadPiece { what: what.into() };
        for piece in pieces {
            if piece.len() > PIECE_BYTES_READ_MAX {
                return Err(bad("it is too large"));
            }
            let Some((&PIECE_FORMAT, mut rest)) = piece.split_first() else {
                return Err(bad("its format is unknown to this program"));
            };
            while !rest.is_empty() {
                let (part, after) = postcard::take_from_bytes::<PieceRowV1>(rest).map_err(|e| bad(&e.to_string()))?;
                rest = after;
                let (origin, counter, seq) =
                    (Origin(part.origin), OriginCounter(part.last_counter), Seq(part.last_seq));
                match table.last_entry() {
                    Some(mut last) if *last.key() == origin => {
                        let row = last.get_mut();
                        if row.last_counter != counter || row.last_seq != seq {
                            return Err(bad("the parts of a row contradict each other"));
                        }
                        row.rejected.extend(part.rejected);
                    }
                    Some(last) if *last.key() > origin => return Err(bad("its rows are out of order")),
                    _ => {
                        let row = OriginRow { last_counter: counter, last_seq: seq, rejected: part.rejected };
                        table.insert(origin, row);
                    }
                }
            }
        }
        Ok(OriginTable(table))
    }
}

impl FromIterator<(Origin, OriginRow)> for OriginTable {
    fn from_iter<T: IntoIterator<Item = (Origin, OriginRow)>>(rows: T) -> Self {
        OriginTable(rows.into_iter().collect())
    }
}

impl IntoIterator for OriginTable {
    type Item = (Origin, OriginRow);
    type IntoIter = std::collections::btree_map::IntoIter<Origin, OriginRow>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::authors;
    use super::*;
    use gravwell_model::codec::frame::CHAIN_START;
    use gravwell_model::codec::payload::encode_entry;
    use gravwell_model::{Maker, MemberName, Txn, TxnId};

    #[test]
    fn p15_what_an_origin_costs_for_good_is_bounded() {
        let cost = |name: &str, counter: u64, note: usize| {
            let (origin, seq) = (Origin([0xee; 16]), Seq(counter * 3));
            let (counter, member) = (OriginCounter(counter), MemberName::new(name).expect("name"));
            let row = OriginRow { last_counter: counter, last_seq: seq, rejected: Vec::new() };
            let row = key(origin).len() + encode(&key(origin), &row).len();
            let maker = Maker { member: member.clone(), counter, hash: Some([7; 16]) };
            let maker = postcard::to_stdvec(&maker).expect("encodes").len() + envelope::HEADER_BYTES;
            // The record that compaction keeps of its last transaction.
            let txn = Txn {
                id: TxnId { origin, counter },
                settled: counter,
                time_ms: 1_800_000_000_000,
                note: vec![b'x'; note].into(),
                conditions: Vec::new(),
                ops: Vec::new(),
            };
            let entry = Entry { seq, time_ms: 1_800_000_000_000, member, body: EntryBody::Commit(txn) };
            let mut record = Vec::new();
            encode_entry(&entry, &CHAIN_START, 0, 0, &mut record).expect("encodes");
            (row + authors::key(origin).len() + maker, record.len())
        };
        let (state, log) = cost("web-1.example.net", 40_000, 0);
        assert!(state <= 100 && log <= 120, "{state} bytes in the state, {log} in the log");
        let (state, log) = cost(&"x".repeat(MemberName::BYTES_MAX), u64::MAX / 3, 4096);
        assert!(state <= 200 && log <= 4400, "{state} bytes in the state, {log} in the log");
    }
}
