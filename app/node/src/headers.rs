//! What changes in heads on their way through, both directions. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_SECURITY_POLICY, COOKIE, FORWARDED, HOST, SET_COOKIE,
    STRICT_TRANSPORT_SECURITY, TE, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use tabbify_api::apps::{COOKIE_PREFIX, PLATFORM_HEADER_PREFIX, USER_HEADER};
use tabbify_http::tokens;

/// Headers of one connection, not of the message (RFC 9110 7.6.1), beside those that `Connection`
/// names.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// What an app may not do to the platform's origin, which the path form shares with the console.
const SANDBOX: &str = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads";

/// What is told to the app about a request.
#[derive(Debug)]
pub(crate) struct Onward<'a> {
    /// Who called.
    pub(crate) client: IpAddr,
    /// Under which host.
    pub(crate) host: &'a str,
    /// The caller's subject, if known.
    pub(crate) user: Option<&'a str>,
    /// Where the app's root is, if not at `/`.
    pub(crate) prefix: Option<&'a str>,
    /// Whether `Authorization` is ours and stays here.
    pub(crate) drop_authorization: bool,
    /// The protocol to change to, if the caller asked.
    pub(crate) upgrade: Option<&'a HeaderValue>,
}

/// The head that the app gets.
pub(crate) fn to_app(received: &HeaderMap, onward: &Onward<'_>) -> HeaderMap {
    let named = named_by_connection(received);
    let mut headers = HeaderMap::with_capacity(received.len() + 8);
    for (name, value) in received {
        let text = name.as_str();
        let dropped = is_hop_by_hop(text, &named)
            || is_ours_alone(text)
            || *name == HOST
            || *name == COOKIE
            || (*name == http::header::AUTHORIZATION && onward.drop_authorization);
        if !dropped {
            headers.append(name, value.clone());
        }
    }
    if let Some(cookies) = cookies_of_the_app(received) {
        headers.insert(COOKIE, cookies);
    }
    let mut set = |name: HeaderName, value: &str| {
        // Hosts were checked, the rest is ours: a value that does not fit is left out, not altered.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append(name, value);
        }
    };
    let client = onward.client;
    let node = match client {
        IpAddr::V4(client) => client.to_string(),
        IpAddr::V6(client) => format!("\"[{client}]\""),
    };
    let host = onward.host;
    set(HOST, host);
    set(FORWARDED, &format!("for={node};host=\"{host}\";proto=http"));
    set(
        HeaderName::from_static("x-forwarded-for"),
        &client.to_string(),
    );
    set(HeaderName::from_static("x-forwarded-host"), host);
    set(HeaderName::from_static("x-forwarded-proto"), "http");
    if let Some(prefix) = onward.prefix {
        set(HeaderName::from_static("x-forwarded-prefix"), prefix);
    }
    if let Some(user) = onward.user {
        set(HeaderName::from_static(USER_HEADER), user);
    }
    set(VIA, "1.1 tabbify");
    // `TE` is for one hop; since trailers pass through here, the wish for them does too.
    let trailers = wants_trailers(received);
    match (trailers, onward.upgrade) {
        (false, None) => {}
        (true, None) => set(CONNECTION, "te"),
        (false, Some(_)) => set(CONNECTION, "upgrade"),
        (true, Some(_)) => set(CONNECTION, "te, upgrade"),
    }
    if trailers {
        set(TE, "trailers");
    }
    if let Some(protocol) = onward.upgrade {
        headers.insert(UPGRADE, protocol.clone());
    }
    headers
}

/// The head that the caller gets. `by_path`: the app was addressed under the platform's own host.
/// `switching`: the answer is 101.
pub(crate) fn to_caller(received: &HeaderMap, by_path: bool, switching: bool) -> HeaderMap {
    let named = named_by_connection(received);
    let mut headers = HeaderMap::with_capacity(received.len() + 2);
    for (name, value) in received {
        let text = name.as_str();
        let dropped = is_hop_by_hop(text, &named)
            || text.starts_with(PLATFORM_HEADER_PREFIX)
            || (by_path && touches_the_origin(name))
            || (*name == SET_COOKIE && is_our_cookie(value.as_bytes()));
        if !dropped {
            headers.append(name, value.clone());
        }
    }
    if by_path {
        // Beside the app's own policy, if it has one: both hold.
        let sandbox = HeaderValue::from_static(SANDBOX);
        headers.append(CONTENT_SECURITY_POLICY, sandbox);
    }
    if switching {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = received.get(UPGRADE) {
            headers.insert(UPGRADE, protocol.clone());
        }
    }
    headers
}

