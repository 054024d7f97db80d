//! Write permission of this member: neither a reader nor a revoked member may write.
//!
//! It is known from the identity, and from every welcome. The datastore never accepts pending transactions of a member
//! that may no longer write, so they are moved to the rejected list. This happens after the state has reached the log's
//! head at the welcome, so that no transaction committed before is reported as rejected.

use std::convert::Infallible;

use tokio::sync::mpsc;

use gravwell_model::Seq;
use gravwell_model::codec::message::{VERSION_REDACTED, Welcome};
use gravwell_transport::trust::Role;

use super::link::LinkError;
use super::outbox_writer::Request;
use super::shared::{ReplicaRef, ReplicaState};

/// Returns why a member of this role may not write; `None` if it may.
pub(super) fn forbidden(role: &str) -> Option<String> {
    let is_reader = role == Role::Reader.to_string();
    is_reader.then(|| "this member is a reader and may not write; write at a webserver or at the datastore".to_owned())
}

/// Returns whether the state of a member that receives this welcome lacks values withheld from readers. Datastores of
/// earlier versions withhold nothing.
pub fn is_redacted(welcome: &Welcome) -> bool {
    welcome.version >= VERSION_REDACTED && welcome.role == Role::Reader.to_string()
}

/// Returns why a member that was revoked may not write.
pub(super) fn revoked() -> String {
    "this member was revoked before the datastore answered, so the change may be committed or not; join again with a \
     token from an administrator, and check before submitting it again"
        .to_owned()
}

/// Moves all pending transactions to the rejected list, once the state has reached `head` and whenever more arrive.
pub(super) async fn refuse_pending(
    shared: &ReplicaRef,
    outbox: &mpsc::Sender<Request>,
    head: Seq,
) -> Result<Infallible, LinkError> {
    let mut applied = shared.applied.subscribe();
    applied.wait_for(|applied| *applied >= head).await.map_err(|_| LinkError::Closing)?;
    let mut changed = shared.outbox_changed.subscribe();
    loop {
        changed.borrow_and_update();
        refuse_now(shared, outbox).await;
        changed.changed().await.map_err(|_| LinkError::Closing)?;
    }
}

/// Moves all pending transactions to the rejected list.
pub(super) async fn refuse_now(shared: &ReplicaState, outbox: &mpsc::Sender<Request>) {
    let Some(reason) = shared.forbidden() else { return };
    let to_note = shared.refuse(None, &reason);
    if !to_note.is_empty() {
        tracing::warn!(count = to_note.len(), %reason, "rejected pending transactions");
        let _ = outbox.send(Request::Note(to_note)).await;
    }
}
