//! Connections with the properties of QUIC: independent streams that are ordered and complete until the connection
//! ends. Effects of the network below (loss, reordering, duplicates) appear as delay; partitions stall one direction
//! or both until they heal or the connection times out.

use std::collections::BTreeMap;

use bytes::Bytes;
use gravwell_env::memory_fs::SmallRandom;
use gravwell_model::codec::message::{
    Bookmark, Hello, Outcome, Progress, Refused, Row, SnapshotBegin, SnapshotEnd, Welcome,
};
use gravwell_model::{Deletions, Seq};

/// Microseconds of simulated time.
pub type Time = u64;
pub const MS: Time = 1000;
pub const SECOND: Time = 1_000_000;
/// Silence after which a connection is closed.
pub const IDLE: Time = 12 * SECOND;

pub type ConnId = u64;

/// Messages between replicas and the datastore.
#[derive(Clone, Debug)]
pub enum Message {
    Hello(Hello),
    Subscribe(Seq),
    Progress(Progress),
    Push(Bytes),
    WantSnapshot,
    Welcome(Box<Welcome>),
    Refused(Refused),
    Compacted,
    Frames(Bytes),
    Bookmark(Bookmark),
    Outcome(Outcome),
    Begin(Box<SnapshotBegin>),
    Deletions(Box<Deletions>),
    Rows(Vec<Row>),
    End(SnapshotEnd),
    /// The other side has closed the connection.
    Closed,
}

/// The stream of a message; each stream is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    ControlUp,
    PushUp,
    ControlDown,
    Tail,
    PushDown,
    Snapshot,
}

impl Message {
    pub fn stream(&self) -> Stream {
        match self {
            Message::Hello(_) | Message::Subscribe(_) | Message::Progress(_) | Message::WantSnapshot => {
                Stream::ControlUp
            }
            Message::Push(_) => Stream::PushUp,
            Message::Welcome(_) | Message::Refused(_) | Message::Compacted | Message::Closed => Stream::ControlDown,
            Message::Frames(_) | Message::Bookmark(_) => Stream::Tail,
            Message::Outcome(_) => Stream::PushDown,
            Message::Begin(_) | Message::Deletions(_) | Message::Rows(_) | Message::End(_) => Stream::Snapshot,
        }
    }

    pub fn goes_up(&self) -> bool {
        matches!(self.stream(), Stream::ControlUp | Stream::PushUp)
    }
}

/// One connection as seen by the network.
#[derive(Default)]
pub struct Conn {
    pub replica: usize,
    /// The datastore that has welcomed the replica.
    pub welcomed_by: Option<super::world::Truth>,
    /// Arrival time of the last message of each stream.
    pub last: BTreeMap<Stream, Time>,
    /// Messages that wait until a partition heals.
    pub stalled: Vec<Message>,
}

/// Properties of the path between the datastore and one replica.
#[derive(Clone, Copy, Debug, Default)]
pub struct Way {
    pub delay: Time,
    pub jitter: Time,
    /// Probability in per mille that a message is lost and sent again later.
    pub loss: u64,
    /// Nothing passes before these times.
    pub up_blocked: Time,
    pub down_blocked: Time,
}

impl Way {
    pub fn blocked(&self, up: bool) -> Time {
        if up { self.up_blocked } else { self.down_blocked }
    }
}

impl Conn {
    /// Returns the arrival time of a message sent now.
    pub fn arrival(&mut self, way: &Way, now: Time, stream: Stream, random: &mut SmallRandom) -> Time {
        let draw = |random: &mut SmallRandom, bound: Time| random.next_u64() % (bound + 1);
        let mut delay = way.delay + draw(random, way.jitter);
        while random.next_u64() % 1000 < way.loss {
            delay += 30 * MS + draw(random, 200 * MS);
        }
        let last = self.last.entry(stream).or_default();
        *last = (*last + 1).max(now + delay);
        *last
    }
}
