//! Transfer of a complete state: sent row by row as of one point in time, and loaded into a new state, which is used only
//! if its digest matches the announced one.
//!
//! The datastore sends its state to a member to which it cannot send the missing log entries; a member donates its state
//! to a datastore that has lost its log.

use std::path::Path;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use gravwell_model::codec::deletions;
use gravwell_model::codec::message::{self, BadMessage, Kind, Open, Row, SnapshotBegin, SnapshotEnd};
use gravwell_model::fault_injection::{self, Bug};
use gravwell_model::{Deletions, Maker, Origin, OriginRow, Redaction, Withheld};
use gravwell_runtime::tasks::vital;
use gravwell_state::{Loader, Object, StateError, StateMeta, StateSnapshot, StateStore, Target, WithheldObject};

use super::wire::{self, WireError};

/// Approximate size in bytes of messages with rows.
const BATCH_BYTES: usize = 256 << 10;
/// Approximate overhead of a row in bytes.
const ROW_BYTES: usize = 64;
/// Maximum number of messages queued for the network.
const BATCHES_WAITING: usize = 4;
/// Maximum number of pieces queued for the disk.
const PIECES_WAITING: usize = 4;

/// Sends a state on a stream that was opened with `open`, without the values withheld by `redaction`, and finishes
/// the stream.
///
/// # Errors
/// If the state cannot be read or is itself redacted, or the stream breaks.
pub async fn send(
    snapshot: StateSnapshot,
    open: Open,
    redaction: Option<Redaction>,
    send: &mut quinn::SendStream,
) -> Result<(), WireError> {
    write(snapshot, open, redaction, send).await?;
    send.finish().map_err(std::io::Error::other)?;
    Ok(())
}

/// Like [`send`], for any stream, which is not finished.
///
/// # Errors
/// See [`send`].
pub async fn write<W: AsyncWrite + Unpin>(
    snapshot: StateSnapshot,
    open: Open,
    redaction: Option<Redaction>,
    send: &mut W,
) -> Result<(), WireError> {
    let meta = snapshot.meta().cloned().ok_or_else(|| std::io::Error::other("the state has no position"))?;
    if meta.is_redacted {
        return Err(std::io::Error::other(StateError::Redacted).into());
    }
    wire::send(send, Kind::SnapshotBegin, &begin(&meta)).await?;
    if matches!(open, Open::StateAndDeletions | Open::WholeState) {
        let deletions = snapshot.deletions().map_err(std::io::Error::other)?;
        wire::send_raw(send, Kind::Deletions, &deletions::encode(&deletions)).await?;
    }
    let (batches, mut ready) = mpsc::channel::<(u64, Vec<u8>)>(BATCHES_WAITING);
    let with_makers = open == Open::WholeState;
    let reading = tokio::task::spawn_blocking(move || read(&snapshot, with_makers, redaction, &batches));
    let mut rows = 0;
    while let Some((count, batch)) = ready.recv().await {
        rows += count;
        send.write_all(&batch).await?;
    }
    reading.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other)?;
    wire::send(send, Kind::SnapshotEnd, &end(&meta, rows)).await
}

/// Error that causes a received state to be discarded.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream failed.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The state is invalid, or could not be written.
    #[error("{0}")]
    Load(String),
}

/// Loads the state that follows `begin` on a stream into the new directory `path`. If `is_redacted`, values may
/// be withheld.
///
/// # Errors
/// If the stream breaks or the state does not match its announcement. The caller must remove the directory then.
pub async fn receive<R: AsyncRead + Unpin>(
    stream: &mut R,
    begin: SnapshotBegin,
    path: &Path,
    cache_bytes: u64,
    is_redacted: bool,
) -> Result<StateStore, ReceiveError> {
    let (pieces, incoming) = mpsc::channel::<Piece>(PIECES_WAITING);
    let path = path.to_owned();
    let loading = vital::spawn_blocking(move || load(&path, cache_bytes, &begin, is_redacted, incoming));
    let received = receive_pieces(stream, &pieces).await;
    drop(pieces);
    let loaded = loading.await.map_err(|error| ReceiveError::Load(error.to_string()))?;
    received?;
    loaded.map_err(ReceiveError::Load)
}

