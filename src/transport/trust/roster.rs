//! The membership list that members use among themselves while the datastore is unreachable.
//!
//! A member accepts another member's certificate only if its latest roster contains it. Each roster replaces the former
//! one as a whole, so a member that is no longer listed is locked out.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::authority::write_private;
use super::registry::Refusal;
use super::{Fingerprint, Identity, Role, TrustError, checksummed_text, fingerprint, hex};
use gravwell_model::MemberName;

/// File name of the roster, next to the identity.
const FILE: &str = "roster.json";
/// Maximum size of a roster; more than [`super::MEMBERS_MAX`] members with the longest accepted values need.
pub const BYTES_MAX: usize = 8 << 20;
/// Version of the format. Rosters with a higher version are rejected.
const VERSION: u32 = 1;

/// A valid certificate of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterCertificate {
    /// Fingerprint, hexadecimal.
    pub fingerprint: String,
    /// Expiry time in milliseconds since 1970-01-01 UTC.
    pub expires_ms: u64,
}

/// A member in the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RosterMember {
    /// Unique name of the member.
    pub name: MemberName,
    /// Role, which decides its permissions.
    pub role: Role,
    /// Its certificate, and a renewed one that it may not have received yet.
    pub certificates: Vec<RosterCertificate>,
    /// Addresses for connections from other members, best first; empty if there are none or none were reported.
    #[serde(default)]
    pub peer_addresses: Vec<String>,
    /// Address at which users and load balancers reach it.
    #[serde(default)]
    pub external_addr: Option<String>,
}

/// The members of a fleet. Fields may be added; unknown ones are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// Version of the format; absent in the first version.
    #[serde(default = "first_version")]
    pub version: u32,
    /// The members, ordered by name.
    pub members: Vec<RosterMember>,
}

fn first_version() -> u32 {
    VERSION
}

impl Default for Roster {
    fn default() -> Roster {
        Roster { version: VERSION, members: Vec::new() }
    }
}

/// The field that all versions share.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default = "first_version")]
    version: u32,
}

/// A roster stored on a member's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRoster {
    /// The stored roster.
    #[serde(flatten)]
    pub roster: Roster,
    /// Time at which the datastore last sent or confirmed it, in milliseconds since 1970-01-01 UTC.
    #[serde(default)]
    pub confirmed_ms: u64,
    /// Reason why the latest roster from the datastore was rejected. The roster is empty then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

fn path(data_dir: &Path) -> PathBuf {
    Identity::dir(data_dir).join(FILE)
}

impl Roster {
    /// Decodes a roster from its wire form.
    ///
    /// # Errors
    /// If it is too long or not a roster.
    pub fn decode(body: &[u8]) -> Result<Roster, String> {
        if body.len() > BYTES_MAX {
            return Err(format!("a roster of {} bytes is too long", body.len()));
        }
        let Versioned { version } = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        if version > VERSION {
            return Err(format!("version {version} of the roster is unknown; upgrade this member"));
        }
        serde_json::from_slice(body).map_err(|error| error.to_string())
    }

    /// Encodes the roster in its wire form.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Removes certificates from the roster. Returns whether any of them was listed.
    pub fn revoke(&mut self, certificates: &[Fingerprint]) -> bool {
        let revoked: std::collections::BTreeSet<String> = certificates.iter().map(|print| hex(print)).collect();
        let mut is_changed = false;
        for member in &mut self.members {
            let before = member.certificates.len();
            member.certificates.retain(|known| !revoked.contains(&known.fingerprint));
            is_changed |= member.certificates.len() < before;
        }
        self.members.retain(|member| !member.certificates.is_empty());
        is_changed
    }

    /// Returns the member with that name.
    #[must_use]
    pub fn member(&self, name: &MemberName) -> Option<&RosterMember> {
        self.members.iter().find(|member| member.name == *name)
    }

    /// Returns the holder of a certificate.
    ///
    /// # Errors
    /// If no member holds it, or it has expired.
    pub fn authorise(&self, certificate_der: &[u8], now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        self.authorise_print(&fingerprint(certificate_der), now_ms)
    }

