//! What a process does when what surrounds it fails: output, addresses, descriptors; and what it leaves to others.

mod addresses;
mod data_dir;
mod descriptors;
mod files;
mod output;
