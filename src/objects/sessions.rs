//! Login sessions. A session is an object, so it is valid on every webserver, and deleting it ends it on all of them.
//! The client holds a random secret, and the session is named by the secret's hash: read access to the replicated data
//! is not enough to make a request in the session.
//!
//! A session stays valid while it is used. Logging every use would make reads expensive, so a webserver extends a
//! session only after a quarter of its lifetime: the log receives at most four writes per lifetime.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::cleanup::SLICE;
use super::epochs::{self, OfEpoch};
use super::impersonation::{self, Backing, Impersonator};
use super::record::{AsRead, Stored};
use super::{Record, Store, StoreError, Timestamp, Writes};

/// Algorithm number for a token's last part: BLAKE3 with 64 bytes of output, keyed with the secret in the token.
const ALGORITHM: u32 = 4;
/// Domain separation of session names from other hashes.
const NAME_CONTEXT: &str = "gravwell session name v1";
/// Maximum number of sessions of one user; a new login ends the least recently used one.
pub const SESSIONS_MAX: usize = 256;
/// Maximum number of download sessions of one user; a new one ends the oldest. It is far above the number of downloads
/// that one user may have under way.
pub const TEMPORARY_MAX: usize = 256;
/// Delay in seconds after which a webserver deletes its own sessions of an earlier epoch; those of others follow after
/// a day.
const OWN_AFTER_S: u64 = 60;
const OTHERS_AFTER_S: u64 = 24 * 3600;
/// Reason for deleting sessions unconditionally: the end of a session always takes precedence.
pub const ENDED: &str = "ending a session takes precedence over extending it";
/// Reason for rewriting a session unconditionally: several webservers may extend the same login at the same time.
pub const ONLY_TIMES: &str = "only its times and epoch change, and a session of an old epoch is invalid";
/// Maximum length of a token that is decoded.
const TOKEN_BYTES_MAX: usize = 4096;

/// Key with which a webserver of an earlier version signed logins. This version accepts no such login and deletes its
/// own keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FormerKey {
    id: String,
    /// Name of that webserver.
    pub webserver: String,
}

impl Stored for FormerKey {
    const COLLECTION: &'static str = "signing-keys";
    fn key(&self) -> String {
        self.id.clone()
    }
}

/// A login session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// UID of the user.
    pub uid: i32,
    /// Hash of the secret.
    pub id: String,
    /// Address of the client that logged in.
    pub origin: String,
    /// User agent that logged in.
    #[serde(default)]
    pub agent: String,
    /// Time of the login.
    pub created: Timestamp,
    /// Last use known to this webserver.
    pub last_hit: Timestamp,
    /// Time at which it expires unless it is used.
    pub expires: Timestamp,
    /// Name of the webserver that started it.
    #[serde(default)]
    pub webserver: String,
    /// Epoch to which it belongs; empty if an earlier version started it.
    #[serde(default)]
    pub epoch: String,
    /// For a download session: id of the login session it belongs to. Downloads can start until `expires`. Empty for a
    /// login session.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    /// Administrator who started it to act as this user; empty if the user did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub su: String,
    /// Chain of administrators on whose rights it rests in that case, starting with the one who acts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<Impersonator>,
    /// Whether a second factor was used at login: that of the user, or of the administrator who acts as this user.
    #[serde(default)]
    pub second_factor: bool,
}

/// Epoch of the valid sessions of a user.
pub type Epoch = epochs::Epoch<Session>;
/// End of all sessions of a user.
pub type End = epochs::End<Session>;
type Known = epochs::Known<Session>;

impl OfEpoch for Session {
    const EPOCHS: &'static str = "session-epochs";
    const ENDS: &'static str = "session-ends";
    const PLURAL: &'static str = "sessions";
    // Not empty: sessions from before the first epoch end when that starts, whatever the clocks show.
    const FIRST: &'static str = "first";
    const ENDED: &'static str = "the sessions of the user were ended in the meantime; log in again";

    fn epoch(&self) -> &str {
        &self.epoch
    }

    fn created(&self) -> Timestamp {
        self.created
    }
}

