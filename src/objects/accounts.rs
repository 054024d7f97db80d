//! Changes to several objects of a user or a group. Each is one small transaction that takes effect at once; rows that
//! do not fit are deleted afterwards ([`super::cleanup`]).

use super::capabilities::Holder;
use super::cleanup::{self, Cleaning, Of, SLICE};
use super::groups::Group;
use super::ids;
use super::kinds::{KINDS, Owner};
use super::passwords::Password;
use super::record::{AsRead, Stored};
use super::sessions::{self, End, Epoch, Session};
use super::users::{self, Admin, Lock, Membership, User};
use super::{Record, Store, StoreError, Timestamp, Writes, claims, second_factors};

/// Message if a change conflicts with the deletion of its user.
pub const USER_GONE: &str = "the user was deleted";
/// Message if a change conflicts with the deletion of its group.
pub const GROUP_GONE: &str = "the group was deleted";
/// Message if rights are granted on the basis of outdated rights.
const RIGHTS_CHANGED: &str = "the rights of the user were changed in the meantime; reload them and try again";
/// Reason for revoking a right unconditionally.
const TAKEN_AWAY: &str = "revoking a right does not depend on who granted it, or when";
/// Reason for writing or deleting a user's objects unconditionally: the condition on the user decides.
const WITH_THE_USER: &str = "it belongs to the user";
/// The same reason for a group.
const WITH_THE_GROUP: &str = "it belongs to the group";
/// Maximum number of candidates when looking for a number without leftover objects.
const NUMBERS_TRIED: usize = 100;

/// Returns a number for a new user or group (`of`) without leftover objects of an earlier one.
///
/// # Errors
/// If random bytes are unavailable, or the state is corrupt.
pub fn new_number(store: &Store, of: Of) -> Result<i32, StoreError> {
    for _ in 0..NUMBERS_TRIED {
        let number = ids::draw()?;
        if !cleanup::is_anything_left(store, of, number)? {
            return Ok(number);
        }
    }
    Err(StoreError::Io(std::io::Error::other("no unused number was found; try again")))
}

/// Creates a user; the name must be free at commit.
///
/// # Errors
/// If an object cannot be encoded.
pub fn create_user(
    store: &Store,
    user: &User,
    password_hash: String,
    admin: bool,
    must_change: bool,
) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    claims::create(store, user, &mut writes)?;
    let left = cleanup::key(Of::User, user.uid);
    writes.require_absent::<Cleaning>(&left, "an earlier user with this ID is still being deleted; try again")?;
    let changed = Timestamp::now();
    let password = Password { uid: user.uid, hash: password_hash, changed, must_change };
    writes.overwrite(&password, WITH_THE_USER)?;
    if admin {
        writes.overwrite(&Admin { uid: user.uid, since: changed }, WITH_THE_USER)?;
    }
    Ok(writes)
}

/// Changes a user; a new name must be free at commit, and the former name must be unchanged.
///
/// # Errors
/// If an object cannot be encoded.
pub fn update_user(store: &Store, before: &User, record: &Record<User>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    claims::update(store, before, record, USER_GONE, &mut writes)?;
    Ok(writes)
}

/// Grants or revokes administrator rights. UID 1 always keeps them. Revoking requires nothing, not even the user.
///
/// # Errors
/// If an object cannot be encoded.
pub fn set_admin(store: &Store, writes: &mut Writes, uid: i32, admin: bool) -> Result<(), StoreError> {
    let key = uid.to_string();
    if admin || uid == users::FIRST {
        writes.require::<User>(&key, USER_GONE)?;
        // Fails if the rights were revoked in the meantime.
        return writes.grant(store, &Admin { uid, since: Timestamp::now() }, RIGHTS_CHANGED);
    }
    writes.delete_unconditionally::<Admin>(&key, TAKEN_AWAY)
}

/// Locks an account, or unlocks it. No session of a locked account is accepted. Unlocking ends all sessions, so that those
/// from before the lock stay invalid.
///
/// The lock is an object that nothing else writes, in a transaction that writes nothing else and requires nothing, not even
/// the user: if the log loses it, it is pushed again whatever was done since. If the user was deleted at the same time, the
/// lock stays and has no effect, because no user or group gets the number.
///
/// # Errors
/// If the state is corrupt.
pub fn set_lock(store: &Store, uid: i32, locked: bool) -> Result<Writes, StoreError> {
    let key = uid.to_string();
    let mut writes = if locked { Writes::new() } else { end_sessions(store, uid, None)? };
    if locked {
        writes.overwrite(&Lock { uid, since: Timestamp::now() }, TAKEN_AWAY)?;
    } else {
        writes.require::<User>(&key, USER_GONE)?;
        // Removes only the lock that this webserver knows.
        writes.require_as_read::<Lock>(&key, store.seen::<Lock>(&key)?, RIGHTS_CHANGED)?;
        writes.delete_unconditionally::<Lock>(&key, "the condition names the lock")?;
    }
    Ok(writes)
}

