//! Throttling of logins, which slows down password guessing and hinders only the clients that guess.
//!
//! Failures are counted per name and place of origin (an IPv4 address, or the /64 of an IPv6 one), and per place over all
//! names. So failures elsewhere under a user's name do not lock the user out. Passwords are compared a few at a time.
//! Users at a place where they logged in before ([`super::known_places`]) queue separately from unknown clients, and
//! among waiting clients those without failures have precedence ([`super::login_queue`]). Existing, missing and special names
//! are treated alike.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::error::{ApiError, ApiResult};
use super::known_places::{self, KnownPlaces};
use super::login_queue::{AttemptOrigin, Key, Lane, Word, places};
use gravwell_objects::{names, passwords};

/// Factor by which the failure limit of a place, over all names, exceeds that of one name there.
const PLACE_FACTOR: u32 = 10;
/// Maximum number of counters kept: more than can be created within the usual window.
const REMEMBERED_MAX: usize = 50_000;

#[derive(Clone, Copy, Debug)]
struct Count {
    failures: u32,
    under_way: u32,
    first: Instant,
}

impl Count {
    fn new() -> Count {
        Count { failures: 0, under_way: 0, first: Instant::now() }
    }
}

/// Reason for rejecting an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The name has failed too often from this place; lasts until the window is over.
    Name,
    /// The place has failed too often.
    Place,
    /// The queue is full; a retry shortly after can succeed.
    Busy,
}

impl Refusal {
    pub(super) fn reason(self) -> &'static str {
        match self {
            Refusal::Name => "too many failed logins with this name; try again later",
            Refusal::Place => "too many failed logins from this address; try again later",
            Refusal::Busy => "too many concurrent logins; try again in a second",
        }
    }
}

struct State {
    counts: HashMap<Key, Count>,
    /// Places from which names have logged in.
    known: KnownPlaces,
    strangers: Lane,
    acquainted: Lane,
}

impl State {
    fn lane(&mut self, is_known: bool) -> &mut Lane {
        if is_known { &mut self.acquainted } else { &mut self.strangers }
    }

    /// Returns the counter of a key within the window. When the table is full, evicts expired counters first, then those
    /// with the fewest failures, oldest first.
    fn count(&mut self, key: Key, window: Duration) -> &mut Count {
        let is_over = |count: &Count| count.under_way == 0 && count.first.elapsed() >= window;
        if !self.counts.contains_key(&key) && self.counts.len() >= REMEMBERED_MAX {
            self.counts.retain(|_, count| !is_over(count));
            if self.counts.len() >= REMEMBERED_MAX {
                let mut order: Vec<_> =
                    self.counts.iter().map(|(key, count)| (count.failures, count.first, *key)).collect();
                order.sort_unstable();
                order.truncate(REMEMBERED_MAX / 8);
                for (.., key) in order {
                    self.counts.remove(&key);
                }
            }
        }
        let count = self.counts.entry(key).or_insert_with(Count::new);
        if is_over(count) {
            *count = Count::new();
        }
        count
    }

    fn failures(&self, key: &Key, window: Duration) -> Count {
        let count = self.counts.get(key).filter(|count| count.under_way > 0 || count.first.elapsed() < window);
        count.copied().unwrap_or_else(Count::new)
    }
}

/// Counts failures within a window and schedules attempts.
pub(super) struct LoginThrottle {
    count_max: u32,
    window: Duration,
    secret: [u8; 32],
    /// File of known places; `None`: they are not stored.
    file: Option<PathBuf>,
    state: Mutex<State>,
    /// Notified when an attempt is resolved.
    decided: Notify,
}

#[derive(Clone, Copy)]
struct Keys {
    name: Key,
    place: Key,
    network: Key,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Failure,
    Success,
    /// The password was correct, but a second factor is required: neither counts as a failure nor resets failures.
    HalfWay,
}

