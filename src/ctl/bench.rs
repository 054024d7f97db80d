//! `bench`.
use super::CtlResult;
/// x
pub(super) async fn run(_json: bool, _args: super::args::Bench) -> CtlResult {
    Err(super::CtlError::new("not there yet"))
}
