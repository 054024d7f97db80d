//! Turns of users for reading whole collections, as for lists and for look-ups by something other than the key. Such a
//! scan takes processor time in proportion to what all users have stored, so one user has only a few at a time; further
//! ones wait for these, and delay no other user. [`Store`](gravwell_objects::Store) itself moves scans off the threads that
//! serve other requests.

use std::sync::LazyLock;

use super::error::{ApiError, ApiResult};
use gravwell_runtime::tasks::shares::{Share, Shares};

/// Maximum numbers of concurrent scans, of all users and of one.
const SCANS_MAX: usize = 32;
const SCANS_OF_USER: usize = 2;

static SCANS: LazyLock<Shares<i32>> = LazyLock::new(|| Shares::new(SCANS_MAX, SCANS_OF_USER));

/// Waits for a turn of the user to read whole collections.
pub(super) async fn turn(uid: i32) -> ApiResult<Share> {
    SCANS.take(Some(uid), 1).await.map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn p15_one_user_reads_whole_collections_a_few_at_a_time() {
        let own = [turn(7).await.expect("open"), turn(7).await.expect("open")];
        let mut next = Box::pin(turn(7));
        assert!((&mut next).now_or_never().is_none(), "a third scan of the user waits");
        assert!(turn(8).now_or_never().is_some(), "other users are not delayed");
        drop(own);
        assert!(next.now_or_never().is_some());
    }

    /// Calls that read a whole collection, directly or within `objects`.
    const SCANS: [&str; 14] = [
        ">(\"\"",
        "dashboards::find(",
        "dashboards::is_guid_of_others(",
        "owned::by_guid::<",
        "owned::is_guid_of_others::<",
        "owned::is_name_used::<",
        "resources::resolve(",
        "members_of(",
        "look_alike::<",
        "Cleared::read(",
        "notifications::send(",
        "Maker {",
        ".scan(",
        "replica().each(",
    ];

    /// Finds calls in the routes that read a whole collection without a turn: each one needs `scan_slots::turn`, or the
    /// reason why it needs none, within the function and before the call.
    #[test]
    fn p15_no_route_reads_a_whole_collection_without_a_turn() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("api");
        let mut without = Vec::new();
        for file in std::fs::read_dir(&dir).expect("is there").map(|entry| entry.expect("an entry").path()) {
            let text = std::fs::read_to_string(&file).expect("is read");
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let mut has_turn = false;
            for (number, line) in code.lines().enumerate() {
                let line = line.trim();
                if line.starts_with("//") && !line.contains("No turn:") {
                    continue;
                }
                let words = line.split_once("fn ").map(|(before, _)| before);
                if words
                    .is_some_and(|before| before.is_empty() || before.starts_with("pub") || before.starts_with("async"))
                {
                    has_turn = false;
                }
                has_turn |= line.contains("scan_slots::turn(") || line.contains("No turn:");
                if !has_turn && SCANS.iter().any(|scan| line.contains(scan)) {
                    without.push(format!("{}:{}: {}", file.display(), number + 1, line));
                }
            }
        }
        assert!(
            without.is_empty(),
            "take a turn (scan_slots::turn), or state why none is needed (// No turn: ...):\n{}",
            without.join("\n")
        );
    }
}