impl Stored for Session {
    const COLLECTION: &'static str = "sessions";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.id)
    }
}

impl Session {
    /// Returns its expiry time if it is used now and never again: after `timeout_s`, but no later than `lifetime_s`
    /// after its start; `lifetime_s` 0 means no such limit.
    #[must_use]
    pub fn end_if_used(&self, timeout_s: u64, lifetime_s: u64) -> Timestamp {
        let end = Timestamp::now().plus(timeout_s);
        if lifetime_s == 0 { end } else { end.min(self.created.plus(lifetime_s)) }
    }

    /// Returns whether it has reached the maximum age of sessions.
    #[must_use]
    pub fn is_too_old(&self, lifetime_s: u64) -> bool {
        lifetime_s != 0 && self.created.plus(lifetime_s).is_past()
    }

    /// Returns whether its expiry must be rewritten: a quarter of the timeout has passed since the last write, and the
    /// new expiry is later.
    #[must_use]
    pub fn needs_extension(&self, timeout_s: u64, lifetime_s: u64) -> bool {
        let is_due = Timestamp::now().plus(timeout_s - timeout_s / 4) >= self.expires;
        is_due && !self.is_temporary() && self.end_if_used(timeout_s, lifetime_s) > self.expires
    }

    /// Returns whether it is a download session.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        !self.of.is_empty()
    }
}

/// Returns a session if it is valid: it has not expired, belongs to its user's current epoch, and the administrators
/// who act in it as this user may do so. A download session is valid as long as its login session, because a started
/// download continues.
///
/// # Errors
/// If the state is corrupt.
pub fn live(store: &Store, uid: i32, id: &str) -> Result<Option<Live>, StoreError> {
    let Some(session) = store.valid::<Session>(&format!("{uid}/{id}"))? else { return Ok(None) };
    let (epoch, now) = (Known::of(store, uid)?, Timestamp::now());
    let is_current = if session.value.is_temporary() {
        let login = store.valid::<Session>(&format!("{uid}/{}", session.value.of))?;
        login.is_some_and(|login| !login.value.is_temporary() && is_live(&login.value, &epoch, now))
    } else {
        is_live(&session.value, &epoch, now)
    };
    let Some(behind) = impersonation::of(store, &session.value)?.filter(|_| is_current) else { return Ok(None) };
    Ok(Some(Live { session, epoch: epoch.as_read(), behind }))
}

/// A valid session.
#[derive(Debug)]
pub struct Live {
    /// The session record.
    pub session: Record<Session>,
    /// The epoch to which it belongs; `None` if its user has had none yet.
    pub epoch: Option<AsRead>,
    /// The administrators who act as its user.
    pub behind: Vec<Backing>,
}

/// Returns the valid sessions of a user, except download sessions.
///
/// # Errors
/// If the state is corrupt.
pub fn live_of(store: &Store, uid: i32) -> Result<Vec<Record<Session>>, StoreError> {
    let (epoch, now) = (Known::of(store, uid)?, Timestamp::now());
    let mut found = Vec::new();
    for session in store.list::<Session>(&format!("{uid}/"))? {
        let is_current = !session.value.is_temporary() && is_live(&session.value, &epoch, now);
        if is_current && impersonation::of(store, &session.value)?.is_some() {
            found.push(session);
        }
    }
    Ok(found)
}

fn is_live(session: &Session, epoch: &Known, now: Timestamp) -> bool {
    epoch.includes(session) && !session.expires.is_past_at(now)
}

/// Returns the id of the epoch for a new session of a user; a new epoch is started if the present one is invalid or has
/// ended.
///
/// # Errors
/// If the state is corrupt.
pub fn epoch_for_new(store: &Store, uid: i32, writes: &mut Writes) -> Result<String, StoreError> {
    epochs::for_new::<Session>(store, uid, writes)
}

