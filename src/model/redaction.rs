//! Redaction: withholding the values of some collections from members.
//!
//! A member that may not see a value receives the contribution of the object to the state digest instead. It can still
//! prove that its state is equal. The value cannot be computed from the contribution, but a guess can be verified.
//! Therefore, only values that cannot be guessed are withheld this way: salted hashes, random bytes, and hashes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::ids::Seq;
use super::txn::{Collection, Entry, EntryBody, Key, Op};
use super::visibility;

/// An object without its value, but with its contribution to the state digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// Length of the value in bytes.
    pub value_bytes: u64,
    /// [`Digest::of_object`] of the object.
    pub contribution: Digest,
}

impl Withheld {
    /// Creates the replacement of an object's value.
    #[must_use]
    pub fn of(collection: Collection, key: Key, version: Seq, value: &[u8]) -> Withheld {
        let contribution = Digest::of_object(&collection, &key, version, value);
        Withheld { collection, key, value_bytes: value.len() as u64, contribution }
    }
}

/// Collections whose values are withheld.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redaction(Arc<BTreeSet<Collection>>);

impl Default for Redaction {
    fn default() -> Redaction {
        Redaction::of(visibility::SECRET.iter().filter_map(|name| Collection::new(*name).ok()))
    }
}

impl Redaction {
    /// Creates a redaction that withholds the values of `collections`.
    #[must_use]
    pub fn of(collections: impl IntoIterator<Item = Collection>) -> Redaction {
        Redaction(Arc::new(collections.into_iter().collect()))
    }

    /// Returns whether the values of a collection are withheld.
    #[must_use]
    pub fn hides(&self, collection: &Collection) -> bool {
        self.0.contains(collection)
    }

    /// Returns whether an entry contains a value that is withheld.
    #[must_use]
    pub fn concerns(&self, entry: &Entry) -> bool {
        let EntryBody::Commit(txn) = &entry.body else { return false };
        txn.ops.iter().any(|op| op.value().is_some() && self.hides(op.collection()))
    }

    /// Returns the entry without the withheld values. If several operations write an object of a hidden collection,
    /// only the last one is kept, which determines the result when they are applied.
    #[must_use]
    pub fn redact(&self, entry: Entry) -> Entry {
        if !self.concerns(&entry) {
            return entry;
        }
        let Entry { seq, time_ms, member, body: EntryBody::Commit(mut txn) } = entry else { return entry };
        let mut last = BTreeMap::new();
        let mut ops = Vec::with_capacity(txn.ops.len());
        for op in std::mem::take(&mut txn.ops) {
            if self.hides(op.collection()) {
                last.insert((op.collection().clone(), op.key().clone()), op);
            } else {
                ops.push(op);
            }
        }
        let mut withheld = Vec::new();
        for op in last.into_values() {
            match op {
                Op::Put { collection, key, value } => withheld.push(Withheld::of(collection, key, seq, &value)),
                Op::Delete { .. } => ops.push(op),
            }
        }
        txn.ops = ops;
        Entry { seq, time_ms, member, body: EntryBody::Redacted { txn, withheld } }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{MemberName, Origin, OriginCounter, Txn, TxnId};

    #[test]
    fn p11_the_last_operation_on_a_hidden_object_decides_what_is_told_of_it() {
        let name = |text: &str| Collection::new(text).expect("name");
        let key = |text: &str| Key::new(text).expect("key");
        let put = |collection, at, value: &'static [u8]| Op::Put {
            collection: name(collection),
            key: key(at),
            value: Bytes::from_static(value),
        };
        let delete = |collection, at| Op::Delete { collection: name(collection), key: key(at) };
        let ops = vec![
            put("passwords", "1", b"first"),
            put("dashboards", "1", b"seen"),
            put("passwords", "1", b"second"),
            put("passwords", "2", b"taken back"),
            delete("passwords", "2"),
            delete("sessions", "3"),
            put("sessions", "3", b"made again"),
        ];
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: vec![], ops };
        let member = MemberName::new("m").expect("name");
        let entry = Entry { seq: Seq(7), time_ms: 1, member, body: EntryBody::Commit(txn) };
        let redaction = Redaction::default();
        let EntryBody::Redacted { txn, withheld } = redaction.redact(entry.clone()).body else { panic!("redacted") };
        assert_eq!(txn.ops, [put("dashboards", "1", b"seen"), delete("passwords", "2")]);
        let told = [("passwords", "1", &b"second"[..]), ("sessions", "3", b"made again")];
        assert_eq!(withheld, told.map(|(at, k, value)| Withheld::of(name(at), key(k), Seq(7), value)));
        assert_eq!(Redaction::of([]).redact(entry.clone()), entry);
    }
}
