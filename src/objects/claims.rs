//! Unique names and their owners. The object of a name records its owner, which makes the name unique, and the owner's
//! record contains the name. Both are changed in one transaction under the condition that both are unchanged since they
//! were read, so of two conflicting changes one is rejected. A name is valid only while its owner has it, whatever a
//! corrupt or older state contains.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::groups::{Group, GroupName};
use super::record::Stored;
use super::users::{User, UserName};
use super::{AsRead, Record, Store, StoreError, Writes, names};
use gravwell_model::{Collection, Condition, Key, Op, Seq};
use gravwell_replica::History;

/// An object with a unique name.
pub trait Owner: Stored + Clone {
    /// Kind of the owner, for messages.
    const WHAT: &'static str;
    /// Type of the object that reserves its name.
    type Claim: Claim;
    /// Returns its UID or GID.
    fn number(&self) -> i32;
    /// Returns its name.
    fn called(&self) -> &str;
    /// Changes its name.
    fn rename(&mut self, name: String);
}

/// An object that reserves a name.
pub trait Claim: Stored {
    /// Creates the claim of a name.
    fn of(name: &str, number: i32) -> Self;
    /// Returns the number of the owner.
    fn owner(&self) -> i32;
}

impl Owner for User {
    const WHAT: &'static str = "user";
    type Claim = UserName;
    fn number(&self) -> i32 {
        self.uid
    }
    fn called(&self) -> &str {
        &self.user
    }
    fn rename(&mut self, name: String) {
        self.user = name;
    }
}

impl Claim for UserName {
    fn of(name: &str, number: i32) -> UserName {
        UserName::of(name, number)
    }
    fn owner(&self) -> i32 {
        self.uid
    }
}

impl Owner for Group {
    const WHAT: &'static str = "group";
    type Claim = GroupName;
    fn number(&self) -> i32 {
        self.gid
    }
    fn called(&self) -> &str {
        &self.name
    }
    fn rename(&mut self, name: String) {
        self.name = name;
    }
}

impl Claim for GroupName {
    fn of(name: &str, number: i32) -> GroupName {
        GroupName::of(name, number)
    }
    fn owner(&self) -> i32 {
        self.gid
    }
}

/// Returns whether an owner with this name may be found under this key.
#[must_use]
pub fn bears(name: &str, key: &str) -> bool {
    names::keys(name).iter().any(|own| own == key)
}

/// Returns the number of the owner with a name.
///
/// # Errors
/// If the state is corrupt.
pub fn find<O: Owner>(store: &Store, name: &str) -> Result<Option<i32>, StoreError> {
    for key in names::keys(name) {
        if let Some(claim) = store.valid::<O::Claim>(&key)?
            && is_borne::<O>(store, &claim)?
        {
            return Ok(Some(claim.value.owner()));
        }
    }
    Ok(None)
}

fn is_borne<O: Owner>(store: &Store, claim: &Record<O::Claim>) -> Result<bool, StoreError> {
    let owner = store.valid::<O>(&claim.value.owner().to_string())?;
    Ok(owner.is_some_and(|owner| bears(owner.value.called(), &claim.value.key())))
}

/// Returns an existing name that users could mistake for `name`; names of the owner `number` are ignored.
///
/// # Errors
/// If the state is corrupt.
pub fn look_alike<O: Owner>(store: &Store, name: &str, number: i32) -> Result<Option<String>, StoreError> {
    // Two ASCII names are distinguished by their keys.
    let is_ascii = name.is_ascii();
    let others = store.list::<O>("")?.into_iter().map(|record| record.value);
    let mut others = others.filter(|other| other.number() != number && !(is_ascii && other.called().is_ascii()));
    Ok(others.find(|other| names::look_alike(other.called(), name)).map(|other| other.called().to_owned()))
}

fn taken<O: Owner>(name: &str) -> String {
    format!("a {} called {name} already exists", O::WHAT)
}

fn moved<O: Owner>(name: &str) -> String {
    format!("the {} {name} was renamed or deleted; reload it and try again", O::WHAT)
}

/// Claims a name for `number`; it must be free at commit.
///
/// Whether a claim is stale follows from the record of its owner. That may be a pending change of this webserver, which
/// the log may reject, so it is a condition as well.
///
/// # Errors
/// If the state is corrupt.
pub fn take<O: Owner>(store: &Store, name: &str, number: i32, writes: &mut Writes) -> Result<(), StoreError> {
    let said = taken::<O>(name);
    let claim = O::Claim::of(name, number);
    let key = claim.key();
    match takeable::<O>(store, &key, number, writes, &said)? {
        Some(found) => writes.replace(Some(found), &claim, &said)?,
        None => writes.create(&claim, &said)?,
    }
    for earlier in names::keys(name).into_iter().filter(|earlier| *earlier != key) {
        match takeable::<O>(store, &earlier, number, writes, &said)? {
            Some(found) => writes.as_read::<O::Claim>(&earlier, Some(found), &said)?,
            None => writes.require_absent::<O::Claim>(&earlier, &said)?,
        }
    }
    Ok(())
}

