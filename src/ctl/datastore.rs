//! The datastore's process, shared by `gravwell_datastore` and the tools that start one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::datastore::{DatastoreConfig, Recovery};
use crate::config::{ConfigError, Warning};
use crate::datastore::{Datastore, DatastoreError, without_log};
use crate::telemetry::{logging, notify, output};
use crate::transport::local::SOCKET;

use super::hangup::Hangup;
use super::monitor::{self, Monitor};

/// The service manager hears of the process at least this often.
pub(super) const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Why the process ends badly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The datastore.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// The Prometheus endpoint.
    #[error("metrics on {address}: {reason}; choose another address with --metrics, or none")]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// A part that does not end by itself.
    #[error("its part `{0}` has ended: look at its log for the reason, and start the process again")]
    Ended(&'static str),
}

impl RunError {
    /// Exit code of the process: 3 for damage, 1 for everything else.
    #[must_use]
    pub fn exit(&self) -> u8 {
        match self {
            RunError::Datastore(error) if error.is_damage() => 3,
            _ => 1,
        }
    }
}

/// Keep the operation log of a fleet of webservers, and serve it over QUIC.
///
/// Without a configuration file everything works by flags alone: --data-dir and --listen are enough. Flags win over
/// the file; GRAVWELL_DATA_DIR and GRAVWELL_CONFIG stand for the flags of these names where they are not given.
#[derive(Clone, Debug, clap::Args)]
pub struct DatastoreArgs {
    /// Configuration file, with `FILE.d/*.conf` laid over it.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen (UDP) [default: all addresses, port 9405].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Name or address under which members reach this datastore; may be repeated.
    #[arg(long = "advertise", value_name = "HOST")]
    pub advertise: Vec<String>,
    /// Serve /metrics, and /traefik and /prometheus with the list of webservers, here [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of log lines: text or json.
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: logging::LogFormat,
    /// Entries of history that compaction keeps.
    #[arg(long, value_name = "N")]
    pub history_ops: Option<u64>,
    /// Hours after which a silent member no longer holds compaction back.
    #[arg(long, value_name = "HOURS")]
    pub member_retention_hours: Option<u64>,
    /// Refuse writes below this much free disk space, in MiB.
    #[arg(long, value_name = "MIB")]
    pub min_free_mb: Option<u64>,
    /// Size of a log segment, in MiB.
    #[arg(long, value_name = "MIB")]
    pub segment_mb: Option<u64>,
    /// Longest key, in bytes.
    #[arg(long, value_name = "BYTES")]
    pub max_key_bytes: Option<usize>,
    /// Largest inline value, in KiB.
    #[arg(long, value_name = "KIB")]
    pub max_value_kb: Option<usize>,
    /// Largest transaction, in KiB.
    #[arg(long, value_name = "KIB")]
    pub max_txn_kb: Option<usize>,
    /// What to do without a log: refuse writes while members know of one (auto), wait for a recovery (wait), or begin anew
    /// (off).
    #[arg(long, value_name = "MODE")]
    pub recovery: Option<Recovery>,
    /// Make backups continuously into this directory or S3 bucket.
    #[arg(long, value_name = "DIR|URL")]
    pub archive: Option<String>,
    /// Data directory.
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

/// Waits for SIGTERM or SIGINT; from the call on, neither ends the process by itself.
pub fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| {
        let signal = signal(kind).ok();
        async move {
            match signal {
                Some(mut signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
    };
    let (terminate, interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    async move {
        tokio::select! {
            () = terminate => {}
            () = interrupt => {}
        }
    }
}

/// Says at the local socket that the datastore waits. A directory that is not there may be made, as by a mount.
async fn keep_saying(dir: &Path, what: &str, remedy: &str) -> Infallible {
    loop {
        let Err(error) = without_log::say(dir, what, remedy).await;
        tracing::debug!(%error, "the local socket");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits, when the configuration wants it, until a recovery or a restore has made a log. False: told to stop.
async fn wait_for_log(config: &DatastoreConfig) -> bool {
    let has_log = || config.data_dir.join(crate::log::repair::LOG).exists();
    if config.recovery != Recovery::Wait || has_log() {
        return true;
    }
    let dir = config.data_dir.display();
    let what = format!("there is no log in {dir}, and Datastore-Recovery=wait: nothing is served, and no log is begun");
    let remedy = format!(
        "fetch the log from the members, `gravwell-logctl --data-dir {dir} recover`, or `restore` it from a backup: then it \
         starts by itself; to begin with an empty one, start with --recovery off"
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

/// Runs a datastore until it is told to stop.
///
/// # Errors
/// When the configuration is wrong or the datastore cannot start.
pub async fn run(args: DatastoreArgs) -> Result<(), RunError> {
    let mut hangup = Hangup::listen();
    let mut stop = std::pin::pin!(stop_signal());
    let (config, warnings) = settings(&args)?;
    let level = logging::start(&config.log_level, args.log_format);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = config.metrics;
    if !wait_for_log(&config).await {
        return Ok(());
    }
    let archive = config.archive.clone().map(|place| (config.clone(), place));
    let datastore = tokio::select! {
        started = Datastore::start(config) => started?,
        () = &mut stop => stopped_while_starting(),
    };
    let mut monitor = match metrics {
        Some(address) => {
            let started = monitor::start(address, Some(datastore.roster())).await;
            Some(started.map_err(|reason| RunError::Metrics { address, reason })?)
        }
        None => None,
    };
    datastore.measure();
    tracing::info!(address = %datastore.address(), "{}", datastore.summary());
    notify::ready(&datastore.summary());
    let mut archiving = tokio::task::JoinSet::new();
    if let Some((config, place)) = archive {
        archiving.spawn(super::backup::archive(config, place));
    }
    let period = notify::watchdog_period().unwrap_or(REPORT_EVERY).min(REPORT_EVERY);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = Monitor::ended(&mut monitor) => return Err(RunError::Ended("listener for metrics")),
            Some(_) = archiving.join_next() => return Err(RunError::Ended("archive")),
            () = hangup.heard() => {
                notify::reloading();
                reload(&args, &level, &datastore);
                notify::ready(&datastore.summary());
            }
            () = tokio::time::sleep(period) => {
                // A process that cannot commit any more is worth restarting.
                if datastore.is_alive(period).await {
                    notify::watchdog();
                }
                notify::status(&datastore.summary());
                datastore.measure();
            }
        }
    }
    notify::stopping();
    tracing::info!("stopping");
    archiving.abort_all();
    datastore.stop().await;
    Ok(())
}

/// Ends the process while it opens its directory, which may take long and may be left at any point, as a kill does.
pub(super) fn stopped_while_starting() -> ! {
    notify::stopping();
    tracing::info!("stopped while starting; the next start begins it again");
    output::exit(0);
}

fn settings(args: &DatastoreArgs) -> Result<(DatastoreConfig, Vec<Warning>), ConfigError> {
    let (mut config, warnings) = crate::config::load(args.config.as_deref())?;
    args.clone().apply(&mut config);
    config.check()?;
    Ok((config, warnings))
}

/// SIGHUP: the level of logging and the names in the datastore's certificate are taken anew; everything else needs a restart.
fn reload(args: &DatastoreArgs, level: &logging::Level, datastore: &Datastore) {
    let (config, warnings) = match settings(args) {
        Ok(read) => read,
        Err(error) => return tracing::error!(%error, "the configuration cannot be used; everything stays as it was"),
    };
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    level.set(&config.log_level);
    match datastore.renew_certificate(&config.server_names) {
        Ok(()) => tracing::info!(level = config.log_level, "the configuration was read again"),
        Err(error) => tracing::error!(error, "the datastore's certificate was not renewed"),
    }
}
