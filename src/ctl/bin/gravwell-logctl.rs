//! Administration tool for a replicated operation log.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use clap::Parser;
use gravwell_ctl::args::Args;
use gravwell_ctl::process;
use gravwell_env::process::restrict_file_modes;
use gravwell_runtime::telemetry::output;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    restrict_file_modes();
    let args = Args::parse();
    // This may replace the process, so it must come before threads are started.
    if let Err(error) = gravwell_ctl::act_as_owner(&args) {
        output::say(format_args!("gravwell-logctl: {error}"));
        output::flush();
        return ExitCode::FAILURE;
    }
    process::main("gravwell-logctl", gravwell_ctl::run(args))
}
