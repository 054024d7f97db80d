//! The membership information that the datastore sends to members.

use super::{Certificate, Member, MemberState, Registry};
use crate::trust::{Fingerprint, Role, Roster, RosterCertificate, RosterMember};
use gravwell_model::ids::hex_bytes;

impl Registry {
    /// Returns the members that may communicate with each other, with their valid certificates and without addresses.
    #[must_use]
    pub fn roster(&self) -> Roster {
        let certificate = |known: &Certificate| RosterCertificate {
            fingerprint: known.fingerprint.clone(),
            expires_ms: known.expires_ms,
        };
        let member = |member: &Member| RosterMember {
            name: member.name.clone(),
            role: member.role,
            certificates: match self.is_left_behind(member) {
                true => Vec::new(),
                false => member.certificates.iter().map(certificate).collect(),
            },
            peer_addresses: Vec::new(),
            external_addr: None,
        };
        // Load balancers do not communicate with other members, and earlier versions could not decode their role.
        let is_listed = |member: &&Member| member.state == MemberState::Enrolled && member.role != Role::Balancer;
        Roster { members: self.members().filter(is_listed).map(member).collect(), ..Roster::default() }
    }

    /// Returns the certificates of members that were revoked and not removed, latest revocation last.
    #[must_use]
    pub fn revoked_certificates(&self) -> Vec<Fingerprint> {
        let mut revoked: Vec<&Member> = self.members().filter(|member| member.state == MemberState::Revoked).collect();
        revoked.sort_by_key(|member| member.revoked_ms);
        let certificates = revoked.into_iter().flat_map(|member| &member.certificates);
        certificates.filter_map(|certificate| hex_bytes(&certificate.fingerprint)).collect()
    }
}
