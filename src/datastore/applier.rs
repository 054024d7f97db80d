//! The thread that applies committed entries to the state index and takes bookmarks.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use gravwell_model::codec::message::Bookmark;
use gravwell_protocol::fatal::Fatal;

use super::commit_pipeline::{self, CommittedBatch};
use super::commit_thread::stop_process;
use super::shared::DatastoreRef;

/// Interval at which a changing index is made durable. Entries it lost in a crash are replayed from the log.
const PERSIST_EVERY: Duration = Duration::from_secs(5);
/// Quiet time after the last change before a bookmark is taken.
const QUIET: Duration = Duration::from_millis(5);

pub(super) struct Applier {
    pub shared: DatastoreRef,
    pub committed: Receiver<CommittedBatch>,
}

impl Applier {
    /// Runs until the commit thread is gone, then makes the index durable.
    pub(super) fn run(self) {
        let mut unpersisted: Option<Instant> = None;
        let mut bookmarked = true;
        loop {
            let wait = if bookmarked { PERSIST_EVERY } else { QUIET };
            match self.committed.recv_timeout(wait) {
                Ok(committed) => {
                    self.apply(&committed);
                    unpersisted.get_or_insert_with(Instant::now);
                    bookmarked = false;
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !bookmarked {
                        self.bookmark();
                        bookmarked = true;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.persist(),
            }
            if unpersisted.is_some_and(|since| since.elapsed() >= PERSIST_EVERY) {
                unpersisted = None;
                self.persist();
            }
        }
    }

    fn apply(&self, committed: &CommittedBatch) {
        let applied = |last, bookmark: Option<Bookmark>| {
            self.shared.applied.send_replace(last);
            if let Some(bookmark) = bookmark {
                let _ = self.shared.bookmarks.send(bookmark);
            }
        };
        if let Err(failure) = commit_pipeline::index(&self.shared.state, &self.shared.log, committed, &mut { applied })
        {
            stop_process(&self.shared, &failure);
        }
    }

    fn bookmark(&self) {
        if let Some(bookmark) = commit_pipeline::bookmark(&self.shared.state) {
            let _ = self.shared.bookmarks.send(bookmark);
        }
    }

    fn persist(&self) {
        if let Err(error) = self.shared.state.persist() {
            let what = "the state index cannot be written (the next start rebuilds it)";
            stop_process(&self.shared, &Fatal::of(what)(error));
        }
    }
}
