//! Audit records of events at this webserver that are not transactions: failed logins, uses of tokens, downloads.
//!
//! A repeated act is recorded immediately the first time and then once per interval, with its count. The number of
//! distinct acts is bounded separately for each cause, so no client can make the acts of others less visible. A known
//! caller with too many distinct acts is still recorded with name and address. For unauthenticated clients, names of
//! existing users are recorded, because these are few; of invented names, only the first ones from each address are. The
//! number of records that all unauthenticated clients cause together is bounded too.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gravwell_env::{Clock, SystemClock};
use gravwell_model::codec::audit::Act;
use gravwell_replica::audit_acts::Acts;

use super::caller::Caller;

/// Interval in which a repeated act is counted instead of recorded again.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same interval for uses of a token.
const TOKEN_INTERVAL: Duration = Duration::from_secs(3600);
/// Maximum numbers per user and interval of distinct acts, of distinct rejected acts, and of addresses of further acts.
const ACTS_OF_USER: usize = 256;
const REFUSALS_OF_USER: usize = 16;
const ADDRESSES_OF_USER: usize = 32;
/// Maximum numbers per place and interval of distinct invented names and of distinct users' names.
const NAMES_OF_PLACE: usize = 8;
const USERS_OF_PLACE: usize = 64;
/// Maximum number of distinct places per user name and interval.
const PLACES_OF_USER: usize = 32;
/// Burst and rate per second of records that unauthenticated clients cause, with invented names and with users' names.
const STRANGE: (f64, f64) = (1000.0, 0.5);
const NAMED: (f64, f64) = (2000.0, 2.0);

const MANY_ACTS: &str = "more actions than are distinguished for one user";
const MANY_NAMES: &str = "more names than are distinguished";

/// Key of acts that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Same {
    kind: &'static str,
    uid: Option<i32>,
    user: String,
    by: String,
    from: String,
    what: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Bound {
    Acts(i32),
    Refusals(i32),
    Addresses(i32),
    Names(String),
    Users(String),
    Places(i32),
}

/// Token bucket for records that unauthenticated clients cause.
#[derive(Debug)]
struct Purse {
    left: f64,
    most: f64,
    per_s: f64,
    at: Instant,
}

impl Purse {
    fn new((most, per_s): (f64, f64), at: Instant) -> Purse {
        Purse { left: most, most, per_s, at }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = (self.left + now.saturating_duration_since(self.at).as_secs_f64() * self.per_s).min(self.most);
        self.at = now;
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }
}

/// Token bucket that pays for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Paid {
    /// None: the record is bounded otherwise.
    Free,
    Strange,
    Named,
}

/// One way to count an act; the first one with room is used.
struct Way {
    same: Same,
    act: Act,
    bounds: Vec<(Bound, usize)>,
    purse: Paid,
}

struct Counted {
    since: Instant,
    interval: Duration,
    act: Act,
    /// Repetitions since the act was recorded.
    count: u64,
    bounds: Vec<Bound>,
}

struct Books {
    counted: HashMap<Same, Counted>,
    used: HashMap<Bound, usize>,
    strange: Purse,
    named: Purse,
    /// Time at which an act was last passed on to be written.
    noted: Option<Instant>,
}

impl Books {
    fn new(now: Instant) -> Books {
        let (strange, named) = (Purse::new(STRANGE, now), Purse::new(NAMED, now));
        Books { counted: HashMap::new(), used: HashMap::new(), strange, named, noted: None }
    }

    fn has_room(&mut self, way: &Way, now: Instant) -> bool {
        way.bounds.iter().all(|(bound, most)| self.used.get(bound).is_none_or(|used| used < most))
            && match way.purse {
                Paid::Free => true,
                Paid::Strange => self.strange.take(now),
                Paid::Named => self.named.take(now),
            }
    }

    /// Counts an act and returns it if it is to be recorded immediately.
    fn count(&mut self, ways: Vec<Way>, interval: Duration, now: Instant) -> Option<Act> {
        let last = ways.len().saturating_sub(1);
        for (place, way) in ways.into_iter().enumerate() {
            if let Some(known) = self.counted.get_mut(&way.same) {
                known.count += 1;
                known.act.happened_ms = way.act.happened_ms;
                return None;
            }
            if place < last && !self.has_room(&way, now) {
                continue;
            }
            let bounds: Vec<Bound> = way.bounds.into_iter().map(|(bound, _)| bound).collect();
            for bound in &bounds {
                *self.used.entry(bound.clone()).or_default() += 1;
            }
            let act = way.act.clone();
            self.noted = Some(now);
            self.counted.insert(way.same, Counted { since: now, interval, act: way.act, count: 0, bounds });
            return Some(act);
        }
        None
    }

