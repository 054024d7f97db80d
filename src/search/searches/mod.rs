//! Searches of this webserver: those that run, those whose results are kept here, and what everybody is told of them.
//!
//! A search is an object in the log from its first moment, so every webserver lists it; its rows stay in a file here
//! until they are saved, which makes them a content that every webserver has.

mod error;
mod import;
mod keeping;
mod launch;
mod live;
mod places;
mod stock;
mod upkeep;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::filter::Runner;
use super::source::{Indexer, Surroundings};
use super::worker::Sandbox;
use crate::env::quota::Quota;
use crate::objects::capabilities::tags_of_person;
use crate::objects::searches::{Search, State};
use crate::objects::sharing::Person;
use crate::objects::{Store, StoreError};

use places::{Openings, Threads};
use stock::Stock;

pub use error::SearchError;
pub use import::{Arriving, Import};
pub use launch::{Launch, Passing};
pub use live::Live;
pub use places::Places;
pub use stock::{Bounds, Lease, NoRoom};

/// Threads that work on results at the same time, and those of them that work for one user.
const PLACES: usize = 32;
const PLACES_OF_USER: usize = 4;

/// Bounds and places.
#[derive(Clone)]
pub struct Options {
    /// Where results lie.
    pub dir: PathBuf,
    /// Most bytes of one search's results.
    pub bytes_max: u64,
    /// How much room results may take.
    pub room: Bounds,
    /// Longest run, in seconds.
    pub run_seconds: u64,
    /// Searches of one user that may run, or wait to run, at the same time.
    pub per_user_max: usize,
    /// Processes of filters that may run at the same time.
    pub filters_max: usize,
    /// What happens to filters that cannot be confined fully.
    pub sandbox: Sandbox,
    /// Results that are not saved are kept this long, in seconds.
    pub keep_s: u64,
    /// Entries of a user's history.
    pub history_max: usize,
    /// Whether all tags of indexers must have been granted, not only those that are not for everybody.
    pub tags_are_granted: bool,
    /// Indexers.
    pub indexers: Arc<Vec<Indexer>>,
}

/// Who searches, and what they may beside that.
#[derive(Clone, Debug, Default)]
pub struct Searcher {
    /// The person.
    pub person: Person,
    /// Whether they may read resources.
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
    /// Searches of each user.
    of_users: Arc<Quota<i32>>,
    live: Mutex<HashMap<String, Arc<Live>>>,
    stock: Arc<Stock>,
    places: Arc<Places>,
    openings: Openings,
    threads: Threads,
}

impl Searches {
    /// Begins with what the directory holds.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(store: Store, options: Options) -> std::io::Result<Searches> {
        let owner = |id: &str| Some(store.valid::<Search>(id).ok()??.value.uid);
        let stock = Arc::new(Stock::open(&options.dir, options.room, owner)?);
        let runner = Runner::own(options.run_seconds, options.filters_max, options.sandbox);
        let of_users = Quota::new(options.per_user_max);
        let (live, openings, threads) = (Mutex::default(), Openings::default(), Threads::default());
        let places = Arc::new(Places::new(PLACES, PLACES_OF_USER));
        Ok(Searches { store, options, runner, of_users, live, stock, places, openings, threads })
    }

    /// Its bounds and places.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Tries whether filters run on this host as configured, and logs it when they do not.
    pub async fn probe(&self) {
        let runner = self.runner.clone();
        // What is wrong is in the log; searches without filters run all the same.
        let _ = tokio::task::spawn_blocking(move || runner.probe()).await;
    }

    /// What sources need for a person.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn around(&self, searcher: &Searcher) -> Result<Surroundings, StoreError> {
        let Searcher { person, reads_resources } = searcher;
        // Not what the user is but what the caller may: a token never opens what is for administrators.
        let granted = (!person.admin).then(|| tags_of_person(&self.store, person)).transpose()?;
        let (store, person, indexers) = (self.store.clone(), person.clone(), Arc::clone(&self.options.indexers));
        let (reads_resources, all_are_granted) = (*reads_resources, self.options.tags_are_granted);
        Ok(Surroundings { store, person, indexers, reads_resources, granted, all_are_granted })
    }

    /// Places for work on results.
    #[must_use]
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    fn file(&self, id: &str) -> PathBuf {
        self.stock.file(id)
    }

    /// A search of this life of the process.
    #[must_use]
    pub fn live(&self, id: &str) -> Option<Arc<Live>> {
        locked(&self.live).get(id).cloned()
    }

    /// The search with what only this webserver knows of it.
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

    /// Whether the results are to be had here: they were made here, or saved.
    #[must_use]
    pub fn is_here(&self, search: &Search) -> bool {
        search.is_saved() || search.webserver == self.store.via()
    }
}
