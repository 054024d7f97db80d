//! Sources of chunks: the datastore while it is reachable, and other members.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use gravwell_model::codec::chunks::RequestedChunk;
use gravwell_model::codec::message::{Kind, Open, RefusalCode, Refused};
use gravwell_model::{ChunkId, MemberName};
use gravwell_transport::flow_control;
use gravwell_transport::transfer::{ChunkStream, Server, TransferError};
use gravwell_transport::trust::Role;
use gravwell_transport::wire::{self, WireError};

use super::super::shared::ReplicaRef;
use super::{BlobKeeper, locked};

/// Chunks in one request: a few megabytes.
pub(super) const GROUP: usize = 48;
/// Groups in progress at the same time.
pub(super) const AT_ONCE: usize = 3;
/// Longest wait for a stream to be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the connection, over all addresses.
const BULK_TIMEOUT: Duration = Duration::from_secs(15);

/// The connection to the datastore that carries only chunks, in both directions.
pub(super) struct Bulk {
    connection: quinn::Connection,
    /// Serves the datastore; ends with the connection.
    _giving: JoinSet<()>,
}

/// Serves streams on which the datastore requests chunks that it has lost, until the connection ends. Without a
/// `server`, at a member that keeps no blobs, they are refused, so that the datastore does not wait.
pub(crate) async fn give(
    server: Option<Server>,
    connection: &quinn::Connection,
) -> Result<std::convert::Infallible, quinn::ConnectionError> {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let (send, receive) = stream?;
                streams.spawn(give_on(server.clone(), send, receive));
            }
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn give_on(server: Option<Server>, mut send: quinn::SendStream, mut receive: quinn::RecvStream) {
    let open = timeout(OPEN_TIMEOUT, wire::expect::<Open, _>(&mut receive, Kind::Open)).await;
    if !matches!(open, Ok(Ok(Open::Chunks))) {
        return;
    }
    if let Some(server) = server {
        let _ = server.serve(&mut send, &mut receive).await;
        return;
    }
    let refused = Refused { code: RefusalCode::Forbidden, message: "this member stores no blobs".into() };
    if wire::send(&mut send, Kind::Refused, &refused).await.is_ok() && send.finish().is_ok() {
        // The stream stays open until the answer has been read.
        let _ = timeout(OPEN_TIMEOUT, send.stopped()).await;
    }
}

impl BlobKeeper {
    /// Opens a chunk stream to the datastore, on the connection for chunks.
    pub(super) async fn datastore_stream(&self, shared: &ReplicaRef) -> Result<ChunkStream, TransferError> {
        let away = |reason: String| TransferError::Away(reason);
        if !shared.link().connected {
            return Err(away("datastore is unreachable".into()));
        }
        let connection = self.bulk_connection().await?;
        let opening = async {
            let (mut send, receive) = connection.open_bi().await?;
            wire::send(&mut send, Kind::Open, &Open::Chunks).await?;
            Ok::<_, WireError>((send, receive))
        };
        let opened = timeout(OPEN_TIMEOUT, opening).await.map_err(|_| away("cannot open a stream".into()))?;
        let (send, receive) = opened?;
        Ok(ChunkStream::new(send, receive, self.store.clone(), self.limiter.clone(), ()))
    }

    async fn bulk_connection(&self) -> Result<quinn::Connection, TransferError> {
        let away = |reason: String| TransferError::Away(reason);
        let mut bulk = self.bulk.lock().await;
        if let Some(open) = bulk.as_ref().filter(|open| open.connection.close_reason().is_none()) {
            return Ok(open.connection.clone());
        }
        let connector = locked(&self.connector).clone().ok_or_else(|| away("not connected".into()))?;
        let connecting = timeout(BULK_TIMEOUT, connector.connect_bulk()).await;
        let connected = connecting.map_err(|_| away("no response from the datastore".into()))?;
        let connection = connected.map_err(|error| away(error.to_string()))?;
        let mut giving = JoinSet::new();
        let (server, given) = (self.server(), connection.clone());
        giving.spawn(async move {
            tokio::select! {
                Err(error) = give(Some(server), &given) => tracing::debug!(%error, "chunk connection closed"),
                never = flow_control::give_way(&given) => match never {},
            }
        });
        *bulk = Some(Bulk { connection: connection.clone(), _giving: giving });
        Ok(connection)
    }

