//! Closing of a connection such that the client can read the last response.
//!
//! A request that is rejected before its body was read leaves bytes in flight. If the socket were closed then, the kernel
//! would reset the connection, and the client would see a send error instead of the response. So the sending side is
//! closed first, and incoming bytes are discarded for a while. This works below TLS and HTTP, so it covers every route.

use std::future::Future as _;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum_server::accept::Accept;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;

use super::connections::{Connection, Connections, Standing};
use super::error::ApiError;
use super::listener::HEADERS_MAX;
use super::unknown_memory::Memory;

/// Maximum number of bytes discarded.
const BYTES_MAX: u64 = 64 << 20;
/// Maximum time spent on discarding for a user's connection.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Maximum time spent on discarding for an unauthenticated client.
const STRANGERS_TIME_MAX: Duration = Duration::from_secs(5);
/// Timeout for a client that reads nothing of a response.
const STALLED_MAX: Duration = Duration::from_secs(60);
/// A client that sends nothing for this long is assumed to have read the response.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Flag that a request body of this connection was left unread.
#[derive(Clone, Debug, Default)]
pub(super) struct Unread(Arc<AtomicBool>);

impl Unread {
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Local address to which a client connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArrivedAt(pub IpAddr);

/// Wraps admitted connections in [`Lingering`].
#[derive(Clone)]
pub(super) struct Acceptor(pub Connections);

impl<S> Accept<TcpStream, S> for Acceptor {
    type Stream = Lingering;
    type Service = TaggedService<S>;
    type Future = std::future::Ready<io::Result<(Lingering, TaggedService<S>)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let unread = Unread::default();
        let admitted = stream.peer_addr().map(|address| self.0.admit(address.ip()));
        let connection = match admitted {
            Ok(Some(connection)) => connection,
            Ok(None) => return std::future::ready(Err(io::Error::other("too many connections are open"))),
            Err(error) => return std::future::ready(Err(error)),
        };
        let (standing, connections) = (Arc::clone(&connection.standing), self.0.clone());
        let limit: Limit = Box::pin(Arc::clone(&standing).ends());
        let (unread_too, stalled, memory) = (unread.clone(), None, Memory::of(&standing));
        let limit = Some(limit);
        let lingering = Lingering { stream, unread: unread_too, ending: None, limit, stalled, memory, connection };
        let arrived = lingering.stream.local_addr().ok().map(|address| ArrivedAt(address.ip()));
        // Responses are written as a whole, so Nagle's algorithm would only delay them.
        let ready = lingering.stream.set_nodelay(true);
        std::future::ready(
            ready.map(|()| (lingering, TaggedService { inner: service, unread, standing, connections, arrived })),
        )
    }
}

/// Service that adds the connection's [`Unread`], [`Standing`] and [`Connections`] to every request as extensions.
#[derive(Clone, Debug)]
pub(super) struct TaggedService<S> {
    inner: S,
    unread: Unread,
    standing: Arc<Standing>,
    connections: Connections,
    arrived: Option<ArrivedAt>,
}

/// Marks a request that had more headers than allowed, and lost them.
#[derive(Clone, Copy)]
struct TooManyHeaders;

/// Middleware that rejects requests with too many headers.
pub(super) async fn few_headers(request: Request<Body>, next: Next) -> Response {
    if request.extensions().get::<TooManyHeaders>().is_none() {
        return next.run(request).await;
    }
    let message = format!("the request has more than {HEADERS_MAX} headers; send fewer");
    ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message).into_response()
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for TaggedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if request.headers().len() > HEADERS_MAX {
            // HTTP/2 has no limit of its own. They are freed here, before the request waits for anything.
            *request.headers_mut() = HeaderMap::new();
            request.extensions_mut().insert(TooManyHeaders);
        }
        request.extensions_mut().insert(self.unread.clone());
        self.standing.note_request();
        request.extensions_mut().insert(Arc::clone(&self.standing));
        request.extensions_mut().insert(self.connections.clone());
        if let Some(arrived) = self.arrived {
            request.extensions_mut().insert(arrived);
        }
        self.inner.call(request)
    }
}