/// Returns the sessions of a user that a new one displaces: ended sessions, and the least recently used valid ones, so
/// that at most [`SESSIONS_MAX`] remain together with the new one.
///
/// # Errors
/// If the state is corrupt.
pub fn displaced(store: &Store, uid: i32) -> Result<Vec<String>, StoreError> {
    let epoch = Known::of(store, uid)?;
    let sessions = store.list::<Session>(&format!("{uid}/"))?.into_iter().map(|record| record.value);
    let sessions = sessions.filter(|session| !session.is_temporary());
    let now = store.confirmed_now();
    let (mut live, ended): (Vec<Session>, Vec<Session>) = sessions.partition(|session| is_live(session, &epoch, now));
    live.sort_by_key(|session| (session.last_hit, session.created));
    let excess = (live.len() + 1).saturating_sub(SESSIONS_MAX);
    let displaced = live.iter().take(excess).chain(&ended);
    Ok(displaced.take(SLICE).map(Stored::key).collect())
}

/// Returns the download sessions of a user that a new one displaces: the oldest, so that at most [`TEMPORARY_MAX`] remain
/// together with the new one.
///
/// # Errors
/// If the state is corrupt.
pub fn displaced_by_temporary(store: &Store, uid: i32) -> Result<Vec<String>, StoreError> {
    let sessions = store.list::<Session>(&format!("{uid}/"))?.into_iter().map(|record| record.value);
    let mut temporary: Vec<Session> = sessions.filter(Session::is_temporary).collect();
    temporary.sort_by_key(|session| session.expires);
    let excess = (temporary.len() + 1).saturating_sub(TEMPORARY_MAX);
    Ok(temporary.iter().take(excess.min(SLICE)).map(Stored::key).collect())
}

/// Returns sessions that this webserver should delete: its own that have ended and are not needed as evidence of that,
/// and, after a longer delay, those of any webserver.
///
/// # Errors
/// If the state is corrupt.
pub fn ended(store: &Store) -> Result<Vec<String>, StoreError> {
    let mut epochs: HashMap<i32, Known> = HashMap::new();
    let mut found = Vec::new();
    let now = store.confirmed_now();
    for record in store.list::<Session>("")? {
        let session = &record.value;
        let epoch = match epochs.entry(session.uid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Known::of(store, session.uid)?),
        };
        let after = if session.webserver == store.via() { OWN_AFTER_S } else { OTHERS_AFTER_S };
        let is_over = match epoch {
            // The epoch may still be rejected while it is pending.
            Known::Now(epoch) if epoch.version.is_some() && !epoch.value.includes(session) => {
                epoch.value.since.plus(after).is_past_at(now)
            }
            _ => session.expires.plus(OTHERS_AFTER_S).is_past_at(now),
        };
        if is_over {
            found.push(session.key());
        }
    }
    Ok(found)
}

#[derive(Serialize, Deserialize)]
struct Header {
    algo: u32,
    typ: String,
}

/// Contents of a token. Only the UID and the secret are checked; the session determines the lifetime.
#[derive(Clone, Serialize, Deserialize)]
pub struct Claims {
    /// UID of the user.
    pub uid: i32,
    /// Time at which it expires unless the session is extended.
    pub expires: Timestamp,
    /// The random secret.
    iat: [u8; 32],
    /// Whether it is a token for downloads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub temporary: bool,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("uid", &self.uid).field("session", &self.session()).finish_non_exhaustive()
    }
}

