//! Restore of an export archive, in transactions that can end after any of them: the webserver may be killed, the disk
//! fill up, the datastore become unreachable.
//!
//! Everything that can be refused is checked first ([`Check`]). The first transaction writes a mark ([`Restore`]), and
//! the last one deletes it. While the mark exists, every webserver serves administrators alone, and reports that a
//! restore is unfinished. Each transaction requires the mark as the one before it left it, so that nothing is committed
//! after one that was rejected, nor after an administrator has ended the restore or started another one.
//!
//! The order of the transactions ensures that no user ever has a right that they neither had before nor have at the end.
//! This includes webservers of earlier versions, which ignore the mark, and a restore that an administrator ends before
//! it has finished:
//!
//! 1. All sessions end. Accounts that the archive lacks, that it holds as locked, or under whose number it holds another
//!    user, are locked. Memberships that it lacks are deleted.
//! 2. Contents are written, then those that the archive lacks are deleted.
//! 3. Rights and accounts that the archive lacks are deleted, and those that it has are written, in one transaction if
//!    they fit. Locks are removed last, together with the mark.

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::capabilities::{Grants, TagGrants};
use super::cleanup::Cleaning;
use super::export_archive::{BackupError, Examined};
use super::groups::{Group, GroupName};
use super::identities::{self, Number};
use super::notifications::Notification;
use super::passwords::Password;
use super::record::Stored;
use super::restored_names::RestoredNames;
use super::searches::Search;
use super::sessions::{self, End, Session, hex, random};
use super::store::Author;
use super::tokens::Token;
use super::users::{Admin, FIRST, Lock, Membership, User, UserName};
use super::{CommitError, CommitProgress, Store, StoreError, Timestamp, Writes};
use gravwell_model::codec::restore;
use gravwell_model::limits::{Limits, NOTE_BYTES_MAX};
use gravwell_model::{Collection, Key, Op, OriginCounter, Txn, TxnId};

/// Maximum bytes and operations of a transaction that writes contents.
const TXN_BYTES: usize = 1 << 20;
const TXN_OPS: usize = 2000;
/// Bytes and operations of a transaction that are kept for its mark and conditions.
const MARK_BYTES: usize = 8 << 10;
const MARK_OPS: usize = 8;

/// Collections that grant access or name who has it. They are restored after everything else.
const RIGHTS: [&str; 12] = [
    Admin::COLLECTION,
    Cleaning::COLLECTION,
    Grants::COLLECTION,
    Group::COLLECTION,
    GroupName::COLLECTION,
    Lock::COLLECTION,
    Membership::COLLECTION,
    Password::COLLECTION,
    TagGrants::COLLECTION,
    Token::COLLECTION,
    User::COLLECTION,
    UserName::COLLECTION,
];

/// Reason for writing without regard to existing objects.
const WHAT_WAS: &str = "a restore replaces the current objects";
/// Reason for exempting a restore from write limits.
const ONE: &str = "a restore counts as one action of an administrator";

/// Message for users while a restore is unfinished.
pub const SHUT: &str =
    "a backup is being restored, or its restore was cut short; only administrators are served until it has finished";
const STOPPED: &str = "an administrator ended this restore, or started another one";
const OVERTAKEN: &str = "another restore was started or ended at the same time; try again";

/// Exists from the first transaction of a restore to the last one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Restore {
    /// Random id of the restore.
    pub id: String,
    /// UID of the administrator who began it.
    pub uid: i32,
    /// Name of that administrator.
    pub user: String,
    /// Name of the webserver that makes it.
    pub webserver: String,
    /// Time at which it began.
    pub since: Timestamp,
    /// Number of transactions made so far.
    pub step: u64,
}

impl Stored for Restore {
    const COLLECTION: &'static str = restore::COLLECTION;
    fn key(&self) -> String {
        restore::KEY.into()
    }
}

/// Returns whether a restore is unfinished. An invalid mark counts.
///
/// # Errors
/// If the state is corrupt.
pub fn is_unfinished(store: &Store) -> Result<bool, StoreError> {
    store.has::<Restore>(restore::KEY)
}

/// Ends an unfinished restore where it is; `None` if there is none.
///
/// # Errors
/// If the state is corrupt.
pub fn end(store: &Store) -> Result<Option<Writes>, StoreError> {
    let seen = store.seen::<Restore>(restore::KEY)?;
    if seen.is_none() {
        return Ok(None);
    }
    let mut writes = Writes::new();
    writes.require_as_read::<Restore>(restore::KEY, seen, OVERTAKEN)?;
    writes.delete_unconditionally::<Restore>(restore::KEY, "the condition names the mark")?;
    Ok(Some(writes))
}

fn is_right(op: &Op) -> bool {
    RIGHTS.contains(&op.collection().as_str())
}

/// Returns the UID at the start of a key.
fn owner(key: &str) -> Option<i32> {
    key.split('/').next()?.parse().ok()
}

