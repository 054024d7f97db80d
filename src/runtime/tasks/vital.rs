//! Threads for the few tasks on which all users depend: applying the log, which delivers locked accounts and other
//! revoked permissions, and checking passwords. Searches, downloads and imports wait for disks and processors on other
//! threads, so they cannot exhaust these, however many there are.

use std::io;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Each piece of work is short and few run at a time: a datastore serves its members with these threads as well.
const THREADS_MAX: usize = 64;

/// A runtime used only for its blocking threads; its scheduler is never driven.
static RUNTIME: LazyLock<io::Result<Runtime>> =
    LazyLock::new(|| Builder::new_current_thread().thread_name("vital").max_blocking_threads(THREADS_MAX).build());

/// Like [`tokio::task::spawn_blocking`], for short work that must not wait behind work of users. Its runtime drives no
/// timers and sockets, so the work cannot wait for tasks.
pub fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match &*RUNTIME {
        Ok(runtime) => runtime.spawn_blocking(work),
        Err(_) => tokio::task::spawn_blocking(work),
    }
}

/// Helpers for tests.
#[cfg(any(test, feature = "testing"))]
pub mod testing {
    use std::sync::{Arc, Mutex, mpsc};
    use std::time::Duration;

    use tokio::runtime::Builder;

    /// Runs a future while all threads for blocking work are in use.
    pub fn without_threads<T>(work: impl Future<Output = T>) -> T {
        let runtime = Builder::new_multi_thread().worker_threads(2).max_blocking_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (free, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for _ in 0..16 {
            let held = Arc::clone(&held);
            runtime.spawn_blocking(move || held.lock().map(|held| held.recv().is_ok()).is_ok());
        }
        let done = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await });
        drop(free);
        done.expect("does not wait for any of them")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn p15_vital_work_does_not_wait_for_threads_that_others_have_taken() {
        let name = super::testing::without_threads(async {
            super::spawn_blocking(|| std::thread::current().name().map(str::to_owned)).await.expect("runs")
        });
        assert_eq!(name.as_deref(), Some("vital"));
    }
}
