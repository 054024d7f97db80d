//! Serving a consistent snapshot of the whole state to a member that cannot be served a tail.
//!
//! A state may be large, and a receiver may read it slowly or not at all. So a member gets only one at a time, readers
//! leave a slot to webservers, and slow receivers yield to waiting ones.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::AsyncWrite;
use tokio::sync::{Notify, Semaphore};

use gravwell_model::codec::message::Open;
use gravwell_transport::state_stream;
use gravwell_transport::wire::WireError;

pub use gravwell_transport::state_stream::{begin, end, rows_of};

use super::pins::{Pins, Transfer};
use super::shared::DatastoreRef;
use gravwell_model::{MemberName, Seq};
use gravwell_transport::trust::Role;

/// Most concurrent transfers, in total and to readers. Other requests wait.
const AT_ONCE: usize = 2;
const TO_READERS: usize = 1;
/// A transfer without progress for this long is aborted if others wait.
const STALLED_MAX: Duration = Duration::from_secs(10);
/// A transfer below this rate, in bytes per second over this time, is aborted if others wait.
const SLOW_BYTES_PER_S: u64 = 256 << 10;
const SLOW_AFTER: Duration = Duration::from_secs(60);
/// A transfer without progress for this long is always aborted.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(60);
/// A transfer below this rate, in bytes per second over this time, is always aborted, because its snapshot must not be
/// held forever.
const USELESS_BYTES_PER_S: u64 = 16 << 10;
const USELESS_AFTER: Duration = Duration::from_secs(600);
/// Interval at which progress is checked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Running and waiting transfers of snapshots.
pub(super) struct Snapshots {
    all: Semaphore,
    readers: Semaphore,
    waiting: AtomicUsize,
    /// The latest request of each member.
    current: Mutex<HashMap<MemberName, Request>>,
}

#[derive(Clone)]
struct Request {
    /// Aborts the request.
    ends: Arc<Notify>,
    /// Held while a request is served, so that the member's next request starts after it has ended.
    turn: Arc<Semaphore>,
}

/// Counts a waiting request until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(waiting: &'a AtomicUsize) -> Waiting<'a> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The latest request of a member; unregisters itself on drop.
struct Newest<'a> {
    snapshots: &'a Snapshots,
    member: &'a MemberName,
    request: Request,
}

impl Drop for Newest<'_> {
    fn drop(&mut self) {
        let mut current = self.snapshots.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.get(self.member).is_some_and(|request| Arc::ptr_eq(&request.ends, &self.request.ends)) {
            current.remove(self.member);
        }
    }
}

/// Returns whether a transfer must yield to waiting ones.
fn gives_way(bytes: u64, elapsed: Duration, stalled: Duration) -> bool {
    let is_slow = elapsed >= SLOW_AFTER && bytes / elapsed.as_secs().max(1) < SLOW_BYTES_PER_S;
    stalled >= STALLED_MAX || is_slow
}

/// Returns whether a transfer is aborted even if no other waits.
fn is_useless(bytes: u64, elapsed: Duration, stalled: Duration) -> bool {
    let is_slow = elapsed >= USELESS_AFTER && bytes / elapsed.as_secs().max(1) < USELESS_BYTES_PER_S;
    stalled >= GIVEN_UP_AFTER || is_slow
}

fn given_up(reason: &str) -> WireError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, reason.to_owned()).into()
}

impl Snapshots {
    pub(super) fn new() -> Snapshots {
        Snapshots {
            all: Semaphore::new(AT_ONCE),
            readers: Semaphore::new(TO_READERS),
            waiting: AtomicUsize::new(0),
            current: Mutex::default(),
        }
    }

    /// Registers a member's latest request and aborts its previous one: the member has abandoned that, or cannot
    /// use two.
    fn newest<'a>(&'a self, member: &'a MemberName) -> Newest<'a> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let former = current.get(member);
        let turn = former.map_or_else(|| Arc::new(Semaphore::new(1)), |former| Arc::clone(&former.turn));
        if let Some(former) = former {
            former.ends.notify_one();
        }
        let request = Request { ends: Arc::new(Notify::new()), turn };
        current.insert(member.clone(), request.clone());
        Newest { snapshots: self, member, request }
    }

    /// Runs a transfer to a member when it is its turn. `taken` counts the bytes received.
    async fn in_turn<T>(
        &self,
        member: &MemberName,
        role: Role,
        taken: &AtomicU64,
        sending: impl Future<Output = Result<T, WireError>>,
    ) -> Result<T, WireError> {
        let newest = self.newest(member);
        let work = async {
            let _turn = newest.request.turn.acquire().await.map_err(std::io::Error::other)?;
            let waiting = Waiting::new(&self.waiting);
            let _of_readers = match role {
                Role::Reader => Some(self.readers.acquire().await.map_err(std::io::Error::other)?),
                _ => None,
            };
            let _of_all = self.all.acquire().await.map_err(std::io::Error::other)?;
            drop(waiting);
            tokio::select! {
                sent = sending => sent,
                why = self.obstructs(taken) => Err(given_up(why)),
            }
        };
        tokio::select! {
            biased;
            () = newest.request.ends.notified() => Err(given_up("the member requested a state again")),
            done = work => done,
        }
    }

    /// Waits until the transfer has to be aborted, and returns the reason.
    async fn obstructs(&self, taken: &AtomicU64) -> &'static str {
        let (mut begun, mut bytes, mut moved) = (Instant::now(), 0, Instant::now());
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = taken.load(Ordering::Relaxed);
            if now != bytes {
                // Until then the transfer waited for the index.
                begun = if bytes == 0 { Instant::now() } else { begun };
                (bytes, moved) = (now, Instant::now());
            }
            let (elapsed, stalled) = (begun.elapsed(), moved.elapsed());
            if self.waiting.load(Ordering::Relaxed) > 0 && gives_way(bytes, elapsed, stalled) {
                return "the state was read too slowly while other members waited for one";
            }
            if bytes > 0 && is_useless(bytes, elapsed, stalled) {
                return "the state was not read";
            }
        }
    }
}