/// Checks the objects of an archive before anything is restored.
pub struct Check<'a> {
    store: &'a Store,
    names: RestoredNames<'a>,
    limits: Limits,
    /// UIDs under which the archive has the account that exists here.
    same: BTreeSet<i32>,
}

impl<'a> Check<'a> {
    /// Starts the check; `store` has the present state.
    #[must_use]
    pub fn new(store: &'a Store) -> Check<'a> {
        let (names, limits) = (RestoredNames::new(store), store.replica().limits());
        // The first administrator is never deleted, so the number is never another person's.
        Check { store, names, limits, same: BTreeSet::from([FIRST]) }
    }

    /// Checks one object.
    ///
    /// # Errors
    /// If it cannot be restored; the text is the reason.
    pub fn object(&mut self, op: &Op) -> Result<(), String> {
        self.names.check(op)?;
        if self.limits.txn_bytes_max < NOTE_BYTES_MAX + MARK_BYTES {
            return Err(format!("the limit `txn_bytes_max` allows only {} bytes", self.limits.txn_bytes_max));
        }
        let limits =
            Limits { txn_bytes_max: self.limits.txn_bytes_max - NOTE_BYTES_MAX - MARK_BYTES, ..self.limits.clone() };
        let id = TxnId { origin: gravwell_model::Origin([0; 16]), counter: OriginCounter(1) };
        let txn = Txn {
            id,
            settled: OriginCounter(0),
            time_ms: 0,
            note: Bytes::new(),
            conditions: Vec::new(),
            ops: vec![op.clone()],
        };
        limits.check(&txn).map_err(|error| format!("{}/{}: {error}", op.collection(), op.key()))?;
        let (Op::Put { collection, key, value }, Some(uid)) = (op, owner(op.key().as_str())) else { return Ok(()) };
        if collection.as_str() == User::COLLECTION {
            let present = self.store.raw(collection, key).map_err(|error| error.to_string())?;
            if present.is_some_and(|(present, _)| identities::is_same(Number::User(uid), &present, value)) {
                self.same.insert(uid);
            }
        }
        Ok(())
    }

    /// Returns the plan of the restore, once the whole archive was read.
    ///
    /// # Errors
    /// If the first administrator could not log in afterwards, or the state is corrupt; the text is the reason.
    pub fn plan(self, examined: Examined) -> Result<Plan, String> {
        let first = FIRST.to_string();
        if examined.keys_of::<Lock>().any(|key| key == first) {
            return Err("the first administrator is locked, so the restored data could not be administered".into());
        }
        let has_password = examined.keys_of::<Password>().any(|key| key == first);
        if !has_password && !examined.omits(Password::COLLECTION) {
            let reason =
                "the password of the first administrator is missing, so the restored data could not be administered";
            return Err(reason.into());
        }
        let locked = self.store.keys::<Lock>("").map_err(|error| error.to_string())?.into_iter().collect();
        let returned = Returned::of(self.store, &examined, &locked).map_err(|error| error.to_string())?;
        Ok(Plan { store: self.store.clone(), limits: self.limits, same: self.same, locked, returned, examined })
    }
}

/// Access that a restore returns: it was withdrawn after the archive was made, or never existed here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// Keys of API tokens.
    pub tokens: BTreeSet<String>,
    /// UIDs of administrators.
    pub administrators: BTreeSet<String>,
    /// UIDs of users that are no longer locked.
    pub unlocked: BTreeSet<String>,
}

impl Returned {
    fn of(store: &Store, examined: &Examined, locked: &BTreeSet<String>) -> Result<Returned, StoreError> {
        // No turn: only an administrator restores a backup.
        fn new<T: Stored>(store: &Store, examined: &Examined) -> Result<BTreeSet<String>, StoreError> {
            let present: BTreeSet<String> = store.keys::<T>("")?.into_iter().collect();
            Ok(examined.keys_of::<T>().filter(|key| !present.contains(*key)).map(str::to_owned).collect())
        }
        let after: BTreeSet<&str> = examined.keys_of::<Lock>().collect();
        let users: BTreeSet<&str> = examined.keys_of::<User>().collect();
        let is_unlocked = |uid: &&String| {
            !examined.omits(Lock::COLLECTION) && !after.contains(uid.as_str()) && users.contains(uid.as_str())
        };
        Ok(Returned {
            tokens: new::<Token>(store, examined)?,
            administrators: new::<Admin>(store, examined)?,
            unlocked: locked.iter().filter(is_unlocked).cloned().collect(),
        })
    }

