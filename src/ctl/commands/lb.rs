//! `lb`: generates load balancer configuration, once or continuously.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use gravwell_env::RealFs;
use gravwell_env::fs::replace_file;
use gravwell_model::codec::admin::{BackendInfo, MemberInfo, PresenceInfo, Request};

use crate::balance::{self, Backend, Choice, Format, Hop};
use crate::client::Client;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};
use crate::process::signals::stop_signal;

/// Generate the configuration of a load balancer from the list of webservers.
///
/// Webservers are listed with their External-Addr until they are revoked; the balancer's health check (/api/ready)
/// finds out whether they respond. No webserver is removed because the datastore is unreachable.
///
/// Traefik and Prometheus can also query the datastore directly: see --metrics of gravwell_datastore.
#[derive(Debug, clap::Args)]
pub struct Lb {
    /// Output format: traefik, nginx, haproxy or prometheus.
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// Replace this file atomically instead of printing.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Keep running until interrupted and rewrite the file when it changes.
    #[arg(long, requires = "output")]
    pub watch: bool,
    /// Command to run after the file has changed; retried until it succeeds.
    #[arg(long, value_name = "COMMAND", requires = "output")]
    pub exec: Option<String>,
    /// Seconds between checks of the members.
    #[arg(long, default_value_t = 5, value_name = "S", requires = "watch")]
    pub interval: u64,
    /// Protocol from the balancer to webservers: https, https-unverified or http.
    ///
    /// https-unverified accepts any certificate.
    #[arg(long, default_value_t = Hop::Https, value_name = "HOW")]
    pub backend: Hop,
    /// CA file on the balancer's host that signed the webservers' certificates.
    ///
    /// [default: the CAs that its system trusts]
    #[arg(long, value_name = "FILE")]
    pub backend_ca: Option<PathBuf>,
    /// Name to verify in the certificates of all webservers.
    ///
    /// [default: the host of each webserver; for an IP address, webserver.gravwell.internal, which `cert server --ca`
    /// puts into every certificate]
    #[arg(long, value_name = "HOST")]
    pub backend_name: Option<String>,
    /// Verify each webserver's certificate against the name of its member.
    ///
    /// `cert server --member` puts this name into the certificate.
    #[arg(long, conflicts_with = "backend_name")]
    pub member_names: bool,
    /// Address for browsers [default: :443 with a certificate, :80 without].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Certificate for browsers, a path on the balancer's host.
    ///
    /// For haproxy, the file must contain the key as well.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Key of the certificate, for nginx.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Entry point of Traefik.
    #[arg(long, default_value = "websecure", value_name = "NAME")]
    pub entry_point: String,
    /// Router rule of Traefik.
    #[arg(long, default_value = "PathPrefix(`/`)", value_name = "RULE")]
    pub rule: String,
    /// Port of the webservers' metrics, for Prometheus.
    #[arg(long, default_value_t = 9408, value_name = "PORT")]
    pub metrics_port: u16,
    /// List webservers at loopback, link-local, multicast and unspecified addresses too.
    #[arg(long)]
    pub allow_local_backends: bool,
}

impl Lb {
    /// Returns the options that the configuration is generated with.
    #[must_use]
    pub fn choice(&self) -> Choice {
        Choice {
            backend: self.backend,
            backend_ca: self.backend_ca.clone(),
            backend_name: self.backend_name.clone(),
            member_names: self.member_names,
            listen: self.listen.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            entry_point: self.entry_point.clone(),
            rule: self.rule.clone(),
            metrics_port: self.metrics_port,
            allow_local_backends: self.allow_local_backends,
        }
    }
}

/// Longest run time of the balancer's command.
const EXEC_TIMEOUT: Duration = Duration::from_secs(60);

/// Prints or writes the configuration; with `--watch`, rewrites it whenever it changes.
pub(super) async fn run(dir: &Path, json: bool, args: Lb) -> CtlResult {
    let choice = args.choice();
    choice.check(args.format).map_err(|message| CtlError { message, exit: 2 })?;
    let Some(file) = args.output.as_deref().map(std::path::absolute).transpose().map_err(CtlError::new)? else {
        let (backends, left_out) = ask(dir, args.format, &choice, &mut Resolved::new()).await?;
        report(&left_out);
        return print(json, &args, &backends, &choice);
    };
    let mut keeper = Keeper { format: args.format, choice, file, exec: args.exec, is_pending: false };
    if !args.watch {
        let (backends, left_out) = ask(dir, keeper.format, &keeper.choice, &mut Resolved::new()).await?;
        report(&left_out);
        return keeper.keep(&backends).await.map(|_| ()).map_err(CtlError::new);
    }
    watch(dir, &mut keeper, Duration::from_secs(args.interval.max(1))).await
}

fn print(json: bool, args: &Lb, backends: &[Backend], choice: &Choice) -> CtlResult {
    let text = balance::render(args.format, backends, choice);
    let mut output = Output::new();
    if json {
        let names: Vec<_> = backends
            .iter()
            .map(|b| serde_json::json!({ "name": b.name, "address": b.address(), "unhealthy": b.unhealthy }))
            .collect();
        output.json(&serde_json::json!({ "backends": names, "configuration": text }))?;
    } else {
        output.bytes(text.as_bytes())?;
    }
    output.flush()
}

fn report(left_out: &[String]) {
    left_out.iter().for_each(|what| complain!("gravwell-logctl: {what}"));
}

