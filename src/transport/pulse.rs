//! Detection of an unreachable peer.
//!
//! The transport closes a connection after its idle timeout, which is long, so that a peer that is paused briefly is not
//! lost. Code that depends on a prompt detection uses this module: [keep-alive](super::endpoint) makes the peer answer
//! every second.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Interval at which the connection is checked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Silence after which the peer is considered lost: one second until the next keep-alive, and the time to answer it for a
/// peer that is paused for two seconds.
pub const SILENCE_MAX: Duration = Duration::from_millis(3400);

/// Accumulates silence. A time in which this process itself was paused counts as at most two checks.
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

/// Waits until nothing was received on `connection` for [`SILENCE_MAX`]; calls `note` with the length of the silence at
/// every check.
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
    fn only_time_spent_listening_counts_as_silence() {
        let mut silence = Silence::default();
        assert_eq!(silence.look(1, LOOK_EVERY), Duration::ZERO);
        assert_eq!(silence.look(1, LOOK_EVERY), LOOK_EVERY);
        // This process was paused, so data that arrived in the meantime has not been read yet.
        assert_eq!(silence.look(1, Duration::from_secs(60)), LOOK_EVERY * 3);
        assert_eq!(silence.look(2, LOOK_EVERY), Duration::ZERO);
    }
}
