//! Conditions and operations of one transaction, found by object. A transaction may have tens of thousands of each, so
//! none are searched one by one for every object.

use std::collections::BTreeSet;
use std::collections::btree_map::BTreeMap;

use gravwell_model::deletions::Named;
use gravwell_model::{Condition, Op, Txn, revocation};

use super::{Values, is_taken, named, place};

/// Conditions of a transaction, in order.
pub(super) struct Conditions {
    rows: Vec<Option<Condition>>,
    places: BTreeMap<Named, Vec<usize>>,
}

impl Conditions {
    pub(super) fn of(given: &[Condition]) -> Conditions {
        let mut conditions = Conditions { rows: Vec::with_capacity(given.len()), places: BTreeMap::new() };
        given.iter().for_each(|condition| conditions.push(condition.clone()));
        conditions
    }

    fn push(&mut self, condition: Condition) {
        self.places.entry(place(&condition)).or_default().push(self.rows.len());
        self.rows.push(Some(condition));
    }

    /// Returns the conditions on an object.
    pub(super) fn on(&self, name: &Named) -> impl Iterator<Item = &Condition> {
        self.places.get(name).into_iter().flatten().filter_map(|at| self.rows[*at].as_ref())
    }

    /// Returns whether they determine the expected last write of an object, or its absence.
    pub(super) fn say_which(&self, name: &Named) -> bool {
        self.on(name).any(|condition| !matches!(condition, Condition::Present { .. }))
    }

    /// Removes the conditions on an object, except those that `is_kept`.
    pub(super) fn retain_on(&mut self, name: &Named, is_kept: impl Fn(&Condition) -> bool) {
        for at in self.places.get(name).into_iter().flatten() {
            let row = &mut self.rows[*at];
            *row = row.take().filter(&is_kept);
        }
    }

    /// Appends a condition, unless it is there.
    pub(super) fn add(&mut self, condition: Condition) {
        if !self.on(&place(&condition)).any(|known| *known == condition) {
            self.push(condition);
        }
    }

    pub(super) fn into_vec(self) -> Vec<Condition> {
        self.rows.into_iter().flatten().collect()
    }
}

/// The last operation of a transaction on each object.
pub(super) struct LastOps<'a>(BTreeMap<Named, &'a Op>);

impl<'a> LastOps<'a> {
    pub(super) fn of(txn: &'a Txn) -> LastOps<'a> {
        LastOps(txn.ops.iter().map(|op| (named(op), op)).collect())
    }

    pub(super) fn get(&self, name: &Named) -> Option<&'a Op> {
        self.0.get(name).copied()
    }

    pub(super) fn has(&self, name: &Named) -> bool {
        self.0.contains_key(name)
    }

    /// Returns whether the transaction leaves an object deleted.
    pub(super) fn is_deleted(&self, name: &Named) -> bool {
        self.get(name).is_some_and(|op| op.value().is_none())
    }
}

/// The operations of a transaction that only take rights away which are still taken in a state with certain values.
pub(super) struct InForce<'a> {
    had: &'a Values,
    /// Epochs in which sessions or tokens of the same transaction are valid.
    epochs: BTreeSet<Named>,
}

impl<'a> InForce<'a> {
    pub(super) fn of(txn: &Txn, had: &'a Values) -> InForce<'a> {
        InForce { had, epochs: revocation::epochs_of(&txn.ops).collect() }
    }

    pub(super) fn has(&self, op: &Op) -> bool {
        let name = named(op);
        is_taken(&name, op.value().is_some(), self.had) && !self.epochs.contains(&name)
    }
}
