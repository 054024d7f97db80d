//! `debug-bundle`: diagnostics in one tar file, without any secret.
//!
//! Every entry is listed explicitly; nothing is copied as a whole. Settings are included with their values only if
//! these cannot be secret; log lines that mention passwords, tokens or keys are left out; objects are not included.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_config::webserver::WebserverConfig;
use gravwell_config::{self as config, DEFAULT_FILE, parameters, syntax};
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::json_lines::timestamp;

use crate::checks;
use crate::client::output::Output;
use crate::client::{self, Client};
use crate::error::{CtlError, CtlResult};

/// Collect diagnostics into a tar file.
///
/// The file contains status, settings, a list of files, findings, metrics and logs. It contains no object, key,
/// password or token: settings that may be secret are listed without their values, and log lines that mention
/// passwords, tokens or keys are left out.
#[derive(Debug, clap::Args)]
pub struct DebugBundle {
    /// File to create [default: gravwell-debug-TIME.tar].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Configuration file [default: /opt/gravwell/etc/gravwell.conf].
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log file to include in addition to the journal; may be repeated.
    #[arg(long = "log", value_name = "FILE")]
    pub logs: Vec<PathBuf>,
}

/// Maximum bytes of one log, taken from its end.
const LOG_BYTES_MAX: u64 = 4 << 20;
/// Maximum number of listed files of the data directory.
const FILES_MAX: usize = 20_000;
/// Number of journal lines for each service.
const JOURNAL_LINES: &str = "5000";
const UNITS: [&str; 3] = ["gravwell_datastore", "gravwell_webserver", "gravwell_balancer"];
/// Log lines that contain one of these words are left out.
const DELICATE: [&str; 9] =
    ["password", "passwd", "secret", "token", "bearer", "cookie", "private key", "authorization", "hash"];

struct Bundle {
    tar: tar::Builder<File>,
    time_s: u64,
    names: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: &str, text: &str) -> CtlResult {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.time_s);
        let path = format!("gravwell-debug/{name}");
        self.tar.append_data(&mut header, &path, text.as_bytes()).map_err(CtlError::new)?;
        self.names.push(path);
        Ok(())
    }
}

/// Creates the bundle and prints its contents.
pub(super) async fn run(dir: &Path, json: bool, args: DebugBundle) -> CtlResult {
    let now_ms = gravwell_env::Clock::now_ms(&gravwell_env::SystemClock);
    let default = format!("gravwell-debug-{}.tar", timestamp(now_ms).replace([':', '.'], "-"));
    let output = args.output.clone().unwrap_or_else(|| PathBuf::from(default));
    let named = |error: std::io::Error| CtlError::new(format!("{}: {error}", output.display()));
    let file = File::options().create_new(true).write(true).mode(0o600).open(&output).map_err(|error| {
        let hint =
            if error.kind() == std::io::ErrorKind::AlreadyExists { "; choose another name with --output" } else { "" };
        CtlError::new(format!("{}: {error}{hint}", output.display()))
    })?;
    let mut bundle = Bundle { tar: tar::Builder::new(file), time_s: now_ms / 1000, names: Vec::new() };
    bundle.add("about.txt", &about(now_ms))?;
    bundle.add("host.txt", &host())?;
    bundle.add("settings.txt", &settings(args.config.as_deref()))?;
    bundle.add("files.txt", &files(dir))?;
    let findings = checks::examine(dir, args.config.as_deref()).await;
    bundle.add("doctor.json", &findings.text())?;
    process(dir, &mut bundle).await?;
    metrics(args.config.as_deref(), &mut bundle)?;
    for unit in UNITS {
        if let Some(text) = journal(unit) {
            bundle.add(&format!("journal-{unit}.txt"), &text)?;
        }
    }
    for (number, log) in args.logs.iter().enumerate() {
        let text = tail_of(log).map_err(|error| CtlError::new(format!("{}: {error}", log.display())))?;
        bundle.add(&format!("log-{number}.txt"), &without_secrets(&text))?;
    }
    let file = bundle.tar.into_inner().map_err(named)?;
    file.sync_all().map_err(named)?;
    let mut out = Output::new();
    if json {
        out.json(&serde_json::json!({ "file": output, "contents": bundle.names }))?;
    } else {
        bundle.names.iter().try_for_each(|name| out.line(name))?;
        out.line(&format!("written to {}; review it before you share it", output.display()))?;
    }
    out.flush()
}

fn about(now_ms: u64) -> String {
    format!(
        "Created at {} by gravwell-logctl {}.\nIt contains no objects, keys, passwords or tokens, but names of members \
         and addresses.\n",
        timestamp(now_ms),
        env!("CARGO_PKG_VERSION")
    )
}

