//! Who gets in, by tokens that are words.

use tabbify_api::{BoxFuture, ErrorCode};
use tabbify_types::{MeshKey, Timestamp};

use super::*;

const APP: &str = "0191e7c2-1111-7222-8333-444455556666";
const OTHER: &str = "0191e7c2-1111-7222-8333-444455556667";

/// Tokens are `<tenant>/<scope>`, sessions `session/<tenant>`; `old` has expired.
#[derive(Debug)]
struct Words;

fn verified(tenant: &str, scope: &str) -> Verified {
    Verified {
        jti: format!("{tenant}/{scope}"),
        kind: "user".to_owned(),
        subject: format!("user:{tenant}"),
        tenant: tenant.parse().unwrap(),
        scopes: vec![scope.to_owned()],
        tags: Vec::new(),
        ulas: Vec::new(),
        key: None,
        issued: Timestamp::default(),
        expires: Timestamp::default(),
    }
}

impl Revocations for Words {
    fn check(
        &self,
        token: &str,
        kinds: &[&str],
        audience: &str,
        proven: Option<MeshKey>,
    ) -> Result<Verified, AuthError> {
        assert_eq!((kinds, proven), (&["user", "agent"][..], None));
        let invalid = || AuthError::Invalid(token.to_owned());
        let split = token.split_once('/').ok_or_else(invalid);
        match audience {
            API_AUDIENCE if token == "old" => Err(AuthError::Expired(Timestamp::default())),
            API_AUDIENCE => match split? {
                (tenant @ ("main" | "acme"), scope) => Ok(verified(tenant, scope)),
                _ => Err(invalid()),
            },
            audience if audience == session_audience(APP.parse().unwrap()) => match split? {
                ("session", tenant) => Ok(verified(tenant, "")),
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        }
    }

    fn still(&self, _: &Verified) -> Result<(), AuthError> {
        Ok(())
    }

    fn is_revoked(&self, _: &Verified) -> bool {
        false
    }

    fn changes(&self) -> u64 {
        0
    }

    fn changed(&self, _: u64) -> BoxFuture<'_, u64> {
        Box::pin(std::future::pending())
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
    admit(&Words, &headers(lines), &door(access, by_host))
}

fn door(access: Access, by_host: bool) -> Door {
    Door {
        app: APP.parse().unwrap(),
        tenant: Tenant::main(),
        access,
        by_host,
        called: APP.to_owned(),
    }
}

fn headers_of(authorization: &str) -> HeaderMap {
    let value = HeaderValue::try_from(authorization).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

#[test]
fn a_private_app() {
    let check = |by_host: bool,
                 lines: &[(&'static str, &'static str)],
                 expected: Result<&str, ErrorCode>| {
        let found = open(Access::Private, by_host, lines);
        let found = found
            .map(|admitted| {
                admitted
                    .known
                    .map_or_else(String::new, |known| known.subject)
            })
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
    // For this app alone, or for another alone.
    let bound = |app: &str| headers_of(&format!("Bearer main/app:open:{app}"));
    let opened = |app: &str| admit(&Words, &bound(app), &door(Access::Private, false));
    assert!(opened(APP).unwrap().known.is_some());
    assert_eq!(opened(OTHER).unwrap_err().code(), ErrorCode::Forbidden);
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
        let found = admitted.known.map(|known| known.subject);
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
    let check = |lines: &[(&'static str, &'static str)], expected: Result<&str, ErrorCode>| {
        let found = caller(&Words, &headers(lines));
        let found = found.map(|known| known.jti).map_err(|error| error.code());
        assert_eq!(found, expected.map(str::to_owned), "{lines:?}");
    };
    check(&[], Err(ErrorCode::TokenMissing));
    check(
        &[("authorization", "Bearer main/deploy")],
        Ok("main/deploy"),
    );
    check(&[("x-tabbify-token", "main/*")], Ok("main/*"));
    check(
        &[("authorization", "Bearer old")],
        Err(ErrorCode::TokenExpired),
    );
    check(
        &[("authorization", "Bearer ")],
        Err(ErrorCode::TokenInvalid),
    );
    // A cookie never signs in to the REST.
    check(
        &[("cookie", "tabbify_session=session/main")],
        Err(ErrorCode::TokenMissing),
    );
}
