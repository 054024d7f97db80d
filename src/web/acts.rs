//! What happens at this webserver and is no transaction, for the audit: failed logins, tokens that are used, downloads.
//!
//! What is repeated is recorded at once the first time, and then once in an interval, with how often it happened.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::codec::audit::Act;
use crate::env::{Clock, SystemClock};
use crate::replica::acts::Acts;

use super::caller::Caller;

/// How long the same act is counted instead of being recorded again.
const INTERVAL: Duration = Duration::from_secs(60);
/// The same for the use of a token.
const TOKEN_INTERVAL: Duration = Duration::from_secs(3600);
/// Acts that are counted at the same time. Further ones are counted together.
const COUNTED_MAX: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Same {
    kind: &'static str,
    user: String,
    by: String,
    from: String,
    what: String,
}

struct Counted {
    since: Instant,
    interval: Duration,
    act: Act,
    /// How often since it was recorded.
    count: u64,
}

/// Records acts.
pub(super) struct Recorder {
    acts: Acts,
    counted: Mutex<HashMap<Same, Counted>>,
}

/// Who does something.
#[derive(Clone, Debug, Default)]
pub(super) struct Who {
    pub uid: Option<i32>,
    pub user: String,
    pub by: String,
    pub from: String,
}

impl From<&Caller> for Who {
    fn from(caller: &Caller) -> Who {
        let author = caller.author();
        Who { uid: Some(author.uid), user: author.user, by: author.su, from: author.from }
    }
}

impl Who {
    /// Somebody who has only given a name.
    pub(super) fn named(uid: Option<i32>, user: &str, from: IpAddr) -> Who {
        Who { uid, user: user.chars().take(100).collect(), by: String::new(), from: from.to_string() }
    }
}

impl Recorder {
    pub(super) fn new(acts: Acts) -> Recorder {
        Recorder { acts, counted: Mutex::default() }
    }

    /// Records an act; one that is repeated is counted.
    pub(super) fn note(&self, kind: &'static str, who: Who, what: impl Into<String>) {
        self.count(kind, who, what.into(), INTERVAL, Instant::now());
    }

    /// Records that a token is used, the first time in an interval.
    pub(super) fn note_token(&self, who: Who, what: String) {
        self.count("token", who, what, TOKEN_INTERVAL, Instant::now());
    }

    fn count(&self, kind: &'static str, who: Who, what: String, interval: Duration, now: Instant) {
        let Who { uid, user, by, from } = who;
        let act = Act {
            kind: kind.into(),
            happened_ms: SystemClock.now_ms(),
            uid,
            user: user.clone(),
            by: by.clone(),
            from: from.clone(),
            what: what.clone(),
            count: 1,
            id: String::new(),
        };
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let mut same = Same { kind, user, by, from, what };
        let mut act = act;
        if counted.len() >= COUNTED_MAX && !counted.contains_key(&same) {
            let many = "of too many different users or addresses to be told apart".to_owned();
            same = Same { user: String::new(), by: String::new(), from: String::new(), what: many.clone(), ..same };
            act = Act { uid: None, user: String::new(), by: String::new(), from: String::new(), what: many, ..act };
        }
        if let Some(known) = counted.get_mut(&same) {
            known.count += 1;
            known.act.happened_ms = act.happened_ms;
            return;
        }
        counted.insert(same, Counted { since: now, interval, act: act.clone(), count: 0 });
        drop(counted);
        self.acts.note(act);
    }

    /// Records how often acts were repeated whose interval is over; called now and then.
    pub(super) fn flush(&self) {
        self.flush_at(Instant::now());
    }

    /// Records how often acts were repeated, whatever their interval; whether there was any.
    pub(super) fn flush_all(&self) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let repeated = counted.drain().map(|(_, known)| known).filter(|known| known.count > 0);
        let acts: Vec<Act> = repeated.map(|known| Act { count: known.count, ..known.act }).collect();
        drop(counted);
        let is_any = !acts.is_empty();
        acts.into_iter().for_each(|act| self.acts.note(act));
        is_any
    }

    fn flush_at(&self, now: Instant) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        counted.retain(|_, known| {
            let is_over = now.saturating_duration_since(known.since) >= known.interval;
            if is_over && known.count > 0 {
                self.acts.note(Act { count: known.count, ..known.act.clone() });
            }
            !is_over
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: &str) -> Who {
        Who::named(None, user, IpAddr::from([192, 0, 2, 1]))
    }

    #[tokio::test]
    async fn a_flood_is_recorded_with_its_number() {
        let (acts, mut taken) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        let start = Instant::now();
        for _ in 0..1000 {
            recorder.count("login-failed", who("bob"), "x".into(), INTERVAL, start);
        }
        recorder.count("login-failed", who("eve"), "x".into(), INTERVAL, start);
        recorder.flush_at(start + INTERVAL / 2);
        recorder.flush_at(start + INTERVAL);
        let found: Vec<_> = std::iter::from_fn(|| taken.try_recv().ok()).map(|act| (act.user, act.count)).collect();
        assert_eq!(found, [("bob".to_owned(), 1), ("eve".to_owned(), 1), ("bob".to_owned(), 999)]);
        recorder.count("login-failed", who("bob"), "x".into(), INTERVAL, start + INTERVAL);
        assert_eq!(taken.try_recv().map(|act| act.count), Ok(1), "at once again");
    }

    #[tokio::test]
    async fn what_is_counted_is_bounded() {
        let (acts, mut taken) = Acts::for_tests();
        let recorder = Recorder::new(acts);
        for n in 0..COUNTED_MAX + 10 {
            recorder.note("login-failed", who(&n.to_string()), "x");
            while taken.try_recv().is_ok() {}
        }
        assert!(recorder.counted.lock().expect("not poisoned").len() <= COUNTED_MAX + 1);
    }
}
