//! Where rows come from. A further kind of source is one file: a type with [`Source`], and a line in [`open`].

pub mod audit;
mod export;
pub mod http;
pub mod journal;
mod merge;
mod output;
pub mod resource;
mod words;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::query::{Query, QueryError};
use crate::objects::Store;
use crate::objects::capabilities::means_tag;
use crate::objects::sharing::Person;

pub use journal::Indexer;
pub use merge::merged;
pub use output::Output;
pub use words::Words;

/// A stretch of time in nanoseconds since 1970-01-01 UTC; its end is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First.
    pub since: i64,
    /// First after it.
    pub until: i64,
}

impl Range {
    /// Whether a time lies within.
    #[must_use]
    pub fn contains(&self, time: i64) -> bool {
        (self.since..self.until).contains(&time)
    }
}

/// What a source does: in the end all is told, or why not.
pub type Telling = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Something that has rows.
pub trait Source: Send {
    /// Its name for people, as it stands in warnings about partial results.
    fn name(&self) -> String;

    /// What its failures are counted under: one of few words, so not the name of a resource.
    fn label(&self) -> String {
        self.name()
    }

    /// Gives the rows of a range to `out`, oldest first. The task is dropped when nothing more is wanted, so it must not
    /// leave anything behind. What blocks goes to a thread for that. An error ends this source and no other.
    fn tell(self: Box<Self>, range: Range, out: Output) -> Telling;
}

/// What sources of a query need.
#[derive(Clone)]
pub struct Surroundings {
    /// The store.
    pub store: Store,
    /// Who searches.
    pub person: Person,
    /// The configured indexers.
    pub indexers: Arc<Vec<Indexer>>,
    /// Whether the person, by a token or as a user, may read resources: nothing says so by itself.
    pub reads_resources: bool,
    /// Patterns of the tags that the person was granted; `None`: an administrator, who may search all of them.
    pub granted: Option<Vec<String>>,
    /// Whether every tag must have been granted, not only those that hold what is not for everybody.
    pub all_are_granted: bool,
}

/// Tags that only administrators search unless they are granted, also where others need not be: a host's journal holds what
/// every program of that host writes.
const DELICATE: [&str; 1] = [journal::TAG];

/// What reading a resource needs, also through a search.
pub const READ_RESOURCES: &str = "ResourceRead";

impl Surroundings {
    fn may_search(&self, tag: &str) -> bool {
        let Some(granted) = &self.granted else { return true };
        let needs_grant = self.all_are_granted || DELICATE.contains(&tag);
        !needs_grant || granted.iter().any(|pattern| means_tag(pattern, tag))
    }
}

/// Sources, each with the place of its tag in the query.
pub type Sources = Vec<(u16, Box<dyn Source>)>;

/// The sources that a query names, each with the place of its tag. Looks for everything that can be refused before it begins.
///
/// # Errors
/// Names the column of a tag that is not known, or not open to the person.
pub fn open(query: &Query, around: &Surroundings) -> Result<Sources, QueryError> {
    let mut sources: Sources = Vec::new();
    for (number, tag) in (0u16..).zip(&query.tags) {
        let wrong = |message: String| QueryError::at(&query.text, tag.at, message);
        if tag.name == "audit" {
            sources.push((number, Box::new(audit::Audit::open(around).map_err(wrong)?)));
        } else if let Some(name) = tag.name.strip_prefix("resource:") {
            if !around.reads_resources {
                return Err(wrong(format!(
                    "resources are read with the capability {READ_RESOURCES}, which is missing"
                )));
            }
            sources.push((number, Box::new(resource::Rows::open(around, name).map_err(wrong)?)));
        } else {
            let found: Vec<&Indexer> = around.indexers.iter().filter(|indexer| indexer.tag() == tag.name).collect();
            if found.is_empty() {
                // Clients know this sentence.
                let message = format!("Could not match tag spec {} against any known tags", tag.name);
                return Err(wrong(message));
            }
            if !around.may_search(&tag.name) {
                return Err(wrong(format!("the tag {} was not granted to you: ask an administrator", tag.name)));
            }
            for indexer in found {
                sources.push((number, Box::new(indexer.clone())));
            }
        }
    }
    Ok(sources)
}

/// The tags that a person may search, without resources.
#[must_use]
pub fn tags(around: &Surroundings) -> Vec<String> {
    let mut tags: Vec<String> =
        around.indexers.iter().map(|indexer| indexer.tag().to_owned()).filter(|tag| around.may_search(tag)).collect();
    if around.person.admin {
        tags.push("audit".into());
    }
    tags.sort_unstable();
    tags.dedup();
    tags
}
