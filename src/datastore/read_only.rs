//! Read-only recovery mode: the datastore accepts no writes while evidence shows that its log lost entries or
//! was replaced.
//!
//! Evidence comes from the registry, which records how far the log and its members had come, from the audit, which has
//! recorded the log's entries, and from every position presented by a member with a valid certificate. Positions that
//! contradict the log are stored in the registry, so they survive a restart. If the datastore accepted writes, its log
//! would diverge from its members. Entries that an operator abandoned by starting a later generation are no evidence.
//! Clients that are not members cannot trigger this mode. Revoking a member retracts its evidence.

use gravwell_config::datastore::Recovery;
use gravwell_log::LogReader;
use gravwell_model::codec::audit::LogPoint;
use gravwell_model::codec::message::{RefusalCode, Refused};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::{compare, shared_after};
use gravwell_model::{Digest, Generation, Lineage, LogId, Position, Seq, Verdict};
use gravwell_transport::trust::{LogMark, Member, MemberState, Registry};

/// The local log, up to the last sequence that was visible to clients.
#[derive(Clone, Debug)]
pub struct Here<'a> {
    log: &'a LogReader,
    log_id: LogId,
    generation: Generation,
    lineage: Lineage,
    head: Seq,
}

impl<'a> Here<'a> {
    /// Describes `log` up to `head`.
    #[must_use]
    pub fn of(log: &'a LogReader, head: Seq) -> Here<'a> {
        Here { log, log_id: log.log_id(), generation: log.generation(), lineage: log.lineage(), head }
    }

    /// Returns the last sequence that generations after `generation` share with it.
    fn shared_to(&self, generation: Generation) -> Seq {
        shared_after(&self.lineage, generation).unwrap_or(Seq(u64::MAX))
    }

    /// Returns the contradiction between a member's position and this log, if any.
    #[must_use]
    pub fn contradicted_by(&self, member: &str, theirs: &Position) -> Option<String> {
        let is_here = theirs.log_id == self.log_id && theirs.seq >= self.log.horizon() && theirs.seq <= self.head;
        let chain_at = |seq: Seq| self.log.chain_at(seq).ok().flatten();
        let position = Position {
            log_id: self.log_id,
            generation: self.generation,
            seq: self.head,
            chain: chain_at(self.head).unwrap_or_default(),
            digest: Digest::ZERO,
        };
        let chain = is_here.then(|| chain_at(theirs.seq)).flatten();
        let (seq, head, later) = (theirs.seq, self.head, theirs.generation > self.generation);
        match compare(theirs, &position, &self.lineage, chain) {
            _ if seq == Seq::ZERO || fault_injection::is(Bug::HelloNotAsked) => None,
            Verdict::Empty => {
                Some(format!("its log is empty, but member {member} is at sequence {seq} of log {}", theirs.log_id))
            }
            Verdict::Ahead if later => {
                let (theirs, here) = (theirs.generation, self.generation);
                Some(format!("member {member} is of generation {theirs}, but this log is of generation {here}"))
            }
            Verdict::Ahead => Some(format!("member {member} is at {seq}, but this log ends at {head}")),
            Verdict::Forked if theirs.generation == self.generation => Some(format!(
                "the history of member {member}, which is at {seq}, differs from this log's, which ends at {head}"
            )),
            _ => None,
        }
    }

    /// Returns the evidence in an enrolled member's position of another log. A member enrolled in this log may have
    /// brought an older state along, which proves nothing. A member enrolled in the other log shows that this log
    /// replaced it. A log with several generations was installed by an operator.
    #[must_use]
    pub fn replaces_log_of(&self, member: &Member, theirs: &Position) -> Option<String> {
        let (name, seq, log) = (&member.name, theirs.seq, theirs.log_id);
        let was_enrolled_there = member.enrolled_in.is_none_or(|enrolled_in| enrolled_in == log);
        let is_another = log != self.log_id && self.lineage.len() <= 1 && seq > Seq::ZERO;
        (is_another && was_enrolled_there && !fault_injection::is(Bug::HelloNotAsked)).then(|| {
            format!("member {name} is at {seq} of log {log}, in which it was enrolled, but this is log {}", self.log_id)
        })
    }

    /// Returns the evidence in an enrolled member's position, according to all rules.
    #[must_use]
    pub fn shown_by(&self, member: &Member, theirs: &Position) -> Option<String> {
        self.contradicted_by(member.name.as_str(), theirs).or_else(|| self.replaces_log_of(member, theirs))
    }
}

/// Returns the evidence in the registry that the log lost entries or was replaced.
#[must_use]
pub fn from_register(here: &Here<'_>, registry: &Registry) -> Option<String> {
    if fault_injection::is(Bug::RegisterNotAsked) {
        return None;
    }
    let head = here.head;
    let mark = registry.log_mark();
    if let Some(evidence) = mark.and_then(|mark| from_mark(here, mark, "register")) {
        return Some(evidence);
    }
    // A position belongs to the generation in which it was written. If the registry does not record the generation,
    // positions count only against a log that has a single generation.
    let shared_to = match mark {
        Some(mark) if mark.log_id == here.log_id => here.shared_to(mark.generation),
        None if here.lineage.len() <= 1 => Seq(u64::MAX),
        _ => head,
    };
    // Revoking a member retracts all of its evidence.
    let standing = || registry.members().filter(|member| member.state != MemberState::Revoked);
    let positions = standing().filter_map(|member| Some((member.passed()?.min(shared_to), member)));
    if let Some((seq, member)) = positions.max_by_key(|(seq, _)| *seq).filter(|(seq, _)| *seq > head) {
        let name = &member.name;
        return Some(if head == Seq::ZERO {
            format!("its log is empty, but member {name} had applied sequence {seq}")
        } else {
            format!("member {name} had applied {seq}, but this log ends at {head}")
        });
    }
    let mut shown = standing().filter_map(|member| Some((member, member.contradiction?)));
    shown.find_map(|(member, theirs)| here.shown_by(member, &theirs))
}

/// Returns the evidence in the audit, which has recorded entries up to `point`.
#[must_use]
pub fn from_audit(here: &Here<'_>, point: &LogPoint) -> Option<String> {
    let LogPoint { log_id, generation, seq, chain } = *point;
    if let Some(evidence) = from_mark(here, LogMark { log_id, generation, seq }, "audit") {
        return Some(evidence);
    }
    let is_of_here = (log_id, generation) == (here.log_id, here.generation) && seq >= here.log.horizon();
    let here_at = is_of_here.then(|| here.log.chain_at(seq).ok().flatten()).flatten();
    here_at.is_some_and(|here_at| here_at != chain).then(|| {
        format!(
            "its audit has recorded a different history up to sequence {seq} than this log, which ends at {}",
            here.head
        )
    })
}

/// Returns the evidence in a mark that was recorded outside the log.
fn from_mark(here: &Here<'_>, mark: LogMark, witness: &str) -> Option<String> {
    let LogMark { log_id, generation, seq } = mark;
    let head = here.head;
    if log_id == here.log_id {
        if generation > here.generation {
            let here = here.generation;
            return Some(format!("its {witness} knows generation {generation}, but this log is of generation {here}"));
        }
        let known = seq.min(here.shared_to(generation));
        return (known > head).then(|| format!("its {witness} knows sequence {known}, but this log ends at {head}"));
    }
    // The mark of another log is written lazily, so 0 does not prove that it was empty. A log with several generations
    // was installed by an operator.
    match head {
        Seq::ZERO if here.lineage.len() > 1 && seq == Seq::ZERO => None,
        Seq::ZERO => Some(format!("its log is empty, but its {witness} knows sequence {seq} of log {log_id}")),
        _ if here.lineage.len() <= 1 => Some(format!(
            "its {witness} belongs to log {log_id}, which had reached {seq}, but this is log {}",
            here.log_id
        )),
        _ => None,
    }
}

/// Aligns the registry with a log that no evidence contradicts. Positions beyond the part shared with a later
/// generation were abandoned, and so were the members' contradictions.
pub fn enter(here: &Here<'_>, registry: &mut Registry) {
    let mark = LogMark { log_id: here.log_id, generation: here.generation, seq: here.head };
    registry.enter(mark);
}

/// Returns whether evidence is considered in this mode.
#[must_use]
pub fn counts(mode: Recovery, evidence: &str) -> bool {
    if mode == Recovery::Off {
        tracing::error!(
            evidence,
            "accepting writes because Datastore-Recovery is off; entries missing from the log are given up"
        );
    }
    mode != Recovery::Off
}

/// Returns the shell commands that move the log and index of the data directory `dir` aside.
#[must_use]
pub fn aside(dir: &str) -> String {
    format!("`mv {dir}/log {dir}/log.aside; mv {dir}/state {dir}/state.aside` (it remains readable there)")
}

/// Suffix of evidence from a position that no signature of the datastore confirms. It still counts: the last
/// acknowledged entries may be unsigned, and a member may have lost its signatures.
const UNSIGNED: &str = "; no signature confirms that";

/// Marks evidence that rests on a member's claim alone.
#[must_use]
pub fn unsigned(evidence: &str) -> String {
    format!("{evidence}{UNSIGNED}")
}

/// Returns whether `evidence` is stronger than `known`, that is, signed.
#[must_use]
pub fn is_better(evidence: &str, known: &str) -> bool {
    known.ends_with(UNSIGNED) && !evidence.ends_with(UNSIGNED)
}

/// Returns the remedy for the operator of the data directory `dir`.
#[must_use]
pub fn remedy(dir: &str) -> String {
    let aside = aside(dir);
    format!(
        "if the member is not trustworthy, which is possible where no signature confirms its position, revoke it: \
         `gravwell-logctl --data-dir {dir} revoke MEMBER`, and writes resume; or stop the datastore and rebuild its \
         log from a member that has more: `gravwell-logctl --data-dir {dir} repair --from MEMBER_DIR`; or, if the log \
         is missing, `gravwell-logctl --data-dir {dir} recover`; if another log is in its place, move that one first, \
         {aside}, then `recover`; or `restore` a backup; to give up the entries that the log lacks, start it with \
         --recovery off"
    )
}

/// Returns the refusal for writers.
#[must_use]
pub fn refusal(evidence: &str, remedy: &str) -> Refused {
    let message = format!("the datastore waits for recovery, because {evidence}: {remedy}");
    Refused { code: RefusalCode::Diverged, message }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use gravwell_env::memory_fs::MemoryFs;
    use gravwell_log::{Log, LogOptions};
    use gravwell_model::MemberName;
    use gravwell_transport::trust::Role;

    const NOW: u64 = 1_800_000_000_000;

    #[test]
    fn p13_that_a_position_is_signed_is_news_and_that_it_is_not_is_none() {
        let (signed, claimed) = ("member web1 is at 9".to_owned(), unsigned("member web1 is at 9"));
        assert_eq!(claimed, "member web1 is at 9; no signature confirms that");
        assert!(is_better(&signed, &claimed));
        for (evidence, known) in [(&claimed, &signed), (&signed, &signed), (&claimed, &claimed)] {
            assert!(!is_better(evidence, known), "{evidence} {known}");
        }
        let remedy = remedy("D");
        let (revoke, repair) = (remedy.find("revoke MEMBER"), remedy.find("repair --from"));
        assert!(revoke.is_some() && revoke < repair, "{remedy}");
    }

    #[test]
    fn p13_a_revoked_member_that_joins_anew_brings_no_old_evidence_back() {
        let fs = Arc::new(MemoryFs::new());
        let (log, _) = Log::open(fs, std::path::Path::new("/log"), LogOptions::default()).expect("opens");
        let reader = log.reader();
        let here = Here::of(&reader, Seq::ZERO);
        let temp = tempfile::tempdir().expect("temp dir");
        let reopened = || Registry::open(temp.path(), NOW).expect("reopens");
        let name = MemberName::new("web1").expect("name");
        let shown = Position {
            log_id: LogId([7; 16]),
            generation: Generation(1),
            seq: Seq(5),
            chain: [7; 16],
            digest: Digest::ZERO,
        };
        for is_applied in [false, true] {
            let mut registry = reopened();
            registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
            assert!(!registry.note_contradiction(&name, shown, NOW).expect("writes"), "it has not joined");
            registry.enrol(&name, Role::Webserver, b"certificate", 90, NOW).expect("enrols");
            if is_applied {
                registry.note_position(&name, Seq(5), Seq(5), NOW);
            } else {
                assert!(registry.note_contradiction(&name, shown, NOW).expect("writes"));
            }
            registry.save(NOW).expect("saves");
            assert!(from_register(&here, &reopened()).is_some());
            registry.revoke(&name, NOW).expect("revokes");
            assert!(!registry.note_contradiction(&name, shown, NOW).expect("writes"), "it was revoked");
            assert_eq!(from_register(&here, &reopened()), None, "revoked");
            registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites again");
            assert_eq!(from_register(&here, &reopened()), None, "invited");
            registry.enrol(&name, Role::Webserver, b"another", 90, NOW).expect("enrols again");
            assert_eq!(from_register(&here, &reopened()), None, "enrolled");
            registry.remove(&name, NOW).expect("removes");
        }
    }

    #[test]
    fn p13_what_a_member_reported_is_evidence_also_after_it_reports_less() {
        let fs = Arc::new(MemoryFs::new());
        let (log, _) = Log::open(fs, std::path::Path::new("/log"), LogOptions::default()).expect("opens");
        let reader = log.reader();
        let name = MemberName::new("web1").expect("name");
        let mut registry = Registry::default();
        registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        registry.enrol(&name, Role::Webserver, b"certificate", 90, NOW).expect("enrols");
        registry.note_position(&name, Seq(5), Seq(9), NOW);
        registry.note_position(&name, Seq(0), Seq(9), NOW);
        assert!(from_register(&Here::of(&reader, Seq(4)), &registry).is_some(), "it has just restarted");
        assert_eq!(from_register(&Here::of(&reader, Seq(5)), &registry), None);
        enter(&Here::of(&reader, Seq(4)), &mut registry);
        assert_eq!(from_register(&Here::of(&reader, Seq(4)), &registry), None, "the rest was abandoned");
    }

    #[test]
    fn p13_an_audit_that_recorded_more_than_the_log_has_is_evidence_until_that_is_given_up() {
        let fs = Arc::new(MemoryFs::new());
        let (mut log, _) = Log::open(fs, std::path::Path::new("/log"), LogOptions::default()).expect("opens");
        let body = gravwell_model::EntryBody::Unknown { kind: 200, payload: bytes::Bytes::new() };
        let member = MemberName::new("web1").expect("name");
        let entry =
            |seq| gravwell_model::Entry { seq: Seq(seq), time_ms: NOW, member: member.clone(), body: body.clone() };
        log.append(&[entry(1), entry(2)]).expect("writes");
        let chain = log.sync().expect("syncs").chain();
        let reader = log.reader();
        let here = Here::of(&reader, Seq(2));
        let point = LogPoint { log_id: log.log_id(), generation: log.generation(), seq: Seq(2), chain };
        assert_eq!(from_audit(&here, &point), None);
        assert!(from_audit(&here, &LogPoint { seq: Seq(3), ..point }).is_some(), "the log went back");
        assert!(from_audit(&here, &LogPoint { chain: [9; 16], ..point }).is_some(), "another history");
        assert!(from_audit(&here, &LogPoint { log_id: LogId([7; 16]), ..point }).is_some(), "another log");
        // A later generation abandoned the entries that followed.
        let given_up = Here {
            generation: Generation(point.generation.0 + 1),
            lineage: [
                &*here.lineage,
                &[gravwell_model::LineageEntry { generation: Generation(point.generation.0 + 1), shared_to: Seq(2) }],
            ]
            .concat(),
            ..here
        };
        assert_eq!(from_audit(&given_up, &LogPoint { seq: Seq(3), chain: [9; 16], ..point }), None);
        let later = LogPoint { generation: Generation(point.generation.0 + 2), ..point };
        assert!(from_audit(&given_up, &later).is_some(), "a copy from before a recovery");
    }

    #[test]
    fn p13_a_log_that_began_in_the_place_of_another_one_is_shown_by_register_and_members() {
        let fs = Arc::new(MemoryFs::new());
        let (log, _) = Log::open(fs, std::path::Path::new("/log"), LogOptions::default()).expect("opens");
        let reader = log.reader();
        let former = LogId([7; 16]);
        let mark = |log_id| LogMark { log_id, generation: Generation(1), seq: Seq::ZERO };
        for head in [Seq::ZERO, Seq(1), Seq(9)] {
            let here = Here::of(&reader, head);
            let mut registry = Registry::default();
            registry.note_log(mark(former));
            assert!(from_register(&here, &registry).is_some(), "{head}: the position is written lazily");
            registry.note_log(mark(log.log_id()));
            assert_eq!(from_register(&here, &registry), None, "{head}");
        }
        let here = Here::of(&reader, Seq(3));
        let shown =
            Position { log_id: former, generation: Generation(1), seq: Seq(2), chain: [7; 16], digest: Digest::ZERO };
        let name = MemberName::new("web1").expect("name");
        for (enrolled_in, is_evidence) in [(None, true), (Some(former), true), (Some(log.log_id()), false)] {
            let mut registry = Registry::default();
            registry.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
            enrolled_in.into_iter().for_each(|log_id| registry.note_log(mark(log_id)));
            registry.enrol(&name, Role::Webserver, b"certificate", 90, NOW).expect("enrols");
            let member = registry.member(&name).expect("exists");
            assert_eq!(here.shown_by(member, &shown).is_some(), is_evidence, "{enrolled_in:?}");
            assert_eq!(here.shown_by(member, &Position { seq: Seq::ZERO, ..shown }), None);
            registry.note_log(mark(log.log_id()));
            assert!(registry.note_contradiction(&name, shown, NOW).expect("notes"));
            assert_eq!(from_register(&here, &registry).is_some(), is_evidence, "{enrolled_in:?}");
        }
    }
}