/// Returns the claim of a name that already belongs to this owner, or to no owner under conditions that it adds. `None`:
/// the claim must be absent at commit.
fn takeable<O: Owner>(
    store: &Store,
    key: &str,
    number: i32,
    writes: &mut Writes,
    said: &str,
) -> Result<Option<AsRead>, StoreError> {
    let Some(claim) = store.valid::<O::Claim>(key)? else { return Ok(None) };
    if claim.value.owner() == number {
        return Ok(Some(claim.as_read));
    }
    // Read before it is judged: a change in between lets the condition fail.
    let owner = claim.value.owner().to_string();
    let as_read = store.seen::<O>(&owner)?;
    if claim.version.is_none() || is_borne::<O>(store, &claim)? {
        return Ok(None);
    }
    writes.as_read::<O>(&owner, as_read, said)?;
    Ok(Some(claim.as_read))
}

/// Requires that an owner still has its name and, if it gives the name up, deletes the claims. What is left out because
/// it is absent or another owner's must be so at commit: a pending change of this webserver may be the only reason.
fn hold<O: Owner>(store: &Store, owner: &O, is_given_up: bool, writes: &mut Writes) -> Result<(), StoreError> {
    let said = moved::<O>(owner.called());
    for key in names::keys(owner.called()) {
        let as_read = store.seen::<O::Claim>(&key)?;
        match store.valid::<O::Claim>(&key)? {
            Some(claim) if claim.value.owner() == owner.number() => {
                writes.require::<O::Claim>(&key, &said)?;
                writes.unchanged(&claim, &said)?;
                if is_given_up {
                    writes.delete(&claim, &said)?;
                }
            }
            _ if is_given_up => writes.as_read::<O::Claim>(&key, as_read, &said)?,
            _ => {}
        }
    }
    Ok(())
}

/// Creates an owner with its name.
///
/// # Errors
/// If an object cannot be encoded.
pub fn create<O: Owner>(store: &Store, owner: &O, writes: &mut Writes) -> Result<(), StoreError> {
    take::<O>(store, owner.called(), owner.number(), writes)?;
    let what = O::WHAT;
    let said = format!("ID {} was assigned to another {what} at the same time; try again", owner.number());
    writes.create(owner, &said)
}

/// Rewrites an owner; a new name must be free at commit, and the former one still belong to this owner.
///
/// # Errors
/// If an object cannot be encoded.
pub fn update<O: Owner>(
    store: &Store,
    before: &O,
    record: &Record<O>,
    gone: &str,
    writes: &mut Writes,
) -> Result<(), StoreError> {
    let is_renamed = names::key(before.called()) != names::key(record.value.called());
    if is_renamed {
        take::<O>(store, record.value.called(), record.value.number(), writes)?;
    }
    hold(store, before, is_renamed, writes)?;
    writes.update(record, gone)
}

/// Deletes an owner together with its name.
///
/// # Errors
/// If the state is corrupt.
pub fn delete<O: Owner>(store: &Store, record: &Record<O>, gone: &str, writes: &mut Writes) -> Result<(), StoreError> {
    hold(store, &record.value, true, writes)?;
    writes.delete(record, gone)
}

/// A name and an owner that are inconsistent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dispute {
    /// A claim whose owner does not have the name, which is blocked.
    Idle {
        /// `user` or `group`.
        what: &'static str,
        /// The claimed name.
        name: String,
        /// Number of the owner recorded in the claim.
        number: i32,
    },
    /// An owner whose name has no claim, or another owner's.
    Unnamed {
        /// `user` or `group`.
        what: &'static str,
        /// Name in the owner's record.
        name: String,
        /// Number of the owner.
        number: i32,
        /// Number of the owner that has the name, if any.
        held_by: Option<i32>,
    },
}

impl std::fmt::Display for Dispute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dispute::Idle { what, name, number } => {
                write!(
                    f,
                    "the {what} name {name:?} is reserved for {what} {number}, which does not exist or has another name"
                )
            }
            Dispute::Unnamed { what, name, number, held_by: None } => {
                write!(f, "{what} {number} is called {name:?}, but the name has no owner")
            }
            Dispute::Unnamed { what, name, number, held_by: Some(other) } => {
                write!(f, "{what} {number} is called {name:?}, but the name belongs to {what} {other}")
            }
        }
    }
}

