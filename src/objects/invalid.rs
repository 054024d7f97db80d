//! Objects that are not what their collection holds: another version, another tool or a person wrote them. One of them never
//! hides the others, and is shown with its key, so that it can be replaced or deleted.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::Future;

use serde_json::Value;

use super::kinds::{self, KINDS};
use super::record::Stored;
use super::{Store, StoreError};
use crate::model::exposure::{self, Exposure};
use crate::model::{Collection, Key};

/// Objects that are read at a time.
const PAGE: usize = 512;

tokio::task_local! {
    static NOTED: RefCell<BTreeSet<String>>;
}

/// Does something and gives the invalid objects that it met, as `collection/key`.
pub async fn noting<T>(work: impl Future<Output = T>) -> (T, BTreeSet<String>) {
    NOTED
        .scope(RefCell::default(), async {
            let done = work.await;
            (done, NOTED.with(RefCell::take))
        })
        .await
}

/// Notes an invalid object for whoever asked.
pub(super) fn note(error: &StoreError) {
    tracing::debug!(%error, "left out");
    if let StoreError::Invalid { collection, key, .. } = error {
        let _ = NOTED.try_with(|noted| noted.borrow_mut().insert(format!("{collection}/{key}")));
    }
}

/// Why JSON is not what was wanted, without the place in a text that nobody sees.
#[must_use]
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    text.replace('`', "")
}

/// The same without anything of the object, where that is not for the eyes of those who read this.
fn place(error: &serde_json::Error) -> String {
    let reason = reason(error);
    // Names of members are those of the kind.
    if reason.starts_with("missing field ") {
        return reason;
    }
    format!("it is not of this kind at line {}, column {}; its contents are secret", error.line(), error.column())
}

/// Why bytes are not an object of a kind.
#[must_use]
pub fn reason_for<T: Stored>(error: &serde_json::Error) -> String {
    if exposure::of(T::COLLECTION) == Exposure::Secret { place(error) } else { reason(error) }
}

/// That an object lies under the key of another one.
#[must_use]
pub fn misplaced<T: Stored>(own: &str) -> String {
    if exposure::of(T::COLLECTION) == Exposure::Secret {
        return "what it says belongs to another key".into();
    }
    format!("what it says belongs to the key {own}")
}

/// Whether bytes are an object of a kind.
///
/// # Errors
/// Says why not.
pub fn check<T: Stored>(key: &str, value: &[u8]) -> Result<(), String> {
    let object: T = serde_json::from_slice(value).map_err(|error| reason_for::<T>(&error))?;
    let own = object.key();
    if own == key { Ok(()) } else { Err(misplaced::<T>(&own)) }
}

/// One invalid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where.
    pub collection: &'static str,
    /// Which.
    pub key: String,
    /// Why.
    pub reason: String,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "invalid {}/{}: {}; replace or delete it", self.collection, self.key, self.reason)
    }
}

/// All invalid objects, of every kind.
///
/// # Errors
/// When the replica's state is damaged.
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

/// Why the object at a place is invalid; `None` when it is valid, is not there or is of no known kind.
///
/// # Errors
/// When the replica's state is damaged.
pub fn at(store: &Store, collection: &Collection, key: &Key) -> Result<Option<Invalid>, StoreError> {
    let Some(kind) = kinds::of(collection.as_str()) else { return Ok(None) };
    let Some((value, _)) = store.raw(collection, key)? else { return Ok(None) };
    let reason = (kind.check)(key.as_str(), &value).err();
    Ok(reason.map(|reason| Invalid { collection: kind.collection, key: key.to_string(), reason }))
}

/// Makes of an invalid object one that is valid: `blank`, with every member of the invalid one that fits.
///
/// # Errors
/// When not even `blank` fits.
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
    if fits(&made) { Ok(made) } else { Err("what is wanted is not an object of this kind".into()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::groups::Group;

    #[test]
    fn a_reason_speaks_of_the_object_and_not_of_a_text() {
        assert_eq!(check::<Group>("7", br#"{"Name":"a"}"#), Err("missing field GID".into()));
        assert_eq!(check::<Group>("7", br#"{"GID":8,"Name":"a"}"#), Err("what it says belongs to the key 8".into()));
        assert_eq!(check::<Group>("7", br#"{"GID":7,"Name":"a","Later":1}"#), Ok(()));
    }

    #[test]
    fn p11_a_reason_quotes_nothing_of_a_secret() {
        use crate::objects::passwords::Password;
        use crate::objects::sessions::Session;
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
        assert!(completed(&blank, b"no JSON", fits).is_ok() && completed(&json!({}), b"{}", fits).is_err());
    }
}
