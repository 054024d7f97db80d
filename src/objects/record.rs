//! Objects encoded as JSON. Unknown fields are preserved when an older version rewrites an object.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use gravwell_model::{Collection, Condition, Key, Seq, TxnId};
use gravwell_replica::{History, Object};

/// A kind of object. All its fields are always written, so that all other fields are unknown to this version.
pub trait Stored: Serialize + DeserializeOwned {
    /// Collection of objects of this kind.
    const COLLECTION: &'static str;

    /// Returns the key of this object.
    fn key(&self) -> String;
}

/// Identifies the write of an object that was read. A change computed from the object is made under the condition that
/// this is still the last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsRead {
    /// Committed at this sequence of a history.
    Committed(Seq, History),
    /// Made by a pending transaction of this webserver.
    Pending(TxnId, History),
}

impl AsRead {
    /// Returns the last write of an object returned by the replica.
    #[must_use]
    pub fn of(object: &Object) -> AsRead {
        match (object.version, object.pending) {
            (Some(version), _) => AsRead::Committed(version, object.read_in),
            (None, Some(id)) => AsRead::Pending(id, object.read_in),
            // The replica always sets one of them. No object has version zero, so nothing would be overwritten unseen.
            (None, None) => AsRead::Committed(Seq::ZERO, object.read_in),
        }
    }

    /// Returns its sequence; `None` while it is pending.
    #[must_use]
    pub fn version(self) -> Option<Seq> {
        match self {
            AsRead::Committed(version, _) => Some(version),
            AsRead::Pending(..) => None,
        }
    }

    /// Returns the history in which it was read.
    #[must_use]
    pub fn read_in(self) -> History {
        match self {
            AsRead::Committed(_, read_in) | AsRead::Pending(_, read_in) => read_in,
        }
    }

    /// Returns the condition that it is still the last write of the object.
    #[must_use]
    pub fn condition(self, collection: Collection, key: Key) -> Condition {
        match self {
            AsRead::Committed(version, _) => Condition::Version { collection, key, version },
            AsRead::Pending(id, _) => Condition::written_by(collection, key, id),
        }
    }
}

/// An object together with its stored form.
#[derive(Clone, Debug)]
pub struct Record<T> {
    /// The decoded object.
    pub value: T,
    /// Sequence of its last write; `None` while that is pending.
    pub version: Option<Seq>,
    /// Identifies its last write.
    pub as_read: AsRead,
    raw: Bytes,
}

impl<T> Record<T> {
    /// Returns whether the datastore has committed this version.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.version.is_some()
    }

    /// Returns the tag of this version for `ETag` and `If-Match`. It covers the contents: after a recovery another
    /// write may have the same sequence.
    #[must_use]
    pub fn tag(&self) -> String {
        let version = self.version.map_or("p".to_owned(), |version| version.0.to_string());
        format!("\"{version}-{}\"", &blake3::hash(&self.raw).to_hex()[..16])
    }
}

impl<T: Stored> Record<T> {
    /// Decodes an object.
    ///
    /// # Errors
    /// If the bytes are not JSON of this kind.
    pub fn read(raw: Bytes, as_read: AsRead) -> Result<Record<T>, serde_json::Error> {
        let value = serde_json::from_slice(&raw)?;
        Ok(Record { value, version: as_read.version(), as_read, raw })
    }

    /// Encodes the value, together with the unknown fields of the object.
    ///
    /// # Errors
    /// If the value cannot be encoded as JSON.
    pub fn rewritten(&self) -> Result<Bytes, serde_json::Error> {
        type Fields = BTreeMap<String, Box<RawValue>>;
        let mut fields: Fields = serde_json::from_slice(&self.raw)?;
        let own: Fields = serde_json::from_slice(&serde_json::to_vec(&self.value)?)?;
        fields.extend(own);
        Ok(serde_json::to_vec(&fields)?.into())
    }
}

/// Encodes a new object.
///
/// # Errors
/// If the value cannot be encoded as JSON.
pub fn written<T: Stored>(value: &T) -> Result<Bytes, serde_json::Error> {
    Ok(serde_json::to_vec(value)?.into())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Thing {
        name: String,
        data: Box<RawValue>,
        gone: Option<u8>,
    }

    impl Stored for Thing {
        const COLLECTION: &'static str = "things";
        fn key(&self) -> String {
            self.name.clone()
        }
    }

    #[test]
    fn unknown_fields_and_numbers_survive_a_rewrite() {
        let raw = br#"{"name":"a","data":{"big":9007199254740993,"f":1.0},"gone":3,"later":{"x":[1.50]}}"#;
        let mut record = Record::<Thing>::read(Bytes::from_static(raw), AsRead::Committed(Seq(7), History::default()))
            .expect("reads");
        assert!(record.tag().starts_with("\"7-"));
        let other = Record::<Thing>::read(Bytes::from_static(br#"{"name":"a","data":1,"gone":3}"#), record.as_read);
        assert_ne!(record.tag(), other.expect("reads").tag(), "a write with the same sequence in another history");
        record.value.name = "b".into();
        record.value.gone = None;
        let text = String::from_utf8(record.rewritten().expect("writes").to_vec()).expect("text");
        let wanted = r#"{"data":{"big":9007199254740993,"f":1.0},"gone":null,"later":{"x":[1.50]},"name":"b"}"#;
        assert_eq!(text, wanted);
    }
}
