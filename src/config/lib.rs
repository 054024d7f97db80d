//! Configuration of the processes: `gravwell.conf`, its overlays, and the environment.
//!
//! A value in the file overrides the environment; command-line flags, applied afterwards, override both.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod datastore;
pub mod network;
pub mod parameters;
mod setting;
pub mod syntax;
pub mod webserver;

use std::fmt;
use std::path::{Path, PathBuf};

pub use setting::Source;

use syntax::{Setting, SourceLocation};

/// Error in a configuration: file, line, column, problem and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// A probable mistake that does not prevent the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Configuration file that is used if none is given.
pub const DEFAULT_FILE: &str = "/opt/gravwell/etc/gravwell.conf";

/// Settings of one process, with defaults that work without a file.
pub trait Configured: Sized {
    /// Environment variables and the parameters that they set.
    const VARIABLES: &'static [(&'static str, &'static str)];

    /// Returns the defaults.
    fn defaults() -> Self;

    /// Returns whether a section other than `[Global]` applies to this process.
    fn has_section(section: &str) -> bool;

    /// Applies one setting; settings of other processes are ignored.
    ///
    /// # Errors
    /// If the value is invalid.
    fn set(&mut self, source: &Source) -> Result<(), ConfigError>;
}

/// Loads the configuration of a process and returns it with warnings. Without `path`, the default file is used if
/// it exists.
///
/// # Errors
/// If a file cannot be read or is invalid.
pub fn load<C: Configured>(path: Option<&Path>) -> Result<(C, Vec<Warning>), ConfigError> {
    load_with(path, &|name| std::env::var(name).ok())
}