/// Last known addresses of host names: an unavailable name service must not remove a webserver from a balancer.
type Resolved = BTreeMap<(String, u16), Vec<SocketAddr>>;

async fn ask(
    dir: &Path,
    format: Format,
    choice: &Choice,
    resolved: &mut Resolved,
) -> Result<(Vec<Backend>, Vec<String>), CtlError> {
    let client = Client::open(dir).await?;
    let answer = webservers(&client).await;
    client.close().await;
    let (mut backends, mut left_out) = balance::backends(&answer?, choice);
    if choice.needs_addresses(format) {
        for backend in backends.iter_mut().filter(|backend| backend.addresses.is_empty()) {
            if let Err(error) = resolve(backend, resolved).await {
                left_out.push(format!("{}: {}: {error}", backend.name, backend.host));
            }
        }
    }
    Ok((backends, left_out))
}

async fn resolve(backend: &mut Backend, resolved: &mut Resolved) -> Result<(), String> {
    let host = (backend.host.clone(), backend.port);
    let found = tokio::net::lookup_host((host.0.as_str(), host.1)).await;
    let outcome = match found {
        Ok(addresses) => {
            // Sorted and without duplicates, so that a different order of the answers changes nothing.
            let addresses: BTreeSet<SocketAddr> = addresses.collect();
            resolved.insert(host.clone(), addresses.into_iter().collect());
            Ok(())
        }
        Err(error) if resolved.contains_key(&host) => Err(format!("{error}; keeping its previous addresses")),
        Err(error) => Err(format!("{error}; left out until it has an address")),
    };
    backend.addresses = resolved.get(&host).cloned().unwrap_or_default();
    outcome
}

/// Returns the webservers that the datastore lists. A datastore of an earlier version does not know the request; the
/// list is then built from its members, which only administrators may list.
pub(super) async fn webservers(client: &Client) -> Result<Vec<BackendInfo>, CtlError> {
    let error = match client.items(&Request::Backends).await {
        Ok(webservers) => return Ok(webservers),
        Err(error) => error,
    };
    let Ok(members) = client.items::<MemberInfo>(&Request::Members).await else { return Err(error) };
    let presence: Vec<PresenceInfo> = client.items(&Request::Presence).await?;
    Ok(BackendInfo::among(&members, &presence))
}

async fn watch(dir: &Path, keeper: &mut Keeper, interval: Duration) -> CtlResult {
    let mut stop = std::pin::pin!(stop_signal());
    let mut said = Vec::new();
    let mut trouble = String::new();
    let mut resolved = Resolved::new();
    gravwell_runtime::telemetry::notify::ready("watching the members");
    loop {
        let now = match ask(dir, keeper.format, &keeper.choice, &mut resolved).await {
            Ok((backends, left_out)) => {
                if left_out != said {
                    report(&left_out);
                    said = left_out;
                }
                keeper.keep(&backends).await.err().unwrap_or_default()
            }
            // Without an answer, nothing is changed.
            Err(error) => format!("{error}; the configuration is unchanged"),
        };
        if now != trouble && !now.is_empty() {
            complain!("gravwell-logctl: {now}");
        }
        trouble = now;
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = tokio::time::sleep(interval) => {}
        }
    }
}

struct Keeper {
    format: Format,
    choice: Choice,
    file: PathBuf,
    exec: Option<String>,
    /// Whether the balancer must still be notified of the current file.
    is_pending: bool,
}

impl Keeper {
    /// Writes the file atomically if its contents would change, and notifies the balancer.
    async fn keep(&mut self, backends: &[Backend]) -> Result<(), String> {
        let text = balance::render(self.format, backends, &self.choice);
        let named = |error: std::io::Error| format!("{}: {error}", self.file.display());
        if std::fs::read_to_string(&self.file).ok().as_deref() != Some(text.as_str()) {
            if backends.is_empty() && self.file.exists() {
                return Err("no webserver has announced its External-Addr; the file is unchanged".into());
            }
            replace_file(&RealFs, &self.file, text.as_bytes()).map_err(named)?;
            // The file holds no secret, and the balancer reads it as a different user.
            std::fs::set_permissions(&self.file, std::fs::Permissions::from_mode(0o644)).map_err(named)?;
            self.is_pending = true;
            let names: Vec<&str> = backends.iter().map(|backend| backend.name.as_str()).collect();
            complain!("gravwell-logctl: {} now lists {}", self.file.display(), names.join(", "));
        }
        let Some(exec) = self.exec.as_ref().filter(|_| self.is_pending) else { return Ok(()) };
        tell(exec).await?;
        self.is_pending = false;
        Ok(())
    }
}

/// Runs the command that makes the balancer reload its file.
async fn tell(command: &str) -> Result<(), String> {
    let again = "; will retry";
    let mut child = tokio::task::spawn_blocking({
        let command = command.to_owned();
        move || {
            let _ = std::io::stdout().flush();
            std::process::Command::new("/bin/sh").args(["-c", &command]).stdin(Stdio::null()).spawn()
        }
    })
    .await
    .map_err(|error| error.to_string())?
    .map_err(|error| format!("`{command}`: {error}{again}"))?;
    let started = std::time::Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`{command}` exited with {status}{again}")),
            Err(error) => return Err(format!("`{command}`: {error}{again}")),
            Ok(None) if started.elapsed() > EXEC_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("`{command}` did not exit within {EXEC_TIMEOUT:?}{again}"));
            }
            Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
