//! What every program does at its start and at its end.

use std::process::ExitCode;

use tokio::runtime::Runtime;

use crate::env::process;
use crate::telemetry::output;

/// Runs `work` as the whole of the process called `name`: what it makes is closed to other users, it may use as many
/// descriptors as the system allows it, and what it has said is written before it ends.
pub fn main(name: &str, work: impl Future<Output = ExitCode>) -> ExitCode {
    process::close_files_to_others();
    process::raise_descriptors();
    output::report_panics();
    let code = match Runtime::new() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            output::say(format_args!("{name}: starting: {error}"));
            ExitCode::FAILURE
        }
    };
    output::flush();
    code
}
