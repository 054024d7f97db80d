//! Behavior of a process when its environment fails: output, addresses, descriptors; and permissions of its files.

mod addresses;
mod data_dir;
mod descriptors;
mod files;
mod output;
