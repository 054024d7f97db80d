//! Signals: to stop, and to re-read settings (SIGHUP).

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

/// Waits for SIGTERM or SIGINT; once this was called, neither signal terminates the process.
pub(crate) fn stop_signal() -> impl Future<Output = ()> {
    let listen = |kind| {
        let signal = signal(kind).ok();
        async move {
            match signal {
                Some(mut signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
    };
    let (terminate, interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    async move {
        tokio::select! {
            () = terminate => {}
            () = interrupt => {}
        }
    }
}
