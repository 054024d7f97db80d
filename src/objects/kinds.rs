//! The table of collections: contents and visibility.

use super::blobs::Content;
use super::capabilities::{Grants, TagGrants};
use super::cleanup::Cleaning;
use super::dashboards::Dashboard;
use super::groups::{Group, GroupName};
use super::history::Entry;
use super::invalid::check;
use super::notifications::Notification;
use super::passwords::Password;
use super::preferences::Preference;
use super::record::Stored;
use super::resources::Resource;
use super::restores::Restore;
use super::searches::Search;
use super::second_factors::{Factor, LastStep, RecoveryCodes, Setup};
use super::sessions::{Epoch, FormerKey, Session};
use super::tokens::{Token, TokenEpoch};
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
    /// Checks that bytes are a valid object of this kind.
    pub check: Check,
}

/// Checks the bytes at a key; fails with a reason.
pub type Check = fn(key: &str, value: &[u8]) -> Result<(), String>;

const fn kind<T: Stored>(exposure: Visibility, holds: &'static str) -> Kind {
    Kind { collection: T::COLLECTION, holds, exposure, check: check::<T> }
}

/// Every collection of the webserver. Keys are in angle brackets.
pub const KINDS: &[Kind] = &[
    kind::<User>(Visibility::Open, "<uid>: names and address of a user"),
    kind::<UserName>(Visibility::Open, "<normalised name>: owner of the name; makes names unique"),
    kind::<Admin>(Visibility::Open, "<uid>: exists while the user is an administrator"),
    kind::<Lock>(Visibility::Open, "<uid>: exists while the account is locked"),
    kind::<Password>(Visibility::Secret, "<uid>: hash of the password"),
    kind::<Factor>(Visibility::Secret, "<uid>: seed of the authenticator app; exists while login requires a code"),
    kind::<RecoveryCodes>(Visibility::Secret, "<uid>: hashes of the recovery codes"),
    kind::<LastStep>(Visibility::Personal, "<uid>: time step of the last code that was used"),
    kind::<Setup>(Visibility::Secret, "<uid>: seed of an authenticator app that is being set up"),
    kind::<Group>(Visibility::Open, "<gid>: name and description of a group"),
    kind::<GroupName>(Visibility::Open, "<normalised name>: owner of the name; makes names unique"),
    kind::<Membership>(Visibility::Open, "<uid>/<gid>: exists while the user is a member of the group"),
    kind::<Preference>(Visibility::Personal, "<uid>/<name>: preferences of a user"),
    kind::<Dashboard>(Visibility::Open, "<id>: a dashboard"),
    kind::<Entry>(Visibility::Personal, "<uid>/<time>-<random>: one search of a user"),
    kind::<Search>(Visibility::Personal, "<id>: a search, its progress, and the webserver that stores its results"),
    kind::<Resource>(Visibility::Open, "<guid>: metadata of a resource"),
    kind::<Content>(Visibility::Open, "<id>: size, hashes and users of a blob"),
    Kind {
        collection: "chunks",
        holds: "<content id>/<number>: a chunk of a blob",
        exposure: Visibility::Personal,
        check: |_, _| Ok(()),
    },
    kind::<Grants>(Visibility::Open, "user/<uid> or group/<gid>: capabilities that were granted"),
    kind::<TagGrants>(Visibility::Open, "user/<uid> or group/<gid>: tags that may be searched"),
    kind::<Token>(Visibility::Secret, "<uid>/<uuid>: an API token, its value hashed"),
    kind::<TokenEpoch>(Visibility::Open, "<uid>: epoch of the user's valid API tokens"),
    kind::<Session>(Visibility::Secret, "<uid>/<id>: a session"),
    kind::<Epoch>(Visibility::Open, "<uid>: epoch of the user's valid sessions"),
    kind::<Cleaning>(Visibility::Open, "<what>/<number>: leftovers of a deleted object that still have to be deleted"),
    kind::<Restore>(Visibility::Open, "unfinished: exists while a restore of an export archive is unfinished"),
    kind::<FormerKey>(Visibility::Secret, "<id>: login-signing key of a webserver of an earlier version"),
    kind::<Notification>(Visibility::Personal, "<id>: a message to a user, a group or all users"),
];

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

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::revocation::{GRANTING, RESTRICTING, UNIQUE};

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
}
