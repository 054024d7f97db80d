//! Memory of connections on which no user is identified, which takes effect before a request is complete: an unfinished
//! head is buffered for every sender.
//!
//! The memory of all of them together is bounded. At the limit the connection that has been counted longest is
//! closed: clients that hold memory give way to those that make a request. If blocks of addresses hold a large share,
//! it is one of the block with the most memory, so that a few clients cannot displace those of other addresses. Below
//! that share all count alike: compared with a crowd of addresses of which each has one connection, an office behind
//! one address would always be the largest, and the clients of a load balancer are no block at all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use super::connections::Standing;
use gravwell_transport::admission::Block;

/// Maximum memory of all these connections, in bytes.
const BYTES_MAX: usize = 12 << 20;
/// Memory of a connection once something has arrived: its buffers for reading and writing. A request in progress, and TLS,
/// take up to three times as much again, which the maximum allows for.
const BUFFERS_BYTES: usize = 16 << 10;
/// The share, of that maximum, above which a block of addresses gives way before all others: one part in so many. The
/// clients of all load balancers count as one block.
const SHARE_OF_BLOCK: usize = 32;
const SHARE_OF_BALANCERS: usize = 2;
/// Received bytes for which the buffers suffice, and that a head has at most.
const READ_BYTES: usize = 8 << 10;
const HEAD_BYTES_MAX: usize = super::listener::HEAD_BYTES_MAX as usize;
/// Memory per received byte beyond that: a buffer doubles.
const GROWTH: usize = 2;

static REGISTER: LazyLock<Arc<Register>> = LazyLock::new(|| Arc::new(Register::new(BYTES_MAX)));

/// Connections of one block of addresses, in the order in which they were counted first, with their memory.
#[derive(Default)]
struct OfBlock {
    bytes: usize,
    held: BTreeMap<u64, (Arc<Standing>, usize)>,
}

#[derive(Default)]
struct Counted {
    next: u64,
    bytes: usize,
    blocks: HashMap<Option<Block>, OfBlock>,
}

impl Counted {
    fn add(&mut self, id: u64, standing: &Arc<Standing>, bytes: usize) {
        let of_block = self.blocks.entry(standing.block).or_default();
        of_block.held.insert(id, (Arc::clone(standing), bytes));
        of_block.bytes += bytes;
        self.bytes += bytes;
    }

    fn remove(&mut self, block: Option<Block>, id: u64) -> Option<Arc<Standing>> {
        let of_block = self.blocks.get_mut(&block)?;
        let (standing, bytes) = of_block.held.remove(&id)?;
        of_block.bytes -= bytes;
        self.bytes -= bytes;
        if of_block.held.is_empty() {
            self.blocks.remove(&block);
        }
        Some(standing)
    }

    /// Returns the connection to close next where all together may hold `most` bytes. Of blocks with equal memory,
    /// that of the oldest connection is chosen.
    fn next_to_close(&self, most: usize) -> Option<(Option<Block>, u64)> {
        let oldest = |of_block: &OfBlock| of_block.held.keys().next().copied();
        let is_large = |(block, of_block): &(&Option<Block>, &OfBlock)| {
            of_block.bytes > most / if block.is_some() { SHARE_OF_BLOCK } else { SHARE_OF_BALANCERS }
        };
        let rank = |(_, of_block): &(&Option<Block>, &OfBlock)| (of_block.bytes, Reverse(oldest(of_block)));
        let largest = self.blocks.iter().filter(is_large).max_by_key(rank);
        let (block, of_block) = largest.or_else(|| self.blocks.iter().min_by_key(|(_, of_block)| oldest(of_block)))?;
        Some((*block, oldest(of_block)?))
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
        counted.remove(standing.block, id);
        counted.add(id, standing, bytes);
        while counted.bytes > self.most {
            let Some((block, oldest)) = counted.next_to_close(self.most) else { break };
            if let Some(standing) = counted.remove(block, oldest).filter(|standing| !standing.is_known()) {
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
            self.register.counted().remove(self.standing.block, id);
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
        assert!(register.counted().bytes == 0 && register.counted().blocks.is_empty());
    }

    #[tokio::test]
    async fn p15_a_block_of_addresses_that_holds_much_memory_displaces_no_other() {
        let register = Arc::new(Register::new(6 * BUFFERS_BYTES));
        let connection = |from: &str| {
            let block = Block::of(from.parse().expect("an address"));
            let standing = Arc::new(Standing::of(Some(block)));
            let mut memory = Memory::counted_in(&register, &standing);
            memory.note_received(100);
            (memory, standing)
        };
        let others = ["192.0.2.1", "198.51.100.1"].map(connection);
        let flood: Vec<_> = (0..100).map(|_| connection("203.0.113.1")).collect();
        let late = connection("2001:db8::1");
        assert!(others.iter().chain([&late]).all(|(_, standing)| !has_ended(standing)));
        assert_eq!(flood.iter().filter(|(_, standing)| has_ended(standing)).count(), 97);
        assert!(flood[97..].iter().all(|(_, standing)| !has_ended(standing)), "the oldest give way");
        drop((others, flood, late));
        assert!(register.counted().bytes == 0 && register.counted().blocks.is_empty());
    }

    #[tokio::test]
    async fn p15_many_addresses_displace_neither_an_office_nor_the_clients_of_a_load_balancer() {
        let register = Arc::new(Register::new(8 * SHARE_OF_BLOCK * BUFFERS_BYTES));
        let connection = |from: Option<String>| {
            let block = from.map(|from| Block::of(from.parse().expect("an address")));
            let standing = Arc::new(Standing::of(block));
            let mut memory = Memory::counted_in(&register, &standing);
            memory.note_received(100);
            (memory, standing)
        };
        let count = |of: &[(Memory, Arc<Standing>)]| of.iter().filter(|(_, standing)| has_ended(standing)).count();
        let strangers = |network: u8, count: u8| -> Vec<_> {
            (0..count).map(|last| connection(Some(format!("203.0.{network}.{last}")))).collect()
        };
        let first = strangers(1, 240);
        let office: Vec<_> = (0..8).map(|_| connection(Some("192.0.2.1".into()))).collect();
        let balanced: Vec<_> = (0..8).map(|_| connection(None)).collect();
        let later = strangers(2, 126);
        assert_eq!((count(&first), count(&office), count(&balanced), count(&later)), (126, 0, 0, 0), "the oldest");
        drop((first, office, balanced));
        let flood: Vec<_> = (0..20).map(|_| connection(Some("192.0.2.9".into()))).collect();
        let through: Vec<_> = (0..136).map(|_| connection(None)).collect();
        let ended = [&later, &flood, &through].map(|of| count(of));
        assert_eq!(ended, [6, 12, 8], "a 32nd for an address, a half for load balancers, and then the oldest");
        drop((later, flood, through));
        assert!(register.counted().bytes == 0 && register.counted().blocks.is_empty());
    }
}
