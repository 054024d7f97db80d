//! Second factors of logins: the seed of an authenticator app, the codes already used, and recovery codes for a
//! lost app.
//!
//! State that must be used at most once in the whole fleet is an object that is changed only under the condition that
//! it still is as read: the last time step of the app's codes, and the set of recovery codes. It is written in the same
//! transaction as the login. Of two logins with the same code, at any webservers, one is therefore rejected.

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::record::{AsRead, Stored};
use super::sessions::{hex, random};
use super::totp::{self, CodeCheck, SEED_BYTES};
use super::users::User;
use super::{Record, Store, StoreError, Timestamp, Writes, accounts};

/// Number of recovery codes that are created together.
pub const CODES: usize = 10;
/// Random bytes of a recovery code: too many to guess from its hash, so that no slow hash is needed.
const CODE_BYTES: usize = 10;
/// Domain separation of recovery code hashes from other hashes.
const CODE_CONTEXT: &str = "gravwell recovery code v1";
/// Time in seconds within which a setup must be finished.
pub const SETUP_S: u64 = 15 * 60;

const USED: &str = "the code was already used, here or at another webserver; wait for the next code";
const CHANGED: &str = "the second factor was changed in the meantime; try again";
/// Message for a login with a password alone if this webserver did not know of the second factor.
pub const SET_UP: &str = "a second factor was set up for this account in the meantime; log in again";
const WITH_THE_FACTOR: &str = "it belongs to the second factor";

/// A second factor of a user: an app that derives codes from a seed.
#[derive(Clone, Serialize, Deserialize)]
pub struct Factor {
    /// UID of the user.
    pub uid: i32,
    /// Identifies this factor: steps and recovery codes of an earlier factor are ignored.
    pub id: String,
    /// Base 32. The app needs the same seed, so it cannot be stored as a hash.
    seed: String,
    /// Time of its setup.
    pub since: Timestamp,
}

impl std::fmt::Debug for Factor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Factor").field("uid", &self.uid).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Stored for Factor {
    const COLLECTION: &'static str = "second-factors";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// The last time step for which a code was used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastStep {
    /// UID of the user.
    pub uid: i32,
    /// Id of the factor.
    pub factor: String,
    /// Number of the time step.
    pub step: u64,
}

impl Stored for LastStep {
    const COLLECTION: &'static str = "second-factor-steps";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// Single-use codes that can replace a code of the app.
#[derive(Clone, Serialize, Deserialize)]
pub struct RecoveryCodes {
    /// UID of the user.
    pub uid: i32,
    /// Id of the factor.
    pub factor: String,
    /// Salt, so that equal hashes of different users reveal nothing.
    salt: String,
    /// Hashes of the unused codes.
    hashes: Vec<String>,
    /// Time of their creation.
    pub generated: Timestamp,
}

impl std::fmt::Debug for RecoveryCodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecoveryCodes").field("uid", &self.uid).field("left", &self.left()).finish_non_exhaustive()
    }
}

impl Stored for RecoveryCodes {
    const COLLECTION: &'static str = "recovery-codes";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

impl RecoveryCodes {
    /// Creates new codes. Returns the record to store, and the codes to show once.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn new(uid: i32, factor: &str) -> std::io::Result<(RecoveryCodes, Vec<String>)> {
        let salt = hex(&random::<16>()?);
        let shown =
            (0..CODES).map(|_| Ok(grouped(&hex(&random::<CODE_BYTES>()?)))).collect::<std::io::Result<Vec<_>>>()?;
        let hashes = shown.iter().map(|code| hash(&salt, code)).collect();
        let kept = RecoveryCodes { uid, factor: factor.to_owned(), salt, hashes, generated: Timestamp::now() };
        Ok((kept, shown))
    }

    /// Returns the number of unused codes.
    #[must_use]
    pub fn left(&self) -> usize {
        self.hashes.len()
    }

    /// Removes a code. Returns whether it was one of them.
    fn take(&mut self, code: &str) -> bool {
        let wanted = hash(&self.salt, code);
        let before = self.hashes.len();
        self.hashes.retain(|hash| !bool::from(hash.as_bytes().ct_eq(wanted.as_bytes())));
        self.hashes.len() < before
    }
}

/// Splits a code into groups for copying by hand.
fn grouped(code: &str) -> String {
    let groups = code.as_bytes().chunks(5).map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join("-")
}

/// Hashes a code, ignoring case and separators.
fn hash(salt: &str, code: &str) -> String {
    let code: String = code.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let mut hasher = blake3::Hasher::new_derive_key(CODE_CONTEXT);
    hasher.update(salt.as_bytes()).update(code.as_bytes());
    hex(hasher.finalize().as_bytes())
}

/// A new factor whose app is not proved yet.
#[derive(Clone, Serialize, Deserialize)]
pub struct Setup {
    /// UID of the user.
    pub uid: i32,
    seed: String,
    /// Id of the factor that it replaces, which was proved at the start of the setup; empty if there was none.
    #[serde(default)]
    replaces: String,
    /// Start of the setup.
    pub begun: Timestamp,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup").field("uid", &self.uid).field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Stored for Setup {
    const COLLECTION: &'static str = "second-factor-setups";
    fn key(&self) -> String {
        self.uid.to_string()
    }
}

