//! The table of collections: contents and visibility.

use super::capabilities::{Grants, TagGrants};
use super::cleaning::Cleaning;
use super::contents::Content;
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
use crate::model::exposure;

pub use crate::model::exposure::Exposure;

/// A collection of the webserver.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name of the collection.
    pub collection: &'static str,
    /// Description of its keys and contents.
    pub holds: &'static str,
    /// Visibility of its objects.
    pub exposure: Exposure,
    /// Checks that bytes are a valid object of this kind.
    pub check: Check,
}

/// Checks the bytes at a key; fails with a reason.
pub type Check = fn(key: &str, value: &[u8]) -> Result<(), String>;

const fn kind<T: Stored>(exposure: Exposure, holds: &'static str) -> Kind {
    Kind { collection: T::COLLECTION, holds, exposure, check: check::<T> }
}

/// Every collection of the webserver. Keys are in angle brackets.
pub const KINDS: &[Kind] = &[
    kind::<User>(Exposure::Open, "<uid>: names and address of a user"),
    kind::<UserName>(Exposure::Open, "<normalised name>: owner of the name; makes names unique"),
    kind::<Admin>(Exposure::Open, "<uid>: exists while the user is an administrator"),
    kind::<Lock>(Exposure::Open, "<uid>: exists while the account is locked"),
    kind::<Password>(Exposure::Secret, "<uid>: hash of the password"),
    kind::<Factor>(Exposure::Secret, "<uid>: seed of the authenticator app; exists while login requires a code"),
    kind::<RecoveryCodes>(Exposure::Secret, "<uid>: hashes of the recovery codes"),
    kind::<LastStep>(Exposure::Personal, "<uid>: time step of the last code that was used"),
    kind::<Setup>(Exposure::Secret, "<uid>: seed of an authenticator app that is being set up"),
    kind::<Group>(Exposure::Open, "<gid>: name and description of a group"),
    kind::<GroupName>(Exposure::Open, "<normalised name>: owner of the name; makes names unique"),
    kind::<Membership>(Exposure::Open, "<uid>/<gid>: exists while the user is a member of the group"),
    kind::<Preference>(Exposure::Personal, "<uid>/<name>: preferences of a user"),
    kind::<Dashboard>(Exposure::Open, "<id>: a dashboard"),
    kind::<Entry>(Exposure::Personal, "<uid>/<time>-<random>: one search of a user"),
    kind::<Search>(Exposure::Personal, "<id>: a search, its progress, and the webserver that stores its results"),
    kind::<Resource>(Exposure::Open, "<guid>: metadata of a resource"),
    kind::<Content>(Exposure::Open, "<id>: size, hashes and users of a blob"),
    Kind {
        collection: "chunks",
        holds: "<content id>/<number>: a chunk of a blob",
        exposure: Exposure::Personal,
        check: |_, _| Ok(()),
    },
    kind::<Grants>(Exposure::Open, "user/<uid> or group/<gid>: capabilities that were granted"),
    kind::<TagGrants>(Exposure::Open, "user/<uid> or group/<gid>: tags that may be searched"),
    kind::<Token>(Exposure::Secret, "<uid>/<uuid>: an API token, its value hashed"),
    kind::<TokenEpoch>(Exposure::Open, "<uid>: epoch of the user's valid API tokens"),
    kind::<Session>(Exposure::Secret, "<uid>/<id>: a session"),
    kind::<Epoch>(Exposure::Open, "<uid>: epoch of the user's valid sessions"),
    kind::<Cleaning>(Exposure::Open, "<what>/<number>: leftovers of a deleted object that still have to be deleted"),
    kind::<Restore>(Exposure::Open, "unfinished: exists while a restore of an export archive is unfinished"),
    kind::<FormerKey>(Exposure::Secret, "<id>: login-signing key of a webserver of an earlier version"),
    kind::<Notification>(Exposure::Personal, "<id>: a message to a user, a group or all users"),
];

/// Returns the kind of a collection.
#[must_use]
pub fn of(collection: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.collection == collection)
}

/// Returns the visibility of a collection; that of an unknown collection is secret.
#[must_use]
pub fn exposure(collection: &str) -> Exposure {
    exposure::of(collection)
}

/// Returns whether a collection is secret.
#[must_use]
pub fn is_secret(collection: &str) -> bool {
    exposure::SECRET.contains(&collection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_what_is_secret_is_so_for_every_part_of_the_program() {
        for kind in KINDS {
            assert_eq!(exposure(kind.collection), kind.exposure, "{}", kind.collection);
            assert_eq!(is_secret(kind.collection), kind.exposure == Exposure::Secret, "{}", kind.collection);
        }
        assert!(exposure::SECRET.iter().all(|name| of(name).is_some()), "each secret collection is a known kind");
        assert_eq!(exposure("of-a-later-version"), Exposure::Secret);
    }
}
