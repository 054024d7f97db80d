//! Collects the members' states while there is no log.
//!
//! Members keep connecting to the address of their datastore. Here they reach one that reports an empty log. They
//! reject it, change nothing, and donate their state on request. Every member is asked for the head of its state; the
//! rest is read from the chosen one only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use gravwell_config::datastore::DatastoreConfig;
use gravwell_env::{Entropy, SystemEntropy};
use gravwell_log::generations::KNOWN_MAX;
use gravwell_model::codec::admin::{AdminError, GenerationInfo, Request};
use gravwell_model::codec::message::{Hello, Kind, Open, SnapshotBegin, Welcome};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::{Digest, Generation, LogId, MemberName, Position, Seq, Verdict};
use gravwell_protocol::session::common_version;
use gravwell_state::StateStore;
use gravwell_transport::admission::Admission;
use gravwell_transport::endpoint::{self, Arrival, ServerEndpoint};
use gravwell_transport::state_stream::{self, ReceiveError};
use gravwell_transport::trust::{
    Authorities, LEFT_ESCROWS_MAX, MemberState, Proof, Refusal, Registry, Role, SignedMark, TrustError, UsedRegister,
    authority_name, member_in, tls,
};
use gravwell_transport::wire;

use super::rebuild::DonorOffer;

