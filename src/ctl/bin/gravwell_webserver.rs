//! Webserver process.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gravwell_ctl::process;
use gravwell_ctl::process::webserver::{WebserverArgs, run};
use gravwell_env::process::restrict_file_modes;
use gravwell_search::worker;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Serve users, dashboards, resources and searches from a local replica of the log.
#[derive(Debug, Parser)]
#[command(name = "gravwell_webserver", version, max_term_width = 100)]
struct Args {
    /// Data directory [default: as configured, or /opt/gravwell/webserver].
    #[arg(long, env = "GRAVWELL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    webserver: WebserverArgs,
}

fn main() -> ExitCode {
    restrict_file_modes();
    // A webserver re-executes itself to run a search filter. This check must come before everything else.
    worker::run_if_asked().unwrap_or_else(serve)
}

fn serve() -> ExitCode {
    let Args { data_dir, mut webserver } = Args::parse();
    webserver.data_dir = data_dir;
    process::main_of_service("gravwell_webserver", run(webserver))
}
