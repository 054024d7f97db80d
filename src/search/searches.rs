//! Searches of this webserver: those that run, those whose results are kept here, and what everybody is told of them.
//!
//! A search is an object in the log from its first moment, so every webserver lists it; its rows stay in a file here
//! until they are saved, which makes them a content that every webserver has.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::control::{Control, Stopped};
use super::engine::{self, End, Job, Outcome};
use super::filter::Runner;
use super::query::{self, Query, QueryError};
use super::results::{Results, ResultsError, Writer};
use super::source::{self, Indexer, Range, Sources, Surroundings};
use crate::objects::capabilities::tags_of_person;
use crate::objects::contents::{self, Upload, UploadError};
use crate::objects::history::{self, Entry};
use crate::objects::searches::{Search, State};
use crate::objects::sessions::random;
use crate::objects::sharing::Person;
use crate::objects::store::{Author, Committed};
use crate::objects::users::{Admin, User};
use crate::objects::{CommitError, Moment, Store, StoreError, Writes};
use crate::replica::Change;

/// A search that goes on in the background is kept this many times as long as others.
const BACKGROUND_FACTOR: u64 = 7;
/// Without a range, a search looks back this far.
const DEFAULT_RANGE_S: u64 = 3600;
/// A file whose search is not known is cleared away after this long.
const UNKNOWN_AFTER: Duration = Duration::from_secs(3600);
/// Searches of a webserver that does not clear them away itself are cleared away by others after this long.
const FORSAKEN_S: u64 = 7 * 24 * 3600;
/// Files of results that are kept open.
const OPENED_MAX: usize = 64;
/// Bytes that are read at once to be saved.
const SAVE_BYTES: usize = 256 << 10;

/// Bounds and places.
#[derive(Clone)]
pub struct Options {
    /// Where results lie.
    pub dir: PathBuf,
    /// Most bytes of one search's results.
    pub bytes_max: u64,
    /// Longest run, in seconds.
    pub run_seconds: u64,
    /// Searches of one user that may run at the same time.
    pub per_user_max: usize,
    /// Results that are not saved are kept this long, in seconds.
    pub keep_s: u64,
    /// Entries of a user's history.
    pub history_max: usize,
    /// Whether tags of indexers must have been granted.
    pub tags_are_granted: bool,
    /// Indexers.
    pub indexers: Arc<Vec<Indexer>>,
}

/// What somebody wants searched.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The query.
    pub query: String,
    /// First time, unless the query says.
    pub since: Option<Moment>,
    /// First time after it, unless the query says.
    pub until: Option<Moment>,
    /// Whether it goes on when nobody looks.
    pub background: bool,
    /// Whether it is left out of the history.
    pub no_history: bool,
    /// Whether nobody needs to be told of it: its results are given at once and forgotten.
    pub is_passing: bool,
    /// Groups that may read it.
    pub gids: Vec<i32>,
    /// Whether everybody may read it.
    pub global: bool,
    /// Name for people.
    pub name: String,
    /// How it was begun.
    pub method: String,
    /// What began it.
    pub reference: String,
    /// Whatever a client wants kept.
    pub metadata: Option<Box<serde_json::value::RawValue>>,
}

/// Why a search does not begin, or something cannot be done with it.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The query.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// Too many run.
    #[error("{0} of your searches run already: wait, or stop one (Search-Max-Per-User)")]
    TooMany(usize),
    /// Not allowed.
    #[error("{0}")]
    Forbidden(String),
    /// It still runs, or does not any more.
    #[error("{0}")]
    Conflict(String),
    /// The disk or the randomness of this machine.
    #[error("the results cannot be kept: {0}")]
    Io(#[from] std::io::Error),
    /// The results.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The log.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Making a content of them.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl From<StoreError> for SearchError {
    fn from(error: StoreError) -> Self {
        SearchError::Commit(error.into())
    }
}

