//! Injected faults that test the tests: does the suite catch each of them?
//!
//! Compiled in only with the feature `fault-injection`, which no released program has. Without it [`is`] is the constant
//! `false`. One fault is active at a time, selected by [`plant`].

use std::sync::atomic::{AtomicUsize, Ordering};

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// An injected fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        impl Bug {
            /// All faults, in the order of their declaration.
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)+];

            /// Returns a description for people.
            #[must_use]
            pub fn describe(self) -> &'static str {
                match self { $(Bug::$name => concat!($($doc),+).trim_ascii(),)+ }
            }
        }
    };
}

bugs! {
    /// The log's sync returns without syncing.
    SkipLogSync,
    /// A push is answered before the sync.
    AnswerBeforeSync,
    /// Subscribers see a batch before the sync.
    PublishBeforeSync,
    /// A failed sync of the log is tried again instead of stopping.
    RetryFailedSync,
    /// The sequence of a batch that failed for lack of space is not released.
    LeakSequence,
    /// After a start the sequencer starts one sequence too low.
    ReuseSequence,
    /// Counters of origins are lost at a start, so a retry is committed again.
    ForgetOrigins,
    /// Conditions are checked against the index alone, which may lag.
    ConditionsWithoutPending,
    /// A condition that names a transaction holds regardless of which transaction wrote the object last.
    WriterNotCompared,
    /// A rejection is reported but not written.
    RejectWithoutTrace,
    /// The sender of a tail skips a block when the ring buffer has moved on.
    SkipRingGap,
    /// Below the horizon a tail starts at the horizon instead of requesting a snapshot.
    SkipToHorizon,
    /// The horizon may rise one sequence above the floor.
    HorizonOffByOne,
    /// The floor ignores members that are not connected.
    FloorOfConnected,
    /// Compaction keeps a superseded value instead of the latest.
    CompactKeepsOldest,
    /// Compaction drops deletes and keeps what they had deleted.
    CompactDropsTombstones,
    /// Compaction drops the origin records of rejected and deleted transactions.
    CompactDropsOrigins,
    /// A snapshot lacks the records of origins.
    SnapshotWithoutOrigins,
    /// A snapshot removes the pending transactions from the outbox.
    SnapshotForgetsOutbox,
    /// A transaction is applied in two steps.
    SplitTransaction,
    /// Data and position are written in two steps.
    PositionApart,
    /// The digest is not updated on a delete.
    DigestWithoutDelete,
    /// A transaction that is pushed again is committed again.
    DoubleApply,
    /// The outbox journal is not synced.
    SkipJournalSync,
    /// A transaction is removed from the outbox when its push is answered, before the state has it.
    ForgetOnAnswer,
    /// The overlay of a decided transaction is not removed.
    OverlayStays,
    /// The overlay of a pending transaction is dropped when another transaction on the same key is decided.
    OverlayDropped,
    /// A rejected transaction is not put on the rejected list.
    ForgetRejected,
    /// After a restart the pusher starts with the second transaction.
    SkipFirstPending,
    /// A replica reports rejections as written before it has written them.
    SettledTooEarly,
    /// A replica does not check the identity of the log.
    IgnoreLogId,
    /// A datastore does not compare the chain of a member's position.
    IgnoreChain,
    /// A replica that is ahead of the log follows it anyway.
    AcceptAhead,
    /// A revoked member keeps its connection and may connect again.
    KeepRevoked,
    /// A reader may push.
    ReaderPushes,
    /// Rows of the state are not verified against their checksums.
    IgnoreChecksum,
    /// A different digest is ignored.
    IgnoreDivergence,
    /// Progress reports the applied sequence instead of the durable one.
    ReportUndurable,
    /// Fixed bug: recovery of the log relies on data that it has read but not written again.
    LogTrustsCache,
    /// Fixed bug: the outbox journal relies on data that it has read but not written again.
    JournalTrustsCache,
    /// Fixed bug: opening the outbox journal does not make the rename that created it durable.
    JournalTrustsRename,
    /// Fixed bug: a submission is rejected although its partial write could not be rolled back.
    RefuseWhatStays,
    /// Fixed bug: a rejection that could not be written is forgotten, while later ones are written.
    ForgetUnwritten,
    /// Fixed bug: entries applied by a killed replica count as durable at its next start.
    StartsDurable,
    /// Fixed bug: a rewritten outbox journal is one batch, without a mark.
    JournalWithoutMarks,
    /// Fixed bug: the outbox journal is rewritten while the state that decided its transactions is in memory only.
    RewriteBeforePersist,
    /// Fixed bug: a member's first position is saved only some time later.
    FirstPositionLazy,
    /// A restart takes an unsynced index for durable and skips the entries that only the log has.
    SkipCatchUp,
    /// An index that is ahead of its log is rebuilt from the log, as if it were only out of date.
    IndexAheadIsRebuilt,
    /// The log is not checked against the positions in the member registry.
    RegisterNotAsked,
    /// A member that is beyond the log is notified, and the datastore continues.
    HelloNotAsked,
    /// The other states are removed before the fetched one is current.
    StateRemovedBeforeReplaced,
    /// A state that is behind its high-water mark is considered sound.
    RollbackUnnoticed,
    /// Other evidence in the directory of how far the state came is not checked.
    WitnessesNotAsked,
    /// A state that went back lowers its mark.
    MarkLowered,
    /// A loss counts as made up as soon as the state equals the datastore's at any sequence.
    LossForgottenEarly,
    /// Transactions that a lost state had decided are shown as if they were still pending.
    DecidedIsShownAgain,
    /// The head of the outbox journal is not compared with the journal's end.
    JournalHeadIgnored,
    /// The witness of the outbox journal is not checked, so another journal in its place is not noticed.
    WitnessNotAsked,
    /// A missing outbox journal is taken for a new one.
    MissingJournalIsNew,
    /// The head file is not compared with the end of the log.
    HeadNotAsked,
    /// The position shown by a member beyond the log is not written to the member registry.
    ContradictionNotKept,
    /// A snapshot is adopted by its sequence alone, regardless of its history.
    ForkByNumber,
    /// Members may use an origin that belongs to another member.
    OriginNotBound,
    /// An index that is built from the log does not learn the owners of origins below the horizon.
    BaseWithoutMakers,
    /// A snapshot lacks the owners of origins.
    SnapshotWithoutMakers,
    /// A reader receives entries with the values that are withheld from it.
    TailNotRedacted,
    /// A member that became a reader, or stopped being one, keeps its state.
    RoleChangeKeepsState,
    /// Transactions of the same identity are assumed to have the same content.
    IdentityNotCompared,
    /// A rejected transaction that is submitted again is acknowledged as committed.
    RejectedIsKnown,
    /// A reader accepts writes.
    ReaderWritesAccepted,
    /// Pending transactions of a reader stay pending and are never rejected.
    ReaderWriteStays,
    /// Entries are dated by the host's clock, however far it jumps.
    ClockTakenOver,
    /// A condition on a lost history is kept without translation.
    ConditionsNotTranslated,
    /// A condition that an object is present is kept without translation.
    PresentNotTranslated,
    /// A read in a history that was left counts as a read in the present one.
    ReadsNotTranslated,
    /// Changes that the new log lacks are not archived.
    ArchiveSkipped,
    /// Authors of archived changes do not find them on the rejected list.
    ArchivedNotListed,
    /// The outbox is written to the journal after the state was exchanged instead of before.
    PreparedTooLate,
    /// Transactions that were superseded in the new log are pushed again anyway.
    OvertakenPushedAgain,
    /// Transactions that are pushed again carry no additional conditions.
    AgainUnconditioned,
    /// An object that is pushed again must be absent, but may have been deleted since the new log was read.
    DeletedMeanwhileReturns,
    /// Fixed bug: the filler for a rejected change is put on the rejected list at a start between two steps.
    FillerIsRejected,
    /// Fixed bug: the outcome of a pending change in the new log is not checked when a history is left.
    DecidedForgotten,
    /// Fixed bug: a transaction that was rejected in the lost history counts as seen there.
    RejectedCountsAsSeen,
    /// Fixed bug: pending transactions upon lost writes are overlooked where a power cut took the state back.
    UponLostStays,
    /// Fixed bug: the sequences of committed transactions are not written to the outbox journal.
    SequencesForgotten,
    /// Fixed bug: kept transactions that delete are dropped in favor of later ones that only put.
    DeletionsKeptWithPuts,
    /// Fixed bug: deletions of objects that the new log lacks, or has again, are not archived.
    SeenDeletionsNotArchived,
    /// Fixed bug: an author does not find a deletion on the rejected list if the object was created again after it.
    UndoneDeletionNotListed,
    /// A member follows a log that has left its history, because the positions are consistent.
    LeftUnchecked,
    /// Fixed bug: a state that went back before the start of a generation counts as one that never followed it.
    LineageOfOlderState,
    /// A member that needs another state follows the log from its present one.
    FollowedBeforeSwap,
    /// A member that leaves a history adopts the generation of the log before its state.
    GenerationBeforeSwap,
    /// A member ignores that the log is compacted past its position.
    CompactedIgnored,
    /// A member that fell below the horizon is sent nothing more and no reason.
    CompactedNotSent,
    /// A member that may not write pushes anyway.
    PushedWhileForbidden,
    /// Pending transactions of a new reader are rejected before its state has reached the head of the log.
    PendingRefusedEarly,
}

/// Value for no fault.
const NONE: usize = usize::MAX;
static ACTIVE: AtomicUsize = AtomicUsize::new(NONE);

/// Activates a fault; `None` deactivates it.
pub fn plant(bug: Option<Bug>) {
    ACTIVE.store(bug.map_or(NONE, |bug| bug as usize), Ordering::SeqCst);
}

/// Returns whether a fault is active.
#[inline]
#[must_use]
pub fn is(bug: Bug) -> bool {
    cfg!(feature = "fault-injection") && ACTIVE.load(Ordering::Relaxed) == bug as usize
}
