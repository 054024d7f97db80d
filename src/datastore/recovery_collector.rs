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
use gravwell_model::codec::admin::{GenerationInfo, Request};
use gravwell_model::codec::message::{Hello, Kind, Open, SnapshotBegin, Welcome};
use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
use gravwell_model::{Digest, Generation, LogId, MemberName, Position, Seq, Verdict};
use gravwell_protocol::session::common_version;
use gravwell_state::StateStore;
use gravwell_transport::admission::Admission;
use gravwell_transport::endpoint::{self, Arrival, RejectedCertificate, ServerEndpoint};
use gravwell_transport::state_stream::{self, ReceiveError};
use gravwell_transport::trust::{
    Authorities, LEFT_ESCROWS_MAX, Lacking, MemberState, Proof, Refusal, RegisterMark, Registry, Role, SignedMark,
    TrustError, UsedRegister, authority_name, member_in, tls,
};
use gravwell_transport::wire;

use super::rebuild::DonorOffer;
use super::recovery_doubts::Doubts;
use super::recovery_requests::{Incomplete, borrow, request_all};

/// Timeout for one answer of a member.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
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
         identity/escrow.left-N there; or, to use the present registry all the same, with `{option}`, and revoke again the \
         members that were revoked since in those that members show"
    )]
    Lacking {
        /// Name of the member.
        member: MemberName,
        /// Description of the change.
        lacking: String,
        /// Option that chooses the registry in use.
        option: String,
    },
    /// Members or clients that may know a later registry could not be asked.
    #[error("{0}")]
    Doubts(String),
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
    /// Members whose certificates are not accepted.
    refused: BTreeSet<String>,
    doubts: Doubts,
    lacking: BTreeMap<MemberName, Vec<Lacking>>,
    endpoint: ServerEndpoint,
}

/// The registry with which the marks of members are compared, and the options of the operator.
#[derive(Clone, Copy)]
pub struct Comparison<'a> {
    /// The registry.
    pub used: &'a UsedRegister,
    /// Whether the operator named this registry: changes that members show, and it lacks, are given up.
    pub is_chosen: bool,
    /// Whether the operator wants it in any case: doubts do not stop the command either.
    pub is_earlier_wanted: bool,
    /// Names of members and addresses of clients about which doubts do not stop the command.
    pub without: &'a BTreeSet<String>,
}

impl Comparison<'_> {
    fn is_lacking_wanted(&self) -> bool {
        self.is_chosen || self.is_earlier_wanted
    }

    /// Returns why nothing is rebuilt. A proof says more than a doubt.
    fn refusal(&self, lacking: &BTreeMap<MemberName, Vec<Lacking>>, doubts: &Doubts) -> Option<GatherError> {
        let first = lacking.iter().find_map(|(member, lacking)| Some((member, lacking.first()?)));
        if let Some((member, first)) = first.filter(|_| !self.is_lacking_wanted()) {
            let option = match self.used.named_mark() {
                // Of a version that does not name its changes.
                RegisterMark { name, .. } if name.is_empty() => "--earlier-copy".to_owned(),
                RegisterMark { count, name, .. } => format!("--register {count}/{name}"),
            };
            return Some(GatherError::Lacking { member: member.clone(), lacking: first.what.clone(), option });
        }
        let open = doubts.beyond(self.without).filter(|_| !self.is_earlier_wanted);
        open.map(GatherError::Doubts)
    }
}

