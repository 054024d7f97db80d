//! Dashboards. Their contents belong to the user interface and are stored unchanged.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::record::Stored;
use super::sessions::random;
use super::sharing::{Principal, ShareScope, Shareable, null_is_empty};
use super::{Record, Store, StoreError, Timestamp};

/// A dashboard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dashboard {
    /// Random number below 2^53, so that every client can represent it and webservers without a connection to each
    /// other do not choose the same one.
    #[serde(rename = "ID")]
    pub id: u64,
    /// Title of the dashboard.
    pub name: String,
    /// UID of the owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// GIDs of groups that may read it.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether all users may read it.
    #[serde(default)]
    pub global: bool,
    /// Users who may change it, besides the owner.
    #[serde(default)]
    pub write_access: ShareScope,
    /// Description by its owner.
    #[serde(default)]
    pub description: String,
    /// Time of its creation.
    pub created: Timestamp,
    /// Time of its last change.
    pub updated: Timestamp,
    /// Contents: a JSON object.
    pub data: Box<RawValue>,
    /// Labels for searching and grouping.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: Vec<String>,
    /// Id that survives export and import; several dashboards may share one.
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

impl Shareable for Dashboard {
    fn owner(&self) -> i32 {
        self.uid
    }
    fn readers(&self) -> ShareScope {
        ShareScope { global: self.global, groups: self.gids.clone() }
    }
    fn writers(&self) -> ShareScope {
        self.write_access.clone()
    }
}

/// Sort key of a dashboard's closeness to a person. Of equally close ones, the older is first: any user may choose a
/// GUID that already exists.
type Closeness = (u8, Timestamp, u64);

impl Dashboard {
    /// Returns the closeness that selects among several dashboards with one GUID.
    fn closeness(&self, person: &Principal) -> Closeness {
        (self.distance(person), self.created, self.id)
    }
}

/// Returns a number for a new dashboard, from 2^32 to 2^53 - 1.
///
/// # Errors
/// If random bytes are unavailable.
pub fn new_id() -> std::io::Result<u64> {
    let random = u64::from_le_bytes(random::<8>()?) >> 11;
    Ok(random.max(1 << 32))
}

/// Returns whether a dashboard's id is a number, so that it is found without reading the others.
#[must_use]
pub fn is_number(id: &str) -> bool {
    id.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the dashboard with this number, or the closest one with this GUID, whether or not the person may read it.
///
/// # Errors
/// If the state is corrupt.
pub fn find(store: &Store, id: &str, person: &Principal) -> Result<Option<Record<Dashboard>>, StoreError> {
    if is_number(id) {
        return store.get(id);
    }
    let Ok(guid) = uuid::Uuid::parse_str(id) else { return Ok(None) };
    let guid = guid.to_string();
    let mut found: Option<Record<Dashboard>> = None;
    store.each::<Dashboard>("", |record| {
        let precedes = |found: &Record<Dashboard>| record.value.closeness(person) < found.value.closeness(person);
        if record.value.guid == guid && found.as_ref().is_none_or(precedes) {
            found = Some(record);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Returns whether a dashboard of another user has this GUID.
///
/// # Errors
/// If the state is corrupt.
pub fn is_guid_of_others(store: &Store, guid: uuid::Uuid, uid: i32) -> Result<bool, StoreError> {
    let guid = guid.to_string();
    Ok(store.first::<Dashboard>("", |dashboard| dashboard.guid == guid && dashboard.uid != uid)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_a_guid_means_the_nearest_dashboard_and_of_equals_the_oldest() {
        let dashboard = |id: u64, uid: i32, created_ms: u64, groups: &[i32], global: bool| Dashboard {
            id,
            name: String::new(),
            uid,
            gids: groups.to_vec(),
            global,
            write_access: ShareScope::default(),
            description: String::new(),
            created: Timestamp::from_ms(created_ms),
            updated: Timestamp::from_ms(created_ms),
            data: RawValue::from_string("{}".into()).expect("JSON"),
            labels: Vec::new(),
            guid: String::new(),
            trivial: false,
        };
        let mut all = [
            dashboard(1, 66, 10, &[], false),
            dashboard(2, 66, 10, &[], true),
            dashboard(3, 66, 30, &[3], false),
            dashboard(4, 66, 20, &[3], false),
            dashboard(5, 7, 40, &[], false),
        ];
        let order = |all: &mut [Dashboard], uid: i32, admin: bool, groups: &[i32]| {
            let person = Principal { uid, admin, groups: groups.to_vec() };
            all.sort_by_key(|dashboard| dashboard.closeness(&person));
            all.iter().map(|dashboard| dashboard.id).collect::<Vec<_>>()
        };
        assert_eq!(order(&mut all, 7, false, &[3]), [5, 4, 3, 2, 1]);
        // Administrator rights do not affect closeness.
        assert_eq!(order(&mut all, 7, true, &[3]), [5, 4, 3, 2, 1]);
        assert_eq!(order(&mut all, 8, true, &[])[0], 2);
    }

    #[test]
    fn numbers_can_be_read_by_every_client() {
        for _ in 0..1000 {
            let id = new_id().expect("number");
            assert!((1 << 32..1 << 53).contains(&id), "{id}");
        }
    }
}
