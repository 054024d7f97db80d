//! Choice of the backup from which a point in time is restored.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use super::manifest::{Manifest, number_of};
use super::restore::RestoreError;
use gravwell_log::backup_stream::End;
use gravwell_model::position::shared_after;
use gravwell_model::{LogId, Seq};

/// Sorts manifests by log, and those of one log by the position they reach, see [`Manifest::order`]. The log that was
/// backed up last comes last.
pub fn sort<M: Borrow<Manifest>>(manifests: &mut [M]) {
    let mut last: BTreeMap<LogId, (u64, u64)> = BTreeMap::new();
    for manifest in manifests.iter() {
        let manifest: &Manifest = manifest.borrow();
        let known = last.entry(manifest.log_id).or_default();
        *known = (*known).max((number_of(&manifest.id), manifest.made_ms));
    }
    manifests.sort_by_key(|manifest| {
        let manifest: &Manifest = manifest.borrow();
        (last.get(&manifest.log_id).copied(), manifest.log_id, manifest.order())
    });
}

/// Returns a warning if the times of backups contradict the positions they reach.
#[must_use]
pub fn disagreement(manifests: &[Manifest]) -> Option<String> {
    let mut sorted: Vec<&Manifest> = manifests.iter().collect();
    sort(&mut sorted);
    let pairs = sorted.windows(2).map(|pair| (pair[0], pair[1]));
    let mut of_one_log = pairs.filter(|(earlier, later)| earlier.log_id == later.log_id);
    let (earlier, later) = of_one_log.rfind(|(earlier, later)| earlier.made_ms > later.made_ms)?;
    Some(format!(
        "backup {} has a later time than {}, which is more advanced (sequence {} of generation {}): a clock was wrong, \
         or the datastore was rolled back; backups are ordered by position, not by time",
        earlier.id, later.id, later.seq, later.generation
    ))
}

/// Groups backups, which are sorted as by [`sort`], by branches of the history of their logs. Each group contains the
/// backup that reaches furthest in its branch, last, and those that its history includes: a backup from before a fork is
/// in several groups. A backup beyond what a later generation shares with its own is in another group than that generation.
#[must_use]
pub fn branches<'a>(manifests: &[&'a Manifest]) -> Vec<Vec<&'a Manifest>> {
    let mut branches: Vec<Vec<&Manifest>> = Vec::new();
    for of_log in manifests.chunk_by(|one, next| one.log_id == next.log_id) {
        let mut found: Vec<Vec<&Manifest>> = Vec::new();
        for manifest in of_log.iter().rev().copied() {
            let mut is_in_any = false;
            for branch in &mut found {
                if leads_to(branch[0], manifest, manifest.seq) {
                    branch.push(manifest);
                    is_in_any = true;
                }
            }
            if !is_in_any {
                found.push(vec![manifest]);
            }
        }
        found.iter_mut().for_each(|branch| branch.reverse());
        branches.append(&mut found);
    }
    branches
}

/// Returns a notice that names the backups that reach furthest in branches that the most advanced backup of their log does
/// not include, with that one.
#[must_use]
pub fn other_branches(manifests: &[Manifest]) -> Option<String> {
    let mut sorted: Vec<&Manifest> = manifests.iter().collect();
    sort(&mut sorted);
    let branches = branches(&sorted);
    let ends: Vec<&Manifest> = branches.iter().filter_map(|branch| branch.last().copied()).collect();
    let mut named = Vec::new();
    for of_log in ends.chunk_by(|one, next| one.log_id == next.log_id) {
        let Some((main, others)) = of_log.split_first() else { continue };
        named.extend(others.iter().map(|other| {
            let shared = match shared_after(&main.lineage, other.generation) {
                Some(shared) => format!("their shared history ends at sequence {shared}"),
                None => "their shared history is unknown".to_owned(),
            };
            format!(
                "backup {} ends at sequence {} of generation {}, which is not in the history of {}, of the later \
                 generation {}: {shared}",
                other.id, other.seq, other.generation, main.id, main.generation
            )
        }));
    }
    (!named.is_empty()).then(|| {
        format!(
            "{}; either a restore or recovery abandoned that branch, or two datastores of one log back up here; \
             without --backup, `restore` uses the later generation",
            named.join("; ")
        )
    })
}

