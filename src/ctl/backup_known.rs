//! What is known here of places of backups: which are encrypted, and with what. Whoever may write to a place may put another one in
//! it that is not; then backups would tell everything, and what is restored could be anybody's.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backup::repository::Encryption;
use crate::backup::store;
use crate::env::data_dir::replace_file;

use super::CtlError;

/// The file in a data directory.
pub(super) const FILE: &str = "backup.places";

/// What a place is encrypted with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Known {
    Passphrase,
    Key(String),
}

type Places = BTreeMap<String, Known>;

/// A directory has one name however it is written.
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

/// What `place` is encrypted with as far as is known in `dir`, in words; `None`: nothing is known.
pub(super) fn of(dir: &Path, place: &str) -> Result<Option<String>, CtlError> {
    Ok(read(dir)?.get(&name(place)).map(|known| match known {
        Known::Passphrase => "a passphrase".to_owned(),
        Known::Key(key) => format!("the backup key {key}"),
    }))
}

/// Notes what `place` is encrypted with, where there is a data directory. What is not encrypted is not noted, and takes nothing back.
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
