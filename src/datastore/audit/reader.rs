//! Reading the audit: pages of records for searches and commands, and verification.

use std::collections::HashMap;
use std::path::Path;

use gravwell_env::RealFs;
use gravwell_log::{FrameBlock, IoFailure, LogReader, ReadError, VerifyReport};
use gravwell_model::codec::admin::Finding;
use gravwell_model::codec::audit::{Act, AuditEvent, AuditRecord, AuditReport};
use gravwell_model::{Chain, MemberName, Seq};

/// Bytes of one page, which is held in memory on both sides.
const PAGE_BYTES: usize = 1 << 20;
/// Records are nearly ordered by time. This is the largest step back of a clock that is allowed for.
const DISORDER_MS: u64 = 3_600_000;

pub(super) struct Page {
    /// Records; `None` if there are no more.
    pub block: Option<FrameBlock>,
    /// Lowest record from which reading can start.
    pub horizon: Seq,
}

/// Returns records after `from` that may be between `since_ms` and `until_ms`. Filtering is by whole segments only.
pub(super) fn page(reader: &LogReader, from: Seq, since_ms: u64, until_ms: u64) -> Result<Page, ReadError> {
    // Old segments may be removed during the read.
    loop {
        let (horizon, head) = (reader.horizon(), reader.head().0);
        let mut start = from.max(horizon);
        for segment in reader.segments() {
            let is_over = segment.sealed && segment.last_time_ms.saturating_add(DISORDER_MS) < since_ms;
            let is_ahead = segment.first_time_ms > until_ms.saturating_add(DISORDER_MS);
            if is_over {
                start = start.max(segment.last);
            } else if is_ahead && segment.first > start {
                return Ok(Page { block: None, horizon });
            }
        }
        if start >= head {
            return Ok(Page { block: None, horizon });
        }
        match reader.frames(start, PAGE_BYTES) {
            Err(ReadError::Compacted { .. }) => {}
            block => return Ok(Page { block: block?, horizon }),
        }
    }
}

/// Splits an act's ID into the incarnation of its member's buffer and the number within it.
pub(super) fn number(act: &Act) -> Option<(&str, u64)> {
    let (life, number) = act.id.rsplit_once('/')?;
    Some((life, number.parse().ok()?))
}

/// Returns the record before the two newest segments.
pub(super) fn recent(reader: &LogReader) -> Seq {
    let segments = reader.segments();
    let from = segments.iter().rev().nth(1).or(segments.first()).map_or(Seq::ZERO, |segment| Seq(segment.first.0 - 1));
    from.max(reader.horizon())
}

/// Returns the last act of each member's buffer, from the newest segments. Acts that a member resends were sent
/// shortly before.
pub(super) fn seen(reader: &LogReader) -> HashMap<(MemberName, String), u64> {
    let mut seen = HashMap::new();
    for entry in reader.entries(recent(reader), reader.head().0).filter_map(Result::ok) {
        let Ok(AuditRecord { member, event: AuditEvent::Act(act), .. }) = AuditRecord::of(&entry) else { continue };
        if let Some((life, number)) = number(&act) {
            let last = seen.entry((member, life.to_owned())).or_insert(0);
            *last = number.max(*last);
        }
    }
    seen
}

