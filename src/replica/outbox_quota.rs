//! How much of an outbox a transaction may use: one user's transactions, pending or rejected, never use the room that
//! others need.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use gravwell_model::Op;
use gravwell_protocol::outbox::Outbox;
use gravwell_protocol::shares;

use super::outbox_writer::{Draft, SubmitError};
use super::shared::ReplicaState;

/// One user's share is the limit divided by this.
const SHARE: usize = 8;
/// For logins, ends of sessions and deletes a user may use this part of the limit in addition.
const SHARE_MORE: usize = 64;
/// Changes by users leave this part of the limit free, for logins, ends of sessions and deletes of all users.
const KEPT: usize = 8;
/// And those leave this part of the limit free, for administrators.
const KEPT_FOR_ADMINS: usize = 32;
/// While all rejections take this part of the limit, a user's share is only the limit divided by [`SHARE_THEN`].
const MANY_REJECTED: usize = 2;
const SHARE_THEN: usize = 64;
/// Smallest share, in bytes.
const SHARE_MIN: usize = 64 << 10;
/// A single transaction may be larger than a share. Its author's next ones wait for it, but not those that
/// end sessions.
const LARGE: usize = 4 << 20;
/// Approximate bytes of a transaction in addition to its values.
const TXN_BYTES: usize = 512;

/// Part of an outbox that a transaction may use. Rejections use no room of pending transactions, but count toward their
/// author's share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutboxQuota {
    /// All of it: for administrators and programs.
    #[default]
    Whole,
    /// A user's share: for changes by users.
    Share,
    /// Slightly more: for starting and ending sessions, and for deletes.
    Kept,
}

impl OutboxQuota {
    /// Returns the most bytes of all pending transactions.
    fn most_of_all(self, limit: usize) -> usize {
        match self {
            OutboxQuota::Whole => limit,
            OutboxQuota::Share => limit - limit / KEPT,
            OutboxQuota::Kept => limit - limit / KEPT_FOR_ADMINS,
        }
    }

    /// Returns the most bytes of one author. `rejected` are the bytes of all rejections.
    fn most_of_author(self, limit: usize, rejected: usize) -> usize {
        let share = (limit / SHARE).max(SHARE_MIN);
        match self {
            OutboxQuota::Whole => limit,
            OutboxQuota::Share if rejected >= limit / MANY_REJECTED => share.min((limit / SHARE_THEN).max(SHARE_MIN)),
            OutboxQuota::Share => share,
            OutboxQuota::Kept => share.max(LARGE) + (limit / SHARE_MORE).max(SHARE_MIN),
        }
    }
}