    /// Returns kind and key of everything that is returned.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let kinds =
            [("administrator", &self.administrators), ("unlocked user", &self.unlocked), ("token", &self.tokens)];
        kinds.into_iter().flat_map(|(kind, keys)| keys.iter().map(move |key| (kind, key)))
    }

    /// Returns the description of the transactions that return it.
    fn what(&self) -> String {
        let all: Vec<String> = self.all().map(|(kind, key)| format!("{kind} {key}")).collect();
        if all.is_empty() { "restore rights".into() } else { format!("restore rights; returned: {}", all.join(", ")) }
    }
}

/// Part of a restore to which a transaction belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Ends sessions, locks accounts and deletes memberships.
    Closing,
    /// Writes and deletes contents.
    Contents,
    /// Writes and deletes accounts and rights.
    Rights,
}

/// Operations of one transaction.
#[derive(Clone, Debug)]
pub struct Step {
    /// The part to which it belongs.
    pub part: Part,
    ops: Vec<Op>,
    is_last: bool,
}

/// Plan of a restore.
pub struct Plan {
    store: Store,
    limits: Limits,
    same: BTreeSet<i32>,
    /// Keys of the locks that exist before it.
    locked: BTreeSet<String>,
    /// Access that it returns.
    pub returned: Returned,
    /// The archive.
    pub examined: Examined,
}

impl Plan {
    /// Passes all transactions to `to`. `pass` reads the objects of the archive; it is called twice.
    ///
    /// # Errors
    /// If the state is corrupt, or `pass` or `to` fails.
    pub fn steps(
        &self,
        mut pass: impl FnMut(&mut dyn FnMut(Op) -> io::Result<()>) -> Result<(), BackupError>,
        to: impl FnMut(Step) -> io::Result<()>,
    ) -> Result<(), BackupError> {
        let mut batch = Batch { limits: self.limits.clone(), part: Part::Closing, ops: Vec::new(), bytes: 0, to };
        let locks = self.locks().map_err(io::Error::other)?;
        batch.extend(self.closing(&locks).map_err(io::Error::other)?)?;
        batch.begin(Part::Contents)?;
        pass(&mut |op| if is_right(&op) { Ok(()) } else { batch.push(op) })?;
        self.each_lacking(|op| if is_right(&op) { Ok(()) } else { batch.push(op) })?;
        batch.begin(Part::Rights)?;
        batch.extend(self.of_others().map_err(io::Error::other)?)?;
        let is_lock = |op: &Op| op.collection().as_str() == Lock::COLLECTION;
        self.each_lacking(|op| if is_right(&op) && !is_lock(&op) { batch.push(op) } else { Ok(()) })?;
        pass(&mut |op| {
            if !is_right(&op) {
                return Ok(());
            }
            let uid = owner(op.key().as_str()).filter(|_| op.collection().as_str() == User::COLLECTION);
            batch.push(op)?;
            // A session that a disconnected webserver started for the former owner of the number is invalid.
            match uid.filter(|uid| !self.same.contains(uid)) {
                Some(uid) => batch.extend(ends_of_sessions([uid]).map_err(io::Error::other)?),
                None => Ok(()),
            }
        })?;
        batch.extend(self.opening(&locks).map_err(io::Error::other)?)?;
        batch.finish()
    }

    /// Returns the UIDs that the restore locks until its end.
    fn locks(&self) -> Result<BTreeSet<i32>, StoreError> {
        let present = self.store.keys::<User>("")?;
        let others = present.iter().filter_map(|key| key.parse().ok()).filter(|uid| !self.same.contains(uid));
        let of_archive = self.examined.keys_of::<Lock>().filter_map(|key| key.parse().ok());
        let locks = others.chain(of_archive);
        Ok(locks.filter(|uid: &i32| *uid != FIRST && !self.locked.contains(&uid.to_string())).collect())
    }

    fn closing(&self, locks: &BTreeSet<i32>) -> Result<Vec<Op>, StoreError> {
        let mut writes = Writes::new();
        for uid in locks {
            writes.overwrite(&Lock { uid: *uid, since: Timestamp::now() }, WHAT_WAS)?;
        }
        for key in self.store.keys::<Session>("")? {
            writes.delete_unconditionally::<Session>(&key, sessions::ENDED)?;
        }
        let mut ops = writes.into_ops();
        ops.extend(ends_of_sessions(self.store.keys::<User>("")?.iter().filter_map(|key| key.parse().ok()))?);
        let mut writes = Writes::new();
        let members: BTreeSet<&str> = self.examined.keys_of::<Membership>().collect();
        for key in self.store.keys::<Membership>("")? {
            if !self.examined.omits(Membership::COLLECTION) && !members.contains(key.as_str()) {
                writes.delete_unconditionally::<Membership>(&key, WHAT_WAS)?;
            }
        }
        ops.extend(writes.into_ops());
        Ok(ops)
    }

