//! Retention of backups: which ones are kept, and which pieces are removed with the others.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::choice::{coverage, disagreement};
use super::lock::Lock;
use super::manifest::Manifest;
use super::repository::{Repository, RepositoryError};
use super::soundness::Soundness;
use crate::model::{ChunkId, Seq};

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Retention rules. A backup is kept if any rule keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Number of most advanced backups to keep per log.
    pub last: usize,
    /// Number of days, among those with a backup, for which the most advanced one is kept.
    pub daily: usize,
    /// Number of weeks, among those with a backup, for which the most advanced one is kept.
    pub weekly: usize,
}

/// Report of a prune, or of its plan in a dry run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Names of the kept backups.
    pub kept: Vec<String>,
    /// Names of the removed backups.
    pub removed: Vec<String>,
    /// Backups that cannot be restored and therefore do not count for the rules.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unsound: Vec<Unsound>,
    /// Number of removed pieces.
    pub pieces: u64,
    /// Size of the removed pieces, in bytes.
    pub bytes: u64,
    /// Warning if the times of backups contradict the positions they reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disagreement: Option<String>,
    /// First and last sequences that could be restored before the prune.
    pub covered_before: Vec<(Seq, Seq)>,
    /// First and last sequences that can be restored now.
    pub covered: Vec<(Seq, Seq)>,
    /// Whether this was a dry run.
    pub dry_run: bool,
}

/// A backup that cannot be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unsound {
    /// Name of the backup.
    pub backup: String,
    /// Reason why it cannot be restored.
    pub why: String,
    /// Whether it is kept nevertheless, because no sound backup of its log reaches as far.
    pub stays: bool,
}

/// Returns the names of the backups to keep. `made` contains the name and time of each, ordered by how far they reach.
/// Any rule with a nonzero count keeps the last one.
#[must_use]
pub fn kept(made: &[(String, u64)], keep: Keep) -> BTreeSet<String> {
    let mut kept: BTreeSet<String> = made.iter().rev().take(keep.last).map(|(id, _)| id.clone()).collect();
    for (count, period) in [(keep.daily, DAY_MS), (keep.weekly, 7 * DAY_MS)] {
        let mut seen = BTreeSet::new();
        for (id, made_ms) in made.iter().rev() {
            if seen.len() >= count && !seen.contains(&(made_ms / period)) {
                break;
            }
            if seen.insert(made_ms / period) && seen.len() <= count {
                kept.insert(id.clone());
            }
        }
    }
    kept
}

/// For chunks that kept backups lack, also keeps the most advanced backup that contains them.
fn keep_holders(manifests: &[&Manifest], kept: &mut BTreeSet<String>) {
    let lacking =
        manifests.iter().filter(|manifest| kept.contains(&manifest.id)).flat_map(|manifest| &manifest.missing);
    let mut lacking: BTreeSet<ChunkId> = lacking.copied().collect();
    for manifest in manifests.iter().rev() {
        if lacking.is_empty() {
            break;
        }
        let before = lacking.len();
        lacking.retain(|id| !manifest.chunks.iter().any(|(held, _)| held == id));
        if lacking.len() < before {
            kept.insert(manifest.id.clone());
        }
    }
}

struct Choice {
    kept: BTreeSet<String>,
    /// Unsound backups, with the reason.
    faults: BTreeMap<String, String>,
}

