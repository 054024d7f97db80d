//! Read-only commands.

use std::path::Path;

use gravwell_model::codec::admin::{
    CollectionInfo, MemberInfo, PresenceInfo, RecordInfo, Request, SegmentInfo, Status,
};
use gravwell_model::codec::health::Reason;
use gravwell_model::codec::json_lines::{entry_line, object_line, timestamp};
use gravwell_model::codec::message::Row;
use gravwell_model::{Collection, Entry, EntryBody, Key, Op, Seq, Withheld};
use gravwell_objects::kinds;

use super::client::{Client, Piece, entries};
use super::output::{Output, or_dash, size};
use super::{CtlError, CtlResult};

/// `status`
pub(super) async fn status(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let status = client.status().await?;
    client.close().await;
    print_status(json, &status)?;
    match status.health.exit() {
        0 => Ok(()),
        exit => Err(CtlError { message: status.health.summary(), exit }),
    }
}

fn print_status(json: bool, status: &Status) -> CtlResult {
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

/// `members`
pub(super) async fn members(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<MemberInfo> = client.items(&Request::Members).await?;
    client.close().await;
    let headings = ["NAME", "ROLE", "STATE", "CONNECTED", "APPLIED", "LAG", "HOLDS FLOOR", "LAST SEEN", "EXPIRES"];
    Output::new().list(json, &rows, &headings, |member| {
        vec![
            member.name.clone(),
            member.role.clone(),
            member.state.clone(),
            yes(member.connected),
            or_dash(member.applied),
            or_dash(member.lag_ops),
            yes(member.counts),
            or_dash(member.last_seen_ms.map(timestamp)),
            or_dash(member.expires_ms.map(timestamp)),
        ]
    })
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// `presence`
pub(super) async fn presence(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    if !client.is_running() {
        client.close().await;
        let dir = dir.display();
        return Err(CtlError::new(format!(
            "no process runs on {dir}, so no member is connected; start it and run again"
        )));
    }
    let rows: Vec<PresenceInfo> = client.items(&Request::Presence).await?;
    client.close().await;
    let headings = ["NAME", "ROLE", "ADDRESS", "EXTERNAL", "APPLIED", "OUTBOX", "REJECTED", "SINCE", "HEALTH"];
    Output::new().list(json, &rows, &headings, |presence| {
        vec![
            presence.name.clone(),
            presence.role.clone(),
            presence.address.clone(),
            or_dash(presence.external_addr.clone()),
            presence.applied.to_string(),
            presence.outbox.to_string(),
            presence.rejected.to_string(),
            timestamp(presence.since_ms),
            presence.unhealthy.clone().unwrap_or_else(|| "good".into()),
        ]
    })
}

/// `collections`
pub(super) async fn collections(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<CollectionInfo> = client.items(&Request::Collections).await?;
    let shown = client.check_shown().await;
    client.close().await;
    Output::new().list(json, &rows, &["COLLECTION", "OBJECTS", "SIZE", "DIGEST"], |row| {
        vec![row.collection.clone(), row.objects.to_string(), size(row.bytes), row.digest.to_string()]
    })?;
    shown
}

/// `segments`
pub(super) async fn segments(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let rows: Vec<SegmentInfo> = client.items(&Request::Segments).await?;
    client.close().await;
    Output::new().list(json, &rows, &["FILE", "FIRST", "LAST", "SIZE", "STATE"], |row| {
        vec![row.file.clone(), row.first.to_string(), row.last.to_string(), size(row.bytes), row.state.clone()]
    })
}

/// Formats an object and its version, which is 0 while the last write is pending. The value is printed as stored,
/// because parsing and serializing it could change the digits of its numbers.
fn object_json(row: &Row) -> Result<Option<String>, CtlError> {
    let Row::Object { collection, key, version, time_ms, value } = row else { return Ok(None) };
    let quoted = |text: &str| serde_json::to_string(text).map_err(CtlError::new);
    let (collection, key, time) = (quoted(collection.as_str())?, quoted(key.as_str())?, timestamp(*time_ms));
    let value = gravwell_model::codec::json_lines::value_member(value);
    let line = format!(r#"{{"collection":{collection},"key":{key},"version":{version},"time":"{time}",{value}}}"#);
    Ok(Some(line))
}

/// `get`
pub(super) async fn get(dir: &Path, json: bool, collection: Collection, key: Key, at: Option<Seq>) -> CtlResult {
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let mut found = false;
    let request = Request::Get { collection: collection.clone(), key: key.clone(), at };
    let result = client
        .each(&request, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                found = true;
                match (json, row) {
                    (true, row) => object_json(row)?.map_or(Ok(()), |line| output.raw_line(&line))?,
                    (false, Row::Object { value, .. }) => {
                        output.bytes(value)?;
                        output.bytes(b"\n")?;
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await;
    let shown = client.check_shown().await;
    client.close().await;
    result?;
    output.flush()?;
    shown?;
    if found { Ok(()) } else { Err(CtlError::new(format!("{collection}/{key} does not exist"))) }
}

/// `ls`
pub(super) async fn ls(
    dir: &Path,
    json: bool,
    collection: Collection,
    prefix: String,
    limit: Option<u64>,
) -> CtlResult {
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::List { collection, prefix, limit }, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                match (json, row) {
                    (true, row) => object_json(row)?.map_or(Ok(()), |line| output.raw_line(&line))?,
                    (false, Row::Object { key, version, value, .. }) => {
                        output.line(&format!("{key}  (version {version}, {})", size(value.len() as u64)))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await;
    let shown = client.check_shown().await;
    client.close().await;
    result?;
    output.flush()?;
    shown
}

fn print_entry(output: &mut Output, json: bool, entry: &Entry) -> CtlResult {
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

/// `tail`
pub(super) async fn tail(dir: &Path, json: bool, from: Option<Seq>, to: Option<Seq>, follow: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let after = match from {
        Some(from) => Seq(from.0.saturating_sub(1)),
        None => client.item::<Status>(&Request::Status).await?.horizon,
    };
    let mut output = Output::new();
    let result = client
        .each(&Request::Tail { from: after, to, follow }, |piece| {
            let Piece::Frames(frames) = piece else { return Ok(()) };
            for entry in entries(&frames)? {
                if to.is_none_or(|to| entry.seq <= to) {
                    print_entry(&mut output, json, &entry)?;
                }
            }
            if follow { output.flush() } else { Ok(()) }
        })
        .await;
    output.flush()?;
    client.close().await;
    result
}

/// `history`
pub(super) async fn history(dir: &Path, json: bool, collection: Collection, key: Key) -> CtlResult {
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::History { collection, key }, |piece| {
            let Piece::Frames(frames) = piece else { return Ok(()) };
            entries(&frames)?.iter().try_for_each(|entry| print_entry(&mut output, json, entry))
        })
        .await;
    output.flush()?;
    client.close().await;
    result
}

/// `dump-record`
pub(super) async fn record(dir: &Path, json: bool, seq: Seq) -> CtlResult {
    let client = Client::open(dir).await?;
    let found: Result<RecordInfo, _> = client.item(&Request::Record { seq }).await;
    client.close().await;
    let mut record = found?;
    record.entry = serde_json::from_str(&record_entry(&record)?).map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        output.json(&record)?;
        return output.flush();
    }
    let mut line = |name: &str, value: String| output.line(&format!("{name:<13}{value}"));
    line("sequence", record.seq.to_string())?;
    line("file", format!("{} at byte {}", record.file, record.offset))?;
    line("length", format!("{} bytes", record.bytes))?;
    line("kind", format!("{}, flags {:#06x}, {} in its batch", record.kind, record.flags, record.batch_index))?;
    line("chain", record.chain.clone())?;
    line("checksums", format!("payload {}, header {}", record.payload_crc, record.header_crc))?;
    line("payload", record.payload.clone())?;
    line("entry", record.entry.to_string())?;
    output.flush()
}

fn record_entry(record: &RecordInfo) -> Result<String, CtlError> {
    let digits = record.payload.as_bytes().chunks(2);
    let payload: Option<Vec<u8>> =
        digits.map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok())).collect();
    let payload = bytes::Bytes::from(payload.ok_or_else(|| CtlError::new("the payload is not hexadecimal"))?);
    let kind = match record.kind.as_str() {
        "commit" => gravwell_model::codec::frame::kind::COMMIT,
        "reject" => gravwell_model::codec::frame::kind::REJECT,
        _ => return Ok("null".into()),
    };
    let header = gravwell_model::codec::frame::FrameHeader {
        kind,
        flags: record.flags,
        payload_bytes: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        batch_index: record.batch_index,
        seq: record.seq,
        chain: Default::default(),
        payload_crc: 0,
    };
    let entry = gravwell_model::codec::payload::decode_entry(&header, &payload).map_err(CtlError::new)?;
    Ok(entry_line(&entry))
}

/// `export`
pub(super) async fn export(dir: &Path, at: Option<Seq>, with_secrets: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let mut output = Output::new();
    let result = client
        .each(&Request::Export { at, is_check: false }, |piece| {
            let Piece::Rows(rows) = piece else { return Ok(()) };
            for row in &rows {
                if let Row::Object { collection, key, value, .. } = row
                    && (with_secrets || !kinds::is_secret(collection.as_str()))
                {
                    output.raw_line(&object_line(collection, key, value))?;
                }
            }
            Ok(())
        })
        .await;
    output.flush()?;
    let shown = client.check_shown().await;
    client.close().await;
    result.and(shown)
}

/// `barrier`
pub(super) async fn barrier(dir: &Path, json: bool, seq: Option<Seq>, timeout_s: u64) -> CtlResult {
    let client = Client::open(dir).await?;
    // Without a process there is no progress, so there is nothing to wait for.
    let timeout_ms = if client.is_running() { timeout_s.saturating_mul(1000) } else { 0 };
    let status: Result<Status, _> = client.item(&Request::Barrier { seq, timeout_ms }).await;
    let status = status.map(|status| client.as_seen(status));
    client.close().await;
    print_status(json, &status?)
}

#[cfg(test)]
mod tests {
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