    /// Passes a deletion for every existing object that the archive lacks.
    fn each_lacking(&self, mut take: impl FnMut(Op) -> io::Result<()>) -> Result<(), BackupError> {
        // Searches that the archive does not contain keep their results.
        let is_left = self.examined.omits(Search::COLLECTION);
        let left = if is_left { super::searches::referenced_blobs(&self.store) } else { Ok(Default::default()) };
        let left = left.map_err(io::Error::other)?;
        let mut see = |collection: Collection, key: Key| {
            let is_kept =
                collection.as_str() == gravwell_model::codec::blob_manifest::COLLECTION && left.contains(key.as_str());
            if is_kept || !self.examined.lacks(&collection, &key) {
                return Ok(());
            }
            take(Op::Delete { collection, key })
        };
        let pending = self.store.replica().pending();
        let pending: BTreeSet<(&Collection, &Key)> = pending
            .iter()
            .flat_map(|txn| &txn.ops)
            .filter(|op| op.value().is_some())
            .map(|op| (op.collection(), op.key()))
            .collect();
        for row in self.store.replica().state().snapshot()?.objects() {
            let (collection, key, _) = row?;
            if !pending.contains(&(&collection, &key)) {
                see(collection, key)?;
            }
        }
        pending.into_iter().try_for_each(|(collection, key)| Ok(see(collection.clone(), key.clone())?))
    }

    /// Returns deletions of objects that the archive omits, and that would pass from one user to another with a number.
    fn of_others(&self) -> Result<Vec<Op>, StoreError> {
        fn of_keys<T: Stored>(plan: &Plan, writes: &mut Writes) -> Result<(), StoreError> {
            if !plan.examined.omits(T::COLLECTION) {
                return Ok(());
            }
            let restored: BTreeSet<&str> = plan.examined.keys_of::<T>().collect();
            for key in plan.store.keys::<T>("")? {
                let is_of_other = owner(&key).is_some_and(|uid| !plan.same.contains(&uid));
                if is_of_other && !restored.contains(key.as_str()) {
                    writes.delete_unconditionally::<T>(&key, WHAT_WAS)?;
                }
            }
            Ok(())
        }
        let mut writes = Writes::new();
        of_keys::<Password>(self, &mut writes)?;
        of_keys::<Token>(self, &mut writes)?;
        let is_of_other = |it: &Notification| it.uid != 0 && !self.same.contains(&it.uid);
        for found in self.store.select::<Notification>("", is_of_other)? {
            writes.delete_unconditionally::<Notification>(&found.value.key(), WHAT_WAS)?;
        }
        if self.examined.omits(Search::COLLECTION) {
            let is_of_other = |it: &Search| !self.same.contains(&it.uid) && !it.global && it.gids.is_empty();
            for found in self.store.select::<Search>("", is_of_other)? {
                writes.delete_unconditionally::<Search>(&found.value.key(), WHAT_WAS)?;
            }
        }
        Ok(writes.into_ops())
    }

    /// Returns the last operations: they end the sessions that administrators started during the restore, and remove locks.
    fn opening(&self, locks: &BTreeSet<i32>) -> Result<Vec<Op>, StoreError> {
        let mut administrators: BTreeSet<i32> =
            self.store.keys::<Admin>("")?.iter().filter_map(|key| key.parse().ok()).collect();
        administrators.extend(self.examined.keys_of::<Admin>().filter_map(|key| key.parse::<i32>().ok()));
        let mut ops = ends_of_sessions(administrators)?;
        let mut writes = Writes::new();
        for key in self.store.keys::<Session>("")? {
            writes.delete_unconditionally::<Session>(&key, sessions::ENDED)?;
        }
        let restored: BTreeSet<&str> = self.examined.keys_of::<Lock>().collect();
        let former = self.locked.iter().filter(|_| !self.examined.omits(Lock::COLLECTION)).cloned();
        for key in former.chain(locks.iter().map(i32::to_string)).filter(|key| !restored.contains(key.as_str())) {
            writes.delete_unconditionally::<Lock>(&key, WHAT_WAS)?;
        }
        ops.extend(writes.into_ops());
        Ok(ops)
    }
}

fn ends_of_sessions(uids: impl IntoIterator<Item = i32>) -> Result<Vec<Op>, StoreError> {
    let mut writes = Writes::new();
    for uid in uids {
        End::now(uid, &mut writes)?;
    }
    Ok(writes.into_ops())
}

/// Collects operations to transactions.
struct Batch<F> {
    limits: Limits,
    part: Part,
    ops: Vec<Op>,
    bytes: usize,
    to: F,
}

impl<F: FnMut(Step) -> io::Result<()>> Batch<F> {
    /// Returns the maximum bytes and operations of a transaction of the present part. Rights are changed at once if
    /// possible.
    fn room(&self) -> (usize, usize) {
        let bytes = self.limits.txn_bytes_max.saturating_sub(NOTE_BYTES_MAX + MARK_BYTES);
        // The rest is kept for conditions on users that were created while the datastore was unreachable.
        let bytes = bytes / 4 * 3;
        let ops = (self.limits.ops_max / 2).saturating_sub(MARK_OPS).max(1);
        if self.part == Part::Rights { (bytes, ops) } else { (bytes.min(TXN_BYTES), ops.min(TXN_OPS)) }
    }

