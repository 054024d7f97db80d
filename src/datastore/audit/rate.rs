//! Rate of the acts that each member sends. The audit keeps a bounded number of bytes, so acts of one member that come
//! faster would push the records of all others out of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use gravwell_model::MemberName;
use gravwell_model::codec::audit::Act;

/// Bytes of acts per second of one member, after a burst of twice what a webserver stores while it cannot send.
const BYTES_PER_S: u64 = 64 << 10;
const BURST: Duration = Duration::from_secs((16 << 20) / BYTES_PER_S);
/// Bytes of a record besides the texts of the act.
const RECORD_BYTES: usize = 64;

/// Time at which the full burst of each member is available again.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<BTreeMap<MemberName, Instant>>);

impl Rates {
    /// Counts acts that a member sends.
    ///
    /// # Errors
    /// If they come too fast; the member sends them again.
    pub(super) fn take(&self, member: &MemberName, acts: &[Act], now: Instant) -> Result<(), String> {
        let texts = |act: &Act| [&act.kind, &act.id, &act.user, &act.by, &act.from, &act.what].map(String::len);
        let bytes: usize = acts.iter().map(|act| RECORD_BYTES + texts(act).iter().sum::<usize>()).sum();
        let mut whole = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        whole.retain(|_, whole| *whole > now);
        let from = whole.get(member).copied().unwrap_or(now);
        if from.saturating_duration_since(now) > BURST {
            let most = BYTES_PER_S >> 10;
            return Err(format!(
                "the audit accepts {most} KiB of acts per second from one member; send them again later"
            ));
        }
        whole.insert(member.clone(), from + Duration::from_micros(bytes as u64 * 1_000_000 / BYTES_PER_S));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_acts_of_one_member_leave_room_in_the_audit() {
        let (rates, start) = (Rates::default(), Instant::now());
        let name = |name| MemberName::new(name).expect("name");
        let (hostile, other) = (name("a"), name("b"));
        let acts = vec![Act { kind: "login-failed".into(), what: "x".repeat(1000), ..Act::default() }; 40];
        let taken = (0..1_000_000).take_while(|_| rates.take(&hostile, &acts, start).is_ok()).count();
        assert!((350..450).contains(&taken), "{taken} batches of 43 KB are a burst of 16 MiB");
        assert!(rates.take(&other, &acts, start).is_ok(), "each member has a separate limit");
        let later = start + Duration::from_secs(10);
        let taken = (0..1_000_000).take_while(|_| rates.take(&hostile, &acts, later).is_ok()).count();
        assert!((10..20).contains(&taken), "{taken} batches in ten seconds");
        assert!(rates.take(&other, &acts, start + 2 * BURST).is_ok());
        assert_eq!(rates.0.lock().expect("not poisoned").len(), 1, "a full bucket is dropped");
    }
}
