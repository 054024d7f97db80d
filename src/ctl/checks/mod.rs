//! Checks of configuration, host, data and fleet, for `doctor` and `debug-bundle`; every finding comes with its remedy.

mod audit;
mod certificates;
mod fleet;
mod host;
pub(crate) mod objects;
mod preserved_copies;

use std::path::{Path, PathBuf};

use serde::Serialize;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_config::webserver::WebserverConfig;
use gravwell_config::{self as config, ConfigError, Configured, DEFAULT_FILE, Warning};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// Nothing to do.
    Good,
    /// Works, but not permanently, or not as well as it could.
    Warning,
    /// Does not work.
    Problem,
}

/// Result of one check.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// Subject of the check.
    pub subject: &'static str,
    /// Severity of the finding.
    pub level: Level,
    /// Description of the finding.
    pub found: String,
    /// Remedy; empty if there is nothing to do.
    pub remedy: String,
    /// The preserved copy that the finding is about, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<preserved_copies::Kept>,
}

/// All findings.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) list: Vec<Finding>,
    /// Minimum exit code, from the health of the checked status.
    pub(crate) exit: u8,
}

impl Findings {
    /// Raises the exit code to at least that of the checked status.
    fn reaches(&mut self, exit: u8) {
        self.exit = self.exit.max(exit);
    }

    fn add(&mut self, subject: &'static str, level: Level, found: impl ToString, remedy: impl ToString) {
        let (found, remedy) = (found.to_string(), remedy.to_string());
        self.list.push(Finding { subject, level, found, remedy, kept: None });
    }

    fn good(&mut self, subject: &'static str, found: impl ToString) {
        self.add(subject, Level::Good, found, "");
    }

    fn warning(&mut self, subject: &'static str, found: impl ToString, remedy: impl ToString) {
        self.add(subject, Level::Warning, found, remedy);
    }

    fn kept(&mut self, subject: &'static str, found: String, remedy: String, kept: preserved_copies::Kept) {
        self.list.push(Finding { subject, level: Level::Warning, found, remedy, kept: Some(kept) });
    }

    fn problem(&mut self, subject: &'static str, found: impl ToString, remedy: impl ToString) {
        self.add(subject, Level::Problem, found, remedy);
    }

    /// Returns all findings as one JSON object.
    pub(crate) fn text(&self) -> String {
        format!("{}\n", serde_json::json!({ "worst": self.worst(), "findings": self.list }))
    }

    pub(crate) fn worst(&self) -> Level {
        self.list.iter().map(|finding| finding.level).max().unwrap_or(Level::Good)
    }
}

/// Directory and settings to check.
pub(crate) struct Subject<'a> {
    dir: &'a Path,
    datastore: DatastoreConfig,
    webserver: WebserverConfig,
}

/// Runs all checks; a check that cannot run is a finding, too.
pub(crate) async fn examine(dir: &Path, file: Option<&Path>) -> Findings {
    let mut findings = Findings::default();
    let datastore = configuration::<DatastoreConfig>(file, DatastoreConfig::check, &mut findings);
    let webserver = configuration::<WebserverConfig>(file, WebserverConfig::check, &mut findings);
    let subject = Subject { dir, datastore, webserver };
    host::examine(&subject, &mut findings);
    preserved_copies::examine(dir, &mut findings);
    certificates::examine(&subject, &mut findings);
    fleet::examine(&subject, &mut findings).await;
    findings
}

/// Returns the settings of a process, or the defaults if they are invalid.
fn configuration<C: Configured>(
    file: Option<&Path>,
    check: impl Fn(&C) -> Result<(), ConfigError>,
    findings: &mut Findings,
) -> C {
    const SUBJECT: &str = "configuration";
    let loaded = config::load::<C>(file).and_then(|(config, warnings)| check(&config).map(|()| (config, warnings)));
    match loaded {
        Ok((config, warnings)) => {
            let has_been_said = |text: &str| findings.list.iter().any(|finding| finding.found == text);
            let new: Vec<Warning> = warnings.into_iter().filter(|warning| !has_been_said(&warning.0)).collect();
            new.iter().for_each(|warning| findings.warning(SUBJECT, warning, "correct the line, or remove it"));
            let path = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_owned);
            let found = if path.exists() { path.display().to_string() } else { "none: the defaults apply".into() };
            if new.is_empty() && !has_been_said_in(findings, &found) {
                findings.good(SUBJECT, found);
            }
            config
        }
        Err(error) => {
            if !has_been_said_in(findings, &error.to_string()) {
                findings.problem(SUBJECT, error, "correct it, then run `systemctl reload` or `restart`");
            }
            C::defaults()
        }
    }
}

fn has_been_said_in(findings: &Findings, text: &str) -> bool {
    findings.list.iter().any(|finding| finding.found == text)
}

/// Returns the number of days from now until a timestamp.
fn days_until(expires_ms: u64, now_ms: u64) -> i64 {
    let [expires, now] = [expires_ms, now_ms].map(|ms| i64::try_from(ms / 1000).unwrap_or(i64::MAX));
    (expires - now) / (24 * 3600)
}

fn now_ms() -> u64 {
    gravwell_env::Clock::now_ms(&gravwell_env::SystemClock)
}
