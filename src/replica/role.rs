//! What a member may do here: a reader writes nothing, and neither does a member that was revoked.
//!
//! Known from the identity, and from every welcome. What waits in the outbox of a member that may no longer write is never
//! taken by the datastore, so it is put on the rejected list: after the state has come as far as the log was at the welcome,
//! so that nothing that was committed before is called rejected.

use std::convert::Infallible;

use tokio::sync::mpsc;

use crate::codec::message::{VERSION_REDACTED, Welcome};
use crate::model::Seq;
use crate::trust::Role;

use super::link::LinkError;
use super::outbox_writer::Request;
use super::shared::{Shared, SharedRef};

/// Why a member of this role, in words, may not write; `None` where it may.
pub(super) fn forbidden(role: &str) -> Option<String> {
    let is_reader = role == Role::Reader.to_string();
    is_reader
        .then(|| "this member is a reader, which may not write: write at a webserver or at the datastore".to_owned())
}

/// Whether the state of a member that is welcomed so lacks values that are withheld from readers. A datastore of an earlier
/// version withholds nothing.
pub fn is_redacted(welcome: &Welcome) -> bool {
    welcome.version >= VERSION_REDACTED && welcome.role == Role::Reader.to_string()
}

/// Why a member that was revoked may not write.
pub(super) fn revoked() -> String {
    "this member was revoked before the datastore answered: it may have been committed, or not; join again with a token \
     from an administrator, and look before it is submitted again"
        .to_owned()
}

/// Puts everything that waits on the rejected list, once and whenever more comes.
pub(super) async fn refuse_pending(
    shared: &SharedRef,
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

/// Puts everything that waits on the rejected list.
pub(super) async fn refuse_now(shared: &Shared, outbox: &mpsc::Sender<Request>) {
    let Some(reason) = shared.forbidden() else { return };
    let to_note = shared.refuse(None, &reason);
    if !to_note.is_empty() {
        tracing::warn!(count = to_note.len(), %reason, "what waited in the outbox was put on the rejected list");
        let _ = outbox.send(Request::Note(to_note)).await;
    }
}
