//! Join tokens: used up by the first key that proves itself, by writing so under the token's own key
//! in the log. Two coordinators, or a use and a revocation, at once: the log takes one of them.

use std::time::Duration;

use tabbify_api::auth::AuthError;
use tabbify_api::auth::issue::{API_AUDIENCE, Admission, AdmitRequest, Caller, RequestError};
use tabbify_api::auth::scope;
use tabbify_api::log::{AppendError, Expect, Filter};
use tabbify_process::chain;
use tabbify_token::{Claims, Kind};
use tabbify_types::event::Event;
use tabbify_types::event::v1::TokenUsed;
use tabbify_types::{MeshKey, Position, Rev, Segment, SegmentGlob};

use crate::asker::{may, of_kind};
use crate::authority::{Inner, unavailable};
use crate::state::State;

/// LIMIT: events under one token's key: it is issued, used, revoked.
const HISTORY_MAX: usize = 16;
/// How long a token that another issuer has just issued may take to be heard of here.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
/// LIMIT: how often somebody else may be faster: each time, something final was written.
const ATTEMPTS_MAX: usize = 3;

/// What became of a token, read from the log itself.
#[derive(Debug, Default)]
struct History {
    rev: Rev,
    used: Option<MeshKey>,
    revoked: bool,
}

pub(crate) async fn admit(
    inner: &Inner,
    caller: &Caller<'_>,
    request: AdmitRequest,
) -> Result<Admission, RequestError> {
    let asker = inner.asker(caller, &[Kind::Service])?;
    of_kind(&asker, Kind::Service, "a service admits machines")?;
    may(&asker, scope::AUTH_ISSUE)?;
    let claims = inner
        .checker
        .claims(&request.token, &[Kind::Join], API_AUDIENCE);
    let admitted = match claims {
        Ok(claims) => use_up(inner, claims, request.key).await,
        Err(error) => Err(error),
    };
    admitted.map_err(|error| {
        let refusal = !matches!(error, AuthError::Unavailable(_));
        if refusal {
            tracing::info!(role = "auth", error = %chain(&error), "a join token is refused");
            inner.refusals.count("join", None, false, inner.now());
        }
        error.into()
    })
}

async fn use_up(inner: &Inner, claims: Claims, key: MeshKey) -> Result<Admission, AuthError> {
    let invalid = |text: &str| AuthError::Invalid(text.to_owned());
    let issued = |state: &State| state.token(&claims.jti).map(|token| token.position);
    let issued = tokio::time::timeout(HEARD_WITHIN, inner.checker.found(issued)).await;
    let Ok(Some(issued)) = issued else {
        return Err(invalid("it is not on record"));
    };
    for _ in 0..ATTEMPTS_MAX {
        let history = history(inner, &claims.jti, issued).await?;
        // The same key again is the same machine, which has not heard the answer; but not after the
        // token was revoked.
        if history.revoked {
            return Err(invalid("it was revoked"));
        }
        match history.used {
            Some(first) if first == key => return admission(claims, key),
            Some(_) => return Err(AuthError::Replayed),
            None => {}
        }
        let used = TokenUsed {
            jti: claims.jti.clone(),
            key,
        };
        let expect = Expect::Rev(history.rev);
        match inner
            .record(&claims.jti, vec![used.into()], Some(expect))
            .await
        {
            Ok(_) => return admission(claims, key),
            Err(AppendError::Conflict { .. }) => {}
            Err(error) => return Err(unavailable(&error)),
        }
    }
    Err(AuthError::Unavailable(
        "the token changes all the time".to_owned(),
    ))
}

async fn history(inner: &Inner, jti: &str, issued: Position) -> Result<History, AuthError> {
    let filter = Filter {
        key: Some(jti.to_owned()),
        ..Filter::segments([SegmentGlob::from(&Segment::auth())])
    };
    let mut history = History::default();
    let mut after = Position(issued.get().saturating_sub(1));
    loop {
        let page = inner.log.read(filter.clone(), after, HISTORY_MAX).await;
        let page = page.map_err(|error| unavailable(&error))?;
        for recorded in &page.events {
            history.rev = recorded.rev;
            match recorded.event().map_err(|error| unavailable(&error))? {
                Some(Event::TokenUsed(data)) => {
                    history.used.get_or_insert(data.key);
                }
                Some(Event::TokenRevoked(_)) => history.revoked = true,
                _ => {}
            }
        }
        if page.next_after >= page.head || page.next_after == after {
            return Ok(history);
        }
        after = page.next_after;
    }
}

fn admission(claims: Claims, key: MeshKey) -> Result<Admission, AuthError> {
    let host = claims
        .sub
        .strip_prefix("host:")
        .and_then(|host| host.parse().ok());
    let (Some(host), Some(terms)) = (host, claims.join) else {
        return Err(AuthError::Invalid("it names no machine".to_owned()));
    };
    Ok(Admission {
        jti: claims.jti,
        host,
        tenant: claims.tenant,
        tags: claims.tags,
        capabilities: terms.capabilities,
        key,
        root: terms.root,
        expires: claims.exp,
    })
}
