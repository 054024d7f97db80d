//! Authorization of transactions that are made again: changes that were rejected and are retried. Rights at the time of
//! the first attempt are irrelevant, so every operation is checked against its contents and the present state. Unknown
//! operations require an administrator.

use bytes::Bytes;
use serde_json::Value;

use super::blobs::Content;
use super::cleanup::{self, Cleaning, Of};
use super::history::Entry;
use super::kinds::{self, Kind, Visibility};
use super::notifications::Notification;
use super::preferences::Preference;
use super::record::Stored;
use super::resources::Resource;
use super::restores::Restore;
use super::searches::Search;
use super::sessions::{End, Epoch, Session};
use super::sharing::{Principal, ShareScope, Shareable};
use super::tokens::{Token, TokenEnd, TokenEpoch};
use super::users::{User, UserName};
use super::{Store, StoreError};
use gravwell_model::{Collection, Key, Op};

const ADMINISTRATORS: &str = "only administrators may do this";
const NOT_YOURS: &str = "it concerns an object that is not yours, or that you may only read";
const SHARING_WITH_ALL: &str = "only administrators may share with all users";
const PROOF: &str = "a login or a change of your own password cannot be retried; log in, or change the password again";
const CONTENTS: &str = "it references a blob that you may not read";

/// Access to the present state.
pub trait CurrentState {
    /// Returns the value of an object.
    ///
    /// # Errors
    /// If the state is corrupt.
    fn value(&self, collection: &str, key: &str) -> Result<Option<Bytes>, StoreError>;

    /// Returns whether a resource or a search that `person` may read references a blob.
    ///
    /// # Errors
    /// If the state is corrupt.
    fn is_content_open(&self, content: &str, person: &Principal) -> Result<bool, StoreError>;
}

/// Reason for a rejection.
#[derive(Debug)]
pub enum Refusal {
    /// Description of the missing right.
    Right(String),
    /// The present state cannot be read.
    Store(StoreError),
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Refusal {
        Refusal::Store(error)
    }
}

impl CurrentState for Store {
    fn value(&self, collection: &str, key: &str) -> Result<Option<Bytes>, StoreError> {
        let bad = |error: &dyn std::fmt::Display| StoreError::BadKey(error.to_string());
        let collection = Collection::new(collection).map_err(|error| bad(&error))?;
        let key = Key::new(key).map_err(|error| bad(&error))?;
        Ok(self.raw(&collection, &key)?.map(|(value, _)| value))
    }

    fn is_content_open(&self, content: &str, person: &Principal) -> Result<bool, StoreError> {
        let of_resource = |it: &Resource| it.content == content && it.is_readable_by(person);
        let of_search = |it: &Search| it.content == content && it.is_readable_by(person);
        Ok(self.first::<Resource>("", of_resource)?.is_some() || self.first::<Search>("", of_search)?.is_some())
    }
}

type Authorization = Result<(), Refusal>;

fn only_if(allowed: bool, reason: &str) -> Authorization {
    if allowed { Ok(()) } else { Err(Refusal::Right(reason.to_owned())) }
}

/// A user who wants to make operations.
pub struct Maker<'a> {
    /// The user.
    pub person: &'a Principal,
    /// Returns whether the user has a capability.
    pub has: &'a dyn Fn(&str) -> bool,
    /// The present state.
    pub present: &'a dyn CurrentState,
}

/// An object before and after an operation.
struct Change<T> {
    before: Option<T>,
    after: Option<T>,
}

fn understood<T: Stored>(key: &str, value: &[u8]) -> Option<T> {
    serde_json::from_slice::<T>(value).ok().filter(|object| object.key() == key)
}

