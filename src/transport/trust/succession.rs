//! Links from a CA to its successor, signed with the former CA's key.
//!
//! While both keys exist, the former CA signs the certificate of its successor. A member accepts a new root only with
//! the signature of a root that it trusts. A datastore includes these signatures in its own certificate. A member that
//! was offline until the former root was gone can therefore distinguish a rotation from a different datastore. In that
//! case it does not follow the links automatically: the rotation may be the response to a leaked key, and an attacker
//! with that key could redirect members anywhere.

use rcgen::CustomExtension;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::proof::has_signed;
use super::{Authority, TrustError};

/// Domain separator: prevents other signatures of the CA's key from being accepted as a link.
const DOMAIN: &[u8] = b"gravwell successor v1\0";
/// Object identifier of the certificate extension, in the UUID arc, which needs no registration.
const OID: [u64; 3] = [2, 25, 7_245_316_871_093_465_112];
/// Maximum number of links in a certificate, which is sent in every handshake.
pub(super) const LINKS_MAX: usize = 4;

/// One step of the succession: a root, with the signature of the root before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Certificate of the succeeding CA, DER.
    pub root: Vec<u8>,
    /// Signature by the preceding CA.
    pub word: Vec<u8>,
}

fn message(root: &[u8]) -> Vec<u8> {
    [DOMAIN, root].concat()
}

impl Authority {
    /// Signs another CA's certificate as a successor.
    ///
    /// # Errors
    /// If random bytes are unavailable.
    pub(super) fn vouch(&self, other: &CertificateDer<'_>) -> Result<Vec<u8>, TrustError> {
        self.sign(&message(other))
    }
}

/// Returns whether `word` is a signature by the CA with the certificate `root` for the CA with the certificate `other`.
pub(super) fn vouches(root: &CertificateDer<'_>, other: &[u8], word: &[u8]) -> bool {
    has_signed(root, &message(other), word)
}

/// Returns the certificate extension with the links; only the latest ones if there are too many.
pub(super) fn extension(links: &[Link]) -> Option<CustomExtension> {
    let latest = &links[links.len().saturating_sub(LINKS_MAX)..];
    let bytes = postcard::to_stdvec(latest).expect("invariant: encoding into memory cannot fail");
    (!latest.is_empty()).then(|| CustomExtension::from_oid_content(&OID, bytes))
}

/// Returns the root to which the links in `leaf` lead from one of `trusted`, if any.
pub(super) fn successor(
    leaf: &CertificateDer<'_>,
    trusted: &[CertificateDer<'static>],
) -> Option<CertificateDer<'static>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let oid = OID.map(|part| part.to_string()).join(".");
    let found = parsed.extensions().iter().find(|extension| extension.oid.to_id_string() == oid)?;
    let links: Vec<Link> = postcard::from_bytes(found.value).ok()?;
    let mut reached: Option<CertificateDer<'static>> = None;
    for link in links.into_iter().take(LINKS_MAX) {
        let is_next = match &reached {
            Some(root) => vouches(root, &link.root, &link.word),
            None => trusted.iter().any(|root| vouches(root, &link.root, &link.word)),
        };
        if is_next {
            reached = Some(CertificateDer::from(link.root));
        }
    }
    reached
}
