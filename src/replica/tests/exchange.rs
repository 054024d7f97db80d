//! An exchange of outbox and state continues without the connection on which it started.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{ConnectError, Connector, Pending, Replica, ReplicaOptions};

/// Never connects, and counts the attempts.
#[derive(Default)]
pub(super) struct Counting(AtomicUsize);

impl Connector for Counting {
    fn connect(&self) -> Pending<'_, Result<(quinn::Connection, String), ConnectError>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        let message = "not reachable".to_owned();
        Box::pin(async move { Err(ConnectError { message, is_foreign: false, is_rotated: false }) })
    }

    fn on_connected(&self, _: quinn::Connection) -> Pending<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Between the two replacements, a change that is about to be pushed again is in neither the state nor the outbox.
#[tokio::test]
async fn p13_no_chunks_are_collected_while_outbox_and_state_are_exchanged() {
    let temp = tempfile::tempdir().expect("temp dir");
    let contents = Some(crate::blobs::BlobOptions::default());
    let options = ReplicaOptions { contents, free_min_bytes: 0, reserve_bytes: 0, ..ReplicaOptions::default() };
    let replica = Replica::open(temp.path(), options).expect("opens");
    let contents = replica.contents().expect("keeps blobs");
    let alone = Arc::clone(&replica.shared.exchanging).lock_owned().await;
    let mut collecting = std::pin::pin!(contents.collect(None, true));
    // Many times what it takes.
    for _ in 0..50 {
        let waiting = tokio::time::timeout(Duration::from_millis(2), collecting.as_mut()).await;
        assert!(waiting.is_err(), "collected");
    }
    drop(alone);
    collecting.await.expect("collects");
}

/// A second exchange would remove the state that the first one is about to put in place, and push its transactions twice.
#[tokio::test(flavor = "multi_thread")]
async fn p05_nothing_is_compared_with_the_log_before_an_exchange_is_complete() {
    let temp = tempfile::tempdir().expect("temp dir");
    let replica = Replica::open(temp.path(), ReplicaOptions::default()).expect("opens");
    let alone = Arc::clone(&replica.shared.exchanging).lock_owned().await;
    let connector = Arc::new(Counting::default());
    replica.connect(Arc::<Counting>::clone(&connector));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(connector.0.load(Ordering::SeqCst), 0);
    drop(alone);
    let tried = async {
        while connector.0.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), tried).await.expect("it connects afterwards");
}
