//! Reference model of a log and of all replies to clients, derived only from the promises: a map, the rules of
//! conditions, and counters of writers. It shares only types with the code under test.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use gravwell_model::{Condition, Entry, EntryBody, Op, Origin, TxnId};

/// Collection and key of an object.
pub type Name = (String, String);

fn name_of_op(op: &Op) -> Name {
    (op.collection().to_string(), op.key().as_str().to_owned())
}

/// Operations and conditions requested by a writer.
pub type Wish = (Vec<Op>, Vec<Condition>);

/// Reply to a client about a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Committed at this sequence.
    Committed(u64),
    /// Committed at or before this sequence: it had been submitted more than once.
    Earlier(u64),
    /// Rejected at this sequence.
    Rejected(u64),
    /// Durable at the replica and pending.
    Queued,
}

/// A read that returned a committed version.
#[derive(Clone, Debug)]
pub struct Sample {
    pub at: String,
    pub name: Name,
    pub version: u64,
    pub value: Bytes,
}

#[derive(Default)]
pub struct Model {
    seq: u64,
    time_ms: u64,
    live: BTreeMap<Name, (u64, Bytes)>,
    /// Value written at each sequence.
    written: HashMap<(u64, Name), Bytes>,
    counters: HashMap<Origin, u64>,
    decided: HashMap<TxnId, (u64, Option<String>)>,
    pub deletes: u64,
}

/// Returns the requests that a log without rejections implies.
pub fn wishes_of(log: &[Entry]) -> HashMap<TxnId, Wish> {
    let wish = |entry: &Entry| match &entry.body {
        EntryBody::Commit(txn) => (txn.id, (txn.ops.clone(), txn.conditions.clone())),
        body => panic!("not a commit: {body:?}"),
    };
    log.iter().map(wish).collect()
}

impl Model {
    /// Replays a log, checking each entry against the requests of its author.
    pub fn replay(log: &[Entry], wishes: &HashMap<TxnId, Wish>) -> Model {
        let mut model = Model::default();
        log.iter().for_each(|entry| model.take(entry, wishes));
        model
    }

    fn take(&mut self, entry: &Entry, wishes: &HashMap<TxnId, Wish>) {
        self.seq += 1;
        assert_eq!(entry.seq.0, self.seq, "sequences have no gaps and are in order");
        assert!(entry.time_ms >= self.time_ms, "time never decreases: {entry:?}");
        self.time_ms = entry.time_ms;
        let id = entry.body.id().expect("every entry has an identity");
        let wish = wishes.get(&id).unwrap_or_else(|| panic!("{entry:?} was not submitted"));
        let counter = self.counters.entry(id.origin).or_default();
        *counter += 1;
        assert_eq!(id.counter.0, *counter, "a writer's transactions are resolved once and in order: {entry:?}");
        let holds = wish.1.iter().all(|condition| self.holds(condition));
        let reason = match &entry.body {
            EntryBody::Commit(txn) => {
                assert!(
                    txn.ops == wish.0 && txn.conditions == wish.1,
                    "{entry:?} differs from the submitted one: {wish:?}"
                );
                assert!(holds, "committed although a condition does not hold: {entry:?}");
                txn.ops.iter().for_each(|op| self.write(op));
                None
            }
            EntryBody::Reject { reason, .. } => {
                assert!(!holds, "rejected although all conditions hold: {entry:?} {wish:?}");
                assert!(!reason.to_string().is_empty());
                Some(reason.to_string())
            }
            EntryBody::Redacted { .. } | EntryBody::Unknown { .. } => panic!("not a log entry: {entry:?}"),
        };
        assert_eq!(self.decided.insert(id, (self.seq, reason)), None, "{id:?} was resolved twice");
    }

    fn holds(&self, condition: &Condition) -> bool {
        let name = (condition.collection().to_string(), condition.key().as_str().to_owned());
        let version = self.live.get(&name).map(|(version, _)| *version);
        match condition {
            Condition::Absent { .. } => version.is_none(),
            Condition::Present { .. } => version.is_some(),
            Condition::Version { version: wanted, .. } => version == Some(wanted.0),
        }
    }

