//! Control requests that administrators send through the API and the process carries out.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// A control request to the process.
#[derive(Debug)]
pub enum ControlRequest {
    /// Stop serving, reload the configuration, and start again. The answer is whether the process is going to do so, or
    /// why the configuration is invalid; it is sent before the webserver stops.
    Restart(oneshot::Sender<Result<(), String>>),
    /// Change the log level, given in the syntax of the log filter.
    LogLevel(String),
}

/// Longest wait for the process to read its configuration.
const ANSWERING: Duration = Duration::from_secs(10);

/// Names of the levels in the API, and the corresponding log filters.
const LEVELS: [(&str, &str); 5] = [
    ("Off", "off"),
    ("Error", "error"),
    ("Warn", "warn"),
    ("Info", "info"),
    ("Web Access", "info,gravwell::access=debug"),
];

/// Sender of control requests, through a channel of small capacity.
pub(super) struct ProcessControl {
    to: Sender<ControlRequest>,
    level: Mutex<&'static str>,
}

impl ProcessControl {
    /// Creates the sender with the configured level, and its receiver.
    pub(super) fn new(configured: &str) -> (ProcessControl, Receiver<ControlRequest>) {
        let configured = configured.to_ascii_lowercase();
        // An unlisted filter is more detailed, so it includes access logging.
        let found = LEVELS.iter().find(|(_, filter)| *filter == configured).unwrap_or(&LEVELS[4]);
        let (to, orders) = channel(4);
        (ProcessControl { to, level: Mutex::new(found.0) }, orders)
    }

    pub(super) fn levels() -> Vec<&'static str> {
        LEVELS.iter().map(|(name, _)| *name).collect()
    }

    pub(super) fn level(&self) -> &'static str {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests a level by name. Returns whether the name is known.
    pub(super) fn set_level(&self, name: &str) -> bool {
        let Some((name, filter)) = LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
            return false;
        };
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = name;
        // There may be no receiver when the webserver is embedded in another program.
        let _ = self.to.try_send(ControlRequest::LogLevel((*filter).to_owned()));
        true
    }

    /// Requests a restart. Returns the answer of the process, or `None` if it has other requests to carry out first.
    pub(super) async fn restart(&self) -> Option<Result<(), String>> {
        let (answer, answered) = oneshot::channel();
        self.to.try_send(ControlRequest::Restart(answer)).ok()?;
        tokio::time::timeout(ANSWERING, answered).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_names_that_clients_know() {
        for (configured, name) in [("INFO", "Info"), ("warn", "Warn"), ("off", "Off"), ("debug", "Web Access")] {
            assert_eq!(ProcessControl::new(configured).0.level(), name);
        }
        let (orders, mut taken) = ProcessControl::new("info");
        assert!(orders.set_level("web access") && !orders.set_level("Loud"));
        assert_eq!(orders.level(), "Web Access");
        let Ok(ControlRequest::LogLevel(filter)) = taken.try_recv() else { panic!("no request") };
        assert_eq!(filter, "info,gravwell::access=debug");
    }

    #[tokio::test]
    async fn a_restart_returns_the_answer_of_the_process() {
        let (orders, mut taken) = ProcessControl::new("info");
        for expected in [Ok(()), Err("line 3: unknown".to_owned())] {
            let process = async {
                let Some(ControlRequest::Restart(answer)) = taken.recv().await else { panic!("no request") };
                answer.send(expected.clone()).expect("a caller waits");
            };
            assert_eq!(tokio::join!(orders.restart(), process).0, Some(expected.clone()));
        }
        drop(taken);
        assert_eq!(orders.restart().await, None);
    }
}
