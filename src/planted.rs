//! Deliberate faults, to test the tests: does the suite catch each of them?
//!
//! Compiled in only with the feature `planted-bugs`, which no released program has; without it [`is`] is the constant
//! `false`. One fault is active at a time, chosen by [`plant`].

use std::sync::atomic::{AtomicUsize, Ordering};

macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A deliberate fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug { $($(#[doc = $doc])+ $name,)+ }

        impl Bug {
            /// All of them.
            pub const ALL: &'static [Bug] = &[$(Bug::$name,)+];

            /// What it does, for people.
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
    /// The sequence of a batch that failed for want of space is not given back.
    LeakSequence,
    /// After a start the sequencer begins one too low.
    ReuseSequence,
    /// Counters of origins are forgotten at a start, so a retry is committed again.
    ForgetOrigins,
    /// Conditions are judged by the index alone, which may lag.
    ConditionsWithoutPending,
    /// A condition that names a transaction holds whichever wrote the object last.
    WriterNotCompared,
    /// A rejection is answered but not written.
    RejectWithoutTrace,
    /// The sender of a tail skips a block when the ring has moved on.
    SkipRingGap,
    /// Below the horizon a tail starts at the horizon instead of asking for a snapshot.
    SkipToHorizon,
    /// The horizon may rise one sequence above the floor.
    HorizonOffByOne,
    /// The floor ignores members that are not connected at the moment.
    FloorOfConnected,
    /// Compaction keeps a superseded value instead of the latest.
    CompactKeepsOldest,
    /// Compaction drops deletes and keeps what they had deleted.
    CompactDropsTombstones,
    /// Compaction drops the records that rejected and deleted transactions leave of their origins.
    CompactDropsOrigins,
    /// A snapshot lacks what is remembered of origins.
    SnapshotWithoutOrigins,
    /// A snapshot takes the pending transactions of the outbox with it.
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
    /// A transaction is taken out of the outbox when its push is answered, before the state has it.
    ForgetOnAnswer,
    /// The overlay of a decided transaction stays.
    OverlayStays,
    /// The overlay of a pending transaction is dropped when another one of the same key is decided.
    OverlayDropped,
    /// A rejected transaction is not put on the rejected list.
    ForgetRejected,
    /// After a restart the pusher begins with the second transaction.
    SkipFirstPending,
    /// A replica says that it has written rejections down before it has.
    SettledTooEarly,
    /// A replica does not look at the identity of the log.
    IgnoreLogId,
    /// A datastore does not compare the chain of a member's position.
    IgnoreChain,
    /// A replica that is ahead follows all the same.
    AcceptAhead,
    /// A member that was revoked keeps its connection and may come again.
    KeepRevoked,
    /// A reader may push.
    ReaderPushes,
    /// Rows of the state are not checked against their checksum.
    IgnoreChecksum,
    /// A digest that differs is ignored.
    IgnoreDivergence,
    /// Progress reports the applied instead of the durable sequence.
    ReportUndurable,
    /// Once ours: recovery of the log builds on what it reads without writing it again.
    LogTrustsCache,
    /// Once ours: the outbox journal builds on what it reads without writing it again.
    JournalTrustsCache,
    /// Once ours: opening the outbox journal does not make the rename that brought it there durable.
    JournalTrustsRename,
    /// Once ours: a submission is refused although what was written of it could not be taken back.
    RefuseWhatStays,
    /// Once ours: a rejection that could not be written down is forgotten, while later ones are written.
    ForgetUnwritten,
    /// Once ours: what a killed replica had applied counts as durable at its next start.
    StartsDurable,
    /// Once ours: a rewritten outbox journal is one batch, without a mark.
    JournalWithoutMarks,
    /// Once ours: the outbox journal is rewritten while the state that decided its transactions is in memory only.
    RewriteBeforePersist,
    /// Once ours: a member's first position is saved some time later.
    FirstPositionLazy,
    /// A restart takes an unsynced index for durable and skips what the log has more.
    SkipCatchUp,
    /// An index that is ahead of its log is rebuilt from it, as if it were only out of date.
    IndexAheadIsRebuilt,
    /// The register is not asked what its members and the log had reached.
    RegisterNotAsked,
    /// A member that is beyond the log is told so, and the datastore goes on.
    HelloNotAsked,
    /// The states beside a fetched one are removed before it is the current one.
    StateRemovedBeforeReplaced,
    /// A state that went back behind its mark is taken for sound.
    RollbackUnnoticed,
    /// What else in the directory knows how far a state came is not asked.
    WitnessesNotAsked,
    /// A state that went back writes its own, lower position into its mark.
    MarkLowered,
    /// What a state lost counts as there again as soon as it equals the datastore's at any sequence.
    LossForgottenEarly,
    /// What a lost state had decided is shown as if it still waited.
    DecidedIsShownAgain,
    /// The head of the outbox journal is not compared with the journal's end.
    JournalHeadIgnored,
    /// The witness next to the outbox's directory is not asked whether that is the one that was here.
    WitnessNotAsked,
    /// An outbox journal that is missing is taken for a new one.
    MissingJournalIsNew,
    /// The head file is not compared with the end of the log.
    HeadNotAsked,
    /// What a member beyond the log has shown is not written into the register.
    ContradictionNotKept,
    /// A snapshot is taken over by its number alone, whatever history it is of.
    ForkByNumber,
    /// An origin may be used by another member than the one that it belongs to.
    OriginNotBound,
    /// An index that is built from the log does not learn to whom the origins below the horizon belong.
    BaseWithoutMakers,
    /// A snapshot lacks the makers of origins.
    SnapshotWithoutMakers,
    /// A reader is sent entries with the values that are withheld from it.
    TailNotRedacted,
    /// A member that became a reader, or is none any more, keeps its state.
    RoleChangeKeepsState,
    /// The same identity is taken for the same content.
    IdentityNotCompared,
    /// A rejected transaction that is submitted again is answered as committed.
    RejectedIsKnown,
    /// A reader takes writes.
    ReaderWritesAccepted,
    /// What a reader holds waits, and is never refused.
    ReaderWriteStays,
    /// Entries are dated by the host's clock, however far it jumps.
    ClockTakenOver,
    /// A condition upon a history that was lost is carried over as it is.
    ConditionsNotTranslated,
    /// What was read in a history that was left counts as read in the present one.
    ReadsNotTranslated,
    /// What the log that goes on lacks is not archived.
    ArchiveSkipped,
    /// Authors of archived changes do not find them among their rejected ones.
    ArchivedNotListed,
    /// The outbox is put into the journal after the state was exchanged instead of before.
    PreparedTooLate,
    /// What was overtaken in the log that goes on is pushed again all the same.
    OvertakenPushedAgain,
    /// What is pushed again carries no condition but its own.
    AgainUnconditioned,
    /// Once ours: what fills the place of a rejected change is put on the rejected list at a start between two steps.
    FillerIsRejected,
    /// Once ours: what the log that goes on had decided of a pending change is not asked for when a history is left.
    DecidedForgotten,
    /// Once ours: what was rejected in the history that was lost counts as seen there.
    RejectedCountsAsSeen,
    /// Once ours: what waits upon a lost write stays as it is where a power cut took the state back before that write.
    UponLostStays,
}

/// No fault.
const NONE: usize = usize::MAX;
static ACTIVE: AtomicUsize = AtomicUsize::new(NONE);

/// Activates a fault; `None`: the program as it should be.
pub fn plant(bug: Option<Bug>) {
    ACTIVE.store(bug.map_or(NONE, |bug| bug as usize), Ordering::SeqCst);
}

/// Whether a fault is active.
#[inline]
#[must_use]
pub fn is(bug: Bug) -> bool {
    cfg!(feature = "planted-bugs") && ACTIVE.load(Ordering::Relaxed) == bug as usize
}
