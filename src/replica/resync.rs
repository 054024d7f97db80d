//! Replacing the state by a verified snapshot: fetched into a separate directory, checked against its digest, swapped
//! in atomically. The outbox is stored elsewhere and is not touched; the snapshot resolves the transactions that it
//! has decided.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use tokio::sync::oneshot;

use gravwell_model::codec::message::{Kind, Open, SnapshotBegin, Welcome};
use gravwell_protocol::session::is_redacted;
use gravwell_state::{Fork, StateStore};
use gravwell_transport::state_stream::{self, ReceiveError};
use gravwell_transport::wire;

pub use gravwell_transport::state_stream::{Loading, Piece};

use super::applier::{self, Descent, SwapError};
use super::directory;
use super::leaving;
use super::link::{LinkDriver, LinkError};

impl From<ReceiveError> for LinkError {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::Wire(error) => error.into(),
            ReceiveError::Load(reason) => LinkError::Resync(reason),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Resync(error.to_string())
}

/// A fetched state, and its directory.
pub(super) struct Fetched {
    pub state: StateStore,
    pub side: PathBuf,
}

/// Fetches the state over `connection`, on which the datastore sent `welcome`. Also returns whether it lacks what was
/// lost together with the present state.
pub(super) async fn fetch(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    welcome: &Welcome,
) -> Result<(Fetched, bool), LinkError> {
    let side = side(linker).await?;
    let fetched = async {
        let state = fetch_into(linker, connection, welcome, &side).await?;
        let lacks_lost = leaving::lacks_what_was_lost(&linker.shared, &state).map_err(failed)?;
        Ok((Fetched { state, side: side.clone() }, lacks_lost))
    };
    match fetched.await {
        Ok(fetched) => Ok(fetched),
        failed => ended(linker, &side, failed).await,
    }
}

/// Creates a directory for a state. The directory of a fetch during which the connection was given up is removed first,
/// so that any number of those leave at most one directory.
async fn side(linker: &LinkDriver) -> Result<PathBuf, LinkError> {
    let left = linker.fetching.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(left) = left {
        // The applier may be about to make it the current state.
        let (reply, passed) = oneshot::channel();
        linker.hand_over(applier::Request::Barrier(reply)).await?;
        passed.await.map_err(|_| LinkError::Closing)?;
        remove(linker, &left).await;
    }
    let side = directory::new_state_in(&linker.directory).map_err(|error| LinkError::Resync(error.to_string()))?;
    *linker.fetching.lock().unwrap_or_else(PoisonError::into_inner) = Some(side.clone());
    Ok(side)
}

/// Cleans up after the use of a state that was fetched into `side`, which is removed if that failed. Returns the result.
pub(super) async fn ended<T>(linker: &LinkDriver, side: &Path, fetched: Result<T, LinkError>) -> Result<T, LinkError> {
    if fetched.is_err() {
        remove(linker, side).await;
    }
    *linker.fetching.lock().unwrap_or_else(PoisonError::into_inner) = None;
    fetched
}

/// Removes a state that did not become the current one. Leftovers are removed at the next start at the latest.
async fn remove(linker: &LinkDriver, side: &Path) {
    if !directory::may_open(&linker.directory, side) {
        let _ = tokio::fs::remove_dir_all(side).await;
    }
}

/// Fetches the datastore's state into `side`.
async fn fetch_into(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    welcome: &Welcome,
    side: &Path,
) -> Result<StateStore, LinkError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::state(welcome.version)).await?;
    let begin: SnapshotBegin = wire::expect(&mut receive, Kind::SnapshotBegin).await?;
    tracing::info!(seq = %begin.position.seq, objects = begin.objects, bytes = begin.bytes, "fetching the state");
    Ok(state_stream::receive(&mut receive, begin, side, linker.cache_bytes, is_redacted(welcome)).await?)
}

/// Makes a fetched state the current one. Returns the fork if it does not continue the history of the present one; it is
/// kept then.
pub(super) async fn swap(linker: &LinkDriver, fetched: &Fetched) -> Result<Option<Fork>, LinkError> {
    let Fetched { state, side } = fetched;
    let swapped = async {
        let (reply, swapped) = oneshot::channel();
        linker.hand_over(applier::Request::Swap(state.clone(), side.clone(), Descent::Required, reply)).await?;
        swapped.await.map_err(|_| LinkError::Closing)
    };
    let result = match swapped.await {
        Ok(Err(SwapError::Forked(fork))) => return Ok(Some(fork)),
        Ok(Err(SwapError::Failed(reason))) => Err(LinkError::Resync(reason)),
        Ok(Ok(())) => Ok(None),
        Err(error) => Err(error),
    };
    if result.is_ok() {
        let seq = state.meta().map(|meta| meta.seq).unwrap_or_default();
        tracing::info!(%seq, "state fetched and verified");
    }
    ended(linker, side, result).await
}
