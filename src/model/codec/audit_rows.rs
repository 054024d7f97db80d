//! Records of the audit as rows: one JSON object per action. Used by searches, by `gravwell-logctl audit` and by its export.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::audit::{Act, AuditEvent, AuditOp, AuditRecord, Value};
use super::json_lines::timestamp;
use crate::Seq;

/// One row of the audit.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AuditRow<'a> {
    /// Time of recording in RFC 3339.
    pub time: String,
    /// Number of the record in the audit.
    pub audit: u64,
    /// Sequence in the operation log; absent if the record is not about a transaction.
    pub seq: Option<u64>,
    /// The member where it happened, as authenticated by the datastore.
    pub member: String,
    /// ID of the user; 0 for the webserver itself.
    pub uid: Option<i32>,
    /// Name of the user.
    pub user: Option<Cow<'a, str>>,
    /// The administrator who impersonates this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Cow<'a, str>>,
    /// Address of the client.
    pub from: Option<Cow<'a, str>>,
    /// Name that the webserver reports for itself.
    pub via: Option<Cow<'a, str>>,
    /// Description for display.
    pub what: Option<Cow<'a, str>>,
    /// `put`, `delete`, `rejected`, or the kind of the action.
    pub op: Cow<'a, str>,
    /// Collection of the object.
    pub collection: Option<&'a str>,
    /// Key of the object.
    pub key: Option<&'a str>,
    /// The object before, if it may be shown.
    pub before: Option<Cow<'a, RawValue>>,
    /// The object after, if it may be shown.
    pub after: Option<Cow<'a, RawValue>>,
    /// Reason of the rejection or gap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of equal actions that it represents, if not 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Time by the clock of the host where it happened, if that differs from the time of recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub happened: Option<String>,
}

/// Note that a webserver adds to its transactions.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Note {
    uid: Option<i32>,
    user: Option<String>,
    su: Option<String>,
    /// Name of the program, if it is not a webserver.
    by: Option<String>,
    from: Option<String>,
    via: Option<String>,
    what: Option<String>,
}

/// A time that differs less than this from the time of recording is not shown separately.
const SAME_MS: u64 = 2000;

/// Returns the rows of the record at `seq` of the audit.
#[must_use]
pub fn rows(seq: Seq, record: &AuditRecord) -> Vec<AuditRow<'_>> {
    let base = AuditRow {
        time: timestamp(record.time_ms),
        audit: seq.0,
        member: record.member.to_string(),
        ..AuditRow::default()
    };
    let covered = Some(record.covered.seq.0);
    match &record.event {
        AuditEvent::Commit { note, ops, more } => {
            let note: Note = serde_json::from_slice(note).unwrap_or_default();
            let base = AuditRow { seq: covered, ..base };
            let rest = (*more > 0).then(|| AuditRow { op: "more".into(), count: Some(*more), ..base.clone() });
            ops.iter().map(|op| change(op, &note, base.clone())).chain(rest).collect()
        }
        AuditEvent::Reject { reason } => {
            vec![AuditRow { seq: covered, op: "rejected".into(), reason: Some(reason.to_string()), ..base }]
        }
        AuditEvent::Unknown { kind } => {
            let reason = Some(format!("an entry of unknown kind {kind}"));
            vec![AuditRow { seq: covered, op: "unknown".into(), reason, ..base }]
        }
        AuditEvent::Gap { after, reason } => {
            let to = record.covered.seq;
            let what = match to > after.seq {
                true => format!("entries {} to {to} of the log are not in the audit", after.seq.next()),
                false => format!("the audit continues after entry {to} of the log"),
            };
            vec![AuditRow { op: "gap".into(), what: Some(what.into()), reason: Some(reason.clone()), ..base }]
        }
        AuditEvent::Trimmed { to, .. } => {
            // A separate record reports if some of them were younger.
            let what = format!("audit records up to {to} were removed, because they were older than the retention");
            vec![AuditRow { op: "trimmed".into(), what: Some(what.into()), ..base }]
        }
        AuditEvent::Act(act) => vec![of_act(act, record.time_ms, base)],
        AuditEvent::Acknowledged { to, from } => {
            let what = format!("corruption and gaps reported in audit records up to {to}");
            vec![AuditRow { op: "acknowledged".into(), what: Some(what.into()), from: text(from), ..base }]
        }
    }
}

