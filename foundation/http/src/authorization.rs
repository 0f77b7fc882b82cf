//! Bearer tokens in requests (RFC 6750 section 2.1): how a client shows one, and a service reads it.

use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderValue, header};

/// The value of an `Authorization` header with a bearer token, which no log shows.
///
/// # Errors
/// A token with characters that no header may have.
pub fn bearer(token: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The header comes twice: whoever stands between two services may read the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authorization comes twice")]
pub struct Twice;

/// The bearer token of a request; `None` if there is none, or credentials of another sort. Nothing else
/// of a request says who asks.
///
/// # Errors
/// [`Twice`].
pub fn presented(headers: &HeaderMap) -> Result<Option<&str>, Twice> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(Twice),
    };
    let parts = value.to_str().ok().and_then(|value| value.split_once(' '));
    let bearer = parts.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    Ok(bearer.map(|(_, token)| token.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(presented(&headers), Ok(None));
        let shown = bearer("a.b.c").unwrap();
        assert!(!format!("{shown:?}").contains("a.b.c"));
        headers.insert(header::AUTHORIZATION, shown.clone());
        assert_eq!(presented(&headers), Ok(Some("a.b.c")));
        headers.append(header::AUTHORIZATION, shown);
        assert_eq!(presented(&headers), Err(Twice));
        for other in ["Basic dTpw", "Bearer", "bearerx y"] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(other));
            assert_eq!(presented(&headers), Ok(None), "{other}");
        }
        for same in ["bearer x", "BEARER  x "] {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(same));
            assert_eq!(presented(&headers), Ok(Some("x")), "{same}");
        }
        assert!(bearer("a\nb").is_err());
    }
}
