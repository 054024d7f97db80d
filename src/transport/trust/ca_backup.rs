//! Encrypted backups of the CA, kept by its members and encrypted under a key that only the operator has.
//!
//! A datastore's disk holds the only copy of its CA's key. The datastore therefore sends every member a backup of the
//! CA and the member registry, encrypted under the *recovery key*: 32 random bytes in `trust/recovery.key`, which the
//! operator writes down. The backup is useless to a member. With the recovery key, any single backup restores the CA,
//! and every member's certificate stays valid. A process that can read `recovery.key` on the datastore can also read
//! the CA's key next to it, so storing it there reveals nothing more.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::authorities::{End, FORMER, former_in};
use super::authority::{CERTIFICATE, NEXT_CERTIFICATE, NEXT_KEY, private_dir, read_private, write_private};
use super::descent::{Standing, standing};
use super::{
    Authorities, Authority, RecoveryKeys, RegisterChoice, Registry, SignedMark, TrustError, authority_name,
    checksummed_text, key_note, key_text, leftover_registry, registry,
};
use crate::trust::encrypted_stream::{open_bytes, seal_bytes};
use gravwell_model::codec::json_lines::timestamp;

pub(super) const KEY_FILE: &str = "recovery.key";
const PREFIX: &str = "gwr1.";
const NAME: &str = "gravwell recovery key name v1";
const VERSION: u32 = 1;
/// Hexadecimal digits of a fingerprint that are shown.
const NAME_CHARS: usize = 16;
/// Two key names and their separator.
const KEY_NAMES_BYTES_MAX: usize = 40;
/// Maximum size of a backup in bytes.
pub const ESCROW_BYTES_MAX: u64 = 64 << 20;

/// Key that opens an encrypted CA backup. Text form: `gwr1.`, then base64url of the key and the first 4 bytes of its
/// BLAKE3 hash.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey([u8; 32]);

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(hidden)")
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key_text::encode(PREFIX, &self.0))
    }
}

impl FromStr for RecoveryKey {
    type Err = TrustError;

    fn from_str(text: &str) -> Result<RecoveryKey, TrustError> {
        key_text::decode(PREFIX, "recovery key", text).map(RecoveryKey)
    }
}

impl RecoveryKey {
    /// Returns the key of the datastore with the trust directory `dir`, creating it if there never was one.
    ///
    /// # Errors
    /// As [`RecoveryKeys::open_or_create`].
    pub fn open_or_create(dir: &Path) -> Result<RecoveryKey, TrustError> {
        RecoveryKeys::open_or_create(dir).map(|keys| keys.current)
    }

    pub(super) fn generate() -> Result<RecoveryKey, TrustError> {
        key_text::random().map(RecoveryKey)
    }

    /// Returns the key of the datastore with the trust directory `dir`; `None` if it has none yet.
    ///
    /// # Errors
    /// If the file is corrupt or readable by others.
    pub fn load(dir: &Path) -> Result<Option<RecoveryKey>, TrustError> {
        RecoveryKey::read(&dir.join(KEY_FILE))
    }

