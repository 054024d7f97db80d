//! Who may write what: readers, members that become readers, origins of other members, and identities that are used again.

use std::sync::Arc;

use bytes::Bytes;
use gravwell::model::{Op, OriginCounter, Reason, Seq, Txn, TxnId};
use gravwell::replica::{Draft, Stage};
use gravwell::trust::Role;

use super::network::ConnId;
use super::oracle::{Checked, broken};
use super::replica::{Import, Running};
use super::world::{Truth, World};

impl Running {
    /// What a reader holds is refused once its state has come as far as the log was at the welcome.
    pub fn refuse_pending(&mut self) {
        let followed = self.link.as_ref().filter(|link| link.intake.is_some());
        let Some(welcome) = followed.and_then(|link| link.welcome.as_ref()) else { return };
        if self.stepped.position().is_some_and(|position| position.seq >= welcome.head) {
            self.stepped.refuse_pending();
        }
    }
}

impl World {
    /// A reader that knows of its role takes no writes.
    pub fn check_may_write(&self, number: usize) -> Checked {
        let node = &self.replicas[number];
        if node.running.as_ref().is_some_and(|running| running.knows_role) {
            broken!("{} is a reader, and takes a write that the datastore will never take", node.name);
        }
        Ok(())
    }

    /// What a replica lists as refused without an entry of the log: a reader's writes, and those under others' origins.
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

    /// A transaction under the origin of another member's import, which ends with it.
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

    /// An import's last identity is given to other contents: it must not be acknowledged as what it was.
    pub fn reuse_identity(&mut self, number: usize) -> Checked {
        let node = &self.replicas[number];
        let Some((draft, true)) = node.import.last.clone() else { return Ok(()) };
        let (Some(id), Some(seq)) = (draft.id, node.seq()) else { return Ok(()) };
        // Not all that is below a horizon is known whole, and a state that was filled by an earlier version knows less.
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

    /// A snapshot was loaded. A state of another history is never taken over, and the right one is never called one.
    pub fn judge_swap(&self, id: ConnId, number: usize, before: Option<Seq>, is_fork: bool, is_taken: bool) -> Checked {
        let truth = self.conns.get(&id).and_then(|conn| conn.welcomed_by).unwrap_or(self.truth);
        let node = &self.replicas[number];
        match truth {
            // What cannot be read proves nothing.
            _ if node.damaged || node.tampered || self.fence.is_some() => Ok(()),
            Truth::Genuine if is_fork => broken!("{} takes the snapshot of its own history for a fork", node.name),
            Truth::OldCopy { head } if is_taken && before.is_some_and(|before| before > head) => broken!(
                "{} was at {before:?} and took over a snapshot of a history that forked after {head}",
                node.name
            ),
            _ => Ok(()),
        }
    }

    /// What a replica shows that lost its state, and says so: older contents, if any, and what still waits. What its mark
    /// knows as decided is not shown as if it waited.
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
                // What its maker gives again is that maker's own write of now. The mark names only those origins of which the
                // journal may hold something, so nothing here knows that it was decided once.
                let waits = |txn: &&Arc<Txn>| {
                    let is_again = self.oracle.given_again.contains(&txn.id);
                    is_again || self.oracle.by_id.get(&txn.id).is_none_or(|at| *at > marked)
                };
                if !pending.iter().filter(waits).any(|txn| txn.ops.iter().any(puts)) {
                    broken!("{who} lost its state, and shows {key} as pending, which was decided before {marked}");
                }
            }
        }
        Ok(())
    }
}
