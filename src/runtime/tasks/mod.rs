//! Tasks and threads on tokio's runtime: supervision, shares of users, threads for vital and for low-priority work.

pub mod blocking;
pub mod low_priority;
pub mod shares;
pub mod supervisor;
pub mod vital;
