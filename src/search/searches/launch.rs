//! How a search begins, runs and ends.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::live::{Live, note};
use super::{SearchError, Searcher, Searches, locked};
use crate::env::quota::Held;
use crate::env::shares::Share;
use crate::objects::history::{self, Entry};
use crate::objects::searches::{Search, State};
use crate::objects::sessions::random;
use crate::objects::sharing::Person;
use crate::objects::store::Author;
use crate::objects::users::User;
use crate::objects::{CommitError, Moment, Writes};
use crate::search::conditions::{self, Condition};
use crate::search::control::Stopped;
use crate::search::engine::{self, End, Job, Outcome};
use crate::search::filter::Reserved;
use crate::search::query::{self, Query, QueryError};
use crate::search::results::{About, Writer};
use crate::search::source::{self, Range, Sources};
use crate::telemetry::metrics::{self, SearchEnded};

/// A search that goes on in the background is kept this many times as long as others.
const BACKGROUND_FACTOR: u64 = 7;
/// Without a range, a search looks back this far.
const DEFAULT_RANGE_S: u64 = 3600;

/// Whose share of the filter processes a search takes; administrators have all of them.
fn counted(person: &Person) -> Option<i32> {
    (!person.admin).then_some(person.uid)
}

/// Tells everybody of a search.
type Telling = tokio::task::JoinHandle<Result<(), SearchError>>;

/// What somebody wants searched.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The query.
    pub query: String,
    /// Conditions beside it.
    pub conditions: Vec<Condition>,
    /// First time, unless the query says.
    pub since: Option<Moment>,
    /// First time after it, unless the query says.
    pub until: Option<Moment>,
    /// Whether it goes on when nobody looks.
    pub background: bool,
    /// Whether it is left out of the history.
    pub no_history: bool,
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

/// A search of which nobody needs to be told: its results are given at once, and forgotten with this.
pub struct Passing {
    live: Arc<Live>,
    searches: Arc<Searches>,
}

impl Passing {
    /// The search.
    #[must_use]
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        self.searches.forget(&self.live.id);
    }
}

/// A query that may begin.
struct Prepared {
    query: Query,
    sources: Sources,
    since: Moment,
    until: Moment,
}

/// A search that begins.
struct Running {
    job: Job,
    /// Its place among the searches of its user.
    held: Held<i32>,
    /// The places of its filters.
    reserved: Reserved,
    /// Its threads.
    threads: Share,
    author: Author,
    is_kept: bool,
}

/// What an archive of the results says of itself.
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
    // Exact in every client's numbers, should one take it for a number.
    Ok((u64::from_le_bytes(random::<8>()?) >> 11).to_string())
}

impl Searches {
    /// Whether a query is understood and may be run by the person; filters are looked at in a process of their own.
    ///
    /// # Errors
    /// Names the column, or says that too many are checked already.
    pub async fn check(&self, searcher: &Searcher, text: &str, conditions: &[Condition]) -> Result<Query, SearchError> {
        let conditioned = conditions::applied(text, conditions)?;
        self.check_text(searcher, &conditioned.text).await.map_err(|error| match error {
            SearchError::Query(error) => conditioned.of_typed(error).into(),
            error => error,
        })
    }

    async fn check_text(&self, searcher: &Searcher, text: &str) -> Result<Query, SearchError> {
        let query = query::parse(text, Moment::now())?;
        let around = self.around(searcher).map_err(|error| QueryError::at(text, 0, error.to_string()))?;
        source::open(&query, &around)?;
        let place = self.runner.reserve_check(counted(&searcher.person)).await?;
        let (runner, checked) = (self.runner.clone(), query.clone());
        let check = tokio::task::spawn_blocking(move || {
            // Given back when its process has ended, also when nobody waits for it any more.
            let _place = place;
            runner.check(&checked)
        });
        check.await.map_err(|error| QueryError::at(text, 0, error.to_string()))??;
        Ok(query)
    }

