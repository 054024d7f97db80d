//! Randomness for identifiers.

use std::io;

/// Source of random bytes.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with random data.
    ///
    /// # Errors
    /// If the source cannot provide random bytes.
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The operating system's random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
    }
}
