//! `authority rotate`: replaces the CA once every member has a certificate from the new one.

use std::path::Path;

use clap::Subcommand;

use gravwell_model::MemberName;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::authority::{AuthorityRotation, AuthorityStage, RotationStep};
use gravwell_model::codec::json_lines::timestamp;

use super::check_local;
use crate::client::Client;
use crate::client::output::{Output, or_dash};
use crate::client::rotations::names;
use crate::error::{CtlError, CtlResult};

/// Steps of the CA rotation.
#[derive(Debug, Subcommand)]
pub enum RotateAction {
    /// Create the new CA.
    ///
    /// Within a minute, members trust it in addition to the current one and renew their certificates.
    Begin,
    /// Show which members have a certificate from the new CA.
    Status,
    /// Trust only the new CA and delete the key of the old one.
    ///
    /// Rejected while a member has no certificate from the new CA, unless it is named with --without.
    Finish {
        /// Member to leave behind; it must be re-enrolled; may be repeated.
        ///
        /// It keeps its state and outbox.
        #[arg(long)]
        without: Vec<MemberName>,
    },
    /// Cancel the rotation; members renew their certificates from the current CA.
    Abort,
}

fn word(stage: AuthorityStage) -> &'static str {
    match stage {
        AuthorityStage::Present => "present",
        AuthorityStage::TrustsBoth => "present, trusts both",
        AuthorityStage::New => "new",
        AuthorityStage::TakenBack => "rolled back",
        AuthorityStage::Former => "former: re-enroll it",
    }
}

/// `authority rotate`
pub(super) async fn run(dir: &Path, json: bool, action: RotateAction) -> CtlResult {
    check_local(dir)?;
    let step = match &action {
        RotateAction::Begin => RotationStep::Begin,
        RotateAction::Status => RotationStep::Status,
        RotateAction::Finish { without } => RotationStep::Finish { without: without.clone() },
        RotateAction::Abort => RotationStep::Abort,
    };
    let client = Client::open(dir).await?;
    let asked = client.item(&Request::RotateAuthority { step }).await;
    client.close().await;
    let rotation: AuthorityRotation = asked?;
    let mut output = Output::new();
    if json {
        output.json(&rotation)?;
        return output.flush();
    }
    match action {
        RotateAction::Begin => begun(&rotation, &mut output)?,
        RotateAction::Status => return status(&rotation, &mut output),
        RotateAction::Finish { .. } => finished(&rotation, &mut output)?,
        RotateAction::Abort => output.line(&format!(
            "rolled back: {} is the CA, as before; members renew their certificates from it within a minute",
            rotation.current
        ))?,
    }
    output.flush()
}

fn begun(rotation: &AuthorityRotation, output: &mut Output) -> CtlResult {
    let next = rotation.next.as_deref().ok_or_else(|| CtlError::new("the new CA no longer exists"))?;
    output.line(&format!(
        "{next} will replace {}, which is valid until `authority rotate finish`; members renew their certificates \
         within a minute, see `authority rotate status`",
        rotation.current
    ))?;
    if !rotation.invited.is_empty() {
        output.line(&format!("join tokens are valid until `finish`: {}", rotation.invited.join(", ")))?;
    }
    Ok(())
}

fn status(rotation: &AuthorityRotation, output: &mut Output) -> CtlResult {
    let count = rotation.members.len();
    let have = |stage: AuthorityStage| rotation.members.iter().filter(|member| member.stage == stage).count();
    output.line(&match &rotation.next {
        Some(next) => format!(
            "rotating: {} is the current CA, {next} the new one, which signed the certificates of {} of {count} \
             members",
            rotation.current,
            have(AuthorityStage::New)
        ),
        None => format!(
            "no rotation: {} is the CA, which signed the certificates of {} of {count} members",
            rotation.current,
            have(AuthorityStage::Present)
        ),
    })?;
    for former in &rotation.replaced {
        output.line(&format!("{} was replaced at {}", former.name, timestamp(former.replaced_ms)))?;
    }
    let unaware = names(rotation, |member| member.connected && member.stage == AuthorityStage::Present);
    if rotation.next.is_some() && !unaware.is_empty() {
        output.line(&format!(
            "certificates are renewed once every connected member trusts both CAs; these do not yet, upgrade them if \
             this lasts longer than a minute: {unaware}"
        ))?;
    }
    output.list(false, &rotation.members, &["MEMBER", "ROLE", "CERTIFICATE OF", "CONNECTED", "LAST SEEN"], |member| {
        vec![
            member.name.clone(),
            member.role.clone(),
            word(member.stage).to_owned(),
            if member.connected { "yes" } else { "no" }.to_owned(),
            or_dash(member.last_seen_ms.map(timestamp)),
        ]
    })
}

fn finished(rotation: &AuthorityRotation, output: &mut Output) -> CtlResult {
    output.line(&format!("{} is now the CA; the key of the former CA was deleted", rotation.current))?;
    let left = names(rotation, |member| member.stage == AuthorityStage::Former);
    if !left.is_empty() {
        output.line(&format!("left behind, re-enroll them with `enroll NAME --replace` and `join`: {left}"))?;
    }
    if !rotation.invited.is_empty() {
        output.line(&format!("these join tokens are invalid now, create new ones: {}", rotation.invited.join(", ")))?;
    }
    output.line("make a backup now: earlier encrypted CA backups contain the former CA")
}
