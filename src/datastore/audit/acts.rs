//! Administrative requests as acts of the audit: who requested what, and from where. Excluded are requests that only
//! report status, and those that members make for their own operation.

use tokio::net::unix::UCred;

use crate::admin::Caller;
use crate::shared::now_ms;
use gravwell_model::Collection;
use gravwell_model::codec::admin::Request;
use gravwell_model::codec::audit::Act;
use gravwell_model::codec::authority::RotationStep;
use gravwell_model::visibility::{self, Visibility};
use gravwell_transport::trust::Role;

/// An act to record. If `is_change` is set, it changes something or discloses sensitive data and is recorded before it
/// is performed.
pub(crate) struct Asked {
    pub act: Act,
    pub is_change: bool,
}

impl Asked {
    /// Returns the same act, marked as failed.
    pub(crate) fn failed(&self, why: &str) -> Act {
        Act { kind: format!("{}-failed", self.act.kind), what: format!("{}: {why}", self.act.what), ..self.act.clone() }
    }
}

/// Describes the user at the other end of the local socket, as reported by the kernel. The login user is the one that
/// logged in to the host, regardless of `su` and `sudo`, if the system tracks it.
pub(crate) fn local_user(caller: std::io::Result<UCred>) -> String {
    let Ok(caller) = caller else { return "an unknown user of this host".into() };
    let login = caller.pid().and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok());
    described(caller.uid(), login.as_deref())
}

/// Describes the user of this process, which opened the directory itself.
pub(crate) fn own_user() -> String {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    described(rustix::process::getuid().as_raw(), login.as_deref())
}

fn described(uid: u32, login: Option<&str>) -> String {
    let login = login.and_then(|text| text.trim().parse::<u32>().ok()).filter(|login| *login != u32::MAX);
    match login.filter(|login| *login != uid) {
        Some(login) => format!("uid {uid} of this host, logged in as uid {login}"),
        None => format!("uid {uid} of this host"),
    }
}

/// Returns the act to record for a request, if any.
pub(crate) fn of_request(caller: &Caller, request: &Request) -> Option<Asked> {
    if caller.role != Role::Admin {
        return None;
    }
    let (kind, what, is_change) = described_request(request)?;
    let act =
        Act { kind: kind.into(), happened_ms: now_ms(), from: caller.from.clone(), what, count: 1, ..Act::default() };
    Some(Asked { act: act.bounded(), is_change })
}

