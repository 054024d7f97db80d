//! A view of a state that does not change the directory of the state.
//!
//! The storage engine writes whenever it opens: it truncates journals, removes unknown files, and removes intact files
//! of a damaged database. So a state that is only inspected, or not trusted yet, is opened in another directory: files
//! that the engine changes are copied, and its tables, which it never changes, are linked.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Creates the link of a table in the other directory.
type Link = fn(&Path, &Path) -> io::Result<()>;

/// Name of the directory whose files are written only once.
const TABLES: &str = "tables";

/// Fills the new directory `scratch`, on any file system, so that it opens like the state in `dir`.
pub(super) fn make(dir: &Path, scratch: &Path) -> io::Result<()> {
    fs::create_dir_all(scratch)?;
    copy(&fs::canonicalize(dir)?, scratch, false, |path, target| symlink(path, target))
}

/// Fills the new directory `to`, on the same file system, with a copy that outlives the state in `dir`.
///
/// # Errors
/// If the operating system reports an error.
pub fn duplicate(dir: &Path, to: &Path) -> io::Result<()> {
    copy(dir, to, false, |path, target| fs::hard_link(path, target))
}

fn copy(from: &Path, to: &Path, is_tables: bool, link: Link) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target, kind) = (entry.path(), to.join(entry.file_name()), entry.file_type()?);
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy(&path, &target, entry.file_name() == TABLES, link)?;
        } else if kind.is_file() && is_tables {
            link(&path, &target)?;
        } else if kind.is_file() {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
