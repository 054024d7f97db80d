//! HTTP listener for monitoring: metrics and, on a datastore, lists of members for load balancers and Prometheus. It
//! has no authentication and is intended for loopback or a dedicated network.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use gravwell_datastore::service::ConnectedMembers;

use super::RunError;
use super::bounded_listener::Bounded;
use super::exporter::{self, Exporter};
use crate::balance::{self, Choice, Format};

/// Maximum number of concurrent connections. Clients are not authenticated, and each needs only one.
const CONNECTIONS_MAX: usize = 32;
/// Connections that are idle for longer are closed; exceeds the usual interval between scrapes.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// Media type of the Prometheus text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Running listener; stops when dropped.
pub(super) struct Monitor {
    tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts the listener of a datastore or a webserver, if one is configured.
    pub(super) async fn start_if(
        address: Option<SocketAddr>,
        roster: Option<ConnectedMembers>,
    ) -> Result<Option<Monitor>, RunError> {
        let Some(address) = address else { return Ok(None) };
        let started = start(address, roster).await;
        started.map(Some).map_err(|reason| RunError::Metrics { address, reason })
    }

    /// Waits until one of the listener's tasks has ended, which happens only on failure.
    pub(super) async fn ended(monitor: &mut Option<Monitor>) {
        match monitor {
            Some(monitor) => drop(monitor.tasks.join_next().await),
            None => std::future::pending().await,
        }
    }
}

/// Records metrics and serves them at `address`; if `roster` is given, serves the list of members as well.
///
/// # Errors
/// If the listener or the exporter cannot start; the error is the cause.
pub(super) async fn start(address: SocketAddr, roster: Option<ConnectedMembers>) -> Result<Monitor, String> {
    let listener = TcpListener::bind(address).await.map_err(|error| error.to_string())?;
    // Port 0 selects a free port.
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
        tracing::warn!(%address, "metrics endpoint is unauthenticated");
    }
    tasks.spawn(async move {
        if let Err(error) = axum::serve(Bounded::new(listener, CONNECTIONS_MAX, SILENCE_MAX), router).await {
            tracing::error!(%error, "metrics listener failed");
        }
    });
    Ok(Monitor { tasks })
}

async fn metrics(State(exporter): State<Exporter>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_TYPE)], exporter.text()).into_response()
}

async fn traefik(State(roster): State<ConnectedMembers>, choice: Query<Choice>) -> Response {
    document(Format::Traefik, &roster, &choice)
}

async fn prometheus(State(roster): State<ConnectedMembers>, choice: Query<Choice>) -> Response {
    document(Format::Prometheus, &roster, &choice)
}

fn document(format: Format, roster: &ConnectedMembers, choice: &Choice) -> Response {
    if let Err(wrong) = choice.check(format) {
        return (StatusCode::BAD_REQUEST, wrong).into_response();
    }
    let (backends, left_out) = balance::backends(&roster.backends(), choice);
    left_out.iter().for_each(|what| tracing::debug!(what, "webserver left out of balancer configuration"));
    let text = balance::render(format, &backends, choice);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}
