//! The webserver's process, shared by `gravwell_webserver` and the tools that start one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::webserver::WebserverConfig;
use crate::config::{ConfigError, Warning};
use crate::telemetry::{logging, notify};
use crate::web::orders::Order;
use crate::web::server::{Webserver, WebserverError};

use super::datastore::{REPORT_EVERY, stop_signal, stopped_while_starting};
use super::hangup::Hangup;
use super::monitor::{self, Monitor};

/// Why the process ends badly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The webserver.
    #[error(transparent)]
    Webserver(#[from] WebserverError),
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
            RunError::Webserver(error) if error.is_damage() => 3,
            _ => 1,
        }
    }
}

/// Serve users, groups, dashboards, preferences, search histories and resources from a local copy of the log.
///
/// Without a datastore the webserver keeps a log of its own. With one, join first:
/// `gravwell-logctl --data-dir DATASTORE enroll NAME`, then `gravwell-logctl --data-dir DIR join TOKEN`. Flags win over the
/// configuration file; GRAVWELL_DATA_DIR and GRAVWELL_CONFIG stand for the flags of these names where they are not given.
#[derive(Clone, Debug, clap::Args)]
pub struct WebserverArgs {
    /// Configuration file, with `FILE.d/*.conf` laid over it.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen (TCP) [default: all addresses, port 443].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the datastore; may be repeated [default: as in the token with which the webserver joined].
    #[arg(long = "datastore", value_name = "ADDR:PORT")]
    pub datastores: Vec<String>,
    /// Where other webservers and load balancers reach this one.
    #[arg(long, value_name = "HOST:PORT")]
    pub external_addr: Option<String>,
    /// Where to listen to other webservers (UDP) [default: all addresses, any free port].
    #[arg(long, value_name = "ADDR:PORT")]
    pub peer_listen: Option<SocketAddr>,
    /// Certificate in PEM form [default: one is made].
    #[arg(long, value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Key of the certificate in PEM form.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Serve plain HTTP: only behind something that speaks TLS, or on loopback.
    #[arg(long)]
    pub insecure_disable_https: bool,
    /// Do not answer plain HTTP with the way to HTTPS.
    #[arg(long)]
    pub no_redirect: bool,
    /// Give the first administrator the well-known password `changeme`: for demonstrations and tests.
    #[arg(long)]
    pub default_password: bool,
    /// Prometheus endpoint [default: none].
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// error, warn, info, debug (with every request) or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of log lines: text or json.
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: logging::LogFormat,
    /// Data directory.
    #[arg(skip)]
    pub data_dir: Option<PathBuf>,
}

impl WebserverArgs {
    fn apply(self, config: &mut WebserverConfig) {
        if let Some(data_dir) = self.data_dir {
            config.data_dir = data_dir;
        }
        if let Some(listen) = self.listen {
            (config.listen, config.port) = (Some(listen.ip()), listen.port());
        }
        if let Some(listen) = self.peer_listen {
            (config.peer_listen, config.peer_port) = (Some(listen.ip()), listen.port());
        }
        if !self.datastores.is_empty() {
            config.datastores = self.datastores;
        }
        config.external_addr = self.external_addr.or(config.external_addr.take());
        if self.certificate.is_some() {
            (config.certificate, config.key) = (self.certificate, self.key);
        }
        config.plain_http |= self.insecure_disable_https;
        config.no_redirect |= self.no_redirect;
        config.default_password |= self.default_password;
        config.metrics = self.metrics.or(config.metrics);
        if let Some(level) = self.log_level {
            config.log_level = level;
        }
    }
}

/// Runs a webserver until it is told to stop.
///
/// # Errors
/// When the configuration is wrong or the webserver cannot start.
pub async fn run(args: WebserverArgs) -> Result<(), RunError> {
    let mut hangup = Hangup::listen();
    let mut stop = std::pin::pin!(stop_signal());
    let (config, warnings) = settings(&args)?;
    let level = logging::start(&config.log_level, args.log_format);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = config.metrics;
    let mut webserver = tokio::select! {
        started = Webserver::start(config) => started?,
        () = &mut stop => stopped_while_starting(),
    };
    let mut monitor = match metrics {
        Some(address) => {
            let started = monitor::start(address, None).await;
            Some(started.map_err(|reason| RunError::Metrics { address, reason })?)
        }
        None => None,
    };
    webserver.measure();
    tracing::info!("{}", webserver.summary());
    notify::ready(&webserver.summary());
    let period = notify::watchdog_period().unwrap_or(REPORT_EVERY).min(REPORT_EVERY);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = Monitor::ended(&mut monitor) => return Err(RunError::Ended("listener for metrics")),
            () = hangup.heard() => {
                notify::reloading();
                reload(&args, &level, &webserver);
                notify::ready(&webserver.summary());
            }
            order = webserver.order() => match order {
                Order::LogLevel(filter) => level.set(&filter),
                Order::Restart => webserver = restarted(&args, webserver).await?,
            },
            () = tokio::time::sleep(period) => {
                // One that cannot commit any more is worth restarting.
                if webserver.is_alive(period).await {
                    notify::watchdog();
                }
                notify::status(&webserver.summary());
                webserver.measure();
            }
        }
    }
    notify::stopping();
    tracing::info!("stopping");
    webserver.stop().await;
    Ok(())
}

/// A webserver that was stopped is given this long to let go of what it used.
const LETTING_GO: Duration = Duration::from_secs(30);

/// Ends a webserver and starts one with the configuration as it is now, within the same process. One that cannot be used
/// ends nothing.
async fn restarted(args: &WebserverArgs, webserver: Webserver) -> Result<Webserver, RunError> {
    let (config, warnings) = match settings(args) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "not restarted: the configuration cannot be used");
            return Ok(webserver);
        }
    };
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    notify::reloading();
    // The address stays the same, so that clients find it again.
    let address = webserver.address();
    webserver.stop().await;
    let listen = if config.port == 0 { (Some(address.ip()), address.port()) } else { (config.listen, config.port) };
    let config = WebserverConfig { listen: listen.0, port: listen.1, ..config };
    let webserver = started_again(config).await?;
    tracing::info!("{}", webserver.summary());
    notify::ready(&webserver.summary());
    Ok(webserver)
}

/// Starts where another webserver of this process has just ended: its last tasks may hold on to the directory a moment longer.
async fn started_again(config: WebserverConfig) -> Result<Webserver, WebserverError> {
    let begun = Instant::now();
    loop {
        match Webserver::start(config.clone()).await {
            Err(error) if error.is_in_use() && begun.elapsed() < LETTING_GO => {
                tracing::debug!(%error, "trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            started => return started,
        }
    }
}

fn settings(args: &WebserverArgs) -> Result<(WebserverConfig, Vec<Warning>), ConfigError> {
    let (mut config, warnings) = crate::config::load(args.config.as_deref())?;
    args.clone().apply(&mut config);
    config.check()?;
    Ok((config, warnings))
}

/// SIGHUP: the level of logging and the certificate's files are read anew; everything else needs a restart.
fn reload(args: &WebserverArgs, level: &logging::Level, webserver: &Webserver) {
    webserver.reload();
    match settings(args) {
        Ok((config, warnings)) => {
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            level.set(&config.log_level);
            tracing::info!(level = config.log_level, "the configuration was read again");
        }
        Err(error) => tracing::error!(%error, "the configuration cannot be used; everything stays as it was"),
    }
}
