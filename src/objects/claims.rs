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
use crate::model::{Collection, Condition, Key, Op, Seq};
use crate::replica::History;

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
/// # Errors
/// If the state is corrupt.
pub fn take<O: Owner>(store: &Store, name: &str, number: i32, writes: &mut Writes) -> Result<(), StoreError> {
    let said = taken::<O>(name);
    let claim = O::Claim::of(name, number);
    let key = claim.key();
    match store.valid::<O::Claim>(&key)? {
        // No owner has the name: the stale claim is replaced, provided that it is unchanged.
        Some(found) if found.value.owner() != number && !is_borne::<O>(store, &found)? && found.version.is_some() => {
            writes.replace(Some(found.as_read), &claim, &said)?;
        }
        Some(found) if found.value.owner() == number => {
            writes.replace(Some(found.as_read), &claim, &said)?;
        }
        _ => writes.create(&claim, &said)?,
    }
    for earlier in names::keys(name).into_iter().filter(|earlier| *earlier != key) {
        if store.valid::<O::Claim>(&earlier)?.is_none() {
            writes.require_absent::<O::Claim>(&earlier, &said)?;
        }
    }
    Ok(())
}

/// Requires that an owner still has its name and, if it gives the name up, deletes the claims.
fn hold<O: Owner>(store: &Store, owner: &O, is_given_up: bool, writes: &mut Writes) -> Result<(), StoreError> {
    let said = moved::<O>(owner.called());
    for key in names::keys(owner.called()) {
        let Some(claim) = store.valid::<O::Claim>(&key)? else { continue };
        if claim.value.owner() != owner.number() {
            continue;
        }
        writes.require::<O::Claim>(&key, &said)?;
        writes.unchanged(&claim, &said)?;
        if is_given_up {
            writes.delete(&claim, &said)?;
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
            let (of, owner_key) = (O::COLLECTION, number.to_string());
            let unchanged = match owner {
                Some(owner) => at_version(of, &owner_key, owner.version)?,
                None => absent(of, &owner_key)?,
            };
            found.push(Repair {
                dispute: Dispute::Idle { what: O::WHAT, name: key.clone(), number: *number },
                what: format!("free the {} name {key}", O::WHAT),
                ops: vec![Op::Delete { collection, key: at }],
                conditions: vec![at_version(O::Claim::COLLECTION, key, *version)?, unchanged],
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

    /// Claims the name for its owner. If another owner has it, the owner's number is appended to the name.
    fn named<O: Owner>(&self, number: i32, owner: &Owned) -> Result<Repair, StoreError> {
        let bearer = names::keys(&owner.name).iter().find_map(|key| {
            let (holder, _) = self.claims.get(key)?;
            self.owners.get(holder).filter(|other| bears(&other.name, key)).map(|_| *holder)
        });
        let name = match bearer {
            Some(_) => format!("{}-{number}", owner.name.chars().take(names::NAME_CHARS_MAX - 12).collect::<String>()),
            None => owner.name.clone(),
        };
        let key = O::Claim::of(&name, number).key();
        let free = match self.claims.get(&key) {
            Some((_, version)) => at_version(O::Claim::COLLECTION, &key, *version)?,
            None => absent(O::Claim::COLLECTION, &key)?,
        };
        let conditions = vec![free, at_version(O::COLLECTION, &number.to_string(), owner.version)?];
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
