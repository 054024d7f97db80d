//! Configuration of load balancers, generated from the list of members: Traefik, nginx, HAProxy and Prometheus.
//!
//! A webserver is listed from the time it first announces its `External-Addr` until it is revoked or has been silent
//! beyond retention. Checking whether it responds is left to the health check of the balancer, so neither a datastore
//! restart nor a network failure removes webservers from a balancer. The address that a member announces is written to a
//! configuration file only if it is strictly a host and a port.

mod haproxy;
mod nginx;
mod prometheus;
mod traefik;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use gravwell_model::address::is_local;
use gravwell_model::codec::admin::BackendInfo;

pub use gravwell_model::address::host_and_port;

/// Cookie that binds a browser to the webserver of its first request.
pub const COOKIE: &str = "gravwell_sticky";
/// Name in the certificate of every webserver that `gravwell-logctl cert` signs, for webservers that are known only by an
/// IP address. A key stolen from one of them can impersonate every webserver that is verified by this name.
pub const SHARED_NAME: &str = "webserver.gravwell.internal";
/// Path of the health check, which reports whether a webserver should receive requests.
pub const READY: &str = "/api/ready";

/// A webserver behind the balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Member name.
    pub name: String,
    /// Host name, or IP address without brackets.
    pub host: String,
    /// Port of the web interface.
    pub port: u16,
    /// Addresses to which the host name resolves on the balancer's host; the address itself if `host` is one. Only nginx
    /// needs them.
    pub addresses: Vec<SocketAddr>,
    /// Reason why the webserver reports itself unhealthy, if it does.
    pub unhealthy: Option<String>,
}

/// Returns the name of one member in its certificate.
#[must_use]
pub fn member_name(member: &str) -> String {
    format!("{}.{SHARED_NAME}", member.to_ascii_lowercase())
}

impl Backend {
    /// Returns `host:port`, with brackets around an IPv6 address.
    #[must_use]
    pub fn address(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

/// Returns the webservers to balance over, sorted by name, and the reasons why others are left out.
#[must_use]
pub fn backends(webservers: &[BackendInfo], choice: &Choice) -> (Vec<Backend>, Vec<String>) {
    let (mut found, mut left_out) = (Vec::new(), Vec::new());
    for BackendInfo { name, external_addr, unhealthy, .. } in webservers {
        match external_addr.as_deref().map(host_and_port) {
            None => left_out.push(format!("{name} announces no External-Addr; set it in its gravwell.conf")),
            Some(Err(what)) => left_out.push(format!("{name}: {what}; left out")),
            Some(Ok((host, _))) if is_local(&host) && !choice.allow_local_backends => left_out.push(format!(
                "{name}: the External-Addr {host} is loopback, link-local, multicast or unspecified; left out unless \
                 --allow-local-backends is given"
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

/// Consumer of a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Dynamic configuration of Traefik 3, for its HTTP provider and its file provider.
    Traefik,
    /// File for `/etc/nginx/conf.d`.
    Nginx,
    /// Sections for HAProxy 2.4 or later.
    Haproxy,
    /// Targets for Prometheus's HTTP and file service discovery.
    Prometheus,
}

/// Connection from the balancer to the webservers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hop {
    /// HTTPS with certificate verification.
    #[default]
    Https,
    /// HTTPS without certificate verification; use it only on a trusted network.
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
words!(Hop, "a protocol to webservers", "https" => Https, "https-unverified" => HttpsUnverified, "http" => Http);

/// Options chosen by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Choice {
    /// Connection to the webservers.
    pub backend: Hop,
    /// CA certificate of the webservers, as a path on the balancer's host; default: the CAs that its system trusts.
    pub backend_ca: Option<PathBuf>,
    /// One name with which the certificates of all webservers are verified; default: the host of each, or [`SHARED_NAME`]
    /// if that is an IP address.
    pub backend_name: Option<String>,
    /// Verifies each webserver by the name of its member, see [`member_name`].
    pub member_names: bool,
    /// Address for browsers, `ADDR:PORT` or `:PORT`; default: port 443 with a certificate, 80 without.
    pub listen: Option<String>,
    /// Certificate for browsers, in PEM format, as a path on the balancer's host; for HAProxy the file also contains
    /// the key.
    pub certificate: Option<PathBuf>,
    /// Key of the certificate, for nginx.
    pub key: Option<PathBuf>,
    /// Entry point of the Traefik router.
    pub entry_point: String,
    /// Rule of the Traefik router.
    pub rule: String,
    /// Port of the webservers' metrics endpoint, for Prometheus.
    pub metrics_port: u16,
    /// Also lists webservers at loopback, link-local, multicast and unspecified addresses. By default these are left out,
    /// because a member that announces one would make the balancer send requests to services of its own host.
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
    /// Returns the name with which a webserver's certificate is verified.
    fn name_of(&self, backend: &Backend) -> String {
        match &self.backend_name {
            Some(name) => name.clone(),
            None if self.member_names => member_name(&backend.name),
            None if backend.host.parse::<IpAddr>().is_ok() => SHARED_NAME.to_owned(),
            None => backend.host.clone(),
        }
    }

    /// Returns whether the format needs resolved host names: nginx identifies servers only by address.
    #[must_use]
    pub fn needs_addresses(&self, format: Format) -> bool {
        format == Format::Nginx && self.backend == Hop::Https && self.backend_name.is_none()
    }

    /// Returns whether browsers connect to the balancer with TLS.
    fn is_secure(&self) -> bool {
        self.certificate.is_some()
    }

    fn listen(&self) -> String {
        let default = if self.is_secure() { ":443" } else { ":80" };
        self.listen.clone().unwrap_or_else(|| default.to_owned())
    }

    /// Checks that the options can be written to a configuration file.
    ///
    /// # Errors
    /// If an option is invalid; the message names it.
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
            return Err("--member-names and --backend-name are mutually exclusive".into());
        }
        if self.member_names && format == Format::Traefik {
            return Err("traefik verifies each webserver by its host; remove --member-names".into());
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

/// Returns the text of a configuration.
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
