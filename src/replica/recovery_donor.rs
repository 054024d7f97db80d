//! Donating the state to a datastore that has lost its log.
//!
//! A datastore without entries is rejected like any other with an inconsistent position: nothing local changes. But its
//! certificate has proved that it is this member's datastore, so it may read the member's state in order to be rebuilt.

use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::timeout;

use gravwell_log::generations;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::message::{Kind, MESSAGE_BYTES_MAX, Open, RefusalCode, Refused};
use gravwell_state::StateError;
use gravwell_transport::answer::{self, Answer, Failure};
use gravwell_transport::state_stream;
use gravwell_transport::trust::{CaBackup, Identity, TrustError};
use gravwell_transport::wire::{self, WireError};

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
/// is put back. If one cannot be read, the marks of all others are sent before the error.
async fn tell_marks<W: AsyncWrite + Unpin>(directory: &Path, send: &mut W) -> Result<(), Failure> {
    let (mut answer, mut unreadable) = (Answer::new(send), None);
    let mut paths = vec![Identity::escrow(directory)];
    for listed in [Identity::left_escrows(directory), Identity::damaged_escrows(directory)] {
        match listed {
            Ok(listed) => paths.extend(listed),
            Err(error) => drop(unreadable.get_or_insert(error)),
        }
    }
    for path in paths {
        match CaBackup::load(&path) {
            Ok(CaBackup { mark: Some(mark), .. }) => answer.item(&mark).await?,
            Ok(_) => {}
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            // It may be the only one with the latest revocations.
            Err(error) => {
                unreadable.get_or_insert(error);
            }
        }
    }
    unreadable.map_or(Ok(()), |error| Err(answer::damaged(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::MemberName;
    use gravwell_transport::trust::{Authority, Registry, Role, SignedMark};

    const NOW: u64 = 1_800_000_000_000;

    #[tokio::test]
    async fn p13_a_copy_that_cannot_be_read_does_not_hide_the_marks_of_the_others() {
        let temp = tempfile::tempdir().expect("temp dir");
        let trust = temp.path().join("trust");
        let mut register = Registry::open(&trust, NOW).expect("register");
        let authority = Authority::open_or_create(&trust, NOW).expect("authority");
        let seal = |name: &str, register: &mut Registry| {
            register.invite(&MemberName::new(name).expect("name"), Role::Reader, 9, NOW, false).expect("invites");
            CaBackup::seal(&trust, &authority, register, NOW).expect("seals")
        };
        let copies = ["web1", "web2", "web3"].map(|name| seal(name, &mut register));
        let path = Identity::escrow(temp.path());
        std::fs::create_dir_all(path.parent().expect("has one")).expect("creates");
        for copy in &copies[..2] {
            Identity::keep_left(temp.path(), copy).expect("writes");
        }
        copies[2].save(&path).expect("writes");
        let marks = async || {
            let (mut sent, mut marks) = (Vec::new(), Vec::new());
            let result = tell_marks(temp.path(), &mut sent).await;
            let mut sent = &sent[..];
            while let Some((kind, body)) = wire::read(&mut sent).await.expect("reads") {
                assert_eq!(kind, Kind::AdminItem);
                marks.push(serde_json::from_slice::<SignedMark>(&body).expect("a mark").mark);
            }
            (marks, result.map_err(|error| error.to_string()))
        };
        let mark = |copy: &CaBackup| copy.mark.as_ref().expect("is signed").mark.clone();
        assert_eq!(marks().await, (vec![mark(&copies[2]), mark(&copies[0]), mark(&copies[1])], Ok(())));
        let left = Identity::left_escrows(temp.path()).expect("lists");
        for (damaged, others) in [(&left[0], [2, 1]), (&path, [0, 1])] {
            let whole = std::fs::read(damaged).expect("reads");
            std::fs::write(damaged, "damaged").expect("writes");
            let (sent, result) = marks().await;
            assert_eq!(sent, others.map(|at| mark(&copies[at])));
            assert!(result.expect_err("one is damaged").contains(&damaged.display().to_string()));
            std::fs::write(damaged, whole).expect("writes");
        }
        // One that was set aside may be the latest one as well.
        std::fs::write(&path, "damaged").expect("writes");
        Identity::set_escrow_aside(temp.path()).expect("renames");
        let (sent, result) = marks().await;
        assert!(sent.len() == 2 && result.expect_err("one is damaged").contains("escrow.damaged-1"));
    }
}
