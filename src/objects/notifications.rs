//! Notifications: messages to one user, to a group, or to all users, which expire automatically.

use serde::{Deserialize, Serialize};

use super::cleanup::SLICE;
use super::record::Stored;
use super::sessions::random;
use super::sharing::Principal;
use super::{Record, Store, StoreError, Timestamp, Writes};

/// Default lifetime of a notification in seconds.
pub const LIFE_S: u64 = 12 * 3600;
/// Type of the notification that a change was rejected.
pub const REJECTED: u32 = 0x5245_4a00;

/// A notification.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Notification {
    /// Random number.
    #[serde(rename = "ID")]
    pub id: u64,
    /// UID of the receiver; 0: a group, or all users.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// GID of the receiving group; 0: none.
    #[serde(rename = "GID")]
    pub gid: i32,
    /// UID of the sender.
    pub sender: i32,
    /// Kind: a receiver keeps only the latest notification of a kind; 0: all are kept.
    #[serde(rename = "Type")]
    pub kind: u32,
    /// Addressed to all users.
    pub broadcast: bool,
    /// Time at which it was sent.
    pub sent: Timestamp,
    /// Time at which it expires.
    pub expires: Timestamp,
    /// Time until which it is hidden.
    pub ignore_until: Timestamp,
    /// Text of the message.
    pub msg: String,
    /// UUID of the webserver that sent it.
    pub origin: uuid::Uuid,
    /// `info`, `warn`, `error` or `critical`.
    pub level: String,
    /// Link to more information.
    pub link: String,
}

impl Stored for Notification {
    const COLLECTION: &'static str = "notifications";
    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Notification {
    /// Returns whether it is addressed to the person.
    #[must_use]
    pub fn is_for(&self, person: &Principal) -> bool {
        self.broadcast
            || (self.uid != 0 && self.uid == person.uid)
            || (self.gid != 0 && person.groups.contains(&self.gid))
    }

    /// Returns whether it is shown now.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        !self.expires.is_past() && (self.ignore_until.is_never() || self.ignore_until.is_past())
    }
}

/// Returns a random number for a new notification, below 2^53.
///
/// # Errors
/// If random bytes are unavailable.
pub fn new_id() -> std::io::Result<u64> {
    Ok((u64::from_le_bytes(random::<8>()?) >> 11).max(1))
}

/// Sends a notification, which replaces earlier ones of its kind to the same receiver.
///
/// # Errors
/// If the state is corrupt.
pub fn send(store: &Store, notification: &Notification) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    if notification.kind != 0 {
        let is_replaced = |other: &Notification| {
            (other.uid, other.gid, other.broadcast) == (notification.uid, notification.gid, notification.broadcast)
                && other.kind == notification.kind
        };
        for other in store.select::<Notification>("", is_replaced)?.into_iter().take(SLICE) {
            writes.delete_unconditionally::<Notification>(&other.value.key(), "the new notification supersedes it")?;
        }
    }
    writes.overwrite(notification, "its ID is random, or derived from one rejection")?;
    Ok(writes)
}

/// Returns expired notifications, for deletion: those of the webserver `own`, and after an hour those of
/// all webservers.
///
/// # Errors
/// If the state is corrupt.
pub fn ended(store: &Store, own: uuid::Uuid) -> Result<Vec<Record<Notification>>, StoreError> {
    let all = store.list::<Notification>("")?;
    let now = store.confirmed_now();
    let is_over = |record: &Record<Notification>| {
        let expires = record.value.expires;
        let after = if record.value.origin == own { 0 } else { 3600 };
        !expires.is_never() && expires.plus(after).is_past_at(now)
    };
    Ok(all.into_iter().filter(is_over).collect())
}