/// Like [`load`], with a custom environment.
///
/// # Errors
/// See [`load`].
pub fn load_with<C: Configured>(
    path: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(C, Vec<Warning>), ConfigError> {
    let default = Path::new(DEFAULT_FILE);
    let file = path.or_else(|| default.exists().then_some(default));
    let settings = file.map_or_else(|| Ok(Vec::new()), read_all)?;
    let mut config = C::defaults();
    let warnings = take_in(&settings, &mut config)?;
    apply_environment(&settings, environment, &mut config)?;
    Ok((config, warnings))
}

fn read_all(file: &Path) -> Result<Vec<Source>, ConfigError> {
    let mut settings = read_one(file)?;
    let mut overlay = file.as_os_str().to_owned();
    overlay.push(".d");
    let overlay = PathBuf::from(overlay);
    if !overlay.exists() {
        return Ok(settings);
    }
    let named = |error: std::io::Error| ConfigError(format!("{}: {error}", overlay.display()));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&overlay).map_err(named)? {
        let entry = entry.map_err(named)?;
        let is_conf = entry.path().extension().is_some_and(|extension| extension == "conf");
        if is_conf && entry.file_type().map_err(named)?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    for file in files {
        settings.extend(read_one(&file)?);
    }
    Ok(settings)
}

fn read_one(file: &Path) -> Result<Vec<Source>, ConfigError> {
    let named = |what: &dyn fmt::Display| ConfigError(format!("{}: {what}", file.display()));
    let size = std::fs::metadata(file).map_err(|error| named(&error))?.len();
    if size > syntax::FILE_BYTES_MAX as u64 {
        return Err(named(&format!("the file has {size} bytes, but at most {} are allowed", syntax::FILE_BYTES_MAX)));
    }
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    let settings = syntax::parse(&text).map_err(|error| ConfigError(format!("{}, {error}", file.display())))?;
    Ok(settings.into_iter().map(|setting| Source { file: file.to_owned(), setting }).collect())
}

fn take_in<C: Configured>(settings: &[Source], config: &mut C) -> Result<Vec<Warning>, ConfigError> {
    let mut warnings = Vec::new();
    for source in settings {
        let Setting { section, name, .. } = &source.setting;
        let is_global = section.eq_ignore_ascii_case("global");
        if is_global && !parameters::is_known(name) {
            let hint = parameters::closest(name).map_or_else(String::new, |known| format!("; did you mean {known}?"));
            warnings.push(warning(source, &format!("unknown parameter `{name}`{hint}")));
        } else if is_global || C::has_section(section) {
            config.set(source)?;
        } else if !parameters::is_foreign_section(section) {
            warnings.push(warning(source, &format!("unknown section [{section}]")));
        }
    }
    Ok(warnings)
}

fn warning(source: &Source, what: &str) -> Warning {
    Warning(format!("{}, {}: {what}", source.file.display(), source.setting.place))
}

/// Applies environment variables for parameters that the file does not set. `NAME_FILE` names a file whose first line is
/// the value.
fn apply_environment<C: Configured>(
    settings: &[Source],
    environment: &dyn Fn(&str) -> Option<String>,
    config: &mut C,
) -> Result<(), ConfigError> {
    for (variable, parameter) in C::VARIABLES {
        let is_set = settings.iter().any(|source| {
            source.setting.section.eq_ignore_ascii_case("global")
                && source.setting.name.eq_ignore_ascii_case(parameter)
                && source.setting.value.as_deref().is_some_and(|value| !value.is_empty() && value != "0")
        });
        if is_set {
            continue;
        }
        let value = match (environment(variable), environment(&format!("{variable}_FILE"))) {
            (Some(value), _) => value,
            (None, Some(file)) => first_line(variable, Path::new(&file))?,
            (None, None) => continue,
        };
        let setting = Setting {
            section: "Global".into(),
            subsection: None,
            name: (*parameter).into(),
            value: Some(value.trim().to_owned()),
            place: SourceLocation { line: 1, column: 1 },
        };
        config.set(&Source { file: PathBuf::from(format!("environment variable {variable}")), setting })?;
    }
    Ok(())
}

fn first_line(variable: &str, file: &Path) -> Result<String, ConfigError> {
    let named = |what: &dyn fmt::Display| ConfigError(format!("{variable}_FILE: {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(named(&"the file is empty; put the value on its first line")),
    }
}

#[cfg(test)]
mod tests {
    use super::datastore::DatastoreConfig;
    use super::*;

    fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<(DatastoreConfig, Vec<Warning>), ConfigError> {
        let temp = tempfile::tempdir().expect("temp dir");
        let file = temp.path().join("gravwell.conf");
        std::fs::write(&file, text).expect("writes");
        let look_up = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        load_with(Some(&file), &look_up)
    }

    #[test]
    fn the_file_wins_over_the_environment_and_later_lines_over_earlier_ones() {
        let environment = [("GRAVWELL_DATASTORE_LISTEN_PORT", "9999"), ("GRAVWELL_DATASTORE_LISTEN_ADDRESS", "::1")];
        let (config, warnings) =
            load_text("[global]\ndatastore-port=1\nDatastore-Port = 0x2000 # x\n", &environment).expect("loads");
        assert_eq!((config.port, config.listen), (0x2000, Some("::1".parse().expect("address"))));
        assert!(warnings.is_empty());
        let (config, _) = load_text("[Global]\n", &environment).expect("loads");
        assert_eq!(config.port, 9999);
    }

    #[test]
    fn mistakes_name_file_line_and_remedy() {
        let cases = [
            ("[Global]\nDatastore-Port=x\n", "line 2, column 1: Datastore-Port: `x` is not an integer"),
            ("[Global]\nDatastore-Port=70000\n", "out of range; use 1 to 65535"),
            ("[Global]\n\nDatastore-Insecure-Disable-TLS=true\n", "line 3, column 1"),
            ("[Global]\nLog-Level=loud\n", "use ERROR, WARN"),
            ("[Global]\nDatastore-Listen-Address=here\n", "is not an IP address"),
            ("[Global]\nChunk-Bandwidth-Limit=fast\n", "use 10Mbit"),
            ("[Global]\nChunk-Bandwidth-Limit=10 furlongs\n", "use 10Mbit"),
        ];
        for (text, what) in cases {
            let error = load_text(text, &[]).expect_err(text).to_string();
            assert!(error.contains(what) && error.contains("gravwell.conf"), "{text}: {error}");
        }
    }

    #[test]
    fn a_bandwidth_has_a_unit() {
        for (text, bytes) in [("0", 0), ("1000", 1000), ("8Kbit", 1000), ("10 Mbit", 1_250_000), ("2MB", 2 << 20)] {
            let (config, _) = load_text(&format!("[Global]\nChunk-Bandwidth-Limit={text}\n"), &[]).expect(text);
            assert_eq!(config.chunk_bytes_per_s, bytes, "{text}");
        }
    }

    #[test]
    fn parameters_of_others_are_accepted_and_unknown_ones_warned_about() {
        let text = "[Global]\nRemote-Indexers=net:127.0.0.1:9404\nDatastore-Prot=1\n[Storage-Well \"x\"]\nTags=a\n[Odd]\na=1\n";
        let (_, warnings) = load_text(text, &[]).expect("loads");
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].0.contains("line 3") && warnings[0].0.contains("did you mean Datastore-Port?"));
        assert!(warnings[1].0.contains("[Odd]"));
    }

    #[test]
    fn overlays_come_after_the_file_in_order() {
        let temp = tempfile::tempdir().expect("temp dir");
        let file = temp.path().join("gravwell.conf");
        std::fs::write(&file, "[Global]\nDatastore-Port=1\nDatastore-Server-Name=a\n").expect("writes");
        let overlay = temp.path().join("gravwell.conf.d");
        std::fs::create_dir(&overlay).expect("creates");
        std::fs::write(overlay.join("20.conf"), "[Global]\nDatastore-Port=3\n").expect("writes");
        std::fs::write(overlay.join("10.conf"), "[Global]\nDatastore-Port=2\nDatastore-Server-Name=b\n")
            .expect("writes");
        std::fs::write(overlay.join("30.txt"), "nonsense").expect("writes");
        let (config, _): (DatastoreConfig, _) = load_with(Some(&file), &|_| None).expect("loads");
        assert_eq!((config.port, config.server_names), (3, vec!["a".to_owned(), "b".to_owned()]));
        std::fs::write(overlay.join("40.conf"), "nonsense").expect("writes");
        assert!(load_with::<DatastoreConfig>(Some(&file), &|_| None).expect_err("bad overlay").0.contains("40.conf"));
    }

    #[test]
    fn a_variable_may_name_a_file() {
        let temp = tempfile::tempdir().expect("temp dir");
        let secret = temp.path().join("port");
        std::fs::write(&secret, "4321\nrest\n").expect("writes");
        let name = secret.to_str().expect("text");
        let (config, _) = load_text("[Global]\n", &[("GRAVWELL_DATASTORE_LISTEN_PORT_FILE", name)]).expect("loads");
        assert_eq!(config.port, 4321);
    }
}
