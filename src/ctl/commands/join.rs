//! `join`: exchanges a token for a certificate.

use std::io::Read;
use std::path::Path;

use gravwell_env::real_fs::create_dirs;
use gravwell_transport::join;
use gravwell_transport::trust::{Identity, Token};

use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Exchange a token for this host's certificate, stored in the data directory.
#[derive(Debug, clap::Args)]
pub struct Join {
    /// The token; `-` reads it from standard input.
    pub token: String,
}

/// Joins and stores the identity in the data directory.
pub(super) async fn run(dir: &Path, json: bool, args: Join) -> CtlResult {
    let mut text = args.token;
    if text == "-" {
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
