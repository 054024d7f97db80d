//! Capabilities: names of actions that a user may be allowed, and grants of capabilities to users and groups.
//!
//! They always limit tokens, and they limit users if `Enable-CBAC` is set: a user who is not an administrator may then
//! use only capabilities granted to the user or to one of the user's groups. Grants are separate objects, one for each
//! user or group, written as a whole.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::record::Stored;
use super::sharing::{Principal, null_is_empty};
use super::{Store, StoreError};

/// A capability.
#[derive(Clone, Copy, Debug)]
pub struct Capability {
    /// Number known to clients; never reused.
    pub number: u8,
    /// Name in grants and tokens.
    pub name: &'static str,
    /// Category for display in interfaces.
    pub category: &'static str,
    /// Description for users.
    pub allows: &'static str,
    /// Whether a read-only user has it.
    pub reads: bool,
}

/// Capabilities that reading and changing the objects of a kind require.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Capability to read.
    pub read: &'static str,
    /// Capability to create, change and delete.
    pub write: &'static str,
}

const fn may(number: u8, name: &'static str, category: &'static str, reads: bool, allows: &'static str) -> Capability {
    Capability { number, name, category, allows, reads }
}

/// All capabilities. The number 5 is not in use.
pub const ALL: [Capability; 51] = [
    may(0, "Search", "Search", true, "Run searches"),
    may(1, "Download", "Search", true, "Download results of searches"),
    may(2, "SaveSearch", "Search", false, "Save results of searches"),
    may(3, "AttachSearch", "Search", true, "View existing searches"),
    may(4, "BackgroundSearch", "Search", false, "Run searches in the background"),
    may(6, "SetSearchGroup", "Search", true, "Set the group that searches are shared with"),
    may(7, "SearchHistory", "Search", true, "Read your own search history"),
    may(8, "SearchGroupHistory", "Search", true, "Read the search history of your groups"),
    may(9, "SearchAllHistory", "Search", true, "Read all search histories that you may see"),
    may(10, "DashboardRead", "Dashboards", true, "Read dashboards"),
    may(11, "DashboardWrite", "Dashboards", false, "Create, change and delete dashboards"),
    may(12, "ResourceRead", "Resources", true, "Read resources"),
    may(13, "ResourceWrite", "Resources", false, "Create, change and delete resources"),
    may(14, "TemplateRead", "Templates", true, "Read templates"),
    may(15, "TemplateWrite", "Templates", false, "Create, change and delete templates"),
    may(16, "PivotRead", "Actionables", true, "Read actionables"),
    may(17, "PivotWrite", "Actionables", false, "Create, change and delete actionables"),
    may(18, "MacroRead", "Macros", true, "Read macros"),
    may(19, "MacroWrite", "Macros", false, "Create, change and delete macros"),
    may(20, "LibraryRead", "Query Library", true, "Read the query library"),
    may(21, "LibraryWrite", "Query Library", false, "Create, change and delete queries of the library"),
    may(22, "ExtractorRead", "Extractors", true, "Read extractors"),
    may(23, "ExtractorWrite", "Extractors", false, "Create, change and delete extractors"),
    may(24, "UserFileRead", "Files", true, "Read files"),
    may(25, "UserFileWrite", "Files", false, "Create, change and delete files"),
    may(26, "KitRead", "Kits", true, "Read kits"),
    may(27, "KitWrite", "Kits", false, "Install, change and remove kits"),
    may(28, "KitBuild", "Kits", false, "Build kits"),
    may(29, "KitDownload", "Kits", false, "Download kits from a kit server"),
    may(30, "ScheduleRead", "Automations", false, "Read automations"),
    may(31, "ScheduleWrite", "Automations", false, "Create, change and delete automations"),
    may(32, "SOARLibs", "Automations", false, "Import libraries into scripts"),
    may(33, "SOAREmail", "Automations", false, "Send mail from automations"),
    may(34, "PlaybookRead", "Playbooks", true, "Read playbooks"),
    may(35, "PlaybookWrite", "Playbooks", false, "Create, change and delete playbooks"),
    may(36, "LicenseRead", "System and Stats", true, "Read the licence"),
    may(37, "Stats", "System and Stats", true, "Read statistics of the system"),
    may(38, "Ingest", "Data Ingest", false, "Ingest entries through the API"),
    may(39, "ListUsers", "Users and Groups", false, "List users"),
    may(40, "ListGroups", "Users and Groups", false, "List groups"),
    may(41, "ListGroupMembers", "Users and Groups", false, "List the members of your groups"),
    may(42, "NotificationRead", "Notifications", true, "Read notifications"),
    may(43, "NotificationWrite", "Notifications", false, "Send and change notifications"),
    may(44, "SystemInfoRead", "System and Stats", true, "Read the state of the system"),
    may(45, "TokenRead", "Tokens", true, "Read your API tokens"),
    may(46, "TokenWrite", "Tokens", false, "Create, change and delete API tokens"),
    may(47, "SecretRead", "Secrets", true, "Read secrets"),
    may(48, "SecretWrite", "Secrets", false, "Create, change and delete secrets"),
    may(49, "AlertRead", "Automations", true, "Read alerts"),
    may(50, "AlertWrite", "Automations", false, "Create, change and delete alerts"),
    may(51, "LogbotAI", "Logbot AI", true, "Use the assistant"),
];

