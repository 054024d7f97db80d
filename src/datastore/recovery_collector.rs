//! Collects the members' states while there is no log.
//!
//! Members keep connecting to the address of their datastore. Here they reach one that reports an empty log. They
//! reject it, change nothing, and donate their state on request. Every member is asked for the head of its state; the
//! rest is read from the chosen one only.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::codec::admin::{GenerationInfo, Request};
use crate::codec::message::{Hello, Kind, Open, SnapshotBegin, Welcome};
use crate::codec::report_limits::REPORT_BYTES_MAX;
use crate::config::datastore::DatastoreConfig;
use crate::env::{Entropy, SystemEntropy};
use crate::log::generations::KNOWN_MAX;
use crate::model::{Digest, Generation, LogId, MemberName, Position, Seq, Verdict};
use crate::protocol::session::common_version;
use crate::state::StateStore;
use crate::transport::admission::Admission;
use crate::transport::endpoint::{self, Arrival, ServerEndpoint};
use crate::transport::state_stream::{self, ReceiveError};
use crate::transport::wire;
use crate::trust::{
    Authorities, LEFT_ESCROWS_MAX, MemberState, Proof, Refusal, Registry, Role, SignedMark, TrustError, UsedRegister,
    member_in, tls,
};

use super::rebuild::DonorOffer;

/// Timeout for one answer of a member.
const ANSWER: Duration = Duration::from_secs(10);
/// Most positions that are accepted from one member.
const COPIES_MAX: usize = 8;

/// Error of collecting states from members.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The CA or the member registry cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The socket cannot be bound.
    #[error("cannot listen on {address}: {source}; stop the datastore first if it is running")]
    Listen {
        /// Listen address.
        address: std::net::SocketAddr,
        /// Underlying error.
        source: std::io::Error,
    },
    /// A member shows a member registry that the one in use lacks.
    #[error(
        "{lacking}: members revoked since then would be enrolled again; nothing was rebuilt. Run this command again with \
         `--authority FILE`, where FILE is identity/escrow of {member}, or one of the files identity/escrow.left-N there; \
         or use --earlier-copy to continue without that change, and revoke again the members that were revoked since"
    )]
    Lacking {
        /// Name of the member.
        member: MemberName,
        /// Description of the change.
        lacking: String,
    },
    /// No random bytes are available.
    #[error(transparent)]
    Random(std::io::Error),
    /// The state of the chosen member was not received completely.
    #[error("the state of {name} was not received completely: {reason}; try again")]
    Fetch {
        /// Name of the offer.
        name: String,
        /// Cause of the failure.
        reason: String,
    },
}

/// Name of a member, and the marks of the registries in its encrypted CA backups.
type ShownMarks = (MemberName, Vec<SignedMark>);

/// A member that has reported its position.
struct Heard {
    offer: DonorOffer,
    connection: quinn::Connection,
    /// The rest of its state, if the member donates it.
    rest: Option<(SnapshotBegin, quinn::RecvStream)>,
    /// Its records of how generations started.
    known: Vec<GenerationInfo>,
    /// Name of the member, and the marks of the registries in its encrypted CA backups.
    shown: ShownMarks,
    /// Control and request streams, held open.
    _streams: Vec<quinn::SendStream>,
}

/// The members that have reported a position.
pub struct Gathered {
    heard: BTreeMap<String, Heard>,
    refused: u64,
    endpoint: ServerEndpoint,
}

