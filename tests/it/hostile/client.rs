//! Hostile client: speaks the real protocol with the product's own types, without respecting any limit.

use std::time::Duration;

use gravwell_model::codec::admin::{AdminError, Request};
use gravwell_model::codec::message::{Hello, Kind, Open, Outcome, Refused, TxnOutcome, VERSION_MAX, VERSION_MIN};
use gravwell_model::codec::txn::encode_txn;
use gravwell_model::{Condition, Op, Origin, OriginCounter, Txn, TxnId};
use gravwell_transport::endpoint::{self, ClientEndpoint};
use gravwell_transport::trust::{Identity, tls};
use gravwell_transport::wire::{self, WireError};
use tokio::time::timeout;

use crate::fleet::Fleet;

/// Timeout of all responses.
const ANSWER: Duration = Duration::from_secs(60);

pub struct Hostile {
    /// Dropping the endpoint would close the connection.
    _endpoint: ClientEndpoint,
    pub connection: quinn::Connection,
}

/// Response on a stream.
#[derive(Debug)]
pub enum Answered {
    /// A message of this kind.
    With(Kind),
    /// A refusal, on the stream or in the close of the connection.
    Refused(String),
    /// The stream ended without a response.
    Ended,
}

pub fn endpoint_of(fleet: &Fleet, name: &str, protocol: &[u8]) -> ClientEndpoint {
    let identity = Identity::load(&fleet.dir(name)).expect("an identity");
    endpoint::client(tls::member_config(&identity, protocol).expect("settings")).expect("an endpoint")
}

impl Hostile {
    pub async fn connect(fleet: &Fleet, name: &str) -> Hostile {
        Self::connect_for(fleet, name, tls::ALPN_LOG).await
    }

    pub async fn connect_for(fleet: &Fleet, name: &str, protocol: &[u8]) -> Hostile {
        let endpoint = endpoint_of(fleet, name, protocol);
        let connection = endpoint.connect(&fleet.listen.to_string()).await.expect("connects");
        Hostile { _endpoint: endpoint, connection }
    }

    pub async fn open(&self, open: Open) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, receive) = self.connection.open_bi().await.expect("a stream");
        wire::send(&mut send, Kind::Open, &open).await.expect("is sent");
        (send, receive)
    }

    /// Sends `hello` on a new control stream and returns the response.
    pub async fn greet(&self, hello: &Hello) -> (quinn::SendStream, quinn::RecvStream, Answered) {
        let (mut send, mut receive) = self.open(Open::Control).await;
        // A refusal may arrive before everything was sent.
        let _ = wire::send(&mut send, Kind::Hello, hello).await;
        let answer = self.answer(&mut receive).await;
        (send, receive, answer)
    }

    /// Returns the next message of a stream, or the reason why there is none.
    pub async fn answer(&self, receive: &mut quinn::RecvStream) -> Answered {
        match timeout(ANSWER, wire::read_known(receive)).await.expect("an answer in time") {
            Ok(Some((Kind::Refused, body))) => {
                let refused: Refused = gravwell_model::codec::message::decode(Kind::Refused, &body).expect("decodes");
                Answered::Refused(refused.message)
            }
            Ok(Some((Kind::AdminError, body))) => {
                Answered::Refused(serde_json::from_slice::<AdminError>(&body).expect("decodes").message)
            }
            Ok(Some((kind, _))) => Answered::With(kind),
            Ok(None) | Err(WireError::Io(_) | WireError::Closed) => {
                self.closed().await.map_or(Answered::Ended, Answered::Refused)
            }
            Err(error) => Answered::Refused(error.to_string()),
        }
    }

    /// Returns the datastore's reason for closing the connection; `None` if it stays open.
    pub async fn closed(&self) -> Option<String> {
        match timeout(Duration::from_secs(1), self.connection.closed()).await {
            Ok(quinn::ConnectionError::ApplicationClosed(close)) => {
                Some(String::from_utf8_lossy(&close.reason).into_owned())
            }
            Ok(error) => Some(error.to_string()),
            Err(_) => None,
        }
    }

    /// Waits until the datastore closes the connection; until then it may send heartbeats.
    pub async fn refusal(&self, receive: &mut quinn::RecvStream) -> String {
        loop {
            match self.answer(receive).await {
                Answered::With(_) => {}
                Answered::Refused(why) => return why,
                Answered::Ended => return String::new(),
            }
        }
    }

    /// Sends a request and returns the response.
    pub async fn ask(&self, request: &Request) -> Answered {
        let (mut send, mut receive) = self.open(Open::Admin).await;
        let _ = wire::send_json(&mut send, Kind::AdminRequest, request).await;
        self.answer(&mut receive).await
    }
}

/// Creates a transaction of origin 7.
pub fn txn(counter: u64, conditions: Vec<Condition>, ops: Vec<Op>) -> Txn {
    let id = TxnId { origin: Origin([7; 16]), counter: OriginCounter(counter) };
    Txn { id, settled: OriginCounter(0), time_ms: 0, note: bytes::Bytes::new(), conditions, ops }
}

/// Pushes a transaction; fails if the datastore has closed the stream.
pub async fn push(send: &mut quinn::SendStream, txn: &Txn) -> Result<(), WireError> {
    let mut body = Vec::new();
    encode_txn(txn, &mut body);
    wire::send_raw(send, Kind::Push, &body).await
}

/// Returns the next outcome on a push stream.
pub async fn fate(receive: &mut quinn::RecvStream) -> TxnOutcome {
    let outcome = timeout(ANSWER, wire::expect::<Outcome, _>(receive, Kind::Outcome)).await;
    outcome.expect("an answer in time").expect("an answer").fate
}

pub fn hello() -> Hello {
    Hello {
        version_min: VERSION_MIN,
        version_max: VERSION_MAX,
        software: "hostile".into(),
        position: None,
        external_addr: None,
    }
}
