//! What changes several objects of a user or a group together.

use serde::Serialize;

use super::capabilities::{Grants, Holder, TagGrants};
use super::groups::{Group, GroupName};
use super::history::Entry;
use super::passwords::Password;
use super::preferences::Preference;
use super::record::Stored;
use super::searches::Search;
use super::sessions::Session;
use super::tokens::Token;
use super::users::{self, Admin, Lock, Membership, User, UserName};
use super::{Moment, Record, Store, StoreError, Writes};

/// Said when a change meets the deletion of its user.
pub const USER_GONE: &str = "the user was deleted";
/// Said when a change meets the deletion of its group.
pub const GROUP_GONE: &str = "the group was deleted";

fn name_taken(kind: &str, name: &str) -> String {
    format!("there is already a {kind} called {name}")
}

/// Creates a user; the name must be free at commit.
///
/// # Errors
/// When an object cannot be written.
pub fn create_user(user: &User, password_hash: String, admin: bool, must_change: bool) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.create(&UserName::of(&user.user, user.uid), &name_taken("user", &user.user))?;
    writes.create(user, &format!("the number {} was given to another user at the same time: try again", user.uid))?;
    let changed = Moment::now();
    writes.set(&Password { uid: user.uid, hash: password_hash, changed, must_change })?;
    if admin {
        writes.set(&Admin { uid: user.uid, since: changed })?;
    }
    Ok(writes)
}

/// Changes a user; a new name must be free at commit.
///
/// # Errors
/// When an object cannot be written.
pub fn update_user(before: &User, record: &Record<User>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    let user = &record.value;
    let (old, new) = (UserName::of(&before.user, before.uid), UserName::of(&user.user, user.uid));
    if old.name != new.name {
        writes.create(&new, &name_taken("user", &user.user))?;
        writes.delete::<UserName>(&old.key())?;
    }
    writes.update(record, USER_GONE)?;
    Ok(writes)
}

/// Makes a user an administrator, or no longer one. UID 1 stays one.
///
/// # Errors
/// When an object cannot be written.
pub fn set_admin(writes: &mut Writes, uid: i32, admin: bool) -> Result<(), StoreError> {
    set_flag(writes, uid, &Admin { uid, since: Moment::now() }, admin || uid == users::FIRST)
}

/// Locks an account, which ends its sessions, or unlocks it.
///
/// # Errors
/// When the state is damaged.
pub fn set_lock(store: &Store, uid: i32, locked: bool) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    set_flag(&mut writes, uid, &Lock { uid, since: Moment::now() }, locked)?;
    if locked {
        delete_all::<Session>(store, uid, &mut writes)?;
    }
    Ok(writes)
}

fn set_flag<T: Stored + Serialize>(writes: &mut Writes, uid: i32, flag: &T, is_set: bool) -> Result<(), StoreError> {
    writes.require::<User>(&uid.to_string(), USER_GONE)?;
    if is_set { writes.set(flag) } else { writes.delete::<T>(&flag.key()) }
}

fn delete_all<T: Stored>(store: &Store, uid: i32, writes: &mut Writes) -> Result<(), StoreError> {
    for key in store.keys::<T>(&format!("{uid}/"))? {
        writes.delete::<T>(&key)?;
    }
    Ok(())
}

/// Deletes a user with everything that belongs to nobody else. Dashboards and resources stay: others may use them, and
/// administrators can give them away.
///
/// # Errors
/// When the state is damaged.
pub fn delete_user(store: &Store, user: &User) -> Result<Writes, StoreError> {
    let (uid, key) = (user.uid, user.key());
    let mut writes = Writes::new();
    writes.require::<User>(&key, "the user was deleted already")?;
    writes.delete::<User>(&key)?;
    writes.delete::<UserName>(&UserName::of(&user.user, uid).key())?;
    writes.delete::<Admin>(&key)?;
    writes.delete::<Lock>(&key)?;
    writes.delete::<Password>(&key)?;
    writes.delete::<Grants>(&Holder::User(uid).key())?;
    writes.delete::<TagGrants>(&Holder::User(uid).key())?;
    delete_all::<Membership>(store, uid, &mut writes)?;
    delete_all::<Preference>(store, uid, &mut writes)?;
    delete_all::<Session>(store, uid, &mut writes)?;
    delete_all::<Token>(store, uid, &mut writes)?;
    delete_all::<Entry>(store, uid, &mut writes)?;
    for search in store.list::<Search>("")?.into_iter().map(|record| record.value) {
        if search.uid == uid && !search.global && search.gids.is_empty() {
            writes.delete::<Search>(&search.id)?;
        }
    }
    Ok(writes)
}

/// Ends sessions of a user, all but `kept`.
///
/// # Errors
/// When the state is damaged.
pub fn end_sessions(store: &Store, uid: i32, kept: Option<&str>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    let kept = kept.map(|id| format!("{uid}/{id}"));
    for key in store.keys::<Session>(&format!("{uid}/"))? {
        if kept.as_ref() != Some(&key) {
            writes.delete::<Session>(&key)?;
        }
    }
    Ok(writes)
}

/// Creates a group; the name must be free at commit.
///
/// # Errors
/// When an object cannot be written.
pub fn create_group(group: &Group) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.create(&GroupName::of(&group.name, group.gid), &name_taken("group", &group.name))?;
    writes
        .create(group, &format!("the number {} was given to another group at the same time: try again", group.gid))?;
    Ok(writes)
}

/// Changes a group; a new name must be free at commit.
///
/// # Errors
/// When an object cannot be written.
pub fn update_group(before: &Group, record: &Record<Group>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    let group = &record.value;
    let (old, new) = (GroupName::of(&before.name, before.gid), GroupName::of(&group.name, group.gid));
    if old.name != new.name {
        writes.create(&new, &name_taken("group", &group.name))?;
        writes.delete::<GroupName>(&old.key())?;
    }
    writes.update(record, GROUP_GONE)?;
    Ok(writes)
}

/// Deletes a group and its memberships. What was shared with it keeps the number, which is never used again.
///
/// # Errors
/// When the state is damaged.
pub fn delete_group(store: &Store, group: &Group) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.require::<Group>(&group.key(), "the group was deleted already")?;
    writes.delete::<Group>(&group.key())?;
    writes.delete::<GroupName>(&GroupName::of(&group.name, group.gid).key())?;
    writes.delete::<Grants>(&Holder::Group(group.gid).key())?;
    writes.delete::<TagGrants>(&Holder::Group(group.gid).key())?;
    for uid in users::members_of(store, group.gid)? {
        writes.delete::<Membership>(&Membership { uid, gid: group.gid }.key())?;
    }
    Ok(writes)
}

/// Adds a user to groups.
///
/// # Errors
/// When an object cannot be written.
pub fn join_groups(uid: i32, groups: &[i32]) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    writes.require::<User>(&uid.to_string(), USER_GONE)?;
    for gid in groups {
        writes.require::<Group>(&gid.to_string(), &format!("there is no group {gid}"))?;
        writes.set(&Membership { uid, gid: *gid })?;
    }
    Ok(writes)
}
