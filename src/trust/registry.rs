//! The register of members: one file, checksummed, replaced whole.
//!
//! Enrolments and revocations are durable before they are answered. Positions are written lazily: one that is lost
//! only makes the floor lower than it could be.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::{read_text, write_private};
use super::{Authority, Fingerprint, Role, TrustError, authority_name, fingerprint, hex, summed};
use crate::codec::jsonl::timestamp;
use crate::env::fs::first_free;
use crate::model::address::host_and_port;
use crate::model::ids::hex_bytes;
use crate::model::{Generation, LogId, MemberName, Position, Seq, printable};
use crate::planted::{self, Bug};

/// The register's file, beside the authority's.
pub(super) const FILE: &str = "members.json";
/// A second copy of it, written after it: shows that there was a register, when that is missing.
pub(super) const COPY: &str = "members.copy";
const MS_PER_DAY: u64 = 24 * 3600 * 1000;
/// Members in the register, whatever their state: a roster of so many, with the longest values that are accepted, fits into one
/// message.
pub const MEMBERS_MAX: usize = 4096;
/// Characters of an address beyond the bounds that are kept, to be shown.
const SHOWN_CHARS: usize = 64;

/// Longest life of a token to join with: a year.
pub const TOKEN_LIFE_MAX_MS: u64 = 365 * 24 * 3_600_000;

/// Where a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Has a token that it has not used yet.
    Invited,
    /// Has a certificate.
    Enrolled,
    /// Was cut off.
    Revoked,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::Invited => "invited",
            MemberState::Enrolled => "enrolled",
            MemberState::Revoked => "revoked",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Certificate {
    fingerprint: String,
    expires_ms: u64,
    /// Name of the authority that signed it; absent in files of a version that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    /// The member said that it has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_held: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Invite {
    secret_hash: String,
    expires_ms: u64,
    role: Role,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Name.
    pub name: MemberName,
    /// Role.
    pub role: Role,
    /// Where it stands.
    pub state: MemberState,
    /// Durably applied sequence as it last reported; `None` when it never did.
    pub applied: Option<Seq>,
    /// The highest sequence that it ever reported in this log: the entries up to here are not kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passed: Option<Seq>,
    /// When that last rose, or was the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advanced_ms: Option<u64>,
    /// When it was last heard of.
    pub last_seen_ms: Option<u64>,
    /// When it joined.
    enrolled_ms: Option<u64>,
    revoked_ms: Option<u64>,
    /// Current certificate, and the one before until the current one has been used.
    certificates: Vec<Certificate>,
    invite: Option<Invite>,
    /// Where other webservers and balancers reach it, as it last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_addr: Option<String>,
    /// A position that it showed and that proves that the log lost entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<Position>,
    /// The log that was here when it joined; absent in files of a version that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_in: Option<LogId>,
    /// Names of the recovery keys that open the sealed copy that it last said it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_keys: Option<String>,
}

/// Where the log stood when the register was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Which log.
    pub log_id: LogId,
    /// Its generation, which is that of the members' positions.
    pub generation: Generation,
    /// Its last sequence.
    pub seq: Seq,
}

/// The last record of the datastore's audit, when the register was last written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditMark {
    /// Which audit: it is a log of its own.
    pub log_id: LogId,
    /// The record.
    pub seq: Seq,
    /// Chain there, hexadecimal.
    pub chain: String,
}

impl Member {
    /// Whether it has been heard of within the retention. Time during which the datastore could hear no member does not count.
    fn is_heard(&self, now_ms: u64, retention_ms: u64, absences: &[Absence]) -> bool {
        let silence = |seen: u64| now_ms.saturating_sub(seen).saturating_sub(absence::since(absences, seen));
        let is_recent = |seen: Option<u64>| seen.is_some_and(|seen| silence(seen) <= retention_ms);
        // One that is heard of and does not get on is as good as silent.
        is_recent(self.last_seen_ms) && is_recent(self.advanced_ms.or(self.last_seen_ms))
    }

