//! Periods during which the datastore could not receive from any member: from the last write of the registry until it
//! was opened again. They are stored in the registry because the members' silence is evaluated again after each start.

use serde::{Deserialize, Serialize};

/// Maximum number of absences stored separately.
const APART_MAX: usize = 32;

/// A period during which no member could be heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Absence {
    from_ms: u64,
    lasted_ms: u64,
}

/// Returns the total duration of absences that started since `seen_ms`.
pub(super) fn since(absences: &[Absence], seen_ms: u64) -> u64 {
    let after = absences.iter().filter(|absence| seen_ms <= absence.from_ms);
    after.fold(0, |sum, absence| sum.saturating_add(absence.lasted_ms))
}

/// Adds an absence. If there are too many, the two oldest are merged, in favour of members that were seen between them.
pub(super) fn add(absences: &mut Vec<Absence>, from_ms: u64, to_ms: u64) {
    let lasted_ms = to_ms.saturating_sub(from_ms);
    if lasted_ms == 0 {
        return;
    }
    absences.push(Absence { from_ms, lasted_ms });
    while absences.len() > APART_MAX {
        let first = absences.remove(0);
        if let Some(second) = absences.first_mut() {
            second.from_ms = second.from_ms.max(first.from_ms);
            second.lasted_ms = second.lasted_ms.saturating_add(first.lasted_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p15_many_absences_are_bounded_and_none_of_them_is_forgotten() {
        let mut absences = Vec::new();
        for number in 0..1000 {
            add(&mut absences, number * 100, number * 100 + 40);
        }
        add(&mut absences, 5, 5);
        assert_eq!(absences.len(), APART_MAX);
        assert_eq!(since(&absences, 0), 1000 * 40);
        assert_eq!(since(&absences, 999 * 100 + 1), 0, "in contact since");
        assert_eq!(since(&absences, 990 * 100 + 50), 9 * 40);
    }
}
