//! Rotation of the CA: two CAs are valid until every member has a certificate from the new one.
//!
//! The new CA is stored next to the current one, in `next.key` and `next.pem`, from `begin` to `finish`. During that
//! time members trust both and exchange their certificates for ones from the new CA. The datastore itself presents a
//! certificate from the current CA, which all members trust. Each step is decided by a single file. At the start,
//! `next.pem` appears last, renamed from `next.pem.made`; on abort, it is removed first. At the end, the new key
//! replaces the current one. An interruption leaves the state from before or after the step. A `next.key` that has
//! neither file and was not aborted has lost its certificate.
//!
//! A replaced CA stays known by its certificate, in `former.json`: positions that it signed are still proofs, and a
//! member that holds one of its certificates is informed why it is rejected.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::authority::{
    CERTIFICATE, KEY, NEXT_CERTIFICATE, NEXT_KEY, NEXT_MADE, private_dir, read_private, sync_dir, write_new_private,
    write_private,
};
use super::succession::Link;
use super::{Authority, Fingerprint, Proof, TrustError, checksummed_text, fingerprint, hex};
use gravwell_model::Generation;

pub(super) const FORMER: &str = "former.json";
const VERSION: u32 = 1;
/// Maximum number of former CAs that are remembered of each kind.
const FORMER_MAX: usize = 16;
/// Hexadecimal digits of a fingerprint that form its name.
const NAME_CHARS: usize = 16;

/// Returns a CA's name, for use where its whole fingerprint would be too long.
#[must_use]
pub fn authority_name(print: &Fingerprint) -> String {
    hex(print).chars().take(NAME_CHARS).collect()
}

/// How the lifetime of a CA ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Another CA replaced it.
    Replaced,
    /// It was the next CA of a rotation that was aborted.
    TakenBack,
}

#[derive(Clone, Serialize, Deserialize)]
struct FormerEntry {
    certificate: String,
    end: End,
    ended_ms: u64,
    generation: Generation,
    /// For a replaced CA: its successor. For an aborted one: the CA itself, with the signature of the current one.
    root: String,
    word: String,
}

#[derive(Serialize, Deserialize)]
struct FormerFile {
    #[serde(rename = "gravwell-former-authorities")]
    version: u32,
    former: Vec<FormerEntry>,
}

/// A CA whose key was deleted.
#[derive(Clone)]
pub struct Former {
    /// Certificate of the CA.
    pub certificate: CertificateDer<'static>,
    /// How its lifetime ended.
    pub end: End,
    /// End of its lifetime in milliseconds since 1970-01-01 UTC.
    pub ended_ms: u64,
    /// Generation of the log at that time.
    generation: Generation,
    link: Link,
}

impl Former {
    fn of(entry: &FormerEntry) -> Option<Former> {
        let bytes = |text: &String| STANDARD.decode(text).ok();
        Some(Former {
            certificate: CertificateDer::from(bytes(&entry.certificate)?),
            end: entry.end,
            ended_ms: entry.ended_ms,
            generation: entry.generation,
            link: Link { root: bytes(&entry.root)?, word: bytes(&entry.word)? },
        })
    }

    fn entry(&self) -> FormerEntry {
        FormerEntry {
            certificate: STANDARD.encode(&self.certificate),
            end: self.end,
            ended_ms: self.ended_ms,
            generation: self.generation,
            root: STANDARD.encode(&self.link.root),
            word: STANDARD.encode(&self.link.word),
        }
    }

    /// Returns the CA's name.
    #[must_use]
    pub fn name(&self) -> String {
        authority_name(&fingerprint(&self.certificate))
    }
}

/// The current, next and former CAs of a datastore.
pub struct Authorities {
    current: Authority,
    next: Option<Authority>,
    former: Vec<Former>,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::Io { path, source }
}

fn none() -> TrustError {
    TrustError::Refused("no CA rotation is in progress; start one with `begin`".into())
}

