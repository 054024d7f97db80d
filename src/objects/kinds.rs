//! The table of collections: contents and visibility.

use super::capabilities::{Grants, TagGrants};
use super::cleaning::Cleaning;
use super::contents::Content;
use super::dashboards::Dashboard;
use super::groups::{Group, GroupName};
use super::history::Entry;
use super::ids::Counter;
use super::invalid::check;
use super::notifications::Notification;
use super::passwords::Password;
use super::preferences::Preference;
use super::record::Stored;
use super::resources::Resource;
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
    kind::<UserName>(Exposure::Open, "<name as it is looked up>: whose name it is; makes names unique"),
    kind::<Admin>(Exposure::Open, "<uid>: exists while the user is an administrator"),
    kind::<Lock>(Exposure::Open, "<uid>: exists while the account is locked"),
    kind::<Password>(Exposure::Secret, "<uid>: hash of the password"),
    kind::<Factor>(
        Exposure::Secret,
        "<uid>: seed of the app that makes codes for logins; exists while it is asked for",
    ),
    kind::<RecoveryCodes>(Exposure::Secret, "<uid>: hashes of codes for when that app is lost"),
    kind::<LastStep>(Exposure::Personal, "<uid>: up to when the codes of that app were used"),
    kind::<Setup>(Exposure::Secret, "<uid>: seed of an app that is not proved yet"),
    kind::<Group>(Exposure::Open, "<gid>: name and description of a group"),
    kind::<GroupName>(Exposure::Open, "<name as it is looked up>: whose name it is; makes names unique"),
    kind::<Membership>(Exposure::Open, "<uid>/<gid>: exists while the user is in the group"),
    kind::<Preference>(Exposure::Personal, "<uid>/<name>: preferences of a user"),
    kind::<Dashboard>(Exposure::Open, "<id>: a dashboard"),
    kind::<Entry>(Exposure::Personal, "<uid>/<time>-<random>: one search of a user"),
    kind::<Search>(Exposure::Personal, "<id>: a search, how far it is, and which webserver has its results"),
    kind::<Resource>(Exposure::Open, "<guid>: metadata of a resource"),
    kind::<Content>(Exposure::Open, "<id>: size, hashes and users of a content"),
    Kind {
        collection: "chunks",
        holds: "<content id>/<number>: a piece of a content",
        exposure: Exposure::Personal,
        check: |_, _| Ok(()),
    },
    kind::<Grants>(Exposure::Open, "user/<uid> or group/<gid>: capabilities that were granted"),
    kind::<TagGrants>(Exposure::Open, "user/<uid> or group/<gid>: tags that may be searched"),
    kind::<Token>(Exposure::Secret, "<uid>/<uuid>: an API token, its value hashed"),
    kind::<TokenEpoch>(Exposure::Open, "<uid>: the API tokens of a user that count"),
    kind::<Session>(Exposure::Secret, "<uid>/<id>: a login"),
    kind::<Epoch>(Exposure::Open, "<uid>: the logins of a user that count"),
    kind::<Cleaning>(
        Exposure::Open,
        "<what>/<number>: what is left of something that was deleted, until it is cleared away",
    ),
    kind::<FormerKey>(Exposure::Secret, "<id>: key with which a webserver of an earlier version signed logins"),
    kind::<Notification>(Exposure::Personal, "<id>: a message to a user, a group or everybody"),
    kind::<Counter>(Exposure::Open, "<kind>: first number that no webserver has taken for itself"),
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
        assert!(exposure::SECRET.iter().all(|name| of(name).is_some()), "each is a collection of the webserver");
        assert_eq!(exposure("of-a-later-version"), Exposure::Secret);
    }
}
