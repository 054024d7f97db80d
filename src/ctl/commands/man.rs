//! `man`: manual pages of all programs and commands, generated from their help texts.

use std::path::PathBuf;

use clap::{Args as _, Command};

use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};
use crate::process::datastore::DatastoreArgs;
use crate::process::webserver::WebserverArgs;

/// Write the manual pages of all programs and commands.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// Directory to write the pages to.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Writes `NAME.1` and a page for each command to a directory and prints the file names.
pub(super) fn run(json: bool, args: &Man, program: Command) -> CtlResult {
    let out = args.out.as_path();
    let named = |error: std::io::Error| CtlError::new(format!("{}: {error}", out.display()));
    std::fs::create_dir_all(out).map_err(named)?;
    for program in programs(program) {
        clap_mangen::generate_to(program, out).map_err(named)?;
    }
    let entries = std::fs::read_dir(out).map_err(named)?.filter_map(Result::ok);
    let mut pages: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    pages.sort();
    Output::new().list(json, &pages, &["PAGE"], |page| vec![page.clone()])
}

fn programs(tool: Command) -> [Command; 3] {
    let with_directory = |name: &'static str, default: &'static str, command: Command| {
        let help = format!("Data directory [default: as configured, or {default}]");
        let argument = clap::Arg::new("data-dir").long("data-dir").value_name("DIR").help(help);
        command.name(name).version(env!("CARGO_PKG_VERSION")).arg(argument)
    };
    let datastore = DatastoreArgs::augment_args(Command::new("gravwell_datastore"));
    let webserver = WebserverArgs::augment_args(Command::new("gravwell_webserver"));
    [
        with_directory("gravwell_datastore", gravwell_config::datastore::DEFAULT_DATA_DIR, datastore),
        with_directory("gravwell_webserver", gravwell_config::webserver::DEFAULT_DATA_DIR, webserver),
        tool,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_that_says_what_it_does() {
        let temp = tempfile::tempdir().expect("temp dir");
        let tool = <crate::args::Args as clap::CommandFactory>::command();
        run(true, &Man { out: temp.path().to_owned() }, tool).expect("writes");
        for page in
            ["gravwell_datastore.1", "gravwell_webserver.1", "gravwell-logctl-cert-server.1", "gravwell-logctl-lb.1"]
        {
            let text = std::fs::read_to_string(temp.path().join(page)).expect(page);
            assert!(text.contains(".SH NAME") && text.contains(".SH OPTIONS"), "{page}: {text}");
        }
        let hidden = std::fs::read_dir(temp.path()).expect("lists").filter_map(Result::ok);
        assert!(hidden.count() > 25);
    }
}
