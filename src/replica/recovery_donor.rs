//! Donating the state to a datastore that has lost its log.
//!
//! A datastore without entries is rejected like any other with an inconsistent position: nothing local changes. But its
//! certificate has proved that it is this member's datastore, so it may read the member's state in order to be rebuilt.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use crate::codec::admin::Request;
use crate::codec::message::{Kind, MESSAGE_BYTES_MAX, Open, RefusalCode, Refused};
use crate::log::generations;
use crate::state::StateError;
use crate::transport::answer::{self, Answer, Failure};
use crate::transport::state_stream;
use crate::transport::wire::{self, WireError};
use crate::trust::{CaBackup, Identity, TrustError};

use super::shared::ReplicaRef;

/// Longest wait for a request of an empty datastore.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves requests for the state until the datastore closes the connection or sends no further request.
pub(super) async fn serve(shared: &ReplicaRef, directory: &Path, connection: &quinn::Connection) {
    while let Ok(Ok((mut send, mut receive))) = timeout(PATIENCE, connection.accept_bi()).await {
        if let Err(error) = answer(shared, directory, &mut send, &mut receive).await {
            tracing::debug!(%error, "state upload failed");
        }
    }
}

async fn answer(
    shared: &ReplicaRef,
    directory: &Path,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
) -> Result<(), WireError> {
    match wire::expect::<Open, _>(receive, Kind::Open).await? {
        open @ (Open::Snapshot | Open::StateAndDeletions | Open::WholeState) => {
            let snapshot = shared.state().snapshot().map_err(std::io::Error::other)?;
            if snapshot.meta().is_some_and(|meta| meta.is_redacted) {
                let message = StateError::Redacted.to_string();
                return wire::send(send, Kind::Refused, &Refused { code: RefusalCode::Forbidden, message }).await;
            }
            tracing::info!("uploading the state to an empty datastore");
            state_stream::send(snapshot, open, None, send).await
        }
        Open::Admin => {
            let result = match answer::request(receive, MESSAGE_BYTES_MAX).await {
                Ok(Request::Generations) => send_generations(shared, directory, send).await,
                Ok(Request::Proof) => send_proof(shared, send).await,
                Ok(Request::Escrow { .. }) => tell_marks(directory, send).await,
                Ok(_) => Err(answer::refuse(
                    "a member serves an empty datastore only the origins of generations, the last signed position, and \
                     the marks of its encrypted CA backups",
                )),
                Err(failure) => Err(failure),
            };
            Answer::new(send).end(result).await
        }
        other => {
            let message = format!("a member does not support {other:?}");
            wire::send(send, Kind::Refused, &Refused { code: RefusalCode::Protocol, message }).await
        }
    }
}

async fn send_generations(shared: &ReplicaRef, directory: &Path, send: &mut quinn::SendStream) -> Result<(), Failure> {
    let Some(position) = shared.position() else { return Ok(()) };
    let known = generations::all(directory, position.log_id).map_err(answer::damaged)?;
    let mut answer = Answer::new(send);
    for info in known {
        answer.item(&info).await?;
    }
    Ok(())
}

async fn send_proof(shared: &ReplicaRef, send: &mut quinn::SendStream) -> Result<(), Failure> {
    let proof = shared.proof.borrow().clone();
    match proof {
        Some(proof) => Answer::new(send).item(&proof).await,
        None => Ok(()),
    }
}

/// Sends the signed marks of the registries in the encrypted CA backups that are here, so that none is left out when one
/// is put back.
async fn tell_marks(directory: &Path, send: &mut quinn::SendStream) -> Result<(), Failure> {
    let mut answer = Answer::new(send);
    let left = Identity::left_escrows(directory).map_err(answer::damaged)?;
    for path in std::iter::once(Identity::escrow(directory)).chain(left) {
        let escrow = match CaBackup::load(&path) {
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
            // It may be the only one with the latest revocations.
            escrow => escrow.map_err(answer::damaged)?,
        };
        if let Some(mark) = escrow.mark {
            answer.item(&mark).await?;
        }
    }
    Ok(())
}
