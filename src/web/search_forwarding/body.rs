//! Streaming of results to a client: block by block, as fast as the client reads.
//!
//! Each block holds a work slot while it is produced, and reserves memory from the user's share of buffered data until
//! the client has read it. So the downloads of one user, however many, take few threads and little memory.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::body_budget::{ANSWERS, Share};
use crate::error::{ApiError, ApiResult};
use gravwell_env::quota::{Held, Quota};
use gravwell_search::render::{About, Format, Rendering, Step};
use gravwell_search::results::Results;
use gravwell_search::searches::Places;

/// Stream of pieces of a file; an error ends the connection, so that a partial file is not mistaken for a whole one.
pub(crate) type Bytestream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Sender of the pieces. It is closed once the receiving side has dropped its pieces.
pub(super) type To = mpsc::Sender<io::Result<Bytes>>;

/// Pieces that may wait for the client, in addition to the one being read and the one being produced.
const WAITING: usize = 1;
/// Size of a piece of a results file that is sent unchanged.
const PIECE_BYTES: usize = 256 << 10;
/// Estimated memory per byte of a block, with its rows and rendered output, and a constant overhead in bytes.
const FACTOR: usize = 4;
const LITTLE: usize = 4 << 10;

/// Maximum number of downloads of one user, running or queued; a further one is rejected.
const DOWNLOADS_OF_USER: usize = 256;
static UNDER_WAY: LazyLock<Arc<Quota<i32>>> = LazyLock::new(|| Quota::new(DOWNLOADS_OF_USER));

/// Returns the pieces of a sender up to an empty one. If the sender is dropped before that, the stream ends with
/// an error.
pub(super) fn stream_of(receiver: mpsc::Receiver<io::Result<Bytes>>) -> Bytestream {
    Box::pin(futures_util::stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Ok(bytes)) if bytes.is_empty() => None,
            Some(Ok(bytes)) => Some((Ok(bytes), Some(receiver))),
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    }))
}

