//! What all parts of the system must know of the objects in one collection: those of `contents` name chunks. Everything else
//! about objects is opaque below the webserver.

use serde::Deserialize;

use crate::model::{ChunkId, Op, Txn};

/// The collection whose objects name chunks.
pub const COLLECTION: &str = "contents";

/// The collection whose objects name contents.
pub const RESOURCES: &str = "resources";

/// A resource, as far as people are told which one a damage concerns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ResourceLabel {
    /// The content; empty when there is none.
    #[serde(rename = "Content", default)]
    pub content: String,
    /// Name for people.
    #[serde(rename = "ResourceName", default)]
    pub name: String,
}

/// A content, as far as its transfer is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ContentHead {
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Names of its index chunks: lists of the chunks that it consists of.
    #[serde(default)]
    pub index: Vec<ChunkId>,
    /// Index chunks of a content of which this one is a newer version; nothing depends on their being anywhere.
    #[serde(default)]
    pub base: Vec<ChunkId>,
}

/// Reads an object of the collection. One that is not understood names nothing.
#[must_use]
pub fn head_of(value: &[u8]) -> ContentHead {
    known_head_of(value).unwrap_or_default()
}

/// Reads an object of the collection; `None` when it is not understood, so that it may name anything.
#[must_use]
pub fn known_head_of(value: &[u8]) -> Option<ContentHead> {
    serde_json::from_slice(value).ok()
}

/// Reads a resource's label. One that is not understood names nothing.
#[must_use]
pub fn label_of(value: &[u8]) -> ResourceLabel {
    serde_json::from_slice(value).unwrap_or_default()
}

/// The contents that a transaction writes and that name chunks.
#[must_use]
pub fn heads_of(txn: &Txn) -> Vec<ContentHead> {
    heads_in(&txn.ops)
}

fn heads_in(ops: &[Op]) -> Vec<ContentHead> {
    let puts = ops.iter().filter(|op| op.collection().as_str() == COLLECTION).filter_map(Op::value);
    puts.map(|value| head_of(value)).filter(|head| !head.index.is_empty()).collect()
}

/// Whether a transaction of these operations may be committed only when the chunks that it names are at the datastore.
#[must_use]
pub fn names_chunks(ops: &[Op]) -> bool {
    // Nearly all transactions are told by the name of the collection alone.
    ops.iter().any(|op| op.collection().as_str() == COLLECTION) && !heads_in(ops).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_leniently() {
        let id = ChunkId([3; 32]);
        let head = head_of(format!(r#"{{"size":7,"index":["{id}"],"later":{{}}}}"#).as_bytes());
        assert_eq!(head, ContentHead { size: 7, index: vec![id], base: vec![] });
        for odd in ["", "{}", "[1]", r#"{"index":["x"]}"#, r#"{"size":1,"pieces":3}"#] {
            assert!(head_of(odd.as_bytes()).index.is_empty(), "{odd}");
        }
    }
}