/// An admitted attempt. It counts as a failure until its password was found to be right ([`Attempt::compare`]), and if
/// another credential was wrong ([`Attempt::note_wrong`]): also if the client disconnects. What else ends it is no failure.
pub(super) struct Attempt {
    limiter: Arc<LoginThrottle>,
    keys: Keys,
    outcome: Outcome,
    /// Another credential than the password was wrong.
    is_wrong: AtomicBool,
    has_tried: bool,
    turn: Option<Turn>,
}

impl Attempt {
    pub(super) fn note(mut self, succeeded: bool) {
        self.outcome = if succeeded { Outcome::Success } else { Outcome::Failure };
    }

    /// Records that another credential than the password was wrong.
    pub(super) fn note_wrong(&self) {
        self.is_wrong.store(true, Ordering::Relaxed);
    }

    /// Records that the password was correct but that the login is not complete.
    pub(super) fn note_half_way(mut self) {
        self.outcome = Outcome::HalfWay;
    }

    /// Compares a password, and releases the turn: the remaining work needs no processor time. The comparison runs to its
    /// end when its connection is closed, which may have given way to others: a right password is no failure, neither then
    /// nor while the login is being committed.
    pub(super) async fn compare(mut self, password: String, hash: Option<String>) -> ApiResult<(Attempt, bool)> {
        let comparing = async move {
            let fits = passwords::verify(&password, hash).await?;
            self.turn = None;
            if fits {
                self.outcome = Outcome::HalfWay;
            }
            Ok::<_, ApiError>((self, fits))
        };
        tokio::spawn(comparing).await.map_err(ApiError::internal)?
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.turn = None;
        if self.outcome == Outcome::HalfWay && *self.is_wrong.get_mut() {
            self.outcome = Outcome::Failure;
        }
        let (window, keys) = (self.limiter.window, self.keys);
        let mut state = self.limiter.locked();
        let count = state.count(keys.name, window);
        count.under_way = count.under_way.saturating_sub(1);
        if self.outcome == Outcome::Success {
            count.failures = 0;
            if count.under_way == 0 {
                state.counts.remove(&keys.name);
            }
            state.known.note(keys.name);
        } else if self.outcome == Outcome::HalfWay {
            if count.failures == 0 && count.under_way == 0 {
                state.counts.remove(&keys.name);
            }
        } else if self.has_tried {
            // A client that left before its turn has tried nothing.
            for key in [keys.name, keys.place, keys.network] {
                let count = state.count(key, window);
                count.failures = count.failures.saturating_add(1);
            }
        }
        drop(state);
        self.limiter.decided.notify_waiters();
    }
}

/// Permission to compare a password; dropping it passes the turn to the next in the queue.
struct Turn {
    limiter: Arc<LoginThrottle>,
    is_known: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.limiter.locked();
        state.lane(self.is_known).note_over();
    }
}

/// An entry in a queue.
struct Waiting {
    limiter: Arc<LoginThrottle>,
    id: u64,
    is_known: bool,
    word: oneshot::Receiver<Word>,
}

impl Waiting {
    /// Waits for a turn after all other conditions are met.
    async fn turn(mut self) -> Result<Turn, Refusal> {
        {
            let mut state = self.limiter.locked();
            state.lane(self.is_known).note_ready(self.id);
        }
        match (&mut self.word).await {
            Ok(Word::Turn) => Ok(Turn { limiter: Arc::clone(&self.limiter), is_known: self.is_known }),
            _ => Err(Refusal::Busy),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.limiter.locked();
        let lane = state.lane(self.is_known);
        lane.leave(self.id);
        // The turn was granted but not received.
        if matches!(self.word.try_recv(), Ok(Word::Turn)) {
            lane.note_over();
        }
    }
}

impl LoginThrottle {
    /// Creates a limiter that allows `count_max` failures of a name at a place within `window`; 0 in either disables the
    /// limit. Known places are stored in `file`.
    ///
    /// # Errors
    /// If no random bytes are available.
    pub(super) fn open(count_max: u32, window: Duration, file: &Path) -> std::io::Result<LoginThrottle> {
        Ok(LoginThrottle {
            file: Some(file.to_owned()),
            ..LoginThrottle::of(count_max, window, KnownPlaces::open(file)?)
        })
    }

