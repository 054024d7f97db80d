//! Known parameter names in `gravwell.conf`. All Gravwell processes of a host share this file, so parameters of other
//! processes are accepted silently; unknown parameters cause a warning.

/// Datastore parameters in `[Global]`.
pub const DATASTORE: &[&str] = &[
    "Datastore-Port",
    "Datastore-Listen-Address",
    "Datastore-Update-Interval",
    "Datastore-Data-Dir",
    "Datastore-Server-Name",
    "Datastore-Metrics-Address",
    "Datastore-Log-Segment-MB",
    "Datastore-Log-History-Ops",
    "Datastore-Log-History-Hours",
    "Datastore-Audit-Hours",
    "Datastore-Audit-Max-MB",
    "Datastore-Compact-Garbage-Percent",
    "Datastore-Compact-Min-MB",
    "Datastore-Member-Max-Lag-Ops",
    "Datastore-Member-Retention-Hours",
    "Datastore-Readers-Hold-Compaction",
    "Datastore-Min-Free-MB",
    "Datastore-Reserve-MB",
    "Datastore-Cache-MB",
    "Datastore-Max-Key-Bytes",
    "Datastore-Max-Value-KB",
    "Datastore-Max-Txn-KB",
    "Datastore-Max-Subscribers",
    "Datastore-Certificate-Days",
    "Chunk-Grace-Hours",
    "Chunk-Bandwidth-Limit",
    "Datastore-Recovery",
    "Datastore-Archive",
    "Datastore-Backup-Key-File",
    "Datastore-Backup-Plain",
    "Datastore-Insecure-Disable-TLS",
    "Datastore-Insecure-Skip-TLS-Verify",
    "Log-Level",
];

/// Webserver parameters in `[Global]` that exist only in this implementation.
pub const WEBSERVER: &[&str] = &[
    "Webserver-Data-Dir",
    "Web-Redirect-Port",
    "Webserver-Metrics-Address",
    "Webserver-Ready-Max-Lag-Ops",
    "Webserver-Ready-Max-Cut-Off-Seconds",
    "Webserver-Drain-Seconds",
    "Webserver-Trusted-Proxy",
    "Webserver-Max-Connections-Per-Address",
    "Webserver-Max-Connections-Per-User",
    "Webserver-Max-Streams-Per-User",
    "Webserver-Cache-MB",
    "Webserver-Min-Free-MB",
    "Webserver-Reserve-MB",
    "Outbox-Max-MB",
    "Peer-Listen-Address",
    "Peer-Port",
    "Membership-Max-Age-Hours",
    "Resource-User-Quota-MB",
    "Upload-User-MB",
    "Render-Store-Total-MB",
    "Render-Store-User-MB",
    "Render-Store-Min-Free-MB",
    "Resource-Fetch",
    "Resource-Cache-Max-MB",
    "Initial-Admin-Default-Password",
    "Indexer-CA-File",
    "Indexer-Timeout",
    "Search-Max-Seconds",
    "Search-Max-Per-User",
    "Search-Filter-Processes",
    "Search-Filter-Sandbox",
    "Search-Keep-Hours",
];

