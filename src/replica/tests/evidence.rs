//! Retention of states that were kept aside.

use std::path::{Path, PathBuf};

use super::super::directory::damaged_in;
use super::super::evidence::prune;
use super::{directory, state, state_in};
use gravwell_state::StateStore;

/// Creates one sound copy, and after it three empty ones.
fn copies(path: &Path) -> PathBuf {
    let home = directory(path);
    let first = home.new_state().expect("makes");
    drop(state_in(&first, 1, 5, "a"));
    let sound = home.set_aside(&first).expect("renames");
    for _ in 0..3 {
        let empty = home.new_state().expect("makes");
        std::fs::write(empty.join("keyspaces"), "not written by the engine").expect("writes");
        home.set_aside(&empty).expect("renames");
    }
    sound
}

#[test]
fn p13_the_last_sound_copy_of_what_the_state_lacks_is_never_removed() {
    let present = |number, seq| {
        let store = StateStore::in_memory();
        state(&store, number, seq, "a");
        store.meta().expect("has one")
    };
    for (sound, stays) in
        [(None, true), (Some(present(1, 4)), true), (Some(present(2, 9)), true), (Some(present(1, 6)), false)]
    {
        let temp = tempfile::tempdir().expect("temp dir");
        let copy = copies(temp.path());
        for _ in 0..2 {
            prune(&directory(temp.path()), 2, sound.as_deref()).expect("prunes");
            let mut kept: Vec<u64> = damaged_in(temp.path()).into_iter().map(|(number, _)| number).collect();
            kept.sort_unstable();
            assert_eq!(kept, if stays { vec![1, 3, 4] } else { vec![3, 4] });
        }
        assert_eq!(copy.is_dir(), stays);
        if stays {
            let again = StateStore::open(&copy, super::CACHE_BYTES).expect("is sound");
            assert_eq!(again.meta().map(|meta| meta.seq.0), Some(5));
        }
    }
}

#[test]
fn p13_a_copy_that_has_aborted_a_process_is_not_opened_again() {
    let temp = tempfile::tempdir().expect("temp dir");
    let copy = copies(temp.path());
    std::fs::write(copy.join("aborts"), "X").expect("writes");
    prune(&directory(temp.path()), 2, None).expect("prunes");
    assert_eq!(damaged_in(temp.path()).len(), 2);
}
