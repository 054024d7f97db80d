//! Settings of a datastore, with defaults that work without a configuration file.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{ConfigError, Configured, Source};
use gravwell_model::{Limits, Redaction};

/// Default data directory.
pub const DEFAULT_DATA_DIR: &str = "/opt/gravwell/datastore";

/// Behavior of a datastore that starts without its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Recovery {
    /// Rejects writes if members know of a log that this datastore does not have.
    #[default]
    Auto,
    /// Like `Auto`; in addition, without any log, waits until one has been recovered or restored.
    Wait,
    /// Starts a new log, regardless of the data of members.
    Off,
}

/// Settings of a datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatastoreConfig {
    /// Data directory.
    pub data_dir: PathBuf,
    /// `Datastore-Listen-Address`; `None`: all addresses.
    pub listen: Option<IpAddr>,
    /// `Datastore-Port` (UDP).
    pub port: u16,
    /// Names and addresses that members may use; they are written into tokens and the server certificate.
    pub server_names: Vec<String>,
    /// Address of the Prometheus endpoint; `None`: disabled.
    pub metrics: Option<SocketAddr>,
    /// Log level: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
    /// Size at which a segment is closed, in bytes.
    pub segment_bytes: u64,
    /// Size of the disk reserve for a full disk, in bytes.
    pub reserve_bytes: u64,
    /// Writes are rejected while less disk space is free, in bytes.
    pub min_free_bytes: u64,
    /// Number of recent entries that compaction keeps.
    pub history_ops: u64,
    /// Age in hours up to which compaction keeps entries; 0: only `history_ops` counts.
    pub history_hours: u64,
    /// `Datastore-Audit-Hours`: retention of the audit trail, independent of compaction.
    pub audit_hours: u64,
    /// `Datastore-Audit-Max-MB`: maximum size of the audit trail in bytes; beyond it the oldest records are
    /// deleted early.
    pub audit_bytes_max: u64,
    /// Percentage of garbage at which a compacted segment is rewritten.
    pub compact_garbage_percent: u8,
    /// Compaction starts when this many bytes have accumulated below the next horizon.
    pub compact_min_bytes: u64,
    /// A member that was silent for more hours no longer pins the floor.
    pub retention_hours: u64,
    /// `Datastore-Readers-Hold-Compaction`: whether readers pin the floor, too.
    pub readers_hold_compaction: bool,
    /// Collections whose values are withheld from readers.
    pub redaction: Redaction,
    /// `Datastore-Member-Max-Lag-Ops`: maximum number of entries kept for a lagging member.
    pub member_lag_ops_max: u64,
    /// `Datastore-Update-Interval`: heartbeat interval, in seconds.
    pub update_interval_s: u64,
    /// Validity of member certificates, in days.
    pub certificate_days: u32,
    /// `Datastore-Recovery`: behavior without a log.
    pub recovery: Recovery,
    /// `Datastore-Archive`: destination of the continuous backup; `None`: disabled.
    pub archive: Option<String>,
    /// `Datastore-Backup-Key-File`: key of the continuous backup; `None`: `backup.key` in the data directory.
    pub backup_key_file: Option<PathBuf>,
    /// `Datastore-Backup-Plain`: whether the continuous backup is unencrypted.
    pub backup_plain: bool,
    /// Maximum number of connected members.
    pub subscribers_max: u64,
    /// Size of the state cache, in bytes.
    pub cache_bytes: u64,
    /// `Chunk-Grace-Hours`: unreferenced chunks are kept for this time.
    pub chunk_grace_hours: u64,
    /// `Chunk-Bandwidth-Limit`: maximum rate of sent chunks, in bytes per second; 0: unlimited.
    pub chunk_bytes_per_s: u64,
    /// Maximum length of a key, in bytes.
    pub key_bytes_max: usize,
    /// Maximum size of an inline value, in bytes.
    pub value_bytes_max: usize,
    /// Maximum size of a transaction, in bytes.
    pub txn_bytes_max: usize,
}

