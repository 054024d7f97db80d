//! Import of results from an archive. The archive is validated completely before it becomes a search.

use std::path::{Path, PathBuf};

use super::launch::new_id;
use super::{Lease, SearchError, Searches};
use crate::query::QUERY_BYTES_MAX;
use crate::results::{About, Results, ResultsError, Summary};
use gravwell_objects::searches::{Imported, Search, State};
use gravwell_objects::sharing::Principal;
use gravwell_objects::store::Author;
use gravwell_objects::{Timestamp, Writes, names};

/// Properties of an import, set by the user.
#[derive(Clone, Debug, Default)]
pub struct Import {
    /// GIDs of groups that may read it.
    pub gids: Vec<i32>,
    /// Name chosen by the user; empty: the name in the archive.
    pub batch_name: String,
    /// Notes of the user.
    pub batch_info: String,
}

/// Maximum length of a query with the conditions that were added to it, in bytes.
const EFFECTIVE_BYTES_MAX: usize = 4 * QUERY_BYTES_MAX;

/// Checks the texts of an archive, which all users who may see the search receive in their lists.
fn check_texts(about: &About, import: &Import) -> Result<(), SearchError> {
    let bytes = |names: &[String]| names.iter().map(|name| name.len() + 1).sum::<usize>();
    // Tags and columns are named by a query.
    let sizes = [
        ("query", about.query.len(), QUERY_BYTES_MAX),
        ("effective query", about.effective_query.len(), EFFECTIVE_BYTES_MAX),
        ("tags", bytes(&about.tags), EFFECTIVE_BYTES_MAX),
        ("columns", about.columns.as_deref().map_or(0, bytes), EFFECTIVE_BYTES_MAX),
    ];
    if let Some((what, size, most)) = sizes.into_iter().find(|(_, size, most)| size > most) {
        return Err(SearchError::Text(format!("its {what} has {size} bytes; at most {most} are allowed")));
    }
    let named = match import.batch_name.as_str() {
        "" => names::title("name", &about.name)
            .map_err(|error| SearchError::Text(format!("{error}; set another name as BatchName"))),
        given => names::title("BatchName", given).map_err(|error| SearchError::Text(error.to_string())),
    };
    let noted = names::bounded("BatchInfo", &import.batch_info, names::TEXT_CHARS_MAX);
    named.and(noted.map_err(|error| SearchError::Text(error.to_string())))
}