/// Returns the capability with a name; case is ignored.
#[must_use]
pub fn named(name: &str) -> Option<&'static Capability> {
    ALL.iter().find(|known| known.name.eq_ignore_ascii_case(name))
}

/// Holder of grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holder {
    /// The user with this UID.
    User(i32),
    /// The group with this GID.
    Group(i32),
}

impl Holder {
    /// Returns the key of the holder's grants.
    #[must_use]
    pub fn key(self) -> String {
        match self {
            Holder::User(uid) => format!("user/{uid}"),
            Holder::Group(gid) => format!("group/{gid}"),
        }
    }
}

/// Capabilities granted to a user or group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Grants {
    /// Holder of the capabilities.
    pub holder: Holder,
    /// Names of capabilities.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub grants: Vec<String>,
}

impl Stored for Grants {
    const COLLECTION: &'static str = "capabilities";
    fn key(&self) -> String {
        self.holder.key()
    }
}

/// Tags, or patterns of tags, that a user or group may search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagGrants {
    /// Holder of the access.
    pub holder: Holder,
    /// Names and patterns of tags.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub grants: Vec<String>,
}

impl Stored for TagGrants {
    const COLLECTION: &'static str = "tag-access";
    fn key(&self) -> String {
        self.holder.key()
    }
}

/// Returns the capabilities granted to one holder.
///
/// # Errors
/// If the state is corrupt.
pub fn of_holder(store: &Store, holder: Holder) -> Result<Vec<String>, StoreError> {
    Ok(store.valid::<Grants>(&holder.key())?.map(|record| record.value.grants).unwrap_or_default())
}

/// Returns the capabilities granted to a person, directly or through groups.
///
/// # Errors
/// If the state is corrupt.
pub fn of_person(store: &Store, person: &Principal) -> Result<HashSet<String>, StoreError> {
    let mut granted: HashSet<String> = of_holder(store, Holder::User(person.uid))?.into_iter().collect();
    for gid in &person.groups {
        granted.extend(of_holder(store, Holder::Group(*gid))?);
    }
    Ok(granted)
}

/// Returns the tags, or patterns of tags, granted to a person, directly or through groups.
///
/// # Errors
/// If the state is corrupt.
pub fn tags_of_person(store: &Store, person: &Principal) -> Result<Vec<String>, StoreError> {
    let holders = std::iter::once(Holder::User(person.uid)).chain(person.groups.iter().copied().map(Holder::Group));
    let mut granted = Vec::new();
    for holder in holders {
        granted.extend(store.valid::<TagGrants>(&holder.key())?.map(|record| record.value.grants).unwrap_or_default());
    }
    Ok(granted)
}

/// Returns whether a pattern, in which `*` matches any text, matches a tag.
#[must_use]
pub fn means_tag(pattern: &str, tag: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return pattern == tag };
    let Some(left) = tag.strip_prefix(begin) else { return false };
    let mut from = left.char_indices().map(|(at, _)| at).chain([left.len()]);
    from.any(|at| means_tag(rest, &left[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_clients_know() {
        for (place, capability) in ALL.iter().enumerate() {
            let number = if place < 5 { place } else { place + 1 };
            assert_eq!(usize::from(capability.number), number, "{}", capability.name);
            assert_eq!(named(&capability.name.to_lowercase()).expect("known").number, capability.number);
        }
        assert!(named("nothing").is_none());
    }

    #[test]
    fn patterns_of_tags() {
        for (pattern, tag, wanted) in [
            ("journal", "journal", true),
            ("j*", "journal", true),
            ("*", "x", true),
            ("*nal", "journal", true),
            ("j*x", "journal", false),
            ("", "x", false),
            ("a*b*c", "aXbYc", true),
        ] {
            assert_eq!(means_tag(pattern, tag), wanted, "{pattern} {tag}");
        }
    }
}