impl Maker<'_> {
    /// Checks that the user may make all of these operations now.
    ///
    /// # Errors
    /// If a right is missing; the text names it.
    pub fn check(&self, ops: &[Op]) -> Authorization {
        ops.iter().try_for_each(|op| self.judge(op))
    }

    fn needs(&self, capability: &str) -> Authorization {
        only_if((self.has)(capability), &format!("you do not have the capability {capability}"))
    }

    fn is_own(&self, key: &str) -> bool {
        let uid = self.person.uid.to_string();
        key.split('/').next() == Some(uid.as_str())
    }

    /// Returns the change by an operation. Only administrators may change undecodable objects.
    fn change<T: Stored>(&self, op: &Op) -> Result<Change<T>, Refusal> {
        let key = op.key().as_str();
        let read = |value: Option<&Bytes>| match value.map(|value| understood::<T>(key, value)) {
            Some(None) => Err(Refusal::Right(ADMINISTRATORS.to_owned())),
            found => Ok(found.flatten()),
        };
        let there = self.present.value(T::COLLECTION, key)?;
        Ok(Change { before: read(there.as_ref())?, after: read(op.value())? })
    }

    fn judge(&self, op: &Op) -> Authorization {
        let (collection, key, is_put) = (op.collection().as_str(), op.key().as_str(), op.value().is_some());
        self.judge_proof(collection, key, is_put)?;
        // Its mark would represent a restore that no webserver continues.
        if collection == Restore::COLLECTION && is_put {
            return Err(Refusal::Right(
                "restore the archive again; a single step of a restore cannot be retried".into(),
            ));
        }
        if self.person.admin {
            return Ok(());
        }
        if let Some(kind) = kinds::of(collection).filter(|kind| kind.shares.is_some()) {
            self.authorize_shared(kind, op)?;
        }
        match collection {
            Resource::COLLECTION => {
                let change = self.change::<Resource>(op)?;
                self.authorize_blob(change.before.map(|it| it.content), change.after.map(|it| it.content))
            }
            Search::COLLECTION => {
                let change = self.change::<Search>(op)?;
                self.authorize_blob(change.before.map(|it| it.content), change.after.map(|it| it.content))
            }
            _ if kinds::of(collection).is_some_and(|kind| kind.shares.is_some()) => Ok(()),
            Content::COLLECTION => self.authorize_same(op),
            Entry::COLLECTION => self.authorize_entry(op),
            Token::COLLECTION => self.authorize_token(op),
            Notification::COLLECTION => self.authorize_notification(op),
            User::COLLECTION => self.authorize_user(op),
            UserName::COLLECTION => {
                let Change { before, after } = self.change::<UserName>(op)?;
                let is_own = |name: &UserName| name.uid == self.person.uid;
                only_if(before.iter().chain(&after).all(is_own), NOT_YOURS)
            }
            Cleaning::COLLECTION => {
                let is_own = key == cleanup::key(Of::History, self.person.uid)
                    || key.starts_with(&cleanup::history_prefix(self.person.uid));
                only_if(is_put && is_own, ADMINISTRATORS)
            }
            Preference::COLLECTION
            | Session::COLLECTION
            | End::COLLECTION
            | Epoch::COLLECTION
            | TokenEnd::COLLECTION
            | TokenEpoch::COLLECTION => only_if(self.is_own(key), NOT_YOURS),
            _ => only_if(false, ADMINISTRATORS),
        }
    }

    /// Rejects logins and changes of the user's own secrets: they require proof of a secret, which the user who made
    /// the change may no longer know.
    fn judge_proof(&self, collection: &str, key: &str, is_put: bool) -> Authorization {
        let is_login = collection == Session::COLLECTION && is_put;
        let is_of_owner = [Token::COLLECTION, Session::COLLECTION].contains(&collection);
        let is_secret = kinds::exposure(collection) == Visibility::Secret && self.is_own(key) && !is_of_owner;
        only_if(!is_login && !is_secret, PROOF)
    }

    fn authorize_shared(&self, kind: &Kind, op: &Op) -> Authorization {
        let Some(capabilities) = kind.capabilities else { return only_if(false, ADMINISTRATORS) };
        self.needs(capabilities.write)?;
        let key = op.key().as_str();
        // Only administrators may change undecodable objects.
        let read = |value: Option<&Bytes>| match value.map(|value| kind.shares_at(key, value)) {
            Some(None) => Err(Refusal::Right(ADMINISTRATORS.to_owned())),
            found => Ok(found.flatten()),
        };
        let there = self.present.value(kind.collection, key)?;
        let change = Change { before: read(there.as_ref())?, after: read(op.value())? };
        match (&change.before, &change.after) {
            (None, None) => {}
            (Some(before), None) => only_if(before.is_owned_by(self.person), NOT_YOURS)?,
            (None, Some(after)) => {
                only_if(after.owner() == self.person.uid, NOT_YOURS)?;
                self.authorize_share_scopes(&[], after)?;
            }
            (Some(before), Some(after)) => {
                only_if(before.is_writable_by(self.person) && after.owner() == before.owner(), NOT_YOURS)?;
                let is_shared_as_before = before.readers() == after.readers() && before.writers() == after.writers();
                only_if(is_shared_as_before || before.is_owned_by(self.person), NOT_YOURS)?;
                self.authorize_share_scopes(&[before.readers(), before.writers()], after)?;
            }
        }
        Ok(())
    }

    /// Groups, and all users, that already have access may keep it.
    fn authorize_share_scopes(&self, before: &[ShareScope], after: &impl Shareable) -> Authorization {
        let none = ShareScope::default();
        for (place, audience) in [after.readers(), after.writers()].into_iter().enumerate() {
            let known = before.get(place).unwrap_or(&none);
            only_if(!audience.global || known.global, SHARING_WITH_ALL)?;
            if let Some(foreign) = self.person.foreign_group(&audience.groups, &known.groups) {
                only_if(false, &format!("you are not a member of group {foreign}; share with your own groups"))?;
            }
        }
        Ok(())
    }

    /// An existing blob may be referenced by users who may read it.
    fn authorize_blob(&self, before: Option<String>, after: Option<String>) -> Authorization {
        let Some(named) = after.filter(|content| !content.is_empty() && before.as_ref() != Some(content)) else {
            return Ok(());
        };
        let is_there = self.present.value(Content::COLLECTION, &named)?.is_some();
        only_if(!is_there || self.present.is_content_open(&named, self.person)?, CONTENTS)
    }

    /// A blob never changes, and is deleted by webservers when it is unreferenced.
    fn authorize_same(&self, op: &Op) -> Authorization {
        let Some(value) = op.value() else { return only_if(false, ADMINISTRATORS) };
        let there = self.present.value(Content::COLLECTION, op.key().as_str())?;
        let read = |value: &[u8]| serde_json::from_slice::<Value>(value).ok();
        only_if(there.is_none_or(|there| read(&there) == read(value)), ADMINISTRATORS)
    }

    fn authorize_entry(&self, op: &Op) -> Authorization {
        only_if(self.is_own(op.key().as_str()), NOT_YOURS)?;
        let Change { after, .. } = self.change::<Entry>(op)?;
        let Some(entry) = after else {
            return only_if(
                (self.has)("SearchHistory") || (self.has)("Search"),
                "you do not have the capability SearchHistory",
            );
        };
        self.needs("Search")?;
        only_if(!entry.global, SHARING_WITH_ALL)?;
        let groups: Vec<i32> = entry.gids.iter().copied().chain((entry.gid != 0).then_some(entry.gid)).collect();
        only_if(self.person.may_share_with(&groups), "you are not a member of a group that it names")
    }

    /// A token grants nothing that its owner may not do.
    fn authorize_token(&self, op: &Op) -> Authorization {
        self.needs("TokenWrite")?;
        only_if(self.is_own(op.key().as_str()), NOT_YOURS)?;
        let Change { before, after } = self.change::<Token>(op)?;
        // A user may delete any of their own tokens.
        let is_put = after.is_some();
        let concerned = before.iter().filter(|_| is_put).chain(&after);
        concerned.flat_map(|token| &token.capabilities).try_for_each(|capability| self.needs(capability))
    }

    fn authorize_notification(&self, op: &Op) -> Authorization {
        self.needs("NotificationWrite")?;
        let Change { before, after } = self.change::<Notification>(op)?;
        let is_own = |it: &Notification| it.uid == self.person.uid && it.gid == 0 && !it.broadcast;
        only_if(before.iter().chain(&after).all(is_own), NOT_YOURS)
    }

    fn authorize_user(&self, op: &Op) -> Authorization {
        only_if(op.key().as_str() == self.person.uid.to_string(), ADMINISTRATORS)?;
        let Change { before: Some(before), after: Some(after) } = self.change::<User>(op)? else {
            return only_if(false, ADMINISTRATORS);
        };
        let is_member = after.default_gid.is_none_or(|gid| gid == 0 || self.person.groups.contains(&gid));
        only_if(is_member || after.default_gid == before.default_gid, "you are not a member of that group")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::json;

    use super::super::kinds::KINDS;
    use super::*;

    #[derive(Default)]
    struct There {
        objects: HashMap<(String, String), Bytes>,
        /// Blobs referenced by a resource that the user may read.
        open: Vec<String>,
    }

    impl There {
        fn with(mut self, collection: &str, key: &str, value: &Value) -> There {
            self.objects.insert((collection.into(), key.into()), value.to_string().into());
            self
        }
    }

    impl CurrentState for There {
        fn value(&self, collection: &str, key: &str) -> Result<Option<Bytes>, StoreError> {
            Ok(self.objects.get(&(collection.into(), key.into())).cloned())
        }
        fn is_content_open(&self, content: &str, _: &Principal) -> Result<bool, StoreError> {
            Ok(self.open.iter().any(|open| open == content))
        }
    }

    fn put(collection: &str, key: &str, value: &Value) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new(key).expect("key"));
        Op::Put { collection, key, value: value.to_string().into() }
    }

    fn delete(collection: &str, key: &str) -> Op {
        Op::Delete { collection: Collection::new(collection).expect("name"), key: Key::new(key).expect("key") }
    }

    /// User 9 with these rights.
    #[derive(Clone, Copy)]
    struct As {
        admin: bool,
        groups: &'static [i32],
        lacks: &'static str,
    }

    const ADMIN: As = As { admin: true, groups: &[], lacks: "" };
    const MEMBER: As = As { admin: false, groups: &[3], lacks: "" };
    const PLAIN: As = As { admin: false, groups: &[], lacks: "" };

    impl As {
        fn lacking(self, lacks: &'static str) -> As {
            As { lacks, ..self }
        }

        fn may(self, there: &There, ops: &[Op]) -> bool {
            let person = Principal { uid: 9, admin: self.admin, groups: self.groups.to_vec() };
            let has = |capability: &str| capability != self.lacks;
            let maker = Maker { person: &person, has: &has, present: there };
            match maker.check(ops) {
                Ok(()) => true,
                Err(Refusal::Right(_)) => false,
                Err(Refusal::Store(error)) => panic!("{error}"),
            }
        }
    }

    const DATE: &str = "2026-01-01T00:00:00Z";

    fn dashboard(uid: i32, gids: &[i32], global: bool, writers: &[i32]) -> Value {
        json!({ "ID": 5, "Name": "d", "UID": uid, "GIDs": gids, "Global": global, "Created": DATE, "Updated": DATE,
                "Data": {}, "WriteAccess": { "Global": false, "GIDs": writers } })
    }

    const GUID: &str = "00000000-0000-4000-8000-000000000001";

    fn resource(uid: i32, groups: &[i32], content: &str) -> Value {
        json!({ "UID": uid, "GUID": GUID, "LastModified": DATE, "GroupACL": groups, "Global": false,
                "ResourceName": "r", "Content": content })
    }

    fn user(uid: i32, group: Value) -> Value {
        json!({ "UID": uid, "User": "u", "DefaultGID": group })
    }

    fn token(uid: i32, capabilities: &[&str]) -> Value {
        json!({ "id": GUID, "name": "t", "uid": uid, "createdAt": DATE, "capabilities": capabilities, "hash": "h" })
    }

    fn note(uid: i32, gid: i32, broadcast: bool) -> Value {
        json!({ "ID": 5, "UID": uid, "GID": gid, "Broadcast": broadcast, "Msg": "m" })
    }

    fn entry(gids: &[i32]) -> Value {
        json!({ "ID": "a", "UID": 9, "GIDs": gids, "UserQuery": "q", "EffectiveQuery": "q", "Launched": DATE })
    }

    /// For each kind of change: a user who may make it, and a user who has lost the right.
    #[test]
    fn p11_a_change_is_judged_by_the_rights_of_today() {
        let token_key = format!("9/{GUID}");
        let others_token = format!("66/{GUID}");
        let content = json!({ "id": "c", "size": 1 });
        let of_other = |writers: &[i32]| There::default().with("dashboards", "5", &dashboard(66, &[], false, writers));
        let own = || There::default().with("dashboards", "5", &dashboard(9, &[], false, &[]));
        let nothing = There::default;
        let dashboards = |value: Value| vec![put("dashboards", "5", &value)];
        let resources = |value: Value| vec![put("resources", GUID, &value)];
        let lacking = |name| MEMBER.lacking(name);
        type Row = (&'static str, There, Vec<Op>, As, As);
        let table: Vec<Row> = vec![
            ("create a user", nothing(), vec![put("users", "66", &user(66, json!(null)))], ADMIN, PLAIN),
            ("name a user", nothing(), vec![put("user-names", "z", &json!({ "name": "z", "uid": 66 }))], ADMIN, PLAIN),
            ("set a password", nothing(), vec![put("passwords", "66", &json!({}))], ADMIN, PLAIN),
            ("promote", nothing(), vec![put("admins", "66", &json!({ "uid": 66, "since": DATE }))], ADMIN, PLAIN),
            ("promote oneself", nothing(), vec![put("admins", "9", &json!({ "uid": 9, "since": DATE }))], ADMIN, PLAIN),
            ("demote", nothing(), vec![delete("admins", "66")], ADMIN, PLAIN),
            ("lock", nothing(), vec![put("locks", "66", &json!({ "uid": 66, "since": DATE }))], ADMIN, PLAIN),
            ("unlock", nothing(), vec![delete("locks", "9")], ADMIN, PLAIN),
            ("join", nothing(), vec![put("memberships", "9/3", &json!({ "uid": 9, "gid": 3 }))], ADMIN, MEMBER),
            ("leave", nothing(), vec![delete("memberships", "9/3")], ADMIN, MEMBER),
            ("grant", nothing(), vec![put("capabilities", "user/9", &json!({}))], ADMIN, PLAIN),
            ("grant tags", nothing(), vec![put("tag-access", "user/9", &json!({}))], ADMIN, PLAIN),
            ("create a group", nothing(), vec![put("groups", "7", &json!({}))], ADMIN, PLAIN),
            ("end others' sessions", nothing(), vec![put("session-ends", "66/e", &json!({}))], ADMIN, PLAIN),
            ("delete a user", nothing(), vec![delete("users", "66")], ADMIN, PLAIN),
            ("delete leftovers of a user", nothing(), vec![put("cleanings", "user/66", &json!({}))], ADMIN, PLAIN),
            ("clear others' history", nothing(), vec![put("cleanings", "history/66", &json!({}))], ADMIN, PLAIN),
            ("others' preferences", nothing(), vec![put("preferences", "66/prefs", &json!({}))], ADMIN, PLAIN),
            ("others' history", nothing(), vec![delete("history", "66/a")], ADMIN, PLAIN),
            ("others' token", nothing(), vec![delete("tokens", &others_token)], ADMIN, PLAIN),
            ("notify others", nothing(), vec![put("notifications", "5", &note(66, 0, false))], ADMIN, PLAIN),
            ("notify a group", nothing(), vec![put("notifications", "5", &note(0, 3, false))], ADMIN, MEMBER),
            ("notify all", nothing(), vec![put("notifications", "5", &note(9, 0, true))], ADMIN, PLAIN),
            ("a dashboard for another user", nothing(), dashboards(dashboard(66, &[], false, &[])), ADMIN, PLAIN),
            ("share with all users", nothing(), dashboards(dashboard(9, &[], true, &[])), ADMIN, PLAIN),
            ("transfer a dashboard", own(), dashboards(dashboard(66, &[], false, &[])), ADMIN, PLAIN),
            ("share with a group", own(), dashboards(dashboard(9, &[3], false, &[])), MEMBER, PLAIN),
            ("let a group write", own(), dashboards(dashboard(9, &[], false, &[3])), MEMBER, PLAIN),
            ("a shared dashboard", of_other(&[3]), dashboards(dashboard(66, &[], false, &[3])), MEMBER, PLAIN),
            (
                "share another user's dashboard",
                of_other(&[3]),
                dashboards(dashboard(66, &[3], false, &[3])),
                ADMIN,
                MEMBER,
            ),
            ("delete another user's dashboard", of_other(&[3]), vec![delete("dashboards", "5")], ADMIN, MEMBER),
            ("a dashboard", own(), dashboards(dashboard(9, &[], false, &[])), PLAIN, lacking("DashboardWrite")),
            ("delete a dashboard", own(), vec![delete("dashboards", "5")], PLAIN, lacking("DashboardWrite")),
            ("a resource", nothing(), resources(resource(9, &[3], "")), MEMBER, PLAIN),
            ("a resource's right", nothing(), resources(resource(9, &[], "")), PLAIN, lacking("ResourceWrite")),
            ("a token", nothing(), vec![put("tokens", &token_key, &token(9, &["Search"]))], PLAIN, lacking("Search")),
            ("any token", nothing(), vec![delete("tokens", &token_key)], PLAIN, lacking("TokenWrite")),
            ("search with a group", nothing(), vec![put("history", "9/a", &entry(&[3]))], MEMBER, PLAIN),
            (
                "the search group",
                nothing().with("users", "9", &user(9, json!(null))),
                vec![put("users", "9", &user(9, json!(3)))],
                MEMBER,
                PLAIN,
            ),
            ("one's own account", nothing(), vec![put("users", "9", &user(9, json!(null)))], ADMIN, PLAIN),
            (
                "other contents",
                nothing().with("contents", "c", &content),
                vec![put("contents", "c", &json!({ "id": "c", "size": 2 }))],
                ADMIN,
                PLAIN,
            ),
            ("delete contents", nothing().with("contents", "c", &content), vec![delete("contents", "c")], ADMIN, PLAIN),
            ("of a later version", nothing(), vec![put("of-a-later-version", "x", &json!({}))], ADMIN, PLAIN),
        ];
        for (what, there, ops, with, without) in table {
            assert!(with.may(&there, &ops), "{what}: allowed with the right");
            assert!(!without.may(&there, &ops), "{what}: rejected without the right");
            // One forbidden operation is enough to reject all.
            let own_first = [vec![put("preferences", "9/prefs", &json!({}))], ops].concat();
            assert!(!without.may(&there, &own_first), "{what}: rejected with other operations, too");
        }
    }

    #[test]
    fn p11_what_concerns_oneself_alone_stays_allowed() {
        let there = There::default()
            .with("users", "9", &user(9, json!(3)))
            .with("user-names", "u", &json!({ "name": "u", "uid": 9 }))
            .with("notifications", "5", &note(9, 0, false))
            .with("dashboards", "5", &dashboard(9, &[4], true, &[4]));
        let allowed = [
            put("users", "9", &user(9, json!(3))),
            delete("user-names", "u"),
            put("user-names", "v", &json!({ "name": "v", "uid": 9 })),
            put("preferences", "9/prefs", &json!({})),
            put("history", "9/a", &entry(&[])),
            delete("history", "9/a"),
            put("cleanings", "history/9", &json!({})),
            put("session-ends", "9/e", &json!({})),
            put("session-epochs", "9", &json!({})),
            delete("sessions", "9/x"),
            delete("notifications", "5"),
            // Existing shares are kept: with a group that the user has left, and with all users.
            put("dashboards", "5", &dashboard(9, &[4], true, &[4])),
        ];
        for op in allowed {
            assert!(PLAIN.may(&there, std::slice::from_ref(&op)), "{op:?}");
        }
    }

    #[test]
    fn p11_contents_are_named_again_only_by_who_may_read_them() {
        let there = |open: &[&str]| There {
            open: open.iter().map(|&it| it.to_owned()).collect(),
            ..There::default().with("contents", "c", &json!({ "id": "c", "size": 1 }))
        };
        // A copy, made while the user could read the original.
        let ops =
            [put("contents", "c", &json!({ "size": 1, "id": "c" })), put("resources", GUID, &resource(9, &[], "c"))];
        assert!(PLAIN.may(&there(&["c"]), &ops));
        assert!(!PLAIN.may(&there(&[]), &ops));
        let uploaded = [put("contents", "n", &json!({})), put("resources", GUID, &resource(9, &[], "n"))];
        assert!(PLAIN.may(&there(&[]), &uploaded), "a new blob that does not exist yet");
    }

    #[test]
    fn p11_nobody_logs_in_or_sets_their_own_password_by_trying_again() {
        let (there, ordinary) = (There::default(), PLAIN);
        for who in [ADMIN, ordinary] {
            assert!(!who.may(&there, &[put("sessions", "9/x", &json!({}))]));
            assert!(!who.may(&there, &[put("sessions", "66/x", &json!({}))]));
            assert!(!who.may(&there, &[put("passwords", "9", &json!({}))]));
            assert!(!who.may(&there, &[put("secret-of-a-later-version", "9", &json!({}))]));
        }
    }

    #[test]
    fn p11_no_collection_lets_a_user_change_what_is_others() {
        for kind in KINDS {
            for key in ["66", "66/x", "user/66", "x"] {
                let ops = [put(kind.collection, key, &json!({})), delete(kind.collection, key)];
                // Any user may delete an object that does not exist: nothing changes.
                let there = There::default().with(kind.collection, key, &json!({}));
                let refused = ops.map(|op| !MEMBER.may(&there, &[op]));
                let is_same_content = kind.collection == "contents";
                assert_eq!(refused, [!is_same_content, true], "{}/{key}", kind.collection);
            }
        }
    }
}
