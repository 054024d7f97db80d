//! SIGHUP, the signal to re-read settings.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listener for SIGHUP; once created, the signal no longer terminates the process.
pub(super) struct Sighup(Option<Signal>);

impl Sighup {
    pub(super) fn listen() -> Sighup {
        Sighup(signal(SignalKind::hangup()).ok())
    }

    /// Waits for the next signal.
    pub(super) async fn heard(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}
