//! Health of a process: three levels with their reasons.
//!
//! Only [`assess`] determines it; `status`, `doctor`, `/api/ready`, the metrics and the fleet page show its result.

use serde::{Deserialize, Serialize};

use super::admin::Status;
use super::json_lines::timestamp;

/// Health level of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// No action is needed.
    #[default]
    Good,
    /// The process works; an operator should look.
    Attention,
    /// The process does not work.
    Failed,
}

impl Level {
    /// All levels, best first.
    pub const ALL: [Level; 3] = [Level::Good, Level::Attention, Level::Failed];

    /// Returns the name used in JSON, tables and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Level::Good => "good",
            Level::Attention => "attention",
            Level::Failed => "failed",
        }
    }
}

/// Machine-readable reason for a level that is not good. Names are stable; new ones are appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// No process uses the directory.
    NotRunning,
    /// The replica never joined a datastore.
    NotAMember,
    /// The datastore refuses this member, because it was revoked or is unknown.
    Refused,
    /// The datastore was rolled back.
    Ahead,
    /// The histories of a log have diverged.
    Forked,
    /// The datastore serves another log.
    Foreign,
    /// The datastore has no entries while the replica has some.
    Wiped,
    /// The datastore is in read-only recovery mode.
    WaitsForRecovery,
    /// Writes are rejected because of low disk space.
    ReadOnly,
    /// The replica has no connection to its datastore.
    Disconnected,
    /// Changes of an abandoned history are archived until an operator handles them.
    ArchivedChanges,
    /// Chunks of blobs are missing, and no member has them.
    ContentsLost,
    /// A datastore without members refuses members of another log.
    RefusesMembers,
    /// The state is being rebuilt, or differs from the datastore's.
    Recovering,
    /// The process has lost state and has not caught up since.
    StateLost,
    /// A read at run time found stored data corrupt.
    Damaged,
    /// An essential task of the process has terminated.
    TaskEnded,
    /// There is evidence of lost or diverged history.
    Evidence,
    /// Any other problem that the process reports.
    Problem,
    /// The clock of the process's host is implausible, or differs from the datastore's.
    ClockSkew,
    /// A member has had two connections for a while, so its directory was copied.
    ConnectedTwice,
    /// A member does not know how the log's generations started, so a rebuild from it would lack them.
    GenerationsUnknown,
    /// The membership list is unreadable or too old, so no other member is trusted.
    MembersNotBelieved,
    /// A datastore cannot write its audit.
    AuditNotWritten,
    /// Chunks of blobs are missing, and members that may have them have not replied.
    ContentsIncomplete,
    /// The audit was corrupt and has been moved away. No administrator has acknowledged it.
    AuditDamaged,
    /// A revocation is in effect, but not durable yet.
    RevocationNotDurable,
    /// A recovery key is missing, corrupt or wrong, so no encrypted CA backup is made.
    RecoveryKeyDamaged,
    /// Members have certificates of an unknown CA.
    AuthorityMissing,
    /// The member registry is older than a version seen before.
    RegisterWentBack,
    /// The record of how far the register of members had come is damaged.
    RegisterMarkDamaged,
    /// A replica is connected and lagging, but applies no entries.
    IntakeStalled,
    /// The continuous backup of a datastore fails.
    ArchiveBehind,
    /// The log lacks changes of this member that it once had.
    ChangesMissing,
    /// A member's encrypted CA backup is damaged, and may have been the latest one.
    CaBackupDamaged,
    /// A member's encrypted CA backup cannot be opened or read at the moment.
    CaBackupUnreadable,
    /// A restore of an export archive is unfinished.
    RestoreUnfinished,
    /// The datastore is connected and accepts no changes; they wait in the outbox.
    WritesRefused,
    /// A reason from a later version.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Returns the level that results from this reason alone.
    #[must_use]
    pub fn level(self) -> Level {
        match self {
            Code::Disconnected
            | Code::ArchivedChanges
            | Code::ContentsLost
            | Code::RefusesMembers
            | Code::ClockSkew
            | Code::ConnectedTwice
            | Code::GenerationsUnknown
            | Code::MembersNotBelieved
            | Code::ContentsIncomplete
            | Code::AuditDamaged
            | Code::RecoveryKeyDamaged
            | Code::AuthorityMissing
            | Code::RegisterMarkDamaged
            | Code::CaBackupDamaged
            | Code::CaBackupUnreadable
            | Code::ArchiveBehind
            | Code::ChangesMissing
            | Code::RestoreUnfinished
            | Code::WritesRefused
            | Code::Unknown => Level::Attention,
            _ => Level::Failed,
        }
    }

    /// Returns whether only the datastore is affected: the replica's data is intact, and it serves as if it were offline.
    fn is_of_the_datastore(self) -> bool {
        matches!(self, Code::Ahead | Code::Foreign | Code::Wiped)
    }

    /// Returns whether [`assess`] derives it from the other fields of a status.
    fn is_derived(self) -> bool {
        matches!(
            self,
            Code::NotRunning
                | Code::NotAMember
                | Code::Refused
                | Code::Ahead
                | Code::Forked
                | Code::Foreign
                | Code::Wiped
                | Code::Disconnected
                | Code::ArchivedChanges
                | Code::ContentsLost
                | Code::RefusesMembers
                | Code::Problem
        )
    }
}

