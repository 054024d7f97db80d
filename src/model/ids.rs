//! Newtypes for all numbers and names that could be confused with each other.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Position of a transaction in its log. The first one has 1; 0 is the position before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The position before the first transaction.
    pub const ZERO: Seq = Seq(0);

    /// Returns the next sequence.
    #[must_use]
    pub fn next(self) -> Seq {
        Seq(self.0 + 1)
    }

    /// Returns the number of transactions between `earlier` (exclusive) and `self` (inclusive).
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

/// Number of a generation of a log. A new log has generation 1; a restore or recovery starts a generation with a
/// greater number.
///
/// At most [`Generation::MAX`], so that every JSON reader parses it exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u64", try_from = "u64")]
pub struct Generation(pub u64);

impl Generation {
    /// Greatest number: 2^53 - 1, the largest integer up to which floating-point JSON readers are exact.
    pub const MAX: Generation = Generation((1 << 53) - 1);
    /// Number of low bits that are random. The bits above are milliseconds since 1970-01-01 UTC.
    const RANDOM_BITS: u32 = 11;
    /// 2100-01-01 in milliseconds. A later time indicates a wrong clock.
    const CLOCK_MAX_MS: u64 = 4_102_444_800_000;
    /// Greatest step above a known number.
    const STEP_MAX: u64 = 1 << 20;

    /// Returns the number of a generation that starts at `now_ms` and is greater than `known`; `None` if there is none.
    ///
    /// Independent recoveries get different numbers, because they start in different milliseconds or draw different
    /// random bits. If the clock is behind the known number, a random step above it distinguishes them.
    #[must_use]
    pub fn after(known: Generation, now_ms: u64, random: u64) -> Option<Generation> {
        let clock_ms = if now_ms < Self::CLOCK_MAX_MS { now_ms } else { 0 };
        let by_clock = (clock_ms << Self::RANDOM_BITS) | (random & ((1 << Self::RANDOM_BITS) - 1));
        let by_step = known.0.checked_add(1 + random % Self::STEP_MAX)?;
        let next = if clock_ms > 0 && by_clock > known.0 { by_clock } else { by_step };
        Generation::try_from(next).ok()
    }

    /// Returns whether a correct clock can produce this number. A greater one results from a wrong clock or is a false claim.
    #[must_use]
    pub fn is_plausible(self) -> bool {
        self.0 < Self::CLOCK_MAX_MS << Self::RANDOM_BITS
    }

    /// Returns the number if it has at most 32 bits, as in the first version of the formats.
    #[must_use]
    pub fn narrow(self) -> Option<u32> {
        u32::try_from(self.0).ok()
    }
}

impl From<Generation> for u64 {
    fn from(generation: Generation) -> u64 {
        generation.0
    }
}

impl TryFrom<u64> for Generation {
    type Error = BadGeneration;

    fn try_from(number: u64) -> Result<Generation, BadGeneration> {
        let generation = Generation(number);
        if generation <= Self::MAX { Ok(generation) } else { Err(BadGeneration { number }) }
    }
}

impl FromStr for Generation {
    type Err = BadGeneration;

    fn from_str(text: &str) -> Result<Self, BadGeneration> {
        let number: u64 = text.parse().map_err(|_| BadGeneration { number: u64::MAX })?;
        Generation::try_from(number)
    }
}

/// A number that exceeds [`Generation::MAX`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{number} is not a generation; use at most {max}", max = Generation::MAX)]
pub struct BadGeneration {
    number: u64,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number that an origin assigns to its transactions: 1, 2, 3, … without gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OriginCounter(pub u64);

impl OriginCounter {
    /// Returns the next counter.
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
    /// Random identity of a log, generated when the log is created.
    LogId
}

id128! {
    /// Source of transactions: one incarnation of a replica process. A process that opens a directory again uses a new
    /// origin, so a copied or restored directory never reuses a counter.
    Origin
}

/// ID of a chunk of a blob: the BLAKE3 hash of its raw bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// Computes the ID of these bytes.
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

/// Text that is not a chunk ID of 64 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a chunk ID; expected 64 hexadecimal digits")]
pub struct BadChunkId {
    text: String,
}

/// Text that is not an identifier of 32 hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not an identifier; expected 32 hexadecimal digits")]
pub struct BadId {
    text: String,
}

/// Parses exactly `N` bytes of lower-case or upper-case hexadecimal.
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
    /// Maximum length in bytes.
    pub const BYTES_MAX: usize = 63;

