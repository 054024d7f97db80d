//! State of the continuous backup, which runs beside the datastore in the same process.

use std::sync::{Mutex, MutexGuard, PoisonError};

use gravwell_model::codec::health::{Code, Reason};
use gravwell_model::codec::json_lines::timestamp;

#[derive(Debug, Default)]
struct State {
    /// Time at which the last backup was made or found to be up to date, in milliseconds since 1970-01-01 UTC.
    archived_ms: Option<u64>,
    /// Reason why the last attempt failed; empty if it did not.
    trouble: String,
}

/// State of the continuous backup.
#[derive(Debug, Default)]
pub struct Archive(Mutex<State>);

impl Archive {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a backup was made, or that nothing has changed since the last one.
    pub fn succeeded(&self, now_ms: u64) {
        *self.state() = State { archived_ms: Some(now_ms), trouble: String::new() };
    }

    /// Records a failed attempt.
    pub fn failed(&self, reason: &str) {
        reason.clone_into(&mut self.state().trouble);
    }

    /// Returns whether the last attempt failed.
    pub(super) fn is_behind(&self) -> bool {
        !self.state().trouble.is_empty()
    }

    /// Returns the reason for the operator to look, if the last attempt failed.
    pub(super) fn reason(&self) -> Option<Reason> {
        let state = self.state();
        if state.trouble.is_empty() {
            return None;
        }
        let last = match state.archived_ms {
            Some(archived_ms) => format!("the last backup was at {}", timestamp(archived_ms)),
            None => "no backup was made since this process started".to_owned(),
        };
        let message = format!("the continuous backup is behind, {last}: {}", state.trouble);
        let remedy = "fix the cause given in the message; the datastore retries every minute";
        Some(Reason::new(Code::ArchiveBehind, message, remedy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p14_an_archive_that_fails_is_behind_until_a_backup_is_made() {
        let archive = Archive::default();
        assert_eq!(archive.reason(), None);
        archive.failed("the key is damaged");
        let reason = archive.reason().expect("lagging");
        assert!(reason.message.contains("no backup was made") && reason.message.contains("the key"), "{reason:?}");
        archive.succeeded(1_700_000_000_000);
        assert!(archive.reason().is_none() && !archive.is_behind());
        archive.failed("the disk is full");
        let reason = archive.reason().expect("lagging");
        assert!(archive.is_behind() && reason.message.contains("2023-11-14T22:13:20"), "{reason:?}");
    }
}