impl Configured for DatastoreConfig {
    const VARIABLES: &'static [(&'static str, &'static str)] = &[
        ("GRAVWELL_DATASTORE_LISTEN_ADDRESS", "Datastore-Listen-Address"),
        ("GRAVWELL_DATASTORE_LISTEN_PORT", "Datastore-Port"),
    ];

    fn defaults() -> DatastoreConfig {
        DatastoreConfig::for_dir(Path::new(DEFAULT_DATA_DIR))
    }

    fn has_section(_section: &str) -> bool {
        false
    }

    fn set(&mut self, source: &Source) -> Result<(), ConfigError> {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        match source.name().as_str() {
            "datastore-port" => self.port = source.port()?,
            "datastore-listen-address" => self.listen = source.ip("Datastore-Port")?,
            "datastore-update-interval" => self.update_interval_s = source.number(1..=3600)?,
            "datastore-data-dir" => self.data_dir = PathBuf::from(source.text()?),
            "datastore-server-name" => source.add_to(&mut self.server_names),
            "datastore-metrics-address" => self.metrics = source.socket()?,
            "datastore-log-segment-mb" => self.segment_bytes = source.mebibytes(1..=4096)?,
            "datastore-log-history-ops" => self.history_ops = source.number(0..=u64::MAX)?,
            "datastore-log-history-hours" => self.history_hours = source.number(0..=1_000_000)?,
            "datastore-audit-hours" => self.audit_hours = source.number(1..=1_000_000)?,
            "datastore-audit-max-mb" => self.audit_bytes_max = source.mebibytes(64..=1 << 30)?,
            "datastore-compact-garbage-percent" => {
                self.compact_garbage_percent = u8::try_from(source.number(1..=100)?).unwrap_or(50);
            }
            "datastore-compact-min-mb" => self.compact_min_bytes = source.mebibytes(1..=1 << 30)?,
            "datastore-member-retention-hours" => self.retention_hours = source.number(0..=1_000_000)?,
            "datastore-readers-hold-compaction" => self.readers_hold_compaction = source.boolean()?,
            "datastore-member-max-lag-ops" => self.member_lag_ops_max = source.number(1..=u64::MAX)?,
            "datastore-min-free-mb" => self.min_free_bytes = source.mebibytes(0..=1 << 30)?,
            "datastore-reserve-mb" => self.reserve_bytes = source.mebibytes(0..=1 << 20)?,
            "datastore-cache-mb" => self.cache_bytes = source.mebibytes(1..=1 << 20)?,
            "chunk-grace-hours" => self.chunk_grace_hours = source.number(1..=1_000_000)?,
            "chunk-bandwidth-limit" => self.chunk_bytes_per_s = source.bandwidth()?,
            "datastore-max-key-bytes" => self.key_bytes_max = size(source.number(1..=1 << 20)?),
            "datastore-max-value-kb" => self.value_bytes_max = size(source.number(1..=1 << 20)? << 10),
            "datastore-max-txn-kb" => self.txn_bytes_max = size(source.number(1..=1 << 20)? << 10),
            "datastore-max-subscribers" => self.subscribers_max = source.number(1..=1 << 20)?,
            "datastore-certificate-days" => {
                self.certificate_days = u32::try_from(source.number(1..=36_500)?).unwrap_or(90);
            }
            "datastore-archive" => self.archive = Some(source.text()?.to_owned()).filter(|place| !place.is_empty()),
            "datastore-backup-key-file" => {
                self.backup_key_file = Some(source.text()?).filter(|path| !path.is_empty()).map(PathBuf::from);
            }
            "datastore-backup-plain" => self.backup_plain = source.boolean()?,
            "datastore-recovery" => {
                self.recovery = match source.text()?.to_ascii_lowercase().as_str() {
                    "auto" => Recovery::Auto,
                    "wait" => Recovery::Wait,
                    "off" => Recovery::Off,
                    other => return Err(source.wrong(format!("`{other}` is unknown; use auto, wait or off"))),
                };
            }
            "datastore-insecure-disable-tls" | "datastore-insecure-skip-tls-verify" => source.refuse_without_tls()?,
            "log-level" => self.log_level = source.log_level()?,
            _ => {}
        }
        Ok(())
    }
}

