//! The URL of a platform's node, in the one form that we compare, store and dial.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ureq::http::Uri;

/// Where a platform answers when nothing else is said.
pub(crate) const DEFAULT: &str = "http://localhost:8090";

/// `http://host[:port]`, lower case, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server(String);

/// Why a text is not a [`Server`]: the reason, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ServerError {
    pub(crate) what: String,
    pub(crate) fix: &'static str,
}

impl Server {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Server {
    type Err = ServerError;

    fn from_str(text: &str) -> Result<Self, ServerError> {
        let wrong = |why: &str, fix| ServerError {
            what: format!("{text:?} {why}"),
            fix,
        };
        let form = "Write it like http://localhost:8090";
        let not_a_url = || wrong("is not the URL of a platform", form);
        let uri: Uri = text
            .trim_end_matches('/')
            .parse()
            .map_err(|_| not_a_url())?;
        let authority = uri.authority().ok_or_else(not_a_url)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                let fix = "Reach the platform on its own machine, or through an SSH tunnel to it";
                return Err(wrong("is https, which this tcli cannot speak yet", fix));
            }
            _ => return Err(not_a_url()),
        }
        let plain = authority.as_str().bytes().all(|b| b != b'@');
        if !plain || uri.path().len() > 1 || uri.query().is_some() {
            return Err(not_a_url());
        }
        // A token over http is a token for everybody on the way, so http is for this machine only.
        if !is_loopback(authority.host()) {
            let fix = "Reach the platform on its own machine, or through an SSH tunnel to it";
            return Err(wrong(
                "is http to another machine, which would show your token",
                fix,
            ));
        }
        Ok(Self(format!(
            "http://{}",
            authority.as_str().to_ascii_lowercase()
        )))
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let v6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|addr| addr.is_loopback())
        || v6
            .and_then(|v6| v6.parse::<Ipv6Addr>().ok())
            .is_some_and(|addr| addr.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Server>().unwrap().as_str(), expected, "{text}");
        };
        check(DEFAULT, DEFAULT);
        check("http://LOCALHOST:8090/", DEFAULT);
        check("http://127.0.0.1", "http://127.0.0.1");
        check("http://[::1]:9", "http://[::1]:9");
        check("http://shop.localhost:8090", "http://shop.localhost:8090");
    }

    #[test]
    fn what_is_refused() {
        let check = |text: &str, part: &str| {
            let error = text.parse::<Server>().unwrap_err();
            assert!(error.what.contains(part), "{text}: {}", error.what);
        };
        for bad in [
            "",
            "localhost",
            "localhost:8090",
            "ftp://localhost",
            "http://",
            "http://a b",
        ] {
            check(bad, "is not the URL");
        }
        for bad in [
            "http://u:p@localhost",
            "http://localhost/v1",
            "http://localhost?x",
        ] {
            check(bad, "is not the URL");
        }
        check("https://apps.example.com", "https");
        for bad in [
            "http://10.0.0.7:8090",
            "http://apps.example.com",
            "http://localhost.evil.com",
        ] {
            check(bad, "another machine");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_stands_for_itself(text in "(http://)?[a-zA-Z0-9.:@/?#\\[\\]%\\PC]{0,40}") {
            if let Ok(server) = text.parse::<Server>() {
                let again = server.as_str().parse::<Server>();
                proptest::prop_assert_eq!(again, Ok(server));
            }
        }
    }
}
