//! What an operator has around the processes: the service manager, balancers, packages, the guide.

mod balancers;
mod guide;
mod observe;
mod service;

use std::process::Command;

/// Whether a program of the host is there. Without it a test is skipped visibly, unless `GRAVWELL_TOOLS=required`, which
/// continuous integration sets.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("sh");
    if found.status.success() {
        return true;
    }
    assert!(std::env::var("GRAVWELL_TOOLS").as_deref() != Ok("required"), "{program} is not installed");
    eprintln!("SKIPPED: {program} is not installed");
    false
}
