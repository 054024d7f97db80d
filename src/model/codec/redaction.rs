//! Redaction of log contents that leave the process. Secrets are removed only here.

use serde_json::value::RawValue;

use crate::visibility::{self, Visibility};
use crate::{Collection, Key};

/// Maximum length of a value that is shown.
pub const VALUE_BYTES_MAX: usize = 256 << 10;

/// Returns the value if it may be shown: its collection must be open, and it must be JSON and not too long. The text is
/// unchanged, including the digits of numbers.
#[must_use]
pub fn value<'a>(collection: &Collection, value: &'a [u8]) -> Option<&'a RawValue> {
    if visibility::of(collection.as_str()) != Visibility::Open || value.len() > VALUE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(value).ok()
}

/// Returns the part of a key that may be shown. In secret collections that is only the owner, because keys may reveal secrets.
#[must_use]
pub fn key<'a>(collection: &Collection, key: &'a Key) -> &'a str {
    match visibility::of(collection.as_str()) {
        Visibility::Secret => key.as_str().split('/').next().unwrap_or_default(),
        Visibility::Open | Visibility::Personal => key.as_str(),
    }
}
