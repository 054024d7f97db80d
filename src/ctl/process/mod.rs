//! The processes: their startup and shutdown, and what runs the datastore, the webserver and a replica.

mod bounded_listener;
pub mod datastore;
mod exporter;
pub(crate) mod fleet;
pub(crate) mod logging;
mod monitor;
pub(crate) mod replica;
pub(crate) mod run_as_owner;
mod service;
pub(crate) mod signals;
pub mod webserver;

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::runtime::Runtime;

use gravwell_config::ConfigError;
use gravwell_datastore::DatastoreError;
use gravwell_env::process;
use gravwell_runtime::telemetry::output;
use gravwell_web::server::WebserverError;

use crate::error::CtlError;

/// Reason for which a datastore or a webserver exits with an error.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The datastore failed.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// The webserver failed.
    #[error(transparent)]
    Webserver(#[from] WebserverError),
    /// The Prometheus endpoint could not be started.
    #[error("cannot serve metrics on {address}: {reason}; choose another address with --metrics, or omit it")]
    Metrics {
        /// Configured address of the endpoint.
        address: SocketAddr,
        /// Cause, as reported by the operating system or the exporter.
        reason: String,
    },
    /// A task that should run until shutdown has ended; holds its name.
    #[error("task `{0}` ended unexpectedly; check the log for the reason, then restart the process")]
    Ended(&'static str),
}

impl RunError {
    /// Returns the exit code of the process: 3 for damage, 1 for everything else.
    #[must_use]
    pub fn exit(&self) -> u8 {
        let is_damage = match self {
            RunError::Datastore(error) => error.is_damage(),
            RunError::Webserver(error) => error.is_damage(),
            RunError::Config(_) | RunError::Metrics { .. } | RunError::Ended(_) => false,
        };
        if is_damage { 3 } else { 1 }
    }
}

impl From<RunError> for CtlError {
    fn from(error: RunError) -> CtlError {
        CtlError { exit: error.exit(), message: error.to_string() }
    }
}

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

/// Runs a datastore or a webserver as the process `name`, and prints the error that ends it.
pub fn main_of_service(name: &str, service: impl Future<Output = Result<(), RunError>>) -> ExitCode {
    main(name, async {
        match service.await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::say(format_args!("{name}: {error}"));
                ExitCode::from(error.exit())
            }
        }
    })
}
