//! Start, run and end of a search.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::live::{Live, note};
use super::{SearchError, Searcher, Searches, locked};
use crate::client_filters::{self, Condition};
use crate::control::Stopped;
use crate::engine::{self, End, Job, Outcome};
use crate::filter::Reserved;
use crate::query::{self, Query, QueryError};
use crate::results::{About, Writer};
use crate::source::{self, Range, Sources};
use gravwell_env::quota::Held;
use gravwell_objects::history::{self, Entry};
use gravwell_objects::searches::{Search, State};
use gravwell_objects::sessions::random;
use gravwell_objects::sharing::Principal;
use gravwell_objects::store::Author;
use gravwell_objects::users::User;
use gravwell_objects::{CommitError, Timestamp, Writes};
use gravwell_runtime::tasks::shares::Share;
use gravwell_runtime::telemetry::metrics::{self, SearchEnded};

/// Results of a background search are kept this many times as long as others.
const BACKGROUND_FACTOR: u64 = 7;
/// Default time range of a search: this many seconds up to now.
const DEFAULT_RANGE_S: u64 = 3600;

/// Returns the user whose share of filter processes a search uses; `None`: an administrator, who has no limit.
fn counted(person: &Principal) -> Option<i32> {
    (!person.admin).then_some(person.uid)
}

/// Task that publishes a search in the log.
type PublishTask = tokio::task::JoinHandle<Result<(), SearchError>>;

/// Request to start a search.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Query text.
    pub query: String,
    /// Conditions in addition to the query.
    pub conditions: Vec<Condition>,
    /// Start of the time range, inclusive, unless the query sets it.
    pub since: Option<Timestamp>,
    /// End of the time range, exclusive, unless the query sets it.
    pub until: Option<Timestamp>,
    /// Whether it is a background search, whose results are kept longer.
    pub background: bool,
    /// Whether it is omitted from the search history.
    pub no_history: bool,
    /// GIDs of groups that may read it.
    pub gids: Vec<i32>,
    /// Whether all users may read it.
    pub global: bool,
    /// Name chosen by the user.
    pub name: String,
    /// How it was started, such as `manual`.
    pub method: String,
    /// Reference to its trigger, as given by the client.
    pub reference: String,
    /// Metadata of the client, stored unchanged.
    pub metadata: Option<Box<serde_json::value::RawValue>>,
}

/// An ephemeral search: it is not published in the log, and it is forgotten on drop.
pub struct EphemeralSearch {
    live: Arc<Live>,
    searches: Arc<Searches>,
}

impl EphemeralSearch {
    /// Returns the search.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for EphemeralSearch {
    fn drop(&mut self) {
        self.searches.forget(&self.live.id);
    }
}

/// A validated query.
struct Prepared {
    query: Query,
    sources: Sources,
    since: Timestamp,
    until: Timestamp,
}

/// A search that is being started.
struct Running {
    job: Job,
    /// Its slot among the searches of its user.
    held: Held<i32>,
    /// The slots of its filters.
    reserved: Reserved,
    /// Its threads.
    threads: Share,
    author: Author,
    is_kept: bool,
}

/// Returns the description that is stored with the results.
fn about(search: &Search) -> About {
    About {
        query: search.user_query.clone(),
        effective_query: search.effective_query.clone(),
        tags: search.tags.clone(),
        columns: search.columns.clone(),
        since: search.start_range,
        until: search.end_range,
        started: search.started,
        name: search.name.clone(),
    }
}

pub(super) fn new_id() -> std::io::Result<String> {
    // At most 53 bits, so that clients that parse the ID as a floating-point number do not lose precision.
    Ok((u64::from_le_bytes(random::<8>()?) >> 11).to_string())
}

impl Searches {
    /// Checks that a query is valid and that the user may run it; filters are compiled in a separate process.
    ///
    /// # Errors
    /// If the query is invalid (the error has the column), or too many queries are being checked.
    pub async fn check(&self, searcher: &Searcher, text: &str, conditions: &[Condition]) -> Result<Query, SearchError> {
        let conditioned = client_filters::applied(text, conditions)?;
        self.check_text(searcher, &conditioned.text).await.map_err(|error| match error {
            SearchError::Query(error) => conditioned.of_typed(error).into(),
            error => error,
        })
    }

