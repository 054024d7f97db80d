//! State shared by all requests.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::StatusCode;
use tokio::sync::watch;

use gravwell_config::webserver::WebserverConfig;
use gravwell_env::quota::{Held, Quota};
use gravwell_objects::Store;
use gravwell_objects::passwords::Policy;
use gravwell_search::searches::Searches;
use gravwell_transport::peer::Peers;

use super::audit_acts::Recorder;
use super::caller::Caller;
use super::code_throttle::Codes;
use super::error::{ApiError, ApiResult};
use super::login_throttle::LoginThrottle;
use super::process_control::ProcessControl;
use super::upload_quota::Uploads;

pub(super) struct App {
    pub store: Store,
    /// Searches that run here, and those whose results are here.
    pub searches: Arc<Searches>,
    /// Other members; `None` in standalone mode.
    pub peers: Option<Peers>,
    pub config: WebserverConfig,
    pub uuid: uuid::Uuid,
    pub limiter: Arc<LoginThrottle>,
    pub codes: Codes,
    /// Records events for the audit that are not transactions.
    pub recorder: Arc<Recorder>,
    pub orders: ProcessControl,
    pub started: Instant,
    pub uploads: Uploads,
    /// Open event streams and WebSocket connections of each user.
    pub streams: Arc<Quota<i32>>,
    /// Whether the webserver runs in standalone mode, with its own log.
    pub stands_alone: bool,
    /// Whether a backup or restore is running.
    pub backup: Mutex<bool>,
    /// Ids of sessions that are being extended.
    pub extending: Mutex<HashSet<String>>,
    /// Whether the webserver is shutting down.
    pub is_draining: AtomicBool,
    /// Becomes true when open streams and sockets must end.
    pub ending: watch::Sender<bool>,
}

/// Shared handle to the state.
pub(super) type AppRef = Arc<App>;

/// Waits until open streams and sockets must end. The future does not keep the webserver alive.
pub(super) fn ending(app: &App) -> impl Future<Output = ()> + Send + 'static + use<> {
    let mut ending = app.ending.subscribe();
    async move { drop(ending.wait_for(|is_ending| *is_ending).await) }
}

impl App {
    /// Reserves one of the user's streams or sockets until the result is dropped.
    pub(super) fn stream_of(&self, caller: &Caller) -> ApiResult<Held<i32>> {
        self.streams.take(caller.person.uid).ok_or_else(|| {
            let max = self.streams.max();
            let message =
                format!("{max} of your streams and sockets are open (Webserver-Max-Streams-Per-User); close some");
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
