//! Tests of compaction against a plain map as the model.

use std::collections::BTreeMap;

use super::*;
use crate::compaction::{Measure, plan_groups, reachable_horizon};
use crate::liveness::{BaseChanges, BaseSummary};
use gravwell_model::deletions::{Changed, Deletions, ROWS_MAX};
use gravwell_model::{Digest, OriginRow};

type Objects = BTreeMap<(String, String), (Seq, Bytes)>;

/// State after replaying entries.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    objects: Objects,
    origins: BTreeMap<Origin, OriginRow>,
}

impl Model {
    fn apply(&mut self, entry: &Entry) {
        let (id, settled, reason) = match &entry.body {
            EntryBody::Commit(txn) => {
                for op in &txn.ops {
                    let name = (op.collection().to_string(), op.key().to_string());
                    match op.value() {
                        Some(value) => self.objects.insert(name, (entry.seq, value.clone())),
                        None => self.objects.remove(&name),
                    };
                }
                (txn.id, txn.settled, None)
            }
            EntryBody::Reject { id, settled, reason } => (*id, *settled, Some(reason.clone())),
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => return,
        };
        self.origins.entry(id.origin).or_default().record(entry.seq, id.counter, settled, reason);
    }

    fn of(entries: impl IntoIterator<Item = Entry>) -> Model {
        let mut model = Model::default();
        entries.into_iter().for_each(|entry| model.apply(&entry));
        model
    }
}

/// Generates random entries over few keys, so that most of them are soon superseded; three origins, some rejections.
struct Traffic {
    random: SmallRandom,
    counters: [u64; 3],
    rejected: [u64; 3],
}

impl Traffic {
    fn new(seed: u64) -> Traffic {
        Traffic { random: SmallRandom(seed), counters: [0; 3], rejected: [0; 3] }
    }

    fn next(&mut self, seq: u64) -> Entry {
        let who = self.random.below(3);
        self.counters[who] += 1;
        let id = TxnId { origin: Origin([who as u8; 16]), counter: OriginCounter(self.counters[who]) };
        let settled = OriginCounter(if self.random.below(3) == 0 { self.rejected[who] } else { 0 });
        if self.random.below(8) == 0 {
            self.rejected[who] = id.counter.0;
            let reason = Reason::Forbidden { message: format!("no {seq}") };
            return Entry { body: EntryBody::Reject { id, settled: OriginCounter(0), reason }, ..entry(seq, vec![]) };
        }
        let ops = (0..1 + self.random.below(3)).map(|_| {
            let key = format!("k{}", self.random.below(25));
            let length = self.random.below(60);
            if self.random.below(3) == 0 { delete(&key) } else { put(&key, vec![seq as u8; length]) }
        });
        let mut entry = entry(seq, ops.collect());
        if let EntryBody::Commit(txn) = &mut entry.body {
            (txn.id, txn.settled) = (id, settled);
        }
        entry
    }

    fn fill(&mut self, log: &mut Log, all: &mut Vec<Entry>, count: u64) {
        for _ in 0..count {
            let next = self.next(log.head().0.0 + 1);
            log.append(std::slice::from_ref(&next)).expect("appends");
            log.sync().expect("syncs");
            all.push(next);
        }
    }
}

fn compaction_options(ratio: f64) -> CompactionOptions {
    CompactionOptions { garbage_ratio: ratio, segment_bytes: 1500, dry_run: false }
}

fn compact(log: &Log, index: &mut dyn LivenessIndex, target: u64, ratio: f64) -> CompactionReport {
    let compaction = Compaction::new(log.reader(), index, Seq(target), compaction_options(ratio)).expect("begins");
    compaction.run().expect("compacts")
}

