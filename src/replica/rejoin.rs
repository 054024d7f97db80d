//! Rejoining a log that continued without this member's last entries.
//!
//! If a datastore was rebuilt from a member that was behind, or an earlier state was restored, its log starts a new
//! generation at a sequence that this member is past. The member's additional entries are not merged, and not lost:
//!
//! - local transactions that the new log lacks are pushed again under their own identity, unless something came after
//!   them (see [`super::local_txns`]), or an earlier state was restored on purpose;
//! - every other change is durably written to a file in `quarantine/`, for an operator to inspect.
//!
//! Then outbox and state are exchanged, in the steps of [`super::exchange`]. A crash at any point leaves the old state, for
//! which all of this is repeated with the same result, or the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use gravwell_env::SystemEntropy;
use gravwell_log::generations;
use gravwell_model::codec::admin::{GenerationInfo, Request};
use gravwell_model::codec::message::Welcome;
use gravwell_model::{LineageEntry, Position};
use gravwell_runtime::tasks::vital;
use gravwell_state::{self as state, StateStore};

use super::applier;
use super::conflict_archive::{Set, Written};
use super::exchange::{self, Alone, Course, Effect, Failure};
use super::leaving::{self, Fork, Leaving};
use super::link::{LinkDriver, LinkError};
use super::local_txns::Others;
use super::outbox_writer;
use super::shared::ReplicaState;
use super::{disk, request, resync};

/// Timeout for the datastore's report on how its generations started.
const PATIENCE: Duration = Duration::from_secs(5);

/// Archives or queues what the log lacks, and adopts its state. Returns false if the log is not known to have left this
/// history, or not why: an operator has to decide, and nothing was changed.
pub(super) async fn run(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    mine: &Position,
    lineage: &[LineageEntry],
    welcome: &Welcome,
) -> Result<bool, LinkError> {
    let alone = alone(&linker.shared).await?;
    let upon = |shared_to| leaving::is_upon_later(&linker.shared, shared_to);
    let Some(Fork { shared_to, theirs }) = leaving::fork(mine, lineage, welcome, upon) else { return Ok(false) };
    if linker.shared.disk.is_full() {
        return Err(failed(disk::FULL));
    }
    let here = generations::all(&linker.directory, mine.log_id).unwrap_or_default();
    let Some(is_restore) = reason(connection, &theirs, here).await else { return Ok(false) };
    let side = resync::side(linker).await?;
    let set = Set { is_restore, ..leaving::set_of(mine, welcome.generation, shared_to) };
    let reconciled = async {
        let state = resync::fetch_into(linker, connection, welcome, &side).await?;
        let shared_to = leaving::earlier_fork(&linker.shared, &state, shared_to).map_err(failed)?;
        exchange(linker, connection, state, &side, Set { shared_to, ..set }, alone).await
    };
    resync::ended(linker, &side, reconciled.await).await.map(|()| true)
}

/// Adopts a fetched state that does not continue this member's history although the positions are consistent. Local
/// transactions that it lacks are pushed again if it is known what came after them; everything else is archived.
pub(super) async fn leave(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
    fork: state::Fork,
) -> Result<(), LinkError> {
    let alone = alone(&linker.shared).await?;
    let set = leaving::set_of_fork(&linker.shared, &state, &fork).map_err(failed)?;
    exchange(linker, connection, state, side, set, alone).await
}

/// Adopts a fetched state that lacks transactions decided before this member's state was lost. They are archived.
pub(super) async fn leave_lost(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
) -> Result<(), LinkError> {
    let alone = alone(&linker.shared).await?;
    let set = leaving::set_of_lost(&linker.shared, &state).map_err(failed)?;
    exchange(linker, connection, state, side, set, alone).await
}

/// Archives or queues what `state` lacks, and makes it the replica's state.
async fn exchange(
    linker: &LinkDriver,
    connection: &quinn::Connection,
    state: StateStore,
    side: &Path,
    set: Set,
    alone: Alone,
) -> Result<(), LinkError> {
    // Apply the entries of the former connection first. Afterwards it is known which transactions were committed here.
    barrier(&linker.applier).await?;
    let leaving = Leaving::new(Arc::clone(&linker.shared), state, set).map_err(failed)?;
    let (leaving, others) = others_since(connection, leaving).await?;
    let choosing = vital::spawn_blocking(move || leaving.choose(others.as_ref()));
    let exchange = Arc::new(choosing.await.map_err(failed)?.map_err(failed)?);
    let course = Course::new(exchange, side.to_owned(), Arc::new(SystemEntropy), alone);
    let (applier, outbox) = (linker.applier.clone(), linker.outbox.clone());
    let exchanging = Exchanging { course, applier, outbox, directory: linker.directory.clone() };
    // The exchange continues if the connection breaks: once started, it is completed.
    tokio::spawn(exchanging.run()).await.map_err(|_| LinkError::Closing)?
}

