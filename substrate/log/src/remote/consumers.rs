//! The consumers of a log over the network: each call is one request.

use std::sync::Arc;

use http::Method;
use tabbify_api::BoxFuture;
use tabbify_api::consumers::{
    Ack, At, Consumer, ConsumerError, ConsumerName, ConsumerStatus, Consumers, Delivered, Nack,
    Parked, Poll,
};
use tabbify_api::log::{CONSUMERS_PATH, Filter, ReadError};
use tabbify_types::Position;

use super::connection::Again;
use super::{Failed, Shared, json, succeeded};
use crate::wire::problem;
use crate::wire::query::Query;

/// Implements [`Consumers`].
#[derive(Debug)]
pub(super) struct RemoteConsumers {
    shared: Arc<Shared>,
}

type Answer<'a, T> = BoxFuture<'a, Result<T, ConsumerError>>;

impl RemoteConsumers {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Answers with JSON.
    fn ask<'a, T: serde::de::DeserializeOwned + 'a>(
        &'a self,
        name: ConsumerName,
        method: Method,
        action: &str,
        body: Option<Vec<u8>>,
    ) -> Answer<'a, T> {
        let path = format!("{CONSUMERS_PATH}/{name}{action}");
        Box::pin(async move {
            let body = body.map(|body| (body, Again::Never));
            let asked = self.shared.connections.request(method, &path, body).await;
            json(asked).await.map_err(|failed| error(failed, &name))
        })
    }

    /// Answers that it is done.
    fn tell<'a>(
        &'a self,
        name: ConsumerName,
        method: Method,
        action: &str,
        body: Option<Vec<u8>>,
    ) -> Answer<'a, ()> {
        let path = format!("{CONSUMERS_PATH}/{name}{action}");
        Box::pin(async move {
            let body = Some((body.unwrap_or_default(), Again::Never));
            let told = self.shared.connections.request(method, &path, body).await;
            let told = succeeded(told).await;
            told.map(drop).map_err(|failed| error(failed, &name))
        })
    }
}

fn error(failed: Failed, name: &ConsumerName) -> ConsumerError {
    match failed {
        Failed::Refused(problem) => problem::to_consumer(*problem, name),
        Failed::Broken => ConsumerError::Read(ReadError::Stopping),
    }
}

fn body(value: &impl serde::Serialize) -> Option<Vec<u8>> {
    Some(serde_json::to_vec(value).expect("INVARIANT: our own shapes serialize"))
}

impl Consumers for RemoteConsumers {
    fn create(&self, name: ConsumerName, consumer: Consumer) -> Answer<'_, ConsumerStatus> {
        self.ask(name, Method::PUT, "", body(&consumer))
    }

    fn remove(&self, name: ConsumerName) -> Answer<'_, ()> {
        self.tell(name, Method::DELETE, "", None)
    }

    fn list(&self) -> Answer<'_, Vec<ConsumerStatus>> {
        Box::pin(async {
            let connections = &self.shared.connections;
            let asked = connections.request(Method::GET, CONSUMERS_PATH, None).await;
            json(asked).await.map_err(|failed| match failed {
                Failed::Refused(problem) => ConsumerError::Read(problem::to_read(*problem)),
                Failed::Broken => ConsumerError::Read(ReadError::Stopping),
            })
        })
    }

    fn status(&self, name: ConsumerName) -> Answer<'_, ConsumerStatus> {
        self.ask(name, Method::GET, "", None)
    }

    fn next(&self, name: ConsumerName, poll: Poll) -> Answer<'_, Vec<Delivered>> {
        self.ask(name, Method::POST, "/next", body(&poll))
    }

    fn ack(&self, name: ConsumerName, ack: Ack) -> Answer<'_, ()> {
        self.tell(name, Method::POST, "/ack", body(&ack))
    }

    fn nack(&self, name: ConsumerName, nack: Nack) -> Answer<'_, ()> {
        self.tell(name, Method::POST, "/nack", body(&nack))
    }

    fn parked(&self, name: ConsumerName, after: Position, limit: usize) -> Answer<'_, Vec<Parked>> {
        let filter = Filter::default();
        let query = Query {
            after,
            limit,
            filter,
        };
        self.ask(
            name,
            Method::GET,
            &format!("/parked?{}", query.encode()),
            None,
        )
    }

    fn retry(&self, name: ConsumerName, position: Position) -> Answer<'_, ()> {
        self.tell(name, Method::POST, "/retry", body(&At { position }))
    }

    fn drop_parked(&self, name: ConsumerName, position: Position) -> Answer<'_, ()> {
        self.tell(name, Method::POST, "/drop", body(&At { position }))
    }

    fn reset(&self, name: ConsumerName, position: Position) -> Answer<'_, ConsumerStatus> {
        self.ask(name, Method::POST, "/reset", body(&At { position }))
    }
}