/// Bounds of the discarding phase.
#[derive(Debug)]
struct Ending {
    until: Instant,
    wake: Pin<Box<Sleep>>,
    bytes_left: u64,
}

type Limit = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that stays open after its last response while the client still sends.
pub(super) struct Lingering {
    stream: TcpStream,
    unread: Unread,
    ending: Option<Ending>,
    /// Completes when the connection must be closed immediately; `None` once it has.
    limit: Option<Limit>,
    /// Runs while the client reads nothing of the sent data.
    stalled: Option<Pin<Box<Sleep>>>,
    memory: Memory,
    connection: Connection,
}

impl Lingering {
    /// Returns an error if the connection must be closed immediately.
    fn poll_limit(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let has_to_end = self.limit.as_mut().is_none_or(|limit| limit.as_mut().poll(cx).is_ready());
        if has_to_end {
            self.limit = None;
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// Returns a timeout error if the client reads nothing for too long.
    fn poll_stalled<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.memory.note_sent();
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED_MAX)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Discards incoming bytes until the client closes the connection or a bound is reached.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.poll_limit(cx).is_err() {
            return Poll::Ready(());
        }
        let Some(ending) = &mut self.ending else { return Poll::Ready(()) };
        let mut space = [0; 16 << 10];
        loop {
            let mut piece = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(cx, &mut piece) {
                Poll::Ready(Ok(())) if !piece.filled().is_empty() => {
                    ending.bytes_left = ending.bytes_left.saturating_sub(piece.filled().len() as u64);
                    if ending.bytes_left == 0 || Instant::now() >= ending.until {
                        return Poll::Ready(());
                    }
                    ending.wake.as_mut().reset(ending.until.min(Instant::now() + SILENCE_MAX));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                // Nothing is in flight and no body was left unread: no need to wait for the client.
                Poll::Pending if ending.bytes_left == BYTES_MAX && !self.unread.0.load(Ordering::Relaxed) => {
                    return Poll::Ready(());
                }
                Poll::Pending => return ending.wake.as_mut().poll(cx),
            }
        }
    }
}

impl AsyncRead for Lingering {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_limit(cx)?;
        let before = to.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, to);
        let bytes = to.filled().len() - before;
        if bytes > 0 {
            self.memory.note_received(bytes);
        }
        read
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_limit(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.poll_stalled(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_limit(cx)?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.poll_stalled(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            let time_max = if self.connection.standing.is_known() { TIME_MAX } else { STRANGERS_TIME_MAX };
            let (until, wake) = (Instant::now() + time_max, Box::pin(sleep(SILENCE_MAX)));
            self.ending = Some(Ending { until, wake, bytes_left: BYTES_MAX });
        }
        self.poll_discard(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, Lingering) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("address");
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (lingering, _) =
            Acceptor(Connections::new(0, 0, Vec::new())).accept(accepted.expect("accepts").0, ()).await.expect("ready");
        (client.expect("connects"), lingering)
    }

    #[tokio::test]
    async fn a_client_that_still_sends_gets_to_read_the_answer() {
        let (mut client, mut server) = pair().await;
        server.unread.note();
        let serving = tokio::spawn(async move {
            server.write_all(b"refused").await.expect("answers");
            server.shutdown().await.expect("ends");
        });
        client.write_all(&vec![7; 8 << 20]).await.expect("sends the whole body");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("reads");
        assert_eq!(answer, "refused");
        drop(client);
        serving.await.expect("ended");
    }

    #[tokio::test]
    async fn a_client_that_sends_without_end_is_cut_off() {
        let (mut client, mut server) = pair().await;
        server.unread.note();
        let serving = tokio::spawn(async move {
            server.shutdown().await.expect("ends");
        });
        let mut sent = 0_u64;
        while client.write_all(&[7; 64 << 10]).await.is_ok() {
            sent += 64 << 10;
            assert!(sent < 4 * BYTES_MAX, "the server keeps reading");
        }
        serving.await.expect("ended");
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_idle_clients() {
        let (_client, mut server) = pair().await;
        let ended = futures_util::FutureExt::now_or_never(server.shutdown());
        ended.expect("at once").expect("ends");
    }
}
