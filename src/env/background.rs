//! Threads for bulk, which give way to all others: whoever waits for a small answer does not wait behind large contents.
//!
//! They are a runtime of their own with a low priority among the threads of the machine. Work that is much and urgent for
//! nobody goes there: naming, reading and writing chunks, and the connections that carry them.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

/// Priority of the threads, from 0, that of others, to 19.
const NICE: i32 = 10;
/// Threads for work that waits for disks and processors.
const BLOCKING_MAX: usize = 16;

static RUNTIME: OnceLock<Runtime> = OnceLock::new();
/// Held by who makes the runtime. A second one could not be dropped where it is made: that is mostly within a task.
static MAKING: Mutex<()> = Mutex::new(());

fn made() -> io::Result<Runtime> {
    let lower = || {
        // Of the thread alone. Where it is not allowed, bulk is as good as everything else.
        if let Err(error) = rustix::process::setpriority_process(None, NICE) {
            tracing::debug!(%error, "the priority of a thread for bulk stays as it is");
        }
    };
    let mut builder = Builder::new_multi_thread();
    builder.thread_name("background").max_blocking_threads(BLOCKING_MAX).on_thread_start(lower).enable_all().build()
}

/// The runtime of these threads, made when it is first needed; the caller's own where no more threads can be had.
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
            tracing::warn!(%error, "there are no threads for bulk: it goes among everything else");
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
