//! The datastore's own certificate authority (CA).

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber, SigningKey,
};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::succession::{self, Link};
use super::{Fingerprint, Role, TrustError, checksummed_text, fingerprint};
use gravwell_env::real_fs::create_dirs;
use gravwell_model::MemberName;

/// Name in every datastore's certificate, so that members need not know its address beforehand.
pub const SERVER_NAME: &str = "datastore.gravwell.internal";
/// Maximum time by which clocks of members may be slow.
const CLOCK_SLACK: Duration = Duration::hours(1);
const CA_YEARS: i64 = 20;
/// Files of the current CA, and of the next one during a rotation.
pub(super) const KEY: &str = "ca.key";
pub(super) const CERTIFICATE: &str = "ca.pem";
pub(super) const NEXT_KEY: &str = "next.key";
pub(super) const NEXT_CERTIFICATE: &str = "next.pem";
/// Certificate of the next CA until its key is written.
pub(super) const NEXT_MADE: &str = "next.pem.made";
const SERVER_DAYS: i64 = 365;

/// Key and certificate of a CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

fn io_error(path: &Path) -> impl FnOnce(std::io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::Io { path, source }
}

fn at(now_ms: u64) -> OffsetDateTime {
    let seconds = i64::try_from(now_ms / 1000).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn serial() -> Result<SerialNumber, TrustError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| TrustError::Certificate(error.to_string()))?;
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Atomically writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> Result<(), TrustError> {
    // The temporary name contains the whole file name: `recovery.next` is another key, next to `recovery.key`.
    let next = path.with_file_name(format!("{}.next", path.file_name().unwrap_or_default().to_string_lossy()));
    let mut options = fs::OpenOptions::new();
    let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&next).map_err(io_error(&next))?;
    std::io::Write::write_all(&mut file, contents).and_then(|()| file.sync_all()).map_err(io_error(&next))?;
    fs::rename(&next, path).map_err(io_error(path))?;
    sync_dir(gravwell_env::fs::parent_dir(path))
}

/// As [`write_private`], but only if no file exists; of several concurrent writers one succeeds. Returns `false` if a
/// file exists.
pub(super) fn write_new_private(path: &Path, contents: &[u8]) -> Result<bool, TrustError> {
    let staged = path.with_extension(format!("{}.next", super::hex(&super::key_text::random()?[..8])));
    let mut options = fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(&staged).map_err(io_error(&staged))?;
    let written = std::io::Write::write_all(&mut file, contents).and_then(|()| file.sync_all());
    let placed = written.and_then(|()| match renameat_with(CWD, &staged, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    });
    if !matches!(placed, Ok(true)) {
        let _ = fs::remove_file(&staged);
    }
    let is_new = placed.map_err(io_error(path))?;
    sync_dir(gravwell_env::fs::parent_dir(path))?;
    Ok(is_new)
}

pub(super) fn sync_dir(path: &Path) -> Result<(), TrustError> {
    fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(io_error(path))
}

/// Creates a directory that only its owner may enter.
pub(super) fn private_dir(path: &Path) -> Result<(), TrustError> {
    create_dirs(path, 0o700).map_err(io_error(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error(path))
}

/// Reads a file that only its owner may read.
pub(super) fn read_private(path: &Path) -> Result<String, TrustError> {
    let mode = fs::metadata(path).map_err(io_error(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TrustError::Exposed { path: path.to_owned(), mode, wanted: 0o600 });
    }
    read_text(path)
}

/// Reads a text file; other contents are reported as corruption.
pub(super) fn read_text(path: &Path) -> Result<String, TrustError> {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidData => TrustError::Damaged { path: path.to_owned(), what: "it is not text".into() },
        _ => io_error(path)(error),
    })
}

