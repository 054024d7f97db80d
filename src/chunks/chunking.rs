//! Content-defined chunking of blobs with FastCDC (2020): a change affects only the chunk boundaries near it.
//!
//! Chunk boundaries are effectively part of the format: versions that cut differently cannot share chunks. A test
//! compares them with golden values.

use fastcdc::v2020::FastCDC;

/// Minimum chunk length, except for the last chunk of a blob. The cost per chunk of storing and sending weighs more the
/// shorter a chunk is.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;
/// Target average chunk length for varied data. A change costs about one chunk (less with a [delta](super::delta)), and
/// 1 TiB of blobs has 17 million chunks.
pub const CHUNK_BYTES_AVERAGE: usize = 64 << 10;
/// Maximum chunk length. All buffers for chunks are dimensioned for it.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Size of the input buffer. It holds several chunks, so that few bytes are copied.
const GATHERED_BYTES: usize = 1 << 20;

const _: () = assert!(GATHERED_BYTES >= 2 * CHUNK_BYTES_MAX);

/// Splits a byte stream into chunks with bounded memory. The boundaries depend only on the bytes, not on how the stream
/// is divided into calls.
#[derive(Debug, Default)]
pub struct Chunker {
    gathered: Vec<u8>,
}

impl Chunker {
    /// Creates a cutter for a new blob.
    #[must_use]
    pub fn new() -> Self {
        Chunker { gathered: Vec::new() }
    }

    /// Appends `bytes` and passes every complete chunk to `out`.
    ///
    /// # Errors
    /// Returns the first error of `out`. The cutter must not be used afterwards.
    pub fn push<E>(&mut self, mut bytes: &[u8], out: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = GATHERED_BYTES - self.gathered.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.gathered.extend_from_slice(now);
            bytes = rest;
            // With fewer bytes after it than the longest chunk, a boundary could still move.
            let cut = cut_while(&self.gathered, CHUNK_BYTES_MAX, out)?;
            self.gathered.drain(..cut);
        }
        Ok(())
    }

    /// Passes the remaining bytes of the blob to `out`.
    ///
    /// # Errors
    /// Returns the first error of `out`.
    pub fn finish<E>(self, mut out: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        cut_while(&self.gathered, 1, &mut out).map(|_| ())
    }
}

/// Cuts chunks off the front while at least `least` bytes remain; returns their total length.
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
    use gravwell_env::memory_fs::SmallRandom;

    fn noise(bytes: usize, seed: u64) -> Vec<u8> {
        let mut random = SmallRandom(seed);
        (0..bytes.div_ceil(8)).flat_map(|_| random.next_u64().to_le_bytes()).take(bytes).collect()
    }

    /// Returns the chunk lengths of a blob that arrives in pieces of the given lengths, repeated cyclically.
    fn lengths(contents: &[u8], pieces: &[usize]) -> Vec<usize> {
        let (mut found, mut joined) = (Vec::new(), Vec::new());
        let mut out = |chunk: &[u8]| {
            found.push(chunk.len());
            joined.extend_from_slice(chunk);
            Ok::<(), Infallible>(())
        };
        let (mut cutter, mut rest) = (Chunker::new(), contents);
        for piece in pieces.iter().cycle() {
            let (now, later) = rest.split_at((*piece).min(rest.len()));
            cutter.push(now, &mut out).expect("never fails");
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        cutter.finish(&mut out).expect("never fails");
        assert_eq!(joined, contents, "the parts join to the contents");
        found
    }

    #[test]
    fn cut_points_are_those_of_every_version() {
        let expected =
            [31171, 38807, 128500, 79518, 159009, 45867, 78194, 29481, 23786, 64711, 113199, 119548, 75947, 60838];
        assert_eq!(lengths(&noise(1 << 20, 7), &[1 << 20]), expected);
        // If there is no boundary, chunks have the maximum length.
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
