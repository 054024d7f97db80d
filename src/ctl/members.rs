//! `enroll`, `join`, `revoke`.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use gravwell_env::data_dir;
use gravwell_env::real_fs::create_dirs;
use gravwell_model::MemberName;
use gravwell_model::codec::admin::{Invitation, Request};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::join;
use gravwell_transport::trust::{Identity, Token};

use super::args::Enroll;
use super::client::Client;
use super::output::Output;
use super::{CtlError, CtlResult};

/// `enroll`: prints only the token on standard output.
pub(super) async fn enroll(dir: &Path, json: bool, enroll: Enroll) -> CtlResult {
    let Enroll { name, role, ttl, addresses, replace, wait } = enroll;
    let client = open_soon(dir, Duration::from_secs(wait)).await?;
    let ttl_s = ttl.saturating_mul(3600);
    let has_assumed_port = !client.is_running() && addresses.is_empty();
    let invitation: Result<Invitation, _> =
        client.item(&Request::Enroll { name, role, ttl_s, addresses, replace }).await;
    client.close().await;
    let invitation = invitation?;
    let mut output = Output::new();
    if json {
        output.json(&invitation)?;
    } else {
        output.line(&invitation.token)?;
        complain!(
            "{} may join once as a {} until {}: gravwell-logctl --data-dir DIR join TOKEN",
            invitation.name,
            invitation.role,
            timestamp(invitation.expires_ms)
        );
    }
    if has_assumed_port {
        complain!(
            "no process runs on {}, so the token names the port of the configuration; if the datastore is started with \
             --listen, pass --address HOST:PORT, or run this command while it runs",
            dir.display()
        );
    }
    output.flush()
}

/// Connects to a datastore that may still be starting: waits until its directory is claimed or has an identity.
async fn open_soon(dir: &Path, wait: Duration) -> Result<Client, CtlError> {
    let started = Instant::now();
    while started.elapsed() < wait && !data_dir::is_claimed(dir) && !Identity::exists(dir) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Client::open(dir).await
}

/// `join`
pub(super) async fn join(dir: &Path, json: bool, token: &str) -> CtlResult {
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        std::io::stdin().take(1 << 16).read_to_string(&mut text).map_err(CtlError::new)?;
    }
    let token: Token = text.parse().map_err(CtlError::new)?;
    if std::fs::read_to_string(dir.join("role")).is_ok_and(|role| role.trim() == "datastore") {
        let path = dir.display();
        return Err(CtlError::new(format!("{path} is a datastore's directory; join with a separate directory")));
    }
    if dir.join("own-log").exists() {
        return Err(CtlError::new(format!(
            "{} contains a standalone webserver with its own log, which cannot become a member; export its objects, \
             join with an empty directory, and import them there",
            dir.display()
        )));
    }
    create_dirs(dir, 0o700).map_err(CtlError::new)?;
    let now_ms = gravwell_env::Clock::now_ms(&gravwell_env::SystemClock);
    let identity: Identity = join::join(dir, &token, now_ms).await.map_err(CtlError::new)?;
    let mut output = Output::new();
    if json {
        let (name, role) = (identity.name(), identity.role());
        output.json(&serde_json::json!({ "name": name, "role": role, "addresses": identity.addresses() }))?;
    } else {
        output.line(&format!("joined as {} ({})", identity.name(), identity.role()))?;
    }
    output.flush()
}

/// `revoke`
pub(super) async fn revoke(dir: &Path, json: bool, name: MemberName, remove: bool) -> CtlResult {
    let client = Client::open(dir).await?;
    let done: Result<serde_json::Value, _> = client.item(&Request::Revoke { name: name.clone(), remove }).await;
    client.close().await;
    let done = done?;
    let mut output = Output::new();
    let state = if remove { "forgotten" } else { "revoked" };
    // A datastore of an earlier version does not report this; it revokes a member only if it can store the revocation.
    let is_durable = done["durable"].as_bool().unwrap_or(true);
    if json {
        output.json(&done)?;
    } else if is_durable {
        output.line(&format!("{name} is {state}"))?;
    }
    output.flush()?;
    if is_durable {
        return Ok(());
    }
    Err(CtlError::new(format!(
        "{name} is {state}: in force for current connections, but not durable yet: {}; free some disk space, and do \
         not restart the datastore until `status` no longer reports this, or the member is accepted again",
        done["why"].as_str().unwrap_or_default()
    )))
}
