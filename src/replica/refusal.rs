//! A datastore's refusal of this member: it was revoked, or is not a member. It holds, even across restarts, until the
//! member is enrolled again. Nothing is accepted in the meantime, and transactions accepted before the refusal was
//! known are archived for the operator.
//!
//! `refused` is a line of JSON and, in the next line, the BLAKE3 of the first.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use gravwell_env::checksummed_text;
use gravwell_env::data_dir::{DirectoryError, io_error, replace_file};
use gravwell_env::fs::parent_dir;
use gravwell_env::{Clock, SystemClock};
use gravwell_model::{Position, Reason, Txn};
use gravwell_runtime::tasks::vital;

use super::conflict_archive::{Change, Set, Written};
use super::link::LinkError;
use super::local_txns;
use super::outbox_writer::Request;
use super::role;
use super::shared::{ReplicaRef, ReplicaState};

const VERSION: u32 = 1;
const FILE: &str = "refused";

/// Remedy for a refused member.
const JOIN_AGAIN: &str = "nothing is accepted here until this member is enrolled again: `gravwell-logctl enroll NAME \
                          --replace` at the datastore, `gravwell-logctl join TOKEN` here";

/// The datastore's refusal of this member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    version: u32,
    /// Reason given by the datastore.
    pub reason: String,
    /// When the datastore first refused the member, in milliseconds since 1970-01-01 UTC.
    pub since_ms: u64,
    /// Reason for which it is not stored, and the effect on a restart.
    #[serde(skip)]
    not_stored: Option<String>,
}

impl Refusal {
    fn new(reason: String) -> Refusal {
        Refusal { version: VERSION, reason, since_ms: SystemClock.now_ms(), not_stored: None }
    }

    /// Reads the refusal from a replica's directory. A corrupt file counts as a refusal: there was one.
    pub(super) fn load(directory: &Path) -> Option<Refusal> {
        let path = directory.join(FILE);
        let parse = |text: &str| -> Result<Refusal, String> {
            serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())
        };
        let read = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            read => read.map_err(|error| error.to_string()).and_then(|text| parse(&text)),
        };
        Some(read.unwrap_or_else(|what| Refusal::new(format!("{} is damaged ({what})", path.display()))))
    }

    fn save(&self, directory: &Path) -> Result<(), DirectoryError> {
        let text = serde_json::to_string(self).expect("invariant: a refusal has text keys only");
        replace_file(&directory.join(FILE), checksummed_text::seal(&text).as_bytes())
    }

    /// Saves the refusal. If that fails, for example because the disk is full, an empty file stands for it, which needs
    /// no space and counts as a refusal.
    ///
    /// # Errors
    /// Describes the failure, and what is unknown after a restart.
    fn store(&self, directory: &Path) -> Result<(), String> {
        let Err(error) = self.save(directory) else { return Ok(()) };
        let path = directory.join(FILE);
        let created = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        match created.and_then(|_| std::fs::File::open(directory)?.sync_all()) {
            Ok(()) => Err(format!("{error}; the reason is unknown after a restart")),
            Err(_) => Err(format!("{error}; after a restart without the datastore, this member would serve again")),
        }
    }

    fn remove(directory: &Path) -> Result<(), DirectoryError> {
        let path = directory.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(&path)(error)),
            _ => std::fs::File::open(parent_dir(&path)).and_then(|parent| parent.sync_all()).map_err(io_error(&path)),
        }
    }

    /// Returns the message for clients.
    #[must_use]
    pub fn message(&self) -> String {
        format!("the datastore refuses this member: {}; {JOIN_AGAIN}", self.described())
    }

    /// Returns the reason, and whether it is not stored.
    pub(super) fn described(&self) -> String {
        match &self.not_stored {
            Some(error) => format!("{} (this could not be stored: {error})", self.reason),
            None => self.reason.clone(),
        }
    }
}

/// Handles refusals of a replica.
pub(super) struct Refusals<'a> {
    pub shared: &'a ReplicaRef,
    pub outbox: &'a mpsc::Sender<Request>,
    pub directory: &'a Path,
}

