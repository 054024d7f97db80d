//! Users, and the objects that record administrators, locked accounts and group memberships.

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::{Store, StoreError, Timestamp};

/// UID of the first administrator, who can be neither locked, deleted nor demoted.
pub const FIRST: i32 = 1;

/// A user account.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct User {
    /// Unique number of the user.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Login name; unique, ignoring case.
    pub user: String,
    /// Display name.
    #[serde(default)]
    pub name: String,
    /// Email address.
    #[serde(default)]
    pub email: String,
    /// GID of the group to which searches belong by default.
    #[serde(rename = "DefaultGID", default)]
    pub default_gid: Option<i32>,
    /// Time of the account's creation.
    #[serde(default)]
    pub created: Timestamp,
}

impl Stored for User {
    const COLLECTION: &'static str = "users";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Claim that makes a user's name unique.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserName {
    /// Name in its lookup form.
    pub name: String,
    /// UID of the owner.
    pub uid: i32,
}

impl UserName {
    /// Creates the claim of a name.
    #[must_use]
    pub fn of(name: &str, uid: i32) -> UserName {
        UserName { name: super::names::key(name), uid }
    }
}

impl Stored for UserName {
    const COLLECTION: &'static str = "user-names";
    fn key(&self) -> String {
        self.name.clone()
    }
}

/// Exists while a user is an administrator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Admin {
    /// UID of the administrator.
    pub uid: i32,
    /// Time at which the rights were granted.
    pub since: Timestamp,
}

impl Stored for Admin {
    const COLLECTION: &'static str = "admins";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Exists while an account is locked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// UID of the locked user.
    pub uid: i32,
    /// Time at which the account was locked.
    pub since: Timestamp,
}

impl Stored for Lock {
    const COLLECTION: &'static str = "locks";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Exists while a user is a member of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// UID of the member.
    pub uid: i32,
    /// GID of the group.
    pub gid: i32,
}

impl Stored for Membership {
    const COLLECTION: &'static str = "memberships";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.gid)
    }
}

/// Returns the UID of the user with this name.
///
/// # Errors
/// If the state is corrupt.
pub fn by_name(store: &Store, name: &str) -> Result<Option<i32>, StoreError> {
    super::claims::find::<User>(store, name)
}

/// Returns the GIDs of a user's groups, sorted; groups that no longer exist are left out.
///
/// # Errors
/// If the state is corrupt.
pub fn groups_of(store: &Store, uid: i32) -> Result<Vec<i32>, StoreError> {
    let memberships = store.list::<Membership>(&format!("{uid}/"))?;
    let mut groups = Vec::with_capacity(memberships.len());
    for membership in memberships {
        if store.has::<super::groups::Group>(&membership.value.gid.to_string())? {
            groups.push(membership.value.gid);
        }
    }
    groups.sort_unstable();
    Ok(groups)
}

/// Returns the UIDs of a group's members, sorted.
///
/// # Errors
/// If the state is corrupt.
pub fn members_of(store: &Store, gid: i32) -> Result<Vec<i32>, StoreError> {
    let all = store.list::<Membership>("")?;
    let mut members: Vec<i32> =
        all.into_iter().map(|row| row.value).filter(|row| row.gid == gid).map(|row| row.uid).collect();
    members.sort_unstable();
    Ok(members)
}
