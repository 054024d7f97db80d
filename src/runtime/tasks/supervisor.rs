//! Supervises tasks and threads that a service needs: if one ends before its service does, the service reports that
//! instead of appearing healthy.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use futures_util::FutureExt;

/// Supervises the parts of one service.
#[derive(Clone, Debug, Default)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_stopping: AtomicBool,
    has_failed: AtomicBool,
    ended: Mutex<Vec<String>>,
    /// Watches of services within this one.
    inner: Mutex<Vec<Supervisor>>,
    #[cfg(any(test, feature = "testing"))]
    orders: testing::Orders,
}

impl Supervisor {
    /// Wraps `work` as a part that must not end before the service. Dropping it, for example when its task is aborted,
    /// does not count as an end.
    pub fn lasting<W: Future<Output = ()>>(&self, name: &'static str, work: W) -> impl Future<Output = ()> + use<W> {
        #[cfg(any(test, feature = "testing"))]
        let work = self.0.orders.obeyed(name, work);
        let watch = self.clone();
        async move {
            let returned = AssertUnwindSafe(work).catch_unwind().await.is_ok();
            watch.note(name, if returned { "has returned" } else { "has panicked" });
        }
    }

    /// Wraps `work` as a part that may end, but must not panic.
    pub fn passing<W: Future<Output = ()>>(&self, name: &'static str, work: W) -> impl Future<Output = ()> + use<W> {
        let watch = self.clone();
        async move {
            if AssertUnwindSafe(work).catch_unwind().await.is_err() {
                watch.note(name, "has panicked");
            }
        }
    }

    /// Starts a thread that ends when its service does. With `ends_process`, a panic of the thread ends the process;
    /// used for threads that write durable data, which must not continue half alive.
    ///
    /// # Errors
    /// If the operating system cannot create a thread.
    pub fn thread(
        &self,
        name: &'static str,
        ends_process: Option<fn(&'static str) -> !>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let watch = self.clone();
        let watched = move || match (std::panic::catch_unwind(AssertUnwindSafe(work)), ends_process) {
            (Ok(()), _) => watch.note(name, "has returned"),
            (Err(_), Some(end)) => {
                watch.fail(&format!("task `{name}` has panicked"));
                end(name)
            }
            (Err(_), None) => watch.note(name, "has panicked"),
        };
        std::thread::Builder::new().name(name.into()).spawn(watched)
    }

    /// Records that the service is stopping, so parts may end from now on.
    pub fn stop(&self) {
        self.0.is_stopping.store(true, Ordering::Release);
    }

    /// Includes the parts of a service within this one.
    pub fn include(&self, inner: Supervisor) {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner).push(inner);
    }

    /// Records that the process has to end: from now on it accepts nothing, for as long as shutdown takes.
    pub fn fail(&self, what: &str) {
        self.0.has_failed.store(true, Ordering::Release);
        self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).push(what.to_owned());
    }

    /// Returns whether the process has to end.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        let inner = || self.0.inner.lock().unwrap_or_else(PoisonError::into_inner).iter().any(Supervisor::has_failed);
        self.0.has_failed.load(Ordering::Acquire) || inner()
    }

    fn note(&self, name: &str, how: &str) {
        if self.0.is_stopping.load(Ordering::Acquire) {
            return;
        }
        tracing::error!(part = name, "task {how}; restart the process to run it again");
        self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).push(format!("task `{name}` {how}"));
    }

    /// Returns the parts that have ended, for display; empty while all parts work.
    #[must_use]
    pub fn ended(&self) -> String {
        let ended = self.parts();
        if ended.is_empty() { String::new() } else { format!("{}: start the process again", ended.join(", ")) }
    }

    fn parts(&self) -> Vec<String> {
        let mut parts = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let inner = self.0.inner.lock().unwrap_or_else(PoisonError::into_inner);
        parts.extend(inner.iter().flat_map(Supervisor::parts));
        parts
    }
}

#[cfg(any(test, feature = "testing"))]
mod testing {
    use futures_util::future::Either;
    use tokio::sync::watch;

    use super::*;

    /// Whether supervisors that are made from now on obey orders. No program sets it, so programs with and without the
    /// feature run the same code.
    static ARE_OBEYED: AtomicBool = AtomicBool::new(false);

    /// The part that a test has ordered to end, and the names of all parts.
    #[derive(Debug)]
    pub(super) struct Orders {
        end: watch::Sender<&'static str>,
        names: Mutex<Vec<&'static str>>,
        are_obeyed: bool,
    }

    impl Default for Orders {
        fn default() -> Orders {
            let are_obeyed = ARE_OBEYED.load(Ordering::Acquire);
            Orders { end: watch::channel("").0, names: Mutex::default(), are_obeyed }
        }
    }

    impl Orders {
        pub(super) fn obeyed<W: Future<Output = ()>>(
            &self,
            name: &'static str,
            work: W,
        ) -> impl Future<Output = ()> + use<W> {
            if !self.are_obeyed {
                return Either::Left(work);
            }
            let mut ordered = self.end.subscribe();
            self.names.lock().expect("names").push(name);
            Either::Right(async move {
                tokio::select! {
                    () = work => {}
                    _ = ordered.wait_for(|ordered| *ordered == name) => panic!("{name} was requested to end"),
                }
            })
        }
    }

    impl Supervisor {
        /// Lets the parts of services that start from now on obey [`Supervisor::end_each`].
        pub fn obey_orders() {
            ARE_OBEYED.store(true, Ordering::Release);
        }

        /// Ends each part in turn and waits until `said` contains its name. Returns the names of all parts.
        pub async fn end_each(&self, said: impl Fn() -> String) -> Vec<&'static str> {
            assert_eq!(said(), "", "no task has ended before");
            let mut names = self.0.orders.names.lock().expect("names").clone();
            for name in &names {
                self.0.orders.end.send_replace(name);
                while !said().contains(&format!("`{name}` has panicked")) {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            names.sort_unstable();
            names
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn parts_that_end_are_named_unless_the_service_ends() {
        let watch = Supervisor::default();
        watch.passing("first", async {}).await;
        tokio::spawn(watch.lasting("aborted", std::future::pending())).abort();
        assert_eq!(watch.ended(), "");
        watch.lasting("second", async {}).await;
        watch.thread("third", None, || panic!("a bug")).expect("starts").join().expect("is caught");
        assert_eq!(watch.ended(), "task `second` has returned, task `third` has panicked: start the process again");
        let stopping = Supervisor::default();
        stopping.stop();
        stopping.lasting("fourth", async {}).await;
        assert_eq!(stopping.ended(), "");
    }
}
