//! The one table of collections. Each row states everything that differs between kinds outside their own module: names,
//! visibility, owner, export archives, capabilities, quotas, texts of rejections, and the path of the REST API. Other
//! modules look these properties up here; they have no lists of collections.

use super::blobs::Content;
use super::capabilities::{Capabilities, Grants, TagGrants};
use super::cleanup::Cleaning;
use super::dashboards::Dashboard;
use super::groups::{Group, GroupName};
use super::history::Entry;
use super::invalid::check;
use super::notifications::Notification;
use super::owned::{Owned, OwnedKind, Spec};
use super::owned_kinds::{Actionable, Macro, Playbook, SavedQuery, Template};
use super::passwords::Password;
use super::preferences::Preference;
use super::record::Stored;
use super::resources::Resource;
use super::restores::Restore;
use super::searches::Search;
use super::second_factors::{Factor, LastStep, RecoveryCodes, Setup};
use super::sessions::{End, Epoch, FormerKey, Session};
use super::sharing::{Shareable, Shares};
use super::tokens::{Token, TokenEnd, TokenEpoch};
use super::users::{Admin, Lock, Membership, User, UserName};
use gravwell_model::visibility;

pub use gravwell_model::visibility::Visibility;

/// A collection of the webserver.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name of the collection.
    pub collection: &'static str,
    /// Description of its keys and contents.
    pub holds: &'static str,
    /// Visibility of its objects.
    pub exposure: Visibility,
    /// Noun for one object in messages.
    pub singular: &'static str,
    /// Noun for several objects in messages.
    pub plural: &'static str,
    /// Owner of its objects, and what is done with them when the owner is deleted.
    pub owner: Owner,
    /// Export archives that contain its objects.
    pub archive: Archive,
    /// Meaning of a rejection because the object exists already.
    pub taken: Taken,
    /// Capabilities that reading and changing its objects require; `None` if it is not ruled by capabilities.
    pub capabilities: Option<Capabilities>,
    /// Whether the quotas of users count its objects, by the member `UID` of their values.
    pub has_quota: bool,
    /// Returns the owner and the share scope of a value; `None` for objects that cannot be shared.
    pub shares: Option<ReadShares>,
    /// Path of the list in the REST API; `None` if there is none.
    pub path: Option<&'static str>,
    /// Specification of a kind that the generic resource serves.
    pub spec: Option<&'static Spec>,
    /// Checks that bytes are a valid object of this kind.
    pub check: Check,
}

/// Checks the bytes at a key; fails with a reason.
pub type Check = fn(key: &str, value: &[u8]) -> Result<(), String>;

/// Returns the owner and the share scope of a value; `None` if the value is invalid.
pub type ReadShares = fn(value: &[u8]) -> Option<Shares>;

/// Owner of the objects of a collection, and what is done with them when the owner is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// No user or group; or the module of the kind decides.
    Nobody,
    /// The user whose UID is the key. Deleted in the transaction that deletes the user.
    Uid,
    /// The user or group that the key names, as `user/<uid>` or `group/<gid>`. Deleted in the same transaction.
    Holder,
    /// The user with whose UID the key starts, as `<uid>/…`. Deleted with the user, in slices.
    Rows,
    /// The user that the value names. Deleted after the user, as it was read, unless it is shared.
    Private,
    /// The user that the value names. Kept: others may use it, and administrators can transfer it.
    Kept,
}

/// Export archives that contain the objects of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// All archives.
    Always,
    /// Archives with secrets.
    WithSecrets,
    /// No archive. A restore leaves the objects unchanged.
    Never,
}

/// Meaning of the condition that an object is absent, when the object exists at commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Its id was assigned to another object.
    Id,
    /// Another object has the name that is the key.
    Name,
    /// Another user wrote the object, which has no id of its own.
    Changed,
}

impl Kind {
    const fn of<T: Stored>(
        exposure: Visibility,
        (singular, plural): (&'static str, &'static str),
        holds: &'static str,
    ) -> Kind {
        Kind {
            collection: T::COLLECTION,
            holds,
            exposure,
            singular,
            plural,
            owner: Owner::Nobody,
            archive: Archive::Always,
            taken: Taken::Id,
            capabilities: None,
            has_quota: false,
            shares: None,
            path: None,
            spec: None,
            check: check::<T>,
        }
    }

    const fn owned(self, owner: Owner) -> Kind {
        Kind { owner, ..self }
    }

    const fn archived(self, archive: Archive) -> Kind {
        Kind { archive, ..self }
    }

    const fn taken(self, taken: Taken) -> Kind {
        Kind { taken, ..self }
    }

    const fn needs(self, read: &'static str, write: &'static str) -> Kind {
        Kind { capabilities: Some(Capabilities { read, write }), ..self }
    }