    /// Removes the counters for which `is_over` holds and returns records of their repetitions.
    fn take(&mut self, is_over: impl Fn(&Counted) -> bool) -> Vec<Act> {
        let over: Vec<Counted> = self.counted.extract_if(|_, known| is_over(known)).map(|(_, known)| known).collect();
        for bound in over.iter().flat_map(|known| &known.bounds) {
            if let Some(used) = self.used.get_mut(bound) {
                *used -= 1;
                if *used == 0 {
                    self.used.remove(bound);
                }
            }
        }
        let repeated = over.into_iter().filter(|known| known.count > 0);
        repeated.map(|known| Act { count: known.count, ..known.act }).collect()
    }
}

pub(super) struct Recorder {
    acts: Acts,
    books: Mutex<Books>,
}

/// A known caller who performs an act.
#[derive(Clone, Debug, Default)]
pub(super) struct Actor {
    pub uid: i32,
    pub user: String,
    pub by: String,
    pub from: String,
}

impl From<&Caller> for Actor {
    fn from(caller: &Caller) -> Actor {
        let author = caller.author();
        Actor { uid: author.uid, user: author.user, by: author.su, from: author.from }
    }
}

/// An unauthenticated client that has given a name.
#[derive(Clone, Debug)]
pub(super) struct Stranger {
    /// Name that the client gave.
    pub name: String,
    /// User with this name, if one exists; `is_admin` states whether it is an administrator.
    pub uid: Option<i32>,
    pub is_admin: bool,
    pub from: IpAddr,
    /// Whether the attempt was rejected because of its origin, before the name was examined.
    pub is_place_refused: bool,
}

impl Recorder {
    pub(super) fn new(acts: Acts) -> Recorder {
        Recorder { acts, books: Mutex::new(Books::new(Instant::now())) }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, ways: Vec<Way>, interval: Duration, now: Instant) {
        let act = self.books().count(ways, interval, now);
        act.into_iter().for_each(|act| self.acts.note(act));
    }

    /// Records an act of a known caller; repetitions are counted.
    pub(super) fn note(&self, kind: &'static str, who: &Actor, what: impl Into<String>) {
        let what = what.into();
        let bound = (Bound::Acts(who.uid), ACTS_OF_USER);
        self.count(of_user(kind, who, what.clone(), what, bound), INTERVAL, Instant::now());
    }

    /// Records a rejected act of a known caller. Such records have their own bound, apart from that of successful acts.
    pub(super) fn note_refused(&self, kind: &'static str, who: &Actor, what: impl Into<String>) {
        let what = what.into();
        let bound = (Bound::Refusals(who.uid), REFUSALS_OF_USER);
        self.count(of_user(kind, who, what.clone(), what, bound), INTERVAL, Instant::now());
    }

    /// Records the first use of a token in an interval. The token is identified by id, so renaming it causes no
    /// second record.
    pub(super) fn note_token(&self, who: &Actor, id: uuid::Uuid, name: &str) {
        let (what, bound) = (format!("token {name} ({id})"), (Bound::Acts(who.uid), ACTS_OF_USER));
        self.count(of_user("token", who, id.to_string(), what, bound), TOKEN_INTERVAL, Instant::now());
    }

    /// Records a failed login attempt.
    pub(super) fn note_login(&self, kind: &'static str, stranger: &Stranger, what: &str) {
        self.count(of_stranger(kind, stranger, what), INTERVAL, Instant::now());
    }

    /// Records the repetitions of acts whose interval is over; called periodically.
    pub(super) fn flush(&self) {
        self.flush_at(Instant::now());
    }

    /// Records the repetitions of all acts, whatever their interval. Returns whether there were any, or whether another
    /// act was recorded within `lately`, so that it may not be written yet.
    pub(super) fn flush_all(&self, lately: Duration) -> bool {
        let (acts, noted) = {
            let mut books = self.books();
            (books.take(|_| true), books.noted)
        };
        let is_any = !acts.is_empty();
        acts.into_iter().for_each(|act| self.acts.note(act));
        is_any || noted.is_some_and(|noted| noted.elapsed() < lately)
    }

    fn flush_at(&self, now: Instant) {
        let acts = self.books().take(|known| now.saturating_duration_since(known.since) >= known.interval);
        acts.into_iter().for_each(|act| self.acts.note(act));
    }
}

/// Returns the address range that one client controls: an IPv4 address, or the /64 network of an IPv6 one.
fn place_of(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            format!("{}/64", Ipv6Addr::from(network))
        }
    }
}

