//! Tests of the replacement of a damaged log by a new one, on a file system with simulated crashes.

use super::*;
use crate::format::HEADER_BYTES;
use crate::repair::{BuildError, LOG, Reach, Start, build, finish_swap, reach, swap};
use crate::salvage::{Salvage, salvage};
use gravwell_model::Chain;
use gravwell_model::codec::frame::CHAIN_START;

fn place() -> PathBuf {
    PathBuf::from("/d")
}

fn at(name: &str) -> PathBuf {
    place().join(name)
}

fn open_at(fs: &MemoryFs, name: &str) -> Result<(Log, RecoveryReport), OpenError> {
    Log::open(Arc::new(fs.clone()), &at(name), options(1500))
}

fn filled(count: u64) -> (MemoryFs, Vec<Entry>, Vec<Chain>) {
    let fs = MemoryFs::new();
    let (mut log, _) = open_at(&fs, LOG).expect("creates");
    let all = fill(&mut log, count);
    let chains = log.reader().chained_entries(Seq(0), Seq(count)).map(|item| item.expect("reads").1);
    let chains = std::iter::once(CHAIN_START).chain(chains).collect();
    log.close().expect("closes");
    (fs, all, chains)
}

fn examine(fs: &MemoryFs) -> Salvage {
    salvage(fs, &at(LOG), &mut |_, _| {}).expect("reads")
}

/// Builds a new log on the state at `seq`; all entries are live, because each one writes a different object.
fn rebuilt(fs: &MemoryFs, all: &[Entry], chains: &[Chain], seq: u64) -> Result<Reach, BuildError<ReadError>> {
    let old = examine(fs);
    let head = old.head.clone().expect("a head file");
    let start = Start {
        log_id: head.log_id,
        generation: head.generation,
        lineage: head.lineage,
        seq: Seq(seq),
        chain: chains[seq as usize],
        time_ms: 1_000 + seq,
        deletions_after: Seq::ZERO,
    };
    let base = all[..seq as usize].iter().cloned().map(Ok);
    build(fs, &at("log.new"), &start, base, &old, 1500)
}

fn damage_first_segment(fs: &MemoryFs) -> String {
    let first = fs.list(&at(LOG)).unwrap().into_iter().find(|name| name.starts_with("seg-")).unwrap();
    fs.flip_bit(&at(LOG).join(&first), 700, 3).unwrap();
    first
}

#[test]
fn p10_records_behind_the_damage_are_carried_over_byte_for_byte() {
    let (fs, all, chains) = filled(60);
    let frame_of = |log: &Log, seq| log.reader().read_record(Seq(seq)).unwrap().unwrap().bytes;
    let before: Vec<_> = {
        let (log, _) = open_at(&fs, LOG).expect("opens");
        (21..=60).map(|seq| frame_of(&log, seq)).collect()
    };
    let name = damage_first_segment(&fs);
    let old = examine(&fs);
    assert_eq!((old.damages[0].file.as_str(), old.known), (name.as_str(), Some(Seq(60))));
    let built = rebuilt(&fs, &all, &chains, 20).expect("builds");
    assert_eq!(built, Reach { head: Seq(60), chain: chains[60], carried: 40 });
    assert_eq!(reach(&old, (Seq(20), chains[20])).expect("reads"), built);
    assert_eq!(swap(&fs, &place()).expect("swaps"), Some(at("log.damaged-1")));
    let (mut log, report) = open_at(&fs, LOG).expect("opens");
    assert_eq!((log.head(), log.horizon()), ((Seq(60), chains[60]), Seq(20)));
    assert_eq!(report.quarantined, Vec::<String>::new());
    let after: Vec<_> = (21..=60).map(|seq| frame_of(&log, seq)).collect();
    assert_eq!(after, before);
    let history: Vec<_> = log.reader().history(Seq(60)).collect::<Result<_, _>>().expect("reads");
    assert_eq!(history, all);
    assert!(log.reader().verify(&mut |_, _| {}).expect("verifies").is_good());
    fill(&mut log, 10);
    let (mut index, target) = (MemoryLiveness::default(), Seq(50));
    let options = CompactionOptions { garbage_ratio: 0.0, segment_bytes: 1500, dry_run: false };
    Compaction::new(log.reader(), &mut index, target, options).expect("begins").run().expect("compacts");
    assert_eq!(log.reader().history(Seq(70)).count(), 70);
}

#[test]
fn p05_another_history_is_contradicted() {
    let (fs, _, chains) = filled(40);
    damage_first_segment(&fs);
    let old = examine(&fs);
    for seq in [25, 40] {
        assert_eq!(old.contradiction(Seq(seq), chains[seq as usize]).expect("reads"), None);
        assert!(old.contradiction(Seq(seq), [7; 16]).expect("reads").is_some(), "{seq}");
        assert_eq!(reach(&old, (Seq(seq), [7; 16])).expect("reads").head, Seq(seq));
    }
}

#[test]
fn p10_a_lost_end_is_known_from_the_head_file() {
    let (fs, _, chains) = filled(40);
    let open = fs.list(&at(LOG)).unwrap().into_iter().find(|name| name.contains("open")).unwrap();
    let path = at(LOG).join(open);
    fs.open(&path).unwrap().set_len(HEADER_BYTES as u64 + 20).unwrap();
    let old = examine(&fs);
    assert!(!old.is_good());
    assert_eq!(old.known, Some(Seq(40)));
    assert!(reach(&old, (Seq(10), chains[10])).expect("reads").head < Seq(40));
}

#[test]
fn p10_a_crash_at_any_operation_leaves_the_old_log_or_the_new_one() {
    let (damaged, all, chains) = filled(40);
    damage_first_segment(&damaged);
    let work = |fs: &MemoryFs| -> Option<()> {
        finish_swap(fs, &place()).ok()?;
        if examine(fs).is_good() {
            return Some(());
        }
        rebuilt(fs, &all, &chains, 20).ok()?;
        swap(fs, &place()).ok()?;
        Some(())
    };
    let whole = damaged.crash(Survival::Everything, 0);
    work(&whole).expect("repairs");
    let (mut old, mut new) = (0, 0);
    for stop in 0..whole.operations() {
        let fs = damaged.crash(Survival::Everything, 0);
        fs.fail_at(stop, Fault::Stop);
        work(&fs);
        for survival in [Survival::Nothing, Survival::Everything, Survival::Prefix, Survival::Sectors] {
            let after = fs.crash(survival, stop);
            finish_swap(&after, &place()).expect("finishes");
            match open_at(&after.crash(Survival::Everything, 0), LOG) {
                Ok((log, _)) => {
                    assert_eq!(log.head(), (Seq(40), chains[40]), "{stop} {survival:?}");
                    new += 1;
                }
                Err(OpenError::Damaged { .. }) => old += 1,
                Err(error) => panic!("{stop} {survival:?}: {error}"),
            }
            // Running the same command again completes the repair.
            work(&after).expect("repairs");
            let (log, _) = open_at(&after, LOG).expect("opens");
            assert_eq!(log.reader().history(Seq(40)).map(Result::unwrap).collect::<Vec<_>>(), all);
            let kept = fs.exists(&at("log.damaged-1")).unwrap() || after.exists(&at("log.damaged-1")).unwrap();
            assert!(kept, "{stop} {survival:?}");
        }
    }
    assert!(old > 0 && new > 0, "{old} {new}");
}
