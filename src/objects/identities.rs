//! Users and groups that a change concerns, by their numbers.
//!
//! A number that this webserver assigned while it was disconnected may turn out to be another user's or group's: the
//! log rejects the creation, and the number belongs to another one. It is therefore not enough for a change that was
//! made upon the rejected creation that the number exists. While the creation of a user or group is pending, every
//! change that concerns its number requires that the creation was committed (`bound`), so that it is rejected together
//! with it.

use std::collections::BTreeSet;

use super::accounts::{GROUP_GONE, USER_GONE};
use super::cleanup::Cleaning;
use super::groups::{Group, GroupName};
use super::history::Entry;
use super::kinds::{self, Owner};
use super::notifications::Notification;
use super::record::Stored;
use super::sharing::Shares;
use super::store::Author;
use super::users::{Membership, User, UserName};
use super::writes::place;
use super::{Store, StoreError, Writes, names};
use gravwell_model::{Collection, Condition, Key, Op, Txn, TxnId};
use gravwell_replica::History;

type ObjectKey = (Collection, Key);
/// A pending transaction, and the history in which it was read.
type Pending = (TxnId, History);

/// The number of a user or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Number {
    /// The number of a user.
    User(i32),
    /// The number of a group.
    Group(i32),
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Number::User(uid) => write!(f, "user {uid}"),
            Number::Group(gid) => write!(f, "group {gid}"),
        }
    }
}

impl Number {
    /// Returns the collection and key of the user or group.
    ///
    /// # Errors
    /// Never: a number is a valid key.
    pub fn place(self) -> Result<(Collection, Key), StoreError> {
        match self {
            Number::User(uid) => place::<User>(&uid.to_string()),
            Number::Group(gid) => place::<Group>(&gid.to_string()),
        }
    }
}

fn of_holder(key: &str) -> Option<Number> {
    match key.split_once('/')? {
        ("user", uid) => uid.parse().ok().map(Number::User),
        ("group", gid) => gid.parse().ok().map(Number::Group),
        _ => None,
    }
}

/// Adds the owners of an object, which its key names.
fn add_of_key(collection: &str, key: &str, numbers: &mut BTreeSet<Number>) {
    match kinds::owner(collection) {
        Owner::Holder => numbers.extend(of_holder(key)),
        // The key starts with a UID, followed by the GID of a group if it is that of a membership.
        Owner::Uid | Owner::Rows => {
            let mut parts = key.split('/');
            numbers.extend(parts.next().and_then(|uid| uid.parse().ok()).map(Number::User));
            let gid = parts.next().filter(|_| collection == Membership::COLLECTION);
            numbers.extend(gid.and_then(|gid| gid.parse().ok()).map(Number::Group));
        }
        Owner::Nobody | Owner::Private | Owner::Kept => {}
    }
}

/// Returns the owner and the share scope of an object; `None` if it is invalid, or not of a kind that can be shared.
fn shares(collection: &str, value: &[u8]) -> Option<Shares> {
    kinds::of(collection).and_then(|kind| kind.shares)?(value)
}

/// Returns the users and groups to which an operation gives an object or a right. The user or group that the operation
/// itself writes is not one of them.
#[must_use]
pub fn of_op(op: &Op) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::new();
    let Some(value) = op.value() else { return numbers };
    let collection = op.collection().as_str();
    add_of_key(collection, op.key().as_str(), &mut numbers);
    if let Some(shares) = shares(collection, value) {
        numbers.insert(Number::User(shares.owner));
        let audiences = [&shares.readers, &shares.writers];
        numbers.extend(audiences.into_iter().flat_map(|audience| &audience.groups).copied().map(Number::Group));
    }
    match collection {
        Entry::COLLECTION => {
            let entry = serde_json::from_slice::<Entry>(value).ok();
            numbers.extend(
                entry.iter().flat_map(|entry| entry.gids.iter().chain([&entry.gid])).copied().map(Number::Group),
            );
        }
        Notification::COLLECTION => {
            let found = serde_json::from_slice::<Notification>(value).ok();
            numbers.extend(found.iter().flat_map(|it| [Number::User(it.uid), Number::Group(it.gid)]));
        }
        User::COLLECTION => {
            let user = serde_json::from_slice::<User>(value).ok();
            numbers.extend(user.and_then(|user| user.default_gid).map(Number::Group));
        }
        _ => {}
    }
    // Zero is no user.
    numbers.remove(&Number::User(0));
    numbers.remove(&Number::Group(0));
    numbers
}

