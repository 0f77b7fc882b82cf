//! What an app has printed, one JSON object a line, as long as the caller listens.

use tabbify_api::auth::scope;
use tabbify_api::logs::{LogLine, LogQuery, LogReader};
use tabbify_process::chain;
use tabbify_types::{AppId, Timestamp};

use super::Call;
use super::ndjson::{self, Line, Source};
use crate::answer::{Answer, BodyError};
use crate::config::LOG_TAIL_MAX;
use crate::error::Refusal;

/// `GET /v1/apps/{id}/logs?tail=&since=&follow=`.
pub(crate) async fn read(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let known = call.caller_on(scope::APPS_READ, app)?;
    call.app(&known, app, |_| ())?;
    let query = call.query(&["tail", "since", "follow"])?;
    let tail = query.parsed::<usize>("tail")?.unwrap_or(LOG_TAIL_MAX);
    let query = LogQuery {
        since: query.parsed::<Timestamp>("since")?,
        tail: Some(tail.min(LOG_TAIL_MAX)),
        follow: query.flag("follow")?,
    };
    let opened = call.node.logs.open(app, query).await;
    let lines = Lines(opened.map_err(Refusal::Logs)?);
    Ok(ndjson::answer(lines, call.leash(known)))
}

struct Lines(Box<dyn LogReader>);

impl Source for Lines {
    type Item = LogLine;

    async fn next(&mut self) -> Result<Option<Line<LogLine>>, BodyError> {
        let line = self.0.next().await.inspect_err(|error| {
            tracing::error!(error = %chain(error), "an app's output cannot be read on");
        })?;
        Ok(line.map(Line::Object))
    }
}
