use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use gravwell_model::codec::admin::{MemberInfo, PresenceInfo};

fn member(name: &str, address: Option<&str>) -> MemberInfo {
    MemberInfo {
        name: name.into(),
        role: "webserver".into(),
        state: "enrolled".into(),
        counts: true,
        external_addr: address.map(str::to_owned),
        ..MemberInfo::default()
    }
}

fn listed(members: &[MemberInfo], presence: &[PresenceInfo]) -> (Vec<Backend>, Vec<String>) {
    backends(&BackendInfo::among(members, presence), &Choice::default())
}

fn two() -> Vec<Backend> {
    let members = [member("web1", Some("web1.example.net:443")), member("web2", Some("[fd00::2]:8443"))];
    let (mut found, left_out) = listed(&members, &[]);
    assert!(left_out.is_empty(), "{left_out:?}");
    found[0].addresses = ["192.0.2.1:443", "192.0.2.2:443"].map(|address| address.parse().expect("an address")).into();
    found
}

#[test]
fn p11_each_webserver_is_checked_for_a_name_of_its_own() {
    let nginx = render(Format::Nginx, &two(), &Choice::default());
    for line in [
        "proxy_ssl_name $gravwell_name;",
        "volatile;",
        "\"~(^|[, ])192\\.0\\.2\\.1:443$\" web1.example.net;",
        "\"~(^|[, ])192\\.0\\.2\\.2:443$\" web1.example.net;",
        // A webserver known only by its address is verified by the shared name, unless its certificate has the
        // member name.
        "\"~(^|[, ])\\[fd00::2\\]:8443$\" webserver.gravwell.internal;",
        "server 192.0.2.1:443 max_fails=1",
        "server [fd00::2]:8443 max_fails=1",
    ] {
        assert!(nginx.contains(line), "{line}: {nginx}");
    }
    let of_members = Choice { member_names: true, ..Choice::default() };
    for format in [Format::Nginx, Format::Haproxy] {
        let text = render(format, &two(), &of_members);
        assert!(text.contains("web1.webserver.gravwell.internal") && text.contains("web2.webserver.gravwell.internal"));
        assert!(!text.contains(" webserver.gravwell.internal"), "{text}");
    }
    assert!(of_members.check(Format::Traefik).is_err());
    let one_name = Choice { backend_name: Some("shared.example.net".into()), ..Choice::default() };
    let nginx = render(Format::Nginx, &two(), &one_name);
    assert!(nginx.contains("proxy_ssl_name shared.example.net;") && !nginx.contains("$upstream_addr"), "{nginx}");
    assert!(nginx.contains("server web1.example.net:443 max_fails=1"), "{nginx}");

    // nginx does not start if a name cannot be resolved.
    let mut backends = two();
    backends[0].addresses.clear();
    let nginx = render(Format::Nginx, &backends, &Choice::default());
    assert!(nginx.contains("server 127.0.0.1:9 down; # web1: web1.example.net has no address"), "{nginx}");
    assert!(!nginx.contains("server web1"), "{nginx}");
}

#[test]
fn offline_members_are_kept_and_revoked_ones_are_removed() {
    let mut members =
        vec![member("b", Some("b:1")), member("a", Some("a:1")), member("gone", Some("g:1")), member("r", Some("r:1"))];
    members[2].state = "revoked".into();
    members[3].role = "reader".into();
    members.push(MemberInfo { counts: false, ..member("forgotten", Some("f:1")) });
    members.push(MemberInfo { counts: false, connected: true, ..member("new", Some("n:1")) });
    members.push(member("mute", None));
    let presence = [PresenceInfo {
        name: "b".into(),
        external_addr: Some("b.elsewhere:2".into()),
        unhealthy: Some("it differs".into()),
        ..PresenceInfo::default()
    }];
    let (found, left_out) = listed(&members, &presence);
    let addresses: Vec<String> = found.iter().map(Backend::address).collect();
    assert_eq!(addresses, ["a:1", "b.elsewhere:2", "n:1"]);
    assert_eq!(found[1].unhealthy.as_deref(), Some("it differs"));
    assert!(left_out.len() == 1 && left_out[0].starts_with("mute announces no External-Addr"), "{left_out:?}");
}

