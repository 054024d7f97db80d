//! nginx: one upstream, selected by a consistent hash of a cookie that each browser receives with its first response.
//!
//! nginx itself performs no health checks. It notices a server that refuses or breaks a connection, tries the next
//! one, and skips the failed one for a while. Requests that are not idempotent are repeated only if nothing has been
//! sent yet.

use std::fmt::Write;

use super::{Backend, COOKIE, Choice, Format, Hop};

/// CA bundle of the system on Debian.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

pub(super) fn render(backends: &[Backend], choice: &Choice) -> String {
    let mut text = String::new();
    let secure = if choice.is_secure() { "; Secure" } else { "" };
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "# Made by gravwell-logctl lb; changes are lost.\n\
         map $cookie_{COOKIE} $gravwell_key {{\n    default $cookie_{COOKIE};\n    \"\" $request_id;\n}}\n\
         map $cookie_{COOKIE} $gravwell_cookie {{\n    default \"\";\n    \
         \"\" \"{COOKIE}=$request_id; Path=/; HttpOnly; SameSite=Lax{secure}\";\n}}\n\
         map $http_upgrade $gravwell_connection {{\n    default upgrade;\n    \"\" \"\";\n}}\n\
         {}upstream gravwell {{\n    hash $gravwell_key consistent;\n",
        names(backends, choice)
    );
    // If no server reports itself healthy, all of them stay in rotation.
    let is_any_healthy = backends.iter().any(|backend| backend.unhealthy.is_none());
    for backend in backends {
        let state = if backend.unhealthy.is_some() && is_any_healthy { " down" } else { "" };
        let addresses = match choice.needs_addresses(Format::Nginx) {
            true => backend.addresses.iter().map(ToString::to_string).collect(),
            false => vec![backend.address()],
        };
        for address in &addresses {
            let _ = writeln!(text, "    server {address} max_fails=1 fail_timeout=5s{state}; # {}", backend.name);
        }
        if addresses.is_empty() {
            // nginx does not start if a name cannot be resolved.
            let _ = writeln!(text, "    server 127.0.0.1:9 down; # {}: {} has no address", backend.name, backend.host);
        }
    }
    if backends.is_empty() {
        text += "    server 127.0.0.1:9 down; # no webserver has announced its External-Addr yet\n";
    }
    let _ = write!(text, "    keepalive 32;\n}}\nserver {{\n{}", listen(choice));
    let scheme = if choice.backend == Hop::Http { "http" } else { "https" };
    let _ = write!(
        text,
        "    server_name _;\n    client_max_body_size 0;\n    location / {{\n        proxy_pass {scheme}://gravwell;\n{}\
        \x20       proxy_http_version 1.1;\n\
        \x20       proxy_set_header Host $http_host;\n\
        \x20       proxy_set_header Connection $gravwell_connection;\n\
        \x20       proxy_set_header Upgrade $http_upgrade;\n\
        \x20       proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
        \x20       proxy_set_header X-Forwarded-Proto $scheme;\n\
        \x20       add_header Set-Cookie $gravwell_cookie always;\n\
        \x20       proxy_connect_timeout 2s;\n\
        \x20       proxy_read_timeout 1h;\n\
        \x20       proxy_buffering off;\n\
        \x20       proxy_request_buffering off;\n\
        \x20       proxy_next_upstream error timeout;\n\
        \x20       proxy_next_upstream_tries 3;\n    }}\n}}\n",
        verification(choice)
    );
    text
}

/// Maps the address to which nginx has just connected to the name of the server. It is the last address in
/// `$upstream_addr`, which grows when nginx tries the next server.
fn names(backends: &[Backend], choice: &Choice) -> String {
    if !choice.needs_addresses(Format::Nginx) {
        return String::new();
    }
    let mut text = "map $upstream_addr $gravwell_name {\n    volatile;\n    default invalid;\n".to_owned();
    for backend in backends {
        for address in &backend.addresses {
            let literal = address.to_string().replace('.', "\\.").replace('[', "\\[").replace(']', "\\]");
            let _ = writeln!(text, "    \"~(^|[, ]){literal}$\" {}; # {}", choice.name_of(backend), backend.name);
        }
    }
    text + "}\n"
}

fn listen(choice: &Choice) -> String {
    let listen = choice.listen();
    let listen = listen.strip_prefix(':').unwrap_or(&listen);
    match (&choice.certificate, &choice.key) {
        (Some(certificate), Some(key)) => format!(
            "    listen {listen} ssl http2;\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
             ssl_protocols TLSv1.2 TLSv1.3;\n",
            certificate.display(),
            key.display()
        ),
        _ => format!("    listen {listen};\n"),
    }
}

fn verification(choice: &Choice) -> String {
    match choice.backend {
        Hop::Http => String::new(),
        Hop::HttpsUnverified => "        proxy_ssl_verify off;\n".into(),
        Hop::Https => {
            let ca = choice.backend_ca.as_ref().map_or_else(|| SYSTEM_CA.to_owned(), |ca| ca.display().to_string());
            let name = choice.backend_name.as_deref().unwrap_or("$gravwell_name");
            format!(
                "        proxy_ssl_verify on;\n        proxy_ssl_trusted_certificate {ca};\n        \
                 proxy_ssl_name {name};\n        proxy_ssl_server_name on;\n"
            )
        }
    }
}
