//! The datastore process, shared by `gravwell_datastore` and the tools that start one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinSet;

use gravwell_config::datastore::{DatastoreConfig, Recovery};
use gravwell_config::{ConfigError, Warning};
use gravwell_datastore::{Datastore, without_log};
use gravwell_runtime::telemetry::notify;
use gravwell_transport::local::SOCKET;

use super::RunError;
use super::logging::{self, Level};
use super::monitor::Monitor;
use super::service::{self, Service, Signals};
use super::signals::stop_signal;
use crate::backups;

/// Store the operation log of a fleet of webservers and serve it over QUIC.
///
/// No configuration file is required: --data-dir and --listen are enough. Flags take precedence over the file. If
/// --data-dir or --config is not given, GRAVWELL_DATA_DIR or GRAVWELL_CONFIG is used.
#[derive(Clone, Debug, clap::Args)]
pub struct DatastoreArgs {
    /// Configuration file; files in `FILE.d/*.conf` override its settings.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// UDP address to listen on [default: all addresses, port 9405].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Host name or address at which members reach this datastore; may be repeated.
    #[arg(long = "advertise", value_name = "HOST")]
    pub advertise: Vec<String>,
    /// Address to serve /metrics and lists of webservers on [default: none].
    ///
    /// The lists of webservers are served at /traefik and /prometheus.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of log lines: text or json.
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: logging::LogFormat,
    /// Number of history entries that compaction keeps.
    #[arg(long, value_name = "N")]
    pub history_ops: Option<u64>,
    /// Hours after which a silent member no longer pins the compaction floor.
    #[arg(long, value_name = "HOURS")]
    pub member_retention_hours: Option<u64>,
    /// Reject writes below this much free disk space, in MiB.
    #[arg(long, value_name = "MIB")]
    pub min_free_mb: Option<u64>,
    /// Size of a log segment in MiB.
    #[arg(long, value_name = "MIB")]
    pub segment_mb: Option<u64>,
    /// Maximum key length in bytes.
    #[arg(long, value_name = "BYTES")]
    pub max_key_bytes: Option<usize>,
    /// Maximum size of an inline value in KiB.
    #[arg(long, value_name = "KIB")]
    pub max_value_kb: Option<usize>,
    /// Maximum size of a transaction in KiB.
    #[arg(long, value_name = "KIB")]
    pub max_txn_kb: Option<usize>,
    /// Behavior without a log: auto, wait or off.
    ///
    /// auto: reject writes while members know of an earlier log. wait: wait for a recovery. off: start a new log.
    #[arg(long, value_name = "MODE")]
    pub recovery: Option<Recovery>,
    /// Back up continuously to this directory or S3 bucket.
    #[arg(long, value_name = "DIR|URL")]
    pub archive: Option<String>,
    /// Data directory; overrides the configuration file.
    #[arg(skip)]
    pub data_dir: Option<PathBuf>,
}

impl DatastoreArgs {
    fn apply(self, config: &mut DatastoreConfig) {
        fn set<T>(to: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *to = value;
            }
        }
        set(&mut config.data_dir, self.data_dir);
        if let Some(listen) = self.listen {
            (config.listen, config.port) = (Some(listen.ip()), listen.port());
        }
        config.server_names.extend(self.advertise);
        if self.metrics.is_some() {
            config.metrics = self.metrics;
        }
        set(&mut config.log_level, self.log_level);
        set(&mut config.history_ops, self.history_ops);
        set(&mut config.retention_hours, self.member_retention_hours);
        set(&mut config.min_free_bytes, self.min_free_mb.map(|mb| mb << 20));
        set(&mut config.segment_bytes, self.segment_mb.map(|mb| mb << 20));
        set(&mut config.key_bytes_max, self.max_key_bytes);
        set(&mut config.value_bytes_max, self.max_value_kb.map(|kb| kb << 10));
        set(&mut config.txn_bytes_max, self.max_txn_kb.map(|kb| kb << 10));
        set(&mut config.recovery, self.recovery);
        if self.archive.is_some() {
            config.archive = self.archive;
        }
    }
}

