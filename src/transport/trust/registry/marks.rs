//! Marks of the log, of the audit, and of the registry's own progress outside its directory.

use super::{AuditMark, LogMark, Registry};

impl Registry {
    /// Returns the position of the log at the last write; `None` in files of versions that did not record it.
    #[must_use]
    pub fn log_mark(&self) -> Option<LogMark> {
        self.contents.log
    }

    /// Records the position of the log. Written lazily, like positions of members.
    pub fn note_log(&mut self, mark: LogMark) {
        self.is_dirty |= self.contents.log != Some(mark);
        self.contents.log = Some(mark);
    }

    /// Returns the last known record of the audit log; `None` in files of versions that did not record it.
    #[must_use]
    pub fn audit_mark(&self) -> Option<&AuditMark> {
        self.contents.audit.as_ref()
    }

    /// Records the last record of the audit log. Written lazily, like positions.
    pub fn note_audit(&mut self, mark: AuditMark) {
        self.is_dirty |= self.contents.audit.as_ref() != Some(&mark);
        self.contents.audit = Some(mark);
    }

    /// Returns whether the registry's progress was recorded in a file outside its directory.
    #[must_use]
    pub fn has_mark(&self) -> bool {
        self.contents.has_mark
    }

    /// Records that its progress was recorded. Written lazily.
    pub fn note_has_mark(&mut self) {
        self.is_dirty |= !self.contents.has_mark;
        self.contents.has_mark = true;
    }
}
