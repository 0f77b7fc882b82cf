//! Requests to the service: with the token of now, over connections that are kept between them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::Full;
use hyper::upgrade::Upgraded;
pub(super) use tabbify_http::{Again, Answer, Connection};
use tabbify_http::{AnswerError, Client};
use tabbify_process::connect::{Bearer, Connect};
use tabbify_process::{Tasks, chain};

use super::{Failed, broken, succeeded};

/// LIMIT: how long the head of an answer may take: a poll waits for half of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// What this client understands: frames wherever the service has them.
const ACCEPTED: HeaderValue =
    HeaderValue::from_static("application/vnd.tabbify.log-stream, application/json");

pub(super) struct Connections {
    client: Client,
    bearer: Bearer,
}

impl Connections {
    pub(super) fn new(connect: Arc<dyn Connect>, bearer: Bearer, tasks: &Tasks) -> Self {
        Self {
            client: Client::new("log client", connect, ANSWER_WITHIN, tasks),
            bearer,
        }
    }

    /// Sends a request and gives the head of its answer.
    pub(super) async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(Vec<u8>, Again)>,
    ) -> Result<Answer, Failed> {
        let (body, again) = match body {
            Some((body, again)) => (Bytes::from(body), again),
            None => (Bytes::new(), Again::Harmless),
        };
        let again = match method {
            Method::GET => Again::Harmless,
            _ => again,
        };
        let request = self.head(method, path, body)?;
        let answer = self.client.send(request, again).await;
        answer.map_err(|error| unanswered(&error))
    }

    /// A connection of its own that speaks `protocol` from here on, if the service grants it.
    pub(super) async fn upgrade(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<Upgraded, Failed> {
        let request = self.head(Method::GET, path, Bytes::new())?;
        let upgraded = self.client.upgrade(request, protocol).await;
        match upgraded.map_err(|error| unanswered(&error))? {
            Ok(upgraded) => Ok(upgraded),
            Err(answer) => {
                let refused = succeeded(Ok(*answer)).await.err();
                Err(refused.unwrap_or(Failed::Broken))
            }
        }
    }

    fn head(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Failed> {
        let bearer = tabbify_http::bearer(&(self.bearer)());
        let bearer = bearer.map_err(|error| broken("the token is no token", &error))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "log")
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, ACCEPTED)
            .body(Full::new(body));
        request.map_err(|error| broken("the request is malformed", &error))
    }
}

pub(super) fn unanswered(error: &AnswerError) -> Failed {
    broken("the log does not answer", &chain(error))
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections")
            .field("client", &self.client)
            .finish_non_exhaustive()
    }
}
