//! Notifications to systemd; without a service manager they do nothing.

use std::time::Duration;

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not notified");
    }
}

/// The service is ready.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The service reads its settings again; [`ready`] says when it has.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the service manager was not notified"),
    }
}

/// One line about how things stand.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The service is alive.
pub fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// The service is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the service manager wants to hear that the service is alive: half of its patience.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}