/// A code that the user sends as a second factor.
#[derive(Clone, Copy, Debug)]
pub enum Code<'a> {
    /// Code displayed by the app.
    OfApp(&'a str),
    /// A recovery code.
    Recovery(&'a str),
}

/// Result of checking a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proved {
    /// The code is valid, provided that the transaction which uses it is committed.
    Yes,
    /// The code was already used.
    Used,
    /// The code is wrong.
    No,
}

/// Returns the second factor of a user.
///
/// # Errors
/// If the state is corrupt, or the factor is invalid: an invalid factor must not be treated as missing.
pub fn of(store: &Store, uid: i32) -> Result<Option<Record<Factor>>, StoreError> {
    store.get::<Factor>(&uid.to_string())
}

/// Returns the recovery codes of a factor.
fn codes_of(store: &Store, factor: &Factor) -> Result<Option<Record<RecoveryCodes>>, StoreError> {
    let codes = store.valid::<RecoveryCodes>(&factor.key())?;
    Ok(codes.filter(|codes| codes.value.factor == factor.id))
}

/// Checks a code, and adds the operations that make it single-use to `writes`.
///
/// # Errors
/// If the state is corrupt.
pub fn prove(
    store: &Store,
    factor: &Record<Factor>,
    code: Code<'_>,
    writes: &mut Writes,
) -> Result<Proved, StoreError> {
    let key = factor.value.key();
    match code {
        Code::OfApp(code) => {
            let last = store.valid::<LastStep>(&key)?.filter(|last| last.value.factor == factor.value.id);
            let seed = totp::seed_of(&factor.value.seed).unwrap_or_default();
            let now = totp::step_at(Timestamp::now().ms());
            let step = match totp::judge(&seed, code, now, last.map(|last| last.value.step)) {
                _ if seed.len() != SEED_BYTES => return Ok(Proved::No),
                CodeCheck::Fresh(step) => step,
                CodeCheck::Used => return Ok(Proved::Used),
                CodeCheck::Wrong => return Ok(Proved::No),
            };
            let used = LastStep { uid: factor.value.uid, factor: factor.value.id.clone(), step };
            writes.replace(store.seen::<LastStep>(&key)?, &used, USED)?;
        }
        Code::Recovery(code) => {
            let Some(mut codes) = codes_of(store, &factor.value)? else { return Ok(Proved::No) };
            if !codes.value.take(code) {
                return Ok(Proved::No);
            }
            writes.update(&codes, CHANGED)?;
        }
    }
    writes.unchanged(factor, CHANGED)?;
    Ok(Proved::Yes)
}

/// Requires that the user has no second factor at commit.
///
/// # Errors
/// If the key is invalid.
pub fn require_none(uid: i32, writes: &mut Writes) -> Result<(), StoreError> {
    writes.require_absent::<Factor>(&uid.to_string(), SET_UP)
}

/// Starts the setup of a factor that replaces `former`, which was proved. Returns the seed for the user's app.
///
/// # Errors
/// If random bytes are unavailable, or an object cannot be encoded.
pub fn begin(uid: i32, former: Option<&Record<Factor>>, writes: &mut Writes) -> Result<Vec<u8>, StoreError> {
    let seed = random::<SEED_BYTES>()?;
    let replaces = former.map(|former| former.value.id.clone()).unwrap_or_default();
    let setup = Setup { uid, seed: totp::seed_text(&seed), replaces, begun: Timestamp::now() };
    match former {
        Some(former) => writes.unchanged(former, CHANGED)?,
        None => require_none(uid, writes)?,
    }
    writes.require::<User>(&uid.to_string(), accounts::USER_GONE)?;
    writes.overwrite(&setup, "a new setup replaces an unfinished one")?;
    Ok(seed.to_vec())
}

/// Result of finishing a setup.
pub enum Installed {
    /// The factor becomes valid with the transaction; these are its recovery codes.
    Yes(Vec<String>),
    /// The code is not from the app.
    No,
    /// There is no setup that could be finished.
    NotBegun,
}

/// Finishes a setup with a code that proves that the app has the seed.
///
/// # Errors
/// If the state is corrupt or no random bytes are available.
pub fn install(store: &Store, uid: i32, code: &str, writes: &mut Writes) -> Result<Installed, StoreError> {
    let key = uid.to_string();
    let former = of(store, uid)?;
    let replaced = former.as_ref().map(|former| former.value.id.as_str()).unwrap_or_default();
    let setup = store.valid::<Setup>(&key)?;
    let setup = setup.filter(|setup| setup.value.replaces == replaced && !setup.value.begun.plus(SETUP_S).is_past());
    let Some(setup) = setup else { return Ok(Installed::NotBegun) };
    let seed = totp::seed_of(&setup.value.seed).unwrap_or_default();
    let now = totp::step_at(Timestamp::now().ms());
    let CodeCheck::Fresh(step) = totp::judge(&seed, code, now, None) else { return Ok(Installed::No) };
    let factor = Factor { uid, id: hex(&random::<8>()?), seed: setup.value.seed.clone(), since: Timestamp::now() };
    let (codes, shown) = RecoveryCodes::new(uid, &factor.id)?;
    writes.delete(&setup, "the setup was finished or cancelled in the meantime; start again")?;
    writes.replace(former.map(|former| former.as_read), &factor, CHANGED)?;
    writes.overwrite(&codes, WITH_THE_FACTOR)?;
    writes.overwrite(&LastStep { uid, factor: factor.id, step }, WITH_THE_FACTOR)?;
    Ok(Installed::Yes(shown))
}

