//! Access to a data directory: through the socket of the process that runs on it, or by opening it.
//!
//! Both ways use the same protocol; a directory without a process is served within this process.

pub(crate) mod ca_restore;
pub(crate) mod certificate;
pub(crate) mod deletions;
pub(crate) mod member_source;
pub(crate) mod output;
pub(crate) mod parse;
pub(crate) mod print;
pub(crate) mod progress;
pub(crate) mod rest;
pub(crate) mod rotations;
pub(crate) mod transact;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use gravwell_config::datastore::DatastoreConfig;
use gravwell_datastore::Datastore;
use gravwell_env::data_dir::{DirectoryError, PATIENCE};
use gravwell_model::codec::admin::{AdminError, Request, Status};
use gravwell_model::codec::health;
use gravwell_model::codec::message::{self, Kind, Open, Outcome, Row};
use gravwell_model::codec::payload::decode_loose_frames;
use gravwell_model::{Collection, Entry, Key, Seq};
use gravwell_replica::blobs::{BlobOptions, CHUNKS};
use gravwell_replica::directory::OWN_LOG;
use gravwell_replica::service::MemberConnector;
use gravwell_replica::{self as replica, Access, Connector, Replica, ReplicaOptions, outbox_loss};
use gravwell_transport::trust::Identity;
use gravwell_transport::wire::{self, WireError};
use gravwell_transport::{close_reason, local};

use crate::error::CtlError;

/// Longest wait for a process that holds the directory but does not respond yet.
const STARTING: Duration = Duration::from_secs(15);
/// Longest wait for a response of a running process.
const ANSWERING: Duration = Duration::from_secs(8);
/// Longest wait for the renewal of a certificate that is due.
const RENEWING: Duration = Duration::from_secs(5);
/// Longest wait for the task of the last request to finish.
const LETTING_GO: Duration = Duration::from_secs(5);

type Reader = Box<dyn AsyncRead + Unpin + Send>;
type Writer = Box<dyn AsyncWrite + Unpin + Send>;

/// Server that handles the requests for a directory.
#[derive(Clone)]
enum Server {
    Process,
    /// Datastore of an identity without a replica, such as an administrator's.
    Remote(quinn::Connection),
    Replica(Box<Replica>),
    Datastore(std::sync::Arc<Datastore>),
}

/// Access to one data directory.
pub(crate) struct Client {
    directory: std::path::PathBuf,
    server: Mutex<Server>,
}

/// Request in progress.
pub(crate) struct Call {
    pub read: Reader,
    pub write: Writer,
    remote: Option<quinn::Connection>,
    has_ended: bool,
}

/// Part of a response.
pub(crate) enum Piece {
    Item(Bytes),
    Rows(Vec<Row>),
    Frames(Bytes),
}

pub(crate) fn failed(error: impl std::fmt::Display) -> CtlError {
    CtlError::new(error)
}

fn damaged(error: impl std::fmt::Display) -> CtlError {
    CtlError { message: error.to_string(), exit: 3 }
}

