//! The datastore's process.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gravwell::ctl::datastore::{DatastoreArgs, run};

/// Keep the operation log of a fleet of webservers, and serve it over QUIC.
#[derive(Debug, Parser)]
#[command(name = "gravwell_datastore", version, max_term_width = 100)]
struct Args {
    /// Data directory [default: as configured, or /opt/gravwell/datastore].
    #[arg(long, env = "GRAVWELL_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    datastore: DatastoreArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Args { data_dir, mut datastore } = Args::parse();
    datastore.data_dir = data_dir;
    match run(datastore).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gravwell_datastore: {error}");
            ExitCode::from(error.exit())
        }
    }
}
