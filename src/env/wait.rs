//! Blocks a thread until a future is ready.
//!
//! Needs no runtime: a thread may outlive the runtime of its process, and timers of a stopped runtime panic.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn drive<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let mut future = pin!(future);
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => thread::park(),
            Some(Duration::ZERO) => return None,
            Some(left) => thread::park_timeout(left),
        }
    }
}

/// Waits for `future`, which must not use timers or sockets of a runtime; channels and locks are permitted.
pub fn until<F: Future>(future: F) -> F::Output {
    drive(future, None).unwrap_or_else(|| unreachable!("invariant: without a deadline only the output ends the wait"))
}

/// Waits for `future`, as [`until`] does, for at most `patience`; `None` on timeout.
pub fn at_most<F: Future>(patience: Duration, future: F) -> Option<F::Output> {
    drive(future, Some(Instant::now() + patience))
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_thread_waits_without_a_runtime_and_after_one() {
        let (send, mut receive) = mpsc::channel(1);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(send.send(1)).expect("sent");
        let waiting = thread::spawn(move || {
            let first = until(receive.recv());
            let nothing = at_most(Duration::from_millis(20), receive.recv());
            (first, nothing, at_most(Duration::from_secs(60), receive.recv()))
        });
        drop(runtime);
        thread::sleep(Duration::from_millis(60));
        drop(send);
        assert_eq!(waiting.join().expect("no panic"), (Some(1), None, Some(None)));
    }
}