fn text(text: &str) -> Option<Cow<'_, str>> {
    (!text.is_empty()).then_some(Cow::Borrowed(text))
}

fn of_act<'a>(act: &'a Act, recorded_ms: u64, base: AuditRow<'a>) -> AuditRow<'a> {
    let is_late = act.happened_ms.abs_diff(recorded_ms) > SAME_MS;
    AuditRow {
        uid: act.uid,
        user: text(&act.user),
        by: text(&act.by),
        from: text(&act.from),
        via: Some(base.member.clone().into()),
        what: text(&act.what),
        op: Cow::Borrowed(&act.kind),
        count: (act.count != 1).then_some(act.count),
        happened: is_late.then(|| timestamp(act.happened_ms)),
        ..base
    }
}

fn change<'a>(op: &'a AuditOp, note: &Note, base: AuditRow<'a>) -> AuditRow<'a> {
    let owned = |text: &Option<String>| text.clone().map(Cow::Owned);
    AuditRow {
        uid: note.uid,
        user: owned(&note.user),
        by: owned(&note.su),
        from: owned(&note.from),
        via: owned(&note.via).or_else(|| owned(&note.by)),
        what: owned(&note.what),
        op: if op.is_delete { "delete" } else { "put" }.into(),
        collection: Some(&op.collection),
        key: Some(&op.key),
        before: shown(&op.before),
        after: shown(&op.after),
        ..base
    }
}

fn shown(value: &Value) -> Option<Cow<'_, RawValue>> {
    match value {
        Value::Json(json) => super::audit::readable(json),
        Value::None | Value::Unknown | Value::Withheld(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::audit::LogPoint;
    use crate::{Collection, Key, MemberName, Op};

    fn commit(op: &Op, before: Value) -> AuditRecord {
        let note = br#"{"uid":1,"user":"admin","from":"192.0.2.1","via":"web1","what":"rename"}"#.to_vec();
        let mut room = usize::MAX;
        AuditRecord {
            time_ms: 1_700_000_000_000,
            member: MemberName::new("web1").expect("name"),
            covered: LogPoint { seq: Seq(7), ..LogPoint::default() },
            event: AuditEvent::Commit { note, ops: vec![AuditOp::of(op, before, &mut room)], more: 0 },
        }
    }

    fn put(collection: &str, value: &str) -> Op {
        let (collection, key) = (Collection::new(collection).expect("name"), Key::new("7/a").expect("key"));
        Op::Put { collection, key, value: value.to_owned().into() }
    }

    #[test]
    fn what_is_nested_deeply_is_shown_as_text() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let record = commit(&put("dashboards", &deep), Value::None);
        let rows = rows(Seq(1), &record);
        let shown: serde_json::Value =
            serde_json::from_str(rows[0].after.as_ref().expect("shown").get()).expect("JSON");
        assert_eq!(shown, deep.as_str());
    }

    #[test]
    fn secrets_are_not_kept() {
        let record = commit(&put("passwords", r#"{"Hash":"x"}"#), Value::None);
        let encoded = record.entry(Seq(1));
        assert_eq!(AuditRecord::of(&encoded).as_ref(), Ok(&record));
        let rows = rows(Seq(1), &record);
        assert!(rows[0].after.is_none() && rows[0].key == Some("7"), "{rows:?}");
        assert!(!format!("{record:?}").contains("Hash"));
    }

    #[test]
    fn a_change_is_shown_with_its_author_and_both_values() {
        let record = commit(&put("users", r#"{"a":1.50}"#), Value::Json(r#"{"a":2}"#.into()));
        let json = serde_json::to_value(&rows(Seq(3), &record)[0]).expect("JSON");
        let expected = [("seq", "7"), ("audit", "3"), ("uid", "1"), ("user", "\"admin\""), ("op", "\"put\"")];
        for (field, value) in expected {
            assert_eq!(json[field].to_string(), value, "{json}");
        }
        let text = serde_json::to_string(&rows(Seq(3), &record)[0]).expect("JSON");
        assert!(text.contains(r#""after":{"a":1.50}"#) && text.contains(r#""before":{"a":2}"#), "{text}");
    }
}
