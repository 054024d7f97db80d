//! Users, and what makes somebody an administrator, locked, or a member of a group.

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::{Moment, Store, StoreError};

/// Number of the first administrator, who can be neither locked, deleted nor demoted.
pub const FIRST: i32 = 1;

/// A user.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct User {
    /// Number.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Name to log in with; unique without regard to case.
    pub user: String,
    /// Name for people.
    #[serde(default)]
    pub name: String,
    /// Address.
    #[serde(default)]
    pub email: String,
    /// Group to which searches belong unless told otherwise.
    #[serde(rename = "DefaultGID", default)]
    pub default_gid: Option<i32>,
    /// When the account was made.
    #[serde(default)]
    pub created: Moment,
}

impl Stored for User {
    const COLLECTION: &'static str = "users";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Makes a user's name unique.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserName {
    /// As it is looked up.
    pub name: String,
    /// Whose.
    pub uid: i32,
}

impl UserName {
    /// The claim of a name.
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
    /// Who.
    pub uid: i32,
    /// Since when.
    pub since: Moment,
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
    /// Whose.
    pub uid: i32,
    /// Since when.
    pub since: Moment,
}

impl Stored for Lock {
    const COLLECTION: &'static str = "locks";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Exists while a user is in a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Membership {
    /// Who.
    pub uid: i32,
    /// In which group.
    pub gid: i32,
}

impl Stored for Membership {
    const COLLECTION: &'static str = "memberships";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.gid)
    }
}

/// The user who bears this name.
///
/// # Errors
/// When the state is damaged.
pub fn by_name(store: &Store, name: &str) -> Result<Option<i32>, StoreError> {
    super::claims::find::<User>(store, name)
}

/// Groups of a user, in the order of their keys; those that no longer exist are left out.
///
/// # Errors
/// When the state is damaged.
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

/// Members of a group, by number.
///
/// # Errors
/// When the state is damaged.
pub fn members_of(store: &Store, gid: i32) -> Result<Vec<i32>, StoreError> {
    let all = store.list::<Membership>("")?;
    let mut members: Vec<i32> =
        all.into_iter().map(|row| row.value).filter(|row| row.gid == gid).map(|row| row.uid).collect();
    members.sort_unstable();
    Ok(members)
}
