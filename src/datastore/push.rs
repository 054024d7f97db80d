//! One push stream: transactions in, outcomes out, in order.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, mpsc};

use gravwell_model::codec::blob_manifest::references_chunks;
use gravwell_model::codec::message::{self, BadMessage, Kind, Outcome, RefusalCode, Refused, TxnOutcome};
use gravwell_model::codec::txn::{BadTxn, HEAD_BYTES_MAX, decode_head, decode_txn_within};
use gravwell_model::limits::LimitExceeded;
use gravwell_model::{Limits, MemberName, Origin, Reason, Txn};
use gravwell_runtime::tasks::shares::Share;
use gravwell_runtime::telemetry;
use gravwell_transport::wire::{self, WireError};

use super::blobs::BlobPrecheck;
use super::commit_pipeline::PushStream;
use super::commit_thread::{Source, propose};
use super::shared::{ARRIVING_UNIT, DatastoreRef};

/// Most transactions of one stream with unwritten outcomes. Our own clients have fewer in flight.
pub(super) const UNANSWERED_MAX: usize = 16 << 10;
/// Time limit for receiving a transaction, plus one second for each `ARRIVAL_BYTES_PER_S` bytes. Any usable link
/// is faster.
const ARRIVAL_MIN: Duration = Duration::from_secs(30);
const ARRIVAL_BYTES_PER_S: u64 = 16 << 10;

/// Serves a push stream until the client finishes it.
pub(super) async fn serve(
    shared: &DatastoreRef,
    member: &MemberName,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
) -> Result<(), WireError> {
    let (reply, mut outcomes) = mpsc::unbounded_channel::<Outcome>();
    let unanswered = Semaphore::new(UNANSWERED_MAX);
    let stream = PushStream::default();
    let take_in = async {
        while let Some((kind, length)) = wire::read_header(receive).await? {
            if !matches!(kind, Kind::Push | Kind::PushLostBlobs) {
                return Err(BadMessage::Unexpected { expected: "Push", found: kind }.into());
            }
            // Held until the transaction is queued for the commit thread.
            let _room = room_for(shared, member, length).await?;
            let (txn, too_large) = arrive_in_time(&shared.limits, receive, length).await?;
            refuse_reserved(txn.id.origin)?;
            telemetry::txn_trace::received(txn.id, member);
            // Backpressure: stop reading from a client that does not read the outcomes.
            unanswered.acquire().await.map_err(std::io::Error::other)?.forget();
            let source = Source { member, is_admins: false, stream: &stream };
            match too_large {
                None => submit(shared, source, txn, kind == Kind::PushLostBlobs, &reply).await?,
                rejected => propose(shared, source, txn, rejected, None, &reply).await?,
            }
        }
        drop(reply);
        Ok(())
    };
    let give_out = async {
        let mut chunk = Vec::new();
        while let Some(outcome) = outcomes.recv().await {
            chunk.clear();
            chunk.extend(message::encode(Kind::Outcome, &outcome));
            let mut answered = 1;
            while chunk.len() < 32 << 10
                && let Ok(outcome) = outcomes.try_recv()
            {
                chunk.extend(message::encode(Kind::Outcome, &outcome));
                answered += 1;
            }
            tokio::io::AsyncWriteExt::write_all(send, &chunk).await?;
            unanswered.add_permits(answered);
        }
        Ok(())
    };
    tokio::try_join!(take_in, give_out).map(|_| ())
}

/// Acquires memory for an incoming push. Quotas are per member, so a member that stalls does not block others.
async fn room_for(shared: &DatastoreRef, member: &MemberName, length: usize) -> Result<Option<Share>, WireError> {
    // Almost nothing of a transaction above the size limit is kept in memory.
    if length <= ARRIVING_UNIT || length > shared.limits.of_pushed().txn_bytes_max {
        return Ok(None);
    }
    let units = u32::try_from(length.div_ceil(ARRIVING_UNIT)).unwrap_or(u32::MAX);
    Ok(Some(shared.arriving.take(Some(member.clone()), units).await.map_err(std::io::Error::other)?))
}

async fn arrive_in_time<R: AsyncRead + Unpin>(
    limits: &Limits,
    receive: &mut R,
    length: usize,
) -> Result<(Txn, Option<Reason>), WireError> {
    let patience = ARRIVAL_MIN + Duration::from_secs(length as u64 / ARRIVAL_BYTES_PER_S);
    tokio::time::timeout(patience, arrive(limits, receive, length)).await.map_err(|_| {
        let message = format!("a transaction of {length} bytes was not received within {} s", patience.as_secs());
        Refused { code: RefusalCode::Protocol, message }
    })?
}

/// Reads a transaction. If it exceeds a limit, only its ID is kept, together with the rejection reason.
async fn arrive<R: AsyncRead + Unpin>(
    limits: &Limits,
    receive: &mut R,
    length: usize,
) -> Result<(Txn, Option<Reason>), WireError> {
    if let Err(exceeded) = limits.check_pushed_bytes(length) {
        let head = wire::read_body(receive, HEAD_BYTES_MAX.min(length)).await?;
        wire::skip_body(receive, length - head.len()).await?;
        return Ok(rejected(&head, &exceeded)?);
    }
    let body = wire::read_body(receive, length).await?;
    match decode_txn_within(&body, limits.of_pushed().ops_max) {
        Ok(txn) => Ok((txn, None)),
        Err(error @ BadTxn::Rows { found }) => match limits.check_pushed_rows(found) {
            Err(exceeded) => Ok(rejected(&body, &exceeded)?),
            Ok(()) => Err(undecodable(&error).into()),
        },
        Err(error) => Err(undecodable(&error).into()),
    }
}

fn rejected(head: &[u8], broken: &LimitExceeded) -> Result<(Txn, Option<Reason>), Refused> {
    let (id, settled) = decode_head(head).map_err(|error| undecodable(&error))?;
    let txn = Txn { id, settled, time_ms: 0, note: Bytes::new(), conditions: Vec::new(), ops: Vec::new() };
    Ok((txn, Some(Reason::LimitExceeded { message: broken.to_string() })))
}

fn undecodable(error: &BadTxn) -> Refused {
    Refused { code: RefusalCode::Protocol, message: format!("cannot decode a pushed transaction: {error}") }
}

/// Proposes a transaction, unless it references chunks that must be uploaded first.
pub(super) async fn submit(
    shared: &DatastoreRef,
    source: Source<'_>,
    txn: Txn,
    is_forsaken: bool,
    reply: &mpsc::UnboundedSender<Outcome>,
) -> Result<(), Refused> {
    let deferred = |refused| {
        source.stream.interrupt();
        let _ = reply.send(Outcome { id: txn.id, fate: TxnOutcome::Deferred(refused) });
        Ok(())
    };
    let hold = references_chunks(&txn.ops).then(|| shared.contents.store.hold());
    let objection = match shared.contents.judge(&txn, is_forsaken).await {
        Ok(BlobPrecheck::Fine) => None,
        Ok(BlobPrecheck::Reject(reason)) => Some(reason),
        Ok(BlobPrecheck::Wait(refused)) => return deferred(refused),
        Err(message) => return deferred(Refused { code: RefusalCode::Internal, message }),
    };
    propose(shared, source, txn, objection, hold, reply).await
}

fn refuse_reserved(origin: Origin) -> Result<(), Refused> {
    if origin == Origin::default() {
        let message = "the origin of a transaction must not be all zeros".into();
        return Err(Refused { code: RefusalCode::Protocol, message });
    }
    Ok(())
}
