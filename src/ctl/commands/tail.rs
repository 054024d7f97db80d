//! `tail`: prints the log.

use std::path::Path;

use gravwell_model::Seq;
use gravwell_model::codec::admin::{Request, Status};

use crate::client::output::Output;
use crate::client::parse::seq;
use crate::client::print::print_entry;
use crate::client::{Client, Piece, entries};
use crate::error::CtlResult;

/// Print the log, one transaction per line, including deletions.
#[derive(Debug, clap::Args)]
pub struct Tail {
    /// First sequence to print [default: the oldest that is available].
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub from: Option<Seq>,
    /// Last sequence to print.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub to: Option<Seq>,
    /// Keep printing new transactions until interrupted.
    #[arg(long, short)]
    pub follow: bool,
}

/// Prints the entries in order.
pub(super) async fn run(dir: &Path, json: bool, args: Tail) -> CtlResult {
    let Tail { from, to, follow } = args;
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