/// Applies the rules to the backups that can be restored. Every selected backup is verified; if one is unsound, the
/// rules are applied again without it. An unsound backup is removed only if a sound one of its log reaches as far. If a
/// log has no sound backup, none of its backups is removed.
fn choose(manifests: &[Manifest], keep: Keep, soundness: &mut Soundness<'_>) -> Result<Choice, RepositoryError> {
    let mut faults: BTreeMap<String, String> = BTreeMap::new();
    let mut sound: BTreeSet<&str> = BTreeSet::new();
    let kept = loop {
        let left: Vec<&Manifest> = manifests.iter().filter(|found| !faults.contains_key(&found.id)).collect();
        let mut kept = BTreeSet::new();
        // The rules apply to each log separately.
        for of_log in left.chunk_by(|one, next| one.log_id == next.log_id) {
            let made: Vec<_> = of_log.iter().map(|manifest| (manifest.id.clone(), manifest.made_ms)).collect();
            kept.extend(self::kept(&made, keep));
        }
        keep_holders(&left, &mut kept);
        let unknown = |manifest: &&Manifest| kept.contains(&manifest.id) && !sound.contains(manifest.id.as_str());
        let before = faults.len();
        for manifest in manifests.iter().filter(unknown).collect::<Vec<_>>() {
            match soundness.fault(manifest)? {
                Some(fault) => drop(faults.insert(manifest.id.clone(), fault)),
                None => drop(sound.insert(&manifest.id)),
            }
        }
        if faults.len() == before {
            break kept;
        }
    };
    let mut furthest = BTreeMap::new();
    for manifest in manifests.iter().filter(|manifest| kept.contains(&manifest.id)) {
        let reached = furthest.entry(manifest.log_id).or_insert_with(|| manifest.order());
        *reached = manifest.order().max(*reached);
    }
    let stays = |manifest: &&Manifest| match furthest.get(&manifest.log_id) {
        Some(furthest) => faults.contains_key(&manifest.id) && manifest.order() > *furthest,
        None => true,
    };
    let mut choice =
        Choice { kept: manifests.iter().filter(stays).map(|manifest| manifest.id.clone()).collect(), faults };
    choice.kept.extend(kept);
    Ok(choice)
}

