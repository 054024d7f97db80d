//! Members that may know a later member registry than the one that a recovery uses, and could not be asked.
//!
//! Each of them may be the last one that knows of a revocation. So a recovery stops, names all of them with the cause and
//! the next step, and continues without those that the operator names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gravwell_model::MemberName;
use gravwell_model::codec::json_lines::timestamp;
use gravwell_transport::endpoint::RejectedCertificate;
use gravwell_transport::trust::listed;

/// Most members and addresses of which doubts are kept. Clients of any address can cause them.
const DOUBTS_MAX: usize = 64;
/// Most doubts that an error describes.
const DESCRIBED_MAX: usize = 8;

/// A member or client that could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Doubt {
    what: String,
    connections: u64,
    is_foreign: bool,
}

/// Members and clients that could not be asked, by the name of the member or the address of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    all: BTreeMap<String, Doubt>,
    /// Clients that cannot know a later registry, and connections that failed for other reasons.
    notes: BTreeMap<String, Doubt>,
    /// There were more than are kept.
    is_more: bool,
}

impl Doubts {
    /// Adds a member that did not report all of its member registries. `is_believed`: it was not revoked.
    pub(super) fn add_unread(&mut self, member: &MemberName, what: String, is_believed: bool) {
        let all = if is_believed { &mut self.all } else { &mut self.notes };
        self.is_more |= !add(all, member.to_string(), what, false) && is_believed;
    }

    /// Adds a client at `from` in whose handshake a certificate was rejected. `authority`: the name of the CA that is used.
    pub(super) fn add_rejected(&mut self, from: IpAddr, how: &RejectedCertificate, authority: &str, now_ms: u64) {
        let from = from.to_canonical();
        let what = described(from, how, authority, now_ms);
        if *how == RejectedCertificate::Rotated {
            add(&mut self.notes, from.to_string(), what, false);
            return;
        }
        let is_foreign = *how == RejectedCertificate::UnknownAuthority;
        self.is_more |= !add(&mut self.all, from.to_string(), what, is_foreign);
    }

    /// Adds a handshake that failed for a reason that has nothing to do with certificates.
    pub(super) fn add_failed(&mut self, from: IpAddr, reason: &str) {
        let from = from.to_canonical();
        let what = format!("a client at {from} did not complete its handshake: {reason}");
        add(&mut self.notes, from.to_string(), what, false);
    }

    /// Returns whether a client of another CA is among them.
    #[must_use]
    pub fn has_foreign(&self) -> bool {
        self.all.values().any(|doubt| doubt.is_foreign)
    }

    /// Describes each of them.
    pub fn described(&self) -> impl Iterator<Item = String> {
        self.all.values().map(Doubt::text)
    }

    /// Describes clients that are no reason to stop.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.notes.values().map(Doubt::text)
    }

    /// Returns why to stop; `None` if there are no doubts, except about those that `without` names.
    #[must_use]
    pub fn beyond(&self, without: &BTreeSet<String>) -> Option<String> {
        let open: BTreeMap<_, _> = self.all.iter().filter(|(who, _)| !without.contains(*who)).collect();
        let names: BTreeSet<String> = open.keys().map(|who| (*who).clone()).collect();
        let Some(first) = names.first() else {
            let more = format!(
                "more than {DOUBTS_MAX} members and clients could not be asked whether they know a later member registry; \
                 nothing was rebuilt: keep unknown clients away from this port, or use --earlier-copy to continue without \
                 all of them, and revoke again the members that were revoked since"
            );
            return self.is_more.then_some(more);
        };
        let texts: Vec<String> = open.values().take(DESCRIBED_MAX).map(|doubt| doubt.text()).collect();
        let (texts, all) = (texts.join("; "), listed(&names));
        Some(format!(
            "{texts}; nothing was rebuilt, because a later member registry may be known only there ({all}), and members \
             that were revoked in it would be enrolled again. To continue without what one of them may know, use --without \
             {first} (may be repeated; a registry that another member shows still counts); or use --earlier-copy to \
             continue without all of them, which goes on also if members show later registries; then revoke again the \
             members that were revoked since"
        ))
    }
}

impl Doubt {
    fn text(&self) -> String {
        match self.connections {
            1 => self.what.clone(),
            connections => format!("{} ({connections} connections)", self.what),
        }
    }
}

/// Returns whether there was room for it.
fn add(all: &mut BTreeMap<String, Doubt>, who: String, what: String, is_foreign: bool) -> bool {
    if let Some(known) = all.get_mut(&who) {
        known.what = what;
        known.connections += 1;
        known.is_foreign |= is_foreign;
        return true;
    }
    let has_room = all.len() < DOUBTS_MAX;
    if has_room {
        all.insert(who, Doubt { what, connections: 1, is_foreign });
    }
    has_room
}

