//! Who asks, and what they may: the questions that every order and every change to people begins with.

use tabbify_api::auth::AuthError;
use tabbify_api::auth::issue::{API_AUDIENCE, Caller, RequestError};
use tabbify_api::auth::people::CONSOLE_AUDIENCE;
use tabbify_token::{Claims, Kind, TokenError};

use crate::authority::Inner;
use crate::checker::refused;

impl Inner {
    /// Who asks: the bearer of a token of one of `kinds`, over a connection that has proven its key.
    pub(crate) fn asker(
        &self,
        caller: &Caller<'_>,
        kinds: &[Kind],
    ) -> Result<Claims, RequestError> {
        self.counted(caller, self.known(caller, kinds))
    }

    /// The same answer, unless its source has had too many like it.
    pub(crate) fn counted<T>(
        &self,
        caller: &Caller<'_>,
        answer: Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        match &answer {
            // Whoever comes with a token that has ended was known.
            Err(RequestError::Caller(AuthError::Expired(_))) => answer,
            Err(RequestError::Caller(_)) => {
                let now = self.now();
                let told = self.by_source.take(caller.source, now);
                self.refusals.count("token", None, !told, now);
                if told {
                    answer
                } else {
                    Err(AuthError::RateLimited.into())
                }
            }
            _ => answer,
        }
    }

    fn known(&self, caller: &Caller<'_>, kinds: &[Kind]) -> Result<Claims, RequestError> {
        let invalid = |error: TokenError| RequestError::from(refused(&error));
        let (verifier, now) = (self.checker.verifier(), self.now());
        let claims = match verifier.verify(caller.token, kinds, API_AUDIENCE, now) {
            // A person at the console asks with the console's session.
            Err(TokenError::Audience) if kinds.contains(&Kind::User) => {
                verifier.verify(caller.token, &[Kind::User], CONSOLE_AUDIENCE, now)
            }
            verified => verified,
        };
        let claims = claims.map_err(invalid)?;
        claims
            .check_holder(caller.proven.as_ref())
            .map_err(invalid)?;
        Ok(claims)
    }
}

pub(crate) fn allows(asker: &Claims, scope: &str) -> bool {
    scope.parse().is_ok_and(|scope| asker.allows(&scope))
}

/// # Errors
/// [`RequestError::Forbidden`] with the scope that is missing.
pub(crate) fn may(asker: &Claims, scope: &str) -> Result<(), RequestError> {
    match allows(asker, scope) {
        true => Ok(()),
        false => Err(RequestError::Forbidden(format!(
            "it needs the scope {scope}"
        ))),
    }
}

pub(crate) fn of_kind(asker: &Claims, kind: Kind, why: &str) -> Result<(), RequestError> {
    match asker.kind == kind {
        true => Ok(()),
        false => Err(RequestError::Forbidden(format!(
            "{why}; a token of kind {} does not do",
            asker.kind
        ))),
    }
}
