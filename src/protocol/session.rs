//! Conversation between a member and the datastore. Each half is a state machine: [`client`] is the member's, [`server`]
//! the datastore's.
//!
//! This file has the rules of the handshake (hello and welcome): selection of the protocol version, and the next step of
//! the replica given the verdict.

pub mod client;
mod client_events;
#[cfg(test)]
mod client_tests;
mod following;
#[cfg(test)]
mod joined_tests;
pub mod reconnects;
pub mod server;
mod serving_tail;

use gravwell_model::codec::message::{
    Hello, RefusalCode, Refused, VERSION_MAX, VERSION_MIN, VERSION_REDACTED, WIDE_GENERATIONS, Welcome,
};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::position::compare;
use gravwell_model::{Chain, Generation, LineageEntry, Position, Seq, Verdict};

/// Role of a member that may not write, and from which the values of some collections are withheld.
pub const READER: &str = "reader";

/// Returns whether the member that receives this welcome is a reader.
#[must_use]
pub fn is_reader(welcome: &Welcome) -> bool {
    welcome.role == READER
}

/// Returns whether the state of a member that receives this welcome lacks values withheld from readers. Datastores of
/// earlier versions withhold nothing.
#[must_use]
pub fn is_redacted(welcome: &Welcome) -> bool {
    welcome.version >= VERSION_REDACTED && is_reader(welcome)
}

/// Returns the highest version that both sides support.
///
/// # Errors
/// If the version ranges do not overlap.
pub fn common_version(hello: &Hello) -> Result<u16, Refused> {
    let version = hello.version_max.min(VERSION_MAX);
    if version >= hello.version_min.max(VERSION_MIN) {
        return Ok(version);
    }
    Err(Refused {
        code: RefusalCode::Version,
        message: format!(
            "no common protocol version: the client ({}) supports {} to {}, the datastore {VERSION_MIN} to \
             {VERSION_MAX}; upgrade the older side",
            hello.software, hello.version_min, hello.version_max
        ),
    })
}

/// Checks that a client with protocol version `version` can read the generations of a log.
///
/// # Errors
/// If a generation has more than 32 bits, which the client cannot read.
pub fn check_generations(version: u16, hello: &Hello, lineage: &[LineageEntry]) -> Result<(), Refused> {
    let wide = lineage.iter().map(|entry| entry.generation).find(|generation| generation.narrow().is_none());
    let Some(generation) = wide.filter(|_: &Generation| version < WIDE_GENERATIONS) else { return Ok(()) };
    Err(Refused {
        code: RefusalCode::Version,
        message: format!(
            "the client ({}) cannot read generation {generation} of the log, which a restore or recovery has started: \
             it uses protocol version {version}, and {WIDE_GENERATIONS} is required; upgrade it, its data is kept",
            hello.software
        ),
    })
}

/// Returns the datastore's verdict on a client's position. It does not compare digests: the client detects a difference
/// at the first bookmark and repairs itself.
#[must_use]
pub fn verdict(
    client: Option<&Position>,
    head: &Position,
    lineage: &[LineageEntry],
    chain_at_client: Option<Chain>,
) -> Option<Verdict> {
    client.map(|client| compare(client, head, lineage, chain_at_client))
}

/// Checks whether a member that received `welcome` may be served the tail after `from`.
///
/// # Errors
/// Returns a refusal if the positions are inconsistent.
pub fn may_follow(welcome: &Welcome, from: Seq, head: Seq) -> Result<(), Refused> {
    if welcome.verdict.is_none_or(Verdict::is_good) && from <= head {
        return Ok(());
    }
    let message = "the positions are inconsistent; no tail is served".into();
    Err(Refused { code: RefusalCode::Diverged, message })
}

/// Next step of a replica after a welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextStep {
    /// Request the tail after this sequence.
    Tail(Seq),
    /// Replace the state by a snapshot and keep the outbox.
    Snapshot,
    /// Stay readable, keep all data, report the verdict.
    Refuse(Verdict),
}

