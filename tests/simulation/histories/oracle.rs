//! Conditions on changes of which the history was lost, derived from the guarantees alone and independent of the
//! decisions of the product.

use std::collections::BTreeSet;

use bytes::Bytes;
use gravwell_model::{Key, Op, Seq, Txn};
use gravwell_protocol::outbox::RetentionLimits;

use super::Number;
use super::log::{Past, Write, change_of, part_of};
use super::member::{Left, Member, Seen};

/// A change that a member has accepted.
#[derive(Clone, Debug)]
pub struct Made {
    pub author: usize,
    pub ops: Vec<Op>,
    pub seen: Vec<(Key, Seen)>,
    /// For objects of which it requires only that they are present: the changes that had written the object in its
    /// member's history since it was last absent.
    pub present: Vec<(Key, Vec<Number>)>,
    pub is_dismissed: bool,
    /// Reason why the change may be absent everywhere.
    pub let_go: Option<&'static str>,
    /// Set if the change was committed and lost with its history: the changes that its author may have seen before it.
    /// It may be committed again only on top of these, with or without conditions.
    pub lost_after: Option<BTreeSet<Number>>,
    /// Changes that its author saw before retrying it.
    pub saw: BTreeSet<Number>,
    /// Whether nothing of it was left to preserve when an exchange was prepared, even if that exchange was interrupted.
    pub is_passed: bool,
    /// Objects that were absent when the change was made, or that were absent for its author when it was lost. Such an
    /// object may have been created and deleted again since: that does not prevent its deletion, nor a put by an author
    /// who retries the change.
    pub absent_since: BTreeSet<Key>,
    /// Whether its author has retried it.
    pub is_tried_again: bool,
    /// Whether the log returned to a history that contains the change, while the change was on the list of its author
    /// or had been retried. It has a different id since then, so the duplicate cannot be detected: the change may be
    /// on the list and in the log, and an author who retries it sees the current objects.
    pub is_back: bool,
    /// Whether its author has no answer, so that it may or may not have been accepted.
    pub is_unanswered: bool,
    /// Whether its author was told that it was not accepted.
    pub is_refused: bool,
}

impl Made {
    pub fn new(author: usize, ops: Vec<Op>, seen: Vec<(Key, Seen)>, present: Vec<(Key, Vec<Number>)>) -> Made {
        Made {
            author,
            ops,
            seen,
            present,
            is_dismissed: false,
            let_go: None,
            lost_after: None,
            saw: BTreeSet::new(),
            is_passed: false,
            absent_since: BTreeSet::new(),
            is_tried_again: false,
            is_back: false,
            is_unanswered: false,
            is_refused: false,
        }
    }

    /// Returns whether it need not exist anywhere.
    fn is_settled(&self) -> bool {
        let was_never_accepted = self.is_unanswered || self.is_refused;
        self.is_dismissed || self.is_passed || self.let_go.is_some() || was_never_accepted
    }

    /// Returns the value that the change gives an object; `None` if the change does not write it.
    pub fn value(&self, key: &Key) -> Option<Option<Bytes>> {
        self.ops.iter().rev().find(|op| op.key() == key).map(|op| op.value().cloned())
    }
}

/// Returns whether the abandoned history had an object as the operation left it and the new log has a different value.
fn left_something(old: &Past, new: &Past, op: &Op) -> bool {
    let had = old.value(op.key());
    had.as_ref() == op.value() && new.value(op.key()) != had
}

/// Returns whether the new log does not show that an object was deleted, and its author is not told by a comparison of
/// values: the abandoned history created the object again later, and the new log reads otherwise.
fn is_undone(old: &Past, new: &Past, op: &Op) -> bool {
    let (key, had) = (op.key(), old.value(op.key()));
    op.value().is_none() && had.is_some() && new.value(key) != had && !new.deletes_after(old.shared_with(new), key)
}

#[derive(Default)]
pub struct Oracle {
    pub made: Vec<Made>,
    pub checks: u64,
}

pub type Checked = Result<(), String>;

macro_rules! ensure {
    ($this:expr, $holds:expr, $($text:tt)*) => {{
        $this.checks += 1;
        if !$holds {
            return Err(format!($($text)*));
        }
    }};
}

impl Oracle {
    /// Returns whether a write left an object as the given change did. Writes of equal values are interchangeable.
    fn is_as_left(&self, write: Option<&Write>, change: Number, key: &Key) -> bool {
        let left = self.made[change].value(key).flatten();
        let found = write.and_then(|write| write.value.as_ref());
        left.is_some() && (write.and_then(|write| write.change) == Some(change) || found == left.as_ref())
    }