/// A part of a snapshot after its begin message.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Recent deletions; precede all rows.
    Deletions(Deletions),
    /// A batch of rows.
    Rows(Vec<Row>),
    /// End of the snapshot.
    End(SnapshotEnd),
}

/// A snapshot that is being loaded into a new state.
pub struct Loading {
    loader: Loader,
    target: Target,
    rows: u64,
    /// Row of an origin that may be continued by further parts.
    origin: Option<(Origin, OriginRow)>,
}

impl Loading {
    /// Starts to fill `store`, which must be new. If `is_redacted`, values may be withheld.
    ///
    /// # Errors
    /// If it is not new.
    pub fn begin(store: &StateStore, begin: &SnapshotBegin, is_redacted: bool) -> Result<Loading, String> {
        let mut loader = store.loader().map_err(|error| error.to_string())?;
        if is_redacted {
            loader.redact();
        }
        let target = Target {
            log_id: begin.position.log_id,
            generation: begin.position.generation,
            lineage: begin.lineage.clone(),
            seq: begin.position.seq,
            chain: begin.position.chain,
            time_ms: begin.time_ms,
            deletions_after: None,
            digest: Some(begin.position.digest),
        };
        Ok(Loading { loader, target, rows: 0, origin: None })
    }

    /// Loads recent deletions; at most once.
    ///
    /// # Errors
    /// If they arrive twice or cannot be written.
    pub fn deletions(&mut self, deletions: Deletions) -> Result<(), String> {
        if self.target.deletions_after.replace(deletions.complete_after()).is_some() {
            return Err("recent deletions were sent twice".into());
        }
        self.loader.deletions(deletions).map_err(|error| error.to_string())
    }