    fn of(count_max: u32, window: Duration, known: KnownPlaces) -> LoginThrottle {
        let (secret, strangers, acquainted) = (known.secret, Lane::default(), Lane::default());
        let state = Mutex::new(State { counts: HashMap::new(), known, strangers, acquainted });
        LoginThrottle { count_max, window, secret, file: None, state, decided: Notify::new() }
    }

    /// Writes known places to the file if there are new ones; called periodically and at shutdown.
    pub(super) fn keep(&self) {
        let Some(file) = &self.file else { return };
        let changed = self.locked().known.changed();
        if let Some(text) = changed {
            known_places::write(file, &text);
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_off(&self) -> bool {
        self.count_max == 0 || self.window.is_zero()
    }

    fn keys(&self, name: &str, address: IpAddr) -> Keys {
        let (place, network) = places(address);
        let key = |place: &[u8], name: &str| {
            let mut hasher = blake3::Hasher::new_keyed(&self.secret);
            hasher.update(place).update(name.as_bytes());
            let mut key = Key::default();
            hasher.finalize_xof().fill(&mut key);
            key
        };
        // No name is empty, so this key differs from that of the place.
        let name = key(&place, &format!("={}", names::key(name)));
        Keys { name, place: key(&place, ""), network: key(&network, "") }
    }

    /// Waits for the turn of a login attempt, before the password is checked.
    ///
    /// # Errors
    /// Returns the reason for the rejection.
    pub(super) async fn admit(self: &Arc<LoginThrottle>, name: &str, address: IpAddr) -> Result<Attempt, Refusal> {
        let keys = self.keys(name, address);
        let mut waiting = self.queue(keys)?;
        let mut attempt = loop {
            let decided = self.decided.notified();
            let mut decided = std::pin::pin!(decided);
            decided.as_mut().enable();
            if let Some(attempt) = self.judge(keys, waiting.is_known)? {
                break attempt;
            }
            tokio::select! {
                () = decided => {}
                // Before the entry is ready, the only possible message is its eviction.
                _ = &mut waiting.word => return Err(Refusal::Busy),
            }
        };
        attempt.turn = Some(waiting.turn().await?);
        attempt.has_tried = true;
        Ok(attempt)
    }

    fn queue(self: &Arc<LoginThrottle>, keys: Keys) -> Result<Waiting, Refusal> {
        let mut state = self.locked();
        let is_known = state.known.contains(&keys.name);
        let failures = state.failures(&keys.network, self.window).failures;
        let comer = AttemptOrigin { place: keys.place, network: keys.network, failures };
        let (sender, word) = oneshot::channel();
        let id = state.lane(is_known).enter(comer, sender).ok_or(Refusal::Busy)?;
        Ok(Waiting { limiter: Arc::clone(self), id, is_known, word })
    }

    /// Admits or rejects an attempt. Returns `None` if it must wait for other attempts of this name from this place, so
    /// that concurrent attempts cannot exceed the limit together.
    fn judge(self: &Arc<LoginThrottle>, keys: Keys, is_known: bool) -> Result<Option<Attempt>, Refusal> {
        let mut state = self.locked();
        if !self.is_off() {
            // Failures of others at the place of a known user do not lock the user out.
            let of_place = state.failures(&keys.place, self.window).failures;
            if !is_known && of_place >= self.count_max.saturating_mul(PLACE_FACTOR) {
                return Err(Refusal::Place);
            }
            let of_name = state.failures(&keys.name, self.window);
            if of_name.failures >= self.count_max {
                return Err(Refusal::Name);
            }
            if of_name.failures.saturating_add(of_name.under_way) >= self.count_max {
                return Ok(None);
            }
        }
        state.count(keys.name, self.window).under_way += 1;
        Ok(Some(Attempt {
            limiter: Arc::clone(self),
            keys,
            outcome: Outcome::Failure,
            is_wrong: AtomicBool::new(false),
            has_tried: false,
            turn: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::login_queue::{TURNS, WAITING_MAX};

    const LONG: Duration = Duration::from_secs(3600);

    fn limiter(count_max: u32, window: Duration) -> Arc<LoginThrottle> {
        Arc::new(LoginThrottle::of(count_max, window, KnownPlaces::new().expect("randomness")))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    async fn try_once(limiter: &Arc<LoginThrottle>, name: &str, address: &str, good: bool) -> Result<(), Refusal> {
        limiter.admit(name, ip(address)).await.map(|attempt| attempt.note(good))
    }

    #[tokio::test]
    async fn a_name_is_locked_only_where_it_failed() {
        let here = "2001:db8:1:2::1";
        let places = [
            (here, Err(Refusal::Name)),
            // The same network, of which one client has all addresses.
            ("2001:db8:1:2:ffff::9", Err(Refusal::Name)),
            ("2001:db8:1:3::1", Ok(())),
            ("192.0.2.1", Ok(())),
            ("::ffff:192.0.2.1", Ok(())),
        ];
        for name in ["bob", "admin", "no such user"] {
            let limiter = limiter(3, LONG);
            for _ in 0..3 {
                assert_eq!(try_once(&limiter, name, here, false).await, Ok(()));
            }
            for (place, wanted) in places {
                assert_eq!(try_once(&limiter, &name.to_uppercase(), place, true).await, wanted, "{name} at {place}");
            }
        }
    }

    #[tokio::test]
    async fn a_place_is_locked_after_many_names_but_not_for_whom_it_knows() {
        let limiter = limiter(3, LONG);
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Ok(()));
        for number in 0..30 {
            assert_eq!(try_once(&limiter, &format!("n{number}"), "192.0.2.1", false).await, Ok(()));
        }
        assert_eq!(try_once(&limiter, "eve", "192.0.2.1", true).await, Err(Refusal::Place));
        assert_eq!(try_once(&limiter, "eve", "192.0.2.2", true).await, Ok(()));
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Ok(()));
    }

    #[tokio::test]
    async fn a_success_clears_the_name_and_an_attempt_that_is_given_up_counts() {
        let limiter = limiter(3, LONG);
        for good in [false, false, true, false, false] {
            assert_eq!(try_once(&limiter, "bob", "192.0.2.1", good).await, Ok(()));
        }
        drop(limiter.admit("bob", ip("192.0.2.1")).await);
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Err(Refusal::Name));
    }

    #[tokio::test]
    async fn a_right_password_that_is_not_enough_forgets_no_failure() {
        let limiter = limiter(3, LONG);
        let half_way = async || limiter.admit("bob", ip("192.0.2.1")).await.map(Attempt::note_half_way);
        for _ in 0..10 {
            assert_eq!(half_way().await, Ok(()));
        }
        assert!(limiter.locked().counts.is_empty() && limiter.locked().known.is_empty());
        for _ in 0..3 {
            assert_eq!(half_way().await, Ok(()));
            drop(limiter.admit("bob", ip("192.0.2.1")).await.expect("let in"));
        }
        assert_eq!(half_way().await, Err(Refusal::Name));
    }

    #[tokio::test]
    async fn an_attempt_that_is_cut_off_is_a_failure_only_with_a_wrong_password() {
        let limiter = limiter(1, LONG);
        let right = "a plain horse";
        let hash = passwords::hash(right).await.expect("hashes");
        let cut_off = async |password: &str| {
            let attempt = limiter.admit("bob", ip("192.0.2.1")).await?;
            let compared = attempt.compare(password.to_owned(), Some(hash.clone())).now_or_never();
            assert!(compared.is_none(), "it takes time");
            Ok::<(), Refusal>(())
        };
        assert_eq!(cut_off(right).await, Ok(()));
        // Later, while it is being committed.
        let compared = async |password: &str| {
            let attempt = limiter.admit("bob", ip("192.0.2.1")).await.expect("let in");
            attempt.compare(password.to_owned(), Some(hash.clone())).await.expect("compares")
        };
        for _ in 0..2 {
            let (attempt, fits) = compared(right).await;
            assert!(fits);
            drop(attempt);
        }
        // A wrong code counts, unless the login succeeds after all.
        let (attempt, _) = compared(right).await;
        attempt.note_wrong();
        attempt.note(true);
        assert_eq!(cut_off("a second horse").await, Ok(()));
        assert_eq!(cut_off(right).await, Err(Refusal::Name));
        for name in ["carol", "dave"] {
            let attempt = limiter.admit(name, ip("192.0.2.1")).await.expect("let in");
            let password = if name == "carol" { right } else { "a second horse" };
            let (attempt, _) = attempt.compare(password.to_owned(), Some(hash.clone())).await.expect("compares");
            attempt.note_wrong();
            drop(attempt);
            assert_eq!(try_once(&limiter, name, "192.0.2.1", true).await, Err(Refusal::Name), "{name}");
        }
    }

    #[tokio::test]
    async fn attempts_at_the_same_time_do_not_slip_past_the_count() {
        let limiter = limiter(2, LONG);
        let one = limiter.admit("bob", ip("192.0.2.1")).await.expect("the first");
        let two = limiter.admit("bob", ip("192.0.2.1")).await.expect("the second");
        let third = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { try_once(&limiter, "bob", "192.0.2.1", true).await }
        });
        one.note(false);
        two.note(false);
        assert_eq!(third.await.expect("ends"), Err(Refusal::Name));
    }

    #[tokio::test]
    async fn a_full_queue_rejects_unknown_clients_and_admits_known_ones() {
        let limiter = limiter(5, LONG);
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Ok(()));
        let mut held = Vec::new();
        for number in 0..TURNS {
            held.push(limiter.admit("x", ip(&format!("198.51.100.{number}"))).await);
        }
        let waiting: Vec<_> = (0..WAITING_MAX)
            .map(|number| {
                let limiter = Arc::clone(&limiter);
                tokio::spawn(async move { try_once(&limiter, "x", &format!("203.0.{number}.1"), false).await })
            })
            .collect();
        while limiter.locked().strangers.depth() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(try_once(&limiter, "eve", "192.0.2.7", true).await, Err(Refusal::Busy));
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Ok(()));
        drop(held);
        for one in waiting {
            assert_eq!(one.await.expect("ends"), Ok(()));
        }
        assert_eq!(try_once(&limiter, "eve", "192.0.2.7", true).await, Ok(()));
    }

