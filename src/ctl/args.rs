//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::authority_rotation::RotateAction;
use super::backup_args::{BackupAction, BackupRestore};
use super::quarantine::QuarantineAction;
use crate::balance::{Choice, Format, Hop};
use crate::model::{Collection, Key, MemberName, Origin, OriginCounter, Seq, TxnId};
use crate::trust::RegisterChoice;

/// Inspect, verify, compact and repair a replicated operation log, and administer its members.
///
/// Commands work on the data directory of a datastore or of a replica; those about the log, its members and the audit on
/// a datastore's. When a process runs there, the command asks that process through its local socket; when none runs, the command opens the files itself. Root acts as the
/// owner of the directory, so that no file in it comes to belong to root.
///
/// Exit codes: 0 fine; 1 refused or failed; 2 usage; 3 damage or divergence found.
#[derive(Debug, Parser)]
#[command(name = "gravwell-logctl", version, max_term_width = 100)]
pub struct Args {
    /// Data directory of a datastore or replica; the configuration file is not asked.
    #[arg(
        long,
        global = true,
        env = "GRAVWELL_DATA_DIR",
        default_value = "/opt/gravwell/datastore",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,
    /// Print JSON: one object, or one object a line.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Position, head, digest, verdict, lag, outbox and health. Exits with 1 when something needs attention, with the
    /// remedy, and with 3 when histories have diverged.
    Status,
    /// The enrolled members, their positions and who holds the floor back.
    Members,
    /// Who is connected now, with External-Addr and applied sequence.
    Presence,
    /// The collections with their number of objects, size and digest.
    Collections,
    /// The segment files of the log.
    Segments,
    /// Print one object. Exits with 1 when it is absent.
    Get {
        /// Its collection.
        collection: Collection,
        /// Its key.
        key: Key,
        /// As of this sequence instead of now.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        at: Option<Seq>,
    },
    /// List the objects of a collection in key order.
    Ls {
        /// The collection.
        collection: Collection,
        /// Only keys that start so.
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        /// Print at most this many.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Print the log, one transaction a line; deletions appear as such.
    Tail {
        /// First sequence to print; default: the oldest that is served.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        from: Option<Seq>,
        /// Last sequence to print.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Option<Seq>,
        /// Go on with new transactions until interrupted.
        #[arg(long, short)]
        follow: bool,
    },
    /// Print every change of one object that the log still holds.
    History {
        /// Its collection.
        collection: Collection,
        /// Its key.
        key: Key,
    },
    /// Print one record of the log with its frame, as it lies on disk.
    DumpRecord {
        /// Its sequence.
        #[arg(value_parser = seq)]
        seq: Seq,
    },
    /// Print the whole state as sorted JSON lines, byte-identical on every member at the same sequence.
    Export {
        /// As of this sequence instead of now (datastore only).
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        at: Option<Seq>,
        /// Print what webservers keep secret, too: hashes of passwords and tokens, logins.
        #[arg(long)]
        with_secrets: bool,
    },
    /// Check every checksum, the chain and the digests; on a running datastore also what its members report.
    Verify,
    /// Rebuild the damaged log of a stopped datastore from a stopped member.
    ///
    /// The member's state becomes the base of a new log, and every intact record of the old log that follows it is
    /// taken over. When nothing acknowledged is lost, history goes on as if nothing had happened. When something would
    /// be lost, nothing is changed, and the answer says what, and which member to ask. The damaged log is kept beside
    /// the new one as log.damaged-N.
    Repair(Repair),
    /// Rebuild a datastore that has lost its disk from its members.
    ///
    /// Members keep connecting to their datastore's address; this command listens there, asks each what it has, shows it,
    /// fetches the state of the most advanced one, verifies it and makes it the base of a new log. Stopped members, or
    /// copies of their directories, can be named with --from instead. The log keeps its identity and begins a new
    /// generation. Members at or behind the chosen position go on as if nothing had happened; one that has more, and comes
    /// back later, pushes its own transactions again and sets everything else aside (see `quarantine`).
    ///
    /// The authority's key, by which members' certificates stay good, comes from a sealed copy that every member keeps; it
    /// opens with the key that `authority recovery-key` printed. Without that key: --new-authority.
    Recover(Recover),
    /// The audit: who did what, kept by the datastore apart from the log.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        action: super::audit::Action,
    },
    /// What brings the datastore's authority back when its disk does not.
    Authority {
        /// What to do.
        #[command(subcommand)]
        action: AuthorityAction,
    },
    /// Changes of a former history that the log has not, set aside on this replica when it came back to a log that was
    /// recovered or restored without them.
    Quarantine {
        /// What to do with them; default: list.
        #[command(subcommand)]
        action: Option<QuarantineAction>,
    },
    /// Backups of a datastore, online: in a directory, or in an S3-compatible store.
    Backup {
        /// What to do.
        #[command(subcommand)]
        action: BackupAction,
    },
    /// Make a backup a stopped datastore's log, as of its end or any sequence or time that it covers.
    ///
    /// What is restored is verified to the last byte and added up before it takes its place; a log that is there already is
    /// kept beside it. The log goes on in a new generation. Members that have more follow it: what they had beyond it is set
    /// aside (see `quarantine`), because going back was the purpose.
    Restore(BackupRestore),
    /// Write an object as it was at an earlier sequence, or delete it if it was not there then: an ordinary transaction, on
    /// the condition that nobody changes the object meanwhile.
    Revert {
        /// Its collection.
        collection: Collection,
        /// Its key.
        key: Key,
        /// As of this sequence.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Seq,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
    },
    /// Print what differs between the whole state at two sequences. Exits with 1 when something does.
    Diff {
        /// The earlier sequence.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        from: Seq,
        /// The later sequence; default: now.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Option<Seq>,
        /// Print the values, too.
        #[arg(long)]
        values: bool,
    },
    /// The generations of the log: how each began, and what it shares with the one before.
    Generations {
        /// What to do.
        #[command(subcommand)]
        action: Option<super::generations::Action>,
    },
    /// Drop superseded operations that every member has passed, and give their disk space back.
    Compact {
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Keep this many transactions of history instead of the configured window.
        #[arg(long, value_name = "N")]
        history_ops: Option<u64>,
    },
    /// The contents of resources and the chunks that they consist of, at a datastore or a webserver.
    Blobs {
        /// What to do with them.
        #[command(subcommand)]
        action: BlobAction,
    },
    /// Write one object.
    Put(Put),
    /// Delete one object. Deleting what is absent is allowed.
    Delete {
        /// Its collection.
        collection: Collection,
        /// Its key.
        key: Key,
        /// Return when it is durable here, without waiting for the datastore.
        #[arg(long)]
        no_wait: bool,
    },
    /// Commit one transaction per line of a JSON-lines file.
    ///
    /// A line looks like {"ops":[{"put":{"collection":"c","key":"k","value":1}},{"delete":{"collection":"c","key":"k2"}}],
    /// "if":[{"absent":{"collection":"c","key":"k"}}]}. A line of `export` is taken as well. An interrupted import of a
    /// file resumes where it stopped when the same command is given again, also when the file has grown; nothing is
    /// committed twice. A file that was shortened or changed in the meantime is refused.
    Import(Import),
    /// Bring users, groups, preferences, dashboards, resources and search histories over from an existing Gravwell webserver,
    /// through its public API.
    ///
    /// Everything is created through the API of a webserver here, in the name of its owner; search histories, which the API
    /// does not take, go into the log of --data-dir. Users and groups that exist here under the same name are taken for the
    /// same. The same command goes on where it stopped. Passwords cannot be had: set new ones.
    ImportGravwell(ImportGravwell),
    /// Wait until a sequence is applied; without one, until the outbox has drained.
    Barrier {
        /// The sequence.
        #[arg(value_parser = seq)]
        seq: Option<Seq>,
        /// Give up after this many seconds.
        #[arg(long, default_value_t = 60, value_name = "S")]
        timeout: u64,
    },
    /// Print a one-time token with which a new member joins.
    Enroll(Enroll),
    /// Exchange a token for this host's certificate, kept in the data directory.
    Join {
        /// The token; `-` reads it from standard input.
        token: String,
    },
    /// Cut a member off at once, live connections included.
    Revoke {
        /// Its name.
        name: MemberName,
        /// Forget it altogether.
        #[arg(long)]
        remove: bool,
    },
    /// Run a replica without a webserver until interrupted.
    Replica(Replica),
    /// Run a datastore until interrupted: the same as `gravwell_datastore`.
    #[command(hide = true)]
    Datastore(super::datastore::DatastoreArgs),
    /// Run a webserver until interrupted: the same as `gravwell_webserver`.
    #[command(hide = true)]
    Webserver(super::webserver::WebserverArgs),
    /// The transactions of a replica that wait or were rejected.
    Outbox {
        /// What to do with them; default: list.
        #[command(subcommand)]
        action: Option<OutboxAction>,
        /// Print what webservers keep secret, too: hashes of passwords and tokens, logins, seeds of second factors.
        #[arg(long, global = true)]
        with_secrets: bool,
    },
    /// Look at configuration, certificates, clocks, UDP buffers, disk space, permissions, reachability and versions.
    ///
    /// Every finding comes with its remedy. Exits with 1 when there is a problem, with 3 when histories have diverged;
    /// warnings alone are 0. Nothing is changed.
    Doctor(Doctor),
    /// Show the fleet as it stands, live: the datastore, and every member with its position, lag, outbox and health.
    Top(Top),
    /// Put what somebody who helps needs to see into one tar file: state, settings, files, findings, metrics, logs.
    ///
    /// No object, key, password or token is in it: settings that may be secret are named without their values, and lines of
    /// logs that speak of what is delicate are left out.
    DebugBundle(DebugBundle),
    /// Make the configuration of a load balancer from the list of webservers, and keep it fresh.
    ///
    /// Webservers are listed with their External-Addr until they are revoked; whether one answers is for the balancer's
    /// health check (/api/ready) to find out. Nothing is taken out because the datastore cannot be asked.
    ///
    /// Traefik and Prometheus can also ask the datastore themselves: see --metrics of gravwell_datastore.
    Lb(Lb),
    /// Make certificates for webservers and balancers, or look at them.
    Cert {
        /// What to do.
        #[command(subcommand)]
        action: CertAction,
    },
    /// See the whole system work: a datastore and two replicas on this machine, real data, a cut, a proof.
    Demo(Demo),
    /// Measure this machine: durable pushes, propagation, catch-up, import; beside them the raw disk and network.
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all programs and commands.
    Man {
        /// Directory for the files.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Arguments of `put`.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// Its collection.
    pub collection: Collection,
    /// Its key.
    pub key: Key,
    /// The new value, JSON.
    #[arg(long, value_name = "JSON", conflicts_with = "file", required_unless_present = "file")]
    pub value: Option<String>,
    /// Read the new value from a file, byte for byte; `-`: standard input.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Only when no such object exists.
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Only when the object has this version.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub if_version: Option<Seq>,
    /// Return when it is durable here, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `repair`.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Data directory of a stopped member, or a copy of one; best that of the member which is furthest.
    #[arg(long, value_name = "MEMBER_DIR")]
    pub from: PathBuf,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Go on although acknowledged transactions are lost, in a new generation. Members that hold them say so.
    #[arg(long)]
    pub accept_loss: bool,
}

/// Arguments of `recover`.
#[derive(Debug, clap::Args)]
pub struct Recover {
    /// Data directory of a stopped member, or a copy of one; may be repeated. Then nobody is listened to, unless --listen
    /// says so.
    #[arg(long, value_name = "MEMBER_DIR")]
    pub from: Vec<PathBuf>,
    /// Where to listen for members [default: as the datastore is configured, if no --from is given].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// How long to listen. It ends earlier when every enrolled member was heard.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub wait: u64,
    /// Stop listening when this many were heard [default: all that are enrolled].
    #[arg(long, value_name = "N")]
    pub expect: Option<usize>,
    /// Rebuild from this one instead of the most advanced.
    #[arg(long, value_name = "NAME")]
    pub member: Option<String>,
    /// A sealed copy of the authority: the file identity/escrow of any member, or one that `authority backup` wrote; may be
    /// repeated, and the newest counts.
    #[arg(long, value_name = "FILE")]
    pub authority: Vec<PathBuf>,
    /// The key that `authority recovery-key` printed.
    #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
    pub recovery_key: Option<String>,
    /// A file with that key.
    #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
    pub recovery_key_file: Option<PathBuf>,
    /// Which register of members counts when a later one than the sealed copy's is left here.
    #[arg(long, value_enum, value_name = "WHICH")]
    pub register: Option<RegisterOf>,
    /// Go back to the latest register that the recovery key opens, although there is a later sealed copy that it does not open.
    #[arg(long)]
    pub earlier_copy: bool,
    /// Begin with a new authority: every member has to join again, with its state and outbox kept.
    #[arg(long)]
    pub new_authority: bool,
    /// Configuration file of the datastore.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only say what each member has and what would be done.
    #[arg(long)]
    pub dry_run: bool,
}

/// Which register of members counts.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RegisterOf {
    /// The one that is left here: the authority alone comes back.
    Here,
    /// The one in the sealed copy; the other one is kept beside it.
    Copy,
}

