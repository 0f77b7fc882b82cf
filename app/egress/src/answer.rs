//! What a program is told that asks the proxy for what it does not get.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};

use crate::Refused;

/// A body of an answer: of the other end, or ours.
pub(crate) type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Why a request is not passed on.
#[derive(Debug)]
pub(crate) enum Not {
    /// It is not one that can be.
    Asked(&'static str),
    /// Nothing is reached; the app's people are told, too.
    Reached(Refused),
    /// The other end answers nothing that can be understood.
    Answered(String),
    /// The other end takes too long.
    Late,
}

impl From<Refused> for Not {
    fn from(refused: Refused) -> Self {
        Self::Reached(refused)
    }
}

impl Not {
    const fn status(&self) -> StatusCode {
        match self {
            Self::Asked(_) => StatusCode::BAD_REQUEST,
            Self::Reached(refused) if refused.is_forbidden() => StatusCode::FORBIDDEN,
            Self::Reached(Refused::Busy(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reached(Refused::Late { .. }) | Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::Reached(_) | Self::Answered(_) => StatusCode::BAD_GATEWAY,
        }
    }

    pub(crate) fn answer(&self) -> Response<Body> {
        let text = match self {
            Self::Asked(why) => format!("tabbify: {why}."),
            Self::Reached(refused) => refused.line(),
            Self::Answered(why) => format!("tabbify: {why}."),
            Self::Late => "tabbify: no answer in time.".to_owned(),
        };
        let mut answer = Response::new(whole(text + "\n"));
        *answer.status_mut() = self.status();
        let plain = HeaderValue::from_static("text/plain; charset=utf-8");
        answer.headers_mut().insert(header::CONTENT_TYPE, plain);
        answer
    }
}

/// A body that is there.
pub(crate) fn whole(text: String) -> Body {
    let never = |never: Infallible| match never {};
    Full::new(Bytes::from(text)).map_err(never).boxed_unsync()
}
