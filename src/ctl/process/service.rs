//! The life of a datastore or a webserver under a service manager: signals, reports, metrics.

use std::pin::Pin;
use std::time::Duration;

use gravwell_runtime::telemetry::{notify, output};

use super::RunError;
use super::monitor::Monitor;
use super::signals::{Sighup, stop_signal};

/// Longest interval between two status reports to the service manager.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// Datastore or webserver, as its process sees it.
pub(super) trait Service: Sized {
    /// Event within the service.
    type Event;

    /// Describes the state in one line, for the service manager.
    fn summary(&self) -> String;

    /// Updates the metrics that are not counted where something happens.
    fn measure(&self);

    /// Returns whether it can still commit.
    async fn is_alive(&self, within: Duration) -> bool;

    /// Handles SIGHUP. An invalid configuration changes nothing.
    fn reload(&self);

    /// Waits for the next event. The future is dropped when a signal or a report is due first, so it must not lose an
    /// event then.
    async fn event(&mut self) -> Self::Event;

    /// Handles an event, and returns the service to continue with.
    async fn handle(self, event: Self::Event) -> Result<Self, RunError>;

    /// Stops in order.
    async fn stop(self);
}

/// Signals to a process; once listened for, none of them terminates it.
pub(super) struct Signals {
    stop: Pin<Box<dyn Future<Output = ()>>>,
    hangup: Sighup,
}

impl Signals {
    pub(super) fn listen() -> Signals {
        Signals { hangup: Sighup::listen(), stop: Box::pin(stop_signal()) }
    }

    /// Waits for a service that is being started. Exits the process if a stop signal arrives before: opening a
    /// directory may take long and can be interrupted at any point, as by SIGKILL.
    pub(super) async fn unless_stopped<T>(&mut self, starting: impl Future<Output = T>) -> T {
        tokio::select! {
            started = starting => started,
            () = &mut self.stop => {
                notify::stopping();
                tracing::info!("stopped while starting; the next start begins again");
                output::exit(0)
            }
        }
    }
}

/// Runs a service that has started, until a stop signal arrives.
pub(super) async fn run<S: Service>(
    mut service: S,
    mut signals: Signals,
    mut monitor: Option<Monitor>,
) -> Result<(), RunError> {
    notify::ready(&service.summary());
    let period = notify::watchdog_period().unwrap_or(REPORT_EVERY).min(REPORT_EVERY);
    loop {
        tokio::select! {
            () = &mut signals.stop => break,
            () = Monitor::ended(&mut monitor) => return Err(RunError::Ended("listener for metrics")),
            () = signals.hangup.heard() => {
                notify::reloading();
                service.reload();
                notify::ready(&service.summary());
            }
            event = service.event() => service = service.handle(event).await?,
            () = tokio::time::sleep(period) => {
                // A process that can no longer commit should be restarted by the watchdog.
                if service.is_alive(period).await {
                    notify::watchdog();
                }
                notify::status(&service.summary());
                service.measure();
            }
        }
    }
    notify::stopping();
    tracing::info!("stopping");
    service.stop().await;
    Ok(())
}
