//! Input and output of the [member's half](super::client) of a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use gravwell_model::codec::message::{BadMessage, Bookmark, Heartbeat, Kind, Outcome, Refused, Welcome};
use gravwell_model::{Generation, LineageEntry, Position, Seq, TxnId, Verdict};

use crate::push::PushReply;
use crate::tail::{EntryBatch, FrameError, Intake};

/// Stream of which the next message may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Messages of the datastore on the control stream.
    Control,
    /// The stream of frames and bookmarks, which the datastore opens.
    Tail,
}

/// Number of a push stream within its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PushId(pub u64);

/// Result of comparing a replica with a welcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// The state cannot follow this log from its position: it has none, is below the horizon, or has the wrong values.
    pub is_lacking: bool,
    /// The state is known to differ, or to be corrupt.
    pub wants_resync: bool,
    /// There is no space for another state.
    pub is_disk_full: bool,
    /// Point at which the log left this member's history; `None` if it did not.
    pub fork: Option<ForkPoint>,
}

/// Point at which the datastore's log left a member's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkPoint {
    /// Last sequence that both share.
    pub shared_to: Seq,
    /// Generations that only the datastore knows.
    pub theirs: Vec<LineageEntry>,
}

/// Reason for exchanging outbox and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The lineage of the log shows that it left this member's history.
    Lineage {
        /// Position that this member claimed.
        mine: Position,
        /// Generation of the log.
        left_by: Generation,
        /// Last sequence that both share.
        shared_to: Seq,
        /// An earlier state was restored on purpose.
        is_restore: bool,
    },
    /// The fetched state lacks transactions that were resolved before this member's state was lost.
    Lost,
    /// The fetched state does not continue the present one, although the positions are consistent.
    Forked,
}

/// Input of the machine.
#[derive(Debug)]
pub enum Event {
    /// A message arrived on the control stream.
    Control(Kind, Bytes),
    /// A message arrived on the tail.
    Tail(Kind, Bytes),
    /// Completes [`Effect::Compare`].
    Compared(Compared),
    /// Completes [`Effect::LiftRefusal`].
    Lifted,
    /// Completes [`Effect::AskReason`]: whether an earlier state was restored on purpose; `None` if that is unknown.
    Reason(Option<bool>),
    /// Completes [`Effect::FetchState`].
    Fetched {
        /// The state lacks transactions that were resolved before this member's state was lost.
        lacks_lost: bool,
    },
    /// Completes [`Effect::Swap`]: the fetched state is the current one.
    Swapped,
    /// Completes [`Effect::Swap`]: the fetched state does not continue the present one.
    SwapForked,
    /// Completes [`Effect::Leave`]: outbox and state are exchanged.
    Left,
    /// Completes [`Effect::ShowProof`].
    ProofShown,
    /// Completes [`Effect::Donate`].
    Donated,
    /// Completes [`Effect::TakeOver`].
    TakenOver {
        /// Position from which to follow.
        position: Position,
        /// The state is known to differ, or to be corrupt.
        wants_resync: bool,
    },
    /// Completes [`Effect::AdoptTerms`].
    TermsAdopted,
    /// Completes [`Effect::LearnGenerations`].
    GenerationsLearned,
    /// Completes [`Effect::Decode`].
    Decoded(Intake, Vec<EntryBatch>),
    /// Completes [`Effect::Decode`] with an error.
    BadFrames(FrameError),
    /// Completes [`Effect::Apply`] and [`Effect::CheckBookmark`]: the applier has accepted it.
    Queued,
    /// Completes [`Effect::Report`].
    Reported,
    /// Completes [`Effect::AwaitApplied`].
    Reached,
    /// An answer arrived on a push stream.
    Outcome(PushId, Outcome),
    /// The durable sequence rose.
    Durable,
    /// The outbox or the condition of the state changed.
    OutboxChanged {
        /// The state is known to differ, or to be corrupt.
        wants_resync: bool,
    },
    /// An effect failed.
    Failed(String),
    /// The connection broke.
    Lost {
        /// The datastore closed it and gave no reason.
        is_unexplained: bool,
    },
}

