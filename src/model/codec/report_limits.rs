//! Limits for the data that a member reports about itself. It is stored, forwarded to all members and displayed, so
//! data that exceeds a limit is rejected instead of being truncated silently.

use super::message::{Announce, Hello, Progress, RefusalCode, Refused};
use crate::address::{host_and_port, is_host};
use crate::printable;

/// Maximum length of a message in which a member reports, sends a request or opens a stream.
pub const REPORT_BYTES_MAX: usize = 64 << 10;
/// Maximum length of displayed text, in characters.
pub const TEXT_CHARS_MAX: usize = 256;
/// Maximum number of hosts that a member may announce.
pub const HOSTS_MAX: usize = 8;
/// Maximum total length of the announced hosts: more than eight names of usual length.
pub const HOSTS_BYTES_MAX: usize = 512;

fn refused(message: String) -> Refused {
    Refused { code: RefusalCode::Protocol, message }
}

fn check_text(what: &str, text: &str) -> Result<(), Refused> {
    let characters = text.chars().count();
    if characters > TEXT_CHARS_MAX {
        return Err(refused(format!("{what} has {characters} characters, but at most {TEXT_CHARS_MAX} are allowed")));
    }
    match text.chars().find(|character| !printable::is_printable(*character)) {
        Some(found) => Err(refused(format!("{what} contains the unprintable character U+{:04X}", u32::from(found)))),
        None => Ok(()),
    }
}

/// Converts `text` to a form that a member may report: printable, and at most [`TEXT_CHARS_MAX`] characters.
#[must_use]
pub fn reportable(text: &str) -> String {
    printable::shorten(text, TEXT_CHARS_MAX)
}

impl Hello {
    /// Validates the fields set by the member.
    ///
    /// # Errors
    /// Returns an error that names the field that exceeds its limit.
    pub fn check(&self) -> Result<(), Refused> {
        check_text("the software name", &self.software)?;
        let external_addr = self.external_addr.as_deref().map_or(Ok(()), |text| host_and_port(text).map(|_| ()));
        external_addr.map_err(|what| refused(format!("{what}; correct it in gravwell.conf")))
    }
}

impl Announce {
    /// Validates the fields set by the member.
    ///
    /// # Errors
    /// Returns an error that names the field that exceeds its limit.
    pub fn check(&self) -> Result<(), Refused> {
        let (hosts, bytes) = (self.hosts.len(), self.hosts.iter().map(String::len).sum::<usize>());
        if hosts > HOSTS_MAX || bytes > HOSTS_BYTES_MAX {
            return Err(refused(format!(
                "{hosts} hosts of {bytes} bytes are announced, but at most {HOSTS_MAX} of {HOSTS_BYTES_MAX} bytes are \
                 allowed"
            )));
        }
        match self.hosts.iter().find(|host| !is_host(host)) {
            Some(host) => Err(refused(format!("the announced host {:?} is invalid", printable::shorten(host, 64)))),
            None => Ok(()),
        }
    }
}

impl Progress {
    /// Validates the fields set by the member.
    ///
    /// # Errors
    /// Returns an error that names the field that exceeds its limit.
    pub fn check(&self) -> Result<(), Refused> {
        self.unhealthy.as_deref().map_or(Ok(()), |text| check_text("the reason for being unhealthy", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_a_text_is_accepted_at_its_bound_and_refused_beyond() {
        let with = |unhealthy: String| Progress { unhealthy: Some(unhealthy), ..Progress::default() };
        assert_eq!(Progress::default().check(), Ok(()));
        assert_eq!(with("\u{6f22}".repeat(TEXT_CHARS_MAX)).check(), Ok(()));
        for wrong in ["a".repeat(TEXT_CHARS_MAX + 1), "a\nb".into(), "\u{1b}[2J".into(), "\u{202e}".into(), "\0".into()]
        {
            let refused = with(wrong.clone()).check().expect_err(&wrong);
            assert_eq!(refused.code, RefusalCode::Protocol);
            assert!(refused.message.len() < 300 && refused.message.chars().all(printable::is_printable), "{refused}");
            assert_eq!(with(reportable(&wrong)).check(), Ok(()), "a reportable text is always accepted");
        }
    }

    #[test]
    fn p15_announced_hosts_are_hosts_and_few() {
        let of = |hosts: Vec<String>| Announce { port: 1, hosts }.check();
        assert_eq!(of(Vec::new()), Ok(()));
        assert_eq!(of(vec!["a".repeat(64); HOSTS_MAX]), Ok(()));
        for wrong in [
            vec!["a".to_owned(); HOSTS_MAX + 1],
            vec![format!("{}a", "a".repeat(64)); HOSTS_MAX],
            vec!["a".repeat(254)],
            vec![String::new()],
            vec!["a b".into()],
            vec!["a\u{1b}".into()],
        ] {
            assert!(of(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
