//! Compares the simulated world with the expectations of the oracle.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use gravwell_datastore::open;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::{Collection, Key, Seq, Txn, TxnId, Withheld};
use gravwell_state::StateStore;
use gravwell_transport::trust::Role;

use super::datastore::{LOG, Running, SEGMENT_BYTES, redaction};
use super::network::MS;
use super::oracle::{Checked, Row, View, Violation, broken};
use super::world::{Truth, World};

/// Maximum overhead of an object in a compacted log, without its name and value, in bytes.
const OBJECT_BYTES: u64 = 200;
/// Maximum number of bytes kept for an origin.
const ORIGIN_BYTES: u64 = 200;
/// Maximum number of bytes of an entry that rejects a transaction; it stays in the log until its origin acknowledges
/// that the rejection is written down. A frame header has 48 bytes; time, member and identity have about 30; the text
/// of the reason has at most 90.
const REJECTION_BYTES: u64 = 180;

pub fn collections() -> [Collection; 2] {
    ["dashboards", "users"].map(named)
}

fn named(collection: &str) -> Collection {
    Collection::new(collection).expect("name")
}

fn objects(state: &StateStore) -> Result<Vec<Row>, String> {
    let view = state.snapshot().map_err(|error| error.to_string())?;
    let rows = view
        .objects()
        .map(|row| row.map(|(collection, key, object)| (collection, key, (object.value, object.version))));
    rows.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// Returns whether no row of an object is damaged.
fn is_readable(state: &StateStore) -> bool {
    let withheld = state.snapshot().and_then(|view| view.withheld().try_for_each(|row| row.map(drop)));
    objects(state).is_ok() && withheld.is_ok()
}

impl World {
    /// Checks that a committed state equals the history at its sequence and has the same digest as all other states there.
    pub fn check_committed(&mut self, who: &str, state: &StateStore) -> Checked {
        let Some(meta) = state.meta() else { return Ok(()) };
        let mut rows = objects(state).map_err(|error| Violation(format!("{who} cannot be read: {error}")))?;
        if meta.is_redacted {
            self.add_withheld(who, state, &mut rows)?;
        }
        self.oracle.state(who, meta.seq, &rows)?;
        // Damaged rows of deletions are rejected when they are read, and are found by the final check.
        if let Ok(deletions) = state.snapshot().and_then(|view| view.deletions()) {
            self.oracle.deletions(who, meta.seq, &deletions)?;
        }
        self.oracle.digest(who, meta.seq, meta.digest)
    }

    /// Checks that a redacted state contains no hidden value but the correct contribution of each to the digest. Adds
    /// the values of the model to `rows`.
    fn add_withheld(&self, who: &str, state: &StateStore, rows: &mut Vec<Row>) -> Checked {
        let redaction = redaction();
        if let Some((collection, key, _)) = rows.iter().find(|(collection, ..)| redaction.hides(collection)) {
            broken!("{who} is a reader and has the value of {:?}", (collection.as_str(), key.as_str()));
        }
        let unread = |error: gravwell_state::StateError| Violation(format!("{who} cannot be read: {error}"));
        let seq = state.meta().map(|meta| meta.seq).unwrap_or_default();
        for withheld in state.snapshot().map_err(unread)?.withheld() {
            let withheld = withheld.map_err(unread)?;
            let Withheld { collection, key, .. } = &withheld.object;
            let name = (collection.to_string(), key.as_str().to_owned());
            let Some((value, version)) = self.oracle.at(&name, seq) else {
                broken!("{who} at {seq}: {name:?} is withheld but does not exist");
            };
            let told = Withheld::of(collection.clone(), key.clone(), version, &value);
            if (&told, version) != (&withheld.object, withheld.version) {
                broken!("{who} at {seq}: {name:?} has {withheld:?}, expected {told:?} at {version}");
            }
            rows.push((withheld.object.collection, withheld.object.key, (value, version)));
        }
        Ok(())
    }

    /// Checks the contents shown by a replica: the committed state, its own pending transactions on top, its rejected ones.
    pub fn check_replica(&mut self, number: usize) -> Checked {
        // A member that is beyond this world's datastore is checked in the world that contains its history.
        if self.fence.as_ref().is_some_and(|fence| fence.beyond.contains(&number)) {
            return Ok(());
        }
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        let pending: Vec<_> = running.stepped.pending();
        let marks = (node.life, node.seq(), running.stepped.changes(), self.reads);
        if self.looked_at[number].replace(marks) == Some(marks) {
            return self.check_awareness(number);
        }
        self.oracle.restarted(number, pending.iter().map(|txn| &**txn))?;
        self.check_refusals(number)?;
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        // After the loss and until the replica has caught up again, it must report the problem.
        let is_back = node.seq().unwrap_or_default() < node.shown;
        if is_back && running.stepped.problem().is_empty() {
            broken!("{} was durably at {}, is at {:?}, and does not report it", node.name, node.shown, node.seq());
        }
        if node.states.has_lost_current() {
            broken!("{} removed its current state before another one was in its place", node.name);
        }
        if is_back || node.seq().unwrap_or_default() < node.was_at {
            self.check_shown_back(number, &pending)?;
            return self.check_nothing_forgotten(number, &pending);
        }
        // An entry altered on its way into the state passes every checksum; only a bookmark can reveal it.
        if node.tampered {
            return self.check_awareness(number);
        }
        let is_damaged = node.damaged;
        let Some(seq) = node.seq() else { return Ok(()) };
        let who = node.name.to_string();
        let state = running.stepped.state();
        // A damaged row is rejected when it is read; all contents that are shown must be correct.
        if !is_damaged || is_readable(&state) {
            self.check_committed(&who, &state)?;
        }
        let (node, oracle) = (&self.replicas[number], &self.oracle);
        let Some(running) = &node.running else { return Ok(()) };
        // Rejections are written down immediately, the state is not: after a power cut a replica may know a rejection
        // that its state has not reached again yet.
        let rejected: BTreeSet<TxnId> =
            running.stepped.rejected().into_iter().map(|rejected| rejected.txn.id).collect();
        let head = oracle.head();
        let known: BTreeSet<TxnId> = oracle.rejected(number, head).intersection(&rejected).copied().collect();
        let found: Vec<TxnId> = pending.iter().map(|txn| txn.id).collect();
        let is_gone = |id: &&TxnId| !found.contains(id);
        let is_unsure = |id: &&TxnId| oracle.unsure.contains(id);
        let is_dealt_with =
            |id: &&TxnId| (is_unsure(id) && is_gone(id)) || (oracle.dismissed.contains(id) && !is_unsure(id));
        let undecided = oracle.pending(number, seq).map(|(id, _)| id);
        let known: BTreeSet<TxnId> = known.into_iter().chain(undecided.filter(is_dealt_with).copied()).collect();
        let expected: Vec<TxnId> =
            oracle.pending(number, seq).map(|(id, _)| *id).filter(|id| !known.contains(id)).collect();
        if expected != found {
            let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
            let place = differs.unwrap_or(found.len().min(expected.len()));
            let (found, expected) = (found.get(place), expected.get(place));
            broken!("{who} at {seq}: pending at {place} is {found:?}, expected {expected:?}");
        }
        let should: BTreeSet<TxnId> = oracle.rejected(number, seq).union(&known).copied().collect();
        let should: BTreeSet<TxnId> = should.difference(&oracle.dismissed).copied().collect();
        if let Some(id) = should.symmetric_difference(&rejected).find(|id| !oracle.unsure.contains(id)) {
            broken!(
                "{who} at {seq}: the rejection of {id:?} is {}",
                if should.contains(id) { "lost" } else { "unexpected" }
            );
        }
        let mut view = oracle.view(number, seq, &known);
        if state.meta().is_some_and(|meta| meta.is_redacted) {
            let redaction = redaction();
            view.retain(|(collection, _), (_, version)| version.is_none() || !redaction.hides(&named(collection)));
        }
        let mut seen = Vec::new();
        for collection in ["dashboards", "users"] {
            let rows = running.stepped.scan(&Collection::new(collection).expect("name"), "");
            let rows = match rows {
                Ok(rows) => rows,
                Err(_) if is_damaged && running.stepped.wants_resync() => return Ok(()),
                Err(error) => broken!("{who} cannot be read: {error}"),
            };
            seen.extend(rows.into_iter().map(|(key, object)| (collection, key, (object.value, object.version))));
        }
        let is_right =
            |(collection, key, shown): &(&str, Key, _)| view.get(&(*collection, key.as_str())) == Some(shown);
        if seen.len() != view.len() || !seen.iter().all(is_right) {
            let seen: View<'_> =
                seen.iter().map(|(collection, key, shown)| ((*collection, key.as_str()), shown.clone())).collect();
            let differs = view.keys().chain(seen.keys()).find(|object| view.get(*object) != seen.get(*object));
            let object = differs.copied().unwrap_or_default();
            broken!("{who} at {seq} shows {object:?} as {:?}, expected {:?}", seen.get(&object), view.get(&object));
        }
        Ok(())
    }

    /// A replica that lost its state, and reports that, may show less, but must still have everything that exists only there.
    fn check_nothing_forgotten(&self, number: usize, pending: &[Arc<Txn>]) -> Checked {
        let found: BTreeSet<TxnId> = pending.iter().map(|txn| txn.id).collect();
        let undecided = self.oracle.pending(number, self.oracle.head()).map(|(id, _)| id);
        let mut undecided = undecided.filter(|id| !self.oracle.is_forsaken(**id));
        if let Some(id) = undecided.find(|id| !found.contains(*id)) {
            let name = &self.replicas[number].name;
            broken!("{name} lost its state and the pending transaction {}/{}", id.origin, id.counter);
        }
        Ok(())
    }

    /// Checks that a replica that differs from the datastore notices it once it could compare digests.
    fn check_awareness(&mut self, number: usize) -> Checked {
        let Some(bookmark) = self.replicas[number].compared.take() else { return Ok(()) };
        let node = &self.replicas[number];
        let Some(running) = &node.running else { return Ok(()) };
        let Bookmark { seq, digest } = bookmark;
        let differs = running.stepped.position().is_some_and(|mine| mine.seq == seq && mine.digest != digest);
        if differs && !running.stepped.wants_resync() {
            broken!("{} differs from the datastore at {seq} and does not notice", node.name);
        }
        Ok(())
    }

    /// Returns the limit of compaction: the lowest position of all members that are enrolled and within retention, and
    /// the name of that member.
    pub fn compaction_limit(&self) -> Option<(Seq, String)> {
        let now_ms = self.datastore_ms();
        let retention_ms = self.plan.retention / MS;
        let mut lowest: Option<(Seq, String)> = None;
        for (number, node) in self.replicas.iter().enumerate() {
            // Silence is measured by the clock of the datastore, right or wrong.
            let silent = |at: u64| now_ms.saturating_sub(at) + 4000;
            // A member without progress for that long counts as silent.
            let fresh = self.reported[number]
                .is_some_and(|(at, _, advanced)| silent(at) < retention_ms && silent(advanced) < retention_ms);
            // Two directories of one member report in turn, and the registry stores the last report.
            let twins = || self.replicas.iter().enumerate().filter(|(_, other)| other.name == node.name);
            // A state with damaged rows, or with values that were never written, is not considered; reports of twins
            // count for both of them.
            let is_doubtful = twins().any(|(_, twin)| twin.is_doubtful() || twin.has_misreported);
            // Readers fetch a snapshot when they lag too far behind.
            let is_reader = node.role == Role::Reader;
            if node.revoked || is_reader || !fresh || is_doubtful {
                continue;
            }
            let passed = twins().filter_map(|(number, _)| self.persisted[number]).max().unwrap_or(Seq::ZERO);
            if lowest.as_ref().is_none_or(|(seq, _)| passed < *seq) {
                lowest = Some((passed, node.name.to_string()));
            }
        }
        lowest
    }

    /// Checks that compaction does not pass a member that was within retention when compaction started.
    pub fn check_horizon(&self, horizon: Seq) -> Checked {
        if let Some((limit, member)) = self.limit.as_ref().filter(|(limit, _)| horizon > *limit) {
            broken!("the horizon {horizon} passes {member}, which had durably applied {limit}");
        }
        Ok(())
    }

    /// Records the current head and the pending transactions while clients continue to write.
    pub fn mark_steady(&mut self) {
        let undecided = self.oracle.accepted.keys().filter(|id| !self.oracle.by_id.contains_key(id));
        let undecided = undecided.filter(|id| !self.oracle.lost.contains(id)).copied().collect();
        self.steady = Some((self.oracle.head(), undecided));
    }

    fn is_decided(&self, id: &TxnId) -> bool {
        self.oracle.by_id.contains_key(id) || self.oracle.lost.contains(id) || self.oracle.is_forsaken(*id)
    }

    /// Checks that a steady load delays no member: everything that existed 25 seconds ago is resolved and shown by all members.
    pub fn check_steady(&mut self) -> Checked {
        let Some((head, undecided)) = self.steady.take() else { return Ok(()) };
        self.oracle.checks += 1;
        if let Some(id) = undecided.iter().find(|id| !self.is_decided(id)) {
            broken!("{}/{} is unresolved after 25 s of steady load", id.origin, id.counter);
        }
        for node in &self.replicas {
            if node.seq().unwrap_or_default() < head {
                broken!("{} is at {:?} after 25 s of steady load, when the head was at {head}", node.name, node.seq());
            }
        }
        Ok(())
    }

    /// Returns the reason why the world has not settled yet; `None` if it has.
    pub fn unsettled(&mut self) -> Option<String> {
        let Some(datastore) = &self.datastore else { return Some("the datastore is down".into()) };
        if datastore.applied != datastore.head {
            return Some("the index lags".into());
        }
        let head = datastore.head;
        for node in &self.replicas {
            let Some(running) = &node.running else { return Some(format!("{} is down", node.name)) };
            if node.seq() != Some(head) {
                return Some(format!(
                    "{} is at {:?}, the head at {head}; {}",
                    node.name,
                    node.seq(),
                    running.stepped.problem()
                ));
            }
            let pending = running.stepped.pending().len();
            if pending > 0 {
                return Some(format!("{} still has {pending} pending transactions", node.name));
            }
            if running.stepped.wants_resync() {
                return Some(format!("{}: {}", node.name, running.stepped.problem()));
            }
        }
        // Reading everything reveals damage; its repair takes some time.
        for number in 0..self.replicas.len() {
            let node = &self.replicas[number];
            let Some(running) = &node.running else { continue };
            let damaged = ["dashboards", "users"]
                .iter()
                .any(|collection| running.stepped.scan(&Collection::new(*collection).expect("name"), "").is_err());
            let deletions = running.stepped.state().snapshot().and_then(|view| view.deletions());
            let damaged = damaged || deletions.is_err() || !is_readable(&running.stepped.state());
            if damaged && running.stepped.wants_resync() {
                let id = running.link.as_ref().map(|link| link.id);
                if let Some(id) = id {
                    self.cut(id);
                }
                return Some(format!("web{number} found damage"));
            }
        }
        None
    }

    /// Final checks: all members are equal, everything accepted is resolved, the disk is intact.
    pub fn last_look(&mut self) -> Checked {
        self.oracle.finish()?;
        self.reads += 1;
        for number in 0..self.replicas.len() {
            let node = &mut self.replicas[number];
            // Readable rows were already checked; damaged ones have been replaced or overwritten by now.
            (node.damaged, node.tampered) = (false, false);
            self.check_replica(number)?;
            let node = &self.replicas[number];
            let Some(running) = &node.running else { continue };
            let problem = running.stepped.problem();
            if !problem.is_empty() {
                broken!("{} is caught up and still reports: {problem}", node.name);
            }
            let report = running.stepped.state().check().map_err(|error| Violation(error.to_string()))?;
            // Only this check finds a damaged row of an origin that is never read again.
            if let Some(damage) = report.damage.first().filter(|_| !node.was_damaged) {
                broken!("{}: the digest does not match the rows: {damage}", node.name);
            }
            if node.states.len() != 1 {
                broken!("{} keeps {} states", node.name, node.states.len());
            }
        }
        let Some(datastore) = &self.datastore else { return Ok(()) };
        let state = datastore.state.clone();
        self.check_committed("the datastore", &state)?;
        let report = state.check().map_err(|error| Violation(error.to_string()))?;
        if let Some(damage) = report.damage.first() {
            broken!("the datastore: the digest does not match the rows: {damage}");
        }
        let found = gravwell_log::verify(&self.disks.fs, Path::new(LOG), &mut |_, _| {});
        if let Some(damage) = found.damages.first() {
            broken!("the log does not verify: {damage}");
        }
        if self.truth != Truth::Genuine {
            broken!("the wrong datastore is still running");
        }
        let Some(mut running) = self.datastore.take() else { return Ok(()) };
        self.compare_log(&running)?;
        self.check_earlier(&running)?;
        self.check_growth(&mut running)?;
        // The state rebuilt from the log alone must be the one that all members show.
        drop(running);
        self.disks.index = super::engine::Disk::default();
        let now_ms = self.datastore_ms();
        let rebuilt = Running::start(&mut self.disks, self.now, now_ms)
            .map_err(|error| Violation(format!("the datastore does not start from its log alone: {error}")))?;
        let state = rebuilt.state.clone();
        self.check_committed("the log", &state)?;
        self.note(|| format!("caught up at {}", rebuilt.head));
        Ok(())
    }

    /// Checks that a state restored at a random sequence equals the one shown at that time.
    fn check_earlier(&mut self, running: &Running) -> Checked {
        let (horizon, head) = (running.reader.horizon(), running.head);
        let at = Seq(horizon.0 + self.draw(head.0 - horizon.0));
        let text = |error: &dyn std::fmt::Display| Violation(format!("the state at {at} cannot be built: {error}"));
        let disk = super::engine::Disk::default();
        let state = StateStore::with_engine(Box::new(disk)).map_err(|error| text(&error))?;
        open::build(&state, &running.reader, at, &mut |_| {}).map_err(|error| text(&error))?;
        self.check_committed("the restored state", &state)
    }

    /// Checks that a fully compacted log contains the live data and little more.
    fn check_growth(&mut self, running: &mut Running) -> Checked {
        running.ledger.seal().map_err(|error| Violation(format!("the log cannot be sealed: {error}")))?;
        let target = running.head;
        // While a compaction runs, another one would be rejected.
        running.compaction = None;
        running.compaction = super::datastore::compaction(running, &self.disks, target, 0.0);
        if running.compaction.is_none() {
            broken!("the log cannot be compacted up to {target}");
        }
        while !super::datastore::step_compaction(running).map_err(Violation)? {}
        // Segments that a compaction replaced but could not remove, because the disk failed, are removed at the next start.
        let segments = running.reader.segments();
        let bytes: u64 = segments.iter().filter(|segment| segment.sealed).map(|segment| segment.bytes).sum();
        let (live, origins) = self.oracle.live();
        let objects = self.oracle.names().count() as u64;
        let rejections = self.oracle.unsettled();
        let of_origins = origins * ORIGIN_BYTES + rejections as u64 * REJECTION_BYTES;
        let bound = live + objects * OBJECT_BYTES + of_origins + 2 * SEGMENT_BYTES;
        if bytes > bound {
            broken!(
                "a compacted log of {live} bytes in {objects} objects, {origins} origins and {rejections} remembered \
                 rejections has {bytes} bytes, more than {bound}"
            );
        }
        Ok(())
    }
}