/// Checks that the state at every sequence from the horizon on equals that of the model.
fn check(log: &Log, all: &[Entry], context: &str) {
    let (reader, horizon) = (log.reader(), log.horizon().0);
    let base: Vec<_> = reader.base_entries().collect::<Result<_, _>>().expect("reads");
    let mut found = Model::of(base);
    let mut expected = Model::of(all.iter().take(horizon as usize).cloned());
    assert_eq!(found, expected, "{context}: at the horizon {horizon}");
    assert_eq!(reader.base().expect("reads").origins, expected.origins, "{context}");
    // The author of an existing object can be looked up, however old the object is.
    for (written, _) in expected.objects.values() {
        let entry = reader.entry(*written).expect("reads").expect("is kept with its object");
        assert_eq!(entry.body.id(), all[written.0 as usize - 1].body.id(), "{context}: at {written}");
    }
    check_deletions(log, all, context);
    let tail: Vec<_> = reader.entries(Seq(horizon), Seq(u64::MAX)).collect::<Result<_, _>>().expect("reads");
    assert_eq!(tail[..], all[horizon as usize..], "{context}");
    let whole: Vec<_> = reader.history(Seq(u64::MAX)).collect::<Result<_, _>>().expect("reads");
    for entry in &tail {
        found.apply(entry);
        expected.apply(&all[entry.seq.0 as usize - 1]);
        assert_eq!(found, expected, "{context}: at {}", entry.seq);
    }
    assert_eq!(Model::of(whole), expected, "{context}");
    assert!(reader.verify(&mut |_, _| {}).expect("verifies").is_good(), "{context}");
}

/// Checks that every deletion after the sequence stated by the base is in the base.
fn check_deletions(log: &Log, all: &[Entry], context: &str) {
    let deleted = |entries: &mut dyn Iterator<Item = Entry>, after: Seq| {
        let (mut deletions, mut changed) = (Deletions::default(), Changed::new());
        entries.for_each(|entry| deletions.take(&entry, &mut changed));
        deletions.forget_to(after, &mut changed);
        deletions
    };
    let after = log.reader().base().expect("reads").deletions_after;
    let found = deleted(&mut log.reader().base_entries().map(|entry| entry.expect("reads")), after);
    let expected = deleted(&mut all.iter().take(log.horizon().0 as usize).cloned(), after);
    assert_eq!(found, expected, "{context}: deletions");
}

#[test]
fn p04_recent_deletions_stay_until_there_are_too_many() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1 << 20)).expect("creates");
    let (mut all, mut index) = (Vec::new(), MemoryLiveness::default());
    let mut seq = 0;
    let mut fill = |log: &mut Log, deletes: std::ops::Range<usize>| {
        seq += 1;
        let next = entry(seq, deletes.map(|n| delete(&format!("d{n}"))).collect());
        log.append(std::slice::from_ref(&next)).expect("appends");
        log.sync().expect("syncs");
        all.push(next);
        log.seal().expect("seals");
        compact(log, &mut index, seq, 0.0);
        check(log, &all, "deletes");
        log.reader().base().expect("reads").deletions_after
    };
    assert_eq!(fill(&mut log, 0..10), Seq(0));
    assert_eq!(fill(&mut log, 10..20), Seq(0));
    assert_eq!(fill(&mut log, 20..ROWS_MAX + 10), Seq(1), "the oldest entries are compacted");
    let bytes: u64 = log.reader().segments().iter().map(|segment| segment.bytes).sum();
    assert!(bytes < 3 << 20, "{bytes}");
}

#[test]
fn p04_base_and_tail_give_the_state_at_every_sequence() {
    for seed in 0..40 {
        for ratio in [0.0, 0.3, 0.7] {
            let fs = MemoryFs::new();
            let (mut log, _) = open(&fs, options(1500)).expect("creates");
            let (mut traffic, mut all, mut index) = (Traffic::new(seed), Vec::new(), MemoryLiveness::default());
            for round in 0..5 {
                traffic.fill(&mut log, &mut all, 40);
                let target = all.len() as u64 - traffic.random.next_u64() % 30;
                let before: u64 = log.reader().segments().iter().map(|s| s.bytes).sum();
                let report = compact(&log, &mut index, target, ratio);
                let after: u64 = log.reader().segments().iter().map(|s| s.bytes).sum();
                assert_eq!(before - after, report.bytes_freed(), "{report:?}");
                assert!(report.horizon <= Seq(target) && report.horizon == log.horizon());
                check(&log, &all, &format!("seed {seed} ratio {ratio} round {round}"));
            }
            drop(log);
            let (log, report) = open(&fs, options(1500)).expect("opens");
            assert_eq!(report.actions, Vec::new());
            check(&log, &all, "reopened");
        }
    }
}

