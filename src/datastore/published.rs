//! The lists that are sent to members: the full roster, and the certificates that were removed from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use gravwell_model::MemberName;
use gravwell_model::codec::message::{self, HEADER_BYTES, Kind, REVOCATIONS_MAX, Revocations};
use gravwell_model::ids::hex_bytes;
use gravwell_transport::trust::{Fingerprint, ROSTER_BYTES_MAX, Roster, RosterMember};

/// Most superseded certificates in the short revocation message. They were replaced by a newer one of the same member,
/// which can renew any number of times.
const SUPERSEDED_MAX: usize = 128;

#[derive(Default)]
struct Known {
    /// Fingerprints by member.
    certificates: BTreeMap<MemberName, BTreeSet<String>>,
    /// Revoked certificates, latest last.
    revoked: Vec<Fingerprint>,
    /// Superseded certificates, latest last.
    superseded: Vec<Fingerprint>,
}

impl Known {
    /// Stores the current certificates of all members. Returns whether any was removed.
    fn change(&mut self, certificates: BTreeMap<MemberName, BTreeSet<String>>) -> bool {
        let before = std::mem::replace(&mut self.certificates, certificates);
        let mut is_any_gone = false;
        for (member, before) in before {
            let now = self.certificates.get(&member);
            let (kept, gone): (Vec<_>, Vec<_>) =
                before.into_iter().partition(|print| now.is_some_and(|now| now.contains(print)));
            is_any_gone |= !gone.is_empty();
            // A member that joined under the name of a previous one has none of its certificates.
            let list = if kept.is_empty() { &mut self.revoked } else { &mut self.superseded };
            list.extend(gone.iter().filter_map(|print| hex_bytes(print)));
        }
        for (list, most) in [(&mut self.revoked, REVOCATIONS_MAX), (&mut self.superseded, SUPERSEDED_MAX)] {
            let surplus = list.len().saturating_sub(most);
            list.drain(..surplus);
        }
        is_any_gone
    }

    fn encode(&self) -> Bytes {
        let room = REVOCATIONS_MAX - self.superseded.len().min(SUPERSEDED_MAX);
        let revoked = &self.revoked[self.revoked.len().saturating_sub(room)..];
        let certificates = [revoked, &self.superseded].concat();
        let message = message::encode(Kind::Revocations, &Revocations { certificates });
        Bytes::from(message).slice(HEADER_BYTES..)
    }
}

/// Roster and revocations in encoded form, and watches for their changes.
pub(super) struct Published {
    known: Mutex<Known>,
    roster: watch::Sender<Bytes>,
    revocations: watch::Sender<Bytes>,
}

impl Published {
    /// Starts with certificates that were revoked before, latest last.
    pub(super) fn new(revoked: Vec<Fingerprint>) -> Published {
        let known = Known { revoked, ..Known::default() };
        let revocations = watch::channel(known.encode()).0;
        Published { known: Mutex::new(known), roster: watch::channel(Bytes::new()).0, revocations }
    }

    /// Sends the roster to all members if it has changed.
    pub(super) fn publish(&self, roster: &Roster) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let prints =
            |member: &RosterMember| member.certificates.iter().map(|known| known.fingerprint.clone()).collect();
        let certificates = roster.members.iter().map(|member| (member.name.clone(), prints(member))).collect();
        if known.change(certificates) {
            // Sent first, because it is small and always fits into a message.
            self.revocations.send_replace(known.encode());
        }
        let encoded = Bytes::from(roster.encode());
        if encoded.len() > ROSTER_BYTES_MAX {
            tracing::error!(
                bytes = encoded.len(),
                "the list of members is too long to be sent; remove members with `revoke NAME --remove`"
            );
        }
        self.roster.send_if_modified(|sent| {
            let is_new = *sent != encoded;
            *sent = encoded;
            is_new
        });
    }

    /// Sends the roster to all members again. Members also check for other updates when they receive it.
    pub(super) fn repeat(&self) {
        self.roster.send_modify(|_| {});
    }

    /// Returns a receiver of the roster and its changes.
    pub(super) fn watch_roster(&self) -> watch::Receiver<Bytes> {
        self.roster.subscribe()
    }

    /// Returns a receiver of the revocations and their changes.
    pub(super) fn watch_revocations(&self) -> watch::Receiver<Bytes> {
        self.revocations.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::codec::report_limits::REPORT_BYTES_MAX;
    use gravwell_transport::trust::{Role, RosterCertificate};

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
        assert_eq!(sent(&published), [[9; 32], [2; 32], [3; 32], [1; 32]]);
        let many = Published::new(vec![[7; 32]; 10 * REVOCATIONS_MAX]);
        assert_eq!(sent(&many).len(), REVOCATIONS_MAX);
        assert!(many.watch_revocations().borrow().len() < REPORT_BYTES_MAX);
    }

    #[test]
    fn p15_renewals_push_no_revocation_out_of_the_message() {
        let revoked: Vec<Fingerprint> = (0..REVOCATIONS_MAX - SUPERSEDED_MAX)
            .map(|number| {
                let mut print = [0xee; 32];
                print[..8].copy_from_slice(&(number as u64).to_le_bytes());
                print
            })
            .collect();
        let published = Published::new(revoked.clone());
        // Each renewal supersedes the previous certificate, which was never used.
        for _ in 0..10 {
            for byte in 2..=250 {
                published.publish(&roster(&[1, byte]));
            }
        }
        let named = sent(&published);
        assert!(named.len() <= REVOCATIONS_MAX && revoked.iter().all(|print| named.contains(print)));
        assert!(named.contains(&[249; 32]) && !named.contains(&[1; 32]) && !named.contains(&[250; 32]));
        // A member joins under the name of another one, whose certificates are revoked.
        published.publish(&roster(&[251]));
        published.publish(&roster(&[252]));
        for byte in 2..=250 {
            published.publish(&roster(&[252, byte]));
        }
        let named = sent(&published);
        assert!(named.contains(&[1; 32]) && named.contains(&[250; 32]) && named.contains(&[251; 32]));
    }
}
