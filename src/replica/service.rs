//! A replica as a process of its own, without a webserver around it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::codec::admin::{EscrowInfo, Request};
use crate::codec::message::{Kind, Open};
use crate::env::{Clock, SystemClock};
use crate::telemetry::notify;
use crate::transport::endpoint::{self, ClientEndpoint};
use crate::transport::{local, wire};
use crate::trust::{Escrow, Identity, NewKey, TrustError, tls};

use super::{ConnectError, Connector, OpenError, Pending, Replica, ReplicaOptions, admin, ask};

/// A connected member looks at its certificate this often.
const RENEWAL_EVERY: Duration = Duration::from_secs(3600);

/// And this often at whether the sealed copy of the authority is still the newest.
const ESCROW_EVERY: Duration = Duration::from_secs(15);

/// Why the process does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The replica.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The identity.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Sockets.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// Connects with the identity of a data directory, and renews it in time.
pub struct MemberConnector {
    data_dir: PathBuf,
    addresses: Vec<String>,
    endpoint: Mutex<Option<ClientEndpoint>>,
}

impl MemberConnector {
    /// Uses the identity in `data_dir`; `addresses` replace those of the identity unless empty.
    #[must_use]
    pub fn new(data_dir: &Path, addresses: Vec<String>) -> MemberConnector {
        MemberConnector { data_dir: data_dir.to_owned(), addresses, endpoint: Mutex::default() }
    }

    fn endpoint(&self, identity: &Identity) -> Result<ClientEndpoint, String> {
        let mut cached = self.endpoint.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*cached {
            return Ok(endpoint.clone());
        }
        let config = tls::member_config(identity).map_err(|error| error.to_string())?;
        let endpoint = endpoint::client(config).map_err(|error| error.to_string())?;
        Ok(cached.insert(endpoint).clone())
    }

    async fn try_all(&self) -> Result<(quinn::Connection, String), ConnectError> {
        let plain = |message: String| ConnectError { message, is_foreign: false };
        let identity = Identity::load(&self.data_dir).map_err(|error| plain(error.to_string()))?;
        let endpoint = self.endpoint(&identity).map_err(plain)?;
        let addresses = if self.addresses.is_empty() { identity.addresses() } else { &self.addresses };
        let mut last = plain("the identity names no address of a datastore".into());
        for address in addresses {
            match endpoint.connect(address).await {
                Ok(connection) => return Ok((connection, address.clone())),
                Err(error) => {
                    let is_foreign = matches!(error, endpoint::ConnectError::Foreign { .. });
                    // Perhaps the member has joined anew in the meantime, and has another identity now.
                    *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    // That another datastore answers says more than that nobody answers elsewhere.
                    if is_foreign || !last.is_foreign {
                        last = ConnectError { message: error.to_string(), is_foreign };
                    }
                }
            }
        }
        Err(last)
    }

    async fn keep_renewed(&self, connection: &quinn::Connection) {
        loop {
            match self.renew(connection).await {
                Ok(true) => tracing::info!("the certificate was renewed"),
                Ok(false) => {}
                Err(error) => tracing::warn!(error, "the certificate was not renewed; trying again"),
            }
            tokio::time::sleep(RENEWAL_EVERY).await;
        }
    }

    /// Keeps a sealed copy of the datastore's authority, so that it comes back even when its disk does not.
    async fn keep_escrow(&self, connection: &quinn::Connection) {
        loop {
            if let Err(error) = self.fetch_escrow(connection).await {
                // A datastore of an earlier version has none to give.
                tracing::debug!(error, "no sealed copy of the authority");
            }
            tokio::time::sleep(ESCROW_EVERY).await;
        }
    }

    async fn fetch_escrow(&self, connection: &quinn::Connection) -> Result<(), String> {
        let path = Identity::escrow(&self.data_dir);
        let known = Escrow::load(&path).ok().map(|escrow| escrow.stamp);
        let reply = ask::ask(connection, &Request::Escrow { known }).await.map_err(|error| error.to_string())?;
        let info: Option<EscrowInfo> = reply.items.first().and_then(|item| serde_json::from_slice(item).ok());
        let Some(text) = info.and_then(|info| info.text) else { return Ok(()) };
        Escrow::from_text(&text)?.save(&path).map_err(|error| error.to_string())
    }

    async fn renew(&self, connection: &quinn::Connection) -> Result<bool, String> {
        let text = |error: TrustError| error.to_string();
        let mut identity = Identity::load(&self.data_dir).map_err(text)?;
        if !identity.needs_renewal(SystemClock.now_ms()).map_err(text)? {
            return Ok(false);
        }
        let key = NewKey::generate(identity.name()).map_err(text)?;
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(std::io::Error::other)?;
            wire::send(&mut send, Kind::Open, &Open::Renew).await?;
            wire::send_raw(&mut send, Kind::Renew, &key.request_der).await?;
            wire::read(&mut receive).await
        };
        match exchange.await.map_err(|error| error.to_string())? {
            Some((Kind::Renewed, certificate)) => {
                identity.renew(&certificate, &key).map_err(text)?;
                // The next connection uses the new certificate.
                *self.endpoint.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Ok(true)
            }
            Some((kind, _)) => Err(format!("the datastore answered with {kind:?}")),
            None => Err("the datastore did not answer".into()),
        }
    }
}

impl Connector for MemberConnector {
    fn connect(&self) -> Pending<'_, Result<(quinn::Connection, String), ConnectError>> {
        Box::pin(self.try_all())
    }

    fn on_connected(&self, connection: quinn::Connection) -> Pending<'_, ()> {
        Box::pin(async move {
            tokio::join!(self.keep_renewed(&connection), self.keep_escrow(&connection));
        })
    }
}

/// A running replica with its local socket.
pub struct Service {
    /// The replica.
    pub replica: Replica,
    listener: tokio::task::JoinHandle<()>,
}

impl Service {
    /// Opens `data_dir`, connects when it has an identity, and serves the local socket.
    ///
    /// # Errors
    /// When the directory is in use or its outbox damaged.
    pub async fn start(
        data_dir: &Path,
        addresses: Vec<String>,
        options: ReplicaOptions,
    ) -> Result<Service, ServiceError> {
        let (path, opening) = (data_dir.to_owned(), options);
        let replica = tokio::task::spawn_blocking(move || Replica::open(&path, opening))
            .await
            .map_err(|error| ServiceError::Io { what: "opening", source: std::io::Error::other(error) })??;
        let socket = local::listen(data_dir).map_err(|source| ServiceError::Io { what: "the local socket", source })?;
        if Identity::exists(data_dir) {
            Identity::load(data_dir)?;
            replica.connect(Arc::new(MemberConnector::new(data_dir, addresses)));
        } else {
            tracing::warn!("no identity: working offline; join with `gravwell-logctl --data-dir DIR join TOKEN`");
        }
        let listener = tokio::spawn(admin::listen(replica.clone(), socket));
        Ok(Service { replica, listener })
    }

    /// One line for people and for the service manager.
    #[must_use]
    pub fn summary(&self) -> String {
        let status = self.replica.status();
        let connection = if status.connected { "connected" } else { "cut off" };
        format!("{connection}, sequence {} of {}, outbox {}", status.seq, status.head, status.outbox)
    }

    /// Stops serving and closes the replica.
    pub async fn stop(self) {
        notify::stopping();
        self.listener.abort();
        self.replica.close().await;
    }
}
