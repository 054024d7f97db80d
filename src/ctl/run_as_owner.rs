//! Runs commands given by root as the owner of the data directory: a file owned by root would keep the
//! service from starting.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command as Process;

use super::args::{Args, Command};

/// Re-executes this program as the owner of the data directory if root runs it and does not own the directory. Standard
/// input and output are inherited; files named on the command line must be accessible to the owner.
///
/// # Errors
/// If the program cannot be started again. On success, this function does not return.
pub fn act_as_owner(args: &Args) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() || !opens_data(&args.command) {
        return Ok(());
    }
    let Ok(owner) = std::fs::metadata(&args.data_dir) else { return Ok(()) };
    if owner.uid() == 0 {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut again = Process::new(program);
    again.args(std::env::args_os().skip(1)).uid(owner.uid()).gid(owner.gid());
    Err(format!("cannot run as user {}, the owner of {}: {}", owner.uid(), args.data_dir.display(), again.exec()))
}

/// Returns whether a command may write to the data directory. The others inspect the machine, or write elsewhere.
fn opens_data(command: &Command) -> bool {
    !matches!(
        command,
        Command::Bench(_)
            | Command::Cert { .. }
            | Command::Completions { .. }
            | Command::DebugBundle(_)
            | Command::Demo(_)
            | Command::Doctor(_)
            | Command::Lb(_)
            | Command::Man { .. }
    )
}
