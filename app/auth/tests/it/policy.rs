//! Who may have which token: every order, asked for by everybody.

use tabbify_api::auth::issue::{Caller, RepositoryAccess, TokenOrder};
use tabbify_api::auth::people::{InviteRequest, Role, RoleRequest, SubjectRequest};
use tabbify_api::auth::{Authority as _, Issuer as _, People as _, RequestError, Revocations as _};
use tabbify_token::{Claims, Kind, PlatformId};
use tabbify_types::{AppId, EventId, InstanceId, MeshKey, Tenant, Timestamp};

use crate::support::{Fallible, NOW, Platform, agent_order, forbidden, invalid, join_order};

fn host_order(audience: Option<&str>) -> TokenOrder {
    TokenOrder::Host {
        host: "box2".parse().expect("INVARIANT: it is a name"),
        tenant: Tenant::system(),
        tags: vec!["gpu".to_owned()],
        ulas: vec![
            "fd5a:1f00:1:2::1"
                .parse()
                .expect("INVARIANT: it is an address"),
        ],
        key: MeshKey([2; 32]),
        audience: audience.map(str::to_owned),
    }
}

fn runner_order() -> TokenOrder {
    TokenOrder::Runner {
        app: AppId::mint(),
        instance: InstanceId(3),
        tenant: Tenant::main(),
        ulas: Vec::new(),
        key: MeshKey([3; 32]),
        audience: None,
    }
}

fn service_order(scopes: &[&str]) -> TokenOrder {
    TokenOrder::Service {
        role: "node".to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        key: None,
        audience: None,
    }
}

fn registry_order(repository: &str, push: bool) -> TokenOrder {
    let repository = repository.to_owned();
    TokenOrder::Registry {
        access: vec![RepositoryAccess { repository, push }],
    }
}

/// Everybody who may come with a token.
struct Askers {
    owner: String,
    developer: String,
    viewer: String,
    agent: String,
    coordinator: String,
    node: String,
}

impl Askers {
    async fn of(platform: &Platform) -> Fallible<Self> {
        let owner = platform.owner().await?;
        let order = agent_order("claude", &["deploy", "apps:write", "apps:read"]);
        Ok(Self {
            developer: platform.person("dave", Role::Developer).await?,
            viewer: platform.person("vera", Role::Viewer).await?,
            agent: platform
                .auth
                .issue(Caller::bearer(&owner), order)
                .await?
                .token,
            coordinator: platform.role("coordinator", &["auth:issue"]).await?,
            node: platform.role("node", &[]).await?,
            owner,
        })
    }

