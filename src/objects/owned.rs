//! Objects with an owner, a name and a share scope, whose other members belong to clients: one type for every such kind.
//!
//! A kind is a [`Spec`]: the names of its members, the forms of its fields, and its place in the REST API. Objects are
//! stored flat. A member that is neither common to all kinds nor a field of the specification is kept unchanged.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::ControlFlow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::MapDeserializer;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use super::capabilities::Capabilities;
use super::dashboards::new_id;
use super::names::{self, FieldError};
use super::record::Stored;
use super::sharing::{Principal, ShareScope, Shareable, null_is_empty};
use super::{Record, Store, StoreError, Timestamp};

/// Members of a JSON object as text, by name.
pub type Members = BTreeMap<String, Box<RawValue>>;

/// Specification of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Name of the collection.
    pub collection: &'static str,
    /// Noun for one object in messages.
    pub singular: &'static str,
    /// Noun for several objects in messages.
    pub plural: &'static str,
    /// Path of the list in the REST API.
    pub path: &'static str,
    /// Capabilities that reading and changing its objects require.
    pub capabilities: Capabilities,
    /// Form of the ids.
    pub id: IdForm,
    /// Form of the names.
    pub name: NameForm,
    /// Members of the kind, besides those that all kinds have.
    pub fields: &'static [Field],
    /// Names of common members in the REST API.
    pub wire: Wire,
}

/// Form of the ids of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdForm {
    /// Random number below 2^53.
    Number,
    /// UUID in lower case.
    Uuid,
}

/// Form of the names of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameForm {
    /// Any title, also an empty one.
    Title,
    /// One or more of `A` to `Z`, `0` to `9`, `_` and `-`; a user has no two objects with one name.
    Identifier,
}

/// Members whose names differ between kinds in the REST API, and the form of its responses.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// Name of the id.
    pub id: &'static str,
    /// Name of the description.
    pub description: &'static str,
    /// Name of the time of the last change.
    pub updated: &'static str,
    /// Whether a creation returns the whole object instead of its id.
    pub returns_whole: bool,
    /// Whether `/{id}/details` returns the object as well.
    pub has_details: bool,
    /// Whether there are lists of the objects of all users, of one user, and of one group.
    pub has_lists: bool,
}

/// A member of the objects of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name of the member.
    pub name: &'static str,
    /// Form of its values.
    pub form: Form,
    /// JSON value if it is absent.
    pub default: &'static str,
    /// Whether lists omit it, because it may be long.
    pub is_long: bool,
}

/// Form of the values of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A text.
    Text,
    /// `true` or `false`.
    Flag,
    /// Any JSON object. It is kept as text: order, case and numbers of its members do not change.
    Object,
    /// Bytes in base64. Others would make a client reject the whole list.
    Bytes,
    /// A JSON object in base64, for the same reason.
    ObjectBytes,
    /// A JSON object with these texts.
    Texts(&'static [&'static str]),
}

impl Field {
    /// Returns the form in which a value is stored.
    ///
    /// # Errors
    /// If the value does not have the form of the field.
    pub fn accepted(&self, value: &RawValue) -> Result<Box<RawValue>, FieldError> {
        let wrong = |wanted: &str| FieldError::new(self.name, format!("must be {wanted}"));
        let text = value.get();
        let as_text = || serde_json::from_str::<String>(text).ok();
        let bytes = || as_text().and_then(|text| STANDARD.decode(text).ok());
        let is_object = |bytes: &[u8]| serde_json::from_slice::<Members>(bytes).is_ok();
        match self.form {
            Form::Text if as_text().is_none() => Err(wrong("a text")),
            Form::Flag if !["true", "false"].contains(&text) => Err(wrong("true or false")),
            Form::Object if !text.starts_with('{') => Err(wrong("a JSON object")),
            Form::Bytes if bytes().is_none() => Err(wrong("a text in base64")),
            // Some clients send nothing for an empty object.
            Form::ObjectBytes if text == "\"\"" => serde_json::from_str(self.default).map_err(|_| wrong("set")),
            Form::ObjectBytes if !bytes().is_some_and(|bytes| is_object(&bytes)) => {
                Err(wrong("a JSON object in base64"))
            }
            Form::Texts(known) => {
                let given: BTreeMap<String, Option<String>> =
                    serde_json::from_str(text).map_err(|_| wrong("an object of texts"))?;
                let of = |name: &&str| given.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
                let texts: BTreeMap<&str, &str> = known
                    .iter()
                    .map(|name| (*name, of(name).and_then(|(_, text)| text.as_deref()).unwrap_or_default()))
                    .collect();
                texts.iter().try_for_each(|(_, text)| names::title(self.name, text))?;
                serde_json::value::to_raw_value(&texts).map_err(|_| wrong("an object of texts"))
            }
            _ => Ok(value.to_owned()),
        }
    }
}

