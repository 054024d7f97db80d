//! Standalone mode: a webserver without a datastore runs one with its own log. It uses the same code with the same
//! guarantees, and its directory can become that of a datastore when the fleet grows.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::Datastore;
use gravwell_env::{Clock, SystemClock};
use gravwell_model::MemberName;
use gravwell_replica::directory::OWN_LOG as DIRECTORY;
use gravwell_transport::join;
use gravwell_transport::trust::{Identity, Role, Token};

use super::server::WebserverError;

/// Lifetime in seconds of the token with which the webserver joins its own log.
const TOKEN_S: u64 = 60;

/// Returns whether the webserver in `data_dir` runs in standalone mode.
pub(super) fn is_wanted(data_dir: &Path, datastores: &[String]) -> bool {
    datastores.is_empty() && (data_dir.join(DIRECTORY).exists() || !Identity::exists(data_dir))
}

/// Starts the log and enrolls the webserver as its member.
pub(super) async fn start(data_dir: &Path) -> Result<Datastore, WebserverError> {
    let failed = |error: String| WebserverError::OwnLog(error);
    let path = data_dir.display();
    if std::fs::read_to_string(data_dir.join("role")).is_ok_and(|role| role.trim() == "datastore") {
        return Err(failed(format!("{path} is the data directory of a datastore; use another one")));
    }
    if !data_dir.join(DIRECTORY).exists() && data_dir.join("terms").exists() {
        return Err(failed(format!(
            "{path} belongs to a member of a fleet but its identity is missing; restore `identity` from a backup of \
             the host, or join again with a token of `gravwell-logctl enroll NAME --replace`"
        )));
    }
    let mut config = DatastoreConfig::for_dir(&data_dir.join(DIRECTORY));
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.listen, config.port) = (Some(local.ip()), 0);
    let datastore = Datastore::start(config).await.map_err(|error| match (error.is_in_use(), error.is_damage()) {
        (true, _) => WebserverError::OwnLogInUse(error.to_string()),
        (_, true) => WebserverError::OwnLogDamaged(error.to_string()),
        _ => failed(error.to_string()),
    })?;
    if !Identity::exists(data_dir) {
        let name = MemberName::new("webserver").map_err(|error| failed(error.to_string()))?;
        let invitation = datastore.invite(&name, Role::Webserver, TOKEN_S).map_err(failed)?;
        let token: Token = invitation.token.parse().map_err(|error| failed(format!("{error}")))?;
        join::join(data_dir, &token, SystemClock.now_ms()).await.map_err(|error| failed(error.to_string()))?;
    }
    Ok(datastore)
}
