//! HTTP/1.1 client for indexers, with or without TLS: one request per connection, with a streamed response.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use gravwell_transport::race;
use gravwell_transport::trust::Identity;

/// Returns the TLS settings for indexers. An indexer needs a certificate from the CA in `authority` or, without that,
/// from the CA of the datastore that this webserver has joined. This webserver presents its own certificate on request.
///
/// # Errors
/// If a certificate cannot be read.
pub fn trust(data_dir: &Path, authority: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let identity = Identity::load(data_dir).ok();
    if let Some(file) = authority {
        let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
            roots.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
        }
    } else if let Some(identity) = &identity {
        for certificate in identity.roots().map_err(|error| error.to_string())? {
            roots.add(certificate).map_err(|error| error.to_string())?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let config = match identity.and_then(|identity| Some((identity.certificate().ok()?, identity.key().ok()?))) {
        Some((certificate, key)) => {
            builder.with_client_auth_cert(vec![certificate], key).map_err(|error| error.to_string())?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// Response whose body is still being received.
pub struct Answer {
    response: Response<Incoming>,
    patience: Duration,
}

impl Answer {
    /// Returns the next bytes of the body; `None` at the end.
    ///
    /// # Errors
    /// If the connection breaks, or nothing is received within the timeout.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let frame = tokio::time::timeout(self.patience, self.response.body_mut().frame()).await;
            match frame.map_err(|_| silent(self.patience))? {
                None => return Ok(None),
                Some(Err(error)) => return Err(format!("connection failed: {error}")),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }
}

fn silent(patience: Duration) -> String {
    format!("no data within {} s", patience.as_secs_f32())
}

/// Sends a `GET` request and waits for the head of the response.
///
/// # Errors
/// If the server is unreachable, untrusted, does not respond within `patience`, or responds with a status other than 200.
pub async fn get(
    uri: &Uri,
    headers: &[(&'static str, &str)],
    tls: &Arc<ClientConfig>,
    patience: Duration,
) -> Result<Answer, String> {
    let asked = tokio::time::timeout(patience, ask(uri, headers, tls)).await;
    let response = asked.map_err(|_| silent(patience))??;
    if response.status() != StatusCode::OK {
        return Err(format!("it returned {}", response.status()));
    }
    Ok(Answer { response, patience })
}

async fn ask(
    uri: &Uri,
    headers: &[(&'static str, &str)],
    tls: &Arc<ClientConfig>,
) -> Result<Response<Incoming>, String> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let unreachable = |reason: String| format!("it cannot be reached: {reason}");
    let found = tokio::net::lookup_host((host, port)).await.map_err(|error| unreachable(error.to_string()))?;
    let attempts =
        found.map(async |address| TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}")));
    let stream = race::first(attempts.collect()).await.map_err(|errors| unreachable(errors.join(", ")))?;
    let mut request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()));
    request = request.header("Host", uri.authority().map_or(host, |authority| authority.as_str()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    if !is_tls {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await;
    exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let broken = |error: hyper::Error| format!("connection failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The task ends with the last bytes of the response, or when the response is dropped.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request).await.map_err(broken)
}