#[test]
fn an_address_is_a_host_and_a_port_and_nothing_else() {
    let good =
        [("web1", ("web1", 443)), ("10.0.0.1:80", ("10.0.0.1", 80)), ("[::1]:9", ("::1", 9)), ("::1", ("::1", 443))];
    for (text, (host, port)) in good {
        assert_eq!(host_and_port(text), Ok((host.to_owned(), port)), "{text}");
    }
    let bad = [
        "", "a:0", "a:x", "a b:1", "a;:1", "a\n:1", "a{}:1", "a/b:1", "-a:1", "a..b:1", "[::1:9", "::g", "a:1:2",
        "a:65536",
    ];
    for text in bad {
        assert!(host_and_port(text).is_err(), "{text}");
    }
    // An invalid address is reported, and the other webservers are listed.
    let (found, left_out) = listed(&[member("a", Some("a:1; } server {")), member("b", Some("b:1"))], &[]);
    assert_eq!((found.len(), left_out.len()), (1, 1));
}

#[test]
fn a_member_cannot_point_the_balancer_at_itself_unless_the_operator_allows_it() {
    let members = [
        member("a", Some("127.0.0.1:9407")),
        member("b", Some("[::1]:9407")),
        member("c", Some("169.254.169.254:80")),
        member("d", Some("localhost:80")),
        member("e", Some("[::ffff:127.0.0.1]:80")),
        member("f", Some("0.0.0.0:80")),
        member("good", Some("192.0.2.1:443")),
    ];
    let (found, left_out) = listed(&members, &[]);
    assert_eq!(found.iter().map(|backend| backend.name.as_str()).collect::<Vec<_>>(), ["good"]);
    assert!(left_out.len() == 6 && left_out.iter().all(|what| what.contains("--allow-local-backends")), "{left_out:?}");
    let choice = Choice { allow_local_backends: true, ..Choice::default() };
    assert_eq!(backends(&BackendInfo::among(&members, &[]), &choice).0.len(), members.len());
}

/// The part of Traefik 3's dynamic configuration used here, as its reference documents it: every member of an object,
/// with the type of its value. `*` stands for freely chosen names.
const TRAEFIK: &[(&str, &[(&str, &str)])] = &[
    ("", &[("http", "object")]),
    (
        "http",
        &[("routers", "object"), ("services", "object"), ("middlewares", "object"), ("serversTransports", "object")],
    ),
    ("http.routers", &[("*", "object")]),
    (
        "http.routers.*",
        &[
            ("entryPoints", "array"),
            ("middlewares", "array"),
            ("service", "string"),
            ("rule", "string"),
            ("ruleSyntax", "string"),
            ("priority", "number"),
            ("tls", "object"),
        ],
    ),
    ("http.routers.*.tls", &[("options", "string"), ("certResolver", "string"), ("domains", "array")]),
    ("http.middlewares", &[("*", "object")]),
    ("http.middlewares.*", &[("retry", "object")]),
    ("http.middlewares.*.retry", &[("attempts", "number"), ("initialInterval", "duration")]),
    ("http.services", &[("*", "object")]),
    ("http.services.*", &[("loadBalancer", "object")]),
    (
        "http.services.*.loadBalancer",
        &[
            ("servers", "array"),
            ("sticky", "object"),
            ("healthCheck", "object"),
            ("passHostHeader", "boolean"),
            ("responseForwarding", "object"),
            ("serversTransport", "string"),
        ],
    ),
    ("http.services.*.loadBalancer.servers", &[("url", "string"), ("weight", "number"), ("preservePath", "boolean")]),
    ("http.services.*.loadBalancer.sticky", &[("cookie", "object")]),
    (
        "http.services.*.loadBalancer.sticky.cookie",
        &[
            ("name", "string"),
            ("secure", "boolean"),
            ("httpOnly", "boolean"),
            ("sameSite", "string"),
            ("maxAge", "number"),
        ],
    ),
    (
        "http.services.*.loadBalancer.healthCheck",
        &[
            ("path", "string"),
            ("interval", "duration"),
            ("timeout", "duration"),
            ("scheme", "string"),
            ("method", "string"),
            ("hostname", "string"),
            ("port", "number"),
            ("headers", "object"),
            ("followRedirects", "boolean"),
        ],
    ),
    ("http.services.*.loadBalancer.responseForwarding", &[("flushInterval", "duration")]),
    ("http.serversTransports", &[("*", "object")]),
    (
        "http.serversTransports.*",
        &[
            ("serverName", "string"),
            ("insecureSkipVerify", "boolean"),
            ("rootCAs", "array"),
            ("disableHTTP2", "boolean"),
        ],
    ),
];

