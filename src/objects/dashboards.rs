//! Dashboards: their contents are the interface's business, kept as they came.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::Stored;
use super::sessions::random;
use super::sharing::{Audience, Shared, null_is_empty};
use super::{Moment, Record, Store, StoreError};

/// A dashboard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dashboard {
    /// Number: random, below 2^53, so that every client can read it and webservers that cannot see each other do not
    /// choose the same one.
    #[serde(rename = "ID")]
    pub id: u64,
    /// Name.
    pub name: String,
    /// Owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Groups that may read it.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether everybody may read it.
    #[serde(default)]
    pub global: bool,
    /// Who may change it.
    #[serde(default)]
    pub write_access: Audience,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// When it was made.
    pub created: Moment,
    /// When it was last changed.
    pub updated: Moment,
    /// Contents: an object.
    pub data: Box<RawValue>,
    /// Labels.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: Vec<String>,
    /// Name that survives export and import; several dashboards may share one.
    #[serde(rename = "GUID", default)]
    pub guid: String,
    /// Whether the last change was marked as trivial.
    #[serde(default)]
    pub trivial: bool,
}

impl Stored for Dashboard {
    const COLLECTION: &'static str = "dashboards";
    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Shared for Dashboard {
    fn owner(&self) -> i32 {
        self.uid
    }
    fn readers(&self) -> Audience {
        Audience { global: self.global, groups: self.gids.clone() }
    }
    fn writers(&self) -> Audience {
        self.write_access.clone()
    }
}

/// A number for a new dashboard, from 2^32 to 2^53 - 1.
///
/// # Errors
/// When there is no randomness.
pub fn new_id() -> std::io::Result<u64> {
    let random = u64::from_le_bytes(random::<8>()?) >> 11;
    Ok(random.max(1 << 32))
}

/// The dashboard with this number, or, among those of this GUID, the first that `wanted` accepts.
///
/// # Errors
/// When the state is damaged.
pub fn find(
    store: &Store,
    id: &str,
    wanted: impl Fn(&Dashboard) -> bool,
) -> Result<Option<Record<Dashboard>>, StoreError> {
    if id.bytes().all(|byte| byte.is_ascii_digit()) {
        return store.get(id);
    }
    let Ok(guid) = uuid::Uuid::parse_str(id) else { return Ok(None) };
    let guid = guid.to_string();
    if let Some(record) = store.first::<Dashboard>("", |dashboard| dashboard.guid == guid && wanted(dashboard))? {
        return Ok(Some(record));
    }
    store.first::<Dashboard>("", |dashboard| dashboard.guid == guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read_by_every_client() {
        for _ in 0..1000 {
            let id = new_id().expect("number");
            assert!((1 << 32..1 << 53).contains(&id), "{id}");
        }
    }
}
