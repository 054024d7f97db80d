//! The operator's tool.

use std::process::ExitCode;

use clap::Parser;
use gravwell::ctl::args::Args;

#[tokio::main]
async fn main() -> ExitCode {
    gravwell::ctl::run(Args::parse()).await
}
