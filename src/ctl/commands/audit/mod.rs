//! `audit`: lists, verifies and exports the audit of a datastore.

mod syslog;

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use gravwell_model::Seq;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::audit::{AuditPage, AuditRecord, AuditReport};
use gravwell_model::codec::audit_rows::{AuditRow, rows};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_objects::Timestamp;

use crate::client::output::{Output, aligned, or_dash, size};
use crate::client::{Client, Piece, entries};
use crate::error::{CtlError, CtlResult};

/// Show, verify and export the audit, the datastore's record of who did what.
///
/// The datastore keeps the audit separately from the log.
#[derive(Debug, clap::Args)]
pub struct Audit {
    /// Command to run on the audit.
    #[command(subcommand)]
    pub action: Action,
}

/// Commands of `audit`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List audit records, oldest first.
    Ls(Range),
    /// Check every byte and the hash chain; exit with 3 if a record was tampered with.
    ///
    /// Detects records that were removed, altered or inserted.
    Verify {
        /// Record and chain hash printed by an earlier `audit verify`, to compare with.
        #[arg(long, value_name = "RECORD:CHAIN", value_parser = expected)]
        expect: Option<(Seq, String)>,
    },
    /// Acknowledge reported damage and gaps up to a record.
    ///
    /// `audit verify`, `status` and `doctor` no longer report them. The acknowledgement is itself recorded in
    /// the audit.
    Acknowledge {
        /// Last record to acknowledge, as printed by `audit verify`.
        #[arg(value_name = "RECORD")]
        to: u64,
    },
    /// Export audit records as JSON lines or syslog lines (RFC 5424).
    Export {
        /// Range of records to export.
        #[command(flatten)]
        range: Range,
        /// Print syslog lines instead of JSON, without values of objects.
        #[arg(long)]
        syslog: bool,
        /// Write to this new file, readable only by its owner, instead of standard output.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

/// Range of audit records.
#[derive(Clone, Debug, Args)]
pub struct Range {
    /// Start time, such as 2026-01-31T12:00:00Z, or an age: 90s, 15m, 12h or 7d.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// End time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Start after this record (field `audit`), to continue an earlier export.
    #[arg(long, value_name = "RECORD", default_value_t = 0)]
    after: u64,
}

fn time(text: &str) -> Result<u64, String> {
    if let Some(moment) = Timestamp::parse(text) {
        return Ok(moment.ms());
    }
    let wrong = || format!("`{text}` is not a time; use 2026-01-31T12:00:00Z or an age such as 90s, 15m, 12h or 7d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.trim_start_matches('-').parse().map_err(|_| wrong())?;
    let unit_ms: u64 = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    Ok(Timestamp::now().ms().saturating_sub(number.saturating_mul(unit_ms)))
}

fn expected(text: &str) -> Result<(Seq, String), String> {
    let wrong = || format!("`{text}` is not RECORD:CHAIN as printed by `audit verify`");
    let (seq, chain) = text.split_once(':').ok_or_else(wrong)?;
    let is_chain = chain.len() == 32 && chain.bytes().all(|byte| byte.is_ascii_hexdigit());
    let seq = seq.parse().map(Seq).map_err(|_| wrong())?;
    if is_chain { Ok((seq, chain.to_ascii_lowercase())) } else { Err(wrong()) }
}

/// `audit ls`, `audit verify`, `audit acknowledge`, `audit export`
pub(super) async fn run(dir: &Path, json: bool, args: Audit) -> CtlResult {
    let client = Client::open(dir).await?;
    let done = match args.action {
        Action::Ls(range) => list(&client, json, &range).await,
        Action::Verify { expect } => verify(&client, json, expect).await,
        Action::Acknowledge { to } => acknowledge(&client, json, Seq(to)).await,
        Action::Export { range, syslog, out } => export(&client, &range, syslog, out.as_deref()).await,
    };
    client.close().await;
    done
}

/// Passes every row of a range to `take`. Transactions that are not in the audit yet are reported on standard error.
async fn each_row(client: &Client, range: &Range, mut take: impl FnMut(&AuditRow<'_>) -> CtlResult) -> CtlResult {
    let (since_ms, until_ms) = (range.since.unwrap_or(0), range.until.unwrap_or(u64::MAX));
    let mut from = Seq(range.after);
    loop {
        let mut page = AuditPage::default();
        let mut found = Vec::new();
        let gather = |piece| {
            match piece {
                Piece::Frames(frames) => found.extend(entries(&frames)?),
                Piece::Item(item) => page = serde_json::from_slice(&item).map_err(CtlError::new)?,
                Piece::Rows(_) => {}
            }
            Ok(())
        };
        client.each(&Request::Audit { from, since_ms, until_ms }, gather).await?;
        for entry in &found {
            let Ok(record) = AuditRecord::of(entry) else {
                complain!("audit record {} has a later version; upgrade gravwell-logctl", entry.seq);
                continue;
            };
            if (since_ms..=until_ms).contains(&record.time_ms) {
                rows(entry.seq, &record).iter().try_for_each(&mut take)?;
            }
        }
        match page.next.filter(|next| *next > from) {
            Some(next) => from = next,
            None => {
                if page.missing > 0 {
                    complain!("{} transactions are not in the audit yet {}", page.missing, page.problem);
                }
                return Ok(());
            }
        }
    }
}

fn who(row: &AuditRow<'_>) -> String {
    let user = row.user.as_deref().filter(|user| !user.is_empty());
    match (user, &row.by) {
        (Some(user), Some(by)) => format!("{by} as {user}"),
        (Some(user), None) => user.to_owned(),
        (None, _) => or_dash(row.uid),
    }
}

/// Column headings with widths that fit most cells. Rows are printed as they arrive, because their number is unbounded.
const HEADINGS: [&str; 7] = ["TIME", "MEMBER", "WHO", "FROM", "DONE", "OBJECT", "WHAT"];
const WIDTHS: [usize; 7] = [24, 12, 12, 22, 14, 32, 0];

fn cells(row: &AuditRow<'_>) -> Vec<String> {
    let object = row.collection.map(|collection| format!("{collection}/{}", row.key.unwrap_or_default()));
    let what = row.what.as_deref().or(row.reason.as_deref()).unwrap_or_default().to_owned();
    let count = row.count.map_or_else(String::new, |count| format!(" ({count} times)"));
    let from = or_dash(row.from.as_deref());
    vec![
        row.time.clone(),
        row.member.clone(),
        who(row),
        from,
        row.op.to_string(),
        or_dash(object),
        format!("{what}{count}"),
    ]
}

async fn list(client: &Client, json: bool, range: &Range) -> CtlResult {
    let mut output = Output::new();
    if json {
        each_row(client, range, |row| output.json(row)).await?;
        return output.flush();
    }
    // Print the headings with the first row, so that nothing is printed if the audit cannot be read.
    let mut headings = Some(aligned(&HEADINGS, &WIDTHS));
    each_row(client, range, |row| {
        headings.take().map_or(Ok(()), |headings| output.line(&headings))?;
        output.line(&aligned(&cells(row), &WIDTHS))
    })
    .await?;
    headings.map_or(Ok(()), |headings| output.line(&headings))?;
    output.flush()
}

async fn verify(client: &Client, json: bool, expect: Option<(Seq, String)>) -> CtlResult {
    let at = expect.as_ref().map(|(seq, _)| *seq);
    let mut report: AuditReport = client.item(&Request::AuditVerify { at }).await?;
    if let Some((seq, chain)) = expect {
        let problem = match &report.chain_at {
            Some(found) if *found == chain => None,
            Some(found) => {
                Some(format!("record {seq} has the chain {found}, expected {chain}: the audit was modified"))
            }
            None if seq < report.first => {
                Some(format!("record {seq} is no longer kept; the first record is {}", report.first))
            }
            None => Some(format!("record {seq} does not exist: the audit was truncated or replaced")),
        };
        let finding = |problem| gravwell_model::codec::admin::Finding { place: "audit".into(), offset: None, problem };
        report.findings.extend(problem.map(finding));
        report.ok = report.findings.is_empty();
    }
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        print(&report, &mut output)?;
    }
    output.flush()?;
    if report.ok { Ok(()) } else { Err(CtlError { message: String::new(), exit: 3 }) }
}

async fn acknowledge(client: &Client, json: bool, to: Seq) -> CtlResult {
    let done: serde_json::Value = client.item(&Request::AuditAcknowledge { to }).await?;
    let mut output = Output::new();
    if json {
        output.json(&done)?;
    } else {
        output.line(&format!("damage and gaps reported by records up to {to} are acknowledged"))?;
    }
    output.flush()
}

fn print(report: &AuditReport, output: &mut Output) -> CtlResult {
    let AuditReport { files, records, bytes, first, last, chain, .. } = report;
    for finding in &report.findings {
        output.line(&format!("DAMAGED  {}: {}", finding.place, finding.problem))?;
    }
    output.line(&format!("{records} records in {files} files ({}), from {first} to {last}", size(*bytes)))?;
    if report.last_time_ms > 0 {
        output.line(&format!(
            "recorded from {} to {}",
            timestamp(report.first_time_ms),
            timestamp(report.last_time_ms)
        ))?;
    }
    if report.gaps > 0 {
        output.line(&format!(
            "{} records report gaps: list them with `audit ls | grep gap`, then run `audit acknowledge {last}`",
            report.gaps
        ))?;
    }
    if report.acknowledged > 0 {
        output.line(&format!("{} records that report gaps were acknowledged", report.acknowledged))?;
    }
    match report.ok {
        true => output.line(&format!("intact; keep a copy of this elsewhere: {last}:{chain}")),
        false => {
            output.line("damaged records are left unchanged; keep the directory and compare it with exported records")
        }
    }
}

async fn export(client: &Client, range: &Range, is_syslog: bool, out: Option<&Path>) -> CtlResult {
    let line = |row: &AuditRow<'_>| match is_syslog {
        true => Ok(syslog::line(row)),
        false => serde_json::to_string(row).map_err(CtlError::new),
    };
    match out {
        None => {
            let mut output = Output::new();
            each_row(client, range, |row| output.raw_line(&line(row)?)).await?;
            output.flush()
        }
        Some(path) => {
            let failed = |error: std::io::Error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => CtlError::new(format!(
                    "{} already exists, and nothing was written; choose another name, or remove it",
                    path.display()
                )),
                _ => CtlError::new(format!("{}: {error}", path.display())),
            };
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            let mut file = BufWriter::new(file);
            each_row(client, range, |row| writeln!(file, "{}", line(row)?).map_err(failed)).await?;
            file.into_inner()
                .map_err(|error| failed(error.into_error()))
                .and_then(|file: File| file.sync_all().map_err(failed))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_below_their_headings() {
        let row = AuditRow { time: "2026-01-31T12:00:00.000Z".into(), op: "enroll".into(), ..AuditRow::default() };
        let row = AuditRow { user: Some("".into()), what: Some("web1".into()), ..row };
        let (headings, line) = (aligned(&HEADINGS, &WIDTHS), aligned(&cells(&row), &WIDTHS));
        assert_eq!(headings.find("DONE"), line.find("enroll"), "{headings}\n{line}");
        assert_eq!(headings.find("WHO"), line.find(" - ").map(|at| at + 1), "{line}");
        let long = aligned(&["a".repeat(30), "b".into()], &WIDTHS);
        assert!(long.ends_with("a  b"), "{long}");
    }

    #[test]
    fn times_and_chains_are_read() {
        assert_eq!(time("1970-01-01T00:00:01Z"), Ok(1000));
        let now = Timestamp::now().ms();
        assert!((now - 7_201_000..=now - 7_199_000).contains(&time("2h").expect("reads")));
        for wrong in ["", "yesterday", "h", "5y", "é"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
        assert_eq!(expected(&format!("7:{}", "0A".repeat(16))), Ok((Seq(7), "0a".repeat(16))));
        for wrong in ["7", "x:00", "7:00", ""] {
            assert!(expected(wrong).is_err(), "{wrong}");
        }
    }
}
