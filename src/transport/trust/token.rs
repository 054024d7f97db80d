//! The one-time token with which a process joins: addresses of the datastore, fingerprint of its CA, and a secret.
//!
//! Text form: `gw1.`, then base64url of a postcard body and the first 4 bytes of its BLAKE3 hash, so that a truncated
//! token can be distinguished from an invalid one.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::Fingerprint;
use gravwell_model::MemberName;

const PREFIX: &str = "gw1.";
/// Maximum length of a text that is decoded.
const TEXT_BYTES_MAX: usize = 8 << 10;
const CHECK_BYTES: usize = 4;

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Addresses of the datastore, `host:port`, to be tried in this order.
    pub addresses: Vec<String>,
    /// Fingerprint of the datastore's CA.
    pub authority: Fingerprint,
    /// Proves the invitation.
    pub secret: [u8; 32],
    /// Name of the invited member.
    pub name: MemberName,
    /// Expiry time in milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

impl Token {
    /// Creates a token from its parts.
    #[must_use]
    pub fn new(
        addresses: Vec<String>,
        authority: Fingerprint,
        secret: [u8; 32],
        name: MemberName,
        expires_ms: u64,
    ) -> Token {
        Token { addresses, authority, secret, name, expires_ms }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}, secret hidden)", self.name)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = postcard::to_stdvec(self).map_err(|_| fmt::Error)?;
        let check = blake3::hash(&bytes);
        bytes.extend_from_slice(&check.as_bytes()[..CHECK_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Error for invalid token text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    /// The text is not a token.
    #[error("not a join token, which starts with `{PREFIX}`; create one with `gravwell-logctl enroll`")]
    NotAToken,
    /// The token was truncated or altered.
    #[error("the join token is incomplete or altered; copy it again")]
    Altered,
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Token, BadToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadToken::NotAToken)?;
        if body.len() > TEXT_BYTES_MAX {
            return Err(BadToken::Altered);
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken::Altered)?;
        let split = bytes.len().checked_sub(CHECK_BYTES).ok_or(BadToken::Altered)?;
        let (body, check) = bytes.split_at(split);
        if blake3::hash(body).as_bytes()[..CHECK_BYTES] != *check {
            return Err(BadToken::Altered);
        }
        postcard::from_bytes(body).map_err(|_| BadToken::Altered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_text_and_notices_every_change() {
        let name = MemberName::new("web1").expect("name");
        let token = Token::new(vec!["127.0.0.1:9405".into()], [7; 32], [9; 32], name, 5);
        let text = token.to_string();
        assert_eq!(text.parse::<Token>(), Ok(token.clone()));
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<Token>().is_err());
        }
        for at in 4..text.len() {
            let mut altered = text.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            assert_ne!(String::from_utf8(altered).expect("text").parse::<Token>(), Ok(token.clone()));
        }
        assert!(!format!("{token:?}").contains("9, 9"), "secrets stay out of logs");
    }
}
