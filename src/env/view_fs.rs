//! A file system for inspection: it accepts all operations but never writes to a disk.
//!
//! Opening a directory repairs it: torn ends are truncated, files are renamed, leftovers are removed, and files that
//! are built upon are rewritten. Commands that only read open the directory through a view, so they show the result of
//! a start and leave the directory unchanged, whatever its condition.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::fs::{File, Fs, Lock, parent_dir};
use super::real_fs::RealFs;

/// The files of the operating system, overlaid with the changes made through this view, which are in memory.
#[derive(Clone, Debug, Default)]
pub struct ViewFs(Arc<Mutex<BTreeMap<PathBuf, Change>>>);

#[derive(Clone, Debug)]
enum Change {
    File(Arc<dyn File>),
    Directory,
    Removed,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

/// A real file. Writes to it are discarded; callers do not read them back.
#[derive(Debug)]
struct RealView {
    file: Arc<dyn File>,
    /// Length to which the file was truncated.
    end: Mutex<Option<u64>>,
}

impl File for RealView {
    fn len(&self) -> io::Result<u64> {
        let length = self.file.len()?;
        Ok(locked(&self.end).map_or(length, |end| end.min(length)))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.len()?.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_at(&mut buffer[..count], offset)
    }

    fn write_at(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        *locked(&self.end) = Some(length);
        Ok(())
    }

    fn allocate(&self, _length: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A file that exists in the view only.
#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

impl File for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(locked(&self.0).len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = locked(&self.0);
        let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        let mut bytes = locked(&self.0);
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at.checked_add(new.len()).ok_or_else(|| io::Error::other("too long"))?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[at..end].copy_from_slice(new);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        locked(&self.0).resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn allocate(&self, _length: u64) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct NoLock;

impl Lock for NoLock {}

impl ViewFs {
    fn change(&self, path: &Path) -> Option<Change> {
        locked(&self.0).get(path).cloned()
    }

    fn set(&self, path: &Path, change: Change) {
        locked(&self.0).insert(path.to_owned(), change);
    }
}

impl Fs for ViewFs {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        match self.change(path) {
            Some(Change::File(file)) => return Ok(file),
            Some(_) => return Err(not_found()),
            None => {}
        }
        let file: Arc<dyn File> = Arc::new(RealView { file: RealFs.open_to_read(path)?, end: Mutex::default() });
        self.set(path, Change::File(Arc::clone(&file)));
        Ok(file)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file: Arc<dyn File> = Arc::new(MemoryFile::default());
        self.set(path, Change::File(Arc::clone(&file)));
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let file = self.open(from)?;
        self.set(from, Change::Removed);
        self.set(to, Change::File(file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if !self.exists(path)? {
            return Err(not_found());
        }
        self.set(path, Change::Removed);
        Ok(())
    }

    fn sync_dir(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let made = matches!(self.change(directory), Some(Change::Directory)) && !RealFs.exists(directory)?;
        let mut names = if made { Vec::new() } else { RealFs.list(directory)? };
        for (path, change) in locked(&self.0).iter().filter(|(path, _)| parent_dir(path) == directory) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            names.retain(|known| known != name);
            if matches!(change, Change::File(_)) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir_all(&self, directory: &Path) -> io::Result<()> {
        self.set(directory, Change::Directory);
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match self.change(path) {
            Some(change) => Ok(!matches!(change, Change::Removed)),
            None => RealFs.exists(path),
        }
    }

    fn free_space(&self, directory: &Path) -> io::Result<u64> {
        RealFs.free_space(directory)
    }

    fn lock(&self, _path: &Path) -> io::Result<Box<dyn Lock>> {
        Ok(Box::new(NoLock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shows_what_was_done_to_it_and_leaves_the_disk_alone() {
        let temp = tempfile::tempdir().expect("temp dir");
        let at = |name: &str| temp.path().join(name);
        std::fs::write(at("a"), b"0123456789").expect("writes");
        std::fs::write(at("b"), b"b").expect("writes");
        let fs = ViewFs::default();
        fs.open(&at("a")).expect("opens").set_len(4).expect("cuts");
        fs.rename(&at("a"), &at("c")).expect("renames");
        fs.remove(&at("b")).expect("removes");
        fs.create(&at("d")).expect("creates").write_at(b"new", 2).expect("writes");
        assert_eq!(fs.list(temp.path()).expect("lists"), ["c", "d"]);
        let mut buffer = [0; 16];
        assert_eq!(fs.open(&at("c")).expect("opens").read_at(&mut buffer, 1).expect("reads"), 3);
        assert_eq!(fs.open(&at("d")).expect("opens").read_at(&mut buffer, 0).expect("reads"), 5);
        assert_eq!(&buffer[..5], b"\0\0new");
        assert!(fs.open(&at("a")).is_err() && fs.remove(&at("b")).is_err());
        assert_eq!(RealFs.list(temp.path()).expect("lists"), ["a", "b"]);
        assert_eq!(std::fs::read(at("a")).expect("reads"), b"0123456789");
    }
}
