//! Progress of the member registry, as recorded in the audit: a witness of revocations and enrolments that does not lie in
//! the directory of the registry.
//!
//! A record follows each change that is durable, within a second. It is repeated in every segment, so that reading the
//! last two of them is enough at a start.

use crate::stale_registry::Audited;
use gravwell_log::LogReader;
use gravwell_model::codec::audit::{Act, AuditEvent, AuditRecord};
use gravwell_model::{MemberName, Seq};
use gravwell_transport::trust::RegisterMark;

/// Kind of these acts.
pub(super) const KIND: &str = "register";
/// In place of the name of a change that has none.
const UNNAMED: &str = "-";

/// Returns the act that records the registry's progress.
pub(super) fn act(Audited { mark, authority }: &Audited, happened_ms: u64) -> Act {
    let RegisterMark { count, name, changed_ms } = mark;
    let name = if name.is_empty() { UNNAMED } else { name };
    let what = format!("change {count} {name} of {changed_ms} under {authority}");
    Act { kind: KIND.into(), happened_ms, what, count: 1, ..Act::default() }
}

fn parse(what: &str) -> Option<Audited> {
    let words: Vec<&str> = what.split(' ').collect();
    let ["change", count, name, "of", changed_ms, "under", authority] = words[..] else { return None };
    let name = if name == UNNAMED { String::new() } else { name.to_owned() };
    let mark = RegisterMark { count: count.parse().ok()?, name, changed_ms: changed_ms.parse().ok()? };
    Some(Audited { mark, authority: authority.to_owned() })
}

/// Returns the last recorded progress, and the number of its record, from the newest segments.
pub(super) fn last(reader: &LogReader, local: &MemberName) -> Option<(Audited, Seq)> {
    let mut last = None;
    for entry in reader.entries(super::reader::recent(reader), reader.head().0).filter_map(Result::ok) {
        let Ok(AuditRecord { member, event: AuditEvent::Act(act), .. }) = AuditRecord::of(&entry) else { continue };
        // A member's acts have a number.
        if act.kind == KIND && member == *local && act.id.is_empty() {
            last = parse(&act.what).map(|audited| (audited, entry.seq)).or(last);
        }
    }
    last
}

/// Returns whether the progress must be recorded in the last segment, too, after it was in the record `seq`.
pub(super) fn is_due_again(reader: &LogReader, seq: Seq) -> bool {
    reader.segments().last().is_some_and(|segment| segment.records > 0 && segment.first > seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p13_the_progress_of_the_register_is_read_as_it_was_recorded() {
        for name in ["0123456789abcdef", ""] {
            let mark = RegisterMark { count: 7, name: name.into(), changed_ms: 9 };
            let audited = Audited { mark, authority: "ab12".into() };
            assert_eq!(parse(&act(&audited, 5).what), Some(audited));
        }
        for bad in ["", "change 7", "change x - of 9 under ab12", "change 7 - of 9 under ab12 more"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
