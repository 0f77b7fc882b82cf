//! The consumers as one caller may use them. Whoever may read every segment that a consumer reads may
//! use it; a consumer made without naming segments reads what its maker could, for ever.

use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::consumers::{
    ACK_TIMEOUT_MS, ATTEMPTS, Ack, CONSUMERS_MAX, Consumer, ConsumerError, ConsumerName,
    ConsumerStatus, Consumers, Delivered, IN_FLIGHT_MAX, Nack, PARKED_MAX, Parked, Poll, Start,
};
use tabbify_api::log::{FILTER_GLOBS_MAX, LogScope, ReadError};
use tabbify_types::{Position, SegmentGlob};

use super::Shared;
use super::running::Running;
use super::state::{Snapshot, Stored};

/// Implements [`Consumers`].
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    scope: LogScope,
}

impl Client {
    pub(crate) const fn new(shared: Arc<Shared>, scope: LogScope) -> Self {
        Self { shared, scope }
    }

    fn may_read(&self, globs: &[SegmentGlob]) -> Result<(), ConsumerError> {
        let covered = |glob: &SegmentGlob| self.scope.read.iter().any(|read| read.covers(glob));
        match globs.iter().find(|glob| !covered(glob)) {
            None => Ok(()),
            Some(glob) => Err(ConsumerError::Forbidden {
                actor: self.scope.actor.clone(),
                glob: glob.clone(),
            }),
        }
    }

    fn get(&self, name: &ConsumerName) -> Result<Arc<Running>, ConsumerError> {
        let running = self.shared.get(name);
        let running = running.ok_or_else(|| ConsumerError::Unknown { name: name.clone() })?;
        self.may_read(running.globs())?;
        Ok(running)
    }

    async fn make(
        &self,
        name: ConsumerName,
        consumer: Consumer,
    ) -> Result<ConsumerStatus, ConsumerError> {
        check(&consumer)?;
        let globs = if consumer.filter.segments.is_empty() {
            self.scope.read.clone()
        } else {
            consumer.filter.segments.clone()
        };
        self.may_read(&globs)?;
        let _alone = self.shared.changing.lock().await;
        if let Some(running) = self.shared.get(&name) {
            self.may_read(running.globs())?;
            return if *running.consumer() == consumer && running.globs() == globs {
                Ok(running.status())
            } else {
                Err(ConsumerError::Exists { name })
            };
        }
        if self.shared.all().len() >= CONSUMERS_MAX {
            return Err(ConsumerError::TooMany {
                what: "consumers".to_owned(),
                max: CONSUMERS_MAX,
            });
        }
        let scope = LogScope {
            read: globs.clone(),
            ..self.scope.clone()
        };
        let head = self.shared.engine.client(scope).head();
        let start = match consumer.start {
            Start::Beginning => Position(0),
            Start::Head => head,
            Start::After(after) if after > head => {
                return Err(ConsumerError::Read(ReadError::BeyondHead { after, head }));
            }
            Start::After(after) => after,
        };
        let stored = Stored {
            owner: self.scope.actor.clone(),
            consumer,
            globs,
            state: Snapshot::at(start),
        };
        let restored = self.shared.restore(name.clone(), stored).await;
        let running = restored.map_err(|_| ConsumerError::Read(ReadError::Stopping))?;
        running.save().await?;
        self.shared.insert(name, Arc::clone(&running));
        Ok(running.status())
    }

    async fn end(&self, name: ConsumerName) -> Result<(), ConsumerError> {
        let _alone = self.shared.changing.lock().await;
        self.get(&name)?.remove().await?;
        self.shared.locked().remove(&name);
        Ok(())
    }

    fn usable(&self) -> Vec<ConsumerStatus> {
        let all = self.shared.all().into_iter();
        all.filter(|running| self.may_read(running.globs()).is_ok())
            .map(|running| running.status())
            .collect()
    }
}

fn within(what: &str, is: usize, most: usize) -> Result<(), ConsumerError> {
    if is <= most {
        return Ok(());
    }
    Err(ConsumerError::Invalid {
        detail: format!("{is} {what}, at most {most}"),
    })
}

fn check(consumer: &Consumer) -> Result<(), ConsumerError> {
    within("globs", consumer.filter.segments.len(), FILTER_GLOBS_MAX)?;
    within("types", consumer.filter.kinds.len(), FILTER_GLOBS_MAX)?;
    let bound = |holds: bool, detail: String| {
        let invalid = || ConsumerError::Invalid { detail };
        holds.then_some(()).ok_or_else(invalid)
    };
    let (timeout, attempts) = (consumer.ack_timeout_ms, consumer.attempts_max);
    bound(
        ACK_TIMEOUT_MS.contains(&timeout),
        format!("ack_timeout_ms is {timeout}, and may be {ACK_TIMEOUT_MS:?}"),
    )?;
    bound(
        ATTEMPTS.contains(&attempts),
        format!("attempts_max is {attempts}, and may be {ATTEMPTS:?}"),
    )
}

impl Consumers for Client {
    fn create(
        &self,
        name: ConsumerName,
        consumer: Consumer,
    ) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>> {
        Box::pin(self.make(name, consumer))
    }

    fn remove(&self, name: ConsumerName) -> BoxFuture<'_, Result<(), ConsumerError>> {
        Box::pin(self.end(name))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<ConsumerStatus>, ConsumerError>> {
        Box::pin(async { Ok(self.usable()) })
    }

    fn status(&self, name: ConsumerName) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>> {
        Box::pin(async move { Ok(self.get(&name)?.status()) })
    }

    fn next(
        &self,
        name: ConsumerName,
        poll: Poll,
    ) -> BoxFuture<'_, Result<Vec<Delivered>, ConsumerError>> {
        Box::pin(async move {
            let running = self.get(&name)?;
            running.next(&poll, &self.shared.closing).await
        })
    }

    fn ack(&self, name: ConsumerName, ack: Ack) -> BoxFuture<'_, Result<(), ConsumerError>> {
        Box::pin(async move {
            within("positions", ack.positions.len(), IN_FLIGHT_MAX)?;
            self.get(&name)?.ack(&ack)
        })
    }

    fn nack(&self, name: ConsumerName, nack: Nack) -> BoxFuture<'_, Result<(), ConsumerError>> {
        Box::pin(async move { self.get(&name)?.nack(&nack) })
    }

    fn parked(
        &self,
        name: ConsumerName,
        after: Position,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, ConsumerError>> {
        Box::pin(async move { Ok(self.get(&name)?.parked(after, limit.min(PARKED_MAX))) })
    }

    fn retry(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<(), ConsumerError>> {
        Box::pin(async move { self.get(&name)?.retry(position).await })
    }

    fn drop_parked(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<(), ConsumerError>> {
        Box::pin(async move { self.get(&name)?.drop_parked(position).await })
    }

    fn reset(
        &self,
        name: ConsumerName,
        position: Position,
    ) -> BoxFuture<'_, Result<ConsumerStatus, ConsumerError>> {
        Box::pin(async move {
            let running = self.get(&name)?;
            running.reset(position).await?;
            Ok(running.status())
        })
    }
}
