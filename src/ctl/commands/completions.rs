//! `completions`: prints a completion script.

use crate::client::output::Output;
use crate::error::CtlResult;

/// Print a completion script for a shell.
#[derive(Debug, clap::Args)]
pub struct Completions {
    /// Shell to generate the script for.
    pub shell: clap_complete::Shell,
}

/// Prints the script for all commands of `program`.
pub(super) fn run(args: &Completions, mut program: clap::Command) -> CtlResult {
    let (mut script, mut output) = (Vec::new(), Output::new());
    clap_complete::generate(args.shell, &mut program, "gravwell-logctl", &mut script);
    output.bytes(&script)?;
    output.flush()
}
