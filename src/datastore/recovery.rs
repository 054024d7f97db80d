//! Recovery mode: a datastore that has no entries while its members know of some accepts no writes.
//!
//! There is evidence of a lost log when the register says that a member had applied entries, or when a member with a good
//! certificate shows the position of another log. As long as nothing was committed, either makes the datastore refuse
//! writes: were it to accept one, it would become another log, and its members would be strangers to it. Nobody who is not
//! a member can cause this.

use crate::codec::message::{RefusalCode, Refused};
use crate::config::datastore::Recovery;
use crate::model::{Position, Seq};
use crate::trust::Registry;

/// What the register knows of a log that is not here.
#[must_use]
pub fn from_register(mode: Recovery, head: Seq, registry: &Registry) -> Option<String> {
    if mode == Recovery::Off || head > Seq::ZERO {
        return None;
    }
    let furthest =
        registry.members().filter_map(|member| Some((member.applied?, member))).max_by_key(|(seq, _)| *seq)?;
    let (seq, member) = furthest;
    (seq > Seq::ZERO).then(|| format!("its log is empty, but member {} has applied sequence {seq}", member.name))
}

/// What a member's position says of a log that is not here.
#[must_use]
pub fn from_position(mode: Recovery, head: Seq, member: &str, theirs: Option<&Position>) -> Option<String> {
    let theirs = theirs.filter(|position| mode != Recovery::Off && head == Seq::ZERO && position.seq > Seq::ZERO)?;
    Some(format!("its log is empty, but member {member} is at sequence {} of log {}", theirs.seq, theirs.log_id))
}

/// What to do about it.
pub const REMEDY: &str = "stop the datastore and run `gravwell-logctl recover`, which rebuilds its log from a member, or \
                          `restore` a backup; to give up what the members hold, start it with --recovery off";

/// What writers are told.
#[must_use]
pub fn refusal(evidence: &str) -> Refused {
    let message = format!("the datastore waits to be recovered, because {evidence}: {REMEDY}");
    Refused { code: RefusalCode::Diverged, message }
}