/// Counts the bytes written to a stream.
struct Counted<'a, W> {
    inner: &'a mut W,
    taken: &'a AtomicU64,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Counted<'_, W> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut *self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = &written {
            self.taken.fetch_add(*count as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(cx)
    }
}

/// Pins the entries after a snapshot during and shortly after its transfer, so that they are not compacted.
struct Pinned<'a> {
    pins: &'a Pins,
    member: &'a MemberName,
    transfer: Transfer,
    is_sent: bool,
}

impl<'a> Pinned<'a> {
    /// Readers pin the horizon only if configured. A reader that falls behind the horizon fetches another state.
    fn new(shared: &'a DatastoreRef, member: &'a MemberName, role: Role, seq: Seq) -> Option<Pinned<'a>> {
        if role == Role::Reader && !shared.config.readers_hold_compaction {
            return None;
        }
        let transfer = shared.pins.begin(seq, Instant::now());
        Some(Pinned { pins: &shared.pins, member, transfer, is_sent: false })
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // A partial state is useless.
        self.pins.end(self.transfer, self.is_sent.then(|| (self.member, Instant::now())));
    }
}

/// Sends a snapshot; waits while too many others are being sent.
pub(super) async fn serve(
    shared: &DatastoreRef,
    (member, role): (&MemberName, Role),
    open: Open,
    send: &mut quinn::SendStream,
) -> Result<(), WireError> {
    let taken = AtomicU64::new(0);
    let sending = async {
        // The snapshot must not be older than the visible head, because the member may already hold all entries up
        // to it.
        super::commit_thread::wait_applied(shared, shared.head()).await;
        let snapshot = shared.state.snapshot().map_err(std::io::Error::other)?;
        let seq = snapshot.meta().map_or(Seq::ZERO, |meta| meta.seq);
        let mut pinned = Pinned::new(shared, member, role, seq);
        // Start counting progress here.
        taken.store(1, Ordering::Relaxed);
        let mut counted = Counted { inner: &mut *send, taken: &taken };
        state_stream::write(snapshot, open, shared.redaction_for(role), &mut counted).await?;
        if let Some(pinned) = &mut pinned {
            pinned.is_sent = true;
        }
        Ok(())
    };
    shared.snapshots.in_turn(member, role, &taken, sending).await?;
    send.finish().map_err(std::io::Error::other)?;
    gravwell_runtime::telemetry::metrics::snapshot_served();
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn member(name: &str) -> MemberName {
        MemberName::new(name).expect("a name")
    }

    /// A transfer of which the receiver reads nothing.
    async fn unread() -> Result<(), WireError> {
        std::future::pending().await
    }

    async fn taken() -> Result<(), WireError> {
        Ok(())
    }

    #[tokio::test]
    async fn p15_readers_that_take_nothing_leave_a_place_to_webservers() {
        let (snapshots, count) = (Snapshots::new(), AtomicU64::new(0));
        let (first, second, web) = (member("r1"), member("r2"), member("w1"));
        let mut held = Box::pin(snapshots.in_turn(&first, Role::Reader, &count, unread()));
        assert!((&mut held).now_or_never().is_none());
        let mut waits = Box::pin(snapshots.in_turn(&second, Role::Reader, &count, taken()));
        assert!((&mut waits).now_or_never().is_none(), "another reader waits");
        snapshots.in_turn(&web, Role::Webserver, &count, taken()).await.expect("a webserver does not wait");
        // The first member requests again, and its previous transfer is aborted.
        let mut again = Box::pin(snapshots.in_turn(&first, Role::Reader, &count, unread()));
        assert!((&mut again).now_or_never().is_none());
        held.await.expect_err("replaced by the newest");
        waits.await.expect("the next one is served first");
        drop(again);
        assert!(snapshots.current.lock().expect("not poisoned").is_empty());
        assert_eq!(snapshots.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn p15_who_does_not_get_on_gives_way() {
        let s = Duration::from_secs;
        let table = [
            (0, s(5), s(5), false),
            (0, s(10), s(10), true),
            (100 << 20, s(50), s(11), true),
            (1 << 20, s(59), s(1), false),
            (1 << 20, s(60), s(1), true),
            (100 << 20, s(120), s(1), false),
        ];
        for (bytes, elapsed, stalled, wanted) in table {
            assert_eq!(gives_way(bytes, elapsed, stalled), wanted, "{bytes} {elapsed:?} {stalled:?}");
        }
    }

    #[test]
    fn p15_who_takes_nothing_for_a_minute_or_next_to_nothing_is_given_up_whoever_waits() {
        let s = Duration::from_secs;
        let table = [
            (1, s(59), s(59), false),
            (1, s(60), s(60), true),
            (100 << 20, s(70), s(60), true),
            (8 << 20, s(599), s(1), false),
            (8 << 20, s(600), s(1), true),
            (16 << 20, s(600), s(1), false),
        ];
        for (bytes, elapsed, stalled, wanted) in table {
            assert_eq!(is_useless(bytes, elapsed, stalled), wanted, "{bytes} {elapsed:?} {stalled:?}");
        }
    }

    #[tokio::test]
    async fn p15_nobody_is_given_up_while_nobody_waits() {
        let (snapshots, count) = (Snapshots::new(), AtomicU64::new(0));
        let waits = tokio::time::timeout(LOOK_EVERY * 2, snapshots.obstructs(&count)).await;
        assert!(waits.is_err());
    }
}
