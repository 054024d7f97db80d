//! Where rows come from. A further kind of source is one file: a type with [`Source`], and a line in [`open`].

pub mod audit;
pub mod http;
pub mod journal;
pub mod resource;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aho_corasick::AhoCorasick;
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;

use super::control::Control;
use super::query::{Query, QueryError, Word};
use super::row::{ROW_BYTES_MAX, Row};
use super::stages::{Failure, Rows};
use crate::objects::Store;
use crate::objects::capabilities::means_tag;
use crate::objects::sharing::Person;

pub use journal::Indexer;

/// Rows of a batch.
const BATCH_ROWS: usize = 512;
/// Bytes of a batch.
const BATCH_BYTES: usize = 256 << 10;
/// Batches of one source that may wait to be merged.
const BATCHES: usize = 4;

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

    /// Gives the rows of a range to `out`, oldest first. The task is dropped when nothing more is wanted, so it must not
    /// leave anything behind. What blocks goes to a thread for that. An error ends this source and no other.
    fn tell(self: Box<Self>, range: Range, out: Output) -> Telling;
}

/// Words, ready to be looked for.
#[derive(Clone)]
pub struct Words(Arc<Vec<(AhoCorasick, bool)>>);

impl Words {
    /// Prepares words.
    ///
    /// # Errors
    /// When a word is too long to be looked for.
    pub fn new(words: &[Word]) -> Result<Words, String> {
        let prepared = words.iter().map(|word| {
            // As the word stands within a text of JSON.
            let quoted = Value::String(word.text.clone()).to_string();
            let inner = &quoted[1..quoted.len() - 1];
            let finder = AhoCorasick::builder().ascii_case_insensitive(true).build([inner]);
            finder.map(|finder| (finder, word.is_excluded)).map_err(|error| error.to_string())
        });
        Ok(Words(Arc::new(prepared.collect::<Result<_, _>>()?)))
    }

    /// Whether a row has all words that it must have and none that it must not.
    #[must_use]
    pub fn fit(&self, data: &[u8]) -> bool {
        let mut value: Option<Value> = None;
        self.0.iter().all(|(finder, is_excluded)| {
            // Most rows are decided by their bytes alone; names of fields do not count, so a find is looked at again.
            let found = finder.is_match(data) && {
                let value = value.get_or_insert_with(|| serde_json::from_slice(data).unwrap_or_default());
                has(value, finder)
            };
            found != *is_excluded
        })
    }
}

fn has(value: &Value, finder: &AhoCorasick) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => items.iter().any(|item| has(item, finder)),
        Value::Object(fields) => fields.values().any(|item| has(item, finder)),
        // As JSON again, because that is how the word is looked for.
        other => finder.is_match(&other.to_string()),
    }
}

/// Where a source puts its rows.
pub struct Output {
    tag: u16,
    words: Words,
    control: Arc<Control>,
    batch: Vec<Row>,
    bytes: usize,
    to: mpsc::Sender<Vec<Row>>,
}

impl Output {
    /// Takes a row; `true` when it is time to flush.
    ///
    /// # Errors
    /// When the row is larger than a row may be.
    pub fn push(&mut self, time: i64, data: Bytes) -> Result<bool, String> {
        self.control.rows_in.fetch_add(1, Ordering::Relaxed);
        self.control.bytes_in.fetch_add(data.len() as u64, Ordering::Relaxed);
        if data.len() > ROW_BYTES_MAX {
            return Err(format!("a row has more than {} MiB", ROW_BYTES_MAX >> 20));
        }
        if self.words.fit(&data) {
            self.bytes += data.len() + 64;
            self.batch.push(Row { time, tag: self.tag, data });
        }
        Ok(self.batch.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES)
    }

    /// Sends on what was taken; waits for room.
    ///
    /// # Errors
    /// When nobody wants more.
    pub async fn flush(&mut self) -> Result<(), String> {
        self.bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.to.send(batch).await.map_err(|_| String::new())
    }

    /// [`Output::flush`] for threads.
    ///
    /// # Errors
    /// When nobody wants more.
    pub fn flush_blocking(&mut self) -> Result<(), String> {
        self.bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.to.blocking_send(batch).map_err(|_| String::new())
    }
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
    /// Patterns of the tags of indexers that the person may search; `None`: all.
    pub granted: Option<Vec<String>>,
}

