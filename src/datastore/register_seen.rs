//! Detection of a member registry that is not the latest, from marks held by members and next to the registry.
//!
//! An outdated registry would admit members that were revoked later, and nothing in it shows that. So the datastore
//! records the registry's progress outside the directory `trust`, and signs it for the members. They present it when
//! they request their encrypted backup. If a mark is ahead of the registry or belongs to another one, the datastore
//! accepts no writes, enrolls no members and issues no encrypted backups, which would replace later ones. This lasts
//! until the later registry is restored or an operator accepts this one as the latest.

use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::datastore::Recovery;
use crate::env::data_dir::replace_file;
use crate::env::summed;
use crate::model::MemberName;
use crate::telemetry::seldom::Seldom;
use crate::trust::{
    Authorities, RegisterMark, Registry, Relation, SignedMark, TrustError, authority_name, fingerprint,
};

use super::members::Members;
use super::shared::{Shared, now_ms};

/// File in the datastore's directory.
const FILE: &str = "register.mark";
const VERSION: u32 = 1;

static DOUBTED: Seldom = Seldom::new();

#[derive(Serialize, Deserialize)]
struct Noted {
    #[serde(rename = "gravwell-register-mark")]
    version: u32,
    /// Name of the CA; the registry of another CA counts separately.
    authority: String,
    mark: RegisterMark,
}

/// Progress of the registry, stored in a separate file. It is written after the registry, so it is never ahead of it.
pub(super) struct Witness {
    path: PathBuf,
    authority: String,
    noted: Option<RegisterMark>,
}

impl Witness {
    /// Reads the file in the data directory `dir`. A file that cannot be read, or that belongs to another CA,
    /// is ignored.
    pub(super) fn open(dir: &Path, authorities: &Authorities) -> Witness {
        let path = dir.join(FILE);
        let names: Vec<String> =
            authorities.all().iter().map(|certificate| authority_name(&fingerprint(certificate))).collect();
        let authority = authority_name(&authorities.current().fingerprint());
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let noted = summed::open(&text).ok().and_then(|body| serde_json::from_str::<Noted>(body).ok());
        if noted.is_none() && !text.is_empty() {
            tracing::warn!(path = %path.display(), "how far the register of members had come cannot be read; it is noted again");
        }
        let noted = noted.filter(|noted| noted.version == VERSION && names.contains(&noted.authority));
        Witness { path, authority, noted: noted.map(|noted| noted.mark) }
    }

    pub(super) fn mark(&self) -> Option<&RegisterMark> {
        self.noted.as_ref()
    }

    fn keep(&mut self, mark: RegisterMark) {
        if self.noted.as_ref().is_some_and(|noted| noted.count >= mark.count) {
            return;
        }
        let noted = Noted { version: VERSION, authority: self.authority.clone(), mark };
        let text = serde_json::to_string(&noted).expect("invariant: it has no map with odd keys");
        match replace_file(&self.path, summed::seal(&text).as_bytes()) {
            Ok(()) => self.noted = Some(noted.mark),
            Err(error) => tracing::warn!(%error, "how far the register of members has come could not be noted"),
        }
    }
}

/// Compares the registry with `witness` and returns evidence that the registry is not the latest. If recovery is off,
/// the registry is accepted as the latest instead.
///
/// # Errors
/// Returns an error if the registry cannot be written.
pub(super) fn examine(
    registry: &mut Registry,
    witness: &Witness,
    mode: Recovery,
) -> Result<Option<String>, TrustError> {
    if let Some(seen) = witness.mark() {
        registry.note_shown(seen);
    }
    let Some(shown) = registry.shown() else { return Ok(None) };
    let found = described(registry, &shown);
    if super::recovery::counts(mode, &found) {
        return Ok(Some(found));
    }
    registry.accept(Some(&shown), now_ms())?;
    Ok(None)
}

fn described(registry: &Registry, shown: &RegisterMark) -> String {
    let here = registry.mark();
    match registry.relation(shown) {
        Some(Relation::Apart) => format!(
            "its register of members, of {here}, is none that went on from the one of {shown}, which was seen: who was revoked in \
             that one is not known"
        ),
        _ => format!(
            "its register of members went back: it is of {here}, and one of {shown} was seen: who was revoked since is let in"
        ),
    }
}

impl Members {
    fn witness(&self) -> MutexGuard<'_, Option<Witness>> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts recording the registry's progress in `witness`.
    pub(super) fn witnessed_by(&self, witness: Witness) {
        *self.witness() = Some(witness);
    }

    /// Records the progress after the registry was written.
    pub(super) fn note_written(&self) {
        let mark = {
            let registry = self.registry();
            // A mark ahead of the registry must be kept.
            if registry.shown().is_some() {
                return;
            }
            registry.mark()
        };
        if let Some(witness) = self.witness().as_mut() {
            witness.keep(mark);
        }
    }

    /// Describes the mark that is ahead of this registry, if any.
    fn beyond(&self) -> Option<String> {
        let registry = self.registry();
        registry.shown().map(|shown| described(&registry, &shown))
    }
}

impl Shared {
    fn register_shows(&self) -> MutexGuard<'_, String> {
        self.register_shows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the reason why the registry does not count as the latest.
    pub(super) fn register_waits(&self) -> Option<String> {
        Some(self.register_shows().clone()).filter(|waits| !waits.is_empty())
    }

    /// Returns the remedy for the operator of the data directory `dir`.
    pub(super) fn register_remedy(dir: &str) -> String {
        format!(
            "stop the datastore, and put the later register back: `gravwell-logctl --data-dir {dir} authority restore FILE \
             --recovery-key KEY --register copy`, where FILE is identity/escrow of a member that has it; or take this one for the \
             latest, and revoke again who was revoked since: start it once with --recovery off"
        )
    }

    /// Stops accepting writes and enrolling members.
    pub(super) fn wait_for_register(&self, evidence: Option<String>) {
        let Some(evidence) = evidence else { return };
        let mut shows = self.register_shows();
        if shows.is_empty() {
            let remedy = Shared::register_remedy(&self.path.display().to_string());
            tracing::error!(remedy, "the datastore takes no writes: {evidence}");
            crate::telemetry::metrics::recovery_needed(true);
        }
        *shows = evidence;
    }

    /// Checks the registry mark that a member presents, which belongs to its encrypted backup. Only marks signed by one
    /// of the datastore's CAs count.
    pub(super) fn examine_register(&self, member: &MemberName, seen: &SignedMark) {
        if self.members.registry().relation(&seen.mark).is_none() {
            return;
        }
        if !seen.is_of(&self.members.authorities()) {
            if let Some(left_out) = DOUBTED.note() {
                tracing::warn!(%member, left_out, "a member shows a register of members that this authority did not sign");
            }
            return;
        }
        let is_accepted = self.config.recovery == Recovery::Off;
        let noted = self.members.change(|registry| match is_accepted {
            true => registry.accept(Some(&seen.mark), now_ms()),
            false => {
                registry.note_shown(&seen.mark);
                Ok(())
            }
        });
        if let Err(error) = noted {
            tracing::error!(%error, "what a member showed of the register could not be written down; it is lost at a restart");
        }
        match is_accepted {
            true => {
                tracing::error!(%member, seen = %seen.mark, "a later register of members was seen, and is given up: Datastore-Recovery is off")
            }
            false => self.wait_for_register(self.members.beyond()),
        }
    }
}
