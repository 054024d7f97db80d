//! File names in a log directory.
//!
//! `seg-<first>-<last>.log` is a sealed segment and `seg-<first>-open.log` is the one being written; both numbers have
//! 20 digits, so names sort by range. `head` is the head file, `reserve` is the disk reserve, `*.tmp` are leftovers of
//! interrupted work, and `quarantine/` holds the bytes that recovery removed.

use std::io;
use std::path::Path;

use gravwell_env::fs::Fs;
use gravwell_model::Seq;

/// Name of the head file.
pub const HEAD: &str = "head";
/// Name of the reserve file.
pub const RESERVE: &str = "reserve";
/// Directory of the bytes that recovery removed.
pub const QUARANTINE: &str = "quarantine";
/// Suffix of unfinished files.
pub const UNFINISHED: &str = ".tmp";

/// Returns whether a directory holds a log or the remainder of one.
///
/// # Errors
/// If the directory cannot be listed.
pub fn exists(fs: &dyn Fs, dir: &Path) -> io::Result<bool> {
    let files = if fs.exists(dir)? { fs.list(dir)? } else { Vec::new() };
    Ok(files.iter().any(|file| file == HEAD || SegmentName::parse(file).is_some()))
}

/// Sequence range encoded in the name of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// First sequence covered.
    pub first: Seq,
    /// Last sequence covered; `None` for the open segment.
    pub last: Option<Seq>,
}

impl SegmentName {
    /// Parses a file name; `None` if it is not the name of a segment.
    #[must_use]
    pub fn parse(name: &str) -> Option<SegmentName> {
        let range = name.strip_prefix("seg-")?.strip_suffix(".log")?;
        let (first, last) = range.split_once('-')?;
        let number = |digits: &str| {
            let good = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
            good.then(|| digits.parse().ok().map(Seq)).flatten()
        };
        let last = if last == "open" { None } else { Some(number(last)?) };
        Some(SegmentName { first: number(first)?, last })
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.last {
            Some(last) => write!(f, "seg-{:020}-{:020}.log", self.first.0, last.0),
            None => write!(f, "seg-{:020}-open.log", self.first.0),
        }
    }
}
