//! Command line of `gravwell-logctl`: the options of all commands.

use std::path::PathBuf;

use clap::Parser;

use crate::commands::{Command, headings};

/// Inspect, verify and repair a replicated operation log and manage its members.
///
/// Commands work on the data directory of a datastore or of a replica; commands for the log, its members and the audit
/// need a datastore's. If a process runs on the directory, the command talks to it through its local socket; otherwise
/// it opens the files itself. Root acts as the owner of the directory, so that no file in it ends up owned by root.
///
/// Exit codes: 0 success; 1 rejected or failed; 2 usage error; 3 damage or divergence found.
#[derive(Debug, Parser)]
#[command(
    name = "gravwell-logctl",
    version,
    max_term_width = headings::WIDTH_MAX,
    help_template = headings::help_template()
)]
pub struct Args {
    /// Data directory of a datastore or replica (not read from the configuration file).
    #[arg(
        long,
        global = true,
        env = "GRAVWELL_DATA_DIR",
        default_value = "/opt/gravwell/datastore",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,
    /// Print JSON: one object, or one object per line.
    #[arg(long, global = true)]
    pub json: bool,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
