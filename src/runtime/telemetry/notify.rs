//! Notifications to systemd; without a service manager they have no effect.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "failed to notify the service manager");
    }
}

/// Notifies that the service is ready.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Notifies that the service is reloading its configuration; [`ready`] ends the reload.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "failed to notify the service manager"),
    }
}

/// Sends a one-line status.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Notifies that the service is alive.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// Notifies that the service is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Returns the interval for [`watchdog`], which is half of the service manager's timeout; `None` if it has no watchdog.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}
