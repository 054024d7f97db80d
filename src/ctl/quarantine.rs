//! `quarantine`: archived changes, which a replica had and the log that it rejoined lacks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Subcommand;

use gravwell_model::codec::admin::{DeletionInfo, DeletionsInfo, Request, Status};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::codec::message::{Row, TxnOutcome};
use gravwell_model::deletions::Named;
use gravwell_model::{Condition, LineageEntry, Op, Seq};
use gravwell_objects::cleanup::Cleaning;
use gravwell_objects::identities::{self, Number};
use gravwell_objects::{Stored, kinds, standing};
use gravwell_replica::conflict_archive::{Change, Set, files, read};

use super::client::{Client, Piece};
use super::output::{Output, size};
use super::quarantine_names::{Groups, agree};
use super::{CtlError, CtlResult, transact};

/// Commands of `quarantine`.
#[derive(Debug, Subcommand)]
pub enum QuarantineAction {
    /// List the archive files with a summary of each.
    List,
    /// Print the changes of one file, compared with the current state.
    Show {
        /// Number of the file.
        number: u64,
        /// Include secrets of webservers (only with --json, which prints values).
        #[arg(long)]
        with_secrets: bool,
    },
    /// Write the changes of one file to the log.
    ///
    /// Groups them into their original transactions, and joins those of one user or group. Skips a transaction if one of
    /// its objects was changed or deleted since, if it concerns a user or group whose number is another one's in the
    /// log, if names and their owners would not agree after it, or if it deletes what belongs to a user or group whose
    /// own deletion is skipped.
    Apply {
        /// Number of the file.
        number: u64,
        /// Also apply changes to objects that were or may have been changed since.
        #[arg(long)]
        force: bool,
        /// Also apply changes that grant access.
        ///
        /// These are accounts, passwords, rights, API tokens, and the end of a lock. Without this option, they are
        /// listed and skipped. In any case, those of a user or group that the log does not have, or whose number is
        /// another one's there, are skipped.
        #[arg(long)]
        with_access: bool,
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete one archive file.
    Drop {
        /// Number of the file.
        number: u64,
    },
}

/// `quarantine`
pub(super) async fn run(dir: &Path, json: bool, action: Option<QuarantineAction>) -> CtlResult {
    let role = std::fs::read_to_string(dir.join("role")).unwrap_or_default();
    if role.trim() != "replica" {
        let dir = dir.display();
        return Err(CtlError::new(format!("{dir} is not a replica's directory; check --data-dir")));
    }
    match action.unwrap_or(QuarantineAction::List) {
        QuarantineAction::List => list(dir, json),
        QuarantineAction::Show { number, with_secrets } => show(dir, json, number, with_secrets).await,
        QuarantineAction::Apply { number, force, with_access, dry_run } => {
            apply(dir, json, number, ApplyOptions { force, with_access, dry_run }).await
        }
        QuarantineAction::Drop { number } => {
            let path = file(dir, number)?;
            std::fs::remove_file(&path).map_err(CtlError::new)?;
            done(json, "dropped", &format!("removed {}", path.display()))
        }
    }
}

fn file(dir: &Path, number: u64) -> Result<PathBuf, CtlError> {
    let name = format!("{number:04}.jsonl");
    let found = files(dir).map_err(CtlError::new)?.into_iter().find(|path| path.ends_with(&name));
    found.ok_or_else(|| CtlError::new(format!("there is no set {number}; run `quarantine list` to list them")))
}

fn load(path: &Path) -> Result<(Set, Vec<Change>), CtlError> {
    read(path).map_err(|message| CtlError { message, exit: 3 })
}

fn done(json: bool, state: &str, text: &str) -> CtlResult {
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "state": state }))?
    } else {
        output.line(text)?
    }
    output.flush()
}

