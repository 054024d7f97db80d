//! Encrypted streams: XChaCha20-Poly1305 in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, 2015), under a password or a key. The key is derived
//! from a password with Argon2id.
//!
//! ```text
//! under a password:  magic (16 bytes) | salt (16) | nonce (19) | frames: up to 64 KiB, each followed by its tag (16)
//! under a key:                                      nonce (19) | frames
//! ```
//!
//! The last frame is marked as such by its encryption, so truncation is detected, like any changed byte.

use std::io::{self, Read, Write};

use aead_stream::{DecryptorBE32, EncryptorBE32};
use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::XChaCha20Poly1305;

/// First bytes of an encrypted stream under a password.
pub const MAGIC: &[u8; 16] = b"gravbak sealed 1";
const FRAME_BYTES: usize = 64 << 10;
const TAG_BYTES: usize = 16;
const MEMORY_KIB: u32 = 64 * 1024;

/// Returns the length of a stream under a key that contains `bytes` bytes.
#[must_use]
pub fn sealed_length(bytes: u64) -> u64 {
    19 + bytes + bytes.div_ceil(FRAME_BYTES as u64).max(1) * TAG_BYTES as u64
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Derives a key from a password. This is slow and needs 64 MiB of memory, so that passwords cannot be tried quickly.
///
/// # Errors
/// If there is not enough memory.
pub fn key_of(password: &str, salt: &[u8; 16]) -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    let params = Params::new(MEMORY_KIB, 3, 1, None).map_err(|error| io::Error::other(error.to_string()))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let made = argon2.hash_password_into(password.as_bytes(), salt, &mut key);
    made.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(key)
}

/// Encrypting writer.
pub struct EncryptingWriter<W: Write> {
    inner: W,
    stream: Option<EncryptorBE32<XChaCha20Poly1305>>,
    buffer: Vec<u8>,
}

impl<W: Write> EncryptingWriter<W> {
    /// Writes the header of a stream under a password.
    ///
    /// # Errors
    /// If there is no randomness or not enough memory, or writing fails.
    pub fn new(mut inner: W, password: &str) -> io::Result<EncryptingWriter<W>> {
        let (salt, nonce) = (random::<16>()?, random::<19>()?);
        inner.write_all(MAGIC)?;
        inner.write_all(&salt)?;
        inner.write_all(&nonce)?;
        let stream = EncryptorBE32::new(&key_of(password, &salt)?.into(), &nonce.into());
        Ok(EncryptingWriter { inner, stream: Some(stream), buffer: Vec::with_capacity(FRAME_BYTES) })
    }

    /// Writes the header of a stream under a key.
    ///
    /// # Errors
    /// If there is no randomness, or writing fails.
    pub fn with_key(mut inner: W, key: &[u8; 32]) -> io::Result<EncryptingWriter<W>> {
        let nonce = random::<19>()?;
        inner.write_all(&nonce)?;
        let stream = EncryptorBE32::new(key.into(), &nonce.into());
        Ok(EncryptingWriter { inner, stream: Some(stream), buffer: Vec::with_capacity(FRAME_BYTES) })
    }

    /// Writes the last frame.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self) -> io::Result<W> {
        let stream = self.stream.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let sealed = stream.encrypt_last(self.buffer.as_slice()).map_err(|_| io::Error::other("encryption failed"))?;
        self.inner.write_all(&sealed)?;
        self.inner.flush()?;
        Ok(self.inner)
    }
}

impl<W: Write> Write for EncryptingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full frame is kept until more bytes follow, because the last one is encrypted differently.
        if self.buffer.len() == FRAME_BYTES {
            let stream = self.stream.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            let sealed =
                stream.encrypt_next(self.buffer.as_slice()).map_err(|_| io::Error::other("encryption failed"))?;
            self.inner.write_all(&sealed)?;
            self.buffer.clear();
        }
        let taken = bytes.len().min(FRAME_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Decrypting reader.
pub struct DecryptingReader<R: Read> {
    inner: R,
    stream: Option<DecryptorBE32<XChaCha20Poly1305>>,
    /// The next encrypted frame, read ahead to determine whether the current one is the last.
    ahead: Vec<u8>,
    open: Vec<u8>,
    at: usize,
}

fn wrong() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "wrong password, or the file is corrupt or truncated")
}

