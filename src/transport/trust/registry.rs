//! The member registry: a single checksummed file that is always replaced as a whole.
//!
//! Enrolments and revocations are durable before they are answered. Positions are written lazily: a lost position can
//! only make the floor lower than necessary.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::{read_text, write_private};
use super::{Authority, Fingerprint, Role, TrustError, authority_name, checksummed_text, fingerprint, hex};
use gravwell_env::fs::first_free;
use gravwell_model::address::host_and_port;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::ids::hex_bytes;
use gravwell_model::{Generation, LogId, MemberName, Position, Seq, printable};

/// The registry's file, next to the CA's.
pub(super) const FILE: &str = "members.json";
/// Second copy of the registry, written after it. It shows that a registry existed when [`FILE`] is missing.
pub(super) const COPY: &str = "members.copy";
const MS_PER_DAY: u64 = 24 * 3600 * 1000;
/// Maximum number of members in the registry, in any state. A roster of this many members, each with the longest
/// accepted values, fits into one message.
pub const MEMBERS_MAX: usize = 4096;
/// Maximum characters shown of an address that exceeds today's limits.
const SHOWN_CHARS: usize = 64;

/// Maximum lifetime of a join token: one year.
pub const TOKEN_LIFE_MAX_MS: u64 = 365 * 24 * 3_600_000;

/// Enrolment state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Has a join token that it has not used yet.
    Invited,
    /// Has a certificate.
    Enrolled,
    /// Its membership was revoked.
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
    /// Name of the CA that signed it; absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<String>,
    /// The member has reported that it holds this certificate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_held: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Invite {
    secret_hash: String,
    expires_ms: u64,
    role: Role,
}

/// A member in the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique name of the member.
    pub name: MemberName,
    /// Role, which decides its permissions.
    pub role: Role,
    /// Enrolment state.
    pub state: MemberState,
    /// Sequence that the member last reported as durably applied; `None` if it never reported one.
    pub applied: Option<Seq>,
    /// Highest sequence that it ever reported in this log. Entries up to this sequence are not kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passed: Option<Seq>,
    /// Last time at which `passed` rose or was the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advanced_ms: Option<u64>,
    /// Last contact, in milliseconds since 1970-01-01 UTC.
    pub last_seen_ms: Option<u64>,
    /// Time at which it joined.
    enrolled_ms: Option<u64>,
    revoked_ms: Option<u64>,
    /// The current certificate, preceded by the former one until the current one has been used.
    certificates: Vec<Certificate>,
    invite: Option<Invite>,
    /// Address at which other webservers and load balancers reach it, as it last reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_addr: Option<String>,
    /// A position reported by the member which proves that the log lost entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<Position>,
    /// Log that the datastore served when the member joined; absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_in: Option<LogId>,
    /// Names of the recovery keys that open the encrypted CA backup which the member last reported to hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_keys: Option<String>,
}

/// Position of the log when the registry was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMark {
    /// Identifies the log.
    pub log_id: LogId,
    /// Generation of the log, to which the members' positions refer.
    pub generation: Generation,
    /// Last sequence of the log.
    pub seq: Seq,
}

/// Last record of the datastore's audit log when the registry was last written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditMark {
    /// Identifies the audit log, which is separate from the replicated log.
    pub log_id: LogId,
    /// Sequence of the record.
    pub seq: Seq,
    /// Chain value at that record, hexadecimal.
    pub chain: String,
}

impl Member {
    /// Returns whether the member was heard from within the retention period. Time during which the datastore could not
    /// receive does not count.
    fn is_heard(&self, now_ms: u64, retention_ms: u64, absences: &[Absence]) -> bool {
        let silence = |seen: u64| now_ms.saturating_sub(seen).saturating_sub(absence::since(absences, seen));
        let is_recent = |seen: Option<u64>| seen.is_some_and(|seen| silence(seen) <= retention_ms);
        // A member that is in contact but makes no progress is treated like a silent one.
        is_recent(self.last_seen_ms) && is_recent(self.advanced_ms.or(self.last_seen_ms))
    }

    /// Returns the highest sequence that the member ever reported as durably applied in this log; `None` if it has
    /// reported none. Its current position may be lower: after a restart it reports 0 until it has written something,
    /// and its state may have been rolled back.
    #[must_use]
    pub fn passed(&self) -> Option<Seq> {
        self.passed.max(self.applied)
    }

