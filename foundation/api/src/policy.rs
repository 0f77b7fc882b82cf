//! Who may reach whom in the mesh. Pure: the coordinator asks it when an address is resolved, and an
//! end of the mesh may ask it again at the handshake and for each packet.
//!
//! | from | to | without a rule |
//! |---|---|---|
//! | app or person of a tenant | app of the same tenant | every port |
//! | machine with the tag `role:node` | any app | every port |
//! | any machine | machine with a tag `role:…` | every port: the role asks for a token itself |
//! | app | machine with the tag `role:registry` | the port of the artifacts: an app reads its own |
//! | anything else | | nothing |
//!
//! A rule of a tenant opens what is the tenant's own, and nothing else. Tags are those that a token
//! claimed; what a peer says about itself is nowhere here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{AppId, HostName, Tenant};

use crate::artifact::ARTIFACTS_PORT;

/// LIMIT: rules of one tenant.
pub const RULES_MAX: usize = 256;
/// LIMIT: ports of one rule.
pub const RULE_PORTS_MAX: usize = 64;
/// LIMIT: bytes of `from` and of `to`.
pub const RULE_NAME_LEN_MAX: usize = 160;

/// Begins the tags that say which roles of the platform a machine runs, such as `role:node`.
pub const ROLE_TAG: &str = "role:";
/// The tag of a machine that is a public edge: it sees every app.
pub const NODE_TAG: &str = "role:node";

/// The tag of a machine that relays: it hears of every key that is nobody's any more.
pub const RELAY_TAG: &str = "role:relay";
/// The tag of a machine that serves artifacts.
pub const REGISTRY_TAG: &str = "role:registry";

/// One end of a connection, as the platform knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Who.
    pub who: Who,
    /// Whose.
    pub tenant: Tenant,
    /// Tags that a token claimed for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// The sorts of ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// An instance of an app.
    App(AppId),
    /// A machine.
    Host(HostName),
    /// A person, by subject such as `user:anna`, through a gateway.
    Person(String),
}

/// The ports that may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ports {
    /// Every one.
    All,
    /// These; none of them is [`Ports::NOTHING`].
    Only(BTreeSet<u16>),
}

impl Ports {
    /// None at all.
    pub const NOTHING: Self = Self::Only(BTreeSet::new());

    /// Whether there is no port that may be reached.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::NOTHING
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn admit(&self, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Only(ports) => ports.contains(&port),
        }
    }
}

/// The rules of every tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Policy(BTreeMap<Tenant, Vec<AllowRule>>);

/// Why a rule cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There are more than a tenant may have.
    #[error("{0} rules, at most {RULES_MAX}")]
    TooMany(usize),
    /// It names more ports than one may.
    #[error("the rule from {from} to {to} names {ports} ports, at most {RULE_PORTS_MAX}")]
    Ports {
        /// From whom.
        from: String,
        /// To whom.
        to: String,
        /// How many ports.
        ports: usize,
    },
    /// It names nobody.
    #[error("{0:?} names nobody: app:<id>, user:<name>, tag:<claimed tag> or tenant:<slug>")]
    Name(String),
}

impl Policy {
    /// These rules, and none of those before, are the tenant's.
    pub fn set(&mut self, tenant: Tenant, rules: Vec<AllowRule>) {
        if rules.is_empty() {
            self.0.remove(&tenant);
        } else {
            self.0.insert(tenant, rules);
        }
    }

    /// The tenant's rules.
    #[must_use]
    pub fn rules(&self, tenant: &Tenant) -> &[AllowRule] {
        self.0.get(tenant).map_or(&[], Vec::as_slice)
    }

    /// The ports of `to` that `from` may reach; none if it may not reach it at all.
    #[must_use]
    pub fn ports(&self, from: &Party, to: &Party) -> Option<Ports> {
        let mut open = match by_default(from, to) {
            Some(Ports::All) => return Some(Ports::All),
            Some(Ports::Only(ports)) => ports,
            None => BTreeSet::new(),
        };
        for rule in self.rules(&to.tenant) {
            if !names(&rule.from, from) || !names(&rule.to, to) {
                continue;
            }
            if rule.ports.is_empty() {
                return Some(Ports::All);
            }
            open.extend(rule.ports.iter().copied());
        }
        (!open.is_empty()).then_some(Ports::Only(open))
    }
}

