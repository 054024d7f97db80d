//! API tokens: secrets that act for a user with a part of the user's rights.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::epochs::{self, OfEpoch};
use super::record::{AsRead, Stored};
use super::sessions::{hex, random};
use super::sharing::null_is_empty;
use super::{Record, Store, StoreError, Timestamp, Writes};

/// Maximum number of tokens of one user.
pub const TOKENS_MAX: usize = 1000;
/// Maximum number of makers of a token.
pub const MAKERS_MAX: usize = 8;

/// A token, without its secret value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Token {
    /// Id for programs.
    pub id: uuid::Uuid,
    /// Display name.
    pub name: String,
    /// Description by its owner.
    #[serde(default)]
    pub description: String,
    /// UID of the owner.
    pub uid: i32,
    /// Time of its creation.
    #[serde(rename = "createdAt")]
    pub created: Timestamp,
    /// Time at which it expires.
    #[serde(rename = "expiresAt", default)]
    pub expires: Timestamp,
    /// Capabilities that it grants, as far as its owner has them.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub capabilities: Vec<String>,
    /// BLAKE3 of the value. The value is random and long, so no slow hash is needed.
    pub hash: String,
    /// Epoch to which it belongs; empty if an earlier version made it.
    #[serde(default)]
    pub epoch: String,
    /// Chain of tokens with which it was made or given its value. It becomes invalid with each of them, and grants
    /// nothing that one of them does not grant.
    #[serde(rename = "madeBy", default, deserialize_with = "null_is_empty")]
    pub makers: Vec<uuid::Uuid>,
}

/// Epoch of the valid tokens of a user.
pub type TokenEpoch = epochs::Epoch<Token>;
/// End of all tokens of a user.
pub type TokenEnd = epochs::End<Token>;
/// State of a user's token epoch.
pub type Known = epochs::Known<Token>;

impl OfEpoch for Token {
    const EPOCHS: &'static str = "token-epochs";
    const ENDS: &'static str = "token-ends";
    const PLURAL: &'static str = "API tokens";
    // Not empty: tokens from before the first epoch end when that starts, whatever the clocks show.
    const FIRST: &'static str = "first";
    const ENDED: &'static str = "the API tokens of the user were ended in the meantime; try again";

    fn epoch(&self) -> &str {
        &self.epoch
    }

    fn created(&self) -> Timestamp {
        self.created
    }
}

/// Ends all tokens of a user. Tokens known to this webserver are also deleted, for webservers that do not know
/// token epochs.
///
/// # Errors
/// If the state is corrupt.
pub fn end_all(store: &Store, uid: i32, writes: &mut Writes) -> Result<(), StoreError> {
    for key in store.keys::<Token>(&format!("{uid}/"))? {
        writes.delete_unconditionally::<Token>(&key, "revoking a right does not depend on its current value")?;
    }
    TokenEnd::now(uid, writes)
}

impl Stored for Token {
    const COLLECTION: &'static str = "tokens";
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.id)
    }
}

impl Token {
    /// Returns whether it grants a capability; case is ignored.
    #[must_use]
    pub fn allows(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own.eq_ignore_ascii_case(capability))
    }

    /// Returns the keys of the tokens with which it was made.
    pub fn maker_keys(&self) -> impl Iterator<Item = String> {
        self.makers.iter().map(|maker| format!("{}/{maker}", self.uid))
    }

    /// Returns the makers of a token that is made with this one. If this token gives a new value to token `id`, that
    /// token is excluded.
    #[must_use]
    pub fn makers_of(&self, id: uuid::Uuid) -> Vec<uuid::Uuid> {
        self.makers.iter().copied().chain([self.id]).filter(|maker| *maker != id).collect()
    }

    /// Returns the tokens with which it was made; `None` if one of them is gone.
    fn made_by(&self, store: &Store, epoch: &Known) -> Result<Option<Vec<Token>>, StoreError> {
        let mut makers = Vec::with_capacity(self.makers.len());
        for key in self.maker_keys() {
            match store.valid::<Token>(&key)? {
                Some(maker) if epoch.includes(&maker.value) => makers.push(maker.value),
                _ => return Ok(None),
            }
        }
        Ok(Some(makers))
    }

    /// Returns whether it exists for its user: it and its makers belong to the user's current epoch. It may
    /// have expired.
    ///
    /// # Errors
    /// If the state is corrupt.
    pub fn is_kept(&self, store: &Store, epoch: &Known) -> Result<bool, StoreError> {
        Ok(epoch.includes(self) && self.made_by(store, epoch)?.is_some())
    }
}

/// Returns the tokens that were made with `token`.
///
/// # Errors
/// If the state is corrupt.
pub fn made_with(store: &Store, token: &Token) -> Result<Vec<Record<Token>>, StoreError> {
    store.select::<Token>(&format!("{}/", token.uid), |other| other.makers.contains(&token.id))
}

/// Creates a new value for a token, and its hash. The value contains the UID and id of the token, and a secret.
///
/// # Errors
/// If random bytes are unavailable.
pub fn new_value(uid: i32, id: uuid::Uuid) -> std::io::Result<(String, String)> {
    let mut bytes = Vec::with_capacity(39);
    bytes.extend(uid.to_be_bytes());
    bytes.extend(id.as_bytes());
    bytes.extend(random::<19>()?);
    let value = URL_SAFE_NO_PAD.encode(&bytes);
    let hash = hash(&value);
    Ok((value, hash))
}

fn hash(value: &str) -> String {
    hex(blake3::hash(value.as_bytes()).as_bytes())
}

/// Returns the token with this value if it exists and has not expired.
///
/// # Errors
/// If the state is corrupt.
pub fn by_value(store: &Store, value: &str) -> Result<Option<Live>, StoreError> {
    let Ok(bytes) = URL_SAFE_NO_PAD.decode(value) else { return Ok(None) };
    let (Some(uid), Some(id)) = (bytes.first_chunk::<4>(), bytes.get(4..20)) else { return Ok(None) };
    if bytes.len() != 39 {
        return Ok(None);
    }
    let Ok(id) = uuid::Uuid::from_slice(id) else { return Ok(None) };
    let Some(mut token) = store.valid::<Token>(&format!("{}/{id}", i32::from_be_bytes(*uid)))? else { return Ok(None) };
    if !bool::from(hash(value).as_bytes().ct_eq(token.value.hash.as_bytes())) {
        return Ok(None);
    }
    let epoch = Known::of(store, token.value.uid)?;
    let Some(makers) = token.value.made_by(store, &epoch)? else { return Ok(None) };
    let has_ended = makers.iter().chain([&token.value]).any(|token| token.expires.is_past());
    if has_ended || !epoch.includes(&token.value) {
        return Ok(None);
    }
    token.value.capabilities.retain(|capability| makers.iter().all(|maker| maker.allows(capability)));
    Ok(Some(Live { token, epoch: epoch.as_read() }))
}

/// A valid token.
#[derive(Debug)]
pub struct Live {
    /// The token, with the capabilities that it grants now.
    pub token: Record<Token>,
    /// The epoch to which it belongs; `None` if its user has had none yet.
    pub epoch: Option<AsRead>,
}

/// Returns the token with this id, regardless of its owner.
///
/// # Errors
/// If the state is corrupt.
pub fn by_id(store: &Store, id: uuid::Uuid) -> Result<Option<Record<Token>>, StoreError> {
    store.first::<Token>("", |token| token.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_52_characters_that_need_no_quoting() {
        let (value, hashed) = new_value(7, uuid::Uuid::new_v4()).expect("value");
        assert_eq!((value.len(), hashed), (52, hash(&value)));
        assert!(value.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    }
}
