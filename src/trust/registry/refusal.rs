//! Why a certificate is not accepted.

use crate::model::MemberName;

/// Why a certificate is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// Its holder is not, or no longer, a member.
    #[error("this certificate is not, or no longer, a member's: ask an administrator for a new token")]
    Unknown,
    /// Its holder was cut off.
    #[error("{0} was revoked: ask an administrator for a new token")]
    Revoked(MemberName),
    /// Who holds it cannot be told now.
    #[error("{0}")]
    Unverifiable(String),
    /// The authority that signed it was replaced while its holder was away.
    #[error(
        "the datastore's authority was replaced at {1} while {0} was away: enrol it again (`gravwell-logctl enroll NAME --replace` \
         at the datastore, `gravwell-logctl join TOKEN` here); its state and its outbox are kept"
    )]
    LeftBehind(String, String),
    /// It has expired.
    #[error("the certificate of {0} has expired: ask an administrator for a new token")]
    Expired(MemberName),
}
