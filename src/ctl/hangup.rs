//! SIGHUP: read the settings again.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signal, from the moment on which this is made: it no longer ends the process.
pub(super) struct Hangup(Option<Signal>);

impl Hangup {
    pub(super) fn listen() -> Hangup {
        Hangup(signal(SignalKind::hangup()).ok())
    }

    /// Waits for the next one.
    pub(super) async fn heard(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}
