//! Acts waiting because the audit cannot be written. They are kept in memory and in a file that was allocated in
//! advance. So a stop of the process loses none of them, even if the disk is full.
//!
//! The file `audit-waiting` starts with a head: the incarnation of its contents, and the number of acts in it. Frames
//! follow, each with a checksum that also covers the incarnation. Acts that do not fit into the file are only counted.
//! Once everything is recorded, a new incarnation starts, which invalidates the old frames. Every act has a number
//! within its incarnation, so an act recorded just before a crash is not recorded again.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use gravwell_env::fs::{first_free, parent_dir};
use gravwell_env::{Entropy as _, SystemEntropy};
use gravwell_model::MemberName;
use gravwell_model::codec::audit::Act;

/// Name of the file in a datastore's directory.
pub(super) const FILE: &str = "audit-waiting";
/// Most waiting acts. Only the number of further acts is recorded.
const ACTS_MAX: usize = 4096;
const FILE_BYTES: u64 = 1 << 20;
const MAGIC: &[u8; 8] = b"GWWAIT1\n";
/// Magic, incarnation, number of acts, checksum.
const HEAD_BYTES: usize = 8 + 8 + 8 + 8;
/// Length and checksum.
const FRAME_HEAD_BYTES: usize = 4 + 8;

/// Acts that are not recorded yet.
#[derive(Default)]
pub(super) struct Waiting {
    acts: VecDeque<(MemberName, Act)>,
    file: Option<Room>,
    /// Number of acts of an earlier process that did not fit into the file or can no longer be read.
    lost_before: u64,
}

/// The open file.
struct Room {
    file: File,
    life: [u8; 8],
    /// Offset of the next frame.
    end: u64,
    /// Number of acts in this incarnation, including those not stored in the file.
    count: u64,
}

/// A file and the acts stored in it.
type Found = (Room, Vec<(MemberName, Act)>);

fn checksum(life: [u8; 8], bytes: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&life).update(bytes);
    hasher.finalize().as_bytes().first_chunk::<8>().copied().unwrap_or_default()
}

fn fresh_life() -> io::Result<[u8; 8]> {
    let mut life = [0; 8];
    SystemEntropy.fill(&mut life).map_err(io::Error::other)?;
    Ok(life)
}

