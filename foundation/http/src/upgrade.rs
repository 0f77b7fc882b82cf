//! What a request says about its connection: the tokens of a header, and the protocol to change to.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

/// The tokens of every header `name`, trimmed (RFC 9110, section 5.6.1).
pub fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// The protocol that a request of HTTP/1.1 wants to change to (RFC 9110, section 7.8). None of the names of
/// HTTP/2, which is ours to speak: requests within it would pass by what a server takes out of each.
#[must_use]
pub fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut values = headers.get_all(UPGRADE).iter();
    let (protocol, None) = (values.next().filter(|_| asked)?, values.next()) else {
        return None;
    };
    let mut names = protocol.to_str().ok()?.split(',').map(str::trim);
    let is_http2 = |name: &str| name.to_ascii_lowercase().starts_with("h2");
    let passes = !protocol.is_empty() && !names.any(is_http2);
    passes.then(|| protocol.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_wants_to_change_to() {
        let check = |headers: &[(&'static str, &'static str)], expected: Option<&str>| {
            let headers = headers.iter().map(|(name, value)| {
                let name = HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            });
            // One after the other: a name that comes twice stays twice.
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.append(name, value);
            }
            let wanted = wanted_upgrade(&all);
            let wanted = wanted.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(wanted, expected, "{all:?}");
        };
        let upgrade = ("connection", "keep-alive, Upgrade");
        check(&[upgrade, ("upgrade", "websocket")], Some("websocket"));
        check(&[upgrade, ("upgrade", "a/1, b")], Some("a/1, b"));
        check(&[upgrade], None);
        check(&[("upgrade", "websocket")], None);
        check(&[upgrade, ("upgrade", "a"), ("upgrade", "b")], None);
        check(&[upgrade, ("upgrade", "")], None);
        for http2 in ["h2c", "H2C", "h2", "websocket, h2c", "h2c-14"] {
            check(&[upgrade, ("upgrade", http2)], None);
        }
    }
}