pub(super) fn hex(chain: &Chain) -> String {
    chain.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn finding(place: &str, problem: String) -> Finding {
    Finding { place: place.to_owned(), offset: None, problem }
}

fn report_of(files: &VerifyReport) -> AuditReport {
    AuditReport {
        files: files.segments as u64,
        records: files.records,
        bytes: files.bytes,
        last: files.head,
        chain: hex(&files.chain),
        findings: files.damages.iter().map(|damage| finding(&damage.file, damage.to_string())).collect(),
        ..AuditReport::default()
    }
}

/// Unacknowledged corruption and gap records.
#[derive(Default)]
pub(super) struct Said {
    gaps: Vec<Seq>,
    damages: Vec<(Seq, String)>,
    acknowledged: u64,
}

impl Said {
    fn take(&mut self, seq: Seq, event: AuditEvent) {
        match event {
            AuditEvent::Gap { .. } => self.gaps.push(seq),
            AuditEvent::Act(act) if act.kind == "gap" => self.gaps.push(seq),
            AuditEvent::Act(act) if act.kind == super::damage::KIND => self.damages.push((seq, act.what)),
            AuditEvent::Acknowledged { to, .. } => {
                let before = self.gaps.len() + self.damages.len();
                self.gaps.retain(|gap| *gap > to);
                self.damages.retain(|(damage, _)| *damage > to);
                self.acknowledged += (before - self.gaps.len() - self.damages.len()) as u64;
            }
            _ => {}
        }
    }
}

impl Said {
    pub(super) fn is_empty(&self) -> bool {
        self.gaps.is_empty() && self.damages.is_empty()
    }

    pub(super) fn gaps(&self) -> impl Iterator<Item = Seq> {
        self.gaps.iter().copied()
    }

    pub(super) fn damages(&self) -> impl Iterator<Item = &(Seq, String)> {
        self.damages.iter()
    }
}

/// Collects corruption and gap records after `from` up to `to`, and applies acknowledgements.
///
/// # Errors
/// Returns an error if they cannot be read.
pub(super) fn say(reader: &LogReader, (from, to): (Seq, Seq), said: &mut Said) -> Result<(), ReadError> {
    for entry in reader.entries(from, to) {
        let entry = entry?;
        if let Ok(record) = AuditRecord::of(&entry) {
            said.take(entry.seq, record.event);
        }
    }
    Ok(())
}

/// Reports every corrupt location of an audit that cannot be opened.
pub(super) fn examine(dir: &Path) -> AuditReport {
    report_of(&gravwell_log::verify(&RealFs, dir, &mut |_, _| {}))
}

/// Verifies every byte, the chain, and that the first record continues the removed ones.
///
/// # Errors
/// Returns an error if the head file cannot be read.
pub(super) fn verify(reader: &LogReader, at: Option<Seq>) -> Result<AuditReport, IoFailure> {
    let files = reader.verify(&mut |_, _| {})?;
    let mut report = report_of(&files);
    report.first = reader.horizon().next();
    report.chain_at = at.and_then(|at| reader.chain_at(at).ok().flatten()).map(|chain| hex(&chain));
    let anchor = reader.chain_at(reader.horizon()).ok().flatten();
    let mut is_anchored = reader.horizon() == Seq::ZERO;
    let mut said = Said::default();
    for entry in reader.entries(reader.horizon(), reader.head().0) {
        let Ok(entry) = entry else { break };
        let Ok(record) = AuditRecord::of(&entry) else {
            report.unknown += 1;
            continue;
        };
        report.first_time_ms = if report.first_time_ms == 0 { record.time_ms } else { report.first_time_ms };
        (report.last_time_ms, report.covered) = (record.time_ms, record.covered.seq);
        match record.event {
            AuditEvent::Trimmed { to, chain } => is_anchored |= to == reader.horizon() && anchor == Some(chain),
            event => said.take(entry.seq, event),
        }
    }
    (report.gaps, report.acknowledged) = (said.gaps.len() as u64, said.acknowledged);
    if !is_anchored && report.findings.is_empty() {
        let problem = format!(
            "records up to {} are missing, and no record states that they were removed because of their age",
            reader.horizon()
        );
        report.findings.push(finding("audit", problem));
    }
    report.findings.extend(said.damages.into_iter().map(|(seq, what)| {
        let last = report.last;
        finding(
            &format!("record {seq}"),
            format!("{what}; after examining it, run `gravwell-logctl audit acknowledge {last}`"),
        )
    }));
    report.ok = report.findings.is_empty();
    Ok(report)
}
