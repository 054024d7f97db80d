//! TLS 1.3 configurations for both sides: no tickets, no early data, one explicit crypto provider.
//!
//! Session tickets are disabled because a resumed session would skip the certificate check and readmit a
//! revoked member.

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
/// Protocol of a member's separate connection for chunks.
pub const ALPN_CHUNKS: &[u8] = b"gravwell-chunks/1";
/// Protocol between members, with certificates on both sides.
pub const ALPN_PEER: &[u8] = b"gravwell-peer/1";
/// Protocol of clients that have a token but no certificate yet.
pub const ALPN_JOIN: &[u8] = b"gravwell-join/1";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authorities: Vec<CertificateDer<'static>>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    authorities.into_iter().try_for_each(|authority| roots.add(authority))?;
    Ok(Arc::new(roots))
}

/// A server certificate of the datastore, and the name of the CA that signed it.
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
        let authority = subject.ok_or_else(|| TrustError::Certificate("the CA has no name".into()))?;
        Ok(Own { certified, authority })
    }
}

/// Selects the current CA's certificate or, in a rotation, the next CA's for clients that announce only that root.
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

/// Returns the datastore's configuration. Clients without a certificate can only use the join protocol. Former CAs are
/// accepted in the handshake, so that holders of their certificates can be informed why they are rejected: the
/// registry authorizes.
///
/// # Errors
/// If the server certificate cannot be created.
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

/// Returns a member's configuration for one of the protocols.
///
/// # Errors
/// If the identity does not decode.
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

/// Returns the configuration of a member for connections from other members. The roster decides which certificates
/// are accepted.
///
/// # Errors
/// If the identity does not decode.
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

/// Returns the configuration of a member for connections to other members. The roster decides which certificates
/// are accepted.
///
/// # Errors
/// If the identity does not decode.
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

/// Text in a handshake error if the datastore's CA was replaced by another one.
pub const ROTATED: &str = "AuthorityRotated";

/// The datastore's CA was replaced by one that this member does not trust.
#[derive(Debug, thiserror::Error)]
#[error("the datastore's CA was replaced")]
struct AuthorityRotated;

/// Verifies the datastore against the roots that a member trusts, and announces these roots in the handshake.
/// Distinguishes a replaced CA from a foreign one.
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

    /// Returns whether the links in a certificate lead from a trusted root to the CA that signed it.
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

/// Accepts certificates of members in the server role. Member certificates are issued for client authentication only,
/// so that no member can impersonate the datastore. Between members the TLS roles are arbitrary, and the roster
/// checks names.
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

/// Returns the configuration of a joining process, which trusts only the CA that the token pins.
///
/// # Errors
/// If the crypto provider is rejected.
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

/// Accepts servers whose chain contains the pinned CA and verifies against it.
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
        Err(rustls::Error::General("TLS 1.2 is not supported; use TLS 1.3".into()))
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
