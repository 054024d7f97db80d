//! Invalid objects: values that do not fit their collection, written by another version, another tool or by hand. An
//! invalid object never hides others, and is listed with its key, so that it can be replaced or deleted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;

use serde_json::Value;

use super::kinds::{self, KINDS};
use super::record::Stored;
use super::{Store, StoreError};
use gravwell_model::visibility::{self, Visibility};
use gravwell_model::{Collection, Key};

/// Number of objects that are read at once.
const PAGE: usize = 512;

tokio::task_local! {
    static NOTED: RefCell<BTreeSet<String>>;
}

/// Runs a future; also returns the invalid objects that it found, as `collection/key`.
pub async fn noting<T>(work: impl Future<Output = T>) -> (T, BTreeSet<String>) {
    NOTED
        .scope(RefCell::default(), async {
            let done = work.await;
            (done, NOTED.with(RefCell::take))
        })
        .await
}

/// Records an invalid object for the enclosing [`noting`].
pub(super) fn note(error: &StoreError) {
    tracing::debug!(%error, "skipping invalid object");
    if let StoreError::Invalid { collection, key, .. } = error {
        let _ = NOTED.try_with(|noted| noted.borrow_mut().insert(format!("{collection}/{key}")));
    }
}

/// Returns why JSON does not decode, without the position in a text that users do not see.
#[must_use]
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    text.replace('`', "")
}

/// Returns why JSON does not decode without quoting the object, for objects with secret contents.
fn place(error: &serde_json::Error) -> String {
    let reason = reason(error);
    // Missing fields are fields of the kind, so they reveal nothing.
    if reason.starts_with("missing field ") {
        return reason;
    }
    format!("invalid value at line {}, column {}; its contents are secret", error.line(), error.column())
}

/// Returns why bytes do not decode as an object of a kind.
#[must_use]
pub fn reason_for<T: Stored>(error: &serde_json::Error) -> String {
    if visibility::of(T::COLLECTION) == Visibility::Secret { place(error) } else { reason(error) }
}

/// Returns the message for an object that is stored under another object's key.
#[must_use]
pub fn misplaced<T: Stored>(own: &str) -> String {
    if visibility::of(T::COLLECTION) == Visibility::Secret {
        return "the value belongs to another key".into();
    }
    format!("the value belongs to key {own}")
}

/// Checks that bytes are an object of a kind.
///
/// # Errors
/// If not; the text is the reason.
pub fn check<T: Stored>(key: &str, value: &[u8]) -> Result<(), String> {
    let object: T = serde_json::from_slice(value).map_err(|error| reason_for::<T>(&error))?;
    let own = object.key();
    if own == key { Ok(()) } else { Err(misplaced::<T>(&own)) }
}

/// An invalid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Collection of the object.
    pub collection: &'static str,
    /// Key of the object.
    pub key: String,
    /// Reason why it is invalid.
    pub reason: String,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "invalid {}/{}: {}; replace or delete it", self.collection, self.key, self.reason)
    }
}

/// Returns all invalid objects, of every kind.
///
/// # Errors
/// If the replica's state is corrupt.
pub fn scan(store: &Store) -> Result<Vec<Invalid>, StoreError> {
    let mut found = Vec::new();
    for kind in KINDS {
        let collection = Collection::new(kind.collection).map_err(|error| StoreError::BadKey(error.to_string()))?;
        let mut after: Option<Key> = None;
        loop {
            let rows = store.replica().scan(&collection, "", after.as_ref(), PAGE)?;
            let is_last = rows.len() < PAGE;
            for (key, object) in &rows {
                if let Err(reason) = (kind.check)(key.as_str(), &object.value) {
                    found.push(Invalid { collection: kind.collection, key: key.to_string(), reason });
                }
            }
            after = rows.into_iter().next_back().map(|(key, _)| key);
            if is_last {
                break;
            }
        }
    }
    Ok(found)
}

/// Returns the object at a key if it is invalid; `None` if it is valid, does not exist or is of an unknown kind.
///
/// # Errors
/// If the replica's state is corrupt.
pub fn at(store: &Store, collection: &Collection, key: &Key) -> Result<Option<Invalid>, StoreError> {
    let Some(kind) = kinds::of(collection.as_str()) else { return Ok(None) };
    let Some((value, _)) = store.raw(collection, key)? else { return Ok(None) };
    let reason = (kind.check)(key.as_str(), &value).err();
    Ok(reason.map(|reason| Invalid { collection: kind.collection, key: key.to_string(), reason }))
}

/// Makes a valid object from an invalid one: `blank`, with every member of the invalid object that is acceptable.
///
/// # Errors
/// If not even `blank` is valid.
pub fn completed(blank: &Value, invalid: &[u8], fits: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>, String> {
    type Members = std::collections::BTreeMap<String, Box<serde_json::value::RawValue>>;
    let text = |members: &Members| serde_json::to_vec(members).map_err(|error| error.to_string());
    let mut members: Members = serde_json::from_str(&blank.to_string()).map_err(|error| error.to_string())?;
    for (name, value) in serde_json::from_slice::<Members>(invalid).unwrap_or_default() {
        let before = members.insert(name.clone(), value);
        if !fits(&text(&members)?) {
            match before {
                Some(before) => members.insert(name, before),
                None => members.remove(&name),
            };
        }
    }
    let made = text(&members)?;
    if fits(&made) { Ok(made) } else { Err("the changed object is invalid".into()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::groups::Group;

    #[test]
    fn a_reason_speaks_of_the_object_and_not_of_a_text() {
        assert_eq!(check::<Group>("7", br#"{"Name":"a"}"#), Err("missing field GID".into()));
        assert_eq!(check::<Group>("7", br#"{"GID":8,"Name":"a"}"#), Err("the value belongs to key 8".into()));
        assert_eq!(check::<Group>("7", br#"{"GID":7,"Name":"a","Later":1}"#), Ok(()));
    }

    #[test]
    fn p11_a_reason_quotes_nothing_of_a_secret() {
        use crate::passwords::Password;
        use crate::sessions::Session;
        let secrets =
            [r#""$argon2id$v=19$secret""#, r#"{"UID":"$argon2id$secret"}"#, r#"{"$argon2id$secret":1}"#, "$argon2id$"];
        for secret in secrets {
            for reason in [check::<Password>("7", secret.as_bytes()), check::<Session>("7", secret.as_bytes())] {
                let reason = reason.expect_err("invalid");
                assert!(!reason.contains("argon2id"), "{secret}: {reason}");
                assert!(reason.contains("column") || reason.starts_with("missing field"), "{secret}: {reason}");
            }
        }
    }

    #[test]
    fn what_fits_of_an_invalid_object_is_kept() {
        let fits = |bytes: &[u8]| check::<Group>("7", bytes).is_ok();
        let blank = json!({ "GID": 7, "Name": "?" });
        let kept = completed(&blank, br#"{"GID":"x","Name":"a","Desc":5,"Later":9007199254740993}"#, fits);
        let kept = String::from_utf8(kept.expect("fits")).expect("text");
        assert_eq!(kept, r#"{"GID":7,"Later":9007199254740993,"Name":"a"}"#);
        assert!(completed(&blank, b"not JSON", fits).is_ok() && completed(&json!({}), b"{}", fits).is_err());
    }
}