impl Claims {
    /// Creates the claims of a new login.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn new(uid: i32, expires: Timestamp) -> std::io::Result<Claims> {
        Ok(Claims { uid, expires, iat: random()?, temporary: false })
    }

    /// Creates claims for downloads.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub fn for_downloads(uid: i32, expires: Timestamp) -> std::io::Result<Claims> {
        Ok(Claims { temporary: true, ..Claims::new(uid, expires)? })
    }

    /// Returns the same claims with another expiry time.
    #[must_use]
    pub fn until(self, expires: Timestamp) -> Claims {
        Claims { expires, ..self }
    }

    /// Decodes a token. Does not check that its session exists.
    #[must_use]
    pub fn read(token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (text, sum) = token.rsplit_once('.')?;
        let (header, claims) = text.split_once('.')?;
        let header: Header = serde_json::from_slice(&unhex(header)?).ok()?;
        let claims: Claims = serde_json::from_slice(&unhex(claims)?).ok()?;
        let is_whole = bool::from(claims.sum(text).ct_eq(&unhex(sum)?[..]));
        (header.algo == ALGORITHM && is_whole).then_some(claims)
    }

    /// Returns the id of the session: the hash of the secret.
    #[must_use]
    pub fn session(&self) -> String {
        hex(&blake3::derive_key(NAME_CONTEXT, &self.iat)[..16])
    }

    /// Encodes the token: three parts in lower-case hexadecimal, joined by dots.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn token(&self) -> serde_json::Result<String> {
        let header = hex(&serde_json::to_vec(&Header { algo: ALGORITHM, typ: "jwt".into() })?);
        let text = format!("{header}.{}", hex(&serde_json::to_vec(self)?));
        Ok(format!("{text}.{}", hex(&self.sum(&text))))
    }

    /// Returns the last part, where clients expect a signature: a checksum over the token.
    fn sum(&self, text: &str) -> [u8; 64] {
        let mut sum = [0; 64];
        blake3::Hasher::new_keyed(&self.iat).update(text.as_bytes()).finalize_xof().fill(&mut sum);
        sum
    }
}

