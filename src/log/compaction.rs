//! Compaction.
use std::path::Path;
use super::{LogReader, ReadError};
use crate::model::Seq;
/// x
#[derive(Debug)]
pub struct Compactor;
/// x
#[derive(Debug)]
pub struct Outcome {
    /// x
    pub horizon: Seq,
    /// x
    pub segments: u64,
    /// x
    pub bytes_freed: u64,
}
impl Compactor {
    /// x
    pub fn new(_log: LogReader, _dir: &Path) -> Compactor { Compactor }
    /// x
    /// # Errors
    /// x
    pub fn run(&mut self, _wanted: Seq, _garbage: u8, _dry: bool, _tell: &mut dyn FnMut(u64, u64)) -> Result<Outcome, ReadError> {
        Err(ReadError::Beyond { seq: Seq(0), head: Seq(0) })
    }
}
