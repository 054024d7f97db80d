//! Work that keeps a processor busy for a while, done where it is asked for without keeping other tasks waiting.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does something long. Tasks that wait for the same thread go on elsewhere meanwhile, where there is an elsewhere.
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
    async fn others_go_on_meanwhile() {
        let (said, heard) = channel();
        tokio::spawn(async move { super::run(|| heard.recv().expect("the other task is run")) });
        // On the one worker: it runs only if that is given away.
        tokio::spawn(async move { said.send(()).expect("is waited for") }).await.expect("ends");
    }

    #[tokio::test]
    async fn it_is_done_on_a_single_thread_as_well() {
        assert_eq!(super::run(|| 7), 7);
    }
}