/// Listens at the datastore's address with the CA and registry in the directory `trust`. Returns when every enrolled
/// member that holds a state (or `expect` of them) has reported, or after `wait`. Calls `tell` for each offer.
///
/// `used`: the registry with which the marks of members are compared, unless the operator wants an earlier one.
///
/// # Errors
/// Returns an error if the registry or the CA cannot be opened, the address cannot be bound, or a member shows a change
/// that the registry lacks.
pub async fn gather(
    config: &DatastoreConfig,
    trust: &Path,
    wait: Duration,
    expect: Option<usize>,
    used: Option<&UsedRegister>,
    tell: &mut dyn FnMut(&DonorOffer),
) -> Result<Gathered, GatherError> {
    let now_ms = super::shared::now_ms();
    let registry = Registry::open(trust, now_ms)?;
    let authorities = Authorities::open_or_create(trust, now_ms)?;
    let is_expected =
        |member: &&crate::trust::Member| member.state == MemberState::Enrolled && member.role.holds_replica();
    let expected = expect.unwrap_or_else(|| registry.members().filter(is_expected).count());
    let address = config.listen_address();
    let server = tls::server_config(&authorities, &config.server_names, now_ms)?;
    let endpoint = endpoint::server(address, server, &authorities.current().reset_key())
        .map_err(|source| GatherError::Listen { address, source })?;
    let mut log_id = [0; 16];
    SystemEntropy.fill(&mut log_id).map_err(GatherError::Random)?;
    let registry = Arc::new(Mutex::new(registry));
    let admission = Admission::default();
    let mut heard = BTreeMap::new();
    let mut greeting = JoinSet::new();
    let mut deadline = Instant::now() + wait;
    let (mut refused, mut is_enough) = (0, expected == 0);
    // Whoever is being asked when all have reported may know more.
    while !is_enough || !greeting.is_empty() {
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => break,
            arrival = endpoint.accept(&admission), if !is_enough => {
                let Some(arrival) = arrival else { break };
                let registry = Arc::clone(&registry);
                greeting.spawn(async move { greet(arrival, &registry, LogId(log_id)).await });
            }
            Some(greeted) = greeting.join_next() => match greeted {
                Ok(Ok(mut member)) => {
                    if let Some(lacking) = used.and_then(|used| lacking(used, &member.shown, &authorities)) {
                        heard.insert(member.offer.name.clone(), member);
                        Gathered { heard, refused, endpoint }.close().await;
                        return Err(lacking);
                    }
                    member.offer.judge_proof(&authorities);
                    if let Some(offer) = keep(&mut heard, member) {
                        tell(offer);
                    }
                    if members(&heard) >= expected && !is_enough {
                        is_enough = true;
                        deadline = deadline.min(Instant::now() + ANSWER);
                    }
                }
                Ok(Err(NoOffer::Refused(reason, shown))) => {
                    refused += 1;
                    tracing::debug!(reason, "connection refused");
                    let shown = shown.as_ref().zip(used);
                    if let Some(lacking) = shown.and_then(|(shown, used)| lacking(used, shown, &authorities)) {
                        Gathered { heard, refused, endpoint }.close().await;
                        return Err(lacking);
                    }
                }
                Ok(Err(NoOffer::Other(reason))) => tracing::debug!(reason, "recovery connection failed"),
                Err(error) => tracing::debug!(%error, "handshake failed"),
            }
        }
    }
    Ok(Gathered { heard, refused, endpoint })
}

/// Returns the error if a member shows a change that the registry lacks. Only marks that the CA signed count.
fn lacking(used: &UsedRegister, (member, shown): &ShownMarks, authorities: &Authorities) -> Option<GatherError> {
    let mut lacking = shown.iter().filter_map(|shown| {
        let lacking = used.lacks(&shown.mark, member.as_str())?;
        shown.is_of(authorities).then_some(lacking)
    });
    Some(GatherError::Lacking { member: member.clone(), lacking: lacking.next()? })
}

/// Returns the number of members that have reported, counting copies of one member once.
fn members(heard: &BTreeMap<String, Heard>) -> usize {
    heard.values().map(|heard| &heard.offer.member).collect::<BTreeSet<_>>().len()
}

