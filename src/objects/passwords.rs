//! Checking, hashing and verifying passwords. Nothing here blocks an asynchronous thread.

use std::sync::{Arc, LazyLock};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::Moment;
use super::record::Stored;
use super::weak_passwords::weakness;
use crate::env::vital;

/// Default minimum length of a password, in characters.
pub const CHARS_MIN: usize = 12;
/// Maximum length of a password in bytes: hashing must not become a way to keep the processor busy.
pub const BYTES_MAX: usize = 1024;
/// Number of passwords hashed concurrently; each uses [`MEMORY_KIB`] of memory. Higher than the maximum for logins, so
/// that logins do not prevent logged-in users from changing their passwords.
const AT_ONCE: usize = 6;
/// OWASP's first choice for Argon2id (Password Storage Cheat Sheet): 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;

/// Hash of a user's password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Password {
    /// UID of the user.
    pub uid: i32,
    /// Hash in PHC string format.
    pub hash: String,
    /// Time at which it was set.
    pub changed: Moment,
    /// Whether it must be changed at the next login.
    #[serde(default)]
    pub must_change: bool,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Password").field("uid", &self.uid).field("changed", &self.changed).finish_non_exhaustive()
    }
}

impl Stored for Password {
    const COLLECTION: &'static str = "passwords";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Requirements for new passwords: `[Password-Control]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `Min-Length`, in characters.
    pub length_min: usize,
    /// `Require-Uppercase`.
    pub uppercase: bool,
    /// `Require-Lowercase`.
    pub lowercase: bool,
    /// `Require-Number`.
    pub number: bool,
    /// `Require-Special`: a character that is neither letter nor digit.
    pub special: bool,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy { length_min: CHARS_MIN, uppercase: false, lowercase: false, number: false, special: false }
    }
}

impl Policy {
    /// Checks a new password of a user.
    ///
    /// # Errors
    /// If requirements are not met; lists all of them.
    pub fn check(&self, password: &str, user: &str) -> Result<(), String> {
        if password.is_empty() {
            return Err("the password must not be empty".into());
        }
        if password.len() > BYTES_MAX {
            return Err(format!("the password has {} bytes; at most {BYTES_MAX} are allowed", password.len()));
        }
        let has = |test: fn(char) -> bool| password.chars().any(test);
        let mut missing = Vec::new();
        if password.chars().count() < self.length_min {
            missing.push(format!("at least {} characters", self.length_min));
        }
        let rules: [(bool, bool, &str); 4] = [
            (self.uppercase, has(char::is_uppercase), "an upper case letter"),
            (self.lowercase, has(char::is_lowercase), "a lower case letter"),
            (self.number, has(char::is_numeric), "a digit"),
            (self.special, has(|c| !c.is_alphanumeric()), "a special character"),
        ];
        missing
            .extend(rules.iter().filter(|(wanted, found, _)| *wanted && !found).map(|(_, _, what)| (*what).to_owned()));
        if !missing.is_empty() {
            return Err(format!("the password needs {}", missing.join(", ")));
        }
        weakness(password, user).map_or(Ok(()), |why| Err(format!("the password is too easy to guess: {why}")))
    }
}

/// Error while hashing or verifying a password.
#[derive(Debug, thiserror::Error)]
#[error("the password could not be hashed: {0}")]
pub struct HashError(String);

fn hasher() -> Result<Argon2<'static>, HashError> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(|error| HashError(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

static TURN: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));

async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
) -> Result<T, HashError> {
    let turn = Arc::clone(&TURN).acquire_owned().await.map_err(|error| HashError(error.to_string()))?;
    let done = vital::spawn_blocking(move || {
        let result = work();
        drop(turn);
        result
    });
    done.await.map_err(|error| HashError(error.to_string()))?
}

/// Hashes a new password.
///
/// # Errors
/// If no random bytes or memory are available.
pub async fn hash(password: &str) -> Result<String, HashError> {
    let password = password.to_owned();
    off_thread(move || {
        let hash: PasswordHash =
            hasher()?.hash_password(password.as_bytes()).map_err(|error| HashError(error.to_string()))?;
        Ok(hash.to_string())
    })
    .await
}

/// Verifies a password against a hash. Without a hash it takes the same time and returns `false`.
///
/// # Errors
/// If the hash is invalid, or no memory is available.
pub async fn verify(password: &str, hash: Option<String>) -> Result<bool, HashError> {
    static NOBODY: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    if password.len() > BYTES_MAX {
        return Ok(false);
    }
    let exists = hash.is_some();
    let hash = match hash {
        Some(hash) => hash,
        None => NOBODY.get_or_try_init(|| self::hash("nobody has this one")).await?.clone(),
    };
    let password = password.to_owned();
    off_thread(move || {
        let parsed = PasswordHash::new(&hash).map_err(|error| HashError(error.to_string()))?;
        Ok(hasher()?.verify_password(password.as_bytes(), &parsed).is_ok() && exists)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_passwords_do_not_wait_for_threads_that_others_have_taken() {
        assert!(vital::tests::without_threads(hash("a plain horse")).is_ok());
    }

    #[tokio::test]
    async fn only_the_right_password_of_somebody_is_accepted() {
        let kept = hash("correct horse").await.expect("hashes");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(verify("correct horse", Some(kept.clone())).await.expect("compares"));
        assert!(!verify("wrong horse", Some(kept)).await.expect("compares"));
        assert!(!verify("nobody has this one", None).await.expect("compares"));
        assert!(verify("x", Some("not a hash".into())).await.is_err());
    }

    #[test]
    fn the_policy_says_all_that_is_missing() {
        let strict = Policy { length_min: 8, uppercase: true, lowercase: true, number: true, special: true };
        assert_eq!(strict.check("Xk3-vale", "bob"), Ok(()));
        let said = strict.check("abc", "bob").expect_err("weak");
        assert!(["8 characters", "upper case", "digit", "special"].iter().all(|what| said.contains(what)), "{said}");
        assert!(!said.contains("lower case"));
        let default = Policy::default();
        assert!(default.check("", "bob").is_err() && default.check("elevenchars", "bob").is_err());
        assert!(default.check("twelve chars", "bob").is_ok() && default.check("Password1234", "bob").is_err());
        assert!(default.check(&"ab c".repeat(BYTES_MAX), "bob").is_err());
        // The configured policy decides, except for the most common passwords.
        let none = Policy { length_min: 0, ..default };
        assert!(none.check("p", "bob").is_ok() && none.check("password", "bob").is_err());
    }
}