    async fn prepare(&self, searcher: &Searcher, launch: &Launch) -> Result<Prepared, SearchError> {
        let query = self.check(searcher, &launch.query, &launch.conditions).await?;
        let sources = source::open(&query, &self.around(searcher)?)?;
        let until = query.until.or(launch.until).unwrap_or_else(Moment::now);
        let back = i64::try_from(DEFAULT_RANGE_S * 1_000_000_000).unwrap_or(i64::MAX);
        let since = query.since.or(launch.since).unwrap_or_else(|| Moment::from_ns(until.ns().saturating_sub(back)));
        if since >= until {
            return Err(QueryError::at(&launch.query, 0, "the range ends before it begins").into());
        }
        Ok(Prepared { query, sources, since, until })
    }

    /// Begins a search. It runs already when this returns, and everybody has been told or will be, also when nobody waits for
    /// this any more.
    ///
    /// # Errors
    /// When the query is wrong, too many run, or this machine or the log refuse.
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

    /// Begins a search of which only the history is told. It is forgotten, wherever this is, when nobody wants it any more.
    ///
    /// # Errors
    /// As of [`Searches::launch`].
    pub async fn launch_passing(
        self: &Arc<Self>,
        searcher: &Searcher,
        author: &Author,
        launch: Launch,
    ) -> Result<Passing, SearchError> {
        let (live, told) = self.begin(searcher, author, launch, false).await?;
        // From here on there is no wait without it.
        let passing = Passing { live, searches: Arc::clone(self) };
        told.await.map_err(std::io::Error::other)??;
        Ok(passing)
    }

    /// Begins a search, and tells of it in a task of its own: that may be committed although nobody waits for it any more, so
    /// what follows from it must not depend on that. Nothing is waited for once the search is there.
    async fn begin(
        self: &Arc<Self>,
        searcher: &Searcher,
        author: &Author,
        launch: Launch,
        is_kept: bool,
    ) -> Result<(Arc<Live>, Telling), SearchError> {
        let person = &searcher.person;
        if launch.global && !person.admin {
            return Err(SearchError::Forbidden("only administrators may share with everybody".into()));
        }
        if !person.may_share_with(&launch.gids) {
            return Err(SearchError::NotMember);
        }
        let prepared = self.prepare(searcher, &launch).await?;
        // Before the wait for processes, so that the searches of one user cannot fill the queue for them.
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

    fn describe(&self, person: &Person, launch: Launch, prepared: &Prepared) -> Result<Search, SearchError> {
        let now = Moment::now();
        let mut gids = launch.gids;
        if gids.is_empty() {
            let user = self.store.get::<User>(&person.uid.to_string())?;
            // A group that the user has left is no longer one to share with.
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

    /// Tells everybody of a search, and its owner's history, in one transaction.
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
            writes.create(search, "the search exists already: try again")?;
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
            control.stop(Stopped::TooLong(format!("it ran for {seconds} s (Search-Max-Seconds)")));
        });
        let outcome = tokio::task::spawn_blocking(move || {
            let outcome = engine::run(job);
            drop((reserved, threads));
            outcome
        });
        let outcome = outcome.await;
        deadline.abort();
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "a search broke off");
            let reason = "the webserver failed to do this; its log says why".into();
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
        // The last word comes after the first; where it is not known whether that came, there may be a search that waits for it.
        if is_told.await.unwrap_or(true)
            && is_kept
            && let Err(error) = self.write_ending(&author, &search).await
        {
            tracing::warn!(%error, id = search.id, "the end of a search could not be told");
        }
        // Whoever is told of its end may begin another one.
        drop(held);
        live.done.send_replace(true);
        // From now on its results are opened when somebody wants them; a passing one is forgotten by whoever asked.
        if is_kept {
            locked(&self.live).remove(&search.id);
        }
    }

    async fn write_ending(&self, author: &Author, search: &Search) -> Result<(), CommitError> {
        let more = Writes::new().unmetered("its beginning was counted; how it ended is told in any case");
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