    /// As [`Roster::authorise`], for a certificate whose fingerprint is known.
    ///
    /// # Errors
    /// As [`Roster::authorise`].
    pub fn authorise_print(&self, print: &Fingerprint, now_ms: u64) -> Result<(MemberName, Role), Refusal> {
        let print = hex(print);
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

    /// Copies the addresses of members from `former` where this roster has none: a restarted datastore has not received
    /// them from all members yet.
    pub fn remember_addresses(&mut self, former: &Roster) {
        for member in self.members.iter_mut().filter(|member| member.peer_addresses.is_empty()) {
            if let Some(known) = former.member(&member.name) {
                member.peer_addresses.clone_from(&known.peer_addresses);
            }
        }
    }
}

impl KeptRoster {
    /// Reads the roster in `data_dir`; empty if there is none. A corrupt roster is treated as missing, because it
    /// decides which peers are trusted. The datastore sends a new one.
    #[must_use]
    pub fn load(data_dir: &Path) -> KeptRoster {
        let path = path(data_dir);
        let Ok(text) = std::fs::read_to_string(&path) else { return KeptRoster::default() };
        let decoded = checksummed_text::open(&text).and_then(|body| {
            Roster::decode(body.as_bytes())?;
            serde_json::from_str::<KeptRoster>(body).map_err(|error| error.to_string())
        });
        match decoded {
            // Earlier versions did not record the time, but wrote the file with every change.
            Ok(kept) if kept.confirmed_ms == 0 => KeptRoster { confirmed_ms: written_ms(&path), ..kept },
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(error, path = %path.display(), "roster corrupt; rejecting other members until the next \
                                                               one");
                KeptRoster { refused: Some("its file is corrupt".into()), ..KeptRoster::default() }
            }
        }
    }

    /// Returns whether the datastore ever sent a roster.
    #[must_use]
    pub fn is_kept(data_dir: &Path) -> bool {
        path(data_dir).exists()
    }

    /// Stores the roster in `data_dir`.
    ///
    /// # Errors
    /// If the file cannot be written; the former one is kept then.
    pub fn save(&self, data_dir: &Path) -> Result<(), TrustError> {
        let body = serde_json::to_string(self).map_err(|error| TrustError::Refused(error.to_string()))?;
        write_private(&path(data_dir), checksummed_text::seal(&body).as_bytes())
    }
}

/// Returns the modification time of a file.
fn written_ms(path: &Path) -> u64 {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let since = modified.and_then(|modified| modified.duration_since(std::time::UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster() -> Roster {
        let certificates = vec![RosterCertificate { fingerprint: "07".repeat(32), expires_ms: 100 }];
        let name = MemberName::new("web1").expect("name");
        let peer_addresses = vec!["127.0.0.1:9406".to_owned()];
        let member = RosterMember { name, role: Role::Webserver, certificates, peer_addresses, external_addr: None };
        Roster { members: vec![member], ..Roster::default() }
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
        assert_eq!(KeptRoster::load(temp.path()), KeptRoster::default());
        let kept = KeptRoster { roster: roster(), confirmed_ms: 7, refused: None };
        kept.save(temp.path()).expect("keeps");
        assert_eq!(KeptRoster::load(temp.path()), kept);
        let path = path(temp.path());
        let good = std::fs::read(&path).expect("reads");
        for at in (0..good.len() - 1).step_by(5) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).expect("writes");
            let damaged = KeptRoster::load(temp.path());
            assert!(damaged.roster.members.is_empty() && damaged.refused.is_some(), "byte {at}");
        }
    }

    #[test]
    fn p12_the_file_of_an_earlier_version_counts_from_when_it_was_written() {
        let temp = tempfile::tempdir().expect("temp dir");
        std::fs::create_dir_all(Identity::dir(temp.path())).expect("creates");
        let mut earlier = serde_json::to_value(roster()).expect("encodes");
        earlier.as_object_mut().expect("an object").remove("version");
        std::fs::write(path(temp.path()), checksummed_text::seal(&earlier.to_string())).expect("writes");
        let kept = KeptRoster::load(temp.path());
        assert_eq!((kept.roster, kept.refused), (roster(), None));
        assert!(kept.confirmed_ms > 1_600_000_000_000, "{}", kept.confirmed_ms);
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
