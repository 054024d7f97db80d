//! From one authority to the one that took its place: what the former key says of the next one.
//!
//! While both keys are there, the former one signs the certificate of its successor. A member takes a new root only with the word
//! of one that it trusts. A datastore carries these words in its own certificate, so that a member that was away until the former
//! root was gone can tell a rotation from another datastore. It does not follow them by itself then: a rotation may be the answer
//! to a key that leaked, and whoever has that key could lead members anywhere.

use rcgen::CustomExtension;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::proof::has_signed;
use super::{Authority, TrustError};

/// Begins what is signed, so that no other signature of the authority's key can be taken for it.
const DOMAIN: &[u8] = b"gravwell successor v1\0";
/// Name of the extension: below the arc of UUIDs, which nobody has to be asked for.
const OID: [u64; 3] = [2, 25, 7_245_316_871_093_465_112];
/// Links that a certificate carries: it travels in every handshake.
pub(super) const LINKS_MAX: usize = 4;

/// One step: a root, and the word of the root before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Certificate of the authority that followed, DER.
    pub root: Vec<u8>,
    /// Signature of the one before it.
    pub word: Vec<u8>,
}

fn message(root: &[u8]) -> Vec<u8> {
    [DOMAIN, root].concat()
}

impl Authority {
    /// Its word for another authority.
    ///
    /// # Errors
    /// When there is no randomness.
    pub(super) fn vouch(&self, other: &CertificateDer<'_>) -> Result<Vec<u8>, TrustError> {
        self.sign(&message(other))
    }
}

/// Whether `word` is that of the authority with the certificate `root` for the one with the certificate `other`.
pub(super) fn vouches(root: &CertificateDer<'_>, other: &[u8], word: &[u8]) -> bool {
    has_signed(root, &message(other), word)
}

/// What a certificate carries; the latest links, when there are more than fit.
pub(super) fn extension(links: &[Link]) -> Option<CustomExtension> {
    let latest = &links[links.len().saturating_sub(LINKS_MAX)..];
    let bytes = postcard::to_stdvec(latest).expect("invariant: encoding into memory cannot fail");
    (!latest.is_empty()).then(|| CustomExtension::from_oid_content(&OID, bytes))
}

/// The root to which the links in `leaf` lead from one of `trusted`; `None`: they lead nowhere.
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
