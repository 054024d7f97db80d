//! The world outside: files, clock, entropy, and a process's claim to its data directory.

pub mod data_dir;
