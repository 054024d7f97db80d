//! Compression of chunks, where it saves space.

use std::sync::{Mutex, PoisonError};

use zstd::bulk::{Compressor, Decompressor};

use super::format::Encoding;

/// Zstandard level: on text, level 1 is faster than most disks.
const LEVEL: i32 = 1;
/// Length of the sample that is compressed first: most incompressible blobs are detected here, at a sixteenth of the cost.
const SAMPLE_BYTES: usize = 4 << 10;
/// Maximum number of cached contexts, about the number of threads that write at the same time.
const KEPT_MAX: usize = 8;

/// Caches Zstandard contexts for reuse, because they are large.
#[derive(Default)]
pub(super) struct Codec {
    compressors: Mutex<Vec<Compressor<'static>>>,
    decompressors: Mutex<Vec<Decompressor<'static>>>,
}

fn take<T>(kept: &Mutex<Vec<T>>) -> Option<T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

fn give_back<T>(kept: &Mutex<Vec<T>>, one: T) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < KEPT_MAX {
        kept.push(one);
    }
}

impl Codec {
    /// Appends the stored form of a chunk to `out`: compressed if that saves at least an eighth, raw otherwise.
    pub fn store(&self, raw: &[u8], out: &mut Vec<u8>) -> Encoding {
        let start = out.len();
        let mut compressor = match take(&self.compressors).map_or_else(|| Compressor::new(LEVEL), Ok) {
            Ok(compressor) => compressor,
            // Without memory for a compressor, the chunk is stored raw.
            Err(_) => {
                out.extend_from_slice(raw);
                return Encoding::Raw;
            }
        };
        let mut squeeze = |bytes: &[u8], out: &mut Vec<u8>| {
            out.resize(start + bytes.len() - bytes.len() / 8, 0);
            // Compression fails if the buffer is too small, that is, if too little would be saved.
            let stored = compressor.compress_to_buffer(bytes, &mut out[start..]);
            stored.map(|length| out.truncate(start + length)).is_ok()
        };
        let shrinks = (raw.len() <= 2 * SAMPLE_BYTES || squeeze(&raw[..SAMPLE_BYTES], out)) && squeeze(raw, out);
        give_back(&self.compressors, compressor);
        if shrinks {
            return Encoding::Zstd;
        }
        out.truncate(start);
        out.extend_from_slice(raw);
        Encoding::Raw
    }

    /// Inverse of [`Codec::store`]. Returns the raw bytes if they differ from the stored ones, or a description of the error.
    pub fn restore(&self, encoding: Encoding, stored: &[u8], raw_bytes: usize) -> Result<Option<Vec<u8>>, String> {
        let (raw, found) = match encoding {
            Encoding::Raw => (None, stored.len()),
            Encoding::Zstd => {
                let decompressor = take(&self.decompressors).map_or_else(Decompressor::new, Ok);
                let mut decompressor = decompressor.map_err(|error| error.to_string())?;
                let mut raw = vec![0; raw_bytes];
                let outcome = decompressor.decompress_to_buffer(stored, &mut raw[..]);
                give_back(&self.decompressors, decompressor);
                (Some(raw), outcome.map_err(|error| format!("cannot be decompressed: {error}"))?)
            }
        };
        if found == raw_bytes { Ok(raw) } else { Err(format!("{found} bytes instead of {raw_bytes}")) }
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codec")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_env::memory_fs::SmallRandom;

    #[test]
    fn compressible_chunks_are_compressed_and_restored() {
        let codec = Codec::default();
        let mut random = SmallRandom(1);
        let noise: Vec<u8> = (0..40_000).map(|_| random.next_u64() as u8).collect();
        let text = b"a row of a table, much like the next one\n".repeat(1000);
        let short = b"short";
        for (raw, expected) in
            [(&noise[..], Encoding::Raw), (&text, Encoding::Zstd), (short, Encoding::Raw), (&[], Encoding::Raw)]
        {
            let mut out = b"before".to_vec();
            assert_eq!(codec.store(raw, &mut out), expected);
            let stored = out.split_off(6);
            assert_eq!(out, b"before");
            assert!(stored.len() <= raw.len());
            let back = codec.restore(expected, &stored, raw.len()).expect("restores");
            assert_eq!(back.as_deref().unwrap_or(&stored), raw);
            if !raw.is_empty() {
                assert!(codec.restore(expected, &stored, raw.len() - 1).is_err(), "bounded");
            }
        }
    }
}
