//! Reasons for rejecting a certificate.

use gravwell_model::MemberName;

/// Reason why a certificate is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The certificate does not, or no longer, belong to a member.
    #[error("this certificate does not belong to a current member; ask an administrator for a new token")]
    Unknown,
    /// The membership of its holder was revoked.
    #[error("{0} was revoked; ask an administrator for a new token")]
    Revoked(MemberName),
    /// The holder cannot be determined at present.
    #[error("{0}")]
    Unverifiable(String),
    /// The CA that signed it was replaced while its holder was offline.
    #[error(
        "the datastore's CA was replaced at {1} while {0} was offline; enroll it again (`gravwell-logctl enroll NAME \
         --replace` at the datastore, `gravwell-logctl join TOKEN` here), which keeps its state and outbox"
    )]
    LeftBehind(String, String),
    /// The certificate has expired.
    #[error("the certificate of {0} has expired; ask an administrator for a new token")]
    Expired(MemberName),
}
