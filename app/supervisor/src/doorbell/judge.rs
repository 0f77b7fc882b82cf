//! What the platform says that a guest may reach. This machine asks, and has one budget at the coordinator for
//! everything: so nobody who rings makes it ask without end.
//!
//! ```text
//! knock ─▶ said within a second? ─no─▶ a place, and the peer's budget ─▶ coordinator
//!              yes: the same               none left: busy
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::doorbell::{DoorAsk, Doorbells};
use tabbify_api::mesh::ResolveError;
use tabbify_api::policy::Ports;
use tabbify_types::MeshKey;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// LIMIT: how long the platform may take to say what a caller may reach.
const JUDGED_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: questions that are under way at a time.
const ASKING_MAX: usize = 64;
/// LIMIT: questions that one peer may cause at once, and after what time one more.
const ASKS_AT_ONCE: u32 = 32;
const ASKS_REFILL: Duration = Duration::from_millis(100);
/// LIMIT: peers whose budgets are kept at one time; those that come then share one.
const PEERS_MAX: usize = 4096;
/// LIMIT: answers that are kept at a time, and how long: many callers of one wake come within that.
const ANSWERS_MAX: usize = 1024;
const ANSWERED_FOR: Duration = Duration::from_secs(1);

/// Why nothing is said of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unjudged {
    /// The machine asks as much as it may, or as it may for this peer.
    Busy,
    /// Nobody can tell now.
    Unknown,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Judge {
    doors: Option<Arc<dyn Doorbells>>,
    asking: Semaphore,
    budgets: Budgets,
    answers: Mutex<BTreeMap<DoorAsk, Arc<Answer>>>,
}

/// What was said last, and when it was asked for. Locked while it is asked for: others wait for the same.
type Answer = tokio::sync::Mutex<Option<(Ports, Instant)>>;

impl Judge {
    pub(super) fn new(doors: Option<Arc<dyn Doorbells>>) -> Self {
        Self {
            doors,
            asking: Semaphore::new(ASKING_MAX),
            budgets: Budgets::default(),
            answers: Mutex::default(),
        }
    }

    /// The ports that a guest who has just come, and is this peer, may reach.
    pub(super) async fn of_new(&self, ask: DoorAsk, peer: MeshKey) -> Result<Ports, Unjudged> {
        let place = async {
            let place = self.asking.try_acquire().ok()?;
            self.budgets.take(peer, Instant::now()).then_some(place)
        };
        self.judge(ask, place).await
    }

    /// The same of one who was let in. It costs its peer nothing: whoever has spent its budget is not let stay
    /// for that.
    pub(super) async fn again(&self, ask: DoorAsk) -> Result<Ports, Unjudged> {
        let place = async { self.asking.acquire().await.ok() };
        self.judge(ask, place).await
    }

    async fn judge<'a>(
        &'a self,
        ask: DoorAsk,
        place: impl Future<Output = Option<SemaphorePermit<'a>>>,
    ) -> Result<Ports, Unjudged> {
        let Some(doors) = &self.doors else {
            return Ok(Ports::NOTHING);
        };
        let answer = self.answer(ask);
        let judging = async {
            let mut answer = answer.lock().await;
            let now = Instant::now();
            if let Some((ports, at)) = &*answer
                && now < *at + ANSWERED_FOR
            {
                return Ok(ports.clone());
            }
            let _place = place.await.ok_or(Unjudged::Busy)?;
            let ports = match doors.ask(ask).await {
                Ok(said) => said.ports,
                Err(ResolveError::Refused(_)) => Ports::NOTHING,
                Err(error) => {
                    tracing::debug!(app = %ask.of.app, %error, "a guest is not looked up");
                    return Err(Unjudged::Unknown);
                }
            };
            *answer = Some((ports.clone(), now));
            Ok(ports)
        };
        let judged = timeout(JUDGED_WITHIN, judging).await;
        judged.unwrap_or(Err(Unjudged::Unknown))
    }

    /// Where the answer to a question is, or will be.
    fn answer(&self, ask: DoorAsk) -> Arc<Answer> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = answers.get(&ask) {
            return Arc::clone(known);
        }
        if answers.len() >= ANSWERS_MAX {
            let now = Instant::now();
            // What is locked is being asked for.
            answers.retain(|_, answer| match answer.try_lock() {
                Ok(answer) => answer
                    .as_ref()
                    .is_some_and(|(_, at)| now < *at + ANSWERED_FOR),
                Err(_) => true,
            });
        }
        let new = Arc::<Answer>::default();
        // Without room, it is nobody else's.
        if answers.len() < ANSWERS_MAX {
            answers.insert(ask, Arc::clone(&new));
        }
        new
    }
}

