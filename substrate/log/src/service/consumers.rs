//! `/v1/log/consumers` and what is below it.

use http::{Method, Request};
use hyper::body::Incoming;
use tabbify_api::consumers::{At, ConsumerError, ConsumerName};
use tabbify_api::log::LogScope;
use tabbify_api::{ErrorCode, Problem};

use super::Shared;
use super::answer::{self, Answer};
use super::handle::{bad_request, json, only, query};
use crate::wire::problem;

/// Answers a request for the path `rest` below the list.
pub(super) async fn route(
    shared: &Shared,
    scope: LogScope,
    rest: &str,
    request: Request<Incoming>,
) -> Result<Answer, Box<Problem>> {
    let consumers = shared.consumers.client(scope);
    let Some(below) = rest.strip_prefix('/') else {
        only(&request, &Method::GET)?;
        return answered(consumers.list().await);
    };
    let (name, action) = below.split_once('/').unwrap_or((below, ""));
    let name: ConsumerName = name
        .parse()
        .map_err(|error| bad_request(&format!("{error}")))?;
    if action == "parked" {
        only(&request, &Method::GET)?;
        let query = query(&request)?;
        return answered(consumers.parked(name, query.after, query.limit).await);
    }
    if action.is_empty() {
        return match *request.method() {
            Method::PUT => {
                let (consumer, _room) = json(shared, request).await?;
                answered(consumers.create(name, consumer).await)
            }
            Method::GET => answered(consumers.status(name).await),
            Method::DELETE => finished(consumers.remove(name).await),
            _ => Err(problem::plain(
                ErrorCode::MethodNotAllowed,
                "a consumer takes GET, PUT, DELETE",
            )),
        };
    }
    only(&request, &Method::POST)?;
    match action {
        "next" => {
            // The wait must not hold a place among the bodies.
            let poll = json(shared, request).await?.0;
            answered(consumers.next(name, poll).await)
        }
        "ack" => {
            let (ack, _room) = json(shared, request).await?;
            finished(consumers.ack(name, ack).await)
        }
        "nack" => {
            let (nack, _room) = json(shared, request).await?;
            finished(consumers.nack(name, nack).await)
        }
        "retry" => {
            let (At { position }, _room) = json(shared, request).await?;
            finished(consumers.retry(name, position).await)
        }
        "drop" => {
            let (At { position }, _room) = json(shared, request).await?;
            finished(consumers.drop_parked(name, position).await)
        }
        "reset" => {
            let (At { position }, _room) = json(shared, request).await?;
            answered(consumers.reset(name, position).await)
        }
        _ => Err(problem::plain(ErrorCode::NotFound, action)),
    }
}

fn answered<T: serde::Serialize>(result: Result<T, ConsumerError>) -> Result<Answer, Box<Problem>> {
    result
        .map(|value| answer::json(&value))
        .map_err(|error| problem::of_consumer(&error))
}

fn finished(result: Result<(), ConsumerError>) -> Result<Answer, Box<Problem>> {
    result
        .map(|()| answer::done())
        .map_err(|error| problem::of_consumer(&error))
}
