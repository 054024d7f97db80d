//! The operator's tool.

use std::process::ExitCode;

use clap::Parser;
use gravwell::ctl::args::Args;

fn main() -> ExitCode {
    let args = Args::parse();
    // Before there are threads: this may replace the process.
    if let Err(error) = gravwell::ctl::owner::act_as_owner(&args) {
        eprintln!("gravwell-logctl: {error}");
        return ExitCode::FAILURE;
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(gravwell::ctl::run(args)),
        Err(error) => {
            eprintln!("gravwell-logctl: starting: {error}");
            ExitCode::FAILURE
        }
    }
}