/// Returns the users and groups to which an object belongs, and with which it is deleted: by its key or, if the value
/// names the owner, by its value. An object that is shared is kept.
#[must_use]
pub fn holders(collection: &str, key: &str, value: Option<&[u8]>) -> BTreeSet<Number> {
    let mut numbers = BTreeSet::new();
    match collection {
        Cleaning::COLLECTION => {
            let of_history = key.strip_prefix("history/").and_then(|rest| rest.split('/').next()?.parse().ok());
            numbers.extend(of_holder(key).or(of_history.map(Number::User)));
        }
        _ if kinds::owner(collection) == Owner::Private => {
            let shares = value.and_then(|value| shares(collection, value)).filter(Shares::is_private);
            numbers.extend(shares.map(|shares| Number::User(shares.owner)));
        }
        _ => add_of_key(collection, key, &mut numbers),
    }
    numbers
}

/// Returns whether the objects of a collection are claims of names.
#[must_use]
pub fn is_claim(collection: &str) -> bool {
    [UserName::COLLECTION, GroupName::COLLECTION].contains(&collection)
}

/// Returns the user or group that an object is, or whose name it claims.
#[must_use]
pub fn named(collection: &str, key: &str, value: Option<&[u8]>) -> Option<Number> {
    match collection {
        User::COLLECTION => key.parse().ok().map(Number::User),
        Group::COLLECTION => key.parse().ok().map(Number::Group),
        UserName::COLLECTION => serde_json::from_slice::<UserName>(value?).ok().map(|claim| Number::User(claim.uid)),
        GroupName::COLLECTION => serde_json::from_slice::<GroupName>(value?).ok().map(|claim| Number::Group(claim.gid)),
        _ => None,
    }
}

/// Adds the users and groups that must exist, or own what must exist, for a condition to hold.
fn add_of_condition(condition: &Condition, numbers: &mut BTreeSet<Number>) {
    let (collection, key) = (condition.collection().as_str(), condition.key().as_str());
    match (condition, collection) {
        (Condition::Absent { .. }, _) => {}
        (_, User::COLLECTION) => numbers.extend(key.parse().ok().map(Number::User)),
        (_, Group::COLLECTION) => numbers.extend(key.parse().ok().map(Number::Group)),
        _ => add_of_key(collection, key, numbers),
    }
}

/// Returns an object that is written only together with the creation, and with a later change of the name, of a user or
/// group, and the last transaction that wrote it; `None` if the creation is not pending. It is the claim of the name: a
/// change of another field is no reason to reject a change that only concerns the number.
fn creation(store: &Store, number: Number) -> Result<Option<(ObjectKey, Pending)>, StoreError> {
    let pending = |place: &ObjectKey| store.replica().pending_creation(&place.0, &place.1);
    let owner = number.place()?;
    let Some(created) = pending(&owner) else { return Ok(None) };
    let key = owner.1.as_str();
    let claim = match number {
        Number::User(uid) => {
            let user = store.valid::<User>(key)?.map(|user| user.value.user);
            user.map(|name| place::<UserName>(&UserName::of(&name, uid).key())).transpose()?
        }
        Number::Group(gid) => {
            let group = store.valid::<Group>(key)?.map(|group| group.value.name);
            group.map(|name| place::<GroupName>(&GroupName::of(&name, gid).key())).transpose()?
        }
    };
    let claimed = claim.and_then(|claim| pending(&claim).map(|claimed| (claim, claimed)));
    // A claim that took the place of a stale one is not created.
    Ok(Some(claimed.unwrap_or((owner, created))))
}

