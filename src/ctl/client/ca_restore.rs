//! Parts of the commands that restore a CA: `authority restore`, `recover`, `restore`.

use std::path::Path;

use clap::ValueEnum;

use gravwell_transport::trust::{RecoveryKey, RegisterChoice};

use crate::error::CtlError;

/// Hint printed after a member registry was restored from a backup.
pub(crate) const REVOKE_AGAIN: &str = "check `members`, and revoke again the members revoked since the CA backup";

/// Member registry to use.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RegisterOf {
    /// Keep the local registry and restore only the CA.
    Here,
    /// Use the registry in the encrypted CA backup; the local one is kept next to it.
    Copy,
}

impl From<RegisterOf> for RegisterChoice {
    fn from(of: RegisterOf) -> RegisterChoice {
        match of {
            RegisterOf::Here => RegisterChoice::Here,
            RegisterOf::Copy => RegisterChoice::Copy,
        }
    }
}

/// Returns the recovery key from its text or from a file.
pub(crate) fn read_key(text: Option<&str>, file: Option<&Path>) -> Result<Option<RecoveryKey>, CtlError> {
    let text = match (text, file) {
        (Some(text), _) => text.to_owned(),
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|error| CtlError::new(format!("{}: {error}", file.display())))?
        }
        (None, None) => return Ok(None),
    };
    text.trim().parse().map(Some).map_err(CtlError::new)
}
