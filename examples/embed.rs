//! Embeds a replica: `embed DIRECTORY TOKEN`, with a token from `gravwell-logctl enroll NAME`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gravwell_replica::env::{Clock, SystemClock};
use gravwell_replica::model::{Collection, Key, Op};
use gravwell_replica::service::MemberConnector;
use gravwell_replica::transport::join;
use gravwell_replica::transport::trust::Identity;
use gravwell_replica::{Draft, Replica, ReplicaOptions, Stage};

/// Writes one object; returns what became of the write.
pub async fn embed(directory: &Path, token: &str) -> Result<Stage, Box<dyn std::error::Error>> {
    if !Identity::exists(directory) {
        std::fs::create_dir_all(directory)?;
        join::join(directory, &token.parse()?, SystemClock.now_ms()).await?;
    }
    let replica = Replica::open(directory, ReplicaOptions::default())?;
    replica.connect(Arc::new(MemberConnector::new(directory, vec![])));

    let (collection, key) = (Collection::new("notes")?, Key::new("17")?);
    let op = Op::Put { collection: collection.clone(), key: key.clone(), value: r#"{"text":"hello"}"#.into() };
    let mut receipt = replica.submit(Draft { ops: vec![op], ..Draft::default() }).await?; // durable here
    assert!(replica.get(&collection, &key)?.is_some()); // and visible here, connected or not
    let stage = receipt.decided(Duration::from_secs(10)).await; // committed at the datastore, rejected, or still pending
    replica.close().await;
    Ok(stage)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, token] = arguments.as_slice() else { return Err("usage: embed DIRECTORY TOKEN".into()) };
    println!("{:?}", embed(Path::new(directory), token).await?);
    Ok(())
}