    async fn check_text(&self, searcher: &Searcher, text: &str) -> Result<Query, SearchError> {
        let query = query::parse(text, Timestamp::now())?;
        let around = self.around(searcher).map_err(|error| QueryError::at(text, 0, error.to_string()))?;
        source::open(&query, &around)?;
        let place = self.runner.reserve_check(counted(&searcher.person)).await?;
        let (runner, checked) = (self.runner.clone(), query.clone());
        let check = tokio::task::spawn_blocking(move || {
            // Held until the process has exited, even if the caller no longer waits.
            let _place = place;
            runner.check(&checked)
        });
        check.await.map_err(|error| QueryError::at(text, 0, error.to_string()))??;
        Ok(query)
    }

    async fn prepare(&self, searcher: &Searcher, launch: &Launch) -> Result<Prepared, SearchError> {
        let query = self.check(searcher, &launch.query, &launch.conditions).await?;
        let sources = source::open(&query, &self.around(searcher)?)?;
        let until = query.until.or(launch.until).unwrap_or_else(Timestamp::now);
        let back = i64::try_from(DEFAULT_RANGE_S * 1_000_000_000).unwrap_or(i64::MAX);
        let since = query.since.or(launch.since).unwrap_or_else(|| Timestamp::from_ns(until.ns().saturating_sub(back)));
        if since >= until {
            return Err(QueryError::at(&launch.query, 0, "the time range ends before it starts").into());
        }
        Ok(Prepared { query, sources, since, until })
    }

    /// Starts a search. When this returns, the search is running and its object is committed, or pending while the datastore
    /// is unreachable. The publication completes even if the caller stops waiting.
    ///
    /// # Errors
    /// If the query is invalid, too many searches run, or this host or the log fails.
    pub async fn launch(
        self: &Arc<Self>,
        searcher: &Searcher,
        author: &Author,
        launch: Launch,
    ) -> Result<Arc<Live>, SearchError> {
        let (live, told) = self.begin(searcher, author, launch, true).await?;
        told.await.map_err(std::io::Error::other)??;
        Ok(live)
    }

    /// Starts an ephemeral search, of which only the history entry is written to the log. It is forgotten when the
    /// returned value, or this future, is dropped.
    ///
    /// # Errors
    /// See [`Searches::launch`].
    pub async fn launch_passing(
        self: &Arc<Self>,
        searcher: &Searcher,
        author: &Author,
        launch: Launch,
    ) -> Result<EphemeralSearch, SearchError> {
        let (live, told) = self.begin(searcher, author, launch, false).await?;
        // No await point lies between the start of the search and this, so dropping the future always forgets it.
        let passing = EphemeralSearch { live, searches: Arc::clone(self) };
        told.await.map_err(std::io::Error::other)??;
        Ok(passing)
    }

    /// Starts a search, and publishes it in a separate task. The publication may be committed although the caller no
    /// longer waits, so the work that follows from it runs in that task. There is no await point once the search exists.
    async fn begin(
        self: &Arc<Self>,
        searcher: &Searcher,
        author: &Author,
        launch: Launch,
        is_kept: bool,
    ) -> Result<(Arc<Live>, PublishTask), SearchError> {
        let person = &searcher.person;
        if launch.global && !person.admin {
            return Err(SearchError::Forbidden("only administrators may share with all users".into()));
        }
        if !person.may_share_with(&launch.gids) {
            return Err(SearchError::NotMember);
        }
        let prepared = self.prepare(searcher, &launch).await?;
        // Counted before waiting for processes, so that the searches of one user cannot fill that queue.
        let held = self.of_users.take(person.uid).ok_or(SearchError::TooMany(self.options.per_user_max))?;
        let reserved = self.runner.reserve(counted(person), &prepared.query).await?;
        let resources = prepared.query.tags.iter().filter(|tag| tag.name.starts_with("resource:")).count();
        let threads = self.threads.take(counted(person), resources).await?;
        let search = self.describe(person, launch.clone(), &prepared)?;
        let range = Range { since: prepared.since.ns(), until: prepared.until.ns() };
        let file = self.file(&search.id);
        let room = self.stock.begin(&search.id, &file, person.uid)?;
        let mut writer = Writer::create(&file, (range.since, range.until))?;
        writer.describe(about(&search));
        room.read_by(&writer.results());
        let live = Arc::new(Live {
            id: search.id.clone(),
            control: Arc::default(),
            results: writer.results(),
            begun: Instant::now(),
            search: Mutex::new(search.clone()),
            done: tokio::sync::watch::Sender::new(false),
        });
        locked(&self.live).insert(search.id.clone(), Arc::clone(&live));
        metrics::search_began();
        let job = Job {
            query: prepared.query,
            sources: prepared.sources,
            range,
            control: Arc::clone(&live.control),
            runner: self.runner.clone(),
            writer,
            bytes_max: self.options.bytes_max,
            room,
        };
        let (told, is_told) = tokio::sync::oneshot::channel();
        let running = Running { job, held, reserved, threads, author: author.clone(), is_kept };
        tokio::spawn(Arc::clone(self).run(Arc::clone(&live), running, is_told));
        let (searches, author) = (Arc::clone(self), author.clone());
        let telling = tokio::spawn(async move {
            let result = searches.tell(&author, &search, &launch, is_kept).await;
            if result.is_err() {
                searches.forget(&search.id);
            }
            let _ = told.send(result.is_ok());
            result
        });
        Ok((live, telling))
    }

