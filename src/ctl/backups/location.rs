//! Opening a backup location: its encryption, and finding the key.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use gravwell_backup::repository::{Encryption, Repository, RepositoryError, SealedKey, Secret};
use gravwell_backup::store::{self, Store};
use gravwell_datastore::install_marker;
use gravwell_datastore::service::trust_dir;
use gravwell_transport::trust::{BackupKey, RecoveryKey, RecoveryKeys};

use super::failed;
use super::known_locations;
use super::place::BackupPlace;
use crate::error::CtlError;

/// Notices for the operator, each given only once.
pub(crate) struct Notices {
    given: Vec<String>,
    give: fn(&str),
}

impl Notices {
    pub(crate) fn new(give: fn(&str)) -> Notices {
        Notices { given: Vec::new(), give }
    }

    pub(crate) fn give(&mut self, notice: &str) {
        if !self.given.iter().any(|given| given == notice) {
            (self.give)(notice);
            self.given.push(notice.to_owned());
        }
    }
}

/// Encryption of a backup, for reports.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Described {
    /// `key`, `passphrase` or `none`.
    encryption: &'static str,
    /// Name of the backup key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// File that contains the backup key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<PathBuf>,
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.key, &self.key_file) {
            (Some(key), Some(file)) => {
                let file = file.display();
                write!(
                    f,
                    "encrypted with the key {key} in {file}; store a copy of it away from this host and from the \
                     backups"
                )
            }
            _ if self.encryption == "passphrase" => f.write_str("encrypted with the passphrase"),
            _ => f.write_str("NOT ENCRYPTED: anyone with access to the backups can read all data"),
        }
    }
}

/// Open repository with its key.
pub(crate) struct Opened {
    pub(crate) repository: Repository,
    pub(crate) notices: Vec<String>,
    /// Backup key, if its file was missing and it was decrypted from the repository.
    pub(crate) unsealed: Option<BackupKey>,
    key: Option<BackupKey>,
    key_file: PathBuf,
}

impl Opened {
    /// Stores the backup key in the repository, encrypted under the recovery keys of the datastore in `dir`. Returns
    /// `false` if that datastore has no recovery key.
    pub(crate) fn keep_key(&self, dir: &Path) -> Result<bool, CtlError> {
        let Some(key) = &self.key else { return Ok(true) };
        let recovery = recovery_keys(dir)?;
        self.repository.keep_key(key, &recovery).map_err(failed)?;
        Ok(!recovery.is_empty())
    }

    /// Deletes copies of the backup key encrypted under former recovery keys of the datastore in `dir`, once enough
    /// backups hold the CA under the current one.
    pub(crate) fn drop_former_keys(&self, dir: &Path) -> Result<(), CtlError> {
        let trust = trust_dir(dir);
        let keys = RecoveryKeys::load(&trust).map_err(CtlError::new)?;
        if let (Some(_), Some(keys)) = (&self.key, keys) {
            let former = RecoveryKeys::former(&trust).map_err(CtlError::new)?;
            self.repository.drop_former_keys(&former, &keys.current).map_err(failed)?;
        }
        Ok(())
    }

    /// Describes what is wrong with the copies of the backup key under the recovery keys of the datastore in `dir`, if they
    /// are there.
    pub(crate) fn sealed_key_damage(&self, dir: &Path, place: &BackupPlace) -> Result<Vec<String>, CtlError> {
        let Some(key) = &self.key else { return Ok(Vec::new()) };
        let keys = match RecoveryKeys::load(&trust_dir(dir)) {
            Ok(Some(keys)) => keys,
            Ok(None) => return Ok(Vec::new()),
            Err(error) => {
                complain!("gravwell-logctl: cannot check whether the recovery key decrypts these backups: {error}");
                return Ok(Vec::new());
            }
        };
        let is_own = known_locations::is_used(dir, &place.place)?;
        self.repository.sealed_key_damage(&key.name(), &keys.current, &keys.all(), is_own).map_err(failed)
    }