/// Replaces the remaining recovery codes with new ones. Later codes stay: they were created because these may be known to
/// others.
///
/// # Errors
/// If random bytes are unavailable, or the state is corrupt.
pub fn new_codes(
    store: &Store,
    factor: &Record<Factor>,
    writes: &mut Writes,
) -> Result<(RecoveryCodes, Vec<String>), StoreError> {
    let (codes, shown) = RecoveryCodes::new(factor.value.uid, &factor.value.id)?;
    writes.unchanged(factor, CHANGED)?;
    if writes.ops().iter().any(|op| op.collection().as_str() == RecoveryCodes::COLLECTION) {
        // A recovery code has proved the factor, under the condition that the codes are as they were read.
        writes.overwrite(&codes, "the condition names the former codes")?;
    } else {
        writes.replace(store.seen::<RecoveryCodes>(&codes.key())?, &codes, CHANGED)?;
    }
    Ok((codes, shown))
}

/// Deletes the second factor that was found, with all its objects. The condition on the factor covers them: those of a
/// later factor stay.
///
/// # Errors
/// If an object cannot be encoded.
pub fn clear(uid: i32, found: AsRead, writes: &mut Writes) -> Result<(), StoreError> {
    let key = uid.to_string();
    writes.as_read::<Factor>(&key, Some(found), CHANGED)?;
    writes.delete_unconditionally::<Factor>(&key, "the condition names the factor")?;
    writes.delete_unconditionally::<RecoveryCodes>(&key, WITH_THE_FACTOR)?;
    writes.delete_unconditionally::<LastStep>(&key, WITH_THE_FACTOR)?;
    writes.delete_unconditionally::<Setup>(&key, WITH_THE_FACTOR)
}

/// State of a user's second factor, without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Whether there is a second factor.
    pub is_set: bool,
    /// Number of unused recovery codes.
    pub codes_left: usize,
    /// Creation time of the recovery codes.
    pub generated: Option<Timestamp>,
}

/// Returns the state of a user's second factor.
///
/// # Errors
/// If the state is corrupt.
pub fn summary(store: &Store, uid: i32) -> Result<Summary, StoreError> {
    // An invalid factor is also required at login, so it counts as set.
    if !store.has::<Factor>(&uid.to_string())? {
        return Ok(Summary::default());
    }
    let factor = store.valid::<Factor>(&uid.to_string())?;
    let codes = factor.map(|factor| codes_of(store, &factor.value)).transpose()?.flatten();
    let codes = codes.map(|codes| codes.value);
    Ok(Summary {
        is_set: true,
        codes_left: codes.as_ref().map_or(0, RecoveryCodes::left),
        generated: codes.map(|codes| codes.generated),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recovery_codes_count_once_and_are_kept_as_hashes() {
        let (mut kept, shown) = RecoveryCodes::new(7, "f").expect("codes");
        assert_eq!((shown.len(), kept.left()), (CODES, CODES));
        assert_eq!(shown.iter().collect::<std::collections::BTreeSet<_>>().len(), CODES);
        let text = serde_json::to_string(&kept).expect("JSON");
        assert!(
            shown.iter().all(|code| code.len() == 23 && !text.contains(&code.replace('-', "")) && !text.contains(code))
        );
        assert!(!kept.take("") && !kept.take("00000-00000-00000-00000") && !kept.take(&shown[0][..22]));
        assert!(kept.take(&shown[0].to_uppercase().replace('-', " ")) && !kept.take(&shown[0]));
        assert_eq!(kept.left(), CODES - 1);
        let (other, _) = RecoveryCodes::new(7, "f").expect("codes");
        assert_ne!(hash(&kept.salt, &shown[1]), hash(&other.salt, &shown[1]), "salted");
        assert!(shown[1..].iter().all(|code| kept.take(code)) && kept.left() == 0);
    }

    #[test]
    fn nothing_that_is_printed_holds_a_seed() {
        let factor = Factor { uid: 7, id: "i".into(), seed: "NEEDLE".into(), since: Timestamp::now() };
        let setup = Setup { uid: 7, seed: "NEEDLE".into(), replaces: String::new(), begun: Timestamp::now() };
        let (mut codes, _) = RecoveryCodes::new(7, "f").expect("codes");
        codes.hashes = vec!["NEEDLE".into()];
        let printed = format!("{factor:?} {setup:?} {codes:?}");
        assert!(!printed.contains("NEEDLE"), "{printed}");
    }
}
