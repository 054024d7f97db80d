//! The table of collections: what each holds, and who may ever see it.

/// What may be seen of a collection outside the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Shown to administrators in the live view, exported, backed up.
    Open,
    /// Somebody's own affair: in the live view only that it changed; exported and backed up.
    Personal,
    /// Never shown. Backed up only together with everything, never exported without being asked for by name.
    Secret,
}

/// One collection.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name of the collection.
    pub collection: &'static str,
    /// What it holds, for people.
    pub holds: &'static str,
    /// Who may see it.
    pub exposure: Exposure,
}

const fn kind(collection: &'static str, exposure: Exposure, holds: &'static str) -> Kind {
    Kind { collection, holds, exposure }
}

/// Every collection of the webserver. Keys stand in angle brackets.
pub const KINDS: &[Kind] = &[
    kind("users", Exposure::Open, "<uid>: names and address of a user"),
    kind("user-names", Exposure::Open, "<name in lower case>: whose name it is; makes names unique"),
    kind("admins", Exposure::Open, "<uid>: exists while the user is an administrator"),
    kind("locks", Exposure::Open, "<uid>: exists while the account is locked"),
    kind("passwords", Exposure::Secret, "<uid>: hash of the password"),
    kind("groups", Exposure::Open, "<gid>: name and description of a group"),
    kind("group-names", Exposure::Open, "<name in lower case>: whose name it is; makes names unique"),
    kind("memberships", Exposure::Open, "<uid>/<gid>: exists while the user is in the group"),
    kind("preferences", Exposure::Personal, "<uid>/<name>: preferences of a user"),
    kind("dashboards", Exposure::Open, "<id>: a dashboard"),
    kind("history", Exposure::Personal, "<uid>/<time>-<random>: one search of a user"),
    kind("searches", Exposure::Personal, "<id>: a search, how far it is, and which webserver has its results"),
    kind("resources", Exposure::Open, "<guid>: metadata of a resource"),
    kind("contents", Exposure::Open, "<id>: size, hashes and users of a content"),
    kind("chunks", Exposure::Personal, "<content id>/<number>: a piece of a content"),
    kind("capabilities", Exposure::Open, "user/<uid> or group/<gid>: capabilities that were granted"),
    kind("tag-access", Exposure::Open, "user/<uid> or group/<gid>: tags that may be searched"),
    kind("tokens", Exposure::Secret, "<uid>/<uuid>: an API token, its value hashed"),
    kind("sessions", Exposure::Secret, "<uid>/<id>: a login"),
    kind("signing-keys", Exposure::Secret, "<id>: key with which a webserver signs logins"),
    kind("notifications", Exposure::Personal, "<id>: a message to a user, a group or everybody"),
    kind("id-leases", Exposure::Open, "<kind>: first number that no webserver has taken for itself"),
];

/// What may be seen of a collection; of one that this version does not know, nothing.
#[must_use]
pub fn exposure(collection: &str) -> Exposure {
    KINDS.iter().find(|kind| kind.collection == collection).map_or(Exposure::Secret, |kind| kind.exposure)
}

/// Whether a collection is one of those that are kept secret.
#[must_use]
pub fn is_secret(collection: &str) -> bool {
    KINDS.iter().any(|kind| kind.collection == collection && kind.exposure == Exposure::Secret)
}
