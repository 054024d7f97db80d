//! Connections with the properties of QUIC: independent streams that are ordered and complete until the connection
//! ends. Effects of the network below (loss, reordering, duplicates) appear as delay; partitions stall one direction
//! or both until they heal or the connection times out.

use std::collections::BTreeMap;

use bytes::Bytes;
use gravwell_env::memory_fs::SmallRandom;
use gravwell_model::Deletions;
use gravwell_model::codec::message::{self, Kind, Outcome, Row, SnapshotBegin, SnapshotEnd};
use gravwell_protocol::session::client::PushId;
use serde::Serialize;

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
    /// Of a replica, on the control stream.
    Report(Kind, Bytes),
    Push(PushId, Bytes),
    WantSnapshot,
    /// Of the datastore, on the control stream.
    Control(Kind, Bytes),
    Tail(Kind, Bytes),
    Outcome(PushId, Outcome),
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
    PushUp(PushId),
    ControlDown,
    Tail,
    PushDown(PushId),
    Snapshot,
}

impl Message {
    /// Returns a message of the datastore on the control stream.
    pub fn control<T: Serialize>(kind: Kind, body: &T) -> Message {
        Message::Control(kind, message::encode_body(body).into())
    }

    pub fn stream(&self) -> Stream {
        match self {
            Message::Report(..) | Message::WantSnapshot => Stream::ControlUp,
            Message::Push(id, _) => Stream::PushUp(*id),
            Message::Control(..) | Message::Closed => Stream::ControlDown,
            Message::Tail(..) => Stream::Tail,
            Message::Outcome(id, _) => Stream::PushDown(*id),
            Message::Begin(_) | Message::Deletions(_) | Message::Rows(_) | Message::End(_) => Stream::Snapshot,
        }
    }

    pub fn goes_up(&self) -> bool {
        matches!(self.stream(), Stream::ControlUp | Stream::PushUp(_))
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
