//! A member's identity: key, certificate, trusted CA, and addresses of the datastore.
//!
//! It is stored in a single file, so that it is always replaced as a whole.

use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use super::authorities::is_issued_by;
use super::authority::{private_dir, read_private, sync_dir, write_private};
use super::succession::{self, Link};
use super::{CaBackup, Fingerprint, Role, TrustError, checksummed_text, fingerprint};
use gravwell_env::fs::first_free;
use gravwell_model::MemberName;

const FILE: &str = "member.json";
/// Start of the name of an encrypted CA backup that could not be read; a number follows.
const DAMAGED_ESCROW: &str = "escrow.damaged-";
/// Names of encrypted CA backups that were replaced, before their number.
const LEFT: &str = "escrow.left-";
/// Maximum number of them.
pub const LEFT_MAX: usize = 8;
/// Maximum number of roots trusted at the same time.
const ROOTS_MAX: usize = 8;

#[derive(Clone, Serialize, Deserialize)]
struct File {
    name: MemberName,
    role: Role,
    addresses: Vec<String>,
    authority_pem: String,
    certificate_pem: String,
    key_pem: String,
    /// Additional trusted roots, during a rotation of the CA.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more_roots_pem: Vec<String>,
}

/// Identity of an enrolled member.
#[derive(Clone)]
pub struct Identity {
    file: File,
    path: PathBuf,
}

/// A new key with the request to certify it.
pub struct NewKey {
    key: KeyPair,
    /// The certificate request, DER.
    pub request_der: Vec<u8>,
}

impl NewKey {
    /// Generates a key with its request.
    ///
    /// # Errors
    /// If random bytes are unavailable.
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
    /// Returns the identity directory within a data directory.
    #[must_use]
    pub fn dir(data_dir: &Path) -> PathBuf {
        data_dir.join("identity")
    }

    /// Returns the path of the encrypted CA backup that the member keeps for its datastore.
    #[must_use]
    pub fn escrow(data_dir: &Path) -> PathBuf {
        Self::dir(data_dir).join("escrow")
    }

    /// Returns the path of a backup that the datastore sent later and that holds an earlier registry: the datastore's
    /// registry was rolled back.
    #[must_use]
    pub fn earlier_escrow(data_dir: &Path) -> PathBuf {
        Self::dir(data_dir).join("escrow.earlier")
    }

