//! Verification of all stored chunks against their IDs.

use super::error::{ChunkError, Damage};
use super::format::{PackHeader, pack_name, table_name};
use super::index::Location;
use super::pack::locked;
use super::recovery::{load_table, read_header};
use super::store::{ChunkStore, Fault, StoreState};

impl ChunkStore {
    /// Reads every chunk and compares it with its ID. Returns the corrupt locations; their chunks are treated as
    /// missing from now on. `progress` receives the number of bytes done and the total. Chunks can be read and written
    /// concurrently; garbage collection waits.
    ///
    /// # Errors
    /// If a file cannot be opened for a reason other than corruption.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Vec<Damage>, ChunkError> {
        let shared = &self.shared;
        let _one = locked(&shared.collecting);
        let packs: Vec<(u32, u64)> = shared.packs.lock().iter().map(|(number, pack)| (*number, pack.bytes)).collect();
        let total = packs.iter().map(|(_, bytes)| bytes).sum();
        let (mut done, mut damages) = (0, Vec::new());
        for (number, bytes) in packs {
            let mut at = done;
            damages.extend(self.verify_files(number, bytes));
            for row in shared.rows(number) {
                let place = Location::of(number, &row);
                // Frames that the index does not point to are garbage.
                if shared.index.get(&row.id) != Some(place) {
                    continue;
                }
                match shared.read_frame(&row.id, place) {
                    Ok(_) => {}
                    Err(Fault::Io(error)) => return Err(error),
                    Err(Fault::Damaged(what)) => damages.extend(shared.lose(&row.id, place, what)),
                }
                at += place.frame_bytes();
                progress(at.min(total), total);
            }
            done += bytes;
            progress(done, total);
        }
        Ok(damages)
    }

    /// Checks the header and the index of a pack. Writes an unusable index again.
    fn verify_files(&self, number: u32, bytes: u64) -> Vec<Damage> {
        let shared = &self.shared;
        let mut damages = Vec::new();
        if let Err(what) = shared.read_header(number) {
            damages.push(Damage { id: None, file: pack_name(number), offset: 0, what });
        }
        let is_tabled = shared.packs.lock().get(&number).is_some_and(|pack| pack.is_done && pack.rows.is_none());
        if is_tabled && let Err(what) = load_table(shared, number, bytes) {
            damages.push(Damage { id: None, file: table_name(number), offset: 0, what });
            shared.remake_table(number);
        }
        damages
    }
}

impl StoreState {
    fn read_header(&self, number: u32) -> Result<(), String> {
        let file = self.files.get(number).map_err(|error| format!("cannot be opened: {error}"))?;
        read_header(&*file, number).map(|_| ())
    }

    /// Writes the index of a finished pack again, from memory.
    fn remake_table(&self, number: u32) {
        let rows = self.rows(number);
        let header = match self.packs.lock().get_mut(&number) {
            Some(pack) => {
                pack.rows = Some(rows);
                PackHeader { number, created_ms: pack.created_ms }
            }
            None => return,
        };
        let bytes = self.packs.lock().get(&number).map_or(0, |pack| pack.bytes);
        self.write_table(header, bytes, true);
    }
}
