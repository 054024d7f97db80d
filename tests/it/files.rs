//! Copies and changes of files that keep holes: most of the storage engine's journal is one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

/// Bytes that are written at once, or left out if all are zero.
const BLOCK: usize = 64 << 10;

/// Copies the directory of a stopped process to `to`.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("lists").map(|entry| entry.expect("entry")) {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().expect("type") {
            kind if kind.is_dir() => copy_dir(&path, &target),
            kind if kind.is_file() => copy(&path, &target),
            _ => {}
        }
    }
}

/// Copies a file with its mode.
pub fn copy(from: &Path, to: &Path) {
    let source = File::open(from).expect("opens");
    let meta = source.metadata().expect("metadata");
    let target = File::create(to).expect("creates");
    target.set_permissions(meta.permissions()).expect("sets the mode");
    let mut at = 0;
    while let Ok(start) = seek(&source, SeekFrom::Data(at)) {
        at = seek(&source, SeekFrom::Hole(start)).expect("finds the end");
        let mut bytes = vec![0; usize::try_from(at - start).expect("fits")];
        source.read_exact_at(&mut bytes, start).expect("reads");
        write_blocks(&target, &bytes, start);
    }
    target.set_len(meta.len()).expect("sets the length");
}

/// Replaces the contents of a file.
pub fn write(path: &Path, bytes: &[u8]) {
    let file = File::create(path).expect("creates");
    write_blocks(&file, bytes, 0);
    file.set_len(bytes.len() as u64).expect("sets the length");
}

fn write_blocks(file: &File, bytes: &[u8], start: u64) {
    for (number, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, start + (number * BLOCK) as u64).expect("writes");
        }
    }
}

#[test]
fn copies_are_equal_and_keep_holes() {
    use std::os::unix::fs::MetadataExt as _;

    let temp = tempfile::tempdir().expect("temp dir");
    let (one, other) = (temp.path().join("one"), temp.path().join("other"));
    let mut bytes = vec![0; 8 << 20];
    bytes[..5].copy_from_slice(b"first");
    bytes[3 << 20] = 7;
    for length in [bytes.len(), (3 << 20) + 1, 5, 0] {
        write(&one, &bytes[..length]);
        copy(&one, &other);
        assert!(fs::read(&one).expect("reads") == bytes[..length], "{length}");
        assert!(fs::read(&other).expect("reads") == bytes[..length], "{length}");
        assert!(fs::metadata(&other).expect("metadata").blocks() * 512 < 1 << 20, "{length}");
    }
}
