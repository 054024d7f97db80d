//! Preserved copies: each may be the last copy of lost data.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use gravwell_env::fs::parent_dir;

use super::Findings;
use crate::client::output::size;

/// Directories of a data directory that can contain preserved copies. A standalone webserver has its own log.
const FOLDERS: [&str; 8] = ["", "outbox", "log", "trust", "identity", "own-log", "own-log/log", "own-log/trust"];
/// Directories in which every file is a preserved copy.
const WHOLE: [&str; 5] =
    ["log/quarantine", "audit/quarantine", "outbox/quarantine", "own-log/log/quarantine", ARCHIVED];
/// Directory of the archived changes of an abandoned history.
const ARCHIVED: &str = "quarantine";
/// Marks in the names of preserved copies; a number follows.
const MARKS: [&str; 4] = [".damaged-", ".of-another-log-", ".aside-", ".left-"];

/// A preserved copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    path: PathBuf,
    bytes: u64,
}

pub(super) fn examine(dir: &Path, findings: &mut Findings) {
    let folders = FOLDERS.map(|folder| (folder, is_copy as fn(&Path) -> bool));
    for (folder, is_kept) in folders.into_iter().chain(WHOLE.map(|folder| (folder, is_whole as fn(&Path) -> bool))) {
        let entries = fs::read_dir(dir.join(folder)).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_kept(path)).collect();
        paths.sort();
        for path in paths {
            let (what, remedy) = if folder == ARCHIVED { describe_changes(&path) } else { describe(&path) };
            let bytes = bytes_in(&path);
            let found = format!("{} ({}): {what}", path.display(), size(bytes));
            let subject = if folder == ARCHIVED { "archived changes" } else { "damaged copy" };
            findings.kept(subject, found, remedy, Kept { path, bytes });
        }
    }
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn is_copy(path: &Path) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    MARKS.iter().any(|mark| name_of(path).rsplit_once(mark).is_some_and(|(_, number)| is_number(number)))
}

/// Returns whether a file in a directory of preserved copies is completely written.
fn is_whole(path: &Path) -> bool {
    path.extension().is_none_or(|extension| extension != "next")
}

/// Describes a file of archived changes and its remedy.
fn describe_changes(path: &Path) -> (&'static str, String) {
    let shown = path.display();
    let is_waiting = path.extension().is_some_and(|extension| extension == "jsonl");
    if is_waiting {
        let number = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let remedy = format!(
            "gravwell-logctl quarantine show {number}, then `quarantine apply {number}`, or `quarantine drop {number}`"
        );
        return ("local changes that are not in the log", remedy);
    }
    ("archived changes that were already applied", format!("rm {shown} once nothing is missing"))
}