/// Output of the machine.
#[derive(Debug)]
pub enum Effect {
    /// Sends a message on the control stream.
    Send(Kind, Bytes),
    /// Reads the next message of a stream.
    Read(Source),
    /// Shows the latest register of members to the datastore.
    ShowRegister,
    /// Compares the replica, for which the greeting claimed this position, with the welcome.
    Compare(Option<Position>, Arc<Welcome>),
    /// Records the welcome and the verdict.
    Welcomed(Arc<Welcome>, Verdict),
    /// Ends the refusal of this member, if there was one: its pending transactions are archived first.
    LiftRefusal,
    /// Asks why these generations started.
    AskReason(Vec<LineageEntry>),
    /// Fetches the state, as this welcome allows.
    FetchState(Arc<Welcome>),
    /// Makes the fetched state the current one if it continues its history.
    Swap,
    /// Archives or queues the changes that the fetched state lacks, and exchanges outbox and state.
    Leave(Leave),
    /// Reports that the log is not followed.
    ReportVerdict(Verdict),
    /// Shows the last signed position to the datastore, whose log contradicts this member.
    ShowProof,
    /// Serves the state to a datastore that has lost its log.
    Donate,
    /// The log is followed: problems of former connections are over, and the role in the welcome holds.
    Accept(Arc<Welcome>, Verdict),
    /// Adopts the generation of the log, and reads the position from which to follow it.
    TakeOver(Arc<Welcome>),
    /// Stores the terms in the welcome.
    AdoptTerms(Arc<Welcome>),
    /// Stores why the generations of the log started.
    LearnGenerations(Arc<Welcome>),
    /// Reports which generations of the log started for a reason that is not stored.
    CheckGenerations(Arc<Welcome>),
    /// Sends the address at which other members reach this one, if they do.
    Announce,
    /// Records that the replica is connected.
    Connected(Arc<Welcome>, Position),
    /// Decodes and verifies frames.
    Decode(Intake, Bytes),
    /// Compares entries with pending transactions of the same identities, then hands them to the applier.
    Apply(EntryBatch),
    /// Hands a bookmark to the applier.
    CheckBookmark(Bookmark),
    /// Records a heartbeat: head, floor, clock.
    Heartbeat(Heartbeat),
    /// Records the datastore's horizon.
    Horizon(Seq),
    /// Passes on a membership list.
    Roster(Bytes),
    /// Passes on revoked certificates.
    Revocations(Bytes),
    /// Passes on a signed position.
    Proof(Bytes),
    /// Sends the present progress.
    Report,
    /// Waits until the state has applied this sequence.
    AwaitApplied(Seq),
    /// Moves all pending transactions to the rejected list.
    RefusePending,
    /// Opens a push stream. Its messages are those of [`poll_push`](super::client::ClientSession::poll_push).
    OpenPush(PushId),
    /// Records the answer to a push in outbox and gate.
    Answer(PushReply),
    /// Finishes a push stream; nothing that arrives on it later counts.
    ClosePush(PushId),
    /// Ends the connection. It is the last effect.
    Close(End),
}

/// Reason for which a member ends its connection.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The datastore did not answer.
    #[error("no answer from the datastore within {} s", .0.as_secs())]
    Timeout(Duration),
    /// A message is malformed or not expected.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// The datastore refused the connection.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Frames are invalid.
    #[error(transparent)]
    Frames(#[from] FrameError),
    /// The log is not followed.
    #[error("the datastore is {0}")]
    Diverged(Verdict),
    /// The next connection fetches a state.
    #[error("the log is compacted past this position; a snapshot is required")]
    Compacted,
    /// The state differs from the datastore's or is corrupt.
    #[error("the state must be fetched again")]
    ResyncWanted,
    /// There is no space for another state.
    #[error("the disk is full")]
    DiskFull,
    /// A step failed.
    #[error("{0}")]
    Failed(String),
    /// The datastore closed the connection after it received a position that it cannot decode.
    #[error("the datastore cannot read generation {0}")]
    Unread(Generation),
    /// The connection broke.
    #[error("the connection broke")]
    Lost,
}

/// A transaction to be written to a push stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Push {
    /// Stream on which to send it.
    pub stream: PushId,
    /// Kind of the message.
    pub kind: Kind,
    /// The pending transaction in it, for traces.
    pub txn: Option<TxnId>,
}