/// Whether rules can be a tenant's: short enough, and each names somebody.
///
/// # Errors
/// [`RuleError`].
pub fn check(rules: &[AllowRule]) -> Result<(), RuleError> {
    if rules.len() > RULES_MAX {
        return Err(RuleError::TooMany(rules.len()));
    }
    for rule in rules {
        for name in [&rule.from, &rule.to] {
            if !well_formed(name) {
                return Err(RuleError::Name(name.clone()));
            }
        }
        if rule.ports.len() > RULE_PORTS_MAX {
            return Err(RuleError::Ports {
                from: rule.from.clone(),
                to: rule.to.clone(),
                ports: rule.ports.len(),
            });
        }
    }
    Ok(())
}

fn by_default(from: &Party, to: &Party) -> Option<Ports> {
    let has = |party: &Party, tag: &str| party.tags.iter().any(|claimed| claimed == tag);
    let has_role = |party: &Party| party.tags.iter().any(|tag| tag.starts_with(ROLE_TAG));
    let all = |open: bool| open.then_some(Ports::All);
    match (&from.who, &to.who) {
        (Who::App(_) | Who::Person(_), Who::App(_)) => all(from.tenant == to.tenant),
        (Who::Host(_), Who::App(_)) => all(has(from, NODE_TAG)),
        (Who::Host(_), Who::Host(_)) => all(has_role(to)),
        (Who::App(_), Who::Host(_)) => {
            has(to, REGISTRY_TAG).then(|| Ports::Only(BTreeSet::from([ARTIFACTS_PORT])))
        }
        (Who::Person(_), Who::Host(_)) | (_, Who::Person(_)) => None,
    }
}

/// Whether a rule's name means this end. What is not understood means nobody.
fn names(name: &str, party: &Party) -> bool {
    match (name.split_once(':'), &party.who) {
        (Some(("app", id)), Who::App(app)) => id.parse::<AppId>().is_ok_and(|id| id == *app),
        (Some(("user", _)), Who::Person(subject)) => name == subject,
        (Some(("tag", tag)), _) => party.tags.iter().any(|claimed| claimed == tag),
        (Some(("tenant", slug)), _) => party.tenant.as_str() == slug,
        _ => false,
    }
}

