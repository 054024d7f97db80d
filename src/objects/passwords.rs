//! Checking, hashing and verifying passwords. Nothing here blocks an asynchronous thread.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::Timestamp;
use super::record::Stored;
use super::sessions::random;
use super::weak_passwords::weakness;
use gravwell_runtime::tasks::vital;

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
/// Maximum memory of a hash that was made with other parameters.
const OTHER_MEMORY_KIB: u32 = 256 * 1024;

/// Hash of a user's password.
#[derive(Clone, Serialize, Deserialize)]
pub struct Password {
    /// UID of the user.
    pub uid: i32,
    /// Hash in PHC string format.
    pub hash: String,
    /// Time at which it was set.
    pub changed: Timestamp,
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
#[error("cannot hash password: {0}")]
pub struct HashError(String);

fn failed(error: impl std::fmt::Display) -> HashError {
    HashError(error.to_string())
}

/// Memory for hashing, which is kept and used again: there is one for each turn, at most. Blocks that were allocated for
/// each password would stay in the allocator's arenas of all the threads that take turns.
static MEMORIES: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// Memory for hashing one password.
struct Memory(Vec<Block>);

impl Memory {
    fn take() -> Result<Memory, HashError> {
        let kept = MEMORIES.lock().unwrap_or_else(PoisonError::into_inner).pop();
        kept.map_or_else(Memory::new, Ok)
    }

    fn new() -> Result<Memory, HashError> {
        let (count, mut blocks) = (MEMORY_KIB as usize, Vec::new());
        blocks.try_reserve_exact(count).map_err(failed)?;
        blocks.resize(count, Block::new());
        Ok(Memory(blocks))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut kept = MEMORIES.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < AT_ONCE {
            kept.push(Memory(std::mem::take(&mut self.0)));
        }
    }
}

/// Computes the hash of a password with a salt; `memory` is used again.
fn computed(
    argon2: &Argon2<'_>,
    password: &[u8],
    salt: &[u8],
    length: usize,
    memory: &mut Memory,
) -> Result<Output, HashError> {
    let mut output = [0; Output::MAX_LENGTH];
    let output = output.get_mut(..length).ok_or_else(|| failed("its length is unknown"))?;
    if argon2.params().block_count() <= memory.0.len() {
        argon2.hash_password_into_with_memory(password, salt, output, &mut memory.0).map_err(failed)?;
    } else if argon2.params().m_cost() <= OTHER_MEMORY_KIB {
        argon2.hash_password_into(password, salt, output).map_err(failed)?;
    } else {
        return Err(failed(format!("it requires more than {OTHER_MEMORY_KIB} KiB of memory")));
    }
    Output::new(output).map_err(failed)
}

fn hashed(password: &[u8], memory: &mut Memory) -> Result<String, HashError> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).map_err(failed)?;
    let params_text = ParamsString::try_from(&params).map_err(failed)?;
    let salt = Salt::new(&random::<16>().map_err(failed)?).map_err(failed)?;
    let (algorithm, version) = (Algorithm::Argon2id, Version::V0x13);
    let argon2 = Argon2::new(algorithm, version, params);
    let output = computed(&argon2, password, &salt, Params::DEFAULT_OUTPUT_LEN, memory)?;
    let hash = PasswordHash {
        algorithm: algorithm.ident(),
        version: Some(version.into()),
        params: params_text,
        salt: Some(salt),
        hash: Some(output),
    };
    Ok(hash.to_string())
}

/// Returns whether a password has this hash. Hashes of unknown algorithms, and such without salt or hash, are of no
/// password.
fn is_of(password: &[u8], hash: &PasswordHash, memory: &mut Memory) -> Result<bool, HashError> {
    let (Some(salt), Some(expected)) = (&hash.salt, &hash.hash) else { return Ok(false) };
    let Ok(algorithm) = Algorithm::try_from(hash.algorithm.as_str()) else { return Ok(false) };
    let Ok(version) = hash.version.map_or(Ok(Version::default()), Version::try_from) else { return Ok(false) };
    let Ok(params) = Params::try_from(hash) else { return Ok(false) };
    let argon2 = Argon2::new(algorithm, version, params);
    // `Output` compares in constant time.
    Ok(computed(&argon2, password, salt, expected.len(), memory)? == *expected)
}