/// A reason with its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Machine-readable reason.
    pub code: Code,
    /// Message for display.
    pub message: String,
    /// Remedy for the operator.
    pub remedy: String,
}

impl Reason {
    /// Creates a reason.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Reason {
        Reason { code, message: message.into(), remedy: remedy.into() }
    }
}

/// Level and reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The worst level of all reasons.
    pub level: Level,
    /// Reasons, worst first; empty if the level is good.
    pub reasons: Vec<Reason>,
}

impl Health {
    /// Returns the messages of all reasons; empty if the level is good.
    #[must_use]
    pub fn summary(&self) -> String {
        self.reasons.iter().map(|reason| reason.message.as_str()).collect::<Vec<_>>().join("; ")
    }

    /// Returns the reason why a webserver should not receive requests. It does not include that the datastore was
    /// wiped, replaced or rolled back: a load balancer would remove all webservers at the same time, although each of
    /// them has all data and accepts changes.
    #[must_use]
    pub fn hindrance(&self) -> Option<&Reason> {
        let hinders = |reason: &&Reason| reason.code.level() == Level::Failed && !reason.code.is_of_the_datastore();
        self.reasons.iter().find(hinders)
    }

    /// Returns the exit code of a command that reports the health: 0 good, 1 attention or failed, 3 corruption or divergence.
    #[must_use]
    pub fn exit(&self) -> u8 {
        let is_divergence = |reason: &Reason| matches!(reason.code, Code::Forked | Code::Damaged);
        match self.level {
            Level::Good => 0,
            _ if self.reasons.iter().any(is_divergence) => 3,
            _ => 1,
        }
    }
}

/// Sets `status.health` from the other fields of `status`, and from the reasons that the process has stored in
/// `status.health` before because only it can determine them. A second call changes nothing.
pub fn assess(status: &mut Status) {
    let mut reasons = std::mem::take(&mut status.health.reasons);
    reasons.retain(|reason| !reason.code.is_derived());
    let is_replica = status.role == "replica";
    if !status.running {
        let program = if is_replica { "webserver" } else { "datastore" };
        let remedy =
            format!("systemctl start gravwell_{program}; if it does not start, journalctl -u gravwell_{program}");
        reasons.push(Reason::new(Code::NotRunning, "not running", remedy));
    }
    if is_replica {
        reasons.extend(connection(status));
    }
    if !status.problem.is_empty() && reasons.iter().all(|reason| !covers(reason, status)) {
        reasons.push(Reason::new(Code::Problem, &status.problem, &status.remedy));
    }
    if status.quarantined > 0 {
        let message = format!("{} sets of changes are archived and not applied", status.quarantined);
        let remedy = "read them with `gravwell-logctl quarantine list`, then run `quarantine apply NUMBER` or \
                      `quarantine drop NUMBER` for each";
        reasons.push(Reason::new(Code::ArchivedChanges, message, remedy));
    }
    if status.contents_lost > 0 {
        let message = format!("{} blobs are incomplete and no member has the rest", status.contents_lost);
        let remedy =
            "start members that may have them, or restore a backup; list them with `gravwell-logctl blobs list`";
        reasons.push(Reason::new(Code::ContentsLost, message, remedy));
    }
    if status.refused_members > 0 {
        let (count, s) = (status.refused_members, if status.refused_members == 1 { "" } else { "es" });
        let message = format!("refused members of another log from {count} address{s}; was this datastore wiped?");
        reasons.push(Reason::new(Code::RefusesMembers, message, rebuild()));
    }
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.code.level()));
    let level = reasons.iter().map(|reason| reason.code.level()).max().unwrap_or_default();
    status.health = Health { level, reasons };
}