/// A kind of owned objects: a type without values.
pub trait OwnedKind: Send + Sync + 'static {
    /// Specification of the kind.
    const SPEC: &'static Spec;
}

/// Members that all kinds have.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Head {
    /// Id of the object, which is its key.
    #[serde(rename = "ID")]
    pub id: String,
    /// Id that survives export and import; several objects may share one.
    #[serde(rename = "GUID", default)]
    pub guid: String,
    /// UID of the owner.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// GIDs of groups that may read it.
    #[serde(rename = "GIDs", default, deserialize_with = "null_is_empty")]
    pub gids: Vec<i32>,
    /// Whether all users may read it.
    #[serde(default)]
    pub global: bool,
    /// Users who may change it, besides the owner.
    #[serde(default)]
    pub write_access: ShareScope,
    /// Name for users.
    #[serde(default)]
    pub name: String,
    /// Description by its owner.
    #[serde(default)]
    pub description: String,
    /// Labels for searching and grouping.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub labels: Vec<String>,
    /// Time of its creation.
    pub created: Timestamp,
    /// Time of its last change.
    pub updated: Timestamp,
}

/// Names of the members of [`Head`].
const COMMON: [&str; 11] =
    ["ID", "GUID", "UID", "GIDs", "Global", "WriteAccess", "Name", "Description", "Labels", "Created", "Updated"];

/// An object of a kind.
pub struct Owned<K> {
    /// Members that all kinds have.
    pub head: Head,
    /// The other members.
    members: Members,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Owned<K> {
    fn clone(&self) -> Self {
        Owned { head: self.head.clone(), members: self.members.clone(), kind: PhantomData }
    }
}

impl<K> fmt::Debug for Owned<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owned").field("head", &self.head).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Flat<'a> {
    #[serde(flatten)]
    head: &'a Head,
    #[serde(flatten)]
    members: &'a Members,
}

impl<K> Serialize for Owned<K> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        Flat { head: &self.head, members: &self.members }.serialize(to)
    }
}

impl<'de, K: OwnedKind> Deserialize<'de> for Owned<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Owned<K>, D::Error> {
        let mut members = Members::deserialize(from)?;
        let pairs = members.iter().map(|(name, value)| (name.as_str(), &**value));
        let head = Head::deserialize(MapDeserializer::new(pairs)).map_err(|error: serde_json::Error| {
            let error = error.to_string();
            D::Error::custom(error.split(" at line ").next().unwrap_or_default())
        })?;
        if !K::SPEC.id.fits(&head.id) {
            return Err(D::Error::custom("invalid ID"));
        }
        members.retain(|name, _| !COMMON.contains(&name.as_str()));
        for field in K::SPEC.fields {
            if let Some(value) = members.get(field.name) {
                field.accepted(value).map_err(D::Error::custom)?;
            }
        }
        Ok(Owned { head, members, kind: PhantomData })
    }
}

impl<K: OwnedKind> Stored for Owned<K> {
    const COLLECTION: &'static str = K::SPEC.collection;
    fn key(&self) -> String {
        self.head.id.clone()
    }
}

impl<K> Shareable for Owned<K> {
    fn owner(&self) -> i32 {
        self.head.uid
    }
    fn readers(&self) -> ShareScope {
        ShareScope { global: self.head.global, groups: self.head.gids.clone() }
    }
    fn writers(&self) -> ShareScope {
        self.head.write_access.clone()
    }
}

impl IdForm {
    /// Returns whether a text is an id of this form.
    #[must_use]
    pub fn fits(self, id: &str) -> bool {
        match self {
            IdForm::Number => {
                let is_canonical = !id.starts_with('0') && id.bytes().all(|byte| byte.is_ascii_digit());
                is_canonical && id.parse::<u64>().is_ok_and(|number| number < 1 << 53)
            }
            IdForm::Uuid => uuid::Uuid::parse_str(id).is_ok_and(|uuid| uuid.to_string() == id),
        }
    }

