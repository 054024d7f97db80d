//! `dump-record`: prints one record as it is stored.

use std::path::Path;

use gravwell_model::Seq;
use gravwell_model::codec::admin::{RecordInfo, Request};
use gravwell_model::codec::json_lines::entry_line;

use crate::client::Client;
use crate::client::output::Output;
use crate::client::parse::seq;
use crate::error::{CtlError, CtlResult};

/// Print one record of the log and its frame as stored on disk.
#[derive(Debug, clap::Args)]
pub struct DumpRecord {
    /// Sequence of the record.
    #[arg(value_parser = seq)]
    pub seq: Seq,
}

/// Prints the record, its frame and its entry.
pub(super) async fn run(dir: &Path, json: bool, args: DumpRecord) -> CtlResult {
    let client = Client::open(dir).await?;
    let found: Result<RecordInfo, _> = client.item(&Request::Record { seq: args.seq }).await;
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
