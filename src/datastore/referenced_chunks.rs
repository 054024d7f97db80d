//! The chunks that belong to a copy of the log: those referenced by blobs in the state, and those referenced by blobs
//! that only the log's history still contains.

use std::collections::BTreeSet;

use gravwell_model::codec::admin::CopyNames;
use gravwell_model::codec::blob_manifest;
use gravwell_model::{ChunkId, EntryBody};
use gravwell_transport::transfer::check::parts_of;

use super::blobs;
use super::shared::DatastoreRef;

/// Chunk IDs per message.
const IDS_AT_ONCE: usize = 16_384;

#[derive(Default)]
struct Found {
    ids: BTreeSet<ChunkId>,
    /// Manifest pages that are not stored here, so the chunks they list are unknown.
    unread: BTreeSet<ChunkId>,
}

impl Found {
    fn add(&mut self, shared: &DatastoreRef, index: &[ChunkId]) {
        for id in index {
            if self.ids.insert(*id) {
                match parts_of(&shared.contents.store, id) {
                    Ok(Some(parts)) => self.ids.extend(parts.iter().map(|part| part.id)),
                    _ => drop(self.unread.insert(*id)),
                }
            }
        }
    }

    fn tell(self, is_live: bool, names: &mut Vec<CopyNames>) {
        let (ids, unread): (Vec<ChunkId>, Vec<ChunkId>) =
            (self.ids.into_iter().collect(), self.unread.into_iter().collect());
        names.extend(ids.chunks(IDS_AT_ONCE).map(|ids| CopyNames { is_live, ids: ids.to_vec(), unread: Vec::new() }));
        names.extend(unread.chunks(IDS_AT_ONCE).map(|unread| CopyNames {
            is_live,
            ids: Vec::new(),
            unread: unread.to_vec(),
        }));
    }
}

/// Collects the chunks referenced by the state, and those referenced only by the history.
pub(super) fn names(shared: &DatastoreRef) -> Result<Vec<CopyNames>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut live, mut past) = (Found::default(), Found::default());
    let all = blobs::all(shared).map_err(|error| text(&error))?;
    all.heads.values().for_each(|head| live.add(shared, &head.index));
    if blobs::are_known(shared) {
        for entry in shared.log.history(shared.log.head().0) {
            let entry = entry.map_err(|error| text(&error))?;
            let EntryBody::Commit(txn) = &entry.body else { continue };
            for head in blob_manifest::heads_of(txn) {
                if head.index.iter().any(|id| !live.ids.contains(id)) {
                    past.add(shared, &head.index);
                }
            }
        }
    }
    past.ids.retain(|id| !live.ids.contains(id));
    let mut names = Vec::new();
    live.tell(true, &mut names);
    past.tell(false, &mut names);
    Ok(names)
}
