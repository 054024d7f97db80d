//! Retention of backups: which ones are kept, and which pieces are removed with the others.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::choice::{branches, coverage, disagreement, other_branches};
use super::lock::Lock;
use super::manifest::{Manifest, number_of};
use super::repository::{Repository, RepositoryError};
use super::soundness::Soundness;
use gravwell_model::position::shared_after;
use gravwell_model::{ChunkId, Lineage, LogId, Seq};
use gravwell_transport::trust::RegisterMark;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// Retention rules. A backup is kept if any rule keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Number of most advanced backups to keep per branch of the history of a log.
    pub last: usize,
    /// Number of days, among those with a backup, for which the most advanced one is kept.
    pub daily: usize,
    /// Number of weeks, among those with a backup, for which the most advanced one is kept.
    pub weekly: usize,
    /// Whether backups that cannot be restored are removed although the rules select them.
    pub drops_unsound: bool,
    /// Whether the rules apply to each log as a whole, so that branches of its history that were given up have no backups
    /// of their own to keep.
    pub drops_branches: bool,
    /// Log of the datastore that asks. The branch that this log continues was not given up.
    pub own: Option<(LogId, Lineage)>,
}

impl Keep {
    fn is_nothing(&self) -> bool {
        self.last == 0 && self.daily == 0 && self.weekly == 0
    }
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
    /// Notice if backups are of different branches of the history of a log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub branches: Option<String>,
    /// First and last sequences that all backups contained before the prune, those that cannot be restored included.
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
    /// Whether it is kept nevertheless, because a rule selects it or no sound backup of its branch reaches as far.
    pub stays: bool,
}

/// Returns the names of the backups to keep. `made` contains the name and time of each, ordered by how far they reach.
/// Any rule with a nonzero count keeps the last one.
#[must_use]
pub fn kept(made: &[(String, u64)], keep: &Keep) -> BTreeSet<String> {
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

/// Of each log, also keeps the most advanced backup that contains the latest member registry, if no kept one does. It may
/// be the only copy of revocations: a datastore whose registry went back makes backups that lack them.
fn keep_latest_register(manifests: &[&Manifest], kept: &mut BTreeSet<String>) {
    for of_log in manifests.chunk_by(|one, next| one.log_id == next.log_id) {
        let marked: Vec<(RegisterMark, &str)> =
            of_log.iter().filter_map(|manifest| Some((manifest.register_mark()?, manifest.id.as_str()))).collect();
        let count = marked.iter().map(|(mark, _)| mark.count).max();
        // Registries that went apart may have the same count.
        let latest: BTreeMap<&str, &str> = marked
            .iter()
            .filter(|(mark, _)| Some(mark.count) == count)
            .map(|(mark, id)| (mark.name.as_str(), *id))
            .collect();
        for (name, id) in latest {
            let is_same = |mark: &RegisterMark| Some(mark.count) == count && mark.name == name;
            if !marked.iter().any(|(mark, id)| is_same(mark) && kept.contains(*id)) {
                kept.insert(id.to_owned());
            }
        }
    }
}

struct Choice {
    kept: BTreeSet<String>,
    /// Unsound backups, with the reason.
    faults: BTreeMap<String, String>,
}

/// Names of the backups that the rules select, and of those that contain chunks which the selected ones lack.
fn selected(manifests: &[&Manifest], keep: &Keep) -> BTreeSet<String> {
    let mut kept = BTreeSet::new();
    for group in groups(manifests, keep) {
        let made: Vec<_> = group.iter().map(|manifest| (manifest.id.clone(), manifest.made_ms)).collect();
        kept.extend(self::kept(&made, keep));
    }
    keep_holders(manifests, &mut kept);
    kept
}

/// Groups of backups to which the rules apply separately: branches of the histories of logs, or whole logs and those
/// branches that are in use.
fn groups<'a>(manifests: &[&'a Manifest], keep: &Keep) -> Vec<Vec<&'a Manifest>> {
    let branches = branches(manifests);
    if !keep.drops_branches {
        return branches;
    }
    let logs = manifests.chunk_by(|one, next| one.log_id == next.log_id).map(<[_]>::to_vec);
    let in_use = branches.iter().filter(|branch| is_in_use(branch, manifests, keep));
    logs.chain(in_use.cloned()).collect()
}

