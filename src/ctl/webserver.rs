//! The webserver's process, shared by `gravwell_webserver` and the tools that start one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::webserver::WebserverConfig;
use crate::telemetry::{exporter, logging, notify};
use crate::web::server::{Webserver, WebserverError};

use super::datastore::stop_signal;

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
}

/// Serve users, groups, dashboards, preferences, search histories and resources from a local copy of the log.
///
/// Without a datastore the webserver keeps a log of its own. With one, join first:
/// `gravwell-logctl --data-dir DATASTORE enroll NAME`, then `gravwell-logctl --data-dir DIR join TOKEN`. Flags win over the
/// configuration file, the file over the environment.
#[derive(Clone, Debug, clap::Args)]
pub struct WebserverArgs {
    /// Configuration file, with `FILE.d/*.conf` laid over it.
    #[arg(long, value_name = "FILE")]
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
    let (mut config, warnings) = crate::config::load::<WebserverConfig>(args.config.as_deref())?;
    let format = args.log_format;
    args.apply(&mut config);
    config.check()?;
    logging::start(&config.log_level, format);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = config.metrics;
    let webserver = Webserver::start(config).await?;
    if let Some(address) = metrics {
        exporter::start(address).map_err(|error| RunError::Metrics { address, reason: error.to_string() })?;
    }
    tracing::info!("{}", webserver.summary());
    notify::ready(&webserver.summary());
    let period = notify::watchdog_period().unwrap_or(Duration::from_secs(5)).min(Duration::from_secs(5));
    let mut stop = std::pin::pin!(stop_signal());
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(period) => {
                notify::watchdog();
                notify::status(&webserver.summary());
            }
        }
    }
    notify::stopping();
    tracing::info!("stopping");
    webserver.stop().await;
    Ok(())
}