/// Returns the writes with a condition for each user or group that they concern, or that makes them, and whose creation
/// is pending: that it was committed, and that the user or group was not renamed or deleted in the meantime by another author.
///
/// # Errors
/// If the state is corrupt.
pub(super) fn bound(store: &Store, author: &Author, writes: &Writes) -> Result<Writes, StoreError> {
    let mut numbers: BTreeSet<Number> = writes.ops().iter().flat_map(of_op).collect();
    writes.conditions().iter().for_each(|condition| add_of_condition(condition, &mut numbers));
    numbers.extend(author.standing.author_of(writes.ops()).map(Number::User));
    let mut bound = writes.clone();
    for number in numbers {
        let Some((place, created)) = creation(store, number)? else { continue };
        let said = if matches!(number, Number::User(_)) { USER_GONE } else { GROUP_GONE };
        bound.require_pending(place, created, said);
    }
    Ok(bound)
}

/// Returns whether the user who has the number of a change's author now is the author. Somebody else may have the number
/// if the author's account was rejected, or was lost with a part of the log. Users keep their number when they are renamed:
/// a user of another name is the author if the account is not later than the change, and the change was not made while
/// the creation of the author's account was pending.
///
/// # Errors
/// If the state is corrupt.
pub fn is_author_there(store: &Store, author: &Author, txn: &Txn) -> Result<bool, StoreError> {
    let key = author.uid.to_string();
    let Some(user) = store.valid::<User>(&key)?.map(|user| user.value) else { return Ok(false) };
    if names::key(&user.user) == names::key(&author.user) {
        return Ok(true);
    }
    let is_upon_creation = |condition: &Condition| {
        condition.mark().is_some()
            && match condition.collection().as_str() {
                User::COLLECTION => condition.key().as_str() == key,
                UserName::COLLECTION => names::keys(&author.user).iter().any(|name| condition.key().as_str() == name),
                _ => false,
            }
    };
    Ok(user.created.ms() <= txn.time_ms && !txn.conditions.iter().any(is_upon_creation))
}