    pub(crate) fn described(&self) -> Described {
        match self.repository.encryption() {
            encryption @ (Encryption::Plain | Encryption::Passphrase) => {
                Described { encryption: encryption.word(), ..Described::default() }
            }
            encryption @ Encryption::Key(name) => Described {
                encryption: encryption.word(),
                key: Some(name.clone()),
                key_file: Some(self.key_file.clone()),
            },
        }
    }
}

fn recovery_keys(dir: &Path) -> Result<Vec<RecoveryKey>, CtlError> {
    let keys = RecoveryKeys::load(&trust_dir(dir)).map_err(CtlError::new)?;
    Ok(keys.map(|keys| keys.all()).unwrap_or_default())
}

/// Opens an existing repository. Nothing is written.
pub(crate) fn open(dir: &Path, place: &BackupPlace) -> Result<Opened, CtlError> {
    open_to_restore(dir, place, None)
}

/// Describes an encryption in a few words.
pub(crate) fn in_words(encryption: &Encryption) -> String {
    match encryption {
        Encryption::Plain => "NOT ENCRYPTED".to_owned(),
        Encryption::Passphrase => "encrypted with the passphrase".to_owned(),
        Encryption::Key(key) => format!("encrypted with the backup key {key}"),
    }
}

/// Rejects an unencrypted location that was encrypted before or for which a key exists, unless `--plain` is given. An
/// attacker with write access can make a location look unencrypted, and unencrypted backups have no proof of origin.
fn confirm_when_plain(
    dir: &Path,
    place: &BackupPlace,
    encryption: &Encryption,
    recovery: Option<&RecoveryKey>,
) -> Result<(), CtlError> {
    if *encryption != Encryption::Plain || place.plain {
        return Ok(());
    }
    let key_file = key_file(dir, place);
    let why = match (known_locations::of(dir, &place.place)?, BackupKey::load(&key_file).map_err(CtlError::new)?) {
        (Some(known), _) => format!("it was encrypted with {known} when it was last used from here"),
        (None, Some(key)) => format!("the backup key {} is here, in {}", key.name(), key_file.display()),
        (None, None) if recovery.is_some() => "the recovery key was given".to_owned(),
        (None, None) => return Ok(()),
    };
    Err(CtlError::new(format!(
        "{} is not encrypted, and {why}: your backups may have been replaced by others; nothing was read or written; \
         check their origin, and use --plain (Datastore-Backup-Plain for a continuous backup) only if they are meant \
         to be unencrypted",
        place.place
    )))
}

/// Like [`open`], but can also decrypt the backup key in the repository with the given recovery key.
pub(crate) fn open_to_restore(
    dir: &Path,
    place: &BackupPlace,
    recovery: Option<&RecoveryKey>,
) -> Result<Opened, CtlError> {
    let store = store::open(&place.place).map_err(|error| failed(error.into()))?;
    let Some(encryption) = Repository::encryption_of(&*store).map_err(failed)? else {
        return Err(match known_locations::is_used(dir, &place.place)? {
            true => CtlError::new(format!("{} contains no backups, but did before: is it mounted?", store.place())),
            false => failed(RepositoryError::None(store.place())),
        });
    };
    confirm_when_plain(dir, place, &encryption, recovery)?;
    open_found(dir, place, store, &encryption, recovery, false)
}

/// Opens or creates a repository, which is encrypted unless `--plain` is given. Records its encryption. If the place was
/// used before and is empty, a repository is created only with `new_place`.
pub(crate) fn open_or_create(dir: &Path, place: &BackupPlace, new_place: bool) -> Result<Opened, CtlError> {
    let opened = found_or_made(dir, place, new_place)?;
    known_locations::note(dir, &place.place, opened.repository.encryption())?;
    Ok(opened)
}

