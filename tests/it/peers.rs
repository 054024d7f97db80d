//! Connections between members: authenticated by the membership list, even while the datastore is unreachable.

use std::sync::Arc;
use std::time::Duration;

use gravwell_model::MemberName;
use gravwell_model::codec::message::{Kind, Open};
use gravwell_replica::ReplicaOptions;
use gravwell_replica::service::{PeerListening, Service};
use gravwell_transport::peer::{Handler, Peer, PeerError, PeerStream, Peers, Serving};
use gravwell_transport::trust::Role;
use gravwell_transport::wire;

use crate::fleet::Fleet;

/// Responds with the name of the requester.
struct Mirror;

impl Handler for Mirror {
    fn allows(&self, role: Role) -> bool {
        role == Role::Webserver
    }

    fn serve(&self, peer: Peer, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Serving<'_> {
        Box::pin(async move {
            while let Some((kind, body)) = wire::read(&mut receive).await? {
                let answer = format!("{}: {}", peer.name, String::from_utf8_lossy(&body));
                wire::send_raw(&mut send, kind, answer.as_bytes()).await?;
            }
            Ok(())
        })
    }
}

fn name(name: &str) -> MemberName {
    MemberName::new(name).expect("name")
}

async fn member(fleet: &Fleet, name: &str) -> Service {
    let loopback = PeerListening::On("127.0.0.1:0".parse().expect("address"));
    let dir = fleet.dir(name);
    let service = Service::start(&dir, Vec::new(), ReplicaOptions::default(), loopback).await.expect("starts");
    service.peers.as_ref().expect("listens").serve(Open::Search, Arc::new(Mirror));
    service
}

fn peers(service: &Service) -> &Peers {
    service.peers.as_ref().expect("listens")
}

async fn until<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("waited too long until {what}"))
}

async fn ask(stream: &mut PeerStream, text: &str) -> Option<String> {
    wire::send_raw(&mut stream.send, Kind::AdminItem, text.as_bytes()).await.ok()?;
    let (_, body) = wire::read(&mut stream.receive).await.ok()??;
    Some(String::from_utf8_lossy(&body).into_owned())
}

async fn open(from: &Service, to: &str) -> PeerStream {
    until(&format!("{to} is reached"), async || peers(from).open(&name(to), Open::Search).await.ok()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p11_members_accept_only_peers_of_the_membership_list() {
    let fleet = Fleet::new();
    let datastore = fleet.datastore();
    for (name, role) in [("a", "webserver"), ("b", "webserver"), ("c", "webserver"), ("r", "reader")] {
        fleet.enroll(name, role);
    }
    let (a, b, c, r) =
        (member(&fleet, "a").await, member(&fleet, "b").await, member(&fleet, "c").await, member(&fleet, "r").await);
    let mut from_b = open(&b, "a").await;
    assert_eq!(ask(&mut from_b, "hello").await.as_deref(), Some("b: hello"));
    let mut from_c = open(&c, "a").await;
    assert_eq!(ask(&mut from_c, "hello").await.as_deref(), Some("c: hello"));

    // Every kind of stream is authorized by role.
    let mut from_r = open(&r, "a").await;
    let refused = wire::expect::<(), _>(&mut from_r.receive, Kind::AdminItem).await.expect_err("refused");
    assert!(refused.to_string().contains("reader"), "{refused}");
    let unserved = peers(&b).open(&name("a"), Open::Chunks).await;
    let mut unserved = unserved.expect("opens");
    assert!(wire::expect::<(), _>(&mut unserved.receive, Kind::AdminItem).await.is_err());
    assert!(matches!(peers(&b).open(&name("b"), Open::Search).await, Err(PeerError::Itself(_))));
    assert!(matches!(peers(&b).open(&name("nobody"), Open::Search).await, Err(PeerError::Unknown(_))));

    // A revocation closes open connections and prevents new ones.
    fleet.ok("d", &["revoke", "c"]);
    until("c is disconnected", async || ask(&mut from_c, "still there?").await.is_none().then_some(())).await;
    let again = peers(&c).open(&name("a"), Open::Search).await;
    if let Ok(mut again) = again {
        assert_eq!(ask(&mut again, "let me in").await, None);
    }
    assert_eq!(ask(&mut from_b, "and me?").await.as_deref(), Some("b: and me?"), "others are not disturbed");

    // A member of another fleet has the same names, but not the same CA.
    let other = Fleet::new();
    let _other_datastore = other.datastore();
    other.enroll("b", "webserver");
    let forged = member(&other, "b").await;
    peers(&forged).adopt_roster((*peers(&b).roster()).clone());
    let refused = peers(&forged).open(&name("a"), Open::Search).await;
    assert!(matches!(refused, Err(PeerError::Unreachable { .. })), "{:?}", refused.err());

    // Without the datastore, the stored membership list is sufficient after a restart.
    datastore.kill();
    b.stop().await;
    let b = member(&fleet, "b").await;
    let mut from_b = open(&b, "a").await;
    assert_eq!(ask(&mut from_b, "alone").await.as_deref(), Some("b: alone"));
    // Its new address could not be announced to the others; its own connection works in both directions.
    let mut back = open(&a, "b").await;
    assert_eq!(ask(&mut back, "where are you?").await.as_deref(), Some("a: where are you?"));
    for service in [a, b, c, r, forged] {
        service.stop().await;
    }
}