#[test]
fn p02_reading_below_the_horizon_is_refused() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let (mut traffic, mut all) = (Traffic::new(1), Vec::new());
    traffic.fill(&mut log, &mut all, 60);
    compact(&log, &mut MemoryLiveness::default(), 40, 0.0);
    let (reader, horizon) = (log.reader(), log.horizon());
    assert!(horizon > Seq::ZERO && horizon <= Seq(40));
    let below = Seq(horizon.0 - 1);
    assert!(matches!(reader.frames(below, 1 << 20), Err(ReadError::Compacted { .. })));
    assert!(matches!(reader.entries(below, Seq(60)).next(), Some(Err(ReadError::Compacted { .. }))));
    assert_eq!(reader.chain_at(below).expect("reads"), None);
    assert_eq!(
        reader.frames(horizon, 1).expect("reads").expect("more").prev_chain,
        reader.chain_at(horizon).unwrap().unwrap()
    );
}

#[test]
fn p10_a_crash_at_any_operation_of_compaction_leaves_a_good_log() {
    for ratio in [0.0, 0.5] {
        let fs = MemoryFs::new();
        let (mut log, _) = open(&fs, options(1500)).expect("creates");
        let (mut traffic, mut all, mut index) = (Traffic::new(7), Vec::new(), MemoryLiveness::default());
        traffic.fill(&mut log, &mut all, 60);
        compact(&log, &mut index, 50, ratio);
        traffic.fill(&mut log, &mut all, 60);
        drop(log);
        let whole = fs.crash(Survival::Everything, 0);
        let start = whole.operations();
        let (log, _) = open(&whole, options(1500)).expect("opens");
        compact(&log, &mut index.clone(), 110, ratio);
        for stop in start..whole.operations() {
            let faulty = fs.crash(Survival::Everything, 0);
            faulty.fail_at(stop, Fault::Stop);
            let mut index = index.clone();
            if let Ok((log, _)) = open(&faulty, options(1500)) {
                let compaction = Compaction::new(log.reader(), &mut index, Seq(110), compaction_options(ratio));
                let _ = compaction.expect("begins").run();
            }
            for survival in [Survival::Nothing, Survival::Everything, Survival::Prefix, Survival::Sectors] {
                let after = faulty.crash(survival, stop);
                let context = format!("ratio {ratio} stop {stop} {survival:?}");
                let (log, _) = open(&after, options(1500)).unwrap_or_else(|error| panic!("{context}: {error}"));
                check(&log, &all, &context);
                assert!(!after.list(&dir()).unwrap().iter().any(|name| name.ends_with(".tmp")), "{context}");
                // The index may be ahead of, behind or equal to the log that the crash left.
                compact(&log, &mut index.clone(), 115, ratio);
                check(&log, &all, &context);
            }
        }
    }
}

#[test]
fn a_reader_continues_across_a_swap() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let (mut traffic, mut all) = (Traffic::new(3), Vec::new());
    traffic.fill(&mut log, &mut all, 100);
    let mut reading = log.reader().entries(Seq(0), Seq(u64::MAX));
    let mut got: Vec<_> = reading.by_ref().take(10).collect::<Result<_, _>>().expect("reads");
    compact(&log, &mut MemoryLiveness::default(), 100, 0.0);
    got.extend(reading.collect::<Result<Vec<_>, _>>().expect("reads"));
    assert_eq!(got, all);
}

#[test]
fn a_dry_run_changes_nothing_and_reports_the_garbage() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let (mut traffic, mut all) = (Traffic::new(5), Vec::new());
    traffic.fill(&mut log, &mut all, 100);
    let (names, mut index) = (fs.list(&dir()).unwrap(), MemoryLiveness::default());
    let options = CompactionOptions { dry_run: true, ..compaction_options(0.2) };
    let report = Compaction::new(log.reader(), &mut index, Seq(90), options).expect("begins").run().expect("runs");
    assert!(report.bytes_freed() > 0 && report.dry_run);
    assert_eq!((fs.list(&dir()).unwrap(), log.horizon()), (names, Seq::ZERO));
    check(&log, &all, "dry run");
}