impl DatastoreConfig {
    /// Returns the defaults, with data in `data_dir`.
    #[must_use]
    pub fn for_dir(data_dir: &Path) -> DatastoreConfig {
        let limits = Limits::default();
        DatastoreConfig {
            data_dir: data_dir.to_owned(),
            listen: None,
            port: 9405,
            server_names: Vec::new(),
            metrics: None,
            log_level: "info".into(),
            segment_bytes: 64 << 20,
            reserve_bytes: 16 << 20,
            min_free_bytes: 64 << 20,
            history_ops: 10_000,
            history_hours: 0,
            audit_hours: 90 * 24,
            audit_bytes_max: 16 << 30,
            compact_garbage_percent: 50,
            compact_min_bytes: 64 << 20,
            retention_hours: 168,
            readers_hold_compaction: false,
            redaction: Redaction::default(),
            member_lag_ops_max: 10_000_000,
            update_interval_s: 5,
            certificate_days: 90,
            recovery: Recovery::Auto,
            archive: None,
            backup_key_file: None,
            backup_plain: false,
            subscribers_max: 1000,
            cache_bytes: 64 << 20,
            chunk_grace_hours: 24,
            chunk_bytes_per_s: 0,
            key_bytes_max: limits.key_bytes_max,
            value_bytes_max: limits.value_bytes_max,
            txn_bytes_max: limits.txn_bytes_max,
        }
    }

    /// Returns the address to listen on; default: all addresses.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        let all = if Path::new("/proc/net/if_inet6").exists() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        SocketAddr::new(self.listen.unwrap_or(all), self.port)
    }

    /// Returns the addresses for tokens, given the address on which the datastore listens.
    #[must_use]
    pub fn advertised(&self, listening: SocketAddr) -> Vec<String> {
        let port = listening.port();
        let with_port =
            |host: &str| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let mut addresses: Vec<String> = self.server_names.iter().map(|name| with_port(name)).collect();
        if !listening.ip().is_unspecified() {
            addresses.push(listening.to_string());
            return addresses;
        }
        // Not read from /proc, where a hardened service sees only its own processes.
        if let Ok(host) = rustix::system::uname().nodename().to_str() {
            addresses.push(with_port(host));
        }
        addresses.push(with_port("127.0.0.1"));
        addresses
    }

    /// Checks that the settings are consistent.
    ///
    /// # Errors
    /// If settings contradict each other; the message names them.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(ConfigError(what));
        if self.value_bytes_max >= self.txn_bytes_max {
            return wrong(format!(
                "the value limit ({} bytes) must be smaller than the transaction limit ({} bytes)",
                self.value_bytes_max, self.txn_bytes_max
            ));
        }
        let hard = gravwell_model::limits::HARD;
        if self.txn_bytes_max > hard.txn_bytes_max
            || self.value_bytes_max > hard.value_bytes_max
            || self.key_bytes_max > hard.key_bytes_max
        {
            return wrong(format!(
                "limits must not exceed {} bytes for keys, {} for values and {} for transactions",
                hard.key_bytes_max, hard.value_bytes_max, hard.txn_bytes_max
            ));
        }
        if self.segment_bytes < 1 << 20 {
            return wrong(format!("a segment of {} bytes is too small; use at least 1 MiB", self.segment_bytes));
        }
        Ok(())
    }

    /// Returns the limits of transactions.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            key_bytes_max: self.key_bytes_max,
            value_bytes_max: self.value_bytes_max,
            txn_bytes_max: self.txn_bytes_max,
            ..Limits::default()
        }
    }

    /// Returns the heartbeat interval in milliseconds.
    #[must_use]
    pub fn heartbeat_ms(&self) -> u64 {
        self.update_interval_s.max(1) * 1000
    }

    /// Returns the retention of the audit trail in milliseconds.
    #[must_use]
    pub fn audit_ms(&self) -> u64 {
        self.audit_hours.saturating_mul(3_600_000)
    }

    /// Returns the retention of silent members in milliseconds.
    #[must_use]
    pub fn retention_ms(&self) -> u64 {
        self.retention_hours.saturating_mul(3_600_000)
    }
}
