//! The machine: UDP buffers, disk space, permissions, clock.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gravwell_env::file_modes::{self, Wide};
use gravwell_transport::endpoint::UDP_BUFFER_BYTES;

use super::{Findings, Subject};
use crate::client::output::size;

/// Maximum number of files to check for their owner and mode; others are not checked.
const FILES_MAX: usize = 10_000;
/// Files that only their owner may read, relative to a data directory.
const PRIVATE: [&str; 9] = [
    "backup.key",
    "trust/ca.key",
    "trust/members.json",
    "trust/recovery.key",
    "trust/recovery.next",
    "identity/member.json",
    "tls/key.pem",
    "initial-admin-password",
    "ctl.sock",
];

pub(super) fn examine(subject: &Subject<'_>, findings: &mut Findings) {
    buffers(findings);
    space(subject, findings);
    permissions(subject.dir, findings);
    clock(findings);
}

fn buffers(findings: &mut Findings) {
    const SUBJECT: &str = "UDP buffers";
    let wanted = u64::try_from(UDP_BUFFER_BYTES).unwrap_or(u64::MAX);
    let granted = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let (Some(receive), Some(send)) = (granted("rmem_max"), granted("wmem_max")) else {
        return findings.warning(SUBJECT, "cannot read the kernel's limits", "check net.core.rmem_max manually");
    };
    if receive >= wanted && send >= wanted {
        return findings.good(SUBJECT, format!("up to {} and {} are granted", size(receive), size(send)));
    }
    findings.warning(
        SUBJECT,
        format!(
            "the kernel grants {} for receiving and {} for sending, recommended are {}",
            size(receive),
            size(send),
            size(wanted)
        ),
        "install packaging/60-gravwell.conf as /etc/sysctl.d/60-gravwell.conf, then `sysctl --system`",
    );
}

fn space(subject: &Subject<'_>, findings: &mut Findings) {
    const SUBJECT: &str = "disk";
    let dir = subject.dir;
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(error) => {
            return findings.problem(
                SUBJECT,
                format!("{}: {error}", dir.display()),
                "pass the data directory with --data-dir",
            );
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize).max(1);
    let inodes_are_short = stat.f_files > 0 && stat.f_favail < stat.f_files / 100;
    let found = format!("{} of {} free for {}", size(free), size(total), dir.display());
    if free < subject.datastore.min_free_bytes {
        findings.problem(
            SUBJECT,
            found,
            "free some space: below the minimum (`Datastore-Min-Free-MB`, at a webserver `Webserver-Min-Free-MB`), \
             writes are rejected; reads and deletes continue",
        );
    } else if free < total / 20 || free < subject.datastore.min_free_bytes.saturating_mul(4) {
        findings.warning(SUBJECT, found, "free some space, or run `gravwell-logctl compact`");
    } else if inodes_are_short {
        findings.warning(SUBJECT, format!("{found}, but few inodes are left"), "remove some files");
    } else {
        findings.good(SUBJECT, found);
    }
}

fn permissions(dir: &Path, findings: &mut Findings) {
    const SUBJECT: &str = "permissions";
    let Ok(meta) = fs::metadata(dir) else { return };
    let before = findings.list.len();
    let shown = dir.display();
    match file_modes::wide(dir, FILES_MAX) {
        Ok(wide) => open_to_others(dir, &wide, findings),
        Err(error) => findings.warning(SUBJECT, error, "run gravwell-logctl as the owner of the directory"),
    }
    if let Some(path) = foreign(dir, meta.uid()) {
        let owner = meta.uid();
        findings.problem(
            SUBJECT,
            format!("{} does not belong to the owner of {shown}", path.display()),
            format!("chown -R --reference={shown} {shown} (user {owner}); a command was run as another user"),
        );
    }
    let caller = rustix::process::geteuid().as_raw();
    if caller != meta.uid() && caller != 0 {
        let found = format!("{shown} belongs to user {}, you are user {caller}", meta.uid());
        findings.warning(SUBJECT, found, "run gravwell-logctl as its owner: `sudo -u gravwell gravwell-logctl ...`");
    }
    if findings.list.len() == before {
        findings.good(SUBJECT, format!("{shown} and its content belong to user {}", meta.uid()));
    }
}

/// Reports entries that other users could access. They can reach them only if the directory itself is open.
fn open_to_others(dir: &Path, wide: &[Wide], findings: &mut Findings) {
    const SUBJECT: &str = "permissions";
    let shown = dir.display();
    let close = format!("chmod -R go= {shown}; a service also does this at start");
    if let Some(top) = wide.iter().find(|wide| wide.path == dir) {
        findings.warning(SUBJECT, format!("{shown} is accessible to other users ({:o})", top.mode & 0o777), &close);
        let private = |wide: &&Wide| PRIVATE.iter().any(|name| wide.path == dir.join(name));
        for Wide { path, mode, .. } in wide.iter().filter(private) {
            findings.problem(
                SUBJECT,
                format!("{} is accessible to other users ({:o})", path.display(), mode & 0o777),
                &close,
            );
        }
    }
    let within: Vec<&Wide> = wide.iter().filter(|wide| wide.path != dir).collect();
    if let Some(first) = within.first() {
        let (path, mode, count) = (first.path.display(), first.mode & 0o777, within.len());
        findings.warning(
            SUBJECT,
            format!("{count} entries are accessible to other users, for example {path} ({mode:o})"),
            close,
        );
    }
}

/// Returns the first file that does not belong to `owner`.
fn foreign(dir: &Path, owner: u32) -> Option<PathBuf> {
    let mut waiting = vec![dir.to_owned()];
    let mut seen = 0;
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).ok()?.filter_map(Result::ok) {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.uid() != owner {
                return Some(entry.path());
            }
            seen += 1;
            if seen > FILES_MAX {
                return None;
            }
            if meta.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    None
}

/// Checks whether a time service is running. A wrong clock breaks nothing, but certificates and histories use its time.
fn clock(findings: &mut Findings) {
    const SUBJECT: &str = "clock";
    let marks = ["/run/systemd/timesync/synchronized", "/run/chrony/chronyd.pid", "/run/chronyd.pid", "/run/ntpd.pid"];
    match marks.iter().find(|mark| Path::new(mark).exists()) {
        Some(mark) => findings.good(SUBJECT, format!("synchronized by a time service ({mark})")),
        None => findings.warning(
            SUBJECT,
            "no time service was found",
            "install systemd-timesyncd or chrony, unless the hypervisor synchronizes the clock",
        ),
    }
}