#[test]
fn a_full_disk_stops_compaction_without_harm_and_the_reserve_helps() {
    for reserve in [0, 16 << 10] {
        let fs = MemoryFs::new();
        let (mut log, _) =
            open(&fs, LogOptions { preallocate: false, reserve_bytes: reserve, ..options(1500) }).expect("creates");
        let (mut traffic, mut all) = (Traffic::new(5), Vec::new());
        traffic.fill(&mut log, &mut all, 100);
        let plenty = u64::MAX / 2;
        fs.set_capacity(Some(plenty));
        let used = plenty - fs.free_space(&dir()).unwrap();
        fs.set_capacity(Some(used + 120));
        let mut index = MemoryLiveness::default();
        let outcome =
            Compaction::new(log.reader(), &mut index, Seq(90), compaction_options(0.0)).expect("begins").run();
        match (reserve, outcome) {
            (0, Err(CompactionError::Full { .. })) => assert!(log.horizon() > Seq::ZERO),
            (1.., Ok(report)) => assert!(report.bytes_freed() > 0),
            other => panic!("{other:?}"),
        }
        check(&log, &all, "full disk");
        fs.set_capacity(None);
        compact(&log, &mut index, 95, 0.0);
        check(&log, &all, "after space was freed");
        assert!(reserve == 0 || fs.exists(&dir().join("reserve")).unwrap());
    }
}

/// An index that has lost one object while the flag is set.
struct Forgetful(MemoryLiveness, bool);

impl LivenessIndex for Forgetful {
    fn summary(&self) -> io::Result<BaseSummary> {
        self.0.summary()
    }
    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>> {
        if self.1 && key.as_str() == "k3" { Ok(None) } else { self.0.version(collection, key) }
    }
    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>> {
        self.0.origin(origin)
    }
    fn commit(&mut self, changes: BaseChanges) -> io::Result<()> {
        self.0.commit(changes)
    }
    fn reset(&mut self) -> io::Result<()> {
        self.1 = false;
        self.0.reset()
    }
}

#[test]
fn p10_a_wrong_index_is_noticed_and_rebuilt_before_anything_is_dropped() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let mut all: Vec<_> = (1..=30).map(|seq| entry(seq, vec![put(&format!("k{}", seq % 9), vec![1; 40])])).collect();
    for entry in &mut all {
        // Counters of one origin always increase; those of the traffic below start from 0 again.
        if let EntryBody::Commit(txn) = &mut entry.body {
            txn.id.origin = Origin([9; 16]);
        }
        log.append(std::slice::from_ref(entry)).expect("appends");
        log.sync().expect("syncs");
    }
    let mut index = Forgetful(MemoryLiveness::default(), false);
    compact(&log, &mut index, 20, 0.9);
    index.1 = true;
    Traffic::new(1).fill(&mut log, &mut all, 20);
    compact(&log, &mut index, 45, 0.0);
    assert!(!index.1, "the index was reset");
    check(&log, &all, "after the rebuild");
}

/// An index in which the row of one origin is as it was before.
struct Outdated(MemoryLiveness, Option<(Origin, OriginRow)>);

impl LivenessIndex for Outdated {
    fn summary(&self) -> io::Result<BaseSummary> {
        self.0.summary()
    }
    fn version(&self, collection: &Collection, key: &Key) -> io::Result<Option<Seq>> {
        self.0.version(collection, key)
    }
    fn origin(&self, origin: Origin) -> io::Result<Option<OriginRow>> {
        match &self.1 {
            Some((of, row)) if *of == origin => Ok(Some(row.clone())),
            _ => self.0.origin(origin),
        }
    }
    fn commit(&mut self, changes: BaseChanges) -> io::Result<()> {
        self.0.commit(changes)
    }
    fn reset(&mut self) -> io::Result<()> {
        self.1 = None;
        self.0.reset()
    }
}

#[test]
fn p06_an_outdated_row_of_an_origin_is_noticed_before_anything_is_dropped() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let (mut traffic, mut all) = (Traffic::new(5), Vec::new());
    let mut index = Outdated(MemoryLiveness::default(), None);
    traffic.fill(&mut log, &mut all, 40);
    compact(&log, &mut index, 20, 0.0);
    let origin = Origin([1; 16]);
    let row = index.origin(origin).expect("reads").expect("has written");
    traffic.fill(&mut log, &mut all, 60);
    compact(&log, &mut index, 60, 0.0);
    index.1 = Some((origin, row));
    compact(&log, &mut index, 90, 0.0);
    assert!(index.1.is_none(), "the index was reset");
    check(&log, &all, "after the rebuild");
}

