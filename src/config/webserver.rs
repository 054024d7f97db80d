//! Settings of a webserver, with defaults that work without a configuration file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::network::Network;
use super::{ConfigError, Configured, Source};

/// Default data directory.
pub const DEFAULT_DATA_DIR: &str = "/opt/gravwell/webserver";

/// `[Password-Control]`: requirements on new passwords.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordControl {
    /// `Min-Length`, in characters.
    pub length_min: usize,
    /// `Require-Uppercase`.
    pub uppercase: bool,
    /// `Require-Lowercase`.
    pub lowercase: bool,
    /// `Require-Number`.
    pub number: bool,
    /// `Require-Special`.
    pub special: bool,
}

impl Default for PasswordControl {
    /// As NIST SP 800-63B recommends, passwords need a minimum length but no particular kinds of characters.
    fn default() -> PasswordControl {
        PasswordControl { length_min: 12, uppercase: false, lowercase: false, number: false, special: false }
    }
}

/// Settings of a webserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebserverConfig {
    /// `Webserver-Data-Dir`: data directory.
    pub data_dir: PathBuf,
    /// `Datastore`: addresses of the datastore. Without addresses and without an identity, the webserver runs in
    /// standalone mode.
    pub datastores: Vec<String>,
    /// `External-Addr`: address at which other webservers and balancers reach this webserver.
    pub external_addr: Option<String>,
    /// `Datastore-Update-Interval`: interval of status reports, in seconds.
    pub update_interval_s: u64,
    /// `Web-Port`.
    pub port: u16,
    /// `Web-Listen-Address`; `None`: all addresses.
    pub listen: Option<IpAddr>,
    /// `Peer-Listen-Address`: address to listen on for other members; `None`: all addresses.
    pub peer_listen: Option<IpAddr>,
    /// `Peer-Port` (UDP); 0: any free port, which members learn from the datastore.
    pub peer_port: u16,
    /// `Membership-Max-Age-Hours`: other members are trusted for this time after the last contact with the datastore; 0:
    /// without limit.
    pub membership_hours_max: u64,
    /// `Certificate-File`; without it a self-signed certificate is generated.
    pub certificate: Option<PathBuf>,
    /// `Key-File`.
    pub key: Option<PathBuf>,
    /// `Insecure-Disable-HTTPS`.
    pub plain_http: bool,
    /// `Disable-HTTP-Redirector`.
    pub no_redirect: bool,
    /// `Web-Redirect-Port`: port on which plain HTTP requests are redirected to HTTPS.
    pub redirect_port: u16,
    /// `Webserver-Trusted-Proxy`: balancers whose `X-Forwarded-For` header is trusted.
    pub trusted_proxies: Vec<Network>,
    /// `Webserver-Max-Connections-Per-Address`; 0: limited only by the total.
    pub connections_of_address_max: usize,
    /// `Webserver-Max-Connections-Per-User`; 0: limited only by the total.
    pub connections_of_user_max: usize,
    /// `Webserver-Max-Streams-Per-User`: maximum number of open event streams and WebSockets of one user.
    pub streams_of_user_max: usize,
    /// `Webserver-Access-Control-Allow-Origin`.
    pub allow_origin: Option<String>,
    /// `Webserver-Enable-Frame-Embedding`.
    pub may_be_framed: bool,
    /// `Webserver-Content-Security-Policy`, replaces the strict default.
    pub content_security_policy: Option<String>,
    /// `Web-Files-Path`: directory of files that are served instead of the built-in ones, if it exists.
    pub web_files: Option<PathBuf>,
    /// `Default-Language`.
    pub language: String,
    /// `Session-Timeout-Minutes`, in seconds.
    pub session_timeout_s: u64,
    /// `Session-Max-Hours`: maximum lifetime of a session regardless of its use, in seconds; 0: unlimited.
    pub session_lifetime_s: u64,
    /// `Persist-Web-Logins`.
    pub persist_logins: bool,
    /// `Login-Fail-Lock-Count`: failed logins before an account is throttled; 0: never.
    pub login_failures: u32,
    /// `Login-Fail-Lock-Duration`, in seconds; 0: never.
    pub login_window_s: u64,
    /// `MFA-Required`: users without a second factor must set one up at the next login.
    pub mfa_required: bool,
    /// `MFA-Issuer-Name`: name that authenticator apps show next to the user name.
    pub mfa_issuer: String,
    /// `Write-Rate-Per-User`: changes per second of one user (administrators: four times as many); 0: unlimited.
    pub writes_per_s: u32,
    /// `Write-Burst-Per-User`: maximum burst of changes of one user.
    pub writes_burst: u32,
    /// `Write-KB-Rate-Per-User`: bytes of changes per second of one user (administrators: four times as many);
    /// 0: unlimited.
    pub write_bytes_per_s: u64,
    /// `Write-MB-Burst-Per-User`: maximum burst of changes of one user, in bytes.
    pub write_bytes_burst: u64,
    /// `User-Objects-Max`: maximum number of objects of one kind owned by a user who is not an administrator;
    /// 0: unlimited.
    pub objects_of_user_max: u64,
    /// `User-Objects-MB`: maximum size of the objects of one kind owned by such a user, in bytes; 0: unlimited.
    pub object_bytes_of_user_max: u64,
    /// `Max-Search-History`.
    pub history_max: usize,
    /// `Resource-Max-Size`, in bytes.
    pub resource_bytes_max: u64,
    /// `Resource-User-Quota-MB`: maximum size of all resources and saved results of one user, in bytes; 0: unlimited.
    pub resource_quota_bytes: u64,
    /// `Upload-User-MB`: maximum bytes of blobs that one user may upload within `Chunk-Grace-Hours`; 0: an eighth of
    /// the disk.
    pub upload_bytes_of_user: u64,
    /// `Resource-Fetch=on-demand`: blobs are fetched when they are read, instead of as soon as they are referenced.
    pub fetches_on_demand: bool,
    /// `Outbox-Max-MB`: maximum size of changes that wait for the datastore, in bytes.
    pub outbox_bytes_max: u64,
    /// `Resource-Cache-Max-MB`: maximum size of cached blobs when fetching on demand, in bytes; 0: unlimited.
    pub resource_cache_bytes_max: u64,
    /// `Chunk-Grace-Hours`: unreferenced chunks are kept for this time.
    pub chunk_grace_hours: u64,
    /// `Chunk-Bandwidth-Limit`: maximum rate of sent chunks, in bytes per second; 0: unlimited.
    pub chunk_bytes_per_s: u64,
    /// `Webserver-UUID`; if missing, generated and stored in the data directory.
    pub uuid: Option<String>,
    /// `Webserver-Domain`.
    pub domain: i16,
    /// `Render-Store-Limit`: maximum size of the results of one search, in MiB.
    pub render_store_limit: u64,
    /// `Render-Store-Total-MB`: maximum size of all results, in bytes; 0: a quarter of the disk.
    pub render_store_total: u64,
    /// `Render-Store-User-MB`: maximum size of the results of one user, in bytes; 0: a quarter of all results.
    pub render_store_of_user: u64,
    /// `Render-Store-Min-Free-MB`: no results are written while less disk space is free, in bytes.
    pub render_store_free_min: u64,
    /// `Render-Store`: directory of search results; `None`: in the data directory.
    pub render_store: Option<PathBuf>,
    /// `Remote-Indexers`: hosts whose journals are searched, as `journal:https://host:19531`.
    pub indexers: Vec<String>,
    /// `Indexer-CA-File`: CA certificates of the indexers, in PEM format; `None`: the CA of the datastore.
    pub indexer_authority: Option<PathBuf>,
    /// `Indexer-Timeout`: timeout of requests to an indexer, in seconds.
    pub indexer_timeout_s: u64,
    /// `Search-Max-Seconds`: maximum run time of a search, in seconds.
    pub search_seconds_max: u64,
    /// `Search-Max-Per-User`: maximum number of concurrent searches of one user.
    pub searches_per_user: usize,
    /// `Search-Filter-Processes`: maximum number of concurrent filter processes of all searches.
    pub search_filters_max: usize,
    /// `Search-Filter-Sandbox=required`: filters do not run if the kernel cannot confine them fully.
    pub search_sandbox_required: bool,
    /// `Search-Keep-Hours`: time that unsaved results are kept, in seconds.
    pub search_keep_s: u64,
    /// `Enable-CBAC`: users who are not administrators have only the capabilities granted to them.
    pub capability_control: bool,
    /// `Disable-Map-Tile-Server-Proxy`.
    pub no_tile_proxy: bool,
    /// `Map-Tile-Server`.
    pub tile_server: String,
    /// `Disable-Feature-Popups`.
    pub no_popups: bool,
    /// `Webserver-Metrics-Address`: address of the Prometheus endpoint; `None`: disabled.
    pub metrics: Option<SocketAddr>,
    /// `Webserver-Ready-Max-Lag-Ops`: with a larger lag behind the datastore, the webserver reports that it is not ready.
    pub ready_lag_ops_max: u64,
    /// `Webserver-Ready-Max-Cut-Off-Seconds`: if disconnected from the datastore for longer, it reports that it is not
    /// ready; 0: no limit.
    pub ready_cut_off_s_max: u64,
    /// `Webserver-Drain-Seconds`: on shutdown, it keeps serving for this time while it reports that it is not ready.
    pub drain_s: u64,
    /// `Webserver-Cache-MB`: size of the state cache, in bytes.
    pub cache_bytes: u64,
    /// `Webserver-Min-Free-MB`: with less free disk space, in bytes, the webserver is read-only.
    pub free_min_bytes: u64,
    /// `Webserver-Reserve-MB`: size of the disk reserve for a full disk, in bytes.
    pub reserve_bytes: u64,
    /// `Initial-Admin-Default-Password`: whether the first administrator gets the well-known password.
    pub default_password: bool,
    /// `Log-Level`.
    pub log_level: String,
    /// `Disable-Access-Log`.
    pub no_access_log: bool,
    /// `[Password-Control]`.
    pub passwords: PasswordControl,
}