    fn push(&mut self, op: Op) -> io::Result<()> {
        let bytes = op.collection().as_str().len() + op.key().len() + op.value().map_or(0, Bytes::len) + 16;
        let (bytes_max, ops_max) = self.room();
        if !self.ops.is_empty() && (self.bytes + bytes > bytes_max || self.ops.len() >= ops_max) {
            self.send(false)?;
        }
        self.bytes += bytes;
        self.ops.push(op);
        Ok(())
    }

    fn extend(&mut self, ops: Vec<Op>) -> io::Result<()> {
        ops.into_iter().try_for_each(|op| self.push(op))
    }

    fn send(&mut self, is_last: bool) -> io::Result<()> {
        self.bytes = 0;
        let ops = std::mem::take(&mut self.ops);
        if ops.is_empty() && !is_last { Ok(()) } else { (self.to)(Step { part: self.part, ops, is_last }) }
    }

    fn begin(&mut self, part: Part) -> io::Result<()> {
        self.send(false)?;
        self.part = part;
        Ok(())
    }

    fn finish(mut self) -> Result<(), BackupError> {
        Ok(self.send(true)?)
    }
}

/// A restore after its first transaction.
pub struct Run {
    store: Store,
    author: Author,
    id: String,
    what: String,
}

impl Run {
    /// Commits the mark, which starts or repeats the restore. `author` must be an administrator.
    ///
    /// # Errors
    /// If the mark is refused; nothing was changed then.
    pub async fn begin(plan: &Plan, author: &Author) -> Result<Run, CommitError> {
        let (store, user) = (plan.store.clone(), author.user.clone());
        let id = hex(&random::<16>().map_err(StoreError::from)?);
        let (webserver, since) = (store.via().to_owned(), Timestamp::now());
        let mark = Restore { id: id.clone(), uid: author.uid, user, webserver, since, step: 0 };
        let mut writes = Writes::new();
        writes.replace(store.seen::<Restore>(restore::KEY)?, &mark, OVERTAKEN)?;
        store.commit(author, "begin to restore a backup", writes.unmetered(ONE)).await?;
        // From here on the mark decides: the author's session ends, and the archive may take the author's role.
        let author = Author { standing: Default::default(), ..author.clone() };
        Ok(Run { store, author, id, what: plan.returned.what() })
    }

    /// Commits the next transaction.
    ///
    /// # Errors
    /// If it is refused, or the restore was ended by an administrator. No later transaction can be committed then.
    pub async fn commit(&self, step: Step) -> Result<CommitProgress, CommitError> {
        let mark = self.store.get::<Restore>(restore::KEY)?.filter(|mark| mark.value.id == self.id);
        let mut mark = mark.ok_or_else(|| CommitError::Conflict(STOPPED.into()))?;
        let mut writes = Writes::unconditional(step.ops, WHAT_WAS);
        mark.value.step += 1;
        if step.is_last {
            writes.delete(&mark, STOPPED)?;
        } else {
            writes.update(&mark, STOPPED)?;
        }
        let what = if step.part == Part::Rights { self.what.as_str() } else { "restore a backup" };
        self.store.commit(&self.author, what, writes.unmetered(ONE)).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::cleanup;
    use super::super::export_archive::{self, Item, Parts, Source};
    use super::super::record::written;
    use super::*;
    use crate::epochs::Known;
    use gravwell_replica::{Replica, ReplicaOptions};

    const EARLIER: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-02-01T00:00:00Z";

    struct Alone {
        store: Store,
        _temp: tempfile::TempDir,
    }

    fn op(collection: &str, key: &str, value: &Value) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
        Op::Put { collection, key, value: value.to_string().into() }
    }

    /// Returns the objects of a user with a password, and with an API token.
    fn user(uid: i32, name: &str, created: &str) -> Vec<Op> {
        let token = uuid::Uuid::from_u128(u128::try_from(uid).expect("positive"));
        let (key, of_token) = (uid.to_string(), format!("{uid}/{token}"));
        vec![
            op("users", &key, &json!({ "UID": uid, "User": name, "Created": created })),
            op("user-names", name, &json!({ "name": name, "uid": uid })),
            op("passwords", &key, &json!({ "uid": uid, "hash": name, "changed": created, "must_change": false })),
            op(
                "tokens",
                &of_token,
                &json!({ "id": token, "name": name, "uid": uid, "createdAt": created, "hash": "" }),
            ),
            op("session-epochs", &key, &json!({ "uid": uid, "id": "before", "since": created })),
        ]
    }

    fn of_user(collection: &str, uid: i32) -> Op {
        op(collection, &uid.to_string(), &json!({ "uid": uid, "since": EARLIER }))
    }

