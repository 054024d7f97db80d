//! A search that runs here, or ran in this incarnation of the process.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::locked;
use crate::control::{Control, Stopped};
use crate::engine::{End, Outcome};
use crate::results::Results;
use gravwell_objects::Timestamp;
use gravwell_objects::searches::{Search, State};

/// A search that runs here, or ran in this incarnation of the process.
pub struct Live {
    pub(super) id: String,
    pub(super) control: Arc<Control>,
    pub(super) results: Arc<Results>,
    pub(super) begun: Instant,
    pub(super) search: Mutex<Search>,
    pub(super) done: tokio::sync::watch::Sender<bool>,
}

impl Live {
    /// Returns the search with its current progress.
    #[must_use]
    pub fn search(&self) -> Search {
        let mut search = locked(&self.search).clone();
        if search.state == State::Running {
            let progress = self.results.progress();
            (search.rows, search.bytes) = (progress.rows, progress.bytes);
            search.rows_in = self.control.rows_in.load(Ordering::Relaxed);
            search.duration_ms = millis(self.begun.elapsed());
            search.warnings = self.control.warnings();
            search.updated = Timestamp::now();
        }
        search
    }

    /// Returns its results, which may be incomplete.
    #[must_use]
    pub fn results(&self) -> Arc<Results> {
        Arc::clone(&self.results)
    }

    /// Waits until the search has ended.
    pub async fn ended(&self) {
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Stops the search; results found so far are kept.
    pub fn stop(&self) {
        self.control.stop(Stopped::ByUser);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Records how the search ended.
pub(super) fn note(live: &Live, outcome: Outcome) -> Search {
    let control = &live.control;
    let mut search = locked(&live.search);
    search.state = match outcome.end {
        End::Complete => State::Done,
        End::Stopped if control.stopped() == Some(Stopped::Shutdown) => State::Interrupted,
        End::Stopped => State::Stopped,
        End::Failed => State::Failed,
    };
    search.error = outcome.reason;
    search.over_limit = outcome.over_limit;
    search.rows = outcome.summary.rows;
    search.bytes = live.results.progress().bytes;
    search.rows_in = control.rows_in.load(Ordering::Relaxed);
    search.duration_ms = millis(live.begun.elapsed());
    search.warnings = control.warnings();
    let failed = control.rows_failed.load(Ordering::Relaxed);
    if failed > 1 {
        search.warnings.push(format!("the filter failed on {failed} rows"));
    }
    search.updated = Timestamp::now();
    search.clone()
}
