//! TLS certificates for browsers: configured ones, reloaded when they change, or a self-signed one.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum_server::tls_rustls::RustlsConfig;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::host_names::OwnNames;
use gravwell_config::webserver::WebserverConfig;
use gravwell_env::RealFs;
use gravwell_env::fs::replace_file;

/// Interval at which the files are checked for changes.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Lifetime of a self-signed certificate, and the age at which it is replaced.
const LIFE: time::Duration = time::Duration::days(397);
const RENEW_AFTER: Duration = Duration::from_secs(300 * 24 * 3600);

#[derive(Clone, Debug)]
pub(super) struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// Error returned when the TLS certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A certificate or key file cannot be used.
    #[error("{path}: {reason}", path = path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Description of the failure.
        reason: String,
    },
    /// Generating a certificate, or the TLS configuration, failed.
    #[error("cannot generate a certificate: {0}")]
    Make(String),
}

fn wrong(path: &Path) -> impl Fn(String) -> CertificateError {
    let path = path.to_owned();
    move |reason| CertificateError::File { path: path.clone(), reason }
}

/// Returns the configured files, or those of a self-signed certificate, which is generated if missing or too old.
pub(super) fn files(config: &WebserverConfig) -> Result<Files, CertificateError> {
    if let (Some(certificate), Some(key)) = (&config.certificate, &config.key) {
        return Ok(Files { certificate: certificate.clone(), key: key.clone() });
    }
    let directory = config.data_dir.join("tls");
    let files = Files { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
    let age = fs::metadata(&files.certificate).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
    if !files.key.exists() || age.is_none_or(|age| age > RENEW_AFTER) {
        make(&directory, &files, config)?;
    }
    Ok(files)
}

/// Returns the host names and addresses known from the configuration and the host.
pub(super) fn names(config: &WebserverConfig) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    if let Ok(host) = rustix::system::uname().nodename().to_str() {
        names.push(host.to_owned());
    }
    if let Some(address) = &config.external_addr {
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        names.push(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    names.extend(config.listen.filter(|ip| !ip.is_unspecified()).map(|ip: IpAddr| ip.to_string()));
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

fn make(directory: &Path, files: &Files, config: &WebserverConfig) -> Result<(), CertificateError> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let failed = |error: rcgen::Error| CertificateError::Make(error.to_string());
    let mut params = CertificateParams::new(names(config)).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, "gravwell webserver");
    params.not_before = OffsetDateTime::now_utc() - time::Duration::days(1);
    params.not_after = OffsetDateTime::now_utc() + LIFE;
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    let kept = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| wrong(&path)(error.to_string())
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(kept(directory))?;
    // The file must have its mode before it holds a secret.
    fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&files.key)
        .and_then(|mut file| std::io::Write::write_all(&mut file, key.serialize_pem().as_bytes()))
        .map_err(kept(&files.key))?;
    replace_file(&RealFs, &files.certificate, certificate.pem().as_bytes()).map_err(kept(&files.certificate))?;
    tracing::info!(certificate = %files.certificate.display(), "generated self-signed certificate");
    Ok(())
}

impl Files {
    fn read(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let pem = |path: &Path| fs::read(path).map_err(|error| wrong(path)(error.to_string()));
        let (certificate, key) = (pem(&self.certificate)?, pem(&self.key)?);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
        let chain = chain.map_err(|error| wrong(&self.certificate)(error.to_string()))?;
        if chain.is_empty() {
            return Err(wrong(&self.certificate)("no PEM certificate found".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(&self.key)(error.to_string()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| CertificateError::Make(error.to_string()))?;
        let config = builder.with_no_client_auth().with_single_cert(chain, key);
        let mut config =
            config.map_err(|error| wrong(&self.key)(format!("does not match the certificate: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key].map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok())
    }

    /// Loads the TLS settings of the listener.
    pub(super) fn load(&self, names: &OwnNames) -> Result<RustlsConfig, CertificateError> {
        let config = self.read()?;
        self.note_names(names);
        Ok(RustlsConfig::from_config(config))
    }

    /// Registers the names in the certificate, which has been loaded successfully.
    fn note_names(&self, names: &OwnNames) {
        if let Ok(certificate) = CertificateDer::from_pem_file(&self.certificate) {
            names.set_certified(&certificate);
        }
    }

    /// Reloads the files whenever they change or `reread` is notified, until the task is dropped. If they cannot be used,
    /// the previous certificate stays in use.
    pub(super) async fn follow(self, settings: RustlsConfig, reread: Arc<Notify>, names: Arc<OwnNames>) {
        let mut known = self.changed();
        loop {
            let is_asked = tokio::time::timeout(LOOK_EVERY, reread.notified()).await.is_ok();
            let now = self.changed();
            if now == known && !is_asked {
                continue;
            }
            match self.read() {
                Ok(config) => {
                    settings.reload_from_config(config);
                    self.note_names(&names);
                    known = now;
                    tracing::info!("certificate reloaded");
                }
                Err(error) => tracing::warn!(%error, "failed to reload the certificate; keeping the old one"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_with_a_private_key_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let temp = tempfile::tempdir().expect("temp dir");
        let mut config = WebserverConfig::for_dir(temp.path());
        config.external_addr = Some("web1.example.com:8443".into());
        assert!(names(&config).contains(&"web1.example.com".to_owned()));
        let made = files(&config).expect("makes");
        let mode = fs::metadata(&made.key).expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        made.read().expect("reads");
        let before = fs::read(&made.certificate).expect("reads");
        files(&config).expect("finds");
        assert_eq!(fs::read(&made.certificate).expect("reads"), before);
    }

    #[test]
    fn unusable_certificates_are_reported() {
        let temp = tempfile::tempdir().expect("temp dir");
        let made = files(&WebserverConfig::for_dir(temp.path())).expect("makes");
        fs::write(&made.certificate, "nonsense").expect("writes");
        let error = made.read().expect_err("nonsense").to_string();
        assert!(error.contains("cert.pem") && error.contains("PEM"), "{error}");
    }
}
