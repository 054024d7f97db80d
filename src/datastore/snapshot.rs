//! Serving the whole state, as of one instant, to a member that cannot be served a tail.

use std::time::Instant;

use crate::codec::message::Open;
use crate::transport::state_stream;
use crate::transport::wire::WireError;

pub use crate::transport::state_stream::{begin, end, rows_of};

use super::shared::SharedRef;
use crate::model::{MemberName, Seq};
use crate::trust::Role;

/// Sends a snapshot; waits in line while too many others are being sent.
pub(super) async fn serve(
    shared: &SharedRef,
    (member, role): (&MemberName, Role),
    open: Open,
    send: &mut quinn::SendStream,
) -> Result<(), WireError> {
    let _permit = shared.snapshots.acquire().await.map_err(std::io::Error::other)?;
    // Nobody is given a state older than what was shown before: who fetches one may hold everything up to the head.
    super::commit::wait_applied(shared, shared.head()).await;
    let snapshot = shared.state.snapshot().map_err(std::io::Error::other)?;
    let seq = snapshot.meta().map_or(Seq::ZERO, |meta| meta.seq);
    shared.pins.begin(member, seq, Instant::now());
    let sent = state_stream::send(snapshot, open, shared.redaction_for(role), send).await;
    shared.pins.end(member, Some(Instant::now()));
    sent?;
    crate::telemetry::metrics::snapshot_served();
    Ok(())
}
