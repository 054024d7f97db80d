//! Results on their way to a client: block by block, as fast as the client takes them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::search::render::{About, Format, Rendering, Step};
use crate::search::results::Results;

/// Bytes that come as they are ready; an error ends the connection, so that nobody takes a part for the whole.
pub(in crate::web) type Bytestream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Pieces that may wait for the client.
const WAITING: usize = 4;
/// Bytes of the file itself that are given at once.
const PIECE_BYTES: usize = 256 << 10;

pub(super) fn stream_of(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Bytestream {
    Box::pin(futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    }))
}

/// Gives results in a form; while the search runs, until it ends.
pub(super) fn rendered(results: Arc<Results>, about: About, format: Format) -> Bytestream {
    let (to, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        if let Err(error) = render(results, about, format, &to).await {
            let _ = to.send(Err(error)).await;
        }
    });
    stream_of(receiver)
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

async fn render(
    results: Arc<Results>,
    about: About,
    format: Format,
    to: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let mut progress = results.watch();
    if Rendering::must_be_complete(&about, format) {
        tokio::select! {
            _ = progress.wait_for(|progress| progress.is_finished) => {}
            () = to.closed() => return Ok(()),
        }
    }
    if format == Format::Archive {
        return copy(&results, to).await;
    }
    let mut rendering = off_thread(move || Rendering::new(results, about, format)).await?.map_err(io::Error::other)?;
    loop {
        // What comes after this look is seen by the next one.
        progress.borrow_and_update();
        let (back, step) = off_thread(move || {
            let step = rendering.step();
            (rendering, step)
        })
        .await?;
        rendering = back;
        match step.map_err(io::Error::other)? {
            Step::End => return Ok(()),
            Step::Bytes(bytes) if bytes.is_empty() => {}
            Step::Bytes(bytes) => {
                if to.send(Ok(bytes.into())).await.is_err() {
                    return Ok(());
                }
            }
            Step::Wait => {
                tokio::select! {
                    changed = progress.changed() => if changed.is_err() { return Ok(()) },
                    () = to.closed() => return Ok(()),
                }
            }
        }
    }
}

async fn copy(results: &Results, to: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
    let path = results.path().to_owned();
    let mut file = off_thread(move || std::fs::File::open(path)).await??;
    loop {
        let read = off_thread(move || {
            let mut bytes = Vec::with_capacity(PIECE_BYTES);
            let read = io::Read::read_to_end(&mut io::Read::take(&mut file, PIECE_BYTES as u64), &mut bytes);
            read.map(|_| (file, bytes))
        });
        let (back, bytes) = read.await??;
        file = back;
        if bytes.is_empty() || to.send(Ok(bytes.into())).await.is_err() {
            return Ok(());
        }
    }
}
