//! Locally recorded encryption of backup locations. An attacker with write access to a location could replace it with
//! an unencrypted one; later backups would then be readable, and restored data could come from the attacker.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backup::repository::Encryption;
use crate::backup::store;
use crate::env::data_dir::replace_file;

use super::CtlError;

/// Name of the file in a data directory.
pub(super) const FILE: &str = "backup.places";

/// Recorded encryption of a location.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    Passphrase,
    Key(String),
}

type Places = BTreeMap<String, Known>;

/// Normalizes a location, so that a directory has one name however it is written.
fn name(place: &str) -> String {
    let path = store::directory(place).and_then(|directory| std::path::absolute(directory).ok());
    let resolved = path.map(|path| path.canonicalize().unwrap_or(path));
    resolved.map_or_else(|| place.trim_end_matches('/').to_owned(), |path| path.display().to_string())
}

fn read(dir: &Path) -> Result<Places, CtlError> {
    let path = dir.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Places::new()),
        read => read.map_err(|error| CtlError::new(format!("{}: {error}", path.display())))?,
    };
    serde_json::from_str(&text).map_err(|error| {
        CtlError::new(format!(
            "{} is damaged: {error}. It says which places of backups are encrypted: see that each of them is, with `backup list`, \
             then remove it; the next backup makes it again",
            path.display()
        ))
    })
}

/// Describes the encryption of `place` as recorded in `dir`; `None` if nothing is recorded.
pub(super) fn of(dir: &Path, place: &str) -> Result<Option<String>, CtlError> {
    Ok(read(dir)?.get(&name(place)).map(|known| match known {
        Known::Passphrase => "a passphrase".to_owned(),
        Known::Key(key) => format!("the backup key {key}"),
    }))
}

/// Records the encryption of `place` if the data directory exists. Unencrypted locations are not recorded and do not
/// overwrite an earlier record.
pub(super) fn note(dir: &Path, place: &str, encryption: &Encryption) -> Result<(), CtlError> {
    let known = match encryption {
        Encryption::Plain => return Ok(()),
        Encryption::Passphrase => Known::Passphrase,
        Encryption::Key(key) => Known::Key(key.clone()),
    };
    let (mut places, name) = (read(dir)?, name(place));
    if !dir.is_dir() || places.get(&name) == Some(&known) {
        return Ok(());
    }
    places.insert(name, known);
    let text = serde_json::to_string(&places).map_err(CtlError::new)?;
    replace_file(&dir.join(FILE), format!("{text}\n").as_bytes()).map_err(CtlError::new)
}
