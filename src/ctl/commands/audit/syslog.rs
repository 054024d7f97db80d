//! Audit rows as syslog lines (RFC 5424).

use std::fmt::Write;

use gravwell_model::codec::audit_rows::AuditRow;
use gravwell_model::printable;

/// Facility `log audit`.
const FACILITY: u8 = 13;
const NOTICE: u8 = 5;
const WARNING: u8 = 4;
/// Enterprise number that RFC 5612 reserves for examples and private use: this product has none assigned.
const ENTERPRISE: u32 = 32473;

/// Formats a row as one line. To continue an export, start after the field `audit` of its structured data.
pub(super) fn line(row: &AuditRow<'_>) -> String {
    let is_warning = row.op.contains("failed") || matches!(row.op.as_ref(), "rejected" | "gap" | "audit-damaged");
    let priority = FACILITY * 8 + if is_warning { WARNING } else { NOTICE };
    let (host, what) = (header(&row.member, 255), header(&row.op, 32));
    let mut line = format!("<{priority}>1 {} {host} gravwell - {what} [audit@{ENTERPRISE}", row.time);
    let mut add = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = write!(line, " {name}=\"{}\"", quoted(value));
        }
    };
    let number = |number: Option<u64>| number.map(|number| number.to_string());
    add("audit", Some(&row.audit.to_string()));
    add("seq", number(row.seq).as_deref());
    add("uid", row.uid.map(|uid| uid.to_string()).as_deref());
    add("user", row.user.as_deref());
    add("by", row.by.as_deref());
    add("from", row.from.as_deref());
    add("via", row.via.as_deref());
    add("collection", row.collection);
    add("key", row.key);
    add("count", number(row.count).as_deref());
    add("happened", row.happened.as_deref());
    let text = row.what.as_deref().or(row.reason.as_deref()).unwrap_or_default();
    let _ = write!(line, "] {}", printable::escape(text));
    line.trim_end().to_owned()
}

/// Formats a header field: visible ASCII, never empty.
fn header(text: &str, bytes_max: usize) -> String {
    let word: String = text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).take(bytes_max).collect();
    if word.is_empty() { "-".into() } else { word }
}

/// Escapes a value for use within quotes, on one line.
fn quoted(text: &str) -> String {
    let escaped = printable::escape(text);
    let mut quoted = String::with_capacity(escaped.len());
    for character in escaped.chars() {
        if matches!(character, '"' | '\\' | ']') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line_whatever_is_in_it() {
        let row = AuditRow {
            time: "2026-01-31T12:00:00.000Z".into(),
            audit: 7,
            member: "web 1".into(),
            user: Some("a\"]\\\n<1>b".into()),
            what: Some("line\nline".into()),
            op: "login-failed".into(),
            ..AuditRow::default()
        };
        let expected = "<108>1 2026-01-31T12:00:00.000Z web_1 gravwell - login-failed [audit@32473 audit=\"7\" \
                        user=\"a\\\"\\]\\\\\\\\n<1>b\"] line\\nline";
        assert_eq!(line(&row), expected);
    }
}
