//! Bootstrap of the first administrator.

use super::accounts;
use super::passwords;
use super::sessions::random;
use super::store::Author;
use super::users::{FIRST, User};
use super::{CommitError, CommitProgress, Store, Timestamp};

/// Initial password of the first administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstPassword {
    /// User `admin` with the well-known password, for demonstrations and tests; must also be changed at the
    /// first login.
    WellKnown,
    /// User `admin` with a random password; must be changed at the first login.
    Random,
}

/// The well-known password.
pub const WELL_KNOWN: &str = "changeme";
/// Name of the first administrator.
pub const NAME: &str = "admin";

/// Result of the bootstrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// There already is a first administrator.
    Exists,
    /// Created here with this password; committed or pending.
    Made {
        /// The initial password.
        password: String,
        /// Whether the datastore has committed it.
        is_decided: bool,
    },
}

/// Returns 20 characters that are easy to distinguish: 100 bits.
fn new_password() -> std::io::Result<String> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    Ok(random::<20>()?.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}

/// Creates the first administrator unless there is one. If two webservers try at the same time, one of them finds the
/// other's. The password is passed to `keep` first, so that no administrator is created with a lost password.
///
/// # Errors
/// If the password cannot be stored, or the state cannot be read or written.
pub async fn ensure(
    store: &Store,
    wanted: &FirstPassword,
    keep: impl FnOnce(&str) -> std::io::Result<()>,
) -> Result<First, CommitError> {
    if store.has::<User>(&FIRST.to_string())? {
        return Ok(First::Exists);
    }
    let refused = |reason: String| CommitError::Conflict(reason);
    let password = match wanted {
        FirstPassword::WellKnown => WELL_KNOWN.to_owned(),
        FirstPassword::Random => new_password().map_err(|error| refused(error.to_string()))?,
    };
    keep(&password).map_err(|error| refused(format!("cannot store the first password: {error}")))?;
    let hash = passwords::hash(&password).await.map_err(|error| refused(error.to_string()))?;
    let user = User {
        uid: FIRST,
        user: NAME.into(),
        name: "Administrator".into(),
        email: String::new(),
        default_gid: None,
        created: Timestamp::now(),
    };
    let writes = accounts::create_user(store, &user, hash, true, true)?;
    match store.commit(&Author::default(), "create the first administrator", writes).await {
        Ok(committed) => Ok(First::Made { password, is_decided: matches!(committed, CommitProgress::At(_)) }),
        // Another webserver was first.
        Err(CommitError::Conflict(_) | CommitError::Changed(_)) => Ok(First::Exists),
        Err(error) => Err(error),
    }
}