    fn member(uid: i32, gid: i32) -> Op {
        op("memberships", &format!("{uid}/{gid}"), &json!({ "uid": uid, "gid": gid }))
    }

    fn dashboard(id: u64, uid: i32) -> Op {
        let value = json!({ "ID": id, "Name": "d", "UID": uid, "GIDs": [], "Global": false, "Created": EARLIER,
                            "Updated": EARLIER, "Data": {} });
        op("dashboards", &id.to_string(), &value)
    }

    /// The system when the archive was made: 7 and 9 are administrators.
    fn former() -> Vec<Op> {
        let groups =
            [4, 5].map(|gid| op("groups", &gid.to_string(), &json!({ "GID": gid, "Name": format!("g{gid}") })));
        let mut ops: Vec<Op> = groups.into();
        for (uid, name) in [(1, "admin"), (7, "alice"), (8, "bob"), (9, "carol")] {
            ops.extend(user(uid, name, EARLIER));
        }
        ops.extend([1, 7, 9].map(|uid| of_user("admins", uid)));
        ops.extend([member(7, 4), member(8, 4), member(9, 5)]);
        ops.extend((0..20).map(|id| dashboard(id, 9)));
        ops
    }

    /// The system now: 7 is an ordinary user in another group, 8 is locked, 9 is another person, 10 is new.
    fn now() -> Vec<Op> {
        let mut ops = former();
        ops.retain(|op| {
            let of = |collection: &str, uid: i32| {
                op.collection().as_str() == collection && owner(op.key().as_str()) == Some(uid)
            };
            !of("admins", 7)
                && !of("admins", 9)
                && !of("memberships", 7)
                && !of("memberships", 9)
                && !of("dashboards", 3)
        });
        ops.retain(|op| op.key().as_str() != "carol" && op.key().as_str().split('/').next() != Some("9"));
        ops.extend(user(9, "dora", LATER));
        ops.extend(user(10, "eve", LATER));
        ops.extend([member(7, 5), member(10, 4), of_user("locks", 8), of_user("admins", 10)]);
        ops.extend((100..120).map(|id| dashboard(id, 10)));
        for uid in [1, 7, 9, 10] {
            let session = json!({ "uid": uid, "id": "s", "origin": "", "created": LATER, "last_hit": LATER,
                                  "expires": "2126-01-01T00:00:00Z", "epoch": "before" });
            ops.push(op("sessions", &format!("{uid}/s"), &session));
        }
        ops
    }

    impl Alone {
        async fn with(ops: Vec<Op>) -> Alone {
            let temp = tempfile::tempdir().expect("temp dir");
            let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
            let alone = Alone { store: Store::new(replica, "w"), _temp: temp };
            let writes = Writes::unconditional(ops, "a test");
            alone.store.commit(&Author::default(), "a test", writes).await.expect("is accepted");
            alone
        }

        fn archive(&self, parts: Parts) -> Vec<u8> {
            let mut archive = Vec::new();
            Source::of(self.store.replica()).expect("reads").write(parts, &mut archive).expect("writes");
            archive
        }

        fn plan(&self, archive: &[u8]) -> Result<Plan, String> {
            let mut check = Check::new(&self.store);
            let examined = export_archive::read(&mut &archive[..], |item| match item {
                Item::Object(op) => check.object(&op).map_err(io::Error::other),
                Item::Chunk(..) => Ok(()),
            });
            check.plan(examined.map_err(|error| error.to_string())?)
        }

        /// Begins a restore with transactions of `ops_max` operations and makes at most `steps_max` of them. Returns
        /// whether there are none left.
        async fn restore(&self, archive: &[u8], ops_max: usize, steps_max: usize) -> bool {
            let mut plan = self.plan(archive).expect("is accepted");
            plan.limits.ops_max = 2 * (ops_max + MARK_OPS);
            let (run, steps) = (Run::begin(&plan, &author()).await.expect("begins"), steps(&plan, archive));
            let made = steps.len().min(steps_max);
            for step in steps.iter().take(made) {
                run.commit(step.clone()).await.expect("is accepted");
            }
            made == steps.len()
        }

        /// Returns the rights that an account has, as a webserver without regard to the mark sees them, and whose it is.
        fn rights(&self, uid: i32) -> BTreeSet<String> {
            let (store, key) = (&self.store, uid.to_string());
            let found = store.get::<User>(&key).expect("reads");
            let Some(user) = found.filter(|_| !store.has::<Lock>(&key).expect("reads")) else { return BTreeSet::new() };
            let mut rights = BTreeSet::from([format!("account of {}", user.value.user)]);
            rights.extend(store.has::<Admin>(&key).expect("reads").then(|| "administrator".to_owned()));
            let prefix = format!("{uid}/");
            rights.extend(store.keys::<Membership>(&prefix).expect("reads").iter().map(|key| format!("member {key}")));
            rights.extend(store.keys::<Token>(&prefix).expect("reads").iter().map(|key| format!("token {key}")));
            rights.extend((0..120).filter_map(|id| {
                let found = store.get::<super::super::dashboards::Dashboard>(&id.to_string()).expect("reads");
                found.filter(|found| found.value.uid == uid).map(|_| format!("dashboard {id}"))
            }));
            rights
        }

