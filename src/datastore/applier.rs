//! The thread that applies committed entries to the state index and takes the bookmarks.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::codec::message::Bookmark;
use crate::model::{Chain, Entry, Seq};
use crate::protocol::CHECKPOINT_EVERY;

use super::commit::{Committed, stop_process};
use super::shared::SharedRef;

/// The index is made durable this often while it changes. What it lacks after a crash is read from the log again.
const PERSIST_EVERY: Duration = Duration::from_secs(5);
/// A bookmark is taken this soon after the last change.
const QUIET: Duration = Duration::from_millis(5);

pub(super) struct Applier {
    pub shared: SharedRef,
    pub committed: Receiver<Committed>,
}

impl Applier {
    /// Serves until the commit thread is gone, then makes the index durable.
    pub(super) fn run(self) {
        let mut unpersisted: Option<Instant> = None;
        let mut bookmarked = true;
        loop {
            let wait = if bookmarked { PERSIST_EVERY } else { QUIET };
            match self.committed.recv_timeout(wait) {
                Ok(Committed { entries, chain }) => {
                    self.apply(&entries, chain);
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

    /// Applies a batch in runs that end at checkpoints; the chain in between is read back from the log.
    fn apply(&self, entries: &[Entry], chain: Chain) {
        for run in entries.chunk_by(|entry, _| !entry.seq.0.is_multiple_of(CHECKPOINT_EVERY)) {
            let Some(last) = run.last().map(|entry| entry.seq) else { continue };
            let is_end = entries.last().is_some_and(|entry| entry.seq == last);
            let chain = if is_end { chain } else { self.chain_at(last) };
            if let Err(error) = self.shared.state.apply(run, chain) {
                stop_process(
                    "the state index cannot be written (it is rebuilt from the log at the next start)",
                    &error,
                );
            }
            self.shared.applied.send_replace(last);
            if last.0.is_multiple_of(CHECKPOINT_EVERY) {
                self.bookmark();
            }
        }
    }

    fn chain_at(&self, seq: Seq) -> Chain {
        match self.shared.log.chain_at(seq) {
            Ok(Some(chain)) => chain,
            Ok(None) => stop_process("the log cannot be read", &format!("no chain at sequence {seq}")),
            Err(error) => stop_process("the log cannot be read", &error),
        }
    }

    fn bookmark(&self) {
        if let Some(meta) = self.shared.state.meta() {
            let _ = self.shared.bookmarks.send(Bookmark { seq: meta.seq, digest: meta.digest });
        }
    }

    fn persist(&self) {
        if let Err(error) = self.shared.state.persist() {
            stop_process("the state index cannot be written (it is rebuilt from the log at the next start)", &error);
        }
    }
}
