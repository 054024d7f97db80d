//! A member's own identity: key, certificate, authority, and where the datastore is.
//!
//! It lives in one file, so that it is replaced whole or not at all.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::authority::{private_dir, read_private, write_private};
use super::{Role, TrustError, summed};
use crate::model::MemberName;

const FILE: &str = "member.json";

#[derive(Clone, Serialize, Deserialize)]
struct File {
    name: MemberName,
    role: Role,
    addresses: Vec<String>,
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
}

/// An enrolled member's identity.
#[derive(Clone)]
pub struct Identity {
    file: File,
    path: PathBuf,
}

/// A fresh key with the request to certify it.
pub struct NewKey {
    key: KeyPair,
    /// The request, DER.
    pub request_der: Vec<u8>,
}

impl NewKey {
    /// Makes one.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn generate(name: &MemberName) -> Result<NewKey, TrustError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        let request_der = params.serialize_request(&key)?.der().to_vec();
        Ok(NewKey { key, request_der })
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

impl Identity {
    /// Directory of the identity within a data directory.
    #[must_use]
    pub fn dir(data_dir: &Path) -> PathBuf {
        data_dir.join("identity")
    }

    /// File of the sealed copy of the authority that the member keeps for its datastore.
    #[must_use]
    pub fn escrow(data_dir: &Path) -> PathBuf {
        Self::dir(data_dir).join("escrow")
    }

    /// Whether a data directory has one.
    #[must_use]
    pub fn exists(data_dir: &Path) -> bool {
        Self::dir(data_dir).join(FILE).exists()
    }

    /// Puts a new identity together and writes it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create(
        data_dir: &Path,
        name: MemberName,
        role: Role,
        addresses: Vec<String>,
        authority_der: &[u8],
        certificate_der: &[u8],
        key: &NewKey,
    ) -> Result<Identity, TrustError> {
        let file = File {
            name,
            role,
            addresses,
            authority_pem: pem(authority_der),
            certificate_pem: pem(certificate_der),
            key_pem: key.key.serialize_pem(),
        };
        let identity = Identity { file, path: Self::dir(data_dir).join(FILE) };
        private_dir(&Self::dir(data_dir))?;
        identity.write()?;
        Ok(identity)
    }

    fn write(&self) -> Result<(), TrustError> {
        let text = serde_json::to_string_pretty(&self.file).map_err(|error| TrustError::Refused(error.to_string()))?;
        write_private(&self.path, summed::seal(&text).as_bytes())
    }

    /// Reads the identity of a data directory.
    ///
    /// # Errors
    /// When there is none, or it is damaged or readable by others.
    pub fn load(data_dir: &Path) -> Result<Identity, TrustError> {
        let path = Self::dir(data_dir).join(FILE);
        let text = read_private(&path)?;
        let damaged = |what: String| TrustError::Damaged { path: path.clone(), what };
        // Identities made before there was a checksum are one JSON object.
        let is_bare = text.trim_end().ends_with('}');
        let body = if is_bare { text.as_str() } else { summed::open(&text).map_err(damaged)? };
        let file = serde_json::from_str(body).map_err(|error| damaged(error.to_string()))?;
        let identity = Identity { file, path };
        identity.certificate()?;
        identity.key()?;
        Ok(identity)
    }

    /// Takes over a renewed certificate with its key.
    ///
    /// # Errors
    /// When the file cannot be written; the former one stays then.
    pub fn renew(&mut self, certificate_der: &[u8], key: &NewKey) -> Result<(), TrustError> {
        let mut next = self.clone();
        next.file.certificate_pem = pem(certificate_der);
        next.file.key_pem = key.key.serialize_pem();
        next.write()?;
        *self = next;
        Ok(())
    }

    /// The member's name.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        &self.file.name
    }

    /// The member's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.file.role
    }

    /// Where the datastore may be reached.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.file.addresses
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> TrustError {
        TrustError::Damaged { path: self.path.clone(), what: error.to_string() }
    }

    /// The authority's certificate.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn authority(&self) -> Result<CertificateDer<'static>, TrustError> {
        CertificateDer::from_pem_slice(self.file.authority_pem.as_bytes()).map_err(|error| self.damaged(&error))
    }

    /// The member's certificate.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, TrustError> {
        CertificateDer::from_pem_slice(self.file.certificate_pem.as_bytes()).map_err(|error| self.damaged(&error))
    }

    /// The member's key.
    ///
    /// # Errors
    /// When it does not decode.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, TrustError> {
        PrivatePkcs8KeyDer::from_pem_slice(self.file.key_pem.as_bytes())
            .map(PrivateKeyDer::from)
            .map_err(|error| self.damaged(&error))
    }

    /// End of the certificate's life, milliseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// When the certificate does not decode.
    pub fn expires_ms(&self) -> Result<u64, TrustError> {
        let certificate = self.certificate()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| self.damaged(&error))?;
        Ok(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1000))
    }

    /// Secret from which this member makes the tokens that tell peers of an earlier life that it was restarted.
    #[must_use]
    pub fn reset_key(&self) -> [u8; 32] {
        blake3::derive_key("gravwell member stateless reset v1", self.file.key_pem.as_bytes())
    }

    /// Whether two thirds of the certificate's life are over.
    ///
    /// # Errors
    /// When the certificate does not decode.
    pub fn needs_renewal(&self, now_ms: u64) -> Result<bool, TrustError> {
        let certificate = self.certificate()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| self.damaged(&error))?;
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
        Ok(now >= from + (to - from) / 3 * 2)
    }
}
