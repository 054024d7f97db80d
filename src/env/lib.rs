//! Interfaces to the environment: files, the clock, randomness. The modules above use these traits, so that tests can
//! simulate a faulty disk or a clock.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod checksummed_text;
pub mod clock;
pub mod damage;
pub mod data_dir;
pub mod entropy;
pub mod file_modes;
pub mod fs;
#[cfg(any(test, feature = "testing"))]
pub mod memory_fs;
pub mod process;
pub mod quota;
pub mod real_fs;
pub mod reserve;
pub mod scratch;
pub mod view_fs;
pub mod wait;

pub use clock::{Clock, SystemClock};
pub use entropy::{Entropy, SystemEntropy};
pub use fs::{File, Fs, Lock};
#[cfg(any(test, feature = "testing"))]
pub use memory_fs::MemoryFs;
pub use real_fs::RealFs;
