//! A view of a state that leaves its directory as it is.
//!
//! The storage engine writes whenever it opens: it cuts journals, removes what it does not know, and of a damaged database
//! it removes what is sound. So a state that is only looked at, or not trusted yet, is opened elsewhere: what the engine
//! changes is copied, and its tables, which it never changes, are linked.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// How a table comes to its second place.
type Link = fn(&Path, &Path) -> io::Result<()>;

/// The folder whose files are written once.
const TABLES: &str = "tables";

/// Fills the new directory `scratch`, on any file system, with what opens as the state in `dir` does.
pub(super) fn make(dir: &Path, scratch: &Path) -> io::Result<()> {
    fs::create_dir_all(scratch)?;
    copy(&fs::canonicalize(dir)?, scratch, false, |path, target| symlink(path, target))
}

/// Fills the new directory `to`, on the same file system, with a copy that outlives the state in `dir`.
///
/// # Errors
/// When the operating system refuses.
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
