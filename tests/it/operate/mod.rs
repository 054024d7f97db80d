//! Integration with the operator's environment: the service manager, balancers, packages, the guide.

mod balancers;
mod guide;
mod json;
mod observe;
mod readme;
mod service;

use std::process::Command;

/// Returns whether a program is installed on the host. Without it a test is skipped with a message, or fails if all tools
/// are required.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().expect("sh");
    if found.status.success() {
        return true;
    }
    assert!(!crate::fleet::tools_are_required(), "{program} is not installed");
    eprintln!("SKIPPED: {program} is not installed");
    false
}