/// Sends a piece as soon as the client has read the previous ones.
pub(super) async fn hand_over(to: &To, item: io::Result<Bytes>) -> io::Result<()> {
    to.send(item).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

/// Bytes with their memory reservation, which is released with the last reference.
struct Roomed {
    bytes: Vec<u8>,
    _room: Arc<Share>,
}

impl AsRef<[u8]> for Roomed {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Wraps bytes so that they count until they were read; the reservation shrinks from the estimate to their size.
pub(super) fn with_room(mut bytes: Vec<u8>, room: Arc<Share>) -> Bytes {
    bytes.shrink_to_fit();
    room.resize(bytes.capacity());
    Bytes::from_owner(Roomed { bytes, _room: room })
}

/// Waits for a future, or until the client is gone.
async fn unless_gone<T>(to: &To, waited_for: impl Future<Output = T>) -> io::Result<T> {
    tokio::select! {
        waited = waited_for => Ok(waited),
        () = to.closed() => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Reserves memory for data buffered for a user.
pub(super) async fn room(to: &To, uid: i32, bytes: usize) -> io::Result<Arc<Share>> {
    unless_gone(to, Share::waited_for(&ANSWERS, uid, bytes)).await
}

/// A download of a user, and the slots in which its work is done.
pub(super) struct Download {
    pub results: Arc<Results>,
    pub about: About,
    pub format: Format,
    pub uid: i32,
    pub places: Arc<Places>,
}

impl Download {
    /// Streams the results; while the search runs, until it ends.
    ///
    /// # Errors
    /// If too many downloads of the user are running.
    pub(super) fn begin(self) -> ApiResult<Bytestream> {
        let under_way = UNDER_WAY.take(self.uid).ok_or_else(|| {
            let message = format!("{DOWNLOADS_OF_USER} of your downloads are in progress; wait for one to finish");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        })?;
        let (to, receiver) = mpsc::channel(WAITING);
        tokio::spawn(self.run(to, under_way));
        Ok(stream_of(receiver))
    }

    async fn run(self, to: To, under_way: Held<i32>) {
        let end = self.give(&to).await.map(|()| Bytes::new());
        // The receiver may already be gone.
        let _ = hand_over(&to, end).await;
        // The download counts until its buffered data was read or dropped.
        to.closed().await;
        drop(under_way);
    }

    /// Runs a unit of work on a blocking thread. The work itself holds the slot, so that the slot is released only when
    /// the work ends, even if the caller no longer waits for it.
    async fn slice<T: Send + 'static>(&self, to: &To, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let place = unless_gone(to, self.places.take(self.uid)).await??;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        working.await.map_err(io::Error::other)
    }

    async fn give(&self, to: &To) -> io::Result<()> {
        let mut progress = self.results.watch();
        if Rendering::must_be_complete(&self.about, self.format) {
            let _ = unless_gone(to, progress.wait_for(|progress| progress.is_finished)).await?;
        }
        if self.format == Format::Archive {
            return self.copy(to).await;
        }
        let mut rendering = Rendering::new(Arc::clone(&self.results), self.about.clone(), self.format);
        loop {
            // Progress after this point wakes the next wait.
            progress.borrow_and_update();
            let room = room(to, self.uid, FACTOR * rendering.next_block_bytes() + LITTLE).await?;
            let (back, step) = self
                .slice(to, move || {
                    let step = rendering.step();
                    (rendering, step)
                })
                .await?;
            rendering = back;
            match step.map_err(io::Error::other)? {
                Step::End => return Ok(()),
                Step::Bytes(bytes) if bytes.is_empty() => {}
                Step::Bytes(bytes) => hand_over(to, Ok(with_room(bytes, room))).await?,
                Step::Wait => {
                    drop(room);
                    if unless_gone(to, progress.changed()).await?.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn copy(&self, to: &To) -> io::Result<()> {
        let mut offset = 0;
        loop {
            let room = room(to, self.uid, PIECE_BYTES).await?;
            let results = Arc::clone(&self.results);
            let bytes = self.slice(to, move || results.piece(offset, PIECE_BYTES)).await??;
            if bytes.is_empty() {
                return Ok(());
            }
            offset += bytes.len() as u64;
            hand_over(to, Ok(with_room(bytes, room))).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::StreamExt;

    use super::*;
    use gravwell_search::results::Writer;
    use gravwell_search::row::Row;

    /// Returns results of so many blocks, each of one large row.
    fn results(blocks: i64) -> Arc<Results> {
        let temp = tempfile::tempdir().expect("temp dir");
        let mut writer = Writer::create(&temp.path().join("r"), (0, 1)).expect("creates");
        let results = writer.results();
        for time in 0..blocks {
            let data = format!("{{\"a\":\"{}\"}}", "x".repeat(300 << 10)).into();
            writer.push(&Row { time, tag: 0, data }).expect("writes");
        }
        writer.finish().expect("finishes");
        results
    }

    fn download(results: &Arc<Results>, format: Format, uid: i32, places: &Arc<Places>) -> Download {
        let about = About { tags: vec!["a".into()], columns: None, range: None };
        Download { results: Arc::clone(results), about, format, uid, places: Arc::clone(places) }
    }

    async fn until(what: impl Fn() -> bool) {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn waits_of(uid: i32) -> usize {
        Share::bytes_of(&ANSWERS, uid)
    }

    #[tokio::test]
    async fn p15_a_part_is_not_the_whole() {
        let (to, receiver) = mpsc::channel(1);
        hand_over(&to, Ok("a".into())).await.expect("has room");
        drop(to);
        let mut stream = stream_of(receiver);
        assert_eq!(stream.next().await.expect("a piece").expect("is there"), "a");
        assert!(stream.next().await.expect("not the end").is_err());
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn what_is_whole_ends_with_an_empty_piece() {
        let (to, receiver) = mpsc::channel(2);
        for piece in ["a", ""] {
            hand_over(&to, Ok(piece.into())).await.expect("has room");
        }
        let pieces: Vec<_> = stream_of(receiver).map(|piece| piece.expect("is there")).collect().await;
        assert_eq!(pieces, ["a"]);
        assert!(hand_over(&to, Ok("c".into())).await.is_err(), "the receiver is gone");
    }

    #[tokio::test]
    async fn p15_downloads_of_one_user_wait_in_line_for_few_places_and_leave_others_theirs() {
        let (results, places) = (results(3), Arc::new(Places::new(4, 2)));
        let held = [places.take(901).await.expect("free"), places.take(901).await.expect("free")];
        let all: Vec<_> = (0..64)
            .map(|number| {
                let format = if number % 2 == 0 { Format::Csv } else { Format::Text };
                download(&results, format, 901, &places).begin().expect("is queued")
            })
            .collect();
        let mut all: Vec<_> = all.into_iter().map(StreamExt::collect::<Vec<_>>).map(tokio::spawn).collect();
        let other = download(&results, Format::Csv, 902, &places).begin().expect("begins").collect::<Vec<_>>().await;
        assert!(other.iter().all(Result::is_ok), "another user has separate slots");
        assert!(all.iter().all(|one| !one.is_finished()), "the user's slots are taken");
        drop(held);
        for one in &mut all {
            let pieces = one.await.expect("no panic");
            let bytes: usize = pieces.into_iter().map(|piece| piece.expect("is whole").len()).sum();
            assert!(bytes > 900 << 10);
        }
        until(|| waits_of(901) == 0).await;
    }

    #[tokio::test]
    async fn p15_the_work_for_a_client_that_is_gone_ends_with_its_block() {
        let (results, places) = (results(200), Arc::new(Places::new(1, 1)));
        let held = places.take(903).await.expect("free");
        let gone: Vec<_> =
            (0..100).map(|_| download(&results, Format::Csv, 903, &places).begin().expect("waits")).collect();
        drop(gone);
        drop(held);
        // If the work of the dropped downloads were still done this would take minutes.
        let place = tokio::time::timeout(Duration::from_secs(20), places.take(903)).await;
        drop(place.expect("dropped downloads leave the queue"));
        until(|| waits_of(903) == 0).await;
    }

    #[tokio::test]
    async fn p15_what_waits_of_downloads_counts_and_is_little_until_the_client_is_gone() {
        let (results, places) = (results(50), Arc::new(Places::new(8, 8)));
        let mut all: Vec<_> =
            (0..64).map(|_| download(&results, Format::Text, 904, &places).begin().expect("begins")).collect();
        // Each holds one piece that waits and one that is ready to be sent.
        until(|| waits_of(904) == 64 * 2 * ((300 << 10) + 9)).await;
        let piece = all[0].next().await.expect("a piece").expect("frame is ok");
        assert!(piece.len() > 300 << 10);
        all.clear();
        until(|| waits_of(904) == piece.len()).await;
        drop(piece);
        assert_eq!(waits_of(904), 0);
    }

    #[tokio::test]
    async fn p15_only_so_many_downloads_of_one_user_are_under_way() {
        let (results, places) = (results(1), Arc::new(Places::new(8, 8)));
        let begin = || download(&results, Format::Archive, 905, &places).begin();
        let all: Vec<_> = (0..DOWNLOADS_OF_USER).map(|_| begin().expect("begins")).collect();
        assert_eq!(begin().err().map(|error| error.status()), Some(StatusCode::TOO_MANY_REQUESTS));
        drop(all);
        until(|| begin().is_ok()).await;
        let whole = begin().expect("begins").map(|piece| piece.expect("frame is ok").to_vec()).concat().await;
        assert!(whole.starts_with(b"gwresult") && whole.len() as u64 == results.progress().bytes);
    }
}
