//! Comparison of the chunks that the contents of a state need with those in a store.

use std::collections::{BTreeMap, HashSet};

use super::check::{ListError, parts_of};
use gravwell_chunks::{ChunkStore, GcCutoff, GcReport};
use gravwell_model::ChunkId;
use gravwell_model::codec::admin::{BlobCollection, BlobInfo, BlobStats};
use gravwell_model::codec::blob_manifest::{self, BlobManifest};

/// Maximum number of missing chunks listed per content.
const NAMED_MAX: usize = 16;

/// The contents of a state, with the names of the resources that reference them.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Heads of the contents by key.
    pub heads: BTreeMap<String, BlobManifest>,
    /// Key of an object that cannot be decoded, possibly written by a later version.
    pub unknown: Option<String>,
    /// Names of the resources that reference a content, by the content's key.
    pub resources: BTreeMap<String, Vec<String>>,
}

impl Contents {
    /// Adds an object of the collection `contents`.
    pub fn add(&mut self, key: &str, value: &[u8]) {
        match blob_manifest::manifest_of(value) {
            Some(head) => drop(self.heads.insert(key.to_owned(), head)),
            None => self.unknown = Some(key.to_owned()),
        }
    }

    /// Adds an object of the collection `resources`.
    pub fn add_resource(&mut self, value: &[u8]) {
        let label = blob_manifest::label_of(value);
        if !label.content.is_empty() {
            self.resources.entry(label.content).or_default().push(label.name);
        }
    }

    /// Returns all chunks that the contents need.
    ///
    /// # Errors
    /// If an index chunk is missing or cannot be read, so that the set is unknown; the error names the
    /// resources concerned.
    pub fn live(&self, store: &ChunkStore) -> Result<HashSet<ChunkId>, String> {
        let mut live = HashSet::new();
        if let Some(key) = &self.unknown {
            let named = self.label(key);
            return Err(format!(
                "cannot decode the manifest of {named}, so its chunks are unknown; upgrade this program"
            ));
        }
        for (key, head) in &self.heads {
            for id in &head.index {
                if live.insert(*id) {
                    let parts = match parts_of(store, id) {
                        Ok(parts) => parts,
                        // It references nothing, and cannot become a valid index.
                        Err(ListError::Malformed { .. }) => Some(Vec::new()),
                        Err(error) => return Err(error.to_string()),
                    };
                    let unknown = || format!("the index chunk {id} of {} is missing", self.label(key));
                    live.extend(parts.ok_or_else(unknown)?.iter().map(|part| part.id));
                }
            }
        }
        Ok(live)
    }

    /// Returns a description of a content for users.
    #[must_use]
    pub fn label(&self, key: &str) -> String {
        match self.resources.get(key) {
            Some(names) => format!("resource {}", names.join(", ")),
            None => format!("blob {key}"),
        }
    }

    /// Compares one content with the store.
    #[must_use]
    pub fn examine(&self, store: &ChunkStore, key: &str) -> BlobInfo {
        let Some(head) = self.heads.get(key) else { return BlobInfo::default() };
        let mut info = BlobInfo {
            content: key.to_owned(),
            resources: self.resources.get(key).cloned().unwrap_or_default(),
            size: head.size,
            ..BlobInfo::default()
        };
        let mut count = |id: &ChunkId| {
            info.chunks += 1;
            if !store.contains(id) {
                info.missing += 1;
                if info.missing_ids.len() < NAMED_MAX {
                    info.missing_ids.push(id.to_string());
                }
            }
        };
        for id in &head.index {
            let parts = parts_of(store, id).ok().flatten().unwrap_or_default();
            count(id);
            let mut seen = HashSet::new();
            parts.iter().filter(|part| seen.insert(part.id)).for_each(|part| count(&part.id));
        }
        info
    }

    /// Compares all contents with the store.
    #[must_use]
    pub fn examine_all(&self, store: &ChunkStore) -> Vec<BlobInfo> {
        self.heads.keys().map(|key| self.examine(store, key)).collect()
    }

    /// Returns statistics of contents and store.
    #[must_use]
    pub fn stats(&self, store: &ChunkStore) -> BlobStats {
        let kept = store.stats();
        let all = self.examine_all(store);
        BlobStats {
            contents: all.len() as u64,
            content_bytes: all.iter().map(|info| info.size).sum(),
            incomplete: all.iter().filter(|info| info.missing > 0).count() as u64,
            chunks: kept.chunks,
            raw_bytes: kept.raw_bytes,
            stored_bytes: kept.stored_bytes,
            packs: kept.packs,
            file_bytes: kept.file_bytes,
            garbage_bytes: kept.garbage_bytes,
            damaged: kept.damaged,
        }
    }

    /// Removes chunks that no content needs, except those protected by `cutoff`, which must be taken before the contents
    /// are read.
    ///
    /// # Errors
    /// If the set of needed chunks is unknown, or the store fails. Nothing is removed then.
    pub fn collect(&self, store: &ChunkStore, cutoff: GcCutoff, dry_run: bool) -> Result<BlobCollection, String> {
        let live = self.live(store)?;
        let collected: GcReport = store.collect(&live, cutoff, dry_run).map_err(|error| error.to_string())?;
        if !dry_run {
            gravwell_runtime::telemetry::metrics::chunks_collected(collected.chunks);
        }
        Ok(BlobCollection {
            dry_run,
            live: live.len() as u64,
            chunks: collected.chunks,
            raw_bytes: collected.raw_bytes,
            kept_in_grace: collected.kept_in_grace,
            freed_bytes: collected.freed_bytes,
            postponed: collected.postponed.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use gravwell_chunks::manifest::{INDEX_FORMAT, INDEX_MAGIC};
    use gravwell_chunks::{Part, StoreOptions, encode_index};
    use gravwell_env::{MemoryFs, SystemClock};

    fn named(list: ChunkId) -> Contents {
        let mut contents = Contents::default();
        contents.add("k", format!(r#"{{"size":3,"index":["{list}"]}}"#).as_bytes());
        contents
    }

    #[test]
    fn nothing_is_collected_while_references_are_unknown() {
        let options = StoreOptions { reserve_bytes: 0, ..StoreOptions::default() };
        let (fs, clock) = (Arc::new(MemoryFs::default()), Arc::new(SystemClock));
        let (store, _) = ChunkStore::open(Path::new("/chunks"), fs, clock, options).expect("opens");
        let (part, _) = store.put(b"abc").expect("writes");
        let (good, _) = store.put(&encode_index(&[Part { id: part, bytes: 3 }])).expect("writes");
        let later = [&INDEX_MAGIC[..], &[INDEX_FORMAT + 1], b"whatever that will be"].concat();
        let (later, _) = store.put(&later).expect("writes");
        let (never, _) = store.put(b"not an index").expect("writes");

        let collect = |contents: &Contents| contents.collect(&store, store.cutoff(Duration::ZERO), true);
        assert_eq!(named(good).live(&store), Ok(HashSet::from([good, part])));
        assert!(collect(&named(later)).expect_err("unknown").contains("too old"));
        assert!(collect(&named(ChunkId([9; 32]))).expect_err("unknown").contains("is missing"));
        let mut odd = named(good);
        odd.add("odd", b"{\"size\":\"of a later kind\"}");
        assert!(collect(&odd).expect_err("unknown").contains("upgrade"));
        // An intact chunk that is not an index can never become one.
        assert_eq!(collect(&named(never)).expect("counts").chunks, 3);
    }
}