/// Rejects a draft that would use more than it may. An empty outbox accepts every transaction, and so does a user's
/// share if it is empty.
pub(super) fn check(shared: &ReplicaState, draft: &Draft, staged: &Outbox) -> Result<(), SubmitError> {
    let outbox = shared.outbox();
    let limit = shared.outbox_bytes_max.load(Ordering::Relaxed);
    let more: usize = draft.ops.iter().filter_map(Op::value).map(Bytes::len).sum();
    let is_known = || draft.id.is_some_and(|id| outbox.find(id).is_some());
    let (bytes, most) = (outbox.pending_bytes() + staged.pending_bytes(), draft.room.most_of_all(limit));
    if bytes > 0 && bytes + more > most && !is_known() {
        return Err(SubmitError::FullBytes { bytes, limit: most });
    }
    let author = shares::author(&draft.note);
    let (held, new) = (outbox.held_by(author), staged.held_by(author).pending);
    // The limit above covers pending transactions of administrators and programs.
    let (pending, more) =
        if draft.room == OutboxQuota::Whole { (0, more) } else { (held.pending + new, more + TXN_BYTES) };
    let most = draft.room.most_of_author(limit, outbox.rejected_bytes());
    if pending + held.rejected == 0 || pending + held.rejected + more <= most || is_known() {
        return Ok(());
    }
    Err(match held.rejected > pending {
        true => SubmitError::RejectedFill { bytes: held.rejected },
        false => SubmitError::ShareIsFull,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::outbox_writer::{OutboxWriter, Request};
    use super::*;
    use gravwell_log::journal::Journal;
    use gravwell_model::{Collection, Key, Origin, OriginCounter, Reason, Seq, Txn, TxnId};
    use gravwell_protocol::outbox::RejectedTxn;
    use gravwell_state::StateStore;

    const LIMIT: usize = 32 << 20;
    const SHARE_BYTES: usize = LIMIT / SHARE;

    struct Outboxes {
        shared: Arc<ReplicaState>,
        writer: OutboxWriter,
        next: u64,
        _temp: tempfile::TempDir,
    }

    fn note(uid: i32) -> Bytes {
        format!(r#"{{"uid":{uid},"user":"u"}}"#).into()
    }

    fn put(bytes: usize) -> Vec<Op> {
        let (collection, key) = (Collection::new("c").expect("name"), Key::new("k").expect("key"));
        vec![Op::Put { collection, key, value: vec![7; bytes].into() }]
    }

    impl Outboxes {
        fn new() -> Outboxes {
            let temp = tempfile::tempdir().expect("temp dir");
            let (journal, _) = Journal::open_dir(temp.path()).expect("opens");
            let shared = Arc::new(ReplicaState::new(StateStore::in_memory(), Outbox::default(), None));
            shared.outbox_bytes_max.store(LIMIT, Ordering::Relaxed);
            let (clock, entropy) = (Arc::new(gravwell_env::SystemClock), Arc::new(gravwell_env::SystemEntropy));
            let writer = OutboxWriter::new(Arc::clone(&shared), journal, clock, entropy);
            Outboxes { shared, writer, next: 1, _temp: temp }
        }

        /// Submits this many drafts in one batch.
        fn submit_all(
            &mut self,
            uid: i32,
            room: OutboxQuota,
            bytes: usize,
            many: usize,
        ) -> Vec<Result<(), SubmitError>> {
            let (requests, answers): (Vec<_>, Vec<_>) = (0..many)
                .map(|_| {
                    let (reply, answer) = tokio::sync::oneshot::channel();
                    let draft = Draft { ops: put(bytes), note: note(uid), room, ..Draft::default() };
                    (Request::Submit(draft, reply), answer)
                })
                .unzip();
            self.writer.handle(requests).expect("written");
            answers.into_iter().map(|mut answer| answer.try_recv().expect("answered").map(drop)).collect()
        }

        fn submit(&mut self, uid: i32, room: OutboxQuota, bytes: usize) -> Result<(), SubmitError> {
            self.submit_all(uid, room, bytes, 1).remove(0)
        }

        /// Adds a rejected change for which no client waits.
        fn reject(&mut self, uid: i32, bytes: usize) -> TxnId {
            let id = TxnId { origin: Origin([9; 16]), counter: OriginCounter(self.next) };
            self.next += 1;
            let (settled, ops) = (OriginCounter(0), put(bytes));
            let txn = Arc::new(Txn { id, settled, time_ms: 0, note: note(uid), conditions: vec![], ops });
            let rejected = RejectedTxn { txn, seq: Seq(1), reason: Reason::IdentityReused };
            self.shared.outbox_mut().restore_rejected(rejected);
            id
        }
    }

    #[test]
    fn p15_an_outbox_is_bounded_in_bytes() {
        let mut outbox = Outboxes::new();
        outbox.shared.outbox_bytes_max.store(1000, Ordering::Relaxed);
        outbox.submit(0, OutboxQuota::Whole, 5000).expect("an empty outbox accepts every transaction");
        let error = outbox.submit(0, OutboxQuota::Whole, 1).expect_err("is full");
        assert!(error.to_string().contains("Outbox-Max-MB"), "{error}");
        assert_eq!(outbox.shared.outbox().depth(), 1);
    }

    #[test]
    fn p07_one_user_leaves_room_for_others_however_many_changes_come_at_once() {
        let mut outbox = Outboxes::new();
        let size = SHARE_BYTES / 8;
        let answers = outbox.submit_all(7, OutboxQuota::Share, size, 40);
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 7, "each takes more bytes than its value");
        assert!(matches!(answers[39], Err(SubmitError::ShareIsFull)));
        for uid in 8..14 {
            outbox
                .submit_all(uid, OutboxQuota::Share, size, 7)
                .into_iter()
                .for_each(|one| one.expect("others have as much"));
        }
        outbox.submit_all(14, OutboxQuota::Share, size, 7).into_iter().for_each(drop);
        assert!(matches!(outbox.submit(15, OutboxQuota::Share, size), Err(SubmitError::FullBytes { .. })));
        for uid in [7, 15] {
            outbox.submit(uid, OutboxQuota::Kept, 300).expect("a login");
        }
        outbox.submit(1, OutboxQuota::Whole, 300).expect("an administrator");
    }

    #[test]
    fn p07_what_lets_in_and_ends_is_bounded_for_each_user_and_leaves_room_for_administrators() {
        let mut outbox = Outboxes::new();
        let (size, most) = (20_000, OutboxQuota::Kept.most_of_author(LIMIT, 0));
        let taken =
            outbox.submit_all(7, OutboxQuota::Kept, size, most / size + 1).iter().filter(|one| one.is_ok()).count();
        assert!(taken * size > SHARE_BYTES && taken * size < most, "{taken}");
        for uid in 8..14 {
            outbox.submit_all(uid, OutboxQuota::Kept, size, most / size).into_iter().for_each(drop);
        }
        assert!(matches!(outbox.submit(14, OutboxQuota::Kept, size), Err(SubmitError::FullBytes { .. })));
        outbox.submit(1, OutboxQuota::Whole, LIMIT / KEPT_FOR_ADMINS / 2).expect("an administrator");
    }

    #[test]
    fn p07_rejections_hinder_their_author_and_nobody_else() {
        let mut outbox = Outboxes::new();
        let ids: Vec<TxnId> = (0..2).map(|_| outbox.reject(7, SHARE_BYTES / 2 - 1000)).collect();
        let error = outbox.submit(7, OutboxQuota::Share, 4000).expect_err("is full");
        assert!(error.to_string().contains("/api/rejections"), "{error}");
        outbox.submit(7, OutboxQuota::Kept, 300).expect("a login, to resolve rejections");
        outbox.submit(8, OutboxQuota::Share, 1_000_000).expect("another");
        for id in ids {
            outbox.shared.outbox_mut().take_rejected(id);
        }
        outbox.submit(7, OutboxQuota::Share, 1_000_000).expect("rejections were resolved");
    }

    #[test]
    fn p07_rejections_of_many_take_nothing_of_what_may_wait() {
        let mut outbox = Outboxes::new();
        for uid in 100..116 {
            outbox.reject(uid, SHARE_BYTES - 1000);
        }
        assert!(outbox.shared.outbox().rejected_bytes() > LIMIT);
        assert!(matches!(outbox.submit(100, OutboxQuota::Share, 1), Err(SubmitError::RejectedFill { .. })));
        outbox.submit(7, OutboxQuota::Share, 60_000).expect("a user without rejections is accepted");
        let error = outbox
            .submit(7, OutboxQuota::Share, LIMIT / SHARE_THEN)
            .expect_err("the share is smaller while there are many rejections");
        assert!(matches!(error, SubmitError::ShareIsFull), "{error}");
        outbox.submit(100, OutboxQuota::Kept, 300).expect("a login");
        outbox.submit(1, OutboxQuota::Whole, 1_000_000).expect("an administrator");
    }
}