impl WebserverConfig {
    /// Returns the defaults, with data in `data_dir`.
    #[must_use]
    pub fn for_dir(data_dir: &Path) -> WebserverConfig {
        WebserverConfig {
            data_dir: data_dir.to_owned(),
            datastores: Vec::new(),
            external_addr: None,
            update_interval_s: 5,
            port: 443,
            listen: None,
            peer_listen: None,
            peer_port: 0,
            membership_hours_max: 24,
            certificate: None,
            key: None,
            plain_http: false,
            no_redirect: false,
            redirect_port: 80,
            trusted_proxies: Vec::new(),
            connections_of_address_max: 256,
            connections_of_user_max: 128,
            streams_of_user_max: 64,
            allow_origin: None,
            may_be_framed: false,
            content_security_policy: None,
            web_files: None,
            language: "en-US".into(),
            session_timeout_s: 60 * 60,
            session_lifetime_s: 7 * 24 * 3600,
            persist_logins: true,
            login_failures: 5,
            login_window_s: 5 * 60,
            mfa_required: false,
            mfa_issuer: "Gravwell".into(),
            writes_per_s: 50,
            writes_burst: 500,
            write_bytes_per_s: 256 << 10,
            write_bytes_burst: 64 << 20,
            objects_of_user_max: 25_000,
            object_bytes_of_user_max: 64 << 20,
            history_max: 100,
            resource_bytes_max: 512 << 20,
            resource_quota_bytes: 10 << 30,
            upload_bytes_of_user: 0,
            fetches_on_demand: false,
            outbox_bytes_max: 64 << 20,
            resource_cache_bytes_max: 0,
            chunk_grace_hours: 24,
            chunk_bytes_per_s: 0,
            uuid: None,
            domain: 0,
            render_store_limit: 1024,
            render_store_total: 0,
            render_store_of_user: 0,
            render_store_free_min: 256 << 20,
            render_store: None,
            indexers: Vec::new(),
            indexer_authority: None,
            indexer_timeout_s: 15,
            search_seconds_max: 600,
            searches_per_user: 8,
            search_filters_max: 32,
            search_sandbox_required: false,
            search_keep_s: 24 * 3600,
            capability_control: false,
            no_tile_proxy: false,
            tile_server: String::new(),
            no_popups: false,
            metrics: None,
            ready_lag_ops_max: 10_000,
            ready_cut_off_s_max: 0,
            drain_s: 0,
            cache_bytes: 64 << 20,
            free_min_bytes: 64 << 20,
            reserve_bytes: 16 << 20,
            default_password: false,
            log_level: "info".into(),
            no_access_log: false,
            passwords: PasswordControl::default(),
        }
    }

