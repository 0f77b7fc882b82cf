//! What a machine asks about instances that were placed on it and are idle. What a guest may reach is kept for
//! an outage alone: while a coordinator can be asked, it is asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tabbify_api::BoxFuture;
use tabbify_api::doorbell::{DOOR_PATH, DoorAsk, DoorSaid, Doorbells};
use tabbify_api::mesh::ResolveError;
use tokio::time::Instant;

use super::{RemoteCoordinator, RequestFailed, count};

/// LIMIT: answers that are kept; when there are more, the oldest goes.
const KEPT_MAX: usize = 4096;

/// The last answers about guests.
#[derive(Debug, Default)]
pub(super) struct Kept(Mutex<BTreeMap<DoorAsk, (DoorSaid, Instant)>>);

impl Kept {
    fn keep(&self, ask: DoorAsk, said: DoorSaid, now: Instant) {
        let mut kept = self.lock();
        if kept.len() >= KEPT_MAX && !kept.contains_key(&ask) {
            let oldest = kept.iter().min_by_key(|(_, (_, at))| *at);
            let oldest = oldest.map(|(ask, _)| *ask);
            oldest.and_then(|oldest| kept.remove(&oldest));
        }
        kept.insert(ask, (said, now));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DoorAsk, (DoorSaid, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemoteCoordinator {
    async fn ask_of_door(&self, ask: DoorAsk) -> Result<DoorSaid, ResolveError> {
        let inner = &self.0;
        // By the clock that nobody sets.
        let now = Instant::now();
        count(&inner.counters.asked);
        match self.post::<DoorSaid>(DOOR_PATH, &ask).await {
            Ok(said) => {
                if ask.guest.is_some() {
                    inner.doors.keep(ask, said.clone(), now);
                }
                Ok(said)
            }
            Err(error) if error.is_no_answer() => {
                let kept = inner.doors.lock().get(&ask).cloned();
                match kept {
                    Some((said, at)) if now < at + inner.outage_grace => {
                        count(&inner.counters.outage);
                        Ok(said)
                    }
                    _ => Err(ResolveError::Unreachable(error.to_string())),
                }
            }
            Err(error) => {
                inner.doors.lock().remove(&ask);
                Err(match error {
                    RequestFailed::Unreachable(why) => ResolveError::Unreachable(why),
                    refused @ RequestFailed::Refused(_) => {
                        ResolveError::Refused(refused.to_string())
                    }
                })
            }
        }
    }
}

impl Doorbells for RemoteCoordinator {
    fn ask(&self, ask: DoorAsk) -> BoxFuture<'_, Result<DoorSaid, ResolveError>> {
        Box::pin(self.ask_of_door(ask))
    }
}