impl From<RegisterOf> for RegisterChoice {
    fn from(of: RegisterOf) -> RegisterChoice {
        match of {
            RegisterOf::Here => RegisterChoice::Here,
            RegisterOf::Copy => RegisterChoice::Copy,
        }
    }
}

/// What to do about the authority.
#[derive(Debug, Subcommand)]
pub enum AuthorityAction {
    /// Print the key that opens every sealed copy of the authority. Write it down, away from this host.
    RecoveryKey {
        /// Put a key back that was written down, where its file is missing or damaged.
        #[arg(long, value_name = "KEY")]
        set: Option<String>,
        /// The same, from a file.
        #[arg(long, value_name = "FILE", conflicts_with = "set")]
        set_file: Option<PathBuf>,
        /// Give up one that is missing or damaged, which nobody has any more, and make another.
        #[arg(long, conflicts_with_all = ["set", "set_file"])]
        give_up: bool,
    },
    /// Replace the recovery key: begin, then finish when every member has a copy that the new key opens.
    RotateRecoveryKey {
        /// What to do.
        #[command(subcommand)]
        action: RotationAction,
    },
    /// Let another authority take the place of this one, while members run: they exchange their certificates by themselves. The
    /// datastore's own directory is where this is done.
    Rotate {
        /// Which step.
        #[command(subcommand)]
        action: RotateAction,
    },
    /// Write a sealed copy of the authority and the register of members to a file. Every member keeps one as well.
    Backup {
        /// The file.
        file: PathBuf,
    },
    /// Bring the authority and the register of members of a stopped datastore back from a sealed copy.
    Restore {
        /// The sealed copy: a member's identity/escrow, or what `authority backup` wrote.
        file: PathBuf,
        /// The key that `authority recovery-key` printed.
        #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
        recovery_key: Option<String>,
        /// A file with that key.
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
        recovery_key_file: Option<PathBuf>,
        /// Which register of members counts when a later one than the sealed copy's is left here.
        #[arg(long, value_enum, value_name = "WHICH")]
        register: Option<RegisterOf>,
        /// Go back to the register in this copy, although the recovery key is a former one here, so that there are later copies.
        #[arg(long)]
        earlier_copy: bool,
    },
}

