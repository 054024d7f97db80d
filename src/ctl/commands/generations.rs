//! `generations`: lists how the generations of the log started, and records it again if it was lost.

use std::path::Path;

use clap::Subcommand;

use gravwell_env::{Clock, SystemClock};
use gravwell_log::generations;
use gravwell_model::codec::admin::{GenerationCause, GenerationInfo, Request};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::{Generation, LineageEntry};

use crate::client::Client;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// List the generations of the log.
///
/// Shows how each generation started and how much history it shares with the previous one.
#[derive(Debug, clap::Args)]
pub struct Generations {
    /// Command to run [default: list the generations].
    #[command(subcommand)]
    pub action: Option<Action>,
}

/// Commands of `generations`.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Record how a generation started if the datastore no longer knows it.
    Set {
        /// Number of the generation.
        #[arg(value_name = "N")]
        generation: Generation,
        /// Cause: restored (on purpose), recovered (lost log) or repaired (damaged log).
        #[arg(value_parser = beginning)]
        beginning: GenerationCause,
    },
}

fn beginning(text: &str) -> Result<GenerationCause, String> {
    match text {
        "restored" => Ok(GenerationCause::Restored),
        "recovered" => Ok(GenerationCause::Recovered),
        "repaired" => Ok(GenerationCause::Repaired),
        _ => Err("use `restored`, `recovered` or `repaired`".into()),
    }
}

/// Lists the generations, or sets one.
pub(super) async fn run(dir: &Path, json: bool, args: Generations) -> CtlResult {
    match args.action {
        None => list(dir, json).await,
        Some(Action::Set { generation, beginning }) => set(dir, generation, beginning),
    }
}

async fn list(dir: &Path, json: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let found: Result<Vec<GenerationInfo>, _> = client.items(&Request::Generations).await;
    client.close().await;
    let mut output = Output::new();
    output.list(json, &found?, &["GENERATION", "BEGAN", "SHARED TO", "AT"], |info| {
        let at = if info.time_ms == 0 { "unknown".to_owned() } else { timestamp(info.time_ms) };
        vec![info.generation.to_string(), info.beginning.to_string(), info.shared_to.to_string(), at]
    })?;
    output.flush()
}

/// Writes the start of a generation. Needs only the log's head and is safe while the datastore runs, which reads the
/// file on every request of a member.
fn set(dir: &Path, generation: Generation, beginning: GenerationCause) -> CtlResult {
    let (log_id, lineage) = generations::of_log(dir).map_err(CtlError::new)?;
    let Some(entry) = lineage.iter().find(|entry| entry.generation == generation && generation > Generation(1)) else {
        let later = lineage.iter().map(|entry| entry.generation).filter(|number| *number > Generation(1));
        let known: Vec<String> = later.map(|number| number.to_string()).collect();
        let known = if known.is_empty() { "none after the first".to_owned() } else { known.join(", ") };
        return Err(CtlError::new(format!(
            "cannot set generation {generation}; choose one of the log's generations: {known}"
        )));
    };
    let LineageEntry { generation, shared_to } = *entry;
    let info = GenerationInfo { generation, shared_to, beginning, time_ms: SystemClock.now_ms() };
    generations::set(dir, log_id, info).map_err(CtlError::new)
}
