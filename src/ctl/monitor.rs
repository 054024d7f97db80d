//! A small HTTP listener for those who watch a process: metrics, and on a datastore what balancers and Prometheus need to
//! know of its members. It has no authentication; it is meant for loopback or a network of its own.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::balance::{self, Choice, Format};
use crate::datastore::service::Roster;
use crate::telemetry::exporter::{self, Exporter};

use super::bounded::Bounded;

/// Connections at the same time. Whoever watches needs one, and nothing here says who that is.
const CONNECTIONS_MAX: usize = 32;
/// A connection on which nothing moves for longer is closed: longer than between two scrapes.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// Media type of the text form of metrics.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The listener; it ends when this is dropped.
pub(super) struct Monitor {
    tasks: JoinSet<()>,
}

impl Monitor {
    /// Waits until one of its tasks has ended, which none does by itself.
    pub(super) async fn ended(monitor: &mut Option<Monitor>) {
        match monitor {
            Some(monitor) => drop(monitor.tasks.join_next().await),
            None => std::future::pending().await,
        }
    }
}

/// Records metrics and serves them at `address`; with a roster, the members as well.
///
/// # Errors
/// Says why it cannot.
pub(super) async fn start(address: SocketAddr, roster: Option<Roster>) -> Result<Monitor, String> {
    let listener = TcpListener::bind(address).await.map_err(|error| error.to_string())?;
    // Port 0 is whichever was free.
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    tracing::info!(%address, "serving metrics");
    let exporter = exporter::start().map_err(|error| error.to_string())?;
    let mut tasks = JoinSet::new();
    tasks.spawn(exporter.clone().keep_up());
    let mut router = Router::new().route("/metrics", get(metrics)).with_state(exporter);
    if let Some(roster) = roster {
        let members = Router::new().route("/traefik", get(traefik)).route("/prometheus", get(prometheus));
        router = router.merge(members.with_state(roster));
    }
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "whoever reaches this address sees metrics and names of members");
    }
    tasks.spawn(async move {
        if let Err(error) = axum::serve(Bounded::new(listener, CONNECTIONS_MAX, SILENCE_MAX), router).await {
            tracing::error!(%error, "the listener for metrics ended");
        }
    });
    Ok(Monitor { tasks })
}

async fn metrics(State(exporter): State<Exporter>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], exporter.text()).into_response()
}

async fn traefik(State(roster): State<Roster>, choice: Query<Choice>) -> Response {
    document(Format::Traefik, &roster, &choice)
}

async fn prometheus(State(roster): State<Roster>, choice: Query<Choice>) -> Response {
    document(Format::Prometheus, &roster, &choice)
}

fn document(format: Format, roster: &Roster, choice: &Choice) -> Response {
    if let Err(wrong) = choice.check(format) {
        return (StatusCode::BAD_REQUEST, wrong).into_response();
    }
    let (backends, left_out) = balance::backends(&roster.backends(), choice);
    left_out.iter().for_each(|what| tracing::debug!(what, "left out of what balancers are told"));
    let text = balance::render(format, &backends, choice);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
