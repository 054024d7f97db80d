//! Keeps the last position that the datastore signed: after the loss of its disk it tells what this member's position is worth.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec::message::Kind;
use crate::transport::wire;
use crate::trust::Proof;

use super::link::{Connector, LinkError};
use super::shared::{Shared, SharedRef};

/// Pause between two writes of the file.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for what was shown to arrive.
const ARRIVES: Duration = Duration::from_secs(2);

/// What the directory keeps. A file that cannot be read proves nothing, and is replaced by the next one.
pub(super) fn open(directory: &Path) -> Option<Proof> {
    Proof::load(directory).unwrap_or_else(|error| {
        tracing::warn!(error, "the last signed position is not known here until the datastore sends another one");
        None
    })
}

/// Takes in what the datastore sent.
pub(super) fn take(shared: &Shared, connector: &dyn Connector, body: &[u8]) {
    let proof = match Proof::from_bytes(body) {
        Ok(proof) => proof,
        Err(error) => return tracing::warn!(error, "the datastore sent a signed position that cannot be read"),
    };
    if !connector.authority().is_some_and(|authority| proof.is_of(&authority)) {
        return tracing::warn!("the datastore sent a position that its authority did not sign");
    }
    // An older copy of the datastore says less than is known.
    shared.proof.send_if_modified(|known| {
        let is_news = known.as_ref() != Some(&proof) && !known.as_ref().is_some_and(|known| proof.is_older_than(known));
        if is_news {
            *known = Some(proof);
        }
        is_news
    });
}

/// Writes down what comes.
pub(super) async fn keep(shared: &SharedRef, directory: &Path) -> Result<std::convert::Infallible, LinkError> {
    let mut proofs = shared.proof.subscribe();
    loop {
        proofs.changed().await.map_err(|_| LinkError::Closing)?;
        let proof = proofs.borrow_and_update().clone();
        let directory = PathBuf::from(directory);
        let saving = move || proof.map_or(Ok(()), |proof| proof.save(&directory));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(saving).await {
            tracing::warn!(error, "the last signed position is not kept; the next one is");
        }
        tokio::time::sleep(SAVE_EVERY).await;
    }
}

/// Writes down the last one, before the process ends.
pub(super) fn save(shared: &Shared, directory: &Path) {
    let proof = shared.proof.borrow().clone();
    if let Some(Err(error)) = proof.map(|proof| proof.save(directory)) {
        tracing::warn!(error, "the last signed position is not kept");
    }
}

/// Shows it to a datastore whose log contradicts this member: its own word is a proof, whoever shows it. Returns when it has
/// arrived, because the connection may be closed then.
pub(super) async fn show(shared: &Shared, send: &mut quinn::SendStream) -> Result<(), LinkError> {
    let proof = shared.proof.borrow().clone();
    if let Some(proof) = proof {
        wire::send_raw(send, Kind::Proof, proof.to_text().as_bytes()).await?;
        let _ = send.finish();
        let _ = tokio::time::timeout(ARRIVES, send.stopped()).await;
    }
    Ok(())
}