/// Trailers on their way to the app, without what is ours.
pub(crate) fn trailers_to_app(mut trailers: HeaderMap) -> HeaderMap {
    remove(&mut trailers, |name| {
        is_ours_alone(name.as_str()) || is_hop_by_hop(name.as_str(), &[])
    });
    trailers
}

/// Trailers on their way to the caller, without what is ours.
pub(crate) fn trailers_to_caller(mut trailers: HeaderMap) -> HeaderMap {
    remove(&mut trailers, |name| {
        let text = name.as_str();
        text.starts_with(PLATFORM_HEADER_PREFIX)
            || is_hop_by_hop(text, &[])
            || touches_the_origin(name)
    });
    trailers
}

fn remove(headers: &mut HeaderMap, which: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| which(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn wants_trailers(headers: &HeaderMap) -> bool {
    tokens(headers, &TE).any(|token| token.eq_ignore_ascii_case("trailers"))
}

fn named_by_connection(headers: &HeaderMap) -> Vec<&str> {
    tokens(headers, &CONNECTION).collect()
}

fn is_hop_by_hop(name: &str, named: &[&str]) -> bool {
    HOP_BY_HOP.contains(&name) || named.iter().any(|named| named.eq_ignore_ascii_case(name))
}

/// Headers that only we set. Underscores count as hyphens: CGI-like servers do not tell them apart,
/// so `X_Tabbify_User` would be `X-Tabbify-User` to an app.
fn is_ours_alone(name: &str) -> bool {
    let name = if name.contains('_') {
        Cow::Owned(name.replace('_', "-"))
    } else {
        Cow::Borrowed(name)
    };
    name.starts_with(PLATFORM_HEADER_PREFIX)
        || name.starts_with("x-forwarded-")
        || name == "forwarded"
        || name == "x-real-ip"
}

/// Headers of an answer that would change the whole origin, not the app's part of it.
fn touches_the_origin(name: &HeaderName) -> bool {
    *name == SET_COOKIE
        || *name == STRICT_TRANSPORT_SECURITY
        || name == "clear-site-data"
        || name == "service-worker-allowed"
}

fn is_our_cookie(cookie: &[u8]) -> bool {
    let name = cookie.trim_ascii_start();
    let prefix = COOKIE_PREFIX.as_bytes();
    name.get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// All cookies but ours in one line, as HTTP/1.1 wants it (RFC 9113 8.2.3).
fn cookies_of_the_app(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut joined: Vec<u8> = Vec::new();
    let lines = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes);
    for cookie in lines
        .flat_map(|line| line.split(|byte| *byte == b';'))
        .map(<[u8]>::trim_ascii)
    {
        if !cookie.is_empty() && !is_our_cookie(cookie) {
            if !joined.is_empty() {
                joined.extend_from_slice(b"; ");
            }
            joined.extend_from_slice(cookie);
        }
    }
    // Made of parts of valid values, so valid.
    if joined.is_empty() {
        None
    } else {
        HeaderValue::from_bytes(&joined).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn head(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    const ONWARD: Onward<'static> = Onward {
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        host: "shop.localhost:8090",
        user: None,
        prefix: None,
        drop_authorization: false,
        upgrade: None,
    };

    #[test]
    fn what_the_app_gets() {
        let received = head(&[
            ("host", "other"),
            ("accept", "*/*"),
            ("authorization", "Bearer ours"),
            ("connection", "keep-alive, X-Private"),
            ("x-private", "1"),
            ("keep-alive", "5"),
            ("proxy-authorization", "x"),
            ("transfer-encoding", "chunked"),
            ("te", "gzip, Trailers"),
            ("trailer", "x-sum"),
            ("x-tabbify-user", "root"),
            ("x-tabbify-token", "ours"),
            ("x_tabbify_user", "root"),
            ("x-forwarded-for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("via", "1.1 cdn"),
            ("cookie", "a=1; tabbify_session=s;b=2"),
            ("cookie", "Tabbify_x=1; c=3"),
        ]);
        let onward = Onward {
            user: Some("user:owner"),
            prefix: Some("/app/x"),
            drop_authorization: true,
            ..ONWARD
        };
        let expected = [
            "accept: */*",
            "connection: te",
            "cookie: a=1; b=2; c=3",
            "forwarded: for=127.0.0.1;host=\"shop.localhost:8090\";proto=http",
            "host: shop.localhost:8090",
            "te: trailers",
            "trailer: x-sum",
            "via: 1.1 cdn",
            "via: 1.1 tabbify",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: shop.localhost:8090",
            "x-forwarded-prefix: /app/x",
            "x-forwarded-proto: http",
            "x-tabbify-user: user:owner",
        ];
        assert_eq!(lines(&to_app(&received, &onward)), expected);
    }

    #[test]
    fn what_stays() {
        let received = head(&[
            ("authorization", "Basic YTpi"),
            ("cookie", "tabbify_session=s"),
        ]);
        let client = IpAddr::V6(Ipv6Addr::LOCALHOST);
        let sent = to_app(&received, &Onward { client, ..ONWARD });
        assert_eq!(sent["authorization"], "Basic YTpi");
        assert!(!sent.contains_key(COOKIE) && !sent.contains_key(USER_HEADER));
        assert!(
            sent[FORWARDED]
                .to_str()
                .unwrap()
                .starts_with("for=\"[::1]\";")
        );
        // Nobody strips our own headers by naming them.
        let received = head(&[("connection", "x-tabbify-user, host, x-forwarded-for, close")]);
        let sent = to_app(
            &received,
            &Onward {
                user: Some("user:a"),
                ..ONWARD
            },
        );
        assert_eq!(
            (&sent[USER_HEADER], &sent[HOST]),
            (
                &"user:a".parse().unwrap(),
                &"shop.localhost:8090".parse().unwrap()
            )
        );
        assert!(sent.contains_key("x-forwarded-for") && !sent.contains_key(CONNECTION));
    }

    #[test]
    fn trailers() {
        let sent = || {
            head(&[
                ("x-sum", "1"),
                ("x-tabbify-user", "root"),
                ("set-cookie", "a"),
                ("te", "x"),
            ])
        };
        assert_eq!(
            lines(&trailers_to_app(sent())),
            ["set-cookie: a", "x-sum: 1"]
        );
        assert_eq!(lines(&trailers_to_caller(sent())), ["x-sum: 1"]);
    }

    #[test]
    fn upgrades() {
        let received = head(&[
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
        ]);
        let protocol = HeaderValue::from_static("websocket");
        let sent = to_app(
            &received,
            &Onward {
                upgrade: Some(&protocol),
                ..ONWARD
            },
        );
        assert_eq!(
            (&sent[CONNECTION], &sent[UPGRADE]),
            (&"upgrade".parse().unwrap(), &protocol)
        );
        assert_eq!(sent["sec-websocket-key"], "k");
        let back = to_caller(&received, false, true);
        assert_eq!(
            (&back[CONNECTION], &back[UPGRADE]),
            (&"upgrade".parse().unwrap(), &protocol)
        );
    }

    #[test]
    fn what_the_caller_gets() {
        let received = head(&[
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("content-type", "text/html"),
            ("content-security-policy", "default-src 'self'"),
            ("set-cookie", "a=1"),
            ("set-cookie", "TABBIFY_session=evil"),
            ("clear-site-data", "\"*\""),
            ("service-worker-allowed", "/"),
            ("strict-transport-security", "max-age=1"),
            ("x-tabbify-request", "forged"),
        ]);
        let by_host = to_caller(&received, false, false);
        let expected = [
            "clear-site-data: \"*\"",
            "content-security-policy: default-src 'self'",
            "content-type: text/html",
            "service-worker-allowed: /",
            "set-cookie: a=1",
            "strict-transport-security: max-age=1",
        ];
        assert_eq!(lines(&by_host), expected);
        let by_path = to_caller(&received, true, false);
        let sandbox = format!("content-security-policy: {SANDBOX}");
        let expected = [
            "content-security-policy: default-src 'self'",
            &sandbox,
            "content-type: text/html",
        ];
        assert_eq!(lines(&by_path), expected);
        assert!(SANDBOX.starts_with("sandbox ") && !SANDBOX.contains("allow-same-origin"));
    }

    proptest! {
        #[test]
        fn no_cookie_of_ours_ever_passes(line in "[ -~]{0,80}") {
            let mut received = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_str(&line) {
                received.append(COOKIE, value);
            }
            received.append(COOKIE, HeaderValue::from_static("tabbify_session=secret"));
            let sent = to_app(&received, &ONWARD);
            if let Some(cookies) = sent.get(COOKIE) {
                let ours = cookies.as_bytes().split(|b| *b == b';').map(<[u8]>::trim_ascii).any(is_our_cookie);
                prop_assert!(!ours);
            }
        }
    }
}