fn list(dir: &Path, json: bool) -> CtlResult {
    let (mut rows, mut damaged) = (Vec::new(), Vec::new());
    for path in files(dir).map_err(CtlError::new)? {
        let (set, changes) = match load(&path) {
            Ok(loaded) => loaded,
            Err(error) => {
                damaged.push(error.message);
                continue;
            }
        };
        let number: u64 = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).unwrap_or_default();
        rows.push(serde_json::json!({
            "number": number, "changes": changes.len(), "shared_to": set.shared_to, "seq": set.seq,
            "generation": set.generation, "left_by": set.left_by, "restore": set.is_restore, "revoked_ms": set.revoked_ms,
            "deletions_after": set.deletions_after, "file": path,
        }));
    }
    let mut output = Output::new();
    output.list(json, &rows, &["NUMBER", "CHANGES", "SHARED TO", "WAS AT", "LEFT BY GENERATION", "FILE"], |row| {
        ["number", "changes", "shared_to", "seq", "left_by", "file"]
            .map(|name| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned))
            .into()
    })?;
    output.flush()?;
    if damaged.is_empty() { Ok(()) } else { Err(CtlError { message: damaged.join("; "), exit: 3 }) }
}

/// Current state of the object of a change: its version (`None` if absent), and whether it has the value of the change,
/// or is absent as after a deletion.
struct Present {
    version: Option<Seq>,
    value: Option<Bytes>,
    is_same: bool,
}

async fn present(client: &Client, change: &Change) -> Result<Present, CtlError> {
    Ok(match client.object(&change.collection, &change.key, None).await? {
        Some(Row::Object { version, value, .. }) => {
            let is_same = change.value.as_ref() == Some(&value);
            Present { version: Some(version), value: Some(value), is_same }
        }
        _ => Present { version: None, value: None, is_same: change.value.is_none() },
    })
}

/// Deletions known to the replica's state.
#[derive(Default)]
pub(super) struct Deletions {
    complete_after: Seq,
    /// Sequence up to which deletions were requested.
    seq: Seq,
    rows: HashMap<Named, Seq>,
    /// Lineage of the log that the replica follows.
    lineage: Vec<LineageEntry>,
}

impl Deletions {
    /// Requests new deletions. Returns `false` if the replica followed a different log in between; all deletions are
    /// then requested again.
    pub(super) async fn renew(&mut self, client: &Client) -> Result<bool, CtlError> {
        let former = std::mem::take(&mut self.lineage);
        self.ask(client).await?;
        if self.seq == Seq::ZERO || former.is_empty() || former == self.lineage {
            return Ok(true);
        }
        *self = Deletions::default();
        self.ask(client).await?;
        Ok(false)
    }

    /// Returns whether an object is among the recent deletions.
    pub(super) fn has(&self, name: &Named) -> bool {
        self.rows.contains_key(name)
    }

    async fn ask(&mut self, client: &Client) -> Result<(), CtlError> {
        let (mut rows, mut head) = (Vec::new(), None);
        client
            .each(&Request::Deletions { after: self.seq }, |piece| {
                if let Piece::Item(item) = piece {
                    match head {
                        None => head = Some(serde_json::from_slice::<DeletionsInfo>(&item).map_err(CtlError::new)?),
                        Some(_) => rows.push(serde_json::from_slice::<DeletionInfo>(&item).map_err(CtlError::new)?),
                    }
                }
                Ok(())
            })
            .await?;
        let head = head.ok_or_else(|| CtlError::new("the replica sent no list of deletions"))?;
        (self.complete_after, self.seq, self.lineage) = (head.complete_after, head.seq, head.lineage);
        self.rows.extend(rows.into_iter().map(|row| ((row.collection, row.key), row.seq)));
        Ok(())
    }
}

/// Returns whether the current log has what a change makes. An object may be absent because the log does not have it
/// yet: its creator may still push it, unless the log has the deletion.
fn is_made(set: &Set, change: &Change, present: &Present, deletions: &Deletions) -> bool {
    let deleted = || deletions.rows.get(&(change.collection.clone(), change.key.clone())).copied();
    let is_deleted = || deleted().is_some_and(|seq| seq > set.shared_with(&deletions.lineage));
    present.is_same && (change.value.is_some() || is_deleted())
}

