//! Record of the names of the recovery keys, in a separate file next to the keys.
//!
//! A key that was lost must not be mistaken for one that never existed. Otherwise a new key would be created in its
//! place, and all CA backups would be replaced by ones under a key that no operator has written down. The names are
//! therefore recorded whenever the keys change, after the change. The name of a replaced or abandoned key is added to
//! the list of former keys before the key is deleted. Directories of versions without this record receive it on first
//! use; until then the registry provides the names, from the backups that members hold.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::authority::{read_private, write_private};
use super::ca_backup::KEY_FILE;
use super::rotation::NEXT_FILE;
use super::{RecoveryKey, RecoveryKeys, TrustError, checksummed_text, leftover_registry};

pub(super) const NOTE_FILE: &str = "recovery.name";
const VERSION: u32 = 1;

/// Names of the valid keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KeyNote {
    #[serde(rename = "gravwell-recovery-keys")]
    version: u32,
    pub(super) current: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

impl KeyNote {
    /// Reads the record in the trust directory `dir`; `None` if there is none.
    ///
    /// # Errors
    /// If it is corrupt or readable by others.
    pub(super) fn read(dir: &Path) -> Result<Option<KeyNote>, TrustError> {
        let path = dir.join(NOTE_FILE);
        let text = match read_private(&path) {
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read?,
        };
        let damaged = |what: String| TrustError::Damaged { path: path.clone(), what };
        let note: KeyNote = serde_json::from_str(checksummed_text::open(&text).map_err(damaged)?)
            .map_err(|error| damaged(error.to_string()))?;
        match note.version {
            VERSION => Ok(Some(note)),
            version => Err(damaged(format!("it has version {version}; this program supports {VERSION}"))),
        }
    }

    /// Like [`KeyNote::read`], but a corrupt record counts as none, because a crash may have torn it.
    ///
    /// # Errors
    /// If it cannot be read for another reason.
    pub(super) fn readable(dir: &Path) -> Result<Option<KeyNote>, TrustError> {
        match KeyNote::read(dir) {
            Err(TrustError::Damaged { .. }) => Ok(None),
            read => read,
        }
    }

    /// Records the names of `keys` in `dir`, unless they are already recorded.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn keep(dir: &Path, keys: &RecoveryKeys) -> Result<(), TrustError> {
        let (current, next) = (keys.current.name(), keys.next.as_ref().map(RecoveryKey::name));
        let note = KeyNote { version: VERSION, current, next };
        if matches!(KeyNote::read(dir), Ok(Some(noted)) if noted == note) {
            return Ok(());
        }
        let text = serde_json::to_string(&note).map_err(|error| TrustError::Refused(error.to_string()))?;
        write_private(&dir.join(NOTE_FILE), checksummed_text::seal(&text).as_bytes())
    }

    /// Adjusts the names for a step that was interrupted before it was recorded: keys among the `former` ones are no
    /// longer valid.
    pub(super) fn after(self, former: &[String]) -> KeyNote {
        let counts = |name: &String| !former.contains(name);
        let next = self.next.filter(counts);
        match (counts(&self.current), next) {
            (false, Some(next)) => KeyNote { current: next, next: None, ..self },
            (_, next) => KeyNote { next, ..self },
        }
    }

    /// Checks that the existing keys are the recorded ones.
    ///
    /// # Errors
    /// If a recorded key is missing; the message names it.
    pub(super) fn check(&self, dir: &Path, keys: &RecoveryKeys) -> Result<(), TrustError> {
        let here = |name: &String| keys.all().iter().any(|key| key.name() == *name);
        if !here(&self.current) {
            let what =
                format!("it contains {}, but the recovery key is {}; {PUT_BACK}", keys.current.name(), self.current);
            return Err(TrustError::Damaged { path: dir.join(KEY_FILE), what });
        }
        match self.next.as_ref().filter(|next| !here(next)) {
            None => Ok(()),
            Some(next) => {
                let what = format!(
                    "it is missing, and the new recovery key is {next}; {PUT_BACK}, or give it up with `abort`"
                );
                Err(TrustError::Damaged { path: dir.join(NEXT_FILE), what })
            }
        }
    }
}

/// Remedy for a key that is missing or unreadable.
pub(super) const PUT_BACK: &str = "restore the key from your records with `gravwell-logctl --data-dir D authority \
                                   recovery-key --set KEY`; no CA backup is made until then";

/// Checks that nothing indicates that the missing `recovery.key` in `dir` ever existed.
///
/// # Errors
/// If something does; the message names it.
pub(super) fn check_never_was(
    dir: &Path,
    noted: Option<&KeyNote>,
    next: Option<&RecoveryKey>,
    former: &[String],
) -> Result<(), TrustError> {
    let says = match (noted, next, former.last()) {
        (Some(noted), ..) => format!("its name is {}", noted.current),
        (None, Some(next), _) => format!("{NEXT_FILE}, {}, was its designated successor", next.name()),
        (None, None, Some(former)) => format!("it replaced {former}"),
        (None, None, None) => match copies(dir).first() {
            Some(name) => format!("{name} opens the members' copies"),
            None => return Ok(()),
        },
    };
    Err(TrustError::Damaged { path: dir.join(KEY_FILE), what: format!("it is missing, but {says}; {PUT_BACK}") })
}

/// Returns the names of the keys that open the members' backups, according to the registry in `dir`.
pub(super) fn copies(dir: &Path) -> Vec<String> {
    let register = leftover_registry::readable(dir).map(|(_, register)| register);
    let members = register.iter().flat_map(|register| register.members());
    let names = members.filter_map(|member| member.copy_keys.clone());
    names.flat_map(|names| names.split('+').map(str::to_owned).collect::<Vec<_>>()).collect()
}
