//! What an app has printed, one JSON object a line, as long as the caller listens.

use std::sync::Arc;

use tabbify_api::auth::scope;
use tabbify_api::logs::{LogLine, LogQuery};
use tabbify_process::chain;
use tabbify_types::{AppId, Timestamp};
use tokio::time::timeout;

use super::Call;
use super::ndjson::{self, Line, QUIET_MAX, Source};
use crate::answer::{Answer, BodyError};
use crate::config::LOG_TAIL_MAX;
use crate::error::Refusal;
use crate::machine_logs::{Machine, Merged};
use crate::view::View;

/// `GET /v1/apps/{id}/logs?tail=&since=&follow=`.
pub(crate) async fn read(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_READ, app)?;
    let query = call.query(&["tail", "since", "follow"])?;
    let tail = query.parsed::<usize>("tail")?.unwrap_or(LOG_TAIL_MAX);
    let query = LogQuery {
        since: query.parsed::<Timestamp>("since")?,
        tail: Some(tail.min(LOG_TAIL_MAX)),
        follow: query.flag("follow")?,
    };
    let node = call.node;
    let machines = call.app_in_view(&known, app, View::machines_of)?;
    let here = node.logs.open(app, query.clone()).await;
    let here = here.map_err(Refusal::Logs)?;
    let elsewhere = machines.into_iter().filter(|(host, _)| *host != node.host);
    let machines = elsewhere.map(|(host, address)| Machine {
        host,
        address,
        dial: Arc::clone(&node.dial),
        tasks: node.tasks.clone(),
    });
    let lines = Merged::open(here, machines.collect(), app, &query, &node.clock).await;
    Ok(ndjson::answer(Lines(lines), call.leash(known)))
}

struct Lines(Merged);

impl Source for Lines {
    type Item = LogLine;
    type Error = BodyError;

    async fn next(&mut self) -> Result<Option<Line<LogLine>>, BodyError> {
        let Ok(next) = timeout(QUIET_MAX, self.0.next()).await else {
            return Ok(Some(Line::Blank));
        };
        let line = next.inspect_err(|error| {
            tracing::error!(error = %chain(error), "an app's output cannot be read on");
        })?;
        Ok(line.map(Line::Object))
    }
}
