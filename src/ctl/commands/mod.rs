//! The commands, with a file or folder for each: arguments, request, texts and JSON.
//!
//! No command uses another one. What several of them need is in [`crate::client`], [`crate::backups`],
//! [`crate::checks`] and [`crate::process`].

mod audit;
mod authority;
mod backup;
mod barrier;
mod bench;
mod blobs;
mod cert;
mod collections;
mod compact;
mod completions;
mod datastore;
mod debug_bundle;
mod delete;
mod demo;
mod diff;
mod doctor;
mod dump_record;
mod enroll;
mod export;
mod generations;
mod get;
pub(crate) mod headings;
mod history;
mod import;
mod import_gravwell;
mod join;
mod lb;
mod ls;
mod man;
mod members;
mod outbox;
mod presence;
mod put;
mod quarantine;
mod recover;
mod repair;
mod replica;
mod restore;
mod revert;
mod revoke;
mod segments;
mod status;
mod tail;
mod top;
mod verify;
mod webserver;

use std::path::PathBuf;

use clap::Subcommand;

use crate::error::CtlResult;
use crate::process::logging;

/// Commands of `gravwell-logctl`. Their help texts are those of their arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    Status(status::Status),
    Members(members::Members),
    Presence(presence::Presence),
    Collections(collections::Collections),
    Segments(segments::Segments),
    Get(get::Get),
    Ls(ls::Ls),
    Tail(tail::Tail),
    History(history::History),
    DumpRecord(dump_record::DumpRecord),
    Export(export::Export),
    Verify(verify::Verify),
    Repair(repair::Repair),
    Recover(recover::Recover),
    Audit(audit::Audit),
    Authority(authority::Authority),
    Quarantine(quarantine::Quarantine),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Revert(revert::Revert),
    Diff(diff::Diff),
    Generations(generations::Generations),
    Compact(compact::Compact),
    Blobs(blobs::Blobs),
    Put(put::Put),
    Delete(delete::Delete),
    Import(import::Import),
    ImportGravwell(import_gravwell::ImportGravwell),
    Barrier(barrier::Barrier),
    Enroll(enroll::Enroll),
    Join(join::Join),
    Revoke(revoke::Revoke),
    Replica(replica::Replica),
    #[command(hide = true)]
    Datastore(datastore::Datastore),
    #[command(hide = true)]
    Webserver(webserver::Webserver),
    Outbox(outbox::Outbox),
    Doctor(doctor::Doctor),
    Top(top::Top),
    DebugBundle(debug_bundle::DebugBundle),
    Lb(lb::Lb),
    Cert(cert::Cert),
    Demo(demo::Demo),
    Bench(bench::Bench),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Command {
    /// Returns whether the command may write to the data directory. The others inspect the machine, or write elsewhere.
    pub(crate) fn opens_data(&self) -> bool {
        !matches!(
            self,
            Command::Bench(_)
                | Command::Cert(_)
                | Command::Completions(_)
                | Command::DebugBundle(_)
                | Command::Demo(_)
                | Command::Doctor(_)
                | Command::Lb(_)
                | Command::Man(_)
        )
    }

    /// Runs the command on a data directory. Manual pages and completions are made from the whole command line, `program`.
    pub(crate) async fn run(self, data_dir: PathBuf, json: bool, program: fn() -> clap::Command) -> CtlResult {
        let dir = data_dir.as_path();
        // Services start their own logging, by their configuration.
        if !matches!(self, Command::Datastore(_) | Command::Webserver(_) | Command::Replica(_)) {
            logging::start_for_command();
        }
        match self {
            Command::Status(_) => status::run(dir, json).await,
            Command::Members(_) => members::run(dir, json).await,
            Command::Presence(_) => presence::run(dir, json).await,
            Command::Collections(_) => collections::run(dir, json).await,
            Command::Segments(_) => segments::run(dir, json).await,
            Command::Get(args) => get::run(dir, json, args).await,
            Command::Ls(args) => ls::run(dir, json, args).await,
            Command::Tail(args) => tail::run(dir, json, args).await,
            Command::History(args) => history::run(dir, json, args).await,
            Command::DumpRecord(args) => dump_record::run(dir, json, args).await,
            Command::Export(args) => export::run(dir, args).await,
            Command::Verify(_) => verify::run(dir, json).await,
            Command::Repair(args) => repair::run(dir, json, args).await,
            Command::Recover(args) => recover::run(dir, json, args).await,
            Command::Audit(args) => audit::run(dir, json, args).await,
            Command::Authority(args) => authority::run(dir, json, args).await,
            Command::Quarantine(args) => quarantine::run(dir, json, args).await,
            Command::Backup(args) => backup::run(dir, json, args).await,
            Command::Restore(args) => restore::run(dir, json, args).await,
            Command::Revert(args) => revert::run(dir, json, args).await,
            Command::Diff(args) => diff::run(dir, json, args).await,
            Command::Generations(args) => generations::run(dir, json, args).await,
            Command::Compact(args) => compact::run(dir, json, args).await,
            Command::Blobs(args) => blobs::run(dir, json, args).await,
            Command::Put(args) => put::run(dir, json, args).await,
            Command::Delete(args) => delete::run(dir, json, args).await,
            Command::Import(args) => import::run(dir, json, args).await,
            Command::ImportGravwell(args) => import_gravwell::run(dir, json, args).await,
            Command::Barrier(args) => barrier::run(dir, json, args).await,
            Command::Enroll(args) => enroll::run(dir, json, args).await,
            Command::Join(args) => join::run(dir, json, args).await,
            Command::Revoke(args) => revoke::run(dir, json, args).await,
            Command::Replica(args) => replica::run(dir, args).await,
            Command::Datastore(args) => datastore::run(data_dir, args).await,
            Command::Webserver(args) => webserver::run(data_dir, args).await,
            Command::Outbox(args) => outbox::run(dir, json, args).await,
            Command::Doctor(args) => doctor::run(dir, json, args).await,
            Command::Top(args) => top::run(dir, json, args).await,
            Command::DebugBundle(args) => debug_bundle::run(dir, json, args).await,
            Command::Lb(args) => lb::run(dir, json, args).await,
            Command::Cert(args) => cert::run(json, args),
            Command::Demo(args) => demo::run(args).await,
            Command::Bench(args) => bench::run(json, args).await,
            Command::Completions(args) => completions::run(&args, program()),
            Command::Man(args) => man::run(json, &args, program()),
        }
    }
}