    #[tokio::test]
    async fn p15_one_user_at_a_few_places_keeps_nobody_else_waiting_for_all_of_theirs() {
        let limiter = limiter(100, LONG);
        let mut held = Vec::new();
        for _ in 0..TURNS {
            held.push(limiter.admit("bob", ip("203.0.113.0")).await.expect("a turn"));
        }
        let served = Arc::new(Mutex::new(Vec::new()));
        let begin = |name: &'static str, address: String| {
            let (limiter, served) = (Arc::clone(&limiter), Arc::clone(&served));
            tokio::spawn(async move {
                let attempt = limiter.admit(name, ip(&address)).await?;
                served.lock().expect("not poisoned").push(name);
                attempt.note_half_way();
                Ok::<(), Refusal>(())
            })
        };
        let flood: Vec<_> = (0..WAITING_MAX).map(|number| begin("bob", format!("203.0.113.{}", number % 4))).collect();
        while limiter.locked().strangers.depth() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let dave = begin("dave", "192.0.2.60".to_owned());
        let place = place_key(&limiter, "192.0.2.60");
        let waits = |limiter: &LoginThrottle| limiter.locked().strangers.is_waiting_at(place);
        // An attempt that is rejected immediately never waits.
        while !dave.is_finished() && !waits(&limiter) {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert_eq!(dave.await.expect("ends"), Ok(()));
        let mut refused = 0;
        for one in flood {
            refused += usize::from(one.await.expect("ends") == Err(Refusal::Busy));
        }
        let served = served.lock().expect("not poisoned");
        let at = served.iter().position(|name| *name == "dave").expect("was served");
        assert!(refused == 1 && at <= 4 + TURNS, "{refused} evicted, {at} served before");
        assert!(limiter.locked().strangers.is_idle());
    }

