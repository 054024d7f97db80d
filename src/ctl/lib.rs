//! Commands of `gravwell-logctl`, one file per group, with a common way to access a data directory with or without a
//! running process.

// Both panic if the output cannot be written; see `src/runtime/telemetry/output.rs`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

/// Prints a message on standard error; a failed write is ignored.
macro_rules! complain {
    ($($arguments:tt)*) => {{
        let text = format!($($arguments)*);
        // The message may contain text from other processes.
        let lines: Vec<_> = text.split('\n').map(::gravwell_model::printable::escape).collect();
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", lines.join("\n")));
    }};
}

pub mod args;
pub mod audit;
mod audit_syslog;
mod authority;
mod authority_rotation;
mod backup;
pub mod backup_args;
mod backup_copy;
mod backup_location;
mod backup_restore;
pub mod balance;
mod bench;
mod bench_push;
mod bench_raw;
mod bench_resource;
mod blobs;
mod bounded_listener;
mod cert;
mod client;
pub mod datastore;
mod debug_bundle;
mod demo;
mod demo_client;
mod demo_table;
mod diff;
mod doctor;
mod exporter;
mod fleet;
mod generations;
mod import;
mod import_gravwell;
mod import_lines;
mod import_record;
mod inspect;
mod known_backup_locations;
mod lb;
mod lb_args;
mod logging;
mod maintain;
mod man;
mod members;
mod monitor;
mod outbox;
mod outbox_reapply;
mod output;
pub mod process;
mod quarantine;
mod quarantine_names;
mod recover;
mod recover_registry;
mod repair;
mod replica;
mod rest;
mod restored_access;
mod revert;
mod rotation;
pub mod run_as_owner;
mod sighup;
mod top;
mod transact;
mod udp_proxy;
pub mod webserver;
mod write;

use std::process::ExitCode;

use args::{Args, Command};

/// Failed command: error message and exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CtlError {
    /// Cause and remedy; if empty, nothing is printed.
    pub message: String,
    /// 1 rejected or failed, 2 usage error, 3 damage or divergence.
    pub exit: u8,
}

impl CtlError {
    fn new(message: impl std::fmt::Display) -> CtlError {
        CtlError { message: message.to_string(), exit: 1 }
    }
}

type CtlResult = Result<(), CtlError>;

/// Runs a command to completion and returns its exit code.
pub async fn run(args: Args) -> ExitCode {
    match dispatch(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.message.is_empty() {
                complain!("gravwell-logctl: {}", error.message);
            }
            ExitCode::from(error.exit)
        }
    }
}

async fn dispatch(args: Args) -> CtlResult {
    let Args { data_dir, json, command } = args;
    let dir = data_dir.as_path();
    // Services start their own logging, by their configuration.
    if !matches!(command, Command::Datastore(_) | Command::Webserver(_) | Command::Replica(_)) {
        logging::start_for_command();
    }
    match command {
        Command::Status => inspect::status(dir, json).await,
        Command::Members => inspect::members(dir, json).await,
        Command::Presence => inspect::presence(dir, json).await,
        Command::Collections => inspect::collections(dir, json).await,
        Command::Segments => inspect::segments(dir, json).await,
        Command::Get { collection, key, at } => inspect::get(dir, json, collection, key, at).await,
        Command::Ls { collection, prefix, limit } => inspect::ls(dir, json, collection, prefix, limit).await,
        Command::Tail { from, to, follow } => inspect::tail(dir, json, from, to, follow).await,
        Command::History { collection, key } => inspect::history(dir, json, collection, key).await,
        Command::DumpRecord { seq } => inspect::record(dir, json, seq).await,
        Command::Export { at, with_secrets } => inspect::export(dir, at, with_secrets).await,
        Command::Verify => maintain::verify(dir, json).await,
        Command::Repair(repair) => repair::run(dir, json, repair).await,
        Command::Recover(recover) => recover::run(dir, json, recover).await,
        Command::Audit { action } => audit::run(dir, json, action).await,
        Command::Authority { action } => authority::run(dir, json, action).await,
        Command::Quarantine { action } => quarantine::run(dir, json, action).await,
        Command::Backup { action } => backup::run(dir, json, action).await,
        Command::Restore(restore) => backup_restore::restore(dir, json, restore).await,
        Command::Revert { collection, key, to, dry_run } => revert::run(dir, json, collection, key, to, dry_run).await,
        Command::Diff { from, to, values } => diff::run(dir, json, from, to, values).await,
        Command::ImportGravwell(import) => import_gravwell::run(dir, json, import).await,
        Command::Generations { action } => generations::run(dir, json, action).await,
        Command::Compact { dry_run, history_ops } => maintain::compact(dir, json, dry_run, history_ops).await,
        Command::Blobs { action } => blobs::run(dir, json, action).await,
        Command::Put(put) => write::put(dir, json, put).await,
        Command::Delete { collection, key, no_wait } => write::delete(dir, json, collection, key, no_wait).await,
        Command::Import(import) => import::run(dir, json, import).await,
        Command::Barrier { seq, timeout } => inspect::barrier(dir, json, seq, timeout).await,
        Command::Enroll(enroll) => members::enroll(dir, json, enroll).await,
        Command::Join { token } => members::join(dir, json, &token).await,
        Command::Revoke { name, remove } => members::revoke(dir, json, name, remove).await,
        Command::Replica(replica) => replica::run(dir, replica).await,
        Command::Datastore(mut datastore) => {
            datastore.data_dir = Some(data_dir);
            datastore::run(datastore).await.map_err(|error| CtlError { exit: error.exit(), message: error.to_string() })
        }
        Command::Webserver(mut webserver) => {
            webserver.data_dir = Some(data_dir);
            webserver::run(webserver).await.map_err(|error| CtlError { exit: error.exit(), message: error.to_string() })
        }
        Command::Outbox { action, with_secrets } => outbox::run(dir, json, action, with_secrets).await,
        Command::Doctor(doctor) => doctor::run(dir, json, doctor).await,
        Command::Lb(lb) => lb::run(dir, json, lb).await,
        Command::Cert { action } => cert::run(json, action),
        Command::Demo(demo) => demo::run(demo).await,
        Command::Bench(bench) => bench::run(json, bench).await,
        Command::DebugBundle(bundle) => debug_bundle::run(dir, json, bundle).await,
        Command::Top(top) => top::run(dir, json, top).await,
        Command::Man { out } => man::run(json, &out),
        Command::Completions { shell } => {
            let mut command = <Args as clap::CommandFactory>::command();
            let (mut script, mut output) = (Vec::new(), output::Output::new());
            clap_complete::generate(shell, &mut command, "gravwell-logctl", &mut script);
            output.bytes(&script)?;
            output.flush()
        }
    }
}