fn host() -> String {
    let uname = rustix::system::uname();
    let part = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut text = format!("{} {} {}\n", part(uname.sysname()), part(uname.release()), part(uname.machine()));
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let _ = writeln!(text, "processors {processors}");
    let kernel = ["rmem_max", "wmem_max"].map(|name| format!("/proc/sys/net/core/{name}"));
    for file in kernel.iter().map(String::as_str).chain(["/etc/os-release", "/proc/meminfo", "/proc/loadavg"]) {
        let contents = fs::read_to_string(file).unwrap_or_else(|error| format!("{error}\n"));
        let _ = writeln!(text, "\n{file}\n{}", contents.trim_end());
    }
    text
}

/// Returns the settings as written, without the values of those that may be secret.
fn settings(file: Option<&Path>) -> String {
    let main = file.map_or_else(|| PathBuf::from(DEFAULT_FILE), Path::to_owned);
    let mut overlay = main.as_os_str().to_owned();
    overlay.push(".d");
    let mut paths: Vec<PathBuf> = fs::read_dir(overlay).into_iter().flatten().flatten().map(|e| e.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|kind| kind == "conf"));
    paths.sort();
    paths.insert(0, main);
    let mut text = String::new();
    for path in paths {
        let _ = writeln!(text, "# {}", path.display());
        let parsed = fs::read_to_string(&path).map_err(|error| error.to_string());
        match parsed.and_then(|contents| syntax::parse(&contents).map_err(|error| error.to_string())) {
            Ok(settings) => {
                for setting in settings {
                    let is_open = setting.section.eq_ignore_ascii_case("global") && parameters::is_open(&setting.name);
                    let value = if is_open { setting.value.unwrap_or_default() } else { "(left out)".into() };
                    let _ = writeln!(text, "[{}] {}={value}", setting.section, setting.name);
                }
            }
            Err(error) => drop(writeln!(text, "{error}")),
        }
    }
    text
}

fn files(dir: &Path) -> String {
    let mut text = String::from("mode owner bytes modified path\n");
    let mut waiting = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = waiting.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => {
                let _ = writeln!(text, "{}: {error}", dir.display());
                continue;
            }
        };
        for entry in entries.filter_map(Result::ok) {
            let Ok(meta) = entry.metadata() else { continue };
            let modified = timestamp(u64::try_from(meta.mtime()).unwrap_or(0).saturating_mul(1000));
            let path = entry.path();
            let _ = writeln!(text, "{:o} {} {} {modified} {}", meta.mode(), meta.uid(), meta.len(), path.display());
            if meta.is_dir() {
                waiting.push(path);
            }
            seen += 1;
            if seen >= FILES_MAX {
                text += "and more\n";
                return text;
            }
        }
    }
    text
}

/// Adds the status of the process if one runs; nothing is opened otherwise.
async fn process(dir: &Path, bundle: &mut Bundle) -> CtlResult {
    if !client::is_served(dir).await {
        return bundle.add("status.json", "{\"running\":false}\n");
    }
    let client = Client::open(dir).await?;
    let requests = [
        ("status.json", Request::Status),
        ("members.json", Request::Members),
        ("presence.json", Request::Presence),
        ("collections.json", Request::Collections),
        ("segments.json", Request::Segments),
    ];
    for (name, request) in requests {
        let text = match client.items::<Value>(&request).await {
            Ok(items) => items.iter().fold(String::new(), |text, item| text + &item.to_string() + "\n"),
            Err(error) => format!("{error}\n"),
        };
        bundle.add(name, &text)?;
    }
    client.close().await;
    Ok(())
}

fn metrics(file: Option<&Path>, bundle: &mut Bundle) -> CtlResult {
    let datastore = config::load::<DatastoreConfig>(file).ok().and_then(|(config, _)| config.metrics);
    let webserver = config::load::<WebserverConfig>(file).ok().and_then(|(config, _)| config.metrics);
    for (name, address) in [("datastore", datastore), ("webserver", webserver)] {
        let Some(address) = address else { continue };
        let text = fetch_metrics(address).unwrap_or_else(|error| format!("{address}: {error}\n"));
        bundle.add(&format!("metrics-{name}.txt"), &text)?;
    }
    Ok(())
}

fn fetch_metrics(address: SocketAddr) -> std::io::Result<String> {
    let patience = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(LOG_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned()))
}

fn journal(unit: &str) -> Option<String> {
    let unit = format!("{unit}.service");
    let arguments = ["--no-pager", "--quiet", "-o", "short-iso", "-n", JOURNAL_LINES, "-u", &unit];
    let output = Command::new("journalctl").args(arguments).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    (output.status.success() && !text.trim().is_empty()).then(|| without_secrets(&text))
}

fn tail_of(path: &Path) -> std::io::Result<String> {
    use std::io::Seek;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(std::io::SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns a log without the lines that mention sensitive data.
fn without_secrets(log: &str) -> String {
    let mut text = String::with_capacity(log.len());
    for line in log.lines() {
        let lower = line.to_lowercase();
        match DELICATE.iter().find(|word| lower.contains(**word)) {
            Some(word) => drop(writeln!(text, "(a line that mentions a {word} was left out)")),
            None => drop(writeln!(text, "{line}")),
        }
    }
    text
}
