//! Clients without a certificate: incomplete handshakes, and connections that join and then send nothing.

use std::net::UdpSocket;
use std::time::Duration;

use gravwell_model::MemberName;
use gravwell_model::codec::message::{Kind, Open};
use gravwell_transport::join::JoinRequest;
use gravwell_transport::trust::{Identity, tls};
use gravwell_transport::{endpoint, wire};

use super::{Site, memory};
use crate::fleet::from_env;

/// Returns an endpoint that could join and knows the CA.
fn stranger(site: &Site) -> endpoint::ClientEndpoint {
    let identity = Identity::load(&site.fleet.dir("rogue")).expect("an identity");
    let authority = gravwell_transport::trust::fingerprint(&identity.roots().expect("an authority")[0]);
    endpoint::client(tls::join_config(authority).expect("settings")).expect("an endpoint")
}

/// Returns the first packets of handshakes, each of a separate connection, recorded by a socket that never responds.
async fn first_packets(site: &Site, count: u64) -> Vec<Vec<u8>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = sink.local_addr().expect("an address").to_string();
    let client = stranger(site);
    let mut packets = Vec::new();
    let mut buffer = vec![0; 2048];
    while (packets.len() as u64) < count {
        let connecting = tokio::spawn({
            let (client, address) = (client.clone(), address.clone());
            async move { client.connect(&address).await.map(drop) }
        });
        let (length, _) = sink.recv_from(&mut buffer).await.expect("a packet");
        packets.push(buffer[..length].to_vec());
        connecting.abort();
    }
    packets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_incomplete_handshakes_block_no_member() {
    let site = Site::new("webserver");
    let since = site.since();
    let packets = first_packets(&site, from_env("GRAVWELL_HOSTILE_HANDSHAKES", 2_000)).await;
    let before = memory(site.datastore.id());
    let socket = UdpSocket::bind("127.0.0.1:0").expect("binds");
    for packet in &packets {
        // A full receive buffer may drop packets, which only weakens the attack.
        let _ = socket.send_to(packet, site.fleet.listen);
    }
    // During the attack a member joins and connects.
    site.fleet.enroll("b", "webserver");
    let b = site.fleet.replica("b");
    site.fleet.wait_connected("b");
    for packet in &packets {
        let _ = socket.send_to(packet, site.fleet.listen);
    }
    site.holds(since, "half-open handshakes");
    // There are few slots for unverified addresses, so the memory for them is bounded.
    let grown = memory(site.datastore.id()).saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes are held for {} unauthenticated clients", packets.len());
    drop(b);
}

/// Relays handshakes to `target` that are never completed: of each connection the first packet, and the next one, which
/// proves that its address is real. Packets of the server are relayed back.
async fn half_open_relay(relay: tokio::net::UdpSocket, target: std::net::SocketAddr) {
    // RFC 9000, section 17.2: flags, version, then both connection IDs with their lengths.
    let source_id = |packet: &[u8]| {
        let at = 6 + usize::from(*packet.get(5)?);
        let length = usize::from(*packet.get(at)?);
        packet.get(at + 1..at + 1 + length).map(<[u8]>::to_vec)
    };
    let (mut carried, mut client) = (std::collections::HashMap::<Vec<u8>, u32>::new(), None);
    let mut buffer = vec![0; 2048];
    while let Ok((length, from)) = relay.recv_from(&mut buffer).await {
        let packet = &buffer[..length];
        if from == target {
            if let Some(client) = client {
                let _ = relay.send_to(packet, client).await;
            }
            continue;
        }
        client = Some(from);
        let Some(id) = source_id(packet).filter(|_| packet[0] & 0x80 != 0) else { continue };
        let count = carried.entry(id).or_default();
        *count += 1;
        if *count <= 2 {
            let _ = relay.send_to(packet, target).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_half_open_handshakes_of_true_addresses_take_little_memory() {
    let site = Site::new("webserver");
    let since = site.since();
    let client = stranger(&site);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let address = socket.local_addr().expect("an address").to_string();
    let relay = tokio::spawn(half_open_relay(socket, site.fleet.listen));
    let before = memory(site.datastore.id());
    let grown = || memory(site.datastore.id()).saturating_sub(before);
    let mut most = 0;
    for _ in 0..from_env("GRAVWELL_HOSTILE_HANDSHAKES", 2_000) / 50 {
        let attempts = (0..50).map(|_| {
            let (client, address) = (client.clone(), address.clone());
            tokio::spawn(async move { client.connect(&address).await.map(drop) })
        });
        let attempts: Vec<_> = attempts.collect();
        tokio::time::sleep(Duration::from_millis(150)).await;
        attempts.iter().for_each(tokio::task::JoinHandle::abort);
        most = most.max(grown());
    }
    site.holds(since, "half-open handshakes of a true address");
    most = most.max(grown());
    relay.abort();
    assert!(most < 64 << 20, "{most} bytes were held for unauthenticated clients");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_a_client_with_a_wrong_token_is_disconnected_immediately() {
    const JOINS: usize = 300;
    let site = Site::new("webserver");
    let since = site.since();
    let client = stranger(&site);
    let address = site.fleet.listen.to_string();
    let mut held = Vec::new();
    let mut last = None;
    for _ in 0..JOINS {
        let Ok(connection) = client.connect(&address).await else { continue };
        let (mut send, receive) = connection.open_bi().await.expect("a stream");
        let name = MemberName::new("nobody").expect("name");
        let request = JoinRequest { name, secret: [7; 32], request_der: vec![0; 100] };
        let _ = wire::send(&mut send, Kind::Open, &Open::Renew).await;
        let _ = wire::send(&mut send, Kind::Renew, &request).await;
        held.push(connection);
        last = Some(receive);
    }
    let mut receive = last.expect("some were accepted");
    let answer = tokio::time::timeout(Duration::from_secs(60), wire::read(&mut receive)).await.expect("in time");
    assert!(matches!(answer, Ok(Some((Kind::Refused, _)))), "{answer:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let open = held.iter().filter(|connection| connection.close_reason().is_none()).count();
    assert_eq!((open, held.len() > JOINS / 2), (0, true), "of {}", held.len());
    site.fleet.enroll("b", "reader");
    site.holds(since, "wrong tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p15_idle_connections_do_not_prevent_joins() {
    let site = Site::new("webserver");
    let since = site.since();
    let client = stranger(&site);
    let address = site.fleet.listen.to_string();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    // As many connections as allowed at any time, for the whole test.
    let attack = tokio::spawn(async move {
        let mut held = std::collections::VecDeque::new();
        while !*stopped.borrow_and_update() {
            if let Ok(connection) = client.connect(&address).await {
                held.push_back(connection);
            }
            if held.len() > 300 {
                held.pop_front();
            }
        }
        held.iter().filter(|connection| connection.close_reason().is_none()).count()
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    for name in ["b", "c", "e"] {
        site.fleet.enroll(name, "reader");
    }
    stop.send_replace(true);
    attack.await.expect("ends");
    site.holds(since, "idle connections");
}
