//! Newtypes for every number and name that could otherwise be mistaken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Place of a transaction in its log: 1 is the first, 0 means "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The position before the first transaction.
    pub const ZERO: Seq = Seq(0);

    /// The sequence that follows this one.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// How many transactions lie between `earlier` (exclusive) and `self` (inclusive).
    #[must_use]
    pub fn since(self, earlier: Seq) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Raised by one at every restore or recovery of a log; starts at 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u32);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number that an origin gives to its transactions: 1, 2, 3, … without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OriginCounter(pub u64);

impl OriginCounter {
    /// The counter that follows this one.
    #[must_use]
    pub fn next(self) -> OriginCounter {
        OriginCounter(self.0 + 1)
    }
}

impl fmt::Display for OriginCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; 16]>::deserialize(deserializer).map($name)
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                let bytes = hex_bytes::<16>(text).ok_or_else(|| BadId { text: text.into() })?;
                Ok(Self(bytes))
            }
        }
    };
}

id128! {
    /// Random identity of a log, made once when the log is created.
    LogId
}

id128! {
    /// Source of transactions: one life of one replica process. A process that opens a directory again
    /// takes a new origin, so a copied or restored directory can never reuse a counter.
    Origin
}

/// Name of a chunk of contents: the BLAKE3 hash of its raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// The name of these bytes.
    #[must_use]
    pub fn of(raw: &[u8]) -> ChunkId {
        ChunkId(*blake3::hash(raw).as_bytes())
    }
}

impl Serialize for ChunkId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for ChunkId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(ChunkId)
        }
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChunkId {
    type Err = BadChunkId;

    fn from_str(text: &str) -> Result<Self, BadChunkId> {
        hex_bytes::<32>(text).map(ChunkId).ok_or_else(|| BadChunkId { text: text.into() })
    }
}

/// A name of a chunk that is not 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not the name of a chunk: expected 64 hexadecimal digits")]
pub struct BadChunkId {
    text: String,
}

/// An identifier that is not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an identifier: expected 32 hexadecimal digits")]
pub struct BadId {
    text: String,
}

/// Parses exactly `N` bytes of lower- or upper-case hexadecimal.
#[must_use]
pub fn hex_bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(out)
}

/// Name of an enrolled process: 1 to 63 characters of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct MemberName(String);

impl MemberName {
    /// Longest name, in bytes.
    pub const BYTES_MAX: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// When the name is empty, too long or holds a character outside the set above.
    pub fn new(name: impl Into<String>) -> Result<MemberName, BadMemberName> {
        let name = name.into();
        let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let all_allowed = name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b));
        if starts_well && all_allowed && name.len() <= Self::BYTES_MAX {
            Ok(MemberName(name))
        } else {
            Err(BadMemberName { name })
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for MemberName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        MemberName::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl FromStr for MemberName {
    type Err = BadMemberName;

    fn from_str(text: &str) -> Result<Self, BadMemberName> {
        MemberName::new(text)
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name that cannot be a member's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{name}` cannot be a member's name: use 1 to 63 of a-z A-Z 0-9 . _ - and start with a letter or digit")]
pub struct BadMemberName {
    name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_text() {
        let id = LogId([0xab; 16]);
        assert_eq!(id.to_string().parse::<LogId>(), Ok(id));
        assert!("ab".parse::<LogId>().is_err());
        assert!("zz".repeat(16).parse::<LogId>().is_err());
    }

    #[test]
    fn names_of_chunks_survive_text_and_bytes() {
        let id = ChunkId::of(b"contents");
        assert_eq!(id.to_string().parse::<ChunkId>(), Ok(id));
        assert!("ab".parse::<ChunkId>().is_err());
        let bytes = postcard::to_allocvec(&id).expect("encodes");
        assert_eq!((bytes.len(), postcard::from_bytes(&bytes)), (32, Ok(id)));
        let text = serde_json::to_string(&id).expect("encodes");
        assert_eq!(serde_json::from_str::<ChunkId>(&text).expect("decodes"), id);
    }

    #[test]
    fn member_names_are_checked() {
        assert!(MemberName::new("web-1.example").is_ok());
        for bad in ["", "-x", "a b", "a/b", &"x".repeat(64)] {
            assert!(MemberName::new(bad).is_err(), "{bad}");
        }
    }
}
