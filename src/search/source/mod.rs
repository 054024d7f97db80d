//! Sources of rows. To add a kind of source, add a file with a type that implements [`Source`], and a line in [`open`].

pub mod audit;
mod export;
pub mod http;
pub mod journal;
mod merge;
mod output;
pub mod resource;
mod terms;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::query::{Query, QueryError};
use gravwell_objects::Store;
use gravwell_objects::capabilities::means_tag;
use gravwell_objects::sharing::Principal;

pub use journal::Indexer;
pub use merge::merged;
pub use output::Output;
pub use terms::Terms;

/// Time range in nanoseconds since 1970-01-01 UTC, end exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Start, inclusive.
    pub since: i64,
    /// End, exclusive.
    pub until: i64,
}

impl Range {
    /// Returns whether the range contains a time.
    #[must_use]
    pub fn contains(&self, time: i64) -> bool {
        (self.since..self.until).contains(&time)
    }
}

/// Future of a running source; it completes once all rows were delivered, or with the reason of a failure.
pub type SourceFuture = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A source of rows.
pub trait Source: Send {
    /// Returns the name for users, as shown in warnings about partial results.
    fn name(&self) -> String;

    /// Returns the metrics label of its failures. It must have few values, so it is not the name of a resource.
    fn label(&self) -> String {
        self.name()
    }

    /// Sends the rows of a range to `out`, oldest first. The task is dropped when no more rows are wanted, so it must not
    /// leave anything behind. Blocking work belongs on a blocking thread. An error ends only this source.
    fn tell(self: Box<Self>, range: Range, out: Output) -> SourceFuture;
}

/// Context that the sources of a query need.
#[derive(Clone)]
pub struct SourceContext {
    /// Store of the objects.
    pub store: Store,
    /// Principal that searches.
    pub person: Principal,
    /// The configured indexers.
    pub indexers: Arc<Vec<Indexer>>,
    /// Whether the principal may read resources, considering the token if there is one; never implied.
    pub reads_resources: bool,
    /// Patterns of the tags granted to the principal; `None`: an administrator, who may search all tags.
    pub granted: Option<Vec<String>>,
    /// Whether every tag must be granted, not only sensitive ones.
    pub all_are_granted: bool,
}

/// Tags that always need a grant, except for administrators: the journal of a host contains the output of all
/// its programs.
const DELICATE: [&str; 1] = [journal::TAG];

/// Capability needed to read a resource, also through a search.
pub const READ_RESOURCES: &str = "ResourceRead";

impl SourceContext {
    fn may_search(&self, tag: &str) -> bool {
        let Some(granted) = &self.granted else { return true };
        let needs_grant = self.all_are_granted || DELICATE.contains(&tag);
        !needs_grant || granted.iter().any(|pattern| means_tag(pattern, tag))
    }
}

/// Sources, each with the index of its tag in the query.
pub type Sources = Vec<(u16, Box<dyn Source>)>;

/// Opens the sources that a query names, each with the index of its tag. Everything that may be rejected is checked here,
/// before the search starts.
///
/// # Errors
/// If a tag is unknown or the principal may not search it; the error has the column.
pub fn open(query: &Query, around: &SourceContext) -> Result<Sources, QueryError> {
    let mut sources: Sources = Vec::new();
    for (number, tag) in (0u16..).zip(&query.tags) {
        let wrong = |message: String| QueryError::at(&query.text, tag.at, message);
        if tag.name == "audit" {
            sources.push((number, Box::new(audit::Audit::open(around).map_err(wrong)?)));
        } else if let Some(name) = tag.name.strip_prefix("resource:") {
            if !around.reads_resources {
                return Err(wrong(format!("you do not have the capability {READ_RESOURCES}")));
            }
            sources.push((number, Box::new(resource::Rows::open(around, name).map_err(wrong)?)));
        } else {
            let found: Vec<&Indexer> = around.indexers.iter().filter(|indexer| indexer.tag() == tag.name).collect();
            if found.is_empty() {
                // Clients match this exact sentence.
                let message = format!("Could not match tag spec {} against any known tags", tag.name);
                return Err(wrong(message));
            }
            if !around.may_search(&tag.name) {
                return Err(wrong(format!("the tag {} was not granted to you; ask an administrator", tag.name)));
            }
            for indexer in found {
                sources.push((number, Box::new(indexer.clone())));
            }
        }
    }
    Ok(sources)
}

/// Returns the tags that a principal may search, except resources.
#[must_use]
pub fn tags(around: &SourceContext) -> Vec<String> {
    let mut tags: Vec<String> =
        around.indexers.iter().map(|indexer| indexer.tag().to_owned()).filter(|tag| around.may_search(tag)).collect();
    if around.person.admin {
        tags.push("audit".into());
    }
    tags.sort_unstable();
    tags.dedup();
    tags
}
