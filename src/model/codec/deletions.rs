//! Encoding of recent deletions for the wire. Limits are checked before memory is allocated.
//!
//! Postcard of [`Summary`], then of the number of (collection, key, sequence) rows that it states, ordered by sequence,
//! then the CRC-32C of all preceding bytes, 4 bytes, little-endian.

use crate::deletions::{Deletions, Named, ROWS_MAX, Summary};
use crate::{Collection, Key, Seq};

/// Encodes the deletions.
#[must_use]
pub fn encode(deletions: &Deletions) -> Vec<u8> {
    let unsized_free = "invariant: encoding names and numbers into memory cannot fail";
    let mut out = postcard::to_stdvec(&deletions.summary()).expect(unsized_free);
    for (seq, (collection, key)) in deletions.rows() {
        out = postcard::to_extend(&(collection, key, seq), out).expect(unsized_free);
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Inverse of [`encode`].
///
/// # Errors
/// Returns a description of the problem, for example more rows than are ever kept, or rows that contradict the summary.
pub fn decode(bytes: &[u8]) -> Result<Deletions, String> {
    let text = |error: postcard::Error| error.to_string();
    let Some((bytes, crc)) = bytes.split_last_chunk::<4>() else { return Err("truncated deletions".into()) };
    if u32::from_le_bytes(*crc) != crc32c::crc32c(bytes) {
        return Err("the checksum does not match".into());
    }
    let (summary, mut rest) = postcard::take_from_bytes::<Summary>(bytes).map_err(text)?;
    if summary.rows > ROWS_MAX as u64 {
        return Err(format!("{} deletions are announced, but at most {ROWS_MAX} are kept", summary.rows));
    }
    let mut found = Deletions::after(summary.complete_after);
    for _ in 0..summary.rows {
        let (row, after) = postcard::take_from_bytes::<(Collection, Key, Seq)>(rest).map_err(text)?;
        rest = after;
        let (collection, key, seq) = row;
        found.restore(Named::from((collection, key)), seq)?;
    }
    match rest.len() {
        0 if found.summary() == summary => Ok(found),
        0 => Err("the deletions do not match their summary".into()),
        bytes => Err(format!("there are {bytes} more bytes after the deletions")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Deletions {
        let mut some = Deletions::after(Seq(300));
        for n in 0..40u64 {
            let name = (Collection::new(format!("c{}", n % 3)).expect("name"), Key::new(format!("k{n}")).expect("key"));
            some.restore(name, Seq(301 + n / 2)).expect("a row");
        }
        some
    }

    #[test]
    fn deletions_come_as_they_were_sent() {
        for sent in [Deletions::default(), Deletions::after(Seq(7)), some()] {
            assert_eq!(decode(&encode(&sent)), Ok(sent));
        }
    }

    #[test]
    fn p10_every_flipped_bit_of_deletions_is_noticed() {
        let bytes = encode(&some());
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&damaged).is_err(), "bit {bit}");
        }
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode(&[&bytes[..], b"x"].concat()).is_err());
    }

    #[test]
    fn p15_more_deletions_than_are_kept_are_refused_unread() {
        let summary = Summary { complete_after: Seq(1), rows: ROWS_MAX as u64 + 1, digest: crate::Digest::ZERO };
        let mut bytes = postcard::to_stdvec(&summary).expect("encodes");
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        let refused = decode(&bytes);
        assert!(refused.is_err_and(|reason| reason.contains("at most")));
    }
}
