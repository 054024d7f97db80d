//! Puts the authority and the register of a stopped datastore back, where either is damaged or missing.

use std::fs;
use std::path::{Path, PathBuf};

use super::registry::FILE;
use super::{Authorities, Escrow, RecoveryKey, RegisterChoice, Registry, TrustError, left};
use crate::env::fs::{first_free, parent_dir};

/// Puts what `escrow` holds in the place of the trust directory `dir`, of which a part is damaged or missing. What was there is
/// renamed. A register that is left and later than the one in `escrow` stays. Interrupted at any point it can be run again.
///
/// # Errors
/// When nothing is damaged or missing, the key does not fit, the copy is of another authority than the one whose certificate
/// is still here, a person has to say which register counts, or the operating system refuses. Nothing was changed then.
pub fn restore_trust(
    escrow: &Escrow,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    wish: Option<RegisterChoice>,
) -> Result<PutBack, TrustError> {
    escrow.check(key)?;
    match (Authorities::load(dir), Registry::open(dir, now_ms)) {
        (Ok(_), Ok(_)) if dir.join(FILE).exists() => {
            let what = format!("authority and register in {} are sound: nothing was changed", dir.display());
            return Err(TrustError::Refused(what));
        }
        (Ok(_), _) => escrow.check_same(dir)?,
        (Err(_), _) => {}
    }
    let stays = left::stays(escrow, key, dir, wish)?;
    let aside = exchange(escrow, key, dir, now_ms, stays.as_deref())?;
    Ok(PutBack { aside, has_kept_register: stays.is_some() })
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutBack {
    /// Where the former directory is kept.
    pub aside: Option<PathBuf>,
    /// The register that was left, which was the later one, is in place.
    pub has_kept_register: bool,
}

/// Puts what `escrow` holds in the place of the trust directory `dir`, which is renamed; its new name is returned. Interrupted
/// at any point it can be run again.
///
/// # Errors
/// When the key does not fit, or the operating system refuses. Nothing was changed then.
pub fn replace_trust(
    escrow: &Escrow,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
) -> Result<Option<PathBuf>, TrustError> {
    exchange(escrow, key, dir, now_ms, None)
}

fn exchange(
    escrow: &Escrow,
    key: &RecoveryKey,
    dir: &Path,
    now_ms: u64,
    register: Option<&str>,
) -> Result<Option<PathBuf>, TrustError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| TrustError::Io { path, source }
    };
    let next = dir.with_extension("next");
    match fs::remove_dir_all(&next) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(&next)(error)),
        _ => escrow.put(key, &next, now_ms, register)?,
    }
    let aside = first_free(|number| dir.with_extension(format!("damaged-{number}"))).filter(|_| dir.exists());
    if let Some(aside) = &aside {
        fs::rename(dir, aside).map_err(io(dir))?;
    }
    fs::rename(&next, dir).map_err(io(&next))?;
    fs::File::open(parent_dir(dir)).and_then(|parent| parent.sync_all()).map_err(io(dir))?;
    Ok(aside)
}
