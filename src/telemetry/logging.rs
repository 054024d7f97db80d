//! Structured logs on standard error.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::reload::Error as ReloadError;

use super::output::LogWriter;

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            other => Err(format!("`{other}` is not a log format: use text or json")),
        }
    }
}

/// The level of a process's log, which can be changed while it runs.
#[derive(Clone)]
pub struct Level(Arc<dyn Fn(EnvFilter) -> Result<(), ReloadError> + Send + Sync>);

impl Level {
    /// Takes another level from now on. `GRAVWELL_LOG` in the environment still wins.
    pub fn set(&self, level: &str) {
        if let Err(error) = (self.0)(filter(level)) {
            tracing::warn!(%error, "the level of logging was not changed");
        }
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_env("GRAVWELL_LOG").unwrap_or_else(|_| {
        let level = level.to_ascii_lowercase();
        EnvFilter::new(format!("warn,gravwell={level}"))
    })
}

/// Starts logging; a second call changes nothing. `level` is one of error, warn, info, debug, trace, in any case.
pub fn start(level: &str, format: LogFormat) -> Level {
    // Colours are for terminals, not for journals.
    let is_terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_writer(LogWriter::default).with_target(false).with_ansi(is_terminal);
    // What it would say of itself goes to standard error, with a panic where that cannot be written.
    let builder = builder.log_internal_errors(false);
    // With the time that it took.
    let builder = builder.with_span_events(FmtSpan::CLOSE);
    // Two forms are two types, which the handle's user need not know.
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