/// Returns why a change is skipped unless forced: its author did not see later changes of the object in the
/// current log.
fn objection(
    set: &Set,
    change: &Change,
    present: &Present,
    deletions: &Deletions,
    is_connected: bool,
) -> Option<String> {
    // The current log may have diverged from the one that was followed when this set was archived; then less is shared.
    let shared_to = set.shared_with(&deletions.lineage);
    let is_other = change.there.is_some_and(|there| present.version.unwrap_or_default() != there);
    // A deletion of an absent object removes nothing.
    if change.value.is_none() && present.version.is_none() {
        return None;
    }
    // Only what was deleted is there again.
    let is_again = change.is_seen && change.value.is_none() && !is_other;
    if is_again && present.version.is_some_and(|version| set.still_has(version, &deletions.lineage)) {
        return None;
    }
    if present.version.is_some_and(|version| version > shared_to) {
        return Some("was changed since".into());
    }
    if present.version.is_some() {
        return is_other.then(|| "was changed since".into());
    }
    // An absent object has no version to compare: it may have been created and deleted since.
    let deleted = deletions.rows.get(&(change.collection.clone(), change.key.clone()));
    if let Some(seq) = deleted.filter(|seq| **seq > shared_to) {
        return Some(format!("was changed since: it was deleted, at sequence {seq}"));
    }
    if is_other {
        return Some("was changed since: it is absent".into());
    }
    if deletions.complete_after > shared_to {
        let (known, from) = (deletions.complete_after, shared_to);
        return Some(format!(
            "may have been changed since: it is absent, and deletions are known only after sequence {known}, but the \
             histories diverge at {from}"
        ));
    }
    let unknown = "may have been changed since: it is absent, and the datastore, which would know, is unreachable";
    (!is_connected).then(|| unknown.into())
}

async fn show(dir: &Path, json: bool, number: u64, with_secrets: bool) -> CtlResult {
    let (set, changes) = load(&file(dir, number)?)?;
    let client = Client::open(dir).await?;
    let mut deletions = Deletions::default();
    deletions.renew(&client).await?;
    let mut output = Output::new();
    if let Some(known) = set.deletions_after.filter(|_| !json) {
        let from = set.shared_to;
        output.line(&format!(
            "deletions between sequences {from} and {known} are unknown to this member and may be missing here"
        ))?;
    }
    for change in &changes {
        let present = present(&client, change).await?;
        let now = match (&present, objection(&set, change, &present, &deletions, true)) {
            _ if is_made(&set, change, &present, &deletions) => "as here already".to_owned(),
            (_, Some(why)) => why.strip_prefix("was ").unwrap_or(&why).to_owned(),
            (Present { version: None, .. }, _) => "absent".to_owned(),
            _ if change.is_seen => "there again".to_owned(),
            _ => "as it was before".to_owned(),
        };
        if json {
            // Operators paste this output.
            let withheld = !with_secrets && kinds::is_secret(change.collection.as_str());
            let value = change.value.as_ref().filter(|_| !withheld);
            let value = value.map(|value| String::from_utf8_lossy(value).into_owned());
            output.json(&serde_json::json!({
                "seq": change.seq, "time_ms": change.time_ms, "collection": change.collection, "key": change.key,
                "delete": change.value.is_none(), "value": value, "withheld": withheld, "now": now,
            }))?;
        } else {
            let when = change.time_ms.map_or_else(|| "unknown".to_owned(), timestamp);
            let what =
                change.value.as_ref().map_or("delete".to_owned(), |value| format!("put {}", size(value.len() as u64)));
            output.line(&format!("{when}  {}/{}  {what}  now: {now}", change.collection, change.key))?;
        }
    }
    client.close().await;
    output.flush()
}

/// Options for applying changes.
#[derive(Clone, Copy)]
struct ApplyOptions {
    force: bool,
    with_access: bool,
    dry_run: bool,
}

