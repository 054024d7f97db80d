//! Groups of users.

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::{Store, StoreError};

/// A group of users.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Group {
    /// Number of the group; never reused after the group is deleted.
    #[serde(rename = "GID")]
    pub gid: i32,
    /// Name; unique, ignoring case.
    pub name: String,
    /// Description for users.
    #[serde(default)]
    pub desc: String,
}

impl Stored for Group {
    const COLLECTION: &'static str = "groups";
    fn key(&self) -> String {
        self.gid.to_string()
    }
}

/// Claim that makes a group's name unique.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupName {
    /// Name in its lookup form.
    pub name: String,
    /// GID of the owner.
    pub gid: i32,
}

impl GroupName {
    /// Creates the claim of a name.
    #[must_use]
    pub fn of(name: &str, gid: i32) -> GroupName {
        GroupName { name: super::names::key(name), gid }
    }
}

impl Stored for GroupName {
    const COLLECTION: &'static str = "group-names";
    fn key(&self) -> String {
        self.name.clone()
    }
}

/// Returns the GID of the group with this name.
///
/// # Errors
/// If the state is corrupt.
pub fn by_name(store: &Store, name: &str) -> Result<Option<i32>, StoreError> {
    super::claims::find::<Group>(store, name)
}