/// Validates a welcome on the side of the replica. The replica never follows a server whose identity is inconsistent
/// with its own position, whatever verdict the server sends. `wants_snapshot` is set if a tail was refused, or if the
/// state is known to be wrong.
#[must_use]
pub fn judge(mine: Option<&Position>, welcome: &Welcome, wants_snapshot: bool) -> NextStep {
    let Some(mine) = mine else { return NextStep::Snapshot };
    let head = Position {
        log_id: welcome.log_id,
        generation: welcome.generation,
        seq: welcome.head,
        chain: mine.chain,
        digest: mine.digest,
    };
    let own = compare(mine, &head, &welcome.lineage, None);
    let ignored = (fault_injection::is(Bug::IgnoreLogId) && own == Verdict::Foreign)
        || (fault_injection::is(Bug::AcceptAhead) && own == Verdict::Ahead);
    if ignored {
        return NextStep::Snapshot;
    }
    if !own.is_good() {
        return NextStep::Refuse(own);
    }
    match welcome.verdict {
        Some(theirs) if !theirs.is_good() => NextStep::Refuse(theirs),
        _ if wants_snapshot || mine.seq < welcome.horizon => NextStep::Snapshot,
        _ => NextStep::Tail(mine.seq),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Digest, Generation, LogId};

    fn position(log: u8, seq: u64) -> Position {
        let (log_id, chain) = (LogId([log; 16]), [1; 16]);
        Position { log_id, generation: Generation(1), seq: Seq(seq), chain, digest: Digest::ZERO }
    }

    fn welcome(log: u8, head: u64, horizon: u64, verdict: Option<Verdict>) -> Welcome {
        Welcome {
            version: 1,
            software: String::new(),
            member: "a".into(),
            role: "webserver".into(),
            log_id: LogId([log; 16]),
            generation: Generation(1),
            lineage: vec![],
            head: Seq(head),
            horizon: Seq(horizon),
            verdict,
            heartbeat_ms: 1000,
            txn_bytes_max: 1,
            value_bytes_max: 1,
            key_bytes_max: 1,
        }
    }

    #[test]
    fn p05_a_replica_follows_only_its_own_log() {
        let mine = position(1, 10);
        let cases = [
            (welcome(1, 20, 0, Some(Verdict::Behind)), NextStep::Tail(Seq(10))),
            (welcome(1, 20, 10, Some(Verdict::Behind)), NextStep::Tail(Seq(10))),
            (welcome(1, 20, 11, Some(Verdict::Behind)), NextStep::Snapshot),
            (welcome(1, 20, 0, Some(Verdict::Forked)), NextStep::Refuse(Verdict::Forked)),
            (welcome(1, 9, 0, Some(Verdict::Same)), NextStep::Refuse(Verdict::Ahead)),
            (welcome(1, 0, 0, Some(Verdict::Same)), NextStep::Refuse(Verdict::Empty)),
            (welcome(2, 20, 0, Some(Verdict::Same)), NextStep::Refuse(Verdict::Foreign)),
            (welcome(2, 0, 0, Some(Verdict::Same)), NextStep::Refuse(Verdict::Empty)),
        ];
        for (welcome, step) in cases {
            assert_eq!(judge(Some(&mine), &welcome, false), step, "{welcome:?}");
        }
        assert_eq!(judge(None, &welcome(2, 20, 0, None), false), NextStep::Snapshot);
    }

    #[test]
    fn p12_versions_meet_or_the_reason_is_named() {
        let hello = |version_min, version_max| Hello {
            version_min,
            version_max,
            software: "x".into(),
            position: None,
            external_addr: None,
        };
        assert_eq!(common_version(&hello(1, 7)), Ok(VERSION_MAX));
        assert_eq!(common_version(&hello(1, 1)), Ok(1));
        let newer = VERSION_MAX + 1;
        assert!(common_version(&hello(newer, 7)).expect_err("too new").message.contains("upgrade"));
    }

    #[test]
    fn p12_a_client_of_32_bits_is_served_until_a_wider_generation_starts() {
        let entry = |generation| LineageEntry { generation: Generation(generation), shared_to: Seq(0) };
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            software: "gravwell 0.1".into(),
            position: None,
            external_addr: None,
        };
        let (narrow, wide) = ([entry(1), entry(u64::from(u32::MAX))], [entry(1), entry(1 << 32)]);
        assert_eq!(check_generations(1, &hello, &narrow), Ok(()));
        assert_eq!(check_generations(WIDE_GENERATIONS, &hello, &wide), Ok(()));
        let refused = check_generations(1, &hello, &wide).expect_err("the client could not read the welcome");
        assert_eq!(refused.code, RefusalCode::Version);
        assert!(refused.message.contains("gravwell 0.1") && refused.message.contains("4294967296"), "{refused}");
    }
}
