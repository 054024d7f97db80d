//! What members are told of each other.

use super::{Certificate, Member, MemberState, Registry};
use crate::model::ids::hex_bytes;
use crate::trust::{Fingerprint, Role, Roster, RosterCertificate, RosterMember};

impl Registry {
    /// The members that may speak with others, with the certificates that count as theirs and no addresses.
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
        // A balancer has nothing to do with other members, and earlier versions could not read its role.
        let is_listed = |member: &&Member| member.state == MemberState::Enrolled && member.role != Role::Balancer;
        Roster { members: self.members().filter(is_listed).map(member).collect(), ..Roster::default() }
    }

    /// Certificates of members that were revoked and not forgotten, the latest last.
    #[must_use]
    pub fn revoked_certificates(&self) -> Vec<Fingerprint> {
        let mut revoked: Vec<&Member> = self.members().filter(|member| member.state == MemberState::Revoked).collect();
        revoked.sort_by_key(|member| member.revoked_ms);
        let certificates = revoked.into_iter().flat_map(|member| &member.certificates);
        certificates.filter_map(|certificate| hex_bytes(&certificate.fingerprint)).collect()
    }
}
