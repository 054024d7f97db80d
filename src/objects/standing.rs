//! Basis of an author's right to make a change. Changes of accounts and access require a valid login or token, an
//! account that is not locked and, for administrators, the administrator role. All other changes require the role or
//! the memberships that they depend on (`objects/rights.rs`).
//!
//! The right is checked where a change is made. The datastore decides on the change later, by milliseconds or, if the
//! webserver is disconnected, by days. The change therefore carries its basis as conditions: an author who lost a right
//! in the meantime cannot restore it, and changes made with an invalid login are rejected together with it. Changes of
//! a user's own objects carry no such conditions, so that a user whose password was changed or whose account was locked
//! loses no work.

use gravwell_model::revocation::{self, RESTRICTING};
use gravwell_model::{Collection, Condition, Key, Op};

use super::accounts;
use super::capabilities::{Grants, TagGrants};
use super::groups::{Group, GroupName};
use super::impersonation::Backing;
use super::passwords::Password;
use super::record::{AsRead, Stored};
use super::restores::Restore;
use super::second_factors::{Factor, RecoveryCodes, Setup};
use super::sessions::{End, Epoch, Session};
use super::tokens::{Token, TokenEnd, TokenEpoch};
use super::users::{Admin, Lock, Membership, User, UserName};
use super::writes::Writes;
use super::{Store, StoreError, rights};

/// Collections whose objects grant or revoke access.
const ACCESS: [&str; 20] = [
    Admin::COLLECTION,
    End::COLLECTION,
    Epoch::COLLECTION,
    Factor::COLLECTION,
    Grants::COLLECTION,
    Group::COLLECTION,
    GroupName::COLLECTION,
    Lock::COLLECTION,
    Membership::COLLECTION,
    Password::COLLECTION,
    RecoveryCodes::COLLECTION,
    Restore::COLLECTION,
    Session::COLLECTION,
    Setup::COLLECTION,
    TagGrants::COLLECTION,
    Token::COLLECTION,
    TokenEnd::COLLECTION,
    TokenEpoch::COLLECTION,
    User::COLLECTION,
    UserName::COLLECTION,
];

/// Of so many groups that an object is newly shared with, the change requires that they exist.
const SHARED_MAX: usize = 64;

const LOGIN_ENDED: &str = "your session has ended; log in again";
const NO_ADMINISTRATOR: &str = "you are no longer an administrator";
const LOCKED: &str = "your account is locked";

/// How an author was authenticated, and with which rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// UID of the user; 0 for the webserver itself, which needs no right.
    pub uid: i32,
    /// Key of the session.
    pub session: Option<String>,
    /// Key of the API token.
    pub token: Option<String>,
    /// Keys of the tokens with which that token was made.
    pub makers: Vec<String>,
    /// The valid epoch of sessions or tokens; `None` if there was none yet.
    pub epoch: Option<AsRead>,
    /// Whether the author acted as an administrator.
    pub is_admin: bool,
    /// The administrators who act as this user.
    pub behind: Vec<Backing>,
}

impl Standing {
    /// Adds the conditions that operations need from this basis.
    ///
    /// # Errors
    /// If a key is invalid, or the state is corrupt.
    pub(super) fn require(&self, store: &Store, writes: &mut Writes) -> Result<(), StoreError> {
        if self.uid == 0 {
            return Ok(());
        }
        if self.need_right(writes.ops()) {
            return self.require_all(writes);
        }
        let only_ends_own = self.only_end_own(writes.ops());
        let others = writes.ops().iter().filter(|op| !only_ends_own && !self.ends_own(op));
        let rights = rights::of(store, self.uid, self.is_admin, others)?;
        self.require_rights(&rights, writes)?;
        for gid in rights.shared.iter().take(SHARED_MAX) {
            // An administrator may share with a number that no group has.
            let key = gid.to_string();
            if store.has::<Group>(&key)? {
                writes.require::<Group>(&key, accounts::GROUP_GONE)?;
            }
        }
        Ok(())
    }

    /// Returns the UID of the author unless the operations only end the user's own logins or tokens.
    pub(super) fn author_of(&self, ops: &[Op]) -> Option<i32> {
        (self.uid != 0 && ops.iter().any(|op| !self.ends_own(op))).then_some(self.uid)
    }

