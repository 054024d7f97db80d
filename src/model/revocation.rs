//! Operations that only take rights away. The types of the objects are defined in higher layers, but a member that leaves
//! a lost history must know which of its transactions are revocations, because these always take effect.

use super::txn::{Condition, Op};
use super::{Collection, Key};

/// Collections whose objects restrict a user while they exist: writing one takes rights away, whatever it replaces. An
/// epoch that is written again ends the logins or tokens of a later one, but it must not bring its own ones with it
/// ([`epochs_of`]).
pub const RESTRICTING: &[&str] = &["locks", "session-ends", "session-epochs", "token-ends", "token-epochs"];
/// Collections whose objects give rights while they exist: deleting one takes rights away.
pub const GRANTING: &[&str] = &["admins", "memberships", "sessions", "tokens"];
/// Epochs, with the logins or tokens that are valid in them.
const EPOCHS: &[(&str, &str)] = &[("session-epochs", "sessions"), ("token-epochs", "tokens")];
/// Collections that say what an account may do, however its user has logged in.
pub const ROLES: &[&str] = &["admins", "locks", "memberships"];
/// Collections of which no key is used for two objects: keys are drawn at random.
pub const UNIQUE: &[&str] = &["groups", "sessions", "tokens", "users"];

/// Returns whether putting an object of a collection, or deleting it, only takes a right away.
#[must_use]
pub fn takes_right(collection: &Collection, is_put: bool) -> bool {
    if is_put { RESTRICTING } else { GRANTING }.contains(&collection.as_str())
}

/// Returns whether an operation puts an object that gives a right.
#[must_use]
pub fn grants(op: &Op) -> bool {
    op.value().is_some() && GRANTING.contains(&op.collection().as_str())
}

/// Returns the epochs in which the logins and tokens that operations put are valid, or in no other one.
pub fn epochs_of(ops: &[Op]) -> impl Iterator<Item = (Collection, Key)> {
    ops.iter().filter(|op| op.value().is_some()).filter_map(|op| {
        let (epochs, _) = EPOCHS.iter().find(|(_, of)| op.collection().as_str() == *of)?;
        let (owner, _) = op.key().as_str().split_once('/')?;
        Some((Collection::new(*epochs).ok()?, Key::new(owner).ok()?))
    })
}

/// Returns whether a condition is on an epoch.
#[must_use]
pub fn is_on_epoch(condition: &Condition) -> bool {
    EPOCHS.iter().any(|(name, _)| condition.collection().as_str() == *name)
}

/// Returns whether a condition is on the rights of a user.
#[must_use]
pub fn is_on_rights(condition: &Condition) -> bool {
    let collection = condition.collection().as_str();
    RESTRICTING.contains(&collection) || GRANTING.contains(&collection)
}

/// Returns whether a condition is on what an account may do, not on a login or token.
#[must_use]
pub fn is_on_role(condition: &Condition) -> bool {
    ROLES.contains(&condition.collection().as_str())
}

/// Returns whether a condition requires that an object is present whose key was never used for another one.
#[must_use]
pub fn is_presence_of_unique(condition: &Condition) -> bool {
    matches!(condition, Condition::Present { collection, .. } if UNIQUE.contains(&collection.as_str()))
}