    /// The highest sequence that it ever reported as durably applied in this log; `None` before it has reported any. Where it
    /// stands itself may be lower: after a start it reports 0 until it has written something, and its state may have gone back.
    #[must_use]
    pub fn passed(&self) -> Option<Seq> {
        self.passed.max(self.applied)
    }

    /// Everything of it but positions.
    fn described(&self) -> String {
        let (applied, passed, advanced_ms, last_seen_ms) = (None, None, None, None);
        let (contradiction, copy_keys) = (None, None);
        let mut described =
            Member { applied, passed, advanced_ms, last_seen_ms, contradiction, copy_keys, ..self.clone() };
        described.certificates.iter_mut().for_each(|certificate| certificate.is_held = false);
        format!("{described:?}")
    }

    /// Everything of it but positions and an invitation.
    pub(super) fn lasting(&self) -> String {
        Member { invite: None, ..self.clone() }.described()
    }

    /// Whether it holds a certificate of this fingerprint.
    fn has(&self, print: &str) -> bool {
        self.certificates.iter().any(|certificate| certificate.fingerprint == print)
    }

    /// End of its certificate's life.
    #[must_use]
    pub fn certificate_expires_ms(&self) -> Option<u64> {
        self.certificates.last().map(|certificate| certificate.expires_ms)
    }
}

/// Which members pin the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorPolicy {
    /// Whether readers do. Without that, one that is too far behind takes a snapshot, and loses nothing.
    pub readers: bool,
    /// Entries that are kept for one member at most.
    pub lag_ops_max: u64,
}

