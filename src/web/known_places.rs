//! Places from which names have logged in before. They are stored across restarts, so that a webserver restarted during
//! an attack does not treat all users as unknown. The file is bounded in size and holds keyed hashes together with
//! their secret.

use std::collections::HashMap;
use std::path::Path;

use super::login_queue::Key;
use gravwell_env::checksummed_text;
use gravwell_env::data_dir::replace_file;
use gravwell_objects::sessions::{hex, random};

/// Maximum number of stored pairs of name and place.
pub(super) const KNOWN_MAX: usize = 20_000;
/// Maximum size of a file that is read.
const FILE_BYTES_MAX: u64 = 2 << 20;

/// Pairs of name and place, ordered by their last login.
pub(super) struct KnownPlaces {
    /// Key of the hashes of names and places.
    pub secret: [u8; 32],
    last: HashMap<Key, u64>,
    next: u64,
    is_changed: bool,
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl KnownPlaces {
    /// Returns an empty set with a new secret.
    ///
    /// # Errors
    /// If no random bytes are available.
    pub(super) fn new() -> std::io::Result<KnownPlaces> {
        Ok(KnownPlaces { secret: random()?, last: HashMap::new(), next: 0, is_changed: false })
    }

    /// Reads a file. Without a valid file the set is empty, which only makes logins slower.
    ///
    /// # Errors
    /// If no random bytes are available.
    pub(super) fn open(file: &Path) -> std::io::Result<KnownPlaces> {
        let is_small = std::fs::metadata(file).is_ok_and(|of_file| of_file.len() <= FILE_BYTES_MAX);
        let text = is_small.then(|| std::fs::read_to_string(file).ok()).flatten();
        match text.and_then(|text| Self::read(&text)) {
            Some(known) => Ok(known),
            None => Self::new(),
        }
    }

    fn read(text: &str) -> Option<KnownPlaces> {
        let mut lines = checksummed_text::open(text).ok()?.lines();
        let mut known = KnownPlaces { secret: unhex(lines.next()?)?, last: HashMap::new(), next: 0, is_changed: false };
        for line in lines.take(KNOWN_MAX) {
            known.note(unhex(line)?);
        }
        known.is_changed = false;
        Some(known)
    }

    fn text(&self) -> String {
        let mut keys: Vec<(u64, &Key)> = self.last.iter().map(|(key, at)| (*at, key)).collect();
        keys.sort_unstable();
        let lines = keys.into_iter().map(|(_, key)| hex(key));
        let lines: Vec<String> = std::iter::once(hex(&self.secret)).chain(lines).collect();
        checksummed_text::seal(&lines.join("\n"))
    }

    /// Returns the text to be written if the set has changed since the last call.
    pub(super) fn changed(&mut self) -> Option<String> {
        std::mem::take(&mut self.is_changed).then(|| self.text())
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.last.contains_key(key)
    }

    /// Records a login. When the set is full, evicts the pair that was unused for the longest time.
    pub(super) fn note(&mut self, key: Key) {
        if self.last.len() >= KNOWN_MAX
            && !self.last.contains_key(&key)
            && let Some(oldest) = self.last.iter().min_by_key(|(_, at)| **at).map(|(key, _)| *key)
        {
            self.last.remove(&oldest);
        }
        self.last.insert(key, self.next);
        self.next += 1;
        self.is_changed = true;
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }
}

/// Writes the file. A failure is only logged, because its only effect is that later logins are slower.
pub(super) fn write(file: &Path, text: &str) {
    if let Err(error) = replace_file(file, text.as_bytes()) {
        tracing::warn!(%error, file = %file.display(), "failed to store the known login addresses");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_known_places_outlive_the_process_within_a_bound_and_a_damaged_file_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("known-places");
        let mut known = KnownPlaces::open(&file).expect("no file yet");
        assert!(known.is_empty() && known.changed().is_none());
        let key = |number: usize| {
            let mut key = Key::default();
            key[..8].copy_from_slice(&number.to_le_bytes());
            key
        };
        (0..KNOWN_MAX).for_each(|number| known.note(key(number)));
        // The first key is used again, so the second one is the oldest.
        known.note(key(0));
        known.note(key(KNOWN_MAX));
        let text = known.changed().expect("is new");
        assert!(known.changed().is_none() && text.len() as u64 <= FILE_BYTES_MAX);
        write(&file, &text);
        let mut again = KnownPlaces::open(&file).expect("reads");
        assert_eq!((again.secret, again.last.len()), (known.secret, KNOWN_MAX));
        assert!(again.contains(&key(0)) && !again.contains(&key(1)) && again.contains(&key(KNOWN_MAX)));
        again.note(key(KNOWN_MAX + 1));
        assert!(again.contains(&key(0)) && !again.contains(&key(2)), "the order is preserved");
        let mut damaged = text.clone().into_bytes();
        damaged[100] ^= 1;
        for damaged in [damaged, Vec::new(), b"x".to_vec(), text.as_bytes()[..1000].to_vec()] {
            std::fs::write(&file, damaged).expect("writes");
            assert!(KnownPlaces::open(&file).expect("none").is_empty());
        }
    }
}
