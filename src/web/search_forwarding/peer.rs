//! Forwarding of search requests to the webserver that holds the results, and serving of forwarded requests.
//!
//! The requesting peer is identified by its certificate, and only webservers are accepted. The peer states the user on
//! whose behalf it asks. This webserver looks the user up in its own state: whether they exist, are locked, and may see
//! the search.
//!
//! After the opening, the request is sent (length u32, JSON). The response is a head (length u32, JSON) and, for a file,
//! pieces (length u32, bytes) up to an empty one. A file that ends otherwise is incomplete; the requester detects this.

use std::io;
use std::sync::{LazyLock, Weak};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::StatusCode;
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};

use super::body::{Bytestream, To, hand_over, room, stream_of, with_room};
use super::perform::{Answer, Deed, Told, Who, perform};
use super::{author_via, found, is_open_to, owned};
use crate::admission;
use crate::app::{App, AppRef};
use crate::caller;
use crate::error::{ApiError, ApiResult};
use gravwell_model::codec::message::Open;
use gravwell_model::{MemberName, Seq};
use gravwell_objects::restores;
use gravwell_objects::searches::Search;
use gravwell_objects::sharing::Principal;
use gravwell_runtime::tasks::blocking;
use gravwell_runtime::tasks::shares::{Share, Shares};
use gravwell_transport::peer::{Handler, Peer, Serving};
use gravwell_transport::trust::Role;

/// Maximum size of a request: the longest one has notes of [`TEXT_CHARS_MAX`](gravwell_objects::names::TEXT_CHARS_MAX)
/// characters, each of up to six bytes in JSON.
const QUESTION_BYTES_MAX: usize = 512 << 10;
/// Maximum size of a head with a page of rows: twice the text of its rows, the last of which may be a large one.
const PAGE_BYTES_MAX: usize = 32 << 20;
/// Maximum size of any other head: a search with its notes and metadata.
const HEAD_BYTES_MAX: usize = 4 << 20;
/// Memory of heads from one webserver until they were answered to clients, in KiB.
const HEADS_KIB_FROM: usize = 64 << 10;
/// Maximum size of a received piece of a file, and of the pieces sent, each of which has a timeout.
const PIECE_BYTES_MAX: usize = 16 << 20;
const PART_BYTES: usize = 256 << 10;
/// Timeout for the head of a response; it bounds the wait for a killed peer, which is not noticed immediately.
const PATIENCE: Duration = Duration::from_secs(8);
/// The same timeout when results are saved.
const PATIENCE_SAVING: Duration = Duration::from_secs(300);
/// Time for which a responding webserver keeps the stream open until the response is acknowledged.
const LINGER: Duration = Duration::from_secs(300);
/// Timeout for sending a head or a piece: longer than the other side waits for its client.
const TAKEN_WITHIN: Duration = Duration::from_secs(90);
/// Timeout for a request.
const QUESTION: Duration = Duration::from_secs(10);
/// Longest wait until this replica has applied the position that the requester has seen.
const CATCH_UP: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize, Deserialize)]
struct ForwardRequest {
    /// User on whose behalf the request is made.
    uid: i32,
    /// Whether to act as an administrator; this side checks whether the user is one.
    as_admin: bool,
    from: String,
    /// Administrator who acts as this user; empty if none.
    #[serde(default)]
    su: String,
    search: String,
    /// Operation to perform.
    deed: Deed,
    /// Log position that the requester has applied.
    seen: Seq,
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    status: u16,
    error: String,
    value: Box<RawValue>,
    file: Option<(String, String)>,
}

async fn write<T: Serialize>(to: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    write_piece(to, &serde_json::to_vec(value)?).await
}

async fn write_piece(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes()).await?;
    to.write_all(bytes).await
}

