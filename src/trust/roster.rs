//! Who may speak with whom when the datastore is not there to be asked: its members, as it last said.
//!
//! A member accepts another one's certificate only when its last roster names it. A roster is replaced as a whole by
//! the next one, so whoever is no longer in it is cut off.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::write_private;
use super::registry::Refusal;
use super::{Fingerprint, Identity, Role, TrustError, fingerprint, summed};
use crate::model::MemberName;

/// The roster's file, beside the identity.
const FILE: &str = "roster.json";
/// Longest roster: more than the largest fleet needs.
pub const BYTES_MAX: usize = 8 << 20;

/// A certificate that counts as its member's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterCertificate {
    /// Fingerprint, in hexadecimal.
    pub fingerprint: String,
    /// End of its life, milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterMember {
    /// Name.
    pub name: MemberName,
    /// Role.
    pub role: Role,
    /// Its certificate, and a renewed one that it may not have received yet.
    pub certificates: Vec<RosterCertificate>,
    /// Where it listens to other members, best first; empty when it does not, or has not said.
    #[serde(default)]
    pub peer_addresses: Vec<String>,
    /// Where users and balancers reach it.
    #[serde(default)]
    pub external_addr: Option<String>,
}

/// The members of a fleet. Fields may be added; unknown ones are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The members by name.
    pub members: Vec<RosterMember>,
}

fn path(data_dir: &Path) -> PathBuf {
    Identity::dir(data_dir).join(FILE)
}

impl Roster {
    /// Reads a roster as it is sent.
    ///
    /// # Errors
    /// When it is too long or not a roster.
    pub fn decode(body: &[u8]) -> Result<Roster, String> {
        if body.len() > BYTES_MAX {
            return Err(format!("a roster of {} bytes is too long", body.len()));
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// The roster as it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The roster that was kept in `data_dir`; empty when there is none. A damaged one is as good as none: it would say
    /// who may be believed, and the datastore sends another.
    #[must_use]
    pub fn load(data_dir: &Path) -> Roster {
        let path = path(data_dir);
        let Ok(text) = std::fs::read_to_string(&path) else { return Roster::default() };
        match summed::open(&text).and_then(|body| Roster::decode(body.as_bytes())) {
            Ok(roster) => roster,
            Err(error) => {
                tracing::warn!(error, path = %path.display(), "the roster is damaged: other members are not believed until the datastore sends it again");
                Roster::default()
            }
        }
    }

    /// Keeps the roster in `data_dir`.
    ///
    /// # Errors
    /// When the file cannot be written; the former one stays then.
    pub fn keep(&self, data_dir: &Path) -> Result<(), TrustError> {
        let body = String::from_utf8_lossy(&self.encode()).into_owned();
        write_private(&path(data_dir), summed::seal(&body).as_bytes())
    }

    /// One member.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.name == *name)
    }

    /// Who holds a certificate.
    ///
    /// # Errors
    /// When it is nobody's, or has expired.
    pub fn authorise(&self, certificate_der: &[u8], now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        self.authorise_print(&fingerprint(certificate_der), now_ms)
    }

    /// [`Roster::authorise`] for a certificate of which the fingerprint is known.
    ///
    /// # Errors
    /// See [`Roster::authorise`].
    pub fn authorise_print(&self, print: &Fingerprint, now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        let print: String = print.iter().map(|byte| format!("{byte:02x}")).collect();
        for member in &self.members {
            if let Some(found) = member.certificates.iter().find(|known| known.fingerprint == print) {
                if now_ms >= found.expires_ms {
                    return Err(Refusal::Expired(member.name.clone()));
                }
                return Ok((member.name.clone(), member.role));
            }
        }
        Err(Refusal::Unknown)
    }

    /// Takes over the addresses of members that `former` knew and this one does not: a datastore that was started anew
    /// has not heard from everybody yet.
    pub fn remember_addresses(&mut self, former: &Roster) {
        for member in self.members.iter_mut().filter(|member| member.peer_addresses.is_empty()) {
            if let Some(known) = former.member(&member.name) {
                member.peer_addresses.clone_from(&known.peer_addresses);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster() -> Roster {
        let certificates = vec![RosterCertificate { fingerprint: "07".repeat(32), expires_ms: 100 }];
        let name = MemberName::new("web1").expect("name");
        let peer_addresses = vec!["127.0.0.1:9406".to_owned()];
        let member = RosterMember { name, role: Role::Webserver, certificates, peer_addresses, external_addr: None };
        Roster { members: vec![member] }
    }

    #[test]
    fn p11_only_who_is_named_is_accepted() {
        let roster = roster();
        assert_eq!(roster.authorise_print(&[7; 32], 99).map(|(_, role)| role), Ok(Role::Webserver));
        assert!(matches!(roster.authorise_print(&[7; 32], 100), Err(Refusal::Expired(_))));
        assert_eq!(roster.authorise_print(&[8; 32], 0), Err(Refusal::Unknown));
        assert_eq!(Roster::default().authorise_print(&[7; 32], 0), Err(Refusal::Unknown));
    }

    #[test]
    fn p10_a_damaged_roster_names_nobody() {
        let temp = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(Identity::dir(temp.path())).expect("creates");
        assert_eq!(Roster::load(temp.path()), Roster::default());
        roster().keep(temp.path()).expect("keeps");
        assert_eq!(Roster::load(temp.path()), roster());
        let path = path(temp.path());
        let good = std::fs::read(&path).expect("reads");
        for at in (0..good.len() - 1).step_by(5) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("writes");
            assert_eq!(Roster::load(temp.path()), Roster::default(), "byte {at}");
        }
    }

    #[test]
    fn addresses_outlive_a_restart_of_the_datastore() {
        let mut fresh = roster();
        fresh.members[0].peer_addresses.clear();
        fresh.remember_addresses(&roster());
        assert_eq!(fresh, roster());
        assert!(Roster::decode(&fresh.encode()).is_ok() && Roster::decode(b"{").is_err());
    }
}