    fn all(&self) -> [(&'static str, &str); 6] {
        [
            ("owner", &self.owner),
            ("developer", &self.developer),
            ("viewer", &self.viewer),
            ("agent", &self.agent),
            ("coordinator", &self.coordinator),
            ("node", &self.node),
        ]
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
async fn nobody_gets_more_than_they_may() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let askers = Askers::of(&platform).await.unwrap();
    let machines = ["coordinator"];
    let table: Vec<(&str, TokenOrder, &[&str])> = vec![
        (
            "agent that deploys",
            agent_order("a1", &["deploy"]),
            &["owner", "developer"],
        ),
        (
            "agent that looks",
            agent_order("a2", &["apps:read"]),
            &["owner", "developer", "viewer"],
        ),
        (
            "agent for one app",
            agent_order("a3", &["deploy:0191e7c2-1111-7222-8333-444455556666"]),
            &["owner", "developer"],
        ),
        ("agent that does everything", agent_order("a4", &["*"]), &[]),
        (
            "agent that invites",
            agent_order("a5", &["people:write"]),
            &[],
        ),
        (
            "agent that makes agents",
            agent_order("a6", &["tokens:write"]),
            &[],
        ),
        ("agent that issues", agent_order("a7", &["auth:issue"]), &[]),
        ("machine that joins", join_order(), &["owner"]),
        ("host", host_order(None), &machines),
        ("runner", runner_order(), &machines),
        ("service without scopes", service_order(&[]), &machines),
        (
            "service with its maker's scope",
            service_order(&["auth:issue"]),
            &machines,
        ),
        ("service with more", service_order(&["*"]), &[]),
        (
            "pull of one's own",
            registry_order("main/shop", false),
            &["owner", "developer", "viewer", "agent"],
        ),
        (
            "push of one's own",
            registry_order("main/shop", true),
            &["owner", "developer", "agent"],
        ),
        (
            "pull of another's",
            registry_order("other/shop", false),
            &[],
        ),
        ("push of another's", registry_order("other/shop", true), &[]),
        (
            "pull of the platform's",
            registry_order("platform/base", false),
            &[
                "owner",
                "developer",
                "viewer",
                "agent",
                "coordinator",
                "node",
            ],
        ),
        (
            "push of the platform's",
            registry_order("platform/base", true),
            &["coordinator", "node"],
        ),
        (
            "push of what sounds alike",
            registry_order("main2/shop", true),
            &[],
        ),
        (
            "push of what is above",
            registry_order("main/../other/shop", true),
            &[],
        ),
    ];
    for (what, order, allowed) in table {
        for (who, token) in askers.all() {
            let answer = platform
                .auth
                .issue(Caller::bearer(token), order.clone())
                .await;
            match allowed.contains(&who) {
                true => {
                    let issued = answer.unwrap_or_else(|error| panic!("{what} for {who}: {error}"));
                    // The name is free again for the next one.
                    let jti = jti_of(&platform, &issued.token);
                    if let (true, Some(jti)) = (what.starts_with("agent"), jti) {
                        platform
                            .auth
                            .revoke(Caller::bearer(token), &jti)
                            .await
                            .unwrap();
                    }
                }
                false => assert!(
                    forbidden(&answer) || matches!(answer, Err(RequestError::BadRequest(_))),
                    "{what} for {who}: {answer:?}"
                ),
            }
        }
    }
    assert!(platform.stop().await);
}

fn jti_of(platform: &Platform, token: &str) -> Option<String> {
    let checker = platform.auth.checker();
    let verified = checker.check(token, &["agent"], "tabbify-api", None);
    verified.ok().map(|verified| verified.jti)
}

/// What people do to each other needs the scope of it, and never reaches into another tenant.
#[tokio::test]
async fn people_are_the_owners_to_manage() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let askers = Askers::of(&platform).await.unwrap();
    let auth = &platform.auth;
    for (who, token) in askers.all().into_iter().filter(|(who, _)| *who != "owner") {
        let caller = Caller::bearer(token);
        let request = InviteRequest {
            user: "eve".to_owned(),
            role: Role::Viewer,
            email: None,
        };
        let invited = auth.invite(caller, request).await;
        assert!(
            forbidden(&invited) || invalid(&invited),
            "{who}: {invited:?}"
        );
        let role = RoleRequest {
            user: "vera".to_owned(),
            role: Some(Role::Owner),
        };
        let role = auth.set_role(caller, role).await;
        assert!(forbidden(&role) || invalid(&role), "{who}: {role:?}");
        let dave = SubjectRequest {
            subject: "user:owner".to_owned(),
        };
        let ended = auth.end_sessions(caller, dave.clone()).await;
        assert!(
            matches!(ended, Err(RequestError::NotFound(_))),
            "{who}: {ended:?}"
        );
        let erased = auth.erase(caller, dave).await;
        assert!(forbidden(&erased) || invalid(&erased), "{who}: {erased:?}");
    }
    // Nor does the owner lose what makes them the owner.
    let role = RoleRequest {
        user: "owner".to_owned(),
        role: None,
    };
    assert!(forbidden(
        &auth.set_role(Caller::bearer(&askers.owner), role).await
    ));
    let subject = "user:owner".to_owned();
    let erased = auth
        .erase(Caller::bearer(&askers.owner), SubjectRequest { subject })
        .await;
    assert!(matches!(erased, Err(RequestError::NotFound(_))));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn a_tenants_owner_brings_machines_without_tags_for_that_tenant() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let ann = platform.person("ann", Role::Owner).await.unwrap();
    let order = |of: Option<Tenant>, named: &[&str]| {
        let mut order = join_order();
        if let TokenOrder::Join { tenant, tags, .. } = &mut order {
            *tenant = of;
            *tags = named.iter().map(|tag| (*tag).to_owned()).collect();
        }
        order
    };
    let caller = Caller::bearer(&ann);
    platform.auth.issue(caller, order(None, &[])).await.unwrap();
    // Policy goes by tags: these would open other tenants' apps to her machine.
    for tag in ["role:node", "tenant:other", "gpu"] {
        let answer = platform.auth.issue(caller, order(None, &[tag])).await;
        assert!(forbidden(&answer), "{tag}: {answer:?}");
    }
    let system = order(Some(Tenant::system()), &[]);
    assert!(forbidden(&platform.auth.issue(caller, system).await));
    assert!(platform.stop().await);
}

#[tokio::test]
async fn orders_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let coordinator = platform.role("coordinator", &["auth:issue"]).await.unwrap();
    let join = |change: fn(&mut String, &mut Vec<String>, &mut Option<u64>)| {
        let mut order = join_order();
        if let TokenOrder::Join {
            coordinator,
            tags,
            life_s,
            ..
        } = &mut order
        {
            change(coordinator, tags, life_s);
        }
        order
    };
    let long = "a".repeat(33);
    let cases = [
        (&owner, agent_order("", &["deploy"])),
        (&owner, agent_order("Claude", &["deploy"])),
        (&owner, agent_order("claude code", &["deploy"])),
        (&owner, agent_order("-", &["deploy"])),
        (&owner, agent_order(&long, &["deploy"])),
        (&owner, agent_order("claude", &[])),
        (&owner, agent_order("claude", &["deploy\n"])),
        (&owner, agent_order("claude", &["deploy:*"])),
        (&owner, join(|_, _, life| *life = Some(3601))),
        (&owner, join(|_, _, life| *life = Some(0))),
        (&owner, join(|_, _, life| *life = Some(u64::MAX))),
        (&owner, join(|coordinator, _, _| coordinator.clear())),
        (&owner, join(|_, tags, _| tags.push("two words".to_owned()))),
        (&owner, join(|_, tags, _| *tags = vec!["t".to_owned(); 65])),
        (&coordinator, host_order(Some("tabbify-console"))),
        (&coordinator, host_order(Some("tabbify-session:x"))),
        (&coordinator, host_order(Some("another"))),
        (&coordinator, host_order(Some(""))),
        (&owner, TokenOrder::Registry { access: Vec::new() }),
        (&owner, registry_order("main", false)),
        (&owner, registry_order("", false)),
        (&owner, registry_order("main/Shop", false)),
        (&owner, registry_order("main/shop:v1", false)),
    ];
    let before = platform.count("token_issued").await.unwrap();
    for (token, order) in cases {
        let shown = format!("{order:?}");
        let answer = platform.auth.issue(Caller::bearer(token), order).await;
        let refused = matches!(&answer, Err(RequestError::BadRequest(_))) || forbidden(&answer);
        assert!(refused, "{shown}: {answer:?}");
    }
    assert_eq!(
        platform.count("token_issued").await.unwrap(),
        before,
        "nothing is on record"
    );
    assert!(platform.stop().await);
}