    /// Adds conditions for operations that do not concern access. They depend on few objects, which seldom change: a
    /// new login or password costs no user their work.
    fn require_rights(&self, rights: &rights::Rights, writes: &mut Writes) -> Result<(), StoreError> {
        let uid = self.uid.to_string();
        if self.is_admin && rights.role {
            writes.require::<Admin>(&uid, NO_ADMINISTRATOR)?;
            writes.require_absent::<Lock>(&uid, LOCKED)?;
        }
        for gid in &rights.groups {
            let meaning = format!("you are no longer a member of group {gid}");
            writes.require::<Membership>(&format!("{uid}/{gid}"), &meaning)?;
        }
        if writes.ops().iter().any(|op| !self.ends_own(op)) {
            self.behind.iter().try_for_each(|one| one.require_role(writes))?;
        }
        Ok(())
    }

    fn require_all(&self, writes: &mut Writes) -> Result<(), StoreError> {
        let uid = self.uid.to_string();
        if let Some(session) = &self.session {
            writes.require::<Session>(session, LOGIN_ENDED)?;
            writes.require_as_read::<Epoch>(&uid, self.epoch, LOGIN_ENDED)?;
        }
        if let Some(token) = &self.token {
            for token in self.makers.iter().chain([token]) {
                writes.require::<Token>(token, "the token was deleted")?;
            }
            writes.require_as_read::<TokenEpoch>(&uid, self.epoch, "the token has expired")?;
        }
        if self.is_admin {
            writes.require::<Admin>(&uid, NO_ADMINISTRATOR)?;
        }
        self.behind.iter().try_for_each(|one| one.require(writes))?;
        writes.require_absent::<Lock>(&uid, LOCKED)
    }

    /// Returns whether any operation concerns access.
    fn need_right(&self, ops: &[Op]) -> bool {
        let needs_right = |op: &Op| ACCESS.contains(&op.collection().as_str()) && !self.ends_own(op);
        !self.only_end_own(ops) && ops.iter().any(needs_right)
    }

    /// Returns whether all that operations do is end the user's own logins or tokens, some of them or all. An epoch needs a
    /// right: logins are valid in it.
    fn only_end_own(&self, ops: &[Op]) -> bool {
        ops.iter().all(|op| self.ends_own(op))
    }

    /// Returns whether an operation ends the user's own login or token, which is always allowed.
    fn ends_own(&self, op: &Op) -> bool {
        let is_own = op.key().as_str().split('/').next() == Some(self.uid.to_string().as_str());
        let (deleted, put) = ([Session::COLLECTION, Token::COLLECTION], [End::COLLECTION, TokenEnd::COLLECTION]);
        let ends = if op.value().is_none() { deleted } else { put };
        is_own && ends.contains(&op.collection().as_str())
    }
}

/// Returns whether any operation concerns access.
#[must_use]
pub fn concern_access(ops: &[Op]) -> bool {
    ops.iter().any(|op| ACCESS.contains(&op.collection().as_str()))
}

/// Returns whether an operation may grant access. Each such operation must be reviewed before old writes are
/// made again.
#[must_use]
pub fn gives_access(op: &Op) -> bool {
    let collection = op.collection().as_str();
    let takes_away = collection == Restore::COLLECTION || RESTRICTING.contains(&collection);
    let protects = takes_away || collection == Factor::COLLECTION;
    if op.value().is_some() { ACCESS.contains(&collection) && !takes_away } else { protects }
}

/// Returns whether an operation is a login.
#[must_use]
pub fn is_login(op: &Op) -> bool {
    op.value().is_some() && op.collection().as_str() == Session::COLLECTION
}

