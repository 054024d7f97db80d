//! Detection of a member registry that is not the latest, from marks held by members and next to the registry.
//!
//! An outdated registry would admit members that were revoked later, and nothing in it shows that. So the datastore
//! records the registry's progress outside the directory `trust`, and signs it for the members. They present it when
//! they request their encrypted backup. The audit records it, too. If a mark is ahead of the registry or belongs to
//! another one, the datastore accepts no writes, enrolls no members, renews no certificates and issues no encrypted
//! backups, which would replace later ones. Log and state are given only to members that show the latest mark, because
//! the others may have been revoked since. This lasts until the later registry is restored or an operator accepts this
//! one as the latest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use gravwell_config::datastore::Recovery;
use gravwell_env::checksummed_text;
use gravwell_env::data_dir::replace_file;
use gravwell_env::fs::{first_free, parent_dir};
use gravwell_model::MemberName;
use gravwell_runtime::telemetry::log_rate_limit::LogRateLimit;
use gravwell_transport::trust::{
    Authorities, KnownMark, RegisterMark, Registry, Relation, Role, SignedMark, TrustError, authority_name,
    fingerprint, listed,
};

use super::members::Members;
use super::shared::{DatastoreState, now_ms};

/// File in the datastore's directory.
const FILE: &str = "register.mark";
/// In names of files that were set aside because they could not be read.
const DAMAGED: &str = "damaged";
const VERSION: u32 = 1;

/// Close code of a connection of a member to which nothing is given.
const CLOSE_REFUSED: u32 = 1;

static DOUBTED: LogRateLimit = LogRateLimit::new();

/// Registry that a member has shown.
#[derive(Default)]
pub(super) struct Shown {
    /// Connection over which it last presented the mark of its CA backup, or reported that it has none.
    connection: Option<usize>,
    /// The latest registry of which anything was known when the member showed it. A member whose revocation the present
    /// registry has lost was not given a copy of that one.
    latest: Option<RegisterMark>,
}

/// Registries that members have shown.
pub(super) type AllShown = watch::Sender<BTreeMap<MemberName, Shown>>;

#[derive(Serialize, Deserialize)]
struct Noted {
    #[serde(rename = "gravwell-register-mark")]
    version: u32,
    /// Name of the CA at that time. A registry goes on counting when its CA is rotated.
    authority: String,
    mark: RegisterMark,
    /// The last change that was more than an invitation. Absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lasting: Option<RegisterMark>,
}

/// Marks of a written registry: of its last change, and of the last one that was more than an invitation.
pub(super) struct Progress {
    mark: RegisterMark,
    lasting: RegisterMark,
}

impl Progress {
    pub(super) fn of(registry: &Registry) -> Progress {
        Progress { mark: registry.mark(), lasting: registry.lasting_mark() }
    }
}

/// The recorded progress of the register, in a file next to it. It is written after the register, so it is never ahead of it.
pub(super) struct Witness {
    path: PathBuf,
    found: Found,
    /// The directory is only looked at: nothing is written.
    is_read_only: bool,
}

/// Contents of the file.
enum Found {
    Nothing,
    /// There is none, although the registry says that its progress was recorded.
    Missing,
    Mark(Noted),
    /// It cannot be read, for this reason.
    Unreadable(String),
}

impl Found {
    fn read(path: &Path, was_written: bool) -> Found {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return if was_written { Found::Missing } else { Found::Nothing };
            }
            Err(error) => return Found::Unreadable(error.to_string()),
        };
        let noted = checksummed_text::open(&text)
            .and_then(|body| serde_json::from_str::<Noted>(body).map_err(|error| error.to_string()));
        match noted {
            Err(why) => Found::Unreadable(why),
            Ok(noted) if noted.version != VERSION => {
                Found::Unreadable(format!("version {} is unknown; this program reads {VERSION}", noted.version))
            }
            Ok(noted) => Found::Mark(noted),
        }
    }
}

/// Description of a missing file for the operator.
const MISSING: &str = "it is missing, although the registry states that it was written";

impl Witness {
    /// Reads the file in the data directory `dir`. Nothing is changed before the register is written again. `was_written`:
    /// the registry says that there is one.
    pub(super) fn open(dir: &Path, was_written: bool, is_read_only: bool) -> Witness {
        let path = dir.join(FILE);
        let found = Found::read(&path, was_written);
        match &found {
            Found::Unreadable(why) => {
                tracing::error!(path = %path.display(), why, "failed to read the position of the member registry; \
                                                              keeping the file");
            }
            Found::Missing => {
                tracing::error!(path = %path.display(), "recorded position of the member registry is missing")
            }
            _ => {}
        }
        Witness { path, found, is_read_only }
    }

