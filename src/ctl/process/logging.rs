//! Structured logs on standard error.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::reload::Error as ReloadError;

use gravwell_runtime::telemetry::output::LogWriter;

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("`{other}` is not a log format; use text or json")),
        }
    }
}

/// Handle of the log level, which can be changed at run time.
#[derive(Clone)]
pub struct Level(Arc<dyn Fn(EnvFilter) -> Result<(), ReloadError> + Send + Sync>);

impl Level {
    /// Changes the level. `GRAVWELL_LOG` in the environment takes precedence.
    pub fn set(&self, level: &str) {
        if let Err(error) = (self.0)(filter(level)) {
            tracing::warn!(%error, "failed to change the log level");
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_env("GRAVWELL_LOG").unwrap_or_else(|_| {
        let level = level.to_ascii_lowercase();
        // A prefix: the name of every crate of this workspace starts with it.
        EnvFilter::new(format!("warn,gravwell={level}"))
    })
}

/// Starts logging of warnings for a command that a person runs; further calls have no effect. Other crates report what
/// is an error for themselves, such as a lost connection, which the command reports with its remedy.
pub fn start_for_command() {
    let filter = EnvFilter::try_from_env("GRAVWELL_LOG").unwrap_or_else(|_| EnvFilter::new("off,gravwell=warn"));
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(LogWriter::default).with_target(false).with_ansi(is_terminal);
    let _ = builder.log_internal_errors(false).without_time().with_env_filter(filter).try_init();
}

/// Starts logging; further calls have no effect. `level` is error, warn, info, debug or trace, case-insensitive.
pub fn start(level: &str, format: LogFormat) -> Level {
    // Colors are for terminals, not for the systemd journal.
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(LogWriter::default).with_target(false).with_ansi(is_terminal);
    // Internal errors would be printed to standard error, with a panic if that fails.
    let builder = builder.log_internal_errors(false);
    // Logs the duration of a span when it closes.
    let builder = builder.with_span_events(FmtSpan::CLOSE);
    // The two formats have different types, which the closure hides.
    match format {
        LogFormat::Text => {
            let builder = builder.with_env_filter(filter(level)).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Level(Arc::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let builder = builder.json().with_env_filter(filter(level)).with_filter_reloading();
            let handle = builder.reload_handle();
            let _ = builder.try_init();
            Level(Arc::new(move |filter| handle.reload(filter)))
        }
    }
}
