//! Shared parts of the tests: entry points of the fuzz targets, and histories of a log.
#![cfg(feature = "testkit")]

pub mod fuzzing;
pub mod logkit;