/// Other known parameters of Gravwell processes in `[Global]`.
const OTHERS: &[&str] = &[
    "Datastore",
    "External-Addr",
    "Search-Forwarding-Insecure-Skip-TLS-Verify",
    "Datastore-User-DB-Path",
    "Datastore-Web-Store-Path",
    "Datastore-Resource-Store",
    "Datastore-Log-Location",
    "Webserver-Domain",
    "Webserver-UUID",
    "Control-Auth",
    "Web-Port",
    "Web-Listen-Address",
    "Insecure-Disable-HTTPS",
    "Disable-HTTP-Redirector",
    "Certificate-File",
    "Key-File",
    "Webserver-Access-Control-Allow-Origin",
    "Webserver-Enable-Frame-Embedding",
    "Webserver-Content-Security-Policy",
    "Web-Files-Path",
    "HTTP-Proxy",
    "Max-Payload-Size-MB",
    "Default-Language",
    "Session-Timeout-Minutes",
    "Session-Max-Hours",
    "Persist-Web-Logins",
    "Write-Rate-Per-User",
    "Write-Burst-Per-User",
    "Write-KB-Rate-Per-User",
    "Write-MB-Burst-Per-User",
    "User-Objects-Max",
    "User-Objects-MB",
    "Login-Fail-Lock-Count",
    "Login-Fail-Lock-Duration",
    "Search-Agent-Auth",
    "MFA-Required",
    "MFA-Issuer-Name",
    "Enable-CBAC",
    "Webserver-Ingest-Groups",
    "User-DB-Path",
    "Web-Store-Path",
    "Resource-Max-Size",
    "Webserver-Resource-Store",
    "Max-Search-History",
    "Render-Store",
    "Render-Store-Limit",
    "Saved-Store",
    "Search-Scratch",
    "Search-Pipeline-Buffer-Size",
    "Search-Relay-Buffer-Size",
    "Search-Control-Script",
    "Remote-Indexers",
    "Control-Port",
    "Disable-Single-Indexer-Optimization",
    "Temp-Dir",
    "Max-Email-Size",
    "Tag-Accelerator-Definitions",
    "Prebuff-Max-Set",
    "Prebuff-Tick-Interval",
    "Web-Log-Location",
    "Log-Location",
    "Max-Log-Files",
    "Disable-Access-Log",
    "Disable-Access-Log-Self-Ingest",
    "Disable-Self-Ingest",
    "License-Location",
    "Config-Location",
    "Docker-Secrets",
    "Disable-Update-Notification",
    "Disable-Feature-Popups",
    "Disable-Stats-Report",
    "Disable-Search-Agent-Notifications",
    "Disable-Network-Script-Functions",
    "Insecure-User-Unsigned-Kits-Allowed",
    "Disable-User-Ingester-Config-Reporting",
    "Disable-Ingester-Config-Reporting",
    "Disable-Map-Tile-Server-Proxy",
    "Map-Tile-Server",
    "Gravwell-Tile-Server-Cooldown-Minutes",
    "Gravwell-Tile-Server-Cache-MB",
    "Gravwell-Tile-Server-Cache-Timeout-Days",
    "Library-Dir",
    "Library-Repository",
    "Library-Commit",
    "Disable-Library-Repository",
    "Gravwell-Kit-Server",
    "Kit-Verification-Key",
    "Indexer-UUID",
    "Ingest-Auth",
    "Ingest-Port",
    "TLS-Ingest-Port",
    "Pipe-Ingest-Path",
    "Control-Listen-Address",
    "Tag-DB-Path",
    "Indexer-Resource-Store",
    "Ingester-State-Tracking-File",
    "Prebuff-Block-Hint",
    "Prebuff-Max-Size",
    "Prebuff-Sort-On-Consume",
    "Max-Block-Size",
    "Ingest-Throttle-Threshold",
    "Indexer-Storage-Notification-Threshold",
    "Disable-Indexer-Overload-Warning",
    "Ditto-Max-Workers",
    "Ageout-Time",
    "Control-Secret",
];

/// Sections of other processes; their contents are not checked.
const SECTIONS: &[&str] = &[
    "Password-Control",
    "Password-Controls",
    "SSO",
    "Shared-Mail-Config",
    "AI",
    "MCP-Client",
    "Default-Well",
    "Storage-Well",
    "Replication",
    "Ditto-Target",
    "Cloud-Archive",
    "Overrides",
];

fn among(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Returns whether a section belongs to another process.
#[must_use]
pub fn is_foreign_section(section: &str) -> bool {
    among(SECTIONS, section)
}

/// Returns whether all users may see the value of a parameter: true for those of the datastore and the webserver, unless
/// the name suggests a secret.
#[must_use]
pub fn is_open(name: &str) -> bool {
    const SHARED: &[&str] =
        &["Datastore", "External-Addr", "Certificate-File", "Key-File", "Web-Port", "Web-Listen-Address"];
    const DELICATE: [&str; 5] = ["secret", "password", "passphrase", "auth", "credential"];
    let is_delicate = DELICATE.iter().any(|word| name.to_ascii_lowercase().contains(word));
    !is_delicate && [DATASTORE, WEBSERVER, SHARED].iter().any(|names| among(names, name))
}

/// Returns whether a parameter of `[Global]` is known.
#[must_use]
pub fn is_known(name: &str) -> bool {
    [DATASTORE, WEBSERVER, OTHERS].iter().any(|names| among(names, name))
}

/// Returns the known name that is most similar to `name`, if any is close.
#[must_use]
pub fn closest(name: &str) -> Option<&'static str> {
    let all = DATASTORE.iter().chain(WEBSERVER).chain(OTHERS);
    let scored = all.map(|known| (distance(&known.to_ascii_lowercase(), &name.to_ascii_lowercase()), *known));
    scored.min().filter(|(distance, known)| *distance <= known.len() / 4).map(|(_, known)| known)
}

/// Returns the edit distance of two names (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised() {
        assert!(is_known("datastore-port") && is_known("Remote-Indexers"));
        assert!(!is_known("Datastore-Prot"));
        assert_eq!(closest("Datastore-Prot"), Some("Datastore-Port"));
        assert_eq!(closest("Completely-Else"), None);
    }
}
