//! Limit of the bytes that each user may upload as contents within a time. Unreferenced chunks are kept for
//! `Chunk-Grace-Hours`, so uploads that are abandoned or replaced take disk space like those that are kept.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use super::app::App;
use super::error::{ApiError, ApiResult};

/// Divisor of the disk size that gives the default limit.
const PART: u64 = 8;
/// Uploads within this time are counted as one piece.
const GATHER: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Brought {
    all: u64,
    /// Time and size of each piece.
    pieces: VecDeque<(Instant, u64)>,
}

#[derive(Debug)]
pub(super) struct Uploads {
    most: u64,
    within: Duration,
    of_users: Mutex<HashMap<i32, Brought>>,
}

impl Uploads {
    /// Allows each user `most` bytes `within` a time; 0 means an eighth of the disk that holds `dir`.
    pub(super) fn new(most: u64, within: Duration, dir: &Path) -> Uploads {
        let size = || rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
        let most = if most == 0 { size() / PART } else { most };
        Uploads { most, within, of_users: Mutex::default() }
    }

    fn of_users(&self) -> MutexGuard<'_, HashMap<i32, Brought>> {
        self.of_users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_at(&self, uid: i32, bytes: u64, now: Instant) -> bool {
        let mut of_users = self.of_users();
        let is_over = |at: &Instant| now.saturating_duration_since(*at) >= self.within;
        // Expires the entries of all users, so that nothing is kept of users who no longer upload.
        of_users.retain(|_, brought| {
            while let Some((_, bytes)) = brought.pieces.front().filter(|(at, _)| is_over(at)).copied() {
                brought.all -= bytes;
                brought.pieces.pop_front();
            }
            !brought.pieces.is_empty()
        });
        let brought = of_users.entry(uid).or_default();
        if brought.all.saturating_add(bytes) > self.most {
            return false;
        }
        brought.all += bytes;
        match brought.pieces.back_mut() {
            Some((at, sum)) if now.saturating_duration_since(*at) < GATHER => *sum += bytes,
            _ => brought.pieces.push_back((now, bytes)),
        }
        true
    }

    /// Counts bytes that a user uploads.
    ///
    /// # Errors
    /// If the user exceeds the limit.
    fn take(&self, uid: i32, bytes: u64) -> ApiResult<()> {
        if self.take_at(uid, bytes, Instant::now()) {
            return Ok(());
        }
        let (most, hours) = (self.most >> 20, self.within.as_secs() / 3600);
        let message = format!(
            "upload quota exceeded: one user may upload {most} MiB within {hours} h to one webserver, including \
             replaced and cancelled uploads (Upload-User-MB); wait, or ask an administrator"
        );
        Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message))
    }
}

/// Counts bytes that a user uploads; administrators, who import, are exempt.
///
/// # Errors
/// If the user exceeds the limit.
pub(super) fn take(app: &App, person: &gravwell_objects::sharing::Principal, bytes: u64) -> ApiResult<()> {
    if person.admin { Ok(()) } else { app.uploads.take(person.uid, bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_each_user_brings_so_much_within_the_time() {
        let hour = Duration::from_secs(3600);
        let uploads = Uploads::new(100, 24 * hour, Path::new("/"));
        let start = Instant::now();
        assert!(uploads.take_at(1, 60, start) && uploads.take_at(1, 40, start + hour));
        assert!(!uploads.take_at(1, 1, start + 23 * hour));
        assert!(uploads.take_at(2, 100, start + 23 * hour), "another user has a separate limit");
        assert!(uploads.take_at(1, 60, start + 24 * hour), "the first uploads are outside the interval");
        assert!(!uploads.take_at(1, 1, start + 24 * hour));
        assert!(uploads.take_at(3, 1, start + 100 * hour));
        assert_eq!(uploads.of_users().len(), 1, "idle users are forgotten");
    }

    #[test]
    fn p15_an_upload_of_many_pieces_is_counted_in_few() {
        let uploads = Uploads::new(u64::MAX, Duration::from_secs(3600), Path::new("/"));
        let start = Instant::now();
        (0..1000).for_each(|_| assert!(uploads.take_at(1, 1 << 16, start)));
        assert_eq!(uploads.of_users()[&1].pieces.len(), 1);
        let whole = Uploads::new(0, Duration::from_secs(1), Path::new("/")).most;
        assert!(whole > 0 && whole < u64::MAX / PART, "the default is a fraction of the disk: {whole}");
    }
}
