//! Living sessions while rules change: a key that is nobody's any more loses its sessions at once; when who
//! may reach whom has changed, the peers that this concerns are looked up again. New connections then go by
//! the new rules, and a session of two that may reach nothing of each other any more ends.
//!
//! ```text
//! resolver ─ changes ─▶ mesh-changes ─ gone ────────────▶ session ends
//!                            └ else ─▶ mesh-review ─ by_key ─▶ new rules, or session ends
//!                                           └ no answer, or overtaken: once more, later
//! ```

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tabbify_api::mesh::{Changed, Changes, ResolveError, Resolver};
use tabbify_process::Importance;
use tabbify_types::MeshKey;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::endpoint::Endpoint;

/// LIMIT: peers that are looked up again at once, and for how long each.
const REVIEWS_AT_ONCE: usize = 64;
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// A look-up that failed is repeated after about this long, doubled each time up to the maximum, for as long
/// as it takes: until then the peer goes by rules that were taken back.
const REPEAT: Duration = Duration::from_millis(250);
const REPEAT_MAX: Duration = Duration::from_secs(30);
/// The pause before changes are listened to again that were told no more.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// What became of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judged {
    /// The answer counts, or nobody needs one any more.
    Done,
    /// There is none, or it may be from before a change.
    Again,
}

/// Peers that are to be looked up again, each once however often that is said before it is begun.
#[derive(Debug, Default)]
pub(crate) struct Reviews {
    due: Mutex<Due>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Due {
    queue: VecDeque<MeshKey>,
    queued: HashSet<MeshKey>,
}

/// What failed, and when it is tried again.
#[derive(Debug, Default)]
struct Later {
    at: BTreeSet<(Instant, MeshKey)>,
    attempts: HashMap<MeshKey, u32>,
}

impl Reviews {
    pub(crate) fn add(&self, keys: impl IntoIterator<Item = MeshKey>) {
        let mut due = self.due();
        let Due { queue, queued } = &mut *due;
        queue.extend(keys.into_iter().filter(|key| queued.insert(*key)));
        drop(due);
        self.wake.notify_one();
    }

    /// Has them judged for ever, so many at once.
    pub(crate) async fn run<F>(&self, at_once: usize, judge: impl Fn(MeshKey) -> F)
    where
        F: Future<Output = Judged>,
    {
        let (mut running, mut later) = (FuturesUnordered::new(), Later::default());
        let judge = &judge;
        loop {
            while running.len() < at_once
                && let Some(key) = self.pop()
            {
                running.push(async move { (key, judge(key).await) });
            }
            tokio::select! {
                Some((key, judged)) = running.next() => match judged {
                    Judged::Done => later.forget(key),
                    Judged::Again => later.put(key, Instant::now()),
                },
                () = self.wake.notified() => {}
                () = later.due() => self.add(later.take(Instant::now())),
            }
        }
    }