    /// Returns a text form without reported values.
    fn described(&self) -> String {
        let (applied, passed, advanced_ms, last_seen_ms) = (None, None, None, None);
        let (contradiction, copy_keys) = (None, None);
        let mut described =
            Member { applied, passed, advanced_ms, last_seen_ms, contradiction, copy_keys, ..self.clone() };
        described.certificates.iter_mut().for_each(|certificate| certificate.is_held = false);
        format!("{described:?}")
    }

    /// Returns a text form without reported values and invitation.
    pub(super) fn lasting(&self) -> String {
        Member { invite: None, ..self.clone() }.described()
    }

    /// Returns whether it holds a certificate with this fingerprint.
    fn has(&self, print: &str) -> bool {
        self.certificates.iter().any(|certificate| certificate.fingerprint == print)
    }

    /// Returns the expiry time of its latest certificate.
    #[must_use]
    pub fn certificate_expires_ms(&self) -> Option<u64> {
        self.certificates.last().map(|certificate| certificate.expires_ms)
    }
}

/// Selects the members that pin the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorPolicy {
    /// Whether readers pin it. Otherwise a reader that lags too far fetches a snapshot, and loses nothing.
    pub readers: bool,
    /// Maximum number of entries kept for a single member.
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
    /// Time of the last write; 0 in files of versions that did not record it.
    #[serde(default)]
    saved_ms: u64,
    /// Incremented by every write; 0 in files of versions that did not count.
    #[serde(default)]
    revision: u64,
    /// Absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogMark>,
    /// Absent in files of versions that counted no changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changes: Option<changes::Changes>,
    /// Absent in files of versions that did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    audit: Option<AuditMark>,
    /// Periods during which no member could be heard, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    absences: Vec<Absence>,
    /// The registry's progress was recorded in a file outside the directory, which must therefore exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    has_mark: bool,
}

/// The open member registry.
#[derive(Default)]
pub struct Registry {
    /// `None` if the registry lives in memory only and its holder persists its text.
    path: Option<PathBuf>,
    contents: Contents,
    by_fingerprint: BTreeMap<String, MemberName>,
    is_dirty: bool,
    policy: FloorPolicy,
    /// Number of certificates that became invalid because a renewed one was used.
    retired: u64,
    /// Names of the CAs that were replaced.
    replaced: Vec<String>,
}

impl Registry {
    /// Sets which members pin the floor.
    pub fn set_floor_policy(&mut self, policy: FloorPolicy) {
        self.policy = policy;
    }

    /// Returns a counter of certificates invalidated by the use of a renewed one.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Opens the registry in `dir`. A registry that was never written is empty.
    ///
    /// # Errors
    /// If the file is corrupt, older than its copy, or missing although one existed: it is never replaced by an
    /// empty one.
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

    /// Returns a copy of the registry in memory, without a file.
    #[must_use]
    pub fn copy(&self) -> Registry {
        let (contents, by_fingerprint) = (self.contents.clone(), self.by_fingerprint.clone());
        Registry { path: None, contents, by_fingerprint, policy: self.policy, ..Registry::default() }
    }

