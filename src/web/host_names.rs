//! Host names of this webserver, which are the only targets of the redirection from HTTP to HTTPS.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use gravwell_model::address::host_and_port;

#[derive(Debug, Default)]
pub(super) struct OwnNames {
    /// Names from the configuration and the host.
    configured: Vec<String>,
    /// Names in the current certificate, which may be replaced at runtime.
    certified: RwLock<Vec<String>>,
    /// Target for requests that use any other name.
    external: Option<(String, u16)>,
}

impl OwnNames {
    /// Creates the set from configured names; `external_addr` is the target for requests that use none of them.
    pub(super) fn new(configured: Vec<String>, external_addr: Option<&str>) -> OwnNames {
        let external = external_addr.and_then(|address| host_and_port(address).ok());
        OwnNames { configured, certified: RwLock::default(), external }
    }

    /// Replaces the certificate's names by those of a new certificate.
    pub(super) fn set_certified(&self, certificate: &[u8]) {
        *self.certified.write().unwrap_or_else(PoisonError::into_inner) = names_in(certificate);
    }

    /// Returns the target `host:port` of a plain HTTP request: the name in its `Host` if that belongs to this webserver,
    /// otherwise the `External-Addr`; `None` without one. `local` is the address at which the request arrived, and `port`
    /// is the HTTPS port.
    pub(super) fn target(&self, host: &str, local: Option<IpAddr>, port: u16) -> Option<String> {
        let name = name_of(host)?;
        let (host, port) = match self.is_own(&name, local) {
            true => (name, port),
            false => self.external.clone()?,
        };
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        Some(if port == 443 { host } else { format!("{host}:{port}") })
    }

    fn is_own(&self, name: &str, local: Option<IpAddr>) -> bool {
        let is_local = name.parse::<IpAddr>().is_ok_and(|ip| local.is_some_and(|local| local.to_canonical() == ip));
        let certified = self.certified.read().unwrap_or_else(PoisonError::into_inner);
        is_local || self.configured.iter().chain(certified.iter()).any(|known| means(known, name))
    }
}

/// Returns the host of a `Host` field in lower case and without brackets; `None` if invalid.
fn name_of(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    host_and_port(&host).ok().map(|(name, _)| name)
}

/// Returns whether a certificate name, whose first label may be `*`, matches a host.
fn means(known: &str, name: &str) -> bool {
    match known.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => known.eq_ignore_ascii_case(name),
    }
}

fn names_in(certificate: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(external: Option<&str>) -> OwnNames {
        let names = OwnNames::new(vec!["localhost".into(), "web1".into(), "::1".into()], external);
        let certified = ["gravwell.example.com", "*.example.net", "10.0.0.1", "2001:db8::1"].map(str::to_owned);
        let params = rcgen::CertificateParams::new(certified).expect("names");
        let key = rcgen::KeyPair::generate().expect("a key");
        names.set_certified(params.self_signed(&key).expect("signs").der());
        names
    }

    #[test]
    fn plain_requests_are_sent_to_names_of_this_webserver_only() {
        let own = names(None);
        let local = Some("::ffff:192.0.2.7".parse().expect("address"));
        for (host, wanted) in [
            ("localhost", "localhost:8443"),
            ("WEB1:80", "web1:8443"),
            ("gravwell.example.com", "gravwell.example.com:8443"),
            ("a.example.net:8080", "a.example.net:8443"),
            ("10.0.0.1", "10.0.0.1:8443"),
            ("192.0.2.7:80", "192.0.2.7:8443"),
            ("[::1]:80", "[::1]:8443"),
            ("[2001:db8::1]", "[2001:db8::1]:8443"),
        ] {
            assert_eq!(own.target(host, local, 8443).as_deref(), Some(wanted), "{host}");
        }
        assert_eq!(own.target("web1", None, 443).as_deref(), Some("web1"));
        let foreign = [
            "evil.example",
            "a.b.example.net",
            "example.net",
            "192.0.2.8",
            "web1.evil.example",
            "",
            "web1@evil",
            "web1/x",
        ];
        for host in foreign {
            assert_eq!(own.target(host, local, 443), None, "{host}");
        }
        let own = names(Some("gravwell.example.org:9443"));
        assert_eq!(own.target("evil.example", local, 443).as_deref(), Some("gravwell.example.org:9443"));
        assert_eq!(own.target("evil.example/x?y", local, 443), None);
        own.set_certified(b"nonsense");
        assert_eq!(own.target("a.example.net", local, 443).as_deref(), Some("gravwell.example.org:9443"));
    }
}
