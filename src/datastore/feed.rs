//! The tail of one subscriber: frames from the ring or from segments. Their choice, and the place of bookmarks among
//! them, is up to the session machine.

use bytes::Bytes;

use gravwell_log::ReadError;
use gravwell_model::codec::block;
use gravwell_model::codec::error::DecodeError;
use gravwell_model::codec::message::{self, Bookmark, Kind, MESSAGE_BYTES_MAX, Open};
use gravwell_model::codec::redacted_frame::frames_for;
use gravwell_model::{MemberName, Redaction};
use gravwell_protocol::session::server::{Event, Feed};
use gravwell_runtime::tasks::vital;
use gravwell_transport::wire::{self, WireError};

use super::shared::{BLOCK_BYTES, DatastoreRef};

/// Reason why a tail ended.
pub(super) enum FeedEnd {
    /// The connection ended.
    Wire(WireError),
    /// The log cannot be read.
    Log(ReadError),
}

impl<E: Into<WireError>> From<E> for FeedEnd {
    fn from(error: E) -> Self {
        FeedEnd::Wire(error.into())
    }
}

/// Opens a tail, which starts with the bookmark of the index.
pub(super) async fn open(
    shared: &DatastoreRef,
    connection: &quinn::Connection,
) -> Result<quinn::SendStream, WireError> {
    let mut stream = connection.open_uni().await?;
    wire::send(&mut stream, Kind::Open, &Open::Tail).await?;
    if let Some(meta) = shared.state.meta() {
        wire::send(&mut stream, Kind::Bookmark, &Bookmark { seq: meta.seq, digest: meta.digest }).await?;
    }
    Ok(stream)
}

/// Sends the next entries, without the values that `redaction` withholds. Returns the event that completes this.
pub(super) async fn send_next(
    shared: &DatastoreRef,
    member: &MemberName,
    stream: &mut quinn::SendStream,
    next: Feed,
    redaction: Option<&Redaction>,
) -> Result<Event, FeedEnd> {
    let room = shared.room_for_block(member).await.map_err(std::io::Error::other)?;
    let (last, blocks, _room) = match next {
        Feed::Send(blocks) => {
            let last = blocks.last().map(|block| block.last).unwrap_or_default();
            (last, blocks.into_iter().map(|block| block.bytes).collect(), room)
        }
        Feed::Read(after) => {
            let log = shared.log.clone();
            let reading = vital::spawn_blocking(move || (log.frames(after, BLOCK_BYTES), room));
            let (found, room) = reading.await.map_err(std::io::Error::other)?;
            match found {
                Ok(Some(block)) => (block.last, vec![block.bytes], room),
                Ok(None) => return Ok(Event::NothingRead),
                Err(ReadError::Compacted { .. }) => return Ok(Event::ReadCompacted(shared.log.horizon())),
                Err(error) => return Err(FeedEnd::Log(error)),
            }
        }
    };
    let frames = blocks.into_iter().map(|bytes| frames_for(redaction, bytes));
    let frames = frames.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
    send(stream, frames).await?;
    Ok(Event::Fed(last))
}

/// Sends whole frames in as few messages as possible.
async fn send(stream: &mut quinn::SendStream, frames: Vec<Bytes>) -> Result<(), WireError> {
    for message in messages(frames, MESSAGE_BYTES_MAX).map_err(std::io::Error::other)? {
        let bytes = message.iter().map(Bytes::len).sum();
        stream.write_all(&message::header(Kind::Frames, bytes)).await.map_err(std::io::Error::from)?;
        for frames in message {
            stream.write_chunk(frames).await.map_err(std::io::Error::from)?;
        }
    }
    Ok(())
}

/// Splits frames into message bodies. One committed batch, or its redacted form, may be longer than a message.
fn messages(frames: Vec<Bytes>, bytes_max: usize) -> Result<Vec<Vec<Bytes>>, DecodeError> {
    if frames.iter().map(Bytes::len).sum::<usize>() <= bytes_max {
        return Ok(vec![frames]);
    }
    let parts = frames.into_iter().map(|block| block::split(block, bytes_max)).collect::<Result<Vec<_>, _>>()?;
    Ok(parts.into_iter().flatten().map(|part| vec![part]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::Seq;
    use gravwell_model::codec::frame::{CHAIN_START, FrameParts, encode_frame, kind};
    use gravwell_model::codec::message::{HEADER_BYTES, decode_header};
    use gravwell_model::limits::HARD;

    /// The largest batch that the committer collects: a batch that is almost full, plus one transaction of
    /// maximum size.
    #[test]
    fn p02_a_batch_that_is_longer_than_a_message_is_sent_in_several() {
        let lengths = [(8 << 20) - 100, HARD.txn_bytes_max];
        let (mut block, mut chain) = (Vec::new(), CHAIN_START);
        for (length, seq) in lengths.into_iter().zip(1..) {
            let parts = FrameParts { kind: kind::COMMIT, flags: 0, batch_index: 0, seq: Seq(seq) };
            chain = encode_frame(parts, &chain, &vec![0; length], &mut block).expect("encodes");
        }
        let block = Bytes::from(block);
        let sent = messages(vec![block.clone()], MESSAGE_BYTES_MAX).expect("splits");
        assert_eq!(sent.concat().concat(), block);
        for message in &sent {
            let bytes = message.iter().map(Bytes::len).sum();
            let header: [u8; HEADER_BYTES] = message::header(Kind::Frames, bytes);
            assert_eq!(decode_header(header, MESSAGE_BYTES_MAX), Ok((Kind::Frames, bytes)), "a member decodes it");
        }
        let few = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        assert_eq!(messages(few.clone(), 2), Ok(vec![few]), "one message if it fits");
    }
}
