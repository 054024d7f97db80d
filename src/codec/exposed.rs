//! What may be seen of the log outside the process: the one place where secrets are taken out.

use serde_json::value::RawValue;

use crate::model::exposure::{self, Exposure};
use crate::model::{Collection, Key};

/// Values longer than this are not shown.
pub const VALUE_BYTES_MAX: usize = 256 << 10;

/// A value as it may be shown: of a collection that is open, if it is JSON and not too long; its digits are as they were.
#[must_use]
pub fn value<'a>(collection: &Collection, value: &'a [u8]) -> Option<&'a RawValue> {
    if exposure::of(collection.as_str()) != Exposure::Open || value.len() > VALUE_BYTES_MAX {
        return None;
    }
    serde_json::from_slice(value).ok()
}

/// A key as it may be shown. Names of what is secret may themselves tell something, so only their owner is.
#[must_use]
pub fn key<'a>(collection: &Collection, key: &'a Key) -> &'a str {
    match exposure::of(collection.as_str()) {
        Exposure::Secret => key.as_str().split('/').next().unwrap_or_default(),
        Exposure::Open | Exposure::Personal => key.as_str(),
    }
}
