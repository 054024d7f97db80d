//! Memory of connections on which no user is identified, which takes effect before a request is complete: an unfinished
//! head is buffered, whoever sends it.
//!
//! The memory of all of them together is bounded. At the limit the connection that has been counted longest is closed,
//! so that clients who hold memory give way to those who make a request and go on.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::connections::Standing;

/// Maximum memory of all these connections, in bytes.
const BYTES_MAX: usize = 24 << 20;
/// Memory of a connection once something has arrived: its buffers for reading and writing.
const BUFFERS_BYTES: usize = 16 << 10;
/// Received bytes for which the buffers suffice, and that a head has at most.
const READ_BYTES: usize = 8 << 10;
const HEAD_BYTES_MAX: usize = super::listener::HEAD_BYTES_MAX as usize;
/// Memory per received byte beyond that: a buffer doubles.
const GROWTH: usize = 2;

static REGISTER: LazyLock<Arc<Register>> = LazyLock::new(|| Arc::new(Register::new(BYTES_MAX)));

#[derive(Default)]
struct Counted {
    next: u64,
    bytes: usize,
    /// Connections in the order in which they were counted first, with their memory.
    held: BTreeMap<u64, (Arc<Standing>, usize)>,
}

impl Counted {
    fn remove(&mut self, id: u64) -> Option<Arc<Standing>> {
        let (standing, bytes) = self.held.remove(&id)?;
        self.bytes -= bytes;
        Some(standing)
    }
}

struct Register {
    most: usize,
    counted: Mutex<Counted>,
}

impl Register {
    fn new(most: usize) -> Register {
        Register { most, counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the memory of a connection and closes others if there is too much. Returns the number under which it counts.
    fn set(&self, id: Option<u64>, standing: &Arc<Standing>, bytes: usize) -> u64 {
        let mut counted = self.counted();
        let id = id.unwrap_or(counted.next);
        counted.next = counted.next.max(id + 1);
        counted.remove(id);
        counted.held.insert(id, (Arc::clone(standing), bytes));
        counted.bytes += bytes;
        while counted.bytes > self.most {
            let Some(oldest) = counted.held.keys().next().copied() else { break };
            if let Some(standing) = counted.remove(oldest).filter(|standing| !standing.is_known()) {
                standing.end();
            }
        }
        id
    }
}

/// The memory of one connection while no user is identified on it.
pub(super) struct Memory {
    register: Arc<Register>,
    standing: Arc<Standing>,
    id: Option<u64>,
    /// Bytes received since something was sent, and their largest number: buffers do not shrink.
    unanswered: usize,
    most: usize,
}

impl Memory {
    pub(super) fn of(standing: &Arc<Standing>) -> Memory {
        Memory::counted_in(&REGISTER, standing)
    }

    fn counted_in(register: &Arc<Register>, standing: &Arc<Standing>) -> Memory {
        Memory { register: Arc::clone(register), standing: Arc::clone(standing), id: None, unanswered: 0, most: 0 }
    }

    /// Counts received bytes.
    pub(super) fn note_received(&mut self, bytes: usize) {
        if self.standing.is_known() {
            self.unanswered = 0;
            self.forget();
            return;
        }
        self.unanswered = self.unanswered.saturating_add(bytes);
        let most = self.most.max(self.unanswered.min(HEAD_BYTES_MAX));
        if self.id.is_none() || most > self.most {
            self.most = most;
            let beyond = most.saturating_sub(READ_BYTES);
            self.id = Some(self.register.set(self.id, &self.standing, BUFFERS_BYTES + GROWTH * beyond));
        }
    }

    /// Notes that something was sent: what was received before has been read.
    pub(super) fn note_sent(&mut self) {
        self.unanswered = 0;
    }

    fn forget(&mut self) {
        if let Some(id) = self.id.take() {
            self.register.counted().remove(id);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn has_ended(standing: &Arc<Standing>) -> bool {
        Arc::clone(standing).ends().now_or_never().is_some()
    }

    #[tokio::test]
    async fn p15_connections_that_hold_memory_give_way_to_later_ones() {
        let register = Arc::new(Register::new(4 * BUFFERS_BYTES - 1));
        let connection = || {
            let standing = Arc::<Standing>::default();
            (Memory::counted_in(&register, &standing), standing)
        };
        let [(mut a, of_a), (mut b, of_b), (mut c, of_c)] = [(); 3].map(|()| connection());
        a.note_received(100);
        b.note_received(100);
        c.note_received(READ_BYTES);
        assert_eq!(register.counted().bytes, 3 * BUFFERS_BYTES);
        b.note_received(READ_BYTES);
        b.note_received(READ_BYTES - 100);
        assert!(has_ended(&of_a), "the first one holds most time");
        assert!(!has_ended(&of_b) && !has_ended(&of_c));
        assert_eq!(register.counted().bytes, 2 * BUFFERS_BYTES + GROWTH * READ_BYTES);
        b.note_sent();
        b.note_received(2 * READ_BYTES);
        assert_eq!(register.counted().bytes, 2 * BUFFERS_BYTES + GROWTH * READ_BYTES, "buffers are used again");
        drop((a, b));
        c.note_received(1 << 20);
        assert!(has_ended(&of_c), "a connection alone is bounded as well");
        drop(c);
        assert!(register.counted().bytes == 0 && register.counted().held.is_empty());
    }
}
