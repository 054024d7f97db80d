//! Searches of this webserver: those that run, those whose results are stored here, and their publication in the log.
//!
//! A search is an object in the log from its start, so every webserver lists it. Its rows stay in a local file until they
//! are saved; saved results are a blob that every webserver has.

mod error;
mod import;
mod launch;
mod live;
mod maintenance;
mod result_files;
mod result_store;
mod slots;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::filter::Runner;
use super::source::{Indexer, SourceContext};
use super::worker::Sandbox;
use gravwell_env::quota::Quota;
use gravwell_objects::capabilities::tags_of_person;
use gravwell_objects::searches::{Search, State};
use gravwell_objects::sharing::Principal;
use gravwell_objects::{Store, StoreError};

use result_files::ResultFiles;
use slots::{Openings, Threads};

pub use error::SearchError;
pub use import::{Arriving, Import};
pub use launch::{EphemeralSearch, Launch};
pub use live::Live;
pub use result_files::{Bounds, Lease, NoSpace};
pub use slots::Places;

/// Maximum number of threads that process results, in total and per user.
const PLACES: usize = 32;
const PLACES_OF_USER: usize = 4;

/// Limits and directories of searches.
#[derive(Clone)]
pub struct Options {
    /// Directory of results.
    pub dir: PathBuf,
    /// Maximum size of the results of one search, in bytes.
    pub bytes_max: u64,
    /// Limits on the disk space of all results.
    pub room: Bounds,
    /// Maximum run time, in seconds.
    pub run_seconds: u64,
    /// Maximum number of searches of one user that run or wait to run.
    pub per_user_max: usize,
    /// Maximum number of concurrent filter processes.
    pub filters_max: usize,
    /// Behavior if filters cannot be confined fully.
    pub sandbox: Sandbox,
    /// Time that unsaved results are kept, in seconds.
    pub keep_s: u64,
    /// Maximum number of entries in the search history of a user.
    pub history_max: usize,
    /// Whether every indexer tag must be granted, not only sensitive ones.
    pub tags_are_granted: bool,
    /// Configured indexers.
    pub indexers: Arc<Vec<Indexer>>,
}

/// Principal that searches, with its permission to read resources.
#[derive(Clone, Debug, Default)]
pub struct Searcher {
    /// The principal.
    pub person: Principal,
    /// Whether it may read resources.
    pub reads_resources: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Searches of this webserver.
pub struct Searches {
    store: Store,
    options: Options,
    runner: Runner,
    /// Number of searches of each user.
    of_users: Arc<Quota<i32>>,
    live: Mutex<HashMap<String, Arc<Live>>>,
    stock: Arc<ResultFiles>,
    places: Arc<Places>,
    openings: Openings,
    threads: Threads,
}

impl Searches {
    /// Opens the directory and indexes the results in it.
    ///
    /// # Errors
    /// If the directory cannot be created or read.
    pub fn open(store: Store, options: Options) -> std::io::Result<Searches> {
        let owner = |id: &str| Some(store.valid::<Search>(id).ok()??.value.uid);
        let stock = Arc::new(ResultFiles::open(&options.dir, options.room, owner)?);
        let runner = Runner::own(options.run_seconds, options.filters_max, options.sandbox);
        let of_users = Quota::new(options.per_user_max);
        let (live, openings, threads) = (Mutex::default(), Openings::default(), Threads::default());
        let places = Arc::new(Places::new(PLACES, PLACES_OF_USER));
        Ok(Searches { store, options, runner, of_users, live, stock, places, openings, threads })
    }

    /// Returns the limits and directories.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Checks that filters run on this host as configured, and logs an error if not.
    pub async fn probe(&self) {
        let runner = self.runner.clone();
        // The error has been logged; searches without filters still work.
        let _ = tokio::task::spawn_blocking(move || runner.probe()).await;
    }

    /// Returns the context that sources need for a principal.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn around(&self, searcher: &Searcher) -> Result<SourceContext, StoreError> {
        let Searcher { person, reads_resources } = searcher;
        // Depends on the caller's permissions, not on the user's: a token never grants access that only
        // administrators have.
        let granted = (!person.admin).then(|| tags_of_person(&self.store, person)).transpose()?;
        let (store, person, indexers) = (self.store.clone(), person.clone(), Arc::clone(&self.options.indexers));
        let (reads_resources, all_are_granted) = (*reads_resources, self.options.tags_are_granted);
        Ok(SourceContext { store, person, indexers, reads_resources, granted, all_are_granted })
    }

    /// Returns the slots for work on results.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    fn file(&self, id: &str) -> PathBuf {
        self.stock.file(id)
    }

    /// Returns a search of this incarnation of the process.
    #[must_use]
    pub fn live(&self, id: &str) -> Option<Arc<Live>> {
        locked(&self.live).get(id).cloned()
    }

    /// Returns the search, updated with progress that only this webserver knows.
    #[must_use]
    pub fn current(&self, search: Search) -> Search {
        match self.live(&search.id).filter(|_| search.state == State::Running) {
            Some(live) => {
                let Search { state, rows, bytes, rows_in, duration_ms, warnings, error, over_limit, .. } =
                    live.search();
                Search { state, rows, bytes, rows_in, duration_ms, warnings, error, over_limit, ..search }
            }
            None => search,
        }
    }

    /// Returns whether the results are available here: they were produced here, or saved.
    #[must_use]
    pub fn is_here(&self, search: &Search) -> bool {
        search.is_saved() || search.webserver == self.store.via()
    }
}