/// Serves the local socket and reports that the datastore is waiting for a log. A missing directory is retried, because
/// it may be created later, for example by a mount.
async fn keep_saying(dir: &Path, what: &str, remedy: &str) -> Infallible {
    loop {
        let Err(error) = without_log::say(dir, what, remedy).await;
        tracing::debug!(%error, "failed to serve the local socket");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits, if configured, until a recovery or a restore has created a log. Returns `false` when the process must stop.
async fn wait_for_log(config: &DatastoreConfig) -> bool {
    let has_log = || config.data_dir.join(gravwell_log::repair::LOG).exists();
    if config.recovery != Recovery::Wait || has_log() {
        return true;
    }
    let dir = config.data_dir.display();
    let what = format!("no log in {dir} and Datastore-Recovery=wait: waiting for a log, serving nothing");
    let remedy = format!(
        "rebuild the log from members with `gravwell-logctl --data-dir {dir} recover`, or `restore` a backup, and the \
         datastore starts automatically; to start with an empty log, use --recovery off"
    );
    tracing::warn!(remedy, "{what}");
    notify::ready(&format!("{what}: {remedy}"));
    let mut stop = std::pin::pin!(stop_signal());
    let mut saying = std::pin::pin!(keep_saying(&config.data_dir, &what, &remedy));
    let has_log = loop {
        tokio::select! {
            () = &mut stop => break false,
            never = &mut saying => match never {},
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                notify::watchdog();
                if has_log() {
                    break true;
                }
            }
        }
    };
    if !has_log {
        let _ = std::fs::remove_file(config.data_dir.join(SOCKET));
    }
    has_log
}

fn settings(args: &DatastoreArgs) -> Result<(DatastoreConfig, Vec<Warning>), ConfigError> {
    let (mut config, warnings) = gravwell_config::load(args.config.as_deref())?;
    args.clone().apply(&mut config);
    config.check()?;
    Ok((config, warnings))
}

/// Running datastore.
struct Running {
    datastore: Datastore,
    /// Continuous backup.
    archiving: JoinSet<()>,
    args: DatastoreArgs,
    level: Level,
}

impl Service for Running {
    type Event = ();

    fn summary(&self) -> String {
        self.datastore.summary()
    }

    fn measure(&self) {
        self.datastore.measure();
    }

    async fn is_alive(&self, within: Duration) -> bool {
        self.datastore.is_alive(within).await
    }

    /// Re-reads the log level and the names in the datastore's certificate; other settings need a restart.
    fn reload(&self) {
        let (config, warnings) = match settings(&self.args) {
            Ok(read) => read,
            Err(error) => return tracing::error!(%error, "configuration reload failed; keeping the old one"),
        };
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.level.set(&config.log_level);
        match self.datastore.renew_certificate(&config.server_names) {
            Ok(()) => tracing::info!(level = config.log_level, "configuration reloaded"),
            Err(error) => tracing::error!(error, "failed to renew certificate"),
        }
    }

    /// Waits for the end of the continuous backup.
    async fn event(&mut self) {
        if self.archiving.join_next().await.is_none() {
            std::future::pending().await
        }
    }

    async fn handle(self, (): ()) -> Result<Running, RunError> {
        Err(RunError::Ended("archive"))
    }

    async fn stop(mut self) {
        self.archiving.abort_all();
        self.datastore.stop().await;
    }
}

/// Runs a datastore until a stop signal arrives.
///
/// # Errors
/// If the configuration is invalid, or the datastore or its metrics endpoint cannot start or fails.
pub async fn run(args: DatastoreArgs) -> Result<(), RunError> {
    let mut signals = Signals::listen();
    let (config, warnings) = settings(&args)?;
    let level = logging::start(&config.log_level, args.log_format);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = config.metrics;
    if !wait_for_log(&config).await {
        return Ok(());
    }
    let archive = config.archive.clone().map(|place| (config.clone(), place));
    let datastore = signals.unless_stopped(Datastore::start(config)).await?;
    let monitor = Monitor::start_if(metrics, Some(datastore.roster())).await?;
    datastore.measure();
    tracing::info!(address = %datastore.address(), "{}", datastore.summary());
    let mut archiving = JoinSet::new();
    if let Some((config, place)) = archive {
        archiving.spawn(backups::create::archive(config, place, datastore.archive()));
    }
    service::run(Running { datastore, archiving, args, level }, signals, monitor).await
}