    const fn with_quota(self) -> Kind {
        Kind { has_quota: true, ..self }
    }

    /// Objects with an owner that can be shared, and count towards the owner's quota.
    const fn shared<T: Stored + Shareable>(self, owner: Owner) -> Kind {
        Kind { owner, has_quota: true, shares: Some(shares::<T>), ..self }
    }

    /// A kind that the generic resource serves.
    const fn of_spec<K: OwnedKind>(holds: &'static str) -> Kind {
        let spec = K::SPEC;
        let row = Kind::of::<Owned<K>>(Visibility::Open, (spec.singular, spec.plural), holds)
            .shared::<Owned<K>>(Owner::Private)
            .needs(spec.capabilities.read, spec.capabilities.write)
            .at(spec.path);
        Kind { spec: Some(spec), ..row }
    }

    const fn at(self, path: &'static str) -> Kind {
        Kind { path: Some(path), ..self }
    }

    /// Returns the owner and the share scope of a value at a key; `None` if the value is invalid there.
    #[must_use]
    pub fn shares_at(&self, key: &str, value: &[u8]) -> Option<Shares> {
        let shares = self.shares.and_then(|shares| shares(value))?;
        (self.check)(key, value).is_ok().then_some(shares)
    }
}

fn shares<T: Stored + Shareable>(value: &[u8]) -> Option<Shares> {
    serde_json::from_slice::<T>(value).ok().map(|object| Shares::of(&object))
}