    /// Returns the address to listen on; default: all addresses.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        SocketAddr::new(self.listen.unwrap_or_else(all_addresses), self.port)
    }

    /// Returns the address to listen on for other members; default: all addresses.
    #[must_use]
    pub fn peer_address(&self) -> SocketAddr {
        SocketAddr::new(self.peer_listen.unwrap_or_else(all_addresses), self.peer_port)
    }

    /// Checks that the settings are consistent.
    ///
    /// # Errors
    /// If settings contradict each other; the message names them.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.certificate.is_some() != self.key.is_some() {
            return Err(ConfigError("Certificate-File and Key-File must be set together; set both, or neither".into()));
        }
        Ok(())
    }

    fn set_password_control(&mut self, source: &Source) -> Result<(), ConfigError> {
        let control = &mut self.passwords;
        match source.name().as_str() {
            "min-length" | "minlength" => control.length_min = usize::try_from(source.number(0..=1024)?).unwrap_or(0),
            "require-uppercase" => control.uppercase = source.boolean()?,
            "require-lowercase" => control.lowercase = source.boolean()?,
            "require-number" => control.number = source.boolean()?,
            "require-special" => control.special = source.boolean()?,
            _ => {
                return Err(source.wrong(
                    "unknown in this section; use Min-Length, Require-Uppercase, Require-Lowercase, Require-Number, \
                     Require-Special",
                ));
            }
        }
        Ok(())
    }
}

