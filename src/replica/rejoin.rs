//! Rejoining a log that continued without this member's last entries.
//!
//! If a datastore was rebuilt from a member that was behind, or an earlier state was restored, its log starts a new
//! generation at a sequence that this member is past. The member's additional entries are not merged, and not lost:
//!
//! - local transactions that the new log lacks are pushed again under their own identity, unless something came after
//!   them (see [`super::local_txns`]), or an earlier state was restored on purpose;
//! - every other change is durably written to a file in `quarantine/`, for an operator to inspect.
//!
//! Then outbox and state are exchanged in this order, while nothing is accepted: the outbox in the journal, the state,
//! the outbox in memory. A crash at any point leaves the old state, for which all of this is repeated with the same
//! result, or the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use gravwell_env::SystemEntropy;
use gravwell_log::generations;
use gravwell_model::LineageEntry;
use gravwell_model::codec::admin::{GenerationInfo, Request};
use gravwell_model::codec::message::Welcome;
use gravwell_protocol::session::client::Leave;
use gravwell_runtime::tasks::vital;
use gravwell_state::{self as state, StateStore};

use super::applier::{self, Descent};
use super::conflict_archive::{Set, Written};
use super::leaving::{self, Exchange, Leaving};
use super::link::{LinkDriver, LinkError};
use super::local_txns::Others;
use super::outbox_writer::{self, Step};
use super::resync::Fetched;
use super::{request, resync};

/// Archives or queues what a fetched state lacks, and makes it the replica's state. `fork` is the reason for which it
/// could not just replace the present one, if that was tried.
pub(super) async fn leave(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    fetched: &Fetched,
    leave: Leave,
    fork: Option<&state::Fork>,
) -> Result<(), LinkError> {
    let Fetched { state, side } = fetched;
    let left = async {
        let set = linker.shared.set_for(leave, state, fork).map_err(failed)?;
        exchange(linker, connection, state.clone(), side, set).await
    };
    resync::ended(linker, side, left.await).await
}

/// Archives or queues what `state` lacks, and makes it the replica's state.
async fn exchange(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
    set: Set,
) -> Result<(), LinkError> {
    // Apply the entries of the former connection first. Afterwards it is known which transactions were committed here.
    barrier(&linker.applier).await?;
    let leaving = Leaving::new(Arc::clone(&linker.shared), state, set).map_err(failed)?;
    let (leaving, others) = others_since(connection, leaving).await?;
    let choosing = vital::spawn_blocking(move || leaving.choose(others.as_ref()));
    let exchange = Arc::new(choosing.await.map_err(failed)?.map_err(failed)?);
    let (applier, outbox) = (linker.applier.clone(), linker.outbox.clone());
    let exchanging =
        Exchanging { exchange, applier, outbox, directory: linker.directory.clone(), side: side.to_owned() };
    // The exchange continues if the connection breaks: once started, it is completed.
    let alone = Arc::clone(&linker.shared.exchanging).lock_owned().await;
    let running = async move {
        let ended = exchanging.run().await;
        drop(alone);
        ended
    };
    tokio::spawn(running).await.map_err(|_| LinkError::Closing)?
}

/// Returns whether an earlier state was restored on purpose; `None` if it is unknown why the log left this history.
pub(super) async fn reason(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    theirs: &[LineageEntry],
) -> Option<bool> {
    let log_id = linker.shared.claimed()?.log_id;
    let here = generations::all(&linker.directory, log_id).unwrap_or_default();
    let reply = request::ask(connection, &Request::Generations).await;
    let reply = reply.map_err(|error| tracing::warn!(%error, "failed to request the cause of the fork")).ok()?;
    let mut known: Vec<GenerationInfo> =
        reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    // The datastore's report takes precedence.
    known.extend(here);
    leaving::is_restore(&theirs.iter().collect::<Vec<_>>(), &known)
}

