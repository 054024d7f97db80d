//! The authority and its rotation, as requests and answers tell it. As all of them, in JSON: fields may be added, unknown ones are ignored.

use serde::{Deserialize, Serialize};

use crate::model::MemberName;

/// A step of the authority's rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum RotationStep {
    /// Make the authority that takes the place of the present one.
    Begin,
    /// Say how far it is.
    Status,
    /// Let the new one take its place.
    Finish {
        /// Members that may be left behind.
        without: Vec<MemberName>,
    },
    /// Keep the present one.
    Abort,
}

/// The authority's rotation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRotation {
    /// Name of the present authority.
    pub current: String,
    /// Name of the one that takes its place.
    pub next: Option<String>,
    /// Those that were replaced, oldest first.
    pub replaced: Vec<ReplacedAuthority>,
    /// The enrolled members.
    pub members: Vec<MemberAuthority>,
    /// Members whose tokens to join with are good until it ends only.
    pub invited: Vec<String>,
}

/// An authority that was replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplacedAuthority {
    /// Its name.
    pub name: String,
    /// When: milliseconds since 1970-01-01 UTC.
    pub replaced_ms: u64,
}

/// Where a member stands in the authority's rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAuthority {
    /// Its name.
    pub name: String,
    /// Its role.
    pub role: String,
    /// How far it is.
    pub stage: AuthorityStage,
    /// Whether it is connected now.
    pub connected: bool,
    /// When it was last heard of, milliseconds since 1970-01-01 UTC.
    pub last_seen_ms: Option<u64>,
}

/// How far a member is in the authority's rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorityStage {
    /// It has a certificate of the present authority.
    Present,
    /// That, and it has said that it trusts the new one.
    TrustsBoth,
    /// It has a certificate of the new one.
    New,
    /// It has a certificate of one that was to take the present one's place, which was taken back.
    TakenBack,
    /// It has a certificate of one that was replaced: it has to be enrolled again.
    Former,
}

/// Which authorities a member is to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootsInfo {
    /// The one that signed the datastore's own certificate first.
    pub roots: Vec<RootInfo>,
    /// Fingerprint of the one that is to sign the member's certificate, hexadecimal; `None`: it waits.
    pub issuing: Option<String>,
}

/// An authority, and why it is to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootInfo {
    /// Its certificate, base64 of DER.
    pub certificate: String,
    /// The word of another one for it, base64; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub word: String,
}

/// The sealed authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EscrowInfo {
    /// Changes with the register of members.
    pub stamp: String,
    /// The text of the file; absent when the member has it already.
    pub text: Option<String>,
}

/// How far a register of members has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterMark {
    /// Changes so far.
    pub count: u64,
    /// Name of the last one; empty where a version that named none made it.
    pub name: String,
    /// When that was: milliseconds since 1970-01-01 UTC.
    pub changed_ms: u64,
}

/// A mark with the signature of the datastore's authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedMark {
    /// The mark.
    pub mark: RegisterMark,
    /// Signature, base64.
    pub signature: String,
}
