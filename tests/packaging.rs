//! Checks that the files around the programs agree with them: settings, metrics, dashboard, alerts, packages.
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_config::webserver::WebserverConfig;
use gravwell_config::{Configured, load_with, parameters};
use gravwell_runtime::telemetry::metrics::{MetricKind, TABLE};

/// Returns the root of the repository. Tests run in the folder of their package, which is another one.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the root")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// Returns the names of metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let names =
        words.filter(|word| word.starts_with("gravwell_") && !word.ends_with("store") && !word.ends_with("server"));
    names.map(str::to_owned).collect()
}

/// Returns whether Prometheus knows a metric of this name: histograms have several series.
fn is_known(name: &str) -> bool {
    TABLE.iter().any(|(known, kind, ..)| match kind {
        MetricKind::Histogram => ["_bucket", "_sum", "_count"].iter().any(|part| name == format!("{known}{part}")),
        MetricKind::Counter | MetricKind::Gauge => name == *known,
    })
}

#[test]
fn the_guide_lists_every_metric() {
    let guide = read("docs/operating.md");
    let (_, section) = guide.split_once("## Metrics").expect("the section");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `gravwell_")).collect();
    let wanted = TABLE.iter().map(|(name, kind, unit, help)| {
        let (kind, unit) = (format!("{kind:?}").to_lowercase(), format!("{unit:?}").to_lowercase());
        format!("| `{name}` | {kind} | {unit} | {help} |")
    });
    assert_eq!(rows, wanted.collect::<Vec<_>>());
}

#[test]
fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    for file in ["packaging/monitoring/alerts.yml", "packaging/monitoring/dashboard.json"] {
        let text = read(file);
        let expressions = text.lines().filter(|line| line.contains("expr"));
        let names: BTreeSet<String> = expressions.flat_map(metrics_in).collect();
        assert!(names.len() >= 8, "{file}: {names:?}");
        for name in &names {
            assert!(is_known(name), "{file}: {name}");
        }
        if file.ends_with("json") {
            let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let shown: Vec<&str> = TABLE
                .iter()
                .map(|(name, ..)| *name)
                .filter(|name| !names.iter().any(|shown| shown.starts_with(name)))
                .collect();
            assert!(shown.is_empty(), "the dashboard does not show {shown:?}");
            assert!(dashboard["panels"].as_array().expect("panels").len() > 10);
        }
    }
    let alerts = read("packaging/monitoring/alerts.yml");
    let (rules, actions) = (alerts.matches("- alert:").count(), alerts.matches("action:").count());
    assert!(rules > 5 && rules == actions, "every alert has an action: {rules}, {actions}");
}

/// Returns the known parameters in a file. Parameters of other Gravwell processes are left to their own documentation.
fn settings_of(file: &str) -> BTreeSet<String> {
    let lines = file.lines().map(|line| line.trim_start_matches('#'));
    let names = lines.filter_map(|line| line.split_once('=')).map(|(name, _)| name.trim().to_owned());
    names.filter(|name| !name.contains(' ') && parameters::is_known(name)).collect()
}

#[test]
fn the_configuration_names_every_parameter_with_its_default() {
    let file = read("packaging/gravwell.conf");
    let named = settings_of(&file);
    for parameter in parameters::DATASTORE.iter().chain(parameters::WEBSERVER) {
        let is_refused = parameter.starts_with("Datastore-Insecure");
        assert!(is_refused || named.contains(*parameter), "{parameter} is not in gravwell.conf");
    }
    // With its commented defaults enabled or not, the file sets the defaults.
    let temp = tempfile::tempdir().expect("temp dir");
    let shown: String = file
        .lines()
        .map(|line| {
            let setting = line.trim_start_matches('#');
            let is_default = line.starts_with('#') && !line.starts_with("# ") && !setting.contains("example");
            format!("{}\n", if is_default { setting } else { line })
        })
        .collect();
    for text in [file, shown] {
        let path = temp.path().join("gravwell.conf");
        std::fs::write(&path, text).expect("writes");
        let (datastore, warnings) = load_with::<DatastoreConfig>(Some(&path), &|_| None).expect("loads");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(datastore, DatastoreConfig::defaults());
        let (webserver, warnings) = load_with::<WebserverConfig>(Some(&path), &|_| None).expect("loads");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(webserver, WebserverConfig::defaults());
    }
}

#[test]
fn the_guide_states_the_exposure_level_of_the_units() {
    let guide = read("docs/operating.md");
    for unit in ["datastore", "webserver", "balancer"] {
        assert!(guide.contains(&format!("| `gravwell_{unit}.service` |")), "{unit}");
    }
}

#[test]
fn units_bound_memory_and_tasks() {
    for unit in ["datastore", "webserver", "backup", "balancer"] {
        let text = read(&format!("packaging/gravwell_{unit}.service"));
        let value = |name: &str| {
            let setting = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let digits = setting.map(|value| value.trim_end_matches(['%', 'M']));
            digits.and_then(|digits| digits.parse::<u64>().ok()).unwrap_or_else(|| panic!("{unit}: {name}"))
        };
        assert!(value("MemoryHigh") < value("MemoryMax"), "{unit}");
        let filters = WebserverConfig::defaults().search_filters_max as u64;
        assert!(unit != "webserver" || value("TasksMax") > 512 + 2 * filters, "{unit}");
        assert!(value("TasksMax") >= 256, "{unit}");
    }
}

#[test]
fn the_bill_of_materials_is_what_the_lock_file_has_and_always_the_same() {
    let bill = || {
        let mut command = std::process::Command::new("python3");
        command.arg(root().join("packaging/sbom.py")).args(["--version", "1.2.3~x"]);
        command.output().ok().map(|output| {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).expect("text")
        })
    };
    let Some(text) = bill() else {
        assert!(std::env::var("GRAVWELL_TOOLS").is_err(), "python3 is missing");
        return eprintln!("SKIPPED: python3 is not installed");
    };
    assert_eq!(bill().as_ref(), Some(&text));
    assert!(!text.contains(env!("CARGO_MANIFEST_DIR").trim_end_matches("src/ctl")), "no path of the build machine");
    let bill: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((bill["bomFormat"].as_str(), bill["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    assert_eq!(bill["metadata"]["component"]["version"], "1.2.3~x");
    let lock = read("Cargo.lock");
    let components = bill["components"].as_array().expect("a list");
    let mut scopes = std::collections::BTreeMap::new();
    for component in components {
        let field = |name: &str| component[name].as_str().unwrap_or_else(|| panic!("{name}: {component}"));
        let (name, version) = (field("name"), field("version"));
        let checksum = component["hashes"][0]["content"].as_str().expect("a checksum");
        let known = lock.split("[[package]]").any(|entry| {
            [format!("name = \"{name}\""), format!("version = \"{version}\""), format!("checksum = \"{checksum}\"")]
                .iter()
                .all(|line| entry.lines().any(|found| found == line))
        });
        assert!(known, "{name} {version} is not in Cargo.lock");
        assert!(component["licenses"][0]["expression"].as_str().is_some_and(|text| !text.is_empty()), "{component}");
        scopes.insert(name.to_owned(), field("scope").to_owned());
    }
    for linked in ["fjall", "quinn", "rustls", "ring", "jaq-core", "landlock", "seccompiler"] {
        assert_eq!(scopes.get(linked).map(String::as_str), Some("required"), "{linked}");
    }
    assert_eq!(scopes.get("serde_derive").map(String::as_str), Some("excluded"));
    assert!(
        !scopes.contains_key("proptest") && !scopes.keys().any(|name| name.starts_with("gravwell")),
        "test dependencies are left out"
    );
    let referred = bill["dependencies"].as_array().expect("a list");
    assert_eq!(referred.len(), components.len() + 1);
}

/// Uses the official tool of Prometheus if it is installed.
#[test]
fn rules_and_configuration_are_what_prometheus_reads() {
    let monitoring = root().join("packaging/monitoring");
    let checks = [vec!["check", "rules", "alerts.yml"], vec!["check", "config", "--syntax-only", "prometheus.yml"]];
    for arguments in checks {
        let command = std::process::Command::new("promtool").args(&arguments).current_dir(&monitoring).output();
        let Ok(output) = command else {
            return eprintln!("SKIPPED: promtool is not installed (package prometheus)");
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
