//! `authority`: the recovery key, and a sealed copy of the authority in a file.

use std::path::Path;

use crate::codec::admin::{EscrowInfo, Request};
use crate::codec::jsonl::timestamp;
use crate::datastore::service::trust_dir;
use crate::trust::{Escrow, RecoveryKey};

use super::args::AuthorityAction;
use super::client::Client;
use super::output::Output;
use super::{CtlError, CtlResult};

/// `authority`
pub(super) async fn run(dir: &Path, json: bool, action: AuthorityAction) -> CtlResult {
    match action {
        AuthorityAction::RecoveryKey => recovery_key(dir, json),
        AuthorityAction::Backup { file } => backup(dir, json, &file).await,
    }
}

fn recovery_key(dir: &Path, json: bool) -> CtlResult {
    let trust = trust_dir(dir);
    if !trust.join("ca.key").exists() {
        let dir = dir.display();
        return Err(CtlError::new(format!("{dir} has no authority: name the datastore's directory with --data-dir")));
    }
    let key = RecoveryKey::open_or_create(&trust).map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "recovery_key": key.to_string() }))?;
    } else {
        output.line(&key.to_string())?;
        complain!("keep it where this host's disk is not: with it, any member's directory brings the authority back");
    }
    output.flush()
}

async fn backup(dir: &Path, json: bool, file: &Path) -> CtlResult {
    let client = Client::open(dir).await?;
    let info: Result<EscrowInfo, _> = client.item(&Request::Escrow { known: None }).await;
    client.close().await;
    let text = info?.text.ok_or_else(|| CtlError::new("the datastore gave no copy"))?;
    let escrow = Escrow::from_text(&text).map_err(CtlError::new)?;
    escrow.save(file).map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        output.json(&serde_json::json!({ "authority": escrow.authority, "made_ms": escrow.made_ms }))?;
    } else {
        let (file, made) = (file.display(), timestamp(escrow.made_ms));
        output.line(&format!("{file}: authority {} as of {made}, sealed under the recovery key", escrow.name()))?;
    }
    output.flush()
}
