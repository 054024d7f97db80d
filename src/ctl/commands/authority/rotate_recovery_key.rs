//! `authority rotate-recovery-key`: replaces the recovery key once every member holds an encrypted CA backup that the
//! new key decrypts.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use gravwell_datastore::service::trust_dir;
use gravwell_model::MemberName;
use gravwell_model::codec::admin::{MemberInfo, Request};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::trust::{RecoveryKey, RecoveryKeys};

use super::{check_local, failed};
use crate::client::Client;
use crate::client::ca_restore::read_key;
use crate::client::output::{Output, or_dash};
use crate::client::rotations::{Holder, holders};
use crate::error::{CtlError, CtlResult};

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

async fn members(dir: &Path) -> Result<Vec<MemberInfo>, CtlError> {
    let client = Client::open(dir).await?;
    let members = client.items(&Request::Members).await;
    client.close().await;
    members
}

/// `authority rotate-recovery-key`
pub(super) async fn run(dir: &Path, json: bool, action: RotationAction) -> CtlResult {
    check_local(dir)?;
    match action {
        RotationAction::Begin => begin(dir, json),
        RotationAction::Status => status(dir, json).await,
        RotationAction::Finish { recovery_key, recovery_key_file, without } => {
            let shown = read_key(recovery_key.as_deref(), recovery_key_file.as_deref())?;
            let missing = || {
                CtlError::new("the new key is required as proof; pass it with --recovery-key or --recovery-key-file")
            };
            finish(dir, json, &shown.ok_or_else(missing)?, &without).await
        }
        RotationAction::Abort => abort(dir, json),
    }
}

fn begin(dir: &Path, json: bool) -> CtlResult {
    let keys = RecoveryKeys::begin(&trust_dir(dir)).map_err(failed)?;
    let next = keys.next.ok_or_else(|| {
        CtlError::new("the new key no longer exists; check whether another command ended the rotation")
    })?;
    let mut output = Output::new();
    if json {
        let (key, current, name) = (next.to_string(), keys.current.name(), next.name());
        output.json(&serde_json::json!({ "recovery_key": key, "current": current, "next": name }))?;
        return output.flush();
    }
    output.line(&next.to_string())?;
    complain!(
        "this is the new recovery key {}; write it down in addition to the current one, {}, which is valid until \
         `authority rotate-recovery-key finish`; members fetch CA backups that both keys decrypt within a minute, see \
         `authority rotate-recovery-key status`",
        next.name(),
        keys.current.name()
    );
    output.flush()
}

fn load(dir: &Path) -> Result<RecoveryKeys, CtlError> {
    let keys = RecoveryKeys::load(&trust_dir(dir)).map_err(failed)?;
    keys.ok_or_else(|| CtlError::new("there is no recovery key yet; create it with `authority recovery-key`"))
}

async fn status(dir: &Path, json: bool) -> CtlResult {
    let keys = load(dir)?;
    let holders = holders(&members(dir).await?, &keys);
    let mut output = Output::new();
    if json {
        let next = keys.next.as_ref().map(RecoveryKey::name);
        output.json(&serde_json::json!({ "current": keys.current.name(), "next": next, "members": holders }))?;
        return output.flush();
    }
    let ready = holders.iter().filter(|holder| holder.opens_with.is_ready(&keys)).count();
    let (current, count) = (keys.current.name(), holders.len());
    output.line(&match &keys.next {
        Some(next) => format!(
            "rotating: {current} is the current key, {} the new one, which decrypts the CA backups of {ready} of \
             {count} members",
            next.name()
        ),
        None => format!("no rotation: {current} is the key and decrypts CA backups of {ready} of {count} members"),
    })?;
    output.list(false, &holders, &["MEMBER", "CA BACKUP OPENS WITH", "LAST SEEN"], |holder| {
        vec![holder.name.clone(), holder.opens_with.word().to_owned(), or_dash(holder.last_seen_ms.map(timestamp))]
    })
}

async fn finish(dir: &Path, json: bool, shown: &RecoveryKey, without: &[MemberName]) -> CtlResult {
    let keys = load(dir)?;
    if keys.next.is_some() {
        let holders = holders(&members(dir).await?, &keys);
        let is_named = |holder: &Holder| without.iter().any(|name| name.as_str() == holder.name);
        if let Some(unknown) = without.iter().find(|name| !holders.iter().any(|holder| holder.name == name.as_str())) {
            return Err(CtlError::new(format!("{unknown} is not a member with a CA backup; check --without")));
        }
        let waiting = holders.iter().filter(|holder| !holder.opens_with.is_ready(&keys) && !is_named(holder));
        let waiting: Vec<&str> = waiting.map(|holder| holder.name.as_str()).collect();
        if !waiting.is_empty() {
            return Err(CtlError::new(format!(
                "the new key does not decrypt the CA backups of these members: {}; wait until each was connected for a \
                 minute, revoke members that are gone permanently, or list them with --without and keep the former key \
                 for their backups",
                waiting.join(", ")
            )));
        }
    }
    let ended = RecoveryKeys::finish(&trust_dir(dir), shown).map_err(failed)?;
    let (current, former) = (ended.current.name(), keys.current.name());
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "current": current, "former": former }))?;
        return output.flush();
    }
    output.line(&format!("{current} is now the recovery key; {former} does not decrypt new CA backups"))?;
    output.line(&format!(
        "make a backup now; keep {former} as long as earlier backups exist, and see `status` for members with earlier \
         CA backups"
    ))?;
    output.flush()
}

fn abort(dir: &Path, json: bool) -> CtlResult {
    let keys = RecoveryKeys::abort(&trust_dir(dir)).map_err(failed)?;
    let mut output = Output::new();
    let current = keys.current.name();
    if json {
        output.json(&serde_json::json!({ "current": current }))?;
    } else {
        output.line(&format!("rolled back: {current} is the recovery key, as before"))?;
    }
    output.flush()
}