/// Builds an act together with the key under which it is counted.
fn way(same: Same, what: String, (bounds, purse): (Vec<(Bound, usize)>, Paid)) -> Way {
    let act = Act {
        kind: same.kind.into(),
        happened_ms: SystemClock.now_ms(),
        uid: same.uid,
        user: same.user.clone(),
        by: same.by.clone(),
        from: same.from.clone(),
        what,
        count: 1,
        id: String::new(),
    };
    Way { same, act, bounds, purse }
}

/// Ways to count an act of a user: as itself; as one of many of this user from this address; as one of many of this user.
fn of_user(kind: &'static str, who: &Actor, same: String, what: String, bound: (Bound, usize)) -> Vec<Way> {
    let Actor { uid, user, by, from } = who.clone();
    let itself = Same { kind, uid: Some(uid), user, by, from, what: same };
    let of_address = Same { what: MANY_ACTS.into(), ..itself.clone() };
    let of_user = Same { from: String::new(), ..of_address.clone() };
    let addresses = (Bound::Addresses(uid), ADDRESSES_OF_USER);
    vec![
        way(itself, what, (vec![bound], Paid::Free)),
        way(of_address, MANY_ACTS.into(), (vec![addresses], Paid::Free)),
        way(of_user, MANY_ACTS.into(), (Vec::new(), Paid::Free)),
    ]
}

