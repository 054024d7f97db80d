//! Datastore process.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gravwell_ctl::process;
use gravwell_ctl::process::datastore::{DatastoreArgs, run};
use gravwell_env::process::restrict_file_modes;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Store the operation log of a fleet of webservers and serve it over QUIC.
#[derive(Debug, Parser)]
#[command(name = "gravwell_datastore", version, max_term_width = 100)]
struct Args {
    /// Data directory [default: as configured, or /opt/gravwell/datastore].
    #[arg(long, env = "GRAVWELL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    datastore: DatastoreArgs,
}

fn main() -> ExitCode {
    restrict_file_modes();
    let Args { data_dir, mut datastore } = Args::parse();
    datastore.data_dir = data_dir;
    process::main_of_service("gravwell_datastore", run(datastore))
}