    pub(super) fn read(path: &Path) -> Result<Option<RecoveryKey>, TrustError> {
        let text = match read_private(path) {
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let damaged = |error: TrustError| {
            let what = format!("{error}; {}", key_note::PUT_BACK);
            TrustError::Damaged { path: path.to_owned(), what }
        };
        text.parse().map(Some).map_err(damaged)
    }

    /// Checks that this is a recovery key of the CA in the trust directory `dir`.
    ///
    /// # Errors
    /// If that CA has another key, or none yet. The message contains the remedy.
    pub fn check_same(&self, dir: &Path) -> Result<(), TrustError> {
        if RecoveryKeys::load(dir)?.is_some_and(|keys| keys.all().contains(self)) {
            return Ok(());
        }
        Err(other_authority(dir, "the recovery key belongs to another CA"))
    }

    /// Returns a name that identifies the key without revealing it.
    #[must_use]
    pub fn name(&self) -> String {
        key_text::name(NAME, &self.0)
    }

    /// Returns the key under which backup keys are encrypted, and nothing else.
    pub(super) fn for_backup_keys(&self) -> [u8; 32] {
        blake3::derive_key("gravwell backup key under a recovery key v1", &self.0)
    }
}

/// The encrypted part of a backup.
#[derive(Clone, Serialize, Deserialize)]
struct Contents {
    files: BTreeMap<String, String>,
}

/// Encrypted backup of a CA with its member registry. The unencrypted fields only help to choose among several backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaBackup {
    /// Version of this format.
    #[serde(rename = "gravwell-escrow")]
    version: u32,
    /// Time of creation in milliseconds since 1970-01-01 UTC.
    pub made_ms: u64,
    /// Fingerprint of the CA's certificate, hexadecimal.
    pub authority: String,
    /// Changes whenever a member is enrolled, renewed or revoked, and when the recovery keys change. It ends with
    /// their names.
    pub stamp: String,
    sealed: String,
    /// The same contents, encrypted under the next recovery key during a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed_next: Option<String>,
    /// Stamp of a backup that is encrypted under both keys. Earlier versions drop it together with the
    /// second ciphertext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stamp_next: Option<String>,
    /// Signed mark of the registry in the backup; absent in backups of versions that did not record it.
    #[serde(rename = "register", default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<SignedMark>,
}

/// The files that make up the trust directory of a datastore.
const FILES: [&str; 3] = [CERTIFICATE, registry::FILE, "ca.key"];
/// Additional files if a rotation is or was under way: the next CA, and the list of former CAs.
const OF_ROTATION: [&str; 3] = [NEXT_KEY, NEXT_CERTIFICATE, FORMER];

impl CaBackup {
    /// Encrypts the trust directory `dir`, with the registry from memory.
    ///
    /// # Errors
    /// If a file cannot be read, or no random bytes are available.
    pub fn seal(
        dir: &Path,
        authority: &Authority,
        register: &mut Registry,
        now_ms: u64,
    ) -> Result<CaBackup, TrustError> {
        let keys = RecoveryKeys::open_or_create(dir)?;
        let here = Authorities::load(dir)?;
        if here.current().fingerprint() != authority.fingerprint() {
            return Err(other_authority(dir, "a backup of another CA was requested"));
        }
        let whole = CaBackup::stamp_of(register, &here, &keys);
        let stamp = alone(&whole).to_owned();
        let stamp_next = keys.next.is_some().then_some(whole);
        let mark = Some(authority.sign_mark(register.mark())?);
        let mut files = BTreeMap::new();
        for name in FILES {
            let text = match name {
                registry::FILE => register.text(now_ms)?,
                CERTIFICATE => read(&Authority::certificate_path(dir))?,
                name => read(&dir.join(name))?,
            };
            files.insert(name.to_owned(), text);
        }
        for name in OF_ROTATION {
            match read(&dir.join(name)) {
                Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                text => drop(files.insert(name.to_owned(), text?)),
            }
        }
        let refused = |error: &dyn fmt::Display| TrustError::Refused(error.to_string());
        let contents = serde_json::to_vec(&Contents { files }).map_err(|error| refused(&error))?;
        let seal = |key: &RecoveryKey| match seal_bytes(&key.0, &contents) {
            Ok(sealed) => Ok(STANDARD.encode(sealed)),
            Err(error) => Err(refused(&error)),
        };
        let (sealed, sealed_next) = (seal(&keys.current)?, keys.next.as_ref().map(seal).transpose()?);
        let authority = super::hex(&authority.fingerprint());
        Ok(CaBackup { version: VERSION, made_ms: now_ms, authority, stamp, sealed, sealed_next, stamp_next, mark })
    }

    /// Returns the stamp of a backup of this registry and these CAs under these keys.
    #[must_use]
    pub fn stamp_of(register: &Registry, authorities: &Authorities, keys: &RecoveryKeys) -> String {
        format!("{}{}.{}", register.stamp(), authorities.stamp(), keys.names())
    }

