//! Command line of `gravwell-logctl`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use super::authority_rotation::RotateAction;
use super::backup_args::{BackupAction, BackupRestore};
pub use super::lb_args::{CertAction, CertServer, Lb};
use super::quarantine::QuarantineAction;
use gravwell_model::{Collection, Key, MemberName, Origin, OriginCounter, Seq, TxnId};
use gravwell_transport::trust::RegisterChoice;

/// Inspect, verify and repair a replicated operation log and manage its members.
///
/// Commands work on the data directory of a datastore or of a replica; commands for the log, its members and the audit
/// need a datastore's. If a process runs on the directory, the command talks to it through its local socket; otherwise
/// it opens the files itself. Root acts as the owner of the directory, so that no file in it ends up owned by root.
///
/// Exit codes: 0 success; 1 rejected or failed; 2 usage error; 3 damage or divergence found.
#[derive(Debug, Parser)]
#[command(name = "gravwell-logctl", version, max_term_width = 100)]
pub struct Args {
    /// Data directory of a datastore or replica (not read from the configuration file).
    #[arg(
        long,
        global = true,
        env = "GRAVWELL_DATA_DIR",
        default_value = "/opt/gravwell/datastore",
        value_name = "DIR"
    )]
    pub data_dir: PathBuf,
    /// Print JSON: one object, or one object per line.
    #[arg(long, global = true)]
    pub json: bool,
    /// Command to run.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of `gravwell-logctl`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show replication position, lag, outbox and health.
    ///
    /// Exits with 1 if something needs attention, and prints the remedy. Exits with 3 if the history has diverged.
    Status,
    /// List enrolled members and their positions.
    ///
    /// HOLDS FLOOR marks the members that can pin the compaction floor.
    Members,
    /// List connected members with their External-Addr and applied sequence.
    Presence,
    /// List collections with their number of objects, size and digest.
    Collections,
    /// List the segment files of the log.
    Segments,
    /// Print one object; exit with 1 if it does not exist.
    Get {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Print the state at this sequence instead of the current one.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        at: Option<Seq>,
    },
    /// List the objects of a collection in key order.
    Ls {
        /// Collection to list.
        collection: Collection,
        /// List only keys with this prefix.
        #[arg(long, default_value = "", value_name = "TEXT")]
        prefix: String,
        /// Print at most this many objects.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Print the log, one transaction per line, including deletions.
    Tail {
        /// First sequence to print [default: the oldest that is available].
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        from: Option<Seq>,
        /// Last sequence to print.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Option<Seq>,
        /// Keep printing new transactions until interrupted.
        #[arg(long, short)]
        follow: bool,
    },
    /// Print every change of one object that is still in the log.
    History {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
    },
    /// Print one record of the log and its frame as stored on disk.
    DumpRecord {
        /// Sequence of the record.
        #[arg(value_parser = seq)]
        seq: Seq,
    },
    /// Print the whole state as sorted JSON lines.
    ///
    /// The output is byte-identical on every member at the same sequence.
    Export {
        /// Print the state at this sequence instead of the current one (datastore only).
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        at: Option<Seq>,
        /// Include secrets of webservers: password and token hashes, logins.
        #[arg(long)]
        with_secrets: bool,
    },
    /// Check every checksum, the hash chain and the digests.
    ///
    /// On a running datastore, also checks the digests that its members report.
    Verify,
    /// Rebuild the damaged log of a stopped datastore from a stopped member.
    ///
    /// The member's state becomes the base of a new log, and every intact record of the old log that follows it is
    /// copied. If no acknowledged transaction is lost, history continues unchanged. If some would be lost, nothing is
    /// changed, and the output lists them and the member to use instead. The damaged log is kept next to the new one as
    /// log.damaged-N.
    Repair(Repair),
    /// Rebuild a datastore that has lost its disk from its members.
    ///
    /// Members keep connecting to their datastore's address. This command listens there, queries and prints the
    /// position of each member, fetches the state of the most advanced one, verifies it and makes it the base of a new
    /// log. Stopped members, or copies of their directories, can be named with --from instead. The log keeps its
    /// identity and starts a new generation. Members at or behind the chosen position continue normally. A member that
    /// is ahead and reconnects later pushes its own transactions again and archives all other changes (see
    /// `quarantine`).
    ///
    /// The CA key, which keeps members' certificates valid, comes from the encrypted CA backup that every member
    /// stores. The key printed by `authority recovery-key` decrypts it. Without that key, use --new-authority.
    Recover(Recover),
    /// Show, verify and export the audit, the datastore's record of who did what.
    ///
    /// The datastore keeps the audit separately from the log.
    Audit {
        /// Command to run on the audit.
        #[command(subcommand)]
        action: super::audit::Action,
    },
    /// Back up and restore the certificate authority.
    Authority {
        /// Command to run on the authority.
        #[command(subcommand)]
        action: AuthorityAction,
    },
    /// List and re-apply local changes that a recovered log lacks.
    ///
    /// A replica archives such changes when it rejoins a log that was recovered or restored without them.
    Quarantine {
        /// Command to run on the archived changes [default: list].
        #[command(subcommand)]
        action: Option<QuarantineAction>,
    },
    /// Back up a running datastore to a directory or an S3-compatible store.
    Backup {
        /// Command to run on the backups.
        #[command(subcommand)]
        action: BackupAction,
    },
    /// Restore a stopped datastore from a backup.
    ///
    /// Restores up to the end of the backup, or up to any sequence or time that it covers. The restored log is verified
    /// completely before it is put in place; an existing log is kept next to it. The log continues in a new generation.
    /// Members that are ahead follow the restored log and archive the changes that it lacks (see `quarantine`), because
    /// going back was the purpose.
    Restore(BackupRestore),
    /// Restore an object to its value at an earlier sequence.
    ///
    /// Deletes the object if it did not exist then. This is an ordinary transaction, which is rejected if the object is
    /// changed concurrently.
    Revert {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Sequence to go back to.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Seq,
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
    },
    /// Compare the whole state at two sequences; exit with 1 if it differs.
    Diff {
        /// The earlier sequence.
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        from: Seq,
        /// The later sequence [default: the current one].
        #[arg(long, value_name = "SEQ", value_parser = seq)]
        to: Option<Seq>,
        /// Print the values as well.
        #[arg(long)]
        values: bool,
    },
    /// List the generations of the log.
    ///
    /// Shows how each generation started and how much history it shares with the previous one.
    Generations {
        /// Command to run [default: list the generations].
        #[command(subcommand)]
        action: Option<super::generations::Action>,
    },
    /// Drop superseded operations that every member has passed and free their space.
    Compact {
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
        /// Keep this many transactions of history instead of the configured number.
        #[arg(long, value_name = "N")]
        history_ops: Option<u64>,
    },
    /// List, verify and garbage-collect the contents of resources and their chunks.
    ///
    /// Works on a datastore or a webserver.
    Blobs {
        /// Command to run on the contents.
        #[command(subcommand)]
        action: BlobAction,
    },
    /// Write one object.
    Put(Put),
    /// Delete one object; deleting an object that does not exist is not an error.
    Delete {
        /// Collection of the object.
        collection: Collection,
        /// Key of the object.
        key: Key,
        /// Return once the change is durable locally, without waiting for the datastore.
        #[arg(long)]
        no_wait: bool,
    },
    /// Commit one transaction per line of a JSON-lines file.
    ///
    /// A line looks like
    /// {"ops":[{"put":{"collection":"c","key":"k","value":1}},{"delete":{"collection":"c","key":"k2"}}],
    /// "if":[{"absent":{"collection":"c","key":"k"}}]}. Lines printed by `export` are accepted as well. To resume an
    /// interrupted import, run the same command again; nothing is committed twice. The file may have grown in the
    /// meantime, but a file that was shortened or changed is rejected.
    Import(Import),
    /// Import users, dashboards and other objects from an existing Gravwell webserver.
    ///
    /// Reads users, groups, preferences, dashboards, resources and search histories through the public API of the
    /// existing webserver. Objects are created through the API of a webserver here, on behalf of their owners. Search
    /// histories, which the API does not accept, are written to the log of --data-dir. Users and groups that exist here
    /// under the same name are treated as the same. To resume, run the same command again. Passwords cannot be read
    /// from the source: set new ones.
    ImportGravwell(ImportGravwell),
    /// Wait until a sequence is applied or, without one, until the outbox is empty.
    Barrier {
        /// Sequence to wait for.
        #[arg(value_parser = seq)]
        seq: Option<Seq>,
        /// Give up after this many seconds.
        #[arg(long, default_value_t = 60, value_name = "S")]
        timeout: u64,
    },
    /// Print a one-time token with which a new member can join.
    Enroll(Enroll),
    /// Exchange a token for this host's certificate, stored in the data directory.
    Join {
        /// The token; `-` reads it from standard input.
        token: String,
    },
    /// Revoke a member and close its connections.
    Revoke {
        /// Name of the member.
        name: MemberName,
        /// Also delete the member from the member registry.
        #[arg(long)]
        remove: bool,
    },
    /// Run a replica without a webserver until interrupted.
    Replica(Replica),
    /// Run a datastore until interrupted; same as `gravwell_datastore`.
    #[command(hide = true)]
    Datastore(super::datastore::DatastoreArgs),
    /// Run a webserver until interrupted; same as `gravwell_webserver`.
    #[command(hide = true)]
    Webserver(super::webserver::WebserverArgs),
    /// List, retry or dismiss a replica's pending and rejected transactions.
    Outbox {
        /// Command to run on the outbox [default: list].
        #[command(subcommand)]
        action: Option<OutboxAction>,
        /// Include secrets of webservers, such as password hashes, in the output.
        ///
        /// These are the hashes of passwords and tokens, logins, and the seeds of second factors.
        #[arg(long, global = true)]
        with_secrets: bool,
    },
    /// Check configuration, certificates, clocks, disk, permissions and network.
    ///
    /// Also checks UDP buffers, reachability and versions. Every finding comes with its remedy. Exits with 1 if there
    /// is a problem and with 3 if the history has diverged; warnings alone exit with 0. Nothing is changed without
    /// --fix.
    Doctor(Doctor),
    /// Show a live view of the datastore and its members.
    ///
    /// Shows the position, lag, outbox and health of each member.
    Top(Top),
    /// Collect diagnostics into a tar file.
    ///
    /// The file contains status, settings, a list of files, findings, metrics and logs. It contains no object, key,
    /// password or token: settings that may be secret are listed without their values, and log lines that mention
    /// passwords, tokens or keys are left out.
    DebugBundle(DebugBundle),
    /// Generate the configuration of a load balancer from the list of webservers.
    ///
    /// Webservers are listed with their External-Addr until they are revoked; the balancer's health check (/api/ready)
    /// finds out whether they respond. No webserver is removed because the datastore is unreachable.
    ///
    /// Traefik and Prometheus can also query the datastore directly: see --metrics of gravwell_datastore.
    Lb(Lb),
    /// Create or show certificates for webservers and load balancers.
    Cert {
        /// Command to run on certificates.
        #[command(subcommand)]
        action: CertAction,
    },
    /// Run a datastore and two webservers locally and test a disconnect.
    Demo(Demo),
    /// Measure durable pushes, propagation, catch-up and import on this machine.
    ///
    /// Also measures the raw disk and network for comparison.
    Bench(Bench),
    /// Print a completion script for a shell.
    Completions {
        /// Shell to generate the script for.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all programs and commands.
    Man {
        /// Directory to write the pages to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Arguments of `put`.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// Collection of the object.
    pub collection: Collection,
    /// Key of the object.
    pub key: Key,
    /// New value as JSON.
    #[arg(long, value_name = "JSON", conflicts_with = "file", required_unless_present = "file")]
    pub value: Option<String>,
    /// Read the new value from a file, byte for byte; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Write only if the object does not exist.
    #[arg(long, conflicts_with = "if_version")]
    pub if_absent: bool,
    /// Write only if the object has this version.
    #[arg(long, value_name = "SEQ", value_parser = seq)]
    pub if_version: Option<Seq>,
    /// Return once the change is durable locally, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `repair`.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Data directory of a stopped member, or a copy of one.
    ///
    /// Choose the member that is most advanced.
    #[arg(long, value_name = "MEMBER_DIR")]
    pub from: PathBuf,
    /// Print the plan without changing anything.
    #[arg(long)]
    pub dry_run: bool,
    /// Continue in a new generation although acknowledged transactions are lost.
    ///
    /// Members that hold the lost transactions report it.
    #[arg(long)]
    pub accept_loss: bool,
}

/// Arguments of `recover`.
#[derive(Debug, clap::Args)]
pub struct Recover {
    /// Data directory of a stopped member, or a copy of one; may be repeated.
    ///
    /// Without --listen, the command then does not wait for members to connect.
    #[arg(long, value_name = "MEMBER_DIR")]
    pub from: Vec<PathBuf>,
    /// Address to listen on for members.
    ///
    /// [default: as configured for the datastore, if no --from is given]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<SocketAddr>,
    /// Seconds to wait for members; ends 15 s after every enrolled member responded.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub wait: u64,
    /// Stop waiting once this many members responded [default: all enrolled members].
    #[arg(long, value_name = "N")]
    pub expect: Option<usize>,
    /// Rebuild from this member instead of the most advanced one.
    #[arg(long, value_name = "NAME")]
    pub member: Option<String>,
    /// Encrypted CA backup to use; may be repeated, the newest one is used.
    ///
    /// Either the file identity/escrow of any member, or a file written by `authority backup`.
    #[arg(long, value_name = "FILE")]
    pub authority: Vec<PathBuf>,
    /// Recovery key printed by `authority recovery-key`.
    #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
    pub recovery_key: Option<String>,
    /// File with the recovery key.
    #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
    pub recovery_key_file: Option<PathBuf>,
    /// Member registry to use where several differ: here, copy, or CHANGE/NAME.
    ///
    /// `here` keeps the local registry and restores only the CA, `copy` uses the one in the encrypted CA backup; the local
    /// one is kept next to it. CHANGE/NAME names the last change of the registry to use, as messages of this command do:
    /// it is used although members show others.
    #[arg(long, value_name = "WHICH")]
    pub register: Option<RegistryToUse>,
    /// Use an older member registry although a newer encrypted CA backup exists.
    ///
    /// Uses the latest registry that the recovery key decrypts, and ignores later encrypted CA backups that this key
    /// does not decrypt or that cannot be read, and later changes of the members that are recorded here, shown by
    /// connected members, or known to clients that cannot be asked.
    #[arg(long)]
    pub earlier_copy: bool,
    /// Continue without what this member, or the client at this address, may know; may be repeated.
    ///
    /// For members that have CA backups which cannot be read, and for clients with certificates that are not accepted.
    #[arg(long, value_name = "NAME|ADDR")]
    pub without: Vec<String>,
    /// Start with a new CA; every member must join again and keeps its state and outbox.
    #[arg(long)]
    pub new_authority: bool,
    /// Configuration file of the datastore.
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the position of each member and the plan without changing anything.
    #[arg(long)]
    pub dry_run: bool,
}

/// Member registry that `recover` uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryToUse {
    /// The local registry.
    Here,
    /// The one in the encrypted CA backup.
    Copy,
    /// The one with this last change.
    At {
        /// Number of the change.
        count: u64,
        /// Name of the change.
        name: String,
    },
}

impl std::str::FromStr for RegistryToUse {
    type Err = String;

    fn from_str(text: &str) -> Result<RegistryToUse, String> {
        let at = || {
            let (count, name) = text.split_once('/')?;
            let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_hexdigit());
            Some(RegistryToUse::At { count: count.parse().ok().filter(|_| is_name)?, name: name.to_owned() })
        };
        match text {
            "here" => Ok(RegistryToUse::Here),
            "copy" => Ok(RegistryToUse::Copy),
            _ => at().ok_or_else(|| "use `here`, `copy`, or the CHANGE/NAME that a message names".to_owned()),
        }
    }
}