fn described(from: IpAddr, how: &RejectedCertificate, authority: &str, now_ms: u64) -> String {
    let clock = format!("the clock of this host shows {}", timestamp(now_ms));
    match how {
        RejectedCertificate::UnknownAuthority => format!(
            "a client at {from} has a certificate of a CA that is unknown here, or does not trust the CA {authority}, which \
             is used: if it is a member, that CA was rotated since; run this command again with the recovery key and \
             `--authority FILE`, where FILE is identity/escrow of that member"
        ),
        RejectedCertificate::Rotated => format!(
            "a client at {from} trusts a CA that was replaced: if it is a member, it missed the rotation, and has to be \
             enrolled again (`enroll NAME --replace`)"
        ),
        RejectedCertificate::OutOfTime { is_clients: true, is_early: true } => format!(
            "a client at {from} has a certificate that is not valid yet, and {clock}: set this clock if it is slow, and run \
             this command again; if it is right, the datastore's was fast when it issued the certificate"
        ),
        RejectedCertificate::OutOfTime { is_clients: true, is_early: false } => format!(
            "a client at {from} has a certificate that has expired, and {clock}: set this clock if it is fast, and run this \
             command again; if it is right, the member has to be enrolled again (`enroll NAME --replace`)"
        ),
        RejectedCertificate::OutOfTime { is_clients: false, is_early } => format!(
            "a client at {from} rejects the certificate of this host as {}, and {clock}: compare the clocks of both hosts, \
             set the wrong one, and run this command again",
            if *is_early { "not valid yet" } else { "expired" }
        ),
        RejectedCertificate::Other(reason) => format!(
            "a client at {from} and this host do not accept the certificate of one another ({reason}): if it is a member, \
             see its log; stop it and pass its directory with --from, or run this command again with the recovery key and \
             `--authority FILE`, where FILE is identity/escrow of that member"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p13_each_client_that_could_not_be_asked_is_named_with_the_cause_and_a_way_to_continue() {
        let from = |last: u8| IpAddr::from([192, 0, 2, last]);
        let out_of_time = |is_clients, is_early| RejectedCertificate::OutOfTime { is_clients, is_early };
        let causes = [
            (RejectedCertificate::UnknownAuthority, "identity/escrow of that member"),
            (out_of_time(true, true), "not valid yet, and the clock of this host shows 2027-01-15"),
            (out_of_time(true, false), "has expired, and the clock of this host shows 2027-01-15"),
            (out_of_time(false, true), "compare the clocks of both hosts"),
            (out_of_time(false, false), "as expired"),
            (RejectedCertificate::Other("bad signature".into()), "bad signature"),
        ];
        let mut doubts = Doubts::default();
        for (at, (how, word)) in (1..).zip(&causes) {
            (0..2).for_each(|_| doubts.add_rejected(from(at), how, "ab12", 1_800_000_000_000));
            let text = doubts.beyond(&BTreeSet::new()).expect("stops");
            for word in [word, &from(at).to_string()[..], "2 connections", "--without 192.0.2.1", "--earlier-copy"] {
                assert!(text.contains(word), "{word}: {text}");
            }
        }
        assert!(doubts.has_foreign());
        // One by one, until the operator has named all of them.
        let mut without = BTreeSet::new();
        for at in 1..=causes.len() {
            assert!(doubts.beyond(&without).is_some_and(|text| text.contains(&format!("--without 192.0.2.{at} "))));
            without.insert(format!("192.0.2.{at}"));
        }
        assert_eq!(doubts.beyond(&without), None);
        // A client that missed a rotation knows nothing later, and neither does one that is no member.
        let mut doubts = Doubts::default();
        doubts.add_rejected(from(1), &RejectedCertificate::Rotated, "ab12", 0);
        doubts.add_failed(from(2), "timed out");
        assert_eq!((doubts.beyond(&BTreeSet::new()), doubts.notes().count()), (None, 2));
        // They are bounded.
        (0..=255).for_each(|at| doubts.add_rejected(from(at), &causes[0].0, "ab12", 0));
        assert_eq!(doubts.described().count(), DOUBTS_MAX);
        let all = (0..=255).map(|at| from(at).to_string()).collect();
        assert!(doubts.beyond(&all).is_some_and(|text| text.contains("--earlier-copy")), "some were not kept");
    }
}
