//! Visibility of collections outside the process. The types of the objects are defined in higher layers, but every
//! layer that stores or shows a value must know whether it is secret.

/// Visibility of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Shown to administrators in the live view and the audit, exported, backed up.
    Open,
    /// Belongs to one user: the live view and the audit show only that it changed. Exported and backed up.
    Personal,
    /// Never shown. Included only in full backups, and exported only if requested by name.
    Secret,
}

const OPEN: &[&str] = &[
    "actionables",
    "admins",
    "capabilities",
    "cleanings",
    "contents",
    "dashboards",
    "group-names",
    "groups",
    // Counters of numbers that earlier versions assigned. Nothing reads them.
    "id-leases",
    "locks",
    "macros",
    "memberships",
    "playbooks",
    "resources",
    "restores",
    "saved-queries",
    "session-ends",
    "session-epochs",
    "tag-access",
    "templates",
    "token-ends",
    "token-epochs",
    "user-names",
    "users",
];
const PERSONAL: &[&str] = &["chunks", "history", "notifications", "preferences", "searches", "second-factor-steps"];
/// Collections whose values grant access: credentials of users, tokens and sessions, and the seeds of second factors.
pub const SECRET: &[&str] =
    &["passwords", "recovery-codes", "second-factor-setups", "second-factors", "sessions", "signing-keys", "tokens"];

/// Returns every collection that this version knows.
pub fn known() -> impl Iterator<Item = &'static str> {
    OPEN.iter().chain(PERSONAL).chain(SECRET).copied()
}

/// Returns the visibility of a collection; [`Visibility::Secret`] if this version does not know it.
#[must_use]
pub fn of(collection: &str) -> Visibility {
    match collection {
        _ if OPEN.contains(&collection) => Visibility::Open,
        _ if PERSONAL.contains(&collection) => Visibility::Personal,
        _ => Visibility::Secret,
    }
}
