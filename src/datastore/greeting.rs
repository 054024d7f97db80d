//! The datastore's half of the handshake: what it says of itself and of a member's position, and who may follow.

use crate::codec::message::{Hello, RefusalCode, Refused, Welcome};
use crate::log::LogReader;
use crate::model::{Digest, Limits, Position, Seq, Verdict};
use crate::planted::{self, Bug};
use crate::protocol::session::{common_version, verdict};

/// What the datastore is at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Greeter<'a> {
    /// Its log.
    pub log: &'a LogReader,
    /// Last sequence shown to anyone.
    pub head: Seq,
    /// Bounds of transactions.
    pub limits: &'a Limits,
    /// Rhythm of heartbeats, in milliseconds.
    pub heartbeat_ms: u64,
}

/// A refusal with its reason.
pub fn refused(code: RefusalCode, message: impl Into<String>) -> Refused {
    Refused { code, message: message.into() }
}

impl Greeter<'_> {
    /// Answers a greeting.
    ///
    /// # Errors
    /// When no version is common, or the log cannot be read.
    pub fn welcome(&self, member: &str, role: &str, hello: &Hello) -> Result<Welcome, Refused> {
        let version = common_version(hello)?;
        let (log, head, horizon) = (self.log, self.head, self.log.horizon());
        let chain_at = |seq: Seq| {
            let internal = |error| format!("the datastore's log cannot be read: {error}");
            log.chain_at(seq).map_err(|error| refused(RefusalCode::Internal, internal(error)))
        };
        let chain_at_client = match &hello.position {
            _ if planted::is(Bug::IgnoreChain) => None,
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
        let lineage = log.lineage();
        let bytes = |value: usize| value as u64;
        Ok(Welcome {
            version,
            software: format!("gravwell {}", env!("CARGO_PKG_VERSION")),
            member: member.to_owned(),
            role: role.to_owned(),
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

/// Whether a member that was welcomed so may be served the tail after `from`.
///
/// # Errors
/// When the positions do not fit.
pub fn may_follow(welcome: &Welcome, from: Seq, head: Seq) -> Result<(), Refused> {
    if welcome.verdict.is_none_or(Verdict::is_good) && from <= head {
        return Ok(());
    }
    Err(refused(RefusalCode::Diverged, "the positions do not fit: no tail is served"))
}
