//! One subscriber's tail: frames from the ring or from segments, bookmarks in between.

use std::sync::PoisonError;

use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;

use crate::codec::message::{self, Bookmark, Kind, Open};
use crate::codec::redacted::frames_for;
use crate::log::ReadError;
use crate::model::{Redaction, Seq};
use crate::protocol::feed::{self, Next};
use crate::transport::wire::{self, WireError};

use super::shared::SharedRef;

/// Most bytes handed to the stream at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a tail ended.
pub(super) enum FeedEnd {
    /// The subscriber is below the horizon.
    Compacted,
    /// The connection ended.
    Wire(WireError),
    /// The log cannot be read: damage, named.
    Log(ReadError),
}

impl<E: Into<WireError>> From<E> for FeedEnd {
    fn from(error: E) -> Self {
        FeedEnd::Wire(error.into())
    }
}

/// Serves the entries after `from`, without what `redaction` withholds, until the connection ends.
pub(super) async fn serve(
    shared: &SharedRef,
    connection: &quinn::Connection,
    from: Seq,
    redaction: Option<&Redaction>,
) -> Result<std::convert::Infallible, FeedEnd> {
    let broken = |error: quinn::ConnectionError| FeedEnd::Wire(error.into());
    let mut stream = connection.open_uni().await.map_err(broken)?;
    wire::send(&mut stream, Kind::Open, &Open::Tail).await?;
    let mut head = shared.head.subscribe();
    let mut bookmarks = shared.bookmarks.subscribe();
    if let Some(meta) = shared.state.meta() {
        wire::send(&mut stream, Kind::Bookmark, &Bookmark { seq: meta.seq, digest: meta.digest }).await?;
    }
    let mut sent = from;
    loop {
        let durable = *head.borrow_and_update();
        let next = {
            let ring = shared.ring.read().unwrap_or_else(PoisonError::into_inner);
            feed::next(&ring, sent, durable, shared.log.horizon(), CHUNK_BYTES)
        };
        match next {
            Next::Wait => tokio::select! {
                changed = head.changed() => changed.map_err(std::io::Error::other)?,
                bookmark = bookmarks.recv() => match bookmark {
                    Ok(bookmark) => wire::send(&mut stream, Kind::Bookmark, &bookmark).await?,
                    Err(RecvError::Lagged(_)) => {}
                    Err(closed) => return Err(std::io::Error::other(closed).into()),
                },
            },
            Next::Send(blocks) => {
                let last = blocks.last().map_or(sent, |block| block.last);
                let frames = blocks.into_iter().map(|block| frames_for(redaction, block.bytes));
                let frames = frames.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
                let bytes: usize = frames.iter().map(Bytes::len).sum();
                stream.write_all(&message::header(Kind::Frames, bytes)).await.map_err(std::io::Error::from)?;
                for frames in frames {
                    stream.write_chunk(frames).await.map_err(std::io::Error::from)?;
                }
                sent = last;
            }
            Next::Read(after) => {
                let log = shared.log.clone();
                let reading = tokio::task::spawn_blocking(move || log.frames(after, CHUNK_BYTES));
                let block = match reading.await.map_err(std::io::Error::other)? {
                    Ok(Some(block)) => block,
                    Ok(None) => continue,
                    Err(ReadError::Compacted { .. }) => return Err(FeedEnd::Compacted),
                    Err(error) => return Err(FeedEnd::Log(error)),
                };
                let frames = frames_for(redaction, block.bytes).map_err(std::io::Error::other)?;
                stream.write_all(&message::header(Kind::Frames, frames.len())).await.map_err(std::io::Error::from)?;
                stream.write_chunk(frames).await.map_err(std::io::Error::from)?;
                sent = block.last;
            }
            Next::Compacted => return Err(FeedEnd::Compacted),
        }
    }
}