    /// Returns the stamp that its keeper reports, with the names of the keys that open the backup as stored there.
    #[must_use]
    pub fn known(&self) -> &str {
        match (&self.stamp_next, &self.sealed_next) {
            (Some(whole), Some(_)) => whole,
            (None, Some(_)) => &self.stamp,
            (_, None) => alone(&self.stamp),
        }
    }

    /// Returns the names of the keys that open a backup with this stamp; `None` if it comes from a version that does
    /// not record them.
    #[must_use]
    pub fn keys_of(stamp: &str) -> Option<&str> {
        let (_, names) = stamp.split_once('.')?;
        let is_name = |byte: u8| byte.is_ascii_hexdigit() || byte == b'+';
        (names.len() <= KEY_NAMES_BYTES_MAX && names.bytes().all(is_name)).then_some(names)
    }

    /// Encodes the backup as the text of a file.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn to_text(&self) -> Result<String, TrustError> {
        let body = serde_json::to_string(self).map_err(|error| TrustError::Refused(error.to_string()))?;
        Ok(checksummed_text::seal(&body))
    }

    /// Decodes the output of [`CaBackup::to_text`].
    ///
    /// # Errors
    /// If the text is invalid.
    pub fn from_text(text: &str) -> Result<CaBackup, String> {
        let escrow: CaBackup =
            serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())?;
        if escrow.version != VERSION {
            return Err(format!("it has version {}; this program supports {VERSION}", escrow.version));
        }
        Ok(escrow)
    }

    /// Reads a backup from a file.
    ///
    /// # Errors
    /// If the file does not exist or is corrupt.
    pub fn load(path: &Path) -> Result<CaBackup, TrustError> {
        let length = std::fs::metadata(path).map_err(|source| io(path, source))?.len();
        let damaged = |what| TrustError::Damaged { path: path.to_owned(), what };
        if length > ESCROW_BYTES_MAX {
            return Err(damaged(format!("it has {length} bytes, which is too long")));
        }
        let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
        let text = String::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
        CaBackup::from_text(&text).map_err(damaged)
    }

    /// Writes the backup to a file that only its owner may read.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), TrustError> {
        write_private(path, self.to_text()?.as_bytes())
    }

    /// Restores the CA into the trust directory `dir`, which has none. Also restores the registry, unless a later one
    /// is left there. Returns whether the existing registry was kept.
    ///
    /// # Errors
    /// If the key does not open the backup, there already is a CA, an operator must choose a registry, or a file cannot
    /// be written.
    pub fn restore(
        &self,
        key: &RecoveryKey,
        dir: &Path,
        now_ms: u64,
        wish: Option<RegisterChoice>,
    ) -> Result<bool, TrustError> {
        self.restore_beside(key, (dir, dir), now_ms, wish)
    }

    /// As [`CaBackup::restore`], with the registry that is left in the trust directory `left`.
    ///
    /// # Errors
    /// As [`CaBackup::restore`].
    pub fn restore_beside(
        &self,
        key: &RecoveryKey,
        (left, dir): (&Path, &Path),
        now_ms: u64,
        wish: Option<RegisterChoice>,
    ) -> Result<bool, TrustError> {
        let stays = leftover_registry::stays(self, key, left, wish)?;
        self.put(key, (left, dir), now_ms, stays.as_deref())?;
        Ok(stays.is_some())
    }

    /// Writes the CA to `dir`, with the registry `stays` or, without it, the one in the backup, which counts as later than
    /// the one that is left in the trust directory `left`.
    pub(super) fn put(
        &self,
        key: &RecoveryKey,
        (left, dir): (&Path, &Path),
        now_ms: u64,
        stays: Option<&str>,
    ) -> Result<(), TrustError> {
        let files = self.open(key)?;
        if dir.join("ca.key").exists() {
            let what = format!("{} already contains a CA, which is never replaced", dir.display());
            return Err(TrustError::Refused(what));
        }
        private_dir(dir)?;
        // An existing key is the one that the operator has received since this backup was made; the key that opens the
        // backup may be a former one.
        let is_same = self.may_be_of(dir);
        let has_key = is_same && RecoveryKeys::stays(dir, key)?;
        // The CA's key is written last: without it the rest is ignored, and the next attempt starts over.
        let staged = dir.join("incoming");
        match std::fs::remove_dir_all(&staged) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(io(&staged, source)),
            _ => private_dir(&staged)?,
        }
        for name in FILES {
            write_private(&staged.join(name), files.get(name).map(String::as_bytes).unwrap_or_default())?;
        }
        for (name, text) in OF_ROTATION.into_iter().filter_map(|name| Some((name, files.get(name)?))) {
            write_private(&staged.join(name), text.as_bytes())?;
        }
        // Tokens that were redeemed after the backup was made would become valid again.
        let least = leftover_registry::readable_register(left).map_or(0, |former| former.mark().count);
        Registry::open(&staged, now_ms)?.forget_invitations(least, now_ms)?;
        Authorities::open_or_create(&staged, now_ms)?;
        for name in OF_ROTATION {
            let path = dir.join(name);
            match files.get(name) {
                Some(text) => leftover_registry::replace(&path, text)?,
                // Leftover files of another rotation do not match the restored CA.
                None if path.exists() => leftover_registry::set_aside(&path)?,
                None => {}
            }
        }
        leftover_registry::replace(&dir.join(FILES[0]), &read(&staged.join(FILES[0]))?)?;
        match stays {
            Some(text) => leftover_registry::replace_registry(dir, text)?,
            None => leftover_registry::replace_registry(dir, &read(&staged.join(registry::FILE))?)?,
        }
        if !has_key {
            RecoveryKeys::take(dir, key, is_same)?;
        }
        RecoveryKeys::note_those_of(dir);
        write_private(&dir.join(FILES[2]), read(&staged.join(FILES[2]))?.as_bytes())?;
        std::fs::remove_dir_all(&staged).map_err(|source| io(&staged, source))
    }

    /// Returns the time of the backup from its encrypted part.
    ///
    /// # Errors
    /// If `key` does not open it, or the registry in it is corrupt.
    pub fn made(&self, key: &RecoveryKey) -> Result<u64, TrustError> {
        Ok(self.register(key)?.saved_ms())
    }

    /// Returns the registry in the backup.
    pub(super) fn register(&self, key: &RecoveryKey) -> Result<Registry, TrustError> {
        let files = self.open(key)?;
        Registry::from_text(files.get(registry::FILE).map_or("", String::as_str), 0)
    }

    /// Returns whether the registry in the backup has a change that `here` lacks, as far as is known, or may have one and
    /// the operator wants it.
    pub(super) fn is_beyond(
        &self,
        key: &RecoveryKey,
        here: &Registry,
        wish: Option<RegisterChoice>,
    ) -> Result<bool, TrustError> {
        let sealed = self.register(key)?;
        let is_wanted = wish == Some(RegisterChoice::Copy) && !here.goes_on_from(&sealed);
        Ok(sealed.mark() != here.mark() && (is_wanted || standing(here, &sealed) != Standing::Passed))
    }

    /// Returns whether the registry in the backup has a change that the one in the trust directory `dir` lacks, as far as
    /// is known, or may have one and the operator wants it.
    ///
    /// # Errors
    /// If the backup is of a CA other than the one in `dir` and has not replaced that one, `key` does not open it, or the
    /// registry in `dir` cannot be read.
    pub fn exceeds(
        &self,
        key: &RecoveryKey,
        dir: &Path,
        now_ms: u64,
        wish: Option<RegisterChoice>,
    ) -> Result<bool, TrustError> {
        self.check_goes_on_from(key, dir)?;
        self.is_beyond(key, &Registry::open(dir, now_ms)?, wish)
    }

    /// Checks that the CA in the trust directory `dir` is the one in the backup.
    ///
    /// # Errors
    /// If it is a different CA or cannot be read. The message names both and the remedy.
    pub fn check_same(&self, dir: &Path) -> Result<(), TrustError> {
        let here = Authorities::load(dir)?;
        let names = |certificate: &CertificateDer<'_>| super::hex(&super::fingerprint(certificate)) == self.authority;
        if names(here.current().certificate()) {
            return Ok(());
        }
        let former = here.former().iter().find(|former| names(&former.certificate));
        let what = match (former, here.next()) {
            (Some(former), _) => format!(
                "the CA backup contains {}, which was replaced at {}; use a backup from after that",
                self.name(),
                timestamp(former.ended_ms)
            ),
            (None, Some(next)) if names(next.certificate()) => {
                format!("the CA backup contains {}, the next CA here; it is from after this rotation", self.name())
            }
            _ => return Err(other_authority(dir, &format!("the CA backup contains {}", self.name()))),
        };
        let own = authority_name(&here.current().fingerprint());
        Err(TrustError::Refused(format!("{} contains the CA {own}, but {what}; nothing was changed", dir.display())))
    }

    /// Checks that the CA in the trust directory `dir` is the one in the backup, or one that the backup's CA has replaced:
    /// then `dir` is from before that rotation.
    ///
    /// # Errors
    /// As [`CaBackup::check_same`], or if `key` does not open the backup.
    pub fn check_goes_on_from(&self, key: &RecoveryKey, dir: &Path) -> Result<(), TrustError> {
        let files = self.open(key)?;
        let former = files.get(FORMER).map_or(Ok(Vec::new()), |text| former_in(text)).map_err(TrustError::Refused)?;
        let own = Authority::certificate_in(dir);
        let is_own = |print| own.is_some_and(|own| own == print);
        let mut replaced = former.iter().filter(|former| former.end == End::Replaced);
        if replaced.any(|former| is_own(super::fingerprint(&former.certificate))) {
            return Ok(());
        }
        self.check_same(dir)
    }

    /// Returns whether nothing shows that `dir` belongs to a different CA.
    pub(super) fn may_be_of(&self, dir: &Path) -> bool {
        Authority::certificate_in(dir).is_none_or(|own| super::hex(&own) == self.authority)
    }

    /// Returns whether the backup's next CA is the one of which a part is left in the trust directory `dir`.
    pub(super) fn holds_next_of(&self, key: &RecoveryKey, dir: &Path) -> Result<bool, TrustError> {
        let files = self.open(key)?;
        let is_same =
            |name: &str| files.get(name).is_some_and(|text| read(&dir.join(name)).is_ok_and(|here| here == *text));
        Ok(files.contains_key(NEXT_KEY) && [NEXT_KEY, NEXT_CERTIFICATE].into_iter().any(is_same))
    }

    /// Returns the name of the next CA in the backup, if it was made during a rotation.
    pub(super) fn next_name(&self, key: &RecoveryKey) -> Result<Option<String>, TrustError> {
        let files = self.open(key)?;
        let certificate = files.get(NEXT_CERTIFICATE).and_then(|text| Authority::certificate_from(text));
        Ok(certificate.map(|print| authority_name(&print)))
    }

    /// Returns the start of the CA's fingerprint.
    #[must_use]
    pub fn name(&self) -> String {
        self.authority.chars().take(NAME_CHARS).collect()
    }

    /// Checks that `key` opens the backup.
    ///
    /// # Errors
    /// If it does not.
    pub fn check(&self, key: &RecoveryKey) -> Result<(), TrustError> {
        self.open(key).map(drop)
    }

    fn open(&self, key: &RecoveryKey) -> Result<BTreeMap<String, String>, TrustError> {
        let wrong = || TrustError::Refused("the recovery key does not open this CA backup".into());
        let mut opened = [Some(&self.sealed), self.sealed_next.as_ref()].into_iter().flatten().filter_map(|sealed| {
            let sealed = STANDARD.decode(sealed).ok()?;
            open_bytes(&key.0, &sealed).ok()
        });
        let bytes = opened.next().ok_or_else(wrong)?;
        let Contents { files } = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        match FILES.iter().find(|name| !files.contains_key(**name)) {
            Some(name) => Err(TrustError::Refused(format!("this CA backup lacks {name}"))),
            None => Ok(files),
        }
    }
}