/// Describes a preserved copy and its remedy.
fn describe(path: &Path) -> (&'static str, String) {
    let (name, shown) = (name_of(path), path.display());
    let keep = |until: &str| format!("keep it {until}; then rm -r {shown}");
    match name {
        _ if name.starts_with("state-") => (
            "a state that the replica replaced by a new one",
            keep(&format!("while the fleet lacks data (`recover --from {shown}` reads it)")),
        ),
        _ if name.starts_with("state.") => (
            "an index that the datastore replaced; it may contain data that the log lost",
            keep(&format!("while the log lacks data (`repair --from {shown}` reads it)")),
        ),
        _ if name_of(parent_dir(path)) == "quarantine" => (
            "bytes removed from the end of a file when it was opened",
            keep("until nothing is missing (`gravwell-logctl verify` reads the rest)"),
        ),
        _ if name.starts_with("trust.") => (
            "the CA and member registry before they were restored or re-created",
            keep("until every member is connected"),
        ),
        _ if name.starts_with("escrow.left-") => (
            "an encrypted CA backup that another one replaced without going on from it; it may contain revocations that \
             the other one lacks",
            keep(
                "until `gravwell-logctl members` was compared with the members that are expected (`recover` reads it)",
            ),
        ),
        _ if name.starts_with("members.") => (
            "a register of members that another one replaced",
            keep("until `gravwell-logctl members` was compared with the members that are expected"),
        ),
        _ if name_of(parent_dir(path)) == "trust" => (
            "a key or certificate that another one replaced",
            keep("until every member is connected and a backup was verified"),
        ),
        _ if name.starts_with("log.") => (
            "the log as it was before a repair, a recovery or a restore",
            keep("until nothing is missing and a backup of the new log was verified"),
        ),
        _ if name.starts_with("journal.") || name.starts_with("head.") => (
            "an abandoned outbox journal; it may contain accepted changes that were never pushed",
            keep("until the authors miss no changes"),
        ),
        _ if name.starts_with("audit-waiting.") => {
            ("unreadable actions that were pending for the audit", keep("until they are identified"))
        }
        _ if name.starts_with("audit.") => (
            "a damaged audit, which was replaced by a new one",
            keep("as long as the audit must be kept (`gravwell-logctl audit` reads the new one)"),
        ),
        _ if name.starts_with("register.mark.") => (
            "a recorded position of the member registry",
            keep("until `gravwell-logctl members` lists the expected members"),
        ),
        _ if name.starts_with("escrow.") => (
            "an encrypted CA backup that could not be read; it may hold later revocations than any other",
            keep("until `gravwell-logctl members` at the datastore lists the expected members"),
        ),
        _ if name.starts_with("generations.json.") => (
            "recorded reasons for generations of the log",
            keep("until `gravwell-logctl generations` lists every generation"),
        ),
        _ => ("a preserved file", keep("until nothing is missing")),
    }
}

/// Returns the size of all files in `path`. Symbolic links are not followed.
fn bytes_in(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let entries = fs::read_dir(path).into_iter().flatten().flatten();
            entries.map(|entry| bytes_in(&entry.path())).sum()
        }
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_is_listed_with_its_size_and_what_to_do() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path();
        let copies = [
            ("state-0002.damaged-1/0.jnl", "recover --from"),
            ("state.damaged-3/tables/1", "repair --from"),
            ("log.damaged-1/head", "backup"),
            ("audit.damaged-1/head", "new one"),
            ("outbox/journal.damaged-1", "authors"),
            ("outbox/head.damaged-1", "authors"),
            ("generations.json.damaged-2", "generations"),
            ("generations.json.of-another-log-1", "generations"),
            ("register.mark.damaged-1", "members"),
            ("identity/escrow.damaged-1", "members"),
            ("trust/members.json.damaged-1", "members"),
            ("own-log/state.damaged-1/0.jnl", "repair --from"),
            ("log/quarantine/seg-1.open@77", "verify"),
            ("outbox/quarantine/journal@9", "verify"),
            ("quarantine/0003.jsonl", "quarantine apply 0003"),
            ("identity/escrow.left-1", "recover"),
            ("trust.damaged-1/ca.key", "member"),
            ("trust.aside-2/members.json", "member"),
        ];
        let others = [
            "quarantine/0004.next",
            "state-0003/0.jnl",
            "log/head",
            "trust/members.json",
            "notes.damaged-x",
            "outbox/journal",
        ];
        for file in copies.iter().map(|(file, _)| file).chain(&others) {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().expect("parent")).expect("creates");
            fs::write(path, vec![7; 1234]).expect("writes");
        }
        let mut findings = Findings::default();
        examine(dir, &mut findings);
        assert_eq!(findings.list.len(), copies.len(), "{:?}", findings.list);
        for (file, remedy) in copies {
            let of_file = |finding: &&crate::checks::Finding| {
                finding.kept.as_ref().is_some_and(|kept| dir.join(file).starts_with(&kept.path))
            };
            let finding = findings.list.iter().find(of_file).unwrap_or_else(|| panic!("{file}"));
            assert!(finding.remedy.contains(remedy), "{finding:?}");
            assert_eq!(finding.kept.as_ref().map(|kept| kept.bytes), Some(1234));
        }
        let json: serde_json::Value = serde_json::from_str(&findings.text()).expect("JSON");
        assert_eq!(json["findings"][0]["kept"]["bytes"], 1234);
    }
}
