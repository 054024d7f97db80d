//! State shared by all connections to other members.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::watch;

use crate::endpoint::{self, ClientEndpoint, ServerEndpoint};
use crate::trust::{Fingerprint, Identity, Refusal, Role, Roster, TrustError, tls};
use gravwell_model::MemberName;
use gravwell_model::codec::message::{Announce, Open};
use gravwell_runtime::tasks::supervisor::Supervisor;

use super::dial::Slot;
use super::listen::{Handler, accept};
use super::membership::Membership;

/// Interval at which certificates of open connections are checked, in addition to every change of the roster.
const CHECKED_EVERY: Duration = Duration::from_secs(5);
/// Maximum number of connections per member, in either direction.
const CONNECTIONS_MAX: usize = 4;
/// Close code of a connection that is replaced by a newer one.
const CLOSE_REPLACED: u32 = 5;
/// Close code for a member that is no longer in the roster.
pub(super) const CLOSE_REVOKED: u32 = 2;

/// An open connection, in either direction.
struct Live {
    /// The other member; `None` until its certificate was found in the roster.
    member: Option<MemberName>,
    certificate: Fingerprint,
    connection: quinn::Connection,
}

#[derive(Default)]
struct Lives {
    next: u64,
    open: HashMap<u64, Live>,
}

pub(super) struct PeerRegistry {
    data_dir: PathBuf,
    me: MemberName,
    pub(super) membership: Membership,
    handlers: RwLock<HashMap<Open, Arc<dyn Handler>>>,
    server: Option<ServerEndpoint>,
    client: Mutex<Option<ClientEndpoint>>,
    announce: Announce,
    lives: Mutex<Lives>,
    pub(super) slots: Mutex<HashMap<MemberName, Arc<Slot>>>,
}

impl Lives {
    /// Assigns connection `id` to `member`. Closes the member's oldest connections above the limit, so that a restarted
    /// member is not rejected because of connections that it has lost.
    fn admit(&mut self, id: u64, member: &MemberName) {
        if let Some(live) = self.open.get_mut(&id) {
            live.member = Some(member.clone());
        }
        let its = self.open.iter().filter(|(_, live)| live.member.as_ref() == Some(member));
        let is_open = |live: &Live| live.connection.close_reason().is_none();
        let mut its: Vec<(u64, quinn::Connection)> =
            its.filter(|(_, live)| is_open(live)).map(|(id, live)| (*id, live.connection.clone())).collect();
        its.sort_by_key(|(id, _)| *id);
        for (_, connection) in its.iter().take(its.len().saturating_sub(CONNECTIONS_MAX)) {
            connection.close(CLOSE_REPLACED.into(), b"replaced by a newer connection of this member");
        }
    }
}

/// A member's connections to other members. Cheap to clone; dropping the last clone closes them.
#[derive(Clone)]
pub struct Peers {
    pub(super) inner: Arc<PeerRegistry>,
}

/// Removes a connection from the list of open ones when dropped.
pub(super) struct Listed(Weak<PeerRegistry>, u64);

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.lives().open.remove(&self.1);
        }
    }
}

impl PeerRegistry {
    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn me(&self) -> &MemberName {
        &self.me
    }

    pub(super) fn roster(&self) -> Arc<Roster> {
        self.membership.roster()
    }

    /// Authenticates a connection. Until the returned guard is dropped, the connection is listed, and is closed when its
    /// certificate becomes invalid.
    pub(super) fn admit(
        self: &Arc<Self>,
        connection: &quinn::Connection,
    ) -> Result<(MemberName, Role, Listed), Refusal> {
        let der = endpoint::peer_certificate(connection).unwrap_or_default();
        let certificate = crate::trust::fingerprint(&der);
        let listed = {
            let mut lives = self.lives();
            let id = lives.next;
            lives.next += 1;
            lives.open.insert(id, Live { member: None, certificate, connection: connection.clone() });
            Listed(Arc::downgrade(self), id)
        };
        // Checked after the connection is listed, so that a concurrent roster change cannot miss it.
        let (name, role) = self.membership.authorise(&certificate)?;
        self.lives().admit(listed.1, &name);
        Ok((name, role, listed))
    }

    /// Returns an open connection from a member. The member may have changed its address since the roster was made.
    pub(super) fn connection_from(&self, member: &MemberName) -> Option<quinn::Connection> {
        let lives = self.lives();
        let mut its = lives.open.values().filter(|live| live.member.as_ref() == Some(member));
        its.find(|live| live.connection.close_reason().is_none()).map(|live| live.connection.clone())
    }

    pub(super) fn handler(&self, open: Open) -> Option<Arc<dyn Handler>> {
        self.handlers.read().unwrap_or_else(PoisonError::into_inner).get(&open).cloned()
    }

    pub(super) fn client(&self) -> Result<ClientEndpoint, String> {
        let mut cached = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*cached {
            return Ok(endpoint.clone());
        }
        let identity = Identity::load(&self.data_dir).map_err(|error| error.to_string())?;
        let config = tls::peer_client_config(&identity).map_err(|error| error.to_string())?;
        let endpoint = endpoint::peer_client(config).map_err(|error| error.to_string())?;
        Ok(cached.insert(endpoint).clone())
    }