impl Authorities {
    /// Opens the CAs in `dir`, creating the first one on the first start. Completes the last step of an
    /// interrupted rotation.
    ///
    /// # Errors
    /// As [`Authority::open_or_create`].
    pub fn open_or_create(dir: &Path, now_ms: u64) -> Result<Authorities, TrustError> {
        let current = Authority::open_or_create(dir, now_ms)?;
        if Authority::certificate_path(dir) != dir.join(CERTIFICATE) {
            put_in_place(dir, NEXT_CERTIFICATE, CERTIFICATE)?;
        }
        Self::beside(dir, current)
    }

    /// Opens the CAs in `dir`; nothing is created or changed.
    ///
    /// # Errors
    /// As [`Authority::load`].
    pub fn load(dir: &Path) -> Result<Authorities, TrustError> {
        Self::beside(dir, Authority::load(dir)?)
    }

    fn beside(dir: &Path, current: Authority) -> Result<Authorities, TrustError> {
        check_halves(dir)?;
        let (key, certificate) = (dir.join(NEXT_KEY), dir.join(NEXT_CERTIFICATE));
        let is_waiting = certificate.exists() && Authority::certificate_path(dir) != certificate;
        if is_waiting && !key.exists() {
            return Err(TrustError::Damaged { path: key, what: "it is missing".into() });
        }
        let next = is_waiting.then(|| Authority::open(&key, &certificate)).transpose()?;
        let mut former = read_former(dir)?;
        // Written ahead by an interrupted step.
        let is_here = |former: &Former| {
            let here = [Some(&current), next.as_ref()].into_iter().flatten();
            here.map(Authority::certificate).any(|certificate| *certificate == former.certificate)
        };
        former.retain(|former| !is_here(former));
        Ok(Authorities { current, next, former })
    }

    /// Starts a rotation, or continues the one that is under way.
    ///
    /// # Errors
    /// If a file cannot be written, or no random bytes are available.
    pub fn begin(dir: &Path, now_ms: u64) -> Result<Authorities, TrustError> {
        let here = Self::open_or_create(dir, now_ms)?;
        if here.next.is_some() {
            return Ok(here);
        }
        private_dir(dir)?;
        let (path, made) = (dir.join(NEXT_KEY), dir.join(NEXT_MADE));
        if path.exists() && !made.exists() {
            // Left over from an aborted rotation whose last step was interrupted.
            remove(&path)?;
        }
        if !path.exists() {
            let (key, certificate) = Authority::make(now_ms)?;
            write_private(&made, certificate.as_bytes())?;
            // An existing key is never replaced: members may have certificates signed with it.
            write_new_private(&path, key.as_bytes())?;
        }
        Authority::open(&path, &made)?;
        put_in_place(dir, NEXT_MADE, NEXT_CERTIFICATE)?;
        Self::load(dir)
    }

    /// Finishes the rotation: only the new CA is valid from now on, and the key of the former one is deleted.
    ///
    /// # Errors
    /// If no rotation is under way, or a file cannot be written.
    pub fn finish(dir: &Path, generation: Generation, now_ms: u64) -> Result<Authorities, TrustError> {
        let Authorities { current, next, mut former } = Self::open_or_create(dir, now_ms)?;
        let next = next.ok_or_else(none)?;
        let link = Link { root: next.certificate().to_vec(), word: current.vouch(next.certificate())? };
        let certificate = current.certificate().clone();
        former.push(Former { certificate, end: End::Replaced, ended_ms: now_ms, generation, link });
        write_former(dir, &former)?;
        put_in_place(dir, NEXT_KEY, KEY)?;
        put_in_place(dir, NEXT_CERTIFICATE, CERTIFICATE)?;
        Self::load(dir)
    }

