//! Who may reach whom in the mesh. Pure: the coordinator asks it when an address is resolved, and an
//! end of the mesh may ask it again at the handshake and for each packet.
//!
//! | from | to | without a rule |
//! |---|---|---|
//! | app or person of a tenant | app of the same tenant | every port |
//! | machine with the tag `role:node` | any app | every port |
//! | machine with the tag `role:gateway` | any app | every port: it asks for each person itself |
//! | any machine | machine with a tag `role:…` | every port: the role asks for a token itself |
//! | machine with the tag `role:node` | any machine | the port of its supervisor: what its apps print |
//! | machine with a tag `role:…` | any machine | no port: it is found, to be looked at ([`Policy::may_find`]) |
//! | app | machine with the tag `role:registry` | the port of the artifacts: an app reads its own |
//! | app | machine with the tag `role:api-gateway` | the port of the vault: an app reads what its release names |
//! | app, or any machine | any machine | the port of its doorbell: it asks for each app itself |
//! | anything else | | nothing |
//!
//! A rule of a tenant opens what is the tenant's own, and nothing else. In a rule, `tenant:` means the apps
//! and people of a tenant: its machines are meant only by a tag, so that nobody opens one by speaking of
//! apps. Tags are those that a token claimed; what a peer says about itself is nowhere here.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{AppId, HostName, Tenant};

use crate::artifact::ARTIFACTS_PORT;
use crate::doorbell::DOORBELL_PORT;
use crate::logs::SUPERVISOR_PORT;
use crate::secrets::VAULT_PORT;

/// LIMIT: rules of one tenant.
pub const RULES_MAX: usize = 256;
/// LIMIT: ports of one rule.
pub const RULE_PORTS_MAX: usize = 64;
/// LIMIT: bytes of `from` and of `to`.
pub const RULE_NAME_LEN_MAX: usize = 160;

/// Begins the tags that say which roles of the platform a machine runs, such as `role:node`.
pub const ROLE_TAG: &str = "role:";
/// The tag of a machine that is a public edge: it sees every app, and alone speaks for people.
pub const NODE_TAG: &str = "role:node";
/// The tag of a machine whose process decides: nobody takes its name, and it reports to nobody but itself.
pub const COORDINATOR_TAG: &str = "role:coordinator";
/// The tag of a gateway for people's devices: it sees every app, lets each person reach what policy says,
/// and speaks for nobody.
pub const GATEWAY_TAG: &str = "role:gateway";