/// Resolution of a dispute: one transaction, under the condition that nothing has changed since it was read.
#[derive(Clone, Debug)]
pub struct Repair {
    /// The dispute that it resolves.
    pub dispute: Dispute,
    /// Description of the change.
    pub what: String,
    /// Operations of the transaction.
    pub ops: Vec<Op>,
    /// Conditions of the transaction.
    pub conditions: Vec<Condition>,
}

impl Repair {
    /// Returns whether it renames an owner, which an administrator must decide.
    #[must_use]
    pub fn needs_a_decision(&self) -> bool {
        matches!(self.dispute, Dispute::Unnamed { held_by: Some(_), .. })
    }
}

struct Owned {
    name: String,
    value: Bytes,
    version: Seq,
}

#[derive(Default)]
struct Side {
    owners: BTreeMap<i32, Owned>,
    claims: BTreeMap<String, (i32, Seq)>,
}

/// All names and owners of a state.
#[derive(Default)]
pub struct Claims {
    users: Side,
    groups: Side,
}

impl Claims {
    /// Collects the committed names and owners of a store.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn of(store: &Store) -> Result<Claims, StoreError> {
        let mut claims = Claims::default();
        for name in [User::COLLECTION, UserName::COLLECTION, Group::COLLECTION, GroupName::COLLECTION] {
            let collection = Collection::new(name).map_err(|error| StoreError::BadKey(error.to_string()))?;
            for (key, object) in store.replica().scan(&collection, "", None, usize::MAX)? {
                if let Some(version) = object.version {
                    claims.take(&collection, &key, &object.value, version);
                }
            }
        }
        Ok(claims)
    }

    /// Adds an object if it is a name or an owner.
    pub fn take(&mut self, collection: &Collection, key: &Key, value: &Bytes, version: Seq) {
        match collection.as_str() {
            User::COLLECTION => self.users.own::<User>(value, version),
            UserName::COLLECTION => self.users.claim::<UserName>(key, value, version),
            Group::COLLECTION => self.groups.own::<Group>(value, version),
            GroupName::COLLECTION => self.groups.claim::<GroupName>(key, value, version),
            _ => {}
        }
    }

    /// Returns the number of names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.claims.len() + self.groups.claims.len()
    }

    /// Returns whether there are no names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns repairs for all visible disputes; resolving them may reveal others.
    ///
    /// # Errors
    /// If an object cannot be encoded.
    pub fn repairs(&self) -> Result<Vec<Repair>, StoreError> {
        let mut found = self.users.repairs::<User>()?;
        found.extend(self.groups.repairs::<Group>()?);
        Ok(found)
    }
}

fn place(collection: &str, key: &str) -> Result<(Collection, Key), StoreError> {
    let wrong = |error: &dyn std::fmt::Display| StoreError::BadKey(error.to_string());
    Ok((Collection::new(collection).map_err(|error| wrong(&error))?, Key::new(key).map_err(|error| wrong(&error))?))
}

fn at_version(collection: &str, key: &str, version: Seq) -> Result<Condition, StoreError> {
    let (collection, key) = place(collection, key)?;
    Ok(Condition::Version { collection, key, version })
}

fn absent(collection: &str, key: &str) -> Result<Condition, StoreError> {
    let (collection, key) = place(collection, key)?;
    Ok(Condition::Absent { collection, key })
}

impl Side {
    fn own<O: Owner>(&mut self, value: &Bytes, version: Seq) {
        if let Ok(owner) = serde_json::from_slice::<O>(value) {
            let owned = Owned { name: owner.called().to_owned(), value: value.clone(), version };
            self.owners.insert(owner.number(), owned);
        }
    }

    fn claim<C: Claim>(&mut self, key: &Key, value: &Bytes, version: Seq) {
        if let Ok(claim) = serde_json::from_slice::<C>(value) {
            self.claims.insert(key.as_str().to_owned(), (claim.owner(), version));
        }
    }

    fn repairs<O: Owner>(&self) -> Result<Vec<Repair>, StoreError> {
        let mut found = Vec::new();
        for (key, (number, version)) in &self.claims {
            let owner = self.owners.get(number);
            if owner.is_some_and(|owner| bears(&owner.name, key)) {
                continue;
            }
            let (collection, at) = place(O::Claim::COLLECTION, key)?;
            found.push(Repair {
                dispute: Dispute::Idle { what: O::WHAT, name: key.clone(), number: *number },
                what: format!("free the {} name {key}", O::WHAT),
                ops: vec![Op::Delete { collection, key: at }],
                conditions: vec![at_version(O::Claim::COLLECTION, key, *version)?, self.owner_as_read::<O>(*number)?],
            });
        }
        for (number, owner) in &self.owners {
            let keys = names::keys(&owner.name);
            let holds = |key: &String| self.claims.get(key).is_some_and(|(holder, _)| holder == number);
            if !keys.iter().any(holds) {
                found.push(self.named::<O>(*number, owner)?);
            }
        }
        Ok(found)
    }

