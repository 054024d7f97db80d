//! Resources: files used by searches, found by name. Their contents are stored as blobs, see [`super::blobs`].

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::sharing::{Principal, ShareScope, Shareable, null_is_empty};
use super::{Record, Store, StoreError, Timestamp, groups, users};

/// Metadata of a resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Resource {
    /// UID of the owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Unique id of the resource.
    #[serde(rename = "GUID")]
    pub guid: uuid::Uuid,
    /// Namespace of the resource.
    #[serde(default)]
    pub domain: i16,
    /// Time at which contents or metadata were last changed.
    pub last_modified: Timestamp,
    /// Incremented whenever the contents change.
    #[serde(default)]
    pub version_number: i64,
    /// GIDs of groups that may read it.
    #[serde(rename = "GroupACL", default, deserialize_with = "null_is_empty")]
    pub group_acl: Vec<i32>,
    /// Whether all users may read it.
    #[serde(default)]
    pub global: bool,
    /// Name for users and searches; not unique.
    pub resource_name: String,
    /// Description by its owner.
    #[serde(default)]
    pub description: String,
    /// Size of the contents in bytes.
    #[serde(default)]
    pub size: u64,
    /// MD5 of the contents in base64; empty if there are none.
    #[serde(default)]
    pub hash: String,
    /// Labels for searching and grouping.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: Vec<String>,
    /// Blob with the contents; empty if there are none.
    #[serde(default)]
    pub content: String,
}

impl Stored for Resource {
    const COLLECTION: &'static str = "resources";
    fn key(&self) -> String {
        self.guid.to_string()
    }
}

impl Shareable for Resource {
    fn owner(&self) -> i32 {
        self.uid
    }
    fn readers(&self) -> ShareScope {
        ShareScope { global: self.global, groups: self.group_acl.clone() }
    }
    fn writers(&self) -> ShareScope {
        ShareScope::default()
    }
}

/// Returns the resource with this GUID.
///
/// # Errors
/// If the state is corrupt.
pub fn by_guid(store: &Store, guid: &str) -> Result<Option<Record<Resource>>, StoreError> {
    match uuid::Uuid::parse_str(guid) {
        Ok(guid) => store.get(&guid.to_string()),
        Err(_) => Ok(None),
    }
}

/// Resolves a name to a resource for a person: first the person's own resources, then those shared with one of their
/// groups, then those shared with all users; among equals, the one with the smallest GUID. `global:NAME`,
/// `user=WHO:NAME` and `group=WHICH:NAME` restrict the search accordingly. A GUID resolves to its resource.
///
/// # Errors
/// If the state is corrupt.
pub fn resolve(store: &Store, person: &Principal, name: &str) -> Result<Option<Record<Resource>>, StoreError> {
    if let Some(record) = by_guid(store, name)? {
        return Ok(record.value.is_readable_by(person).then_some(record));
    }
    let named = |name: &str| store.select::<Resource>("", |resource| resource.resource_name == name);
    let (same, rest) = (named(name)?, name.split_once(':').map(|(_, rest)| named(rest)).transpose()?);
    let find = |among: &[Record<Resource>], fits: &dyn Fn(&Resource) -> bool| {
        among.iter().find(|record| fits(&record.value)).cloned()
    };
    let own = |resource: &Resource| resource.uid == person.uid;
    let in_group = |resource: &Resource| resource.group_acl.iter().any(|group| person.groups.contains(group));
    let everybodys = |resource: &Resource| resource.global;
    let found = find(&same, &own).or_else(|| find(&same, &in_group)).or_else(|| find(&same, &everybodys));
    if found.is_some() {
        return Ok(found);
    }
    let (Some((space, _)), Some(rest)) = (name.split_once(':'), rest) else { return Ok(None) };
    match space.split_once('=') {
        None if space.eq_ignore_ascii_case("global") => Ok(find(&rest, &everybodys)),
        Some((kind, who)) if kind.eq_ignore_ascii_case("user") => {
            let Some(uid) = users::by_name(store, who)? else { return Ok(None) };
            Ok(find(&rest, &|resource: &Resource| resource.uid == uid && resource.is_readable_by(person)))
        }
        Some((kind, which)) if kind.eq_ignore_ascii_case("group") => {
            let Some(gid) = groups::by_name(store, which)? else { return Ok(None) };
            Ok(find(&rest, &|resource: &Resource| resource.group_acl.contains(&gid) && resource.is_readable_by(person)))
        }
        _ => Ok(None),
    }
}
