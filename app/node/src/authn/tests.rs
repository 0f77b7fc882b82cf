//! Who gets in, with an authority of fixed words.

use tabbify_api::auth::{IssuedToken, PlatformId};
use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_types::Timestamp;

use super::*;

const APP: &str = "0191e7c2-1111-7222-8333-444455556666";

/// Tokens are `<tenant>/<scope>`, sessions `session/<tenant>`; `old` has expired.
#[derive(Debug)]
struct Words;

fn identity(tenant: &str, scope: &str) -> Identity {
    Identity {
        subject: format!("user:{tenant}"),
        tenant: tenant.parse().unwrap(),
        kind: "user".to_owned(),
        scopes: vec![scope.to_owned()],
        expires: Timestamp::default(),
    }
}

impl Authority for Words {
    fn platform(&self) -> PlatformId {
        PlatformId("test".to_owned())
    }
    fn jwks(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    fn exchange(&self, _: &str) -> BoxFuture<'_, Result<IssuedToken, AuthError>> {
        Box::pin(async { Err(AuthError::RateLimited) })
    }
    fn verify(&self, token: &str) -> Result<Identity, AuthError> {
        match token.split_once('/') {
            _ if token == "old" => Err(AuthError::Expired(Timestamp::default())),
            Some((tenant @ ("main" | "acme"), scope)) => Ok(identity(tenant, scope)),
            _ => Err(AuthError::Invalid(token.to_owned())),
        }
    }
    fn open_ticket(&self, _: &Identity, _: AppId) -> Result<IssuedToken, AuthError> {
        Err(AuthError::RateLimited)
    }
    fn redeem_ticket(&self, _: &str, _: AppId) -> Result<IssuedToken, AuthError> {
        Err(AuthError::RateLimited)
    }
    fn verify_session(&self, session: &str, app: AppId) -> Result<Identity, AuthError> {
        match session.strip_prefix("session/") {
            Some(tenant) if app.to_string() == APP => Ok(identity(tenant, "")),
            _ => Err(AuthError::Invalid(session.to_owned())),
        }
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn open(
    access: Access,
    by_host: bool,
    lines: &[(&'static str, &'static str)],
) -> Result<Admitted, Refusal> {
    let door = Door {
        app: APP.parse().unwrap(),
        tenant: Tenant::main(),
        access,
        by_host,
        called: APP.to_owned(),
    };
    admit(&Words, &headers(lines), &door)
}

#[test]
fn a_private_app() {
    let check = |by_host: bool,
                 lines: &[(&'static str, &'static str)],
                 expected: Result<&str, ErrorCode>| {
        let found = open(Access::Private, by_host, lines);
        let found = found
            .map(|admitted| admitted.identity.map_or_else(String::new, |i| i.subject))
            .map_err(|error| error.code());
        assert_eq!(found, expected.map(str::to_owned), "{by_host} {lines:?}");
    };
    let mine = ("authorization", "Bearer main/app:open");
    check(false, &[], Err(ErrorCode::TokenMissing));
    check(false, &[mine], Ok("user:main"));
    check(
        false,
        &[("authorization", "bearer   main/*")],
        Ok("user:main"),
    );
    check(
        false,
        &[("x-tabbify-token", "main/app:open")],
        Ok("user:main"),
    );
    check(
        false,
        &[("authorization", "Basic YTpi")],
        Err(ErrorCode::TokenMissing),
    );
    check(
        false,
        &[("authorization", "Bearer forged")],
        Err(ErrorCode::TokenInvalid),
    );
    check(
        false,
        &[("authorization", "Bearer old")],
        Err(ErrorCode::TokenExpired),
    );
    check(
        false,
        &[("authorization", "Bearer main/apps:read")],
        Err(ErrorCode::Forbidden),
    );
    // Another tenant's app does not exist.
    check(
        false,
        &[("authorization", "Bearer acme/*")],
        Err(ErrorCode::UnknownApp),
    );
    check(
        false,
        &[("authorization", "Bearer acme/none")],
        Err(ErrorCode::UnknownApp),
    );
    // The explicit header decides alone.
    check(
        false,
        &[("x-tabbify-token", "forged"), mine],
        Err(ErrorCode::TokenInvalid),
    );
    check(
        false,
        &[("x-tabbify-token", "main/*"), ("x-tabbify-token", "main/*")],
        Err(ErrorCode::BadRequest),
    );
    check(
        false,
        &[mine, ("authorization", "Bearer main/*")],
        Err(ErrorCode::BadRequest),
    );
    check(
        false,
        &[("authorization", "Bearer\tmain/*")],
        Ok("user:main"),
    );
    // Sessions count on the app's host alone.
    let session = ("cookie", "a=b; tabbify_session=session/main; c=d");
    check(true, &[session], Ok("user:main"));
    check(false, &[session], Err(ErrorCode::TokenMissing));
    check(
        true,
        &[session, ("authorization", "Bearer the-apps-own")],
        Ok("user:main"),
    );
    check(
        true,
        &[("cookie", "tabbify_session=old")],
        Err(ErrorCode::TokenInvalid),
    );
    check(
        true,
        &[("cookie", "tabbify_session=x; tabbify_session=session/main")],
        Ok("user:main"),
    );
    check(
        true,
        &[("cookie", "tabbify_session=session/acme")],
        Err(ErrorCode::UnknownApp),
    );
    check(
        true,
        &[("cookie", "tabbify_session=old"), mine],
        Ok("user:main"),
    );
}

#[test]
fn a_public_app_and_whose_the_authorization_is() {
    let check = |line: Option<(&'static str, &'static str)>, user: Option<&str>, ours: bool| {
        let lines: Vec<_> = line.into_iter().collect();
        let admitted = open(Access::Public, true, &lines).unwrap();
        let found = admitted.identity.map(|identity| identity.subject);
        assert_eq!(
            (found.as_deref(), admitted.authorization_is_ours),
            (user, ours),
            "{line:?}"
        );
    };
    check(None, None, false);
    check(
        Some(("authorization", "Bearer main/x")),
        Some("user:main"),
        true,
    );
    check(Some(("authorization", "Bearer old")), None, true);
    check(Some(("authorization", "Bearer the-apps-own")), None, false);
    check(Some(("authorization", "Basic YTpi")), None, false);
    check(Some(("authorization", "Bearer acme/*")), None, true);
    check(
        Some(("cookie", "tabbify_session=session/main")),
        Some("user:main"),
        false,
    );
    let forged = open(Access::Public, true, &[("x-tabbify-token", "forged")]);
    assert_eq!(forged.unwrap_err().code(), ErrorCode::TokenInvalid);
}

#[test]
fn rest_callers() {
    let check = |lines: &[(&'static str, &'static str)], scope, expected: Option<ErrorCode>| {
        let found = caller(&Words, &headers(lines), scope)
            .err()
            .map(|error| error.code());
        assert_eq!(found, expected, "{lines:?}");
    };
    check(&[], None, Some(ErrorCode::TokenMissing));
    check(
        &[("authorization", "Bearer main/deploy")],
        Some(scope::DEPLOY),
        None,
    );
    check(&[("authorization", "Bearer main/deploy")], None, None);
    check(&[("x-tabbify-token", "main/*")], Some(scope::DEPLOY), None);
    check(
        &[("authorization", "Bearer main/deploy")],
        Some(scope::APPS_READ),
        Some(ErrorCode::Forbidden),
    );
    check(
        &[("authorization", "Bearer old")],
        None,
        Some(ErrorCode::TokenExpired),
    );
    check(
        &[("authorization", "Bearer ")],
        None,
        Some(ErrorCode::TokenInvalid),
    );
    // A cookie never signs in to the REST.
    check(
        &[("cookie", "tabbify_session=session/main")],
        None,
        Some(ErrorCode::TokenMissing),
    );
}