async fn read_length(from: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<usize> {
    let length = from.read_u32_le().await? as usize;
    if length > bytes_max {
        return Err(io::Error::other("message too long"));
    }
    Ok(length)
}

async fn read_bytes(from: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<Vec<u8>> {
    // The buffer grows with the data that arrives.
    let mut bytes = Vec::with_capacity(length.min(64 << 10));
    (&mut *from).take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
}

async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<T> {
    let length = read_length(from, bytes_max).await?;
    Ok(serde_json::from_slice(&read_bytes(from, length).await?)?)
}

/// Reads a piece of a file for a user, reserving memory from the user's share of buffered data.
async fn read_piece(from: &mut (impl AsyncRead + Unpin), to: &To, uid: i32) -> io::Result<Bytes> {
    let length = read_length(from, PIECE_BYTES_MAX).await?;
    if length == 0 {
        return Ok(Bytes::new());
    }
    let room = room(to, uid, length).await?;
    Ok(with_room(read_bytes(from, length).await?, room))
}

fn away(search: &Search, reason: impl std::fmt::Display) -> ApiError {
    let name = &search.webserver;
    let message = format!(
        "the results of this search are stored at webserver {name}, which cannot be reached: {reason}; try again when \
         it is back online, and save results that you want to keep"
    );
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message).with("Webserver", name.as_str())
}

/// Maximum number of concurrent requests of one user to other webservers, except downloads: each of these has only so
/// many of one webserver under way.
const REQUESTS_OF_USER: usize = 4;
/// Limits of concurrent downloads from other webservers: per user, and from one webserver. The latter is half of the
/// streams that a connection allows, so that other requests still find one.
const DOWNLOADS_OF_USER: usize = 4;
const DOWNLOADS_FROM: usize = 32;
/// Longest wait for a download slot: many small downloads get their turn; behind a few large ones the request
/// is rejected.
const IN_LINE: Duration = Duration::from_secs(8);

static OF_USERS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, DOWNLOADS_OF_USER));
static REQUESTS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, REQUESTS_OF_USER));
static FROM_WEBSERVERS: LazyLock<Shares<String>> =
    LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, DOWNLOADS_FROM));

static HEADS: LazyLock<Shares<String>> = LazyLock::new(|| Shares::new(Semaphore::MAX_PERMITS, HEADS_KIB_FROM));

/// Reads a head as soon as there is memory for it: `from` has only so much of it.
async fn read_head(
    receive: &mut (impl AsyncRead + Unpin),
    bytes_max: usize,
    (heads, from): (&Shares<String>, &str),
) -> io::Result<(Head, Share)> {
    let length = read_length(receive, bytes_max).await?;
    // As received, and as its value.
    let kib = u32::try_from(2 * length / 1024 + 1).map_err(io::Error::other)?;
    let room = heads.take(Some(from.to_owned()), kib).await.map_err(io::Error::other)?;
    let bytes = read_bytes(receive, length).await?;
    Ok((blocking::run(|| serde_json::from_slice(&bytes))?, room))
}

/// Waits for one of the slots of a user.
async fn own_place(places: &Shares<i32>, who: &Who, most: usize, what: &str) -> ApiResult<Share> {
    let own = tokio::time::timeout(IN_LINE, places.take(Some(who.person.uid), 1)).await.map_err(|_| {
        let message = format!("{most} of your {what} other webservers are in progress; wait for one to finish");
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
    })?;
    own.map_err(ApiError::internal)
}

/// Waits for a download slot, which is held until the client has read the last piece.
async fn places(who: &Who, search: &Search) -> ApiResult<(Share, Share)> {
    let own = own_place(&OF_USERS, who, DOWNLOADS_OF_USER, "downloads from").await?;
    let from = tokio::time::timeout(IN_LINE, FROM_WEBSERVERS.take(Some(search.webserver.clone()), 1)).await;
    let from = from.map_err(|_| away(search, "too many downloads from it are in progress"))?;
    Ok((own, from.map_err(ApiError::internal)?))
}

/// Sends a request to the webserver that holds the results.
pub(super) async fn ask(app: &AppRef, who: &Who, search: &Search, deed: Deed) -> ApiResult<Answer> {
    let peers = app.peers.as_ref().ok_or_else(|| away(search, "this webserver runs in standalone mode"))?;
    // Acquired before the request is sent, so that waiting downloads occupy no streams.
    let (mut places_of_file, mut asking) = (None, None);
    match deed {
        Deed::Download { .. } => places_of_file = Some(places(who, search).await?),
        _ => asking = Some(own_place(&REQUESTS, who, REQUESTS_OF_USER, "requests to").await?),
    }
    let holder = MemberName::new(search.webserver.clone()).map_err(|error| away(search, error))?;
    let mut stream = peers.open(&holder, Open::Search).await.map_err(|error| away(search, error))?;
    let patience = if matches!(deed, Deed::Save(_)) { PATIENCE_SAVING } else { PATIENCE };
    let bytes_max = if matches!(deed, Deed::Rows { .. }) { PAGE_BYTES_MAX } else { HEAD_BYTES_MAX };
    let question = ForwardRequest {
        uid: who.person.uid,
        as_admin: who.person.admin,
        from: who.author.from.clone(),
        su: who.author.su.clone(),
        search: search.id.clone(),
        deed,
        seen: app.store.replica().status().seq,
    };
    let asked = async {
        write(&mut stream.send, &question).await?;
        read_head(&mut stream.receive, bytes_max, (&HEADS, &search.webserver)).await
    };
    let head = tokio::time::timeout(patience, asked).await.map_err(|_| away(search, "it does not respond"))?;
    let (head, room) = head.map_err(|error| away(search, error))?;
    drop(asking);
    if !head.error.is_empty() {
        let status = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
        return Err(ApiError::new(status, head.error));
    }
    let Some((kind, name)) = head.file else { return Ok(Answer::Value(Told::from_other(head.value, room))) };
    let (to, receiver) = mpsc::channel(1);
    let (holder, uid) = (search.webserver.clone(), who.person.uid);
    tokio::spawn(async move {
        let _places = places_of_file;
        loop {
            let piece = tokio::select! {
                piece = read_piece(&mut stream.receive, &to, uid) => piece,
                () = to.closed() => return,
            };
            let item =
                piece.map_err(|error| io::Error::other(format!("download from webserver {holder} failed: {error}")));
            let is_last = item.as_ref().map_or(true, Bytes::is_empty);
            if hand_over(&to, item).await.is_err() {
                return;
            }
            if is_last {
                // The slot is held until the client has read everything or given up.
                to.closed().await;
                return;
            }
        }
    });
    Ok(Answer::File { kind, name, body: stream_of(receiver) })
}

