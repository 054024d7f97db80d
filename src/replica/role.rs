//! Write permission of this member: neither a reader nor a revoked member may write.
//!
//! It is known from the identity, and from every welcome. The datastore never accepts pending transactions of a member
//! that may no longer write, so they are moved to the rejected list. This happens after the state has reached the log's
//! head at the welcome, so that no transaction committed before is reported as rejected.

use gravwell_transport::trust::Role;

/// Returns why a member of this role may not write; `None` if it may.
pub(super) fn forbidden(role: &str) -> Option<String> {
    let is_reader = role == Role::Reader.to_string();
    is_reader.then(|| "this member is a reader and may not write; write at a webserver or at the datastore".to_owned())
}

/// Returns why a member that was revoked may not write.
pub(super) fn revoked() -> String {
    "this member was revoked before the datastore answered, so the change may be committed or not; join again with a \
     token from an administrator, and check before submitting it again"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_protocol::session::READER;

    #[test]
    fn p11_only_readers_may_not_write() {
        assert_eq!(Role::Reader.to_string(), READER);
        assert!(forbidden(READER).is_some() && forbidden(&Role::Webserver.to_string()).is_none());
    }
}
