//! Tracks which CA signed each member's certificates. During and after a rotation, members can differ.

use super::{Certificate, Member, MemberState, Registry};
use crate::trust::{Authorities, End, Former, fingerprint, hex};
use gravwell_model::MemberName;

impl Member {
    /// Returns the name of the CA that signed the latest certificate the member is known to hold; `None` if it has
    /// none, or its issuer was not recorded.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.usable().first()?.issuer.as_deref()
    }

    /// Returns the latest certificate the member is known to hold, and those it may have received since.
    fn usable(&self) -> &[Certificate] {
        let held = self.certificates.iter().rposition(|certificate| certificate.is_held).unwrap_or(0);
        &self.certificates[held..]
    }
}

impl Registry {
    /// Records which certificate a member reports to hold. Returns whether it is a renewed one that the member was not
    /// known to hold.
    pub fn note_held(&mut self, name: &MemberName, print: &str) -> bool {
        let Some(member) = self.contents.members.get_mut(name) else { return false };
        let mut renewed = member.certificates.iter_mut().skip(1);
        let found = renewed.find(|certificate| certificate.fingerprint == print && !certificate.is_held);
        let Some(certificate) = found else { return false };
        certificate.is_held = true;
        self.is_dirty = true;
        true
    }

    /// Assigns certificates with an unknown issuer to the CA with that name.
    pub fn note_issuer(&mut self, authority: &str) {
        let all = self.contents.members.values_mut().flat_map(|member| &mut member.certificates);
        for certificate in all.filter(|certificate| certificate.issuer.is_none()) {
            certificate.issuer = Some(authority.to_owned());
            self.is_dirty = true;
        }
    }

    /// Returns whether an enrolled member may present a certificate of the CA with that name.
    #[must_use]
    pub fn is_in_use(&self, authority: &str) -> bool {
        let enrolled = self.members().filter(|member| member.state == MemberState::Enrolled);
        let mut all = enrolled.flat_map(Member::usable);
        all.any(|certificate| certificate.issuer.as_deref() == Some(authority))
    }

    /// Sets which CAs were replaced.
    pub fn set_replaced(&mut self, authorities: &Authorities) {
        let replaced = authorities.former().iter().filter(|former| former.end == End::Replaced);
        self.replaced = replaced.map(Former::name).collect();
    }

    /// Returns whether the member holds only a certificate of a replaced CA, which is no longer accepted.
    pub(super) fn is_left_behind(&self, member: &Member) -> bool {
        member.issuer().is_some_and(|issuer| self.replaced.iter().any(|replaced| replaced == issuer))
    }

    /// Iterates over the names of members with an unexpired invitation.
    pub fn invited(&self, now_ms: u64) -> impl Iterator<Item = &MemberName> {
        let is_open = move |member: &&Member| member.invite.as_ref().is_some_and(|invite| now_ms < invite.expires_ms);
        self.members().filter(is_open).map(|member| &member.name)
    }

    /// Returns the holder of a certificate, valid or not.
    #[must_use]
    pub fn holder(&self, certificate_der: &[u8]) -> Option<&MemberName> {
        self.by_fingerprint.get(&hex(&fingerprint(certificate_der)))
    }
}
