//! Preferences: JSON that belongs to a user and has a meaning only for the user interface.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Timestamp;
use super::record::Stored;

/// Name under which the user interface stores its preferences.
pub const PREFERENCES: &str = "prefs";

/// Preferences of a user.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Preference {
    /// UID of the user.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Name of the set.
    pub name: String,
    /// Time of the last write.
    pub updated: Timestamp,
    /// The value, stored unchanged.
    pub data: Box<RawValue>,
}

impl Stored for Preference {
    const COLLECTION: &'static str = "preferences";
    fn key(&self) -> String {
        key(self.uid, &self.name)
    }
}

/// Returns the key of a user's preferences.
#[must_use]
pub fn key(uid: i32, name: &str) -> String {
    format!("{uid}/{name}")
}