/// Adds a member's report. A second report with the same position replaces the earlier connection. A different position
/// comes from a copy of the member's directory and is kept as an additional offer. Returns `None` if the member has too
/// many copies.
fn keep(heard: &mut BTreeMap<String, Heard>, mut member: Heard) -> Option<&DonorOffer> {
    let place = |offer: &DonorOffer| (offer.log_id, offer.generation, offer.seq, offer.digest);
    let mut copies = 0;
    let mut name = None;
    for earlier in heard.values().map(|heard| &heard.offer).filter(|offer| offer.member == member.offer.member) {
        copies += 1;
        if place(earlier) == place(&member.offer) {
            name = Some(earlier.name.clone());
        }
    }
    if let Some(name) = name {
        member.offer.name = name;
    } else if copies >= COPIES_MAX {
        return None;
    } else if copies > 0 {
        member.offer.distinguish(format_args!("copy {}", copies + 1));
    }
    let name = member.offer.name.clone();
    heard.insert(name.clone(), member);
    heard.get(&name).map(|heard| &heard.offer)
}

/// Reason why a connection yielded no offer.
enum NoOffer {
    /// The member is not in the registry or was revoked, according to a copy that may be too old. With what it has shown.
    Refused(String, Option<ShownMarks>),
    /// The connection failed, or the client has no state to offer.
    Other(String),
}

impl From<String> for NoOffer {
    fn from(reason: String) -> Self {
        NoOffer::Other(reason)
    }
}

async fn greet(arrival: Arrival, registry: &Mutex<Registry>, log_id: LogId) -> Result<Heard, NoOffer> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (connection, turn) = arrival.handshake().await.map_err(|error| text(&error))?;
    let refuse = |reason: String| {
        connection.close(3u32.into(), reason.as_bytes());
        reason
    };
    if endpoint::is_join(&connection) {
        return Err(refuse("the datastore is being recovered; join when it is online again".into()).into());
    }
    let certificate = endpoint::peer_certificate(&connection).unwrap_or_default();
    let authorised = {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.authorise(&certificate, super::shared::now_ms())
    };
    let (name, role) = match authorised {
        Ok(authorised) => authorised,
        Err(refusal) => {
            drop(turn);
            let shown = match (&refusal, member_in(&certificate)) {
                (Refusal::Unknown | Refusal::Revoked(_), Some(name)) => {
                    timeout(2 * ANSWER, marks_of(&connection, name, log_id)).await.ok().and_then(Result::ok)
                }
                _ => None,
            };
            return Err(NoOffer::Refused(refuse(refusal.to_string()), shown));
        }
    };
    if !role.holds_replica() {
        return Err(refuse("the datastore is being recovered; try again when it is online".into()).into());
    }
    drop(turn);
    endpoint::trusted(&connection);
    let asked = async {
        let (mut send, mut receive) = control(&connection).await?;
        ask(&connection, &name, role, &mut send, &mut receive, log_id).await.map(|heard| (heard, send))
    };
    let (mut heard, send) = timeout(3 * ANSWER, asked).await.map_err(|error| refuse(text(&error)))?.map_err(refuse)?;
    heard._streams.push(send);
    Ok(heard)
}

/// Asks a member that is not accepted for the marks of its registries. It may have joined after the copy that is used was
/// made; the marks are signed.
async fn marks_of(connection: &quinn::Connection, name: MemberName, log_id: LogId) -> Result<ShownMarks, String> {
    let (mut send, mut receive) = control(connection).await?;
    welcome(&name, Role::Reader, &mut send, &mut receive, log_id).await?;
    let shown = marks(connection).await?;
    Ok((name, shown))
}

