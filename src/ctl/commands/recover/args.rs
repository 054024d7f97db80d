//! Arguments of `recover`.

use std::net::SocketAddr;
use std::path::PathBuf;

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
