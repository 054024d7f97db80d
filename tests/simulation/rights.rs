//! Write permissions: readers, members that become readers, origins of other members, and reused ids.

use std::sync::Arc;

use bytes::Bytes;
use gravwell_model::{Op, OriginCounter, Reason, Seq, Txn, TxnId};
use gravwell_replica::{Draft, Stage};
use gravwell_transport::trust::Role;

use super::network::ConnId;
use super::oracle::{Checked, broken};
use super::replica::Import;
use super::world::{Truth, World};

impl World {
    /// Checks that a reader that knows its role accepts no writes.
    pub fn check_may_write(&self, number: usize) -> Checked {
        let node = &self.replicas[number];
        if node.running.as_ref().is_some_and(|running| running.knows_role) {
            broken!("{} is a reader and accepts a write that the datastore would never accept", node.name);
        }
        Ok(())
    }

    /// Checks the transactions that a replica lists as rejected without an entry in the log: writes of a reader, and
    /// those with origins of other members.
    pub fn check_refusals(&mut self, number: usize) -> Checked {
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        let is_reader = node.role == Role::Reader;
        let refused = running.stepped.rejected().into_iter().filter(|rejected| rejected.seq == Seq::ZERO);
        for id in refused.map(|rejected| rejected.txn.id) {
            let may_be = is_reader || self.oracle.stolen.contains(&id);
            self.oracle.refused_here(node.name.as_str(), id, may_be)?;
        }
        Ok(())
    }

    /// Creates a transaction with the origin of another member's import, which ends with this.
    pub fn steal_origin(&mut self, number: usize) -> Option<Draft> {
        let other = self.random.below(self.replicas.len());
        let (thief, victim) = (&self.replicas[number], &self.replicas[other]);
        let (origin, counter) = (victim.import.origin?, OriginCounter(victim.import.counter));
        let is_over = victim.import.last.as_ref().is_some_and(|(_, answered)| *answered);
        if thief.name == victim.name || !is_over || !self.oracle.by_id.contains_key(&TxnId { origin, counter }) {
            return None;
        }
        self.replicas[other].import = Import::default();
        let (collection, key) = self.any_key();
        self.next_value += 1;
        let value = Bytes::from(format!("stolen by web{number} {}", self.next_value));
        let id = TxnId { origin, counter: counter.next() };
        self.oracle.stolen.insert(id);
        Some(Draft { ops: vec![Op::Put { collection, key, value }], id: Some(id), ..Draft::default() })
    }

    /// Submits other contents with the last id of an import: this must not be acknowledged as the earlier transaction.
    pub fn reuse_identity(&mut self, number: usize) -> Checked {
        let node = &self.replicas[number];
        let Some((draft, true)) = node.import.last.clone() else { return Ok(()) };
        let (Some(id), Some(seq)) = (draft.id, node.seq()) else { return Ok(()) };
        // Below a horizon not all transactions are known completely, and a state filled by an earlier version knows even less.
        let from = node.states.filled().max(self.oracle.whole_after);
        if node.damaged || node.tampered || !self.oracle.is_committed(id, from, seq) {
            return Ok(());
        }
        let (collection, key) = self.any_key();
        self.next_value += 1;
        let value = Bytes::from(format!("web{number} again {}", self.next_value));
        self.oracle.refused.insert(value.clone());
        let other = Draft { ops: vec![Op::Put { collection, key, value }], ..draft };
        let Some(running) = &mut self.replicas[number].running else { return Ok(()) };
        let submitted = match running.stepped.submit(vec![other]) {
            Ok(submitted) => submitted,
            Err(failure) => {
                self.fatal(number, Err(failure));
                return Ok(());
            }
        };
        for receipt in submitted.into_iter().filter_map(Result::ok) {
            let stage = receipt.stage();
            if !matches!(stage, Stage::Rejected(_, Reason::IdentityReused)) {
                broken!("web{number}: {}/{} with other contents was answered with {stage:?}", id.origin, id.counter);
            }
        }
        Ok(())
    }

    /// Checks a loaded snapshot: a state of another history is never adopted, and the right one is never reported as a fork.
    pub fn check_swap(&self, id: ConnId, number: usize, before: Option<Seq>, is_fork: bool, is_taken: bool) -> Checked {
        let truth = self.conns.get(&id).and_then(|conn| conn.welcomed_by).unwrap_or(self.truth);
        let node = &self.replicas[number];
        match truth {
            // Unreadable rows prove nothing.
            _ if node.damaged || node.tampered || self.fence.is_some() => Ok(()),
            Truth::Genuine if is_fork => broken!("{} considers the snapshot of its own history a fork", node.name),
            Truth::OldCopy { head } if is_taken && before.is_some_and(|before| before > head) => broken!(
                "{} was at {before:?} and installed a snapshot of a history that forked after {head}",
                node.name
            ),
            _ => Ok(()),
        }
    }

    /// Checks the contents shown by a replica that lost its state and reports that: older contents, if any, and
    /// pending transactions. Transactions that are resolved according to its mark must not be shown as pending.
    pub fn check_shown_back(&mut self, number: usize, pending: &[Arc<Txn>]) -> Checked {
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        let (who, state) = (node.name.to_string(), running.stepped.state());
        if !node.damaged && !node.tampered {
            self.check_committed(&who, &state)?;
        }
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        let marked = node.states.marked();
        for collection in super::checks::collections() {
            let Ok(rows) = running.stepped.scan(&collection, "") else { return Ok(()) };
            for (key, object) in rows.into_iter().filter(|(_, object)| object.version.is_none()) {
                let puts =
                    |op: &Op| op.collection() == &collection && op.key() == &key && op.value() == Some(&object.value);
                // A transaction submitted again by its author is a new write of that author. The mark contains only
                // origins of which the journal may contain transactions, so the replica cannot know that it was
                // resolved before.
                let waits = |txn: &&Arc<Txn>| {
                    let is_again = self.oracle.given_again.contains(&txn.id);
                    is_again || self.oracle.by_id.get(&txn.id).is_none_or(|at| *at > marked)
                };
                if !pending.iter().filter(waits).any(|txn| txn.ops.iter().any(puts)) {
                    broken!(
                        "{who} lost its state and shows {key} as pending, although it was resolved before {marked}"
                    );
                }
            }
        }
        Ok(())
    }
}
