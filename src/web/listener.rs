//! Listeners for HTTPS, or for plain HTTP if configured, and the redirector from HTTP to HTTPS.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;

use super::connections::Connections;
use super::host_names::OwnNames;
use super::lingering_close::{Acceptor, ArrivedAt};
use super::server::{SLOW_CLIENT, WebserverError, io};

/// Settings that change or disable the redirector's address.
const REDIRECT_SETTING: &str = "Web-Redirect-Port, or none with Disable-HTTP-Redirector=true or --no-redirect";

/// Maximum size in bytes of the head of a request, which is buffered until it is complete, and its maximum number of headers.
pub(super) const HEAD_BYTES_MAX: u16 = 32 << 10;
pub(super) const HEADERS_MAX: usize = 100;
/// Maximum size in bytes of the header list of an HTTP/2 request, where each header counts 32 bytes in addition (RFC 9113,
/// section 6.5.2). Its headers occupy several times their size before their number is checked.
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Maximum number of concurrent requests per HTTP/2 connection, enough for a browser's pages; clients queue further ones.
const STREAMS_MAX: u32 = 32;
/// Send buffer in bytes of one response on an HTTP/2 connection.
const SEND_BYTES_MAX: usize = 64 << 10;

/// Binds an address that comes from the option `setting`.
pub(super) fn bind(address: SocketAddr, setting: &'static str) -> Result<TcpListener, WebserverError> {
    let listener = TcpListener::bind(address).map_err(|source| WebserverError::Listen { setting, address, source })?;
    listener.set_nonblocking(true).map_err(io("the listener"))?;
    Ok(listener)
}

fn patient(listener: TcpListener, handle: &Handle<SocketAddr>) -> Result<Server<SocketAddr>, WebserverError> {
    let mut server = axum_server::from_tcp(listener).map_err(io("the listener"))?.handle(handle.clone());
    let builder = server.http_builder();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(SLOW_CLIENT);
    builder.http1().max_buf_size(HEAD_BYTES_MAX.into()).max_headers(HEADERS_MAX);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new()).keep_alive_interval(SLOW_CLIENT);
    http2.max_header_list_size(HEADER_LIST_BYTES_MAX);
    // Starts with windows of 64 KiB, which bound what arrives before a handler reads it, and widens them for a connection
    // on which bodies are read.
    http2.adaptive_window(true);
    http2.max_concurrent_streams(STREAMS_MAX).max_send_buf_size(SEND_BYTES_MAX);
    Ok(server)
}

/// Creates a plain HTTP server.
pub(super) fn plain(
    listener: TcpListener,
    handle: &Handle<SocketAddr>,
    connections: Connections,
) -> Result<Server<SocketAddr, Acceptor>, WebserverError> {
    Ok(patient(listener, handle)?.acceptor(Acceptor(connections)))
}

/// Creates an HTTPS server.
pub(super) fn secure(
    listener: TcpListener,
    settings: RustlsConfig,
    handle: &Handle<SocketAddr>,
    connections: Connections,
) -> Result<Server<SocketAddr, RustlsAcceptor<Acceptor>>, WebserverError> {
    let acceptor = RustlsAcceptor::new(settings).acceptor(Acceptor(connections));
    Ok(patient(listener, handle)?.acceptor(acceptor))
}

/// Logs the error if a listener fails.
pub(super) async fn ended(serving: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = serving.await {
        tracing::error!(%error, "listener failed");
    }
}

/// Returns the HTTPS URL to which a plain HTTP request is redirected, if there is one.
fn moved(request: &Request, port: u16, names: &OwnNames) -> Option<String> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let local = request.extensions().get::<ArrivedAt>().map(|arrived| arrived.0);
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    names.target(host, local, port).map(|target| format!("https://{target}{path}"))
}

/// Response to a request that uses an unknown host name, which it does not repeat.
const UNKNOWN_NAME: &str =
    "unknown host name; use a name that is in the certificate of this webserver, or set External-Addr\n";

/// Redirects plain HTTP to HTTPS. Failure to bind the port is only logged.
pub(super) async fn redirect(
    address: SocketAddr,
    port: u16,
    handle: Handle<SocketAddr>,
    connections: Connections,
    names: Arc<OwnNames>,
) {
    let server = match bind(address, REDIRECT_SETTING).and_then(|listener| plain(listener, &handle, connections)) {
        Ok(server) => server,
        Err(error) => {
            tracing::warn!(%error, "failed to start the redirection from HTTP to HTTPS");
            return;
        }
    };
    let answer = move |request: Request| {
        let place = moved(&request, port, &names);
        async move {
            match place {
                Some(place) => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, place)]).into_response(),
                None => (StatusCode::BAD_REQUEST, UNKNOWN_NAME).into_response(),
            }
        }
    };
    ended(server.serve(axum::Router::new().fallback(answer).into_make_service())).await;
}
