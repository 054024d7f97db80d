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
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};

pub use super::authority::SERVER_NAME;
use super::{Authority, Fingerprint, Identity, TrustError, fingerprint};

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

fn roots(authority: CertificateDer<'static>) -> Result<Arc<RootCertStore>, TrustError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    Ok(Arc::new(roots))
}

/// The datastore's side. Clients without a certificate get no further than the join protocol.
///
/// # Errors
/// When no certificate can be made.
pub fn server_config(authority: &Authority, names: &[String], now_ms: u64) -> Result<ServerConfig, TrustError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(authority.certificate().clone())?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TrustError::Certificate(error.to_string()))?;
    let (chain, key) = authority.server(names, now_ms)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
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
        .with_root_certificates(roots(identity.authority()?)?)
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

fn member_verifier(identity: &Identity) -> Result<Arc<dyn ClientCertVerifier>, TrustError> {
    WebPkiClientVerifier::builder_with_provider(roots(identity.authority()?)?, provider())
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
