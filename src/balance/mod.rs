//! Configuration of load balancers, made from the list of members: for Traefik, nginx, HAProxy, and Prometheus.
//!
//! A webserver is listed from the day on which it first said its `External-Addr` until it is revoked, or has been silent for
//! so long that it no longer counts: whether it answers is for the balancer's health check to find out. So neither a
//! datastore that restarts nor a cut cable takes anything out of a balancer. What a member says of itself reaches a
//! configuration file only when it is a host and a port, letter by letter.

mod haproxy;
mod nginx;
mod prometheus;
mod traefik;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use crate::codec::admin::BackendInfo;
use crate::model::address::is_local;

pub use crate::model::address::host_and_port;

/// Cookie that keeps a browser with the webserver that it began with.
pub const COOKIE: &str = "gravwell_sticky";
/// Name in the certificate of every webserver that `gravwell-logctl cert` signs, for webservers that are known by an address
/// alone. A key that is stolen from one of them serves for all that are checked for it.
pub const SHARED_NAME: &str = "webserver.gravwell.internal";
/// Where a balancer asks whether a webserver should be sent requests.
pub const READY: &str = "/api/ready";

/// A webserver behind the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name of the member.
    pub name: String,
    /// Host, without the brackets of an IPv6 address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What the host's name means where the balancer runs; its own address when it is one. Only nginx needs it.
    pub addresses: Vec<SocketAddr>,
    /// Why it says that it should not serve, if it does.
    pub unhealthy: Option<String>,
}

/// The name of one member in its certificate.
#[must_use]
pub fn member_name(member: &str) -> String {
    format!("{}.{SHARED_NAME}", member.to_ascii_lowercase())
}

impl Backend {
    /// `host:port`, with brackets where they belong.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

/// The webservers to balance over, by name, and why others were left out.
#[must_use]
pub fn backends(webservers: &[BackendInfo], choice: &Choice) -> (Vec<Backend>, Vec<String>) {
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    for BackendInfo { name, external_addr, unhealthy, .. } in webservers {
        match external_addr.as_deref().map(host_and_port) {
            None => left_out.push(format!("{name} says no External-Addr: set it in its gravwell.conf")),
            Some(Err(what)) => left_out.push(format!("{name}: {what}; it is left out")),
            Some(Ok((host, _))) if is_local(&host) && !choice.allow_local_backends => left_out.push(format!(
                "{name}: the External-Addr {host} is on the balancer's own host or link, or is no host's address; it is left out \
                 unless --allow-local-backends is given"
            )),
            Some(Ok((host, port))) => {
                let addresses = host.parse().map(|ip: IpAddr| SocketAddr::new(ip, port)).into_iter().collect();
                found.push(Backend { name: name.clone(), host, port, addresses, unhealthy: unhealthy.clone() });
            }
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    (found, left_out)
}

/// For whom a configuration is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Dynamic configuration of Traefik 3, as its HTTP provider and its file provider read it.
    Traefik,
    /// A file for `/etc/nginx/conf.d`.
    Nginx,
    /// Sections for HAProxy 2.4 or later.
    Haproxy,
    /// Targets as Prometheus's HTTP and file discovery read them.
    Prometheus,
}

/// How the balancer reaches the webservers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// HTTPS; certificates must be good.
    #[default]
    Https,
    /// HTTPS; any certificate will do: only where nobody else can be in between.
    HttpsUnverified,
    /// Plain HTTP.
    Http,
}

macro_rules! words {
    ($type:ident, $what:literal, $($word:literal => $value:ident),*) => {
        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<$type, String> {
                match text {
                    $($word => Ok($type::$value),)*
                    _ => Err(format!(concat!("`{}` is not ", $what, ": use one of {}"), text, [$($word),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($type::$value => $word,)*
                })
            }
        }
    };
}

words!(Format, "a format", "traefik" => Traefik, "nginx" => Nginx, "haproxy" => Haproxy, "prometheus" => Prometheus);
words!(Hop, "a way to reach webservers", "https" => Https, "https-unverified" => HttpsUnverified, "http" => Http);

/// What an operator chooses.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Choice {
    /// How webservers are reached.
    pub backend: Hop,
    /// Authority that signed the webservers' certificates, on the balancer's host; default: those that its system trusts.
    pub backend_ca: Option<PathBuf>,
    /// One name for which all webservers' certificates are checked; default: the host of each, and [`SHARED_NAME`] where that
    /// is an address.
    pub backend_name: Option<String>,
    /// Checks each for the name of its member, see [`member_name`].
    pub member_names: bool,
    /// Where browsers connect, `ADDR:PORT` or `:PORT`; default: port 443 with a certificate, 80 without.
    pub listen: Option<String>,
    /// Certificate for browsers on the balancer's host, in PEM form; for HAProxy with its key in the same file.
    pub certificate: Option<PathBuf>,
    /// Its key, for nginx.
    pub key: Option<PathBuf>,
    /// Traefik's entry point.
    pub entry_point: String,
    /// Traefik's rule.
    pub rule: String,
    /// Port of the webservers' metrics, for Prometheus.
    pub metrics_port: u16,
    /// Lists webservers at loopback, link-local, multicast and unspecified addresses, too: a member that reports one would
    /// otherwise make the balancer send requests to services of its own host.
    pub allow_local_backends: bool,
}

impl Default for Choice {
    fn default() -> Choice {
        Choice {
            backend: Hop::Https,
            backend_ca: None,
            backend_name: None,
            member_names: false,
            listen: None,
            certificate: None,
            key: None,
            entry_point: "websecure".into(),
            rule: "PathPrefix(`/`)".into(),
            metrics_port: 9408,
            allow_local_backends: false,
        }
    }
}

impl Choice {
    /// The name for which a webserver's certificate is checked.
    fn name_of(&self, backend: &Backend) -> String {
        match &self.backend_name {
            Some(name) => name.clone(),
            None if self.member_names => member_name(&backend.name),
            None if backend.host.parse::<IpAddr>().is_ok() => SHARED_NAME.to_owned(),
            None => backend.host.clone(),
        }
    }

