//! Checks the names in an export archive like names entered by users: a restore must not create names that no other
//! request could.
//!
//! A name from before the check was introduced stays valid for its account: it may be restored to the account that
//! has it.

use std::collections::BTreeMap;

use super::claims::Owner;
use super::groups::Group;
use super::names;
use super::record::Stored;
use super::store::Store;
use super::users::User;
use gravwell_model::Op;

/// Checks the names of an archive's users and groups, one after the other.
pub struct RestoredNames<'a> {
    store: &'a Store,
    /// Owner of each name, by lookup key.
    users: BTreeMap<String, i32>,
    groups: BTreeMap<String, i32>,
}

impl<'a> RestoredNames<'a> {
    /// Starts the check; `store` has the present state.
    #[must_use]
    pub fn new(store: &'a Store) -> RestoredNames<'a> {
        RestoredNames { store, users: BTreeMap::new(), groups: BTreeMap::new() }
    }

    /// Checks one object of an archive.
    ///
    /// # Errors
    /// If its name is not allowed, or is also the name of another object in the archive.
    pub fn check(&mut self, op: &Op) -> Result<(), String> {
        let Op::Put { collection, value, .. } = op else { return Ok(()) };
        match collection.as_str() {
            User::COLLECTION => one::<User>(self.store, &mut self.users, "User", value),
            Group::COLLECTION => one::<Group>(self.store, &mut self.groups, "Name", value),
            _ => Ok(()),
        }
    }
}

fn one<O: Owner>(
    store: &Store,
    seen: &mut BTreeMap<String, i32>,
    field: &'static str,
    value: &[u8],
) -> Result<(), String> {
    // An invalid object is restored unchanged, and listed as invalid.
    let Ok(owner) = serde_json::from_slice::<O>(value) else { return Ok(()) };
    let (name, number) = (owner.called(), owner.number());
    let what = O::WHAT;
    let place = || format!("{what} {number}, called {name:?}");
    if let Some(other) = seen.insert(names::key(name), number) {
        return Err(format!("{}: {what} {other} has the same name", place()));
    }
    let fault = match names::checked(field, name) {
        Ok(kept) if kept == name => return Ok(()),
        Ok(kept) => format!("{field} would be stored as {kept:?}"),
        Err(error) => error.to_string(),
    };
    let present = store.valid::<O>(&number.to_string()).map_err(|error| error.to_string())?;
    if present.is_some_and(|present| present.value.called() == name) {
        return Ok(());
    }
    Err(format!("{}: {fault}; rename it at the source of the backup, then create a new backup", place()))
}