/// Limits for each webserver that asks, whatever users it names: requests under way; memory of requests and heads until
/// these were taken, in KiB; and downloads and savings, which last.
const QUESTIONS_FROM: usize = 32;
const MEMORY_KIB_FROM: usize = 96 << 10;
const LASTING_FROM: usize = DOWNLOADS_FROM + 16;
/// Memory of a page of rows, as JSON values and as text, and of any other request.
const ROWS_KIB: u32 = 8 << 10;
const OTHER_KIB: u32 = 1 << 10;

/// Shares of the work for other webservers. Requests of a webserver beyond its share wait, and delay no others.
struct Bounds {
    questions: Shares<MemberName>,
    memory: Shares<MemberName>,
    lasting: Shares<MemberName>,
    /// Longest wait for a share: as long as a webserver waits for an answer.
    patience: Duration,
}

impl Bounds {
    fn new(patience: Duration) -> Bounds {
        let of_each = |count| Shares::new(Semaphore::MAX_PERMITS, count);
        let (questions, memory, lasting) = (of_each(QUESTIONS_FROM), of_each(MEMORY_KIB_FROM), of_each(LASTING_FROM));
        Bounds { questions, memory, lasting, patience }
    }

    async fn share(&self, of: &Shares<MemberName>, asker: &MemberName, count: u32) -> io::Result<Share> {
        within(self.patience, async { of.take(Some(asker.clone()), count).await.map_err(io::Error::other) }).await
    }

    async fn question(&self, asker: &MemberName) -> io::Result<Share> {
        self.share(&self.questions, asker, 1).await
    }

    async fn memory(&self, asker: &MemberName, deed: &Deed) -> io::Result<Share> {
        let kib = if matches!(deed, Deed::Rows { .. }) { ROWS_KIB } else { OTHER_KIB };
        self.share(&self.memory, asker, kib).await
    }

    async fn lasting(&self, asker: &MemberName) -> io::Result<Share> {
        self.share(&self.lasting, asker, 1).await
    }
}

static BOUNDS: LazyLock<Bounds> = LazyLock::new(|| Bounds::new(PATIENCE));

async fn within<T>(time_max: Duration, done: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(time_max, done).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Handler of requests from other webservers.
pub(crate) struct Asked(pub Weak<App>);

impl Asked {
    async fn answer(&self, question: ForwardRequest) -> ApiResult<Answer> {
        let app = self.0.upgrade().ok_or_else(|| ApiError::internal("the webserver is stopping"))?;
        app.store.replica().barrier(question.seen, CATCH_UP).await;
        let (uid, as_admin, id) = (question.uid, question.as_admin, question.search.clone());
        let (person, user) = asker(&app, uid, as_admin)?;
        let who = Who { author: author_via(person.uid, user, &question.from, &question.su), person };
        let search = match question.deed.is_change() {
            true => owned(&app, &who, &question.search)?,
            false => found(&app, &who, &question.search)?,
        };
        // Results that are not here are not fetched from a third webserver: requests travel one hop.
        if !app.searches.is_here(&search) {
            return Err(ApiError::conflict(format!("the results are stored at webserver {}", search.webserver)));
        }
        Ok(match perform(&app, &who, search, question.deed).await? {
            Answer::File { kind, name, body } => {
                let may =
                    move |app: &App| asker(app, uid, as_admin).is_ok_and(|(person, _)| is_open_to(app, &person, &id));
                Answer::File { kind, name, body: Box::pin(admission::until(body, admission::unless(&app, may))) }
            }
            value => value,
        })
    }
}

/// Returns the user on whose behalf another webserver asks, from this webserver's state.
fn asker(app: &App, uid: i32, as_admin: bool) -> ApiResult<(Principal, String)> {
    let known = caller::known(&app.store, uid)?;
    let (person, user) = known.ok_or_else(|| ApiError::forbidden("the user is unknown to this webserver or locked"))?;
    let person = Principal { admin: person.admin && as_admin, ..person };
    if !person.admin && restores::is_unfinished(&app.store)? {
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, restores::SHUT));
    }
    Ok((person, user))
}

