//! Result of a command.

/// Failed command: error message and exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CtlError {
    /// Cause and remedy; if empty, nothing is printed.
    pub message: String,
    /// 1 rejected or failed, 2 usage error, 3 damage or divergence.
    pub exit: u8,
}

impl CtlError {
    pub(crate) fn new(message: impl std::fmt::Display) -> CtlError {
        CtlError { message: message.to_string(), exit: 1 }
    }
}

pub(crate) type CtlResult = Result<(), CtlError>;