    /// Validates a name.
    ///
    /// # Errors
    /// If the name is empty, too long or contains a character outside the set above.
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

    /// Returns the placeholder for an unknown member, used in a log that was rebuilt from a state.
    #[must_use]
    pub fn unknown() -> MemberName {
        MemberName(UNKNOWN.into())
    }

    /// Returns whether this is [`MemberName::unknown`].
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.0 == UNKNOWN
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const UNKNOWN: &str = "unknown";

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

/// Text that is not a valid member name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{name}` is not a valid member name; use 1 to 63 of a-z A-Z 0-9 . _ - and start with a letter or digit")]
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
    fn p05_generations_that_start_apart_get_different_numbers() {
        let after = |known, now_ms, random| Generation::after(known, now_ms, random).expect("a number");
        let (first, now) = (Generation(1), 1_795_000_000_000);
        assert!(first < after(first, now, u64::MAX) && after(first, now, u64::MAX) < after(first, now + 1, 0));
        assert_ne!(after(first, now, 7), after(first, now, 8), "within one millisecond");
        let narrow = Generation(1_795_000_000);
        assert!(narrow < after(narrow, now, 0), "32-bit numbers were seconds");
        let late = after(first, now, 0);
        for wrong in [0, 1, now, u64::MAX] {
            assert!(after(late, wrong, 0) > late && after(late, wrong, 5) != after(late, wrong, 6), "{wrong}");
        }
        assert_ne!(after(first, 0, 5), after(first, 0, 6), "without a clock");
        // A clock decades ahead, and the return to the right one, leave room for more recoveries than there will ever be.
        let ahead = after(late, Generation::CLOCK_MAX_MS - 1, u64::MAX);
        assert!(ahead.is_plausible());
        let mut last = ahead;
        for random in 0..1000 {
            let next = after(last, now, u64::MAX - random);
            assert!(next > last && next < Generation::MAX);
            last = next;
        }
        assert!((Generation::MAX.0 - last.0) / Generation::STEP_MAX > 500_000_000);
        assert_eq!(Generation::after(Generation::MAX, now, 0), None, "no number is reused");
        assert!(!Generation::MAX.is_plausible());
    }

    #[test]
    fn generations_are_exact_in_json_and_bounded_everywhere() {
        let text = serde_json::to_string(&Generation::MAX).expect("encodes");
        assert_eq!(text.parse::<f64>().map(|number| format!("{number:.0}")), Ok(text.clone()));
        assert_eq!(serde_json::from_str::<Generation>(&text).expect("decodes"), Generation::MAX);
        let beyond = Generation::MAX.0 + 1;
        assert!(serde_json::from_str::<Generation>(&beyond.to_string()).is_err());
        let bytes = postcard::to_allocvec(&beyond).expect("encodes");
        assert!(postcard::from_bytes::<Generation>(&bytes).is_err());
        assert!(beyond.to_string().parse::<Generation>().is_err() && "x".parse::<Generation>().is_err());
        // Encoding from the time when a generation had 32 bits.
        let narrow = postcard::to_allocvec(&1_795_000_000_u32).expect("encodes");
        assert_eq!(postcard::from_bytes(&narrow), Ok(Generation(1_795_000_000)));
    }

    #[test]
    fn member_names_are_checked() {
        assert!(MemberName::new("web-1.example").is_ok());
        for bad in ["", "-x", "a b", "a/b", &"x".repeat(64)] {
            assert!(MemberName::new(bad).is_err(), "{bad}");
        }
    }
}