fn check(path: &str, value: &Value) {
    let schema: BTreeMap<&str, &[(&str, &str)]> = TRAEFIK.iter().copied().collect();
    match value {
        Value::Object(object) => {
            let allowed = schema.get(path).unwrap_or_else(|| panic!("{path} is not in the schema"));
            for (name, value) in object {
                let row = allowed.iter().find(|(known, _)| known == name || *known == "*");
                let (known, kind) = row.unwrap_or_else(|| panic!("{path}: {name} is not in the schema"));
                let fits = match *kind {
                    "object" => value.is_object(),
                    "array" => value.as_array().is_some_and(|items| !items.is_empty()),
                    "string" => value.is_string(),
                    "number" => value.is_number(),
                    "boolean" => value.is_boolean(),
                    // A Go duration.
                    _ => value.as_str().is_some_and(|text| {
                        let digits = text.trim_end_matches(|c: char| c.is_alphabetic());
                        digits.parse::<u32>().is_ok() && ["ms", "s", "m"].contains(&&text[digits.len()..])
                    }),
                };
                assert!(fits, "{path}.{name} is no {kind}: {value}");
                let next = if path.is_empty() { (*known).to_owned() } else { format!("{path}.{known}") };
                check(&next, value);
            }
        }
        Value::Array(items) => items.iter().filter(|item| item.is_object()).for_each(|item| check(path, item)),
        _ => {}
    }
}

#[test]
fn the_document_for_traefik_keeps_to_its_schema() {
    let choices = [
        Choice::default(),
        Choice { backend: Hop::Http, entry_point: "web".into(), ..Choice::default() },
        Choice { backend_ca: Some("/etc/ca.pem".into()), backend_name: Some("web".into()), ..Choice::default() },
        Choice { backend: Hop::HttpsUnverified, ..Choice::default() },
    ];
    for choice in &choices {
        let document: Value = serde_json::from_str(&render(Format::Traefik, &two(), choice)).expect("JSON");
        check("", &document);
        let http = &document["http"];
        let router = &http["routers"]["gravwell"];
        let service = &http["services"][router["service"].as_str().expect("service")]["loadBalancer"];
        let scheme = if choice.backend == Hop::Http { "http" } else { "https" };
        assert_eq!(service["servers"][0]["url"], format!("{scheme}://web1.example.net:443"));
        assert_eq!(service["servers"][1]["url"], format!("{scheme}://[fd00::2]:8443"));
        for middleware in router["middlewares"].as_array().expect("middlewares") {
            assert!(http["middlewares"][middleware.as_str().expect("name")].is_object());
        }
        if let Some(transport) = service["serversTransport"].as_str() {
            let transport = &http["serversTransports"][transport];
            assert_eq!(transport["insecureSkipVerify"] == true, choice.backend == Hop::HttpsUnverified, "{transport}");
        }
    }
    assert_eq!(render(Format::Traefik, &[], &Choice::default()), "{}\n");
}

#[test]
#[should_panic(expected = "healthChek is not in the schema")]
fn the_check_of_the_schema_can_fail() {
    check("http.services.*.loadBalancer", &serde_json::json!({ "healthChek": {} }));
}

#[test]
fn targets_for_prometheus() {
    let text = render(Format::Prometheus, &two(), &Choice::default());
    let groups: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(groups[1]["targets"][0], "[fd00::2]:9408");
    assert_eq!(groups[0]["labels"]["member"], "web1");
}

#[test]
fn an_unhealthy_webserver_is_left_out_by_nginx_unless_all_are() {
    let mut backends = two();
    backends[0].addresses.truncate(1);
    backends[0].unhealthy = Some("differs".into());
    assert_eq!(render(Format::Nginx, &backends, &Choice::default()).matches(" down;").count(), 1);
    backends[1].unhealthy = Some("differs".into());
    assert_eq!(render(Format::Nginx, &backends, &Choice::default()).matches(" down;").count(), 0);
}

#[test]
fn choices_cannot_break_out_of_a_file() {
    for file in ["/etc/a;b", "/etc/a b", "/etc/\n", ""] {
        let choice = Choice { certificate: Some(file.into()), key: Some("/k".into()), ..Choice::default() };
        assert!(choice.check(Format::Nginx).is_err(), "{file}");
    }
    let choice = Choice { listen: Some(":80; }".into()), ..Choice::default() };
    assert!(choice.check(Format::Nginx).is_err());
    let half = Choice { certificate: Some("/c".into()), ..Choice::default() };
    assert!(half.check(Format::Nginx).is_err() && half.check(Format::Haproxy).is_ok());
}