fn described_request(request: &Request) -> Option<(&'static str, String, bool)> {
    let at = |at: &Option<gravwell_model::Seq>| at.map_or_else(String::new, |at| format!(" as of {at}"));
    let read = |what: String| Some(("read", what, false));
    // Reads of secret collections are recorded before they are answered, however many there are at a time.
    let read_of = |collection: &Collection, what: String| {
        Some(("read", what, visibility::of(collection.as_str()) == Visibility::Secret))
    };
    match request {
        Request::Get { collection, key, at: seq } => read_of(collection, format!("{collection}/{key}{}", at(seq))),
        Request::List { collection, prefix, .. } => {
            read_of(collection, format!("the objects of {collection} {prefix}"))
        }
        Request::Tail { from, follow, .. } => {
            Some(("read", format!("the log after {from}{}", if *follow { ", following" } else { "" }), true))
        }
        Request::History { collection, key } => read_of(collection, format!("the history of {collection}/{key}")),
        Request::Record { seq } => Some(("read", format!("record {seq} of the log"), true)),
        Request::Audit { from, .. } if *from == gravwell_model::Seq::ZERO => read("the audit".into()),
        Request::Export { is_check: true, .. } => Some(("read", "the whole state, for a check".into(), true)),
        Request::Export { at: seq, .. } => Some(("export", format!("the whole state{}", at(seq)), true)),
        Request::Copy { .. } => Some(("backup", "a copy of the log".into(), true)),
        Request::Escrow { .. } => Some(("export", "the CA, encrypted with the recovery key".into(), true)),
        Request::Submit { .. } => Some(("administration", "submit transactions".into(), true)),
        Request::Compact { dry_run: false, .. } => Some(("administration", "compact the log".into(), true)),
        Request::BlobCollect { dry_run: false, .. } => Some(("administration", "garbage-collect chunks".into(), true)),
        Request::Enroll { name, role, replace, .. } => {
            let anew = if *replace { ", replacing the member of that name" } else { "" };
            Some(("enroll", format!("{name} as a {role}{anew}"), true))
        }
        Request::Revoke { name, remove } => {
            Some(("revoke", format!("{name}{}", if *remove { ", and remove it" } else { "" }), true))
        }
        Request::RotateAuthority { step } => match step {
            RotationStep::Begin => Some(("authority", "start the CA rotation".into(), true)),
            RotationStep::Finish { without } if without.is_empty() => {
                Some(("authority", "finish the CA rotation".into(), true))
            }
            RotationStep::Finish { without } => {
                let names: Vec<&str> = without.iter().map(gravwell_model::MemberName::as_str).collect();
                let left = names.join(", ");
                Some(("authority", format!("finish the CA rotation without {left}"), true))
            }
            RotationStep::Abort => Some(("authority", "abort the CA rotation".into(), true)),
            RotationStep::Status => None,
        },
        Request::Status
        | Request::Members
        | Request::Presence
        | Request::Backends
        | Request::Collections
        | Request::Segments
        | Request::OriginStatus { .. }
        | Request::Verify
        | Request::Compact { .. }
        | Request::Outbox
        | Request::Retry { .. }
        | Request::Dismiss { .. }
        | Request::BlobList
        | Request::BlobStats
        | Request::BlobVerify
        | Request::BlobCollect { .. }
        | Request::Generations
        | Request::Deletions { .. }
        | Request::Proof
        | Request::Roots { .. }
        | Request::CopyChunks { .. }
        | Request::Audit { .. }
        | Request::AuditVerify { .. }
        | Request::AuditActs { .. }
        // Acknowledgements have their own kind of record.
        | Request::AuditAcknowledge { .. }
        | Request::Upstream
        | Request::Barrier { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gravwell_model::MemberName;

    #[test]
    fn requests_of_administrators_are_acts_and_those_of_members_are_not() {
        let name = MemberName::new("ops").expect("name");
        let caller =
            |role| Caller { name: name.clone(), role, from: "192.0.2.1".into(), withheld: None, connection: None };
        let revoke = Request::Revoke { name: MemberName::new("web1").expect("name"), remove: false };
        let asked = of_request(&caller(Role::Admin), &revoke).expect("an act");
        assert_eq!((asked.act.kind.as_str(), asked.act.what.as_str(), asked.is_change), ("revoke", "web1", true));
        assert_eq!(asked.failed("no such member").kind, "revoke-failed");
        assert!(of_request(&caller(Role::Webserver), &revoke).is_none());
        assert!(of_request(&caller(Role::Admin), &Request::Status).is_none());
        let kind = |is_check| {
            let asked = of_request(&caller(Role::Admin), &Request::Export { at: None, is_check }).expect("an act");
            (asked.act.kind, asked.is_change)
        };
        assert_eq!((kind(false), kind(true)), (("export".into(), true), ("read".into(), true)));
    }

    #[test]
    fn users_of_the_host_are_named_with_their_login() {
        assert_eq!(described(0, Some("1000\n")), "uid 0 of this host, logged in as uid 1000");
        assert_eq!(described(7, Some("4294967295")), "uid 7 of this host");
        assert_eq!(described(7, None), "uid 7 of this host");
    }

    #[test]
    fn p14_whoever_reads_secrets_is_recorded_before_they_are_given() {
        let name = MemberName::new("ops").expect("name");
        let caller = Caller { name, role: Role::Admin, from: "192.0.2.1".into(), withheld: None, connection: None };
        let get = |collection: &str| Request::Get {
            collection: Collection::new(collection).expect("a name"),
            key: gravwell_model::Key::new("1").expect("a key"),
            at: None,
        };
        let is_first = |request: &Request| of_request(&caller, request).expect("an act").is_change;
        assert!(is_first(&get("passwords")) && is_first(&get("of-a-later-version")));
        assert!(!is_first(&get("dashboards")));
        let (from, to) = (gravwell_model::Seq(0), None);
        assert!(is_first(&Request::Tail { from, to, follow: false }));
        assert!(is_first(&Request::Record { seq: gravwell_model::Seq(1) }));
    }
}