/// After a restore, the log continues differently. Both histories have the same objects with the same versions, but
/// different transactions wrote those that were overwritten.
#[test]
fn p06_the_index_of_an_abandoned_history_is_not_used() {
    let of = |seq: u64, origin: u8, counter: u64| {
        let mut entry = entry(seq, vec![put(&format!("k{}", seq % 3), vec![1; 40])]);
        if let EntryBody::Commit(txn) = &mut entry.body {
            txn.id = TxnId { origin: Origin([origin; 16]), counter: OriginCounter(counter) };
        }
        entry
    };
    let append = |log: &mut Log, entries: &[Entry]| {
        for entry in entries {
            log.append(std::slice::from_ref(entry)).expect("appends");
            log.sync().expect("syncs");
        }
    };
    let shared: Vec<Entry> = (1..=10).map(|seq| of(seq, 1, seq)).collect();
    let fs = MemoryFs::new();
    append(&mut open(&fs, options(600)).expect("creates").0, &shared);
    let history = |later: u8| {
        let apart = (11..=30).map(|seq| if seq < 20 { of(seq, later, seq - 10) } else { of(seq, 4, seq - 19) });
        let apart: Vec<Entry> = apart.collect();
        let (mut log, _) = open(&fs.crash(Survival::Everything, 0), options(600)).expect("opens");
        append(&mut log, &apart);
        (log, [&shared[..], &apart].concat())
    };
    let ((abandoned, _), (log, all)) = (history(2), history(3));
    assert_eq!(abandoned.log_id(), log.log_id());
    let mut index = MemoryLiveness::default();
    compact(&abandoned, &mut index, 24, 0.0);
    let position = index.summary().expect("reads").position;
    assert!(position > Seq(20) && position <= Seq(24), "{position}");
    compact(&log, &mut index, 29, 0.0);
    assert!(log.horizon() >= position);
    check(&log, &all, "after the second compaction");
}

#[test]
fn the_index_on_disk_behaves_like_the_one_in_memory() {
    let place = tempfile::tempdir().expect("directory");
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    let (mut traffic, mut all) = (Traffic::new(11), Vec::new());
    for round in 0..4 {
        traffic.fill(&mut log, &mut all, 50);
        let mut compactor = Compactor::new(log.reader(), &place.path().join("base")).segment_bytes(1500);
        let outcome = compactor.run(Seq(all.len() as u64 - 10), 20, false, &mut |_, _| {}).expect("compacts");
        assert_eq!(outcome.horizon, log.horizon());
        check(&log, &all, &format!("round {round}"));
    }
    let index = FjallLiveness::open(&place.path().join("base"), log.log_id()).expect("opens");
    let summary = index.summary().expect("reads");
    assert_eq!(summary.position, log.horizon());
    assert_ne!(summary.digest, Digest::ZERO);
    drop(index);
    let other = FjallLiveness::open(&place.path().join("base"), gravwell_model::LogId([9; 16])).expect("opens");
    assert_eq!(other.summary().expect("reads"), BaseSummary::default());
}

#[test]
#[expect(clippy::single_range_in_vec_init, reason = "lists of ranges, some with one")]
fn groups_join_small_neighbours_and_leave_good_segments_alone() {
    let measure = |frames_bytes, live_bytes| Measure { frames_bytes, live_bytes, ..Measure::default() };
    let options = CompactionOptions { garbage_ratio: 0.3, segment_bytes: 100, dry_run: false };
    let plan = |measures: &[Measure]| plan_groups(measures, &options);
    assert!(plan(&[]).is_empty());
    assert!(plan(&[measure(100, 90)]).is_empty());
    assert_eq!(plan(&[measure(100, 60)]), [0..1]);
    assert_eq!(plan(&[measure(20, 20), measure(20, 20), measure(100, 95), measure(20, 20)]), [0..2]);
    assert_eq!(plan(&[measure(100, 60), measure(100, 60), measure(100, 30)]), [0..1, 1..3]);
}

#[test]
fn the_horizon_is_the_end_of_a_closed_segment() {
    let fs = MemoryFs::new();
    let (mut log, _) = open(&fs, options(1500)).expect("creates");
    fill(&mut log, 40);
    let segments = log.reader().segments();
    assert_eq!(reachable_horizon(&segments, Seq(0)), Seq(0));
    assert_eq!(reachable_horizon(&segments, segments[1].last), segments[1].last);
    assert_eq!(reachable_horizon(&segments, segments[1].last.next()), segments[1].last);
    let sealed = segments.iter().rfind(|segment| segment.sealed).unwrap().last;
    assert_eq!(reachable_horizon(&segments, Seq(u64::MAX)), sealed);
}