/// What each peer may still cause: when its budget is full again.
#[derive(Debug, Default)]
struct Budgets(Mutex<BTreeMap<Option<MeshKey>, Instant>>);

impl Budgets {
    /// Takes one from the budget of `peer`; false if nothing is left.
    fn take(&self, peer: MeshKey, now: Instant) -> bool {
        let mut budgets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut name = Some(peer);
        if budgets.len() >= PEERS_MAX && !budgets.contains_key(&name) {
            // A budget that is full says nothing that a new one would not.
            budgets.retain(|_, full_at| *full_at > now);
            if budgets.len() >= PEERS_MAX {
                name = None;
            }
        }
        let full_at = budgets.entry(name).or_insert(now);
        let then = (*full_at).max(now) + ASKS_REFILL;
        let is_left = then <= now + ASKS_REFILL * ASKS_AT_ONCE;
        if is_left {
            *full_at = then;
        }
        is_left
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tabbify_api::BoxFuture;
    use tabbify_api::doorbell::DoorSaid;

    use super::*;
    use crate::state::tests::of;

    const PEER: MeshKey = MeshKey([1; 32]);

    /// Says after a while that every port may be reached, and counts.
    #[derive(Debug, Default)]
    struct Slow(AtomicUsize);

    impl Doorbells for Slow {
        fn ask(&self, _: DoorAsk) -> BoxFuture<'_, Result<DoorSaid, ResolveError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                let (is_idle, ports) = (true, Ports::All);
                Ok(DoorSaid { is_idle, ports })
            })
        }
    }

    fn ask(instance: u32) -> DoorAsk {
        DoorAsk {
            of: of(1, instance),
            guest: Some(PEER),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_makes_it_ask_no_more_than_it_may() {
        let slow = Arc::<Slow>::default();
        let doors: Arc<dyn Doorbells> = Arc::<Slow>::clone(&slow);
        let judge = Judge::new(Some(doors));
        let asked = || slow.0.load(Ordering::Relaxed);
        // Those who come together cause one question.
        let together = (0..100).map(|_| judge.of_new(ask(0), PEER));
        for judged in futures_util::future::join_all(together).await {
            assert_eq!(judged, Ok(Ports::All));
        }
        assert_eq!(asked(), 1);
        let mut busy = 0;
        for instance in 1..=100 {
            busy += usize::from(judge.of_new(ask(instance), PEER).await == Err(Unjudged::Busy));
        }
        let most = usize::try_from(ASKS_AT_ONCE).unwrap() + 4;
        assert!(asked() <= most, "{} for one peer", asked());
        assert_eq!(busy + asked() - 1, 100);
        // Another one is served still, and whoever is in is looked up again.
        let other = MeshKey([2; 32]);
        assert_eq!(judge.of_new(ask(200), other).await, Ok(Ports::All));
        assert_eq!(judge.again(ask(201)).await, Ok(Ports::All));
        let before = asked();
        tokio::time::sleep(ANSWERED_FOR).await;
        assert_eq!(judge.of_new(ask(0), PEER).await, Ok(Ports::All));
        assert_eq!(asked(), before + 1, "an answer is not kept for long");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_questions_are_under_way() {
        let doors: Arc<dyn Doorbells> = Arc::<Slow>::default();
        let judge = Judge::new(Some(doors));
        let all = (0..100_u8).map(|n| judge.of_new(ask(n.into()), MeshKey([n; 32])));
        let all = futures_util::future::join_all(all).await;
        let busy = |it: &&Result<Ports, Unjudged>| **it == Err(Unjudged::Busy);
        assert_eq!(all.iter().filter(busy).count(), 100 - ASKING_MAX);
        for instance in 0..3_000 {
            drop(judge.answer(ask(instance)));
        }
        assert!(judge.answers.lock().unwrap().len() <= ANSWERS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn peers_without_end_share_a_budget() {
        let (budgets, now) = (Budgets::default(), Instant::now());
        let key = |n: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            MeshKey(bytes)
        };
        assert!((0..PEERS_MAX).all(|n| budgets.take(key(n), now)));
        let shared = (PEERS_MAX..2 * PEERS_MAX).filter(|n| budgets.take(key(*n), now));
        assert_eq!(shared.count(), usize::try_from(ASKS_AT_ONCE).unwrap());
        assert!(budgets.0.lock().unwrap().len() <= PEERS_MAX + 1);
        let later = now + ASKS_REFILL;
        assert!(
            budgets.take(key(3 * PEERS_MAX), later),
            "there is room again"
        );
    }
}
