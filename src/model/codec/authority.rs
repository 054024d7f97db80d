//! Requests and replies about the certificate authority (CA) and its rotation, in JSON: fields may be added, unknown
//! ones are ignored.

use serde::{Deserialize, Serialize};

use super::json_lines::timestamp;
use crate::MemberName;

/// Step of a CA rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum RotationStep {
    /// Create the new CA.
    Begin,
    /// Report the progress.
    Status,
    /// Replace the current CA by the new one.
    Finish {
        /// Members that may be left behind with a certificate of the replaced CA.
        without: Vec<MemberName>,
    },
    /// Abort the rotation and keep the current CA.
    Abort,
}

/// Progress of a CA rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRotation {
    /// Name of the current CA.
    pub current: String,
    /// Name of the new CA during a rotation.
    pub next: Option<String>,
    /// Replaced CAs, oldest first.
    pub replaced: Vec<ReplacedAuthority>,
    /// Enrolled members.
    pub members: Vec<MemberAuthority>,
    /// Members whose join tokens are valid only until the rotation finishes.
    pub invited: Vec<String>,
}

/// A replaced CA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedAuthority {
    /// Name of the CA.
    pub name: String,
    /// Time of the replacement in milliseconds since 1970-01-01 UTC.
    pub replaced_ms: u64,
}

/// Progress of a member in a CA rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAuthority {
    /// Name of the member.
    pub name: String,
    /// Role of the member.
    pub role: String,
    /// Stage that the member has reached.
    pub stage: AuthorityStage,
    /// Whether it is connected now.
    pub connected: bool,
    /// Time of the last contact in milliseconds since 1970-01-01 UTC.
    pub last_seen_ms: Option<u64>,
}

/// Stages of a member in a CA rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityStage {
    /// The member has a certificate of the current CA.
    Present,
    /// As before, and the member has confirmed that it trusts the new CA.
    TrustsBoth,
    /// The member has a certificate of the new CA.
    New,
    /// The member has a certificate of a new CA whose rotation was aborted.
    TakenBack,
    /// The member has a certificate of a replaced CA and must be enrolled again.
    Former,
}

/// CAs that a member must trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsInfo {
    /// The CA that signed the datastore's certificate comes first.
    pub roots: Vec<RootInfo>,
    /// Hexadecimal fingerprint of the CA that shall sign the member's certificate; `None` if the member has to wait.
    pub issuing: Option<String>,
}

/// A CA certificate, and the reason to trust it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInfo {
    /// Certificate as base64 of DER.
    pub certificate: String,
    /// Signature by the preceding CA in base64; empty if there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub word: String,
}

/// Encrypted CA backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowInfo {
    /// Version stamp, which changes with the member registry.
    pub stamp: String,
    /// Text of the backup file; absent if the member already has it.
    pub text: Option<String>,
    /// Whether the member registry in it is known to go on from the one that the member has shown.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub continues: bool,
}

/// Version of a member registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterMark {
    /// Number of changes so far.
    pub count: u64,
    /// Name of the last change; empty if it was made by a version without such names.
    pub name: String,
    /// Time of the last change in milliseconds since 1970-01-01 UTC.
    pub changed_ms: u64,
}

impl std::fmt::Display for RegisterMark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "change {} of {}", self.count, timestamp(self.changed_ms))
    }
}

/// A mark that is signed by the datastore's CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMark {
    /// The signed mark.
    pub mark: RegisterMark,
    /// Signature in base64.
    pub signature: String,
}