    fn describe(&self, person: &Principal, launch: Launch, prepared: &Prepared) -> Result<Search, SearchError> {
        let now = Timestamp::now();
        let mut gids = launch.gids;
        if gids.is_empty() {
            let user = self.store.get::<User>(&person.uid.to_string())?;
            // A search cannot be shared with a group that the user has left.
            let default = user.and_then(|user| user.value.default_gid);
            gids.extend(default.filter(|gid| person.may_share_with(&[*gid])));
        }
        let factor = if launch.background { BACKGROUND_FACTOR } else { 1 };
        Ok(Search {
            id: new_id()?,
            uid: person.uid,
            gids,
            global: launch.global,
            effective_query: if prepared.query.text == launch.query {
                String::new()
            } else {
                prepared.query.text.clone()
            },
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
            imported: None,
        })
    }

    /// Publishes a search and its history entry in one transaction.
    async fn tell(&self, author: &Author, search: &Search, launch: &Launch, is_kept: bool) -> Result<(), SearchError> {
        let mut writes = Writes::new();
        if !launch.no_history {
            let entry = Entry {
                id: history::new_id(&self.store, search.uid, search.started)?,
                uid: search.uid,
                gid: search.gids.first().copied().unwrap_or(0),
                gids: search.gids.clone(),
                global: search.global,
                user_query: search.user_query.clone(),
                effective_query: search.ran().to_owned(),
                launched: search.started,
            };
            writes = history::add(&self.store, &entry, self.options.history_max)?;
        }
        if is_kept {
            writes.create(search, "the search already exists; try again")?;
        }
        if !writes.is_empty() {
            self.store.commit(author, "search", writes).await?;
        }
        Ok(())
    }

    async fn run(self: Arc<Self>, live: Arc<Live>, running: Running, is_told: tokio::sync::oneshot::Receiver<bool>) {
        let Running { job, held, reserved, threads, author, is_kept } = running;
        let (control, seconds) = (Arc::clone(&live.control), self.options.run_seconds);
        let deadline = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            control.stop(Stopped::TooLong(format!("the search exceeded {seconds} s (Search-Max-Seconds)")));
        });
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = engine::run(job);
            drop((reserved, threads));
            outcome
        });
        let outcome = outcome.await;
        deadline.abort();
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "search failed");
            let reason = "internal error; see the log of the webserver".into();
            Outcome { end: End::Failed, reason, over_limit: false, summary: Default::default() }
        });
        let search = note(&live, outcome);
        metrics::search_ended(SearchEnded {
            outcome: search.outcome(),
            rows_read: search.rows_in,
            rows_found: search.rows,
            bytes: search.bytes,
            took: live.begun.elapsed(),
        });
        // The end is published after the start. If it is unknown whether the start was committed, the end is written too,
        // because the object may exist.
        if is_told.await.unwrap_or(true)
            && is_kept
            && let Err(error) = self.write_ending(&author, &search).await
        {
            tracing::warn!(%error, id = search.id, "failed to publish the end of a search");
        }
        // Released first: a client that learns of the end may start another search.
        drop(held);
        live.done.send_replace(true);
        // From now on the results are opened from the file on demand. An ephemeral search is forgotten by its owner.
        if is_kept {
            locked(&self.live).remove(&search.id);
        }
    }

    async fn write_ending(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        let more = Writes::new().unmetered("its start was metered, so its end is not");
        self.rewrite_with(author, &search.id, "end of a search", &more, |kept| {
            let Search { state, rows, bytes, rows_in, over_limit, duration_ms, .. } = *search;
            (kept.state, kept.rows, kept.bytes, kept.rows_in) = (state, rows, bytes, rows_in);
            (kept.over_limit, kept.duration_ms) = (over_limit, duration_ms);
            kept.error.clone_from(&search.error);
            kept.warnings.clone_from(&search.warnings);
        })
        .await
        .map(drop)
    }
}