    /// Aborts the rotation: the current CA is kept, and the key of the new one is deleted.
    ///
    /// # Errors
    /// If no rotation is under way, or a file cannot be written.
    pub fn abort(dir: &Path, generation: Generation, now_ms: u64) -> Result<Authorities, TrustError> {
        let Authorities { current, next, mut former } = Self::open_or_create(dir, now_ms)?;
        let certificate = next.ok_or_else(none)?.certificate().clone();
        let link = Link { root: certificate.to_vec(), word: current.vouch(&certificate)? };
        former.push(Former { certificate, end: End::TakenBack, ended_ms: now_ms, generation, link });
        write_former(dir, &former)?;
        [NEXT_CERTIFICATE, NEXT_KEY].iter().try_for_each(|name| remove(&dir.join(name)))?;
        Self::load(dir)
    }

    /// Returns whether a rotation is under way in `dir`.
    #[must_use]
    pub fn is_rotating(dir: &Path) -> bool {
        let certificate = dir.join(NEXT_CERTIFICATE);
        certificate.exists() && Authority::certificate_path(dir) != certificate
    }

    /// Returns the current CA.
    #[must_use]
    pub fn current(&self) -> &Authority {
        &self.current
    }

    /// Returns the next CA of a rotation.
    #[must_use]
    pub fn next(&self) -> Option<&Authority> {
        self.next.as_ref()
    }

    /// Returns the CAs whose keys were deleted, oldest first.
    #[must_use]
    pub fn former(&self) -> &[Former] {
        &self.former
    }

    /// Returns the certificates of all CAs. A certificate signed by one of them identifies the client; it does not
    /// authorize it.
    #[must_use]
    pub fn all(&self) -> Vec<CertificateDer<'static>> {
        let here = [Some(&self.current), self.next.as_ref()].into_iter().flatten();
        let here = here.map(|authority| authority.certificate().clone());
        here.chain(self.former.iter().map(|former| former.certificate.clone())).collect()
    }

    /// Returns the roots that members should trust, each with another CA's signature. The issuer of the datastore's own
    /// certificate comes first. Includes the next CA, and aborted CAs as long as a member has a certificate from them
    /// according to `in_use`.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn roots(&self, in_use: impl Fn(&str) -> bool) -> Result<Vec<Link>, TrustError> {
        let current = self.current.certificate();
        let before =
            self.former.iter().rfind(|former| former.end == End::Replaced && former.link.root == current.as_ref());
        let word = before.map(|former| former.link.word.clone()).unwrap_or_default();
        let mut roots = vec![Link { root: current.to_vec(), word }];
        if let Some(next) = &self.next {
            let word = self.current.vouch(next.certificate())?;
            roots.push(Link { root: next.certificate().to_vec(), word });
        }
        let back = self.former.iter().filter(|former| former.end == End::TakenBack && in_use(&former.name()));
        roots.extend(back.map(|former| former.link.clone()));
        Ok(roots)
    }

    /// Returns the chain of links from former CAs to the current one.
    pub(super) fn links(&self) -> Vec<Link> {
        let replaced = self.former.iter().filter(|former| former.end == End::Replaced);
        replaced.map(|former| former.link.clone()).collect()
    }

    /// Returns the replaced CA that signed a certificate, if there is one.
    #[must_use]
    pub fn replaced_issuer(&self, certificate: &[u8]) -> Option<&Former> {
        let replaced = || self.former.iter().filter(|former| former.end == End::Replaced);
        replaced().next()?;
        replaced().find(|former| is_issued_by(certificate, &former.certificate))
    }

    /// Returns whether one of the CAs signed a position. A replaced CA is trusted only for positions from before
    /// its end.
    #[must_use]
    pub fn has_signed(&self, proof: &Proof) -> bool {
        let here = [Some(&self.current), self.next.as_ref()].into_iter().flatten();
        here.map(Authority::certificate).any(|certificate| proof.is_of(certificate))
            || self.former.iter().any(|former| {
                let is_in_time = proof.time_ms <= former.ended_ms && proof.position.generation <= former.generation;
                former.end == End::Replaced && is_in_time && proof.is_of(&former.certificate)
            })
    }

    /// Returns a value that changes with every rotation step; empty without rotations.
    #[must_use]
    pub fn stamp(&self) -> String {
        if self.next.is_none() && self.former.is_empty() {
            return String::new();
        }
        let mut hasher = blake3::Hasher::new();
        for certificate in self.all() {
            hasher.update(&fingerprint(&certificate));
        }
        format!("-{}{}", u8::from(self.next.is_some()), &hasher.finalize().to_hex()[..NAME_CHARS])
    }
}