/// Returns whether a branch was not given up: the datastore that asks is on it, or a backup of it was made after the first
/// one that is not. That other one may be of a copy of the datastore, such as one that was restored for a drill.
fn is_in_use(branch: &[&Manifest], manifests: &[&Manifest], keep: &Keep) -> bool {
    let Some(last) = branch.last() else { return false };
    let written = |manifest: &Manifest| (number_of(&manifest.id), manifest.made_ms);
    let is_in = |manifest: &Manifest| branch.iter().any(|own| own.id == manifest.id);
    let others = manifests.iter().filter(|other| other.log_id == last.log_id && !is_in(other));
    // Branches of earlier generations were there before.
    let later = others.filter(|other| other.generation > last.generation);
    let is_continued = later.map(|other| written(other)).min().is_none_or(|first| written(last) > first);
    let is_own = |(log_id, lineage): &(LogId, Lineage)| {
        *log_id == last.log_id
            && lineage.iter().any(|entry| entry.generation == last.generation)
            && shared_after(lineage, last.generation).is_none_or(|shared_to| last.seq <= shared_to)
    };
    keep.own.as_ref().is_some_and(is_own) || is_continued
}

/// Applies the rules to the backups that can be restored. Every selected backup is verified; if one is unsound, the
/// rules are applied again without it. An unsound backup takes no sound one's place, and is itself kept while the rules
/// select it, because what it lacks may come back; it is also kept if no sound backup of its branch reaches as far.
fn choose(manifests: &[Manifest], keep: &Keep, soundness: &mut Soundness<'_>) -> Result<Choice, RepositoryError> {
    let mut faults: BTreeMap<String, String> = BTreeMap::new();
    let mut sound: BTreeSet<&str> = BTreeSet::new();
    let all: Vec<&Manifest> = manifests.iter().collect();
    let kept = loop {
        let left: Vec<&Manifest> = all.iter().copied().filter(|found| !faults.contains_key(&found.id)).collect();
        let kept = selected(&left, keep);
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
    let mut stay = kept;
    if !keep.drops_unsound {
        stay.extend(selected(&all, keep));
    }
    for group in groups(&all, keep) {
        let furthest = group.iter().filter(|manifest| sound.contains(manifest.id.as_str())).map(|it| it.order()).max();
        let stays = |manifest: &&Manifest| match furthest {
            Some(furthest) => faults.contains_key(&manifest.id) && manifest.order() > furthest,
            None => true,
        };
        stay.extend(group.into_iter().filter(stays).map(|manifest| manifest.id.clone()));
    }
    keep_latest_register(&all, &mut stay);
    Ok(Choice { kept: stay, faults })
}

/// Removes every backup that `keep` does not cover, then every piece that no remaining backup references.
///
/// # Errors
/// Returns an error if nothing would be kept, a manifest is corrupt, or the store fails. The next call removes
/// the rest.
pub fn prune(repository: &Repository, lock: &Lock<'_>, keep: &Keep, dry_run: bool) -> Result<Pruned, RepositoryError> {
    let (manifests, bad) = repository.manifests()?;
    if let Some(error) = bad.into_iter().next() {
        // Its references are unknown, so no piece can be considered unused.
        return Err(error.error);
    }
    if keep.is_nothing() && !manifests.is_empty() {
        let what = "this would remove every backup; keep at least one with --keep-last, --keep-daily or --keep-weekly";
        return Err(RepositoryError::NoSuch(what.into()));
    }
    let Choice { kept, faults } = choose(&manifests, keep, &mut Soundness::new(repository, lock)?)?;
    let (disagreement, branches) = (disagreement(&manifests), other_branches(&manifests));
    let covered_before = coverage(&manifests);
    let (stay, go): (Vec<Manifest>, Vec<Manifest>) =
        manifests.into_iter().partition(|manifest| kept.contains(&manifest.id));
    let names = |manifests: &[Manifest]| manifests.iter().map(|manifest| manifest.id.clone()).collect();
    let covered = coverage(stay.iter().filter(|manifest| !faults.contains_key(&manifest.id)));
    let unsound =
        faults.into_iter().map(|(backup, why)| Unsound { stays: kept.contains(&backup), backup, why }).collect();
    let (kept, removed) = (names(&stay), names(&go));
    let mut pruned = Pruned {
        kept,
        removed,
        unsound,
        disagreement,
        branches,
        covered_before,
        covered,
        dry_run,
        ..Pruned::default()
    };
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
        let names = |keep| kept(&made, &keep).into_iter().collect::<Vec<_>>();
        assert_eq!(names(Keep { last: 2, ..Keep::default() }), ["38", "39"]);
        assert_eq!(names(Keep { daily: 3, ..Keep::default() }), ["35", "37", "39"]);
        assert_eq!(names(Keep { last: 1, daily: 1, weekly: 2, ..Keep::default() }).len(), 2);
        assert!(names(Keep::default()).is_empty());
    }

    #[test]
    fn p13_the_backup_that_reaches_furthest_is_never_removed_whatever_its_time_says() {
        use crate::choice::tests::manifest;
        use crate::repository::Secret;
        use crate::store::LocalStore;

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
                let pruned = prune(&repository, &lock, &keep, true).expect("rehearses");
                assert_eq!(pruned.covered, [(Seq(0), Seq(16))], "{times:?}");
                assert!(pruned.disagreement.is_some_and(|said| said.contains("clock")), "{times:?}");
                assert_eq!(pruned.kept.len(), 2, "one of each log: {:?}", pruned.kept);
            }
            prune(&repository, &lock, &Keep { last: 1, ..Keep::default() }, false).expect("prunes");
            let (left, _) = repository.manifests().expect("lists");
            let mut left: Vec<_> = left.iter().map(|manifest| manifest.seq).collect();
            left.sort();
            assert_eq!(left, [Seq(3), Seq(16)], "{times:?}");
        }
    }

    #[test]
    fn p13_backups_that_cannot_be_restored_take_no_sound_ones_place() {
        use crate::choice::tests::manifest;
        use crate::repository::Secret;
        use crate::store::LocalStore;

        let temp = tempfile::tempdir().expect("temp dir");
        let repository = Repository::open(Box::new(LocalStore::new(temp.path())), Secret::None, true).expect("makes");
        let lock = Lock::take(repository.store(), "prune").expect("takes");
        let keep = Keep { last: 1, ..Keep::default() };
        let pruned = |dry_run| prune(&repository, &lock, &keep, dry_run).expect("prunes");
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

    fn repository(path: &std::path::Path) -> Repository {
        use crate::repository::Secret;
        use crate::store::LocalStore;
        Repository::open(Box::new(LocalStore::new(path)), Secret::None, true).expect("makes")
    }

    const LAST: Keep = Keep { last: 1, daily: 0, weekly: 0, drops_unsound: false, drops_branches: false, own: None };

    #[test]
    fn p13_a_backup_that_cannot_be_restored_stays_while_the_rules_select_it() {
        use crate::choice::tests::manifest;
        let temp = tempfile::tempdir().expect("temp dir");
        let repository = repository(temp.path());
        let lock = Lock::take(repository.store(), "prune").expect("takes");
        let mut all = [manifest(1, 1, 50, 10), manifest(1, 1, 60, 15), manifest(1, 1, 70, 18), manifest(1, 1, 80, 20)];
        // Its pieces are away for a while, for example because a directory is not mounted.
        (all[2].segments[0].bytes, all[2].segments[0].pieces) = (5, vec!["a".repeat(64)]);
        all.iter().for_each(|manifest| repository.put_manifest(manifest).expect("stores"));
        let keep = Keep { last: 2, ..LAST };
        for (keep, kept) in [(keep.clone(), &[1, 2, 3][..]), (Keep { drops_unsound: true, ..keep.clone() }, &[1, 3])] {
            let found = prune(&repository, &lock, &keep, true).expect("rehearses");
            assert_eq!(found.kept, kept.iter().map(|index| all[*index].id.clone()).collect::<Vec<_>>());
            assert_eq!(found.unsound.iter().map(|found| found.stays).collect::<Vec<_>>(), [!keep.drops_unsound]);
            assert_eq!(found.covered_before, [(Seq(0), Seq(20))]);
        }
        // When they are back, nothing is lost.
        prune(&repository, &lock, &keep, false).expect("prunes");
        assert_eq!(repository.manifest(&all[2].id).expect("is there"), all[2]);
        assert!(repository.manifest(&all[0].id).is_err());
    }

    #[test]
    fn p13_the_backup_with_the_latest_register_is_never_removed() {
        use crate::choice::tests::manifest;
        use gravwell_model::MemberName;
        use gravwell_transport::trust::{Authority, CaBackup, Registry, Role};
        const NOW: u64 = 1_800_000_000_000;
        let temp = tempfile::tempdir().expect("temp dir");
        let (dir, place) = (temp.path().join("trust"), temp.path().join("place"));
        let mut register = Registry::open(&dir, NOW).expect("register");
        let authority = Authority::open_or_create(&dir, NOW).expect("authority");
        let seal = |register: &mut Registry| {
            CaBackup::seal(&dir, &authority, register, NOW).expect("seals").to_text().expect("text")
        };
        let early = seal(&mut register);
        let name = MemberName::new("web1").expect("name");
        register.invite(&name, Role::Webserver, 1000, NOW, false).expect("invites");
        let late = seal(&mut register);
        let repository = repository(&place);
        let lock = Lock::take(repository.store(), "prune").expect("takes");
        // The register went back while backups went on.
        let mut all = [10, 20, 30, 40, 50].map(|seq| manifest(1, 1, seq, seq));
        let texts = [&early, &late, &late, &early, &early];
        all.iter_mut().zip(texts).for_each(|(manifest, text)| manifest.escrow.clone_from(text));
        all.iter().for_each(|manifest| repository.put_manifest(manifest).expect("stores"));
        for dry_run in [true, false] {
            let kept = prune(&repository, &lock, &LAST, dry_run).expect("prunes").kept;
            assert_eq!(kept, [all[2].id.clone(), all[4].id.clone()], "{dry_run}");
        }
        // It is put back, and the next backup has it.
        let mut healed = manifest(1, 1, 60, 60);
        healed.escrow = late;
        repository.put_manifest(&healed).expect("stores");
        assert_eq!(prune(&repository, &lock, &LAST, false).expect("prunes").kept, [healed.id]);
    }

    #[test]
    fn p13_the_rules_apply_to_each_branch_of_a_history() {
        use crate::choice::tests::manifest;
        use gravwell_model::{Generation, LineageEntry};
        let entry =
            |generation, shared_to| LineageEntry { generation: Generation(generation), shared_to: Seq(shared_to) };
        let temp = tempfile::tempdir().expect("temp dir");
        let repository = repository(temp.path());
        let lock = Lock::take(repository.store(), "prune").expect("takes");
        // A copy restored for a drill backs up to the same repository, once; the datastore goes on.
        let mut all = [manifest(1, 1, 50, 10), manifest(1, 2, 60, 11), manifest(1, 1, 70, 20), manifest(1, 1, 80, 30)];
        all.iter_mut().for_each(|manifest| manifest.lineage = vec![entry(1, 0)]);
        all[1].lineage.push(entry(2, 10));
        all.iter().for_each(|manifest| repository.put_manifest(manifest).expect("stores"));
        let found = |keep: Keep, dry_run| prune(&repository, &lock, &keep, dry_run).expect("prunes");
        let kept = |keep| found(keep, true).kept;
        let alike = Keep { drops_branches: true, ..LAST };
        let both = kept(alike.clone());
        assert!(both.len() == 2 && [&all[1], &all[3]].iter().all(|one| both.contains(&one.id)), "it goes on: {both:?}");
        let apart = found(LAST, false);
        assert_eq!(apart.kept.len(), 2, "{:?}", apart.kept);
        assert!([&all[1], &all[3]].iter().all(|manifest| apart.kept.contains(&manifest.id)), "{:?}", apart.kept);
        assert_eq!((&apart.covered, &apart.covered), (&apart.covered_before, &vec![(Seq(0), Seq(30))]));
        let said = apart.branches.expect("it is reported");
        assert!(said.contains(&all[3].id) && said.contains(&all[1].id), "{said}");
        // Then only the copy makes backups.
        let mut last = manifest(1, 2, 90, 12);
        last.lineage.clone_from(&all[1].lineage);
        repository.put_manifest(&last).expect("stores");
        repository.remove_manifest(&all[3].id).expect("removes");
        repository.put_manifest(&manifest(1, 1, 55, 40)).expect("stores");
        assert_eq!(kept(alike.clone()), [last.id.clone()], "it was given up");
        // The datastore that asks is on it, also if it was restored from it and has not backed up since.
        let own = |lineage| kept(Keep { own: Some((last.log_id, lineage)), ..alike.clone() });
        for (lineage, number) in [
            (vec![entry(1, 0)], 2),
            (vec![entry(1, 0), entry(3, 40)], 2),
            (vec![entry(1, 0), entry(3, 39)], 1),
            (vec![entry(5, 0)], 1),
        ] {
            let kept = own(lineage.clone());
            assert!(kept.len() == number && kept.contains(&last.id), "{lineage:?}: {kept:?}");
        }
    }

    #[test]
    fn p13_a_shortened_piece_of_contents_makes_a_backup_unsound() {
        use crate::choice::tests::manifest;
        use gravwell_model::ChunkId;
        for is_recorded in [true, false] {
            for length in [1, 500] {
                let temp = tempfile::tempdir().expect("temp dir");
                let repository = repository(temp.path());
                let lock = Lock::take(repository.store(), "prune").expect("takes");
                let backup = |made_ms, seq, contents: &[u8]| {
                    let (piece, _) = repository.put_piece(contents, &mut BTreeSet::new()).expect("stores");
                    let mut made = manifest(1, 1, made_ms, seq);
                    made.chunks = vec![(ChunkId::of(contents), piece.clone())];
                    // Earlier versions did not record lengths.
                    made.chunk_bytes = if is_recorded { vec![contents.len() as u64] } else { Vec::new() };
                    repository.put_manifest(&made).expect("stores");
                    (made.id, temp.path().join("pieces").join(&piece[..2]).join(piece))
                };
                let (sound, _) = backup(50, 10, &[1; 1000]);
                let (cut, file) = backup(60, 11, &[2; 1000]);
                let whole = std::fs::read(&file).expect("reads");
                std::fs::write(&file, &whole[..length]).expect("writes");
                let found = prune(&repository, &lock, &LAST, false).expect("prunes");
                assert_eq!(found.removed, Vec::<String>::new(), "{is_recorded} {length}");
                assert_eq!(found.unsound.len(), 1, "{found:?}");
                assert_eq!((&found.unsound[0].backup, found.unsound[0].stays), (&cut, true));
                assert!(found.kept.contains(&sound));
                std::fs::write(&file, whole).expect("writes");
                let found = prune(&repository, &lock, &LAST, false).expect("prunes");
                assert_eq!((found.kept, found.unsound), (vec![cut], Vec::new()));
            }
        }
    }
}