impl Default for FloorPolicy {
    fn default() -> FloorPolicy {
        FloorPolicy { readers: false, lag_ops_max: u64::MAX }
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct Contents {
    members: BTreeMap<MemberName, Member>,
    /// When this was written; 0 in files of a version that did not say.
    #[serde(default)]
    saved_ms: u64,
    /// Rises with every write; 0 in files of a version that did not count.
    #[serde(default)]
    revision: u64,
    /// Absent in files of a version that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogMark>,
    /// Absent in files of a version that counted none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changes: Option<changes::Changes>,
    /// Absent in files of a version that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audit: Option<AuditMark>,
    /// When nobody could be heard, the latest last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    absences: Vec<Absence>,
}

/// The open register.
#[derive(Default)]
pub struct Registry {
    /// `None`: it lives in memory, and whoever holds it keeps its text.
    path: Option<PathBuf>,
    contents: Contents,
    by_fingerprint: BTreeMap<String, MemberName>,
    is_dirty: bool,
    policy: FloorPolicy,
    /// Certificates that no longer count because a renewed one was used.
    retired: u64,
    /// Names of the authorities that were replaced.
    replaced: Vec<String>,
}

impl Registry {
    /// Sets which members pin the floor.
    pub fn set_floor_policy(&mut self, policy: FloorPolicy) {
        self.policy = policy;
    }

    /// Rises whenever the use of a renewed certificate ends the one before.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Opens the register in `dir`; one that never was written is empty.
    ///
    /// # Errors
    /// When the file is damaged, older than its copy, or missing although there was one: it is never replaced by an empty one.
    pub fn open(dir: &Path, now_ms: u64) -> Result<Registry, TrustError> {
        let path = dir.join(FILE);
        let contents = match read_text(&path) {
            Ok(text) => parse(&text).map_err(|what| TrustError::Damaged { path: path.clone(), what })?,
            Err(TrustError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => missing(dir, &path)?,
            Err(error) => return Err(error),
        };
        check_copy(&path, &contents)?;
        Ok(Registry::of(Some(path), contents, now_ms))
    }

    /// What the copy of the register in `dir` says of a member; `None`: it cannot be read, or does not know the member. It may be
    /// one change behind. For where the register itself cannot be read.
    #[must_use]
    pub fn state_in_copy(dir: &Path, name: &str) -> Option<MemberState> {
        let contents = parse(&read_text(&dir.join(COPY)).ok()?).ok()?;
        contents.members.values().find(|member| member.name.as_str() == name).map(|member| member.state)
    }

    /// The register as it is now, without a file.
    #[must_use]
    pub fn copy(&self) -> Registry {
        let (contents, by_fingerprint) = (self.contents.clone(), self.by_fingerprint.clone());
        Registry { path: None, contents, by_fingerprint, policy: self.policy, ..Registry::default() }
    }

    /// What `file`, which is this register's, is to hold from now on; `None` when it does already. Whoever takes it writes it.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn unwritten(&mut self, file: &RegistryFile, now_ms: u64) -> Result<Option<String>, TrustError> {
        if !self.is_dirty && !file.is_behind() {
            return Ok(None);
        }
        let text = self.text(now_ms)?;
        self.is_dirty = false;
        Ok(Some(text))
    }

    /// An empty register in `dir`, where what is lost is given up. One of which anything is left is opened.
    ///
    /// # Errors
    /// As [`Registry::open`].
    pub fn open_or_begin(dir: &Path, now_ms: u64) -> Result<Registry, TrustError> {
        let path = dir.join(FILE);
        if path.exists() || dir.join(COPY).exists() {
            return Registry::open(dir, now_ms);
        }
        Ok(Registry::of(Some(path), Contents::default(), now_ms))
    }

    /// A register that is looked at: nothing of it is written from now on.
    #[must_use]
    pub fn detached(self) -> Registry {
        Registry { path: None, ..self }
    }

    /// Writes a register that never was written, so that its absence can be noticed from now on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn establish(&mut self, now_ms: u64) -> Result<(), TrustError> {
        let is_there = self.path.as_ref().is_none_or(|path| path.exists() && path.with_file_name(COPY).exists());
        if is_there { Ok(()) } else { self.write(now_ms) }
    }

    /// Puts a trust directory aside of which the authority's key is gone and that has members, so that a new authority can begin.
    /// Says where it is kept, when there was one.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn set_aside(dir: &Path) -> Result<Option<PathBuf>, TrustError> {
        if dir.join("ca.key").exists() || !dir.join(FILE).exists() || Registry::is_unused(dir) {
            return Ok(None);
        }
        let io = |source| TrustError::Io { path: dir.to_owned(), source };
        let Some(aside) = first_free(|number| dir.with_extension(format!("aside-{number}"))) else { return Ok(None) };
        std::fs::rename(dir, &aside).map_err(io)?;
        std::fs::File::open(crate::env::fs::parent_dir(dir)).and_then(|parent| parent.sync_all()).map_err(io)?;
        Ok(Some(aside))
    }

    /// Whether the register in `dir` names no member: it was written before there was an authority.
    #[must_use]
    pub fn is_unused(dir: &Path) -> bool {
        let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
        parse(&text).is_ok_and(|contents| contents.members.is_empty())
    }

    /// Where the log stood when this was last written; `None` in files of a version that did not say.
    #[must_use]
    pub fn log_mark(&self) -> Option<LogMark> {
        self.contents.log
    }

    /// Notes where the log stands. Written lazily, as positions are.
    pub fn note_log(&mut self, mark: LogMark) {
        self.is_dirty |= self.contents.log != Some(mark);
        self.contents.log = Some(mark);
    }

    /// The last record of the audit that is known; `None` in files of a version that did not say.
    #[must_use]
    pub fn audit_mark(&self) -> Option<&AuditMark> {
        self.contents.audit.as_ref()
    }

    /// Notes the last record of the audit. Written lazily, as positions are.
    pub fn note_audit(&mut self, mark: AuditMark) {
        self.is_dirty |= self.contents.audit.as_ref() != Some(&mark);
        self.contents.audit = Some(mark);
    }

    /// Notes which recovery keys open the sealed copy that a member has. Written lazily: one that is lost is said again.
    pub fn note_copy(&mut self, name: &MemberName, keys: Option<&str>) {
        let Some(member) = self.contents.members.get_mut(name).filter(|member| member.role.holds_replica()) else {
            return;
        };
        if member.copy_keys.as_deref() != keys {
            member.copy_keys = keys.map(str::to_owned);
            self.is_dirty = true;
        }
    }

