//! The datastore's half of the handshake: its welcome, with the verdict on a member's position.

use gravwell_log::LogReader;
use gravwell_model::codec::message::{Hello, RefusalCode, Refused, VERSION_REDACTED, Welcome};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Digest, Limits, Position, Seq};
use gravwell_protocol::session::{check_generations, common_version, verdict};
use gravwell_transport::trust::Role;

/// State of the datastore that a handshake needs.
#[derive(Clone, Copy, Debug)]
pub struct Handshake<'a> {
    /// Reader of the datastore's log.
    pub log: &'a LogReader,
    /// Last sequence visible to clients.
    pub head: Seq,
    /// Limits for transactions.
    pub limits: &'a Limits,
    /// Heartbeat interval, in milliseconds.
    pub heartbeat_ms: u64,
}

/// Builds a refusal.
pub fn refused(code: RefusalCode, message: impl Into<String>) -> Refused {
    Refused { code, message: message.into() }
}

impl Handshake<'_> {
    /// Answers a hello.
    ///
    /// # Errors
    /// Returns a refusal if no version is common, the client cannot decode the log's generations, or the log cannot
    /// be read.
    pub fn welcome(&self, member: &str, role: Role, hello: &Hello) -> Result<Welcome, Refused> {
        let version = common_version(hello)?;
        check_redaction(version, role, hello)?;
        let lineage = self.log.lineage();
        check_generations(version, hello, &lineage)?;
        let (log, head, horizon) = (self.log, self.head, self.log.horizon());
        let chain_at = |seq: Seq| {
            let internal = |error| format!("the datastore's log cannot be read: {error}");
            log.chain_at(seq).map_err(|error| refused(RefusalCode::Internal, internal(error)))
        };
        let chain_at_client = match &hello.position {
            _ if fault_injection::is(Bug::IgnoreChain) => None,
            Some(mine) if mine.log_id == log.log_id() && mine.seq <= head && mine.seq >= horizon => chain_at(mine.seq)?,
            _ => None,
        };
        let here = Position {
            log_id: log.log_id(),
            generation: log.generation(),
            seq: head,
            chain: chain_at(head)?.unwrap_or_default(),
            digest: Digest::ZERO,
        };
        let bytes = |value: usize| value as u64;
        Ok(Welcome {
            version,
            software: format!("gravwell {}", env!("CARGO_PKG_VERSION")),
            member: member.to_owned(),
            role: role.to_string(),
            log_id: here.log_id,
            generation: here.generation,
            verdict: verdict(hello.position.as_ref(), &here, &lineage, chain_at_client),
            lineage,
            head,
            horizon,
            heartbeat_ms: self.heartbeat_ms,
            txn_bytes_max: bytes(self.limits.txn_bytes_max),
            value_bytes_max: bytes(self.limits.value_bytes_max),
            key_bytes_max: bytes(self.limits.key_bytes_max),
        })
    }
}

/// Refuses readers that do not support redacted entries: they could follow nothing and would not report why.
fn check_redaction(version: u16, role: Role, hello: &Hello) -> Result<(), Refused> {
    if role != Role::Reader || version >= VERSION_REDACTED {
        return Ok(());
    }
    let message = format!(
        "readers no longer receive passwords, tokens and sessions, and this one ({}) is too old to support that; \
         upgrade it",
        hello.software
    );
    Err(refused(RefusalCode::Version, message))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use gravwell_env::MemoryFs;
    use gravwell_log::{Log, LogOptions};
    use gravwell_model::codec::message::VERSION_MAX;
    use gravwell_model::{Generation, Verdict};

    #[test]
    fn p12_a_member_that_cannot_read_the_generation_is_refused_by_name() {
        let (mut log, _) =
            Log::open(Arc::new(MemoryFs::new()), Path::new("/log"), LogOptions::default()).expect("opens");
        let hello = |version_max, position| Hello {
            version_min: 1,
            version_max,
            software: "gravwell 0.1.0".into(),
            position,
            external_addr: None,
        };
        let welcome = |log: &Log, hello: &Hello| {
            let (log, limits) = (log.reader(), Limits::default());
            Handshake { log: &log, head: Seq::ZERO, limits: &limits, heartbeat_ms: 1000 }.welcome(
                "a",
                Role::Webserver,
                hello,
            )
        };
        assert_eq!(welcome(&log, &hello(1, None)).map(|welcome| welcome.version), Ok(1));
        let wide = Generation(1 << 51);
        log.start_generation(wide).expect("starts");
        let refused = welcome(&log, &hello(1, None)).expect_err("unreadable welcome");
        assert!(refused.code == RefusalCode::Version && refused.message.contains("upgrade"), "{refused}");
        let served = welcome(&log, &hello(VERSION_MAX, None)).expect("welcome");
        assert_eq!((served.generation, served.lineage.len()), (wide, 2));
        // The welcome decodes to the same values.
        let message = gravwell_model::codec::message::encode(gravwell_model::codec::message::Kind::Welcome, &served);
        let body = &message[gravwell_model::codec::message::HEADER_BYTES..];
        assert_eq!(
            gravwell_model::codec::message::decode(gravwell_model::codec::message::Kind::Welcome, body),
            Ok(served.clone())
        );
        let mine =
            Position { log_id: served.log_id, generation: wide, seq: Seq(0), chain: [0; 16], digest: Digest::ZERO };
        let verdict = welcome(&log, &hello(VERSION_MAX, Some(mine))).map(|welcome| welcome.verdict);
        assert_eq!(verdict, Ok(Some(Verdict::Same)));
    }
}
