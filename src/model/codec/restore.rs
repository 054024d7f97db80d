//! Mark of an unfinished restore of an export archive: one object of the log, so that every member
//! sees it. Its type is defined in a higher layer; this one only reports it.

use serde::Deserialize;

use super::health::{Code, Reason};

/// Collection of the mark.
pub const COLLECTION: &str = "restores";
/// Key of the mark.
pub const KEY: &str = "unfinished";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    user: String,
    webserver: String,
    since: String,
}

/// Returns the reason for which a member that has the mark is not healthy.
#[must_use]
pub fn reason(mark: &[u8]) -> Reason {
    let Head { user, webserver, since } = serde_json::from_slice(mark).unwrap_or_default();
    let message = format!(
        "a restore of an export archive has not finished (started by {user:?} at webserver {webserver:?}, {since}); only \
         administrators are served"
    );
    let remedy = "wait until it has finished; if it was cut short, an administrator restores the archive again, or ends \
                  the restore with DELETE /api/backup and then checks users, locks and objects";
    Reason::new(Code::RestoreUnfinished, message, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_mark_is_reported_too() {
        let whole = br#"{"user":"admin","webserver":"web1","since":"2026-01-01T00:00:00Z","step":3}"#;
        assert!(reason(whole).message.contains("\"admin\" at webserver \"web1\", 2026-01-01T00:00:00Z"));
        assert_eq!(reason(b"[").code, Code::RestoreUnfinished);
    }
}
