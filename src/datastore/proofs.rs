//! Signs positions of the log for every member to keep. See [`gravwell_transport::trust::Proof`].

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::shared::DatastoreRef;
use gravwell_model::Seq;

/// Interval between signatures. It bounds the entries that no signature covers.
const EVERY: Duration = Duration::from_millis(50);

/// Signs the state's position at startup and after every change.
pub(super) async fn run(shared: DatastoreRef) {
    let mut bookmarks = shared.bookmarks.subscribe();
    loop {
        let signed = sign(&shared);
        tokio::time::sleep(EVERY).await;
        bookmarks = bookmarks.resubscribe();
        let is_level = shared.state.meta().map(|meta| meta.seq) == signed;
        if is_level && matches!(bookmarks.recv().await, Err(RecvError::Closed)) {
            return;
        }
    }
}

/// Signs the state's position, unless the log is known to lack entries.
pub(super) fn sign(shared: &DatastoreRef) -> Option<Seq> {
    let position = shared.state.meta()?.position();
    let is_signed = shared.proof.borrow().as_ref().is_some_and(|proof| {
        // A new CA signs it again, so that every member gets a position signed by that CA.
        proof.position == position && shared.members.signs(proof)
    });
    if is_signed || !shared.recovery().is_empty() {
        return Some(position.seq);
    }
    match shared.members.sign(position) {
        Ok(proof) => drop(shared.proof.send_replace(Some(proof))),
        Err(error) => {
            tracing::error!(%error, "failed to sign the log position; after a loss, no member can prove its position")
        }
    }
    Some(position.seq)
}
