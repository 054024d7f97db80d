//! Concurrent attempts to reach one target: each starts shortly after the one before it, and the first that succeeds is
//! used (RFC 8305). So an address that does not answer costs little time, whatever its position in the list.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

/// Delay until the next attempt is started; it starts immediately when one has failed.
const STAGGER: Duration = Duration::from_millis(250);

/// Returns the output of the first of `attempts` that succeeds; the others are dropped.
///
/// # Errors
/// If all have failed, returns their errors in the order of the attempts.
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

    use super::*;

    type Attempt = Pin<Box<dyn Future<Output = Result<u8, &'static str>>>>;

    fn after(ms: u64, result: Result<u8, &'static str>) -> Attempt {
        Box::pin(async move {
            sleep(Duration::from_millis(ms)).await;
            result
        })
    }

    fn silent() -> Attempt {
        Box::pin(std::future::pending())
    }

    #[tokio::test]
    async fn an_unreachable_address_does_not_end_the_attempts() {
        assert_eq!(first(vec![silent(), after(0, Ok(2))]).await, Ok(2));
        assert_eq!(first(vec![after(0, Err("refused")), after(0, Ok(2)), silent()]).await, Ok(2));
        assert_eq!(first(vec![silent(), silent(), after(0, Err("refused")), after(0, Ok(4))]).await, Ok(4));
        // A slow attempt is not cancelled in favour of the next.
        assert_eq!(first(vec![after(600, Ok(1)), silent()]).await, Ok(1));
        let all = first(vec![after(300, Err("late")), after(0, Err("refused"))]).await;
        assert_eq!(all, Err(vec!["late", "refused"]), "in the order of attempts");
        assert_eq!(first(Vec::<Attempt>::new()).await, Err(vec![]));
    }
}