impl<R: Read> DecryptingReader<R> {
    /// Reads the header after [`MAGIC`].
    ///
    /// # Errors
    /// If the header is truncated, or there is not enough memory.
    pub fn new(mut inner: R, password: &str) -> io::Result<DecryptingReader<R>> {
        let (mut salt, mut nonce) = ([0; 16], [0; 19]);
        inner.read_exact(&mut salt)?;
        inner.read_exact(&mut nonce)?;
        let stream = DecryptorBE32::new(&key_of(password, &salt)?.into(), &nonce.into());
        let ahead = read_frame(&mut inner)?;
        Ok(DecryptingReader { inner, stream: Some(stream), ahead, open: Vec::new(), at: 0 })
    }

    /// Reads the header of a stream under a key.
    ///
    /// # Errors
    /// If the header is truncated.
    pub fn with_key(mut inner: R, key: &[u8; 32]) -> io::Result<DecryptingReader<R>> {
        let mut nonce = [0; 19];
        inner.read_exact(&mut nonce)?;
        let stream = DecryptorBE32::new(key.into(), &nonce.into());
        let ahead = read_frame(&mut inner)?;
        Ok(DecryptingReader { inner, stream: Some(stream), ahead, open: Vec::new(), at: 0 })
    }
}

fn read_frame(inner: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut frame = Vec::new();
    inner.take((FRAME_BYTES + TAG_BYTES) as u64).read_to_end(&mut frame)?;
    Ok(frame)
}

impl<R: Read> Read for DecryptingReader<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.at == self.open.len() && self.stream.is_some() {
            let next = read_frame(&mut self.inner)?;
            let sealed = std::mem::replace(&mut self.ahead, next);
            self.at = 0;
            if self.ahead.is_empty() {
                let stream = self.stream.take().ok_or_else(wrong)?;
                self.open = stream.decrypt_last(sealed.as_slice()).map_err(|_| wrong())?;
            } else {
                let stream = self.stream.as_mut().ok_or_else(wrong)?;
                self.open = stream.decrypt_next(sealed.as_slice()).map_err(|_| wrong())?;
            }
        }
        let given = to.len().min(self.open.len() - self.at);
        to[..given].copy_from_slice(&self.open[self.at..self.at + given]);
        self.at += given;
        Ok(given)
    }
}

/// Encrypts a short byte string under a key.
///
/// # Errors
/// If there is no randomness.
pub fn seal_bytes(key: &[u8; 32], bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut sealer = EncryptingWriter::with_key(Vec::with_capacity(bytes.len() + FRAME_BYTES / 64), key)?;
    sealer.write_all(bytes)?;
    sealer.finish()
}

/// Decrypts the output of [`seal_bytes`].
///
/// # Errors
/// If the key is wrong, or a byte was changed.
pub fn open_bytes(key: &[u8; 32], sealed: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(sealed.len());
    DecryptingReader::with_key(sealed, key)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(bytes: &[u8]) -> Vec<u8> {
        let mut sealer = EncryptingWriter::new(Vec::new(), "secret").expect("begins");
        sealer.write_all(bytes).expect("writes");
        sealer.finish().expect("finishes")
    }

    fn open(sealed: &[u8], password: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        DecryptingReader::new(&sealed[MAGIC.len()..], password)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn an_encrypted_stream_round_trips_and_changes_are_detected() {
        for size in [0, 1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES] {
            let bytes: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).expect("byte")).collect();
            let sealed = seal(&bytes);
            assert_eq!(open(&sealed, "secret").expect("opens"), bytes, "{size}");
            let under_key = seal_bytes(&[3; 32], &bytes).expect("seals");
            assert_eq!(under_key.len() as u64, sealed_length(bytes.len() as u64), "{size}");
            assert!(open(&sealed, "Secret").is_err());
            assert!(open(&sealed[..sealed.len() - 1], "secret").is_err(), "{size}: truncated");
        }
        let mut sealed = seal(&[7; 2 * FRAME_BYTES]);
        // The last frame is missing.
        assert!(open(&sealed[..sealed.len() - FRAME_BYTES - TAG_BYTES], "secret").is_err());
        for at in [16, 32, 60, 70_000] {
            sealed[at] ^= 1;
            assert!(open(&sealed, "secret").is_err(), "byte {at}");
            sealed[at] ^= 1;
        }
    }

    #[test]
    fn a_key_opens_what_it_sealed_and_no_other_does() {
        for size in [0, 10, FRAME_BYTES, FRAME_BYTES + 1] {
            let bytes = vec![5; size];
            let sealed = seal_bytes(&[1; 32], &bytes).expect("seals");
            assert_eq!(open_bytes(&[1; 32], &sealed).expect("opens"), bytes);
            assert!(open_bytes(&[2; 32], &sealed).is_err());
            assert!(open_bytes(&[1; 32], &sealed[..sealed.len() - 1]).is_err());
            assert!(open_bytes(&[1; 32], &sealed[..10]).is_err());
        }
    }
}