/// Every collection of the webserver. Keys are in angle brackets.
pub const KINDS: &[Kind] = &[
    Kind::of::<User>(Visibility::Open, ("user", "users"), "<uid>: names and address of a user").at("/api/users"),
    Kind::of::<UserName>(
        Visibility::Open,
        ("user", "users"),
        "<normalised name>: owner of the name; makes names unique",
    )
    .taken(Taken::Name),
    Kind::of::<Admin>(
        Visibility::Open,
        ("role of administrator", "administrators"),
        "<uid>: exists while the user is an administrator",
    )
    .owned(Owner::Uid),
    Kind::of::<Lock>(Visibility::Open, ("lock", "locks"), "<uid>: exists while the account is locked")
        .owned(Owner::Uid),
    Kind::of::<Password>(Visibility::Secret, ("password", "passwords"), "<uid>: hash of the password")
        .owned(Owner::Uid)
        .archived(Archive::WithSecrets)
        .taken(Taken::Changed),
    Kind::of::<Factor>(
        Visibility::Secret,
        ("second factor", "second factors"),
        "<uid>: seed of the authenticator app; exists while login requires a code",
    )
    .owned(Owner::Uid)
    .archived(Archive::Never),
    Kind::of::<RecoveryCodes>(
        Visibility::Secret,
        ("set of recovery codes", "recovery codes"),
        "<uid>: hashes of the recovery codes",
    )
    .owned(Owner::Uid)
    .archived(Archive::Never),
    Kind::of::<LastStep>(
        Visibility::Personal,
        ("code of the second factor", "codes of second factors"),
        "<uid>: time step of the last code that was used",
    )
    .owned(Owner::Uid)
    .archived(Archive::Never),
    Kind::of::<Setup>(
        Visibility::Secret,
        ("second factor", "second factors"),
        "<uid>: seed of an authenticator app that is being set up",
    )
    .owned(Owner::Uid)
    .archived(Archive::Never),
    Kind::of::<Group>(Visibility::Open, ("group", "groups"), "<gid>: name and description of a group")
        .at("/api/groups"),
    Kind::of::<GroupName>(
        Visibility::Open,
        ("group", "groups"),
        "<normalised name>: owner of the name; makes names unique",
    )
    .taken(Taken::Name),
    Kind::of::<Membership>(
        Visibility::Open,
        ("membership", "memberships"),
        "<uid>/<gid>: exists while the user is a member of the group",
    )
    .owned(Owner::Rows),
    Kind::of::<Preference>(
        Visibility::Personal,
        ("set of preferences", "preferences"),
        "<uid>/<name>: preferences of a user",
    )
    .owned(Owner::Rows)
    .taken(Taken::Changed),
    Kind::of::<Dashboard>(Visibility::Open, ("dashboard", "dashboards"), "<id>: a dashboard")
        .shared::<Dashboard>(Owner::Kept)
        .needs("DashboardRead", "DashboardWrite")
        .at("/api/dashboards"),
    Kind::of_spec::<Macro>("<id>: a macro"),
    Kind::of_spec::<Template>("<uuid>: a template of queries"),
    Kind::of_spec::<Actionable>("<uuid>: an actionable"),
    Kind::of_spec::<SavedQuery>("<uuid>: a query of the library"),
    Kind::of_spec::<Playbook>("<uuid>: a playbook"),
    Kind::of::<Entry>(
        Visibility::Personal,
        ("entry of the search history", "entries of search histories"),
        "<uid>/<time>-<random>: one search of a user",
    )
    .owned(Owner::Rows)
    .at("/api/searchhistory"),
    Kind::of::<Search>(
        Visibility::Personal,
        ("search", "searches"),
        "<id>: a search, its progress, and the webserver that stores its results",
    )
    .shared::<Search>(Owner::Private)
    .needs("AttachSearch", "Search")
    .at("/api/searchctrl"),
    Kind::of::<Resource>(Visibility::Open, ("resource", "resources"), "<guid>: metadata of a resource")
        .shared::<Resource>(Owner::Kept)
        .needs("ResourceRead", "ResourceWrite")
        .at("/api/resources"),
    Kind::of::<Content>(
        Visibility::Open,
        ("contents of the resource", "contents of resources"),
        "<id>: size, hashes and users of a blob",
    ),
    Kind {
        collection: "chunks",
        exposure: Visibility::Personal,
        holds: "<content id>/<number>: a chunk of a blob",
        check: |_, _| Ok(()),
        ..Kind::of::<Content>(Visibility::Personal, ("contents of the resource", "contents of resources"), "")
    },
    Kind::of::<Grants>(
        Visibility::Open,
        ("list of grants", "lists of grants"),
        "user/<uid> or group/<gid>: capabilities that were granted",
    )
    .owned(Owner::Holder)
    .taken(Taken::Changed),
    Kind::of::<TagGrants>(
        Visibility::Open,
        ("list of grants", "lists of grants"),
        "user/<uid> or group/<gid>: tags that may be searched",
    )
    .owned(Owner::Holder)
    .taken(Taken::Changed),
    Kind::of::<Token>(Visibility::Secret, ("token", "tokens"), "<uid>/<uuid>: an API token, its value hashed")
        .owned(Owner::Rows)
        .archived(Archive::WithSecrets)
        .needs("TokenRead", "TokenWrite")
        .at("/api/tokens"),
    Kind::of::<TokenEpoch>(Visibility::Open, ("token", "tokens"), "<uid>: epoch of the user's valid API tokens")
        .owned(Owner::Uid)
        .archived(Archive::Never),
    Kind::of::<TokenEnd>(Visibility::Open, ("token", "tokens"), "<uid>/<id>: end of the user's API tokens before it")
        .owned(Owner::Rows)
        .archived(Archive::Never),
    Kind::of::<Session>(Visibility::Secret, ("session", "sessions"), "<uid>/<id>: a session")
        .owned(Owner::Rows)
        .archived(Archive::Never),
    Kind::of::<Epoch>(Visibility::Open, ("session", "sessions"), "<uid>: epoch of the user's valid sessions")
        .owned(Owner::Uid)
        .archived(Archive::Never),
    Kind::of::<End>(Visibility::Open, ("session", "sessions"), "<uid>/<id>: end of the user's sessions before it")
        .owned(Owner::Rows)
        .archived(Archive::Never),
    Kind::of::<Cleaning>(
        Visibility::Open,
        ("deletion of leftovers", "deletions of leftovers"),
        "<what>/<number>: leftovers of a deleted object that still have to be deleted",
    ),
    Kind::of::<Restore>(
        Visibility::Open,
        ("restore", "restores"),
        "unfinished: exists while a restore of an export archive is unfinished",
    )
    .archived(Archive::Never),
    Kind::of::<FormerKey>(
        Visibility::Secret,
        ("key", "keys"),
        "<id>: login-signing key of a webserver of an earlier version",
    )
    .archived(Archive::Never),
    Kind::of::<Notification>(
        Visibility::Personal,
        ("notification", "notifications"),
        "<id>: a message to a user, a group or all users",
    )
    // They expire, also in an archive.
    .archived(Archive::Never)
    .needs("NotificationRead", "NotificationWrite")
    .with_quota()
    .at("/api/notifications"),
];

/// Collection of counters that earlier versions wrote and nothing reads. It has no row, because it has no objects.
const FORMER: &str = "id-leases";

/// Returns the kind of a collection.
#[must_use]
pub fn of(collection: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.collection == collection)
}

/// Returns the visibility of a collection; that of an unknown collection is secret.
#[must_use]
pub fn exposure(collection: &str) -> Visibility {
    visibility::of(collection)
}

/// Returns whether a collection is secret.
#[must_use]
pub fn is_secret(collection: &str) -> bool {
    visibility::SECRET.contains(&collection)
}

/// Returns the owner of the objects of a collection; an unknown collection belongs to no user.
#[must_use]
pub fn owner(collection: &str) -> Owner {
    of(collection).map_or(Owner::Nobody, |kind| kind.owner)
}