    /// Requires that an owner is as it was read, or still absent.
    fn owner_as_read<O: Owner>(&self, number: i32) -> Result<Condition, StoreError> {
        match self.owners.get(&number) {
            Some(owner) => at_version(O::COLLECTION, &number.to_string(), owner.version),
            None => absent(O::COLLECTION, &number.to_string()),
        }
    }

    /// Returns the owner that has a name by the claim with this key, and adds the conditions under which that is so.
    fn bearer<O: Owner>(&self, key: &str, conditions: &mut Vec<Condition>) -> Result<Option<i32>, StoreError> {
        let mut bearer = None;
        let mut found = Vec::new();
        match self.claims.get(key) {
            Some((holder, version)) => {
                bearer = self.owners.get(holder).filter(|owner| bears(&owner.name, key)).map(|_| *holder);
                found.push(at_version(O::Claim::COLLECTION, key, *version)?);
                found.push(self.owner_as_read::<O>(*holder)?);
            }
            None => found.push(absent(O::Claim::COLLECTION, key)?),
        }
        found.retain(|condition| !conditions.contains(condition));
        conditions.extend(found);
        Ok(bearer)
    }

    /// Claims the name for its owner. If another owner has it, the owner's number is appended to the name.
    fn named<O: Owner>(&self, number: i32, owner: &Owned) -> Result<Repair, StoreError> {
        let mut conditions = vec![self.owner_as_read::<O>(number)?];
        let mut bearer = None;
        for key in names::keys(&owner.name) {
            let found = self.bearer::<O>(&key, &mut conditions)?;
            bearer = bearer.or(found);
        }
        let name = match bearer {
            Some(_) => format!("{}-{number}", owner.name.chars().take(names::NAME_CHARS_MAX - 12).collect::<String>()),
            None => owner.name.clone(),
        };
        self.bearer::<O>(&O::Claim::of(&name, number).key(), &mut conditions)?;
        let mut writes = Writes::new();
        writes.overwrite(&O::Claim::of(&name, number), "the preconditions of the repair apply")?;
        if bearer.is_some() {
            let as_read = AsRead::Committed(owner.version, History::default());
            let mut record = Record::<O>::read(owner.value.clone(), as_read)?;
            record.value.rename(name.clone());
            writes.overwrite_existing(&record, "", "the preconditions of the repair apply")?;
        }
        Ok(Repair {
            dispute: Dispute::Unnamed { what: O::WHAT, name: owner.name.clone(), number, held_by: bearer },
            what: format!("assign {} {number} the name {name}", O::WHAT),
            ops: writes.into_ops(),
            conditions,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn p08_a_repair_depends_on_everything_it_follows_from() {
        let mut claims = Claims::default();
        let mut take = |collection: &str, key: &str, value: Value, version: u64| {
            let (collection, key) = place(collection, key).expect("a key");
            claims.take(&collection, &key, &value.to_string().into(), Seq(version));
        };
        let user = |uid: i32, name: &str| json!({ "UID": uid, "User": name, "Created": "2026-01-01T00:00:00Z" });
        // The name of user 2 is claimed for user 1, which was renamed, and another name for a user that is gone.
        take("users", "1", user(1, "renamed"), 5);
        take("user-names", "renamed", json!({ "name": "renamed", "uid": 1 }), 5);
        take("user-names", "x", json!({ "name": "x", "uid": 1 }), 3);
        take("user-names", "gone", json!({ "name": "gone", "uid": 9 }), 4);
        take("users", "2", user(2, "X"), 7);
        let version = |collection: &str, key: &str, version| at_version(collection, key, Seq(version)).expect("a key");
        let repairs = claims.repairs().expect("repairs");
        let of = |number: i32| {
            let found = repairs.iter().find(|repair| match &repair.dispute {
                Dispute::Idle { number: of, .. } | Dispute::Unnamed { number: of, .. } => *of == number,
            });
            found.expect("a repair").conditions.clone()
        };
        let owner = version("users", "1", 5);
        assert_eq!(of(1), [version("user-names", "x", 3), owner.clone()]);
        assert_eq!(of(9), [version("user-names", "gone", 4), absent("users", "9").expect("a key")]);
        assert_eq!(of(2), [version("users", "2", 7), version("user-names", "x", 3), owner]);
    }
}