    /// Closes the connection for chunks, because the datastore no longer responds.
    pub(crate) fn close_bulk(&self) {
        if let Ok(mut bulk) = self.bulk.try_lock()
            && let Some(open) = bulk.take()
        {
            open.connection.close(0u32.into(), b"no response from the datastore");
        }
    }

    /// Opens the connection for chunks unless it is open, while the datastore is connected.
    pub(super) async fn open_bulk(&self, shared: &ReplicaRef) {
        if shared.link().connected
            && let Err(error) = self.bulk_connection().await
        {
            tracing::debug!(%error, "failed to open the chunk connection");
        }
    }

    async fn peer_stream(&self, member: &MemberName) -> Result<ChunkStream, TransferError> {
        let peers = locked(&self.peers).clone().ok_or_else(|| TransferError::Away("no other members".into()))?;
        let opened = peers.open(member, Open::Chunks).await;
        let opened = opened.map_err(|error| TransferError::Away(error.to_string()))?;
        let (send, receive, kept) = opened.into_parts();
        Ok(ChunkStream::new(send, receive, self.store.clone(), self.limiter.clone(), kept))
    }

    /// Returns the other members that may have chunks, starting with a different one for each `turn`.
    fn givers(&self, turn: usize) -> Vec<MemberName> {
        let Some(peers) = locked(&self.peers).clone() else { return Vec::new() };
        let roster = peers.roster();
        let holds = |role| matches!(role, Role::Webserver | Role::Reader);
        let others = roster.members.iter().filter(|member| member.name != *peers.me() && holds(member.role));
        let mut names: Vec<MemberName> =
            others.filter(|member| !member.peer_addresses.is_empty()).map(|member| member.name.clone()).collect();
        let places = names.len().max(1);
        names.rotate_left(turn % places);
        names
    }

    /// Fetches chunks, several groups at a time. Returns those that neither the datastore nor an answering member has.
    pub(super) async fn bring(&self, shared: &ReplicaRef, wants: Vec<RequestedChunk>, is_urgent: bool) -> Vec<ChunkId> {
        let groups: Vec<Vec<RequestedChunk>> = wants.chunks(GROUP).map(<[RequestedChunk]>::to_vec).collect();
        let fetching = futures_util::stream::iter(groups.into_iter().enumerate())
            .map(|(turn, group)| self.fetch_group(shared, group, turn, is_urgent))
            .buffer_unordered(AT_ONCE);
        fetching.concat().await
    }

    async fn fetch_group(
        &self,
        shared: &ReplicaRef,
        group: Vec<RequestedChunk>,
        turn: usize,
        is_urgent: bool,
    ) -> Vec<ChunkId> {
        let mut left = group;
        if let Err(error) = self.fetch_from(self.datastore_stream(shared).await, &mut left, is_urgent).await {
            tracing::debug!(%error, "failed to fetch chunks from the datastore");
        }
        for member in self.givers(turn) {
            if left.is_empty() {
                break;
            }
            if let Err(error) = self.fetch_from(self.peer_stream(&member).await, &mut left, is_urgent).await {
                tracing::debug!(%member, %error, "failed to fetch chunks from a member");
            }
        }
        left.into_iter().map(|want| want.id).collect()
    }

    /// Fetches the chunks in `left` over one stream, and removes those that have arrived from it.
    async fn fetch_from(
        &self,
        stream: Result<ChunkStream, TransferError>,
        left: &mut Vec<RequestedChunk>,
        is_urgent: bool,
    ) -> Result<(), TransferError> {
        left.retain(|want| !self.store.contains(&want.id));
        if left.is_empty() {
            return Ok(());
        }
        let fetched = stream?.fetch(left.clone(), is_urgent).await;
        left.retain(|want| !self.store.contains(&want.id));
        fetched.map(|_| ())
    }
}