/// Timeout for one answer of a member.
const ANSWER: Duration = Duration::from_secs(10);
/// How long connections are accepted after all members in the registry have reported, for a member that it does not know
/// yet. It may have last tried up to 8 s ago, by its retransmissions, and waits up to 5 s before the next attempt.
const LATE: Duration = Duration::from_secs(15);
/// Most characters of a reason that a member gives.
const REASON_CHARS_MAX: usize = 500;
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
         the recovery key and `--authority FILE`, where FILE is identity/escrow of {member}, or one of the files \
         identity/escrow.left-N there; or use --earlier-copy to continue without that change, and revoke again the \
         members that were revoked since"
    )]
    Lacking {
        /// Name of the member.
        member: MemberName,
        /// Description of the change.
        lacking: String,
    },
    /// A member did not report all of its member registries, so that a later one may be among them.
    #[error(
        "{unread}; nothing was rebuilt, because it may be the latest one. Make the file readable, or remove it if you do \
         not need it; or use --earlier-copy to continue without it, which goes on also if members show later registries, \
         and revoke again the members that were revoked since"
    )]
    Unread {
        /// Description of the member and its reason.
        unread: String,
    },
    /// A client is of a CA that is unknown here, which may be a later one of this datastore.
    #[error(
        "a client at {from} has a certificate of a CA that is unknown here, or does not trust the CA {authority}, which is \
         used; nothing was rebuilt: if it is a member, that CA was rotated since, and members revoked since then would be \
         enrolled again. Run this command again with the recovery key and `--authority FILE`, where FILE is \
         identity/escrow of that member; or, if it is no member or has no later CA backup, use --earlier-copy to \
         continue without it, which goes on also if members show later registries, and revoke again the members that \
         were revoked since"
    )]
    Foreign {
        /// Address of the client.
        from: IpAddr,
        /// Name of the CA that is used.
        authority: String,
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

/// Marks of the registries in the encrypted CA backups of a member, as far as it has shown them.
struct Shown {
    member: MemberName,
    marks: Vec<SignedMark>,
    /// Description of why others may be missing.
    unread: Option<String>,
    /// Whether the registry in use does not say that the member was revoked. The word of one that was revoked stops no
    /// recovery.
    is_believed: bool,
}

/// A member that has reported its position.
struct Heard {
    offer: DonorOffer,
    connection: quinn::Connection,
    /// The rest of its state, if the member donates it.
    rest: Option<(SnapshotBegin, quinn::RecvStream)>,
    /// Its records of how generations started.
    known: Vec<GenerationInfo>,
    /// Control and request streams, held open.
    _streams: Vec<quinn::SendStream>,
}

/// The members that have reported a position.
pub struct Gathered {
    heard: BTreeMap<String, Heard>,
    refused: u64,
    foreign: u64,
    unread: BTreeMap<MemberName, String>,
    lacking: BTreeMap<MemberName, String>,
    endpoint: ServerEndpoint,
}

/// Listens at the datastore's address with the CA and registry in the directory `trust`. Returns when every enrolled
/// member that holds a state (or `expect` of them) has reported, or after `wait`. Calls `tell` for each offer.
///
/// `used`: the registry with which the marks of members are compared, and whether the operator wants it although it may
/// lack changes: then whatever shows that is returned. Members that the registry does not know are awaited for some more
/// time, unless `expect` says how many there are.
///
/// # Errors
/// Returns an error if the registry or the CA cannot be opened, the address cannot be bound, a member shows a change
/// that the registry lacks or may have one that it does not show, or a client is of a CA that is unknown here.
pub async fn gather(
    config: &DatastoreConfig,
    trust: &Path,
    wait: Duration,
    expect: Option<usize>,
    used: Option<(&UsedRegister, bool)>,
    tell: &mut dyn FnMut(&DonorOffer),
) -> Result<Gathered, GatherError> {
    let now_ms = super::shared::now_ms();
    let registry = Registry::open(trust, now_ms)?;
    let authorities = Authorities::open_or_create(trust, now_ms)?;
    let is_expected = |member: &&gravwell_transport::trust::Member| {
        member.state == MemberState::Enrolled && member.role.holds_replica()
    };
    let expected = expect.unwrap_or_else(|| registry.members().filter(is_expected).count());
    let address = config.listen_address();
    let server = tls::server_config(&authorities, &config.server_names, now_ms)?;
    let endpoint = endpoint::server(address, server, &authorities.current().reset_key())
        .map_err(|source| GatherError::Listen { address, source })?;
    let mut log_id = [0; 16];
    SystemEntropy.fill(&mut log_id).map_err(GatherError::Random)?;
    let registry = Arc::new(Mutex::new(registry));
    let admission = Admission::default();
    let (mut heard, mut unread, mut lacking) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let is_wanted = used.is_some_and(|(_, is_wanted)| is_wanted);
    // A proof that comes later says more.
    let mut unproven = None;
    let mut greeting = JoinSet::new();
    let mut deadline = Instant::now() + wait;
    let late = if expect.is_none() && used.is_some() { LATE } else { Duration::ZERO };
    let (mut refused, mut foreign, mut accepted_until) = (0, 0, None);
    loop {
        if accepted_until.is_none() && members(&heard) >= expected {
            let until = Instant::now() + late;
            accepted_until = Some(until);
            deadline = deadline.min(until + ANSWER);
        }
        let is_late = accepted_until.is_some_and(|until| Instant::now() >= until);
        // A member closes a connection over which nothing is requested for a while, and connects again.
        let is_lost = heard.values().any(|heard: &Heard| heard.connection.close_reason().is_some());
        let is_accepting = !is_late || is_lost;
        // Whoever is being asked when all have reported may know more.
        if !is_accepting && greeting.is_empty() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => break,
            () = tokio::time::sleep_until(accepted_until.unwrap_or(deadline)), if !is_late => {}
            arrival = endpoint.accept(&admission), if is_accepting => {
                let Some(arrival) = arrival else { break };
                let registry = Arc::clone(&registry);
                greeting.spawn(async move { greet(arrival, &registry, LogId(log_id)).await });
            }
            Some(greeted) = greeting.join_next() => match greeted {
                Ok(Greeted { shown, offer }) => {
                    if let Some((shown, (used, _))) = shown.as_ref().zip(used)
                        && let Some(what) = lacks(used, shown, &authorities)
                    {
                        lacking.insert(shown.member.clone(), what);
                    }
                    if let Some(Shown { member, unread: Some(why), is_believed, .. }) = shown {
                        if is_believed {
                            unproven.get_or_insert(GatherError::Unread { unread: why.clone() });
                        }
                        unread.insert(member, why);
                    }
                    match offer {
                        Ok(mut member) => {
                            member.offer.judge_proof(&authorities);
                            if let Some(offer) = keep(&mut heard, member) {
                                tell(offer);
                            }
                        }
                        Err(NoOffer::Refused(reason)) => {
                            refused += 1;
                            tracing::debug!(reason, "connection refused");
                        }
                        // Its CA may be a later one. A mark that it shows could not be verified.
                        Err(NoOffer::Foreign(from)) => {
                            foreign += 1;
                            let authority = authority_name(&authorities.current().fingerprint());
                            unproven.get_or_insert(GatherError::Foreign { from, authority });
                        }
                        Err(NoOffer::Other(reason)) => tracing::debug!(reason, "recovery connection failed"),
                    }
                    if !lacking.is_empty() && !is_wanted {
                        break;
                    }
                }
                Err(error) => tracing::debug!(%error, "handshake failed"),
            }
        }
    }
    let proven = lacking.first_key_value().map(|(member, lacking)| {
        let (member, lacking) = (member.clone(), lacking.clone());
        GatherError::Lacking { member, lacking }
    });
    let gathered = Gathered { heard, refused, foreign, unread, lacking, endpoint };
    match proven.or(unproven).filter(|_| used.is_some() && !is_wanted) {
        None => Ok(gathered),
        Some(doubt) => {
            gathered.close().await;
            Err(doubt)
        }
    }
}

