//! Arguments of `lb` and `cert`.

use std::path::PathBuf;

use clap::Subcommand;

use crate::balance::{Choice, Format, Hop};
use gravwell_model::MemberName;

/// Arguments of `lb`.
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

/// Commands of `cert`.
#[derive(Debug, Subcommand)]
pub enum CertAction {
    /// Create a CA for the certificates of your webservers: ca.pem and ca-key.pem.
    Ca {
        /// Directory to write the files to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Name of the CA.
        #[arg(long, default_value = "Gravwell webservers", value_name = "TEXT")]
        name: String,
        /// Lifetime in days.
        #[arg(long, default_value_t = 3650, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Replace an existing CA; every certificate that it signed becomes invalid.
        #[arg(long)]
        replace: bool,
    },
    /// Create a certificate for a webserver or load balancer.
    ///
    /// Writes cert.pem, key.pem, and bundle.pem with both for haproxy.
    Server(CertServer),
    /// Show the owner, names and remaining lifetime of certificates.
    Show {
        /// Files in PEM format.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Arguments of `cert server`.
#[derive(Debug, clap::Args)]
pub struct CertServer {
    /// Host name or address that the certificate is valid for; may be repeated.
    #[arg(long = "name", required = true, value_name = "HOST")]
    pub names: Vec<String>,
    /// Member that the certificate is for.
    ///
    /// Adds the name MEMBER.webserver.gravwell.internal, for balancers with --member-names.
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<MemberName>,
    /// Directory to write the files to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Directory of the CA that signs the certificate.
    ///
    /// [default: the certificate is self-signed, and browsers show a warning]
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
    /// Lifetime in days.
    #[arg(long, default_value_t = 397, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Replace existing files.
    #[arg(long)]
    pub replace: bool,
    /// Replace the certificate only if necessary; for use in a timer.
    ///
    /// Replaces it if less than a third of --days remains, if it was signed by a different CA, or if it is for
    /// different names.
    #[arg(long, conflicts_with = "replace")]
    pub renew: bool,
}
