//! HAProxy 2.4 or later: separate sections with their own defaults, so that they can be added to any configuration.

use std::fmt::Write;

use super::{Backend, COOKIE, Choice, Hop, READY};

pub(super) fn render(backends: &[Backend], choice: &Choice) -> String {
    let mut text = String::new();
    let secure = if choice.is_secure() { " secure" } else { "" };
    let bind = match &choice.certificate {
        Some(certificate) => format!("{} ssl crt {} alpn h2,http/1.1", choice.listen(), certificate.display()),
        None => choice.listen(),
    };
    let proto = if choice.is_secure() { "https" } else { "http" };
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "# Made by gravwell-logctl lb; changes are lost.\n\
         defaults gravwell\n\
         \x20   mode http\n\
         \x20   timeout connect 2s\n\
         \x20   timeout client 1h\n\
         \x20   timeout server 1h\n\
         \x20   timeout http-request 30s\n\
         \x20   timeout check 2s\n\
         \x20   option redispatch 1\n\
         \x20   retries 3\n\
         \x20   retry-on conn-failure\n\
         \n\
         frontend gravwell from gravwell\n\
         \x20   bind {bind}\n\
         \x20   http-request set-header X-Forwarded-Proto {proto}\n\
         \x20   option forwardfor\n\
         \x20   default_backend gravwell\n\
         \n\
         backend gravwell from gravwell\n\
         \x20   balance leastconn\n\
         \x20   cookie {COOKIE} insert indirect nocache httponly{secure} attr SameSite=Lax\n\
         \x20   option httpchk\n\
         \x20   http-check send meth GET uri {READY} ver HTTP/1.1 hdr Host balancer\n\
         \x20   http-check expect status 200\n\
         \x20   default-server check inter 2s fastinter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down \
         init-addr last,libc,none{}\n",
        tls(choice)
    );
    for backend in backends {
        let sni = if choice.backend == Hop::Https { verification(backend, choice) } else { String::new() };
        let (name, address) = (&backend.name, backend.address());
        let _ = writeln!(text, "    server {name} {address} cookie {name}{sni}");
    }
    text
}

/// HAProxy compares certificates with host names only, not with addresses.
fn verification(backend: &Backend, choice: &Choice) -> String {
    let name = choice.name_of(backend);
    format!(" sni str({name}) check-sni {name} verifyhost {name}")
}

fn tls(choice: &Choice) -> String {
    match (choice.backend, &choice.backend_ca) {
        (Hop::Http, _) => String::new(),
        (Hop::HttpsUnverified, _) => " ssl verify none".into(),
        (Hop::Https, Some(ca)) => format!(" ssl verify required ca-file {}", ca.display()),
        (Hop::Https, None) => " ssl verify required ca-file @system-ca".into(),
    }
}