/// Checks that `dir` does not contain only one half of the next CA. Reads few files in the normal case.
///
/// # Errors
/// If a half is missing; the message names the file and the remedy.
pub fn check_halves(dir: &Path) -> Result<(), TrustError> {
    // In this order, no step that another process completes concurrently looks like a loss.
    let key = dir.join(NEXT_KEY);
    if !key.exists() || dir.join(NEXT_MADE).exists() || dir.join(NEXT_CERTIFICATE).exists() {
        return Ok(());
    }
    for former in read_former(dir)?.iter().filter(|former| former.end == End::TakenBack) {
        match Authority::is_key_of(&key, &former.certificate) {
            Ok(false) => {}
            Ok(true) => return Ok(()),
            // The end of a rotation has just renamed it.
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    if !key.exists() {
        return Ok(());
    }
    let what = "it is missing although next.key exists, and members may have certificates from that CA: restore it \
                with `authority restore` from a CA backup made during the rotation, which every member has, or move \
                next.key away if no rotation was in progress";
    Err(TrustError::Damaged { path: dir.join(NEXT_CERTIFICATE), what: what.into() })
}

fn remove(path: &Path) -> Result<(), TrustError> {
    fs::remove_file(path).map_err(io(path))?;
    sync_dir(gravwell_env::fs::parent_dir(path))
}

/// Returns whether the CA with the certificate `root` signed a certificate.
pub(super) fn is_issued_by(certificate: &[u8], root: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let Ok((_, root)) = x509_parser::parse_x509_certificate(root) else { return false };
    certificate.verify_signature(Some(root.public_key())).is_ok()
}

fn put_in_place(dir: &Path, from: &str, to: &str) -> Result<(), TrustError> {
    let to = dir.join(to);
    fs::rename(dir.join(from), &to).map_err(io(&to))?;
    sync_dir(dir)
}

fn read_former(dir: &Path) -> Result<Vec<Former>, TrustError> {
    let path = dir.join(FORMER);
    let text = match read_private(&path) {
        Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    former_in(&text).map_err(|what| TrustError::Damaged { path, what })
}

/// Decodes the former CAs from the text of the file.
///
/// # Errors
/// Describes the corruption.
pub(super) fn former_in(text: &str) -> Result<Vec<Former>, String> {
    let file: FormerFile = serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!("it has version {}; this program supports {VERSION}", file.version));
    }
    let former: Option<Vec<Former>> = file.former.iter().map(Former::of).collect();
    former.ok_or_else(|| "it contains an invalid certificate".into())
}

fn write_former(dir: &Path, former: &[Former]) -> Result<(), TrustError> {
    let latest = |end: End| {
        let of_kind: Vec<&Former> = former.iter().filter(|former| former.end == end).collect();
        let surplus = of_kind.len().saturating_sub(FORMER_MAX);
        of_kind.into_iter().skip(surplus).map(Former::entry).collect::<Vec<_>>()
    };
    let former = [latest(End::Replaced), latest(End::TakenBack)].concat();
    let text = serde_json::to_string(&FormerFile { version: VERSION, former });
    let text = text.map_err(|error| TrustError::Refused(error.to_string()))?;
    write_private(&dir.join(FORMER), checksummed_text::seal(&text).as_bytes())
}

#[cfg(test)]
mod tests;
