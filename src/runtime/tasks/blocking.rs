//! Runs long CPU-bound work on the current thread without blocking other tasks.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Runs long work. On a multi-threaded runtime, tasks that wait for the same thread are moved to another one.
pub fn run<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn other_work_continues_concurrently() {
        let (said, heard) = channel();
        tokio::spawn(async move { super::run(|| heard.recv().expect("the other task is run")) });
        // Both tasks share the one worker: this task runs only if `run` releases the worker.
        tokio::spawn(async move { said.send(()).expect("is waited for") }).await.expect("ends");
    }

    #[tokio::test]
    async fn it_is_done_on_a_single_thread_as_well() {
        assert_eq!(super::run(|| 7), 7);
    }
}
