//! TLS 1.3 configurations for both sides: no tickets, no early data, one explicit provider.
//!
//! Session tickets are off because a resumed session would skip the check of the certificate, and a revoked member
//! would come back.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};

pub use super::authority::SERVER_NAME;
use super::{Authorities, Authority, Fingerprint, Identity, TrustError, fingerprint, succession};

/// Protocol of members, with certificates on both sides.
pub const ALPN_LOG: &[u8] = b"gravwell-log/1";
/// Protocol of a member's connection that carries nothing but chunks.
pub const ALPN_CHUNKS: &[u8] = b"gravwell-chunks/1";
/// Protocol between members, with certificates on both sides.
pub const ALPN_PEER: &[u8] = b"gravwell-peer/1";
/// Protocol of those who have a token but no certificate yet.
pub const ALPN_JOIN: &[u8] = b"gravwell-join/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    authorities.into_iter().try_for_each(|authority| roots.add(authority))?;
    Ok(Arc::new(roots))
}

/// A certificate of the datastore's own, and the name of the authority that signed it.
#[derive(Debug)]
struct Own {
    certified: Arc<CertifiedKey>,
    authority: DistinguishedName,
}

impl Own {
    fn new(
        authority: &Authority,
        links: &[succession::Link],
        names: &[String],
        now_ms: u64,
    ) -> Result<Own, TrustError> {
        let (chain, key) = authority.server(names, links, now_ms)?;
        let certified = Arc::new(CertifiedKey::from_der(chain, key, &provider())?);
        let subject = roots(vec![authority.certificate().clone()])?.subjects().pop();
        let authority = subject.ok_or_else(|| TrustError::Certificate("an authority without a name".into()))?;
        Ok(Own { certified, authority })
    }
}

/// Shows the certificate of the present authority; in a rotation, that of the new one to who says to trust it alone.
#[derive(Debug)]
struct Chosen {
    current: Own,
    next: Option<Own>,
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, client: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let trusted = client.certificate_authorities().unwrap_or_default();
        let is_trusted = |own: &&Own| trusted.iter().any(|name| name.as_ref() == own.authority.as_ref());
        let next = self.next.as_ref().filter(is_trusted).filter(|_| !is_trusted(&&self.current));
        Some(Arc::clone(&next.unwrap_or(&self.current).certified))
    }
}

/// The datastore's side. Clients without a certificate get no further than the join protocol. Former authorities are among those
/// whose certificates show who connects, so that it can be told why it is refused: the register says who may.
///
/// # Errors
/// When no certificate can be made.
pub fn server_config(authorities: &Authorities, names: &[String], now_ms: u64) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authorities.all())?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    let current = Own::new(authorities.current(), &authorities.links(), names, now_ms)?;
    let next = authorities.next().map(|next| Own::new(next, &[], names, now_ms)).transpose()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Chosen { current, next }));
    config.alpn_protocols = vec![ALPN_LOG.to_vec(), ALPN_CHUNKS.to_vec(), ALPN_JOIN.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// A member's side, for one of the protocols.
///
/// # Errors
/// When the identity does not decode.
pub fn member_config(identity: &Identity, protocol: &[u8]) -> Result<ClientConfig, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(KnownDatastore::new(identity.roots()?)?))
        .with_client_auth_cert(vec![identity.certificate()?], identity.key()?)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// A member's side towards members that connect to it. Whether a certificate counts is for the roster to say.
///
/// # Errors
/// When the identity does not decode.
pub fn peer_server_config(identity: &Identity) -> Result<ServerConfig, TrustError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(member_verifier(identity)?)
        .with_single_cert(vec![identity.certificate()?], identity.key()?)?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// A member's side towards members that it connects to. Whether a certificate counts is for the roster to say.
///
/// # Errors
/// When the identity does not decode.
pub fn peer_client_config(identity: &Identity) -> Result<ClientConfig, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyMember { members: member_verifier(identity)? }))
        .with_client_auth_cert(vec![identity.certificate()?], identity.key()?)?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// What a handshake's error says when the datastore's authority was replaced by another one.
pub const ROTATED: &str = "AuthorityRotated";

/// The datastore's authority was replaced by one that this member does not trust.
#[derive(Debug, thiserror::Error)]
#[error("the datastore's authority was replaced")]
struct AuthorityRotated;

/// Accepts the datastore by the roots that a member trusts, and says which those are. Tells one whose authority was replaced from
/// others.
#[derive(Debug)]
struct KnownDatastore {
    roots: Vec<CertificateDer<'static>>,
    names: Vec<DistinguishedName>,
    inner: Arc<WebPkiServerVerifier>,
}

impl KnownDatastore {
    fn new(trusted: Vec<CertificateDer<'static>>) -> Result<KnownDatastore, TrustError> {
        let store = roots(trusted.clone())?;
        let names = store.subjects();
        Ok(KnownDatastore { roots: trusted, names, inner: server_verifier(store)? })
    }

    /// Whether the links in a certificate lead from a root that is trusted to the one that signed it.
    fn is_rotated(&self, leaf: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let Some(successor) = succession::successor(leaf, &self.roots) else { return false };
        let verifier = roots(vec![successor]).and_then(server_verifier);
        verifier.is_ok_and(|verifier| verifier.verify_server_cert(leaf, &[], name, &[], now).is_ok())
    }
}

fn server_verifier(store: Arc<RootCertStore>) -> Result<Arc<WebPkiServerVerifier>, TrustError> {
    let built = WebPkiServerVerifier::builder_with_provider(store, provider()).build();
    built.map_err(|error| TrustError::Certificate(error.to_string()))
}

impl ServerCertVerifier for KnownDatastore {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match self.is_rotated(end_entity, server_name, now) {
            true => CertificateError::Other(OtherError(Arc::new(AuthorityRotated))).into(),
            false => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        Some(&self.names)
    }
}

fn member_verifier(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>, TrustError> {
    WebPkiClientVerifier::builder_with_provider(roots(identity.roots()?)?, provider())
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))
}

/// Accepts the certificates of members on the side that was connected to. They are made for clients, so that no member
/// can pass for the datastore; between members, who is a client is an accident, and names are the roster's affair.
#[derive(Debug)]
struct AnyMember {
    members: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for AnyMember {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.members.verify_client_cert(end_entity, intermediates, now).map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.members.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.members.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.members.supported_verify_schemes()
    }
}

/// The side of one who joins: believes only the authority that the token pins.
///
/// # Errors
/// When the provider is refused.
pub fn join_config(authority: Fingerprint) -> Result<ClientConfig, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { authority }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// Accepts servers whose chain carries the pinned authority and verifies against it.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Fingerprint,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let pinned = intermediates.iter().find(|certificate| fingerprint(certificate) == self.authority);
        let mut roots = RootCertStore::empty();
        roots.add(pinned.ok_or(unknown)?.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
