//! All limits of the data model, each with its reason.

use super::txn::{Condition, Op, Txn};

/// Limits of a transaction. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum key length. Keys are copied into indexes, so they stay small.
    pub key_bytes_max: usize,
    /// Maximum length of an inline value. Larger data belongs into a blob outside the log.
    pub value_bytes_max: usize,
    /// Maximum encoded length of a transaction. It is held in memory as a whole and sent as one frame.
    pub txn_bytes_max: usize,
    /// Maximum number of operations and conditions.
    pub ops_max: usize,
}

/// Maximum length of a collection name, which is part of every index key.
pub const COLLECTION_BYTES_MAX: usize = 255;
/// Maximum length of the audit note of a transaction.
pub const NOTE_BYTES_MAX: usize = 4096;
/// Maximum nesting of arrays and objects in a JSON value. Many JSON readers fail at 128, some overflow.
pub const JSON_DEPTH_MAX: usize = 64;
/// Upper bounds of the configurable limits. Decoders enforce them.
pub const HARD: Limits =
    Limits { key_bytes_max: 16 << 10, value_bytes_max: 16 << 20, txn_bytes_max: 32 << 20, ops_max: 1 << 17 };

const _: () = assert!(HARD.value_bytes_max < HARD.txn_bytes_max);

impl Default for Limits {
    fn default() -> Self {
        Limits { key_bytes_max: 1 << 10, value_bytes_max: 1 << 20, txn_bytes_max: 4 << 20, ops_max: 1 << 16 }
    }
}

/// A limit that a transaction exceeds; the message contains its name and value.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what} is {found} {unit}, but the limit `{limit}` allows {allowed}")]
pub struct LimitExceeded {
    /// The measured object.
    pub what: String,
    /// Measured value.
    pub found: usize,
    /// Unit of the measured value.
    pub unit: &'static str,
    /// Name of the limit.
    pub limit: &'static str,
    /// Value of the limit.
    pub allowed: usize,
}

impl Limits {
    /// Checks all limits of `txn`.
    ///
    /// # Errors
    /// Returns the first limit that is exceeded.
    pub fn check(&self, txn: &Txn) -> Result<(), LimitExceeded> {
        let too = |what: String, found, unit, limit, allowed| LimitExceeded { what, found, unit, limit, allowed };
        let rows = txn.ops.len() + txn.conditions.len();
        if rows > self.ops_max {
            return Err(too("the transaction".into(), rows, "operations and conditions", "ops_max", self.ops_max));
        }
        if txn.note.len() > NOTE_BYTES_MAX {
            return Err(too("the note".into(), txn.note.len(), "bytes", "note_bytes_max", NOTE_BYTES_MAX));
        }
        let keys = txn.ops.iter().map(Op::key).chain(txn.conditions.iter().map(Condition::key));
        for key in keys {
            if key.len() > self.key_bytes_max {
                return Err(too("a key".into(), key.len(), "bytes", "key_bytes_max", self.key_bytes_max));
            }
        }
        for op in &txn.ops {
            if let Op::Put { collection, key, value } = op
                && value.len() > self.value_bytes_max
            {
                let what = format!("the value of {collection}/{key}");
                return Err(too(what, value.len(), "bytes", "value_bytes_max", self.value_bytes_max));
            }
            if let Op::Put { collection, key, value } = op
                && json_depth(value) > JSON_DEPTH_MAX
            {
                let what = format!("the value of {collection}/{key}");
                return Err(too(what, json_depth(value), "levels deep", "json_depth_max", JSON_DEPTH_MAX));
            }
        }
        let bytes = txn.bytes_estimate();
        if bytes > self.txn_bytes_max {
            return Err(too("the transaction".into(), bytes, "bytes", "txn_bytes_max", self.txn_bytes_max));
        }
        Ok(())
    }
}

/// Returns how deeply arrays and objects are nested in a JSON value; 0 for values that do not start like one of them.
#[must_use]
pub fn json_depth(value: &[u8]) -> usize {
    let first = value.iter().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(first, Some(b'[' | b'{')) {
        return 0;
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in value {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_counted_outside_of_texts_only() {
        for (value, depth) in [
            ("", 0),
            ("1", 0),
            ("\"[[[\"", 0),
            (" [[],[[]]]", 3),
            (r#"{"a":"[[\"[[","b":[{}]}"#, 3),
            (r#"{"a":"\\","b":[[[]]]}"#, 4),
            ("[]]]][[", 2),
        ] {
            assert_eq!(json_depth(value.as_bytes()), depth, "{value}");
        }
    }
}
