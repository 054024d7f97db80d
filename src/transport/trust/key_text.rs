//! Text form of 32-byte random keys, for operators to write down: a prefix, then base64url of the key and the first 4
//! bytes of its BLAKE3 hash, so that a typing error can be distinguished from another key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::TrustError;

const CHECK_BYTES: usize = 4;
/// Maximum length of the text after the prefix that is decoded.
const BODY_BYTES_MAX: usize = 100;
/// Bytes of a key's name, which is shown in hexadecimal.
const NAME_BYTES: usize = 8;

pub(super) fn random() -> Result<[u8; 32], TrustError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| TrustError::Refused(error.to_string()))?;
    Ok(bytes)
}

pub(super) fn encode(prefix: &str, key: &[u8; 32]) -> String {
    let mut bytes = key.to_vec();
    bytes.extend_from_slice(&blake3::hash(key).as_bytes()[..CHECK_BYTES]);
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// Decodes a key. `kind` describes the expected key in error messages.
pub(super) fn decode(prefix: &str, kind: &str, text: &str) -> Result<[u8; 32], TrustError> {
    let wrong = || TrustError::Refused(format!("not a complete {kind}, which starts with `{prefix}`; copy it again"));
    let body = text.trim().strip_prefix(prefix).filter(|body| body.len() < BODY_BYTES_MAX).ok_or_else(wrong)?;
    let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| wrong())?;
    let (key, check) = bytes.split_at_checked(32).ok_or_else(wrong)?;
    let key: [u8; 32] = key.try_into().map_err(|_| wrong())?;
    if blake3::hash(&key).as_bytes()[..CHECK_BYTES] == *check { Ok(key) } else { Err(wrong()) }
}

/// Returns the name of a key, which does not reveal it. `context` separates the kinds of keys.
pub(super) fn name(context: &str, key: &[u8; 32]) -> String {
    super::hex(&blake3::derive_key(context, key)[..NAME_BYTES])
}