impl Refusals<'_> {
    /// Stores the refusal if an error of the connection is one, and archives pending transactions then.
    pub(super) async fn learn(&self, error: &LinkError) {
        let (LinkError::Revoked(reason) | LinkError::NotAMember(reason)) = error else { return };
        let known = self.shared.refusal();
        // One that could not be stored is stored with the next attempt to connect.
        if known.as_ref().is_none_or(|known| known.reason != *reason || known.not_stored.is_some()) {
            let mut refusal = Refusal::new(reason.clone());
            if let Some(known) = known {
                (refusal.since_ms, refusal.not_stored) = (known.since_ms, known.not_stored);
            }
            self.shared.set_refusal(Some(refusal.clone()));
            let (directory, to_store) = (self.directory.to_owned(), refusal.clone());
            let stored = run_blocking(move || to_store.store(&directory)).await;
            if let Err(error) = &stored {
                tracing::error!(error, "failed to store the datastore's refusal; will retry");
            }
            refusal.not_stored = stored.err();
            self.shared.set_refusal(Some(refusal));
        }
        if let Err(error) = self.archive_pending().await {
            tracing::error!(error, "failed to archive pending transactions; will retry");
        }
    }

    /// Ends the refusal after the datastore has accepted this member again.
    pub(super) async fn lift(&self) -> Result<(), LinkError> {
        if self.shared.refusal().is_none() {
            return Ok(());
        }
        // Archive them before any of them can be pushed.
        self.archive_pending().await.map_err(LinkError::Resync)?;
        let directory = self.directory.to_owned();
        let removing = move || Refusal::remove(&directory).map_err(|error| error.to_string());
        run_blocking(removing).await.map_err(LinkError::Resync)?;
        self.shared.set_refusal(None);
        tracing::warn!(
            "datastore accepts this member again; see `gravwell-logctl quarantine list` for archived changes"
        );
        Ok(())
    }

    /// Archives the pending transactions and moves them to the rejected list, so that their authors learn of it.
    async fn archive_pending(&self) -> Result<(), String> {
        // An exchange outlives its connection. It would put them back as pending, because it goes on from the outbox as
        // it was when the successor was made.
        let _alone = self.shared.exchanging.lock().await;
        loop {
            let pending: Vec<Arc<Txn>> = self.shared.outbox().pending().cloned().collect();
            if pending.is_empty() {
                return Ok(());
            }
            let (shared, directory, archived) = (Arc::clone(self.shared), self.directory.to_owned(), pending.clone());
            let written = run_blocking(move || archive(&shared, &directory, &archived)).await?;
            let reason = Reason::Forbidden { message: role::revoked() };
            let to_note: Vec<_> = pending.iter().flat_map(|txn| self.shared.refuse(Some(txn.id), &reason)).collect();
            tracing::warn!(
                transactions = pending.len(),
                changes = written.changes,
                file = written.file,
                "archived transactions accepted before the refusal was known; see `gravwell-logctl quarantine list`"
            );
            let _ = self.outbox.send(Request::Note(to_note)).await;
        }
    }
}

