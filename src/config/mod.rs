//! Configuration of the processes: `gravwell.conf`, its overlays, and the environment.
//!
//! A value in the file wins over the environment; flags, which the command line applies afterwards, win over both.

pub mod datastore;
pub mod parameters;
pub mod syntax;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use datastore::DatastoreConfig;
use syntax::{Place, Setting};

/// A configuration that cannot be used: file, line, column, what is wrong, what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Something that is probably a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where the configuration is looked for when none is named.
pub const DEFAULT_FILE: &str = "/opt/gravwell/etc/gravwell.conf";
/// Where data goes unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/opt/gravwell/datastore";

struct Source {
    file: PathBuf,
    setting: Setting,
}

impl Source {
    fn wrong(&self, what: impl fmt::Display) -> ConfigError {
        ConfigError(format!("{}, {}: {}: {what}", self.file.display(), self.setting.place, self.setting.name))
    }

    fn text(&self) -> Result<&str, ConfigError> {
        self.setting.value.as_deref().ok_or_else(|| self.wrong("a value is missing: write `name=value`"))
    }
}

/// Reads the configuration of a datastore; returns it with warnings. Without `path` the default file is read when it
/// exists.
///
/// # Errors
/// When a file cannot be read or holds a mistake.
pub fn load(path: Option<&Path>) -> Result<(DatastoreConfig, Vec<Warning>), ConfigError> {
    load_with(path, &|name| std::env::var(name).ok())
}

/// [`load`] with an environment of the caller's.
///
/// # Errors
/// See [`load`].
pub fn load_with(
    path: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<(DatastoreConfig, Vec<Warning>), ConfigError> {
    let default = Path::new(DEFAULT_FILE);
    let file = path.or_else(|| default.exists().then_some(default));
    let settings = file.map_or_else(|| Ok(Vec::new()), read_all)?;
    let mut config = DatastoreConfig::for_dir(Path::new(DEFAULT_DATA_DIR));
    let warnings = take_in(&settings, &mut config)?;
    take_environment(&settings, environment, &mut config)?;
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
        return Err(named(&format!("the file has {size} bytes; {} are allowed", syntax::FILE_BYTES_MAX)));
    }
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    let settings = syntax::parse(&text).map_err(|error| ConfigError(format!("{}, {error}", file.display())))?;
    Ok(settings.into_iter().map(|setting| Source { file: file.to_owned(), setting }).collect())
}

fn take_in(settings: &[Source], config: &mut DatastoreConfig) -> Result<Vec<Warning>, ConfigError> {
    let mut warnings = Vec::new();
    for source in settings {
        let Setting { section, name, .. } = &source.setting;
        if !section.eq_ignore_ascii_case("global") {
            if !parameters::is_foreign_section(section) {
                warnings.push(warning(source, &format!("[{section}] is not a section that is known")));
            }
            continue;
        }
        if !parameters::is_known(name) {
            let hint = parameters::closest(name).map_or_else(String::new, |known| format!("; did you mean {known}?"));
            warnings.push(warning(source, &format!("`{name}` is not a parameter that is known{hint}")));
            continue;
        }
        set(source, config)?;
    }
    Ok(warnings)
}

fn warning(source: &Source, what: &str) -> Warning {
    Warning(format!("{}, {}: {what}", source.file.display(), source.setting.place))
}

fn number(source: &Source, range: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
    let text = source.text()?;
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    };
    let number = parsed.map_err(|_| source.wrong(format!("`{text}` is not a whole number")))?;
    if range.contains(&number) {
        return Ok(number);
    }
    Err(source.wrong(format!("{number} is out of range: use {} to {}", range.start(), range.end())))
}

fn boolean(source: &Source) -> Result<bool, ConfigError> {
    let Some(text) = source.setting.value.as_deref() else { return Ok(true) };
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(true),
        "false" | "no" | "off" | "0" => Ok(false),
        _ => Err(source.wrong(format!("`{text}` is neither true nor false"))),
    }
}

