//! Step 3: host and path → what the request is for. Pure.
//!
//! The host goes first: on an app's host every path belongs to the app, `/v1` too, so that no page
//! of an app shares an origin with the platform.

use tabbify_api::apps::APP_PATH_PREFIX;
use tabbify_types::{AppId, AppName, Tenant};

/// Path on an app's host that exchanges a ticket for a session.
pub(crate) const OPEN_PATH: &str = "/.tabbify/open";

/// What a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// The platform's own REST; the path is as it came.
    Platform,
    /// Signs a browser in to an app.
    Open {
        /// Whose app.
        tenant: Tenant,
        /// Its name.
        name: AppName,
    },
    /// An app, by its host.
    Host {
        /// Whose app.
        tenant: Tenant,
        /// Its name.
        name: AppName,
    },
    /// An app, by `/app/<uuid>/<rest>`.
    Path {
        /// The app.
        app: AppId,
        /// Path at the app, starting with a slash.
        rest: &'a str,
    },
    /// `/app/` with something that is not an app id.
    BadUuid(&'a str),
    /// Nobody's host.
    UnknownHost,
}

/// Decides what `path` on `host` is for. `host` may have a port, in any case of letters; `None` is
/// a request of HTTP/1.0 without one. `base` is the platform's own host.
pub(crate) fn route<'a>(host: Option<&str>, path: &'a str, base: &str) -> Route<'a> {
    let Some(host) = host else {
        return by_path(path);
    };
    let Some(host) = without_port(host) else {
        return Route::UnknownHost;
    };
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    if host == base || is_loopback(host) {
        return by_path(path);
    }
    let label = host
        .strip_suffix(base)
        .and_then(|rest| rest.strip_suffix('.'));
    match label.and_then(app_of_label) {
        Some((tenant, name)) if path == OPEN_PATH => Route::Open { tenant, name },
        Some((tenant, name)) => Route::Host { tenant, name },
        None => Route::UnknownHost,
    }
}

/// The host of an app below `base`, without a port: the inverse of [`route`].
pub(crate) fn host_of(tenant: &Tenant, name: &AppName, base: &str) -> String {
    if *tenant == Tenant::main() {
        format!("{name}.{base}")
    } else {
        format!("{name}--{tenant}.{base}")
    }
}

fn by_path(path: &str) -> Route<'_> {
    let Some(rest) = path.strip_prefix(APP_PATH_PREFIX) else {
        return Route::Platform;
    };
    let (id, rest) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    match id.parse() {
        Ok(app) => Route::Path { app, rest },
        Err(_) => Route::BadUuid(id),
    }
}

/// `<app>` in the first tenant, `<app>--<tenant>` elsewhere; one host per app, so `--main` is none.
fn app_of_label(label: &str) -> Option<(Tenant, AppName)> {
    match label.split_once("--") {
        None => Some((Tenant::main(), label.parse().ok()?)),
        Some((name, tenant)) => {
            let tenant: Tenant = tenant.parse().ok()?;
            (tenant != Tenant::main()).then_some((tenant, name.parse().ok()?))
        }
    }
}

/// The host's name; `None` if what follows it is not a port.
fn without_port(host: &str) -> Option<&str> {
    let name_len = if host.starts_with('[') {
        host.find(']')? + 1
    } else {
        host.find(':').unwrap_or(host.len())
    };
    let (name, port) = host.split_at(name_len);
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(digits);
    is_port.then_some(name)
}

fn is_loopback(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const APP: &str = "0191e7c2-1111-7222-8333-444455556666";

    fn on_host(tenant: &str, name: &str) -> Route<'static> {
        Route::Host {
            tenant: tenant.parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    #[test]
    fn hosts() {
        for (host, expected) in [
            ("localhost", Route::Platform),
            ("LOCALHOST:8090", Route::Platform),
            ("127.0.0.1:8090", Route::Platform),
            ("[::1]:8090", Route::Platform),
            ("shop.localhost:8090", on_host("main", "shop")),
            ("Shop.Localhost.:8090", on_host("main", "shop")),
            ("shop--acme.localhost", on_host("acme", "shop")),
            ("shop--main.localhost", Route::UnknownHost),
            ("shop---x.localhost", Route::UnknownHost),
            ("a.b.localhost", Route::UnknownHost),
            (".localhost", Route::UnknownHost),
            ("evil.example", Route::UnknownHost),
            ("notlocalhost", Route::UnknownHost),
            ("localhost.evil.example", Route::UnknownHost),
            ("[::2]", Route::UnknownHost),
            ("[::1", Route::UnknownHost),
            ("[::1]x", Route::UnknownHost),
            ("localhost:80\"x", Route::UnknownHost),
            ("localhost@evil:80", Route::UnknownHost),
            ("", Route::UnknownHost),
        ] {
            assert_eq!(
                route(Some(host), "/v1/apps", "localhost"),
                expected,
                "{host}"
            );
        }
        assert_eq!(route(None, "/", "localhost"), Route::Platform);
        let (tenant, name) = ("acme".parse().unwrap(), "shop".parse().unwrap());
        assert_eq!(host_of(&tenant, &name, "localhost"), "shop--acme.localhost");
        assert_eq!(
            host_of(&Tenant::main(), &name, "localhost"),
            "shop.localhost"
        );
    }

    #[test]
    fn paths() {
        let app: AppId = APP.parse().unwrap();
        fn at(path: &str) -> Route<'_> {
            route(Some("localhost"), path, "localhost")
        }
        let (root, deep) = (format!("/app/{APP}"), format!("/app/{APP}/a/../b"));
        assert_eq!(at(&root), Route::Path { app, rest: "/" });
        let rest = "/a/../b";
        assert_eq!(at(&deep), Route::Path { app, rest });
        assert_eq!(at("/app/nope/x"), Route::BadUuid("nope"));
        assert_eq!(at("/app/"), Route::BadUuid(""));
        assert_eq!(at("/apple"), Route::Platform);
        assert_eq!(at(OPEN_PATH), Route::Platform);
        let open = route(Some("shop.localhost"), OPEN_PATH, "localhost");
        assert!(matches!(open, Route::Open { .. }));
        let deep = format!("/app/{APP}/x");
        assert_eq!(
            route(Some("shop.localhost"), &deep, "localhost"),
            on_host("main", "shop")
        );
    }

    proptest! {
        #[test]
        fn any_text_has_a_route(host in "\\PC{0,40}", path in "/\\PC{0,40}") {
            let _ = route(Some(&host), &path, "localhost");
        }

        #[test]
        fn an_app_host_is_never_the_platform(name in "[a-z][a-z0-9]{0,10}", path in "/[ -~]{0,30}") {
            let host = format!("{name}.localhost:8090");
            let on_app = matches!(
                route(Some(&host), &path, "localhost"),
                Route::Host { .. } | Route::Open { .. }
            );
            prop_assert!(on_app);
        }
    }
}