/// Describes the change that a member shows and the registry lacks, if there is one. Only marks that the CA signed count.
fn lacks(used: &UsedRegister, shown: &Shown, authorities: &Authorities) -> Option<String> {
    let Shown { member, marks, .. } = shown;
    let mut lacking = marks.iter().filter_map(|shown| {
        let lacking = used.lacks(&shown.mark, member.as_str())?;
        authorities.have_signed(shown).then_some(lacking)
    });
    lacking.next()
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
    /// The member is not in the registry or was revoked, according to a copy that may be too old.
    Refused(String),
    /// The CA of one side is unknown to the other one.
    Foreign(IpAddr),
    /// The connection failed, or the client has no state to offer.
    Other(String),
}

impl From<String> for NoOffer {
    fn from(reason: String) -> Self {
        NoOffer::Other(reason)
    }
}

/// Result of a connection.
struct Greeted {
    /// `None` if the member was not asked.
    shown: Option<Shown>,
    offer: Result<Heard, NoOffer>,
}

async fn greet(arrival: Arrival, registry: &Mutex<Registry>, log_id: LogId) -> Greeted {
    let mut shown = None;
    let offer = offer_of(arrival, registry, log_id, &mut shown).await;
    Greeted { shown, offer }
}

async fn offer_of(
    arrival: Arrival,
    registry: &Mutex<Registry>,
    log_id: LogId,
    shown: &mut Option<Shown>,
) -> Result<Heard, NoOffer> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let from = arrival.from.ip();
    let (connection, turn) = arrival.handshake().await.map_err(|error| match error.is_unknown_authority() {
        true => NoOffer::Foreign(from),
        false => NoOffer::Other(text(&error)),
    })?;
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
            if let (Refusal::Unknown | Refusal::Revoked(_), Some(name)) = (&refusal, member_in(&certificate)) {
                let shown = shown.insert(Shown::of(&name, matches!(refusal, Refusal::Unknown)));
                if let Ok(Err(reason)) = timeout(2 * ANSWER, ask_refused(&connection, &name, log_id, shown)).await {
                    tracing::debug!(%name, reason, "failed to ask for member registries");
                }
            }
            return Err(NoOffer::Refused(refuse(refusal.to_string())));
        }
    };
    if !role.holds_replica() {
        return Err(refuse("the datastore is being recovered; try again when it is online".into()).into());
    }
    drop(turn);
    endpoint::trusted(&connection);
    let shown = shown.insert(Shown::of(&name, true));
    let asked = async {
        let (mut send, mut receive) = control(&connection).await?;
        ask(&connection, (&name, role), (&mut send, &mut receive), log_id, shown).await.map(|heard| (heard, send))
    };
    let (mut heard, send) = timeout(3 * ANSWER, asked).await.map_err(|error| refuse(text(&error)))?.map_err(refuse)?;
    heard._streams.push(send);
    Ok(heard)
}

/// Asks a member that is not accepted for the marks of its registries. It may have joined after the copy that is used was
/// made; the marks are signed.
async fn ask_refused(
    connection: &quinn::Connection,
    name: &MemberName,
    log_id: LogId,
    shown: &mut Shown,
) -> Result<(), String> {
    let (mut send, mut receive) = control(connection).await?;
    welcome(name, Role::Reader, &mut send, &mut receive, log_id).await?;
    shown.ask(connection).await
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
    let limits = gravwell_model::Limits::default();
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
    (name, role): (&MemberName, Role),
    (send, receive): (&mut quinn::SendStream, &mut quinn::RecvStream),
    log_id: LogId,
    shown: &mut Shown,
) -> Result<Heard, String> {
    let (position, version) = welcome(name, role, send, receive, log_id).await?;
    shown.ask(connection).await?;
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
    let mut known = Vec::new();
    if let Err(reason) = request_all(connection, &Request::Generations, KNOWN_MAX, &mut known).await {
        tracing::debug!(%name, %reason, "member did not report why generations started");
        known.clear();
    }
    // Its signature is verified later.
    let mut proof: Vec<Proof> = Vec::new();
    if let Err(reason) = request_all(connection, &Request::Proof, 1, &mut proof).await {
        tracing::debug!(%name, %reason, "member did not report the last signed position");
    }
    offer.proof = proof.pop();
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
    Ok(Heard { offer, connection: connection.clone(), rest, known, _streams: streams })
}

