//! Proofs: positions of the log that the datastore has signed.
//!
//! A member's report of its position is only a claim. After the datastore's disk is lost, signatures by the CA's key
//! distinguish committed entries from fabricated ones.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::{Authority, TrustError, checksummed_text};
use gravwell_env::data_dir::replace_file;
use gravwell_model::Position;

/// Domain separator: prevents other signatures of the CA's key from being accepted as a proof.
const DOMAIN: &[u8] = b"gravwell position v1\0";
/// Maximum size of a proof in bytes.
pub const PROOF_BYTES_MAX: usize = 4 << 10;

/// A position that the datastore has signed with its CA's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The signed position.
    pub position: Position,
    /// Time of the signature in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// Signature, base64.
    signature: String,
}

fn message(position: &Position, time_ms: u64) -> Vec<u8> {
    let bytes = postcard::to_extend(&(position, time_ms), DOMAIN.to_vec());
    bytes.expect("invariant: encoding numbers into memory cannot fail")
}

/// Returns whether the key of `certificate` has signed `message`.
pub(super) fn has_signed(certificate: &CertificateDer<'_>, message: &[u8], signature: &[u8]) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let key = &certificate.public_key().subject_public_key.data;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    algorithms.iter().any(|algorithm| algorithm.verify_signature(key, message, signature).is_ok())
}

impl Proof {
    /// Name of the file in a member's directory that holds the latest proof.
    pub const FILE: &str = "proof";

    /// Signs a position.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn sign(authority: &Authority, position: Position, time_ms: u64) -> Result<Proof, TrustError> {
        let signature = authority.sign(&message(&position, time_ms))?;
        Ok(Proof { position, time_ms, signature: STANDARD.encode(signature) })
    }

    /// Returns whether the CA with this certificate has signed the proof.
    #[must_use]
    pub fn is_of(&self, authority: &CertificateDer<'_>) -> bool {
        let signature = STANDARD.decode(&self.signature);
        signature.is_ok_and(|signature| has_signed(authority, &message(&self.position, self.time_ms), &signature))
    }

    /// Returns whether it is for an earlier position of the same log as `other`.
    #[must_use]
    pub fn is_older_than(&self, other: &Proof) -> bool {
        let at = |proof: &Proof| (proof.position.generation, proof.position.seq);
        self.position.log_id == other.position.log_id && at(self) < at(other)
    }

    /// Encodes the proof as text, for messages and files.
    #[must_use]
    pub fn to_text(&self) -> String {
        checksummed_text::seal(&serde_json::to_string(self).expect("invariant: it has no map with odd keys"))
    }

    /// Decodes the output of [`Proof::to_text`].
    ///
    /// # Errors
    /// If it is invalid; the text is the reason.
    pub fn from_bytes(bytes: &[u8]) -> Result<Proof, String> {
        if bytes.len() > PROOF_BYTES_MAX {
            return Err(format!("it has {} bytes; at most {PROOF_BYTES_MAX} are allowed", bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())
    }

    /// Reads the proof in a member's directory; `None` if there is none.
    ///
    /// # Errors
    /// If the file is invalid, with a description.
    pub fn load(directory: &Path) -> Result<Option<Proof>, String> {
        let path = directory.join(Self::FILE);
        let problem = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(problem(&error)),
            Ok(found) if found.len() > PROOF_BYTES_MAX as u64 => return Err(problem(&"it is too long")),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(|error| problem(&error))?;
        Proof::from_bytes(&bytes).map(Some).map_err(|what| problem(&what))
    }

    /// Stores the proof in a member's directory, replacing an earlier one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<(), String> {
        replace_file(&directory.join(Self::FILE), self.to_text().as_bytes()).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Digest, Generation, LogId, Seq};

    fn position(seq: u64) -> Position {
        let digest = Digest::from_bytes([3; 32]);
        Position { log_id: LogId([1; 16]), generation: Generation(2), seq: Seq(seq), chain: [4; 16], digest }
    }

    #[test]
    fn p13_only_what_the_authority_signed_is_a_proof() {
        let temp = tempfile::tempdir().expect("temp dir");
        let own = Authority::open_or_create(&temp.path().join("own"), 1_800_000_000_000).expect("creates");
        let other = Authority::open_or_create(&temp.path().join("other"), 1_800_000_000_000).expect("creates");
        let proof = Proof::sign(&own, position(7), 9).expect("signs");
        assert!(proof.is_of(own.certificate()));
        assert!(!proof.is_of(other.certificate()));
        assert!(!proof.is_of(&CertificateDer::from(vec![1, 2, 3])));
        let later = Position { generation: Generation(3), ..position(7) };
        for forged in [position(8), later, Position { digest: Digest::ZERO, ..position(7) }] {
            assert!(!Proof { position: forged, ..proof.clone() }.is_of(own.certificate()));
        }
        assert!(!Proof { time_ms: 10, ..proof.clone() }.is_of(own.certificate()));
        assert!(proof.is_older_than(&Proof { position: position(8), ..proof.clone() }));
        assert!(proof.is_older_than(&Proof { position: later, ..proof.clone() }));
        assert!(
            !proof.is_older_than(&Proof { position: Position { log_id: LogId([9; 16]), ..later }, ..proof.clone() })
        );
    }

    #[test]
    fn p15_a_file_that_is_no_proof_is_named() {
        let temp = tempfile::tempdir().expect("temp dir");
        let own = Authority::open_or_create(&temp.path().join("own"), 1_800_000_000_000).expect("creates");
        assert_eq!(Proof::load(temp.path()), Ok(None));
        let proof = Proof::sign(&own, position(7), 9).expect("signs");
        proof.save(temp.path()).expect("saves");
        assert_eq!(Proof::load(temp.path()), Ok(Some(proof.clone())));
        let good = proof.to_text();
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1;
            assert!(Proof::from_bytes(&bad).is_err() || Proof::from_bytes(&bad) == Ok(proof.clone()), "byte {at}");
        }
        std::fs::write(temp.path().join(Proof::FILE), vec![b'x'; PROOF_BYTES_MAX + 1]).expect("writes");
        assert!(Proof::load(temp.path()).is_err());
    }
}
