//! Derives records of the audit from entries of the operation log, with the previous value of each object.
//!
//! Previous values come from a snapshot of the state that is not later than the entries, and from the entries since
//! then. This is exact and adds nothing to the commit path. The state is ahead of the entries only after a crash, or
//! for entries older than the audit. Values are then marked as unknown.

use std::collections::HashMap;

use bytes::Bytes;

use gravwell_model::codec::audit::{
    AuditEvent, AuditOp, AuditRecord, LogPoint, NAMES_BYTES_MAX, VALUES_BYTES_MAX, Value,
};
use gravwell_model::visibility::{self, Visibility};
use gravwell_model::{Chain, Collection, Entry, EntryBody, Generation, Key, LogId, Op, Seq, Txn};
use gravwell_state::{StateError, StateSnapshot};

/// Most bytes of previous values remembered between two snapshots.
const REMEMBERED_BYTES_MAX: usize = 16 << 20;

/// Values of objects just before the next entry.
#[derive(Default)]
pub struct Former {
    snapshot: Option<StateSnapshot>,
    changed: HashMap<(Collection, Key), Option<Bytes>>,
    bytes: usize,
    /// Whether more has changed since the snapshot than is remembered.
    is_lossy: bool,
}

impl Former {
    /// Restarts from a snapshot at the position before the next entry.
    pub fn begin(&mut self, snapshot: StateSnapshot) {
        *self = Former { snapshot: Some(snapshot), ..Former::default() };
    }

    /// Returns whether there is no snapshot yet.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.snapshot.is_none()
    }

    /// Returns the object's value before the entry at `seq`.
    fn before(&self, op: &Op, seq: Seq, room: &mut usize) -> Result<Value, StateError> {
        if visibility::of(op.collection().as_str()) != Visibility::Open {
            return Ok(Value::Unknown);
        }
        let kept = |value: &[u8], room: &mut usize| Value::of(op.collection(), value, room);
        if let Some(changed) = self.changed.get(&(op.collection().clone(), op.key().clone())) {
            return Ok(changed.as_ref().map_or(Value::None, |value| kept(value, room)));
        }
        let Some(snapshot) = self.snapshot.as_ref().filter(|_| !self.is_lossy) else { return Ok(Value::Unknown) };
        let is_earlier = snapshot.meta().is_none_or(|meta| meta.seq < seq);
        Ok(match snapshot.get(op.collection(), op.key())? {
            Some(object) if object.version < seq => kept(&object.value, room),
            None if is_earlier => Value::None,
            Some(_) | None => Value::Unknown,
        })
    }

    fn change(&mut self, op: &Op) {
        if visibility::of(op.collection().as_str()) != Visibility::Open {
            return;
        }
        let place = (op.collection().clone(), op.key().clone());
        self.bytes += place.1.len() + op.value().map_or(0, Bytes::len) + 64;
        self.changed.insert(place, op.value().cloned());
        if self.bytes > REMEMBERED_BYTES_MAX {
            (self.changed, self.bytes, self.is_lossy) = (HashMap::new(), 0, true);
        }
    }
}

/// Identifies the log of the entries.
#[derive(Clone, Copy, Debug)]
pub struct OfLog {
    /// Log ID.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
}

impl OfLog {
    /// Creates a point of this log.
    #[must_use]
    pub fn point(self, seq: Seq, chain: Chain) -> LogPoint {
        LogPoint { log_id: self.log_id, generation: self.generation, seq, chain }
    }
}

/// Creates the record of an entry.
///
/// # Errors
/// Returns an error if the state cannot be read.
pub fn record(entry: &Entry, chain: Chain, log: OfLog, former: &mut Former) -> Result<AuditRecord, StateError> {
    let event = match &entry.body {
        EntryBody::Commit(txn) => commit(txn, entry.seq, former)?,
        EntryBody::Reject { reason, .. } => AuditEvent::Reject { reason: reason.clone() },
        EntryBody::Redacted { txn, .. } => commit(txn, entry.seq, former)?,
        EntryBody::Unknown { kind, .. } => AuditEvent::Unknown { kind: *kind },
    };
    let (time_ms, member) = (entry.time_ms, entry.member.clone());
    Ok(AuditRecord { time_ms, member, covered: log.point(entry.seq, chain), event })
}

fn commit(txn: &Txn, seq: Seq, former: &mut Former) -> Result<AuditEvent, StateError> {
    let (mut values, mut names) = (VALUES_BYTES_MAX, NAMES_BYTES_MAX);
    let mut ops = Vec::with_capacity(txn.ops.len());
    let mut more = 0;
    for op in &txn.ops {
        let bytes = op.collection().as_str().len() + op.key().len() + 32;
        if bytes <= names {
            names -= bytes;
            let before = former.before(op, seq, &mut values)?;
            ops.push(AuditOp::of(op, before, &mut values));
        } else {
            more += 1;
        }
        former.change(op);
    }
    Ok(AuditEvent::Commit { note: txn.note.to_vec(), ops, more })
}