impl Shown {
    fn of(member: &MemberName, is_believed: bool) -> Shown {
        Shown { member: member.clone(), marks: Vec::new(), unread: None, is_believed }
    }

    /// Requests the marks of the registries in the member's encrypted CA backups. Their signatures are not verified here.
    /// Those that arrive before an error are kept.
    ///
    /// # Errors
    /// If the connection is lost: the member connects again.
    async fn ask(&mut self, connection: &quinn::Connection) -> Result<(), String> {
        let request = Request::Escrow { known: None, seen: None };
        match request_all(connection, &request, 1 + LEFT_ESCROWS_MAX, &mut self.marks).await {
            Ok(()) => {}
            // Members of earlier versions keep no registries to compare.
            Err(Incomplete::Unsupported(reason)) => {
                tracing::warn!(name = %self.member, reason, "member does not report its member registries");
            }
            Err(Incomplete::Failed(reason)) => {
                if let Some(lost) = connection.close_reason() {
                    return Err(lost.to_string());
                }
                let reason: String = reason.chars().take(REASON_CHARS_MAX).collect();
                let what = "did not report the member registries in all of its CA backups";
                self.unread = Some(format!("{} {what}: {reason}", self.member));
            }
        }
        Ok(())
    }
}

/// Reason why an answer is not complete.
#[derive(Debug, thiserror::Error)]
enum Incomplete {
    /// The member does not know the request.
    #[error("{0}")]
    Unsupported(String),
    /// It failed to answer.
    #[error("{0}")]
    Failed(String),
}

/// Adds the items of a member's answer to a request to `items`, at most `most`. Those that arrived before an error stay
/// there.
async fn request_all<T: serde::de::DeserializeOwned>(
    connection: &quinn::Connection,
    request: &Request,
    most: usize,
    items: &mut Vec<T>,
) -> Result<(), Incomplete> {
    let asked = async {
        let failed = |error: &dyn std::fmt::Display| Incomplete::Failed(error.to_string());
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| failed(&error))?;
        wire::send(&mut send, Kind::Open, &Open::Admin).await.map_err(|error| failed(&error))?;
        wire::send_json(&mut send, Kind::AdminRequest, request).await.map_err(|error| failed(&error))?;
        collect(&mut receive, most, items).await
    };
    timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(Incomplete::Failed("it does not respond".into())))
}

/// Reads an answer, as [`request_all`].
async fn collect<T: serde::de::DeserializeOwned, R: tokio::io::AsyncRead + Unpin>(
    receive: &mut R,
    most: usize,
    items: &mut Vec<T>,
) -> Result<(), Incomplete> {
    let failed = |error: &dyn std::fmt::Display| Incomplete::Failed(error.to_string());
    loop {
        match wire::read(receive).await.map_err(|error| failed(&error))? {
            Some((Kind::AdminItem, _)) if items.len() >= most => return Ok(()),
            Some((Kind::AdminItem, body)) => items.push(serde_json::from_slice(&body).map_err(|error| failed(&error))?),
            Some((Kind::AdminEnd, _)) => return Ok(()),
            Some((Kind::AdminError, body)) => {
                let error: AdminError = serde_json::from_slice(&body).map_err(|error| failed(&error))?;
                // A request that is not served is refused; anything that cannot be read is damage.
                return Err(match error.exit {
                    1 => Incomplete::Unsupported(error.message),
                    _ => Incomplete::Failed(error.message),
                });
            }
            Some((kind, _)) => return Err(Incomplete::Unsupported(format!("it replied with {kind:?}"))),
            None => return Err(Incomplete::Failed("the stream ended".into())),
        }
    }
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

    /// Returns the number of connections that failed because one side does not know the CA of the other one.
    #[must_use]
    pub fn foreign(&self) -> u64 {
        self.foreign
    }

    /// Describes which changes members have shown that the registry lacks.
    pub fn lacking(&self) -> impl Iterator<Item = &str> {
        self.lacking.values().map(String::as_str)
    }

    /// Describes which members did not report all of their member registries.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.values().map(String::as_str)
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
