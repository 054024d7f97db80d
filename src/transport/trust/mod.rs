//! Membership: the datastore's own certificate authority (CA), one-time tokens, members and their roles.
//!
//! There is no default secret and no mode without TLS. A member authenticates with a certificate from the datastore's
//! CA. The registry makes the final decision on every connection: a certificate that it does not list as current is
//! rejected, even if it has not expired.

mod authorities;
mod authority;
mod backup_key;
mod ca_backup;
mod descent;
pub mod encrypted_stream;
mod identity;
mod key_note;
mod key_text;
mod known_marks;
mod latest_ca_backup;
mod leftover_registry;
mod proof;
mod registry;
mod restore;
mod roster;
mod rotation;
mod succession;
pub mod tls;
mod token;
mod used_register;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use gravwell_model::MemberName;
use gravwell_model::fault_injection::{self, Bug};

pub use authorities::{Authorities, End, Former, authority_name, check_halves};
pub use authority::Authority;
pub use backup_key::BackupKey;
pub use ca_backup::{CaBackup, RecoveryKey, check_authority, other_authority};
pub use descent::listed;
pub(crate) use gravwell_env::checksummed_text;
pub use identity::{Identity, LEFT_MAX as LEFT_ESCROWS_MAX, NewKey};
pub use known_marks::{Choice, KnownMark, check_known};
pub use latest_ca_backup::{CopyRank, FoundCopy, Latest, check_key_counts, latest, latest_of_branch};
pub use leftover_registry::{RegisterChoice, readable_register};
pub use proof::{PROOF_BYTES_MAX, Proof};
pub use registry::{
    AuditMark, FloorPolicy, GivenUp, LogMark, MEMBERS_MAX, Member, MemberState, Refusal, RegisterMark, Registry,
    RegistryFile, Relation, SignedMark,
};
pub use restore::{PutBack, finish_exchange, key_that_counts, replace_trust, restore_found, restore_trust};
pub use roster::{BYTES_MAX as ROSTER_BYTES_MAX, KeptRoster, Roster, RosterCertificate, RosterMember};
pub use rotation::RecoveryKeys;
pub use succession::Link;
pub use token::{BadToken, Token};
pub use used_register::{GivenCopies, KeepWish, KeptRegister, Lacking, UnreadCopy, UsedRegister, keep_registry};

/// Role of a member, which decides its permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads and writes.
    Webserver,
    /// Reads only.
    Reader,
    /// Administers the datastore; holds no replica.
    Admin,
    /// Monitors the datastore and lists the webservers for a load balancer; holds no replica.
    Balancer,
}

impl Role {
    /// Returns whether members with this role hold a replica and therefore follow the log.
    #[must_use]
    pub fn holds_replica(self) -> bool {
        matches!(self, Role::Webserver | Role::Reader)
    }

    /// Returns whether members with this role may push transactions.
    #[must_use]
    pub fn may_write(self) -> bool {
        matches!(self, Role::Webserver | Role::Admin) || fault_injection::is(Bug::ReaderPushes)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Webserver => "webserver",
            Role::Reader => "reader",
            Role::Admin => "admin",
            Role::Balancer => "balancer",
        })
    }
}

/// Error for an unknown role name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a role; use webserver, reader, balancer or admin")]
pub struct BadRole(String);

impl FromStr for Role {
    type Err = BadRole;

    fn from_str(text: &str) -> Result<Role, BadRole> {
        match text {
            "webserver" => Ok(Role::Webserver),
            "reader" => Ok(Role::Reader),
            "admin" => Ok(Role::Admin),
            "balancer" => Ok(Role::Balancer),
            other => Err(BadRole(other.to_owned())),
        }
    }
}

/// Fingerprint of a certificate: BLAKE3 of its DER form.
pub type Fingerprint = [u8; 32];

/// Computes a certificate's fingerprint.
#[must_use]
pub fn fingerprint(certificate_der: &[u8]) -> Fingerprint {
    *blake3::hash(certificate_der).as_bytes()
}

/// Returns the name of the member in a certificate, which need not be accepted.
#[must_use]
pub fn member_in(certificate_der: &[u8]) -> Option<MemberName> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    MemberName::new(name).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Errors of this module.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file operation failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// Cause of the failure.
        source: std::io::Error,
    },
    /// A file is accessible to other users of the host.
    #[error("{path} is accessible to other users (mode {mode:o}); run `chmod {wanted:o}` on it", path = path.display())]
    Exposed {
        /// Path of the file.
        path: PathBuf,
        /// Its current mode.
        mode: u32,
        /// The mode that it should have.
        wanted: u32,
    },
    /// A file has invalid contents.
    #[error("{path} is damaged ({what}); restore it from a backup, it is not replaced by an empty one", path = path.display())]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Description of the corruption.
        what: String,
    },
    /// A certificate cannot be created or decoded.
    #[error("certificates: {0}")]
    Certificate(String),
    /// The request was rejected, with the reason.
    #[error("{0}")]
    Refused(String),
}

impl From<rcgen::Error> for TrustError {
    fn from(error: rcgen::Error) -> Self {
        TrustError::Certificate(error.to_string())
    }
}

impl From<rustls::Error> for TrustError {
    fn from(error: rustls::Error) -> Self {
        TrustError::Certificate(error.to_string())
    }
}

impl From<gravwell_env::data_dir::DirectoryError> for TrustError {
    fn from(error: gravwell_env::data_dir::DirectoryError) -> Self {
        TrustError::Refused(error.to_string())
    }
}
