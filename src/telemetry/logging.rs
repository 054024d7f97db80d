//! Structured logs on standard error.

use std::str::FromStr;

use tracing_subscriber::EnvFilter;

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

/// Starts logging; a second call changes nothing. `level` is one of error, warn, info, debug, trace, in any case.
pub fn start(level: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_env("GRAVWELL_LOG").unwrap_or_else(|_| {
        let level = level.to_ascii_lowercase();
        EnvFilter::new(format!("warn,gravwell={level}"))
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
