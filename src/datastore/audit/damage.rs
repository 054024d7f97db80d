//! An audit that began in the place of a damaged one: what only that one had is missing, until an administrator says that it was
//! seen.
//!
//! Its first record says so. What was acknowledged is a record as well, somewhere in the audit; a small file beside it says up to
//! where, so that a start need not read all of it. The file decides nothing: `audit verify` reads the records.

use std::path::Path;

use crate::codec::audit::{AuditEvent, AuditRecord};
use crate::env::data_dir::{DirectoryError, replace_file};
use crate::log::LogReader;
use crate::model::Seq;

/// Kind of the act by which a new audit says that it took the place of a damaged one.
pub(super) const KIND: &str = "audit-damaged";
/// Name of the file in a datastore's directory.
const FILE: &str = "audit-acknowledged";
/// It is among the first records.
const AMONG: u64 = 16;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::datastore) struct Damage {
    /// The record that says so.
    pub record: Seq,
    /// Its words.
    pub what: String,
}

/// What an audit says of a damaged one, unless that was acknowledged.
pub(super) fn find(dir: &Path, reader: &LogReader) -> Option<Damage> {
    let (from, head) = (reader.horizon(), reader.head().0);
    let first = reader.entries(from, Seq(head.0.min(from.0 + AMONG))).filter_map(Result::ok);
    let mut found = first.filter_map(|entry| match AuditRecord::of(&entry).ok()?.event {
        AuditEvent::Act(act) if act.kind == KIND => Some(Damage { record: entry.seq, what: act.what }),
        _ => None,
    });
    found.next().filter(|damage| damage.record > acknowledged(dir, reader))
}

fn acknowledged(dir: &Path, reader: &LogReader) -> Seq {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    let mut words = text.split_whitespace();
    let is_of = words.next().is_some_and(|word| word == reader.log_id().to_string());
    let seq = words.next().filter(|_| is_of).and_then(|word| word.parse().ok());
    Seq(seq.unwrap_or(0))
}

/// Notes beside the audit what was acknowledged.
pub(super) fn acknowledge(dir: &Path, reader: &LogReader, to: Seq) -> Result<(), DirectoryError> {
    let to = to.max(acknowledged(dir, reader));
    replace_file(&dir.join(FILE), format!("{} {to}\n", reader.log_id()).as_bytes())
}
