//! Plan of one seed: the size of the world, the properties of its network, and the kinds and rates of faults. Each
//! seed omits some kinds of faults, so that they cannot hide the effects of others.

use gravwell_env::memory_fs::SmallRandom;

use super::network::{MS, SECOND, Time, Way};

/// Kinds of faults; each has a mean time between two injections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    DatastoreKilled,
    DatastorePower,
    DatastoreDisk,
    DatastoreFull,
    DatastoreIndexDamaged,
    SegmentDamaged,
    ReplicaKilled,
    ReplicaPower,
    ReplicaDisk,
    ReplicaFull,
    StateDamaged,
    StateFails,
    JournalDamaged,
    Tampered,
    Partition,
    OneWay,
    LossyPeriod,
    Disconnected,
    ReconnectStorm,
    LongAbsence,
    Compaction,
    ClockJump,
    YearsJump,
    Revoked,
    OldCopy,
    OldCopyFollowed,
    Wiped,
    SlowApplier,
    ReplicaRolledBack,
    TwinMember,
    JournalShortened,
    JournalRemoved,
    OpenTailLost,
    LogDirectoryLost,
    GenerationRaised,
    /// State and high-water mark of a replica are lost or rolled back together.
    StateAndMarkLost,
    /// The index of the datastore applies nothing for some time.
    IndexStalled,
    /// The outbox directory of a replica is replaced or removed, while everything next to it is unchanged.
    OutboxReplaced,
    /// The disk of a replica fails while a rewritten outbox journal replaces the former one, and is full at the next start.
    RewriteCutOff,
    /// Only the state of a replica is rolled back, and the replica is killed before it has come as far again.
    KilledBehind,
}

pub const ALL: &[(Fault, Time)] = &[
    (Fault::DatastoreKilled, 20 * SECOND),
    (Fault::DatastorePower, 15 * SECOND),
    (Fault::DatastoreDisk, 15 * SECOND),
    (Fault::DatastoreFull, 40 * SECOND),
    (Fault::DatastoreIndexDamaged, 60 * SECOND),
    (Fault::SegmentDamaged, 60 * SECOND),
    (Fault::ReplicaKilled, 15 * SECOND),
    (Fault::ReplicaPower, 10 * SECOND),
    (Fault::ReplicaDisk, 8 * SECOND),
    (Fault::ReplicaFull, 15 * SECOND),
    (Fault::StateDamaged, 40 * SECOND),
    (Fault::StateFails, 40 * SECOND),
    (Fault::JournalDamaged, 50 * SECOND),
    (Fault::Tampered, 40 * SECOND),
    (Fault::Partition, 15 * SECOND),
    (Fault::OneWay, 15 * SECOND),
    (Fault::LossyPeriod, 20 * SECOND),
    (Fault::Disconnected, 8 * SECOND),
    (Fault::ReconnectStorm, 25 * SECOND),
    (Fault::LongAbsence, 50 * SECOND),
    (Fault::Compaction, 6 * SECOND),
    (Fault::ClockJump, 40 * SECOND),
    (Fault::YearsJump, 60 * SECOND),
    (Fault::Revoked, 50 * SECOND),
    (Fault::OldCopy, 60 * SECOND),
    (Fault::OldCopyFollowed, 40 * SECOND),
    (Fault::Wiped, 80 * SECOND),
    (Fault::SlowApplier, 30 * SECOND),
    (Fault::ReplicaRolledBack, 25 * SECOND),
    (Fault::TwinMember, 60 * SECOND),
    (Fault::JournalShortened, 50 * SECOND),
    (Fault::JournalRemoved, 60 * SECOND),
    (Fault::OpenTailLost, 60 * SECOND),
    (Fault::LogDirectoryLost, 60 * SECOND),
    (Fault::GenerationRaised, 60 * SECOND),
    (Fault::StateAndMarkLost, 25 * SECOND),
    (Fault::IndexStalled, 20 * SECOND),
];

/// Kinds that need a separate history. Each occurs in one seed of twelve, so that the plans of other seeds do not change.
const RARE: [(Fault, Time); 3] =
    [(Fault::OutboxReplaced, 6 * SECOND), (Fault::RewriteCutOff, 8 * SECOND), (Fault::KilledBehind, 8 * SECOND)];

fn rare(seed: u64) -> Option<(Fault, Time)> {
    let place = usize::try_from(seed / 4 % 3).ok()?;
    RARE.get(place).copied().filter(|_| seed % 4 == 3)
}

/// The world of one seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub replicas: usize,
    /// Whether the last replica is a reader.
    pub has_reader: bool,
    pub keys: usize,
    /// Mean time between two submissions at one replica.
    pub pace: Time,
    pub way: Way,
    pub faults: Vec<(Fault, Time)>,
    pub retention: Time,
    pub history_ops: u64,
    pub persist_every: Time,
    /// Faults are injected until this time.
    pub calm_at: Time,
    /// Clients continue for this long after `calm_at`, while compactions run: nothing may depend on an idle period.
    pub steady: Time,
    /// The world must have settled by this time.
    pub end_at: Time,
}

impl Plan {
    pub fn draw(seed: u64, random: &mut SmallRandom) -> Plan {
        // Many small worlds find more bugs than few large ones.
        let replicas = if random.below(4) == 0 { 2 + random.below(5) } else { 2 + random.below(2) };
        let share = 1 + random.below(3);
        let drawn = ALL.iter().copied().filter(|_| random.below(4) < share);
        let faults = drawn.chain(rare(seed)).collect();
        let steady = if random.below(4) == 0 { 60 * SECOND } else { 0 };
        let delay = [MS / 5, MS, 5 * MS, 40 * MS][random.below(4)];
        Plan {
            replicas,
            has_reader: replicas > 2 && random.below(4) == 0,
            keys: 3 + random.below(14),
            pace: [400 * MS, 2 * SECOND, 2 * SECOND, 2 * SECOND, 5 * SECOND, 5 * SECOND, 5 * SECOND, 5 * SECOND]
                [random.below(8)],
            way: Way {
                delay,
                jitter: delay * random.below(5) as u64,
                loss: [0, 5, 50][random.below(3)],
                ..Way::default()
            },
            faults,
            retention: [4 * SECOND, 20 * SECOND, 3600 * SECOND][random.below(3)],
            history_ops: [0, 0, 20, 200][random.below(4)],
            persist_every: [300 * MS, SECOND, 3 * SECOND][random.below(3)],
            calm_at: 100 * SECOND,
            steady,
            end_at: 300 * SECOND + steady,
        }
    }
}