fn set(source: &Source, config: &mut DatastoreConfig) -> Result<(), ConfigError> {
    const MB: u64 = 1 << 20;
    let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let mb = |range| number(source, range).map(|number| number * MB);
    match source.setting.name.to_ascii_lowercase().as_str() {
        "datastore-port" => config.port = u16::try_from(number(source, 1..=65_535)?).unwrap_or(config.port),
        "datastore-listen-address" => {
            let text = source.text()?;
            let address: Result<IpAddr, _> = text.parse();
            let wrong = |_| source.wrong(format!("`{text}` is not an IP address; the port is Datastore-Port"));
            config.listen = if text.is_empty() { None } else { Some(address.map_err(wrong)?) };
        }
        "datastore-update-interval" => config.update_interval_s = number(source, 1..=3600)?,
        "datastore-data-dir" => config.data_dir = PathBuf::from(source.text()?),
        "datastore-server-name" => match source.setting.value.as_deref() {
            None => config.server_names.clear(),
            Some(name) => config.server_names.push(name.to_owned()),
        },
        "datastore-metrics-address" => {
            let text = source.text()?;
            let address: Result<SocketAddr, _> = text.parse();
            let wrong = |_| source.wrong(format!("`{text}` is not an address with a port, such as 127.0.0.1:9407"));
            config.metrics = if text.is_empty() { None } else { Some(address.map_err(wrong)?) };
        }
        "datastore-log-segment-mb" => config.segment_bytes = mb(1..=4096)?,
        "datastore-log-history-ops" => config.history_ops = number(source, 0..=u64::MAX)?,
        "datastore-log-history-hours" => config.history_hours = number(source, 0..=1_000_000)?,
        "datastore-compact-garbage-percent" => {
            config.compact_garbage_percent = u8::try_from(number(source, 1..=100)?).unwrap_or(50);
        }
        "datastore-compact-min-mb" => config.compact_min_bytes = mb(1..=1 << 30)?,
        "datastore-member-retention-hours" => config.retention_hours = number(source, 0..=1_000_000)?,
        "datastore-min-free-mb" => config.min_free_bytes = mb(0..=1 << 30)?,
        "datastore-reserve-mb" => config.reserve_bytes = mb(0..=1 << 20)?,
        "datastore-cache-mb" => config.cache_bytes = mb(1..=1 << 20)?,
        "datastore-max-key-bytes" => config.key_bytes_max = size(number(source, 1..=1 << 20)?),
        "datastore-max-value-kb" => config.value_bytes_max = size(number(source, 1..=1 << 20)? << 10),
        "datastore-max-txn-kb" => config.txn_bytes_max = size(number(source, 1..=1 << 20)? << 10),
        "datastore-max-subscribers" => config.subscribers_max = number(source, 1..=1 << 20)?,
        "datastore-certificate-days" => {
            config.certificate_days = u32::try_from(number(source, 1..=36_500)?).unwrap_or(90);
        }
        "datastore-insecure-disable-tls" | "datastore-insecure-skip-tls-verify" => refuse_without_tls(source)?,
        "log-level" => {
            let text = source.text()?.to_ascii_lowercase();
            let known = ["error", "warn", "info", "debug", "trace"].contains(&text.as_str());
            let wrong = || source.wrong(format!("`{text}` is not a level: use ERROR, WARN, INFO, DEBUG or TRACE"));
            config.log_level = if known { text } else { return Err(wrong()) };
        }
        _ => {}
    }
    Ok(())
}

fn refuse_without_tls(source: &Source) -> Result<(), ConfigError> {
    if !boolean(source)? {
        return Ok(());
    }
    Err(source.wrong(
        "there is no mode without TLS: remove this line; members join with `gravwell-logctl enroll` and `join`, and \
         need no certificate files",
    ))
}

/// Variables count only where the file says nothing; `NAME_FILE` names a file whose first line is the value.
fn take_environment(
    settings: &[Source],
    environment: &dyn Fn(&str) -> Option<String>,
    config: &mut DatastoreConfig,
) -> Result<(), ConfigError> {
    let variables = [
        ("GRAVWELL_DATASTORE_LISTEN_ADDRESS", "Datastore-Listen-Address"),
        ("GRAVWELL_DATASTORE_LISTEN_PORT", "Datastore-Port"),
    ];
    for (variable, parameter) in variables {
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
            name: parameter.into(),
            value: Some(value.trim().to_owned()),
            place: Place { line: 1, column: 1 },
        };
        set(&Source { file: PathBuf::from(format!("environment variable {variable}")), setting }, config)?;
    }
    Ok(())
}

fn first_line(variable: &str, file: &Path) -> Result<String, ConfigError> {
    let named = |what: &dyn fmt::Display| ConfigError(format!("{variable}_FILE: {}: {what}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(named(&"the file is empty: put the value on its first line")),
    }
}

#[cfg(test)]
mod tests {
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
            ("[Global]\nDatastore-Port=x\n", "line 2, column 1: Datastore-Port: `x` is not a whole number"),
            ("[Global]\nDatastore-Port=70000\n", "out of range: use 1 to 65535"),
            ("[Global]\n\nDatastore-Insecure-Disable-TLS=true\n", "line 3, column 1"),
            ("[Global]\nLog-Level=loud\n", "use ERROR, WARN"),
            ("[Global]\nDatastore-Listen-Address=here\n", "is not an IP address"),
        ];
        for (text, what) in cases {
            let error = load_text(text, &[]).expect_err(text).to_string();
            assert!(error.contains(what) && error.contains("gravwell.conf"), "{text}: {error}");
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
        let (config, _) = load_with(Some(&file), &|_| None).expect("loads");
        assert_eq!((config.port, config.server_names), (3, vec!["a".to_owned(), "b".to_owned()]));
        std::fs::write(overlay.join("40.conf"), "nonsense").expect("writes");
        assert!(load_with(Some(&file), &|_| None).expect_err("bad overlay").0.contains("40.conf"));
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