/// Deletes a user and everything that belongs to the user alone, as the table of kinds states. Objects that may have been
/// transferred or shared in the meantime are left to a [`Cleaning`].
///
/// # Errors
/// If the state is corrupt.
pub fn delete_user(store: &Store, record: &Record<User>) -> Result<Writes, StoreError> {
    let uid = record.value.uid;
    let key = record.value.key();
    let rows = cleanup::of_user(store, uid, SLICE)?;
    let is_all_rows = rows.count() < SLICE;
    let is_all = is_all_rows && !cleanup::has_private(store, uid)?;
    let mut writes = if is_all_rows { rows.into_writes() } else { Writes::new() };
    claims::delete(store, record, "the user is already deleted", &mut writes)?;
    for kind in KINDS {
        match kind.owner {
            Owner::Uid => writes.delete_unconditionally_at(kind.collection, &key, WITH_THE_USER)?,
            Owner::Holder => {
                writes.delete_unconditionally_at(kind.collection, &Holder::User(uid).key(), WITH_THE_USER)?;
            }
            Owner::Nobody | Owner::Rows | Owner::Private | Owner::Kept => {}
        }
    }
    for work in cleanup::of_user_history(store, uid)? {
        writes.delete_unconditionally::<Cleaning>(&work.value.key(), WITH_THE_USER)?;
    }
    if !is_all {
        writes.overwrite(&Cleaning::new(store, Of::User, uid, String::new()), WITH_THE_USER)?;
    }
    Ok(writes)
}

/// Ends all sessions of a user except `kept`, at once. The first of them are deleted in the same transaction, for
/// webservers that do not know epochs; the rest is deleted later. Nothing is required of the user: the end of a deleted
/// user's sessions has no effect.
///
/// Without `kept`, the sessions end whatever was committed in the meantime. A kept session needs a new epoch, which is
/// committed only upon the present one: otherwise it would stay valid although the sessions were ended.
///
/// # Errors
/// If the state is corrupt.
pub fn end_sessions(store: &Store, uid: i32, kept: Option<&Record<Session>>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    delete_sessions(store, uid, kept, &mut writes)?;
    let Some(mut kept) = kept.cloned() else {
        End::now(uid, &mut writes)?;
        return Ok(writes);
    };
    kept.value.epoch = Epoch::start(store, uid, &mut writes)?;
    writes.overwrite_existing(&kept, "the session was ended", sessions::ONLY_TIMES)?;
    Ok(writes)
}

/// Ends all sessions of a user for a new one that starts in the same transaction. Returns the epoch of the new one.
///
/// # Errors
/// If the state is corrupt.
pub fn end_sessions_for_new(store: &Store, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
    delete_sessions(store, uid, None, writes)?;
    Epoch::start(store, uid, writes)
}

/// Deletes the first sessions of a user except `kept`.
fn delete_sessions(
    store: &Store,
    uid: i32,
    kept: Option<&Record<Session>>,
    writes: &mut Writes,
) -> Result<(), StoreError> {
    let kept = kept.map(|kept| kept.value.key());
    for key in store.some_keys::<Session>(&format!("{uid}/"), SLICE)? {
        if kept.as_ref() != Some(&key) {
            writes.delete_unconditionally::<Session>(&key, sessions::ENDED)?;
        }
    }
    Ok(())
}

/// Removes the second factor of a user that was found, and ends the sessions that it opened. Removing one gives access to
/// those who know only the password, so it takes effect only upon that factor: one that was set up later stays. The
/// sessions alone are ended with [`end_sessions`], which always takes effect.
///
/// # Errors
/// If the state is corrupt.
pub fn clear_second_factor(store: &Store, uid: i32, found: AsRead) -> Result<Writes, StoreError> {
    let mut writes = end_sessions(store, uid, None)?;
    writes.require::<User>(&uid.to_string(), USER_GONE)?;
    second_factors::clear(uid, found, &mut writes)?;
    Ok(writes)
}

/// Creates a group; the name must be free at commit.
///
/// # Errors
/// If an object cannot be encoded.
pub fn create_group(store: &Store, group: &Group) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    claims::create(store, group, &mut writes)?;
    let left = cleanup::key(Of::Group, group.gid);
    writes.require_absent::<Cleaning>(&left, "an earlier group with this ID is still being deleted; try again")?;
    Ok(writes)
}

/// Changes a group; a new name must be free at commit, and the former name must be unchanged.
///
/// # Errors
/// If an object cannot be encoded.
pub fn update_group(store: &Store, before: &Group, record: &Record<Group>) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    claims::update(store, before, record, GROUP_GONE, &mut writes)?;
    Ok(writes)
}

/// Deletes a group and its memberships. Objects shared with it keep its number, which is never reused.
///
/// # Errors
/// If the state is corrupt.
pub fn delete_group(store: &Store, record: &Record<Group>) -> Result<Writes, StoreError> {
    let gid = record.value.gid;
    let rows = cleanup::of_group(store, gid, SLICE)?;
    let is_all = rows.count() < SLICE;
    let mut writes = if is_all { rows.into_writes() } else { Writes::new() };
    claims::delete(store, record, "the group is already deleted", &mut writes)?;
    for kind in KINDS.iter().filter(|kind| kind.owner == Owner::Holder) {
        writes.delete_unconditionally_at(kind.collection, &Holder::Group(gid).key(), WITH_THE_GROUP)?;
    }
    if !is_all {
        writes.overwrite(&Cleaning::new(store, Of::Group, gid, String::new()), WITH_THE_GROUP)?;
    }
    Ok(writes)
}

/// Adds a user to groups. A membership that exists is left as it is, and one that was removed in the meantime does not
/// return.
///
/// # Errors
/// If an object cannot be encoded, or the state is corrupt.
pub fn join_groups(store: &Store, uid: i32, groups: &[i32]) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    for gid in groups {
        let membership = Membership { uid, gid: *gid };
        if store.synced::<Membership>(&membership.key())? == Some(true) {
            continue;
        }
        writes.require::<Group>(&gid.to_string(), &format!("there is no group {gid}"))?;
        writes.grant(store, &membership, RIGHTS_CHANGED)?;
    }
    if !writes.is_empty() {
        writes.require::<User>(&uid.to_string(), USER_GONE)?;
    }
    Ok(writes)
}
