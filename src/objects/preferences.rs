//! Preferences: JSON that belongs to a user and means something to the interface only.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Moment;
use super::record::Stored;

/// The name under which the interface keeps its preferences.
pub const PREFERENCES: &str = "prefs";

/// Preferences of a user.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Preference {
    /// Whose.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// Which.
    pub name: String,
    /// When they were last written.
    pub updated: Moment,
    /// The value, as it came.
    pub data: Box<RawValue>,
}

impl Stored for Preference {
    const COLLECTION: &'static str = "preferences";
    fn key(&self) -> String {
        key(self.uid, &self.name)
    }
}

/// Key of a user's preferences.
#[must_use]
pub fn key(uid: i32, name: &str) -> String {
    format!("{uid}/{name}")
}
