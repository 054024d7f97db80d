//! Which authority signed the members' certificates: in a rotation, and after it, that is not one and the same.

use super::{Certificate, Member, MemberState, Registry};
use crate::model::MemberName;
use crate::trust::{Authorities, End, Former, fingerprint, hex};

impl Member {
    /// Name of the authority that signed the latest certificate that it is known to have; `None`: it has none, or is of a version
    /// that did not say.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.usable().first()?.issuer.as_deref()
    }

    /// The latest certificate that it is known to have, and those that it may have received since.
    fn usable(&self) -> &[Certificate] {
        let held = self.certificates.iter().rposition(|certificate| certificate.is_held).unwrap_or(0);
        &self.certificates[held..]
    }
}

impl Registry {
    /// Notes that a member says which certificate it has. True: it is a renewed one that it was not known to have.
    pub fn note_held(&mut self, name: &MemberName, print: &str) -> bool {
        let Some(member) = self.contents.members.get_mut(name) else { return false };
        let mut renewed = member.certificates.iter_mut().skip(1);
        let found = renewed.find(|certificate| certificate.fingerprint == print && !certificate.is_held);
        let Some(certificate) = found else { return false };
        certificate.is_held = true;
        self.is_dirty = true;
        true
    }

    /// Notes that certificates of which it is not known who signed them are of the authority of that name.
    pub fn note_issuer(&mut self, authority: &str) {
        let all = self.contents.members.values_mut().flat_map(|member| &mut member.certificates);
        for certificate in all.filter(|certificate| certificate.issuer.is_none()) {
            certificate.issuer = Some(authority.to_owned());
            self.is_dirty = true;
        }
    }

    /// Whether an enrolled member may show a certificate of the authority of that name.
    #[must_use]
    pub fn is_in_use(&self, authority: &str) -> bool {
        let enrolled = self.members().filter(|member| member.state == MemberState::Enrolled);
        let mut all = enrolled.flat_map(Member::usable);
        all.any(|certificate| certificate.issuer.as_deref() == Some(authority))
    }

    /// Takes note of which authorities were replaced.
    pub fn set_replaced(&mut self, authorities: &Authorities) {
        let replaced = authorities.former().iter().filter(|former| former.end == End::Replaced);
        self.replaced = replaced.map(Former::name).collect();
    }

    /// Whether a member has no certificate but one of an authority that was replaced: nobody believes it.
    pub(super) fn is_left_behind(&self, member: &Member) -> bool {
        member.issuer().is_some_and(|issuer| self.replaced.iter().any(|replaced| replaced == issuer))
    }

    /// Who was invited and has not come yet.
    pub fn invited(&self, now_ms: u64) -> impl Iterator<Item = &MemberName> {
        let is_open = move |member: &&Member| member.invite.as_ref().is_some_and(|invite| now_ms < invite.expires_ms);
        self.members().filter(is_open).map(|member| &member.name)
    }

    /// Who holds a certificate, whatever it is worth.
    #[must_use]
    pub fn holder(&self, certificate_der: &[u8]) -> Option<&MemberName> {
        self.by_fingerprint.get(&hex(&fingerprint(certificate_der)))
    }
}