impl Authority {
    /// Opens the CA in `dir`, creating it on the first start.
    ///
    /// # Errors
    /// If its files are corrupt, incomplete or readable by others. It is never replaced, because all its members would
    /// have to join again.
    pub fn open_or_create(dir: &Path, now_ms: u64) -> Result<Authority, TrustError> {
        private_dir(dir)?;
        let (key_path, certificate_path) = (dir.join(KEY), Self::certificate_path(dir));
        match (key_path.exists(), certificate_path.exists()) {
            (false, _) if dir.join(super::registry::FILE).exists() && !super::Registry::is_unused(dir) => {
                Err(TrustError::Damaged { path: key_path, what: "it is missing, but there are members".into() })
            }
            // The certificate is written first, so a certificate without a key is an interrupted first start.
            (false, _) => {
                let (key, certificate) = Self::make(now_ms)?;
                write_private(&certificate_path, certificate.as_bytes())?;
                write_private(&key_path, key.as_bytes())?;
                Self::open(&key_path, &certificate_path)
            }
            (true, false) => Err(TrustError::Damaged { path: certificate_path, what: "it is missing".into() }),
            (true, true) => Self::open(&key_path, &certificate_path),
        }
    }

    /// Opens the CA in `dir`; nothing is created or changed.
    ///
    /// # Errors
    /// As [`Authority::open_or_create`], and if there is none.
    pub fn load(dir: &Path) -> Result<Authority, TrustError> {
        let certificate_path = Self::certificate_path(dir);
        if !certificate_path.exists() {
            return Err(TrustError::Damaged { path: certificate_path, what: "it is missing".into() });
        }
        Self::open(&dir.join(KEY), &certificate_path)
    }

    /// Returns the path of the certificate for the key in `dir`; after an interrupted last step of a rotation, still
    /// that of the next CA.
    pub(super) fn certificate_path(dir: &Path) -> PathBuf {
        let waiting = dir.join(NEXT_CERTIFICATE);
        let has_waiting = waiting.exists() && !dir.join(NEXT_KEY).exists();
        match has_waiting && Self::open(&dir.join(KEY), &waiting).is_ok() {
            true => waiting,
            false => dir.join(CERTIFICATE),
        }
    }

    /// Creates the texts of a new CA's files: its key and its certificate. Its subject name is unique, so that a client
    /// that trusts several CAs can state which.
    pub(super) fn make(now_ms: u64) -> Result<(String, String), TrustError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let number = super::hex(&blake3::hash(key.public_key_raw()).as_bytes()[..8]);
        params.distinguished_name.push(DnType::CommonName, format!("Gravwell datastore authority {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = at(now_ms) - CLOCK_SLACK;
        params.not_after = at(now_ms) + Duration::days(365 * CA_YEARS);
        params.serial_number = Some(serial()?);
        let certificate = params.self_signed(&key)?;
        Ok((key.serialize_pem(), checksummed_text::seal(&certificate.pem())))
    }

    /// Returns the fingerprint of the certificate in `dir` if it is readable, whether or not the key exists.
    pub(super) fn certificate_in(dir: &Path) -> Option<super::Fingerprint> {
        Self::certificate_from(&read_text(&Self::certificate_path(dir)).ok()?)
    }

    /// Returns the fingerprint of the certificate in a file's text if it can be decoded.
    pub(super) fn certificate_from(text: &str) -> Option<super::Fingerprint> {
        let is_bare = text.trim_end().ends_with("-----");
        let pem = if is_bare { text } else { checksummed_text::open(text).ok()? };
        CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|certificate| super::fingerprint(&certificate))
    }