    fn place_key(limiter: &LoginThrottle, address: &str) -> Key {
        limiter.keys("", ip(address)).place
    }

    #[tokio::test]
    async fn p15_many_guessers_from_everywhere_keep_no_new_place_out() {
        let limiter = limiter(100, LONG);
        let guess = |number: usize| {
            let (limiter, address) = (Arc::clone(&limiter), format!("203.{}.{}.1", number / 200, number % 200));
            tokio::spawn(async move { try_once(&limiter, &format!("x{number}"), &address, false).await })
        };
        for number in 0..2 * WAITING_MAX {
            assert_eq!(guess(number).await.expect("ends"), Ok(()));
        }
        let mut held = Vec::new();
        for number in 0..TURNS {
            held.push(limiter.admit("x", ip(&format!("198.51.100.{number}"))).await.expect("a turn"));
        }
        let waiting: Vec<_> = (0..2 * WAITING_MAX).map(guess).collect();
        while limiter.locked().strangers.depth() < WAITING_MAX {
            tokio::task::yield_now().await;
        }
        let dave = {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move { try_once(&limiter, "dave", "192.0.2.60", true).await })
        };
        let place = place_key(&limiter, "192.0.2.60");
        while !dave.is_finished() && !limiter.locked().strangers.is_waiting_at(place) {
            tokio::task::yield_now().await;
        }
        drop(held);
        assert_eq!(dave.await.expect("ends"), Ok(()));
        for one in waiting {
            drop(one.await);
        }
        assert!(limiter.locked().strangers.is_idle());
    }

