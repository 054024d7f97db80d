//! Corruption records: an audit that replaced a corrupt one states that records are missing, until an administrator
//! acknowledges it.
//!
//! A corruption record is the first record of the new audit. When old records are removed, unacknowledged corruption
//! and gap records among them are written again. An acknowledgement is a record, too, anywhere in the audit. Small
//! files next to the audit store the numbers of these records, so that a start need not read all of it. They are only
//! hints: `audit verify` reads the records.
//!
//! An audit cannot show that it is missing or was replaced by an older copy. So the registry keeps the number and chain
//! of the last record.

use std::path::Path;

use gravwell_env::data_dir::{DirectoryError, replace_file};
use gravwell_log::{LogReader, ReadError};
use gravwell_model::Seq;
use gravwell_model::codec::audit::Act;
use gravwell_model::codec::audit::{AuditEvent, AuditRecord};
use gravwell_transport::trust::AuditMark;

use super::reader::{self, Said};

/// Kind of the act in a corruption record.
pub(super) const KIND: &str = "audit-damaged";
/// Names of the files in a datastore's directory.
const FILE: &str = "audit-acknowledged";
const NOTED: &str = "audit-damage";
/// Number of records at the start of the audit that are searched for a corruption record.
const AMONG: u64 = 16;

/// A corruption record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Number of the record.
    pub record: Seq,
    /// Description of the corruption.
    pub what: String,
}

/// Finds an unacknowledged corruption record.
pub(super) fn find(dir: &Path, reader: &LogReader) -> Option<Damage> {
    let acknowledged = acknowledged(dir, reader);
    let counts = |damage: &Damage| damage.record > acknowledged;
    noted(dir, reader).filter(counts).or_else(|| at_the_start(reader).filter(counts))
}

/// Stores the number of the corruption record next to the audit.
pub(super) fn note(dir: &Path, reader: &LogReader, damage: &Damage) -> Result<(), DirectoryError> {
    let text = format!("{} {} {}\n", reader.log_id(), damage.record, damage.what.replace('\n', " "));
    replace_file(&dir.join(NOTED), text.as_bytes())
}

fn noted(dir: &Path, reader: &LogReader) -> Option<Damage> {
    let text = std::fs::read_to_string(dir.join(NOTED)).ok()?;
    let mut words = text.trim_end().splitn(3, ' ');
    words.next().filter(|word| *word == reader.log_id().to_string())?;
    let record = Seq(words.next()?.parse().ok()?);
    Some(Damage { record, what: words.next()?.to_owned() })
}

/// Collects the unacknowledged corruption and gap records up to `to`, which are about to be removed, as acts to be
/// recorded again.
pub(super) fn carried(reader: &LogReader, to: Seq, now_ms: u64) -> Result<Vec<Act>, ReadError> {
    let mut said = Said::default();
    reader::say(reader, (reader.horizon(), to), &mut said)?;
    if said.is_empty() {
        return Ok(Vec::new());
    }
    // Later records may acknowledge them. Later corruption and gap records remain where they are.
    reader::say(reader, (to, reader.head().0), &mut said)?;
    let act =
        |kind: &str, what: String| Act { kind: kind.into(), happened_ms: now_ms, what, count: 1, ..Act::default() };
    let going = |seq: &Seq| *seq <= to;
    let damages = said.damages().filter(|(seq, _)| going(seq)).map(|(_, what)| act(KIND, what.clone()).bounded());
    let mut acts: Vec<Act> = damages.collect();
    let gaps: Vec<Seq> = said.gaps().filter(going).collect();
    if let (Some(first), Some(last)) = (gaps.first(), gaps.last()) {
        let what = format!(
            "{} gap records, from {first} to {last}, were removed because of their age or for lack of space before \
             they were acknowledged",
            gaps.len()
        );
        acts.push(act("gap", what));
    }
    Ok(acts)
}

/// Describes records that the registry knows and the audit lacks, if any.
pub(super) fn missing(reader: &LogReader, known: &AuditMark) -> Option<String> {
    let (head, at) = (reader.head().0, known.seq);
    if reader.log_id() != known.log_id {
        return Some(format!(
            "the audit is missing and another one is in its place: it had records up to {at}, chain {}",
            known.chain
        ));
    }
    if head < at {
        return Some(format!(
            "the audit ends at record {head}, but had records up to {at}, chain {}: it was replaced by an older copy, \
             or truncated",
            known.chain
        ));
    }
    let here = reader.chain_at(at).ok().flatten().map(|chain| reader::hex(&chain));
    let is_other = here.is_some_and(|here| here != known.chain);
    is_other.then(|| format!("record {at} of the audit is not the one recorded earlier, with chain {}", known.chain))
}

fn at_the_start(reader: &LogReader) -> Option<Damage> {
    let (from, head) = (reader.horizon(), reader.head().0);
    let first = reader.entries(from, Seq(head.0.min(from.0 + AMONG))).filter_map(Result::ok);
    let mut found = first.filter_map(|entry| match AuditRecord::of(&entry).ok()?.event {
        AuditEvent::Act(act) if act.kind == KIND => Some(Damage { record: entry.seq, what: act.what }),
        _ => None,
    });
    found.next()
}

fn acknowledged(dir: &Path, reader: &LogReader) -> Seq {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    let mut words = text.split_whitespace();
    let is_of = words.next().is_some_and(|word| word == reader.log_id().to_string());
    let seq = words.next().filter(|_| is_of).and_then(|word| word.parse().ok());
    Seq(seq.unwrap_or(0))
}

/// Stores next to the audit up to which record corruption and gaps were acknowledged.
pub(super) fn acknowledge(dir: &Path, reader: &LogReader, to: Seq) -> Result<(), DirectoryError> {
    let to = to.max(acknowledged(dir, reader));
    replace_file(&dir.join(FILE), format!("{} {to}\n", reader.log_id()).as_bytes())
}