/// Member registry to use.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RegisterOf {
    /// Keep the local registry and restore only the CA.
    Here,
    /// Use the registry in the encrypted CA backup; the local one is kept next to it.
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

/// Commands of `authority`.
#[derive(Debug, Subcommand)]
pub enum AuthorityAction {
    /// Print the recovery key, which decrypts every encrypted CA backup.
    ///
    /// Write it down and keep it away from this host.
    RecoveryKey {
        /// Restore a key from your notes because its file is missing or damaged.
        #[arg(long, value_name = "KEY")]
        set: Option<String>,
        /// File with the key to restore.
        #[arg(long, value_name = "FILE", conflicts_with = "set")]
        set_file: Option<PathBuf>,
        /// Replace a missing or damaged recovery key that cannot be restored.
        #[arg(long, conflicts_with_all = ["set", "set_file"])]
        give_up: bool,
    },
    /// Replace the recovery key.
    ///
    /// Run `begin`, then `finish` once every member holds an encrypted CA backup that the new key decrypts.
    RotateRecoveryKey {
        /// Step of the rotation.
        #[command(subcommand)]
        action: RotationAction,
    },
    /// Replace the CA while members keep running.
    ///
    /// Members renew their certificates automatically. Run this on the datastore's own directory.
    Rotate {
        /// Step of the rotation.
        #[command(subcommand)]
        action: RotateAction,
    },
    /// Write an encrypted backup of the CA and the member registry to a file.
    ///
    /// Every member stores such a backup as well.
    Backup {
        /// File to write.
        file: PathBuf,
    },
    /// Restore the CA and member registry of a stopped datastore.
    Restore {
        /// Encrypted CA backup: a member's identity/escrow or an `authority backup` file.
        file: PathBuf,
        /// Recovery key printed by `authority recovery-key`.
        #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
        recovery_key: Option<String>,
        /// File with the recovery key.
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
        recovery_key_file: Option<PathBuf>,
        /// Member registry to use if the local one is newer than the encrypted CA backup.
        #[arg(long, value_enum, value_name = "WHICH")]
        register: Option<RegisterOf>,
        /// Use an older member registry although a newer one is known.
        ///
        /// Either the recovery key was replaced since, so that later encrypted CA backups exist under the new key, or a
        /// later change of the members is recorded in the datastore's directory.
        #[arg(long)]
        earlier_copy: bool,
    },
}