    fn close_unlisted(&self) {
        for live in self.lives().open.values() {
            if let Err(refusal) = self.membership.authorise(&live.certificate) {
                live.connection.close(CLOSE_REVOKED.into(), refusal.to_string().as_bytes());
            }
        }
    }
}

/// Closes connections that become untrusted without any message: a roster ages, or a certificate expires.
async fn keep_checking(inner: Weak<PeerRegistry>) {
    loop {
        tokio::time::sleep(CHECKED_EVERY).await;
        match inner.upgrade() {
            Some(inner) => inner.close_unlisted(),
            None => return,
        }
    }
}

impl Drop for PeerRegistry {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.close(b"the member is stopping");
        }
    }
}

impl Peers {
    /// Starts with the roster stored in the data directory, which is trusted for `age_max` after the last contact with
    /// the datastore. Listens on `listen` if given, otherwise only connects to others. Must be called within a tokio
    /// runtime. `hosts` are names and addresses of this host for other members, best first.
    ///
    /// # Errors
    /// If the identity cannot be read, or the address is in use.
    pub fn start(
        data_dir: &Path,
        listen: Option<SocketAddr>,
        hosts: Vec<String>,
        age_max: Option<Duration>,
        watch: &Supervisor,
    ) -> Result<Peers, TrustError> {
        let identity = Identity::load(data_dir)?;
        let server = match listen {
            None => None,
            Some(address) => {
                let failed = |error: std::io::Error| {
                    TrustError::Refused(format!(
                        "cannot listen on {address} (UDP) for other members: {error}; choose another Peer-Port"
                    ))
                };
                let tls = tls::peer_server_config(&identity)?;
                Some(endpoint::peer_server(address, tls, &identity.reset_key()).map_err(failed)?)
            }
        };
        let port = server.as_ref().and_then(|server| server.local_addr().ok()).map_or(0, |address| address.port());
        let mut hosts = hosts;
        if let Some(address) = listen.filter(|address| !address.ip().is_unspecified()) {
            hosts.insert(0, address.ip().to_string());
        }
        let inner = Arc::new(PeerRegistry {
            data_dir: data_dir.to_owned(),
            me: identity.name().clone(),
            membership: Membership::load(data_dir, age_max),
            handlers: RwLock::default(),
            client: Mutex::default(),
            announce: Announce { port, hosts },
            lives: Mutex::default(),
            slots: Mutex::default(),
            server: server.clone(),
        });
        if let Some(server) = server {
            tokio::spawn(watch.passing("listener for members", accept(Arc::downgrade(&inner), server)));
        }
        tokio::spawn(watch.passing("age of the membership list", keep_checking(Arc::downgrade(&inner))));
        Ok(Peers { inner })
    }

    /// Registers `handler` for the streams of one kind.
    pub fn serve(&self, open: Open, handler: Arc<dyn Handler>) {
        self.inner.handlers.write().unwrap_or_else(PoisonError::into_inner).insert(open, handler);
    }

    /// Returns the announcement for the rosters of other members; `None` if this member does not listen.
    #[must_use]
    pub fn announcement(&self) -> Option<Announce> {
        self.inner.server.as_ref().map(|_| self.inner.announce.clone())
    }

    /// Returns the current roster.
    #[must_use]
    pub fn roster(&self) -> Arc<Roster> {
        self.inner.roster()
    }

    /// Returns a receiver of the roster and its changes.
    #[must_use]
    pub fn watch_roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.inner.membership.watch()
    }

    /// Replaces the roster: stores it, and closes the connections of members that are no longer in it.
    pub fn adopt_roster(&self, roster: Roster) {
        self.inner.membership.replace(roster);
        self.inner.close_unlisted();
    }

    /// Like [`Peers::adopt_roster`], for an encoded roster. If it is invalid, no member is trusted until another
    /// one arrives.
    pub fn handle_roster(&self, body: &[u8]) {
        self.inner.membership.handle_roster(body);
        self.inner.close_unlisted();
    }

    /// Removes the certificates in an encoded revocation message from the roster, and closes their connections.
    pub fn handle_revocations(&self, body: &[u8]) {
        self.inner.membership.handle_revocations(body);
        self.inner.close_unlisted();
    }

    /// Records contact with the datastore, which confirms the roster.
    pub fn confirm_roster(&self) {
        self.inner.membership.confirm();
    }

    /// Returns the reason why no other member is trusted, and whether it is a fault; `None` if the members of the
    /// roster are.
    #[must_use]
    pub fn membership_problem(&self) -> Option<(String, bool)> {
        let membership = &self.inner.membership;
        membership.problem().map(|problem| (problem, membership.is_refused()))
    }

    /// Reloads the identity after its renewal; new connections use it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn take_identity(&self) -> Result<(), TrustError> {
        let identity = Identity::load(&self.inner.data_dir)?;
        if let Some(server) = &self.inner.server {
            let replaced = server.replace_certificate(tls::peer_server_config(&identity)?);
            replaced.map_err(|error| TrustError::Certificate(error.to_string()))?;
        }
        *self.inner.client.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Closes all connections and stops listening.
    pub fn close(&self) {
        if let Some(server) = &self.inner.server {
            server.close(b"the member is stopping");
        }
        for live in self.inner.lives().open.values() {
            live.connection.close(0u32.into(), b"the member is stopping");
        }
    }

    /// Returns the name of this member.
    #[must_use]
    pub fn me(&self) -> &MemberName {
        self.inner.me()
    }
}
