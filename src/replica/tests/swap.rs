//! A replica that stops at any step of putting a fetched state in place.

use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::super::applier::{Descent, Request};
use super::super::directory::{Directory, StateStorage};
use super::super::high_water_mark::Mark;
use super::super::opening;
use super::super::terms::Terms;
use super::*;
use crate::outbox_writer;
use gravwell_model::{Position, Reason};

/// Stops after this many steps: nothing is written any more.
struct Ending {
    home: Directory,
    steps: usize,
}

impl Ending {
    fn step(&mut self) -> Result<(), String> {
        self.steps = self.steps.checked_sub(1).ok_or("process exited")?;
        Ok(())
    }
}

impl StateStorage for Ending {
    fn make_current(&mut self, path: &Path) -> Result<(), String> {
        self.step()?;
        StateStorage::make_current(&mut self.home, path)
    }

    fn is_current(&self, path: &Path) -> bool {
        self.home.is_current(path)
    }

    fn remove_others(&mut self, keep: &Path) -> Result<(), String> {
        self.step()?;
        StateStorage::remove_others(&mut self.home, keep)
    }

    fn mark(&self) -> Result<Option<Mark>, String> {
        self.home.mark()
    }

    fn set_mark(&mut self, mark: Option<&Mark>) -> Result<(), String> {
        self.step()?;
        self.home.set_mark(mark)
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Generation, sequence and value of the present state; `None` if none was ever fetched.
    former: Option<(u64, u64, &'static str)>,
    next: (u64, u64, &'static str),
    descent: Descent,
}

/// Puts the next state in place, stops after `steps`, and starts again, which must not report a loss. Returns the
/// position found, the former one, and that of the next state.
fn after(case: Case, steps: usize) -> (Option<Position>, Option<Position>, Option<Position>) {
    let temp = tempfile::tempdir().expect("temp dir");
    let mut home = directory(temp.path());
    if case.former.is_some() {
        Terms::example().save(temp.path()).expect("saves");
    }
    let place = home.new_state().expect("makes");
    let present = match case.former {
        None => StateStore::open(&place, CACHE_BYTES).expect("opens"),
        Some((number, seq, value)) => state_in(&place, number, seq, value),
    };
    home.make_current(&place).expect("current");
    let former = present.position();
    if let Some(position) = former {
        home.set_mark(Some(&Mark::new("state-0001".into(), position, Vec::new()))).expect("marks");
    }
    let side = home.new_state().expect("makes");
    let (number, seq, value) = case.next;
    let next = state_in(&side, number, seq, value);
    let wanted = next.position();
    let (worker, shared) = applier(present, Ending { home, steps });
    let mut worker = worker.at(place, CACHE_BYTES);
    let (reply, _answer) = oneshot::channel();
    let _ = worker.handle(Request::Swap(next, PathBuf::from(&side), case.descent, reply));
    drop((worker, shared));
    let home = directory(temp.path());
    let opened = opening::open(&home, CACHE_BYTES).expect("opens again");
    assert!(opened.lost.is_none(), "{case:?} after {steps} steps: {:?}", opened.lost);
    // A second start finds the same.
    let found = opened.state.position();
    drop((opened, home));
    let again = opening::open(&directory(temp.path()), CACHE_BYTES).expect("opens a second time");
    assert!(again.lost.is_none() && again.state.position() == found, "{case:?} after {steps} steps");
    (found, former, wanted)
}

#[test]
fn p10_a_swap_that_ends_at_any_step_leaves_the_one_state_or_the_other_and_no_doubt() {
    let case = |former, next, descent| Case { former, next, descent };
    let cases = [
        case(Some((1, 3, "a")), (1, 5, "a"), Descent::Required),
        // The same sequence with other contents: the former state was wrong.
        case(Some((1, 3, "a")), (1, 3, "b"), Descent::Required),
        // Unrelated generation numbers, and an earlier sequence.
        case(Some((1, 5, "a")), (9, 3, "b"), Descent::Archived),
        case(None, (1, 5, "a"), Descent::Required),
    ];
    for case in cases {
        let mut is_new = false;
        for steps in 0..=3 {
            let (found, former, wanted) = after(case, steps);
            assert!(found == wanted || (found == former && !is_new), "{case:?} after {steps} steps: {found:?}");
            is_new = found == wanted;
            assert_eq!(is_new, steps > 0, "{case:?}: the marked state is used, after {steps} steps");
        }
    }
}

#[test]
fn p13_a_state_that_cannot_be_compared_with_its_successor_is_kept() {
    for is_readable in [true, false] {
        let temp = tempfile::tempdir().expect("temp dir");
        let home = directory(temp.path());
        let place = home.new_state().expect("makes");
        let present = state_in(&place, 1, 3, "a");
        home.make_current(&place).expect("current");
        if !is_readable {
            present.damage_origin(Origin([1; 16]));
        }
        let side = home.new_state().expect("makes");
        let next = state_in(&side, 1, 5, "a");
        let (worker, shared) = applier(present, home);
        let mut worker = worker.at(place.clone(), CACHE_BYTES);
        let (reply, mut answer) = oneshot::channel();
        worker.handle(Request::Swap(next, side.clone(), Descent::Required, reply)).expect("goes on");
        assert!(answer.try_recv().expect("answers").is_ok());
        assert_eq!(shared.position().map(|position| position.seq), Some(Seq(5)));
        assert!(!place.exists() && side.exists());
        assert_eq!(temp.path().join("state-0001.damaged-1").exists(), !is_readable);
    }
}

#[test]
fn p13_a_member_that_never_had_a_state_has_lost_none() {
    let temp = tempfile::tempdir().expect("temp dir");
    let lost = || opening::open(&directory(temp.path()), CACHE_BYTES).expect("opens").lost.is_some();
    assert!(!lost());
    let side = directory(temp.path()).new_state().expect("makes");
    drop(StateStore::open(&side, CACHE_BYTES).expect("opens"));
    assert!(!lost(), "exited while the first state was being fetched");
    std::fs::remove_dir_all(&side).expect("removes");
    drop(state_in(&side, 1, 3, "a"));
    directory(temp.path()).make_current(&side).expect("current");
    Terms::example().save(temp.path()).expect("saves");
    assert!(lost(), "there is a state, but no mark");
}

#[test]
fn p07_an_exchange_ends_although_the_outbox_has_as_many_requests_as_it_holds() {
    let temp = tempfile::tempdir().expect("temp dir");
    let mut outbox = Outbox::default();
    let EntryBody::Commit(waits) = entry(1, "waits").body else { panic!("a commit") };
    let id = waits.id;
    outbox.insert(Arc::new(waits));
    let begins = |state: &StateStore| {
        state.init(LogId([1; 16]), Generation(1), vec![generation(1, 0)]).expect("begins");
    };
    let present = StateStore::in_memory();
    begins(&present);
    let shared = Arc::new(ReplicaState::new(present, outbox, None));
    let (requests, _outbox) = tokio::sync::mpsc::channel(1);
    requests.try_send(outbox_writer::Request::Note(Vec::new())).expect("the queue has space for one");
    let home = directory(temp.path());
    let place = home.new_state().expect("makes");
    let mut applier = Applier::new(Arc::clone(&shared), Box::new(home), requests);
    let next = StateStore::open(&place, CACHE_BYTES).expect("opens");
    begins(&next);
    let body = EntryBody::Reject { id, settled: OriginCounter(0), reason: Reason::IdentityReused };
    next.apply(&[Entry { body, ..entry(1, "none") }], Chain::default()).expect("applies");
    let (reply, _swapped) = oneshot::channel();
    let (done, ended) = std::sync::mpsc::channel();
    let swap = Request::Swap(next, place, Descent::Archived, reply);
    std::thread::spawn(move || done.send(applier.handle(swap).is_ok()));
    assert_eq!(
        ended.recv_timeout(Duration::from_secs(10)),
        Ok(true),
        "the outbox accepts no requests until the end of the exchange"
    );
    assert_eq!(shared.outbox().rejected().len(), 1);
}
