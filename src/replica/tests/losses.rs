//! Reaction of a running replica to a state that lacks something, or cannot be read.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::applier::{Applier, Request};
use super::super::directory::StateStorage;
use super::super::disk::Disk;
use super::super::high_water_mark::Mark;
use super::super::opening::Lost;
use super::super::shared::{LinkStatus, ReplicaState};
use super::{applier, entry, state};
use gravwell_model::codec::health::Code;
use gravwell_model::codec::message::Bookmark;
use gravwell_model::{Chain, Collection, Key, Position, Seq};
use gravwell_protocol::outbox::Outbox;
use gravwell_protocol::tail::EntryBatch;
use gravwell_state::{StateError, StateStore};

/// Keeps the mark in memory.
#[derive(Clone, Default)]
struct Marked(Arc<Mutex<Option<Mark>>>);

impl Marked {
    fn seq(&self) -> Option<u64> {
        self.0.lock().expect("whole").as_ref().map(|mark| mark.seq().0)
    }
}

impl StateStorage for Marked {
    fn make_current(&mut self, _: &std::path::Path) -> Result<(), String> {
        Ok(())
    }

    fn is_current(&self, _: &std::path::Path) -> bool {
        true
    }

    fn remove_others(&mut self, _: &std::path::Path) -> Result<(), String> {
        Ok(())
    }

    fn mark(&self) -> Result<Option<Mark>, String> {
        Ok(self.0.lock().expect("whole").clone())
    }

    fn set_mark(&mut self, mark: Option<&Mark>) -> Result<(), String> {
        *self.0.lock().expect("whole") = mark.cloned();
        Ok(())
    }
}

fn at(seq: u64) -> StateStore {
    let store = StateStore::in_memory();
    state(&store, 1, seq, "a");
    store
}

fn marked(seq: u64) -> (Marked, Mark) {
    let mark = Mark::new(String::new(), at(seq).position().expect("has one"), Vec::new());
    (Marked(Arc::new(Mutex::new(Some(mark.clone())))), mark)
}

fn apply(applier: &mut Applier, seq: u64) {
    let run = EntryBatch { entries: vec![entry(seq, "a")], chain: Chain::default() };
    applier.handle(Request::Run(run)).expect("handles the request");
}

fn compare(applier: &mut Applier, shared: &ReplicaState) {
    let Position { seq, digest, .. } = shared.position().expect("has one");
    applier.handle(Request::Bookmark(Bookmark { seq, digest })).expect("handles the request");
}

fn persist(applier: &mut Applier) {
    let (reply, _answer) = tokio::sync::oneshot::channel();
    applier.handle(Request::Persist(reply)).expect("persists");
}

#[test]
fn p09_a_loss_is_made_up_only_by_an_equal_digest_beyond_the_mark() {
    let (home, mark) = marked(5);
    let (mut applier, shared) = applier(at(3), home.clone());
    shared.set_lost(Some(Lost { message: "the state went back".into(), mark: Some(mark) }));
    shared.update_link(|link| (link.connected, link.head) = (true, Seq(3)));
    compare(&mut applier, &shared);
    persist(&mut applier);
    assert_eq!(home.seq(), Some(5), "the mark is kept");
    assert!(shared.lost().expect("still lost").contains("datastore lacks"), "{:?}", shared.lost());
    for seq in 4..=6 {
        apply(&mut applier, seq);
    }
    persist(&mut applier);
    assert!(shared.lost().is_some() && home.seq() == Some(5), "a sequence alone proves nothing");
    compare(&mut applier, &shared);
    persist(&mut applier);
    assert_eq!((shared.lost(), home.seq()), (None, Some(6)));
}

#[test]
fn p09_the_mark_of_one_history_is_never_lowered() {
    let (home, _) = marked(5);
    let (mut applier, shared) = applier(at(3), home.clone());
    apply(&mut applier, 4);
    compare(&mut applier, &shared);
    persist(&mut applier);
    assert_eq!(home.seq(), Some(5));
    apply(&mut applier, 5);
    apply(&mut applier, 6);
    persist(&mut applier);
    assert_eq!(home.seq(), Some(6));
}

#[test]
fn p02_nothing_is_applied_after_a_run_that_was_left_out() {
    let temp = tempfile::tempdir().expect("temp dir");
    let shared = Arc::new(ReplicaState::new(at(3), Outbox::default(), None).on(Disk::new(temp.path(), u64::MAX, 0)));
    let mut applier = Applier::new(Arc::clone(&shared), Box::new(Marked::default()), tokio::sync::mpsc::channel(8).0);
    shared.is_closing.store(true, Ordering::Release);
    apply(&mut applier, 4);
    shared.disk.set_free_min(0);
    apply(&mut applier, 5);
    apply(&mut applier, 6);
    assert_eq!(shared.position().map(|position| position.seq), Some(Seq(3)));
    assert!(!shared.wants_resync(), "{}", shared.problem());
}

#[test]
fn p09_a_state_that_is_opened_again_is_never_read_as_an_empty_one() {
    let shared = ReplicaState::new(at(3), Outbox::default(), None);
    let position = shared.position();
    let (collection, key) = (Collection::new("c").expect("name"), Key::new("2").expect("key"));
    let is_refused = || {
        let got = shared.get(&collection, &key).expect_err("is not readable");
        let listed = shared.scan(&collection, "", None, 10).expect_err("is not readable");
        assert!(got.is_passing() && listed.is_passing(), "{got}");
        assert_eq!(shared.position(), position, "the position is known nevertheless");
        assert!(!shared.wants_resync(), "{}", shared.problem());
    };
    let stopped = || StateError::NotNow { dir: "state".into(), cause: "no space".into() };
    // Read by the very thread that opens it: no lock may be held at that time.
    let opened = shared.reopen_state(stopped(), || {
        is_refused();
        Ok(at(3))
    });
    opened.expect("opens");
    assert!(shared.get(&collection, &key).expect("reads").is_some());
    let failed = shared.reopen_state(stopped(), || Err(StateError::Uninitialised));
    assert!(failed.is_err());
    is_refused();
}

#[test]
fn p14_what_is_not_taken_in_for_long_is_told() {
    let (mut applier, shared) = applier(at(3), Marked::default());
    let stalled = |shared: &ReplicaState| shared.reasons().iter().any(|reason| reason.code == Code::IntakeStalled);
    let long_ago = |shared: &ReplicaState| {
        let mut link = shared.link();
        link.behind =
            link.behind.map(|(at, _)| (at, Instant::now().checked_sub(Duration::from_secs(11)).expect("later")));
        shared.update_link(|kept| *kept = link);
    };
    shared.update_link(|link| (link.is_welcome, link.head) = (true, Seq(5)));
    assert!(!stalled(&shared), "the stall has just started");
    long_ago(&shared);
    // Learning of more entries is no progress.
    shared.update_link(|link| (link.connected, link.head) = (true, Seq(6)));
    assert!(stalled(&shared));
    apply(&mut applier, 4);
    assert!(!stalled(&shared), "entries are applied again");
    long_ago(&shared);
    assert!(stalled(&shared));
    shared.update_link(LinkStatus::disconnect);
    assert!(!stalled(&shared), "a disconnected member has nothing to apply");
    shared.update_link(|link| (link.connected, link.head) = (true, Seq(4)));
    assert!(!stalled(&shared) && shared.link().behind.is_none(), "level");
}