/// A search that runs here, or ran in this life of the process.
pub struct Live {
    control: Arc<Control>,
    results: Arc<Results>,
    begun: Instant,
    search: Mutex<Search>,
    done: tokio::sync::watch::Sender<bool>,
}

impl Live {
    /// The search as it stands at this moment.
    #[must_use]
    pub fn search(&self) -> Search {
        let mut search = locked(&self.search).clone();
        if search.state == State::Running {
            let progress = self.results.progress();
            (search.rows, search.bytes) = (progress.rows, progress.bytes);
            search.rows_in = self.control.rows_in.load(Ordering::Relaxed);
            search.duration_ms = millis(self.begun.elapsed());
            search.warnings = self.control.warnings();
            search.updated = Moment::now();
        }
        search
    }

    /// Its results, as far as there are any.
    #[must_use]
    pub fn results(&self) -> Arc<Results> {
        Arc::clone(&self.results)
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        let _ = self.done.subscribe().wait_for(|done| *done).await;
    }

    /// Ends it; what it has found is kept.
    pub fn stop(&self) {
        self.control.stop(Stopped::ByUser);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Searches of this webserver.
pub struct Searches {
    store: Store,
    options: Options,
    runner: Runner,
    live: Mutex<HashMap<String, Arc<Live>>>,
    opened: Mutex<HashMap<String, Arc<Results>>>,
    fetching: tokio::sync::Mutex<()>,
}

/// A query that may begin.
struct Prepared {
    query: Query,
    sources: Sources,
    since: Moment,
    until: Moment,
}

fn new_id() -> std::io::Result<String> {
    // Exact in every client's numbers, should one take it for a number.
    Ok((u64::from_le_bytes(random::<8>()?) >> 11).to_string())
}

impl Searches {
    /// Begins with what the directory holds.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(store: Store, options: Options) -> std::io::Result<Searches> {
        std::fs::create_dir_all(&options.dir)?;
        for entry in std::fs::read_dir(&options.dir)?.filter_map(Result::ok) {
            if entry.path().extension().is_some_and(|extension| extension == "part") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let runner = Runner::own(options.run_seconds);
        let (live, opened) = (Mutex::default(), Mutex::default());
        Ok(Searches { store, options, runner, live, opened, fetching: tokio::sync::Mutex::default() })
    }

    /// Its bounds and places.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What sources need for a person.
    ///
    /// # Errors
    /// When the state is damaged.
    pub fn around(&self, person: &Person) -> Result<Surroundings, StoreError> {
        let is_limited = self.options.tags_are_granted && !self.store.has::<Admin>(&person.uid.to_string())?;
        let granted = is_limited.then(|| tags_of_person(&self.store, person)).transpose()?;
        let (store, person) = (self.store.clone(), person.clone());
        Ok(Surroundings { store, person, indexers: Arc::clone(&self.options.indexers), granted })
    }

    fn file(&self, id: &str) -> PathBuf {
        self.options.dir.join(format!("{id}.results"))
    }

    /// Whether a query is understood and may be run by the person; filters are looked at in a process of their own.
    ///
    /// # Errors
    /// Names the column.
    pub async fn check(&self, person: &Person, text: &str) -> Result<Query, QueryError> {
        let query = query::parse(text, Moment::now())?;
        let around = self.around(person).map_err(|error| QueryError::at(text, 0, error.to_string()))?;
        source::open(&query, &around)?;
        let (runner, checked) = (self.runner.clone(), query.clone());
        let check = tokio::task::spawn_blocking(move || runner.check(&checked)).await;
        check.map_err(|error| QueryError::at(text, 0, error.to_string()))??;
        Ok(query)
    }

    async fn prepare(&self, person: &Person, launch: &Launch) -> Result<Prepared, SearchError> {
        let query = self.check(person, &launch.query).await?;
        let sources = source::open(&query, &self.around(person)?)?;
        let until = query.until.or(launch.until).unwrap_or_else(Moment::now);
        let back = i64::try_from(DEFAULT_RANGE_S * 1_000_000_000).unwrap_or(i64::MAX);
        let since = query.since.or(launch.since).unwrap_or_else(|| Moment::from_ns(until.ns().saturating_sub(back)));
        if since >= until {
            return Err(QueryError::at(&launch.query, 0, "the range ends before it begins").into());
        }
        Ok(Prepared { query, sources, since, until })
    }

    fn running_of(&self, uid: i32) -> usize {
        let live = locked(&self.live);
        live.values().filter(|live| locked(&live.search).uid == uid && !*live.done.borrow()).count()
    }

    /// Begins a search. It runs already when this returns, and everybody has been told or will be.
    ///
    /// # Errors
    /// When the query is wrong, too many run, or this machine or the log refuse.
    pub async fn launch(
        self: &Arc<Self>,
        person: &Person,
        author: &Author,
        launch: Launch,
    ) -> Result<Arc<Live>, SearchError> {
        if launch.global && !person.admin {
            return Err(SearchError::Forbidden("only administrators may share with everybody".into()));
        }
        if !person.admin && launch.gids.iter().any(|gid| !person.groups.contains(gid)) {
            return Err(SearchError::Forbidden("a search can be shared with groups of which one is a member".into()));
        }
        let prepared = self.prepare(person, &launch).await?;
        let running = self.running_of(person.uid);
        if running >= self.options.per_user_max {
            return Err(SearchError::TooMany(running));
        }
        let search = self.describe(person, launch.clone(), &prepared)?;
        let range = Range { since: prepared.since.ns(), until: prepared.until.ns() };
        let writer = Writer::create(&self.file(&search.id), (range.since, range.until))?;
        let live = Arc::new(Live {
            control: Arc::default(),
            results: writer.results(),
            begun: Instant::now(),
            search: Mutex::new(search.clone()),
            done: tokio::sync::watch::Sender::new(false),
        });
        locked(&self.live).insert(search.id.clone(), Arc::clone(&live));
        let job = Job {
            query: prepared.query,
            sources: prepared.sources,
            range,
            control: Arc::clone(&live.control),
            runner: self.runner.clone(),
            writer,
            bytes_max: self.options.bytes_max,
        };
        let (told, is_told) = tokio::sync::oneshot::channel();
        tokio::spawn(Arc::clone(self).run(Arc::clone(&live), job, author.clone(), launch.is_passing, is_told));
        let result = self.tell(author, &search, &launch).await;
        if result.is_err() {
            live.stop();
            self.forget(&search.id);
        }
        let _ = told.send(result.is_ok());
        result.map(|()| live)
    }

    fn describe(&self, person: &Person, launch: Launch, prepared: &Prepared) -> Result<Search, SearchError> {
        let now = Moment::now();
        let mut gids = launch.gids;
        if gids.is_empty() {
            let user = self.store.get::<User>(&person.uid.to_string())?;
            gids.extend(user.and_then(|user| user.value.default_gid));
        }
        let factor = if launch.background { BACKGROUND_FACTOR } else { 1 };
        Ok(Search {
            id: new_id()?,
            uid: person.uid,
            gids,
            global: launch.global,
            user_query: launch.query,
            tags: prepared.query.tags.iter().map(|tag| tag.name.clone()).collect(),
            columns: prepared.query.columns(),
            start_range: prepared.since,
            end_range: prepared.until,
            started: now,
            updated: now,
            duration_ms: 0,
            state: State::Running,
            rows: 0,
            bytes: 0,
            rows_in: 0,
            over_limit: false,
            error: String::new(),
            warnings: Vec::new(),
            webserver: self.store.via().to_owned(),
            background: launch.background,
            content: String::new(),
            expires: now.plus(self.options.keep_s.saturating_mul(factor)),
            no_history: launch.no_history,
            name: launch.name,
            notes: String::new(),
            method: launch.method,
            reference: launch.reference,
            metadata: launch.metadata,
        })
    }

    /// Tells everybody of a search, and its owner's history, in one transaction.
    async fn tell(&self, author: &Author, search: &Search, launch: &Launch) -> Result<(), SearchError> {
        let mut writes = Writes::new();
        if !launch.no_history {
            let entry = Entry {
                id: history::new_id(search.started)?,
                uid: search.uid,
                gid: search.gids.first().copied().unwrap_or(0),
                gids: search.gids.clone(),
                global: search.global,
                user_query: search.user_query.clone(),
                effective_query: search.user_query.clone(),
                launched: search.started,
            };
            writes = history::add(&self.store, &entry, self.options.history_max)?;
        }
        if !launch.is_passing {
            writes.create(search, "the search exists already: try again")?;
        }
        if !writes.is_empty() {
            self.store.commit(author, "search", writes).await?;
        }
        Ok(())
    }

    async fn run(
        self: Arc<Self>,
        live: Arc<Live>,
        job: Job,
        author: Author,
        is_passing: bool,
        is_told: tokio::sync::oneshot::Receiver<bool>,
    ) {
        let (control, seconds) = (Arc::clone(&live.control), self.options.run_seconds);
        let deadline = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            control.stop(Stopped::TooLong(format!("it ran for {seconds} s (Search-Max-Seconds)")));
        });
        let outcome = tokio::task::spawn_blocking(move || engine::run(job)).await;
        deadline.abort();
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "a search broke off");
            let reason = "the webserver failed to do this; its log says why".into();
            Outcome { end: End::Failed, reason, over_limit: false, summary: Default::default() }
        });
        let search = note(&live, outcome);
        // The last word comes after the first.
        if is_told.await.unwrap_or(false)
            && !is_passing
            && let Err(error) = self.write_ending(&author, &search).await
        {
            tracing::warn!(%error, id = search.id, "the end of a search could not be told");
        }
        live.done.send_replace(true);
        // From now on its results are opened when somebody wants them; a passing one is forgotten by whoever asked.
        if !is_passing {
            locked(&self.live).remove(&search.id);
        }
    }

    async fn write_ending(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        self.rewrite(author, &search.id, "end of a search", |kept| {
            let Search { state, rows, bytes, rows_in, over_limit, duration_ms, .. } = *search;
            (kept.state, kept.rows, kept.bytes, kept.rows_in) = (state, rows, bytes, rows_in);
            (kept.over_limit, kept.duration_ms) = (over_limit, duration_ms);
            kept.error.clone_from(&search.error);
            kept.warnings.clone_from(&search.warnings);
        })
        .await
        .map(drop)
    }

    /// Changes a search that still exists, whatever else of it others change meanwhile.
    ///
    /// # Errors
    /// When it was deleted, or the log refuses.
    pub async fn rewrite(
        &self,
        author: &Author,
        id: &str,
        what: &str,
        change: impl Fn(&mut Search),
    ) -> Result<Search, CommitError> {
        const GONE: &str = "the search was deleted meanwhile";
        const CHANGED: &str = "the search was changed meanwhile: try again";
        let mut tries = 0;
        loop {
            let found = self.store.get::<Search>(id)?;
            let mut record = found.ok_or_else(|| CommitError::Conflict(GONE.into()))?;
            let mut writes = Writes::new();
            writes.unchanged(&record, CHANGED)?;
            change(&mut record.value);
            record.value.updated = Moment::now();
            writes.update(&record, GONE)?;
            match self.store.commit(author, what, writes).await {
                Err(CommitError::Conflict(reason)) if reason == CHANGED && tries < 5 => tries += 1,
                Err(error) => return Err(error),
                Ok(_) => {
                    if let Some(live) = self.live(id) {
                        change(&mut locked(&live.search));
                    }
                    return Ok(record.value);
                }
            }
        }
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

    /// The results of a search, from here.
    ///
    /// # Errors
    /// When they are damaged or were cleared away.
    pub async fn results(&self, search: &Search) -> Result<Arc<Results>, SearchError> {
        if let Some(live) = self.live(&search.id) {
            return Ok(live.results());
        }
        if let Some(opened) = locked(&self.opened).get(&search.id) {
            return Ok(Arc::clone(opened));
        }
        let file = self.file(&search.id);
        // Only one fetches; the others find what it fetched.
        let _fetching = self.fetching.lock().await;
        let (store, content) = (self.store.clone(), search.content.clone());
        let opened = tokio::task::spawn_blocking(move || {
            if !file.exists() && !content.is_empty() {
                let part = file.with_extension("part");
                let mut reader = contents::reader(&store, &content).map_err(std::io::Error::other)?;
                std::io::copy(&mut reader, &mut std::fs::File::create(&part)?)?;
                std::fs::rename(&part, &file)?;
            }
            Results::open(&file)
        });
        let opened = opened.await.map_err(std::io::Error::other)?;
        let opened = opened.map_err(|error| match error {
            ResultsError::Io(error) if error.kind() == std::io::ErrorKind::NotFound => {
                SearchError::Conflict("the results were cleared away".into())
            }
            error => error.into(),
        })?;
        let mut kept = locked(&self.opened);
        // Whoever reads keeps what they read; files are few.
        if kept.len() >= OPENED_MAX {
            kept.clear();
        }
        kept.insert(search.id.clone(), Arc::clone(&opened));
        Ok(opened)
    }

    /// Stops a search that runs here and waits for its end; one that has ended needs no stop.
    pub async fn stop(&self, id: &str) {
        if let Some(live) = self.live(id) {
            live.stop();
            live.ended().await;
        }
    }

    /// Makes the results of a search of this webserver a content that every webserver has. Waits for its end.
    ///
    /// # Errors
    /// When there are no results, or the log does not take them.
    pub async fn save(
        &self,
        author: &Author,
        search: &Search,
        expires: Moment,
        change: impl Fn(&mut Search),
    ) -> Result<Search, SearchError> {
        if let Some(live) = self.live(&search.id) {
            live.ended().await;
        }
        let set = |kept: &mut Search| {
            kept.expires = expires;
            change(kept);
        };
        if search.is_saved() {
            return Ok(self.rewrite(author, &search.id, "save a search", set).await?);
        }
        let results = self.results(search).await?;
        let mut upload = Upload::begin(&self.store, "")?;
        let mut file = std::fs::File::open(results.path())?;
        loop {
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::with_capacity(SAVE_BYTES);
                let read =
                    std::io::Read::read_to_end(&mut std::io::Read::take(&mut file, SAVE_BYTES as u64), &mut bytes);
                read.map(|_| (file, bytes))
            });
            let (back, bytes) = read.await.map_err(std::io::Error::other)??;
            file = back;
            if bytes.is_empty() {
                break;
            }
            upload.write(&bytes).await?;
        }
        let mut writes = Writes::new();
        let content = upload.finish(&mut writes).await?;
        let found = self.store.get::<Search>(&search.id)?;
        let mut record = found.ok_or_else(|| SearchError::Conflict("the search was deleted meanwhile".into()))?;
        set(&mut record.value);
        record.value.content.clone_from(&content.id);
        record.value.updated = Moment::now();
        writes.update(&record, "the search was deleted meanwhile")?;
        self.store.commit(author, "save a search", writes).await?;
        if let Some(live) = self.live(&search.id) {
            *locked(&live.search) = record.value.clone();
        }
        Ok(record.value)
    }

    /// Deletes a search everywhere; its webserver clears its results away as soon as it hears of it.
    ///
    /// # Errors
    /// When the log refuses.
    pub async fn remove(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        let mut writes = Writes::new();
        writes.delete::<Search>(&search.id)?;
        let committed = self.store.commit(author, "delete a search", writes).await?;
        self.forget(&search.id);
        // While it is not decided, it may be rejected, and the contents are needed: the sweeper takes them away later.
        if search.is_saved()
            && matches!(committed, Committed::At(_))
            && let Some(writes) = contents::removal(&self.store, &search.content)?
            && let Err(error) = self.store.commit(author, "take away contents that nothing names", writes).await
        {
            tracing::debug!(%error, "contents of a search were not taken away yet");
        }
        Ok(())
    }

    /// Forgets a search here: ends it and clears its file away.
    pub fn forget(&self, id: &str) {
        let live = locked(&self.live).remove(id);
        if let Some(live) = live {
            live.stop();
        }
        locked(&self.opened).remove(id);
        // Whoever reads at this moment reads on: the file is gone only when nobody has it open.
        let _ = std::fs::remove_file(self.file(id));
    }

    /// Ends all searches, because the process ends.
    pub async fn shut_down(&self) {
        let all: Vec<Arc<Live>> = locked(&self.live).values().cloned().collect();
        for live in &all {
            live.control.stop(Stopped::Shutdown);
        }
        for live in all {
            let _ = tokio::time::timeout(Duration::from_secs(5), live.ended()).await;
        }
    }

    /// Says of searches that a former life of this process left running that they are not.
    ///
    /// # Errors
    /// When the log refuses.
    pub async fn note_interrupted(&self) -> Result<(), CommitError> {
        for record in self.store.list::<Search>("")? {
            let search = record.value;
            if search.webserver != self.store.via() || search.state != State::Running || self.live(&search.id).is_some()
            {
                continue;
            }
            let progress = Results::open(&self.file(&search.id)).map(|results| results.progress()).unwrap_or_default();
            let interrupted = |kept: &mut Search| {
                kept.state = State::Interrupted;
                (kept.rows, kept.bytes) = (progress.rows, progress.bytes);
                kept.error = "its webserver ended while it ran".into();
            };
            self.rewrite(&Author::default(), &search.id, "note an interrupted search", interrupted).await?;
        }
        Ok(())
    }

    /// Clears away what has expired, and files that belong to no search.
    ///
    /// # Errors
    /// When the log refuses.
    pub async fn sweep(&self) -> Result<(), CommitError> {
        let searches = self.store.list::<Search>("")?;
        for record in &searches {
            let search = &record.value;
            let is_own = search.webserver == self.store.via();
            let after = if is_own { 0 } else { FORSAKEN_S };
            let has_ended = search.state != State::Running || !is_own;
            if has_ended && !search.expires.is_never() && search.expires.plus(after).is_past() {
                self.remove(&Author::default(), search).await?;
            }
        }
        let status = self.store.replica().status();
        if status.connected && status.lag_ops == 0 {
            self.clear_unknown(&searches.iter().map(|record| record.value.id.as_str()).collect());
        }
        Ok(())
    }

    fn clear_unknown(&self, known: &std::collections::HashSet<&str>) {
        let Ok(files) = std::fs::read_dir(&self.options.dir) else { return };
        for file in files.filter_map(Result::ok) {
            let path = file.path();
            let id = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            let is_results = path.extension().is_some_and(|extension| extension == "results");
            let age = file.metadata().and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok());
            let is_old = age.is_some_and(|age| age > UNKNOWN_AFTER);
            if is_results && is_old && !known.contains(id.as_str()) && self.live(&id).is_none() {
                self.forget(&id);
            }
        }
    }

    /// Follows the log: what was deleted anywhere is forgotten here. Runs until dropped.
    pub async fn follow(&self) {
        let mut changes = self.store.replica().watch();
        loop {
            match changes.recv().await {
                Ok(Change::Deleted { collection, key, .. }) if collection.as_str() == "searches" => {
                    self.forget(key.as_str())
                }
                Ok(_) => {}
                // What was missed here is found by the sweep.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn note(live: &Live, outcome: Outcome) -> Search {
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
    search.updated = Moment::now();
    search.clone()
}
