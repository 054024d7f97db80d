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

/// Ratio of the limits of a pushed transaction, with all of its conditions, to those of an author.
///
/// A member that pushes a transaction again after a recovery adds conditions: at most one for each object that it reads
/// or writes, and one for each earlier transaction that it depends on. The first are no longer than what names the
/// object already.
const PUSHED_FACTOR: usize = 3;

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

const WHAT: &str = "the transaction";
const WITH_CONDITIONS: &str = "the transaction with its conditions";

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

/// Limits of the transactions that a member pushes to its datastore.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushLimits {
    /// Limits of the datastore for authors.
    pub of_authors: Limits,
    /// Whether the datastore counts conditions that a member has added like those of authors. It is of an earlier
    /// version, which rejects a transaction that outgrows the limits.
    pub counts_added: bool,
}

impl PushLimits {
    /// Checks a transaction with all of its conditions.
    ///
    /// # Errors
    /// Returns the first limit that is exceeded.
    pub fn check(&self, txn: &Txn) -> Result<(), LimitExceeded> {
        if self.counts_added { self.of_authors.check(txn) } else { self.of_authors.check_pushed(txn) }
    }
}

impl Limits {
    /// Returns the limits of a pushed transaction with all of its conditions, see [`Limits::check_pushed`]. No decoder
    /// of a log or message allows more than [`HARD`].
    #[must_use]
    pub fn of_pushed(&self) -> Limits {
        let most = |own: usize, hard: usize| own.saturating_mul(PUSHED_FACTOR).min(hard);
        let (txn_bytes_max, ops_max) = (most(self.txn_bytes_max, HARD.txn_bytes_max), most(self.ops_max, HARD.ops_max));
        Limits { txn_bytes_max, ops_max, ..self.clone() }
    }

    /// Checks all limits of `txn` as its author submits it.
    ///
    /// # Errors
    /// Returns the first limit that is exceeded.
    pub fn check(&self, txn: &Txn) -> Result<(), LimitExceeded> {
        self.check_rows(WHAT, txn.ops.len() + txn.conditions.len())?;
        self.check_contents(txn)?;
        self.check_bytes(WHAT, txn.bytes_estimate())
    }

    /// Checks all limits of `txn` as it is pushed: its operations are within the limits, and so are its operations and
    /// conditions together within [`Limits::of_pushed`]. A transaction that was accepted stays within them when its
    /// member adds conditions to it.
    ///
    /// # Errors
    /// Returns the first limit that is exceeded.
    pub fn check_pushed(&self, txn: &Txn) -> Result<(), LimitExceeded> {
        self.check_rows(WHAT, txn.ops.len())?;
        self.check_pushed_rows(txn.ops.len() + txn.conditions.len())?;
        self.check_contents(txn)?;
        self.check_bytes(WHAT, txn.ops_bytes_estimate())?;
        self.check_pushed_bytes(txn.bytes_estimate())
    }

    /// Checks the number of operations and conditions of a pushed transaction, see [`Limits::of_pushed`].
    ///
    /// # Errors
    /// If there are more.
    pub fn check_pushed_rows(&self, rows: usize) -> Result<(), LimitExceeded> {
        self.of_pushed().check_rows(WITH_CONDITIONS, rows)
    }

    /// Checks the length of a pushed transaction, see [`Limits::of_pushed`].
    ///
    /// # Errors
    /// If it is longer.
    pub fn check_pushed_bytes(&self, bytes: usize) -> Result<(), LimitExceeded> {
        self.of_pushed().check_bytes(WITH_CONDITIONS, bytes)
    }

    fn check_rows(&self, what: &str, found: usize) -> Result<(), LimitExceeded> {
        let (unit, limit, allowed) = ("operations and conditions", "ops_max", self.ops_max);
        let exceeded = || LimitExceeded { what: what.into(), found, unit, limit, allowed };
        if found > allowed { Err(exceeded()) } else { Ok(()) }
    }

    fn check_bytes(&self, what: &str, found: usize) -> Result<(), LimitExceeded> {
        let (unit, limit, allowed) = ("bytes", "txn_bytes_max", self.txn_bytes_max);
        let exceeded = || LimitExceeded { what: what.into(), found, unit, limit, allowed };
        if found > allowed { Err(exceeded()) } else { Ok(()) }
    }

    /// Checks the limits of the parts of a transaction.
    fn check_contents(&self, txn: &Txn) -> Result<(), LimitExceeded> {
        let too = |what: String, found, unit, limit, allowed| LimitExceeded { what, found, unit, limit, allowed };
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

    fn txn(ops: usize, conditions: usize, key_bytes: usize) -> Txn {
        let name = |number: usize| {
            let key = format!("{number:0key_bytes$}");
            (crate::Collection::new("c").expect("name"), crate::Key::new(key).expect("key"))
        };
        let delete = |number| {
            let (collection, key) = name(number);
            Op::Delete { collection, key }
        };
        let absent = |number| {
            let (collection, key) = name(number);
            Condition::Absent { collection, key }
        };
        Txn {
            id: crate::TxnId::default(),
            settled: crate::OriginCounter(0),
            time_ms: 0,
            note: bytes::Bytes::new(),
            conditions: (0..conditions).map(absent).collect(),
            ops: (0..ops).map(delete).collect(),
        }
    }

    /// A transaction at a limit that gets one condition for each of its objects.
    #[test]
    fn p04_conditions_that_a_member_adds_do_not_count_against_the_limits_of_authors() {
        let limits = Limits { ops_max: 10, ..Limits::default() };
        assert!(limits.check(&txn(10, 0, 4)).is_ok() && limits.check(&txn(10, 1, 4)).is_err());
        assert!(limits.check_pushed(&txn(10, 10, 4)).is_ok());
        assert_eq!(limits.check_pushed(&txn(11, 0, 4)).expect_err("too many operations").limit, "ops_max");
        let error = limits.check_pushed(&txn(10, 21, 4)).expect_err("too many conditions").to_string();
        assert_eq!(
            error,
            "the transaction with its conditions is 31 operations and conditions, but the limit `ops_max` allows 30"
        );
        let bytes = txn(10, 0, 1000).bytes_estimate();
        let limits = Limits { txn_bytes_max: bytes, ..Limits::default() };
        assert!(limits.check(&txn(10, 1, 1000)).is_err());
        assert!(limits.check_pushed(&txn(10, 10, 1000)).is_ok());
        assert_eq!(limits.check_pushed(&txn(11, 0, 1000)).expect_err("too long").limit, "txn_bytes_max");
        assert_eq!(limits.check_pushed(&txn(10, 21, 1000)).expect_err("too long").allowed, 3 * bytes);
        // A datastore of an earlier version.
        let earlier = PushLimits { of_authors: limits, counts_added: true };
        assert!(earlier.check(&txn(10, 0, 1000)).is_ok() && earlier.check(&txn(10, 1, 1000)).is_err());
    }

    /// Members of earlier versions decode no more than this.
    #[test]
    fn no_limits_of_pushed_transactions_exceed_those_of_the_decoders() {
        assert_eq!(HARD.of_pushed(), HARD);
        assert_eq!(Limits::default().of_pushed().ops_max, HARD.ops_max);
    }
}
