//! Groups of users.

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::{Store, StoreError};

/// A group.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Group {
    /// Number; never used again after the group is deleted.
    #[serde(rename = "GID")]
    pub gid: i32,
    /// Name; unique without regard to case.
    pub name: String,
    /// Description.
    #[serde(default)]
    pub desc: String,
}

impl Stored for Group {
    const COLLECTION: &'static str = "groups";
    fn key(&self) -> String {
        self.gid.to_string()
    }
}

/// Makes a group's name unique.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupName {
    /// As it is looked up.
    pub name: String,
    /// Whose.
    pub gid: i32,
}

impl GroupName {
    /// The claim of a name.
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

/// The group that bears this name.
///
/// # Errors
/// When the state is damaged.
pub fn by_name(store: &Store, name: &str) -> Result<Option<i32>, StoreError> {
    super::claims::find::<Group>(store, name)
}
