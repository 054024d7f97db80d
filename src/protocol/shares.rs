//! Accounting of an outbox by author: the sizes of pending and of rejected transactions.

use std::collections::HashMap;

use serde::Deserialize;

use gravwell_model::Txn;

/// Size of one author's transactions in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of pending transactions.
    pub pending: usize,
    /// Bytes of rejected transactions.
    pub rejected: usize,
}

impl Held {
    /// Returns the total.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.pending + self.rejected
    }
}

#[derive(Deserialize)]
struct Named {
    uid: i32,
}

/// Returns the ID of the user whom the note of a transaction names as its author; 0 if it names none.
#[must_use]
pub fn author(note: &[u8]) -> i32 {
    serde_json::from_slice::<Named>(note).map_or(0, |named| named.uid)
}

/// Sizes by user ID.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<i32, Held>);

impl Shares {
    fn change(&mut self, txn: &Txn, change: impl FnOnce(&mut Held, usize)) {
        let author = author(&txn.note);
        let held = self.0.entry(author).or_default();
        change(held, txn.bytes_estimate());
        if held.bytes() == 0 {
            self.0.remove(&author);
        }
    }

    pub(super) fn add_pending(&mut self, txn: &Txn) {
        self.change(txn, |held, bytes| held.pending += bytes);
    }

    pub(super) fn take_pending(&mut self, txn: &Txn) {
        self.change(txn, |held, bytes| held.pending = held.pending.saturating_sub(bytes));
    }

    pub(super) fn add_rejected(&mut self, txn: &Txn) {
        self.change(txn, |held, bytes| held.rejected += bytes);
    }

    pub(super) fn take_rejected(&mut self, txn: &Txn) {
        self.change(txn, |held, bytes| held.rejected = held.rejected.saturating_sub(bytes));
    }

    pub(super) fn of(&self, author: i32) -> Held {
        self.0.get(&author).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::outbox::Outbox;
    use super::*;
    use gravwell_model::{Collection, EntryBody, Key, Op, Origin, OriginCounter, Reason, Seq, TxnId};

    #[test]
    fn p07_what_an_author_holds_is_counted_until_it_is_decided_and_dealt_with() {
        let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let op = Op::Delete { collection: Collection::new("c").expect("name"), key: Key::new("k").expect("key") };
        let txn = |counter, note: &'static str| {
            let (settled, note, ops) = (OriginCounter(0), Bytes::from_static(note.as_bytes()), vec![op.clone()]);
            Arc::new(Txn { id: id(counter), settled, time_ms: 0, note, conditions: vec![], ops })
        };
        let (first, second, third) = (txn(1, r#"{"uid":7}"#), txn(2, r#"{"uid":7}"#), txn(3, "without an author"));
        let bytes = first.bytes_estimate();
        let mut outbox = Outbox::default();
        for txn in [&first, &second, &third] {
            outbox.insert(Arc::clone(txn));
        }
        assert_eq!(outbox.held_by(7), Held { pending: 2 * bytes, rejected: 0 });
        assert_eq!(outbox.held_by(0), Held { pending: third.bytes_estimate(), rejected: 0 });
        outbox.handle_applied(Seq(5), &EntryBody::Commit(Txn::clone(&first)));
        let (settled, reason) = (OriginCounter(0), Reason::IdentityReused);
        outbox.handle_applied(Seq(6), &EntryBody::Reject { id: id(2), settled, reason });
        assert_eq!(outbox.held_by(7), Held { pending: 0, rejected: bytes });
        outbox.take_rejected(id(2));
        assert_eq!((outbox.held_by(7), outbox.held_by(8)), (Held::default(), Held::default()));
    }
}