/// Returns the export archives that contain a collection. One that this version does not know may hold secrets.
#[must_use]
pub fn archive(collection: &str) -> Archive {
    match of(collection) {
        Some(kind) => kind.archive,
        None if collection == FORMER => Archive::Never,
        None => Archive::WithSecrets,
    }
}

/// Returns the collections that no export archive contains.
pub fn never_archived() -> impl Iterator<Item = &'static str> {
    let never = KINDS.iter().filter(|kind| kind.archive == Archive::Never);
    never.map(|kind| kind.collection).chain([FORMER])
}

/// Returns the noun for one object of a collection.
#[must_use]
pub fn singular(collection: &str) -> &'static str {
    of(collection).map_or("object", |kind| kind.singular)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::capabilities;
    use crate::standing;
    use gravwell_model::revocation::{GRANTING, RESTRICTING, UNIQUE};
    use gravwell_model::{Collection, Key, Op};

    #[test]
    fn p11_collections_of_rights_are_known_kinds() {
        for collection in [RESTRICTING, GRANTING, UNIQUE].concat() {
            assert!(of(collection).is_some(), "{collection}");
        }
    }

    #[test]
    fn p11_what_is_secret_is_so_for_every_part_of_the_program() {
        for kind in KINDS {
            assert_eq!(exposure(kind.collection), kind.exposure, "{}", kind.collection);
            assert_eq!(is_secret(kind.collection), kind.exposure == Visibility::Secret, "{}", kind.collection);
        }
        assert!(visibility::SECRET.iter().all(|name| of(name).is_some()), "each secret collection is a known kind");
        assert_eq!(exposure("of-a-later-version"), Visibility::Secret);
    }

    #[test]
    fn every_collection_with_a_visibility_has_a_row_and_the_other_way_round() {
        let listed: BTreeSet<&str> = visibility::known().collect();
        let rows: BTreeSet<&str> = KINDS.iter().map(|kind| kind.collection).chain([FORMER]).collect();
        assert_eq!(listed, rows, "src/model/visibility.rs, and the table");
        assert_eq!(rows.len(), KINDS.len() + 1, "a collection has two rows");
    }

    /// The constants `COLLECTION` in the files of this crate.
    fn declared() -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).expect("lists") {
            let path = file.expect("an entry").path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("reads");
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            for marker in ["const COLLECTION: &'static str = \"", "        collection: \""] {
                let names = product.split(marker).skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(names.map(str::to_owned));
            }
        }
        found
    }

    #[test]
    fn every_type_that_is_stored_has_a_row() {
        let declared = declared();
        assert!(declared.len() > 20, "the declarations have another form: {declared:?}");
        let without: Vec<&String> = declared.iter().filter(|name| of(name).is_none()).collect();
        assert!(without.is_empty(), "collections without a row of KINDS: {without:?}");
    }

    #[test]
    fn every_kind_of_the_generic_resource_is_documented() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/webserver.md");
        let text = std::fs::read_to_string(file).expect("reads");
        for spec in KINDS.iter().filter_map(|kind| kind.spec) {
            let row = format!("| {} | `{}` |", spec.plural, spec.path);
            assert!(text.contains(&row), "docs/webserver.md has no row {row}");
        }
    }

    #[test]
    fn p11_rows_agree_with_each_other() {
        for kind in KINDS {
            let Kind { collection, owner, archive, exposure, capabilities, shares, has_quota, .. } = *kind;
            assert!(!kind.singular.is_empty() && !kind.plural.is_empty() && kind.holds.contains(':'), "{collection}");
            assert_eq!(shares.is_some(), [Owner::Private, Owner::Kept].contains(&owner), "{collection}");
            assert!(shares.is_none() || (has_quota && capabilities.is_some()), "{collection} is bounded and ruled");
            assert!(
                exposure != Visibility::Secret || archive != Archive::Always,
                "{collection}: a secret in an archive"
            );
            for name in capabilities.iter().flat_map(|needs| [needs.read, needs.write]) {
                assert!(capabilities::named(name).is_some_and(|known| known.name == name), "{collection}: {name}");
            }
        }
        assert_eq!(archive("of-a-later-version"), Archive::WithSecrets);
        assert_eq!(archive(FORMER), Archive::Never);
    }

    #[test]
    fn p11_secrets_are_written_only_with_a_valid_login() {
        for kind in KINDS.iter().filter(|kind| kind.exposure == Visibility::Secret) {
            let (collection, key) = (Collection::new(kind.collection).expect("name"), Key::new("7").expect("key"));
            let op = Op::Put { collection, key, value: "{}".into() };
            // Nothing reads the keys of earlier versions.
            let is_needed = standing::concern_access(&[op]) || kind.collection == FormerKey::COLLECTION;
            assert!(is_needed, "{}: ACCESS in src/objects/standing.rs", kind.collection);
        }
    }
}