/// A step of the recovery key's rotation.
#[derive(Debug, Subcommand)]
pub enum RotationAction {
    /// Make a new recovery key and print it. Copies are sealed under both from now on. Given again, it prints the same one.
    Begin,
    /// Show the keys' names, and which of them open the copy that each member has.
    Status,
    /// Let the new key alone count, when every member has a copy that it opens.
    Finish {
        /// The new key, as `begin` printed it: shows that it was written down.
        #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
        recovery_key: Option<String>,
        /// A file with the new key.
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
        recovery_key_file: Option<PathBuf>,
        /// Do not wait for this member's copy; may be repeated.
        #[arg(long, value_name = "NAME")]
        without: Vec<MemberName>,
    },
    /// Take the rotation back: the present key stays.
    Abort,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// The file; `-`: standard input, which cannot be resumed.
    pub file: PathBuf,
    /// When the process goes away, try to reach it again for this many seconds.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub retry_for: u64,
    /// Return when everything is durable here, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `import-gravwell`.
#[derive(Debug, clap::Args)]
pub struct ImportGravwell {
    /// The existing webserver, https://host.
    #[arg(value_name = "URL")]
    pub source: String,
    /// File with an API token of the source: brings over what its owner may see.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub token_file: Option<PathBuf>,
    /// An administrator of the source: brings over everything.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File with that administrator's password.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The webserver here, https://host.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// An administrator here.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub to_user: String,
    /// File with that administrator's password.
    #[arg(long, value_name = "FILE")]
    pub to_password_file: PathBuf,
    /// What was brought over; the same file lets the command go on where it stopped.
    #[arg(long, value_name = "FILE", default_value = "import-gravwell.json")]
    pub state: PathBuf,
    /// Certificates that the webservers' certificates are checked against.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Do not check certificates.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// Only say what would be created.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `enroll`.
#[derive(Debug, clap::Args)]
pub struct Enroll {
    /// Name of the new member.
    pub name: MemberName,
    /// What it may do: webserver (read and write), reader (read), balancer (list the webservers), admin (administer).
    #[arg(long, default_value = "webserver", value_parser = ["webserver", "reader", "balancer", "admin"])]
    pub role: String,
    /// Life of the token in hours, up to a year.
    #[arg(long, default_value_t = 24, value_name = "HOURS", value_parser = clap::value_parser!(u64).range(1..=8760))]
    pub ttl: u64,
    /// Address of the datastore to put into the token, host:port; may be repeated.
    #[arg(long = "address", value_name = "HOST:PORT")]
    pub addresses: Vec<String>,
    /// Replace the certificate of an enrolled member of this name.
    #[arg(long)]
    pub replace: bool,
    /// Wait this long for a datastore that is just starting.
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    pub wait: u64,
}

/// Arguments of `replica`.
#[derive(Debug, clap::Args)]
pub struct Replica {
    /// Address of the datastore instead of the one in the token; may be repeated.
    #[arg(long = "datastore", value_name = "HOST:PORT")]
    pub datastores: Vec<String>,
    /// Keep the contents of resources, too, as webservers do.
    #[arg(long)]
    pub resources: bool,
    /// Where other webservers reach this one, for `presence`.
    #[arg(long, value_name = "HOST:PORT")]
    pub external_addr: Option<String>,
    /// With less room on the disk, in MiB, it only reads.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    pub min_free_mb: u64,
    /// Kept for when the disk is full, in MiB.
    #[arg(long, default_value_t = 16, value_name = "MIB")]
    pub reserve_mb: u64,
    /// Prometheus endpoint.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// What to do with the outbox.
#[derive(Debug, Subcommand)]
pub enum OutboxAction {
    /// List what waits and what was rejected.
    List,
    /// Print what a rejected transaction would write, and what is there now.
    Show {
        /// Which, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id)]
        id: TxnId,
    },
    /// Submit rejected transactions again, as new ones.
    Retry {
        /// Which, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Print what is there now, and write upon it: over the changes for which it was rejected, and over none that comes
        /// after them. An object that was deleted is not brought back.
        #[arg(long, conflicts_with = "all")]
        upon_present: bool,
    },
    /// Begin again with what can be read of a damaged or missing journal. The damaged files are kept next to it.
    AcceptLoss,
    /// Take rejected transactions off the list.
    Dismiss {
        /// Which, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

/// What to do with chunks.
#[derive(Debug, Subcommand)]
pub enum BlobAction {
    /// The contents with their size, chunks and resources, and what is missing of them here.
    List,
    /// How much there is, how much it takes on disk, how much of that is of no use.
    Stats,
    /// Read every chunk and compare it with its name.
    ///
    /// A running process fetches what is damaged again from a member that has it, and says so. Exits with 3 when something
    /// is missing in the end, with the resources concerned.
    Verify,
    /// Remove chunks that nothing names, as the running process does by itself every hour.
    ///
    /// Chunks are kept for a grace period after they were last written or asked for, because a transaction that names them may
    /// be on its way, and because a backup or an earlier state of the log may name them.
    Gc {
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Grace period in seconds instead of the configured one (`Chunk-Grace-Hours`); at least 60 while a process runs.
        #[arg(long, value_name = "S")]
        grace: Option<u64>,
    },
}

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// Configuration file [default: /opt/gravwell/etc/gravwell.conf, when it exists].
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Put names right that do not agree with their users and groups, where nobody is asked.
    #[arg(long)]
    pub fix: bool,
}

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Print it once and end.
    #[arg(long)]
    pub once: bool,
    /// Seconds between looks.
    #[arg(long, default_value_t = 2, value_name = "S", conflicts_with = "once")]
    pub interval: u64,
}

/// Arguments of `debug-bundle`.
#[derive(Debug, clap::Args)]
pub struct DebugBundle {
    /// The file to make [default: gravwell-debug-TIME.tar].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Configuration file [default: /opt/gravwell/etc/gravwell.conf].
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A log to put in beside the journal; may be repeated.
    #[arg(long = "log", value_name = "FILE")]
    pub logs: Vec<PathBuf>,
}

/// Arguments of `lb`.
#[derive(Debug, clap::Args)]
pub struct Lb {
    /// For whom: traefik, nginx, haproxy or prometheus.
    #[arg(long, value_name = "FORMAT")]
    pub format: Format,
    /// Write this file, whole or not at all, instead of printing.
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Go on until interrupted, and write the file whenever it would change.
    #[arg(long, requires = "output")]
    pub watch: bool,
    /// Run this command after the file has changed; it is tried again until it succeeds.
    #[arg(long, value_name = "COMMAND", requires = "output")]
    pub exec: Option<String>,
    /// Seconds between looks at the members.
    #[arg(long, default_value_t = 5, value_name = "S", requires = "watch")]
    pub interval: u64,
    /// How the balancer reaches webservers: https, https-unverified (any certificate will do) or http.
    #[arg(long, default_value_t = Hop::Https, value_name = "HOW")]
    pub backend: Hop,
    /// Authority that signed the webservers' certificates, on the balancer's host [default: whom its system trusts].
    #[arg(long, value_name = "FILE")]
    pub backend_ca: Option<PathBuf>,
    /// Name for which all webservers' certificates are checked [default: the host of each; where that is an address,
    /// webserver.gravwell.internal, which `cert server --ca` puts into every certificate].
    #[arg(long, value_name = "HOST")]
    pub backend_name: Option<String>,
    /// Check each webserver's certificate for the name of its member, which `cert server --member` puts into it.
    #[arg(long, conflicts_with = "backend_name")]
    pub member_names: bool,
    /// Where browsers connect [default: :443 with a certificate, :80 without].
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Certificate for browsers, on the balancer's host; for haproxy with its key in the same file.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,
    /// Its key, for nginx.
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// Traefik's entry point.
    #[arg(long, default_value = "websecure", value_name = "NAME")]
    pub entry_point: String,
    /// Traefik's rule for the router.
    #[arg(long, default_value = "PathPrefix(`/`)", value_name = "RULE")]
    pub rule: String,
    /// Port of the webservers' metrics, for prometheus.
    #[arg(long, default_value_t = 9408, value_name = "PORT")]
    pub metrics_port: u16,
    /// List webservers at loopback, link-local, multicast and unspecified addresses, too.
    #[arg(long)]
    pub allow_local_backends: bool,
}

impl Lb {
    /// What the configuration is made with.
    #[must_use]
    pub fn choice(&self) -> Choice {
        Choice {
            backend: self.backend,
            backend_ca: self.backend_ca.clone(),
            backend_name: self.backend_name.clone(),
            member_names: self.member_names,
            listen: self.listen.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            entry_point: self.entry_point.clone(),
            rule: self.rule.clone(),
            metrics_port: self.metrics_port,
            allow_local_backends: self.allow_local_backends,
        }
    }
}

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertAction {
    /// Make an authority that signs the certificates of your webservers: ca.pem and ca-key.pem.
    Ca {
        /// Directory for the files.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Its name.
        #[arg(long, default_value = "Gravwell webservers", value_name = "TEXT")]
        name: String,
        /// Life in days.
        #[arg(long, default_value_t = 3650, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Replace what is there. Every certificate that it signed is worthless then.
        #[arg(long)]
        replace: bool,
    },
    /// Make a certificate for a webserver or balancer: cert.pem, key.pem, and bundle.pem with both for haproxy.
    Server(CertServer),
    /// Show whose a certificate is, for which names, and how long it lives.
    Show {
        /// Files in PEM form.
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
}

/// Arguments of `cert server`.
#[derive(Debug, clap::Args)]
pub struct CertServer {
    /// Host name or address that it is good for; may be repeated.
    #[arg(long = "name", required = true, value_name = "HOST")]
    pub names: Vec<String>,
    /// Member that it is for: it is good for MEMBER.webserver.gravwell.internal, too, for balancers with --member-names.
    #[arg(long, value_name = "MEMBER")]
    pub member: Option<MemberName>,
    /// Directory for the files.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Directory of the authority that signs it [default: it signs itself, and browsers ask].
    #[arg(long, value_name = "DIR")]
    pub ca: Option<PathBuf>,
    /// Life in days.
    #[arg(long, default_value_t = 397, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Replace what is there.
    #[arg(long)]
    pub replace: bool,
    /// Replace what is there when less than a third of --days is left of its life, or it is of another authority or for other
    /// names; otherwise leave it. For a timer.
    #[arg(long, conflicts_with = "replace")]
    pub renew: bool,
}

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Leave everything running until interrupted, and print how to look at it.
    #[arg(long)]
    pub keep: bool,
    /// Rows of the table to use.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    pub rows: usize,
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Small transactions to import.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub ops: u64,
    /// Also measure an idle datastore with this many connected replicas.
    #[arg(long, value_name = "N")]
    pub idle: Option<usize>,
    /// Measure only this: contents of so many MiB from a member over the datastore to another.
    #[arg(long, value_name = "MIB")]
    pub resource_mb: Option<u64>,
    /// Put data here instead of in a temporary directory, to measure that disk.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn seq(text: &str) -> Result<Seq, String> {
    text.parse().map(Seq).map_err(|_| format!("`{text}` is not a sequence: use a whole number"))
}

fn txn_id(text: &str) -> Result<TxnId, String> {
    let form = || format!("`{text}` does not name a transaction: use ORIGIN/COUNTER as `outbox` prints it");
    let (origin, counter) = text.split_once('/').ok_or_else(form)?;
    let origin: Origin = origin.parse().map_err(|_| form())?;
    let counter = counter.parse().map(OriginCounter).map_err(|_| form())?;
    Ok(TxnId { origin, counter })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
