//! Queue of login attempts, a few of which may check credentials at a time. Places take turns, and clients from networks
//! with recent failures come after those without. When the queue is full, a newcomer may evict a waiting entry: the
//! newest of the place with the most entries, then of the network with the most, then of the network with the most
//! failures. So neither one guesser with many addresses nor many guessers keep out clients that have not failed.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use tokio::sync::oneshot;

/// Keyed hash of a name at a place, of a place, or of a network. Its size does not depend on client input.
pub(super) type Key = [u8; 16];

/// Passwords compared concurrently, for unknown and for known clients each.
pub(super) const TURNS: usize = 2;
/// Maximum numbers of waiting attempts per lane, and per place within a lane.
pub(super) const WAITING_MAX: usize = 48;
pub(super) const WAITING_OF_PLACE_MAX: usize = 16;
/// One of this many turns goes to the longest waiting place regardless of failures.
const ANYBODYS: u64 = 4;

/// Message to a waiting attempt.
pub(super) enum Word {
    /// The attempt may proceed.
    Turn,
    /// The attempt was evicted because the queue is full.
    GiveWay,
}

/// Origin of an attempt.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptOrigin {
    pub place: Key,
    /// Network that contains the place.
    pub network: Key,
    /// Recent failures from the network.
    pub failures: u32,
}

/// Returns the place and the network of an address. The place is the range that one client controls: an IPv4 address, or
/// the /64 of an IPv6 one. The network contains the place: a /24 of IPv4, or the /48 that one customer has of IPv6.
pub(super) fn places(address: IpAddr) -> ([u8; 8], [u8; 6]) {
    let (mut place, mut network) = ([0; 8], [0; 6]);
    match address.to_canonical() {
        IpAddr::V4(address) => {
            place[..4].copy_from_slice(&address.octets());
            network[..3].copy_from_slice(&address.octets()[..3]);
        }
        IpAddr::V6(address) => {
            place.copy_from_slice(&address.octets()[..8]);
            network.copy_from_slice(&address.octets()[..6]);
        }
    }
    (place, network)
}

struct Waiter {
    comer: AttemptOrigin,
    /// Whether the attempt waits for a turn only.
    is_ready: bool,
    word: oneshot::Sender<Word>,
}

#[derive(Default)]
pub(super) struct Lane {
    /// Turns in use.
    taken: usize,
    /// Waiting attempts in the order of arrival.
    waiting: BTreeMap<u64, Waiter>,
    next: u64,
    /// Count of turns at which each place with waiting attempts was last served.
    served: HashMap<Key, u64>,
    turns: u64,
}

impl Lane {
    fn waiting_at(&self, place: Key) -> usize {
        self.waiting.values().filter(|waiter| waiter.comer.place == place).count()
    }

    /// Adds an attempt to the queue; `None` if there is no room.
    pub(super) fn enter(&mut self, comer: AttemptOrigin, word: oneshot::Sender<Word>) -> Option<u64> {
        let is_full = self.waiting.len() >= WAITING_MAX;
        if self.waiting_at(comer.place) >= WAITING_OF_PLACE_MAX || (is_full && !self.make_way(comer)) {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.waiting.insert(id, Waiter { comer, is_ready: false, word });
        Some(id)
    }

    /// Returns the newest entry of the place or network with the most entries, if it would still have more than
    /// the newcomer's.
    fn newest_of_most(&self, newcomer: AttemptOrigin, of: fn(AttemptOrigin) -> Key) -> Option<u64> {
        let mut waiting: HashMap<Key, usize> = HashMap::new();
        for waiter in self.waiting.values() {
            *waiting.entry(of(waiter.comer)).or_default() += 1;
        }
        let at = |comer| waiting.get(&of(comer)).copied().unwrap_or_default();
        let newest = self.waiting.iter().map(|(id, waiter)| (at(waiter.comer), *id)).max();
        newest.filter(|(most, _)| *most > at(newcomer) + 1).map(|(_, id)| id)
    }

    /// Returns the newest entry with the most failures, if these exceed the newcomer's.
    fn newest_of_worst(&self, newcomer: AttemptOrigin) -> Option<u64> {
        let newest = self.waiting.iter().map(|(id, waiter)| (waiter.comer.failures, *id)).max();
        newest.filter(|(failures, _)| *failures > newcomer.failures).map(|(_, id)| id)
    }

    /// Evicts an entry in favour of a newcomer. Returns whether there is room now.
    fn make_way(&mut self, newcomer: AttemptOrigin) -> bool {
        let of_place = || self.newest_of_most(newcomer, |comer| comer.place);
        let of_network = || self.newest_of_most(newcomer, |comer| comer.network);
        let Some(id) = of_place().or_else(of_network).or_else(|| self.newest_of_worst(newcomer)) else { return false };
        if let Some(waiter) = self.remove(id) {
            let _ = waiter.word.send(Word::GiveWay);
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&id)?;
        if self.waiting_at(waiter.comer.place) == 0 {
            self.served.remove(&waiter.comer.place);
        }
        Some(waiter)
    }

    /// Removes an attempt that no longer waits.
    pub(super) fn leave(&mut self, id: u64) {
        drop(self.remove(id));
    }

    /// Marks an attempt as waiting for a turn only.
    pub(super) fn note_ready(&mut self, id: u64) {
        if let Some(own) = self.waiting.get_mut(&id) {
            own.is_ready = true;
        }
        self.grant_turns();
    }

    /// Releases a turn that is over, or that the attempt did not use.
    pub(super) fn note_over(&mut self) {
        self.taken = self.taken.saturating_sub(1);
        self.grant_turns();
    }

    /// Grants free turns to the places that have waited longest, those without failures first.
    fn grant_turns(&mut self) {
        while self.taken < TURNS {
            let since = |waiter: &Waiter| self.served.get(&waiter.comer.place).copied().unwrap_or_default();
            let is_later = |waiter: &Waiter| !self.turns.is_multiple_of(ANYBODYS) && waiter.comer.failures > 0;
            let ready = self.waiting.iter().filter(|(_, waiter)| waiter.is_ready);
            let first = ready.min_by_key(|(id, waiter)| (is_later(waiter), since(waiter), **id));
            let Some(waiter) = first.map(|(id, _)| *id).and_then(|id| self.remove(id)) else { return };
            self.turns += 1;
            if self.waiting_at(waiter.comer.place) > 0 {
                self.served.insert(waiter.comer.place, self.turns);
            }
            // An attempt that was dropped concurrently uses no turn.
            self.taken += usize::from(waiter.word.send(Word::Turn).is_ok());
        }
    }

    #[cfg(test)]
    pub(super) fn is_waiting_at(&self, place: Key) -> bool {
        self.waiting_at(place) > 0
    }

    #[cfg(test)]
    pub(super) fn depth(&self) -> usize {
        self.waiting.len()
    }

    /// Returns whether no state remains.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.taken == 0 && self.waiting.is_empty() && self.served.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let mut key = Key::default();
        key[..4].copy_from_slice(&number.to_le_bytes());
        key
    }