async fn apply(dir: &Path, json: bool, number: u64, wish: ApplyOptions) -> CtlResult {
    let path = file(dir, number)?;
    let (set, changes) = load(&path)?;
    // Logins are not restored; users log in again, as after a restore.
    let (logins, changes): (Vec<Change>, Vec<Change>) =
        changes.into_iter().partition(|change| standing::is_login(&change.op()));
    let (archived, deleted) = (archived_owners(&changes), deleted_owners(&changes));
    let mut groups: BTreeMap<(u64, usize), Vec<Change>> = BTreeMap::new();
    for (place, change) in changes.into_iter().enumerate() {
        // Changes of one transaction are applied together. The original transaction of a deletion is unknown.
        let group = change.seq.map_or((u64::MAX, place), |seq| (seq.0, 0));
        groups.entry(group).or_default().push(change);
    }
    let client = Client::open(dir).await?;
    let Groups { of_owners, others } = Groups::joined(&client, groups.into_values()).await?;
    let status: Status = client.item(&Request::Status).await?;
    let wait = status.role == "datastore" || status.connected;
    let (mut applied, mut same, mut left) = (0, 0, Vec::new());
    let mut applying = Applying {
        client: &client,
        set: &set,
        archived,
        deleted,
        written: BTreeSet::new(),
        gone: BTreeSet::new(),
        deletions: Deletions::default(),
        wish,
        is_connected: wait,
    };
    // Users and groups first: what belongs to them may be older than their last change.
    for group in of_owners.into_iter().chain(others) {
        match applying.group(&group).await? {
            Applied::Yes => applied += 1,
            Applied::Same => same += 1,
            Applied::No(why) => left.push(why),
        }
    }
    client.close().await;
    if left.is_empty() && !wish.dry_run {
        std::fs::rename(&path, path.with_extension("applied")).map_err(CtlError::new)?;
    }
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({
            "applied": applied, "same": same, "left": left, "logins": logins.len(), "dry_run": wish.dry_run,
        }))?;
    } else {
        let verb = if wish.dry_run { "would be applied" } else { "applied" };
        left.iter().try_for_each(|why| output.line(&format!("left: {why}")))?;
        if !logins.is_empty() {
            output.line(&format!("{} logins are not restored; their users must log in again", logins.len()))?;
        }
        output.line(&format!("{applied} transactions {verb}, {same} were already in the log, {} left", left.len()))?;
    }
    output.flush()?;
    if left.is_empty() { Ok(()) } else { Err(CtlError { message: String::new(), exit: 1 }) }
}

enum Applied {
    Yes,
    Same,
    No(String),
}

/// Returns the user or group that a change is of.
fn number_of(change: &Change) -> Option<Number> {
    let is_claim = identities::is_claim(change.collection.as_str());
    identities::named(change.collection.as_str(), change.key.as_str(), None).filter(|_| !is_claim)
}

/// Returns the user or group that a change writes.
fn owner_of(change: &Change) -> Option<Number> {
    number_of(change).filter(|_| change.value.is_some())
}

/// Returns the user or group that a change deletes.
fn deleted_by(change: &Change) -> Option<Number> {
    number_of(change).filter(|_| change.value.is_none())
}

/// Returns the users and groups that were deleted in the history of an archive. What belongs to them was deleted in later
/// transactions as well; if this member had deleted them itself, the archive may have only the object that recorded that
/// work.
fn deleted_owners(changes: &[Change]) -> BTreeSet<Number> {
    let of_cleaning = |change: &Change| {
        let is_of_history = change.key.as_str().starts_with("history/");
        let is_cleaning = change.collection.as_str() == Cleaning::COLLECTION && !is_of_history;
        identities::holders(Cleaning::COLLECTION, change.key.as_str(), None).into_iter().filter(move |_| is_cleaning)
    };
    changes.iter().flat_map(|change| deleted_by(change).into_iter().chain(of_cleaning(change))).collect()
}

/// Returns the users and groups of an archive, with their values.
fn archived_owners(changes: &[Change]) -> BTreeMap<Number, Bytes> {
    changes.iter().filter_map(|change| Some((owner_of(change)?, change.value.clone()?))).collect()
}

/// A user or group in the log.
enum Owner {
    Absent,
    /// The one that was meant.
    Same,
    /// Another one, or it is unknown whether it is another one.
    Other,
}

impl Owner {
    /// Compares the user or group in the log with the one of an archive. What the archive lacks was the same in the log
    /// when the histories parted; since then, its number can only have become another one's if it was deleted.
    fn of(
        number: Number,
        archived: Option<&Bytes>,
        there: Option<(Seq, &Bytes)>,
        deleted: Option<Seq>,
        (complete_after, shared_to): (Seq, Seq),
    ) -> Owner {
        let Some((version, value)) = there else { return Owner::Absent };
        let is_kept =
            version <= shared_to || (deleted.is_none_or(|seq| seq <= shared_to) && complete_after <= shared_to);
        let is_same = archived.map_or(is_kept, |archived| identities::is_same(number, archived, value));
        if is_same { Owner::Same } else { Owner::Other }
    }
}