/// Returns random bytes.
///
/// # Errors
/// If the system provides none.
pub fn random<const N: usize>() -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Encodes bytes in lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Author;
    use gravwell_model::Condition;
    use gravwell_replica::{Replica, ReplicaOptions};

    fn session(epoch: &str, created: Timestamp, expires: Timestamp) -> Session {
        Session {
            uid: 7,
            id: "a".into(),
            origin: String::new(),
            agent: String::new(),
            created,
            last_hit: Timestamp::now(),
            expires,
            webserver: String::new(),
            epoch: epoch.into(),
            of: String::new(),
            su: String::new(),
            behind: Vec::new(),
            second_factor: false,
        }
    }

    #[tokio::test]
    async fn p11_a_login_is_committed_only_in_the_epoch_in_which_it_was_made() {
        let temp = tempfile::tempdir().expect("temp dir");
        let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
        let store = Store::new(replica, "w");
        let required = || {
            let mut writes = Writes::new();
            let epoch = epoch_for_new(&store, 7, &mut writes).expect("reads");
            (epoch, writes.conditions())
        };
        let (first, conditions) = required();
        assert_eq!(first, Session::FIRST);
        assert!(matches!(&conditions[..], [Condition::Absent { .. }]), "{conditions:?}");
        // An end has no condition, and the epoch that follows has one.
        let writes = crate::accounts::end_sessions(&store, 7, None).expect("writes");
        assert_eq!(writes.conditions(), []);
        store.commit(&Author::default(), "a test", writes).await.expect("is accepted");
        let epoch = store.get::<Epoch>("7").expect("reads").expect("an epoch");
        assert_eq!(epoch.value.ends.len(), 1);
        let (second, conditions) = required();
        assert_eq!(second, epoch.value.id);
        assert_ne!(second, first);
        assert!(matches!(&conditions[..], [Condition::Version { .. }]), "{conditions:?}");
        assert_eq!(conditions[0].collection().as_str(), Session::EPOCHS);
        // So is one that starts an epoch, and one that is kept in it.
        let mut writes = Writes::new();
        crate::accounts::end_sessions_for_new(&store, 7, &mut writes).expect("writes");
        assert_eq!(writes.conditions(), conditions);
        let mut writes = Writes::new();
        writes.overwrite(&session(&second, Timestamp::now(), Timestamp::now()), "a test").expect("writes");
        store.commit(&Author::default(), "a test", writes).await.expect("is accepted");
        let kept = store.valid::<Session>("7/a").expect("reads").expect("a session");
        let writes = crate::accounts::end_sessions(&store, 7, Some(&kept)).expect("writes");
        assert_eq!(writes.conditions()[0], conditions[0]);
    }

    #[test]
    fn a_token_has_the_form_that_clients_know() {
        let claims = Claims::new(7, Timestamp::now().plus(60)).expect("claims");
        let token = claims.token().expect("encodes");
        let parts: Vec<&str> = token.split('.').collect();
        assert_eq!((parts.len(), parts[2].len()), (3, 128));
        assert!(token.chars().all(|c| c == '.' || c.is_ascii_digit() || ('a'..='f').contains(&c)));
        let read: serde_json::Value = serde_json::from_slice(&unhex(parts[1]).expect("hex")).expect("json");
        assert_eq!(read["uid"], 7);
        assert_eq!(read["iat"].as_array().map(Vec::len), Some(32));
        assert!(Timestamp::parse(read["expires"].as_str().expect("text")).is_some());
        assert_eq!(claims.session().len(), 32);
        let read = Claims::read(&token).expect("reads");
        assert_eq!((read.uid, read.session()), (7, claims.session()));
    }

    #[test]
    fn p11_what_is_stored_of_a_login_is_not_in_the_token_nor_opens_anything() {
        let claims = Claims::new(7, Timestamp::now().plus(60)).expect("claims");
        let token = claims.token().expect("encodes");
        assert!(!token.contains(&claims.session()), "the name is a hash of the secret");
        let of_name = unhex(&claims.session()).expect("hex");
        let secret = [&of_name[..], &of_name[..]].concat().try_into().expect("32 bytes");
        let forged = Claims { iat: secret, ..claims.clone() };
        assert_ne!(forged.session(), claims.session());
        for at in 0..token.len() {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).expect("text");
            assert!(Claims::read(&damaged).is_none(), "character {at}");
        }
        assert!(Claims::read("").is_none() && Claims::read("..").is_none());
        assert!(Claims::read(&"0".repeat(TOKEN_BYTES_MAX + 1)).is_none());
    }

    #[test]
    fn a_new_epoch_ends_all_earlier_logins_whatever_the_clocks_say() {
        let (now, ahead) = (Timestamp::now(), Timestamp::now().plus(3600));
        let session = |epoch: &str, created| session(epoch, created, ahead);
        let epoch = Epoch { uid: 7, id: "e".into(), since: now, ends: Vec::new(), of: std::marker::PhantomData };
        assert!(epoch.includes(&session("e", now)) && !epoch.includes(&session("d", ahead)));
        // A session from before the first epoch, at a webserver whose clock is ahead.
        let first = Known::Never.current().map(str::to_owned).expect("a name");
        assert!(Known::Never.includes(&session(&first, ahead)) && !epoch.includes(&session(&first, ahead)));
        // Webservers of earlier versions do not know epochs.
        assert!(epoch.includes(&session("", ahead)) && !epoch.includes(&session("", now)));
    }

    #[test]
    fn a_session_ends_at_its_age_however_much_it_is_used() {
        let now = Timestamp::now();
        let at = |seconds: i64| Timestamp::from_ms(now.ms().saturating_add_signed(seconds * 1000));
        let session = |begun_s, ends_s| session("", at(begun_s), at(ends_s));
        // (started, expires), timeout, lifetime: whether it is extended, whether it is over.
        let cases = [
            ((-10, 590), 600, 0, false, false),
            ((-200, 400), 600, 0, true, false),
            ((-200, 400), 600, 3600, true, false),
            // Near the maximum age the expiry time is written once, and not at every request.
            ((-3500, 50), 600, 3600, true, false),
            ((-3500, 100), 600, 3600, false, false),
            ((-3601, 500), 600, 3600, false, true),
            ((-100_000, 400), 600, 0, true, false),
        ];
        for ((begun, ends), timeout, lifetime, extended, over) in cases {
            let session = session(begun, ends);
            let found = (session.needs_extension(timeout, lifetime), session.is_too_old(lifetime));
            assert_eq!(found, (extended, over), "{begun} {ends} {timeout} {lifetime}");
        }
    }

    #[test]
    fn hexadecimal_goes_both_ways() {
        assert_eq!(unhex(&hex(&[0, 255, 16])), Some(vec![0, 255, 16]));
        assert_eq!((unhex("0"), unhex("0g"), unhex("é")), (None, None, None));
    }
}
