//! The rules of an app, as `[network] egress` has them: whom it may reach at which ports.

use std::fmt;

use crate::host::Host;
use crate::{HostError, RuleError};

/// LIMIT: rules of an app; each connection asks them all.
const RULES_MAX: usize = 1000;

/// Where an app may connect to. Nowhere, without a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    all: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    whom: Whom,
    /// Every port if `None`.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Whom {
    Anybody,
    Exactly(Host),
    /// One or more labels and then this name.
    Below(String),
}

impl Rules {
    /// Reads entries as a resolved manifest has them: `any`, `host`, `host:port`, `*.name`, `[address]:port`.
    ///
    /// # Errors
    /// If one of them is no such entry.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, RuleError> {
        if entries.len() > RULES_MAX {
            return Err(RuleError::TooMany(entries.len()));
        }
        let read = |entry: &S| {
            rule(entry.as_ref()).map_err(|source| RuleError::Entry {
                entry: entry.as_ref().chars().take(300).collect(),
                source,
            })
        };
        let all = entries.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { all })
    }

    /// Whether a rule names this host and port. What the name stands for is another question.
    #[must_use]
    pub fn allow(&self, host: &Host, port: u16) -> bool {
        let at = |rule: &&Rule| rule.port.is_none_or(|only| only == port);
        self.all.iter().filter(at).any(|rule| rule.names(host))
    }

    /// Whether every host is allowed at this port, so that no name has to be looked for inside a connection.
    #[must_use]
    pub fn allow_any(&self, port: u16) -> bool {
        let at = |rule: &&Rule| rule.port.is_none_or(|only| only == port);
        let mut all = self.all.iter().filter(at);
        all.any(|rule| rule.whom == Whom::Anybody)
    }
}

impl Rule {
    fn names(&self, host: &Host) -> bool {
        match &self.whom {
            Whom::Anybody => true,
            Whom::Exactly(only) => only == host,
            Whom::Below(parent) => host
                .name()
                .and_then(|name| name.strip_suffix(parent.as_str()))
                .is_some_and(|labels| labels.len() > 1 && labels.ends_with('.')),
        }
    }
}

fn rule(entry: &str) -> Result<Rule, HostError> {
    let wrong = || HostError::NotAHost(entry.chars().take(80).collect());
    if entry == "any" {
        return Ok(Rule {
            whom: Whom::Anybody,
            port: None,
        });
    }
    let (host, port) = match entry.rsplit_once(':') {
        // The last colon of a bare address is no port's.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (entry, None),
    };
    let port = match port.map(str::parse::<u16>) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => return Err(wrong()),
    };
    let whom = match host.strip_prefix("*.") {
        None => Whom::Exactly(host.parse()?),
        Some(parent) => match parent.parse()? {
            Host::Name(parent) => Whom::Below(parent),
            Host::Address(_) => return Err(wrong()),
        },
    };
    Ok(Rule { whom, port })
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, rule) in self.all.iter().enumerate() {
            if n > 0 {
                f.write_str(", ")?;
            }
            match &rule.whom {
                Whom::Anybody => f.write_str("any")?,
                Whom::Exactly(host) => host.fmt(f)?,
                Whom::Below(parent) => write!(f, "*.{parent}")?,
            }
            if let Some(port) = rule.port {
                write!(f, ":{port}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(entries: &[&str], allowed: &[(&str, u16)], refused: &[(&str, u16)]) {
        let rules = Rules::parse(entries).unwrap();
        for (host, port) in allowed {
            assert!(
                rules.allow(&host.parse().unwrap(), *port),
                "{host}:{port} by {rules}"
            );
        }
        for (host, port) in refused {
            assert!(
                !rules.allow(&host.parse().unwrap(), *port),
                "{host}:{port} by {rules}"
            );
        }
    }

    #[test]
    fn who_is_allowed() {
        check(&[], &[], &[("example.com", 443), ("8.8.8.8", 53)]);
        check(
            &["api.stripe.com:443", "example.com"],
            &[
                ("api.stripe.com", 443),
                ("API.STRIPE.COM.", 443),
                ("example.com", 1),
                ("example.com", 65_535),
            ],
            &[
                ("api.stripe.com", 80),
                ("stripe.com", 443),
                ("x.api.stripe.com", 443),
                ("notexample.com", 443),
            ],
        );
        check(
            &["*.example.com", "*.example.org:8443"],
            &[
                ("a.example.com", 443),
                ("a.b.c.example.com", 1),
                ("x.example.org", 8443),
            ],
            &[
                ("example.com", 443),
                ("aexample.com", 443),
                ("x.example.org", 443),
                ("example.com.evil.com", 443),
                ("a.example.com.evil.com", 443),
            ],
        );
        check(
            &["8.8.8.8:53", "[2001:4860::8888]:53", "2606:4700::1111"],
            &[
                ("8.8.8.8", 53),
                ("2001:4860::8888", 53),
                ("[2606:4700::1111]", 443),
            ],
            &[
                ("8.8.8.8", 443),
                ("8.8.4.4", 53),
                ("2001:4860::8888", 443),
                ("dns.google", 53),
            ],
        );
        check(
            &["any"],
            &[
                ("example.com", 1),
                ("8.8.8.8", 443),
                ("2606:4700::1111", 25),
            ],
            &[],
        );
        assert!(Rules::parse(&["any"]).unwrap().allow_any(443));
        assert!(!Rules::parse(&["*.com"]).unwrap().allow_any(443));
    }

    #[test]
    fn what_is_no_rule() {
        for bad in [
            "",
            ":443",
            "a:",
            "a:0",
            "a:65536",
            "*",
            "*.",
            "a.*.com",
            "*.1.2.3.4",
            "https://a.com",
            "10.0.0.0/8",
            "[::1",
            "ä.com",
        ] {
            assert!(Rules::parse(&[bad]).is_err(), "{bad}");
        }
        assert!(matches!(
            Rules::parse(&vec!["a"; RULES_MAX + 1]),
            Err(RuleError::TooMany(_))
        ));
    }

    /// Whatever a manifest may say is a rule here, and means the same.
    #[test]
    fn a_manifest_is_understood() {
        let entries = [
            "any",
            "api.stripe.com:443",
            "*.example.com",
            "*.example.com:8443",
            "db",
            "10.1.2.3:5432",
            "2001:db8::1",
            "[2001:db8::1]:443",
            "_dmarc.example.com",
            "API.Stripe.com",
        ];
        for entry in entries {
            let text = format!("[app]\nname = \"a\"\n[network]\negress = [{entry:?}]\n");
            let parsed = tabbify_manifest::Manifest::parse(&text, "tabbify.toml").unwrap();
            let written: Vec<String> = parsed
                .manifest
                .egress
                .iter()
                .map(ToString::to_string)
                .collect();
            let rules = Rules::parse(&written).unwrap();
            assert_eq!(
                rules.to_string().replace(['[', ']'], ""),
                written[0].replace(['[', ']'], "")
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_entry(entry in "\\PC{0,40}|[a-z0-9.:*\\[\\]]{0,30}", host in "[a-z]{1,3}(\\.[a-z]{1,3}){0,3}", port in any::<u16>()) {
            if let Ok(rules) = Rules::parse(&[&entry]) {
                let allowed = rules.allow(&host.parse().unwrap(), port);
                let again = Rules::parse(&[rules.to_string()]).unwrap();
                prop_assert_eq!(again.allow(&host.parse().unwrap(), port), allowed);
            }
        }
    }
}
