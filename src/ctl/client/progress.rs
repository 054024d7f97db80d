//! Progress of long tasks, on standard error.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use gravwell_model::codec::admin::{Progress, Request};

use crate::client::{Client, Piece};
use crate::error::CtlError;

/// Creates a progress bar over bytes, which is hidden if standard error is not a terminal.
pub(crate) fn bytes_bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:<20} {bar:40} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Shows how far a task is.
pub(crate) fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_message(progress.stage.clone());
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

/// Sends a request, shows its progress, and returns the final report.
pub(crate) async fn with_progress<T: DeserializeOwned>(client: Client, request: &Request) -> Result<T, CtlError> {
    let bar = bytes_bar();
    let mut report: Option<T> = None;
    let result = client
        .each(request, |piece| {
            let Piece::Item(item) = piece else { return Ok(()) };
            match serde_json::from_slice::<T>(&item) {
                Ok(found) => report = Some(found),
                Err(_) => show(&bar, &serde_json::from_slice(&item).unwrap_or_default()),
            }
            Ok(())
        })
        .await;
    bar.finish_and_clear();
    client.close().await;
    result?;
    report.ok_or_else(|| CtlError::new("the response is empty"))
}