impl Client {
    /// Connects to the process on `directory`, or opens it.
    pub(crate) async fn open(directory: &Path) -> Result<Client, CtlError> {
        if !directory.is_dir() {
            let path = directory.display();
            return Err(failed(format!("{path} is not a directory; pass the data directory with --data-dir")));
        }
        if let Some(identity) = remote_identity(directory)? {
            let connection = dial(directory, &identity).await?;
            // A role without a replica has no process that renews its certificate, so its commands do. A failed renewal
            // does not stop the command.
            let connector = MemberConnector::new(directory, Vec::new());
            let renewing = tokio::time::timeout(RENEWING, connector.keep_identity(&connection));
            if let Ok(Err(error)) = renewing.await {
                complain!("cannot renew the certificate in {}: {error}", directory.display());
            }
            let server = Server::Remote(connection);
            return Ok(Client { directory: directory.to_owned(), server: Mutex::new(server) });
        }
        let started = Instant::now();
        loop {
            match answers(directory).await {
                Ok(()) => return Ok(Client { directory: directory.to_owned(), server: Mutex::new(Server::Process) }),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err(failed(error)),
                // The process closed the connection: it is about to exit or to restart.
                Err(error) if error.kind() == ErrorKind::Other && started.elapsed() <= STARTING => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Err(error) => {
                    return Err(failed(format!("cannot connect to the socket in {}: {error}", directory.display())));
                }
            }
            match serve_here(directory, Access::Read, false).await {
                Ok(server) => {
                    return Ok(Client { directory: directory.to_owned(), server: Mutex::new(server) });
                }
                Err((error, is_in_use)) if !is_in_use || started.elapsed() > STARTING => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Returns the current version of an object, or its version `at` a sequence; `None` if it does not exist.
    pub(crate) async fn object(
        &self,
        collection: &Collection,
        key: &Key,
        at: Option<Seq>,
    ) -> Result<Option<Row>, CtlError> {
        let request = Request::Get { collection: collection.clone(), key: key.clone(), at };
        let mut found = None;
        self.each(&request, |piece| {
            if let Piece::Rows(rows) = piece {
                found = rows.into_iter().next();
            }
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Returns whether a process runs on the directory.
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.server(), Server::Process | Server::Remote(_))
    }

    fn server(&self) -> Server {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the server for a request. A directory opened read-only is reopened for a request that writes.
    async fn server_for(&self, request: &Request) -> Result<Server, CtlError> {
        let server = self.server();
        let is_read_only = match &server {
            Server::Process | Server::Remote(_) => false,
            Server::Replica(replica) => replica.is_read_only(),
            Server::Datastore(datastore) => datastore.is_read_only(),
        };
        // Chunks are opened only for requests that need them, because opening takes a while.
        let lacks_contents = request.is_of_contents()
            && self.directory.join(CHUNKS).is_dir()
            && matches!(&server, Server::Replica(replica) if replica.contents().is_none());
        if !is_read_only || (request.is_reading() && !lacks_contents) {
            return Ok(server);
        }
        // From here on, a process that starts on the directory is used.
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Server::Process;
        let_go(server).await;
        let access = if request.is_reading() { Access::Read } else { Access::Write };
        let server = serve_here(&self.directory, access, true).await.map_err(|(error, _)| error)?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = server.clone();
        Ok(server)
    }

    /// Starts a request.
    pub(crate) async fn call(&self, request: &Request) -> Result<Call, CtlError> {
        let server = self.server_for(request).await?;
        let (read, mut write): (Reader, Writer) = match &server {
            Server::Process => {
                let stream = connect(&self.directory).await;
                let (read, write) =
                    stream.map_err(|error| failed(format!("the process has exited: {error}")))?.into_split();
                (Box::new(read), Box::new(write))
            }
            Server::Remote(connection) => {
                let opened = open_remote(connection).await;
                let (read, write) = explain(Some(connection), opened).await?;
                (read, write)
            }
            Server::Replica(replica) => {
                let (here, there) = tokio::io::duplex(1 << 20);
                let replica = replica.clone();
                tokio::spawn(async move {
                    let (mut receive, mut send) = tokio::io::split(there);
                    let _ = replica::admin::serve(&replica, &mut receive, &mut send).await;
                });
                let (read, write) = tokio::io::split(here);
                (Box::new(read), Box::new(write))
            }
            Server::Datastore(datastore) => {
                let (here, there) = tokio::io::duplex(1 << 20);
                let datastore = std::sync::Arc::clone(datastore);
                tokio::spawn(async move {
                    let (mut receive, mut send) = tokio::io::split(there);
                    let _ = datastore.administer(&mut receive, &mut send).await;
                });
                let (read, write) = tokio::io::split(here);
                (Box::new(read), Box::new(write))
            }
        };
        let remote = match &server {
            Server::Remote(connection) => Some(connection.clone()),
            _ => None,
        };
        let sent = wire::send_json(&mut write, Kind::AdminRequest, request).await;
        explain(remote.as_ref(), sent).await?;
        Ok(Call { read, write, remote, has_ended: false })
    }

    /// Sends a request and passes every piece of the response to `take`.
    pub(crate) async fn each(
        &self,
        request: &Request,
        mut take: impl FnMut(Piece) -> Result<(), CtlError>,
    ) -> Result<(), CtlError> {
        let mut call = self.call(request).await?;
        while let Some(piece) = call.next().await? {
            take(piece)?;
        }
        Ok(())
    }

    /// Sends a request and collects its items.
    pub(crate) async fn items<T: DeserializeOwned>(&self, request: &Request) -> Result<Vec<T>, CtlError> {
        let mut items = Vec::new();
        self.each(request, |piece| {
            if let Piece::Item(item) = piece {
                items.push(serde_json::from_slice(&item).map_err(failed)?);
            }
            Ok(())
        })
        .await?;
        Ok(items)
    }

    /// Sends a request with a response of one item.
    pub(crate) async fn item<T: DeserializeOwned>(&self, request: &Request) -> Result<T, CtlError> {
        self.items(request).await?.pop().ok_or_else(|| failed("the response is empty"))
    }

    /// Returns the status; if no process runs on the directory, it states so.
    pub(crate) async fn status(&self) -> Result<Status, CtlError> {
        let status: Status = self.item(&Request::Status).await?;
        Ok(self.as_seen(status))
    }

    /// Adjusts a status to the caller's view: if this process opened the directory, no other process runs there.
    pub(crate) fn as_seen(&self, mut status: Status) -> Status {
        if !self.is_running() {
            (status.running, status.connected) = (false, false);
        }
        health::assess(&mut status);
        status
    }

    /// Fails with the exit code for damage if a replica's state is known to be older than one that it showed before.
    pub(crate) async fn check_shown(&self) -> Result<(), CtlError> {
        if matches!(self.server(), Server::Remote(_)) {
            return Ok(());
        }
        let status: Status = self.item(&Request::Status).await?;
        let lost = status.health.reasons.into_iter().find(|reason| reason.code == health::Code::StateLost);
        lost.map_or(Ok(()), |lost| Err(damaged(format!("state is older than what was shown before: {}", lost.message))))
    }

    /// Closes everything that this client opened.
    pub(crate) async fn close(self) {
        let_go(self.server.into_inner().unwrap_or_else(PoisonError::into_inner)).await;
    }
}

async fn let_go(server: Server) {
    match server {
        Server::Process => {}
        Server::Remote(connection) => connection.close(0u32.into(), b"done"),
        Server::Replica(replica) => replica.close().await,
        Server::Datastore(mut datastore) => {
            // The task of the last request releases the datastore shortly after its response.
            let asked = Instant::now();
            while asked.elapsed() < LETTING_GO {
                match std::sync::Arc::try_unwrap(datastore) {
                    Ok(datastore) => return datastore.stop().await,
                    Err(shared) => datastore = shared,
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

impl Call {
    /// Returns the next piece; `None` at the end and on every later call.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, CtlError> {
        if self.has_ended {
            return Ok(None);
        }
        let message = wire::read(&mut self.read).await;
        let message = message.and_then(|message| message.ok_or(WireError::Closed));
        let (kind, body) = explain(self.remote.as_ref(), message).await?;
        match kind {
            Kind::AdminItem => Ok(Some(Piece::Item(body))),
            Kind::Rows => Ok(Some(Piece::Rows(message::decode(kind, &body).map_err(failed)?))),
            Kind::Frames => Ok(Some(Piece::Frames(body))),
            Kind::AdminEnd => {
                self.has_ended = true;
                Ok(None)
            }
            Kind::AdminError => Err(refusal(&body)),
            other => Err(failed(format!("unexpected message {other:?}"))),
        }
    }

    /// Returns the outcome of a transaction, or an error if the submission was rejected.
    pub(crate) async fn outcome(&mut self) -> Result<Outcome, CtlError> {
        let message = wire::read(&mut self.read).await;
        let message = message.and_then(|message| message.ok_or(WireError::Closed));
        let (kind, body) = explain(self.remote.as_ref(), message).await?;
        match kind {
            Kind::Outcome => message::decode(kind, &body).map_err(failed),
            Kind::AdminError => Err(refusal(&body)),
            other => Err(failed(format!("unexpected message {other:?}"))),
        }
    }
}

/// Decodes the error that the server returned for a request.
fn refusal(body: &[u8]) -> CtlError {
    match serde_json::from_slice(body) {
        Ok(AdminError { message, exit }) => CtlError { message, exit },
        Err(error) => failed(error),
    }
}

/// Opens a request stream to a datastore on another host.
async fn open_remote(connection: &quinn::Connection) -> Result<(Reader, Writer), WireError> {
    let (mut send, receive) = connection.open_bi().await?;
    wire::send(&mut send, Kind::Open, &Open::Admin).await?;
    Ok((Box::new(receive), Box::new(send)))
}

/// Maps an error of a stream. If the datastore closed the connection with a reason, the error is that reason.
async fn explain<T>(remote: Option<&quinn::Connection>, result: Result<T, WireError>) -> Result<T, CtlError> {
    let error = match (result, remote) {
        (Ok(value), _) => return Ok(value),
        (Err(error), Some(connection)) => close_reason::explained(connection, error).await,
        (Err(error), None) => error,
    };
    Err(match error {
        WireError::ClosedBy(close) => failed(close),
        error => failed(format!("the process closed the connection early: {error}")),
    })
}

async fn connect(directory: &Path) -> std::io::Result<UnixStream> {
    let (_handle, path) = local::short_path(directory)?;
    UnixStream::connect(path).await
}

/// Checks whether the process on `directory` responds. A process that is stopped, or that has no file descriptor left,
/// lets clients connect but sends nothing.
async fn answers(directory: &Path) -> std::io::Result<()> {
    let asking = async {
        let mut stream = connect(directory).await?;
        // The status request never blocks on members: the index of a datastore may lag far behind its log.
        wire::send_json(&mut stream, Kind::AdminRequest, &Request::Status).await.map_err(std::io::Error::other)?;
        wire::read(&mut stream).await.map_err(std::io::Error::other).map(drop)
    };
    tokio::time::timeout(ANSWERING, asking).await.unwrap_or_else(|_| {
        let (path, s) = (directory.display(), ANSWERING.as_secs());
        let what = format!(
            "the process on {path} accepts connections but does not respond within {s} s; check its log, and whether \
             it is stopped, overloaded or out of file descriptors (LimitNOFILE)"
        );
        Err(std::io::Error::new(ErrorKind::TimedOut, what))
    })
}

/// Returns the identity in `directory` if its role has no replica; such a directory holds nothing else.
fn remote_identity(directory: &Path) -> Result<Option<Identity>, CtlError> {
    if !Identity::exists(directory) {
        return Ok(None);
    }
    let identity = Identity::load(directory).map_err(failed)?;
    Ok(Some(identity).filter(|identity| !identity.role().holds_replica()))
}

/// Returns whether requests for a directory can be served: by a process on it, or by the datastore of an identity
/// without a replica.
pub(crate) async fn is_served(directory: &Path) -> bool {
    matches!(remote_identity(directory), Ok(Some(_))) || answers(directory).await.is_ok()
}

/// Connects to the datastore of a member.
pub(crate) async fn dial(directory: &Path, identity: &Identity) -> Result<quinn::Connection, CtlError> {
    let connector = MemberConnector::new(directory, identity.addresses().to_vec());
    let dialing = tokio::time::timeout(STARTING, connector.connect());
    let (connection, _) = dialing.await.map_err(|_| failed("the datastore does not respond"))?.map_err(failed)?;
    Ok(connection)
}

/// Opens a directory without a running process; a replica's with or without its blobs. The flag of an error is true if
/// a process runs on it after all.
async fn serve_here(directory: &Path, access: Access, with_contents: bool) -> Result<Server, (CtlError, bool)> {
    let role = std::fs::read_to_string(directory.join("role")).unwrap_or_default();
    // If the role file is lost, other files identify the owner.
    let was_replicas = || Identity::exists(directory) || outbox_loss::is_replicas(directory).unwrap_or(false);
    let is_replica = role.trim() == "replica" || (role.is_empty() && was_replicas());
    if is_replica {
        let path = directory.to_owned();
        let opening = tokio::task::spawn_blocking(move || {
            let has_contents = with_contents && path.join(CHUNKS).is_dir();
            // If contents are requested, this process has just released the directory, so wait for it.
            let is_first = access == Access::Read && !with_contents;
            let patience = if is_first { Duration::ZERO } else { PATIENCE };
            let is_standalone = path.join(OWN_LOG).is_dir();
            let contents = has_contents.then(BlobOptions::default);
            let options = ReplicaOptions { patience, contents, access, is_standalone, ..ReplicaOptions::default() };
            Replica::open(&path, options)
        });
        return match opening.await.map_err(|error| (failed(error), false))? {
            Ok(replica) => Ok(Server::Replica(Box::new(replica))),
            Err(error @ replica::OpenError::Directory(DirectoryError::InUse { .. })) => Err((failed(error), true)),
            Err(error) if error.is_damage() => Err((damaged(error), false)),
            Err(error) => Err((failed(error), false)),
        };
    }
    if role.trim() != "datastore" {
        let path = directory.display();
        let message = format!("{path} is neither a datastore's nor a replica's directory; check --data-dir");
        return Err((failed(message), false));
    }
    let config = config_of(directory, None);
    let opened = match access {
        Access::Read => Datastore::open_to_read(config).await,
        _ => Datastore::open_offline(config).await,
    };
    match opened {
        Ok(datastore) => Ok(Server::Datastore(std::sync::Arc::new(datastore))),
        Err(error) => {
            let is_in_use = error.is_in_use();
            let exit = if error.is_damage() { damaged(error) } else { failed(error) };
            Err((exit, is_in_use))
        }
    }
}

/// Returns the configuration of the datastore in `directory`: the host's configuration file if it names this directory,
/// else the defaults.
fn config_of(directory: &Path, file: Option<&Path>) -> DatastoreConfig {
    let same = |other: &Path| match (other.canonicalize(), directory.canonicalize()) {
        (Ok(other), Ok(directory)) => other == directory,
        _ => other == directory,
    };
    match gravwell_config::load::<DatastoreConfig>(file) {
        Ok((config, _)) if same(&config.data_dir) => config,
        Ok(_) => DatastoreConfig::for_dir(directory),
        Err(error) => {
            complain!("gravwell-logctl: {error}; using the defaults");
            DatastoreConfig::for_dir(directory)
        }
    }
}

/// Decodes the frames of a piece without checking their chain.
pub(crate) fn entries(frames: &Bytes) -> Result<Vec<Entry>, CtlError> {
    decode_loose_frames(frames).map_err(damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn p15_a_process_is_reached_whatever_waits_within_it() {
        let temp = tempfile::tempdir().expect("temp dir");
        let listener = local::listen(temp.path()).expect("listens");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            // Every other request that needs the index waits forever.
            match gravwell_transport::answer::request(&mut stream, 1 << 16).await.expect("a request") {
                Request::Status => wire::send_json(&mut stream, Kind::AdminItem, &Status::default()).await,
                _ => std::future::pending().await,
            }
        });
        answers(temp.path()).await.expect("answers");
    }

    #[test]
    fn a_stopped_datastore_is_opened_as_its_configuration_says() {
        let temp = tempfile::tempdir().expect("temp dir");
        let (file, data) = (temp.path().join("gravwell.conf"), temp.path().join("d"));
        std::fs::create_dir(&data).expect("makes");
        let text = format!("[Global]\nDatastore-Data-Dir={}\nDatastore-Port=19405\n", data.display());
        std::fs::write(&file, text).expect("writes");
        assert_eq!(config_of(&data, Some(&file)).port, 19405);
        assert_eq!(config_of(temp.path(), Some(&file)).port, DatastoreConfig::for_dir(temp.path()).port, "another one");
        std::fs::write(&file, "[Global]\nDatastore-Port=many\n").expect("writes");
        assert_eq!(config_of(&data, Some(&file)).data_dir, data);
    }
}
