//! Real processes, real QUIC: one file per journey, named by the promises that it shows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod backup;
mod compaction;
mod convergence;
mod crash;
mod damage;
mod evidence;
mod faults;
mod fleet;
mod forks;
mod full_disk;
mod health;
mod hostile;
mod hosts;
mod interrupted;
mod load;
mod lost_state;
mod model;
mod offline;
mod operate;
mod peers;
mod process;
mod proxy;
mod reading;
mod recover;
mod rehearsal;
mod repair;
mod resources;
mod revoked;
mod running_damage;
mod snapshots;
mod start_damage;
mod state_damage;
mod trust;
mod verdicts;
mod web;
