//! Timestamps in the form that clients use: RFC 3339, where year 1 means "never".

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use gravwell_env::{Clock, SystemClock};

/// A timestamp in UTC, with nanosecond precision. The default is [`Timestamp::NEVER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(OffsetDateTime);

impl Timestamp {
    /// Value that clients send and expect for "never" and "unset".
    pub const NEVER: Timestamp = Timestamp(datetime!(0001-01-01 00:00:00 UTC));

    /// Returns the system time, with millisecond precision.
    #[must_use]
    pub fn now() -> Timestamp {
        Timestamp::from_ms(SystemClock.now_ms())
    }

    /// Converts from milliseconds since 1970-01-01 UTC; times after the year 9999 become [`Timestamp::NEVER`].
    #[must_use]
    pub fn from_ms(ms: u64) -> Timestamp {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).map_or(Timestamp::NEVER, Timestamp)
    }

    /// Returns milliseconds since 1970-01-01 UTC; 0 for earlier times.
    #[must_use]
    pub fn ms(self) -> u64 {
        u64::try_from(self.0.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
    }

    /// Converts from nanoseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn from_ns(ns: i64) -> Timestamp {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns)).map_or(Timestamp::NEVER, Timestamp)
    }

    /// Returns nanoseconds since 1970-01-01 UTC; times outside the years 1678 to 2262 return the nearest
    /// representable value.
    #[must_use]
    pub fn ns(self) -> i64 {
        let ns = self.0.unix_timestamp_nanos();
        i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
    }

    /// Returns whether this is "never".
    #[must_use]
    pub fn is_never(self) -> bool {
        self == Timestamp::NEVER
    }

    /// Adds seconds, saturating at the maximum timestamp.
    #[must_use]
    pub fn plus(self, seconds: u64) -> Timestamp {
        let duration = Duration::seconds(i64::try_from(seconds).unwrap_or(i64::MAX));
        Timestamp(self.0.saturating_add(duration))
    }

    /// Returns whether it is in the past; "never" is not.
    #[must_use]
    pub fn is_past(self) -> bool {
        self.is_past_at(Timestamp::now())
    }

    /// Returns whether it is in the past at `now`; "never" is not.
    #[must_use]
    pub fn is_past_at(self, now: Timestamp) -> bool {
        !self.is_never() && self <= now
    }

    /// Parses RFC 3339. Also accepts an offset of hours only, as Go's layout `Z07` writes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Timestamp> {
        let parsed =
            OffsetDateTime::parse(text, &Rfc3339).or_else(|_| OffsetDateTime::parse(&format!("{text}:00"), &Rfc3339));
        parsed.ok().map(|time| Timestamp(time.to_offset(time::UtcOffset::UTC)))
    }

    /// Formats as RFC 3339 in UTC, without trailing zeros.
    #[must_use]
    pub fn text(self) -> String {
        self.0.format(&Rfc3339).unwrap_or_else(|_| "0001-01-01T00:00:00Z".into())
    }
}

impl Default for Timestamp {
    fn default() -> Timestamp {
        Timestamp::NEVER
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    /// `null` and the empty text decode as "never".
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text: Option<std::borrow::Cow<'de, str>> = Option::deserialize(deserializer)?;
        match text.as_deref() {
            None | Some("") => Ok(Timestamp::NEVER),
            Some(text) => Timestamp::parse(text).ok_or_else(|| {
                serde::de::Error::custom(format!("{text:?} is not a time; use the form 2026-01-31T12:00:00Z"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_and_write_as_clients_expect() {
        let cases = [
            ("2021-03-04T05:06:07.120Z", "2021-03-04T05:06:07.12Z"),
            ("2021-03-04T05:06:07-06", "2021-03-04T11:06:07Z"),
            ("2021-03-04T05:06:07+01:30", "2021-03-04T03:36:07Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ];
        for (read, written) in cases {
            assert_eq!(Timestamp::parse(read).expect(read).text(), written);
        }
        assert_eq!(Timestamp::parse("yesterday"), None);
        assert!(Timestamp::NEVER.is_never() && !Timestamp::NEVER.is_past());
        assert!(Timestamp::from_ms(1).is_past() && !Timestamp::now().plus(60).is_past());
        assert_eq!(Timestamp::from_ms(u64::MAX), Timestamp::NEVER);
        let read: Timestamp = serde_json::from_str("null").expect("reads");
        assert!(read.is_never());
        assert_eq!(Timestamp::parse("2021-03-04T05:06:07.120Z").expect("reads").ms(), 1_614_834_367_120);
    }
}