/// Steps of the rotation of the recovery key.
#[derive(Debug, Subcommand)]
pub enum RotationAction {
    /// Create a new recovery key and print it.
    ///
    /// From then on, CA backups are encrypted under both keys. Running it again prints the same key.
    Begin,
    /// Show the names of the keys and which of them decrypt each member's CA backup.
    Status,
    /// Activate only the new key, once it decrypts every member's CA backup.
    Finish {
        /// The new key as printed by `begin`, as proof that it was written down.
        #[arg(long, value_name = "KEY", env = "GRAVWELL_RECOVERY_KEY", hide_env_values = true)]
        recovery_key: Option<String>,
        /// File with the new key.
        #[arg(long, value_name = "FILE", conflicts_with = "recovery_key")]
        recovery_key_file: Option<PathBuf>,
        /// Do not wait for the CA backup of this member; may be repeated.
        #[arg(long, value_name = "NAME")]
        without: Vec<MemberName>,
    },
    /// Cancel the rotation and keep the current key.
    Abort,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct Import {
    /// File to import; `-` is standard input, which cannot be resumed.
    pub file: PathBuf,
    /// Seconds to try to reach the process again if it becomes unreachable.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub retry_for: u64,
    /// Return once everything is durable locally, without waiting for the datastore.
    #[arg(long)]
    pub no_wait: bool,
}

/// Arguments of `import-gravwell`.
#[derive(Debug, clap::Args)]
pub struct ImportGravwell {
    /// URL of the existing webserver, https://host.
    #[arg(value_name = "URL")]
    pub source: String,
    /// File with an API token of the source; imports what the token's owner can see.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    pub token_file: Option<PathBuf>,
    /// Administrator of the source; imports everything.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    pub user: Option<String>,
    /// File with the password of --user.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// URL of the webserver to import into, https://host.
    #[arg(long, value_name = "URL")]
    pub to: String,
    /// Administrator of the webserver to import into.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    pub to_user: String,
    /// File with the password of --to-user.
    #[arg(long, value_name = "FILE")]
    pub to_password_file: PathBuf,
    /// File that records the imported objects; needed to resume an interrupted import.
    #[arg(long, value_name = "FILE", default_value = "import-gravwell.json")]
    pub state: PathBuf,
    /// CA certificates to verify the certificates of both webservers.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Do not verify certificates.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
    /// Print what would be created without changing anything.
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `enroll`.
#[derive(Debug, clap::Args)]
pub struct Enroll {
    /// Name of the new member.
    pub name: MemberName,
    /// Role: webserver (read, write), reader (read), balancer (list webservers), admin.
    #[arg(long, default_value = "webserver", value_parser = ["webserver", "reader", "balancer", "admin"])]
    pub role: String,
    /// Lifetime of the token in hours, at most one year.
    #[arg(long, default_value_t = 24, value_name = "HOURS", value_parser = clap::value_parser!(u64).range(1..=8760))]
    pub ttl: u64,
    /// Address of the datastore to put into the token; may be repeated.
    #[arg(long = "address", value_name = "HOST:PORT")]
    pub addresses: Vec<String>,
    /// Replace the certificate of an enrolled member with this name.
    #[arg(long)]
    pub replace: bool,
    /// Seconds to wait for a datastore that is starting.
    #[arg(long, default_value_t = 3, value_name = "SECONDS")]
    pub wait: u64,
}

/// Arguments of `replica`.
#[derive(Debug, clap::Args)]
pub struct Replica {
    /// Address of the datastore instead of the one in the token; may be repeated.
    #[arg(long = "datastore", value_name = "HOST:PORT")]
    pub datastores: Vec<String>,
    /// Store the contents of resources as well, as webservers do.
    #[arg(long)]
    pub resources: bool,
    /// Address at which other webservers reach this one, shown by `presence`.
    #[arg(long, value_name = "HOST:PORT")]
    pub external_addr: Option<String>,
    /// Stop accepting writes below this much free disk space, in MiB.
    #[arg(long, default_value_t = 64, value_name = "MIB")]
    pub min_free_mb: u64,
    /// Disk reserve for when the disk is full, in MiB.
    #[arg(long, default_value_t = 16, value_name = "MIB")]
    pub reserve_mb: u64,
    /// Address of the Prometheus endpoint.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Log level: error, warn, info, debug or trace.
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// Commands of `outbox`.
#[derive(Debug, Subcommand)]
pub enum OutboxAction {
    /// List pending and rejected transactions.
    List,
    /// Show the writes of a rejected transaction and the current values.
    Show {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id)]
        id: TxnId,
    },
    /// Submit rejected transactions again, as new ones.
    Retry {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// Retry all rejected transactions.
        #[arg(long, conflicts_with = "id")]
        all: bool,
        /// Print the current values and overwrite them.
        ///
        /// Overwrites the changes that caused the rejection, but no later ones. Objects that were deleted are not
        /// re-created.
        #[arg(long, conflicts_with = "all")]
        upon_present: bool,
    },
    /// Start a new journal from the readable part of a damaged or missing one.
    ///
    /// The damaged files are kept next to it.
    AcceptLoss,
    /// Remove rejected transactions from the list.
    Dismiss {
        /// Transaction, as `ORIGIN/COUNTER`.
        #[arg(value_parser = txn_id, required_unless_present = "all")]
        id: Option<TxnId>,
        /// Dismiss all rejected transactions.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

/// Commands of `blobs`.
#[derive(Debug, Subcommand)]
pub enum BlobAction {
    /// List contents with their size, chunks, resources and missing chunks.
    List,
    /// Show the amount of data, its size on disk and the share that is garbage.
    Stats,
    /// Read every chunk and check it against its name.
    ///
    /// A running process fetches damaged chunks again from a member that has them and reports it. Exits with 3 if
    /// chunks are still missing in the end, and lists the resources concerned.
    Verify,
    /// Remove unreferenced chunks, as a running process does every hour.
    ///
    /// Chunks are kept for a grace period after they were last written or requested, because a transaction that
    /// references them may still be in transit, and because a backup or an earlier state of the log may reference them.
    Gc {
        /// Print the plan without changing anything.
        #[arg(long)]
        dry_run: bool,
        /// Grace period in seconds; at least 60 while a process runs.
        ///
        /// Overrides the configured one (`Chunk-Grace-Hours`).
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
    /// Repair names that are inconsistent with their users and groups.
    ///
    /// Does not ask for confirmation.
    #[arg(long)]
    pub fix: bool,
}

/// Arguments of `top`.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// Print the view once and exit.
    #[arg(long)]
    pub once: bool,
    /// Seconds between updates.
    #[arg(long, default_value_t = 2, value_name = "S", conflicts_with = "once")]
    pub interval: u64,
}

/// Arguments of `debug-bundle`.
#[derive(Debug, clap::Args)]
pub struct DebugBundle {
    /// File to create [default: gravwell-debug-TIME.tar].
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Configuration file [default: /opt/gravwell/etc/gravwell.conf].
    #[arg(long, env = "GRAVWELL_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Log file to include in addition to the journal; may be repeated.
    #[arg(long = "log", value_name = "FILE")]
    pub logs: Vec<PathBuf>,
}

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Keep everything running until interrupted, and print how to inspect it.
    #[arg(long)]
    pub keep: bool,
    /// Number of table rows to use.
    #[arg(long, default_value_t = 2_000, value_name = "N")]
    pub rows: usize,
}

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// Number of small transactions to import.
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    pub ops: u64,
    /// Also measure an idle datastore with this many connected replicas.
    #[arg(long, value_name = "N")]
    pub idle: Option<usize>,
    /// Only measure the transfer of this many MiB between members via the datastore.
    #[arg(long, value_name = "MIB")]
    pub resource_mb: Option<u64>,
    /// Directory for the data, to measure its disk [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

fn seq(text: &str) -> Result<Seq, String> {
    text.parse().map(Seq).map_err(|_| format!("`{text}` is not a sequence; use a whole number"))
}

fn txn_id(text: &str) -> Result<TxnId, String> {
    let form = || format!("`{text}` is not a transaction; use ORIGIN/COUNTER as printed by `outbox`");
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
