//! The audit trail as rows: the author, time, origin and target of each change, with the values before and after. It
//! contains no secrets (`model/codec/redaction.rs`). Only administrators may read it.
//!
//! The datastore keeps the audit trail, so it is requested from there page by page. A record that cannot be decoded
//! becomes a row that reports this; the other records are still shown.

use bytes::Bytes;
use serde_json::json;

use super::{Output, Range, Source, SourceContext, SourceFuture};
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::audit::{AuditPage, AuditRecord};
use gravwell_model::codec::audit_rows::rows;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{Entry, Seq};
use gravwell_replica::{Replica, RequestError};

/// Source of audit rows.
pub struct Audit {
    replica: Replica,
}

impl Audit {
    /// Opens the audit trail for a user who may read it.
    ///
    /// # Errors
    /// If the user is not an administrator.
    pub fn open(around: &SourceContext) -> Result<Audit, String> {
        if !around.person.admin {
            return Err("only administrators with a session may search audit".into());
        }
        Ok(Audit { replica: around.store.replica().clone() })
    }
}

fn nanoseconds(time_ms: u64) -> i64 {
    i64::try_from(time_ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)
}

fn milliseconds(time_ns: i64) -> u64 {
    u64::try_from(time_ns / 1_000_000).unwrap_or(0)
}

/// Returns the rows of an audit entry that are within `range`, with their time.
fn events(entry: &Entry, range: Range) -> Vec<(i64, Vec<u8>)> {
    let Ok(record) = AuditRecord::of(entry) else {
        let time = range.since;
        let row = json!({ "audit": entry.seq, "time": timestamp(milliseconds(time)), "op": "unknown",
            "reason": "record of a later version; update this webserver" });
        return vec![(time, row.to_string().into_bytes())];
    };
    let time = nanoseconds(record.time_ms);
    if !range.contains(time) {
        return Vec::new();
    }
    let rows = rows(entry.seq, &record);
    rows.iter().filter_map(|row| serde_json::to_vec(row).ok()).map(|row| (time, row)).collect()
}

fn page_of(items: &[Bytes]) -> Result<AuditPage, String> {
    let item = items.last().ok_or("incomplete response")?;
    serde_json::from_slice(item).map_err(|error| format!("invalid response: {error}"))
}

/// Returns an error if recent transactions are missing from the rows.
fn missing(page: &AuditPage) -> Result<(), String> {
    if page.missing == 0 {
        return Ok(());
    }
    let why = if page.problem.is_empty() { "it is lagging" } else { page.problem.as_str() };
    Err(format!("the newest {} transactions are missing from the audit: {why}", page.missing))
}

impl Source for Audit {
    fn name(&self) -> String {
        "audit".into()
    }

    fn tell(self: Box<Self>, range: Range, mut out: Output) -> SourceFuture {
        Box::pin(async move {
            let (since_ms, until_ms) = (milliseconds(range.since), milliseconds(range.until).saturating_add(1));
            let mut from = Seq::ZERO;
            loop {
                let request = Request::Audit { from, since_ms, until_ms };
                let reply = self.replica.request_from_datastore(&request).await.map_err(|error| match error {
                    RequestError::Away => "cannot read the audit: the datastore is unreachable".to_owned(),
                    error => format!("cannot read the audit from the datastore: {error}"),
                })?;
                let page = page_of(&reply.items)?;
                for (time, event) in reply.entries.iter().flat_map(|entry| events(entry, range)) {
                    // A row is at most as large as two stored values and their names.
                    if out.push(time, &event)? {
                        out.flush().await?;
                    }
                }
                out.flush().await?;
                match page.next.filter(|next| *next > from) {
                    Some(next) => from = next,
                    None => return missing(&page),
                }
            }
        })
    }
}