    /// Takes `mark` for the log's position, when nothing contradicts it: positions beyond it were of another generation.
    pub fn enter(&mut self, mark: LogMark) {
        for member in self.contents.members.values_mut() {
            member.applied = member.applied.map(|applied| applied.min(mark.seq));
            member.passed = member.passed.map(|passed| passed.min(mark.seq));
            member.contradiction = None;
        }
        self.note_log(mark);
    }

    /// Notes a position of a member that the log contradicts; durable when it returns. False: the name is not, or no
    /// longer, an enrolled member's, and what it shows does not count.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note_contradiction(
        &mut self,
        name: &MemberName,
        position: Position,
        now_ms: u64,
    ) -> Result<bool, TrustError> {
        match self.contents.members.get_mut(name).filter(|member| member.state == MemberState::Enrolled) {
            None => return Ok(false),
            Some(_) if planted::is(Bug::ContradictionNotKept) => return Ok(true),
            Some(member) if member.contradiction == Some(position) => return Ok(true),
            Some(member) => member.contradiction = Some(position),
        }
        self.write(now_ms).map(|()| true)
    }

    /// A register without a file, from what [`Registry::text`] gave; an empty text is an empty register.
    ///
    /// # Errors
    /// When the text is damaged.
    pub fn from_text(text: &str, now_ms: u64) -> Result<Registry, TrustError> {
        let damaged = |what| TrustError::Damaged { path: FILE.into(), what };
        let contents = if text.is_empty() { Contents::default() } else { parse(text).map_err(damaged)? };
        Ok(Registry::of(None, contents, now_ms))
    }

    /// What the file is to hold when it is written now.
    ///
    /// # Errors
    /// When it cannot be encoded.
    pub fn text(&mut self, now_ms: u64) -> Result<String, TrustError> {
        self.contents.saved_ms = now_ms;
        self.contents.revision = self.contents.revision.saturating_add(1);
        let changes = self.changes();
        // A version that counts no changes takes the revision for their count, which is never to be less.
        self.contents.revision = self.contents.revision.max(changes.count());
        self.contents.changes = Some(changes);
        let body =
            serde_json::to_string_pretty(&self.contents).map_err(|error| TrustError::Refused(error.to_string()))?;
        Ok(summed::seal(&body))
    }

    fn of(path: Option<PathBuf>, mut contents: Contents, now_ms: u64) -> Registry {
        if contents.saved_ms != 0 {
            absence::add(&mut contents.absences, contents.saved_ms, now_ms);
        }
        let mut registry = Registry { path, contents, ..Registry::default() };
        // A version without bounds accepted any address. What is beyond them is only shown.
        for member in registry.contents.members.values_mut() {
            let wrong = member.external_addr.as_ref().filter(|text| host_and_port(text).is_err());
            let shown = wrong.map(|text| format!("{} ({} bytes)", printable::shorten(text, SHOWN_CHARS), text.len()));
            member.external_addr = shown.or(member.external_addr.take());
        }
        registry.index();
        registry
    }

    /// Whether `text` is a register; the words say what is wrong.
    ///
    /// # Errors
    /// When its checksum or its contents are not in order.
    pub fn examine(text: &str) -> Result<(), String> {
        let mut registry = Registry { contents: parse(text)?, ..Registry::default() };
        registry.index();
        Ok(())
    }

    fn index(&mut self) {
        let members = self.contents.members.values();
        let all = members.flat_map(|member| {
            member.certificates.iter().map(|certificate| (certificate.fingerprint.clone(), member.name.clone()))
        });
        self.by_fingerprint = all.collect();
    }

    fn write(&mut self, now_ms: u64) -> Result<(), TrustError> {
        // Without a file of its own its holder writes it.
        self.is_dirty = true;
        if let Some(path) = self.path.clone() {
            let text = self.text(now_ms)?;
            write_whole(&path, &text)?;
            self.is_dirty = false;
        }
        self.index();
        Ok(())
    }

    /// Writes positions that changed since the last write.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, now_ms: u64) -> Result<(), TrustError> {
        if self.is_dirty { self.write(now_ms) } else { Ok(()) }
    }

    /// Writes a change of who may take part.
    fn write_change(&mut self, now_ms: u64) -> Result<(), TrustError> {
        self.note_change(now_ms);
        self.write(now_ms)
    }

    /// Changes whenever somebody is invited, enrolled, renewed or cut off; not with positions.
    #[must_use]
    pub fn stamp(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.mark().name.as_bytes());
        for member in self.members() {
            hasher.update(member.described().as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// When this was last written, milliseconds since 1970-01-01 UTC; 0 when it does not say.
    #[must_use]
    pub fn saved_ms(&self) -> u64 {
        self.contents.saved_ms
    }

    /// How often it was written, or sealed; 0 when it does not say.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.contents.revision
    }

    /// Takes every invitation back, and forgets who was invited only: the register comes from a copy, and is the latest from now on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_invitations(&mut self, now_ms: u64) -> Result<(), TrustError> {
        self.contents.members.retain(|_, member| member.state != MemberState::Invited);
        self.contents.members.values_mut().for_each(|member| member.invite = None);
        // It may be on another disk, without the audit.
        self.contents.audit = None;
        self.set_on(now_ms);
        self.write(now_ms)
    }

    /// The members by name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.contents.members.values()
    }

    /// The member of that name.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        self.contents.members.get(name)
    }

    /// Invites a member; returns the secret of its token, of which only a hash is kept.
    ///
    /// # Errors
    /// When the name is a current member's and `replace` is not set, the token would be good for more than a year, or the file
    /// cannot be written.
    pub fn invite(
        &mut self,
        name: &MemberName,
        role: Role,
        ttl_ms: u64,
        now_ms: u64,
        replace: bool,
    ) -> Result<[u8; 32], TrustError> {
        if ttl_ms > TOKEN_LIFE_MAX_MS {
            return Err(TrustError::Refused("a token is good for a year at most: give it a shorter life".into()));
        }
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| TrustError::Refused(error.to_string()))?;
        let invite = Invite {
            secret_hash: hex(blake3::hash(&secret).as_bytes()),
            expires_ms: now_ms.saturating_add(ttl_ms),
            role,
        };
        let members = self.contents.members.len();
        match self.contents.members.get_mut(name) {
            Some(member) if member.state == MemberState::Enrolled && !replace => {
                return Err(TrustError::Refused(format!(
                    "{name} is enrolled as a {}: use another name, revoke it first, or say --replace",
                    member.role
                )));
            }
            Some(member) => {
                member.invite = Some(invite);
                if member.state == MemberState::Revoked {
                    member.state = MemberState::Invited;
                    // Whoever was cut off stays so until the token is redeemed.
                    member.certificates.clear();
                    // Revoking took back what it showed. Who joins anew says again where it stands.
                    (member.applied, member.passed, member.advanced_ms) = (None, None, None);
                    member.contradiction = None;
                }
            }
            None if members >= MEMBERS_MAX => {
                return Err(TrustError::Refused(format!(
                    "the register holds {members} members, which is the most: forget those that are revoked with `revoke NAME \
                     --remove`"
                )));
            }
            None => {
                let member = Member {
                    name: name.clone(),
                    role,
                    state: MemberState::Invited,
                    applied: None,
                    passed: None,
                    advanced_ms: None,
                    last_seen_ms: None,
                    enrolled_ms: None,
                    revoked_ms: None,
                    certificates: Vec::new(),
                    invite: Some(invite),
                    external_addr: None,
                    contradiction: None,
                    enrolled_in: None,
                    copy_keys: None,
                };
                self.contents.members.insert(name.clone(), member);
            }
        }
        self.write_change(now_ms)?;
        Ok(secret)
    }

    /// Exchanges the secret of an invitation for a certificate, exactly once.
    ///
    /// # Errors
    /// When there is no such invitation, or it was used or has expired. The answer does not tell which names exist.
    pub fn redeem(
        &mut self,
        authority: &Authority,
        name: &MemberName,
        secret: &[u8; 32],
        request_der: &[u8],
        days: u32,
        now_ms: u64,
    ) -> Result<(Vec<u8>, Role), TrustError> {
        let refused = || {
            TrustError::Refused("the token is not valid, was used already, or was replaced: ask for a new one".into())
        };
        let member = self.contents.members.get_mut(name).ok_or_else(refused)?;
        let invite = member.invite.clone().ok_or_else(refused)?;
        let wanted = hex_bytes::<32>(&invite.secret_hash).map(blake3::Hash::from_bytes);
        // Comparison of BLAKE3 hashes takes the same time wherever they differ.
        if wanted != Some(blake3::hash(secret)) {
            return Err(refused());
        }
        if now_ms >= invite.expires_ms {
            let (expired, now) = (timestamp(invite.expires_ms), timestamp(now_ms));
            return Err(TrustError::Refused(format!(
                "the token has expired, at {expired}, and the datastore's clock shows {now}: ask for a new one, or set that \
                 clock if it is wrong"
            )));
        }
        let certificate = authority.sign_member(request_der, name, invite.role, days, now_ms)?;
        let role = invite.role;
        self.enrol_with(name, role, issued(authority, &certificate, days, now_ms), now_ms)?;
        Ok((certificate.to_vec(), role))
    }

    /// Makes an invited member one that holds `certificate`; its invitation is used up.
    ///
    /// # Errors
    /// When there is no such member, or the file cannot be written.
    pub fn enrol(
        &mut self,
        name: &MemberName,
        role: Role,
        certificate: &[u8],
        days: u32,
        now_ms: u64,
    ) -> Result<(), TrustError> {
        self.enrol_with(name, role, certificate_of(&fingerprint(certificate), days, now_ms), now_ms)
    }

    fn enrol_with(
        &mut self,
        name: &MemberName,
        role: Role,
        certificate: Certificate,
        now_ms: u64,
    ) -> Result<(), TrustError> {
        let enrolled_in = self.contents.log.map(|mark| mark.log_id);
        let member = self.contents.members.get_mut(name).ok_or_else(|| no_such(name))?;
        member.enrolled_in = enrolled_in;
        member.copy_keys = None;
        member.role = role;
        member.state = MemberState::Enrolled;
        member.enrolled_ms = Some(now_ms);
        member.invite = None;
        member.certificates = vec![certificate];
        self.write_change(now_ms)
    }

    /// A new certificate for a member. The former one stays good until the new one has been used.
    ///
    /// # Errors
    /// When the member is not enrolled, the request is bad, or the file cannot be written.
    pub fn renew(
        &mut self,
        authority: &Authority,
        name: &MemberName,
        request_der: &[u8],
        days: u32,
        now_ms: u64,
    ) -> Result<Vec<u8>, TrustError> {
        let refused = || TrustError::Refused(format!("{name} is not enrolled"));
        let member = self.contents.members.get_mut(name).ok_or_else(refused)?;
        if member.state != MemberState::Enrolled {
            return Err(refused());
        }
        let certificate = authority.sign_member(request_der, name, member.role, days, now_ms)?;
        // One that it said to have is as good as one that it has used: it may never have this one.
        let held = member.certificates.iter().rposition(|certificate| certificate.is_held).unwrap_or(0);
        member.certificates.drain(..held);
        member.certificates.truncate(1);
        member.certificates.push(issued(authority, &certificate, days, now_ms));
        self.write_change(now_ms)?;
        Ok(certificate.to_vec())
    }

    /// Who holds a certificate. Using a renewed one ends the life of the one before.
    ///
    /// # Errors
    /// When it is nobody's, expired, or its holder was revoked.
    pub fn authorise(&mut self, certificate_der: &[u8], now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        let print: Fingerprint = fingerprint(certificate_der);
        let print = hex(&print);
        let name = self.by_fingerprint.get(&print).ok_or(Refusal::Unknown)?.clone();
        let member = self.contents.members.get_mut(&name).ok_or(Refusal::Unknown)?;
        if member.state == MemberState::Revoked && !planted::is(Bug::KeepRevoked) {
            return Err(Refusal::Revoked(name));
        }
        if member.state == MemberState::Invited {
            return Err(Refusal::Unknown);
        }
        let Some(at) = member.certificates.iter().position(|certificate| certificate.fingerprint == print) else {
            return Err(Refusal::Unknown);
        };
        if now_ms >= member.certificates[at].expires_ms {
            return Err(Refusal::Expired(name));
        }
        let role = member.role;
        member.last_seen_ms = Some(now_ms);
        if at > 0 {
            member.certificates.drain(..at);
            self.retired += 1;
            self.index();
        }
        self.is_dirty = true;
        Ok((name, role))
    }

    /// Cuts a member off, and takes back what it showed of the log.
    ///
    /// # Errors
    /// When there is no such member, or the file cannot be written.
    pub fn revoke(&mut self, name: &MemberName, now_ms: u64) -> Result<(), TrustError> {
        let member = self.contents.members.get_mut(name).ok_or_else(|| no_such(name))?;
        member.state = MemberState::Revoked;
        member.revoked_ms = Some(now_ms);
        member.invite = None;
        // Revoking a member whose position is evidence accepts the loss, also for when it is invited again.
        member.contradiction = None;
        self.write_change(now_ms)
    }

    /// Forgets a member; its certificates are nobody's from now on.
    ///
    /// # Errors
    /// When there is no such member, or the file cannot be written.
    pub fn remove(&mut self, name: &MemberName, now_ms: u64) -> Result<(), TrustError> {
        self.contents.members.remove(name).ok_or_else(|| no_such(name))?;
        self.write_change(now_ms)
    }

    /// Notes how far a member has come in a log that ends at `head`. `true` the first time: from then on it may pin the floor,
    /// which has to be saved at once, while a later position that is lost does no harm.
    pub fn note_position(&mut self, name: &MemberName, applied: Seq, head: Seq, now_ms: u64) -> bool {
        let Some(member) = self.contents.members.get_mut(name) else { return false };
        let applied = applied.min(head);
        member.last_seen_ms = Some(now_ms);
        if member.passed().is_none_or(|passed| applied > passed) || applied == head || member.advanced_ms.is_none() {
            member.advanced_ms = Some(now_ms);
        }
        member.passed = member.passed().max(Some(applied));
        self.is_dirty = true;
        member.applied.replace(applied).is_none() && !planted::is(Bug::FirstPositionLazy)
    }

    /// Notes where a member says that it is reached. Written lazily, as positions are: it says so again.
    pub fn note_address(&mut self, name: &MemberName, external_addr: Option<&str>) {
        let Some(member) = self.contents.members.get_mut(name) else { return };
        if member.external_addr.as_deref() != external_addr {
            member.external_addr = external_addr.map(str::to_owned);
            self.is_dirty = true;
        }
    }

    /// Whether a member pins the floor of a log that ends at `head`: it follows the log, has been heard of and got on within the
    /// retention, and is not further behind than entries are kept for.
    #[must_use]
    pub fn counts(&self, member: &Member, now_ms: u64, retention_ms: u64, head: Seq) -> bool {
        let role_counts = member.role == Role::Webserver || (member.role == Role::Reader && self.policy.readers);
        let is_near = member.passed().is_some_and(|passed| head.since(passed) <= self.policy.lag_ops_max);
        let is_enrolled = member.state == MemberState::Enrolled;
        role_counts && is_enrolled && is_near && member.is_heard(now_ms, retention_ms, &self.contents.absences)
    }

    /// Whether a member has been heard of within the retention.
    #[must_use]
    pub fn is_heard(&self, member: &Member, now_ms: u64, retention_ms: u64) -> bool {
        member.is_heard(now_ms, retention_ms, &self.contents.absences)
    }

    /// Lowest sequence durably applied by all members that count; `head` when none does.
    #[must_use]
    pub fn floor(&self, now_ms: u64, retention_ms: u64, head: Seq) -> Seq {
        let retention_ms = if planted::is(Bug::FloorOfConnected) { 0 } else { retention_ms };
        let counting = self.members().filter(|member| self.counts(member, now_ms, retention_ms, head));
        counting.filter_map(Member::passed).min().unwrap_or(head).min(head)
    }
}

