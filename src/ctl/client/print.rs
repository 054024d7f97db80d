//! Texts and JSON that several commands print: status, objects, log entries.

use gravwell_model::codec::admin::Status;
use gravwell_model::codec::health::Reason;
use gravwell_model::codec::json_lines::{entry_line, timestamp};
use gravwell_model::codec::message::Row;
use gravwell_model::{Entry, EntryBody, Op, Withheld};

use crate::client::output::{Output, or_dash, size};
use crate::error::{CtlError, CtlResult};

/// Prints the status of a process or a directory.
pub(crate) fn print_status(json: bool, status: &Status) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(status)?;
        return output.flush();
    }
    let running = if status.running { "running" } else { "not running" };
    let mut line = |name: &str, value: String| output.line(&format!("{name:<12}{value}"));
    let role = if status.is_standalone { "standalone webserver with its own log" } else { &status.role };
    line("role", format!("{role} ({running})"))?;
    line("log", format!("{} generation {}", or_dash(status.log_id), status.generation))?;
    line("sequence", format!("{} of {} ({} behind)", status.seq, status.head, status.lag_ops))?;
    line("horizon", format!("{} (floor {})", status.horizon, status.floor))?;
    line("digest", status.digest.to_string())?;
    line("objects", status.objects.to_string())?;
    if status.role == "replica" {
        line("datastore", connection(status))?;
        line("outbox", format!("{} pending, {} rejected", status.outbox, status.rejected))?;
        if status.quarantined > 0 {
            line("archived", format!("{} sets of changes, see `quarantine list`", status.quarantined))?;
        }
    } else {
        if status.running {
            line("members", format!("{} connected, listening on {}", status.subscribers, status.address))?;
        }
        line("disk", format!("log {}, free {}", size(status.log_bytes), size(status.disk_free_bytes)))?;
        if status.rotates_authority {
            line("authority", " is being rotated, see `authority rotate status`".into())?;
        }
        if status.rotates_recovery_key {
            line("recovery key", " is being rotated, see `authority rotate-recovery-key status`".into())?;
        }
    }
    if status.contents_incomplete > 0 {
        let (all, lost) = (status.contents_incomplete, status.contents_lost);
        let lost = if lost > 0 { format!(", {lost} of them lost: see `blobs list`") } else { String::new() };
        line("contents", format!("{all} incomplete here{lost}"))?;
    }
    line("health", status.health.level.word().into())?;
    for Reason { message, remedy, .. } in &status.health.reasons {
        line("  because", message.clone())?;
        if !remedy.is_empty() {
            line("  remedy", remedy.clone())?;
        }
    }
    output.flush()
}

fn connection(status: &Status) -> String {
    match (status.connected, status.address.as_str()) {
        (true, address) => format!("connected to {address} ({})", status.verdict),
        (false, "") => "not connected".to_owned(),
        (false, address) => format!("not connected, last to {address} ({})", status.verdict),
    }
}

/// Formats an object and its version, which is 0 while the last write is pending. The value is printed as stored,
/// because parsing and serializing it could change the digits of its numbers.
pub(crate) fn object_json(row: &Row) -> Result<Option<String>, CtlError> {
    let Row::Object { collection, key, version, time_ms, value } = row else { return Ok(None) };
    let quoted = |text: &str| serde_json::to_string(text).map_err(CtlError::new);
    let (collection, key, time) = (quoted(collection.as_str())?, quoted(key.as_str())?, timestamp(*time_ms));
    let value = gravwell_model::codec::json_lines::value_member(value);
    let line = format!(r#"{{"collection":{collection},"key":{key},"version":{version},"time":"{time}",{value}}}"#);
    Ok(Some(line))
}

/// Prints an entry of the log, with a line for each of its operations.
pub(crate) fn print_entry(output: &mut Output, json: bool, entry: &Entry) -> CtlResult {
    if json {
        return output.raw_line(&entry_line(entry));
    }
    let head = format!("{:>8}  {}  {}", entry.seq, timestamp(entry.time_ms), entry.member);
    match &entry.body {
        EntryBody::Commit(txn) | EntryBody::Redacted { txn, .. } => {
            for Withheld { collection, key, value_bytes, .. } in entry.body.withheld() {
                let bytes = size(*value_bytes);
                output.line(&format!("{head}  put     {collection}/{key}  {bytes}, withheld from readers"))?;
            }
            for op in &txn.ops {
                let (collection, key) = (op.collection(), op.key());
                output.line(&match op {
                    Op::Put { value, .. } => {
                        format!("{head}  put     {collection}/{key}  {}", size(value.len() as u64))
                    }
                    Op::Delete { .. } => format!("{head}  delete  {collection}/{key}"),
                })?;
            }
            Ok(())
        }
        EntryBody::Reject { reason, .. } => output.line(&format!("{head}  rejected  {reason}")),
        EntryBody::Unknown { kind, payload } => {
            output.line(&format!("{head}  kind {kind}, {}", size(payload.len() as u64)))
        }
    }
}

#[cfg(test)]
mod tests {
    use gravwell_model::{Collection, Key, Seq};

    use super::*;

    #[test]
    fn values_are_printed_as_they_are_kept() {
        let value = r#"{"b":1.50,"a":12345678901234567890123}"#;
        let row = Row::Object {
            collection: Collection::new("c").expect("name"),
            key: Key::new("k\"").expect("key"),
            version: Seq(7),
            time_ms: 0,
            value: value.into(),
        };
        let line = object_json(&row).expect("prints").expect("an object");
        let time = "1970-01-01T00:00:00.000Z";
        assert_eq!(line, format!(r#"{{"collection":"c","key":"k\"","version":7,"time":"{time}","value":{value}}}"#));
    }
}
