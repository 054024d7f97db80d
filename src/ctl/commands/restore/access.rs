//! Access that a restore grants again: API tokens and the rights of administrators.

use serde::Serialize;

use gravwell_backup::restore::Restored;
use gravwell_model::Collection;
use gravwell_objects::record::Stored;
use gravwell_objects::sessions::{FormerKey, Session};
use gravwell_objects::tokens::Token;
use gravwell_objects::users::{Admin, User};

use crate::client::output::Output;
use crate::error::CtlResult;

/// Access after a restore.
#[derive(Debug, Default, Serialize)]
pub(super) struct Access {
    /// Number of revoked logins and, if requested, API tokens.
    ended: u64,
    /// API tokens that are valid again.
    tokens: Vec<RestoredToken>,
    /// Names of the users that are administrators again.
    administrators: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RestoredToken {
    user: String,
    name: String,
    id: String,
}

/// Returns the collections whose objects are deleted at the end of a restored log.
pub(super) fn ended(with_tokens: bool) -> Vec<Collection> {
    let names =
        [Session::COLLECTION, FormerKey::COLLECTION].into_iter().chain(with_tokens.then_some(Token::COLLECTION));
    names.filter_map(|name| Collection::new(name).ok()).collect()
}

/// Returns the collections whose objects a restore reports.
pub(super) fn told() -> Vec<Collection> {
    let names = [User::COLLECTION, Token::COLLECTION, Admin::COLLECTION];
    names.into_iter().filter_map(|name| Collection::new(name).ok()).collect()
}

impl Access {
    pub(super) fn of(restored: &Restored) -> Access {
        let of = |name: &'static str| {
            restored
                .access
                .iter()
                .filter(move |(collection, _, _)| collection.as_str() == name)
                .map(|(_, key, value)| (key, value))
        };
        let users: std::collections::BTreeMap<i32, String> = of(User::COLLECTION)
            .filter_map(|(_, value)| serde_json::from_slice::<User>(value).ok())
            .map(|user| (user.uid, user.user))
            .collect();
        let name = |uid: i32| users.get(&uid).cloned().unwrap_or_else(|| format!("user {uid}"));
        let tokens = of(Token::COLLECTION).map(|(key, value)| match serde_json::from_slice::<Token>(value) {
            Ok(token) => RestoredToken { user: name(token.uid), name: token.name, id: token.id.to_string() },
            Err(_) => RestoredToken { user: "?".into(), name: "?".into(), id: key.as_str().to_owned() },
        });
        let administrators =
            of(Admin::COLLECTION).map(|(key, _)| key.as_str().parse().map_or_else(|_| key.as_str().to_owned(), name));
        Access { ended: restored.ended, tokens: tokens.collect(), administrators: administrators.collect() }
    }

    /// Prints the report for people.
    pub(super) fn print(&self, output: &mut Output) -> CtlResult {
        if self.ended > 0 {
            output.line(&format!(
                "revoked: {} logins and keys of the restored state; all users must log in again",
                self.ended
            ))?;
        }
        for RestoredToken { user, name, id } in &self.tokens {
            output.line(&format!(
                "restored API token: {name:?} of {user}, {id}; if it was deleted or renewed since, delete it \
                 (--rotate-secrets revokes all)"
            ))?;
        }
        if !self.administrators.is_empty() {
            output.line(&format!("restored administrators: {}", self.administrators.join(", ")))?;
        }
        Ok(())
    }
}
