//! One push stream: transactions in, outcomes out, in order.

use tokio::sync::{Semaphore, mpsc};

use crate::codec::content::names_chunks;
use crate::codec::message::{self, BadMessage, Fate, Kind, Outcome, RefusalCode, Refused};
use crate::codec::txn::decode_txn;
use crate::model::{MemberName, Origin, Txn};
use crate::telemetry;
use crate::transport::wire::{self, WireError};

use super::commit::{Source, propose};
use super::contents::Judgement;
use super::ledger::Stream;
use super::shared::SharedRef;

/// Transactions of one stream whose outcomes have not been written: more than any client of ours has under way.
pub(super) const UNANSWERED_MAX: usize = 16 << 10;

/// Serves a push stream until the client finishes it.
pub(super) async fn serve(
    shared: &SharedRef,
    member: &MemberName,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
) -> Result<(), WireError> {
    let (reply, mut outcomes) = mpsc::unbounded_channel::<Outcome>();
    let unanswered = Semaphore::new(UNANSWERED_MAX);
    let stream = Stream::default();
    let take_in = async {
        while let Some((kind, body)) = wire::read(receive).await? {
            if !matches!(kind, Kind::Push | Kind::PushForsaken) {
                return Err(BadMessage::Unexpected { expected: "Push", found: kind }.into());
            }
            let txn = decode_txn(&body).map_err(|error| {
                let code = RefusalCode::Protocol;
                Refused { code, message: format!("a pushed transaction does not decode: {error}") }
            })?;
            refuse_reserved(txn.id.origin)?;
            telemetry::journey::received(txn.id, member);
            // Whoever does not read the answers is not read either.
            unanswered.acquire().await.map_err(std::io::Error::other)?.forget();
            let source = Source { member, is_admins: false, stream: &stream };
            submit(shared, source, txn, kind == Kind::PushForsaken, &reply).await?;
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

/// Proposes a transaction, unless chunks that it names must be sent first.
pub(super) async fn submit(
    shared: &SharedRef,
    source: Source<'_>,
    txn: Txn,
    is_forsaken: bool,
    reply: &mpsc::UnboundedSender<Outcome>,
) -> Result<(), Refused> {
    let deferred = |refused| {
        source.stream.interrupt();
        let _ = reply.send(Outcome { id: txn.id, fate: Fate::Deferred(refused) });
        Ok(())
    };
    let hold = names_chunks(&txn.ops).then(|| shared.contents.store.hold());
    let objection = match shared.contents.judge(&txn, is_forsaken).await {
        Ok(Judgement::Fine) => None,
        Ok(Judgement::Reject(reason)) => Some(reason),
        Ok(Judgement::Wait(refused)) => return deferred(refused),
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