    /// Checks a change that was just committed as the last entry of a log.
    pub fn committed(&mut self, past: &Past, change: Number) -> Checked {
        let before = past.up_to(Seq(past.head().0 - 1));
        let made = self.made[change].clone();
        ensure!(self, made.is_back || before.commit_of(change).is_none(), "change {change} is committed twice");
        ensure!(self, !made.is_dismissed, "change {change} was dismissed, but is committed");
        ensure!(self, !made.is_refused, "change {change} was refused, but is committed");
        // A lost change that only deletes is pushed again on top of the versions that its author has seen there since,
        // or without conditions. If a member is killed after such a change was written to its journal, and a power cut
        // rolls back its state, the member pushes the change without abandoning the history again; then the oracle has
        // no record of the loss. A deletion that removes nothing is never a violation.
        let is_deletion = made.ops.iter().all(|op| op.value().is_none());
        let takes_nothing = made.ops.iter().all(|op| before.value(op.key()).is_none());
        let is_relaxed = is_deletion && (takes_nothing || made.lost_after.is_some());
        for (key, seen) in
            made.seen.iter().filter(|(key, _)| !is_relaxed || made.value(key).is_none() && !takes_nothing)
        {
            let last = before.last_write(key);
            let is_there = last.as_ref().is_some_and(|write| write.value.is_some());
            let holds = match seen {
                Seen::Absent => !is_there,
                Seen::Present => is_there,
                Seen::As(earlier) => self.is_as_left(last.as_ref(), *earlier, key),
            };
            ensure!(self, holds, "change {change} was based on {key} {seen:?}, but committed on {last:?}");
        }
        if !is_relaxed {
            self.requires_same(&before, change, &made)?;
        }
        let Some(lost_after) = made.lost_after else { return Ok(()) };
        for op in &made.ops {
            let Some(last) = before.last_write(op.key()) else { continue };
            let is_same = last.value.as_ref() == op.value();
            let is_own = last.change.is_some_and(|last| self.made[last].author == made.author && last < change);
            // One of several own deletions stands for all of them.
            let is_seen_by = |other: &Made| {
                let is_own = other.author == made.author && other.value(op.key()) == Some(None);
                let seen = other.lost_after.as_ref();
                is_own && seen.is_some_and(|seen| last.change.is_some_and(|last| seen.contains(&last)))
            };
            let is_deleted = op.value().is_none() && self.made.iter().any(is_seen_by);
            let is_known = last.change.is_some_and(|last| lost_after.contains(&last) || made.saw.contains(&last));
            let is_known = is_known || is_deleted;
            let was_absent =
                made.absent_since.contains(op.key()) || made.seen.contains(&(op.key().clone(), Seen::Absent));
            // What its member alone pushes again does not bring back what was deleted meanwhile.
            let is_absent = last.value.is_none() && was_absent && (op.value().is_none() || made.is_tried_again);
            ensure!(
                self,
                is_same || is_own || is_known || is_absent,
                "change {change} was lost and is committed again over {last:?} of {}, which its author had not seen",
                op.key()
            );
        }
        Ok(())
    }

    /// Checks that a change is not committed upon another object than the one that it required to be present, if that one
    /// was lost. An author who retries a change accepts the present objects.
    fn requires_same(&mut self, before: &Past, change: Number, made: &Made) -> Checked {
        for (key, writers) in made.present.iter().filter(|_| !made.is_tried_again && !made.is_back) {
            let Some(created) = writers.first() else { continue };
            let there = before.writers_since_creation(key);
            let value = |change: &Number| self.made[*change].value(key);
            let is_own = |there: &Number| *there < change && self.made[*there].author == made.author;
            let is_known = there.iter().flatten().any(|there| writers.contains(there) || is_own(there));
            let is_same = writers.last().map(value) == there.last().copied().flatten().as_ref().map(value);
            let is_lost = before.commit_of(*created).is_none();
            // A name that the shared part had counts as one object: a state does not show that it was deleted and created
            // again. What happens to it in the new log afterwards is not a matter of leaving.
            let is_earlier = |txn: &Txn| {
                let puts = |op: &Op| op.key() == key && op.value().is_some();
                txn.ops.iter().any(puts) && part_of(txn).is_some_and(|(change, _)| change < *created)
            };
            let is_shared = before.commits().any(|(_, txn)| is_earlier(txn));
            // After a power failure the sequence of an own deletion may be known as later than it is. Then a deletion of an
            // object that is present is taken for one that follows it.
            let is_own_deletion = |other: &Made| other.author == made.author && other.value(key) == Some(None);
            let is_again = made.value(key) == Some(None) && self.made[..change].iter().any(is_own_deletion);
            ensure!(
                self,
                !is_lost || is_known || is_same || is_shared || is_again,
                "change {change} required {key} of {writers:?}, and is committed upon that of {there:?}"
            );
        }
        Ok(())
    }