    pub(super) fn open(key_path: &Path, certificate_path: &Path) -> Result<Authority, TrustError> {
        let damaged = |path: &Path, what: String| TrustError::Damaged { path: path.to_owned(), what };
        let key = KeyPair::from_pem(&read_private(key_path)?).map_err(|error| damaged(key_path, error.to_string()))?;
        let text = read_text(certificate_path)?;
        // The signature does not cover every byte of a certificate, hence the checksum. Files from before it was added
        // end in PEM.
        let is_bare = text.trim_end().ends_with("-----");
        let pem = if is_bare {
            &text
        } else {
            checksummed_text::open(&text).map_err(|what| damaged(certificate_path, what))?
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| damaged(certificate_path, error.to_string()))?
            .into_owned();
        let (rest, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| damaged(certificate_path, error.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged(certificate_path, "there is data after the certificate".into()));
        }
        parsed.verify_signature(None).map_err(|_| damaged(certificate_path, "its signature is invalid".into()))?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            let name = certificate_path.file_name().unwrap_or_default().to_string_lossy();
            return Err(damaged(key_path, format!("it is not the private key of {name}")));
        }
        Ok(Authority { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate })
    }

    /// Returns whether the key in the file `key_path` belongs to a certificate.
    pub(super) fn is_key_of(key_path: &Path, certificate: &CertificateDer<'_>) -> Result<bool, TrustError> {
        let damaged = |error: rcgen::Error| TrustError::Damaged { path: key_path.to_owned(), what: error.to_string() };
        let key = KeyPair::from_pem(&read_private(key_path)?).map_err(damaged)?;
        let parsed = x509_parser::parse_x509_certificate(certificate);
        Ok(parsed.is_ok_and(|(_, parsed)| *parsed.public_key().subject_public_key.data == *key.public_key_raw()))
    }

    /// Returns the CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the secret from which a datastore derives stateless reset tokens. They show clients of an earlier
    /// incarnation that it was restarted.
    #[must_use]
    pub fn reset_key(&self) -> [u8; 32] {
        blake3::derive_key("gravwell datastore stateless reset v1", self.issuer.key().serialized_der())
    }

    /// Returns the certificate's fingerprint, which tokens pin.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }

    /// Signs a message, which must not be mistakable for a certificate.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TrustError> {
        Ok(SigningKey::sign(self.issuer.key(), message)?)
    }

    /// Creates a key and certificate for the datastore itself, with the CA's certificate as the rest of the chain. It
    /// carries `links` from former CAs.
    ///
    /// # Errors
    /// If a name is not allowed in a certificate.
    pub fn server(
        &self,
        names: &[String],
        links: &[Link],
        now_ms: u64,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TrustError> {
        let key = KeyPair::generate()?;
        let mut all = vec![SERVER_NAME.to_owned(), "localhost".to_owned()];
        all.extend_from_slice(names);
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name.push(DnType::CommonName, SERVER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.custom_extensions.extend(succession::extension(links));
        params.not_before = at(now_ms) - CLOCK_SLACK;
        params.not_after = at(now_ms) + Duration::days(SERVER_DAYS);
        params.serial_number = Some(serial()?);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((vec![certificate.der().clone(), self.certificate.clone()], key.into()))
    }

    /// Signs a member's certificate request. The datastore decides on name and role, whatever the request contains.
    ///
    /// # Errors
    /// If the request does not decode or is not signed with its own key.
    pub fn sign_member(
        &self,
        request_der: &[u8],
        name: &MemberName,
        role: Role,
        days: u32,
        now_ms: u64,
    ) -> Result<CertificateDer<'static>, TrustError> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request_der))?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, role.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = at(now_ms) - CLOCK_SLACK;
        params.not_after = at(now_ms) + Duration::days(i64::from(days.max(1)));
        params.serial_number = Some(serial()?);
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.der().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p11_files_are_private_and_never_replaced() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let first = Authority::open_or_create(&dir, 1_700_000_000_000).expect("creates").fingerprint();
        let again = Authority::open_or_create(&dir, 1_800_000_000_000).expect("opens").fingerprint();
        assert_eq!(first, again);
        let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
        assert_eq!((mode(&dir), mode(&dir.join("ca.key"))), (0o700, 0o600));
        fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(Authority::open_or_create(&dir, 0), Err(TrustError::Exposed { .. })));
        fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(dir.join("ca.pem"), "damaged").expect("write");
        assert!(matches!(Authority::open_or_create(&dir, 0), Err(TrustError::Damaged { .. })));
    }
}