/// Remedy for a terminated task.
pub const START_AGAIN: &str = "check its log for the reason, and start the process again";

/// Returns the remedy for a datastore that was wiped or replaced.
fn rebuild() -> String {
    format!(
        "if it was, rebuild it from its members: stop it, move its data directory D away, `{}`, and run \
         `gravwell-logctl --data-dir D recover --authority FILE --recovery-key KEY`, where FILE is a member's \
         identity/escrow (docs/recovery.md, Disaster); if it was not, correct `Datastore=` on those members",
        aside("D")
    )
}

/// Returns the shell commands that move the data directory `dir` away and create an empty one with the same owner.
#[must_use]
pub fn aside(dir: &str) -> String {
    format!("mv {dir} {dir}.aside && mkdir -m 700 {dir} && chown --reference={dir}.aside {dir}")
}

/// Returns whether a reason already contains the text of `problem`.
fn covers(reason: &Reason, status: &Status) -> bool {
    let is_verdict = matches!(reason.code, Code::Ahead | Code::Forked | Code::Foreign | Code::Wiped);
    is_verdict || reason.message == status.problem
}

/// Returns the reason that results from the connection to the datastore, if any.
fn connection(status: &Status) -> Option<Reason> {
    let verdict = match status.verdict.as_str() {
        "Ahead" => Some(Code::Ahead),
        "Forked" => Some(Code::Forked),
        "Foreign" => Some(Code::Foreign),
        "Empty" => Some(Code::Wiped),
        _ => None,
    };
    if status.is_member == Some(false) {
        let message = "not a member; run `gravwell-logctl join TOKEN`";
        return Some(Reason::new(
            Code::NotAMember,
            message,
            "get a token at the datastore: gravwell-logctl enroll NAME",
        ));
    }
    if let Some(code) = verdict {
        let message = match status.problem.as_str() {
            "" => format!("the datastore is {}", status.verdict),
            problem => problem.to_owned(),
        };
        return Some(Reason::new(code, message, &status.remedy));
    }
    if status.is_refused && !status.connected {
        let message = format!("the datastore refuses this member: {}", status.trouble);
        let remedy =
            "join again: `gravwell-logctl enroll NAME --replace` at the datastore, `gravwell-logctl join TOKEN` here";
        return Some(Reason::new(Code::Refused, message, remedy));
    }
    if !status.running || status.connected {
        return None;
    }
    let message = format!(
        "disconnected since {} ({}); {} changes pending",
        since(status.clock_ms, status.disconnected_ms),
        span(status.disconnected_ms),
        status.outbox
    );
    let remedy = match status.trouble.as_str() {
        "" => {
            "check that the datastore runs and that its UDP port (9405, unless another one is configured) is reachable"
                .to_owned()
        }
        trouble => format!(
            "{trouble}; check that the datastore runs and that its UDP port (9405, unless another one is configured) \
             is reachable"
        ),
    };
    Some(Reason::new(Code::Disconnected, message, remedy))
}

/// Formats the time `ago_ms` before `clock_ms`, without the date if that is less than a day.
fn since(clock_ms: u64, ago_ms: u64) -> String {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let text = timestamp(clock_ms.saturating_sub(ago_ms));
    match text.get(11..19) {
        Some(time) if ago_ms < DAY_MS => time.to_owned(),
        _ => text,
    }
}