/// Returns whether two values of one user or group are of the same one: a user is recognized by the time of creation, or
/// by the name; a group by the name. Invalid values are of no one.
#[must_use]
pub fn is_same(number: Number, one: &[u8], other: &[u8]) -> bool {
    let names = |one: &str, other: &str| names::key(one) == names::key(other);
    match number {
        Number::User(_) => match (serde_json::from_slice::<User>(one), serde_json::from_slice::<User>(other)) {
            (Ok(one), Ok(other)) if !one.created.is_never() && !other.created.is_never() => {
                one.created == other.created
            }
            (Ok(one), Ok(other)) => names(&one.user, &other.user),
            _ => false,
        },
        Number::Group(_) => match (serde_json::from_slice::<Group>(one), serde_json::from_slice::<Group>(other)) {
            (Ok(one), Ok(other)) => names(&one.name, &other.name),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::dashboards::Dashboard;
    use super::super::standing::Standing;
    use super::super::{CommitProgress, Timestamp, accounts};
    use super::*;
    use gravwell_model::OriginCounter;
    use gravwell_replica::{Replica, ReplicaOptions};

    const DATE: &str = "2026-01-01T00:00:00Z";

    fn put(collection: &str, key: &str, value: &Value) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
        Op::Put { collection, key, value: value.to_string().into() }
    }

    fn dashboard(uid: i32, gids: &[i32], writers: &[i32]) -> Value {
        json!({ "ID": 5, "Name": "d", "UID": uid, "GIDs": gids, "Created": DATE, "Updated": DATE, "Data": {},
                "WriteAccess": { "GIDs": writers } })
    }

    /// Operations that give something to user 66 or group 65.
    fn given() -> Vec<Op> {
        let note = |uid: i32, gid: i32| json!({ "ID": 5, "UID": uid, "GID": gid, "Sent": DATE, "Expires": DATE });
        let entry =
            json!({ "ID": "a", "UID": 7, "GIDs": [65], "UserQuery": "q", "EffectiveQuery": "q", "Launched": DATE });
        let search = json!({ "ID": "1", "UID": 66, "UserQuery": "q", "StartRange": DATE, "EndRange": DATE, "Started": DATE,
                             "Updated": DATE, "Webserver": "w" });
        let keyed = [
            ("admins", "66"),
            ("history", "66/a"),
            ("locks", "66"),
            ("memberships", "66/7"),
            ("memberships", "7/65"),
            ("passwords", "66"),
            ("preferences", "66/prefs"),
            ("recovery-codes", "66"),
            ("second-factors", "66"),
            ("second-factor-setups", "66"),
            ("second-factor-steps", "66"),
            ("sessions", "66/s"),
            ("session-ends", "66/e"),
            ("session-epochs", "66"),
            ("tokens", "66/t"),
            ("token-ends", "66/e"),
            ("token-epochs", "66"),
            ("capabilities", "user/66"),
            ("capabilities", "group/65"),
            ("tag-access", "user/66"),
            ("tag-access", "group/65"),
        ];
        let mut ops: Vec<Op> = keyed.iter().map(|(collection, key)| put(collection, key, &json!({}))).collect();
        ops.extend([
            put("dashboards", "5", &dashboard(66, &[], &[])),
            put("dashboards", "5", &dashboard(7, &[8, 65], &[])),
            put("dashboards", "5", &dashboard(7, &[], &[65])),
            put("notifications", "5", &note(66, 0)),
            put("notifications", "5", &note(0, 65)),
            put("history", "7/a", &entry),
            put("searches", "1", &search),
            put("users", "7", &json!({ "UID": 7, "User": "g", "DefaultGID": 65 })),
        ]);
        ops
    }

    #[test]
    fn every_collection_of_users_and_groups_names_them() {
        for op in given() {
            let found = of_op(&op);
            let is_named = found.contains(&Number::User(66)) || found.contains(&Number::Group(65));
            assert!(is_named, "{}/{}: {found:?}", op.collection(), op.key());
        }
        let keys = [(Owner::Uid, "<uid>:"), (Owner::Rows, "<uid>/"), (Owner::Holder, "user/")];
        for kind in kinds::KINDS.iter().filter(|kind| kind.collection != "users") {
            for (owner, start) in keys {
                assert_eq!(kind.holds.starts_with(start), kind.owner == owner, "{}: {start}", kind.collection);
            }
        }
    }

    struct Alone {
        store: Store,
        _temp: tempfile::TempDir,
    }

    impl Alone {
        /// Returns the store of a webserver that was never connected.
        fn new() -> Alone {
            let temp = tempfile::tempdir().expect("temp dir");
            let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
            Alone { store: Store::new(replica, "w"), _temp: temp }
        }

        async fn commit(&self, author: &Author, writes: Writes) -> TxnId {
            match self.store.commit(author, "a test", writes).await.expect("is accepted") {
                CommitProgress::Pending(id) => id,
                CommitProgress::At(seq) => panic!("committed at {seq}"),
            }
        }

        async fn create(&self, uid: i32, name: &str, gid: i32) -> (TxnId, TxnId) {
            let user = User {
                uid,
                user: name.to_owned(),
                name: String::new(),
                email: String::new(),
                default_gid: None,
                created: Timestamp::now(),
            };
            let writes = accounts::create_user(&self.store, &user, "hash".into(), false, false).expect("writes");
            let user = self.commit(&Author::default(), writes).await;
            let group = Group { gid, name: format!("group of {name}"), desc: String::new() };
            let writes = accounts::create_group(&self.store, &group).expect("writes");
            (user, self.commit(&Author::default(), writes).await)
        }

        fn conditions(&self, id: TxnId) -> Vec<Condition> {
            self.store.replica().pending().iter().find(|txn| txn.id == id).expect("is pending").conditions.clone()
        }
    }

    fn upon<T: Stored>(key: &str, id: TxnId) -> Condition {
        let (collection, key) = place::<T>(key).expect("a key");
        Condition::written_by(collection, key, id)
    }

    #[tokio::test]
    async fn p08_what_concerns_a_user_or_group_whose_creation_waits_depends_on_that_creation() {
        let alone = Alone::new();
        let (user, group) = alone.create(66, "alice", 65).await;
        let user = upon::<UserName>("alice", user);
        let group = upon::<GroupName>("group of alice", group);
        for op in given() {
            let id = alone.commit(&Author::default(), Writes::unconditional(vec![op.clone()], "a test")).await;
            let found = alone.conditions(id);
            assert!(found.contains(&user) || found.contains(&group), "{}/{}: {found:?}", op.collection(), op.key());
        }
        let of_others = put("dashboards", "6", &dashboard(7, &[8], &[]));
        let id = alone.commit(&Author::default(), Writes::unconditional(vec![of_others], "a test")).await;
        assert_eq!(alone.conditions(id), []);
        let is_upon_both = |found: &[Condition]| found.contains(&user) && found.contains(&group);
        let id =
            alone.commit(&Author::default(), accounts::join_groups(&alone.store, 66, &[65]).expect("writes")).await;
        assert!(is_upon_both(&alone.conditions(id)));
        let id = alone.commit(&Author::default(), accounts::set_lock(&alone.store, 66, true).expect("writes")).await;
        assert_eq!(
            alone.conditions(id),
            std::slice::from_ref(&user),
            "a right is revoked, which requires nothing else"
        );
        // A change by that user of something else.
        let standing = Standing { uid: 66, ..Standing::default() };
        let alice = Author { uid: 66, user: "alice".into(), standing, ..Author::default() };
        let (collection, key) = place::<Dashboard>("5").expect("a key");
        let deletion = Writes::unconditional(vec![Op::Delete { collection, key }], "a test");
        let id = alone.commit(&alice, deletion).await;
        assert!(alone.conditions(id).contains(&user));
        // A change of the account makes no difference, another name does.
        let change = async |change: fn(&mut User)| {
            let record = alone.store.get::<User>("66").expect("reads").expect("a user");
            let mut changed = record.clone();
            change(&mut changed.value);
            let writes = accounts::update_user(&alone.store, &record.value, &changed).expect("writes");
            alone.commit(&Author::default(), writes).await
        };
        let id = change(|user| user.email = "alice@example.org".into()).await;
        assert!(alone.conditions(id).contains(&user));
        let id =
            alone.commit(&Author::default(), accounts::join_groups(&alone.store, 66, &[65]).expect("writes")).await;
        assert!(is_upon_both(&alone.conditions(id)));
        let renamed = change(|user| user.user = "alicia".into()).await;
        let id =
            alone.commit(&Author::default(), accounts::join_groups(&alone.store, 66, &[65]).expect("writes")).await;
        let found = alone.conditions(id);
        assert!(found.contains(&upon::<UserName>("alicia", renamed)) && !found.contains(&user), "{found:?}");
    }

    #[tokio::test]
    async fn p08_a_change_of_who_had_the_number_is_not_of_who_has_it() {
        let alone = Alone::new();
        let (creation, _) = alone.create(66, "bob", 65).await;
        let made = alone.store.get::<User>("66").expect("reads").expect("a user").value.created.ms();
        let author = |uid, name: &str| Author { uid, user: name.into(), ..Author::default() };
        let is_there = |uid, name: &str, time_ms, conditions| {
            let id = TxnId { counter: OriginCounter(1), ..TxnId::default() };
            let (settled, note) = (OriginCounter(0), bytes::Bytes::new());
            let txn = Txn { id, settled, time_ms, note, conditions, ops: Vec::new() };
            is_author_there(&alone.store, &author(uid, name), &txn).expect("reads")
        };
        let upon_creation = |name: &str| vec![upon::<UserName>(name, creation)];
        assert!(is_there(66, "bob", made, upon_creation("bob")));
        assert!(is_there(66, "Bob", made - 1, vec![]), "the clock of another webserver is behind");
        assert!(!is_there(66, "alice", made, upon_creation("alice")));
        assert!(!is_there(66, "alice", made, vec![upon::<User>("66", creation)]));
        assert!(is_there(66, "alice", made, vec![]), "an account that was committed, and renamed since");
        assert!(is_there(66, "alice", made, vec![upon::<User>("7", creation)]), "of another user");
        assert!(!is_there(66, "alice", made - 1, vec![]), "an account that was lost: the number was given again later");
        assert!(!is_there(70, "carol", made, vec![upon::<User>("70", creation)]));
        assert!(!is_there(70, "carol", made, vec![]), "an account that was deleted, or lost");
    }

    #[test]
    fn p04_what_goes_with_a_user_or_group_is_known_by_its_key() {
        let of = |collection: &str, key: &str| holders(collection, key, None).into_iter().collect::<Vec<_>>();
        for (collection, key) in [
            ("tokens", "66/t"),
            ("history", "66/a"),
            ("locks", "66"),
            ("capabilities", "user/66"),
            ("cleanings", "user/66"),
            ("cleanings", "history/66"),
            ("cleanings", "history/66/a"),
        ] {
            assert_eq!(of(collection, key), [Number::User(66)], "{collection}/{key}");
        }
        assert_eq!(of("cleanings", "group/65"), [Number::Group(65)]);
        assert_eq!(of("memberships", "66/65"), [Number::User(66), Number::Group(65)]);
        assert_eq!(of("dashboards", "66"), []);
        let search = |gids: &[i32]| {
            json!({ "ID": "1", "UID": 66, "GIDs": gids, "UserQuery": "q", "StartRange": DATE, "EndRange": DATE,
                    "Started": DATE, "Updated": DATE, "Webserver": "w" })
            .to_string()
        };
        let of_search = |gids: &[i32]| holders("searches", "1", Some(search(gids).as_bytes()));
        assert_eq!(of_search(&[]), BTreeSet::from([Number::User(66)]));
        assert_eq!(of_search(&[65]), BTreeSet::new());
    }

    #[test]
    fn p08_one_number_of_two_users_is_told_from_one_user_that_was_changed() {
        let user = |name: &str, created: &str| json!({ "UID": 66, "User": name, "Created": created }).to_string();
        let later = "2026-01-02T00:00:00Z";
        let is_same = |one: String, other: String| is_same(Number::User(66), one.as_bytes(), other.as_bytes());
        assert!(is_same(user("alice", DATE), user("alicia", DATE)));
        assert!(!is_same(user("alice", DATE), user("bob", later)));
        assert!(!is_same(user("alice", DATE), user("alice", later)), "deleted and created again");
        let old = |name: &str| json!({ "UID": 66, "User": name }).to_string();
        assert!(is_same(old("alice"), user("Alice", DATE)) && !is_same(old("alice"), old("bob")));
        assert!(!is_same("{}".into(), "{}".into()));
        let group = |name: &str| json!({ "GID": 65, "Name": name }).to_string().into_bytes();
        let of_group = |one: &str, other: &str| super::is_same(Number::Group(65), &group(one), &group(other));
        assert!(of_group("finance", "Finance") && !of_group("finance", "interns"));
    }
}
