//! Interfaces to the environment: files, the clock, randomness. The modules above use these traits, so that tests can
//! simulate a faulty disk or a clock.

pub mod blocking;
pub mod checksummed_text;
pub mod clock;
pub mod damage;
pub mod data_dir;
pub mod entropy;
pub mod file_modes;
pub mod fs;
pub mod low_priority;
pub mod memory_fs;
pub mod process;
pub mod quota;
pub mod real_fs;
pub mod reserve;
pub mod scratch;
pub mod shares;
pub mod supervisor;
pub mod view_fs;
pub mod vital;
pub mod wait;

pub use clock::{Clock, SystemClock};
pub use entropy::{Entropy, SystemEntropy};
pub use fs::{File, Fs, Lock};
pub use memory_fs::MemoryFs;
pub use real_fs::RealFs;