struct Applying<'a> {
    client: &'a Client,
    set: &'a Set,
    /// Users and groups of the archive.
    archived: BTreeMap<Number, Bytes>,
    /// Users and groups that were deleted in the history of the archive.
    deleted: BTreeSet<Number>,
    /// Users and groups that were written before, or would be in a dry run. The log may not have them yet.
    written: BTreeSet<Number>,
    /// Users and groups that were deleted before, or would be in a dry run. The log may still have them.
    gone: BTreeSet<Number>,
    deletions: Deletions,
    wish: ApplyOptions,
    is_connected: bool,
}

impl Applying<'_> {
    /// Returns conditions that the users and groups that a change concerns are unchanged, or why the change is skipped: a
    /// number is another one's in the log, or the change gives access to a user or group that the log does not have.
    async fn owners(
        &self,
        numbers: &BTreeSet<Number>,
        gives_access: bool,
    ) -> Result<Result<Vec<Condition>, String>, CtlError> {
        let mut conditions = Vec::new();
        for number in numbers {
            let (collection, key) = number.place().map_err(CtlError::new)?;
            let found = self.client.object(&collection, &key, None).await?;
            let there = match &found {
                Some(Row::Object { version, value, .. }) => Some((*version, value)),
                _ => None,
            };
            let deleted = self.deletions.rows.get(&(collection.clone(), key.clone())).copied();
            let known = (self.deletions.complete_after, self.set.shared_with(&self.deletions.lineage));
            match Owner::of(*number, self.archived.get(number), there, deleted, known) {
                Owner::Other if gives_access || !self.wish.force => {
                    let what = "and that number may belong to another one in the log now";
                    return Ok(Err(format!("concerns {number}, {what}")));
                }
                Owner::Absent if gives_access => {
                    return Ok(Err(format!("gives access to {number}, which is not in the log")));
                }
                // While the datastore is not reached, the version may be that of a pending write.
                Owner::Same if self.is_connected => {
                    let version = there.map(|(version, _)| version).unwrap_or_default();
                    conditions.push(Condition::Version { collection, key, version });
                }
                _ => {}
            }
        }
        Ok(Ok(conditions))
    }

    /// Returns conditions that users and groups are absent, or why a change is skipped: it was made because they had been
    /// deleted, and the log has one of them.
    async fn absent(&self, numbers: &BTreeSet<Number>) -> Result<Result<Vec<Condition>, String>, CtlError> {
        let mut conditions = Vec::new();
        for number in numbers {
            let (collection, key) = number.place().map_err(CtlError::new)?;
            let is_gone = self.gone.contains(number) || self.client.object(&collection, &key, None).await?.is_none();
            if !is_gone {
                return Ok(Err(format!("belongs to {number}, which the log has: its deletion is not applied")));
            }
            conditions.push(Condition::Absent { collection, key });
        }
        Ok(Ok(conditions))
    }

    /// Returns the conditions of a change that is one of a group, or why the group is skipped.
    async fn conditions(
        &self,
        change: &Change,
        present: &Present,
        (made, removed): (&BTreeSet<Number>, &BTreeSet<Number>),
    ) -> Result<Result<Vec<Condition>, String>, CtlError> {
        let (collection, key, op) = (change.collection.as_str(), change.key.as_str(), change.op());
        let value = change.value.as_ref().or(present.value.as_ref());
        let holders = identities::holders(collection, key, value.map(AsRef::as_ref));
        // What was deleted after its owner, or records that this was to be done.
        let is_cleaning = change.value.is_none() || collection == Cleaning::COLLECTION;
        let with_owner: BTreeSet<Number> =
            holders.iter().filter(|number| is_cleaning && self.deleted.contains(number)).copied().collect();
        let mut conditions = match self.absent(&with_owner.difference(removed).copied().collect()).await? {
            Ok(absent) => absent,
            Err(why) => return Ok(Err(why)),
        };
        // Nobody gains access by the deletion of what is absent, or of what belongs to nobody.
        let is_idle = change.value.is_none() && (present.version.is_none() || !with_owner.is_empty());
        let gives_access = standing::gives_access(&op) && !is_idle;
        if gives_access && !self.wish.with_access {
            let what =
                "gives access, which may have been revoked since; check `quarantine show`, then use --with-access";
            return Ok(Err(what.into()));
        }
        let is_known =
            |number: &Number| [made, removed, &with_owner, &self.written].iter().any(|known| known.contains(number));
        let concerned = identities::of_op(&op).union(&holders).filter(|number| !is_known(number)).copied().collect();
        Ok(self.owners(&concerned, gives_access).await?.map(|unchanged| {
            conditions.extend(unchanged);
            conditions
        }))
    }

    async fn group(&mut self, group: &[Change]) -> Result<Applied, CtlError> {
        let (mut ops, mut conditions): (Vec<Op>, Vec<Condition>) = (Vec::new(), Vec::new());
        self.deletions.renew(self.client).await?;
        let mut found = Vec::new();
        let made: BTreeSet<Number> = group.iter().filter_map(owner_of).collect();
        for change in group {
            found.push((change, present(self.client, change).await?));
        }
        // Checked after reading the objects: a concurrent deletion is either seen here or fails the condition.
        if !self.wish.force && !self.deletions.renew(self.client).await? {
            let name = format!("{}/{}", group[0].collection, group[0].key);
            return Ok(Applied::No(format!("the log changed while {name} was read; try again")));
        }
        found.retain(|(change, present)| !is_made(self.set, change, present, &self.deletions));
        let removed: BTreeSet<Number> = found.iter().filter_map(|(change, _)| deleted_by(change)).collect();
        for (change, present) in found {
            let (collection, key) = (change.collection.clone(), change.key.clone());
            let objection = objection(self.set, change, &present, &self.deletions, self.is_connected);
            if let Some(why) = objection.filter(|_| !self.wish.force) {
                return Ok(Applied::No(format!("{collection}/{key} {why}")));
            }
            match self.conditions(change, &present, (&made, &removed)).await? {
                Err(why) => return Ok(Applied::No(format!("{collection}/{key} {why}"))),
                Ok(unchanged) => conditions.extend(unchanged),
            }
            conditions.push(match present.version {
                Some(version) => Condition::Version { collection, key, version },
                None if self.wish.force => Condition::Absent { collection, key },
                // Deletions are known up to this sequence: a later one is judged with the condition.
                None => Condition::absent_since(collection, key, self.deletions.seq),
            });
            ops.push(change.op());
        }
        if ops.is_empty() {
            return Ok(Applied::Same);
        }
        match agree(self.client, &ops).await? {
            Err(why) => {
                let name = format!("{}/{}", group[0].collection, group[0].key);
                return Ok(Applied::No(format!("{name} {why}; `doctor` lists names that are inconsistent already")));
            }
            Ok(unchanged) => conditions.extend(unchanged),
        }
        let mut unique = Vec::new();
        for condition in conditions.drain(..) {
            if !unique.contains(&condition) {
                unique.push(condition);
            }
        }
        let conditions = unique;
        if self.wish.dry_run {
            self.written.extend(made);
            self.gone.extend(removed);
            return Ok(Applied::Yes);
        }
        let name = format!("{}/{}", group[0].collection, group[0].key);
        Ok(match transact::submit(self.client, ops, conditions, self.is_connected).await? {
            TxnOutcome::Committed(_) | TxnOutcome::Decided(_) | TxnOutcome::Queued => {
                self.written.extend(made);
                self.gone.extend(removed);
                Applied::Yes
            }
            TxnOutcome::Rejected(_, reason) => Applied::No(format!("{name}: {reason}")),
            TxnOutcome::Gap(_) => Applied::No(format!("{name}: out of order")),
            TxnOutcome::Deferred(refused) => Applied::No(format!("{name}: {}", refused.message)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Collection, Digest, Generation, Key, LogId};

    #[test]
    fn p04_what_was_changed_after_a_second_recovery_is_not_overwritten() {
        let lineage = |entries: &[(u64, u64)]| {
            let entry = |(generation, shared_to): &(u64, u64)| LineageEntry {
                generation: Generation(*generation),
                shared_to: Seq(*shared_to),
            };
            entries.iter().map(entry).collect::<Vec<_>>()
        };
        let set = Set {
            log_id: LogId([1; 16]),
            generation: Generation(1),
            left_by: Generation(2),
            lineage: lineage(&[(1, 0), (2, 10)]),
            shared_to: Seq(10),
            seq: Seq(11),
            digest: Digest::ZERO,
            is_restore: false,
            deletions_after: None,
            revoked_ms: None,
        };
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("x").expect("key"));
        let value = Some(Bytes::from_static(b"1"));
        let named = (collection.clone(), key.clone());
        let (seq, there) = (Some(Seq(11)), Some(Seq(9)));
        let change = Change { seq, time_ms: None, collection, key, value, there, is_seen: false };
        let objection = |entries: &[(u64, u64)], version: Option<u64>, deleted: Option<u64>| {
            let rows = deleted.map(|seq| (named.clone(), Seq(seq))).into_iter().collect();
            let deletions = Deletions { lineage: lineage(entries), rows, ..Deletions::default() };
            let present = Present { version: version.map(Seq), value: None, is_same: false };
            objection(&set, &change, &present, &deletions, true)
        };
        assert_eq!(objection(&[(1, 0), (2, 10)], Some(9), None), None, "as it was");
        assert!(objection(&[(1, 0), (2, 10)], Some(11), None).is_some());
        // The followed log was lost as well: the log that replaced it assigns the sequences from 9 on again.
        let second = [(1, 0), (3, 8)];
        assert!(objection(&second, Some(9), None).is_some(), "another write has the sequence");
        assert!(objection(&second, None, Some(9)).is_some_and(|why| why.contains("deleted")));
        assert!(objection(&second, Some(7), None).is_some(), "as it was before that");
    }

    #[test]
    fn p04_an_archived_deletion_is_made_unless_the_log_has_it() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let followed = vec![entry(1, 0), entry(2, 10)];
        let set = Set {
            log_id: LogId([1; 16]),
            generation: Generation(1),
            left_by: Generation(2),
            lineage: followed.clone(),
            shared_to: Seq(10),
            seq: Seq(13),
            digest: Digest::ZERO,
            is_restore: false,
            deletions_after: None,
            revoked_ms: None,
        };
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("x").expect("key"));
        let named = (collection.clone(), key.clone());
        let change = |there: u64, is_seen| {
            let (collection, key) = named.clone();
            Change { seq: Some(Seq(12)), time_ms: None, collection, key, value: None, there: Some(Seq(there)), is_seen }
        };
        // Returns whether it is there already, and whether it is skipped.
        let judged = |change: &Change, version: Option<u64>, deleted: Option<u64>, lineage: &[LineageEntry]| {
            let rows = deleted.map(|seq| (named.clone(), Seq(seq))).into_iter().collect();
            let deletions = Deletions { lineage: lineage.to_vec(), rows, ..Deletions::default() };
            let present = Present { version: version.map(Seq), value: None, is_same: version.is_none() };
            let objection = objection(&set, change, &present, &deletions, false);
            (is_made(&set, change, &present, &deletions), objection.is_some())
        };
        let absent = change(0, false);
        assert_eq!(judged(&absent, None, None, &followed), (false, false), "its author may still push it");
        assert_eq!(judged(&absent, None, Some(9), &followed), (false, false), "it was created after that");
        assert_eq!(judged(&absent, None, Some(11), &followed), (true, false));
        assert_eq!(judged(&absent, Some(12), None, &followed), (false, true), "it was created since");
        assert_eq!(judged(&change(12, false), Some(12), None, &followed), (false, true), "perhaps by another user");
        assert_eq!(judged(&change(9, false), Some(9), None, &followed), (false, false), "as it was");
        let again = change(12, true);
        assert_eq!(judged(&again, Some(12), None, &followed), (false, false), "the deleted object exists again");
        assert_eq!(judged(&again, Some(13), None, &followed), (false, true), "and was changed since");
        let second = [entry(1, 0), entry(2, 10), entry(3, 11)];
        assert_eq!(judged(&again, Some(12), None, &second), (false, true), "another write has the sequence");
    }
}