    fn write(&mut self, op: &Op) {
        let name = name_of_op(op);
        match op {
            Op::Put { value, .. } => {
                self.written.insert((self.seq, name.clone()), value.clone());
                self.live.insert(name, (self.seq, value.clone()));
            }
            Op::Delete { .. } => {
                self.deletes += 1;
                self.written.remove(&(self.seq, name.clone()));
                self.live.remove(&name);
            }
        }
    }

    /// Returns the final state in the format of `export`.
    pub fn export(&self) -> String {
        let line = |((collection, key), (_, value)): (&Name, &(u64, Bytes))| {
            let value = std::str::from_utf8(value).expect("text");
            format!("{{\"collection\":\"{collection}\",\"key\":\"{key}\",\"value\":{value}}}\n")
        };
        self.live.iter().map(line).collect()
    }

    /// Checks that every reply to a client was true.
    pub fn check_told(&self, told: &[(TxnId, Told)]) {
        for (id, told) in told {
            let Some((seq, reason)) = self.decided.get(id) else {
                panic!("{id:?}, reported as {told:?}, is not in the log")
            };
            let fits = match told {
                Told::Committed(at) => reason.is_none() && at == seq,
                Told::Earlier(at) => reason.is_none() && at >= seq,
                Told::Rejected(at) => reason.is_some() && at == seq,
                Told::Queued => true,
            };
            assert!(fits, "{id:?} was reported as {told:?}; the log has {seq} {reason:?}");
        }
    }

    /// Checks that every value read as committed had been committed, and that no member went back in time.
    pub fn check_samples(&self, samples: &[Sample]) {
        let mut newest: HashMap<(&str, &Name), u64> = HashMap::new();
        for sample in samples {
            let written = self.written.get(&(sample.version, sample.name.clone()));
            assert_eq!(written, Some(&sample.value), "read, but never committed: {sample:?}");
            let newest = newest.entry((&sample.at, &sample.name)).or_default();
            assert!(sample.version >= *newest, "{} went back from version {newest}: {sample:?}", sample.at);
            *newest = sample.version;
        }
    }

    /// Returns the rejected transactions.
    pub fn rejected(&self) -> BTreeSet<TxnId> {
        self.decided.iter().filter(|(_, (_, reason))| reason.is_some()).map(|(id, _)| *id).collect()
    }

    pub fn len(&self) -> usize {
        self.decided.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::{Collection, Key, MemberName, OriginCounter, Seq, Txn};

    fn entry(seq: u64, counter: u64, conditions: Vec<Condition>) -> Entry {
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let op = Op::Put { collection: Collection::new("c").unwrap(), key: Key::new("k").unwrap(), value: "1".into() };
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions, ops: vec![op] };
        Entry { seq: Seq(seq), time_ms: 0, member: MemberName::new("m").unwrap(), body: EntryBody::Commit(txn) }
    }

    fn refuses(log: &[Entry]) -> bool {
        let wishes = wishes_of(log);
        std::panic::catch_unwind(|| Model::replay(log, &wishes)).is_err()
    }

    #[test]
    fn the_model_detects_each_kind_of_violation() {
        let absent = || Condition::Absent { collection: Collection::new("c").unwrap(), key: Key::new("k").unwrap() };
        let good = [entry(1, 1, vec![absent()]), entry(2, 2, vec![])];
        let model = Model::replay(&good, &wishes_of(&good));
        assert_eq!(model.export(), "{\"collection\":\"c\",\"key\":\"k\",\"value\":1}\n");
        assert!(refuses(&[entry(1, 1, vec![]), entry(3, 2, vec![])]), "a gap");
        assert!(refuses(&[entry(1, 1, vec![]), entry(2, 1, vec![])]), "a transaction twice");
        assert!(refuses(&[entry(1, 2, vec![]), entry(2, 1, vec![])]), "out of a writer's order");
        assert!(refuses(&[entry(1, 1, vec![]), entry(2, 2, vec![absent()])]), "a condition that does not hold");
        let id = |counter| TxnId { origin: Origin([1; 16]), counter: OriginCounter(counter) };
        let fails = |told: Told, counter| {
            let told = [(id(counter), told)];
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.check_told(&told))).is_err()
        };
        assert!(!fails(Told::Committed(2), 2) && !fails(Told::Earlier(2), 1) && !fails(Told::Queued, 1));
        assert!(fails(Told::Committed(1), 2) && fails(Told::Rejected(1), 1) && fails(Told::Queued, 3));
    }
}
