//! Interfaces to the environment: files, the clock, randomness. The modules above use these traits, so that tests can
//! simulate a faulty disk or a clock.

pub mod aside;
pub mod background;
pub mod clock;
pub mod damage;
pub mod data_dir;
pub mod entropy;
pub mod fs;
pub mod memory;
pub mod modes;
pub mod process;
pub mod quota;
pub mod real;
pub mod reserve;
pub mod scratch;
pub mod shares;
pub mod summed;
pub mod view_fs;
pub mod vital;
pub mod wait;
pub mod watch;

pub use clock::{Clock, SystemClock};
pub use entropy::{Entropy, SystemEntropy};
pub use fs::{File, Fs, Lock};
pub use memory::MemoryFs;
pub use real::RealFs;