impl Waiting {
    /// Opens the file in a data directory and loads its acts, or creates the file. An invalid file is renamed to the
    /// returned path and replaced by a new one.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or created, for example if the disk is already full.
    pub(super) fn open(&mut self, dir: &Path) -> io::Result<Option<PathBuf>> {
        if self.file.is_some() {
            return Ok(None);
        }
        let path = dir.join(FILE);
        let found = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Some(Room::read(file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut aside = None;
        let (mut room, acts) = match found {
            Some(Some(found)) => found,
            Some(None) => {
                let kept = first_free(|number| dir.join(format!("{FILE}.damaged-{number}")));
                let kept = kept.ok_or(io::ErrorKind::AlreadyExists)?;
                std::fs::rename(&path, &kept)?;
                aside = Some(kept);
                (Room::make(&path)?, Vec::new())
            }
            None => (Room::make(&path)?, Vec::new()),
        };
        self.lost_before += room.count.saturating_sub(acts.len() as u64);
        // Acts received before the file existed.
        for (member, act) in &mut self.acts {
            room.add(member, act);
        }
        self.acts = acts.into_iter().chain(self.acts.drain(..)).collect();
        room.sync();
        self.file = Some(room);
        Ok(aside)
    }

    /// Stores acts and returns how many had to be dropped.
    pub(super) fn keep(&mut self, member: &MemberName, acts: Vec<Act>) -> u64 {
        let mut lost = 0;
        for mut act in acts {
            if self.acts.len() >= ACTS_MAX {
                lost += 1;
                continue;
            }
            if let Some(room) = &mut self.file {
                room.add(member, &mut act);
            }
            self.acts.push_back((member.clone(), act));
        }
        if let Some(room) = &mut self.file {
            room.count += lost;
            room.sync();
        }
        lost
    }

    /// Returns the acts, oldest first.
    pub(super) fn acts(&self) -> impl Iterator<Item = &(MemberName, Act)> {
        self.acts.iter()
    }

    /// Returns the number of lost acts of an earlier process.
    pub(super) fn lost_before(&self) -> u64 {
        self.lost_before
    }

    /// Drops all acts after they were recorded.
    pub(super) fn clear(&mut self) {
        self.acts.clear();
        self.lost_before = 0;
        if let Some(room) = self.file.as_mut().filter(|room| room.count > 0)
            && let Err(error) = room.begin()
        {
            tracing::warn!(%error, "failed to remove recorded acts from `{FILE}`; they will not be recorded again");
        }
    }
}

impl Room {
    /// Creates a file and writes it from end to end, so that its disk space is allocated.
    fn make(path: &Path) -> io::Result<Room> {
        let new = path.with_extension("new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let filled = (0..FILE_BYTES / 4096).try_for_each(|block| file.write_all_at(&[0; 4096], block * 4096));
        let mut room = Room { file, life: fresh_life()?, end: HEAD_BYTES as u64, count: 0 };
        let made = filled.and_then(|()| room.write_head()).and_then(|()| room.file.sync_all());
        if let Err(error) = made.and_then(|()| std::fs::rename(&new, path)) {
            let _ = std::fs::remove_file(&new);
            return Err(error);
        }
        File::open(parent_dir(path))?.sync_all()?;
        Ok(room)
    }

    /// Reads a file. Returns `None` if it is of another version or its head is corrupt.
    fn read(file: File) -> io::Result<Option<Found>> {
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len().min(FILE_BYTES)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let Some((head, mut rest)) = bytes.split_at_checked(HEAD_BYTES) else { return Ok(None) };
        let part = |at: usize| head[at..at + 8].first_chunk::<8>().copied().unwrap_or_default();
        let (life, count) = (part(8), u64::from_le_bytes(part(16)));
        if bytes.len() as u64 != FILE_BYTES || head[..8] != *MAGIC || checksum(life, &head[..24]) != part(24) {
            return Ok(None);
        }
        let (mut acts, mut end) = (Vec::new(), HEAD_BYTES as u64);
        while let Some((head, body)) = rest.split_at_checked(FRAME_HEAD_BYTES) {
            let length = u32::from_le_bytes(head[..4].first_chunk::<4>().copied().unwrap_or_default()) as usize;
            let Some((payload, behind)) = body.split_at_checked(length).filter(|_| length > 0) else { break };
            if checksum(life, payload) != head[4..] {
                break;
            }
            let Ok(act) = postcard::from_bytes(payload) else { break };
            acts.push(act);
            end += (FRAME_HEAD_BYTES + length) as u64;
            rest = behind;
        }
        // Frames behind a corrupt one become readable once that one is overwritten, so sort by number.
        acts.sort_by_key(|(_, act): &(MemberName, Act)| super::reader::number(act).map_or(0, |(_, number)| number));
        let count = count.max(acts.len() as u64);
        Ok(Some((Room { file, life, end, count }, acts)))
    }

    /// Assigns a number to an act, and writes the act if there is space.
    fn add(&mut self, member: &MemberName, act: &mut Act) {
        self.count += 1;
        let life: String = self.life.iter().map(|byte| format!("{byte:02x}")).collect();
        act.id = format!("{life}/{}", self.count);
        let payload = postcard::to_allocvec(&(member, &*act)).expect("invariant: encoding into memory cannot fail");
        let mut frame = u32::try_from(payload.len()).unwrap_or(0).to_le_bytes().to_vec();
        frame.extend_from_slice(&checksum(self.life, &payload));
        frame.extend_from_slice(&payload);
        let after = self.end + frame.len() as u64;
        if after <= FILE_BYTES && self.file.write_all_at(&frame, self.end).is_ok() {
            self.end = after;
        }
    }

    fn write_head(&mut self) -> io::Result<()> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&self.life);
        head.extend_from_slice(&self.count.to_le_bytes());
        head.extend_from_slice(&checksum(self.life, &head));
        self.file.write_all_at(&head, 0)
    }

    fn sync(&mut self) {
        if let Err(error) = self.write_head().and_then(|()| self.file.sync_data()) {
            tracing::error!(%error, "pending audit acts may be lost when the process stops");
        }
    }

    /// Starts a new incarnation, which invalidates everything written so far.
    fn begin(&mut self) -> io::Result<()> {
        (self.life, self.end, self.count) = (fresh_life()?, HEAD_BYTES as u64, 0);
        self.write_head()?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> MemberName {
        MemberName::new("datastore").expect("name")
    }

    fn act(number: u64) -> Act {
        Act { kind: "export".into(), what: format!("number {number}"), count: 1, ..Act::default() }
    }

    fn opened(dir: &Path) -> Waiting {
        let mut waiting = Waiting::default();
        waiting.open(dir).expect("opens");
        waiting
    }

    fn found(waiting: &Waiting) -> Vec<String> {
        waiting.acts().map(|(_, act)| act.what.clone()).collect()
    }

    #[test]
    fn p14_acts_that_wait_are_there_after_a_stop_until_they_are_recorded() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut waiting = opened(temp.path());
        assert_eq!(waiting.keep(&name(), vec![act(1), act(2)]), 0);
        assert_eq!(waiting.keep(&name(), vec![act(3)]), 0);
        let again = opened(temp.path());
        assert_eq!(found(&again), ["number 1", "number 2", "number 3"]);
        let ids: Vec<_> = again.acts().map(|(_, act)| act.id.clone()).collect();
        let mut again = opened(temp.path());
        assert!(again.acts().map(|(_, act)| act.id.clone()).eq(ids.iter().cloned()), "each act keeps its ID");
        again.keep(&name(), vec![act(4)]);
        let numbers: Vec<_> = again.acts().filter_map(|(_, act)| super::super::reader::number(act)).collect();
        assert_eq!(numbers.iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 2, 3, 4]);
        again.clear();
        assert!(found(&opened(temp.path())).is_empty());
        again.keep(&name(), vec![act(5)]);
        assert_eq!(found(&opened(temp.path())), ["number 5"], "nothing of an earlier incarnation");
    }

