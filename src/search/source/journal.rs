//! Journals of hosts as indexers: systemd's journal gateway serves a host's journal over HTTP, one JSON object a line.
//!
//! Every entry has a cursor; a cursor that holds nothing but a time is the way to begin there. An indexer that is away, slow
//! or broken costs only its own rows, and the results say so.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::Uri;
use rustls::ClientConfig;
use serde::Deserialize;

use super::{Output, Range, Source, Telling, http};
use crate::search::row::ROW_BYTES_MAX;

/// A host whose journal is searched.
#[derive(Clone)]
pub struct Indexer {
    uri: Uri,
    tls: Arc<ClientConfig>,
    patience: Duration,
}

/// Tag of all journals.
const TAG: &str = "journal";

impl Indexer {
    /// Reads `journal:https://host:19531`.
    ///
    /// # Errors
    /// Says what to write.
    pub fn parse(text: &str, tls: &Arc<ClientConfig>, patience: Duration) -> Result<Indexer, String> {
        let wrong = || format!("{text:?} is not an indexer: write journal:https://host:19531");
        let address = text.strip_prefix("journal:").ok_or_else(wrong)?;
        let uri: Uri = format!("{}/entries", address.trim_end_matches('/')).parse().map_err(|_| wrong())?;
        let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_web || uri.host().is_none_or(str::is_empty) || uri.path() != "/entries" {
            return Err(wrong());
        }
        let uri = match uri.port() {
            Some(_) => uri,
            None => text_with_port(&uri).parse().map_err(|_| wrong())?,
        };
        Ok(Indexer { uri, tls: Arc::clone(tls), patience })
    }

    /// Tag under which its rows are found.
    #[must_use]
    pub fn tag(&self) -> &'static str {
        TAG
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        format!("{TAG}:{scheme}://{}", self.uri.authority().map_or("", |authority| authority.as_str()))
    }

    /// Whether it answers at all.
    ///
    /// # Errors
    /// Says why not.
    pub async fn ping(&self) -> Result<(), String> {
        let last = [("Accept", "application/json"), ("Range", "entries=:-1:1")];
        http::get(&self.uri, &last, &self.tls, self.patience).await.map(drop)
    }
}

impl Indexer {
    async fn entries(&self, range: Range, out: &mut Output) -> Result<(), String> {
        let since = range.since.max(0) / 1000;
        let begin = format!("entries=t={since:x}");
        let headers = [("Accept", "application/json"), ("Range", begin.as_str())];
        let mut answer = http::get(&self.uri, &headers, &self.tls, self.patience).await?;
        let (mut lines, mut looked_at) = (Lines::default(), 0);
        while let Some(bytes) = answer.next().await? {
            lines.add(&bytes)?;
            while let Some(line) = lines.next(&mut looked_at) {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let time = time_of(&line)?;
                if time >= range.until {
                    return Ok(());
                }
                // Clocks that were set back leave entries out of order: those before are passed over.
                if time >= range.since && out.push(time, line)? {
                    out.flush().await?;
                }
            }
        }
        match lines.rest.trim_ascii().is_empty() {
            true => Ok(()),
            false => Err("the last entry is cut off".into()),
        }
    }
}

fn text_with_port(uri: &Uri) -> String {
    format!("{}://{}:19531/entries", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())
}

/// What is looked at of an entry; the row is the entry as it came.
#[derive(Deserialize)]
struct Stamp<'a> {
    #[serde(rename = "__REALTIME_TIMESTAMP", borrow)]
    time: &'a str,
}

/// Nanoseconds since 1970-01-01 UTC of an entry.
fn time_of(line: &[u8]) -> Result<i64, String> {
    let stamp: Stamp<'_> =
        serde_json::from_slice(line).map_err(|error| format!("an entry is not understood: {error}"))?;
    let micros: i64 = stamp.time.parse().map_err(|_| "an entry has no time".to_owned())?;
    Ok(micros.saturating_mul(1000))
}

/// Bytes cut into lines.
#[derive(Default)]
struct Lines {
    rest: BytesMut,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.rest.extend_from_slice(bytes);
        match self.rest.len() > ROW_BYTES_MAX + bytes.len() {
            true => Err(format!("an entry has more than {} MiB", ROW_BYTES_MAX >> 20)),
            false => Ok(()),
        }
    }

    fn next(&mut self, looked_at: &mut usize) -> Option<Bytes> {
        let end = self.rest[*looked_at..].iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => {
                let line = self.rest.split_to(*looked_at + end + 1).freeze();
                *looked_at = 0;
                Some(line.slice(..line.len() - 1))
            }
            None => {
                *looked_at = self.rest.len();
                None
            }
        }
    }
}

impl Source for Indexer {
    fn name(&self) -> String {
        self.address()
    }

    fn tell(self: Box<Self>, range: Range, mut out: Output) -> Telling {
        Box::pin(async move {
            let told = self.entries(range, &mut out).await;
            // What came before a failure is given all the same.
            out.flush().await.and(told)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> Arc<ClientConfig> {
        http::trust(std::path::Path::new("/nowhere"), None).expect("settings")
    }

    #[test]
    fn addresses() {
        let parse = |text: &str| Indexer::parse(text, &tls(), Duration::from_secs(1)).map(|indexer| indexer.address());
        assert_eq!(parse("journal:https://h:1").as_deref(), Ok("journal:https://h:1"));
        assert_eq!(parse("journal:http://[::1]/").as_deref(), Ok("journal:http://[::1]:19531"));
        for bad in
            ["net:10.0.0.1:9404", "journal:h:19531", "journal:ftp://h", "journal:https://", "journal:https://h/x"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_arrive_in_pieces() {
        let (mut lines, mut at) = (Lines::default(), 0);
        lines.add(b"{\"a\"").expect("fits");
        assert_eq!(lines.next(&mut at), None);
        lines.add(b":1}\n{}\n\n{").expect("fits");
        let found: Vec<Bytes> = std::iter::from_fn(|| lines.next(&mut at)).collect();
        assert_eq!(found, [&b"{\"a\":1}"[..], b"{}", b""]);
        assert_eq!(&lines.rest[..], b"{");
        assert!(lines.add(&vec![b'x'; ROW_BYTES_MAX]).is_ok());
        assert!(lines.add(b"x").is_err());
        let entry = br#"{"MESSAGE":[1,2],"__REALTIME_TIMESTAMP":"1700000000000001"}"#;
        assert_eq!(time_of(entry), Ok(1_700_000_000_000_001_000));
        assert!(time_of(b"{}").is_err() && time_of(br#"{"__REALTIME_TIMESTAMP":"x"}"#).is_err());
    }
}
