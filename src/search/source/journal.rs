//! Journals of hosts as indexers: systemd's journal gateway serves the journal of a host over HTTP.
//!
//! Every entry has a cursor; a cursor that contains only a time starts the response at that time. An indexer that is
//! unreachable, slow or faulty affects only its own rows, and the results report it.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use rustls::ClientConfig;

use super::export::Entries;
use super::{Output, Range, Source, SourceFuture, http};

/// A host whose journal is searched.
#[derive(Clone)]
pub struct Indexer {
    uri: Uri,
    tls: Arc<ClientConfig>,
    patience: Duration,
}

/// Tag of all journals.
pub(super) const TAG: &str = "journal";
/// Requested media type of entries.
const FORM: &str = "application/vnd.fdo.journal";

impl Indexer {
    /// Parses `journal:https://host:19531`.
    ///
    /// # Errors
    /// If the text is not an indexer address; the message states the expected form.
    pub fn parse(text: &str, tls: &Arc<ClientConfig>, patience: Duration) -> Result<Indexer, String> {
        let wrong = || format!("{text:?} is not an indexer; use the form journal:https://host:19531");
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

    /// Returns the tag of its rows.
    #[must_use]
    pub fn tag(&self) -> &'static str {
        TAG
    }

    /// Returns its address.
    #[must_use]
    pub fn address(&self) -> String {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        format!("{TAG}:{scheme}://{}", self.uri.authority().map_or("", |authority| authority.as_str()))
    }

    /// Checks that it responds.
    ///
    /// # Errors
    /// Returns the reason if it does not respond.
    pub async fn ping(&self) -> Result<(), String> {
        let last = [("Accept", FORM), ("Range", "entries=:-1:1")];
        http::get(&self.uri, &last, &self.tls, self.patience).await.map(drop)
    }
}

impl Indexer {
    async fn entries(&self, range: Range, out: &mut Output) -> Result<(), String> {
        let since = range.since.max(0) / 1000;
        let begin = format!("entries=t={since:x}");
        let headers = [("Accept", FORM), ("Range", begin.as_str())];
        let mut answer = http::get(&self.uri, &headers, &self.tls, self.patience).await?;
        let (mut entries, mut row) = (Entries::default(), Vec::new());
        while let Some(bytes) = answer.next().await? {
            entries.add(&bytes)?;
            while let Some(time) = entries.next(&mut row)? {
                if time >= range.until {
                    return Ok(());
                }
                // After a clock was set back, entries are out of order; those before the range are skipped.
                if time >= range.since && out.push(time, &row)? {
                    out.flush().await?;
                }
            }
        }
        match entries.is_between() {
            true => Ok(()),
            false => Err("the last entry is truncated".into()),
        }
    }
}

fn text_with_port(uri: &Uri) -> String {
    format!("{}://{}:19531/entries", uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default())
}

impl Source for Indexer {
    fn name(&self) -> String {
        self.address()
    }

    fn tell(self: Box<Self>, range: Range, mut out: Output) -> SourceFuture {
        Box::pin(async move {
            let told = self.entries(range, &mut out).await;
            // Rows received before a failure are still delivered.
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
}