fn all_addresses() -> IpAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

fn path(source: &Source) -> Result<Option<PathBuf>, ConfigError> {
    let text = source.text()?;
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn text(source: &Source) -> Result<Option<String>, ConfigError> {
    let text = source.text()?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

impl Configured for WebserverConfig {
    const VARIABLES: &'static [(&'static str, &'static str)] =
        &[("GRAVWELL_DATASTORE", "Datastore"), ("GRAVWELL_WEBSERVER_UUID", "Webserver-UUID")];

    fn defaults() -> WebserverConfig {
        WebserverConfig::for_dir(Path::new(DEFAULT_DATA_DIR))
    }

    fn has_section(section: &str) -> bool {
        ["password-control", "password-controls"].contains(&section.to_ascii_lowercase().as_str())
    }

    fn set(&mut self, source: &Source) -> Result<(), ConfigError> {
        if Self::has_section(&source.setting.section) {
            return self.set_password_control(source);
        }
        match source.name().as_str() {
            "webserver-data-dir" => self.data_dir = PathBuf::from(source.text()?),
            "datastore" => match text(source)? {
                None => self.datastores.clear(),
                Some(address) if address.contains(':') => self.datastores.push(address),
                Some(host) => self.datastores.push(format!("{host}:9405")),
            },
            "external-addr" => self.external_addr = text(source)?,
            "datastore-update-interval" => self.update_interval_s = source.number(1..=3600)?,
            "web-port" => self.port = source.port()?,
            "web-listen-address" => self.listen = source.ip("Web-Port")?,
            "peer-listen-address" => self.peer_listen = source.ip("Peer-Port")?,
            "peer-port" => self.peer_port = u16::try_from(source.number(0..=65_535)?).unwrap_or(0),
            "membership-max-age-hours" => self.membership_hours_max = source.number(0..=1_000_000)?,
            "certificate-file" => self.certificate = path(source)?,
            "key-file" => self.key = path(source)?,
            "insecure-disable-https" => self.plain_http = source.boolean()?,
            "disable-http-redirector" => self.no_redirect = source.boolean()?,
            "web-redirect-port" => self.redirect_port = source.port()?,
            "webserver-trusted-proxy" => match text(source)? {
                None => self.trusted_proxies.clear(),
                Some(network) => {
                    self.trusted_proxies.push(network.parse().map_err(|error: String| source.wrong(error))?)
                }
            },
            "webserver-max-connections-per-address" => {
                self.connections_of_address_max = usize::try_from(source.number(0..=1 << 20)?).unwrap_or(usize::MAX);
            }
            "webserver-max-connections-per-user" => {
                self.connections_of_user_max = usize::try_from(source.number(0..=1 << 20)?).unwrap_or(usize::MAX);
            }
            "webserver-max-streams-per-user" => {
                self.streams_of_user_max = usize::try_from(source.number(1..=1 << 20)?).unwrap_or(64);
            }
            "webserver-access-control-allow-origin" => self.allow_origin = text(source)?,
            "webserver-enable-frame-embedding" => self.may_be_framed = source.boolean()?,
            "webserver-content-security-policy" => self.content_security_policy = text(source)?,
            "web-files-path" => self.web_files = path(source)?,
            "default-language" => source.text()?.clone_into(&mut self.language),
            "session-timeout-minutes" => self.session_timeout_s = source.number(1..=5_256_000)? * 60,
            "session-max-hours" => self.session_lifetime_s = source.number(0..=1_000_000)? * 3600,
            "persist-web-logins" => self.persist_logins = source.boolean()?,
            "login-fail-lock-count" => self.login_failures = u32::try_from(source.number(0..=1_000_000)?).unwrap_or(0),
            "login-fail-lock-duration" => self.login_window_s = source.number(0..=1_000_000)? * 60,
            "write-rate-per-user" => self.writes_per_s = u32::try_from(source.number(0..=1_000_000)?).unwrap_or(0),
            "write-burst-per-user" => self.writes_burst = u32::try_from(source.number(1..=1_000_000)?).unwrap_or(1),
            "write-kb-rate-per-user" => self.write_bytes_per_s = source.number(0..=1 << 30)? << 10,
            "write-mb-burst-per-user" => self.write_bytes_burst = source.mebibytes(1..=1 << 20)?,
            "user-objects-max" => self.objects_of_user_max = source.number(0..=1 << 40)?,
            "user-objects-mb" => self.object_bytes_of_user_max = source.mebibytes(0..=1 << 20)?,
            "max-search-history" => self.history_max = usize::try_from(source.number(1..=100_000)?).unwrap_or(100),
            "resource-max-size" => self.resource_bytes_max = source.number(1..=1 << 50)?,
            "resource-user-quota-mb" => self.resource_quota_bytes = source.mebibytes(0..=1 << 30)?,
            "upload-user-mb" => self.upload_bytes_of_user = source.mebibytes(0..=1 << 30)?,
            "resource-fetch" => {
                self.fetches_on_demand = match source.text()?.to_ascii_lowercase().as_str() {
                    "eager" => false,
                    "on-demand" => true,
                    other => return Err(source.wrong(format!("`{other}` is unknown; use eager or on-demand"))),
                }
            }
            "outbox-max-mb" => self.outbox_bytes_max = source.mebibytes(1..=1 << 20)?,
            "resource-cache-max-mb" => self.resource_cache_bytes_max = source.mebibytes(0..=1 << 30)?,
            "chunk-grace-hours" => self.chunk_grace_hours = source.number(1..=1_000_000)?,
            "chunk-bandwidth-limit" => self.chunk_bytes_per_s = source.bandwidth()?,
            "webserver-uuid" => self.uuid = text(source)?,
            "webserver-domain" => self.domain = i16::try_from(source.number(0..=32_767)?).unwrap_or(0),
            "render-store-limit" => self.render_store_limit = source.number(1..=1 << 40)?,
            "render-store-total-mb" => self.render_store_total = source.mebibytes(0..=1 << 40)?,
            "render-store-user-mb" => self.render_store_of_user = source.mebibytes(0..=1 << 40)?,
            "render-store-min-free-mb" => self.render_store_free_min = source.mebibytes(0..=1 << 40)?,
            "render-store" => self.render_store = path(source)?,
            "remote-indexers" => match text(source)? {
                None => self.indexers.clear(),
                Some(address) if address.starts_with("journal:") => self.indexers.push(address),
                // Indexers of other kinds concern other processes.
                Some(_) => {}
            },
            "indexer-ca-file" => self.indexer_authority = path(source)?,
            "indexer-timeout" => self.indexer_timeout_s = source.number(1..=3600)?,
            "search-max-seconds" => self.search_seconds_max = source.number(1..=1_000_000)?,
            "search-max-per-user" => self.searches_per_user = usize::try_from(source.number(1..=1000)?).unwrap_or(8),
            // The minimum is the maximum number of filters of one query.
            "search-filter-processes" => {
                self.search_filters_max = usize::try_from(source.number(16..=10_000)?).unwrap_or(32);
            }
            "search-filter-sandbox" => {
                self.search_sandbox_required = match source.text()?.to_ascii_lowercase().as_str() {
                    "preferred" => false,
                    "required" => true,
                    other => return Err(source.wrong(format!("`{other}` is unknown; use preferred or required"))),
                }
            }
            "search-keep-hours" => self.search_keep_s = source.number(1..=100_000)? * 3600,
            "mfa-required" => self.mfa_required = source.boolean()?,
            "mfa-issuer-name" => match text(source)? {
                // Apps show only the part before the first colon.
                Some(name) if name.contains(':') || name.chars().count() > 100 => {
                    return Err(source.wrong("must have at most 100 characters and no colon"));
                }
                Some(name) => self.mfa_issuer = name,
                None => return Err(source.wrong("must not be empty, because apps display it")),
            },
            "enable-cbac" => self.capability_control = source.boolean()?,
            "disable-map-tile-server-proxy" => self.no_tile_proxy = source.boolean()?,
            "map-tile-server" => source.text()?.clone_into(&mut self.tile_server),
            "disable-feature-popups" => self.no_popups = source.boolean()?,
            "webserver-metrics-address" => self.metrics = source.socket()?,
            "webserver-ready-max-lag-ops" => self.ready_lag_ops_max = source.number(0..=u64::MAX)?,
            "webserver-ready-max-cut-off-seconds" => self.ready_cut_off_s_max = source.number(0..=31_536_000)?,
            "webserver-drain-seconds" => self.drain_s = source.number(0..=300)?,
            "webserver-min-free-mb" => self.free_min_bytes = source.mebibytes(0..=1 << 30)?,
            "webserver-reserve-mb" => self.reserve_bytes = source.mebibytes(0..=1 << 20)?,
            "webserver-cache-mb" => self.cache_bytes = source.mebibytes(1..=1 << 20)?,
            "initial-admin-default-password" => self.default_password = source.boolean()?,
            "datastore-insecure-disable-tls" | "datastore-insecure-skip-tls-verify" => source.refuse_without_tls()?,
            "log-level" => self.log_level = source.log_level()?,
            "disable-access-log" => self.no_access_log = source.boolean()?,
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Warning, load_with};

    fn load_text(text: &str) -> Result<(WebserverConfig, Vec<Warning>), ConfigError> {
        let temp = tempfile::tempdir().expect("temp dir");
        let file = temp.path().join("gravwell.conf");
        std::fs::write(&file, text).expect("writes");
        load_with(Some(&file), &|_| None)
    }

    #[test]
    fn the_documented_sample_is_understood() {
        let text = "[global]\nWeb-Port=80\nInsecure-Disable-HTTPS=true\nPersist-Web-Logins=True\n\
                    Session-Timeout-Minutes=1440\nLogin-Fail-Lock-Count=4\nLogin-Fail-Lock-Duration=5\n\
                    Datastore=10.0.0.1\nDatastore=10.0.0.2:9999\nExternal-Addr=web1.example.com:443\n\
                    [Password-Control]\nMin-Length=8\nRequire-Special=yes\n[Default-Well]\nTags=a\n";
        let (config, warnings) = load_text(text).expect("loads");
        assert_eq!(warnings, []);
        assert_eq!((config.port, config.plain_http, config.session_timeout_s), (80, true, 86_400));
        assert_eq!((config.login_failures, config.login_window_s), (4, 300));
        assert_eq!(config.datastores, ["10.0.0.1:9405", "10.0.0.2:9999"]);
        assert_eq!((config.passwords.length_min, config.passwords.special), (8, true));
    }

    #[test]
    fn mistakes_name_file_line_and_remedy() {
        let cases = [
            ("[Global]\nWeb-Port=0\n", "line 2, column 1: Web-Port: 0 is out of range"),
            ("[Password-Control]\nMin-Lenght=8\n", "line 2, column 1: Min-Lenght: unknown in this section"),
            ("[Global]\nDatastore-Insecure-Disable-TLS=true\n", "TLS cannot be disabled"),
            ("[Global]\nMFA-Issuer-Name=a:b\n", "no colon"),
            ("[Global]\nWebserver-Trusted-Proxy=10.0.0.0/99\n", "is neither an address nor a network"),
        ];
        for (text, what) in cases {
            let error = load_text(text).expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        let half = WebserverConfig { key: Some("k".into()), ..WebserverConfig::for_dir(Path::new("d")) };
        assert!(half.check().is_err());
    }
}