    /// Checks a lost change of which only the deletions were just committed again.
    pub fn part_committed(&mut self, past: &Past, change: Number) -> Checked {
        let before = past.up_to(Seq(past.head().0 - 1));
        let made = self.made[change].clone();
        let ops = past.commits().next_back().map(|(_, txn)| txn.ops.clone()).unwrap_or_default();
        let lost_after = made.lost_after.unwrap_or_default();
        for op in ops {
            let last = before.last_write(op.key());
            let is_there = last.as_ref().is_some_and(|write| write.value.is_some());
            let writer = last.as_ref().and_then(|write| write.change);
            let is_known = writer.is_some_and(|writer| {
                lost_after.contains(&writer) || (self.made[writer].author == made.author && writer < change)
            });
            ensure!(
                self,
                op.value().is_none() && made.ops.contains(&op),
                "change {change} is committed in part: {op:?}"
            );
            ensure!(self, !is_there || is_known, "change {change} deletes {last:?}, which its author had not seen");
        }
        Ok(())
    }

    /// Checks a member that has abandoned a history.
    pub fn left(&mut self, member: &Member, left: &Left, keys: &[Key]) -> Checked {
        let Left { old, new, floor, pending: before, kept, .. } = left;
        let shared_to = old.shared_with(new);
        let (pending, listed) = (member.pending(), member.listed());
        let name = &member.name;
        for change in before {
            let is_decided = new.commit_of(*change).is_some() || listed.contains(change);
            ensure!(self, is_decided || pending.contains(change), "{name}: pending change {change} is gone");
        }
        let archive = member.archive()?;
        let has = |key: &Key, value: &Option<Bytes>| {
            // Deletions are not unique, so the position of the archive has to match as well.
            archive.iter().any(|(seq, archived)| {
                archived.key == *key && archived.value == *value && (value.is_some() || *seq == old.head())
            })
        };
        for key in keys {
            let Some(last) = old.last_write(key).filter(|last| last.seq > shared_to) else { continue };
            if last.value.is_none() {
                let is_known = new.deletes_after(shared_to, key) || last.seq <= left.deletions_after;
                let is_preserved = is_known || member.will_delete(key) || has(key, &None);
                ensure!(self, is_preserved, "{name}: {key} was deleted at {last:?}, and the deletion is not archived");
                continue;
            }
            let there = new.last_write(key);
            let reads = there.as_ref().and_then(|there| there.value.clone());
            // If several changes leave an object with the same value, any of them may be pushed again.
            let is_pushed = pending.iter().any(|change| self.made[*change].value(key).as_ref() == Some(&last.value));
            let is_in = is_pushed || last.change.is_some_and(|change| new.commit_of(change).is_some());
            if reads == last.value || is_in {
                continue;
            }
            ensure!(
                self,
                has(key, &last.value),
                "{name}: {key} was {last:?} in the abandoned history, and is not archived"
            );
        }
        let lost: Vec<(Seq, Number, Vec<Op>)> = old
            .commits()
            .filter(|(seq, _)| *seq > shared_to)
            .filter_map(|(seq, txn)| Some((seq, change_of(txn)?, txn.ops.clone())))
            .filter(|(_, change, _)| self.made[*change].author == member.number && new.commit_of(*change).is_none())
            .collect();
        for (seq, change, ops) in lost {
            let before: BTreeSet<Number> = old
                .up_to(seq)
                .commits()
                .filter_map(|(_, txn)| change_of(txn))
                .filter(|other| *other != change)
                .collect();
            self.made[change].lost_after.get_or_insert_default().extend(before);
            let earlier = old.up_to(Seq(seq.0 - 1));
            let is_absent = |key: &&Key| new.value(key).is_none() || earlier.value(key).is_none();
            // If an earlier change of the same author deleted the object, this change was based on that deletion,
            // whatever came in between.
            let is_deleted = |key: &&Key| {
                let deletes = |op: &Op| op.key() == *key && op.value().is_none();
                earlier.commits().any(|(_, txn)| {
                    let is_own = change_of(txn).is_some_and(|other| self.made[other].author == member.number);
                    is_own && txn.ops.iter().any(deletes)
                })
            };
            let keys = ops.iter().map(|op| op.key());
            let absent: Vec<Key> = keys.filter(|key| is_absent(key) || is_deleted(key)).cloned().collect();
            self.made[change].absent_since.extend(absent);
            if pending.contains(&change) || listed.contains(&change) || self.made[change].is_dismissed {
                continue;
            }
            let remains: Vec<&Op> = ops.iter().filter(|op| left_something(old, new, op)).collect();
            let is_passed = self.made[change].is_passed;
            let is_deletion = ops.iter().all(|op| op.value().is_none());
            let is_bounded = member.limits.txns < RetentionLimits::default().txns
                && (!is_deletion || member.limits.deletions < RetentionLimits::default().deletions);
            let is_let_go = seq <= *floor || is_passed || (is_bounded && !kept.contains(&change));
            ensure!(
                self,
                remains.is_empty() || is_let_go,
                "{name}: change {change} was lost, and is neither pushed again nor listed"
            );
            for op in &ops {
                let is_last = old.last_write(op.key()).is_some_and(|last| last.change == Some(change));
                let is_deleted = is_last && op.value().is_none() && new.value(op.key()).is_none();
                let is_pushed = member.will_delete(op.key()) || new.deletes_after(shared_to, op.key());
                ensure!(
                    self,
                    !is_deleted || is_pushed || is_let_go || left.is_restore,
                    "{name}: change {change} deleted {}, and the deletion is not pushed again",
                    op.key()
                );
                ensure!(
                    self,
                    !is_undone(old, new, op) || is_let_go,
                    "{name}: change {change} deleted {}, which is undone without a report",
                    op.key()
                );
            }
            // Every member had the change, so it was not retained for another push; then an earlier state was restored.
            for op in remains {
                let value = op.value().cloned();
                // A later deletion of the same object may be pushed again in place of this one.
                let is_deleted = member.will_delete(op.key()) || new.deletes_after(shared_to, op.key());
                let is_known = value.is_none() && (is_deleted || seq <= left.deletions_after);
                // Any of several changes that leave an object with the same value may be pushed again.
                let is_same = |other: &Number| self.made[*other].value(op.key()) == Some(value.clone());
                let is_known = is_known || value.is_some() && pending.iter().any(is_same);
                ensure!(self, is_known || has(op.key(), &value), "{name}: change {change} of {} is missing", op.key());
            }
            self.made[change].let_go = Some("a later change overwrote it, or it is archived");
        }
        Ok(())
    }

