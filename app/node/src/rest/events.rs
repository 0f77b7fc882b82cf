//! What has happened in the caller's tenant: its events, history first, then live if wanted.

use std::sync::Arc;

use tabbify_api::auth::scope;
use tabbify_api::log::{Delivery, Filter, Subscribe};
use tabbify_process::chain;
use tabbify_types::{Position, Recorded, SegmentGlob, Tenant};
use tokio::time::timeout;

use super::Call;
use super::ndjson::{self, Line, QUIET_MAX, Source};
use crate::answer::{Answer, BodyError};
use crate::error::Refusal;

/// `GET /v1/events?after=&segment=&type=&key=&follow=`.
pub(crate) fn read(call: Call<'_>) -> Result<Answer, Refusal> {
    let known = call.caller(scope::EVENTS_READ)?;
    let query = call.query(&["after", "segment", "type", "key", "follow"])?;
    let filter = Filter {
        segments: vec![segments(
            &known.tenant,
            query.get("segment").unwrap_or("**"),
        )?],
        kinds: query.get("type").map(str::to_owned).into_iter().collect(),
        key: query.get("key").map(str::to_owned),
    };
    let after = query.parsed::<Position>("after")?.unwrap_or_default();
    let follow = query.flag("follow")?;
    let log = call.node.writers.of(&known.identity());
    let subscription = log.subscribe(filter, after).map_err(Refusal::Log)?;
    let events = Events {
        subscription,
        follow,
    };
    Ok(ndjson::answer(events, call.leash(known)))
}

/// `segment` is a glob within the tenant, such as `apps`.
fn segments(tenant: &Tenant, segment: &str) -> Result<SegmentGlob, Refusal> {
    let glob = format!("tenant_{tenant}.{segment}").parse();
    glob.map_err(|error: tabbify_types::ParseError| Refusal::BadRequest(error.to_string()))
}

struct Events {
    subscription: Box<dyn Subscribe>,
    follow: bool,
}

impl Source for Events {
    type Item = Arc<Recorded>;
    type Error = BodyError;

    async fn next(&mut self) -> Result<Option<Line<Arc<Recorded>>>, BodyError> {
        loop {
            match timeout(QUIET_MAX, self.subscription.next()).await {
                Err(_) => return Ok(Some(Line::Blank)),
                Ok(Ok(Delivery::Event(event))) => return Ok(Some(Line::Object(event))),
                Ok(Ok(Delivery::CaughtUp(_))) if !self.follow => return Ok(None),
                Ok(Ok(Delivery::CaughtUp(_) | Delivery::Progress(_))) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error = %chain(&error), "events cannot be read on");
                    return Err(error.into());
                }
            }
        }
    }
}