    #[tokio::test]
    async fn p15_after_a_restart_a_place_is_as_known_as_before() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("known-places");
        let open = || Arc::new(LoginThrottle::open(3, LONG, &file).expect("opens"));
        let before = open();
        assert_eq!(try_once(&before, "bob", "192.0.2.1", true).await, Ok(()));
        before.keep();
        let after = open();
        for number in 0..30 {
            assert_eq!(try_once(&after, &format!("n{number}"), "192.0.2.1", false).await, Ok(()));
        }
        assert_eq!(try_once(&after, "eve", "192.0.2.1", true).await, Err(Refusal::Place));
        assert_eq!(try_once(&after, "bob", "192.0.2.1", true).await, Ok(()));
    }

    #[tokio::test]
    async fn p15_who_leaves_the_queue_keeps_no_turn() {
        let limiter = limiter(100, LONG);
        for number in 0..200_u32 {
            let held = limiter.admit("bob", ip("192.0.2.1")).await.expect("a turn");
            let waiting: Vec<_> = (0..4)
                .map(|_| {
                    let limiter = Arc::clone(&limiter);
                    tokio::spawn(async move { limiter.admit("x", ip("192.0.2.2")).await.map(Attempt::note_half_way) })
                })
                .collect();
            if number % 2 == 0 {
                tokio::task::yield_now().await;
            }
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
            held.note_half_way();
            for one in waiting {
                drop(one.await);
            }
        }
        assert!(limiter.locked().strangers.is_idle());
    }

    #[tokio::test]
    async fn new_names_neither_fill_the_memory_nor_unlock_names() {
        let limiter = limiter(3, LONG);
        for _ in 0..3 {
            assert_eq!(try_once(&limiter, "bob", "192.0.2.1", false).await, Ok(()));
        }
        for number in (0_u32..).take(REMEMBERED_MAX) {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
            assert_eq!(try_once(&limiter, "fresh", &address, false).await, Ok(()));
        }
        assert!(limiter.locked().counts.len() <= REMEMBERED_MAX + 1);
        assert_eq!(try_once(&limiter, "bob", "192.0.2.1", true).await, Err(Refusal::Name));
    }

    #[tokio::test]
    async fn the_window_ends_and_zero_means_no_limit() {
        for limiter in [limiter(1, Duration::from_nanos(1)), limiter(0, LONG)] {
            for _ in 0..3 {
                assert_eq!(try_once(&limiter, "bob", "::1", false).await, Ok(()));
            }
        }
    }
}