    /// The recorded progress.
    pub(super) fn noted(&self) -> Option<Audited> {
        let Found::Mark(Noted { authority, mark, .. }) = &self.found else { return None };
        Some(Audited { mark: mark.clone(), authority: authority.clone() })
    }

    /// Describes a damaged file, or one that was renamed because it was damaged, until an operator removes it.
    fn damage(&self) -> Option<(PathBuf, String)> {
        match &self.found {
            Found::Unreadable(why) => return Some((self.path.clone(), why.clone())),
            Found::Missing => return Some((self.path.clone(), MISSING.into())),
            _ => {}
        }
        let why = "it was missing or unreadable, and was renamed when the registry was written again";
        self.damaged_copies().min().map(|aside| (aside, why.into()))
    }

    /// Returns the files that were renamed because they were damaged. An operator may have removed only some of them.
    fn damaged_copies(&self) -> impl Iterator<Item = PathBuf> {
        let prefix = format!("{FILE}.{DAMAGED}-");
        let entries = std::fs::read_dir(parent_dir(&self.path)).into_iter().flatten().flatten();
        let is_copy =
            move |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        entries.map(|entry| entry.path()).filter(is_copy)
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.path.with_file_name(format!("{FILE}.{DAMAGED}-{number}"))
    }

    fn keep(&mut self, Progress { mark, lasting }: Progress, authority: String) {
        if self.is_read_only {
            return;
        }
        if let Found::Mark(noted) = &self.found
            && noted.mark.count >= mark.count
            && noted.authority == authority
        {
            return;
        }
        if let Err(error) = self.make_room().and_then(|()| self.write(mark, lasting, authority)) {
            tracing::warn!(%error, "failed to record the position of the member registry");
        }
    }

    /// Renames a file that must not be overwritten.
    fn make_room(&mut self) -> std::io::Result<()> {
        if let Found::Nothing | Found::Mark(_) = self.found {
            return Ok(());
        }
        let aside = first_free(|number| self.aside(number)).ok_or(std::io::ErrorKind::AlreadyExists)?;
        if let Found::Missing = self.found {
            // Says so until an operator has looked, also after the file was written again.
            replace_file(&aside, format!("{MISSING}\n").as_bytes()).map_err(std::io::Error::other)?;
            self.found = Found::Nothing;
            return Ok(());
        }
        match std::fs::rename(&self.path, &aside) {
            // Read failed, but there is nothing to keep any more.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => self.found = Found::Nothing,
        }
        tracing::warn!(to = %aside.display(), "renamed the recorded position of the member registry");
        Ok(())
    }

    fn write(&mut self, mark: RegisterMark, lasting: RegisterMark, authority: String) -> std::io::Result<()> {
        let noted = Noted { version: VERSION, authority, mark, lasting: Some(lasting) };
        let text = serde_json::to_string(&noted)?;
        replace_file(&self.path, checksummed_text::seal(&text).as_bytes()).map_err(std::io::Error::other)?;
        self.found = Found::Mark(noted);
        Ok(())
    }
}

/// The registry's progress as it was recorded outside of it, in `register.mark` or in the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Audited {
    pub mark: RegisterMark,
    /// Name of the CA at that time.
    pub authority: String,
}

/// Compares the registry with `witness` and with what the audit has recorded, and returns evidence that the registry is
/// not the latest. If recovery is off, the registry is accepted as the latest instead.
///
/// A mark counts whichever CA it names. One of a CA that is unknown here may be from after a rotation: then the registry
/// was put back together with a CA that was replaced. Commands that exchange both on purpose accept the new registry.
///
/// # Errors
/// Returns an error if the registry cannot be written.
pub(super) fn examine(
    registry: &mut Registry,
    (witness, audited): (&Witness, Option<Audited>),
    authorities: &Authorities,
    mode: Recovery,
) -> Result<Option<String>, TrustError> {
    let recorded: Vec<Audited> = witness.noted().into_iter().chain(audited).collect();
    for seen in &recorded {
        registry.note_shown(&seen.mark);
    }
    let Some(shown) = registry.shown() else { return Ok(None) };
    let mut found = described(registry, &shown);
    let is_known = |name: &String| authorities.all().iter().any(|own| authority_name(&fingerprint(own)) == *name);
    let mut of_others = recorded.iter().filter(|seen| seen.mark == shown).map(|seen| &seen.authority);
    if let Some(name) = of_others.find(|name| !is_known(name)) {
        let _ = write!(found, "; that one is of the certificate authority {name}, which is unknown here");
    }
    if super::read_only::counts(mode, &found) {
        return Ok(Some(found));
    }
    registry.accept(&shown, now_ms())?;
    // The audit may have recorded another change than `register.mark`.
    for seen in recorded.iter().filter(|seen| seen.mark != shown) {
        if registry.relation(&seen.mark).is_some() {
            registry.accept(&seen.mark, now_ms())?;
        }
    }
    Ok(None)
}

