//! Notices that the app has had nothing to do for a while, and that it has something to do again.

use std::convert::Infallible;
use std::time::Duration;

use crate::state::State;
use crate::traffic::Traffic;

/// Says in `state` that the app is idle once no request was being served for `after`, and takes it back with the
/// next one. Connections that are kept and carry nothing are nothing to do.
pub async fn watch(traffic: &Traffic, state: &State, after: Duration) -> Infallible {
    let mut counts = traffic.watch();
    loop {
        let quiet = counts.wait_for(|counts| counts.active == 0).await;
        let Ok(before) = quiet.map(|counts| counts.total) else {
            return std::future::pending().await;
        };
        let mut next = counts.clone();
        let begun = next.wait_for(|counts| counts.total != before);
        if tokio::time::timeout(after, begun).await.is_ok() {
            continue;
        }
        state.idle(before);
        // An error is the end of the counters, and with them of the runner.
        let _ = counts.wait_for(|counts| counts.total != before).await;
        state.busy();
    }
}

#[cfg(test)]
mod tests {
    use tabbify_api::runner::StateName;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::state::tests::ready;

    const AFTER: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn idle_is_who_served_nobody_for_a_while() {
        let traffic = Traffic::new(9);
        let state = ready(&traffic);
        let story = async {
            let name = || state.status().state;
            // A request that lasts, and one that begins just before the time is over.
            let long = traffic.begin();
            let kept = traffic.connect();
            sleep(AFTER * 10).await;
            assert_eq!(name(), StateName::Ready);
            drop(long);
            sleep(AFTER - Duration::from_secs(1)).await;
            drop(traffic.begin());
            let since = Instant::now();
            // `wait` answers after 30 s in any case.
            while name() == StateName::Ready {
                state.wait(StateName::Ready).await;
            }
            assert_eq!((name(), since.elapsed()), (StateName::Idle, AFTER));
            // It is woken by work, not by connections.
            drop(kept);
            sleep(AFTER).await;
            assert_eq!(name(), StateName::Idle);
            let work = traffic.begin();
            state.wait(StateName::Idle).await;
            assert_eq!(name(), StateName::Ready);
            drop(work);
            sleep(AFTER * 2).await;
            assert!(state.sleeping(), "it is idle again");
            assert_eq!(name(), StateName::Draining);
            drop(traffic.begin());
            sleep(AFTER * 2).await;
            assert_eq!(name(), StateName::Draining, "for good");
        };
        tokio::select! {
            never = watch(&traffic, &state, AFTER) => match never {},
            () = story => {}
        }
    }
}
