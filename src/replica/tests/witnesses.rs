//! A state and its high-water mark that are lost, or go back, together: other files in the directory show it.

use std::fs;
use std::path::Path;

use super::super::directory::StateStorage;
use super::super::high_water_mark::Mark;
use super::super::opening;
use super::super::proofs::StoredProof;
use super::super::terms::Terms;
use super::{CACHE_BYTES, directory, state, state_in};
use gravwell_model::{Generation, LogId, Position};
use gravwell_state::StateStore;
use gravwell_transport::trust::{Authority, Proof};

fn position(seq: u64) -> Position {
    let store = StateStore::in_memory();
    state(&store, 1, seq, "a");
    store.position().expect("has one")
}

fn mark(home: &Path, position: Position) {
    directory(home).set_mark(Some(&Mark::new("state-0001".into(), position, Vec::new()))).expect("marks");
}

/// Stores a proof: the datastore has signed 9, and the last mark was at `reached`.
fn prove(home: &Path, reached: u64) {
    let authority = Authority::open_or_create(&home.join("authority"), 1_800_000_000_000).expect("makes");
    let proof = Proof::sign(&authority, position(9), 1).expect("signs");
    StoredProof { proof, reached: Some(position(reached)) }.save(home).expect("saves");
}

/// Returns the loss reported for a directory in which a state at 5 was shown, and which was changed since then.
fn said_after(change: impl FnOnce(&Path, &Path)) -> Option<String> {
    let temp = tempfile::tempdir().expect("temp dir");
    let home = temp.path();
    let place = directory(home).new_state().expect("makes");
    drop(state_in(&place, 1, 5, "a"));
    directory(home).make_current(&place).expect("current");
    mark(home, position(5));
    Terms::example().save(home).expect("saves");
    change(home, &place);
    let lost = || opening::open(&directory(home), CACHE_BYTES).expect("opens").lost;
    let first = lost();
    let second = lost();
    assert_eq!(
        first.is_some(),
        second.is_some(),
        "a second start reports the same as the first: {first:?}, {second:?}"
    );
    first.map(|lost| lost.message)
}

#[test]
fn p13_a_state_that_is_lost_with_its_mark_is_missed() {
    let remove = |names: &[&str]| {
        said_after(|home, place| {
            fs::remove_dir_all(place).expect("removes");
            names.iter().for_each(|name| fs::remove_file(home.join(name)).expect("removes"));
        })
    };
    assert_eq!(said_after(|_, _| {}), None);
    let lost: [&[&str]; 6] =
        [&[], &["high-water"], &["high-water", "current"], &["current", "terms"], &["terms"], &["high-water", "terms"]];
    for names in lost {
        assert!(remove(names).is_some_and(|said| said.contains("the state is lost")), "{names:?}");
    }
    assert_eq!(remove(&["high-water", "current", "terms"]), None, "no evidence is left");
}

#[test]
fn p13_a_state_that_went_back_with_its_mark_is_missed() {
    let back = |witness: &dyn Fn(&Path)| {
        said_after(|home, place| {
            fs::remove_dir_all(place).expect("removes");
            drop(state_in(place, 1, 3, "a"));
            mark(home, position(3));
            witness(home);
        })
    };
    assert_eq!(back(&|_| {}), None, "no evidence is left");
    let terms = |terms: Terms| move |home: &Path| terms.save(home).expect("saves");
    let (mut later, mut other) = (Terms::example(), Terms::example());
    later.generation = Generation(2);
    other.log_id = LogId([9; 16]);
    assert!(back(&terms(later)).is_some_and(|said| said.contains("generation 2")));
    assert!(back(&terms(other)).is_some_and(|said| said.contains("connected to log")));
    assert!(back(&|home| prove(home, 5)).is_some_and(|said| said.contains("sequence 5")));
    assert_eq!(back(&|home| prove(home, 3)), None, "a signed position that had not arrived is no loss");
    let named = back(&|home| directory(home).make_current(&home.join("state-0002")).expect("names"));
    assert!(named.is_some_and(|said| said.contains("state-0002")));
    assert_eq!(back(&|home| directory(home).make_current(&home.join("state-0000")).expect("names")), None);
}
