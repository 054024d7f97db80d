//! UDP link proxy between a replica and its datastore, which forwards datagrams in both directions until it
//! is disconnected.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Proxy on loopback; stops when dropped.
pub(super) struct UdpProxy {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl UdpProxy {
    /// Starts a proxy to `far`.
    pub(super) async fn lay(far: SocketAddr) -> io::Result<UdpProxy> {
        let near = UdpSocket::bind("127.0.0.1:0").await?;
        let (address, is_cut) = (near.local_addr()?, Arc::new(AtomicBool::new(false)));
        let mut tasks = JoinSet::new();
        let carried = Arc::clone(&is_cut);
        tasks.spawn(async move {
            if let Err(error) = carry(Arc::new(near), far, carried).await {
                tracing::warn!(%error, "UDP proxy failed");
            }
        });
        Ok(UdpProxy { address, is_cut, _tasks: tasks })
    }

    /// Returns the address of the near end.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Disconnects the link, or connects it again.
    pub(super) fn set_cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Release);
    }
}

async fn carry(near: Arc<UdpSocket>, far: SocketAddr, is_cut: Arc<AtomicBool>) -> io::Result<()> {
    let mut ends: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returning = JoinSet::new();
    let mut datagram = vec![0; 64 << 10];
    loop {
        let (length, from) = near.recv_from(&mut datagram).await?;
        if is_cut.load(Ordering::Acquire) {
            continue;
        }
        let end = match ends.get(&from) {
            Some(end) => Arc::clone(end),
            None => {
                let end = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
                end.connect(far).await?;
                ends.insert(from, Arc::clone(&end));
                returning.spawn(bring_back(Arc::clone(&end), Arc::clone(&near), from, Arc::clone(&is_cut)));
                end
            }
        };
        // A failed send loses the datagram, as on any network.
        let _ = end.send(&datagram[..length]).await;
    }
}

async fn bring_back(end: Arc<UdpSocket>, near: Arc<UdpSocket>, to: SocketAddr, is_cut: Arc<AtomicBool>) {
    let mut datagram = vec![0; 64 << 10];
    loop {
        // An error reports that no socket listened just now; that may change.
        if let Ok(length) = end.recv(&mut datagram).await
            && !is_cut.load(Ordering::Acquire)
        {
            let _ = near.send_to(&datagram[..length], to).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn carries_until_it_is_cut() {
        let far = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
        let cable = UdpProxy::lay(far.local_addr().expect("address")).await.expect("cable");
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
        near.send_to(b"there", cable.address()).await.expect("sent");
        let mut got = [0; 16];
        let (length, from) = far.recv_from(&mut got).await.expect("received");
        assert_eq!(&got[..length], b"there");
        far.send_to(b"back", from).await.expect("sent");
        let length = near.recv(&mut got).await.expect("received");
        assert_eq!(&got[..length], b"back");
        cable.set_cut(true);
        near.send_to(b"lost", cable.address()).await.expect("sent");
        let nothing = tokio::time::timeout(Duration::from_millis(50), far.recv_from(&mut got)).await;
        assert!(nothing.is_err());
    }
}
