//! What all requests share.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::StatusCode;
use tokio::sync::watch;

use crate::config::webserver::WebserverConfig;
use crate::env::quota::{Held, Quota};
use crate::objects::Store;
use crate::objects::ids::Ids;
use crate::objects::passwords::Policy;
use crate::peer::Peers;
use crate::search::searches::Searches;

use super::acts::Recorder;
use super::caller::Caller;
use super::codes::Codes;
use super::error::{ApiError, ApiResult};
use super::limiter::Limiter;
use super::orders::Orders;
use super::uploads::Uploads;

/// A running webserver.
pub(super) struct App {
    pub store: Store,
    /// Searches that run here, and those whose results are here.
    pub searches: Arc<Searches>,
    /// Other members; `None` when it stands alone.
    pub peers: Option<Peers>,
    pub ids: Ids,
    pub config: WebserverConfig,
    pub uuid: uuid::Uuid,
    pub limiter: Arc<Limiter>,
    /// Wrong codes of second factors.
    pub codes: Codes,
    /// Records what happens here and is no transaction.
    pub recorder: Arc<Recorder>,
    pub orders: Orders,
    pub started: Instant,
    /// What users have brought as contents of late.
    pub uploads: Uploads,
    /// Event streams and web sockets of each user.
    pub streams: Arc<Quota<i32>>,
    /// Whether it keeps a log of its own.
    pub stands_alone: bool,
    /// Whether a backup or restore is under way.
    pub backup: Mutex<bool>,
    /// Whether a restore is changing everything.
    pub restoring: Mutex<bool>,
    /// Sessions whose life is being written anew.
    pub extending: Mutex<HashSet<String>>,
    /// Whether it was told to stop.
    pub is_draining: AtomicBool,
    /// True from the moment on at which open streams and sockets end.
    pub ending: watch::Sender<bool>,
}

/// Handle to it.
pub(super) type AppRef = Arc<App>;

/// Waits until open streams and sockets are to end. Holds nothing of the webserver meanwhile.
pub(super) fn ending(app: &App) -> impl Future<Output = ()> + Send + 'static + use<> {
    let mut ending = app.ending.subscribe();
    async move { drop(ending.wait_for(|is_ending| *is_ending).await) }
}

impl App {
    /// A place for a stream or socket of a user, for as long as it is held.
    pub(super) fn stream_of(&self, caller: &Caller) -> ApiResult<Held<i32>> {
        self.streams.take(caller.person.uid).ok_or_else(|| {
            let max = self.streams.max();
            let message =
                format!("{max} streams and sockets of yours are open: close some (Webserver-Max-Streams-Per-User)");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
        })
    }

    pub(super) fn policy(&self) -> Policy {
        let control = &self.config.passwords;
        Policy {
            length_min: control.length_min,
            uppercase: control.uppercase,
            lowercase: control.lowercase,
            number: control.number,
            special: control.special,
        }
    }
}