    /// Returns an origin at a place in a network.
    fn comer(network: u32, place: u32, failures: u32) -> AttemptOrigin {
        AttemptOrigin { place: key(network * 1000 + place), network: key(network), failures }
    }

    /// Returns a full queue with all turns in use, and the receivers of its entries.
    fn full(from: impl Fn(u32) -> AttemptOrigin) -> (Lane, Vec<oneshot::Receiver<Word>>) {
        let mut lane = Lane { taken: TURNS, ..Lane::default() };
        let all =
            (0..u32::try_from(WAITING_MAX).expect("few")).map(|number| enter(&mut lane, from(number)).expect("room"));
        let words = all.collect();
        (lane, words)
    }

    fn enter(lane: &mut Lane, from: AttemptOrigin) -> Option<oneshot::Receiver<Word>> {
        let (sender, word) = oneshot::channel();
        let id = lane.enter(from, sender)?;
        lane.note_ready(id);
        Some(word)
    }

    fn gave_way(words: &mut [oneshot::Receiver<Word>]) -> Vec<usize> {
        let told = words.iter_mut().map(|word| matches!(word.try_recv(), Ok(Word::GiveWay)));
        told.enumerate().filter(|(_, gave_way)| *gave_way).map(|(number, _)| number).collect()
    }

    #[test]
    fn p15_guessers_at_many_addresses_keep_nobody_out_who_has_not_failed() {
        // Each at a distinct address in a distinct network, with earlier failures.
        let (mut lane, mut words) = full(|number| comer(number, 0, 1 + number % 7));
        let better = enter(&mut lane, comer(900, 0, 6)).expect("evicts an entry with more failures");
        let mut good = enter(&mut lane, comer(901, 0, 0)).expect("evicts an entry");
        assert_eq!(gave_way(&mut words).len(), 2, "one eviction for each");
        lane.turns = 1;
        lane.note_over();
        assert!(matches!(good.try_recv(), Ok(Word::Turn)), "the entry without failures is served first");
        // A newcomer with as many failures as the worst entry evicts none.
        assert_eq!(lane.depth(), WAITING_MAX - 1);
        assert!(enter(&mut lane, comer(902, 0, 0)).is_some(), "there is room");
        assert!(enter(&mut lane, comer(903, 0, 7)).is_none());
        drop(better);
    }

    #[test]
    fn p15_one_network_of_many_addresses_leaves_others_room() {
        // All entries are from distinct places of one network and have not failed; no other network has more entries.
        let (mut lane, mut words) = full(|number| comer(1, number, 0));
        for other in 2..20 {
            assert!(enter(&mut lane, comer(other, 0, 3)).is_some(), "network {other}");
        }
        assert_eq!(gave_way(&mut words).len(), 18);
        assert_eq!(lane.depth(), WAITING_MAX);
        // No entry is evicted if each network has one entry and none has failed.
        let (mut lane, mut words) = full(|number| comer(number, 0, 0));
        assert!(enter(&mut lane, comer(900, 0, 0)).is_none() && gave_way(&mut words).is_empty());
    }

    #[test]
    fn p15_who_has_failed_gets_a_turn_among_many_who_have_not() {
        let mut lane = Lane { taken: TURNS, ..Lane::default() };
        let mut failed = enter(&mut lane, comer(1, 0, 5)).expect("room");
        let words: Vec<_> = (2..40).map(|network| enter(&mut lane, comer(network, 0, 0)).expect("room")).collect();
        for turn in 0..ANYBODYS {
            assert!(failed.try_recv().is_err(), "turn {turn}");
            lane.turns = turn + 1;
            lane.note_over();
        }
        assert!(matches!(failed.try_recv(), Ok(Word::Turn)));
        drop(words);
    }
}