/// Removes every backup that `keep` does not cover, then every piece that no remaining backup references.
///
/// # Errors
/// Returns an error if nothing would be kept, a manifest is corrupt, or the store fails. The next call removes
/// the rest.
pub fn prune(repository: &Repository, lock: &Lock<'_>, keep: Keep, dry_run: bool) -> Result<Pruned, RepositoryError> {
    let (manifests, bad) = repository.manifests()?;
    if let Some(error) = bad.into_iter().next() {
        // Its references are unknown, so no piece can be considered unused.
        return Err(error);
    }
    if keep == Keep::default() && !manifests.is_empty() {
        let what = "that would remove every backup: keep at least one, with --keep-last, --keep-daily or --keep-weekly";
        return Err(RepositoryError::NoSuch(what.into()));
    }
    let Choice { kept, faults } = choose(&manifests, keep, &mut Soundness::new(repository, lock)?)?;
    let disagreement = disagreement(&manifests);
    let is_sound = |manifest: &&Manifest| !faults.contains_key(&manifest.id);
    let covered = |manifests: &[Manifest]| coverage(manifests.iter().filter(is_sound));
    let covered_before = covered(&manifests);
    let (stay, go): (Vec<Manifest>, Vec<Manifest>) =
        manifests.into_iter().partition(|manifest| kept.contains(&manifest.id));
    let names = |manifests: &[Manifest]| manifests.iter().map(|manifest| manifest.id.clone()).collect();
    let covered = covered(&stay);
    let unsound =
        faults.into_iter().map(|(backup, why)| Unsound { stays: kept.contains(&backup), backup, why }).collect();
    let (kept, removed) = (names(&stay), names(&go));
    let mut pruned =
        Pruned { kept, removed, unsound, disagreement, covered_before, covered, dry_run, pieces: 0, bytes: 0 };
    if dry_run {
        return Ok(pruned);
    }
    lock.check()?;
    repository.store().tidy()?;
    for manifest in &go {
        lock.keep()?;
        repository.remove_manifest(&manifest.id)?;
    }
    let used: BTreeSet<String> = stay.iter().flat_map(Manifest::pieces).map(str::to_owned).collect();
    lock.check()?;
    (pruned.pieces, pruned.bytes) = repository.sweep(&used, &|| lock.keep())?;
    Ok(pruned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_period_stay() {
        let made: Vec<_> = (0..40u64).map(|n| (format!("{n:02}"), 20_000 * DAY_MS + n * DAY_MS / 2)).collect();
        let names = |keep| kept(&made, keep).into_iter().collect::<Vec<_>>();
        assert_eq!(names(Keep { last: 2, ..Keep::default() }), ["38", "39"]);
        assert_eq!(names(Keep { daily: 3, ..Keep::default() }), ["35", "37", "39"]);
        assert_eq!(names(Keep { last: 1, daily: 1, weekly: 2 }).len(), 2);
        assert!(names(Keep::default()).is_empty());
    }

    #[test]
    fn p13_the_backup_that_reaches_furthest_is_never_removed_whatever_its_time_says() {
        use crate::backup::choice::tests::manifest;
        use crate::backup::repository::Secret;
        use crate::backup::store::LocalStore;

        // The clock was ahead for the first backup, or behind for the last one. Backups of another log are independent.
        const NOW: u64 = 20_000 * DAY_MS;
        for times in [[NOW + 3 * DAY_MS, NOW, NOW + 10], [NOW, NOW + 5, 1]] {
            let temp = tempfile::tempdir().expect("temp dir");
            let repository =
                Repository::open(Box::new(LocalStore::new(temp.path())), Secret::None, true).expect("makes");
            for (made_ms, seq) in times.into_iter().zip([10, 15, 16]) {
                repository.put_manifest(&manifest(1, 1, made_ms, seq)).expect("stores");
            }
            repository.put_manifest(&manifest(2, 1, NOW + 7, 3)).expect("stores");
            let lock = Lock::take(repository.store(), "prune").expect("takes");
            for keep in [Keep { last: 1, ..Keep::default() }, Keep { daily: 1, ..Keep::default() }] {
                let pruned = prune(&repository, &lock, keep, true).expect("rehearses");
                assert_eq!(pruned.covered, [(Seq(0), Seq(16))], "{times:?}");
                assert!(pruned.disagreement.is_some_and(|said| said.contains("clock")), "{times:?}");
                assert_eq!(pruned.kept.len(), 2, "one of each log: {:?}", pruned.kept);
            }
            prune(&repository, &lock, Keep { last: 1, ..Keep::default() }, false).expect("prunes");
            let (left, _) = repository.manifests().expect("lists");
            let mut left: Vec<_> = left.iter().map(|manifest| manifest.seq).collect();
            left.sort();
            assert_eq!(left, [Seq(3), Seq(16)], "{times:?}");
        }
    }

    #[test]
    fn p13_backups_that_cannot_be_restored_take_no_sound_ones_place() {
        use crate::backup::choice::tests::manifest;
        use crate::backup::repository::Secret;
        use crate::backup::store::LocalStore;

        let temp = tempfile::tempdir().expect("temp dir");
        let repository = Repository::open(Box::new(LocalStore::new(temp.path())), Secret::None, true).expect("makes");
        let lock = Lock::take(repository.store(), "prune").expect("takes");
        let keep = Keep { last: 1, ..Keep::default() };
        let pruned = |dry_run| prune(&repository, &lock, keep, dry_run).expect("prunes");
        let unsound = |pruned: &Pruned| {
            pruned.unsound.iter().map(|found| (found.backup.clone(), found.stays)).collect::<Vec<_>>()
        };
        // One lacks a piece, one does not end at its recorded sequence, and one was never checked and is not a
        // valid segment.
        let mut all = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(1, 1, 70, 16), manifest(1, 1, 80, 17)];
        (all[1].segments[0].bytes, all[1].segments[0].pieces) = (5, vec!["a".repeat(64)]);
        all[2].chain = "another".into();
        all[3].segments[0].checked = None;
        all[1..].iter().for_each(|manifest| repository.put_manifest(manifest).expect("stores"));
        let found = pruned(false);
        assert_eq!((found.removed.len(), found.kept.len(), found.covered), (0, 3, Vec::new()), "none is sound");

        repository.put_manifest(&all[0]).expect("stores");
        let found = pruned(false);
        assert_eq!((found.removed.len(), found.covered.as_slice()), (0, &[(Seq(0), Seq(10))][..]));
        let names = all.each_ref().map(|manifest| manifest.id.clone());
        assert_eq!(unsound(&found), [1, 2, 3].map(|index| (names[index].clone(), true)));
        let why: Vec<&str> = found.unsound.iter().map(|found| found.why.as_str()).collect();
        assert!(why[0].contains(&"a".repeat(64)) && why[1].contains("16") && why[2].contains("file header"), "{why:?}");

        // They are removed once a sound backup reaches as far.
        let healed = manifest(1, 1, 90, 18);
        repository.put_manifest(&healed).expect("stores");
        for dry_run in [true, false] {
            let found = pruned(dry_run);
            assert_eq!((found.kept.as_slice(), found.removed.len()), (&[healed.id.clone()][..], 4));
            assert_eq!((unsound(&found), found.covered.as_slice()), (Vec::new(), &[(Seq(0), Seq(18))][..]));
        }
    }
}