/// Before the generation of a log is adopted: waits until the entries of the former connection are applied. They are of the
/// former generation, and the log may have continued without them.
pub(super) async fn pass_former(linker: &LinkDriver, welcome: &Welcome) -> Result<(), LinkError> {
    let position = linker.shared.position();
    if position.is_none_or(|position| position.generation == welcome.generation) {
        return Ok(());
    }
    barrier(&linker.applier).await?;
    if linker.shared.position() == position {
        return Ok(());
    }
    Err(failed("the log has a new generation, and entries of the former one were applied meanwhile; comparing again"))
}

/// Returns whether an earlier state was restored on purpose; `None` if it is unknown why the log diverged.
async fn reason(connection: &quinn::Connection, theirs: &[&LineageEntry], here: Vec<GenerationInfo>) -> Option<bool> {
    let reply = request::ask(connection, &Request::Generations).await;
    let reply = reply.map_err(|error| tracing::warn!(%error, "failed to request the cause of the fork")).ok()?;
    let mut known: Vec<GenerationInfo> =
        reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    // The datastore's report takes precedence.
    known.extend(here);
    leaving::is_restore(theirs, &known)
}

/// Stores in this member's directory why the generations started that led to the datastore's log.
pub(super) async fn learn(directory: &Path, connection: &quinn::Connection, welcome: &Welcome) -> Result<(), String> {
    let (directory, log_id, lineage) = (directory.to_owned(), welcome.log_id, welcome.lineage.clone());
    // A log with one generation has no reasons to report.
    if lineage.len() <= 1 || generations::problem(&directory, log_id, &lineage).is_none() {
        return Ok(());
    }
    let asked = tokio::time::timeout(PATIENCE, request::ask(connection, &Request::Generations)).await;
    let reply = asked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    let known: Vec<GenerationInfo> = reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect();
    let learning = move || generations::learn(&directory, log_id, &known).map_err(|error| error.to_string());
    vital::spawn_blocking(learning).await.map_err(|error| error.to_string())?
}

fn failed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Resync(error.to_string())
}

impl From<Failure> for LinkError {
    fn from(failure: Failure) -> LinkError {
        match failure {
            Failure::Closing => LinkError::Closing,
            Failure::Failed(reason) => LinkError::Resync(reason),
        }
    }
}

/// Keeps others from exchanging, from before anything is decided about it.
async fn alone(shared: &ReplicaState) -> Result<Alone, LinkError> {
    exchange::alone(shared).await.ok_or_else(|| failed("another connection has left this history"))
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
pub(super) struct Exchanging {
    pub course: Course,
    pub applier: mpsc::Sender<applier::Request>,
    pub outbox: mpsc::Sender<outbox_writer::Request>,
    pub directory: PathBuf,
}

impl Exchanging {
    pub(super) async fn run(mut self) -> Result<(), LinkError> {
        let mut written = Written::default();
        while let Some(effect) = self.course.next_effect() {
            match effect {
                Effect::Apply(request, mut answer) => {
                    self.applier.send(request).await.map_err(|_| LinkError::Closing)?;
                    answer.wait().await?;
                }
                Effect::Archive(exchange) => {
                    let directory = self.directory.clone();
                    let archiving = vital::spawn_blocking(move || exchange.archive(&directory));
                    written = archiving.await.map_err(failed)?.map_err(failed)?;
                }
                Effect::Hold(request) => self.outbox.send(request).await.map_err(|_| LinkError::Closing)?,
                Effect::Wait(mut answer) => answer.wait().await?,
            }
        }
        self.report(&written);
        Ok(())
    }

    fn report(&self, written: &Written) {
        let exchange = self.course.exchange();
        let Set { shared_to, seq: was_at, .. } = *exchange.set();
        let seq = exchange.state().meta().map(|meta| meta.seq).unwrap_or_default();
        tracing::warn!(
            %shared_to, %was_at, %seq, again = exchange.again(), set_aside = written.changes, file = written.file,
            "log lacks entries of this member; pushed local changes again and archived the rest, see `gravwell-logctl \
             quarantine list`"
        );
    }
}
