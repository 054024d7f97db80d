//! Low-priority threads for bulk work, so that requests for small answers do not wait behind large blobs.
//!
//! The threads belong to a separate runtime and have a low scheduling priority. Work that is large and not urgent runs
//! there: computing chunk ids, reading and writing chunks, and the connections that transfer them.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

/// Nice value of the threads: 0 is the normal priority, 19 the lowest.
const NICE: i32 = 10;
/// Maximum number of threads for work that waits for disks and processors.
const BLOCKING_MAX: usize = 16;

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
/// Locked while the runtime is created. A surplus second runtime could not be dropped, because that mostly happens
/// inside a task.
static MAKING: Mutex<()> = Mutex::new(());

fn made() -> io::Result<Runtime> {
    let lower = || {
        // Applies to this thread only. If it is not permitted, bulk work runs at normal priority.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "failed to lower the priority of a bulk thread");
        }
    };
    let mut builder = Builder::new_multi_thread();
    builder.thread_name("background").max_blocking_threads(BLOCKING_MAX).on_thread_start(lower).enable_all().build()
}

/// Returns the runtime of these threads, which is created at first use; the current runtime if no more threads can be created.
#[must_use]
pub fn handle() -> Handle {
    if let Some(runtime) = RUNTIME.get() {
        return runtime.handle().clone();
    }
    let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return runtime.handle().clone();
    }
    match made() {
        Ok(runtime) => RUNTIME.get_or_init(|| runtime).handle().clone(),
        Err(error) => {
            tracing::warn!(%error, "failed to start the bulk threads; bulk work runs among other work");
            Handle::current()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 16)]
    async fn many_that_come_first_at_once_get_the_one_runtime() {
        let barrier = std::sync::Arc::new(std::sync::Barrier::new(16));
        let asking = (0..16).map(|_| {
            let barrier = std::sync::Arc::clone(&barrier);
            tokio::spawn(async move {
                barrier.wait();
                handle().spawn(async { std::thread::current().name().map(str::to_owned) }).await.expect("runs")
            })
        });
        for asked in asking.collect::<Vec<_>>() {
            assert_eq!(asked.await.expect("no panic").as_deref(), Some("background"));
        }
    }

    #[tokio::test]
    async fn its_threads_give_way_and_others_do_not() {
        let nice = || rustix::process::getpriority_process(None).expect("a priority");
        let before = nice();
        let background = handle().spawn_blocking(nice).await.expect("runs");
        assert_eq!((background, nice()), (NICE.max(before), before));
        let spawned = handle().spawn(async move { nice() }).await.expect("runs");
        assert_eq!(spawned, NICE.max(before));
    }
}
