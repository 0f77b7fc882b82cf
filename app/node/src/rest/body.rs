//! Bodies that the node itself reads: whole JSON within a limit, or frame by frame.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use serde::de::DeserializeOwned;

use super::Call;
use crate::error::Refusal;

/// The next bytes of the body; `None` at its end. Trailers are dropped.
pub(crate) async fn next(call: Call<'_>, body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    let within = call.node.config.timeouts.body;
    loop {
        let frame = tokio::time::timeout(within, body.frame()).await;
        match frame.map_err(|_| Refusal::BodyStalled(within))? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Refusal::BodyBrokeOff(error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The body as a `T`, at most `limit` bytes of JSON.
pub(crate) async fn json<T: DeserializeOwned>(
    call: Call<'_>,
    body: &mut Incoming,
    limit: usize,
) -> Result<T, Refusal> {
    let too_large = || Refusal::TooLarge {
        what: "the body",
        limit: limit as u64,
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(data) = next(call, body).await? {
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    let read = serde_json::from_slice(&bytes);
    read.map_err(|error| Refusal::BadRequest(format!("the body is malformed: {error}")))
}
