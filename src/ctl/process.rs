//! Common startup and shutdown of all programs.

use std::process::ExitCode;

use tokio::runtime::Runtime;

use gravwell_env::process;
use gravwell_runtime::telemetry::output;

/// Runs `work` as the process `name`. Files that it creates are inaccessible to other users, its descriptor limit is
/// raised to the system's maximum, and its log output is flushed before it exits.
pub fn main(name: &str, work: impl Future<Output = ExitCode>) -> ExitCode {
    process::restrict_file_modes();
    process::raise_descriptors();
    output::report_panics();
    let code = match Runtime::new() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => {
            output::say(format_args!("{name}: cannot start: {error}"));
            ExitCode::FAILURE
        }
    };
    output::flush();
    code
}