fn well_formed(name: &str) -> bool {
    let named = match name.split_once(':') {
        Some(("app", id)) => id.parse::<AppId>().is_ok(),
        Some(("tenant", slug)) => slug.parse::<Tenant>().is_ok(),
        Some(("user" | "tag", rest)) => {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic())
        }
        _ => false,
    };
    named && name.len() <= RULE_NAME_LEN_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{ProptestConfig, any, proptest};

    use super::*;

    fn tenant(slug: &str) -> Tenant {
        slug.parse().unwrap()
    }

    fn app(id: u8, of: &str) -> Party {
        let id = format!("0191e7c2-1111-7222-8333-4444555566{id:02x}");
        Party {
            who: Who::App(id.parse().unwrap()),
            tenant: tenant(of),
            tags: Vec::new(),
        }
    }

    fn host(name: &str, tags: &[&str]) -> Party {
        Party {
            who: Who::Host(name.parse().unwrap()),
            tenant: Tenant::system(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        }
    }

    fn person(subject: &str, of: &str) -> Party {
        Party {
            who: Who::Person(subject.to_owned()),
            tenant: tenant(of),
            tags: Vec::new(),
        }
    }

    fn rule(from: &str, to: &str, ports: &[u16]) -> AllowRule {
        AllowRule {
            from: from.to_owned(),
            to: to.to_owned(),
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn without_rules_tenants_see_only_themselves() {
        let policy = Policy::default();
        let check = |from: &Party, to: &Party, expected: bool| {
            let ports = policy.ports(from, to);
            assert_eq!(ports, expected.then_some(Ports::All), "{from:?} to {to:?}");
        };
        let (mine, other) = (app(1, "main"), app(2, "other"));
        let (node, log, plain) = (
            host("edge", &["role:node"]),
            host("core", &["role:transaction-node"]),
            host("box", &["gpu"]),
        );
        check(&mine, &app(3, "main"), true);
        check(&mine, &mine, true);
        check(&mine, &other, false);
        check(&other, &mine, false);
        check(&node, &mine, true);
        check(&node, &other, true);
        check(&plain, &mine, false);
        check(&log, &mine, false);
        check(&plain, &log, true);
        check(&plain, &host("box2", &[]), false);
        check(&mine, &log, false);
        check(&mine, &plain, false);
        let artifacts = host("store", &["role:registry"]);
        let ports = policy.ports(&other, &artifacts).unwrap();
        assert!(ports.admit(ARTIFACTS_PORT) && !ports.admit(8700));
        check(&person("user:anna", "main"), &artifacts, false);
        check(&person("user:anna", "main"), &mine, true);
        check(&person("user:anna", "main"), &other, false);
        check(&mine, &person("user:anna", "main"), false);
    }

    #[test]
    fn a_rule_opens_its_tenant_and_nothing_else() {
        let (mine, other) = (app(1, "main"), app(2, "other"));
        let mut policy = Policy::default();
        policy.set(
            tenant("other"),
            vec![rule("tenant:main", "tenant:other", &[8730])],
        );
        let ports = policy.ports(&mine, &other).unwrap();
        assert!(ports.admit(8730) && !ports.admit(22));
        assert_eq!(policy.ports(&other, &mine), None, "the other way round");

        // A tenant cannot open another's apps by writing rules about them.
        let mut policy = Policy::default();
        policy.set(
            tenant("main"),
            vec![rule("tenant:main", "tenant:other", &[])],
        );
        assert_eq!(policy.ports(&mine, &other), None);

        // Ports of several rules add up; a rule without ports is all of them.
        let id = match &other.who {
            Who::App(id) => format!("app:{id}"),
            _ => unreachable!("it is an app"),
        };
        let mut rules = vec![
            rule("tenant:main", &id, &[80]),
            rule("tenant:main", &id, &[443]),
        ];
        policy.set(tenant("other"), rules.clone());
        let both = Ports::Only(BTreeSet::from([80, 443]));
        assert_eq!(policy.ports(&mine, &other), Some(both));
        assert_eq!(policy.ports(&mine, &app(3, "other")), None, "another app");
        rules.push(rule("tag:gpu", "tenant:other", &[]));
        policy.set(tenant("other"), rules);
        assert_eq!(
            policy.ports(&host("box", &["gpu"]), &other),
            Some(Ports::All)
        );
        assert_eq!(policy.ports(&host("box", &["cpu"]), &other), None);
        policy.set(tenant("other"), Vec::new());
        assert_eq!(
            policy.ports(&mine, &other),
            None,
            "the rules are taken back"
        );
    }

    #[test]
    fn rules_that_name_nobody_are_refused() {
        for good in [
            "tenant:main",
            "tag:gpu",
            "user:anna",
            "app:0191e7c2-1111-7222-8333-444455556666",
        ] {
            check(&[rule(good, good, &[])]).unwrap();
        }
        let long = format!("tag:{}", "x".repeat(RULE_NAME_LEN_MAX));
        for bad in [
            "", "*", "main", "tenant:", "tenant:A", "app:shop", "tag:", "tag:a b", "host:box",
            &long,
        ] {
            assert!(check(&[rule("tenant:main", bad, &[])]).is_err(), "{bad}");
            assert!(check(&[rule(bad, "tenant:main", &[])]).is_err(), "{bad}");
        }
        let many = vec![rule("tenant:a", "tenant:b", &[]); RULES_MAX + 1];
        assert_eq!(check(&many), Err(RuleError::TooMany(RULES_MAX + 1)));
        assert!(check(&[rule("tenant:a", "tenant:b", &[1; RULE_PORTS_MAX + 1])]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever stands in a rule, it opens nothing of another tenant's, and what is not well formed
        /// opens nothing at all.
        #[test]
        fn no_rule_reaches_beyond_its_tenant(from in any::<String>(), to in any::<String>(), ports: Vec<u16>) {
            let mut policy = Policy::default();
            policy.set(tenant("main"), vec![rule(&from, &to, &ports)]);
            proptest::prop_assert_eq!(policy.ports(&app(1, "main"), &app(2, "other")), None);
            if check(&[rule(&from, &to, &[])]).is_err() {
                proptest::prop_assert_eq!(policy.ports(&app(2, "other"), &app(1, "main")), None);
            }
        }
    }
}
