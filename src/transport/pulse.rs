//! Whether the other side of a connection is still there.
//!
//! The transport gives a connection up after its idle timeout, which is long, so that a side that is stopped for a moment is
//! not lost. Who depends on the other side looks here: [keep-alive](super::endpoint) makes it answer every second.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// It is looked this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Silence after which the other side is given up: one second until it is asked, and what it may need to answer when it is
/// stopped for two.
pub const SILENCE_MAX: Duration = Duration::from_millis(3400);

/// Adds up silence; a moment in which this side itself did not look counts as one look.
#[derive(Debug, Default)]
struct Silence {
    heard: u64,
    lasts: Duration,
}

impl Silence {
    fn look(&mut self, heard: u64, since: Duration) -> Duration {
        let is_news = std::mem::replace(&mut self.heard, heard) != heard;
        self.lasts = if is_news { Duration::ZERO } else { self.lasts + since.min(LOOK_EVERY * 2) };
        self.lasts
    }
}

/// Waits until nothing has been heard on `connection` for [`SILENCE_MAX`]; `note` is given the length of the silence at every
/// look.
pub async fn lost(connection: &quinn::Connection, note: impl Fn(Duration)) {
    let (mut silence, mut looked) = (Silence::default(), Instant::now());
    loop {
        sleep(LOOK_EVERY).await;
        let since = looked.elapsed();
        looked += since;
        let lasts = silence.look(connection.stats().udp_rx.datagrams, since);
        note(lasts);
        if lasts >= SILENCE_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_what_was_listened_to() {
        let mut silence = Silence::default();
        assert_eq!(silence.look(1, LOOK_EVERY), Duration::ZERO);
        assert_eq!(silence.look(1, LOOK_EVERY), LOOK_EVERY);
        // This side was stopped: what was said meanwhile has not been read yet.
        assert_eq!(silence.look(1, Duration::from_secs(60)), LOOK_EVERY * 3);
        assert_eq!(silence.look(2, LOOK_EVERY), Duration::ZERO);
    }
}
