//! What administrators order through the API and only the process can do.

use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel};

/// An order to the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Stop serving, read the configuration again, serve again.
    Restart,
    /// Log at this level from now on, in the form that the log's filter takes.
    LogLevel(String),
}

/// Names of levels as clients know them, and what the log's filter calls them.
const LEVELS: [(&str, &str); 5] = [
    ("Off", "off"),
    ("Error", "error"),
    ("Warn", "warn"),
    ("Info", "info"),
    ("Web Access", "info,gravwell::access=debug"),
];

/// Passes orders on; few wait at a time.
pub(super) struct Orders {
    to: Sender<Order>,
    /// Name of the level that counts now.
    level: Mutex<&'static str>,
}

impl Orders {
    /// With the level that the configuration names; and the other end.
    pub(super) fn new(configured: &str) -> (Orders, Receiver<Order>) {
        let configured = configured.to_ascii_lowercase();
        // Whoever wants details wants the requests, too.
        let found = LEVELS.iter().find(|(_, filter)| *filter == configured).unwrap_or(&LEVELS[4]);
        let (to, orders) = channel(4);
        (Orders { to, level: Mutex::new(found.0) }, orders)
    }

    /// Names of all levels.
    pub(super) fn levels() -> Vec<&'static str> {
        LEVELS.iter().map(|(name, _)| *name).collect()
    }

    /// Name of the level that counts now.
    pub(super) fn level(&self) -> &'static str {
        *self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Orders a level by its name; whether there is one of that name.
    pub(super) fn set_level(&self, name: &str) -> bool {
        let Some((name, filter)) = LEVELS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)) else {
            return false;
        };
        *self.level.lock().unwrap_or_else(PoisonError::into_inner) = name;
        // Nobody listens where a webserver runs within another program.
        let _ = self.to.try_send(Order::LogLevel((*filter).to_owned()));
        true
    }

    /// Orders a restart; whether anybody took the order.
    pub(super) fn restart(&self) -> bool {
        self.to.try_send(Order::Restart).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_names_that_clients_know() {
        for (configured, name) in [("INFO", "Info"), ("warn", "Warn"), ("off", "Off"), ("debug", "Web Access")] {
            assert_eq!(Orders::new(configured).0.level(), name);
        }
        let (orders, mut taken) = Orders::new("info");
        assert!(orders.set_level("web access") && !orders.set_level("Loud"));
        assert_eq!(orders.level(), "Web Access");
        assert_eq!(taken.try_recv(), Ok(Order::LogLevel("info,gravwell::access=debug".into())));
    }
}
