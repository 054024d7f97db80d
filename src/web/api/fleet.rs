//! The fleet as seen by this webserver: itself, the datastore, and the connected members.

use axum::Json;
use axum::extract::State;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::system::reasons;

use crate::app::AppRef;
use crate::authorization::{AccessRequirement, Right};
use crate::caller::Caller;
use crate::route::{Route, get};
use gravwell_model::codec::admin::{PresenceInfo, Request, Status};
use gravwell_model::codec::health;
use gravwell_replica::Reply;

pub(crate) fn routes() -> Vec<Route> {
    vec![get(
        "/api/fleet",
        AccessRequirement::User(Right::Capability("SystemInfoRead")),
        "Returns the state of webserver, datastore and members.",
        fleet,
    )]
}

fn items<T: DeserializeOwned>(reply: &Reply) -> Vec<T> {
    reply.items.iter().filter_map(|item| serde_json::from_slice(item).ok()).collect()
}

/// Returns this webserver's own state, which needs no other member.
pub(super) fn own(app: &AppRef) -> Value {
    let status = app.store.replica().status();
    json!({
        "Name": app.store.via(),
        "UUID": app.uuid,
        "Version": status.version,
        "ExternalAddr": app.config.external_addr,
        "StandsAlone": app.stands_alone,
        "Log": status.log_id,
        "Generation": status.generation,
        "Digest": status.digest,
        "Seq": status.seq,
        "Head": status.head,
        "LagOps": status.lag_ops,
        "LagMs": status.lag_ms,
        "Outbox": status.outbox,
        "Rejected": status.rejected,
        "Connected": status.connected,
        "Trouble": status.trouble,
        "Healthy": status.healthy,
        "Level": status.health.level,
        "Reasons": reasons(&status),
        "Problem": status.problem,
        "Remedy": status.remedy,
        "Objects": status.objects,
        "UptimeMs": u64::try_from(app.started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

async fn fleet(State(app): State<AppRef>, caller: Caller) -> Json<Value> {
    let replica = app.store.replica();
    let (status, presence) = tokio::join!(
        replica.request_from_datastore(&Request::Status),
        replica.request_from_datastore(&Request::Presence)
    );
    let admin = caller.person.admin;
    let datastore = status.ok().and_then(|reply| items::<Status>(&reply).pop()).map(|mut status| {
        health::assess(&mut status);
        json!({
            "Version": status.version,
            "Address": admin.then(|| replica.status().address),
            "Seq": status.seq,
            "Head": status.head,
            "Horizon": status.horizon,
            "Floor": status.floor,
            "Generation": status.generation,
            "Digest": status.digest,
            "Subscribers": status.subscribers,
            "Objects": status.objects,
            "LogBytes": status.log_bytes,
            "DiskFreeBytes": status.disk_free_bytes,
            "Healthy": status.healthy,
            "Level": status.health.level,
            "Reasons": reasons(&status),
            "Problem": status.problem,
            "UptimeMs": status.uptime_ms,
        })
    });
    let members: Vec<Value> = presence
        .map(|reply| items::<PresenceInfo>(&reply))
        .unwrap_or_default()
        .into_iter()
        .map(|member| {
            json!({
                "Name": member.name,
                "Role": member.role,
                "Address": admin.then_some(member.address),
                "ExternalAddr": member.external_addr,
                "Applied": member.applied,
                "Outbox": member.outbox,
                "Rejected": member.rejected,
                "Unhealthy": member.unhealthy,
                "Software": member.software,
                "SinceMs": member.since_ms,
            })
        })
        .collect();
    Json(json!({ "Webserver": own(&app), "Datastore": datastore, "Members": members }))
}
