//! Notifications: messages to one user, to a group, or to everybody, that end by themselves.

use serde::{Deserialize, Serialize};

use super::cleaning::SLICE;
use super::record::Stored;
use super::sessions::random;
use super::sharing::Person;
use super::{Moment, Record, Store, StoreError, Writes};

/// Seconds for which a notification lives unless told otherwise.
pub const LIFE_S: u64 = 12 * 3600;
/// Type of the notification that a change was rejected.
pub const REJECTED: u32 = 0x5245_4a00;

/// A notification.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Notification {
    /// Number.
    #[serde(rename = "ID")]
    pub id: u64,
    /// For whom; 0: for the group, or everybody.
    #[serde(rename = "UID")]
    pub uid: i32,
    /// For which group; 0: none.
    #[serde(rename = "GID")]
    pub gid: i32,
    /// Who sent it.
    pub sender: i32,
    /// Kind: of one kind, a receiver keeps the latest only; 0: all are kept.
    #[serde(rename = "Type")]
    pub kind: u32,
    /// For everybody.
    pub broadcast: bool,
    /// When it was sent.
    pub sent: Moment,
    /// When it ends.
    pub expires: Moment,
    /// Until when it is not shown.
    pub ignore_until: Moment,
    /// What it says.
    pub msg: String,
    /// The webserver from which it came.
    pub origin: uuid::Uuid,
    /// `info`, `warn`, `error` or `critical`.
    pub level: String,
    /// Where to read more.
    pub link: String,
}

impl Stored for Notification {
    const COLLECTION: &'static str = "notifications";
    fn key(&self) -> String {
        self.id.to_string()
    }
}

impl Notification {
    /// Whether it is meant for the person.
    #[must_use]
    pub fn is_for(&self, person: &Person) -> bool {
        self.broadcast
            || (self.uid != 0 && self.uid == person.uid)
            || (self.gid != 0 && person.groups.contains(&self.gid))
    }

    /// Whether it is shown now.
    #[must_use]
    pub fn is_shown(&self) -> bool {
        !self.expires.is_past() && (self.ignore_until.is_never() || self.ignore_until.is_past())
    }
}

/// A number for a new notification, below 2^53.
///
/// # Errors
/// When there is no randomness.
pub fn new_id() -> std::io::Result<u64> {
    Ok((u64::from_le_bytes(random::<8>()?) >> 11).max(1))
}

/// Sends a notification, in the place of an earlier one of its kind to the same receiver.
///
/// # Errors
/// When the state is damaged.
pub fn send(store: &Store, notification: &Notification) -> Result<Writes, StoreError> {
    let mut writes = Writes::new();
    if notification.kind != 0 {
        let is_replaced = |other: &Notification| {
            (other.uid, other.gid, other.broadcast) == (notification.uid, notification.gid, notification.broadcast)
                && other.kind == notification.kind
        };
        for other in store.select::<Notification>("", is_replaced)?.into_iter().take(SLICE) {
            writes.delete_whatever::<Notification>(&other.value.key(), "the new notification says what counts now")?;
        }
    }
    writes.overwrite(notification, "its number is random, or that of one rejection")?;
    Ok(writes)
}

/// Notifications that have ended, for their removal: one webserver's own, and after an hour anybody's.
///
/// # Errors
/// When the state is damaged.
pub fn ended(store: &Store, own: uuid::Uuid) -> Result<Vec<Record<Notification>>, StoreError> {
    let all = store.list::<Notification>("")?;
    let is_over = |record: &Record<Notification>| {
        let expires = record.value.expires;
        if record.value.origin == own { expires.is_past() } else { !expires.is_never() && expires.plus(3600).is_past() }
    };
    Ok(all.into_iter().filter(is_over).collect())
}
