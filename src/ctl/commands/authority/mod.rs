//! `authority`: manages the recovery key, and backs up and restores the CA.

mod args;
mod rotate;
mod rotate_recovery_key;

use std::path::Path;
use std::time::Duration;

use gravwell_datastore::service::trust_dir;
use gravwell_datastore::stale_registry::{accept_noted_invitations, recorded};
use gravwell_env::{Clock, SystemClock, data_dir};
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::authority::EscrowInfo;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::trust::{
    CaBackup, PutBack, RecoveryKey, RecoveryKeys, RegisterChoice, TrustError, check_key_counts, check_known,
    finish_exchange, key_that_counts, restore_found,
};

use crate::client::Client;
use crate::client::ca_restore::{REVOKE_AGAIN, read_key};
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};
pub use args::Authority;
use args::AuthorityAction;

/// `authority`
pub(super) async fn run(dir: &Path, json: bool, args: Authority) -> CtlResult {
    match args.action {
        AuthorityAction::RecoveryKey { give_up: true, .. } => {
            check_local(dir)?;
            RecoveryKeys::give_up(&trust_dir(dir)).map_err(failed)?;
            recovery_key(dir, json)
        }
        AuthorityAction::RecoveryKey { set, set_file, .. } => match read_key(set.as_deref(), set_file.as_deref())? {
            Some(key) => put_key_back(dir, json, &key),
            None => recovery_key(dir, json),
        },
        AuthorityAction::RotateRecoveryKey { action } => rotate_recovery_key::run(dir, json, action).await,
        AuthorityAction::Rotate { action } => rotate::run(dir, json, action).await,
        AuthorityAction::Backup { file } => backup(dir, json, &file).await,
        AuthorityAction::Restore { file, recovery_key, recovery_key_file, register, earlier_copy } => {
            let key = read_key(recovery_key.as_deref(), recovery_key_file.as_deref())?;
            restore(dir, json, &file, key, (register.map(RegisterChoice::from), earlier_copy))
        }
    }
}

/// Fails unless `dir` is the datastore's own directory, which contains the keys.
fn check_local(dir: &Path) -> CtlResult {
    if trust_dir(dir).join("ca.key").exists() {
        return Ok(());
    }
    let dir = dir.display();
    Err(CtlError::new(format!("{dir} contains no CA; pass the datastore's directory with --data-dir")))
}

fn recovery_key(dir: &Path, json: bool) -> CtlResult {
    check_local(dir)?;
    let key = RecoveryKey::open_or_create(&trust_dir(dir)).map_err(failed)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "recovery_key": key.to_string() }))?;
    } else {
        output.line(&key.to_string())?;
        complain!("store it away from this host: it restores the CA from any member's directory");
    }
    output.flush()
}

fn put_key_back(dir: &Path, json: bool, key: &RecoveryKey) -> CtlResult {
    check_local(dir)?;
    RecoveryKeys::put_back(&trust_dir(dir), key).map_err(CtlError::new)?;
    let mut output = Output::new();
    match json {
        true => output.json(&serde_json::json!({ "put_back": key.name() }))?,
        false => output.line(&format!("restored the recovery key {}", key.name()))?,
    }
    output.flush()?;
    RecoveryKeys::load(&trust_dir(dir)).map_err(failed)?;
    Ok(())
}

/// Converts an error; corruption has its own exit code.
fn failed(error: TrustError) -> CtlError {
    let exit = if matches!(error, TrustError::Damaged { .. }) { 3 } else { 1 };
    CtlError { exit, ..CtlError::new(error) }
}

async fn backup(dir: &Path, json: bool, file: &Path) -> CtlResult {
    let client = Client::open(dir).await?;
    let info: Result<EscrowInfo, _> = client.item(&Request::Escrow { known: None, seen: None }).await;
    client.close().await;
    let text = info?.text.ok_or_else(|| CtlError::new("the datastore returned no encrypted CA backup"))?;
    let escrow = CaBackup::from_text(&text).map_err(CtlError::new)?;
    escrow.save(file).map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "authority": escrow.authority, "made_ms": escrow.made_ms }))?;
    } else {
        let (file, made) = (file.display(), timestamp(escrow.made_ms));
        output.line(&format!("{file}: CA {} as of {made}, encrypted under the recovery key", escrow.name()))?;
    }
    output.flush()
}

fn restore(
    dir: &Path,
    json: bool,
    file: &Path,
    key: Option<RecoveryKey>,
    (wish, is_earlier_wanted): (Option<RegisterChoice>, bool),
) -> CtlResult {
    let key =
        key.ok_or_else(|| CtlError::new("the CA backup is encrypted; pass the recovery key with --recovery-key"))?;
    if !data_dir::is_claimed(dir) {
        let dir = dir.display();
        return Err(CtlError::new(format!(
            "{dir} is not a datastore's directory; check --data-dir, or use `recover` or `restore` if the directory is \
             lost"
        )));
    }
    let _lock = data_dir::claim(dir, "datastore", Duration::ZERO)
        .map_err(|error| CtlError::new(format!("{error}; stop the datastore to restore the CA")))?;
    let escrow = CaBackup::load(file).map_err(CtlError::new)?;
    let made_ms = escrow.made(&key).map_err(CtlError::new)?;
    // What is in place is compared, so an interrupted exchange is completed before.
    let is_finished = finish_exchange(&trust_dir(dir), SystemClock.now_ms()).map_err(CtlError::new)?;
    check_key_counts(&escrow, &key, &trust_dir(dir), (wish, is_earlier_wanted)).map_err(CtlError::new)?;
    let choice = check_known(&escrow, &key, &trust_dir(dir), (wish, is_earlier_wanted), recorded(dir));
    let choice = choice.map_err(CtlError::new)?;
    let put_back = restore_found(&escrow, &key, &trust_dir(dir), SystemClock.now_ms(), (wish, is_finished));
    let PutBack { aside, has_kept_register, is_key_alone } = put_back.map_err(CtlError::new)?;
    if !is_key_alone {
        choice.record(&trust_dir(dir), SystemClock.now_ms()).map_err(CtlError::new)?;
        accept_noted_invitations(dir).map_err(CtlError::new)?;
    }
    choice.said.iter().for_each(|what| complain!("{what}"));
    let register = if has_kept_register { "here" } else { "copy" };
    let counting = key_that_counts(&trust_dir(dir), &key).map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "authority": escrow.authority, "made_ms": made_ms, "kept": aside, "register": register }))?;
        return output.flush();
    }
    let (name, made) = (escrow.name(), timestamp(made_ms));
    output.line(&match has_kept_register {
        true if is_key_alone => {
            format!("restored the recovery key; CA {name} and the member registry are intact and unchanged")
        }
        true => {
            format!("restored CA {name} from a backup of {made}; kept the existing member registry")
        }
        false => format!("restored CA {name} and the member registry from a backup of {made}"),
    })?;
    if let Some(aside) = aside {
        output.line(&format!("the previous files are kept in {}", aside.display()))?;
    }
    output.line(&counting)?;
    let next = if has_kept_register { String::new() } else { format!("; {REVOKE_AGAIN}") };
    output.line(&format!("start the datastore{next}"))?;
    output.flush()
}
