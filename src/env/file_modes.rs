//! File modes in a data directory: everything in it is accessible only to the user of the program.
//!
//! The storage engine and other libraries leave modes to the umask of the process, and a directory may have been
//! copied or created by hand, so a service checks the whole directory when it starts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::data_dir::{DirectoryError, io_error};

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// A file or directory that other users of the host could access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wide {
    /// Path of the file or directory.
    pub path: PathBuf,
    /// Mode of the file or directory.
    pub mode: u32,
    /// Whether this process may change the mode.
    pub is_own: bool,
}

/// Returns all files and directories in `dir`, and `dir` itself, that other users may access. Links and the socket of
/// a process are omitted. Checks at most `most` entries.
///
/// # Errors
/// If a directory cannot be read.
pub fn wide(dir: &Path, most: usize) -> Result<Vec<Wide>, DirectoryError> {
    let (mut found, mut waiting, mut left) = (Vec::new(), vec![dir.to_owned()], most);
    let user = rustix::process::geteuid();
    while let Some(path) = waiting.pop() {
        let Some(rest) = left.checked_sub(1) else { break };
        left = rest;
        let meta = match fs::symlink_metadata(&path) {
            Ok(meta) => meta,
            // A running process may remove files in the meantime.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(io_error(&path)(error)),
        };
        let (mode, is_own) = (meta.mode() & 0o7777, user.is_root() || meta.uid() == user.as_raw());
        if !(meta.is_file() || meta.is_dir()) {
            continue;
        }
        if mode & OTHERS != 0 {
            found.push(Wide { path: path.clone(), mode, is_own });
        }
        if meta.is_dir() {
            let entries = match fs::read_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(io_error(&path))?,
            };
            waiting.extend(entries.flatten().map(|entry| entry.path()));
        }
    }
    Ok(found)
}

/// Removes the permissions of other users from everything in `dir` that this process may change, and logs that it did.
///
/// # Errors
/// If the operating system reports an error.
pub fn narrow(dir: &Path) -> Result<(), DirectoryError> {
    let found: Vec<Wide> = wide(dir, usize::MAX)?.into_iter().filter(|wide| wide.is_own).collect();
    for Wide { path, mode, .. } in &found {
        let closed = fs::Permissions::from_mode(mode & 0o700);
        match fs::set_permissions(path, closed) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.map_err(io_error(path))?,
        }
    }
    if let Some(Wide { path, mode, .. }) = found.first() {
        let (path, count) = (path.display(), found.len());
        tracing::warn!(%path, count, "files in the data directory were open to other users (mode {mode:03o}); fixed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_wide_is_found_and_closed() {
        let temp = tempfile::tempdir().expect("temp dir");
        let dir = temp.path().join("data");
        fs::create_dir_all(dir.join("state/tables")).expect("creates");
        let outside = temp.path().join("outside");
        fs::write(&outside, "not ours").expect("writes");
        std::os::unix::fs::symlink(&outside, dir.join("link")).expect("links");
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("sets");
        let mode = |path: &Path| fs::metadata(path).expect("exists").mode() & 0o7777;
        for (file, wanted) in [("log", 0o644), ("state/tables/1", 0o666), ("secret", 0o600), ("script", 0o755)] {
            fs::write(dir.join(file), "data").expect("writes");
            set(&dir.join(file), wanted);
        }
        ["", "state", "state/tables"].iter().for_each(|path| set(&dir.join(path), 0o755));
        set(&outside, 0o644);
        assert_eq!(wide(&dir, usize::MAX).expect("looks").len(), 6);
        assert_eq!(wide(&dir, 2).expect("looks").len(), 2, "bounded");
        narrow(&dir).expect("closes");
        assert_eq!(wide(&dir, usize::MAX).expect("looks"), Vec::new());
        let found = ["", "log", "state/tables/1", "script"].map(|path| mode(&dir.join(path)));
        assert_eq!((found, mode(&outside)), ([0o700, 0o600, 0o600, 0o700], 0o644));
    }
}
