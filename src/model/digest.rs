//! Order-independent digest of a state: the sum, modulo 2^256, of one BLAKE3 hash per row.
//!
//! Adding a row and removing it are inverse and commutative operations, so the digest is updated in constant time per
//! operation (the "AdHash" construction of Bellare and Micciancio, 1997). Equal states have equal digests, independent
//! of their history.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::{Origin, Seq, hex_bytes};
use super::redaction::Withheld;
use super::txn::{Collection, Key, OriginRow};

/// A sum of row hashes, as four little-endian limbs.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Digest([u64; 4]);

impl Digest {
    /// Digest of the empty state.
    pub const ZERO: Digest = Digest([0; 4]);

    /// Returns the contribution of an object.
    #[must_use]
    pub fn of_object(collection: &Collection, key: &Key, version: Seq, value: &[u8]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        let names = (collection.as_str(), key.as_str());
        hasher.update(b"object\0");
        hasher.update(&(names.0.len() as u64).to_le_bytes()).update(names.0.as_bytes());
        hasher.update(&(names.1.len() as u64).to_le_bytes()).update(names.1.as_bytes());
        hasher.update(&version.0.to_le_bytes()).update(value);
        Digest::from_hash(&hasher)
    }

    /// Returns the contribution of an origin's row.
    #[must_use]
    pub fn of_origin(origin: Origin, row: &OriginRow) -> Digest {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"origin\0").update(&origin.0);
        hasher.update(&row.last_counter.0.to_le_bytes()).update(&row.last_seq.0.to_le_bytes());
        for (counter, seq, reason) in &row.rejected {
            let text = reason.to_string();
            hasher.update(&counter.0.to_le_bytes()).update(&seq.0.to_le_bytes());
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        Digest::from_hash(&hasher)
    }

    fn from_hash(hasher: &blake3::Hasher) -> Digest {
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Returns the digest as 32 little-endian bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        for (chunk, limb) in out.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&limb.to_le_bytes());
        }
        out
    }

    /// Inverse of [`Digest::to_bytes`].
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        let mut limbs = [0; 4];
        for (limb, chunk) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
            *limb = chunk.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        Digest(limbs)
    }

    /// Returns the sum of both digests.
    #[must_use]
    pub fn plus(self, other: Digest) -> Digest {
        let mut out = [0; 4];
        let mut carry = false;
        for (i, limb) in out.iter_mut().enumerate() {
            let (sum, over_a) = self.0[i].overflowing_add(other.0[i]);
            let (sum, over_b) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = over_a || over_b;
        }
        Digest(out)
    }

    /// Returns the difference of both digests.
    #[must_use]
    pub fn minus(self, other: Digest) -> Digest {
        let mut out = [0; 4];
        let mut borrow = false;
        for (i, limb) in out.iter_mut().enumerate() {
            let (rest, under_a) = self.0[i].overflowing_sub(other.0[i]);
            let (rest, under_b) = rest.overflowing_sub(u64::from(borrow));
            *limb = rest;
            borrow = under_a || under_b;
        }
        Digest(out)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        hex_bytes(text).map(Digest::from_bytes).ok_or(BadDigest)
    }
}

/// Text that is not a digest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a digest: expected 64 hexadecimal digits")]
pub struct BadDigest;

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.to_bytes().serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Digest::from_bytes)
        }
    }
}

/// Count, size and digest of a collection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionSum {
    /// Number of objects.
    pub objects: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Sum of the contributions of its objects, see [`Digest::of_object`].
    pub digest: Digest,
}

/// Digests of a whole state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestSet {
    /// Sums by collection. A collection without objects is removed from the map.
    pub collections: BTreeMap<Collection, CollectionSum>,
    /// Sum of the contributions of all origins, see [`Digest::of_origin`].
    pub origins: Digest,
}

