//! State of the tail that a datastore serves on a connection: blocks of entries, and bookmarks when there are none.

use std::collections::VecDeque;

use gravwell_model::Seq;
use gravwell_model::codec::message::Bookmark;

use crate::feed::Next;

use super::server::Effect;

/// Number of bookmarks that are retained while entries are sent.
const BOOKMARKS_MAX: usize = 64;

#[derive(Debug, Default)]
enum Step {
    /// No tail is served.
    #[default]
    Idle,
    /// Something is being sent.
    Sending,
    /// The next step has to be chosen.
    Choosing(Seq),
    /// Everything up to this sequence, the head, was sent.
    Level(Seq),
    /// Entries after this sequence are being read from the log.
    Reading(Seq),
}

/// A tail.
#[derive(Debug, Default)]
pub(super) struct TailFeed {
    step: Step,
    bookmarks: VecDeque<Bookmark>,
}

impl TailFeed {
    /// Starts a tail. Returns false if there is one already.
    pub(super) fn open(&mut self) -> bool {
        let is_idle = matches!(self.step, Step::Idle);
        if is_idle {
            self.step = Step::Sending;
        }
        is_idle
    }

    /// Chooses the next step, if there is one to choose.
    pub(super) fn choose(&mut self, next: impl FnOnce(Seq) -> Next) -> Option<Next> {
        let Step::Choosing(sent) = self.step else { return None };
        let next = next(sent);
        self.step = match &next {
            Next::Wait => Step::Level(sent),
            Next::Send(_) => Step::Sending,
            Next::Read(after) => Step::Reading(*after),
            Next::Compacted => Step::Idle,
        };
        Some(next)
    }

    /// Handles that the log has more entries.
    pub(super) fn wake(&mut self) {
        if let Step::Level(sent) = self.step {
            self.step = Step::Choosing(sent);
        }
    }

    /// Handles that there was nothing to read.
    pub(super) fn wake_reader(&mut self) {
        if let Step::Reading(after) = self.step {
            self.step = Step::Choosing(after);
        }
    }

    /// Handles that everything up to a sequence was sent. Bookmarks that arrived in the meantime follow.
    pub(super) fn fed(&mut self, sent: Seq, effects: &mut VecDeque<Effect>) {
        if !matches!(self.step, Step::Sending | Step::Reading(_)) {
            return;
        }
        match self.bookmarks.pop_front() {
            Some(bookmark) => {
                self.step = Step::Sending;
                effects.push_back(Effect::SendBookmark(bookmark, sent));
            }
            None => self.step = Step::Choosing(sent),
        }
    }

    /// Handles a bookmark: it is sent now, or after the present message.
    pub(super) fn bookmark(&mut self, bookmark: Bookmark, effects: &mut VecDeque<Effect>) {
        match self.step {
            Step::Idle => {}
            Step::Level(sent) | Step::Choosing(sent) => {
                self.step = Step::Sending;
                effects.push_back(Effect::SendBookmark(bookmark, sent));
            }
            Step::Sending | Step::Reading(_) => {
                // The member compares at later ones as well.
                if self.bookmarks.len() >= BOOKMARKS_MAX {
                    self.bookmarks.pop_front();
                }
                self.bookmarks.push_back(bookmark);
            }
        }
    }
}