fn found_or_made(dir: &Path, place: &BackupPlace, new_place: bool) -> Result<Opened, CtlError> {
    let plain = place.plain;
    let store = store::open(&place.place).map_err(|error| failed(error.into()))?;
    let (found, passphrase) = (Repository::encryption_of(&*store).map_err(failed)?, passphrase(place)?);
    let shown = store.place();
    if plain && (passphrase.is_some() || !matches!(found, None | Some(Encryption::Plain))) {
        let what = if passphrase.is_some() { "a passphrase was given" } else { "it is already encrypted" };
        return Err(CtlError::new(format!(
            "{shown} cannot be unencrypted, because {what}; remove --plain, or use another place"
        )));
    }
    let key_file = key_file(dir, place);
    if matches!(found, Some(Encryption::Key(_))) || (found.is_none() && !plain && passphrase.is_none()) {
        lies_outside(place, &key_file)?;
    }
    if let Some(encryption) = found {
        confirm_when_plain(dir, place, &encryption, None)?;
        let mut opened = open_found(dir, place, store, &encryption, None, true)?;
        opened.notices.extend(opened.repository.head_completed().map(str::to_owned));
        if encryption == Encryption::Plain && !plain {
            opened.notices.push(format!(
                "{shown} is not encrypted: anyone with access to it can read all data, including password hashes; use \
                 another place for encrypted backups, or use --plain (Datastore-Backup-Plain) if this is intended"
            ));
        }
        if let Some(key) = &opened.unsealed
            && key.save_new(&opened.key_file).map_err(CtlError::new)?
        {
            let (name, file) = (key.name(), opened.key_file.display());
            opened
                .notices
                .push(format!("{file} was missing: restored the backup key {name} from its encrypted copy in {shown}"));
        }
        return Ok(opened);
    }
    if !new_place && known_locations::is_used(dir, &place.place)? {
        return Err(CtlError::new(format!(
            "{shown} is empty, but contained backups when it was last used from here: is it mounted? Nothing was \
             written; to start over there, run `gravwell-logctl --data-dir {} backup create {} --new-place`",
            dir.display(),
            place.place
        )));
    }
    let (key, notices) = match (plain, &passphrase) {
        (false, None) => made_or_found(dir, &key_file, &shown)?,
        _ => (None, Vec::new()),
    };
    let secret = match (&key, &passphrase) {
        (Some(key), _) => Secret::Key(key),
        (None, Some(passphrase)) => Secret::Passphrase(passphrase),
        (None, None) => Secret::None,
    };
    let repository = Repository::open(store, secret, true).map_err(failed)?;
    Ok(Opened { repository, notices, unsealed: None, key, key_file })
}

fn made_or_found(dir: &Path, key_file: &Path, place: &str) -> Result<(Option<BackupKey>, Vec<String>), CtlError> {
    let (key, is_new) = BackupKey::open_or_create(key_file).map_err(CtlError::new)?;
    let (name, file, dir) = (key.name(), key_file.display(), dir.display());
    let notice = format!(
        "created the backup key {name} in {file}: without it the backups in {place} cannot be read; store a copy away \
         from this host and from the backups, print it with `gravwell-logctl --data-dir {dir} backup key`"
    );
    Ok((Some(key), if is_new { vec![notice] } else { Vec::new() }))
}

fn open_found(
    dir: &Path,
    place: &BackupPlace,
    store: Box<dyn Store>,
    encryption: &Encryption,
    recovery: Option<&RecoveryKey>,
    completes: bool,
) -> Result<Opened, CtlError> {
    let (passphrase, key_file) = (passphrase(place)?, key_file(dir, place));
    let (mut key, mut unsealed) = (None, None);
    if let (Encryption::Key(name), None) = (encryption, &passphrase) {
        (key, unsealed) = find_key(dir, &key_file, &*store, name, recovery)?;
    }
    let secret = match (&key, &passphrase) {
        (Some(key), _) => Secret::Key(key),
        (None, Some(passphrase)) => Secret::Passphrase(passphrase),
        (None, None) => Secret::None,
    };
    let repository = Repository::open(store, secret, completes).map_err(failed)?;
    Ok(Opened { repository, notices: Vec::new(), unsealed, key, key_file })
}