/// Ways to count an act of an unauthenticated client: by name; by the user with this name; by place; as one of all.
fn of_stranger(kind: &'static str, stranger: &Stranger, what: &str) -> Vec<Way> {
    let Stranger { name, uid, is_admin, from, is_place_refused } = stranger;
    let name: String = name.chars().take(100).collect();
    let place = place_of(*from);
    let empty = |what: &str| Same {
        kind,
        uid: None,
        user: String::new(),
        by: String::new(),
        from: String::new(),
        what: what.to_owned(),
    };
    let mut ways = Vec::new();
    let named = Same { uid: *uid, user: name, from: from.to_string(), ..empty(what) };
    if let Some(uid) = uid {
        // Spellings of one name, and addresses of one place, are counted together.
        let same = Same { user: String::new(), from: place.clone(), ..named.clone() };
        let places = (Bound::Places(*uid), PLACES_OF_USER);
        let rest = format!("{what} (from more addresses than are distinguished)");
        let (mut bounds, mut purse) = (vec![places], Paid::Free);
        if !is_admin {
            bounds.push((Bound::Users(place.clone()), USERS_OF_PLACE));
            purse = Paid::Named;
        }
        let by_user = Same { from: String::new(), ..named.clone() };
        ways.push(Way { same, ..way(named, what.to_owned(), (bounds, purse)) });
        let same = Same { user: String::new(), ..by_user.clone() };
        ways.push(Way { same, ..way(by_user, rest, (Vec::new(), purse)) });
    } else if !is_place_refused {
        let same = Same { from: place.clone(), ..named.clone() };
        let names = (Bound::Names(place.clone()), NAMES_OF_PLACE);
        ways.push(Way { same, ..way(named, what.to_owned(), (vec![names], Paid::Strange)) });
    }
    let what = if *is_place_refused { what } else { MANY_NAMES };
    ways.push(way(Same { from: place, ..empty(what) }, what.to_owned(), (Vec::new(), Paid::Strange)));
    ways.push(way(empty(MANY_NAMES), MANY_NAMES.to_owned(), (Vec::new(), Paid::Free)));
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(name: &str, from: IpAddr) -> Stranger {
        Stranger { name: name.to_owned(), uid: None, is_admin: false, from, is_place_refused: false }
    }

    fn address(number: usize) -> IpAddr {
        let [_, _, _, _, a, b, c, d] = number.to_be_bytes();
        IpAddr::from([10 + a, b, c, d])
    }

    fn who(uid: i32) -> Actor {
        Actor { uid, user: format!("u{uid}"), by: String::new(), from: "192.0.2.7".into() }
    }

    fn taken(acts: &mut tokio::sync::mpsc::Receiver<Act>) -> Vec<Act> {
        std::iter::from_fn(|| acts.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn a_flood_is_recorded_with_its_number() {
        let (acts, mut from) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        let start = Instant::now();
        let fail = |name: &str, at| {
            recorder.count(of_stranger("login-failed", &stranger(name, address(1)), "x"), INTERVAL, at)
        };
        for _ in 0..1000 {
            fail("bob", start);
        }
        fail("eve", start);
        recorder.flush_at(start + INTERVAL / 2);
        recorder.flush_at(start + INTERVAL);
        let found: Vec<_> = taken(&mut from).into_iter().map(|act| (act.user, act.count)).collect();
        assert_eq!(found, [("bob".to_owned(), 1), ("eve".to_owned(), 1), ("bob".to_owned(), 999)]);
        fail("bob", start + INTERVAL);
        assert_eq!(from.try_recv().map(|act| act.count), Ok(1), "recorded immediately again");
    }

    #[tokio::test]
    async fn p14_what_was_done_just_before_the_end_is_waited_for() {
        let (acts, _from) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        assert!(!recorder.flush_all(INTERVAL), "no action to record");
        recorder.note("restart", &who(7), "x");
        assert!(recorder.flush_all(INTERVAL) && !recorder.flush_all(Duration::ZERO));
        recorder.note("restart", &who(7), "x");
        recorder.note("restart", &who(7), "x");
        assert!(recorder.flush_all(Duration::ZERO), "the count has changed");
    }

    #[tokio::test]
    async fn p14_what_strangers_do_hides_nothing_of_others() {
        let (acts, mut from) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        for n in 0..10_000 {
            let is_place_refused = n > 100;
            let one = Stranger { is_place_refused, ..stranger(&format!("made-up-{n}"), address(1)) };
            recorder.note_login("login-failed", &one, "x");
        }
        assert!(taken(&mut from).len() <= NAMES_OF_PLACE + 3, "unauthenticated clients cause few records");
        recorder.note("download", &who(7), "/a");
        recorder.note_token(&who(8), uuid::Uuid::nil(), "t");
        let admin =
            |n| Stranger { uid: Some(1), is_admin: true, is_place_refused: true, ..stranger("admin", address(n)) };
        recorder.note_login("login-throttled", &admin(1), "x");
        let seen: Vec<_> = taken(&mut from).into_iter().map(|act| (act.kind, act.uid, act.user, act.from)).collect();
        let text = |text: &str| text.to_owned();
        assert_eq!(
            seen,
            [
                (text("download"), Some(7), text("u7"), text("192.0.2.7")),
                (text("token"), Some(8), text("u8"), text("192.0.2.7")),
                (text("login-throttled"), Some(1), text("admin"), text("10.0.0.1")),
            ]
        );
    }

    #[tokio::test]
    async fn p14_a_user_who_does_much_stays_named() {
        let (acts, mut from) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        for n in 0..10_000 {
            recorder.note_refused("download", &who(7), format!("/made-up/{n}"));
        }
        recorder.note("download", &who(7), "/what-was-there");
        for n in 0..10_000 {
            recorder.note("download", &Actor { from: n.to_string(), ..who(7) }, format!("/{n}"));
            recorder.note_token(&who(7), uuid::Uuid::nil(), &format!("renamed {n}"));
        }
        let seen = taken(&mut from);
        assert!(seen.iter().all(|act| act.uid == Some(7) && act.user == "u7"));
        assert!(seen.iter().any(|act| act.what == "/what-was-there"), "rejections do not displace it");
        assert!(seen.iter().filter(|act| act.kind == "token").count() == 1, "a renamed token is the same token");
        assert!(seen.len() <= ACTS_OF_USER + REFUSALS_OF_USER + ADDRESSES_OF_USER + 4, "{}", seen.len());
        recorder.note("download", &who(8), "/of another");
        assert_eq!(from.try_recv().map(|act| act.what), Ok("/of another".to_owned()));
    }

    #[tokio::test]
    async fn p14_strangers_from_everywhere_cause_a_bounded_number_of_records() {
        let (acts, mut from) = Acts::for_tests();
        let (recorder, start) = (Recorder::new(acts), Instant::now());
        let mut records = 0;
        let mut of_admin = 0;
        for minute in 0..10u32 {
            let now = start + INTERVAL * minute;
            for n in 0..5000 {
                let one = stranger(&format!("{minute}-{n}"), address(n));
                recorder.count(of_stranger("login-failed", &one, "x"), INTERVAL, now);
                let user = i32::try_from(n % 500).expect("small") + 1;
                let one = Stranger { uid: Some(user), is_admin: user == 1, ..stranger("a user", address(n)) };
                recorder.count(of_stranger("login-failed", &one, "x"), INTERVAL, now);
                let seen = taken(&mut from);
                of_admin += seen.iter().filter(|act| act.uid == Some(1)).count();
                records += seen.len();
            }
            recorder.flush_at(now + INTERVAL);
            records += taken(&mut from).len();
        }
        // The initial burst, the rate over ten minutes, and one repetition count for each of them.
        assert!(records < 2 * (3000 + 25 * 60 + 400), "{records}");
        assert!(of_admin >= 10, "the administrator is recorded in each minute: {of_admin}");
        let books = recorder.books();
        assert!(books.counted.is_empty() && books.used.is_empty(), "no counts remain");
    }
}