    /// Returns the text that `file`, the file of this registry, should hold now; `None` if it already does. The caller
    /// must write it.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn unwritten(&mut self, file: &RegistryFile, now_ms: u64) -> Result<Option<String>, TrustError> {
        if !self.is_dirty && !file.is_behind() {
            return Ok(None);
        }
        let text = self.text(now_ms)?;
        self.is_dirty = false;
        Ok(Some(text))
    }

    /// Opens the registry in `dir`; an empty one if neither the file nor its copy is left and that loss is accepted.
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

    /// Detaches the registry from its file for inspection: no change is written from now on.
    #[must_use]
    pub fn detached(self) -> Registry {
        Registry { path: None, ..self }
    }

    /// Writes a registry that was never written, so that its loss can be detected later.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn establish(&mut self, now_ms: u64) -> Result<(), TrustError> {
        let is_there = self.path.as_ref().is_none_or(|path| path.exists() && path.with_file_name(COPY).exists());
        if is_there { Ok(()) } else { self.write(now_ms) }
    }

    /// Moves a trust directory aside that has members but lost the CA's key, so that a new CA can be created. Returns
    /// its new path if it was moved.
    ///
    /// # Errors
    /// If it cannot be renamed.
    pub fn set_aside(dir: &Path) -> Result<Option<PathBuf>, TrustError> {
        if dir.join("ca.key").exists() || !dir.join(FILE).exists() || Registry::is_unused(dir) {
            return Ok(None);
        }
        let io = |source| TrustError::Io { path: dir.to_owned(), source };
        let Some(aside) = first_free(|number| dir.with_extension(format!("aside-{number}"))) else { return Ok(None) };
        std::fs::rename(dir, &aside).map_err(io)?;
        std::fs::File::open(gravwell_env::fs::parent_dir(dir)).and_then(|parent| parent.sync_all()).map_err(io)?;
        Ok(Some(aside))
    }

    /// Returns whether the registry in `dir` has no members, because it was written before there was a CA.
    #[must_use]
    pub fn is_unused(dir: &Path) -> bool {
        let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
        parse(&text).is_ok_and(|contents| contents.members.is_empty())
    }

    /// Records which recovery keys open the encrypted CA backup that a member holds. Written lazily: the member reports
    /// it again if it is lost.
    pub fn note_copy(&mut self, name: &MemberName, keys: Option<&str>) {
        let Some(member) = self.contents.members.get_mut(name).filter(|member| member.role.holds_replica()) else {
            return;
        };
        if member.copy_keys.as_deref() != keys {
            member.copy_keys = keys.map(str::to_owned);
            self.is_dirty = true;
        }
    }

    /// Adopts `mark` as the position of the log when no member contradicts it: higher positions belong to
    /// another generation.
    pub fn enter(&mut self, mark: LogMark) {
        for member in self.contents.members.values_mut() {
            member.applied = member.applied.map(|applied| applied.min(mark.seq));
            member.passed = member.passed.map(|passed| passed.min(mark.seq));
            member.contradiction = None;
        }
        self.note_log(mark);
    }

    /// Records a member's position that contradicts the log; durable when it returns. Returns `false` if the name is
    /// not, or no longer, that of an enrolled member: its position does not count.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_contradiction(
        &mut self,
        name: &MemberName,
        position: Position,
        now_ms: u64,
    ) -> Result<bool, TrustError> {
        match self.contents.members.get_mut(name).filter(|member| member.state == MemberState::Enrolled) {
            None => return Ok(false),
            Some(_) if fault_injection::is(Bug::ContradictionNotKept) => return Ok(true),
            Some(member) if member.contradiction == Some(position) => return Ok(true),
            Some(member) => member.contradiction = Some(position),
        }
        self.write(now_ms).map(|()| true)
    }

    /// Decodes a registry from the output of [`Registry::text`], without a file. An empty text is an empty registry.
    ///
    /// # Errors
    /// If the text is corrupt.
    pub fn from_text(text: &str, now_ms: u64) -> Result<Registry, TrustError> {
        let damaged = |what| TrustError::Damaged { path: FILE.into(), what };
        let contents = if text.is_empty() { Contents::default() } else { parse(text).map_err(damaged)? };
        Ok(Registry::of(None, contents, now_ms))
    }

    /// Returns the text to write to the file now, with a new revision.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn text(&mut self, now_ms: u64) -> Result<String, TrustError> {
        self.contents.saved_ms = now_ms;
        self.contents.revision = self.contents.revision.saturating_add(1);
        let changes = self.changes();
        // Versions that count no changes use the revision as that count, which must never decrease.
        self.contents.revision = self.contents.revision.max(changes.count());
        self.contents.changes = Some(changes);
        let body =
            serde_json::to_string_pretty(&self.contents).map_err(|error| TrustError::Refused(error.to_string()))?;
        Ok(checksummed_text::seal(&body))
    }

    fn of(path: Option<PathBuf>, mut contents: Contents, now_ms: u64) -> Registry {
        if contents.saved_ms != 0 {
            absence::add(&mut contents.absences, contents.saved_ms, now_ms);
        }
        let mut registry = Registry { path, contents, ..Registry::default() };
        // Versions without limits accepted any address. An address that exceeds them is kept for display only.
        for member in registry.contents.members.values_mut() {
            let wrong = member.external_addr.as_ref().filter(|text| host_and_port(text).is_err());
            let shown = wrong.map(|text| format!("{} ({} bytes)", printable::shorten(text, SHOWN_CHARS), text.len()));
            member.external_addr = shown.or(member.external_addr.take());
        }
        registry.index();
        registry
    }

    /// Checks that `text` is a valid registry.
    ///
    /// # Errors
    /// If its checksum or its contents are invalid; the text describes the error.
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
        // Without a file, the holder of the registry writes it.
        self.is_dirty = true;
        if let Some(path) = self.path.clone() {
            let text = self.text(now_ms)?;
            write_whole(&path, &text)?;
            self.is_dirty = false;
        }
        self.index();
        Ok(())
    }

    /// Writes changed positions that were not written yet.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&mut self, now_ms: u64) -> Result<(), TrustError> {
        if self.is_dirty { self.write(now_ms) } else { Ok(()) }
    }

    /// Counts and writes a change of membership.
    fn write_change(&mut self, now_ms: u64) -> Result<(), TrustError> {
        self.note_change(now_ms);
        self.write(now_ms)
    }

    /// Returns a value that changes with invitations, enrolments, renewals and revocations, but not with positions.
    #[must_use]
    pub fn stamp(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.mark().name.as_bytes());
        for member in self.members() {
            hasher.update(member.described().as_bytes());
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Returns the time of the last write, milliseconds since 1970-01-01 UTC; 0 if unknown.
    #[must_use]
    pub fn saved_ms(&self) -> u64 {
        self.contents.saved_ms
    }

    /// Returns how often the registry was written or sealed; 0 if it is not recorded.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.contents.revision
    }

    /// Withdraws all invitations and removes members that were only invited. The registry was restored from a copy, and
    /// is the latest from now on. Its count exceeds `least`, that of the registry that it replaces.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget_invitations(&mut self, least: u64, now_ms: u64) -> Result<(), TrustError> {
        // The restored registry may be on another disk, without the audit log and the record of its progress.
        self.contents.audit = None;
        self.contents.has_mark = false;
        self.set_on(least, now_ms);
        self.write(now_ms)
    }

    /// Iterates over the members, ordered by name.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.contents.members.values()
    }

    /// Returns the member with that name.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        self.contents.members.get(name)
    }

    /// Invites a member. Returns the secret of its token, of which only a hash is stored.
    ///
    /// # Errors
    /// If the name belongs to an enrolled member and `replace` is not set, the token's lifetime exceeds one year, or
    /// the file cannot be written.
    pub fn invite(
        &mut self,
        name: &MemberName,
        role: Role,
        ttl_ms: u64,
        now_ms: u64,
        replace: bool,
    ) -> Result<[u8; 32], TrustError> {
        if ttl_ms > TOKEN_LIFE_MAX_MS {
            return Err(TrustError::Refused("a token is valid for a year at most; use a shorter lifetime".into()));
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
                    "{name} is enrolled as a {}; use another name, revoke it first, or use --replace",
                    member.role
                )));
            }
            Some(member) => {
                member.invite = Some(invite);
                if member.state == MemberState::Revoked {
                    member.state = MemberState::Invited;
                    // A revoked member stays locked out until it redeems the token.
                    member.certificates.clear();
                    // Revoking discarded the evidence of its position. A member that joins again reports its position.
                    (member.applied, member.passed, member.advanced_ms) = (None, None, None);
                    member.contradiction = None;
                }
            }
            None if members >= MEMBERS_MAX => {
                return Err(TrustError::Refused(format!(
                    "the member registry has reached its limit of {members} members; remove revoked ones with `revoke \
                     NAME --remove`"
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
    /// If there is no such invitation, or it was already used or has expired. The error does not reveal which
    /// names exist.
    pub fn redeem(
        &mut self,
        authority: &Authority,
        name: &MemberName,
        secret: &[u8; 32],
        request_der: &[u8],
        days: u32,
        now_ms: u64,
    ) -> Result<(Vec<u8>, Role), TrustError> {
        let refused =
            || TrustError::Refused("the token is invalid, already used or replaced; ask for a new one".into());
        let member = self.contents.members.get_mut(name).ok_or_else(refused)?;
        let invite = member.invite.clone().ok_or_else(refused)?;
        let wanted = hex_bytes::<32>(&invite.secret_hash).map(blake3::Hash::from_bytes);
        // BLAKE3 hashes are compared in constant time.
        if wanted != Some(blake3::hash(secret)) {
            return Err(refused());
        }
        if now_ms >= invite.expires_ms {
            let (expired, now) = (timestamp(invite.expires_ms), timestamp(now_ms));
            return Err(TrustError::Refused(format!(
                "the token expired at {expired}, and the datastore's clock shows {now}; ask for a new one, or set \
                 that clock if it is wrong"
            )));
        }
        let certificate = authority.sign_member(request_der, name, invite.role, days, now_ms)?;
        let role = invite.role;
        self.enrol_with(name, role, issued(authority, &certificate, days, now_ms), now_ms)?;
        Ok((certificate.to_vec(), role))
    }

    /// Enrols an invited member with `certificate` and uses up its invitation.
    ///
    /// # Errors
    /// If there is no such member, or the file cannot be written.
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

    /// Issues a new certificate for a member. The former one stays valid until the new one has been used.
    ///
    /// # Errors
    /// If the member is not enrolled, the request is invalid, or the file cannot be written.
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
        // A certificate that the member reported to hold counts like one that it has used: the new one may never
        // reach it.
        let held = member.certificates.iter().rposition(|certificate| certificate.is_held).unwrap_or(0);
        member.certificates.drain(..held);
        member.certificates.truncate(1);
        member.certificates.push(issued(authority, &certificate, days, now_ms));
        self.write_change(now_ms)?;
        Ok(certificate.to_vec())
    }

    /// Returns the holder of a certificate. Using a renewed certificate invalidates the former one.
    ///
    /// # Errors
    /// If no member holds it, it has expired, or its holder was revoked.
    pub fn authorise(&mut self, certificate_der: &[u8], now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        let print: Fingerprint = fingerprint(certificate_der);
        let print = hex(&print);
        let name = self.by_fingerprint.get(&print).ok_or(Refusal::Unknown)?.clone();
        let member = self.contents.members.get_mut(&name).ok_or(Refusal::Unknown)?;
        if member.state == MemberState::Revoked && !fault_injection::is(Bug::KeepRevoked) {
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

    /// Revokes a member and discards the evidence that its position provided about the log.
    ///
    /// # Errors
    /// If there is no such member, or the file cannot be written.
    pub fn revoke(&mut self, name: &MemberName, now_ms: u64) -> Result<(), TrustError> {
        let member = self.contents.members.get_mut(name).ok_or_else(|| no_such(name))?;
        member.state = MemberState::Revoked;
        member.revoked_ms = Some(now_ms);
        member.invite = None;
        // Revoking a member whose position proves a loss accepts that loss, even if the member is invited again later.
        member.contradiction = None;
        self.write_change(now_ms)
    }

    /// Removes a member; its certificates are unknown from now on.
    ///
    /// # Errors
    /// If there is no such member, or the file cannot be written.
    pub fn remove(&mut self, name: &MemberName, now_ms: u64) -> Result<(), TrustError> {
        self.contents.members.remove(name).ok_or_else(|| no_such(name))?;
        self.write_change(now_ms)
    }

    /// Records the position of a member in a log that ends at `head`. Returns `true` the first time: from then on the
    /// member may pin the floor, which must be saved immediately, while losing a later position does no harm.
    pub fn note_position(&mut self, name: &MemberName, applied: Seq, head: Seq, now_ms: u64) -> bool {
        let Some(member) = self.contents.members.get_mut(name) else { return false };
        let applied = applied.min(head);
        member.last_seen_ms = Some(now_ms);
        if member.passed().is_none_or(|passed| applied > passed) || applied == head || member.advanced_ms.is_none() {
            member.advanced_ms = Some(now_ms);
        }
        member.passed = member.passed().max(Some(applied));
        self.is_dirty = true;
        member.applied.replace(applied).is_none() && !fault_injection::is(Bug::FirstPositionLazy)
    }

    /// Records the address that a member reports. Written lazily, like positions: the member reports it again.
    pub fn note_address(&mut self, name: &MemberName, external_addr: Option<&str>) {
        let Some(member) = self.contents.members.get_mut(name) else { return };
        if member.external_addr.as_deref() != external_addr {
            member.external_addr = external_addr.map(str::to_owned);
            self.is_dirty = true;
        }
    }

    /// Returns whether a member pins the floor of a log that ends at `head`: it follows the log, was heard from and
    /// progressed within the retention period, and does not lag too far.
    #[must_use]
    pub fn counts(&self, member: &Member, now_ms: u64, retention_ms: u64, head: Seq) -> bool {
        let role_counts = member.role == Role::Webserver || (member.role == Role::Reader && self.policy.readers);
        let is_near = member.passed().is_some_and(|passed| head.since(passed) <= self.policy.lag_ops_max);
        let is_enrolled = member.state == MemberState::Enrolled;
        role_counts && is_enrolled && is_near && member.is_heard(now_ms, retention_ms, &self.contents.absences)
    }

    /// Returns whether a member was heard from within the retention period.
    #[must_use]
    pub fn is_heard(&self, member: &Member, now_ms: u64, retention_ms: u64) -> bool {
        member.is_heard(now_ms, retention_ms, &self.contents.absences)
    }

    /// Returns the lowest sequence durably applied by all members that pin the floor; `head` if none does.
    #[must_use]
    pub fn floor(&self, now_ms: u64, retention_ms: u64, head: Seq) -> Seq {
        let retention_ms = if fault_injection::is(Bug::FloorOfConnected) { 0 } else { retention_ms };
        let counting = self.members().filter(|member| self.counts(member, now_ms, retention_ms, head));
        counting.filter_map(Member::passed).min().unwrap_or(head).min(head)
    }
}

fn write_whole(path: &Path, text: &str) -> Result<(), TrustError> {
    write_register(path, text)?;
    write_copy(path, text)
}

fn write_register(path: &Path, text: &str) -> Result<(), TrustError> {
    super::authority::private_dir(gravwell_env::fs::parent_dir(path))?;
    write_private(path, text.as_bytes())
}

fn write_copy(path: &Path, text: &str) -> Result<(), TrustError> {
    write_private(&path.with_file_name(COPY), text.as_bytes())
}

fn no_such(name: &MemberName) -> TrustError {
    TrustError::Refused(format!("no member {name}; `gravwell-logctl members` lists them"))
}

fn certificate_of(print: &Fingerprint, days: u32, now_ms: u64) -> Certificate {
    let expires_ms = now_ms + u64::from(days.max(1)) * MS_PER_DAY;
    Certificate { fingerprint: hex(print), expires_ms, issuer: None, is_held: false }
}

fn issued(authority: &Authority, certificate: &[u8], days: u32, now_ms: u64) -> Certificate {
    let issuer = Some(authority_name(&authority.fingerprint()));
    Certificate { issuer, ..certificate_of(&fingerprint(certificate), days, now_ms) }
}

/// Returns an error if the registry in `path` is older than its copy: it is written first, so an older file has
/// replaced it. An unreadable copy is ignored.
fn check_copy(path: &Path, contents: &Contents) -> Result<(), TrustError> {
    let copy = path.with_file_name(COPY);
    let Some(newer) = read_text(&copy).ok().and_then(|text| parse(&text).ok()) else { return Ok(()) };
    if newer.revision <= contents.revision {
        return check_descent(path, contents, newer);
    }
    let what = format!(
        "it is older (revision {}) than its copy (revision {}) and lacks later enrollments and revocations: replace \
         it by the copy, `mv {} {}`, or move the copy away if the older one is right",
        contents.revision,
        newer.revision,
        copy.display(),
        path.display()
    );
    Err(TrustError::Damaged { path: path.to_owned(), what })
}

/// Returns an error if the registry in `path` does not descend from its copy, although it was written more often: an
/// older one that went on has replaced it.
fn check_descent(path: &Path, contents: &Contents, copy: Contents) -> Result<(), TrustError> {
    let of = |contents: Contents| Registry { contents, ..Registry::default() };
    let (here, copy) = (of(contents.clone()), of(copy));
    let differing = super::leftover_registry::differing(&here, &copy);
    if here.relation(&copy.mark()).is_none() || differing.is_empty() {
        return Ok(());
    }
    let what = format!(
        "it does not continue {COPY}, and they differ in {}: an older registry has replaced it; move the invalid one \
         of them away",
        super::descent::listed(&differing)
    );
    Err(TrustError::Damaged { path: path.to_owned(), what })
}

/// Handles a missing registry: it is empty only if there never was one.
fn missing(dir: &Path, path: &Path) -> Result<Contents, TrustError> {
    let has_copy = dir.join(COPY).exists();
    // The registry is written before the CA's key is created.
    if !has_copy && !dir.join("ca.key").exists() {
        return Ok(Contents::default());
    }
    let where_from = if has_copy {
        format!("or rename {COPY}, its last copy in the same directory")
    } else {
        "or from a CA backup; --recovery off starts with an empty one, and every member must join again".into()
    };
    let what = format!(
        "it is missing, so enrollments and revocations are unknown; restore it from a backup of the host, {where_from}"
    );
    Err(TrustError::Damaged { path: path.to_owned(), what })
}

fn parse(text: &str) -> Result<Contents, String> {
    serde_json::from_str(checksummed_text::open(text)?).map_err(|error| error.to_string())
}

mod absence;
mod changes;
mod choices;
mod file;
mod issuers;
mod listed;
mod marks;
mod refusal;

use absence::Absence;
pub use changes::{RegisterMark, Relation, SignedMark};
pub use choices::GivenUp;
pub use file::RegistryFile;
pub use refusal::Refusal;

#[cfg(test)]
mod tests;
