//! `blobs`: lists, verifies and garbage-collects the chunks of blobs on a datastore or a webserver.

use std::path::Path;

use clap::Subcommand;

use gravwell_model::codec::admin::{BlobCollection, BlobInfo, BlobReport, BlobStats, Request};

use crate::client::Client;
use crate::client::output::{Output, size};
use crate::client::progress::with_progress;
use crate::error::{CtlError, CtlResult};

/// List, verify and garbage-collect the contents of resources and their chunks.
///
/// Works on a datastore or a webserver.
#[derive(Debug, clap::Args)]
pub struct Blobs {
    /// Command to run on the contents.
    #[command(subcommand)]
    pub action: BlobAction,
}

/// Commands of `blobs`.
#[derive(Debug, Subcommand)]
pub enum BlobAction {
    /// List contents with their size, chunks, resources and missing chunks.
    List,
    /// Show the amount of data, its size on disk and the share that is garbage.
    Stats,
    /// Read every chunk and check it against its name.
    ///
    /// A running process fetches damaged chunks again from a member that has them and reports it. Exits with 3 if
    /// chunks are still missing in the end, and lists the resources concerned.
    Verify,
    /// Remove unreferenced chunks, as a running process does every hour.
    ///
    /// Chunks are kept for a grace period after they were last written or requested, because a transaction that
    /// references them may still be in transit, and because a backup or an earlier state of the log may reference them.
    Gc {
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
        /// Grace period in seconds; at least 60 while a process runs.
        ///
        /// Overrides the configured one (`Chunk-Grace-Hours`).
        #[arg(long, value_name = "S")]
        grace: Option<u64>,
    },
}

/// Runs a `blobs` command.
pub(super) async fn run(dir: &Path, json: bool, args: Blobs) -> CtlResult {
    let client = Client::open(dir).await?;
    match args.action {
        BlobAction::List => list(client, json).await,
        BlobAction::Stats => stats(client, json).await,
        BlobAction::Verify => verify(client, json).await,
        BlobAction::Gc { dry_run, grace } => collect(client, json, dry_run, grace).await,
    }
}

fn named(info: &BlobInfo) -> String {
    if info.resources.is_empty() { "no resource".into() } else { info.resources.join(", ") }
}

async fn list(client: Client, json: bool) -> CtlResult {
    let infos: Vec<BlobInfo> = client.items(&Request::BlobList).await?;
    client.close().await;
    let mut output = Output::new();
    for info in &infos {
        if json {
            output.json(info)?;
            continue;
        }
        let state = match (info.missing, info.lost) {
            (0, _) => "complete".to_owned(),
            (missing, true) => format!("{missing} chunks missing, no member has them"),
            (missing, false) => format!("{missing} chunks missing here"),
        };
        let bytes = size(info.size);
        output.line(&format!(
            "{}  {bytes:>10}  {:>7} chunks  {state}  ({})",
            info.content,
            info.chunks,
            named(info)
        ))?;
    }
    output.flush()
}

async fn stats(client: Client, json: bool) -> CtlResult {
    let stats: BlobStats = client.item(&Request::BlobStats).await?;
    client.close().await;
    let mut output = Output::new();
    if json {
        output.json(&stats)?;
    } else {
        let BlobStats { contents, incomplete, chunks, packs, damaged, .. } = stats;
        output.line(&format!("{contents} contents of {}, {incomplete} incomplete", size(stats.content_bytes)))?;
        output.line(&format!(
            "{chunks} chunks of {}, stored as {}, {damaged} damaged",
            size(stats.raw_bytes),
            size(stats.stored_bytes)
        ))?;
        output.line(&format!("{packs} files of {}, {} garbage", size(stats.file_bytes), size(stats.garbage_bytes)))?;
    }
    output.flush()
}

async fn verify(client: Client, json: bool) -> CtlResult {
    let report: BlobReport = with_progress(client, &Request::BlobVerify).await?;
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        output.line(&format!("{} chunks checked", report.chunks))?;
        for damage in &report.damages {
            output.line(&format!("DAMAGE {damage}"))?;
        }
        if report.healed > 0 {
            output.line(&format!("{} chunks were repaired from members", report.healed))?;
        }
        for info in &report.incomplete {
            let ids = info.missing_ids.join(" ");
            output.line(&format!("MISSING {} chunks of {} ({}): {ids}", info.missing, info.content, named(info)))?;
        }
        output.line(match (report.ok, report.incomplete.iter().any(|info| info.lost)) {
            (true, _) => "no damage found",
            (false, false) => {
                "chunks are missing here; a running process fetches them from members that have them, see `status`"
            }
            (false, true) => "chunks are missing on all members; restore a backup, or upload these resources again",
        })?;
    }
    output.flush()?;
    if report.ok { Ok(()) } else { Err(CtlError { message: String::new(), exit: 3 }) }
}

async fn collect(client: Client, json: bool, dry_run: bool, grace: Option<u64>) -> CtlResult {
    // Chunks of an upload in progress are not referenced yet. Without a process, there are no uploads.
    if client.is_running() && grace.is_some_and(|grace| grace < GRACE_MIN_S) && !dry_run {
        client.close().await;
        return Err(CtlError::new(format!(
            "transactions in transit of the running process may reference chunks; use a --grace of at least \
             {GRACE_MIN_S} seconds, or stop the process first"
        )));
    }
    let report: BlobCollection = client.item(&Request::BlobCollect { dry_run, grace_s: grace }).await?;
    client.close().await;
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        let verb = if dry_run { "would be" } else { "were" };
        output.line(&format!("{} chunks of {} {verb} removed", report.chunks, size(report.raw_bytes)))?;
        output
            .line(&format!("{} are referenced, {} are within the grace period", report.live, report.kept_in_grace))?;
        output.line(&format!("{} {verb} freed", size(report.freed_bytes)))?;
        if !report.postponed.is_empty() {
            output.line(&format!("postponed: {}", report.postponed))?;
        }
    }
    output.flush()
}

/// Minimum grace period in seconds while a process runs.
const GRACE_MIN_S: u64 = 60;
