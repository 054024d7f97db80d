//! Numbers of users and groups: random, so that no two webservers, and no two histories of the log, assign the same one.
//!
//! A counter would go back with a restored log, a recovered datastore or a reverted machine, and then assign numbers
//! again that rights and objects refer to already. A webserver that is disconnected could not reach it either. Among
//! 2^30 numbers, one that was assigned before is drawn with a probability of one in a billion for each number in use.
//! The object is created on the condition that none has the number, so that the second one would be rejected, together
//! with everything that was made upon it ([`super::identities`]).

use super::StoreError;
use super::sessions::random;

/// Start of the range. Smaller numbers were assigned by earlier versions; the first administrator has UID 1.
const FIRST: i32 = 1 << 30;

/// Returns a random number for a new user or group.
///
/// # Errors
/// If random bytes are unavailable.
pub(super) fn draw() -> Result<i32, StoreError> {
    Ok(FIRST | (i32::from_le_bytes(random::<4>()?) & (FIRST - 1)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn p06_numbers_are_positive_and_differ() {
        let drawn: HashSet<i32> = (0..1000).map(|_| draw().expect("random bytes")).collect();
        assert!(drawn.len() > 990 && drawn.iter().all(|number| *number >= FIRST));
        let spread = drawn.iter().max().expect("some") - drawn.iter().min().expect("some");
        assert!(spread > FIRST / 2, "they come from the whole range");
    }
}