    /// Returns an id for a new object.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn draw(self) -> std::io::Result<String> {
        match self {
            IdForm::Number => Ok(new_id()?.to_string()),
            IdForm::Uuid => Ok(uuid::Uuid::new_v4().to_string()),
        }
    }
}

impl NameForm {
    /// Checks a name.
    ///
    /// # Errors
    /// If it does not have this form.
    pub fn check(self, name: &str) -> Result<(), FieldError> {
        names::title("Name", name)?;
        let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
        if self == NameForm::Identifier && (name.is_empty() || !name.bytes().all(is_plain)) {
            return Err(FieldError::new("Name", "must consist of A to Z, 0 to 9, _ and -"));
        }
        Ok(())
    }
}

impl<K: OwnedKind> Owned<K> {
    /// Creates an object without fields.
    #[must_use]
    pub fn new(head: Head) -> Owned<K> {
        Owned { head, members: Members::new(), kind: PhantomData }
    }

    /// Sets a field to a value that [`Field::accepted`] returned.
    pub fn set(&mut self, field: &Field, value: Box<RawValue>) {
        self.members.insert(field.name.to_owned(), value);
    }

    /// Returns the value of a field as JSON.
    #[must_use]
    pub fn field(&self, field: &Field) -> &str {
        self.members.get(field.name).map_or(field.default, |value| value.get())
    }

    /// Sort key among objects with one GUID: of equally distant ones, the older is first, because any user may choose a
    /// GUID that exists already.
    fn closeness(&self, person: &Principal) -> (u8, Timestamp, String) {
        (self.distance(person), self.head.created, self.head.id.clone())
    }
}

/// Returns the object with this id.
///
/// # Errors
/// If the state is corrupt, or the object is invalid.
pub fn by_id<K: OwnedKind>(store: &Store, id: &str) -> Result<Option<Record<Owned<K>>>, StoreError> {
    let id = id.to_ascii_lowercase();
    if K::SPEC.id.fits(&id) { store.get(&id) } else { Ok(None) }
}

