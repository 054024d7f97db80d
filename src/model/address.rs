//! Host addresses as members report them: a host and a port, checked character by character, because they become part
//! of a file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::printable;

/// Maximum length of `External-Addr` in bytes.
pub const EXTERNAL_ADDR_BYTES_MAX: usize = 512;
/// Maximum length of a host name in bytes, as in DNS.
pub const HOST_BYTES_MAX: usize = 253;
/// Number of characters of an invalid address that an error shows.
const SHOWN_CHARS: usize = 64;

/// Returns whether `text` is an IP address or a host name. An IPv6 address has no brackets. Text that a resolver would
/// interpret as an IPv4 address although it does not look like one, such as `127.1` or `0x7f000001`, is rejected.
#[must_use]
pub fn is_host(text: &str) -> bool {
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().is_ok();
    }
    if ends_in_number(text) {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    let is_label = |label: &str| {
        !label.is_empty() && !label.starts_with('-') && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    text.len() <= HOST_BYTES_MAX && text.split('.').all(is_label)
}

/// Returns whether the last label is a number, so that the name is an IPv4 address according to the WHATWG URL standard.
fn ends_in_number(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_hexadecimal = |digits: &str| digits.bytes().all(|b| b.is_ascii_hexdigit());
    let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    (!last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())) || hexadecimal.is_some_and(is_hexadecimal)
}

/// Returns whether a host is local or is not a host: loopback, link-local, multicast, broadcast and unspecified
/// addresses in any spelling, and names of loopback.
#[must_use]
pub fn is_local(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<IpAddr>() {
        Err(_) => name == "localhost" || name.ends_with(".localhost") || name == "localhost.localdomain",
        Ok(IpAddr::V4(address)) => is_local_v4(address),
        Ok(IpAddr::V6(address)) => is_local_v6(address),
    }
}

fn is_local_v4(address: Ipv4Addr) -> bool {
    let is_this_network = address.octets()[0] == 0;
    is_this_network
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
}

fn is_local_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Addresses that contain an IPv4 address: mapped, compatible (also :: and ::1), translated (NAT64), 6to4.
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    let carried = match segments {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    };
    carried.is_some_and(is_local_v4) || address.is_unicast_link_local() || address.is_multicast()
}

/// Splits an `External-Addr` into host and port; the default port is 443.
///
/// # Errors
/// If it is not a host and a port of at most [`EXTERNAL_ADDR_BYTES_MAX`] bytes.
pub fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let wrong = || {
        let shown = printable::shorten(text, SHOWN_CHARS);
        format!("the External-Addr {shown:?} ({} bytes) is not HOST:PORT", text.len())
    };
    if text.len() > EXTERNAL_ADDR_BYTES_MAX {
        return Err(wrong());
    }
    let (host, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((host, ""))) if host.contains(':') => (host, None),
        Some(Some((host, port))) if host.contains(':') => (host, Some(port.strip_prefix(':').ok_or_else(wrong)?)),
        Some(_) => return Err(wrong()),
        None => match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port)),
            Some(_) | None => (text, None),
        },
    };
    // `parse` would also accept a sign.
    let is_number = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => 443,
        Some(port) => port.parse::<u16>().ok().filter(|_| is_number(port)).ok_or_else(wrong)?,
    };
    if is_host(host) && port > 0 { Ok((host.to_owned(), port)) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_the_balancer_itself_are_known_in_every_spelling() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "localhost",
            "LocalHost.",
            "a.localhost",
            "::1",
            "::",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "224.0.0.1",
            "255.255.255.255",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert!(is_local(host), "{host}");
            assert!(host.ends_with('.') || is_host(host), "{host}");
        }
        for host in ["10.0.0.1", "192.168.1.1", "web1", "localhost.example.com", "fd00::1", "2001:db8::1", "8.8.8.8"] {
            assert!(!is_local(host) && is_host(host), "{host}");
        }
        for host in ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "1.2.3.256", "a.1", "a.0x"] {
            assert!(!is_host(host), "{host}");
        }
    }

    #[test]
    fn an_external_address_is_a_host_and_a_port_and_nothing_else() {
        for (text, host, port) in [
            ("web1:8443", "web1", 8443),
            ("web1.example.com", "web1.example.com", 443),
            ("10.0.0.1:443", "10.0.0.1", 443),
            ("[fd00::1]:8443", "fd00::1", 8443),
            ("[fd00::1]", "fd00::1", 443),
            ("fd00::1", "fd00::1", 443),
        ] {
            assert_eq!(host_and_port(text), Ok((host.to_owned(), port)), "{text}");
        }
        let long = "a".repeat(HOST_BYTES_MAX + 1);
        let huge = "a.".repeat(300);
        for text in [
            "",
            ":443",
            "web1:",
            "web1:0",
            "web1:+443",
            "web1:65536",
            "web1:443 ",
            "web 1",
            "https://web1:443",
            "web1:443/x",
            "-a:1",
            "a..b:1",
            "[fd00::1",
            "[fd00::1]443",
            "[web1]:443",
            "\u{1b}[2J:1",
            "a\nb:1",
            "caf\u{e9}:443",
            long.as_str(),
            huge.as_str(),
        ] {
            let error = host_and_port(text).expect_err(text);
            assert!(error.len() < 300 && error.chars().all(printable::is_printable), "{error}");
        }
    }
}
