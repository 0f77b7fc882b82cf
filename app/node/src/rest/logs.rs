//! What an app has printed, one JSON object a line, as long as the caller listens.

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tabbify_api::auth::scope;
use tabbify_api::logs::{LogQuery, LogReader};
use tabbify_process::chain;
use tabbify_types::{AppId, Timestamp};

use super::Call;
use crate::answer::{Answer, BodyError};
use crate::config::LOG_TAIL_MAX;
use crate::error::Refusal;

/// Lines that are there anyway go out together, up to about this many bytes.
const BATCH_LEN: usize = 32 * 1024;

/// `GET /v1/apps/{id}/logs?tail=&since=&follow=`.
pub(crate) async fn read(call: Call<'_>, app: AppId) -> Result<Answer, Refusal> {
    let identity = call.identity(Some(scope::APPS_READ))?;
    call.app(&identity, app, |_| ())?;
    let query = call.query(&["tail", "since", "follow"])?;
    let follow = match query.get("follow") {
        None | Some("false" | "0") => false,
        Some("true" | "1" | "") => true,
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            return Err(Refusal::BadRequest(format!(
                "follow={other:?} is not true or false"
            )));
        }
    };
    let tail = query.parsed::<usize>("tail")?.unwrap_or(LOG_TAIL_MAX);
    let query = LogQuery {
        since: query.parsed::<Timestamp>("since")?,
        tail: Some(tail.min(LOG_TAIL_MAX)),
        follow,
    };
    let reader = call
        .node
        .logs
        .open(app, query)
        .await
        .map_err(Refusal::Logs)?;
    let body = StreamBody::new(lines(reader)).boxed_unsync();
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(answer)
}

/// The reader's lines. It is read only when the caller takes more, and dropped when they leave.
fn lines(
    reader: Box<dyn LogReader>,
) -> impl Stream<Item = Result<Frame<Bytes>, BodyError>> + Send + 'static {
    stream::try_unfold(reader, |mut reader| async move {
        let mut batch = BytesMut::new();
        let mut next = reader.next().await;
        loop {
            let Some(line) = next.map_err(broken)? else {
                let last = (!batch.is_empty()).then(|| (Frame::data(batch.freeze()), reader));
                return Ok(last);
            };
            let mut out = batch.writer();
            serde_json::to_writer(&mut out, &line)?;
            batch = out.into_inner();
            batch.put_u8(b'\n');
            if batch.len() >= BATCH_LEN {
                break;
            }
            match reader.next().now_or_never() {
                Some(more) => next = more,
                None => break,
            }
        }
        Ok(Some((Frame::data(batch.freeze()), reader)))
    })
}

fn broken(error: tabbify_api::logs::LogsError) -> BodyError {
    tracing::error!(error = %chain(&error), "an app's output cannot be read on");
    error.into()
}
