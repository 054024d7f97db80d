//! Staged files: objects are written under a temporary name first. Cleans up the files that terminated processes
//! left behind.
//!
//! The name of a staged file consists of the object's name, the process ID, a hash of the host name, and a token to
//! distinguish processes with the same ID: `NAME.PID-HOST-TOKEN.next`. Earlier versions used the process ID alone.
//! Files of terminated processes are abandoned. For unknown processes, only the file's age decides.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use gravwell_env::real_fs::create_dirs;

/// Suffix of staged files.
pub(super) const END: &str = ".next";
/// Age at which a staged file of an unknown process counts as abandoned. No write takes this long.
pub(super) const STALE: Duration = Duration::from_secs(20 * 60);

fn host() -> String {
    blake3::hash(rustix::system::uname().nodename().to_bytes()).to_hex()[..8].to_owned()
}

/// Returns the token of this process, because a later process may have the same ID.
fn token() -> &'static str {
    static TOKEN: OnceLock<String> = OnceLock::new();
    TOKEN.get_or_init(|| {
        let mut random = [0; 4];
        // Without random bytes, the process ID has to suffice.
        let _ = getrandom::fill(&mut random);
        format!("{:08x}", u32::from_le_bytes(random))
    })
}

/// Writes and syncs a staged file. Removes it if the write fails.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    create_dirs(gravwell_env::fs::parent_dir(path), 0o777)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = path.with_file_name(format!("{name}.{}-{}-{}{END}", std::process::id(), host(), token()));
    // Unencrypted backups must not be readable by other users either.
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&staged);
    let written = opened.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    if let Err(error) = written {
        let _ = fs::remove_file(&staged);
        return Err(error);
    }
    Ok(staged)
}

/// The process that wrote a staged file.
#[derive(Debug, PartialEq, Eq)]
enum Writer {
    /// A process of this host that has terminated.
    Gone,
    /// A running process.
    Alive,
    /// A process of another host, or one whose host is unknown.
    Unknown,
}

/// Parses the name of a staged file; `None` if it is not one.
fn writer(name: &str) -> Option<Writer> {
    let (_, by) = name.strip_suffix(END)?.rsplit_once('.')?;
    let mut parts = by.split('-');
    let process: u32 = parts.next()?.parse().ok()?;
    let is_here = || Path::new("/proc").join(process.to_string()).exists();
    Some(match (parts.next(), parts.next(), parts.next()) {
        (Some(of), Some(made), None) if of == host() => {
            let is_own = process == std::process::id();
            let goes_on = if is_own { made == token() } else { is_here() };
            if goes_on { Writer::Alive } else { Writer::Gone }
        }
        (Some(_), Some(_), None) | (None, None, None) => Writer::Unknown,
        _ => return None,
    })
}

/// Removes abandoned staged files in `root` and its subdirectories. Files of terminated processes are removed if older
/// than `before`, files of unknown processes only if [`STALE`] older than that. Returns the number of bytes removed.
pub(super) fn sweep(root: &Path, before: SystemTime) -> io::Result<u64> {
    let (mut bytes, mut open) = (0, vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
                continue;
            }
            let least = match writer(&entry.file_name().to_string_lossy()) {
                None | Some(Writer::Alive) => continue,
                Some(Writer::Gone) => Duration::ZERO,
                Some(Writer::Unknown) => STALE,
            };
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            if metadata.modified()?.checked_add(least).is_none_or(|at| at >= before) {
                continue;
            }
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => bytes += metadata.len(),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_ended_processes_are_removed_and_files_being_written_are_kept() {
        let temp = tempfile::tempdir().expect("temp dir");
        let place = temp.path();
        let own = write(&place.join("pieces/aa/own"), b"1234").expect("writes");
        let (process, host, token) = (std::process::id(), host(), token());
        let alive = 1;
        let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        let cases = [
            (format!("gone.{}-{host}-00000000", u32::MAX), 60, true),
            // The ID of this process with the token of another one.
            (format!("before.{process}-{host}-0000000g"), 60, true),
            (format!("alive.{alive}-{host}-00000000"), 3600, false),
            (format!("elsewhere.{}-0000000g-00000000", u32::MAX), 60, false),
            (format!("elsewhere.{}-0000000g-00000000", u32::MAX - 1), 3600, true),
            (format!("earlier.{}", u32::MAX), 60, false),
            (format!("earlier.{}", u32::MAX - 1), 3600, true),
            (format!("new.{}-{host}-00000000", u32::MAX), 0, false),
            (format!("odd.{}-{host}", u32::MAX), 3600, false),
            ("odd".into(), 3600, false),
        ];
        let path = |name: &str| place.join("pieces/aa").join(format!("{name}{END}"));
        for (name, age, _) in &cases {
            fs::write(path(name), b"12345").expect("writes");
            fs::File::open(path(name)).expect("opens").set_modified(ago(*age)).expect("sets");
        }
        fs::File::open(&own).expect("opens").set_modified(ago(3600)).expect("sets");
        fs::write(place.join("pieces/aa/piece"), b"").expect("writes");
        assert_eq!(sweep(place, ago(30)).expect("sweeps"), 4 * 5, "{token}");
        for (name, _, goes) in &cases {
            assert_eq!(path(name).exists(), !goes, "{name}");
        }
        assert!(own.exists() && place.join("pieces/aa/piece").exists());
        assert_eq!(sweep(&place.join("nowhere"), ago(0)).expect("sweeps"), 0);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_removed() {
        // Writing fails as on a full disk.
        let temp = tempfile::tempdir().expect("temp dir");
        let path = temp.path().join("object");
        let name = format!("object.{}-{}-{}{END}", std::process::id(), host(), token());
        let staged = temp.path().join(name);
        std::os::unix::fs::symlink("/dev/full", &staged).expect("links");
        let error = write(&path, b"bytes").expect_err("is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(fs::symlink_metadata(&staged).is_err(), "it is removed");
    }
}
