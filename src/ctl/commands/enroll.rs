//! `enroll`: prints a token with which a member can join.

use std::path::Path;
use std::time::{Duration, Instant};

use gravwell_env::data_dir;
use gravwell_model::MemberName;
use gravwell_model::codec::admin::{Invitation, Request};
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::trust::Identity;

use crate::client::Client;
use crate::client::output::Output;
use crate::error::{CtlError, CtlResult};

/// Print a one-time token with which a new member can join.
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

/// Prints only the token on standard output.
pub(super) async fn run(dir: &Path, json: bool, enroll: Enroll) -> CtlResult {
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