/// Chooses the backup from which `end` can be restored. `None` stands for the most advanced backup.
///
/// # Errors
/// Returns an error listing the restorable ranges if no backup covers `end`, or an error if the log is ambiguous.
pub fn choose(manifests: &[Manifest], end: Option<End>) -> Result<&Manifest, RestoreError> {
    let newest = manifests.iter().max_by_key(|manifest| manifest.order());
    let newest = newest.ok_or_else(|| RestoreError::NotCovered("there are no backups".into()))?;
    if let Some(other) = manifests.iter().find(|manifest| manifest.log_id != newest.log_id) {
        let what = format!(
            "there are backups of several logs, {} (backup {}) and {} (backup {}); choose one with --backup",
            newest.log_id, newest.id, other.log_id, other.id
        );
        return Err(RestoreError::NotCovered(what));
    }
    let covering = match end {
        None => return Ok(newest),
        Some(End::Seq(seq)) => {
            let reaching = manifests.iter().filter(|manifest| manifest.horizon <= seq && seq <= manifest.seq);
            let rank = |manifest: &&Manifest| (leads_to(newest, manifest, seq), manifest.order());
            match reaching.max_by_key(rank) {
                Some(found) if !leads_to(newest, found, seq) => {
                    let (id, latest) = (&found.id, &newest.id);
                    return Err(RestoreError::NotCovered(format!(
                        "sequence {seq} is only in a branch of the log that was abandoned before backup {latest} was \
                         made; to restore that branch, use --backup {id}"
                    )));
                }
                found => found,
            }
        }
        Some(End::Time(time)) => at_time(manifests, newest, time),
    };
    covering.ok_or_else(|| {
        let ranges = coverage(manifests).into_iter().map(|(from, to)| format!("{from} to {to}")).collect::<Vec<_>>();
        RestoreError::NotCovered(format!("no backup covers it; these sequences can be restored: {}", ranges.join(", ")))
    })
}

/// Returns whether the history of `newest` includes the entries of `manifest` up to `seq`.
fn leads_to(newest: &Manifest, manifest: &Manifest, seq: Seq) -> bool {
    let shared_to = shared_after(&newest.lineage, manifest.generation);
    let is_ancestor = newest.lineage.iter().any(|entry| entry.generation == manifest.generation);
    (is_ancestor || manifest.generation == newest.generation) && shared_to.is_none_or(|shared_to| seq <= shared_to)
}

/// Of the generation current at `time`, returns the earliest backup with all entries up to `time`, because later ones
/// may be compacted further. If there is none, returns the most advanced one, after which nothing was committed.
fn at_time<'a>(manifests: &'a [Manifest], newest: &'a Manifest, time: u64) -> Option<&'a Manifest> {
    let begun = newest.generations.iter().filter(|info| info.time_ms <= time);
    let current = begun.map(|info| info.generation).max();
    let of_then = |manifest: &&Manifest| current.is_none_or(|current| manifest.generation == current);
    let mut reaching: Vec<&Manifest> = manifests.iter().filter(of_then).collect();
    reaching.sort_by_key(|manifest| manifest.order());
    let (mut found, mut made_ms) = (reaching.last().copied(), u64::MAX);
    for manifest in reaching.into_iter().rev() {
        // A backup that reaches further was made later, whatever its recorded time.
        made_ms = made_ms.min(manifest.made_ms);
        if manifest.time_ms > time || made_ms >= time {
            found = Some(manifest);
        }
    }
    found.or(Some(newest))
}

