//! Names of files in a log's directory.
//!
//! `seg-<first>-<last>.log` is a sealed segment, `seg-<first>-open.log` the one that is written; both numbers have 20
//! digits, so that names sort by range. `head` is the head file, `reserve` keeps space for hard times, `*.tmp` are
//! leftovers of interrupted work, and `quarantine/` keeps what recovery cut off.

use std::io;
use std::path::Path;

use crate::env::fs::Fs;
use crate::model::Seq;

/// The head file.
pub const HEAD: &str = "head";
/// The reserve file.
pub const RESERVE: &str = "reserve";
/// Directory of what was cut.
pub const QUARANTINE: &str = "quarantine";
/// End of names of unfinished files.
pub const UNFINISHED: &str = ".tmp";

/// Whether a directory holds a log, or what is left of one.
///
/// # Errors
/// When it cannot be listed.
pub fn exists(fs: &dyn Fs, dir: &Path) -> io::Result<bool> {
    let files = if fs.exists(dir)? { fs.list(dir)? } else { Vec::new() };
    Ok(files.iter().any(|file| file == HEAD || SegmentName::parse(file).is_some()))
}

/// The range that a segment's name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentName {
    /// First sequence covered.
    pub first: Seq,
    /// Last sequence covered; `None` for the open segment.
    pub last: Option<Seq>,
}

impl SegmentName {
    /// Reads a file name; `None` when it is not a segment's.
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
