//! Locally recorded backup locations and their encryption. A location that is empty although it was used before may not be
//! mounted. An attacker with write access to a location could replace it with
//! an unencrypted one; later backups would then be readable, and restored data could come from the attacker.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use gravwell_backup::repository::Encryption;
use gravwell_backup::store;
use gravwell_env::data_dir::replace_file;

use super::location::resolved;
use crate::error::CtlError;

/// Name of the file in a data directory.
pub(crate) const FILE: &str = "backup.places";

/// Recorded encryption of a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    Plain,
    Passphrase,
    Key(String),
}

type Places = BTreeMap<String, Known>;

/// Normalizes a location, so that a directory has one name however it is written.
fn name(place: &str) -> String {
    let resolved = store::directory(place).and_then(|directory| resolved(&directory));
    resolved.map_or_else(|| place.trim_end_matches('/').to_owned(), |path| path.display().to_string())
}

fn read(dir: &Path) -> Result<Places, CtlError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Places::new()),
        read => read.map_err(|error| CtlError::new(format!("{}: {error}", path.display())))?,
    };
    // Versions before this recorded an existing directory with a slash behind it.
    let trimmed = |places: Places| {
        places.into_iter().map(|(name, known)| (name.trim_end_matches('/').to_owned(), known)).collect()
    };
    serde_json::from_str(&text).map(trimmed).map_err(|error| {
        CtlError::new(format!(
            "{} is damaged: {error}; it records which places of backups are encrypted; check each place with `backup \
             list`, then remove the file, and the next backup re-creates it",
            path.display()
        ))
    })
}

/// Describes the encryption of `place` as recorded in `dir`; `None` if none is recorded.
pub(crate) fn of(dir: &Path, place: &str) -> Result<Option<String>, CtlError> {
    Ok(read(dir)?.get(&name(place)).and_then(|known| match known {
        Known::Plain => None,
        Known::Passphrase => Some("a passphrase".to_owned()),
        Known::Key(key) => Some(format!("the backup key {key}")),
    }))
}

/// Returns whether backups were made at `place` or restored from it before.
pub(crate) fn is_used(dir: &Path, place: &str) -> Result<bool, CtlError> {
    Ok(read(dir)?.contains_key(&name(place)))
}

/// Records the encryption of `place` if the data directory exists. That a location is not encrypted does not overwrite
/// an earlier record.
pub(crate) fn note(dir: &Path, place: &str, encryption: &Encryption) -> Result<(), CtlError> {
    let known = match encryption {
        Encryption::Plain => Known::Plain,
        Encryption::Passphrase => Known::Passphrase,
        Encryption::Key(key) => Known::Key(key.clone()),
    };
    let (mut places, name) = (read(dir)?, name(place));
    let is_kept = |noted: &Known| known == Known::Plain || *noted == known;
    if !dir.is_dir() || places.get(&name).is_some_and(is_kept) {
        return Ok(());
    }
    places.insert(name, known);
    let text = serde_json::to_string(&places).map_err(CtlError::new)?;
    replace_file(&dir.join(FILE), format!("{text}\n").as_bytes()).map_err(CtlError::new)
}
