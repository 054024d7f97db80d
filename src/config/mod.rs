//! Configuration of the processes.

pub mod datastore;