impl Handler for Asked {
    fn allows(&self, role: Role) -> bool {
        role == Role::Webserver
    }

    fn serve(&self, peer: Peer, mut send: quinn::SendStream, mut receive: quinn::RecvStream) -> Serving<'_> {
        Box::pin(async move {
            let mut under_way = Some(BOUNDS.question(&peer.name).await?);
            let question = within(QUESTION, read::<ForwardRequest>(&mut receive, QUESTION_BYTES_MAX)).await?;
            let memory = BOUNDS.memory(&peer.name, &question.deed).await?;
            let lasting = if question.deed.lasts() { Some(BOUNDS.lasting(&peer.name).await?) } else { None };
            if lasting.is_some() {
                under_way = None;
            }
            let mut head = Head { status: 200, error: String::new(), value: RawValue::NULL.to_owned(), file: None };
            let mut file: Option<Bytestream> = None;
            match self.answer(question).await {
                Err(error) => (head.status, head.error) = (error.status().as_u16(), error.message().to_owned()),
                Ok(Answer::Value(told)) => head.value = told.text,
                Ok(Answer::File { kind, name, body }) => (head.file, file) = (Some((kind, name)), Some(body)),
            }
            let written = serde_json::to_vec(&head).map_err(io::Error::from)?;
            drop(head);
            within(TAKEN_WITHIN, write_piece(&mut send, &written)).await?;
            drop((written, memory, under_way));
            if let Some(mut body) = file {
                while let Some(piece) = body.next().await {
                    // On an error the stream ends without the empty piece, so that the requester sees that the file
                    // is incomplete.
                    for part in piece?.chunks(PART_BYTES) {
                        within(TAKEN_WITHIN, write_piece(&mut send, part)).await?;
                    }
                }
                within(TAKEN_WITHIN, write_piece(&mut send, &[])).await?;
            }
            drop(lasting);
            let _ = send.finish();
            // The response is in flight; the requester closes the stream.
            let _ = tokio::time::timeout(LINGER, send.stopped()).await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::search_forwarding::Saving;
    use gravwell_objects::Timestamp;

    fn moment() -> Timestamp {
        Timestamp::from_ms(1_700_000_000_000)
    }

    /// Returns one request for each operation.
    fn questions() -> Vec<ForwardRequest> {
        let (format, now) = ("json".to_owned(), Some(moment()));
        let text = |text: &str| Some(text.to_owned());
        let saving = Saving {
            expires: moment(),
            started: now,
            method: text("GET"),
            reference: text("/api/searchctrl"),
            name: text("name"),
            notes: text("notes"),
        };
        let deeds = [
            Deed::Status,
            Deed::Rows { first: 300, count: 10, since: now, until: None },
            Deed::Download { format, since: None, until: now },
            Deed::Stop,
            Deed::Save(Box::new(saving)),
        ];
        let of = |deed| ForwardRequest {
            uid: 7,
            as_admin: true,
            from: "192.0.2.1".into(),
            su: "admin".into(),
            search: "42".into(),
            deed,
            seen: Seq(4711),
        };
        deeds.into_iter().map(of).collect()
    }

    fn heads() -> Vec<Head> {
        let of = |status, error: &str, value: serde_json::Value, file| Head {
            status,
            error: error.to_owned(),
            value: serde_json::value::to_raw_value(&value).expect("encodes"),
            file,
        };
        let file = Some(("application/json".to_owned(), "search.json".to_owned()));
        vec![
            of(200, "", serde_json::json!({ "Total": 1 }), None),
            of(409, "why", serde_json::Value::Null, None),
            of(200, "", serde_json::Value::Null, file),
        ]
    }

    /// Compares with golden files, as `tests/protocol` does with messages.
    async fn check<T: Serialize + DeserializeOwned>(name: &str, sent: &[T]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/wire/v1").join(name);
        let mut written = Vec::new();
        for value in sent {
            write(&mut written, value).await.expect("writes");
        }
        let released = match std::fs::read(&path) {
            Ok(released) => released,
            Err(_) if std::env::var_os("GOLDEN_CREATE").is_some() => {
                std::fs::write(&path, &written).expect("writes");
                written.clone()
            }
            Err(error) => panic!("{}: {error}", path.display()),
        };
        assert!(written == released, "encoding of {name} differs from the released one");
        let mut rest = released.as_slice();
        for value in sent {
            let found: T = read(&mut rest, PAGE_BYTES_MAX).await.expect("reads");
            let json = |value: &T| serde_json::to_value(value).expect("encodes");
            assert_eq!(json(&found), json(value));
        }
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn p15_a_question_is_as_long_as_its_notes_and_no_longer() {
        let notes = "\u{1}".repeat(gravwell_objects::names::TEXT_CHARS_MAX);
        let saving = Saving { notes: Some(notes), ..Saving::default() };
        let [mut longest, ..] = <[ForwardRequest; 5]>::try_from(questions()).expect("five");
        longest.deed = Deed::Save(Box::new(saving));
        let mut written = Vec::new();
        write(&mut written, &longest).await.expect("writes");
        assert!(read::<ForwardRequest>(&mut written.as_slice(), QUESTION_BYTES_MAX).await.is_ok());
        longest.search = "1".repeat(QUESTION_BYTES_MAX);
        let mut written = Vec::new();
        write(&mut written, &longest).await.expect("writes");
        assert!(read::<ForwardRequest>(&mut written.as_slice(), QUESTION_BYTES_MAX).await.is_err());
    }

    #[tokio::test]
    async fn p15_a_webserver_that_takes_no_answers_holds_its_share_for_a_time() {
        let soon = Duration::from_millis(20);
        let (bounds, [hostile, other]) =
            (Bounds::new(soon), ["a", "b"].map(|name| MemberName::new(name).expect("a name")));
        let rows = Deed::Rows { first: 0, count: 4096, since: None, until: None };
        let mut held = Vec::new();
        while let Ok(memory) = bounds.memory(&hostile, &rows).await {
            held.push(memory);
        }
        assert_eq!(held.len(), 12, "the limit applies to all users together");
        assert!(bounds.memory(&other, &rows).await.is_ok(), "another webserver has a separate limit");
        for _ in 0..QUESTIONS_FROM {
            held.push(bounds.question(&hostile).await.expect("is within the limit"));
        }
        assert!(bounds.question(&hostile).await.is_err() && bounds.question(&other).await.is_ok());
        for _ in 0..LASTING_FROM {
            held.push(bounds.lasting(&hostile).await.expect("is within the limit"));
        }
        assert!(bounds.lasting(&hostile).await.is_err() && bounds.lasting(&other).await.is_ok());
        held.clear();
        assert!(bounds.question(&hostile).await.is_ok() && bounds.memory(&hostile, &rows).await.is_ok());
        // Nothing is taken at the other end.
        let (mut send, _receive) = tokio::io::duplex(1000);
        let error = within(soon, write_piece(&mut send, &[7; 10_000])).await.expect_err("times out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn p15_heads_of_one_webserver_have_so_much_memory_and_are_not_decoded() {
        let value = format!("[{}0]", "{\"a\":0},".repeat(100_000));
        let value = RawValue::from_string(value).expect("JSON");
        let head = Head { status: 200, error: String::new(), value: value.clone(), file: None };
        let mut written = Vec::new();
        write(&mut written, &head).await.expect("writes");
        let heads = Shares::new(Semaphore::MAX_PERMITS, 3 * written.len() / 1024);
        let read = |from| read_head(&mut written.as_slice(), PAGE_BYTES_MAX, (&heads, from)).now_or_never();
        let (head, room) = read("a").expect("at once").expect("reads");
        assert_eq!(head.value.get(), value.get());
        assert!(read("a").is_none(), "waits until the first one was answered");
        assert!(read("b").is_some(), "another webserver has a separate limit");
        let told = Told::from_other(head.value, room);
        assert!(told.read::<crate::search_forwarding::Page>().is_err());
        drop(told);
        assert!(read("a").is_some());
        assert!(read_head(&mut written.as_slice(), 1000, (&heads, "c")).await.is_err());
    }

    #[tokio::test]
    async fn p12_questions_and_heads_are_written_and_read_as_released() {
        check("search-question.bin", &questions()).await;
        check("search-head.bin", &heads()).await;
    }
}