fn write_whole(path: &Path, text: &str) -> Result<(), TrustError> {
    write_register(path, text)?;
    write_copy(path, text)
}

fn write_register(path: &Path, text: &str) -> Result<(), TrustError> {
    super::authority::private_dir(crate::env::fs::parent_dir(path))?;
    write_private(path, text.as_bytes())
}

fn write_copy(path: &Path, text: &str) -> Result<(), TrustError> {
    write_private(&path.with_file_name(COPY), text.as_bytes())
}

fn no_such(name: &MemberName) -> TrustError {
    TrustError::Refused(format!("there is no member {name}; `gravwell-logctl members` lists them"))
}

fn certificate_of(print: &Fingerprint, days: u32, now_ms: u64) -> Certificate {
    let expires_ms = now_ms + u64::from(days.max(1)) * MS_PER_DAY;
    Certificate { fingerprint: hex(print), expires_ms, issuer: None, is_held: false }
}

fn issued(authority: &Authority, certificate: &[u8], days: u32, now_ms: u64) -> Certificate {
    let issuer = Some(authority_name(&authority.fingerprint()));
    Certificate { issuer, ..certificate_of(&fingerprint(certificate), days, now_ms) }
}

/// Fails when the register in `path` is older than its copy: it is written first, so it was put in the place of a newer one. A
/// copy that cannot be read says nothing.
fn check_copy(path: &Path, contents: &Contents) -> Result<(), TrustError> {
    let copy = path.with_file_name(COPY);
    let Some(newer) = read_text(&copy).ok().and_then(|text| parse(&text).ok()) else { return Ok(()) };
    if newer.revision <= contents.revision {
        return Ok(());
    }
    let what = format!(
        "it is older (revision {}) than its copy beside it (revision {}), so who was revoked or enrolled since is not in it: put \
         the copy in its place, `mv {} {}`; if the older one is right all the same, move the copy away",
        contents.revision,
        newer.revision,
        copy.display(),
        path.display()
    );
    Err(TrustError::Damaged { path: path.to_owned(), what })
}

/// What is to be made of a file that is not there.
fn missing(dir: &Path, path: &Path) -> Result<Contents, TrustError> {
    let has_copy = dir.join(COPY).exists();
    // The register is written before the authority's key is made.
    if !has_copy && !dir.join("ca.key").exists() {
        return Ok(Contents::default());
    }
    let where_from = if has_copy {
        format!("or rename {COPY} beside it, which is its last copy")
    } else {
        "or from a sealed copy of the authority; --recovery off begins with an empty one, and every member joins again"
            .into()
    };
    let what = format!(
        "it is missing, and with it who is enrolled and who was revoked; it is not replaced by an empty one: bring it \
         back from a backup of the host, {where_from}"
    );
    Err(TrustError::Damaged { path: path.to_owned(), what })
}

fn parse(text: &str) -> Result<Contents, String> {
    serde_json::from_str(summed::open(text)?).map_err(|error| error.to_string())
}

mod absence;
mod changes;
mod file;
mod issuers;
mod listed;
mod refusal;

use absence::Absence;
pub use changes::{RegisterMark, Relation, SignedMark};
pub use file::RegistryFile;
pub use refusal::Refusal;

#[cfg(test)]
mod tests;
