//! Several ways to one place: each is tried a little after the one before it, and the first that works is taken (RFC 8305).
//! So a way that leads nowhere costs a moment, wherever it stands in the list.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

/// The next way is tried after this long, or at once when one has failed.
const STAGGER: Duration = Duration::from_millis(250);

/// The output of the first of `attempts` that succeeds; the others are dropped.
///
/// # Errors
/// When all have failed: why, in their order.
pub async fn first<T, E, F: Future<Output = Result<T, E>>>(attempts: Vec<F>) -> Result<T, Vec<E>> {
    let mut waiting = attempts.into_iter().enumerate().peekable();
    let (mut running, mut errors) = (FuturesUnordered::new(), Vec::new());
    loop {
        if let Some((place, attempt)) = waiting.next() {
            running.push(async move { attempt.await.map_err(|error| (place, error)) });
        }
        let has_more = waiting.peek().is_some();
        let ended = tokio::select! {
            ended = running.next(), if !running.is_empty() => ended,
            () = sleep(STAGGER), if has_more => continue,
            else => break,
        };
        match ended {
            Some(Ok(output)) => return Ok(output),
            Some(Err(error)) => errors.push(error),
            None => {}
        }
    }
    errors.sort_by_key(|(place, _)| *place);
    Err(errors.into_iter().map(|(_, error)| error).collect())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use tokio::time::Instant;

    use super::*;

    type Attempt = Pin<Box<dyn Future<Output = Result<u8, &'static str>>>>;

    fn after(ms: u64, result: Result<u8, &'static str>) -> Attempt {
        Box::pin(async move {
            sleep(Duration::from_millis(ms)).await;
            result
        })
    }

    fn silent() -> Attempt {
        after(2000, Err("silent"))
    }

    async fn timed(attempts: Vec<Attempt>) -> (Result<u8, Vec<&'static str>>, u128) {
        let started = Instant::now();
        (first(attempts).await, started.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_leads_nowhere_costs_a_moment() {
        assert_eq!(timed(vec![after(10, Ok(1)), after(0, Ok(2))]).await, (Ok(1), 10));
        assert_eq!(timed(vec![silent(), after(10, Ok(2))]).await, (Ok(2), 260));
        assert_eq!(timed(vec![after(5, Err("refused")), after(10, Ok(2))]).await, (Ok(2), 15));
        assert_eq!(timed(vec![silent(), silent(), silent(), after(1, Ok(4))]).await, (Ok(4), 751));
        // One that is slow is not given up for the next.
        assert_eq!(timed(vec![after(600, Ok(1)), silent()]).await, (Ok(1), 600));
        let all = timed(vec![silent(), after(1, Err("refused")), silent()]).await;
        assert_eq!(all, (Err(vec!["silent", "refused", "silent"]), 2251));
        assert_eq!(timed(Vec::new()).await, (Err(vec![]), 0));
    }
}