    /// Records that an exchange was prepared: changes with nothing left to preserve may be absent from now on.
    pub fn prepared(&mut self, member: usize, left: &Left) {
        let shared_to = left.old.shared_with(&left.new);
        for (_, txn) in left.old.commits().filter(|(seq, _)| *seq > shared_to) {
            let Some(change) = change_of(txn) else { continue };
            let is_lost = self.made[change].author == member && left.new.commit_of(change).is_none();
            if !is_lost {
                continue;
            }
            let absent = txn.ops.iter().map(Op::key).filter(|key| left.new.value(key).is_none()).cloned();
            self.made[change].absent_since.extend(absent);
            let remains = |op: &Op| left_something(&left.old, &left.new, op) || is_undone(&left.old, &left.new, op);
            if !txn.ops.iter().any(remains) {
                self.made[change].is_passed = true;
            }
        }
    }

    /// Checks that every change of a member exists somewhere.
    pub fn accounts(&mut self, member: &Member, log: &Past) -> Checked {
        let (pending, listed, past) = (member.pending(), member.listed(), member.past());
        for (change, made) in self.made.clone().into_iter().enumerate().filter(|(_, made)| made.author == member.number)
        {
            let times = |of: &[Number]| of.iter().filter(|other| **other == change).count();
            let open = times(&pending) + times(&listed);
            let is_settled = made.is_settled();
            let is_there = past.commit_of(change).is_some() || log.commit_of(change).is_some();
            ensure!(self, open == 0 || !made.is_refused, "{}: change {change} was refused, and is kept", member.name);
            ensure!(self, open <= 1, "{}: change {change} is open {open} times", member.name);
            ensure!(self, open == 1 || is_settled || is_there, "{}: change {change} is missing", member.name);
        }
        Ok(())
    }

    /// Final check, after everything was delivered.
    pub fn at_the_end(&mut self, members: &[Member], log: &Past) -> Checked {
        for (change, made) in self.made.clone().into_iter().enumerate() {
            let listed = members.iter().flat_map(Member::listed).filter(|other| *other == change).count();
            let pending = members.iter().flat_map(Member::pending).filter(|other| *other == change).count();
            let committed = log.commits().filter(|(_, txn)| change_of(txn) == Some(change)).count();
            let found = format!("committed {committed}, listed {listed}, pending {pending}");
            ensure!(self, pending == 0, "change {change} is still pending: {found}");
            ensure!(self, committed + listed <= 1 || made.is_back, "change {change} is duplicated: {found}");
            let is_settled = made.is_settled();
            ensure!(self, committed + listed > 0 || is_settled, "change {change} is missing: {found}");
        }
        Ok(())
    }
}
