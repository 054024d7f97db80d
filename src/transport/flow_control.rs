//! Flow control of bulk connections: a connection for chunks has only so much in flight that other traffic is delayed by
//! a few milliseconds.
//!
//! The receiver controls how much the other side may send ahead. The window is kept at the amount that the path carries
//! in its shortest round trip plus two milliseconds, so that about that much is queued in sockets and on links, whatever
//! their speed. The idea is that of LEDBAT (RFC 6817), with the receiver's window in place of the sender's.

use std::convert::Infallible;
use std::time::Duration;

use quinn::VarInt;

/// Delay that queued data may cause.
const QUEUE: Duration = Duration::from_millis(2);
/// Interval at which the window is adapted while data arrives, and while none does.
const BUSY: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_secs(1);
/// Bytes per interval from which on the connection counts as busy.
const BUSY_BYTES: u64 = 256 << 10;
/// Initial size and bounds of the window in bytes.
pub(super) const WINDOW_FIRST: u32 = 1 << 20;
const WINDOW_MIN: u64 = 256 << 10;
const WINDOW_MAX: u64 = 16 << 20;
/// Fraction, as a divisor, by which the shortest round trip grows at each check, so that a path that became longer
/// is noticed.
const FORGET: u32 = 512;

/// Adapts the window of a connection until the future is dropped.
pub async fn give_way(connection: &quinn::Connection) -> Infallible {
    connection.set_receive_window(VarInt::from_u32(WINDOW_FIRST));
    let mut shortest = connection.rtt();
    let mut received = connection.stats().udp_rx.bytes;
    let mut pause = IDLE;
    loop {
        tokio::time::sleep(pause).await;
        let (now, rtt) = (connection.stats().udp_rx.bytes, connection.rtt());
        let bytes = now - std::mem::replace(&mut received, now);
        shortest = rtt.min(shortest + shortest / FORGET);
        if bytes >= BUSY_BYTES && pause == BUSY {
            connection.set_receive_window(VarInt::from_u32(window(bytes, pause, shortest)));
        }
        pause = if bytes >= BUSY_BYTES { BUSY } else { IDLE };
    }
}

/// Returns the window for a path on which `bytes` arrived in `time`.
fn window(bytes: u64, time: Duration, shortest: Duration) -> u32 {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let wanted = bytes.saturating_mul(micros(shortest + QUEUE)) / micros(time);
    u32::try_from(wanted.clamp(WINDOW_MIN, WINDOW_MAX)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_so_much_waits_as_delays_others_by_little() {
        let look = Duration::from_millis(50);
        let on_loopback = window(300_000 * 50, look, Duration::from_micros(200));
        assert!((600_000..720_000).contains(&on_loopback), "{on_loopback}");
        let far_away = window(100_000 * 50, look, Duration::from_millis(50));
        assert!((5_000_000..5_400_000).contains(&far_away), "{far_away}");
        assert_eq!(u64::from(window(0, look, look)), WINDOW_MIN);
        assert_eq!(u64::from(window(u64::MAX, look, look)), WINDOW_MAX);
    }

    #[test]
    fn the_window_settles_where_the_queue_is_as_long_as_it_may_be() {
        // A path of 200 MB/s and 1 ms: data in flight beyond 200 kB is queued.
        let (rate, path) = (200.0, 1000.0);
        for first in [WINDOW_MIN, WINDOW_MAX] {
            let mut size = first as f64;
            for _ in 0..50 {
                let round_trip = f64::max(path, size / rate);
                let bytes = size / round_trip * 50_000.0;
                let shortest = Duration::from_micros(path as u64);
                size = f64::from(window(bytes as u64, Duration::from_millis(50), shortest));
            }
            assert!((550_000.0..650_000.0).contains(&size), "{size}");
        }
    }
}
