//! The objects that reference chunks, which are those in the collection `contents`. Layers below the webserver need no
//! other knowledge about objects.

use serde::Deserialize;

use crate::{ChunkId, Op, Txn};

/// Collection whose objects describe blobs and reference chunks.
pub const COLLECTION: &str = "contents";

/// Collection whose objects reference blobs.
pub const RESOURCES: &str = "resources";

/// Label of a resource, to report which resource is affected by corruption.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ResourceLabel {
    /// The blob; empty if there is none.
    #[serde(rename = "Content", default)]
    pub content: String,
    /// Name shown to users.
    #[serde(rename = "ResourceName", default)]
    pub name: String,
}

/// Description of a blob, as far as its transfer needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct BlobManifest {
    /// Length of the blob in bytes.
    #[serde(default)]
    pub size: u64,
    /// IDs of its index chunks, which list the chunks of the blob.
    #[serde(default)]
    pub index: Vec<ChunkId>,
    /// Index chunks of an older version of the blob. They need not exist anywhere.
    #[serde(default)]
    pub base: Vec<ChunkId>,
}

/// Parses an object of the collection. An invalid one references nothing.
#[must_use]
pub fn head_of(value: &[u8]) -> BlobManifest {
    manifest_of(value).unwrap_or_default()
}

/// Parses an object of the collection; returns `None` if it is invalid, so that it may reference anything.
#[must_use]
pub fn manifest_of(value: &[u8]) -> Option<BlobManifest> {
    serde_json::from_slice(value).ok()
}

/// Parses the label of a resource. An invalid one references nothing.
#[must_use]
pub fn label_of(value: &[u8]) -> ResourceLabel {
    serde_json::from_slice(value).unwrap_or_default()
}

/// Returns the blobs that a transaction writes and that reference chunks.
#[must_use]
pub fn heads_of(txn: &Txn) -> Vec<BlobManifest> {
    heads_in(&txn.ops)
}

fn heads_in(ops: &[Op]) -> Vec<BlobManifest> {
    let puts = ops.iter().filter(|op| op.collection().as_str() == COLLECTION).filter_map(Op::value);
    puts.map(|value| head_of(value)).filter(|head| !head.index.is_empty()).collect()
}

/// Returns whether a transaction with these operations may be committed only if the datastore has the chunks that it references.
#[must_use]
pub fn references_chunks(ops: &[Op]) -> bool {
    // The collection name alone excludes nearly all transactions.
    ops.iter().any(|op| op.collection().as_str() == COLLECTION) && !heads_in(ops).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_leniently() {
        let id = ChunkId([3; 32]);
        let head = head_of(format!(r#"{{"size":7,"index":["{id}"],"later":{{}}}}"#).as_bytes());
        assert_eq!(head, BlobManifest { size: 7, index: vec![id], base: vec![] });
        for odd in ["", "{}", "[1]", r#"{"index":["x"]}"#, r#"{"size":1,"pieces":3}"#] {
            assert!(head_of(odd.as_bytes()).index.is_empty(), "{odd}");
        }
    }
}
