//! Where contents are cut: FastCDC (2020), so that a change moves only the cuts beside it.
//!
//! Cut points are part of the format in all but name: two versions that cut differently share nothing. A test holds
//! them to golden values.

use fastcdc::v2020::FastCDC;

/// No chunk but the last of a content is shorter: what is kept and sent for every chunk costs more the shorter it is.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;
/// What chunks of varied contents come to. A change costs about one chunk (less with a [delta](super::delta)), and
/// 1 TiB of contents has 17 million of them.
pub const CHUNK_BYTES_AVERAGE: usize = 64 << 10;
/// No chunk is longer: everything that holds chunks in memory counts with this.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Bytes gathered before cutting: whole chunks are found in them with little copying.
const GATHERED_BYTES: usize = 1 << 20;

const _: () = assert!(GATHERED_BYTES >= 2 * CHUNK_BYTES_MAX);

/// Cuts a stream of bytes into chunks, in bounded memory. The cuts depend on the bytes alone, not on how they arrive.
#[derive(Debug, Default)]
pub struct Cutter {
    gathered: Vec<u8>,
}

impl Cutter {
    /// A cutter at the start of a content.
    #[must_use]
    pub fn new() -> Self {
        Cutter { gathered: Vec::new() }
    }

    /// Takes the next bytes and gives every chunk that is certain to `out`.
    ///
    /// # Errors
    /// The first one of `out`; the cutter must not be used any more then.
    pub fn push<E>(&mut self, mut bytes: &[u8], out: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = GATHERED_BYTES - self.gathered.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(now);
            bytes = rest;
            // With less behind it than the longest chunk a cut may still move.
            let cut = cut_while(&self.gathered, CHUNK_BYTES_MAX, out)?;
            self.gathered.drain(..cut);
        }
        Ok(())
    }

    /// Gives what is left at the end of the content.
    ///
    /// # Errors
    /// The first one of `out`.
    pub fn finish<E>(self, mut out: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        cut_while(&self.gathered, 1, &mut out).map(|_| ())
    }
}

/// Cuts chunks off the front as long as there are `least` bytes; tells how many are cut off.
fn cut_while<E>(bytes: &[u8], least: usize, out: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<usize, E> {
    let finder = FastCDC::new(bytes, CHUNK_BYTES_MIN, CHUNK_BYTES_AVERAGE, CHUNK_BYTES_MAX);
    let mut at = 0;
    while bytes.len() - at >= least {
        let (_, end) = finder.cut(at, bytes.len() - at);
        out(&bytes[at..end])?;
        at = end;
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::env::memory::SmallRandom;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let mut random = SmallRandom(seed);
        (0..bytes.div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).take(bytes).collect()
    }

    /// Lengths of the chunks of contents that arrive in pieces of these lengths, over and over.
    fn lengths(contents: &[u8], pieces: &[usize]) -> Vec<usize> {
        let (mut found, mut joined) = (Vec::new(), Vec::new());
        let mut out = |chunk: &[u8]| {
            found.push(chunk.len());
            joined.extend_from_slice(chunk);
            Ok::<(), Infallible>(())
        };
        let (mut cutter, mut rest) = (Cutter::new(), contents);
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            cutter.push(now, &mut out).expect("never fails");
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        cutter.finish(&mut out).expect("never fails");
        assert_eq!(joined, contents, "nothing is lost or added");
        found
    }

    #[test]
    fn cut_points_are_those_of_every_version() {
        let expected =
            [31171, 38807, 128500, 79518, 159009, 45867, 78194, 29481, 23786, 64711, 113199, 119548, 75947, 60838];
        assert_eq!(lengths(&noise(1 << 20, 7), &[1 << 20]), expected);
        // Without a place to cut the longest chunk is taken.
        assert_eq!(lengths(&vec![0; 600 << 10], &[1 << 20]), [256 << 10, 256 << 10, 88 << 10]);
        assert_eq!(lengths(&[], &[1]), [0usize; 0]);
        assert_eq!(lengths(b"short", &[1]), [5]);
    }

    #[test]
    fn chunks_keep_their_bounds_and_average() {
        let found = lengths(&noise(32 << 20, 3), &[1 << 20]);
        let (last, others) = found.split_last().expect("some");
        assert!(others.iter().all(|bytes| (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(bytes)) && *last > 0);
        let average = (32 << 20) / found.len();
        assert!((48 << 10..96 << 10).contains(&average), "{average}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn cuts_do_not_depend_on_how_bytes_arrive(
            seed in any::<u64>(),
            bytes in 0usize..2_500_000,
            pieces in proptest::collection::vec(1usize..700_000, 1..5),
        ) {
            let contents = noise(bytes, seed);
            prop_assert_eq!(lengths(&contents, &pieces), lengths(&contents, &[bytes.max(1)]));
        }
    }
}