        fn all_rights(&self) -> Vec<BTreeSet<String>> {
            [1, 7, 8, 9, 10].map(|uid| self.rights(uid)).into()
        }

        fn objects(&self) -> BTreeSet<String> {
            let text = String::from_utf8(self.archive(Parts::default())).expect("text");
            text.lines().filter(|line| line.starts_with("{\"collection\"")).map(str::to_owned).collect()
        }
    }

    fn author() -> Author {
        Author { uid: 1, user: "admin".into(), ..Author::default() }
    }

    fn steps(plan: &Plan, archive: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        let pass = |take: &mut dyn FnMut(Op) -> io::Result<()>| {
            let each = |item: Item| if let Item::Object(op) = item { take(op) } else { Ok(()) };
            export_archive::read(&mut &archive[..], each).map(drop)
        };
        let keep = |step| {
            steps.push(step);
            Ok(())
        };
        plan.steps(pass, keep).expect("steps");
        steps
    }

    /// The archive, and the rights that it gives.
    async fn earlier() -> (Vec<u8>, Alone) {
        let earlier = Alone::with(former()).await;
        (earlier.archive(Parts::default()), earlier)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_a_restore_that_is_cut_short_gives_no_right_and_is_finished_by_a_second_one() {
        let (archive, earlier) = earlier().await;
        let (before, after) = (Alone::with(now()).await, earlier.all_rights());
        let (objects_before, rights_before) = (before.objects(), before.all_rights());
        for steps_max in 0.. {
            let alone = Alone::with(now()).await;
            let is_done = alone.restore(&archive, 3, steps_max).await;
            for ((now, before), after) in alone.all_rights().iter().zip(&rights_before).zip(&after) {
                // The role includes everything else.
                let most = |most: &BTreeSet<String>| {
                    let has_role = most.contains("administrator");
                    now.iter().all(|right| most.contains(right) || (has_role && !right.starts_with("account")))
                };
                assert!(most(before) || most(after), "{steps_max}: {now:?}, before {before:?}, after {after:?}");
            }
            assert_eq!(is_unfinished(&alone.store).expect("reads"), !is_done, "{steps_max}");
            let reasons = alone.store.replica().status().health.reasons;
            let is_shown =
                reasons.iter().any(|reason| reason.code == gravwell_model::codec::health::Code::RestoreUnfinished);
            assert_eq!(is_shown, !is_done, "{steps_max}");
            let objects = alone.objects();
            let contents = |objects: &BTreeSet<String>| -> BTreeSet<String> {
                objects.iter().filter(|line| line.contains("\"dashboards\"")).cloned().collect()
            };
            let (held, wanted) = (contents(&objects), contents(&earlier.objects()));
            assert!(
                held.is_superset(&contents(&objects_before)) || held.is_superset(&wanted),
                "{steps_max}: replaced first"
            );
            if steps_max >= 5 {
                let known = Known::<Session>::of(&alone.store, 10).expect("reads");
                assert!(!known.counts("before"), "sessions end first");
            }
            if is_done {
                assert_eq!(objects, earlier.objects(), "everything is as in the archive");
                assert!(alone.store.keys::<Session>("").expect("reads").is_empty(), "all sessions have ended");
                assert!(steps_max > 20, "it has many transactions: {steps_max}");
                return;
            }
            assert!(alone.restore(&archive, 1000, usize::MAX).await);
            assert_eq!(alone.objects(), earlier.objects(), "{steps_max}: the second restore finishes it");
            assert!(!is_unfinished(&alone.store).expect("reads"));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_leftovers_of_deleted_users_are_deleted_after_a_restore_that_was_ended_and_not_during_it() {
        let (archive, earlier) = earlier().await;
        let left = op("cleanings", "user/9", &json!({ "of": "user", "number": 9, "since": LATER, "webserver": "w" }));
        let mut now = now();
        now.retain(|op| owner(op.key().as_str()) != Some(9) && op.key().as_str() != "dora");
        now.push(left);
        for steps_max in 0.. {
            let alone = Alone::with(now.clone()).await;
            let is_done = alone.restore(&archive, 3, steps_max).await;
            if is_done {
                assert!(alone.store.keys::<Cleaning>("").expect("reads").is_empty());
                assert_eq!(alone.objects(), earlier.objects());
                return;
            }
            let works = alone.store.list::<Cleaning>("").expect("reads");
            // Rights come last.
            let Some(work) = works.first() else { continue };
            let slice = || cleanup::slice(&alone.store, work, &mut cleanup::Cursor::default()).expect("reads").0;
            let commit = async |writes| alone.store.commit(&Author::default(), "a test", writes).await;
            let held = alone.objects();
            assert!(commit(slice()).await.is_err() && alone.objects() == held, "{steps_max}");
            commit(end(&alone.store).expect("reads").expect("is unfinished")).await.expect("ends");
            commit(slice()).await.expect("is accepted");
            if steps_max == 0 {
                assert!(!alone.objects().iter().any(|object| object.contains("user/9")), "nothing else is left");
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_a_restore_says_what_access_it_returns_before_it_does() {
        let (archive, _) = earlier().await;
        let alone = Alone::with(now()).await;
        let plan = alone.plan(&archive).expect("is accepted");
        let all: Vec<String> = plan.returned.all().map(|(kind, key)| format!("{kind} {key}")).collect();
        assert_eq!(all, ["administrator 7", "administrator 9", "unlocked user 8"]);
        assert!(plan.returned.what().ends_with("returned: administrator 7, administrator 9, unlocked user 8"));
        let rights: Vec<Step> = steps(&plan, &archive).into_iter().filter(|step| step.part == Part::Rights).collect();
        assert_eq!(rights.len(), 1, "rights that fit are changed at once");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_nothing_is_restored_after_the_restore_was_ended_or_started_again() {
        let (archive, _) = earlier().await;
        for is_again in [false, true] {
            let alone = Alone::with(now()).await;
            let plan = alone.plan(&archive).expect("is accepted");
            let (run, steps) = (Run::begin(&plan, &author()).await.expect("begins"), steps(&plan, &archive));
            run.commit(steps[0].clone()).await.expect("is accepted");
            if is_again {
                Run::begin(&plan, &author()).await.expect("begins again");
            } else {
                let writes = end(&alone.store).expect("reads").expect("is unfinished");
                alone.store.commit(&Author::default(), "a test", writes).await.expect("ends");
                assert!(end(&alone.store).expect("reads").is_none());
            }
            let held = alone.objects();
            let refused = run.commit(steps[1].clone()).await.expect_err("is refused");
            assert!(refused.to_string().contains("ended this restore"), "{refused}");
            assert_eq!(alone.objects(), held);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_no_password_and_no_token_passes_to_another_user_with_a_number() {
        let earlier = Alone::with(former()).await;
        let archive = earlier.archive(Parts { without_secrets: true, ..Parts::default() });
        let alone = Alone::with(now()).await;
        assert!(alone.restore(&archive, 1000, usize::MAX).await);
        let store = &alone.store;
        assert_eq!(store.get::<User>("9").expect("reads").expect("a user").value.user, "carol");
        for uid in ["1", "7", "8"] {
            assert!(store.has::<Password>(uid).expect("reads"), "{uid} is the same user");
            assert_eq!(store.keys::<Token>(&format!("{uid}/")).expect("reads").len(), 1, "{uid}");
        }
        for uid in ["9", "10"] {
            assert!(!store.has::<Password>(uid).expect("reads"), "{uid}");
            assert!(store.keys::<Token>(&format!("{uid}/")).expect("reads").is_empty(), "{uid}");
        }
        let known = Known::<Session>::of(store, 9).expect("reads");
        assert!(!known.counts("before"), "a session that a disconnected webserver started is invalid");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn p11_what_cannot_be_restored_is_refused_before_anything_is_changed() {
        let (archive, _) = earlier().await;
        let alone = Alone::with(now()).await;
        let mut check = Check::new(&alone.store);
        check.limits.value_bytes_max = 100;
        let refused = check.object(&dashboard(1, 7)).expect_err("is too large");
        assert!(refused.contains("dashboards/1") && refused.contains("value_bytes_max"), "{refused}");
        let locked = Alone::with(former().into_iter().chain([of_user("locks", 1)]).collect()).await;
        let no_password =
            former().into_iter().filter(|op| (op.collection().as_str(), op.key().as_str()) != ("passwords", "1"));
        let no_password = Alone::with(no_password.collect()).await;
        for other in [locked, no_password] {
            let refused = alone.plan(&other.archive(Parts::default())).err().expect("is refused");
            assert!(refused.contains("could not be administered"), "{refused}");
        }
        assert!(alone.plan(&archive).is_ok());
    }

    #[test]
    fn the_mark_is_what_every_layer_knows() {
        let mark = Restore {
            id: "a".into(),
            uid: 1,
            user: "admin".into(),
            webserver: "w".into(),
            since: Timestamp::now(),
            step: 0,
        };
        assert_eq!((Restore::COLLECTION, mark.key().as_str()), ("restores", "unfinished"));
        let reason = restore::reason(&written(&mark).expect("writes"));
        assert!(reason.message.contains("\"admin\" at webserver \"w\", 2"), "{}", reason.message);
    }
}
