//! How far the rotations of the CA and of the recovery key are, member by member.

use serde::Serialize;

use gravwell_model::codec::admin::MemberInfo;
use gravwell_model::codec::authority::{AuthorityRotation, MemberAuthority};
use gravwell_transport::trust::{RecoveryKey, RecoveryKeys};

/// Recovery keys that decrypt a member's CA backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OpensWith {
    /// Only the current key.
    Present,
    /// The current key, and one that was replaced or whose rotation was cancelled.
    FormerToo,
    /// The current key and the new one.
    Both,
    /// Only the new key.
    New,
    /// A key that was replaced.
    Former,
    /// The member did not report a backup.
    Unknown,
}

impl OpensWith {
    fn of(member: &MemberInfo, keys: &RecoveryKeys) -> OpensWith {
        let Some(names) = member.copy_keys.as_deref() else { return OpensWith::Unknown };
        let has = |key: &RecoveryKey| names.split('+').any(|name| name == key.name());
        match (has(&keys.current), keys.next.as_ref().is_some_and(has)) {
            (true, true) => OpensWith::Both,
            (true, false) if names.contains('+') => OpensWith::FormerToo,
            (true, false) => OpensWith::Present,
            (false, true) => OpensWith::New,
            (false, false) => OpensWith::Former,
        }
    }

    /// Returns whether the key in use after the rotation decrypts the backup: the new one during a rotation, else the
    /// current one.
    pub(crate) fn is_ready(self, keys: &RecoveryKeys) -> bool {
        match keys.next {
            Some(_) => matches!(self, OpensWith::Both | OpensWith::New),
            None => matches!(self, OpensWith::Present | OpensWith::FormerToo),
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            OpensWith::Present => "current key",
            OpensWith::FormerToo => "current key and a former one",
            OpensWith::Both => "both keys",
            OpensWith::New => "new key",
            OpensWith::Former => "a former key",
            OpensWith::Unknown => "no backup known",
        }
    }
}

/// Member that stores a CA backup.
#[derive(Clone, Serialize)]
pub(crate) struct Holder {
    pub(crate) name: String,
    pub(crate) opens_with: OpensWith,
    pub(crate) last_seen_ms: Option<u64>,
}

/// Returns the enrolled members that store a CA backup.
pub(crate) fn holders(members: &[MemberInfo], keys: &RecoveryKeys) -> Vec<Holder> {
    let keeps_one =
        |member: &&MemberInfo| member.state == "enrolled" && (member.role == "webserver" || member.role == "reader");
    let holder = |member: &MemberInfo| Holder {
        name: member.name.clone(),
        opens_with: OpensWith::of(member, keys),
        last_seen_ms: member.last_seen_ms,
    };
    members.iter().filter(keeps_one).map(holder).collect()
}

/// Returns the names of the members for which `of` holds.
pub(crate) fn names(rotation: &AuthorityRotation, of: impl Fn(&MemberAuthority) -> bool) -> String {
    let chosen = rotation.members.iter().filter(|member| of(member));
    chosen.map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ")
}