    /// Returns the paths of encrypted CA backups that others replaced without going on from them, oldest first.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn left_escrows(data_dir: &Path) -> Result<Vec<PathBuf>, TrustError> {
        Ok(numbered(&Self::dir(data_dir), LEFT)?.into_iter().map(|(_, path)| path).collect())
    }

    /// Keeps an encrypted CA backup that another one replaces without going on from it: it may hold revocations that are
    /// recorded nowhere else. The last [`LEFT_MAX`] of them are kept.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_left(data_dir: &Path, escrow: &CaBackup) -> Result<(), TrustError> {
        let mut left = numbered(&Self::dir(data_dir), LEFT)?;
        if left.iter().any(|(_, path)| CaBackup::load(path).is_ok_and(|kept| kept == *escrow)) {
            return Ok(());
        }
        let number = left.last().map_or(0, |(last, _)| *last).saturating_add(1);
        let path = Self::dir(data_dir).join(format!("{LEFT}{number}"));
        escrow.save(&path)?;
        left.push((number, path));
        for (_, oldest) in &left[..left.len().saturating_sub(LEFT_MAX)] {
            tracing::warn!(path = %oldest.display(), "removing the oldest of too many replaced CA backups");
            std::fs::remove_file(oldest).map_err(|source| TrustError::Io { path: oldest.clone(), source })?;
        }
        Ok(())
    }

    /// Returns whether a data directory contains an identity.
    #[must_use]
    pub fn exists(data_dir: &Path) -> bool {
        Self::dir(data_dir).join(FILE).exists()
    }

    /// Returns the encrypted CA backups that were set aside because they could not be read.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn damaged_escrows(data_dir: &Path) -> Result<Vec<PathBuf>, TrustError> {
        Ok(numbered(&Self::dir(data_dir), DAMAGED_ESCROW)?.into_iter().map(|(_, path)| path).collect())
    }

    /// Renames an encrypted CA backup that cannot be read, because it may be the latest one. Returns its new path.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn set_escrow_aside(data_dir: &Path) -> Result<PathBuf, TrustError> {
        let (path, dir) = (Self::escrow(data_dir), Self::dir(data_dir));
        let aside = first_free(|number| dir.join(format!("{DAMAGED_ESCROW}{number}")));
        let renamed = aside.ok_or(std::io::ErrorKind::AlreadyExists.into()).and_then(|aside| {
            std::fs::rename(&path, &aside)?;
            Ok(aside)
        });
        let aside = renamed.map_err(|source| TrustError::Io { path, source })?;
        sync_dir(&dir)?;
        Ok(aside)
    }

    /// Creates a new identity and writes it.
    ///
    /// # Errors
    /// If the directory cannot be written.
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
            more_roots_pem: Vec::new(),
        };
        let identity = Identity { file, path: Self::dir(data_dir).join(FILE) };
        private_dir(&Self::dir(data_dir))?;
        identity.write()?;
        Ok(identity)
    }

    fn write(&self) -> Result<(), TrustError> {
        let text = serde_json::to_string_pretty(&self.file).map_err(|error| TrustError::Refused(error.to_string()))?;
        write_private(&self.path, checksummed_text::seal(&text).as_bytes())
    }

    /// Reads the identity of a data directory.
    ///
    /// # Errors
    /// If there is none, or it is corrupt or readable by others.
    pub fn load(data_dir: &Path) -> Result<Identity, TrustError> {
        let path = Self::dir(data_dir).join(FILE);
        let text = read_private(&path)?;
        let damaged = |what: String| TrustError::Damaged { path: path.clone(), what };
        // Identities from before the checksum was added consist of one JSON object.
        let is_bare = text.trim_end().ends_with('}');
        let body = if is_bare { text.as_str() } else { checksummed_text::open(&text).map_err(damaged)? };
        let file = serde_json::from_str(body).map_err(|error| damaged(error.to_string()))?;
        let identity = Identity { file, path };
        identity.roots()?;
        identity.certificate()?;
        identity.key()?;
        Ok(identity)
    }

    /// Adopts a renewed certificate with its key.
    ///
    /// # Errors
    /// If the file cannot be written; the former certificate is kept then.
    pub fn renew(&mut self, certificate_der: &[u8], key: &NewKey) -> Result<(), TrustError> {
        let mut next = self.clone();
        next.file.certificate_pem = pem(certificate_der);
        next.file.key_pem = key.key.serialize_pem();
        next.write()?;
        *self = next;
        Ok(())
    }

    /// Returns the member's name.
    #[must_use]
    pub fn name(&self) -> &MemberName {
        &self.file.name
    }

    /// Returns the member's role.
    #[must_use]
    pub fn role(&self) -> Role {
        self.file.role
    }

    /// Returns the addresses at which the datastore may be reached.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.file.addresses
    }

    fn damaged(&self, error: &dyn std::fmt::Display) -> TrustError {
        TrustError::Damaged { path: self.path.clone(), what: error.to_string() }
    }

    /// Returns the certificates of the trusted CAs: one, or several during a rotation.
    ///
    /// # Errors
    /// If a certificate does not decode.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, TrustError> {
        let texts = std::iter::once(&self.file.authority_pem).chain(&self.file.more_roots_pem);
        let roots = texts.map(|text| CertificateDer::from_pem_slice(text.as_bytes()));
        roots.collect::<Result<_, _>>().map_err(|error| self.damaged(&error))
    }

    /// Adopts the roots that the datastore sends, if they are trusted or signed by a trusted one. Returns whether the
    /// set changed.
    ///
    /// # Errors
    /// If none is trusted or signed by a trusted one, or the file cannot be written; the former roots are kept then.
    pub fn adopt_roots(&mut self, told: &[Link]) -> Result<bool, TrustError> {
        let known = self.roots()?;
        let is_vouched_for = |link: &&Link| {
            known.iter().any(|root| root.as_ref() == link.root || succession::vouches(root, &link.root, &link.word))
        };
        let mut taken = told.iter().take(ROOTS_MAX).filter(is_vouched_for).map(|link| pem(&link.root));
        let Some(first) = taken.next() else {
            return Err(TrustError::Refused("the datastore lists no CA that a trusted CA has signed".into()));
        };
        let mut next = self.clone();
        (next.file.authority_pem, next.file.more_roots_pem) = (first, taken.collect());
        let (roots, before) = (next.roots()?, known);
        if roots == before {
            return Ok(false);
        }
        next.write()?;
        *self = next;
        Ok(true)
    }

    /// Returns whether the trusted CA with that fingerprint signed this member's certificate; `None` if that CA is
    /// not trusted.
    ///
    /// # Errors
    /// If a certificate does not decode.
    pub fn is_issued_by(&self, print: &Fingerprint) -> Result<Option<bool>, TrustError> {
        let root = self.roots()?.into_iter().find(|root| fingerprint(root) == *print);
        let certificate = self.certificate()?;
        Ok(root.map(|root| is_issued_by(&certificate, &root)))
    }

    /// Locks the identity against other processes that would also change it; `None` if another process holds the lock.
    ///
    /// # Errors
    /// If the directory cannot be opened.
    pub fn turn(data_dir: &Path) -> Result<Option<std::fs::File>, TrustError> {
        let path = Self::dir(data_dir);
        let file = std::fs::File::open(&path).map_err(|source| TrustError::Io { path, source })?;
        let locked = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        Ok(locked.is_ok().then_some(file))
    }

    /// Returns the member's certificate.
    ///
    /// # Errors
    /// If it does not decode.
    pub fn certificate(&self) -> Result<CertificateDer<'static>, TrustError> {
        CertificateDer::from_pem_slice(self.file.certificate_pem.as_bytes()).map_err(|error| self.damaged(&error))
    }

    /// Returns the member's key.
    ///
    /// # Errors
    /// If it does not decode.
    pub fn key(&self) -> Result<PrivateKeyDer<'static>, TrustError> {
        PrivatePkcs8KeyDer::from_pem_slice(self.file.key_pem.as_bytes())
            .map(PrivateKeyDer::from)
            .map_err(|error| self.damaged(&error))
    }

    /// Returns the expiry time of the certificate in milliseconds since 1970-01-01 UTC.
    ///
    /// # Errors
    /// If the certificate does not decode.
    pub fn expires_ms(&self) -> Result<u64, TrustError> {
        let certificate = self.certificate()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| self.damaged(&error))?;
        Ok(u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1000))
    }

    /// Returns the secret from which this member derives stateless reset tokens. They show peers of an earlier
    /// incarnation that it was restarted.
    #[must_use]
    pub fn reset_key(&self) -> [u8; 32] {
        blake3::derive_key("gravwell member stateless reset v1", self.file.key_pem.as_bytes())
    }

    /// Returns whether two thirds of the certificate's lifetime have passed.
    ///
    /// # Errors
    /// If the certificate does not decode.
    pub fn needs_renewal(&self, now_ms: u64) -> Result<bool, TrustError> {
        let certificate = self.certificate()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|error| self.damaged(&error))?;
        let (from, to) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
        let now = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
        Ok(now >= from + (to - from) / 3 * 2)
    }
}

