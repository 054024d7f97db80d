//! The webserver process, shared by `gravwell_webserver` and the tools that start one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use gravwell_config::webserver::WebserverConfig;
use gravwell_config::{ConfigError, Warning};
use gravwell_runtime::telemetry::notify;
use gravwell_web::process_control::ControlRequest;
use gravwell_web::server::{Webserver, WebserverError};

use super::RunError;
use super::logging::{self, Level};
use super::monitor::Monitor;
use super::service::{self, Service, Signals};

/// Serve users, dashboards, resources and searches from a local replica of the log.
///
/// Serves users, groups, dashboards, preferences, search histories and resources. Without a datastore, the webserver
/// keeps its own log (standalone mode). With a datastore, join it first: `gravwell-logctl --data-dir DATASTORE enroll
/// NAME`, then `gravwell-logctl --data-dir DIR join TOKEN`. Flags take precedence over the configuration file. If
/// --data-dir or --config is not given, GRAVWELL_DATA_DIR or GRAVWELL_CONFIG is used.
#[derive(Clone, Debug, clap::Args)]
pub struct WebserverArgs {
    /// Configuration file; files in `FILE.d/*.conf` override its settings.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// TCP address to listen on [default: all addresses, port 443].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address of the datastore; may be repeated [default: as in the join token].
    #[arg(long = "datastore", value_name = "ADDR:PORT")]
    pub datastores: Vec<String>,
    /// Address at which other webservers and load balancers reach this one.
    #[arg(long, value_name = "HOST:PORT")]
    pub external_addr: Option<String>,
    /// UDP address for other webservers [default: all addresses, any free port].
    #[arg(long, value_name = "ADDR:PORT")]
    pub peer_listen: Option<SocketAddr>,
    /// Certificate in PEM format [default: generated].
    #[arg(long, value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// Key of the certificate in PEM format.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// Serve plain HTTP; use it only behind a TLS proxy or on loopback.
    #[arg(long)]
    pub insecure_disable_https: bool,
    /// Do not redirect plain HTTP requests to HTTPS.
    #[arg(long)]
    pub no_redirect: bool,
    /// Give the first administrator the well-known password `changeme`.
    ///
    /// For demonstrations and tests only.
    #[arg(long)]
    pub default_password: bool,
    /// Address of the Prometheus endpoint [default: none].
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Log level: error, warn, info, debug (includes every request) or trace.
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Format of log lines: text or json.
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub log_format: logging::LogFormat,
    /// Data directory; overrides the configuration file.
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

/// Longest wait for a stopped webserver to release its data directory.
const LETTING_GO: Duration = Duration::from_secs(30);

/// Stops a webserver and starts one with the current configuration in the same process. If that configuration is
/// invalid, the running webserver is kept.
async fn restarted(
    args: &WebserverArgs,
    webserver: Webserver,
    answer: oneshot::Sender<Result<(), String>>,
) -> Result<Webserver, RunError> {
    let (config, warnings) = match settings(args) {
        Ok(found) => found,
        Err(error) => {
            tracing::error!(%error, "restart canceled: invalid configuration");
            // The client may have left; the log has the reason, too.
            let _ = answer.send(Err(error.to_string()));
            return Ok(webserver);
        }
    };
    let _ = answer.send(Ok(()));
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    notify::reloading();
    // Keep the address, so that clients can reconnect.
    let address = webserver.address();
    webserver.stop().await;
    let listen = if config.port == 0 { (Some(address.ip()), address.port()) } else { (config.listen, config.port) };
    let config = WebserverConfig { listen: listen.0, port: listen.1, ..config };
    let webserver = started_again(config).await?;
    tracing::info!("{}", webserver.summary());
    notify::ready(&webserver.summary());
    Ok(webserver)
}

/// Starts a webserver after another one of this process has stopped. Retries, because the last tasks of the stopped one
/// may hold the directory a moment longer.
async fn started_again(config: WebserverConfig) -> Result<Webserver, WebserverError> {
    let begun = Instant::now();
    loop {
        match Webserver::start(config.clone()).await {
            Err(error) if error.is_in_use() && begun.elapsed() < LETTING_GO => {
                tracing::debug!(%error, "directory still in use; retrying");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            started => return started,
        }
    }
}

fn settings(args: &WebserverArgs) -> Result<(WebserverConfig, Vec<Warning>), ConfigError> {
    let (mut config, warnings) = gravwell_config::load(args.config.as_deref())?;
    args.clone().apply(&mut config);
    config.check()?;
    Ok((config, warnings))
}

/// Running webserver.
struct Running {
    webserver: Webserver,
    args: WebserverArgs,
    level: Level,
}

impl Service for Running {
    type Event = ControlRequest;

    fn summary(&self) -> String {
        self.webserver.summary()
    }

    fn measure(&self) {
        self.webserver.measure();
    }

    async fn is_alive(&self, within: Duration) -> bool {
        self.webserver.is_alive(within).await
    }

    /// Re-reads the log level and the certificate files; other settings need a restart.
    fn reload(&self) {
        self.webserver.reload();
        match settings(&self.args) {
            Ok((config, warnings)) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                self.level.set(&config.log_level);
                tracing::info!(level = config.log_level, "configuration reloaded");
            }
            Err(error) => tracing::error!(%error, "configuration reload failed; keeping the old one"),
        }
    }

    async fn event(&mut self) -> ControlRequest {
        self.webserver.order().await
    }

    async fn handle(self, request: ControlRequest) -> Result<Running, RunError> {
        let Running { mut webserver, args, level } = self;
        match request {
            ControlRequest::LogLevel(filter) => level.set(&filter),
            ControlRequest::Restart(answer) => webserver = restarted(&args, webserver, answer).await?,
        }
        Ok(Running { webserver, args, level })
    }

    async fn stop(self) {
        self.webserver.stop().await;
    }
}

/// Runs a webserver until a stop signal arrives.
///
/// # Errors
/// If the configuration is invalid, or the webserver or its metrics endpoint cannot start or fails.
pub async fn run(args: WebserverArgs) -> Result<(), RunError> {
    let mut signals = Signals::listen();
    let (config, warnings) = settings(&args)?;
    let level = logging::start(&config.log_level, args.log_format);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let metrics = config.metrics;
    let webserver = signals.unless_stopped(Webserver::start(config)).await?;
    let monitor = Monitor::start_if(metrics, None).await?;
    webserver.measure();
    tracing::info!("{}", webserver.summary());
    service::run(Running { webserver, args, level }, signals, monitor).await
}
