//! What members are told of each other: the roster as a whole, and which certificates have left it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::codec::message::{self, HEADER_BYTES, Kind, REVOCATIONS_MAX, Revocations};
use crate::model::ids::hex_bytes;
use crate::trust::{Fingerprint, ROSTER_BYTES_MAX, Roster};

#[derive(Default)]
struct Known {
    certificates: BTreeSet<String>,
    /// The latest last.
    revoked: Vec<Fingerprint>,
}

/// The roster and the revocations as they are sent, and their changes.
pub(super) struct Published {
    known: Mutex<Known>,
    roster: watch::Sender<Bytes>,
    revocations: watch::Sender<Bytes>,
}

impl Published {
    /// Starts with certificates that were revoked before, the latest last.
    pub(super) fn new(revoked: Vec<Fingerprint>) -> Published {
        let known = Known { revoked, ..Known::default() };
        let revocations = watch::channel(encode(&known.revoked)).0;
        Published { known: Mutex::new(known), roster: watch::channel(Bytes::new()).0, revocations }
    }

    /// Tells all members who the members are, when that has changed.
    pub(super) fn publish(&self, roster: &Roster) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let prints = roster.members.iter().flat_map(|member| &member.certificates);
        let certificates: BTreeSet<String> = prints.map(|certificate| certificate.fingerprint.clone()).collect();
        let gone: Vec<Fingerprint> =
            known.certificates.difference(&certificates).filter_map(|print| hex_bytes(print)).collect();
        known.certificates = certificates;
        if !gone.is_empty() {
            known.revoked.extend(gone);
            let surplus = known.revoked.len().saturating_sub(REVOCATIONS_MAX);
            known.revoked.drain(..surplus);
            // First, because it is small and always arrives.
            self.revocations.send_replace(encode(&known.revoked));
        }
        let encoded = Bytes::from(roster.encode());
        if encoded.len() > ROSTER_BYTES_MAX {
            tracing::error!(
                bytes = encoded.len(),
                "the list of members is too long to be sent: forget members with `revoke NAME --remove`"
            );
        }
        self.roster.send_if_modified(|sent| {
            let is_new = *sent != encoded;
            *sent = encoded;
            is_new
        });
    }

    /// Sends all members the roster once more: whoever hears of it looks at what else it is to have.
    pub(super) fn repeat(&self) {
        self.roster.send_modify(|_| {});
    }

    /// The roster and its changes.
    pub(super) fn watch_roster(&self) -> watch::Receiver<Bytes> {
        self.roster.subscribe()
    }

    /// The revocations and their changes.
    pub(super) fn watch_revocations(&self) -> watch::Receiver<Bytes> {
        self.revocations.subscribe()
    }
}

fn encode(revoked: &[Fingerprint]) -> Bytes {
    let certificates = revoked[revoked.len().saturating_sub(REVOCATIONS_MAX)..].to_vec();
    let message = message::encode(Kind::Revocations, &Revocations { certificates });
    Bytes::from(message).slice(HEADER_BYTES..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::reports::REPORT_BYTES_MAX;
    use crate::model::MemberName;
    use crate::trust::{Role, RosterCertificate, RosterMember};

    fn roster(bytes: &[u8]) -> Roster {
        let certificate =
            |byte: u8| RosterCertificate { fingerprint: format!("{byte:02x}").repeat(32), expires_ms: u64::MAX };
        let member = RosterMember {
            name: MemberName::new("a").expect("name"),
            role: Role::Webserver,
            certificates: bytes.iter().map(|byte| certificate(*byte)).collect(),
            peer_addresses: Vec::new(),
            external_addr: None,
        };
        Roster { members: vec![member], ..Roster::default() }
    }

    fn sent(published: &Published) -> Vec<Fingerprint> {
        let body = published.watch_revocations().borrow().clone();
        message::decode::<Revocations>(Kind::Revocations, &body).expect("decodes").certificates
    }

    #[test]
    fn p11_what_leaves_the_roster_is_announced_in_a_message_that_stays_small() {
        let published = Published::new(vec![[9; 32]]);
        published.publish(&roster(&[1, 2]));
        assert_eq!(sent(&published), [[9; 32]]);
        published.publish(&roster(&[2, 3]));
        assert_eq!(sent(&published), [[9; 32], [1; 32]]);
        published.publish(&Roster::default());
        assert_eq!(sent(&published), [[9; 32], [1; 32], [2; 32], [3; 32]]);
        let many = Published::new(vec![[7; 32]; 10 * REVOCATIONS_MAX]);
        assert_eq!(sent(&many).len(), REVOCATIONS_MAX);
        assert!(many.watch_revocations().borrow().len() < REPORT_BYTES_MAX);
    }
}
