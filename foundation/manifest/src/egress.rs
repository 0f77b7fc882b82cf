//! Where an app may connect to: the entries of `network.egress`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::section::Wrong;
use crate::tree::Node;
use crate::value;

/// One allowed destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Egress {
    /// `any`: every public address. Stands alone.
    Any,
    /// `host` or `host:port`.
    To {
        /// A name in lower case, a name whose first label is `*` (it stands for one or more
        /// labels), or an IP address.
        host: String,
        /// The only port; every port if `None`.
        port: Option<u16>,
    },
}

impl fmt::Display for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::To { host, port: None } => f.write_str(host),
            Self::To {
                host,
                port: Some(port),
            } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::To {
                host,
                port: Some(port),
            } => write!(f, "{host}:{port}"),
        }
    }
}

const FIX: &str = "write a host and a port, such as \"api.stripe.com:443\" or \"*.example.com\"";

pub(crate) fn egress(node: &Node) -> Result<Egress, Wrong> {
    let text = value::text(node, "\"api.stripe.com:443\"")?;
    if text == "any" {
        return Ok(Egress::Any);
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(with_scheme(scheme, rest));
    }
    if text.contains('/') {
        return Err(Wrong::new("is neither a host nor a host and port", FIX));
    }
    let (host, port) = split(text)?;
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Wrong::new(
            format!("has the port {port:?}"),
            "write a port from 1 to 65535",
        )),
    });
    Ok(Egress::To {
        host: check_host(host)?,
        port: port.transpose()?,
    })
}

/// Splits off the port; an IPv6 address with a port stands in brackets.
fn split(text: &str) -> Result<(&str, Option<&str>), Wrong> {
    let wrong = || Wrong::new("is not a host and port", FIX);
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        host.parse::<Ipv6Addr>().map_err(|_| wrong())?;
        let port = if rest.is_empty() {
            None
        } else {
            Some(rest.strip_prefix(':').ok_or_else(wrong)?)
        };
        return Ok((host, port));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        Some(_) => Err(wrong()),
        None => Ok((text, None)),
    }
}

fn check_host(host: &str) -> Result<String, Wrong> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    let lower = host.to_ascii_lowercase();
    let name = lower.strip_prefix("*.").unwrap_or(&lower);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b))
    };
    // All digits at the end would be taken for an address by some resolvers.
    let numeric_end = name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || numeric_end || !name.split('.').all(label) {
        return Err(Wrong::new("does not name a host", FIX));
    }
    Ok(lower)
}

fn with_scheme(scheme: &str, rest: &str) -> Wrong {
    let host = rest.split('/').next().unwrap_or_default();
    let port = match scheme {
        "https" | "wss" => ":443",
        "http" | "ws" => ":80",
        _ => "",
    };
    let port = if host.contains(':') { "" } else { port };
    let fix = format!("write {:?}", crate::tree::shorten(&format!("{host}{port}")));
    Wrong::new("is a URL, and only host and port are checked", fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Place;

    #[test]
    fn destinations() {
        let read = |text: &str| egress(&Node::text(Place::START, text));
        for good in [
            "any",
            "api.stripe.com:443",
            "*.example.com",
            "*.example.com:8443",
            "db",
            "10.1.2.3:5432",
            "2001:db8::1",
            "[2001:db8::1]:443",
            "_dmarc.example.com",
        ] {
            assert_eq!(read(good).unwrap().to_string(), good);
        }
        assert_eq!(
            read("API.Stripe.com").unwrap().to_string(),
            "api.stripe.com"
        );
        for bad in [
            "",
            ":443",
            "a:",
            "a:0",
            "a:65536",
            "a:b",
            "a b",
            "*",
            "*.",
            "a.*.com",
            "a..b",
            "-a.com",
            "a.com.",
            "https://a.com/x",
            "10.0.0.0/8",
            "[::1",
            "[a]:1",
            "[::1]x",
            "1.2.3",
            "a:1:2",
            "ä.com",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_says_what_to_write() {
        let fix = |text: &str| egress(&Node::text(Place::START, text)).unwrap_err().fix;
        assert_eq!(
            fix("https://api.stripe.com/v1"),
            "write \"api.stripe.com:443\""
        );
        assert_eq!(fix("http://a.com:81"), "write \"a.com:81\"");
    }
}
