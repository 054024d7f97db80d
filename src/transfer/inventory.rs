//! What the contents of a state need, compared with what a store has.

use std::collections::{BTreeMap, HashSet};

use super::check::{ListError, parts_of};
use crate::chunks::{ChunkStore, Collected, Cutoff};
use crate::codec::admin::{BlobCollection, BlobInfo, BlobStats};
use crate::codec::content::{self, ContentHead};
use crate::model::ChunkId;

/// Chunks that are listed by name for each content.
const NAMED_MAX: usize = 16;

/// The contents of a state, by key, and the names of the resources that name each.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// By key.
    pub heads: BTreeMap<String, ContentHead>,
    /// An object that is not understood: perhaps a later version's.
    pub unknown: Option<String>,
    /// Names of resources by content.
    pub resources: BTreeMap<String, Vec<String>>,
}

impl Contents {
    /// Takes in an object of `contents`.
    pub fn add(&mut self, key: &str, value: &[u8]) {
        match content::known_head_of(value) {
            Some(head) => drop(self.heads.insert(key.to_owned(), head)),
            None => self.unknown = Some(key.to_owned()),
        }
    }

    /// Takes in an object of `resources`.
    pub fn add_resource(&mut self, value: &[u8]) {
        let label = content::label_of(value);
        if !label.content.is_empty() {
            self.resources.entry(label.content).or_default().push(label.name);
        }
    }

    /// All chunks that the contents need.
    ///
    /// # Errors
    /// When a list of chunks is not here or cannot be read, so that it is not known what else is needed; names the resources
    /// concerned.
    pub fn live(&self, store: &ChunkStore) -> Result<HashSet<ChunkId>, String> {
        let mut live = HashSet::new();
        if let Some(key) = &self.unknown {
            let named = self.label(key);
            return Err(format!(
                "what is known of {named} is not understood, so neither is what it names: upgrade this program"
            ));
        }
        for (key, head) in &self.heads {
            for id in &head.index {
                if live.insert(*id) {
                    let parts = match parts_of(store, id) {
                        Ok(parts) => parts,
                        // It names nothing, and never will.
                        Err(ListError::Malformed { .. }) => Some(Vec::new()),
                        Err(error) => return Err(error.to_string()),
                    };
                    let unknown = || format!("the list of chunks {id} of {} is not here", self.label(key));
                    live.extend(parts.ok_or_else(unknown)?.iter().map(|part| part.id));
                }
            }
        }
        Ok(live)
    }

    /// A content as people know it.
    #[must_use]
    pub fn label(&self, key: &str) -> String {
        match self.resources.get(key) {
            Some(names) => format!("resource {}", names.join(", ")),
            None => format!("content {key}"),
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

    /// Counts everything.
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

    /// Removes what none of the contents needs and what `cutoff`, taken before the contents were looked up, does not spare.
    ///
    /// # Errors
    /// When it is not known what is needed, or the store fails. Nothing is removed then.
    pub fn collect(&self, store: &ChunkStore, cutoff: Cutoff, dry_run: bool) -> Result<BlobCollection, String> {
        let live = self.live(store)?;
        let collected: Collected = store.collect(&live, cutoff, dry_run).map_err(|error| error.to_string())?;
        if !dry_run {
            crate::telemetry::metrics::chunks_collected(collected.chunks);
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
    use crate::chunks::manifest::{INDEX_FORMAT, INDEX_MAGIC};
    use crate::chunks::{Part, StoreOptions, encode_index};
    use crate::env::{MemoryFs, SystemClock};

    fn named(list: ChunkId) -> Contents {
        let mut contents = Contents::default();
        contents.add("k", format!(r#"{{"size":3,"index":["{list}"]}}"#).as_bytes());
        contents
    }

    #[test]
    fn nothing_is_collected_while_it_is_unknown_what_is_named() {
        let options = StoreOptions { reserve_bytes: 0, ..StoreOptions::default() };
        let (fs, clock) = (Arc::new(MemoryFs::default()), Arc::new(SystemClock));
        let (store, _) = ChunkStore::open(Path::new("/chunks"), fs, clock, options).expect("opens");
        let (part, _) = store.put(b"abc").expect("writes");
        let (good, _) = store.put(&encode_index(&[Part { id: part, bytes: 3 }])).expect("writes");
        let later = [&INDEX_MAGIC[..], &[INDEX_FORMAT + 1], b"whatever that will be"].concat();
        let (later, _) = store.put(&later).expect("writes");
        let (never, _) = store.put(b"no list").expect("writes");

        let collect = |contents: &Contents| contents.collect(&store, store.cutoff(Duration::ZERO), true);
        assert_eq!(named(good).live(&store), Ok(HashSet::from([good, part])));
        assert!(collect(&named(later)).expect_err("unknown").contains("too old"));
        assert!(collect(&named(ChunkId([9; 32]))).expect_err("unknown").contains("is not here"));
        let mut odd = named(good);
        odd.add("odd", b"{\"size\":\"of a later kind\"}");
        assert!(collect(&odd).expect_err("unknown").contains("upgrade"));
        // What is whole and no list will never be one.
        assert_eq!(collect(&named(never)).expect("counts").chunks, 3);
    }
}
