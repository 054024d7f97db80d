//! Converts a state back into entries: those that compaction would have kept of the log up to the sequence of the state.
//!
//! The rows do not contain everything about the transactions that wrote them. The caller can supply remaining log
//! records as *memories*. Without a memory, the member and origin of a superseded transaction are unknown: its objects
//! are then written on behalf of an origin of which the last transaction came later, with counter 0, which changes no
//! row of an origin.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::error::StateError;
use super::snapshot::StateSnapshot;
use gravwell_model::{
    Collection, Entry, EntryBody, Key, MemberName, Op, Origin, OriginCounter, Reason, Seq, Txn, TxnId,
};

/// The contents of the entry at one sequence.
#[derive(Default)]
struct Part {
    objects: Vec<(Collection, Key)>,
    deleted: Vec<(Collection, Key)>,
    last_of: Option<TxnId>,
    rejected: Option<(TxnId, Reason)>,
    memory: Option<Entry>,
}

/// The entries of a base, in ascending order of sequence.
pub struct BaseEntries {
    snapshot: StateSnapshot,
    parts: BTreeMap<Seq, Part>,
    /// Origin of the entry with the highest sequence.
    latest: Origin,
}

/// Plans the base for a state. Holds the names of all objects in memory, but not their values.
///
/// # Errors
/// If the state is damaged, or values are withheld from it.
pub fn base_entries(snapshot: &StateSnapshot) -> Result<BaseEntries, StateError> {
    if snapshot.meta().is_some_and(|meta| meta.is_redacted) {
        return Err(StateError::Redacted);
    }
    base_entries_left(snapshot)
}

/// Like [`base_entries`], but omits objects of which the values are withheld. The entries then do not add up to the
/// digest of the state.
///
/// # Errors
/// If the state is damaged.
pub fn base_entries_left(snapshot: &StateSnapshot) -> Result<BaseEntries, StateError> {
    let mut parts = BTreeMap::<Seq, Part>::new();
    for row in snapshot.objects() {
        let (collection, key, object) = row?;
        parts.entry(object.version).or_default().objects.push((collection, key));
    }
    let mut latest = (Seq::ZERO, Origin::default());
    for row in snapshot.origins() {
        let (origin, row) = row?;
        latest = latest.max((row.last_seq, origin));
        parts.entry(row.last_seq).or_default().last_of = Some(TxnId { origin, counter: row.last_counter });
        for (counter, seq, reason) in row.rejected {
            parts.entry(seq).or_default().rejected = Some((TxnId { origin, counter }, reason));
        }
    }
    for (seq, name) in snapshot.deletions()?.rows() {
        parts.entry(seq).or_default().deleted.push(name.clone());
    }
    Ok(BaseEntries { snapshot: snapshot.clone(), parts, latest: latest.1 })
}

impl BaseEntries {
    /// Uses an intact log record to fill in the metadata of its transaction.
    pub fn remember(&mut self, mut entry: Entry) {
        let Some(part) = self.parts.get_mut(&entry.seq) else { return };
        if let EntryBody::Commit(txn) = &mut entry.body {
            (txn.ops, txn.conditions) = (Vec::new(), Vec::new());
        }
        part.memory = Some(entry);
    }

    fn entry(&self, seq: Seq, part: Part) -> Result<Entry, StateError> {
        let (mut time_ms, mut ops) = (0, Vec::with_capacity(part.objects.len() + part.deleted.len()));
        for (collection, key) in part.objects {
            let object = self.snapshot.get(&collection, &key)?.ok_or(StateError::Unfinished)?;
            time_ms = object.time_ms;
            ops.push(Op::Put { collection, key, value: object.value });
        }
        ops.extend(part.deleted.into_iter().map(|(collection, key)| Op::Delete { collection, key }));
        let of = part.rejected.as_ref().map(|(id, _)| *id).or(part.last_of);
        let maker = of.map(|id| self.snapshot.maker(id.origin)).transpose()?.flatten();
        let member = maker.map_or_else(MemberName::unknown, |maker| maker.member);
        let unknown = TxnId { origin: self.latest, counter: OriginCounter(0) };
        let mut txn =
            Txn { id: unknown, settled: OriginCounter(0), time_ms, note: Bytes::new(), conditions: Vec::new(), ops };
        let mut entry = Entry { seq, time_ms, member, body: EntryBody::Unknown { kind: 0, payload: Bytes::new() } };
        if let Some(memory) = part.memory {
            (entry.time_ms, entry.member) = (memory.time_ms, memory.member);
            if let EntryBody::Commit(old) = memory.body {
                txn = Txn { ops: txn.ops, ..old };
            }
        }
        entry.body = match part.rejected {
            Some((id, reason)) => EntryBody::Reject { id, settled: OriginCounter(0), reason },
            None => EntryBody::Commit(Txn { id: part.last_of.unwrap_or(txn.id), ..txn }),
        };
        Ok(entry)
    }
}

impl Iterator for BaseEntries {
    type Item = Result<Entry, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (seq, part) = self.parts.pop_first()?;
        Some(self.entry(seq, part))
    }
}