/// Makes the registry of a new CA in the data directory `dir` later than what `register.mark` and the audit have recorded of
/// the registry of the former CA, which the operator gives up.
///
/// # Errors
/// If the registry cannot be read or written.
pub fn accept_over_noted(dir: &Path) -> Result<(), TrustError> {
    // Absence is reported when the datastore starts.
    let noted = Witness::open(dir, false, true).noted();
    let (_, audited) = super::audit::found_in(dir, &super::service::local_name());
    let mut registry = Registry::open(&super::service::trust_dir(dir), now_ms())?;
    for seen in noted.iter().chain(&audited) {
        if registry.relation(&seen.mark).is_some() {
            registry.accept(&seen.mark, now_ms())?;
        }
    }
    Ok(())
}

/// Makes the registry in the data directory `dir`, which an operator has just put back or chosen, later than invitations of
/// which `register.mark` has recorded the last one: a copy need not have them. If the registry lacks any other change that is
/// recorded, and the operator did not give that up, it remains evidence.
///
/// # Errors
/// If the registry cannot be read or written.
pub fn accept_noted_invitations(dir: &Path) -> Result<(), TrustError> {
    let Found::Mark(Noted { mark, lasting: Some(lasting), .. }) = Witness::open(dir, false, true).found else {
        return Ok(());
    };
    let mut registry = Registry::open(&super::service::trust_dir(dir), now_ms())?;
    match (registry.relation(&lasting), registry.relation(&mark)) {
        (None, Some(_)) => registry.accept(&mark, now_ms()),
        _ => Ok(()),
    }
}

