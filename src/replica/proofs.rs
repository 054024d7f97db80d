//! Stores the last position that the datastore signed: if the datastore loses its disk, it shows how reliable this
//! member's position is. Next to it is stored how far this member's own state had come, in case state and high-water
//! mark are lost together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use gravwell_env::checksummed_text;
use gravwell_env::data_dir::replace_file;
use gravwell_model::Position;
use gravwell_model::codec::message::Kind;
use gravwell_runtime::tasks::vital;
use gravwell_transport::trust::Proof;
use gravwell_transport::wire;

use super::link::{Connector, LinkError};
use super::shared::{ReplicaRef, ReplicaState};

/// Shortest interval between two writes of the file.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for a shown position to arrive.
const ARRIVES: Duration = Duration::from_secs(2);

/// Contents of `proof`. A reader that needs only the signed position ignores the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredProof {
    /// The last position that the datastore signed. The state may not have reached it.
    #[serde(flatten)]
    pub proof: Proof,
    /// Position of the last high-water mark that was written before.
    #[serde(default)]
    pub reached: Option<Position>,
}

impl StoredProof {
    /// Writes the file to a member's directory, replacing an earlier one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn save(&self, directory: &Path) -> Result<(), String> {
        let text = serde_json::to_string(self).expect("invariant: it has no map with odd keys");
        replace_file(&directory.join(Proof::FILE), checksummed_text::seal(&text).as_bytes())
            .map_err(|error| error.to_string())
    }
}

/// Reads the file.
///
/// # Errors
/// Describes the problem with the file.
pub(super) fn read(directory: &Path) -> Result<Option<StoredProof>, String> {
    let Some(proof) = Proof::load(directory)? else { return Ok(None) };
    let path = directory.join(Proof::FILE);
    let problem = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(&path).map_err(|error| problem(&error))?;
    let kept: StoredProof = serde_json::from_str(checksummed_text::open(&text).map_err(|error| problem(&error))?)
        .map_err(|error| problem(&error))?;
    Ok(Some(StoredProof { proof, ..kept }))
}

/// Loads the file. One that cannot be read proves nothing, and is replaced by the next one.
pub(super) fn open(directory: &Path, shared: &ReplicaState) {
    match read(directory) {
        Ok(Some(StoredProof { proof, reached })) => {
            shared.proof.send_replace(Some(proof));
            shared.reached.send_replace(reached);
        }
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error, "failed to load the last signed position; waiting for the next one");
        }
    }
}

fn write(shared: &ReplicaState, directory: &Path) -> Result<(), String> {
    let (proof, reached) = (shared.proof.borrow().clone(), *shared.reached.borrow());
    let Some(proof) = proof else { return Ok(()) };
    StoredProof { proof, reached }.save(directory)
}

/// Handles a signed position from the datastore.
pub(super) fn take(shared: &ReplicaState, connector: &dyn Connector, body: &[u8]) {
    let proof = match Proof::from_bytes(body) {
        Ok(proof) => proof,
        Err(error) => return tracing::warn!(error, "received an invalid signed position from the datastore"),
    };
    if !connector.authorities().iter().any(|authority| proof.is_of(authority)) {
        return tracing::warn!("received a position that the datastore's CA did not sign");
    }
    // An older copy of the datastore has signed less than is known.
    shared.proof.send_if_modified(|known| {
        let is_news = known.as_ref() != Some(&proof) && !known.as_ref().is_some_and(|known| proof.is_older_than(known));
        if is_news {
            *known = Some(proof);
        }
        is_news
    });
}

/// Writes each new signed position and mark to the file.
pub(super) async fn keep(shared: &ReplicaRef, directory: &Path) -> Result<std::convert::Infallible, LinkError> {
    let (mut proofs, mut reached) = (shared.proof.subscribe(), shared.reached.subscribe());
    // Marks may have been written before this connection.
    reached.mark_changed();
    loop {
        tokio::select! {
            changed = proofs.changed() => changed,
            changed = reached.changed() => changed,
        }
        .map_err(|_| LinkError::Closing)?;
        proofs.mark_unchanged();
        reached.mark_unchanged();
        let (shared, directory) = (ReplicaRef::clone(shared), PathBuf::from(directory));
        let saving = move || write(&shared, &directory);
        if let Ok(Err(error)) = vital::spawn_blocking(saving).await {
            tracing::warn!(error, "failed to store the last signed position; storing the next one");
        }
        tokio::time::sleep(SAVE_EVERY).await;
    }
}

/// Writes the last signed position before the process exits.
pub(super) fn save(shared: &ReplicaState, directory: &Path) {
    if let Err(error) = write(shared, directory) {
        tracing::warn!(error, "failed to store the last signed position");
    }
}

/// Shows the signed position to a datastore whose log contradicts this member: its own signature is a proof, regardless
/// of who shows it. Returns after it has arrived, because the connection may be closed then.
pub(super) async fn show(shared: &ReplicaState, send: &mut quinn::SendStream) -> Result<(), LinkError> {
    let proof = shared.proof.borrow().clone();
    if let Some(proof) = proof {
        wire::send_raw(send, Kind::Proof, proof.to_text().as_bytes()).await?;
        let _ = send.finish();
        let _ = tokio::time::timeout(ARRIVES, send.stopped()).await;
    }
    Ok(())
}
