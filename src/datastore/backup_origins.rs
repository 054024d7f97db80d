//! Comparison of the rows of origins in the state with those that the base of the log results in. A backup contains the
//! log alone: if compaction dropped a record that a row needs, a restore could not reproduce the state's digest.

use gravwell_log::reader::Base;
use gravwell_log::{LogReader, ReadError};
use gravwell_model::{Origin, OriginRow, Seq};
use gravwell_state::{StateError, StateSnapshot};

/// Returns why a backup of the log could not be restored; `None` if the rows agree.
pub(super) fn problem(log: &LogReader, state: &StateSnapshot) -> Result<Option<String>, String> {
    let base = log.base().map_err(|error: ReadError| error.to_string())?;
    let found = difference(&base, state).map_err(|error| error.to_string())?;
    Ok(found.map(|(origin, seq)| {
        format!(
            "the log up to sequence {} lacks what its state has of origin {origin} at sequence {seq}, so a backup of it \
             could not be restored; rebuild the datastore from a member (`gravwell-logctl recover`)",
            base.seq
        )
    }))
}

/// Returns an origin of which the base and the state have different rows, and the sequence of the state's row.
fn difference(base: &Base, state: &StateSnapshot) -> Result<Option<(Origin, Seq)>, StateError> {
    if state.meta().is_none_or(|meta| meta.seq < base.seq) {
        return Ok(None);
    }
    let mut left = base.origins.len();
    for row in state.origins() {
        let (origin, row) = row?;
        let of_base = base.origins.get(&origin);
        left -= usize::from(of_base.is_some());
        if !agree(of_base, &row, base.seq) {
            return Ok(Some((origin, row.last_seq)));
        }
    }
    let is_unknown = |origin: &Origin| state.origin(*origin).map(|row| row.is_none());
    for (origin, row) in base.origins.iter().filter(|_| left > 0) {
        if is_unknown(origin)? {
            return Ok(Some((*origin, row.last_seq)));
        }
    }
    Ok(None)
}

/// Returns whether a row of the state results from a row of the base and from later entries.
fn agree(of_base: Option<&OriginRow>, row: &OriginRow, base: Seq) -> bool {
    if row.last_seq <= base {
        return of_base == Some(row);
    }
    let is_there = |(counter, seq, _): &(_, Seq, _)| {
        *seq > base || of_base.and_then(|row| row.rejection(*counter)).is_some_and(|(there, _)| there == *seq)
    };
    row.rejected.iter().all(is_there)
}
