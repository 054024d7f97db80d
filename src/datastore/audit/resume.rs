//! Position at which the audit continues in the operation log after a start: after the last recorded entry, unless the
//! log was replaced.

use gravwell_log::{LogReader, ReadError};
use gravwell_model::codec::audit::{AuditEvent, LogPoint};
use gravwell_model::position::shared_after;
use gravwell_model::{Chain, Generation, LogId, Seq};

/// Properties of the operation log that decide the position.
#[derive(Clone, Debug)]
pub struct LogNow {
    /// Log ID.
    pub log_id: LogId,
    /// Generation of the log.
    pub generation: Generation,
    /// Last sequence that the generation of the audit's last point shares with the log.
    pub shared_to: Seq,
    /// Lowest sequence from which entries can be read.
    pub horizon: Seq,
    /// Last durable sequence.
    pub head: Seq,
    /// Chain at the audit's last point, if known.
    pub chain: Option<Chain>,
}

impl LogNow {
    /// Reads the properties for an audit that has recorded entries up to `covered`.
    ///
    /// # Errors
    /// Returns an error if the log cannot be read at that point.
    pub fn of(log: &LogReader, covered: Option<LogPoint>) -> Result<LogNow, ReadError> {
        let generation = covered.map_or(Generation(0), |point| point.generation);
        Ok(LogNow {
            log_id: log.log_id(),
            generation: log.generation(),
            shared_to: shared_after(&log.lineage(), generation).unwrap_or(Seq(u64::MAX)),
            horizon: log.horizon(),
            head: log.head().0,
            chain: covered.map(|point| log.chain_at(point.seq)).transpose()?.flatten(),
        })
    }
}

/// Position at which the audit continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resume {
    /// Recording starts with the entry after this one.
    pub from: Seq,
    /// Event to record first: that entries are missing or were abandoned.
    pub said: Option<AuditEvent>,
}

/// Determines the position for an audit that has recorded entries up to `covered`. `is_new_log`: the log had no entries
/// when this process started.
#[must_use]
pub fn resume(covered: Option<LogPoint>, log: &LogNow, is_new_log: bool) -> Resume {
    let gap = |after: LogPoint, reason: String| Some(AuditEvent::Gap { after, reason });
    let Some(point) = covered.filter(|point| *point != LogPoint::default()) else {
        // The audit is not part of the log. If it is missing although the log has entries, it may have been removed.
        let reason =
            "no audit existed although the log had entries: it was removed, lost with the disk, or an earlier version \
             kept none; earlier acts other than transactions are not recorded"
                .to_owned();
        let said = (!is_new_log || log.horizon > Seq::ZERO).then(|| gap(LogPoint::default(), reason)).flatten();
        return Resume { from: log.horizon, said };
    };
    if point.log_id != log.log_id {
        let reason = format!("the log was replaced: it is {}, and was {}", log.log_id, point.log_id);
        return Resume { from: log.horizon, said: gap(point, reason) };
    }
    let shared = point.seq.min(log.shared_to).min(log.head);
    if shared < point.seq {
        let reason = format!(
            "the log was restored or recovered: generation {} continues after entry {shared}, and the entries after it \
             in generation {} were abandoned",
            log.generation, point.generation
        );
        return Resume { from: shared.max(log.horizon), said: gap(point, reason) };
    }
    if log.chain.is_some_and(|chain| chain != point.chain) {
        let reason = format!("the log is another one: entry {} differs from the one in the audit", point.seq);
        return Resume { from: log.horizon, said: gap(point, reason) };
    }
    if point.seq < log.horizon {
        return Resume {
            from: log.horizon,
            said: gap(point, "the entries were compacted before they were recorded".into()),
        };
    }
    Resume { from: point.seq, said: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> LogNow {
        LogNow {
            log_id: LogId([1; 16]),
            generation: Generation(2),
            shared_to: Seq(u64::MAX),
            horizon: Seq(10),
            head: Seq(100),
            chain: Some([7; 16]),
        }
    }

    fn at(seq: u64) -> LogPoint {
        LogPoint { log_id: LogId([1; 16]), generation: Generation(2), seq: Seq(seq), chain: [7; 16] }
    }

    #[test]
    fn the_audit_resumes_at_its_last_record_or_reports_missing_records() {
        type Change = fn(&mut LogNow, &mut LogPoint);
        let cases: [(&str, Change, u64, Option<&str>); 7] = [
            ("level", |_, _| {}, 50, None),
            ("behind the horizon", |log, _| log.horizon = Seq(60), 60, Some("compacted")),
            ("another log", |_, point| point.log_id = LogId([2; 16]), 10, Some("replaced")),
            ("abandoned", |log, _| log.shared_to = Seq(40), 40, Some("restored or recovered")),
            ("rolled back", |log, _| log.head = Seq(30), 30, Some("restored or recovered")),
            ("forked", |log, _| log.chain = Some([8; 16]), 10, Some("another one")),
            ("unknown there", |log, _| log.chain = None, 50, None),
        ];
        for (name, change, from, said) in cases {
            let (mut log, mut point) = (now(), at(50));
            change(&mut log, &mut point);
            let resumed = resume(Some(point), &log, false);
            assert_eq!(resumed.from, Seq(from), "{name}");
            let reason = resumed.said.map(|said| format!("{said:?}"));
            match said {
                None => assert_eq!(reason, None, "{name}"),
                Some(words) => assert!(reason.expect("reports a gap").contains(words), "{name}"),
            }
        }
        let new = LogNow { horizon: Seq::ZERO, ..now() };
        assert_eq!(resume(None, &new, true), Resume { from: Seq::ZERO, said: None });
        assert!(resume(None, &new, false).said.is_some(), "a removed audit is noticed");
        assert!(resume(None, &now(), true).said.is_some());
    }
}
