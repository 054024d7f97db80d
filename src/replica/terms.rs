//! The terms of the last connection: properties of the datastore and of this member, stored for when the datastore
//! is unreachable.
//!
//! `terms` is a line of JSON and, in the next line, the BLAKE3 of the first.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use gravwell_env::checksummed_text;
use gravwell_env::data_dir::{DirectoryError, replace_file};
use gravwell_model::codec::message::Welcome;
use gravwell_model::limits::HARD;
use gravwell_model::{Generation, Limits, LogId};

const VERSION: u32 = 1;
const FILE: &str = "terms";

/// Terms between this member and its datastore, valid until the next connection changes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    version: u32,
    /// Identity of the log.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Name under which this member is enrolled.
    pub member: String,
    /// Role of this member, as text.
    pub role: String,
    /// Interval of heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
    /// Largest transaction accepted, in bytes.
    pub txn_bytes_max: u64,
    /// Largest inline value accepted, in bytes.
    pub value_bytes_max: u64,
    /// Longest key accepted, in bytes.
    pub key_bytes_max: u64,
}

impl Terms {
    #[cfg(test)]
    pub(super) fn example() -> Terms {
        Terms {
            version: VERSION,
            log_id: LogId([1; 16]),
            generation: Generation(1),
            member: "web1".into(),
            role: "webserver".into(),
            heartbeat_ms: 5000,
            txn_bytes_max: 8 << 20,
            value_bytes_max: u64::MAX,
            key_bytes_max: 100,
        }
    }

    /// Returns the terms in a welcome.
    #[must_use]
    pub fn of(welcome: &Welcome) -> Terms {
        Terms {
            version: VERSION,
            log_id: welcome.log_id,
            generation: welcome.generation,
            member: welcome.member.clone(),
            role: welcome.role.clone(),
            heartbeat_ms: welcome.heartbeat_ms,
            txn_bytes_max: welcome.txn_bytes_max,
            value_bytes_max: welcome.value_bytes_max,
            key_bytes_max: welcome.key_bytes_max,
        }
    }

    /// Returns the limits of a transaction.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let bound = |value: u64, most: usize| usize::try_from(value).unwrap_or(usize::MAX).min(most);
        Limits {
            key_bytes_max: bound(self.key_bytes_max, HARD.key_bytes_max),
            value_bytes_max: bound(self.value_bytes_max, HARD.value_bytes_max),
            txn_bytes_max: bound(self.txn_bytes_max, HARD.txn_bytes_max),
            ..Limits::default()
        }
    }

    /// Reads the terms from a replica's directory; `None` if the replica was never connected.
    ///
    /// # Errors
    /// Describes the problem with the file.
    pub fn load(directory: &Path) -> Result<Option<Terms>, String> {
        let path = directory.join(FILE);
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let body = checksummed_text::open(&text).map_err(|error| failed(&error))?;
        let terms: Terms = serde_json::from_str(body).map_err(|error| failed(&error))?;
        match terms.version {
            VERSION => Ok(Some(terms)),
            other => Err(failed(&format!("version {other} is unknown to this version"))),
        }
    }

    /// Durably writes the terms to a replica's directory.
    ///
    /// # Errors
    /// If the operating system returns an error; the former terms are kept then.
    pub fn save(&self, directory: &Path) -> Result<(), DirectoryError> {
        let text = serde_json::to_string(self).expect("invariant: terms have text keys only");
        replace_file(&directory.join(FILE), checksummed_text::seal(&text).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_read_back_and_damage_is_named() {
        let temp = tempfile::tempdir().expect("temp dir");
        assert_eq!(Terms::load(temp.path()), Ok(None));
        let terms = Terms::example();
        terms.save(temp.path()).expect("saves");
        assert_eq!(Terms::load(temp.path()), Ok(Some(terms.clone())));
        let limits = terms.limits();
        assert_eq!((limits.key_bytes_max, limits.value_bytes_max), (100, HARD.value_bytes_max));
        let file = temp.path().join(FILE);
        let text = std::fs::read_to_string(&file).expect("reads").replace("8388608", "8388609");
        std::fs::write(&file, text).expect("writes");
        assert!(Terms::load(temp.path()).expect_err("is damaged").contains("terms"));
    }
}
