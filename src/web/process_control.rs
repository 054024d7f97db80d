//! Control requests that administrators send through the API and the process carries out.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel};

/// A control request to the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlRequest {
    /// Stop serving, reload the configuration, and start again.
    Restart,
    /// Change the log level, given in the syntax of the log filter.
    LogLevel(String),
}

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

    /// Requests a restart. Returns whether the request was accepted.
    pub(super) fn restart(&self) -> bool {
        self.to.try_send(ControlRequest::Restart).is_ok()
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
        assert_eq!(taken.try_recv(), Ok(ControlRequest::LogLevel("info,gravwell::access=debug".into())));
    }
}