fn archive(shared: &ReplicaState, directory: &Path, pending: &[Arc<Txn>]) -> Result<Written, String> {
    let state = shared.state();
    let at = |position: Position| (position.log_id, position.generation, position.seq, position.digest);
    let (log_id, generation, seq, digest) = shared.position().map(at).unwrap_or_default();
    let revoked_ms = Some(SystemClock.now_ms());
    let lineage = state.meta().map(|meta| meta.lineage.clone()).unwrap_or_default();
    let (left_by, shared_to, is_restore, deletions_after) = (generation, seq, false, None);
    let set =
        Set { log_id, generation, left_by, lineage, shared_to, seq, digest, is_restore, deletions_after, revoked_ms };
    let mut file = set.create(directory).map_err(|error| error.to_string())?;
    for ((collection, key), value) in local_txns::values(pending) {
        let there = state.version(&collection, &key).map_err(|error| error.to_string())?;
        let there = Some(there.unwrap_or_default());
        let change = Change { seq: None, time_ms: None, collection, key, value, there, is_seen: false };
        file.write(&change).map_err(|error| error.to_string())?;
    }
    file.finish().map_err(|error| error.to_string())
}

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    vital::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use gravwell_model::{Collection, Key, Op, Origin, OriginCounter, Seq, TxnId};
    use gravwell_protocol::outbox::Outbox;
    use gravwell_state::StateStore;

    /// An exchange goes on from the outbox as it was when the next one was made.
    #[test]
    fn p07_nothing_is_refused_while_outbox_and_state_are_exchanged() {
        let temp = tempfile::tempdir().expect("temp dir");
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
        let (settled, note) = (OriginCounter(0), bytes::Bytes::new());
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let ops = vec![Op::Delete { collection, key }];
        let txn = Txn { id, settled, time_ms: 0, note, conditions: vec![], ops };
        let pending = |outbox: &mut Outbox| {
            outbox.insert(Arc::new(txn.clone()));
        };
        let shared = Arc::new(ReplicaState::new(StateStore::in_memory(), Outbox::default(), None));
        pending(&mut shared.outbox_mut());
        shared.set_refusal(Some(Refusal::new("revoked".into())));
        let (outbox, mut requests) = mpsc::channel(4);
        let alone = Arc::clone(&shared.exchanging).try_lock_owned().expect("is free");
        let refusals = Refusals { shared: &shared, outbox: &outbox, directory: temp.path() };
        let error = LinkError::Revoked("revoked".into());
        let mut learning = std::pin::pin!(refusals.learn(&error));
        let mut poll = || learning.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // Much longer than it would take.
        for _ in 0..100 {
            assert!(poll().is_pending());
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // The exchange replaces the outbox.
        let mut next = Outbox::default();
        pending(&mut next);
        *shared.outbox_mut() = next;
        assert!(requests.try_recv().is_err(), "nothing was refused");
        drop(alone);
        while let Poll::Pending = poll() {
            std::thread::yield_now();
        }
        let Ok(Request::Note(noted)) = requests.try_recv() else { panic!("a rejection") };
        assert_eq!(noted.iter().map(|rejected| (rejected.txn.id, rejected.seq)).collect::<Vec<_>>(), [(id, Seq::ZERO)]);
        assert_eq!((shared.outbox().depth(), shared.outbox().rejected().len()), (0, 1));
    }

    #[test]
    fn p11_a_refusal_is_kept_and_a_damaged_file_is_one_too() {
        let temp = tempfile::tempdir().expect("temp dir");
        assert_eq!(Refusal::load(temp.path()), None);
        let refusal = Refusal::new("web1 was revoked".into());
        refusal.save(temp.path()).expect("saves");
        assert_eq!(Refusal::load(temp.path()), Some(refusal.clone()));
        let good = std::fs::read(temp.path().join(FILE)).expect("reads");
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(temp.path().join(FILE), &bad).expect("writes");
            let found = Refusal::load(temp.path()).expect("is refused");
            assert!(found.reason.contains("damaged"), "byte {at}: {found:?}");
        }
        // What cannot be written whole still counts as a refusal.
        Refusal::remove(temp.path()).expect("removes");
        let in_the_way = temp.path().join(format!("{FILE}.tmp"));
        std::fs::create_dir(&in_the_way).expect("creates");
        let why = refusal.store(temp.path()).expect_err("cannot be written");
        assert!(why.contains("the reason is unknown after a restart"), "{why}");
        assert!(Refusal::load(temp.path()).expect("is refused").reason.contains("damaged"));
        let unstored = Refusal { not_stored: Some(why.clone()), ..refusal.clone() };
        assert!(unstored.message().contains(&why) && unstored.described().contains(&why));
        std::fs::remove_dir(&in_the_way).expect("removes");
        refusal.store(temp.path()).expect("is stored");
        assert_eq!(Refusal::load(temp.path()), Some(refusal));
        Refusal::remove(temp.path()).expect("removes");
        Refusal::remove(temp.path()).expect("no file is no error");
        assert_eq!(Refusal::load(temp.path()), None);
    }
}
