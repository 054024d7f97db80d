//! Traefik 3: one router, one service with a sticky cookie and a health check, and one servers transport.

use serde_json::{Value, json};

use super::{Backend, COOKIE, Choice, Hop, READY};

const NAME: &str = "gravwell";
const RETRY: &str = "gravwell-retry";

/// Renders JSON, which is also valid YAML: the HTTP provider reads JSON, the file provider YAML.
pub(super) fn render(backends: &[Backend], choice: &Choice) -> String {
    if backends.is_empty() {
        // Traefik rejects a service without servers.
        return "{}\n".into();
    }
    let scheme = if choice.backend == Hop::Http { "http" } else { "https" };
    let servers: Vec<Value> =
        backends.iter().map(|backend| json!({ "url": format!("{scheme}://{}", backend.address()) })).collect();
    let is_plain_entry = choice.entry_point == "web";
    let mut router = json!({
        "entryPoints": [choice.entry_point],
        "rule": choice.rule,
        "service": NAME,
        "middlewares": [RETRY],
    });
    if !is_plain_entry {
        router["tls"] = json!({});
    }
    let mut balancer = json!({
        "servers": servers,
        "passHostHeader": true,
        "sticky": { "cookie": { "name": COOKIE, "secure": !is_plain_entry, "httpOnly": true, "sameSite": "lax" } },
        "healthCheck": { "path": READY, "interval": "3s", "timeout": "2s" },
        "responseForwarding": { "flushInterval": "100ms" },
    });
    let mut http = json!({
        "routers": { NAME: router },
        // Traefik retries only requests that could not be delivered, so no request is executed twice.
        "middlewares": { RETRY: { "retry": { "attempts": 3, "initialInterval": "50ms" } } },
    });
    if choice.backend != Hop::Http {
        balancer["serversTransport"] = json!(NAME);
        http["serversTransports"] = json!({ NAME: transport(choice) });
    }
    http["services"] = json!({ NAME: { "loadBalancer": balancer } });
    let mut text = serde_json::to_string_pretty(&json!({ "http": http })).unwrap_or_default();
    text.push('\n');
    text
}

fn transport(choice: &Choice) -> Value {
    if choice.backend == Hop::HttpsUnverified {
        return json!({ "insecureSkipVerify": true });
    }
    let mut transport = json!({ "insecureSkipVerify": false });
    if let Some(ca) = &choice.backend_ca {
        transport["rootCAs"] = json!([ca]);
    }
    if let Some(name) = &choice.backend_name {
        transport["serverName"] = json!(name);
    }
    transport
}