    fn pop(&self) -> Option<MeshKey> {
        let mut due = self.due();
        let key = due.queue.pop_front()?;
        due.queued.remove(&key);
        Some(key)
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Later {
    fn put(&mut self, key: MeshKey, now: Instant) {
        let attempts = self.attempts.entry(key).or_insert(0);
        let pause = (REPEAT * (1 << (*attempts).min(16))).min(REPEAT_MAX);
        *attempts += 1;
        // Not all of them at the same moment, nor all endpoints.
        let [share] = tabbify_process::random::<1>();
        let pause = pause / 2 + pause * u32::from(share) / 512;
        self.at.insert((now + pause, key));
    }

    fn forget(&mut self, key: MeshKey) {
        self.attempts.remove(&key);
    }

    /// Returns when the next is due, if there is one.
    async fn due(&self) {
        match self.at.first() {
            Some((at, _)) => tokio::time::sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, now: Instant) -> Vec<MeshKey> {
        let mut keys = Vec::new();
        while let Some((at, key)) = self.at.first().copied()
            && at <= now
        {
            self.at.pop_first();
            keys.push(key);
        }
        keys
    }
}

/// Follows the changes that the resolver tells, if it tells any.
pub(crate) fn start(endpoint: &Arc<Endpoint>) {
    let Some(changes) = endpoint.resolver.changes() else {
        return;
    };
    let tasks = &endpoint.tasks;
    let follows = follow(Arc::clone(endpoint), changes);
    tasks.spawn("mesh-changes", Importance::Detached, follows);
    let (reviewed, stop) = (Arc::clone(endpoint), endpoint.stop.clone());
    tasks.spawn("mesh-review", Importance::Detached, async move {
        let judging = reviewed
            .reviews
            .run(REVIEWS_AT_ONCE, |key| judge(&reviewed, key));
        let _ = stop.run_until_cancelled(judging).await;
    });
}

async fn follow(endpoint: Arc<Endpoint>, mut changes: Box<dyn Changes>) {
    loop {
        let changed = tokio::select! {
            changed = told(&mut changes, &*endpoint.resolver) => changed,
            () = endpoint.stop.cancelled() => return,
        };
        // First: whoever is being looked up meanwhile is looked up again.
        endpoint.doubts.add(changed.clone());
        match changed {
            Changed::Gone(key) => {
                endpoint.revoke(key);
            }
            changed => endpoint.reviews.add(endpoint.concerned(&changed)),
        }
    }
}

/// The next change. Where no more are told, it is listened anew, and everything may have changed meanwhile.
pub(crate) async fn told(changes: &mut Box<dyn Changes>, resolver: &dyn Resolver) -> Changed {
    if let Some(changed) = changes.next().await {
        return changed;
    }
    tracing::warn!("changes are not heard any more; listening anew");
    loop {
        tokio::time::sleep(LISTEN_AGAIN).await;
        if let Some(again) = resolver.changes() {
            *changes = again;
            return Changed::Everything;
        }
    }
}

/// Looks up what a peer may reach that we have dialed, and that begins to dial us. It is not repeated here:
/// the peer repeats its SYN.
pub(crate) fn look_up(endpoint: &Arc<Endpoint>, key: MeshKey) {
    let (tasks, endpoint) = (endpoint.tasks.clone(), Arc::clone(endpoint));
    tasks.spawn("mesh-lookup", Importance::Detached, async move {
        judge(&endpoint, key).await;
    });
}

/// Asks again about a peer with a session.
async fn judge(endpoint: &Endpoint, key: MeshKey) -> Judged {
    if !endpoint.has(key) {
        return Judged::Done;
    }
    let asked = endpoint.doubts.ask();
    let found = tokio::time::timeout(REVIEW_TIMEOUT, endpoint.resolver.by_key(key)).await;
    let counts = match found {
        Ok(Ok(record)) if record.key == key && !record.is_forbidden() => {
            endpoint.renew(&record, asked)
        }
        // Nobody who can be believed takes anything back.
        Err(_) | Ok(Err(ResolveError::Unreachable(_) | ResolveError::Refused(_))) => {
            tracing::debug!(peer = %key, "peer not looked up again");
            return Judged::Again;
        }
        Ok(forbidden) => {
            tracing::debug!(peer = %key, ?forbidden, "peer may not talk to us any more");
            endpoint.refuse(key, asked)
        }
    };
    if counts { Judged::Done } else { Judged::Again }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn key(n: u8) -> MeshKey {
        MeshKey([n; 32])
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_repeated_later_and_later_until_it_does_not() {
        let (reviews, asked) = (Reviews::default(), RefCell::new(Vec::new()));
        let began = Instant::now();
        reviews.add([key(1), key(2), key(1)]);
        let run = reviews.run(8, |it| {
            let mut asked = asked.borrow_mut();
            asked.push((it, began.elapsed()));
            let times = asked.iter().filter(|(other, _)| *other == it).count();
            std::future::ready(match (it == key(1), times < 12) {
                (true, true) => Judged::Again,
                _ => Judged::Done,
            })
        });
        let _ = tokio::time::timeout(Duration::from_secs(600), run).await;
        let asked = asked.into_inner();
        let of = |n| asked.iter().filter(move |(it, _)| *it == key(n));
        assert_eq!((of(1).count(), of(2).count()), (12, 1));
        let times: Vec<Duration> = of(1).map(|(_, at)| *at).collect();
        let pauses: Vec<Duration> = times.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(
            pauses[0] >= REPEAT / 2 && pauses[0] <= REPEAT * 2,
            "{pauses:?}"
        );
        assert!(
            pauses.iter().all(|pause| *pause <= REPEAT_MAX + REPEAT),
            "{pauses:?}"
        );
        assert!(pauses[10] >= REPEAT_MAX / 2, "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_what_is_due_meanwhile_is_not_forgotten() {
        let (reviews, now, most) = (Reviews::default(), Cell::new(0), Cell::new(0));
        let total = Cell::new(0);
        reviews.add((0..100).map(key));
        let judge = async |it: MeshKey| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            total.set(total.get() + 1);
            if total.get() == 1 {
                // While it is judged, it becomes due again.
                reviews.add([it]);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            now.set(now.get() - 1);
            Judged::Done
        };
        let run = reviews.run(8, judge);
        let _ = tokio::time::timeout(Duration::from_secs(60), run).await;
        assert_eq!((most.get(), total.get()), (8, 101));
    }
}