/// Accepts the control stream, which the member opens first.
async fn control(connection: &quinn::Connection) -> Result<(quinn::SendStream, quinn::RecvStream), String> {
    let (send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    match wire::expect_at_most::<Open, _>(&mut receive, Kind::Open, REPORT_BYTES_MAX).await {
        Ok(Open::Control) => Ok((send, receive)),
        Ok(_) => Err("the datastore is being recovered".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads a member's position, and tells it that the log is empty. From then on it answers requests.
async fn welcome(
    name: &MemberName,
    role: Role,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
    log_id: LogId,
) -> Result<(Position, u16), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let hello = wire::expect_at_most::<Hello, _>(receive, Kind::Hello, REPORT_BYTES_MAX);
    let hello = hello.await.map_err(|error| text(&error))?;
    hello.check().map_err(|refused| text(&refused))?;
    let position = hello.position.ok_or("the datastore is being recovered, and this member has no state")?;
    let limits = crate::model::Limits::default();
    let welcome = Welcome {
        version: common_version(&hello).map_err(|refused| text(&refused))?,
        software: format!("gravwell {}", env!("CARGO_PKG_VERSION")),
        member: name.to_string(),
        role: role.to_string(),
        log_id,
        generation: Generation(1),
        lineage: Vec::new(),
        head: Seq::ZERO,
        horizon: Seq::ZERO,
        verdict: Some(Verdict::Empty),
        heartbeat_ms: 5000,
        txn_bytes_max: limits.txn_bytes_max as u64,
        value_bytes_max: limits.value_bytes_max as u64,
        key_bytes_max: limits.key_bytes_max as u64,
    };
    wire::send(send, Kind::Welcome, &welcome).await.map_err(|error| text(&error))?;
    Ok((position, welcome.version))
}

async fn ask(
    connection: &quinn::Connection,
    name: &MemberName,
    role: Role,
    send: &mut quinn::SendStream,
    receive: &mut quinn::RecvStream,
    log_id: LogId,
) -> Result<Heard, String> {
    let (position, version) = welcome(name, role, send, receive, log_id).await?;
    let mut offer = DonorOffer {
        name: name.to_string(),
        member: name.to_string(),
        log_id: position.log_id,
        generation: position.generation,
        lineage: Vec::new(),
        seq: position.seq,
        digest: position.digest,
        time_ms: 0,
        objects: 0,
        role: Some(role),
        reserve: None,
        proof: None,
        unfit: None,
    };
    // Requested before the state, which may take long. Members of earlier versions do not answer.
    let known = timeout(ANSWER, generations(connection)).await.unwrap_or_else(|error| Err(error.to_string()));
    let known = known.unwrap_or_else(|reason| {
        tracing::debug!(%name, reason, "member did not report why generations started");
        Vec::new()
    });
    let proof = timeout(ANSWER, proof(connection)).await.unwrap_or_else(|error| Err(error.to_string()));
    offer.proof = proof.unwrap_or_else(|reason| {
        tracing::debug!(%name, reason, "member did not report the last signed position");
        None
    });
    let shown = timeout(ANSWER, marks(connection)).await.unwrap_or_else(|error| Err(error.to_string()));
    let shown = shown.unwrap_or_else(|reason| {
        tracing::warn!(%name, reason, "member did not report its member registries, which may have later revocations");
        Vec::new()
    });
    let lent = timeout(ANSWER, borrow(connection, Open::state(version)))
        .await
        .unwrap_or_else(|_| Err("it does not respond".into()));
    let (rest, streams) = match lent {
        Ok((begin, send, receive)) => {
            (offer.lineage, offer.time_ms, offer.objects) = (begin.lineage.clone(), begin.time_ms, begin.objects);
            (offer.seq, offer.digest, offer.generation) =
                (begin.position.seq, begin.position.digest, begin.position.generation);
            (Some((begin, receive)), vec![send])
        }
        Err(reason) => {
            let how = "stop it and pass its directory with --from";
            offer.unfit = Some(format!("it does not donate its state ({reason}); upgrade it, or {how}"));
            (None, Vec::new())
        }
    };
    let (shown, connection) = ((name.clone(), shown), connection.clone());
    Ok(Heard { offer, connection, rest, known, shown, _streams: streams })
}

/// Requests a member's records of how generations started.
async fn generations(connection: &quinn::Connection) -> Result<Vec<GenerationInfo>, String> {
    request_all(connection, &Request::Generations, KNOWN_MAX).await
}

/// Requests the last signed position that a member has. Its signature is not verified here.
async fn proof(connection: &quinn::Connection) -> Result<Option<Proof>, String> {
    Ok(request_all(connection, &Request::Proof, 1).await?.pop())
}

/// Requests the marks of the registries in a member's encrypted CA backups. Their signatures are not verified here.
async fn marks(connection: &quinn::Connection) -> Result<Vec<SignedMark>, String> {
    request_all(connection, &Request::Escrow { known: None, seen: None }, 1 + LEFT_ESCROWS_MAX).await
}

/// Returns the first items, at most `most`, of a member's answer to a request.
async fn request_all<T: serde::de::DeserializeOwned>(
    connection: &quinn::Connection,
    request: &Request,
    most: usize,
) -> Result<Vec<T>, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| text(&error))?;
    wire::send(&mut send, Kind::Open, &Open::Admin).await.map_err(|error| text(&error))?;
    wire::send_json(&mut send, Kind::AdminRequest, request).await.map_err(|error| text(&error))?;
    let mut known = Vec::new();
    while known.len() < most {
        match wire::read(&mut receive).await.map_err(|error| text(&error))? {
            Some((Kind::AdminItem, body)) => known.push(serde_json::from_slice(&body).map_err(|error| text(&error))?),
            Some((Kind::AdminEnd, _)) => return Ok(known),
            Some((kind, _)) => return Err(format!("it replied with {kind:?}")),
            None => return Err("the stream ended".into()),
        }
    }
    Ok(known)
}

async fn borrow(
    connection: &quinn::Connection,
    open: Open,
) -> Result<(SnapshotBegin, quinn::SendStream, quinn::RecvStream), String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    wire::send(&mut send, Kind::Open, &open).await.map_err(|error| error.to_string())?;
    let begin = wire::expect(&mut receive, Kind::SnapshotBegin).await.map_err(|error| error.to_string())?;
    Ok((begin, send, receive))
}