/// Stores in this member's directory why the generations started that led to the datastore's log.
pub(super) async fn learn(directory: &Path, connection: &quinn::Connection, welcome: &Welcome) -> Result<(), String> {
    let (directory, log_id, lineage) = (directory.to_owned(), welcome.log_id, welcome.lineage.clone());
    // A log with one generation has no reasons to report.
    if lineage.len() <= 1 || generations::problem(&directory, log_id, &lineage).is_none() {
        return Ok(());
    }
    let reply = request::ask(connection, &Request::Generations).await.map_err(|error| error.to_string())?;
    let known: Vec<GenerationInfo> = reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    let learning = move || generations::learn(&directory, log_id, &known).map_err(|error| error.to_string());
    vital::spawn_blocking(learning).await.map_err(|error| error.to_string())?
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Resync(error.to_string())
}

/// Returns later changes to objects of local transactions that the log lacks; `None` if they are unknown, or nothing
/// depends on them.
async fn others_since(
    connection: &quinn::Connection,
    leaving: Leaving,
) -> Result<(Leaving, Option<Others>), LinkError> {
    let Some(after) = leaving.reads_after() else { return Ok((leaving, None)) };
    let mut since = leaving.since();
    let mut unread = None;
    let read = request::entries_after(connection, after, |entry| {
        if let Err(error) = since.take(&entry) {
            unread = Some(error);
        }
    });
    let read = read.await;
    let others = since.others;
    if let Some(error) = unread {
        return Err(failed(error));
    }
    match read {
        Ok(()) => Ok((leaving, Some(others))),
        Err(request::RequestError::Refused(reason)) => {
            tracing::info!(reason, "log lacks the changes of other members; using the datastore's state");
            let showing = vital::spawn_blocking(move || leaving.shown().map(|shown| (leaving, shown)));
            showing.await.map_err(failed)?.map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Waits until everything that was handed to the applier is applied.
async fn barrier(applier: &mpsc::Sender<applier::Request>) -> Result<(), LinkError> {
    let (reply, done) = oneshot::channel();
    applier.send(applier::Request::Barrier(reply)).await.map_err(|_| LinkError::Closing)?;
    done.await.map_err(|_| LinkError::Closing)
}

/// An exchange, with the channels to the threads that take its steps.
struct Exchanging {
    exchange: Arc<Exchange>,
    applier: mpsc::Sender<applier::Request>,
    outbox: mpsc::Sender<outbox_writer::Request>,
    directory: PathBuf,
    side: PathBuf,
}

impl Exchanging {
    async fn run(self) -> Result<(), LinkError> {
        barrier(&self.applier).await?;
        // The archive is written while transactions are still accepted: they do not change the data that it needs.
        let compared = self.exchange.position();
        let mut written = self.archive().await?;
        let (steps, receiver) = std::sync::mpsc::channel();
        let request = outbox_writer::Request::Exchange(receiver);
        self.outbox.send(request).await.map_err(|_| LinkError::Closing)?;
        if self.exchange.position() != compared {
            written = self.archive().await?;
        }
        let (reply, done) = oneshot::channel();
        let exchange = Arc::clone(&self.exchange);
        let successor = Box::new(move || exchange.requeued(&SystemEntropy));
        steps.send(Step::Prepare(successor, reply)).map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?.map_err(failed)?;
        let (reply, done) = oneshot::channel();
        let state = self.exchange.state().clone();
        let seq = state.meta().map(|meta| meta.seq).unwrap_or_default();
        let swap = applier::Request::Swap(state, self.side.clone(), Descent::Archived, reply);
        self.applier.send(swap).await.map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?.map_err(failed)?;
        let Set { shared_to, seq: was_at, .. } = *self.exchange.set();
        let (reply, done) = oneshot::channel();
        steps.send(Step::Install(shared_to, reply)).map_err(|_| LinkError::Closing)?;
        done.await.map_err(|_| LinkError::Closing)?;
        tracing::warn!(
            %shared_to, %was_at, %seq, again = self.exchange.again(), set_aside = written.changes, file = written.file,
            "log lacks entries of this member; pushed local changes again and archived the rest, see `gravwell-logctl \
             quarantine list`"
        );
        Ok(())
    }

    async fn archive(&self) -> Result<Written, LinkError> {
        let (exchange, directory) = (Arc::clone(&self.exchange), self.directory.clone());
        vital::spawn_blocking(move || exchange.archive(&directory)).await.map_err(failed)?.map_err(failed)
    }
}