/// Returns the sequences that can be restored, as ranges.
#[must_use]
pub fn coverage<'a>(manifests: impl IntoIterator<Item = &'a Manifest>) -> Vec<(Seq, Seq)> {
    let mut ranges: Vec<(Seq, Seq)> = manifests.into_iter().map(|manifest| (manifest.horizon, manifest.seq)).collect();
    ranges.sort();
    let mut joined: Vec<(Seq, Seq)> = Vec::new();
    for (from, to) in ranges {
        match joined.last_mut() {
            Some(last) if from <= last.1.next() => last.1 = last.1.max(to),
            _ => joined.push((from, to)),
        }
    }
    joined
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::manifest::Segment;
    use gravwell_log::backup_stream_check::Checked;
    use gravwell_log::directory::SegmentName;
    use gravwell_model::codec::admin::{ExportEnd, GenerationCause, GenerationInfo};
    use gravwell_model::{Digest, Generation, LineageEntry, LogId};

    /// Creates a segment of zero bytes that counts as checked.
    fn segment(seq: u64) -> Segment {
        let checked = Checked { last: Seq(seq), before: String::new(), after: String::new(), standing: None };
        Segment {
            name: SegmentName { first: Seq(1), last: None }.to_string(),
            bytes: 0,
            header: String::new(),
            mark: String::new(),
            pieces: Vec::new(),
            checked: Some(checked),
        }
    }

    pub(crate) fn manifest(log: u8, generation: u64, made_ms: u64, seq: u64) -> Manifest {
        let info = |generation, time_ms, beginning| GenerationInfo {
            generation: Generation(generation),
            shared_to: Seq(0),
            beginning,
            time_ms,
        };
        let mut generations = vec![info(1, 0, GenerationCause::Created), info(2, 106, GenerationCause::Restored)];
        generations.retain(|info| info.generation.0 <= generation);
        Manifest {
            version: super::super::manifest::VERSION,
            id: format!("{log}-{generation}-{made_ms}"),
            made_ms,
            log_id: LogId([log; 16]),
            generation: Generation(generation),
            lineage: Vec::new(),
            generations,
            horizon: Seq(0),
            seq: Seq(seq),
            chain: String::new(),
            time_ms: made_ms,
            checkpoint: ExportEnd { seq: Seq(0), digest: Digest::ZERO },
            escrow: String::new(),
            segments: vec![segment(seq)],
            chunks: Vec::new(),
            chunk_bytes: Vec::new(),
            missing: Vec::new(),
            stamp: String::new(),
        }
    }

    #[test]
    fn p13_a_branch_that_was_given_up_is_restored_only_when_it_is_named() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let mut all = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(1, 2, 120, 13)];
        all.iter_mut().for_each(|manifest| manifest.lineage = vec![entry(1, 0)]);
        all[2].lineage.push(entry(2, 10));
        let chosen = |seq| choose(&all, Some(End::Seq(Seq(seq)))).map(|manifest| manifest.id.clone());
        assert_eq!(chosen(12).expect("one"), "1-2-120", "both branches have it: the branch that continued");
        let refused = chosen(14).expect_err("abandoned").to_string();
        assert!(refused.contains("abandoned") && refused.contains("--backup 1-1-60"), "{refused}");
        let given_up = [all[0].clone(), all[1].clone()];
        assert!(choose(&given_up, Some(End::Seq(Seq(14)))).is_ok(), "not known to be abandoned");
    }

    #[test]
    fn p13_a_branch_that_a_later_generation_does_not_share_is_told_apart() {
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let mut all = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(1, 2, 70, 13), manifest(2, 1, 80, 9)];
        all[..3].iter_mut().for_each(|manifest| manifest.lineage = vec![entry(1, 0)]);
        all[2].lineage.push(entry(2, 10));
        sort(&mut all);
        let ids = |all: &[Manifest]| {
            let groups = branches(&all.iter().collect::<Vec<_>>());
            groups.iter().map(|of| of.iter().map(|it| it.id.clone()).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&all[..]), [vec!["1-1-50", "1-2-70"], vec!["1-1-50", "1-1-60"], vec!["2-1-80"]]);
        let said = other_branches(&all).expect("there is another branch");
        for part in ["1-1-60", "sequence 15 of generation 1", "1-2-70", "ends at sequence 10"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("2-1-80"), "another log is not a branch: {said}");
        // What the later generation shares is in its own branch.
        all[1].seq = Seq(10);
        assert_eq!((ids(&all[..]).len(), other_branches(&all)), (2, None));
    }

    #[test]
    fn a_time_is_looked_for_in_the_generation_that_was_current_then() {
        let all = [manifest(1, 1, 50, 5), manifest(1, 1, 101, 10), manifest(1, 2, 112, 8), manifest(1, 2, 120, 12)];
        let chosen = |end| choose(&all, end).map(|manifest| manifest.id.clone()).expect("one");
        let cases =
            [(40, "1-1-50"), (60, "1-1-101"), (104, "1-1-101"), (108, "1-2-112"), (115, "1-2-120"), (900, "1-2-120")];
        for (time, id) in cases {
            assert_eq!(chosen(Some(End::Time(time))), id, "{time}");
        }
        assert_eq!((chosen(None), chosen(Some(End::Seq(Seq(11))))), ("1-2-120".into(), "1-2-120".into()));
        assert!(choose(&all, Some(End::Seq(Seq(13)))).is_err());
        let two = [all[0].clone(), manifest(2, 1, 130, 3)];
        let refused = choose(&two, None).expect_err("which?").to_string();
        assert!(refused.contains("several logs"), "{refused}");
    }

    #[test]
    fn p13_what_backups_reach_counts_and_a_clock_that_was_wrong_is_named() {
        // The clock was two days ahead for the first backup, or far behind for the last one, as before
        // time synchronization.
        let ahead = [manifest(1, 1, 900, 10), manifest(1, 1, 60, 15), manifest(1, 1, 70, 16)];
        let behind = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(1, 1, 1, 16)];
        for (mut all, named) in [(ahead, "1-1-900"), (behind, "1-1-60")] {
            let reaching = all[2].id.clone();
            all[2].time_ms = 65;
            all[0].time_ms = 45;
            all.reverse();
            let chosen = |end| choose(&all, end).expect("one").id.clone();
            assert_eq!(chosen(None), reaching);
            assert_eq!(chosen(Some(End::Time(500))), reaching, "no backup is known to be of a later time");
            assert_eq!(chosen(Some(End::Seq(Seq(16)))), reaching);
            assert_ne!(chosen(Some(End::Time(62))), "1-1-900", "it covers only up to 45");
            let said = disagreement(&all).expect("they disagree");
            assert!(said.contains(named) && said.contains("clock"), "{said}");
            sort(&mut all);
            assert_eq!(all.map(|manifest| manifest.seq), [10, 15, 16].map(Seq));
        }
        let right = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(2, 1, 55, 3)];
        assert_eq!(disagreement(&right), None, "logs are independent");
        // Of backups that reach equally far, the one written last is chosen.
        let mut twice = [manifest(1, 1, 60, 15), manifest(1, 1, 50, 15)];
        twice[1].id = super::super::manifest::name(50, Seq(15), 2);
        assert_eq!(choose(&twice, None).expect("one").id, twice[1].id);
    }
}