    #[test]
    fn p14_of_acts_that_find_no_room_the_number_is_there_after_a_stop() {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut waiting = opened(temp.path());
        let long = |number| Act { from: "x".repeat(1000), ..act(number) };
        let lost = waiting.keep(&name(), (1..=4100).map(long).collect());
        assert_eq!(lost, 4, "at most 4096 acts are kept in memory");
        let again = opened(temp.path());
        let there = found(&again).len() as u64;
        assert!((900..1100).contains(&there), "{there}");
        assert_eq!(again.lost_before(), 4100 - there);
        // Acts added at the end are counted as well, and each only once.
        let mut again = again;
        again.keep(&name(), vec![act(5000)]);
        let last = opened(temp.path());
        assert_eq!(found(&last).len() as u64 + last.lost_before(), 4101);
        again.clear();
        assert_eq!((found(&opened(temp.path())).len(), opened(temp.path()).lost_before()), (0, 0));
    }

    #[test]
    fn p14_of_a_damaged_file_everything_is_there_or_missed() {
        let temp = tempfile::tempdir().expect("temp dir");
        opened(temp.path()).keep(&name(), vec![act(1), act(2)]);
        let path = temp.path().join(FILE);
        let whole = std::fs::read(&path).expect("reads");
        let written = whole.iter().rposition(|byte| *byte != 0).expect("not empty") + 1;
        for at in 0..written {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).expect("writes");
            let mut waiting = Waiting::default();
            let aside = waiting.open(temp.path()).expect("opens");
            let (there, lost) = (found(&waiting), waiting.lost_before());
            assert_eq!(there, (1..=there.len()).map(|number| format!("number {number}")).collect::<Vec<_>>(), "{at}");
            match aside {
                Some(aside) => assert!(std::fs::read(aside).expect("is kept") == bytes && there.is_empty(), "{at}"),
                None => assert_eq!((there.len() as u64 + lost, lost > 0), (2, true), "{at}"),
            }
            waiting.keep(&name(), vec![act(3)]);
            assert_eq!(found(&opened(temp.path())).last().map(String::as_str), Some("number 3"), "{at}");
        }
    }
}
