//! Which collections may be seen outside the process. The objects themselves are described further up; that a value is secret
//! has to be known wherever one is kept or shown.

/// How far a collection may be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// Shown to administrators in the live view and the audit, exported, backed up.
    Open,
    /// Somebody's own affair: in the live view and the audit only that it changed; exported and backed up.
    Personal,
    /// Never shown. Backed up only together with everything, never exported without being asked for by name.
    Secret,
}

const OPEN: &[&str] = &[
    "admins",
    "capabilities",
    "cleanings",
    "contents",
    "dashboards",
    "group-names",
    "groups",
    "id-leases",
    "locks",
    "memberships",
    "resources",
    "session-epochs",
    "tag-access",
    "token-epochs",
    "user-names",
    "users",
];
const PERSONAL: &[&str] = &["chunks", "history", "notifications", "preferences", "searches", "second-factor-steps"];
/// Collections whose values open something: what users, tokens and sessions prove themselves with, and the seeds
/// of second factors.
pub const SECRET: &[&str] =
    &["passwords", "recovery-codes", "second-factor-setups", "second-factors", "sessions", "signing-keys", "tokens"];

/// How far a collection may be seen; of one that this version does not know, not at all.
#[must_use]
pub fn of(collection: &str) -> Exposure {
    match collection {
        _ if OPEN.contains(&collection) => Exposure::Open,
        _ if PERSONAL.contains(&collection) => Exposure::Personal,
        _ => Exposure::Secret,
    }
}