/// Formats a duration in its largest unit.
fn span(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica() -> Status {
        Status {
            role: "replica".into(),
            running: true,
            connected: true,
            is_member: Some(true),
            verdict: "Same".into(),
            ..Status::default()
        }
    }

    fn datastore() -> Status {
        Status { role: "datastore".into(), running: true, connected: true, verdict: "Same".into(), ..Status::default() }
    }

    #[test]
    fn every_state_has_its_level_code_exit_and_word() {
        let verdict = |verdict: &str| Status { connected: false, verdict: verdict.into(), ..replica() };
        let offline =
            Status { connected: false, clock_ms: 1_700_000_000_000, disconnected_ms: 200_000, outbox: 4, ..replica() };
        let found = |code| Health { level: Level::Good, reasons: vec![Reason::new(code, "found", "do")] };
        let table = [
            (replica(), Level::Good, None, 0, ""),
            (datastore(), Level::Good, None, 0, ""),
            (Status { running: false, ..datastore() }, Level::Failed, Some(Code::NotRunning), 1, "not running"),
            (
                Status { running: false, connected: false, ..replica() },
                Level::Failed,
                Some(Code::NotRunning),
                1,
                "not running",
            ),
            (offline, Level::Attention, Some(Code::Disconnected), 1, "since 22:10:00 (3 min); 4 changes pending"),
            (
                Status { connected: false, is_member: Some(false), ..replica() },
                Level::Failed,
                Some(Code::NotAMember),
                1,
                "not a member; run `gravwell-logctl join TOKEN`",
            ),
            (
                Status { connected: false, is_refused: true, trouble: "a was revoked".into(), ..replica() },
                Level::Failed,
                Some(Code::Refused),
                1,
                "a was revoked",
            ),
            (Status { quarantined: 2, ..replica() }, Level::Attention, Some(Code::ArchivedChanges), 1, "archived"),
            (Status { contents_lost: 1, ..datastore() }, Level::Attention, Some(Code::ContentsLost), 1, "no member"),
            (Status { refused_members: 2, ..datastore() }, Level::Attention, Some(Code::RefusesMembers), 1, "wiped?"),
            (verdict("Empty"), Level::Failed, Some(Code::Wiped), 1, "Empty"),
            (verdict("Foreign"), Level::Failed, Some(Code::Foreign), 1, "Foreign"),
            (verdict("Ahead"), Level::Failed, Some(Code::Ahead), 1, "Ahead"),
            (verdict("Forked"), Level::Failed, Some(Code::Forked), 3, "Forked"),
            (Status { problem: "it differs".into(), ..replica() }, Level::Failed, Some(Code::Problem), 1, "it differs"),
            (Status { health: found(Code::ReadOnly), ..datastore() }, Level::Failed, Some(Code::ReadOnly), 1, "found"),
            (
                Status { health: found(Code::WaitsForRecovery), ..datastore() },
                Level::Failed,
                Some(Code::WaitsForRecovery),
                1,
                "found",
            ),
        ];
        for (mut status, level, code, exit, word) in table {
            assess(&mut status);
            let health = status.health.clone();
            assert_eq!((health.level, health.exit()), (level, exit), "{status:?}");
            assert_eq!(health.reasons.first().map(|reason| reason.code), code, "{status:?}");
            assert!(health.summary().contains(word), "{word}: {health:?}");
            assert!(
                health.reasons.iter().all(|reason| !reason.remedy.is_empty()
                    || reason.code == Code::Problem
                    || !status.verdict.is_empty()),
                "{health:?}"
            );
            let is_of_the_datastore = matches!(code, Some(Code::Ahead | Code::Foreign | Code::Wiped));
            assert_eq!(health.hindrance().is_some(), level == Level::Failed && !is_of_the_datastore);
            assess(&mut status);
            assert_eq!(status.health, health, "a second call changes nothing");
        }
    }

    #[test]
    fn a_problem_is_named_once_and_the_worst_comes_first() {
        let mut status = Status { connected: false, quarantined: 1, verdict: "Foreign".into(), ..replica() };
        status.problem = "another authority".into();
        assess(&mut status);
        let codes: Vec<Code> = status.health.reasons.iter().map(|reason| reason.code).collect();
        assert_eq!(codes, [Code::Foreign, Code::ArchivedChanges]);
        assert_eq!(status.health.summary().matches("another authority").count(), 1);
    }

    #[test]
    fn a_reason_of_a_later_version_asks_for_attention() {
        let text = r#"{"level":"failed","reasons":[{"code":"of_tomorrow","message":"m","remedy":"r"}]}"#;
        let health: Health = serde_json::from_str(text).expect("reads");
        assert_eq!(health.reasons[0].code, Code::Unknown);
    }
}
