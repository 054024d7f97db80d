//! `quarantine apply`: writes archived changes to the log, each group of them as one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;

use gravwell_model::codec::admin::{Request, Status};
use gravwell_model::codec::message::{Row, TxnOutcome};
use gravwell_model::{Condition, Op};
use gravwell_objects::cleanup::Cleaning;
use gravwell_objects::identities::{self, Number};
use gravwell_objects::{Stored, standing};
use gravwell_replica::conflict_archive::{Change, Set};

use super::names::{Groups, agree};
use super::owners::{Owner, archived_owners, deleted_by, deleted_owners, owner_of};
use super::present::{Present, is_made, objection, present};
use super::{file, load};
use crate::client::Client;
use crate::client::deletions::Deletions;
use crate::client::output::Output;
use crate::client::transact;
use crate::error::{CtlError, CtlResult};

/// Options for applying changes.
#[derive(Clone, Copy)]
pub(super) struct ApplyOptions {
    pub force: bool,
    pub with_access: bool,
    pub dry_run: bool,
}

/// Applies the changes of one file, and renames the file if none is left.
pub(super) async fn apply(dir: &Path, json: bool, number: u64, wish: ApplyOptions) -> CtlResult {
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

/// Outcome of a group of changes.
enum Applied {
    Yes,
    Same,
    No(String),
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

    /// Applies one group of changes.
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
        let refused = match self.wish.dry_run {
            true => None,
            false => refused(transact::submit(self.client, ops, distinct(conditions), self.is_connected).await?),
        };
        if let Some(why) = refused {
            return Ok(Applied::No(format!("{}/{}: {why}", group[0].collection, group[0].key)));
        }
        self.written.extend(made);
        self.gone.extend(removed);
        Ok(Applied::Yes)
    }
}

fn distinct(mut conditions: Vec<Condition>) -> Vec<Condition> {
    let mut known = BTreeSet::new();
    conditions.retain(|condition| known.insert(condition.clone()));
    conditions
}

/// Returns why a transaction was not accepted.
fn refused(outcome: TxnOutcome) -> Option<String> {
    match outcome {
        TxnOutcome::Committed(_) | TxnOutcome::Decided(_) | TxnOutcome::Queued => None,
        TxnOutcome::Rejected(_, reason) => Some(reason.to_string()),
        TxnOutcome::Gap(_) => Some("out of order".into()),
        TxnOutcome::Deferred(refused) => Some(refused.message),
    }
}