impl DigestSet {
    /// Returns the digest that bookmarks contain: the sum over all collections and origins.
    #[must_use]
    pub fn overall(&self) -> Digest {
        self.collections.values().fold(self.origins, |sum, collection| sum.plus(collection.digest))
    }

    /// Adds an object.
    pub fn add_object(&mut self, collection: &Collection, key: &Key, version: Seq, value: &[u8]) {
        let contribution = Digest::of_object(collection, key, version, value);
        self.add(collection, (key.len() + value.len()) as u64, contribution);
    }

    /// Adds an object of which the value is withheld.
    pub fn add_withheld(&mut self, object: &Withheld) {
        self.add(&object.collection, (object.key.len() as u64).saturating_add(object.value_bytes), object.contribution);
    }

    fn add(&mut self, collection: &Collection, bytes: u64, contribution: Digest) {
        if !self.collections.contains_key(collection) {
            self.collections.insert(collection.clone(), CollectionSum::default());
        }
        if let Some(sum) = self.collections.get_mut(collection) {
            sum.objects += 1;
            sum.bytes = sum.bytes.saturating_add(bytes);
            sum.digest = sum.digest.plus(contribution);
        }
    }

    /// Removes an object that was added before.
    pub fn remove_object(&mut self, collection: &Collection, key: &Key, version: Seq, value: &[u8]) {
        let contribution = Digest::of_object(collection, key, version, value);
        self.remove(collection, (key.len() + value.len()) as u64, contribution);
    }

    /// Removes an object that was added with [`DigestSet::add_withheld`].
    pub fn remove_withheld(&mut self, object: &Withheld) {
        let bytes = (object.key.len() as u64).saturating_add(object.value_bytes);
        self.remove(&object.collection, bytes, object.contribution);
    }

    fn remove(&mut self, collection: &Collection, bytes: u64, contribution: Digest) {
        let Some(sum) = self.collections.get_mut(collection) else { return };
        sum.objects = sum.objects.saturating_sub(1);
        sum.bytes = sum.bytes.saturating_sub(bytes);
        sum.digest = sum.digest.minus(contribution);
        if sum.objects == 0 {
            self.collections.remove(collection);
        }
    }

    /// Replaces the row of an origin. `None` means that the row was or becomes absent.
    pub fn replace_origin(&mut self, origin: Origin, old: Option<&OriginRow>, new: Option<&OriginRow>) {
        if let Some(row) = old {
            self.origins = self.origins.minus(Digest::of_origin(origin, row));
        }
        if let Some(row) = new {
            self.origins = self.origins.plus(Digest::of_origin(origin, row));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest() -> impl Strategy<Value = Digest> {
        any::<[u64; 4]>().prop_map(Digest)
    }

    proptest! {
        #[test]
        fn sums_commute_and_invert(a in digest(), b in digest(), c in digest()) {
            prop_assert_eq!(a.plus(b).plus(c), c.plus(a).plus(b));
            prop_assert_eq!(a.plus(b).minus(b), a);
            prop_assert_eq!(a.minus(b).plus(b), a);
            prop_assert_eq!(Digest::from_bytes(a.to_bytes()), a);
            prop_assert_eq!(a.to_string().parse::<Digest>(), Ok(a));
        }
    }

    #[test]
    fn fields_cannot_slide_into_each_other() {
        let object = |c: &str, k: &str, v: &[u8]| {
            Digest::of_object(&Collection::new(c).expect("name"), &Key::new(k).expect("key"), Seq(1), v)
        };
        assert_ne!(object("ab", "c", b"d"), object("a", "bc", b"d"));
        assert_ne!(object("a", "b", b"cd"), object("a", "bc", b"d"));
    }

    #[test]
    fn p09_empty_again_is_zero_again() {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        let mut set = DigestSet::default();
        set.add_object(&collection, &key, Seq(1), b"v");
        assert_ne!(set.overall(), Digest::ZERO);
        set.remove_object(&collection, &key, Seq(1), b"v");
        assert_eq!(set, DigestSet::default());
    }
}