/// Returns a stamp without the name of the next recovery key.
fn alone(stamp: &str) -> &str {
    let names = stamp.find('.').unwrap_or_default();
    stamp[names..].find('+').map_or(stamp, |end| &stamp[..names + end])
}

/// Checks that one of `certificates` is that of a CA in the trust directory `dir`; `whose` describes who trusts them.
///
/// # Errors
/// If none is. The message names both and the remedy.
pub fn check_authority(dir: &Path, certificates: &[CertificateDer<'_>], whose: &str) -> Result<(), TrustError> {
    let theirs: Vec<_> = certificates.iter().map(|certificate| super::fingerprint(certificate)).collect();
    if Authorities::load(dir)?.all().iter().any(|own| theirs.contains(&super::fingerprint(own))) {
        return Ok(());
    }
    let theirs = theirs.iter().map(authority_name).collect::<Vec<_>>().join(", ");
    Err(other_authority(dir, &format!("{whose} {theirs}")))
}

/// Returns the error for a `dir` with a CA, while `given`, a description, belongs to another one.
#[must_use]
pub fn other_authority(dir: &Path, given: &str) -> TrustError {
    let own = match Authority::load(dir) {
        Ok(authority) => authority_name(&authority.fingerprint()),
        Err(error) => error.to_string(),
    };
    let home = gravwell_env::fs::parent_dir(dir).display().to_string();
    TrustError::Refused(format!(
        "{home} already has another CA, {own}, but {given}; nothing was changed. If a datastore was started there \
         after the other CA was lost, move its directory away with everything written there, and run this command \
         again: `{}`",
        gravwell_model::codec::health::aside(&home)
    ))
}

fn io(path: &Path, source: std::io::Error) -> TrustError {
    TrustError::Io { path: path.to_owned(), source }
}

fn read(path: &Path) -> Result<String, TrustError> {
    std::fs::read_to_string(path).map_err(|source| io(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Role;
    use gravwell_model::MemberName;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn p11_an_authority_comes_back_from_an_escrow_with_the_key_and_never_without() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (old, new) = (temp.path().join("old"), temp.path().join("new"));
        let mut register = Registry::open(&old, NOW).expect("register");
        let authority = Authority::open_or_create(&old, NOW).expect("authority");
        let name = MemberName::new("web1").expect("name");
        let request = crate::trust::NewKey::generate(&name).expect("a key").request_der;
        let secret = register.invite(&name, Role::Reader, 1000, NOW, false).expect("invites");
        register.redeem(&authority, &name, &secret, &request, 30, NOW).expect("joins");
        let stamped = register.text(NOW).expect("text");
        let waiting = MemberName::new("web2").expect("name");
        register.invite(&waiting, Role::Reader, 1000, NOW, false).expect("invites");
        let escrow = CaBackup::seal(&old, &authority, &mut register, NOW).expect("seals");
        let key = RecoveryKey::open_or_create(&old).expect("key");
        assert_eq!(key.to_string().parse::<RecoveryKey>().expect("parses"), key);
        let other: RecoveryKey = RecoveryKey([7; 32]).to_string().parse().expect("parses");
        assert!(escrow.restore(&other, &new, NOW, None).is_err());
        assert!(!new.join("ca.key").exists(), "nothing was written");
        let text = escrow.to_text().expect("text");
        assert!(!text.contains("PRIVATE"), "the key is encrypted");
        for at in (0..text.len() - 1).step_by(11) {
            let mut bad = text.clone().into_bytes();
            bad[at] ^= 1;
            assert!(
                String::from_utf8(bad).is_err() || CaBackup::from_text(&text.replacen(&text[at..=at], "~", 1)).is_err()
            );
        }
        let read = CaBackup::from_text(&text).expect("reads");
        read.restore(&key, &new, NOW, None).expect("restores");
        assert_eq!(Authority::open_or_create(&new, NOW).expect("opens").fingerprint(), authority.fingerprint());
        let back = Registry::open(&new, NOW).expect("opens");
        let expected = Registry::from_text(&stamped, NOW).expect("reads");
        let differing = leftover_registry::differing(&back, &expected);
        assert_eq!((back.members().count(), differing.len()), (1, 0), "invitations are not restored");
        assert!(back.mark().count > register.mark().count && back.revision() > register.revision(), "it is the latest");
        assert_eq!(read.made(&key).expect("opens"), NOW);
        assert!(read.made(&other).is_err());
        assert_eq!(RecoveryKey::open_or_create(&new).expect("key"), key);
        assert!(read.restore(&key, &new, NOW, None).is_err(), "a CA is never replaced");
    }

    fn text_of(escrow: &CaBackup) -> String {
        escrow.to_text().expect("text")
    }

    #[test]
    fn p11_a_copy_that_is_made_in_a_rotation_opens_with_both_keys_and_one_after_it_with_the_new_one() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("trust");
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let mut seal = || {
            let text = CaBackup::seal(&dir, &authority, &mut register, NOW).expect("seals").to_text().expect("text");
            CaBackup::from_text(&text).expect("reads")
        };
        let before = seal();
        let old = RecoveryKey::load(&dir).expect("reads").expect("was created");
        let new = RecoveryKeys::begin(&dir).expect("begins").next.expect("a next key");
        let during = seal();
        RecoveryKeys::finish(&dir, &new).expect("ends");
        let after = seal();
        let opens = |escrow: &CaBackup| [&old, &new].map(|key| escrow.check(key).is_ok());
        assert_eq!([opens(&before), opens(&during), opens(&after)], [[true, false], [true, true], [false, true]]);
        let names =
            [&before, &during, &after].map(|escrow| CaBackup::keys_of(escrow.known()).expect("says").to_owned());
        assert_eq!(names, [old.name(), format!("{}+{}", old.name(), new.name()), new.name()]);
        assert_eq!(CaBackup::keys_of("0123456789abcdef"), None, "a version without key names");
        assert_eq!(CaBackup::keys_of(&format!("x.{}", "a".repeat(41))), None, "an invented name");
        // A member of an earlier version drops the fields it does not know: it keeps no second seal and does not
        // claim one.
        let (body, dropped) =
            (checksummed_text::open(&text_of(&during)).expect("opens").to_owned(), ["sealed_next", "stamp_next"]);
        let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&body).expect("JSON");
        dropped.iter().for_each(|name| drop(fields.remove(*name).expect("field exists")));
        let kept = checksummed_text::seal(&serde_json::to_string(&fields).expect("JSON"));
        let kept = CaBackup::from_text(&kept).expect("reads");
        assert_eq!((opens(&kept), CaBackup::keys_of(kept.known())), ([true, false], Some(old.name().as_str())));
        assert_eq!(CaBackup::keys_of(&kept.stamp), Some(old.name().as_str()), "it reports this to the datastore");
        // Either key restores the datastore, and the key that was used becomes its recovery key.
        for key in [&old, &new] {
            let back = temp.path().join(key.name());
            during.restore(key, &back, NOW, None).expect("restores");
            assert_eq!(RecoveryKeys::load(&back).expect("reads").expect("a key").all(), std::slice::from_ref(key));
            assert!(old.check_same(&back).is_ok() == (key == &old));
        }
    }

    #[test]
    fn a_recovery_key_that_was_copied_wrong_is_no_key() {
        let text = RecoveryKey([9; 32]).to_string();
        for at in PREFIX.len()..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let parsed = String::from_utf8(altered).expect("text").parse::<RecoveryKey>();
            assert!(parsed.is_err() || parsed.is_ok_and(|key| key == RecoveryKey([9; 32])), "{at}");
            assert!(text[..at].parse::<RecoveryKey>().is_err());
        }
    }
}
