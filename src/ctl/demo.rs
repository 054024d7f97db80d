//! `demo`.
use super::CtlResult;
/// x
pub(super) async fn run(_args: super::args::Demo) -> CtlResult {
    Err(super::CtlError::new("not there yet"))
}