/// Validates every row of an archive.
fn examined(file: &Path) -> Result<(Summary, u64), SearchError> {
    let wrong = |reason: String| SearchError::Archive(reason);
    let results = Results::open_foreign(file).map_err(|error| match error {
        ResultsError::Io(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => SearchError::Io(error),
        error => wrong(error.to_string()),
    })?;
    let summary = results.summary().ok_or_else(|| wrong("its end is missing".into()))?;
    let bytes = results.progress().bytes;
    if std::fs::metadata(file)?.len() != bytes {
        return Err(wrong("unexpected data after its end".into()));
    }
    let (mut number, mut count) = (0, 0);
    while let Some(rows) = results.block(number).map_err(|error| wrong(error.to_string()))? {
        number += 1;
        count += rows.len() as u64;
        for row in &rows {
            if usize::from(row.tag) >= summary.about.tags.len() {
                return Err(wrong("a row has an unknown tag".into()));
            }
            if serde_json::from_slice::<&serde_json::value::RawValue>(&row.data).is_err() {
                return Err(wrong("row is not JSON".into()));
            }
        }
    }
    if count != summary.rows {
        return Err(wrong(format!("it has {count} rows, but its summary states {}", summary.rows)));
    }
    Ok((summary, bytes))
}

/// An archive that is being received; its file is deleted on drop unless it was imported.
pub struct Arriving {
    /// Path of the file.
    pub path: PathBuf,
    /// Disk space reserved for the file.
    pub lease: Lease,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // An imported file was moved away.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Searches {
    /// Reserves a file for an archive that a user uploads. A leftover file is deleted at the next start.
    ///
    /// # Errors
    /// If random numbers or disk space are not available.
    pub fn arriving(&self, uid: i32) -> Result<Arriving, SearchError> {
        let id = new_id()?;
        let path = self.stock.dir().join(format!("{id}.part"));
        let lease = self.stock.begin(&id, &path, uid)?;
        Ok(Arriving { path, lease })
    }

    /// Imports an archive as a search of the user. Its file is consumed in any case.
    ///
    /// # Errors
    /// If the archive is incomplete or invalid, or the log rejects the change.
    pub async fn import(
        &self,
        person: &Principal,
        author: &Author,
        file: Arriving,
        import: Import,
    ) -> Result<Search, SearchError> {
        if !person.may_share_with(&import.gids) {
            return Err(SearchError::NotMember);
        }
        let place = self.places.take(person.uid).await?;
        let examining = tokio::task::spawn_blocking(move || {
            // The file and the slot are held until the validation ends, even if the caller no longer waits.
            let examined = examined(&file.path);
            drop(place);
            (file, examined)
        });
        let (mut file, examined) = examining.await.map_err(std::io::Error::other)?;
        let (summary, bytes) = examined?;
        check_texts(&summary.about, &import)?;
        let search = self.describe_import(person, summary, bytes, import)?;
        let kept = self.file(&search.id);
        file.lease.rename(&search.id, &kept)?;
        drop(file);
        let mut writes = Writes::new();
        let created = writes.create(&search, "the search already exists; try again").map_err(SearchError::from);
        let told = match created {
            Ok(()) => self.store.commit(author, "import a search", writes).await.map(drop).map_err(SearchError::from),
            Err(error) => Err(error),
        };
        if told.is_err() {
            self.stock.forget(&search.id);
        }
        told.map(|()| search)
    }

    fn describe_import(
        &self,
        person: &Principal,
        summary: Summary,
        bytes: u64,
        import: Import,
    ) -> Result<Search, SearchError> {
        let now = Timestamp::now();
        let About { query, effective_query, tags, columns, since, until, started, name } = summary.about;
        let Import { gids, batch_name, batch_info } = import;
        Ok(Search {
            id: new_id()?,
            uid: person.uid,
            gids,
            global: false,
            user_query: query,
            effective_query,
            tags,
            columns,
            start_range: since,
            end_range: until,
            started,
            updated: now,
            duration_ms: 0,
            state: State::Done,
            rows: summary.rows,
            bytes,
            rows_in: 0,
            over_limit: false,
            error: String::new(),
            warnings: Vec::new(),
            webserver: self.store.via().to_owned(),
            background: false,
            content: String::new(),
            expires: now.plus(self.options.keep_s),
            no_history: true,
            name: if batch_name.is_empty() { name } else { batch_name.clone() },
            notes: batch_info.clone(),
            method: "import".into(),
            reference: String::new(),
            metadata: None,
            imported: Some(Imported { time: now, batch_name, batch_info }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_texts_of_an_archive_are_as_small_as_those_of_a_search() {
        let about = || About {
            query: "tag=a".into(),
            effective_query: String::new(),
            tags: vec!["a".into()],
            columns: None,
            since: Timestamp::NEVER,
            until: Timestamp::NEVER,
            started: Timestamp::NEVER,
            name: "nightly".into(),
        };
        let import = Import::default();
        assert!(check_texts(&about(), &import).is_ok());
        let long = || "x".repeat(900_000);
        let large = [
            About { query: long(), ..about() },
            About { effective_query: long(), ..about() },
            About { tags: vec!["a".into(); 100_000], ..about() },
            About { columns: Some(vec![long()]), ..about() },
            About { name: long(), ..about() },
        ];
        for about in &large {
            assert!(matches!(check_texts(about, &import), Err(SearchError::Text(_))));
        }
        let [.., name] = &large;
        let renamed = Import { batch_name: "other".into(), ..Import::default() };
        assert!(check_texts(name, &renamed).is_ok(), "BatchName replaces the long name");
        let named = Import { batch_name: long(), ..Import::default() };
        let noted = Import { batch_info: long(), ..Import::default() };
        assert!(check_texts(&about(), &named).is_err() && check_texts(&about(), &noted).is_err());
    }
}