fn described(registry: &Registry, shown: &RegisterMark) -> String {
    let here = registry.mark();
    match registry.relation(shown) {
        Some(Relation::Apart) => format!(
            "its member registry, of {here}, does not descend from the one of {shown}, which was seen: members revoked \
             in that one are unknown here"
        ),
        _ => format!(
            "its member registry went back: it is of {here}, and one of {shown} was seen: members revoked since then \
             are unknown here"
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

    /// Records the progress of the registry that was written. The registry in memory may be ahead of it, by a revocation
    /// that waits for the disk.
    pub(super) fn note_written(&self, written: Progress) {
        // A mark ahead of the registry must be kept.
        if self.registry().shown().is_some() {
            return;
        }
        let authority = authority_name(&self.authorities().current().fingerprint());
        let is_kept = self.witness().as_mut().is_some_and(|witness| {
            witness.keep(written, authority);
            matches!(witness.found, Found::Mark(_))
        });
        if is_kept {
            self.registry().note_has_mark();
        }
    }

    /// Returns the progress that is to be recorded in the audit: that of the written register, unless a later one is
    /// known.
    pub(super) fn audited(&self) -> Option<Audited> {
        if self.registry().shown().is_some() {
            return None;
        }
        self.witness().as_ref().and_then(Witness::noted)
    }

    /// Returns the damaged record of the register's progress, if any, with a description of the damage.
    pub(super) fn witness_damage(&self) -> Option<(PathBuf, String)> {
        self.witness().as_ref().and_then(Witness::damage)
    }

    /// Describes the mark that is ahead of this registry, if any, with the members that have shown it since the start.
    fn beyond(&self) -> Option<String> {
        let (found, latest) = {
            let registry = self.registry();
            (beyond(&registry)?, registry.shown()?)
        };
        let all = self.shown.borrow();
        let has_shown = |shown: &&Shown| shown.latest.as_ref().is_some_and(|seen| is_same(seen, &latest));
        let members = all.iter().filter(|(_, shown)| has_shown(shown)).map(|(name, _)| name.to_string()).collect();
        Some(by(found, &members))
    }
}

/// Adds the names of the members that have shown a mark to its description.
fn by(found: String, members: &BTreeSet<String>) -> String {
    if members.is_empty() { found } else { format!("{found}; shown by {}", listed(members)) }
}

/// Describes the mark that is ahead of a registry, if any.
pub(super) fn beyond(registry: &Registry) -> Option<String> {
    registry.shown().map(|shown| described(registry, &shown))
}

/// Returns the progress of the registry that is recorded in the data directory `dir`, outside the directory `trust`, as
/// far as a copy has to have it: invitations are not restored. Nothing is changed.
#[must_use]
pub fn recorded(dir: &Path) -> Vec<KnownMark> {
    let path = dir.join(FILE);
    // Whatever cannot be read is reported when the datastore starts.
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let noted = checksummed_text::open(&text).ok().and_then(|body| serde_json::from_str::<Noted>(body).ok());
    let noted = noted.filter(|noted| noted.version == VERSION);
    let (_, audited) = super::audit::found_in(dir, &super::service::local_name());
    // The record of the same change says which one matters.
    let is_same = |audited: &Audited| noted.as_ref().is_some_and(|noted| is_same(&noted.mark, &audited.mark));
    let audited = audited.filter(|audited| !is_same(audited));
    let audited = audited.map(|audited| (audited, format!("the audit in {}", dir.display())));
    let noted = noted.map(|Noted { authority, mark, lasting, .. }| {
        (Audited { mark: lasting.unwrap_or(mark), authority }, path.display().to_string())
    });
    let known = noted.into_iter().chain(audited);
    known.map(|(Audited { mark, authority }, place)| KnownMark { mark, authority: Some(authority), place }).collect()
}

/// Returns whether two marks are of the same change.
fn is_same(one: &RegisterMark, other: &RegisterMark) -> bool {
    (one.count, &one.name) == (other.count, &other.name)
}

impl Members {
    /// Records that a member has presented a registry mark over a connection, or has none.
    pub(super) fn note_shown(&self, member: &MemberName, connection: usize) {
        self.shown.send_modify(|all| all.entry(member.clone()).or_default().connection = Some(connection));
    }

    /// Waits until a member has presented its registry mark over this connection. An answer on its former one does not
    /// count.
    pub(super) async fn wait_shown(&self, member: &MemberName, connection: usize) {
        let has_shown = |shown: &Shown| shown.connection == Some(connection);
        // The sender is in `self`, so it is not dropped.
        let _ = self.shown.subscribe().wait_for(|all| all.get(member).is_some_and(has_shown)).await;
    }

    /// Records the mark that a member has shown, which was signed here.
    fn note_sound(&self, member: &MemberName, seen: &RegisterMark) {
        let latest = self.registry().shown().filter(|latest| is_same(seen, latest));
        self.shown.send_modify(|all| {
            if latest.is_some() {
                all.entry(member.clone()).or_default().latest = latest;
            }
        });
    }

    /// Returns whether a member is known not to have been revoked in the latest register: no later one than the present
    /// one is known, or the member has shown it.
    fn is_sound(&self, member: &MemberName) -> bool {
        let Some(latest) = self.registry().shown() else { return true };
        let all = self.shown.borrow();
        all.get(member).and_then(|shown| shown.latest.as_ref()).is_some_and(|seen| is_same(seen, &latest))
    }

    /// Closes the connections over which members that are not sound receive entries.
    fn disconnect_unsound(&self, why: impl Fn(&MemberName) -> String) {
        let connected: Vec<_> = {
            let presences = self.presences();
            let served = presences.present.values().filter(|present| present.role != Role::Balancer);
            served.map(|present| (present.member.clone(), present.connection.clone())).collect()
        };
        for (member, connection) in connected.into_iter().filter(|(member, _)| !self.is_sound(member)) {
            connection.close(CLOSE_REFUSED.into(), why(&member).as_bytes());
        }
    }
}

impl DatastoreState {
    /// Returns the reason why a member is given nothing of the log and the state; `None` if it is.
    pub(super) fn withheld_from(&self, member: &MemberName) -> Option<String> {
        if self.members.is_sound(member) {
            return None;
        }
        let waits = self.register_waits().or_else(|| self.members.beyond())?;
        Some(withheld(member, &waits))
    }

    /// Waits for a member to show the latest register, if the present one is known not to be that. Returns the reason
    /// why nothing is given to it.
    pub(super) async fn wait_sound(&self, member: &MemberName, patience: Duration) -> Option<String> {
        let mut changed = self.members.shown.subscribe();
        let waiting = async {
            while self.withheld_from(member).is_some() {
                if changed.changed().await.is_err() {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(patience, waiting).await;
        self.withheld_from(member)
    }

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
            "stop the datastore and restore the later registry: `gravwell-logctl --data-dir {dir} authority restore \
             FILE --recovery-key KEY --register copy`, where FILE is identity/escrow of a member that has it (a copy \
             that lacks it is refused); or accept this one as the latest by starting once with --recovery off, and \
             revoke again all members that were revoked since"
        )
    }

    /// Stops accepting writes and enrolling members, and serving those that have not shown the later register.
    pub(super) fn wait_for_register(&self, evidence: Option<String>) {
        let Some(evidence) = evidence else { return };
        let mut shows = self.register_shows();
        if shows.is_empty() {
            let remedy = DatastoreState::register_remedy(&self.path.display().to_string());
            tracing::error!(remedy, "datastore accepts no writes: {evidence}");
            gravwell_runtime::telemetry::metrics::recovery_needed(true);
        }
        let is_news = *shows != evidence;
        shows.clone_from(&evidence);
        drop(shows);
        if is_news {
            self.members.disconnect_unsound(|member| withheld(member, &evidence));
        }
    }

    /// Checks the registry mark that a member presents, which belongs to its encrypted backup. Only marks signed by one
    /// of the datastore's CAs count.
    pub(super) fn examine_register(&self, member: &MemberName, seen: &SignedMark) {
        if self.members.registry().relation(&seen.mark).is_none() {
            return;
        }
        if !self.members.authorities().have_signed(seen) {
            if let Some(left_out) = DOUBTED.note() {
                tracing::warn!(%member, left_out, "member presented a registry mark that this certificate authority \
                                                   did not sign");
            }
            return;
        }
        let is_accepted = self.config.recovery == Recovery::Off;
        let noted = self.members.change(|registry| match is_accepted {
            true => registry.accept(&seen.mark, now_ms()),
            false => {
                registry.note_shown(&seen.mark);
                Ok(())
            }
        });
        if let Err(error) = noted {
            tracing::error!(%error, "failed to store a member's registry mark; it is lost at a restart");
        }
        match is_accepted {
            true => {
                tracing::error!(%member, seen = %seen.mark, "ignoring a later member registry, because \
                                                             Datastore-Recovery is off")
            }
            false => {
                self.members.note_sound(member, &seen.mark);
                self.wait_for_register(self.members.beyond());
            }
        }
    }
}

fn withheld(member: &MemberName, waits: &str) -> String {
    format!(
        "register_went_back: {member} is not served before an operator has restored the later registry, because \
         {waits}; a member that has an encrypted backup of the later registry is served"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install_marker::{Trust, Unfinished, Work};
    use gravwell_transport::trust::GivenUp;

    const NOW: u64 = 1_800_000_000_000;

    fn invite_all(registry: &mut Registry, names: &[&str]) {
        for name in names.iter().map(|name| MemberName::new(*name).expect("name")) {
            registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        }
    }

    #[test]
    fn p13_a_mark_of_an_unknown_authority_is_evidence_until_an_operator_gives_it_up() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (dir, trust) = (temp.path(), temp.path().join("trust"));
        let mut registry = Registry::open(&trust, NOW).expect("register");
        registry.establish(NOW).expect("writes");
        let authorities = Authorities::open_or_create(&trust, NOW).expect("authority");
        let mark = RegisterMark { count: 9, name: "0123456789abcdef".into(), changed_ms: NOW };
        let other = "00112233445566ff";
        let examine = |registry: &mut Registry, audited: Option<Audited>| {
            let witness = Witness::open(dir, false, true);
            examine(registry, (&witness, audited), &authorities, Recovery::Auto).expect("examines")
        };
        assert_eq!(examine(&mut registry, None), None);
        let audited = Audited { mark: mark.clone(), authority: other.into() };
        let shows = examine(&mut registry.copy(), Some(audited)).expect("is evidence");
        assert!(shows.contains("went back") && shows.contains(other), "{shows}");
        let mut witness = Witness::open(dir, false, false);
        witness.write(mark.clone(), mark.clone(), other.into()).expect("writes");
        let before = std::fs::read(dir.join(FILE)).expect("reads");
        let shows = examine(&mut registry.copy(), None).expect("is evidence");
        assert!(shows.contains(other), "{shows}");
        assert_eq!(std::fs::read(dir.join(FILE)).expect("reads"), before, "it is kept");
        // After a rotation it is that of a CA which is known, and the registry has gone on.
        let own = authority_name(&authorities.current().fingerprint());
        witness.write(registry.mark(), registry.mark(), own.clone()).expect("writes");
        assert_eq!(examine(&mut registry.copy(), None), None);
        witness.write(mark.clone(), mark, own.clone()).expect("writes");
        let shows = examine(&mut registry.copy(), None).expect("is evidence");
        assert!(!shows.contains(&own), "{shows}");
        // A copy need not have an invitation.
        let (mut invited, names) = (registry.copy(), ["web1", "web2"].map(|name| MemberName::new(name).expect("name")));
        invited.invite(&names[0], Role::Webserver, 1000, NOW, false).expect("invites");
        invited.enrol(&names[0], Role::Webserver, b"certificate", 30, NOW).expect("enrols");
        let enrolled = invited.mark();
        invited.invite(&names[1], Role::Webserver, 1000, NOW, false).expect("invites");
        let now = Progress::of(&invited);
        witness.write(now.mark, now.lasting, own.clone()).expect("writes");
        assert_eq!(recorded(dir).into_iter().map(|known| known.mark).collect::<Vec<_>>(), [enrolled]);
        assert!(examine(&mut registry.copy(), None).is_some(), "its absence is noticed nevertheless");
        // With recovery off, everything that is recorded is accepted at once.
        let mut accepted = registry.copy();
        invite_all(&mut accepted, &["web3", "web4"]);
        let mark = RegisterMark { count: registry.mark().count + 1, name: "00ff".into(), changed_ms: NOW };
        let audited = Audited { mark, authority: own.clone() };
        let with = |registry: &mut Registry, mode| {
            let witness = Witness::open(dir, false, true);
            super::examine(registry, (&witness, Some(audited.clone())), &authorities, mode).expect("examines")
        };
        assert!(with(&mut accepted, Recovery::Auto).is_some());
        assert_eq!(with(&mut accepted, Recovery::Off), None);
        assert_eq!(with(&mut accepted, Recovery::Auto), None, "neither of the two is reported again");
        // A command that creates a CA gives it up.
        accept_over_noted(dir).expect("accepts");
        let mut registry = Registry::open(&trust, NOW).expect("reopens");
        assert_eq!(examine(&mut registry, None), None);
        witness.keep(Progress::of(&registry), own);
        assert_eq!(Witness::open(dir, false, true).noted().map(|noted| noted.mark), Some(registry.mark()));
    }

    #[test]
    fn p13_a_choice_gives_up_recorded_invitations_and_no_other_recorded_change() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (dir, trust) = (temp.path(), temp.path().join("trust"));
        let invite = |registry: &mut Registry, name: &str| {
            let name = MemberName::new(name).expect("name");
            registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
            name
        };
        let mut registry = Registry::open(&trust, NOW).expect("register");
        Authorities::open_or_create(&trust, NOW).expect("authority");
        let name = invite(&mut registry, "web1");
        registry.enrol(&name, Role::Webserver, b"certificate", 30, NOW).expect("enrols");
        let lasting = registry.mark();
        let branch = |names: &[&str]| {
            let mut branch = Registry::open(&trust, NOW).expect("opens").detached();
            names.iter().for_each(|name| drop(invite(&mut branch, name)));
            branch
        };
        let (other, third, invited) = (branch(&["a", "b"]), branch(&["c", "d", "e"]), branch(&["f", "g"]));
        let complete = |mark: &RegisterMark, lasting: &RegisterMark| {
            let mut witness = Witness::open(dir, false, false);
            witness.write(mark.clone(), lasting.clone(), "ab12".into()).expect("writes");
            let given_up = vec![GivenUp::of(&other)];
            let unfinished = Unfinished::of(dir, Work::Recover, Trust::Kept);
            Unfinished { given_up, ..unfinished }.write(dir).expect("writes");
            crate::install_marker::complete(dir);
            Registry::open(&trust, NOW).expect("opens").relation(mark)
        };
        // A change of a registry that nobody was asked about.
        assert!(complete(&third.mark(), &third.mark()).is_some());
        assert_eq!(complete(&invited.mark(), &lasting), None);
        assert!(complete(&third.mark(), &third.mark()).is_some());
    }
}