/// The tag of a machine that relays: it hears of every key that is nobody's any more.
pub const RELAY_TAG: &str = "role:relay";
/// The tag of a machine that serves artifacts.
pub const REGISTRY_TAG: &str = "role:registry";
/// The tag of a machine that has the vault.
pub const VAULT_TAG: &str = "role:api-gateway";

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

    /// Whether `from` may know where `to` is: who may reach a port of it; and of two machines also the one
    /// that is reached, since it sees the other's packets anyhow, and whoever runs the platform looks from
    /// there why a machine is badly reached.
    #[must_use]
    pub fn may_find(&self, from: &Party, to: &Party) -> bool {
        // A doorbell is found by the lease of whoever is behind it.
        let more = |ports: Ports| ports != Ports::Only(BTreeSet::from([DOORBELL_PORT]));
        let reaches = |from: &Party, to: &Party| self.ports(from, to).is_some_and(more);
        let machines = matches!((&from.who, &to.who), (Who::Host(_), Who::Host(_)));
        reaches(from, to) || (machines && reaches(to, from))
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
        (Who::Host(_), Who::App(_)) => all(has(from, NODE_TAG) || has(from, GATEWAY_TAG)),
        (Who::Host(_), Who::Host(_)) if has_role(to) => Some(Ports::All),
        (Who::Host(_), Who::Host(_)) => {
            let logs = has(from, NODE_TAG).then_some(SUPERVISOR_PORT);
            let open = [DOORBELL_PORT].into_iter().chain(logs);
            Some(Ports::Only(open.collect()))
        }
        (Who::App(_), Who::Host(_)) => {
            let own = [(REGISTRY_TAG, ARTIFACTS_PORT), (VAULT_TAG, VAULT_PORT)];
            let open = own.into_iter().filter(|(tag, _)| has(to, tag));
            let open = open.map(|(_, port)| port).chain([DOORBELL_PORT]);
            Some(Ports::Only(open.collect()))
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
        (Some(("tenant", _)), Who::Host(_)) => false,
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
        check(&host("gate", &["role:gateway"]), &other, true);
        check(&log, &mine, false);
        check(&plain, &log, true);
        // Of a machine, its doorbell, which does not let it be found.
        for (from, to) in [(&plain, &host("box2", &[])), (&mine, &log), (&mine, &plain)] {
            let ports = policy.ports(from, to).unwrap();
            assert_eq!(ports, Ports::Only(BTreeSet::from([DOORBELL_PORT])));
        }
        assert!(!policy.may_find(&plain, &host("box2", &[])) && !policy.may_find(&mine, &plain));
        let ports = policy.ports(&node, &plain).unwrap();
        assert!(ports.admit(SUPERVISOR_PORT) && !ports.admit(22));
        let artifacts = host("store", &["role:registry"]);
        let ports = policy.ports(&other, &artifacts).unwrap();
        assert!(ports.admit(ARTIFACTS_PORT) && !ports.admit(8700));
        assert!(!ports.admit(VAULT_PORT));
        let vault = host("vault", &["role:api-gateway"]);
        let ports = policy.ports(&other, &vault).unwrap();
        assert!(ports.admit(VAULT_PORT) && !ports.admit(ARTIFACTS_PORT));
        let both = host("core", &["role:api-gateway", "role:registry"]);
        let ports = policy.ports(&other, &both).unwrap();
        assert!(ports.admit(VAULT_PORT) && ports.admit(ARTIFACTS_PORT) && !ports.admit(8080));
        check(&person("user:anna", "main"), &vault, false);
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
    fn a_tenants_machines_are_opened_by_their_tags_alone() {
        let anna = person("user:anna", "main");
        let mine = |tags: &[&str]| Party {
            tenant: tenant("main"),
            ..host("box2", tags)
        };
        let mut policy = Policy::default();
        let speaks_of_apps = rule("user:anna", "tenant:main", &[]);
        policy.set(tenant("main"), vec![speaks_of_apps.clone()]);
        assert_eq!(policy.ports(&anna, &mine(&["gpu"])), None);
        let from_apps = rule("tenant:main", "tenant:main", &[]);
        policy.set(tenant("main"), vec![from_apps]);
        assert_eq!(policy.ports(&mine(&[]), &app(1, "main")), None);
        let by_tag = rule("user:anna", "tag:gpu", &[22]);
        policy.set(tenant("main"), vec![speaks_of_apps, by_tag]);
        let ports = policy.ports(&anna, &mine(&["gpu"])).unwrap();
        assert!(ports.admit(22) && !ports.admit(8700));
        assert_eq!(policy.ports(&anna, &mine(&["cpu"])), None);
        // A machine of another tenant's is not opened by its tag.
        assert_eq!(policy.ports(&anna, &host("core", &["gpu"])), None);
    }

    #[test]
    fn a_machine_with_a_role_finds_those_that_reach_it() {
        let policy = Policy::default();
        let (core, edge) = (host("core", &["role:auth"]), host("edge", &["role:node"]));
        let (plain, other) = (host("box2", &[]), host("box3", &["gpu"]));
        assert!(policy.may_find(&core, &plain) && policy.may_find(&plain, &core));
        let door = Ports::Only(BTreeSet::from([DOORBELL_PORT]));
        assert_eq!(
            policy.ports(&core, &plain),
            Some(door),
            "nothing else of it"
        );
        assert!(!policy.may_find(&plain, &other));
        // An app is reached by the public edge, and does not learn where that is.
        assert!(policy.may_find(&edge, &app(1, "main")));
        assert!(!policy.may_find(&app(1, "main"), &edge));
        assert!(!policy.may_find(&core, &app(1, "main")));
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
