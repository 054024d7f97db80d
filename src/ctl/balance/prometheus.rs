//! Prometheus: one target per webserver, at its metrics port.

use serde_json::{Value, json};

use super::{Backend, Choice};

pub(super) fn render(backends: &[Backend], choice: &Choice) -> String {
    let target = |backend: &Backend| {
        let metrics = Backend { port: choice.metrics_port, ..backend.clone() };
        json!({ "targets": [metrics.address()], "labels": { "job": "gravwell_webserver", "member": backend.name } })
    };
    let groups: Vec<Value> = backends.iter().map(target).collect();
    let mut text = serde_json::to_string_pretty(&groups).unwrap_or_default();
    text.push('\n');
    text
}
