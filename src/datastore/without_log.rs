//! Status of a datastore that waits for its log, served at the local socket. All other requests are refused.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::health::{self, Code, Health, Reason};
use gravwell_model::codec::message::MESSAGE_BYTES_MAX;
use gravwell_transport::answer::{self, Answer, Failure, refuse};
use gravwell_transport::local;

/// Time for which the rest of a refused request is read.
const PATIENCE: Duration = Duration::from_secs(2);

/// Serves the status in the data directory `dir` until it is dropped. `message` is the reason for waiting, `remedy` the
/// action required.
///
/// # Errors
/// Returns an error if the directory does not exist or the socket cannot be created.
pub async fn say(dir: &Path, message: &str, remedy: &str) -> io::Result<Infallible> {
    let requests = local::Requests::new(local::listen(dir)?);
    let status = Arc::new(status(message, remedy));
    loop {
        let (stream, place) = requests.next().await;
        let status = Arc::clone(&status);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, &status).await {
                tracing::debug!(%error, "a local request ended early");
            }
            drop(place);
        });
    }
}

fn status(message: &str, remedy: &str) -> Status {
    let reasons = vec![Reason::new(Code::WaitsForRecovery, message, remedy)];
    let mut status = Status {
        role: "datastore".into(),
        running: true,
        problem: message.to_owned(),
        remedy: remedy.to_owned(),
        version: env!("CARGO_PKG_VERSION").into(),
        health: Health { reasons, ..Health::default() },
        ..Status::default()
    };
    health::assess(&mut status);
    status
}

async fn serve(stream: UnixStream, status: &Status) -> Result<(), Failure> {
    let (mut receive, mut send) = stream.into_split();
    let done = match answer::request(&mut receive, MESSAGE_BYTES_MAX).await {
        Ok(Request::Status) => Answer::new(&mut send).item(status).await,
        Ok(_) => Err(refuse(format!("{}: {}", status.problem, status.remedy))),
        Err(failure) => Err(failure),
    };
    let ended = Answer::new(&mut send).end(done).await;
    // Drain the stream, so that a client still sending can read the answer.
    let _ = send.shutdown().await;
    let _ = tokio::time::timeout(PATIENCE, tokio::io::copy(&mut receive, &mut tokio::io::sink())).await;
    Ok(ended?)
}
