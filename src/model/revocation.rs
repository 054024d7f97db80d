//! Operations that only take rights away. The types of the objects are defined in higher layers, but a member that leaves
//! a lost history must know which of its transactions are revocations, because these always take effect.

use super::txn::{Condition, Op};

/// Collections whose objects restrict a user while they exist: writing one takes rights away, whatever it replaces. A
/// later epoch of logins or tokens is no better than a new one.
pub const RESTRICTING: &[&str] = &["locks", "session-epochs", "token-epochs"];
/// Collections whose objects give rights while they exist: deleting one takes rights away.
pub const GRANTING: &[&str] = &["admins", "memberships", "sessions", "tokens"];
/// Collections of which no key is used for two objects: keys are drawn at random.
pub const UNIQUE: &[&str] = &["groups", "sessions", "tokens", "users"];

/// Returns whether an operation only takes rights away.
#[must_use]
pub fn revokes(op: &Op) -> bool {
    let collections = if op.value().is_some() { RESTRICTING } else { GRANTING };
    collections.contains(&op.collection().as_str())
}

/// Returns whether a condition is on the rights of a user.
#[must_use]
pub fn is_on_rights(condition: &Condition) -> bool {
    let collection = condition.collection().as_str();
    RESTRICTING.contains(&collection) || GRANTING.contains(&collection)
}

/// Returns whether a condition requires that an object is present whose key was never used for another one.
#[must_use]
pub fn is_presence_of_unique(condition: &Condition) -> bool {
    matches!(condition, Condition::Present { collection, .. } if UNIQUE.contains(&collection.as_str()))
}