/// Listens at the datastore's address with the CA and registry in the directory `trust`. Returns when every enrolled
/// member that holds a state (or `expect` of them) has reported, or after `wait`. Calls `tell` for each offer.
///
/// Marks of members are compared with those of `compared`. Members that this registry does not know are awaited for some
/// more time, unless `expect` says how many there are.
///
/// # Errors
/// Returns an error if the registry or the CA cannot be opened, the address cannot be bound, a member shows a change
/// that the registry lacks, or a member or client may know one and could not be asked.
pub async fn gather(
    config: &DatastoreConfig,
    trust: &Path,
    wait: Duration,
    expect: Option<usize>,
    compared: Option<Comparison<'_>>,
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
    let late = if expect.is_none() && compared.is_some() { LATE } else { Duration::ZERO };
    let (heard, refused, lacking) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    let listening = endpoint.clone();
    let mut gathered = Gathered { heard, refused, doubts: Doubts::default(), lacking, endpoint };
    let mut greeting = JoinSet::new();
    let mut deadline = Instant::now() + wait;
    let mut accepted_until = None;
    loop {
        if accepted_until.is_none() && members(&gathered.heard) >= expected {
            let until = Instant::now() + late;
            accepted_until = Some(until);
            deadline = deadline.min(until + ANSWER);
        }
        let is_late = accepted_until.is_some_and(|until| Instant::now() >= until);
        // A member closes a connection over which nothing is requested for a while, and connects again.
        let is_lost = gathered.heard.values().any(|heard: &Heard| heard.connection.close_reason().is_some());
        let is_accepting = !is_late || is_lost;
        // Whoever is being asked when all have reported may know more.
        if !is_accepting && greeting.is_empty() {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep_until(deadline) => break,
            () = tokio::time::sleep_until(accepted_until.unwrap_or(deadline)), if !is_late => {}
            arrival = listening.accept(&admission), if is_accepting => {
                let Some(arrival) = arrival else { break };
                let registry = Arc::clone(&registry);
                greeting.spawn(async move { greet(arrival, &registry, LogId(log_id)).await });
            }
            Some(greeted) = greeting.join_next() => match greeted {
                Ok(greeted) => gathered.add(greeted, compared.as_ref(), &authorities, tell),
                Err(error) => tracing::debug!(%error, "handshake failed"),
            }
        }
        // A proof is enough; doubts stop the command when all had time to report.
        if !gathered.lacking.is_empty() && compared.is_some_and(|compared| !compared.is_lacking_wanted()) {
            break;
        }
    }
    match compared.and_then(|compared| compared.refusal(&gathered.lacking, &gathered.doubts)) {
        None => Ok(gathered),
        Some(refusal) => {
            gathered.close().await;
            Err(refusal)
        }
    }
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
    Refused {
        /// Its name according to its certificate, which the CA signed.
        name: Option<MemberName>,
        /// Description of the refusal.
        reason: String,
    },
    /// A certificate was rejected in the handshake with a client at this address.
    Rejected(IpAddr, RejectedCertificate),
    /// The handshake failed for another reason.
    NotGreeted(IpAddr, String),
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
    let (connection, turn) = arrival.handshake().await.map_err(|error| match error.rejected_certificate() {
        Some(how) => NoOffer::Rejected(from, how),
        None => NoOffer::NotGreeted(from, text(&error)),
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
            let name = member_in(&certificate);
            if let Some(name) = &name {
                let shown = shown.insert(Shown::of(name, !matches!(refusal, Refusal::Revoked(_))));
                if let Ok(Err(reason)) = timeout(2 * ANSWER, ask_refused(&connection, name, log_id, shown)).await {
                    tracing::debug!(%name, reason, "failed to ask for member registries");
                }
            }
            return Err(NoOffer::Refused { name, reason: refuse(refusal.to_string()) });
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
                self.unread =
                    Some(format!("{what}: {reason}; make the file readable, or remove it if you do not need it"));
            }
        }
        Ok(())
    }
}

impl Gathered {
    /// Adds the result of a connection.
    fn add(
        &mut self,
        Greeted { shown, offer }: Greeted,
        compared: Option<&Comparison<'_>>,
        authorities: &Authorities,
        tell: &mut dyn FnMut(&DonorOffer),
    ) {
        if let Some((shown, compared)) = shown.as_ref().zip(compared) {
            let lacking = compared.used.lacks_shown(&shown.marks, shown.member.as_str(), authorities);
            if !lacking.is_empty() {
                self.lacking.insert(shown.member.clone(), lacking);
            }
        }
        if let Some(Shown { member, unread: Some(why), is_believed, .. }) = shown {
            let is_refused = matches!(offer, Err(NoOffer::Refused { .. }));
            let who = match is_refused && is_believed {
                true => ", whose certificate this member registry does not list: it joined later, or was removed,",
                false => "",
            };
            self.doubts.add_unread(&member, format!("{member}{who} {why}"), is_believed);
        }
        match offer {
            Ok(mut member) => {
                member.offer.judge_proof(authorities);
                if let Some(offer) = keep(&mut self.heard, member) {
                    tell(offer);
                }
            }
            Err(NoOffer::Refused { name, reason }) => {
                let name = name.map_or_else(|| "a client without a valid name".into(), |name| name.to_string());
                self.refused.insert(name);
                tracing::debug!(reason, "connection refused");
            }
            // Its CA may be a later one. A mark that it shows could not be verified.
            Err(NoOffer::Rejected(from, how)) => {
                let authority = authority_name(&authorities.current().fingerprint());
                self.doubts.add_rejected(from, &how, &authority, super::shared::now_ms());
            }
            Err(NoOffer::NotGreeted(from, reason)) => self.doubts.add_failed(from, &reason),
            Err(NoOffer::Other(reason)) => tracing::debug!(reason, "recovery connection failed"),
        }
    }

    /// Returns the members that were refused because the registry does not know or has revoked the certificate.
    #[must_use]
    pub fn refused(&self) -> &BTreeSet<String> {
        &self.refused
    }

    /// Returns the registries that members have shown, with changes that the registry in use lacks.
    pub fn lacking(&self) -> impl Iterator<Item = &Lacking> {
        self.lacking.values().flatten()
    }

    /// Returns the members and clients that may know a later registry, and could not be asked.
    #[must_use]
    pub fn doubts(&self) -> &Doubts {
        &self.doubts
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