static TURN: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(AT_ONCE)));

async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce(&mut Memory) -> Result<T, HashError> + Send + 'static,
) -> Result<T, HashError> {
    let turn = Arc::clone(&TURN).acquire_owned().await.map_err(failed)?;
    let done = vital::spawn_blocking(move || {
        let result = Memory::take().and_then(|mut memory| work(&mut memory));
        // The memory was given back before, so that the next caller finds it.
        drop(turn);
        result
    });
    done.await.map_err(failed)?
}

/// Hashes a new password.
///
/// # Errors
/// If no random bytes or memory are available.
pub async fn hash(password: &str) -> Result<String, HashError> {
    let password = password.to_owned();
    run_blocking(move |memory| hashed(password.as_bytes(), memory)).await
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
        None => NOBODY.get_or_try_init(|| self::hash("a password that no user has")).await?.clone(),
    };
    let password = password.to_owned();
    run_blocking(move |memory| {
        let parsed = PasswordHash::new(&hash).map_err(failed)?;
        Ok(is_of(password.as_bytes(), &parsed, memory)? && exists)
    })
    .await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn p15_passwords_do_not_wait_for_threads_that_others_have_taken() {
        assert!(vital::testing::without_threads(hash("a plain horse")).is_ok());
    }

    #[tokio::test]
    async fn only_the_right_password_of_somebody_is_accepted() {
        let kept = hash("correct horse").await.expect("hashes");
        assert!(kept.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{kept}");
        assert!(verify("correct horse", Some(kept.clone())).await.expect("compares"));
        assert!(!verify("wrong horse", Some(kept)).await.expect("compares"));
        assert!(!verify("a password that no user has", None).await.expect("compares"));
        assert!(verify("x", Some("not a hash".into())).await.is_err());
    }

    #[tokio::test]
    async fn hashes_that_the_library_made_are_compared_and_ours_are_those_of_the_library() {
        use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
        let params = |memory| Params::new(memory, 1, 1, None).expect("params");
        for memory in [64, MEMORY_KIB + 1024] {
            let theirs = Argon2::new(Algorithm::Argon2i, Version::V0x10, params(memory));
            let hash: PasswordHash = theirs.hash_password(b"a plain horse").expect("hashes");
            assert!(verify("a plain horse", Some(hash.to_string())).await.expect("compares"), "{memory}");
            assert!(!verify("another horse", Some(hash.to_string())).await.expect("compares"), "{memory}");
        }
        let ours = PasswordHash::new(&hash("a plain horse").await.expect("hashes")).expect("is a hash");
        assert!(Argon2::default().verify_password(b"a plain horse", &ours).is_ok());
        let large = hash("x").await.expect("hashes").replace("m=19456", "m=4000000");
        assert!(verify("x", Some(large)).await.is_err(), "a stored hash must not determine the memory use");
        let unknown = hash("x").await.expect("hashes").replace("argon2id", "argon2x");
        assert!(!verify("x", Some(unknown)).await.expect("compares"));
    }

    /// Returns the memory of this process in MiB.
    fn resident_mib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") / 1024
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn p15_passwords_leave_no_memory_on_the_threads_that_take_turns() {
        let before = resident_mib();
        let all = (0..120).map(|number| tokio::spawn(verify("wrong", None).map(move |result| (number, result))));
        for one in all.collect::<Vec<_>>() {
            let (number, result) = one.await.expect("no panic");
            assert!(!result.expect("compares"), "{number}");
        }
        let most = AT_ONCE as u64 * u64::from(MEMORY_KIB) / 1024;
        let left = resident_mib().saturating_sub(before);
        assert!(left <= most + 30, "{left} MiB for at most {AT_ONCE} at a time");
        assert!(MEMORIES.lock().expect("not poisoned").len() <= AT_ONCE);
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
