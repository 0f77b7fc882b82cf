//! Questions to the service: with the token of now, over connections that are kept between them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{Request, header};
use http_body_util::Full;
use tabbify_api::read::{PAGE_LEN_MAX, QueryError, WAIT_MS_MAX};
use tabbify_http::{Again, Client};
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Tasks, chain};

use super::broken;

/// LIMIT: how long a whole answer may take, beyond the longest wait that it may be asked for.
const ANSWER_WITHIN: Duration = Duration::from_millis(WAIT_MS_MAX + 30_000);
/// LIMIT: bytes of one answer: those of a page, six times that if every character is escaped, and what
/// is around them.
const ANSWER_LEN_MAX: usize = 8 * PAGE_LEN_MAX;

pub(super) struct Connections {
    client: Client,
    bearer: Bearer,
}

impl Connections {
    pub(super) fn new(connect: Arc<dyn Connect>, bearer: Bearer, tasks: &Tasks) -> Self {
        Self {
            client: Client::new("read client", connect, ANSWER_WITHIN, tasks),
            bearer,
        }
    }

    /// The whole answer to a `GET`.
    pub(super) async fn get(&self, path: &str) -> Result<(Parts, Bytes), QueryError> {
        let request = self.request(path)?;
        let asking = self.client.ask(request, Again::Harmless, ANSWER_LEN_MAX);
        let answered = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        let answered = answered.map_err(|late| broken("the read node does not answer", &late))?;
        answered.map_err(|error| broken("the read node does not answer", &chain(&error)))
    }

    fn request(&self, path: &str) -> Result<Request<Full<Bytes>>, QueryError> {
        let bearer = tabbify_http::bearer(&(self.bearer)());
        let bearer = bearer.map_err(|error| broken("the token is no token", &error))?;
        let request = Request::get(path)
            .header(header::HOST, "read")
            .header(header::AUTHORIZATION, bearer)
            .body(Full::default());
        request.map_err(|error| broken("the request is malformed", &error))
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