/// Returns the conditions of a transaction except those that represent its author's rights: when it is made again, the
/// new author's rights apply. No other conditions depend on a role, membership, login or token that the transaction
/// does not write, except that what it makes belongs to an epoch.
#[must_use]
pub fn left_out(ops: &[Op], conditions: &[Condition]) -> Vec<Condition> {
    const PRESENT: [&str; 4] = [Admin::COLLECTION, Membership::COLLECTION, Session::COLLECTION, Token::COLLECTION];
    let is_of_author = |condition: &&Condition| {
        let collection = condition.collection().as_str();
        let is_written = ops.iter().any(|op| (op.collection(), op.key()) == (condition.collection(), condition.key()));
        let stands = match condition {
            Condition::Present { .. } => PRESENT.contains(&collection),
            Condition::Absent { .. } => {
                [Lock::COLLECTION, Epoch::COLLECTION, TokenEpoch::COLLECTION].contains(&collection)
            }
            // The presence of a lost role or membership is translated into one of a version.
            Condition::Version { .. } => {
                PRESENT.contains(&collection) || [Epoch::COLLECTION, TokenEpoch::COLLECTION].contains(&collection)
            }
        };
        let is_on = |(epochs, owner): (Collection, Key)| (&epochs, &owner) == (condition.collection(), condition.key());
        stands && !is_written && !revocation::epochs_of(ops).any(is_on)
    };
    conditions.iter().filter(|condition| !is_of_author(condition)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(collection: &str, key: &str) -> Op {
        let collection = Collection::new(collection).expect("collection");
        Op::Delete { collection, key: Key::new(key).expect("key") }
    }

    /// Adds the conditions of operations that need no role or membership.
    fn require(standing: &Standing, writes: &mut Writes) {
        if standing.need_right(writes.ops()) {
            standing.require_all(writes).expect("keys");
        } else {
            standing.require_rights(&rights::Rights::default(), writes).expect("keys");
        }
    }

    fn conditions(standing: &Standing, op: Op) -> Vec<String> {
        let mut writes = Writes::unconditional(vec![op], "a test");
        require(standing, &mut writes);
        writes.conditions().iter().map(Condition::to_string).collect()
    }

    #[test]
    fn p11_what_gives_access_is_told_from_what_takes_it_away() {
        let put = |collection: &str, key: &str| {
            let (collection, key) = (Collection::new(collection).expect("collection"), Key::new(key).expect("key"));
            Op::Put { collection, key, value: bytes::Bytes::from_static(b"{}") }
        };
        let gives =
            ["admins", "group-names", "passwords", "second-factors", "sessions", "tokens", "user-names", "users"];
        let given = |collection: &str| gives_access(&put(collection, "7"));
        assert!(gives.into_iter().all(given), "{:?}", gives.map(given));
        for collection in ["locks", "restores", "session-epochs", "token-epochs", "dashboards"] {
            assert!(!given(collection), "{collection}");
        }
        for (collection, is_given) in
            [("locks", true), ("restores", true), ("session-epochs", true), ("second-factors", true), ("admins", false)]
        {
            assert_eq!(gives_access(&delete(collection, "7")), is_given, "{collection}");
        }
        assert!(is_login(&put("sessions", "7/a")) && !is_login(&delete("sessions", "7/a")));
    }

    #[test]
    fn p11_what_concerns_access_depends_on_the_right_of_its_author() {
        let standing = Standing { uid: 7, session: Some("7/s".into()), is_admin: true, ..Standing::default() };
        let found = conditions(&standing, delete("locks", "8"));
        assert_eq!(found.len(), 4, "{found:?}");
        for place in ["sessions/7/s", "session-epochs/7", "admins/7", "locks/7"] {
            assert!(found.iter().any(|condition| condition.contains(place)), "{place}: {found:?}");
        }
        let mut writes = Writes::unconditional(vec![delete("locks", "8")], "a test");
        writes.require::<User>("8", "gone").expect("key");
        let own = writes.conditions();
        require(&standing, &mut writes);
        assert_eq!(left_out(writes.ops(), &writes.conditions()), own, "the user who retries it answers for it");
        let lost = writes.conditions().into_iter().map(|condition| match condition {
            Condition::Present { collection, key } if collection.as_str() == Admin::COLLECTION => {
                Condition::upon_lost(collection, key)
            }
            condition => condition,
        });
        assert_eq!(left_out(writes.ops(), &lost.collect::<Vec<_>>()), own, "also after the log has lost the right");
        let behind = vec![Backing { uid: 5, epoch: None }, Backing { uid: 6, epoch: None }];
        let acting = Standing { uid: 7, session: Some("7/s".into()), behind, ..Standing::default() };
        let found = conditions(&acting, delete("locks", "8"));
        assert_eq!(found.len(), 9, "{found:?}");
        for place in ["admins/5", "locks/5", "session-epochs/5", "admins/6", "locks/6", "session-epochs/6"] {
            assert!(found.iter().any(|condition| condition.contains(place)), "{place}: {found:?}");
        }
        let mut writes = Writes::unconditional(vec![delete("locks", "8")], "a test");
        require(&acting, &mut writes);
        assert!(
            left_out(writes.ops(), &writes.conditions()).is_empty(),
            "also those of the administrators who act as the user"
        );
        // Changes made on behalf of another user need the role, and nothing else.
        let found = conditions(&acting, delete("dashboards", "1"));
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(conditions(&acting, delete("sessions", "7/s")).is_empty(), "ending it needs no condition");
        let token = Standing { uid: 7, token: Some("7/t".into()), ..Standing::default() };
        assert_eq!(conditions(&token, delete("tokens", "8/t")).len(), 3, "another user's token");
        let token = Standing { makers: vec!["7/first".into(), "7/second".into()], ..token };
        assert_eq!(conditions(&token, delete("tokens", "8/t")).len(), 5, "and those of its makers");
        let (collection, key) = (Collection::new("tokens").expect("collection"), Key::new("7/new").expect("key"));
        let made = Op::Put { collection, key, value: bytes::Bytes::from_static(b"{}") };
        for (standing, epochs) in [(&token, "token-epochs"), (&acting, "session-epochs")] {
            let mut writes = Writes::unconditional(vec![made.clone()], "a test");
            writes.require_as_read::<TokenEpoch>("7", None, "ended").expect("key");
            require(standing, &mut writes);
            let conditions = writes.conditions();
            assert!(conditions.iter().any(|condition| condition.collection().as_str() == epochs), "{conditions:?}");
            let left = left_out(writes.ops(), &conditions).iter().map(Condition::to_string).collect::<Vec<_>>();
            assert!(left.len() == 1 && left[0].contains("token-epochs/7"), "a token belongs to its epoch: {left:?}");
        }
    }

    #[test]
    fn p08_ending_ones_own_login_and_other_work_depends_on_nothing() {
        let standing = Standing { uid: 7, session: Some("7/s".into()), is_admin: true, ..Standing::default() };
        let put = |collection: &str, key: &str| {
            let (collection, key) = (Collection::new(collection).expect("collection"), Key::new(key).expect("key"));
            Op::Put { collection, key, value: bytes::Bytes::from_static(b"{}") }
        };
        let own = [delete("sessions", "7/s"), delete("tokens", "7/t"), delete("dashboards", "1")];
        for op in own.into_iter().chain([put("session-ends", "7/e"), put("token-ends", "7/e")]) {
            assert!(conditions(&standing, op.clone()).is_empty(), "{op:?}");
        }
        let count = |ops: Vec<Op>| {
            let mut writes = Writes::unconditional(ops, "a test");
            require(&standing, &mut writes);
            writes.conditions().len()
        };
        let everywhere = || vec![delete("sessions", "7/s"), put("session-ends", "7/e")];
        assert_eq!(count(everywhere()), 0, "its author may have lost the role and this login in the meantime");
        for more in
            [put("sessions", "7/new"), put("session-epochs", "7"), put("session-ends", "8/e"), put("passwords", "7")]
        {
            assert_eq!(count([everywhere(), vec![more.clone()]].concat()), 4, "{more:?}");
        }
    }

    #[test]
    fn p11_what_needs_the_role_or_a_membership_depends_on_it_and_on_no_login() {
        let standing = Standing { uid: 7, session: Some("7/s".into()), is_admin: true, ..Standing::default() };
        let found = |standing: &Standing, role: bool, groups: &[i32]| {
            let mut writes = Writes::unconditional(vec![delete("dashboards", "1")], "a test");
            let groups = groups.iter().copied().collect();
            let rights = rights::Rights { role, groups, ..rights::Rights::default() };
            standing.require_rights(&rights, &mut writes).expect("keys");
            assert!(left_out(writes.ops(), &writes.conditions()).is_empty(), "the user who retries it answers for it");
            writes.conditions().iter().map(Condition::to_string).collect::<Vec<_>>().join("; ")
        };
        let role = found(&standing, true, &[]);
        assert!(role.contains("admins/7") && role.contains("locks/7") && !role.contains("session"), "{role}");
        let groups = found(&standing, false, &[3, 4]);
        assert!(groups.contains("memberships/7/3") && groups.contains("memberships/7/4"), "{groups}");
        assert!(!groups.contains("admins") && !groups.contains("locks"), "{groups}");
        assert_eq!(
            found(&Standing { is_admin: false, ..standing }, true, &[]),
            "",
            "an author without the role needs no condition on it"
        );
    }
}