/// Each of these is signed by the issuer, or nearly; none of them may ask for anything.
#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table reads best whole")]
async fn tokens_that_are_not_for_asking() {
    let dir = tempfile::tempdir().unwrap();
    let platform = Platform::start(dir.path(), NOW).await.unwrap();
    let owner = platform.owner().await.unwrap();
    let me = platform.auth.verify(&owner).unwrap();
    let app = AppId::mint();
    let ticket = platform.auth.ticket(&me, app).await.unwrap().token;
    let session = platform.auth.session(&ticket, app).await.unwrap().token;
    let join = platform.join_token().await.unwrap();
    let registry = registry_order("main/shop", true);
    let registry = platform
        .auth
        .issue(Caller::bearer(&owner), registry)
        .await
        .unwrap()
        .token;
    let signer = platform.auth.signer();
    let claims = Claims {
        iss: signer.platform().clone(),
        sub: "user:owner".to_owned(),
        aud: "tabbify-api".to_owned(),
        kind: Kind::User,
        tenant: Tenant::main(),
        tags: Vec::new(),
        scopes: vec!["*".parse().unwrap()],
        ulas: Vec::new(),
        cnf: None,
        join: None,
        iat: NOW,
        nbf: NOW,
        exp: NOW.plus(std::time::Duration::from_secs(60)),
        jti: EventId::mint().to_string(),
    };
    let foreign = tabbify_token::Signer::new(platform.keys.owner.clone(), platform.platform());
    let elsewhere = PlatformId::of(&platform.keys.owner.public());
    let elsewhere = tabbify_token::Signer::new(platform.keys.issuer.clone(), elsewhere);
    let signed = |signer: &tabbify_token::Signer, change: fn(&mut Claims)| {
        let mut claims = claims.clone();
        claims.iss = signer.platform().clone();
        change(&mut claims);
        signer.sign(&claims).unwrap()
    };
    let good = signed(&signer, |_| {});
    let cases = [
        ("nothing", String::new()),
        ("words", "let me in".to_owned()),
        ("ticket", ticket),
        ("session with an app", session),
        ("join token", join),
        ("registry token", registry),
        ("the owner's own key", signed(&foreign, |_| {})),
        ("another platform", signed(&elsewhere, |_| {})),
        (
            "for the log",
            signed(&signer, |claims| claims.aud = "tabbify-log".to_owned()),
        ),
        (
            "not yet",
            signed(&signer, |claims| {
                claims.nbf = Timestamp::from_secs(NOW.secs() + 31);
                claims.exp = Timestamp::from_secs(NOW.secs() + 61);
            }),
        ),
        (
            "an hour old",
            signed(&signer, |claims| {
                claims.iat = Timestamp::from_secs(NOW.secs() - 3700);
                claims.nbf = claims.iat;
                claims.exp = Timestamp::from_secs(NOW.secs() - 3600);
            }),
        ),
        ("changed", good.replacen("ey", "eY", 1)),
        ("cut", good[..good.len() - 1].to_owned()),
        ("twice", format!("{good}{good}")),
    ];
    for (what, token) in &cases {
        let answer = platform.auth.tokens(Caller::bearer(token)).await;
        assert!(
            matches!(answer, Err(RequestError::Caller(_))),
            "{what}: {answer:?}"
        );
    }
    platform.auth.tokens(Caller::bearer(&good)).await.unwrap();
    assert!(platform.stop().await);
}
