//! A setting and the conversion of its value to numbers, booleans and addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::ConfigError;
use super::syntax::Setting;

/// A setting and the file that contains it.
pub struct Source {
    pub(super) file: PathBuf,
    pub(super) setting: Setting,
}

impl Source {
    pub(super) fn name(&self) -> String {
        self.setting.name.to_ascii_lowercase()
    }

    pub(super) fn wrong(&self, what: impl fmt::Display) -> ConfigError {
        ConfigError(format!("{}, {}: {}: {what}", self.file.display(), self.setting.place, self.setting.name))
    }

    pub(super) fn text(&self) -> Result<&str, ConfigError> {
        self.setting.value.as_deref().ok_or_else(|| self.wrong("missing value; write `name=value`"))
    }

    /// Appends the value to a list; a name without a value clears the list.
    pub(super) fn add_to(&self, list: &mut Vec<String>) {
        match self.setting.value.as_deref() {
            None => list.clear(),
            Some(value) => list.push(value.to_owned()),
        }
    }

    pub(super) fn number(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let text = self.text()?;
        let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
            None => text.parse(),
        };
        let number = parsed.map_err(|_| self.wrong(format!("`{text}` is not an integer")))?;
        if range.contains(&number) {
            return Ok(number);
        }
        Err(self.wrong(format!("{number} is out of range; use {} to {}", range.start(), range.end())))
    }

    /// Parses a size in MiB and returns bytes.
    pub(super) fn mebibytes(&self, range: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        Ok(self.number(range)? << 20)
    }

    /// Parses a bandwidth such as `10Mbit` or `500KB` and returns bytes per second; 0: unlimited.
    pub(super) fn bandwidth(&self) -> Result<u64, ConfigError> {
        let text = self.text()?.trim();
        let wrong = || self.wrong(format!("`{text}` is not a bandwidth; use 10Mbit, 500KB, 2MB or 0, per second"));
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let (factor, divisor) = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => (1, 1),
            "kb" => (1 << 10, 1),
            "mb" => (1 << 20, 1),
            "gb" => (1 << 30, 1),
            "kbit" => (1_000, 8),
            "mbit" => (1_000_000, 8),
            "gbit" => (1_000_000_000, 8),
            _ => return Err(wrong()),
        };
        Ok(number.saturating_mul(factor) / divisor)
    }

    pub(super) fn port(&self) -> Result<u16, ConfigError> {
        Ok(u16::try_from(self.number(1..=65_535)?).unwrap_or(u16::MAX))
    }

    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        let Some(text) = self.setting.value.as_deref() else { return Ok(true) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(self.wrong(format!("`{text}` is not a boolean; use true or false"))),
        }
    }

    /// Parses an address to listen on; empty: all addresses.
    pub(super) fn ip(&self, port_parameter: &str) -> Result<Option<IpAddr>, ConfigError> {
        let text = self.text()?;
        let wrong = |_| self.wrong(format!("`{text}` is not an IP address; set the port with {port_parameter}"));
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(wrong) }
    }

    /// Parses an address with a port; empty: none. A port alone means this port on the loopback address.
    pub(super) fn socket(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let text = self.text()?;
        if let Ok(port) = text.parse::<u16>() {
            return Ok(Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        }
        let wrong =
            |_| self.wrong(format!("`{text}` is not an address with a port; use a form such as 127.0.0.1:9407"));
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(wrong) }
    }

    pub(super) fn log_level(&self) -> Result<String, ConfigError> {
        let text = self.text()?.to_ascii_lowercase();
        if ["error", "warn", "info", "debug", "trace"].contains(&text.as_str()) {
            return Ok(text);
        }
        Err(self.wrong(format!("`{text}` is not a level; use ERROR, WARN, INFO, DEBUG or TRACE")))
    }

    /// Rejects settings that would disable TLS: there is no mode without TLS between members.
    pub(super) fn refuse_without_tls(&self) -> Result<(), ConfigError> {
        if !self.boolean()? {
            return Ok(());
        }
        Err(self.wrong(
            "TLS cannot be disabled; remove this line. Members join with `gravwell-logctl enroll` and `join` and need \
             no certificate files",
        ))
    }
}