/// Returns the object with this GUID that is closest to a person, whether or not the person may read it. Reads the whole
/// collection.
///
/// # Errors
/// If the state is corrupt.
pub fn by_guid<K: OwnedKind>(
    store: &Store,
    guid: &str,
    person: &Principal,
) -> Result<Option<Record<Owned<K>>>, StoreError> {
    let Ok(guid) = uuid::Uuid::parse_str(guid) else { return Ok(None) };
    let guid = guid.to_string();
    let mut found: Option<Record<Owned<K>>> = None;
    store.each::<Owned<K>>("", |record| {
        let precedes = |found: &Record<Owned<K>>| record.value.closeness(person) < found.value.closeness(person);
        if record.value.head.guid == guid && found.as_ref().is_none_or(precedes) {
            found = Some(record);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

/// Returns whether an object of another user than `uid` has this GUID. Reads the whole collection.
///
/// # Errors
/// If the state is corrupt.
pub fn is_guid_of_others<K: OwnedKind>(store: &Store, guid: uuid::Uuid, uid: i32) -> Result<bool, StoreError> {
    let guid = guid.to_string();
    let is_other = |object: &Owned<K>| object.head.guid == guid && object.head.uid != uid;
    Ok(store.first::<Owned<K>>("", is_other)?.is_some())
}

/// Returns whether a user owns another object than `but` with this name. Reads the whole collection.
///
/// # Errors
/// If the state is corrupt.
pub fn is_name_used<K: OwnedKind>(store: &Store, name: &str, uid: i32, but: &str) -> Result<bool, StoreError> {
    let is_same = |object: &Owned<K>| object.head.uid == uid && object.head.name == name && object.head.id != but;
    Ok(store.first::<Owned<K>>("", is_same)?.is_some())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::invalid::check;
    use crate::owned_kinds::{Macro, Playbook, Template};
    use crate::record::{AsRead, written};
    use gravwell_model::Seq;
    use gravwell_replica::History;

    const DATE: &str = "2026-01-01T00:00:00Z";
    const ID: &str = "5f5e1a52-8c3e-4b7e-9a3a-0e6f2b9d7c11";

    fn read<K: OwnedKind>(text: &str) -> Record<Owned<K>> {
        let as_read = AsRead::Committed(Seq(1), History::default());
        Record::read(text.to_owned().into(), as_read).expect("reads")
    }

    #[test]
    fn members_of_clients_and_of_later_versions_are_kept_as_they_were_written() {
        let text = format!(
            r#"{{"Contents":{{"b":1.50,"A":9007199254740993,"b":[ ]}},"Created":"{DATE}","Description":"","GIDs":[],"#
        ) + &format!(
            r#""GUID":"","Global":false,"ID":"{ID}","Labels":[],"Later":{{"x":[1.0]}},"Name":"n","UID":7,"#
        ) + &format!(r#""Updated":"{DATE}","WriteAccess":{{"Global":false,"GIDs":[]}}}}"#);
        let mut record = read::<Template>(&text);
        let contents = &Template::SPEC.fields[0];
        assert_eq!(record.value.field(contents), r#"{"b":1.50,"A":9007199254740993,"b":[ ]}"#);
        assert_eq!(record.rewritten().expect("writes"), text);
        record.value.head.name = "m".into();
        assert_eq!(record.rewritten().expect("writes"), text.replace(r#""Name":"n""#, r#""Name":"m""#));
        let copy = String::from_utf8(written(&record.value).expect("writes").to_vec()).expect("text");
        assert!(copy.contains(r#""Later":{"x":[1.0]}"#), "{copy}");
        assert_eq!(check::<Owned<Template>>(ID, copy.as_bytes()), Ok(()));
    }

    #[test]
    fn p11_a_value_that_clients_cannot_read_is_invalid() {
        let macros = |id: &str, more: (&str, serde_json::Value)| {
            let mut value = json!({ "ID": id, "UID": 7, "Created": DATE, "Updated": DATE });
            value[more.0] = more.1;
            check::<Owned<Macro>>("17", value.to_string().as_bytes())
        };
        assert_eq!(macros("17", ("Expansion", json!("x"))), Ok(()));
        assert_eq!(macros("17", ("Later", json!(5))), Ok(()));
        assert_eq!(macros("17", ("Expansion", json!(5))), Err("Expansion must be a text".into()));
        assert_eq!(macros("18", ("Later", json!(5))), Err("the value belongs to key 18".into()));
        for id in ["017", "x", "", "-1", "9007199254740992"] {
            assert_eq!(macros(id, ("Later", json!(5))), Err("invalid ID".into()), "{id}");
        }
        assert_eq!(check::<Owned<Macro>>("17", br#"{"ID":"17"}"#), Err("missing field UID".into()));
        assert!(check::<Owned<Macro>>("17", b"[]").is_err() && check::<Owned<Macro>>("17", b"x").is_err());
    }

    #[test]
    fn values_of_clients_are_checked_by_the_form_of_their_field() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        let of = |name: &str| Playbook::SPEC.fields.iter().find(|field| field.name == name).expect("a field");
        let accepted = |name: &str, text: &str| of(name).accepted(&raw(text)).map(|value| value.get().to_owned());
        let wrong = |name: &str, text: &str| accepted(name, text).expect_err("is refused").to_string();
        assert_eq!(accepted("Body", r#""QQ==""#).as_deref(), Ok(r#""QQ==""#));
        assert_eq!(wrong("Body", r#""!""#), "Body must be a text in base64");
        assert_eq!(wrong("Body", "5"), "Body must be a text in base64");
        assert_eq!(accepted("Metadata", r#""e30=""#).as_deref(), Ok(r#""e30=""#));
        assert_eq!(wrong("Metadata", r#""QQ==""#), "Metadata must be a JSON object in base64");
        assert_eq!(accepted("Metadata", r#""""#).as_deref(), Ok(r#""e30=""#));
        let author = r#"{"Company":"","Email":"","Name":"Ann","URL":""}"#;
        assert_eq!(accepted("Author", r#"{"name":"Ann","URL":null,"x":"y"}"#).as_deref(), Ok(author));
        assert_eq!(wrong("Author", r#"{"Name":5}"#), "Author must be an object of texts");
        for field in [Macro::SPEC, Template::SPEC, Playbook::SPEC].into_iter().flat_map(|spec| spec.fields) {
            assert!(field.accepted(&raw(field.default)).is_ok(), "the default of {}", field.name);
        }
        for (name, is_right) in [("A_1-B", true), ("a", false), ("", false), ("A B", false), ("Ä", false)] {
            assert_eq!(NameForm::Identifier.check(name).is_ok(), is_right, "{name}");
        }
        assert!(NameForm::Title.check("").is_ok() && NameForm::Title.check("a\nb").is_err());
    }
}
