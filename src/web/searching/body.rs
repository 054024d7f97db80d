//! Results on their way to a client: block by block, as fast as the client takes them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

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

/// A client that takes nothing for this long is given up, also where its connection has other streams.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);

/// What a sender gives, up to an empty piece. One that is gone without it has given a part.
pub(super) fn stream_of(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Bytestream {
    Box::pin(futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(bytes)) if bytes.is_empty() => None,
            Some(Ok(bytes)) => Some((Ok(bytes), Some(receiver))),
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    }))
}

/// Hands a piece over as soon as the client takes it.
pub(super) async fn hand_over(to: &mpsc::Sender<io::Result<Bytes>>, item: io::Result<Bytes>) -> io::Result<()> {
    hand_over_within(TAKEN_WITHIN, to, item).await
}

async fn hand_over_within(
    patience: Duration,
    to: &mpsc::Sender<io::Result<Bytes>>,
    item: io::Result<Bytes>,
) -> io::Result<()> {
    let sent = tokio::time::timeout(patience, to.send(item)).await;
    sent.map_err(|_| io::ErrorKind::TimedOut)?.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Gives results in a form; while the search runs, until it ends.
pub(super) fn rendered(results: Arc<Results>, about: About, format: Format) -> Bytestream {
    let (to, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let end = render(results, about, format, &to).await.map(|()| Bytes::new());
        // Nobody may be there to be told.
        let _ = hand_over(&to, end).await;
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
                hand_over(to, Ok(bytes.into())).await?;
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
        if bytes.is_empty() {
            return Ok(());
        }
        hand_over(to, Ok(bytes.into())).await?;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn p15_a_client_that_takes_nothing_is_given_up_and_has_a_part() {
        let (to, receiver) = mpsc::channel(1);
        hand_over(&to, Ok("a".into())).await.expect("has room");
        let late = hand_over_within(Duration::ZERO, &to, Ok("b".into())).await;
        let error = late.expect_err("nobody takes it");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(to);
        let mut stream = stream_of(receiver);
        assert_eq!(stream.next().await.expect("a piece").expect("is there"), "a");
        assert!(stream.next().await.expect("not the end").is_err());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn what_is_whole_ends_with_an_empty_piece() {
        let (to, receiver) = mpsc::channel(2);
        for piece in ["a", ""] {
            hand_over(&to, Ok(piece.into())).await.expect("has room");
        }
        let pieces: Vec<_> = stream_of(receiver).map(|piece| piece.expect("is there")).collect().await;
        assert_eq!(pieces, ["a"]);
        assert!(hand_over(&to, Ok("c".into())).await.is_err(), "nobody is there any more");
    }
}