    /// Whether what a host's name means has to be known for this format: nginx tells servers apart by their addresses alone.
    #[must_use]
    pub fn needs_addresses(&self, format: Format) -> bool {
        format == Format::Nginx && self.backend == Hop::Https && self.backend_name.is_none()
    }

    /// Whether browsers speak TLS with the balancer.
    fn is_secure(&self) -> bool {
        self.certificate.is_some()
    }

    fn listen(&self) -> String {
        let default = if self.is_secure() { ":443" } else { ":80" };
        self.listen.clone().unwrap_or_else(|| default.to_owned())
    }

    /// Checks that what was chosen can stand in a configuration file.
    ///
    /// # Errors
    /// Names the choice that cannot.
    pub fn check(&self, format: Format) -> Result<(), String> {
        let files = [("--backend-ca", &self.backend_ca), ("--certificate", &self.certificate), ("--key", &self.key)];
        for (flag, file) in files {
            let Some(file) = file else { continue };
            let text = file.to_str().unwrap_or_default();
            let is_plain =
                !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-+@".contains(&b));
            if !is_plain {
                return Err(format!("{flag} {}: use a path of letters, digits and ./_-+@", file.display()));
            }
        }
        if let Some(name) = self.backend_name.as_ref().filter(|name| host_and_port(name) != Ok(((*name).clone(), 443)))
        {
            return Err(format!("--backend-name {name}: use a host name"));
        }
        if self.member_names && self.backend_name.is_some() {
            return Err("--member-names and --backend-name exclude each other".into());
        }
        if self.member_names && format == Format::Traefik {
            return Err("traefik checks each webserver for its host: leave --member-names out".into());
        }
        if self.listen().bytes().any(|b| !(b.is_ascii_hexdigit() || b".:[]*".contains(&b))) {
            return Err(format!("--listen {}: use ADDR:PORT or :PORT", self.listen()));
        }
        if format == Format::Nginx && self.certificate.is_some() != self.key.is_some() {
            return Err("nginx needs --certificate and --key together, or neither".into());
        }
        Ok(())
    }
}

/// The text of a configuration.
#[must_use]
pub fn render(format: Format, backends: &[Backend], choice: &Choice) -> String {
    match format {
        Format::Traefik => traefik::render(backends, choice),
        Format::Nginx => nginx::render(backends, choice),
        Format::Haproxy => haproxy::render(backends, choice),
        Format::Prometheus => prometheus::render(backends, choice),
    }
}

#[cfg(test)]
mod tests;
