//! Runs commands given by root as the owner of the data directory: a file owned by root would keep the
//! service from starting.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Re-executes this program as the owner of the data directory if root runs it and does not own the directory. Standard
/// input and output are inherited; files named on the command line must be accessible to the owner.
///
/// # Errors
/// If the program cannot be started again. On success, this function does not return.
pub fn act_as_owner(dir: &Path) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let Ok(owner) = std::fs::metadata(dir) else { return Ok(()) };
    if owner.uid() == 0 {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut again = Command::new(program);
    again.args(std::env::args_os().skip(1)).uid(owner.uid()).gid(owner.gid());
    Err(format!("cannot run as user {}, the owner of {}: {}", owner.uid(), dir.display(), again.exec()))
}