    /// Loads rows.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn rows(&mut self, rows: Vec<Row>) -> Result<(), String> {
        for row in rows {
            self.rows += 1;
            let result = match row {
                Row::Object { collection, key, version, time_ms, value } => {
                    self.loader.object(&collection, &key, &Object { version, time_ms, value })
                }
                Row::Origin { origin, row } => {
                    self.part(origin, row)?;
                    Ok(())
                }
                Row::Withheld { version, time_ms, object } => {
                    self.loader.withheld(&WithheldObject { version, time_ms, object })
                }
                Row::Maker { origin, maker } => {
                    self.maker(origin, &maker)?;
                    Ok(())
                }
            };
            result.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Collects the consecutive parts of a long row.
    fn part(&mut self, origin: Origin, row: OriginRow) -> Result<(), String> {
        match &mut self.origin {
            Some((open, whole)) if *open == origin => {
                whole.rejected.extend(row.rejected);
                Ok(())
            }
            _ => {
                self.flush_origin()?;
                self.origin = Some((origin, row));
                Ok(())
            }
        }
    }

    /// Loads the maker of the origin in the preceding row.
    fn maker(&mut self, origin: Origin, maker: &Maker) -> Result<(), String> {
        match &self.origin {
            Some((open, row)) if *open == origin && row.last_counter == maker.counter => {}
            _ => return Err(format!("the maker of origin {origin} does not follow its row")),
        }
        self.flush_origin()?;
        self.loader.maker(origin, maker).map_err(|error| error.to_string())
    }

    fn flush_origin(&mut self) -> Result<(), String> {
        match self.origin.take() {
            Some((origin, row)) => self.loader.origin(origin, &row).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Checks that the snapshot is complete and matches its announcement.
    ///
    /// # Errors
    /// Returns a description of the mismatch.
    pub fn finish(mut self, end: &SnapshotEnd) -> Result<StateStore, String> {
        self.flush_origin()?;
        if Some(end.digest) != self.target.digest {
            return Err("the digests at its start and end differ".into());
        }
        if end.rows != self.rows {
            return Err(format!("{} rows were sent, but {} arrived", end.rows, self.rows));
        }
        self.loader.finish(self.target).map_err(|error| error.to_string())
    }
}

/// Forwards pieces until the last one, or until the loader has failed.
async fn receive_pieces<R: AsyncRead + Unpin>(receive: &mut R, pieces: &mpsc::Sender<Piece>) -> Result<(), WireError> {
    loop {
        let (kind, body) = wire::read(receive).await?.ok_or(WireError::Closed)?;
        let piece = match kind {
            Kind::Deletions => {
                let decoded = deletions::decode(&body);
                Piece::Deletions(decoded.map_err(|reason| BadMessage::Body { kind, reason })?)
            }
            Kind::Rows => Piece::Rows(message::decode(kind, &body)?),
            Kind::SnapshotEnd => Piece::End(message::decode(kind, &body)?),
            Kind::Refused => {
                let refused: message::Refused = message::decode(kind, &body)?;
                return Err(refused.into());
            }
            found => {
                let expected = "Rows or SnapshotEnd";
                return Err(BadMessage::Unexpected { expected, found }.into());
            }
        };
        let is_last = matches!(piece, Piece::End(_));
        if pieces.send(piece).await.is_err() || is_last {
            return Ok(());
        }
    }
}

fn load(
    path: &Path,
    cache_bytes: u64,
    begin: &SnapshotBegin,
    is_redacted: bool,
    mut incoming: mpsc::Receiver<Piece>,
) -> Result<StateStore, String> {
    let store = StateStore::open(path, cache_bytes).map_err(|error| error.to_string())?;
    let mut loading = Loading::begin(&store, begin, is_redacted)?;
    while let Some(piece) = incoming.blocking_recv() {
        match piece {
            Piece::Deletions(deletions) => loading.deletions(deletions)?,
            Piece::Rows(rows) => loading.rows(rows)?,
            Piece::End(end) => return loading.finish(&end),
        }
    }
    Err("the stream ended early".into())
}

fn read(
    snapshot: &StateSnapshot,
    with_makers: bool,
    redaction: Option<Redaction>,
    batches: &mpsc::Sender<(u64, Vec<u8>)>,
) -> Result<(), StateError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut bytes = 0;
    let give = |rows: &mut Vec<Row>| {
        let count = rows.len() as u64;
        let sent = batches.blocking_send((count, message::encode(Kind::Rows, rows))).is_ok();
        rows.clear();
        sent
    };
    for row in rows_of(snapshot, with_makers, redaction) {
        let (row, size) = row?;
        rows.push(row);
        bytes += size;
        if bytes >= BATCH_BYTES {
            bytes = 0;
            if !give(&mut rows) {
                return Ok(());
            }
        }
    }
    if !rows.is_empty() {
        give(&mut rows);
    }
    Ok(())
}

/// Returns the first message of a snapshot, which announces it.
#[must_use]
pub fn begin(meta: &StateMeta) -> SnapshotBegin {
    SnapshotBegin {
        position: meta.position(),
        lineage: meta.lineage.clone(),
        time_ms: meta.time_ms,
        objects: meta.digests.collections.values().map(|sum| sum.objects).sum(),
        bytes: meta.digests.collections.values().map(|sum| sum.bytes).sum(),
    }
}

/// Returns the last message of a snapshot, without which an interrupted one is never accepted.
#[must_use]
pub fn end(meta: &StateMeta, rows: u64) -> SnapshotEnd {
    SnapshotEnd { rows, digest: meta.digest, chain: meta.chain }
}

/// Returns the rows of a snapshot, each with its approximate size in bytes, without the values withheld by `redaction`.
pub fn rows_of(
    snapshot: &StateSnapshot,
    with_makers: bool,
    redaction: Option<Redaction>,
) -> impl Iterator<Item = Result<(Row, usize), StateError>> + Send + use<> {
    let objects = snapshot.objects().map(move |row| {
        row.map(|(collection, key, object)| {
            let (version, time_ms, value) = (object.version, object.time_ms, object.value);
            if redaction.as_ref().is_some_and(|redaction| redaction.hides(&collection)) {
                let object = Withheld::of(collection, key, version, &value);
                let bytes = object.key.len() + ROW_BYTES + 32;
                return (Row::Withheld { version, time_ms, object }, bytes);
            }
            let bytes = key.len() + value.len() + ROW_BYTES;
            (Row::Object { collection, key, version, time_ms, value }, bytes)
        })
    });
    let origins = snapshot.origins().filter(|_| !fault_injection::is(Bug::SnapshotWithoutOrigins));
    let makers = snapshot.clone();
    objects.chain(origins.flat_map(move |row| match row {
        Ok((origin, row)) => {
            let parts = parts_of(row).into_iter().map(|(row, size)| Ok((Row::Origin { origin, row }, size)));
            let maker = if with_makers && !fault_injection::is(Bug::SnapshotWithoutMakers) {
                makers.maker(origin).transpose()
            } else {
                None
            };
            parts.chain(maker.map(|maker| Ok((Row::Maker { origin, maker: maker? }, ROW_BYTES)))).collect()
        }
        Err(error) => vec![Err(error)],
    }))
}

/// Splits a row into parts that fit into messages: each has some of the rejections, in their order.
fn parts_of(row: OriginRow) -> Vec<(OriginRow, usize)> {
    let OriginRow { last_counter, last_seq, rejected } = row;
    let empty = || OriginRow { last_counter, last_seq, rejected: Vec::new() };
    let mut parts = vec![(empty(), ROW_BYTES)];
    for rejection in rejected {
        let size = ROW_BYTES + rejection.2.to_string().len();
        if parts.last().is_some_and(|(_, bytes)| bytes + size > BATCH_BYTES) {
            parts.push((empty(), ROW_BYTES));
        }
        if let Some((part, bytes)) = parts.last_mut() {
            part.rejected.push(rejection);
            *bytes += size;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use gravwell_model::{
        Chain, Collection, Entry, EntryBody, Generation, Key, LogId, MemberName, Op, OriginCounter, Reason, Seq, Txn,
        TxnId,
    };

    /// Returns a state with one existing and one deleted object.
    fn state() -> StateStore {
        let state = StateStore::in_memory();
        state.init(LogId([1; 16]), Generation(1), Vec::new()).expect("begins");
        let (collection, key) = (Collection::new("c").expect("name"), |key| Key::new(key).expect("key"));
        let value = Bytes::from_static(b"1");
        let put = Op::Put { collection: collection.clone(), key: key("there"), value };
        let ops = vec![put, Op::Delete { collection, key: key("gone") }];
        let id = TxnId { origin: Origin([1; 16]), counter: OriginCounter(1) };
        let txn = Txn { id, settled: OriginCounter(0), time_ms: 0, note: Bytes::new(), conditions: Vec::new(), ops };
        let member = MemberName::new("m").expect("name");
        let entry = Entry { seq: Seq(1), time_ms: 1, member, body: EntryBody::Commit(txn) };
        state.apply(&[entry], Chain::default()).expect("applies");
        state
    }

    #[tokio::test]
    async fn p12_deletions_go_to_who_asks_for_them_and_to_no_other() {
        for (version, known_after, known) in [(1, Seq(1), 0), (2, Seq(0), 1), (3, Seq(0), 1)] {
            let (mut near, mut far) = tokio::io::duplex(1 << 20);
            let snapshot = state().snapshot().expect("a view");
            write(snapshot, Open::state(version), None, &mut near).await.expect("sends");
            let begin = wire::expect(&mut far, Kind::SnapshotBegin).await.expect("begins");
            let place = tempfile::tempdir().expect("temp dir");
            let received =
                receive(&mut far, begin, &place.path().join("state"), 8 << 20, false).await.expect("receives");
            assert_eq!(received.meta(), state().meta());
            let deletions = received.snapshot().expect("a view").deletions().expect("reads");
            assert_eq!((deletions.complete_after(), deletions.len()), (known_after, known), "version {version}");
            let made = state().maker(Origin([1; 16])).expect("reads").filter(|_| version >= 3);
            assert_eq!(received.maker(Origin([1; 16])).expect("reads"), made, "version {version}");
        }
    }

    #[test]
    fn a_row_with_many_rejections_goes_in_parts_that_fit() {
        let reason = Reason::LimitExceeded { message: "x".repeat(1000) };
        let rejected: Vec<_> = (1..=2000).map(|n| (OriginCounter(n), Seq(n), reason.clone())).collect();
        let row = OriginRow { last_counter: OriginCounter(3000), last_seq: Seq(9), rejected };
        let parts = parts_of(row.clone());
        assert!(parts.len() > 7, "{}", parts.len());
        assert!(parts.iter().all(|(part, bytes)| *bytes <= BATCH_BYTES && part.last_counter == row.last_counter));
        let joined: Vec<_> = parts.into_iter().flat_map(|(part, _)| part.rejected).collect();
        assert_eq!(joined, row.rejected);
        assert_eq!(parts_of(OriginRow::default()).len(), 1);
    }
}