impl Gathered {
    /// Returns the number of connections refused because the registry does not know or has revoked the certificate.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Returns the members' records of how generations of the log started.
    #[must_use]
    pub fn known(&self, log_id: LogId) -> Vec<GenerationInfo> {
        let of_log = self.heard.values().filter(|heard| heard.offer.log_id == log_id);
        of_log.flat_map(|heard| heard.known.clone()).collect()
    }

    /// Returns the offer of each member.
    #[must_use]
    pub fn offers(&self) -> Vec<DonorOffer> {
        self.heard.values().map(|heard| heard.offer.clone()).collect()
    }

    /// Fetches the state of one member into the new directory `side`.
    ///
    /// # Errors
    /// Returns an error if the state is incomplete or its digest differs from the announced one.
    pub async fn fetch(&mut self, name: &str, side: &Path, cache_bytes: u64) -> Result<StateStore, GatherError> {
        let failed = |reason: String| GatherError::Fetch { name: name.to_owned(), reason };
        let rest = self.heard.get_mut(name).and_then(|heard| heard.rest.take());
        let (begin, mut receive) = rest.ok_or_else(|| failed("it offered no state".into()))?;
        let announced: Digest = begin.position.digest;
        let fetched = state_stream::receive(&mut receive, begin, side, cache_bytes, false).await;
        let state = fetched.map_err(|error: ReceiveError| failed(error.to_string()))?;
        match state.meta() {
            Some(meta) if meta.digest == announced => Ok(state),
            _ => Err(failed("its digest differs from the announced one".into())),
        }
    }

    /// Closes the connections to the members.
    pub async fn close(self) {
        for heard in self.heard.values() {
            heard.connection.close(0u32.into(), b"the datastore is being recovered");
        }
        self.endpoint.close(b"the datastore is being recovered");
        let _ = timeout_at(Instant::now() + Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}