/// Returns the files in a directory whose name is `prefix` and a number, in the order of their numbers; none if there is
/// no directory.
fn numbered(dir: &Path, prefix: &str) -> Result<Vec<(u32, PathBuf)>, TrustError> {
    let io = |source| TrustError::Io { path: dir.to_owned(), source };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io)?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{Authority, Registry};

    #[test]
    fn p13_copies_that_others_replaced_are_kept_once_each_and_no_more_than_a_few() {
        const NOW: u64 = 1_800_000_000_000;
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        private_dir(&Identity::dir(temp.path())).expect("creates");
        let mut seal = |at| CaBackup::seal(&dir, &authority, &mut register, NOW + at).expect("seals");
        let copies: Vec<CaBackup> = (0..LEFT_MAX as u64 + 3).map(&mut seal).collect();
        for copy in &copies {
            (0..2).for_each(|_| Identity::keep_left(temp.path(), copy).expect("keeps"));
        }
        let left = Identity::left_escrows(temp.path()).expect("lists");
        let kept: Vec<CaBackup> = left.iter().map(|path| CaBackup::load(path).expect("reads")).collect();
        assert_eq!(kept, copies[3..]);
        assert!(left.last().expect("some").ends_with("escrow.left-11"), "sorted by number: {left:?}");
    }
}
