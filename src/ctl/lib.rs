//! The programs: `gravwell-logctl` with a file per command, and the processes that all of them run.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

/// Prints a message on standard error; a failed write is ignored.
macro_rules! complain {
    ($($arguments:tt)*) => {{
        let text = format!($($arguments)*);
        // The message may contain text from other processes.
        let lines: Vec<_> = text.split('\n').map(::gravwell_model::printable::escape).collect();
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", lines.join("\n")));
    }};
}

pub mod args;
mod backups;
pub mod balance;
mod checks;
mod client;
mod commands;
mod error;
pub mod process;

use std::process::ExitCode;

use clap::CommandFactory;

use args::Args;
pub use error::CtlError;

/// Continues as the owner of the data directory if root gives a command that may write to it.
///
/// # Errors
/// If the program cannot be started again. If it can, this function does not return.
pub fn act_as_owner(args: &Args) -> Result<(), String> {
    if args.command.opens_data() { process::run_as_owner::act_as_owner(&args.data_dir) } else { Ok(()) }
}

/// Runs a command to completion and returns its exit code.
pub async fn run(args: Args) -> ExitCode {
    let Args { data_dir, json, command } = args;
    match command.run(data_dir, json, Args::command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.message.is_empty() {
                complain!("gravwell-logctl: {}", error.message);
            }
            ExitCode::from(error.exit)
        }
    }
}