impl Surroundings {
    fn may_search(&self, tag: &str) -> bool {
        self.granted.as_ref().is_none_or(|granted| granted.iter().any(|pattern| means_tag(pattern, tag)))
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

/// Begins all sources and merges their rows by time. Sources that fail are named in warnings; when all do, the rows end with
/// that failure.
pub fn merged(sources: Sources, range: Range, words: &Words, control: &Arc<Control>) -> Rows {
    let failures: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
    let mut inputs = Vec::with_capacity(sources.len());
    for (tag, source) in sources {
        let (to, from) = mpsc::channel(BATCHES);
        let name = source.name();
        // The channel ends when it has been noted why.
        let open = to.clone();
        let out = Output { tag, words: words.clone(), control: Arc::clone(control), batch: Vec::new(), bytes: 0, to };
        let telling = source.tell(range, out);
        let (warned, failed) = (Arc::clone(control), Arc::clone(&failures));
        let task = tokio::spawn(async move {
            // An empty reason means that nobody wanted more.
            if let Err(reason) = telling.await
                && !reason.is_empty()
            {
                warned.warn(format!("partial results: {name}: {reason}"));
                failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(format!("{name}: {reason}"));
            }
            drop(open);
        });
        control.add_source(task.abort_handle());
        inputs.push(Input { from, ready: Vec::new().into_iter() });
    }
    Box::new(Merge { of: inputs.len(), inputs, failures, control: Arc::clone(control) })
}

struct Input {
    from: mpsc::Receiver<Vec<Row>>,
    ready: std::vec::IntoIter<Row>,
}

impl Input {
    /// Time of the next row; waits for it.
    fn peek(&mut self) -> Option<i64> {
        loop {
            if let Some(row) = self.ready.as_slice().first() {
                return Some(row.time);
            }
            self.ready = self.from.blocking_recv()?.into_iter();
        }
    }
}

struct Merge {
    of: usize,
    inputs: Vec<Input>,
    failures: Arc<std::sync::Mutex<Vec<String>>>,
    control: Arc<Control>,
}

impl Merge {
    /// Why there is nothing more, once.
    fn ending(&mut self) -> Option<Failure> {
        if self.control.is_ended() {
            return Some(Failure::Stopped);
        }
        let mut failures = self.failures.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let all = !failures.is_empty() && failures.len() == std::mem::take(&mut self.of);
        all.then(|| Failure::Broken(failures.drain(..).collect::<Vec<_>>().join("; ")))
    }
}

impl Iterator for Merge {
    type Item = Result<Row, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.of == 0 || self.control.is_ended() {
            let stopped = self.of > 0 && self.control.is_ended();
            self.of = 0;
            return stopped.then_some(Err(Failure::Stopped));
        }
        let mut first: Option<(i64, usize)> = None;
        let mut number = 0;
        while let Some(input) = self.inputs.get_mut(number) {
            match input.peek() {
                None => drop(self.inputs.swap_remove(number)),
                Some(time) => {
                    if first.is_none_or(|(earliest, _)| time < earliest) {
                        first = Some((time, number));
                    }
                    number += 1;
                }
            }
        }
        let Some((time, number)) = first else {
            let ending = self.ending();
            self.of = 0;
            return ending.map(Err);
        };
        self.control.reached_ms.store(u64::try_from(time / 1_000_000).unwrap_or(0), Ordering::Relaxed);
        self.inputs.get_mut(number).and_then(|input| input.ready.next()).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_looked_for_in_values_without_regard_to_case() {
        let fit = |words: &[(&str, bool)], data: &str| {
            let words: Vec<Word> = words
                .iter()
                .map(|(text, is_excluded)| Word { text: (*text).into(), is_excluded: *is_excluded })
                .collect();
            Words::new(&words).expect("words").fit(data.as_bytes())
        };
        let row = r#"{"user":"Bob","what":["say \"hi\"",12.5,true],"d":{"e":"straße"}}"#;
        for (word, found) in [
            ("bob", true),
            ("user", false),
            ("say \"HI\"", true),
            ("12.5", true),
            ("true", true),
            ("straße", true),
            ("x", false),
        ] {
            assert_eq!(fit(&[(word, false)], row), found, "{word}");
            assert_eq!(fit(&[(word, true)], row), !found, "-{word}");
        }
        assert!(fit(&[("bob", false), ("alice", true)], row) && !fit(&[("bob", false), ("12.5", true)], row));
        assert!(fit(&[], "null") && fit(&[("a line", false)], "\"such a line\""));
    }
}