type Found = (Option<BackupKey>, Option<BackupKey>);

/// Returns the key `name` from its file, or else decrypted from the repository with a recovery key. In the latter case,
/// the second value is the key as well if the file is missing.
fn find_key(
    dir: &Path,
    key_file: &Path,
    store: &dyn Store,
    name: &str,
    recovery: Option<&RecoveryKey>,
) -> Result<Found, CtlError> {
    let here = BackupKey::load(key_file).map_err(CtlError::new)?;
    if here.as_ref().is_some_and(|key| key.name() == name) {
        return Ok((here, None));
    }
    let under = |recovery: &RecoveryKey| Repository::key_under(store, recovery, name).map_err(failed);
    let mut found = recovery.map(under).transpose()?.flatten();
    if found.is_none() {
        let keys = match recovery_keys(dir) {
            // A restore that was interrupted may have put the register back, and not yet its recovery key.
            Err(_) if recovery.is_some() && install_marker::find(dir).is_some() => Vec::new(),
            keys => keys?,
        };
        found = keys.iter().find_map(|key| under(key).transpose()).transpose()?;
    }
    if let Some(key) = found {
        let unsealed = here.is_none().then(|| key.clone());
        return Ok((Some(key), unsealed));
    }
    let file = key_file.display();
    let here = match here {
        Some(key) => format!("{file} contains the key {}", key.name()),
        None => format!("{file} does not exist"),
    };
    if let Some(recovery) = recovery
        && let SealedKey::Damaged(what) = Repository::sealed_key(store, recovery, name).map_err(failed)?
    {
        let message = format!(
            "{} is encrypted with the backup key {name}, and {here}; {what}; restore it from a copy of the place, or \
             pass a file with that backup key with --key-file",
            store.place()
        );
        return Err(CtlError { message, exit: 3 });
    }
    let sealed = match recovery {
        Some(_) => "; the given recovery key decrypts no copy of it there",
        None => ", or use `restore --recovery-key KEY` with the encrypted copy there",
    };
    Err(CtlError::new(format!(
        "{} is encrypted with the backup key {name}, and {here}; pass a file with that key with --key-file{sealed}",
        store.place()
    )))
}

fn key_file(dir: &Path, place: &BackupPlace) -> PathBuf {
    place.key_file.clone().unwrap_or_else(|| BackupKey::path_in(dir))
}

fn passphrase(place: &BackupPlace) -> Result<Option<String>, CtlError> {
    match (&place.passphrase_file, &place.passphrase) {
        (Some(file), _) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| CtlError::new(format!("{}: {error}", file.display())))?;
            Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
        }
        (None, passphrase) => Ok(passphrase.clone().filter(|passphrase| !passphrase.is_empty())),
    }
}

/// Rejects a key file inside the backup directory: next to the backups that it decrypts, the key protects nothing.
fn lies_outside(place: &BackupPlace, key_file: &Path) -> Result<(), CtlError> {
    let Some(directory) = store::directory(&place.place) else { return Ok(()) };
    let (Some(directory), Some(file)) = (resolved(&directory), resolved(key_file)) else { return Ok(()) };
    if !file.starts_with(&directory) {
        return Ok(());
    }
    let (file, directory) = (file.display(), directory.display());
    Err(CtlError::new(format!(
        "the key {file} would be in {directory}, next to the backups that it decrypts; choose another file with \
         --key-file, or another place"
    )))
}

/// Resolves symbolic links and dots in a path, the end of which may not exist.
pub(crate) fn resolved(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|above| {
        let real = above.canonicalize().ok()?;
        let rest = path.strip_prefix(above).ok()?;
        // Joining an empty path would add a slash.
        Some(if rest.as_os_str().is_empty() { real } else { real.join(rest) })
    })
}
