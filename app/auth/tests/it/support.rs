//! One platform in a directory, its auth on the real log, and what tests ask of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::auth::issue::{Caller, TokenOrder};
use tabbify_api::auth::people::{AcceptRequest, InviteRequest, Role, Secret};
use tabbify_api::auth::{AuthError, Authority as _, Issuer as _, People as _, RequestError};
use tabbify_api::log::{Append, EventLog, Filter};
use tabbify_auth::{Auth, Config, Cost, Keys, OWNER, bootstrap};
use tabbify_log::{Log, Options};
use tabbify_process::{Clock, ManualClock, SystemClock, Tasks};
use tabbify_token::{OwnerProof, PlatformId};
use tabbify_types::event::Event;
use tabbify_types::{EventId, NewEvent, Position, Recorded, Segment, Timestamp};

pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Longer than any wait here can take on a machine that works.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(30);
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
/// Good enough for everybody here.
pub(crate) const PASSWORD: &str = "correct horse battery";

/// What hashes cost here: the real cost has a test of its own.
const CHEAP: Cost = Cost {
    memory_kib: 64,
    passes: 1,
    lanes: 1,
};

/// One platform in a directory, started.
pub(crate) struct Platform {
    pub(crate) log: Log,
    pub(crate) client: Arc<dyn EventLog>,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) tasks: Tasks,
    pub(crate) auth: Auth,
}

pub(crate) fn open(dir: &Path) -> Fallible<(Log, Arc<dyn EventLog>)> {
    let options = Options::new(Arc::new(SystemClock)).extent_lens(64 * 1024, 64 * 1024);
    let log = Log::open(&dir.join("log"), options)?;
    let client = log.client(Auth::log_scope());
    Ok((log, client))
}

impl Platform {
    pub(crate) async fn start(dir: &Path, now: Timestamp) -> Fallible<Self> {
        let (log, client) = open(dir)?;
        let keys = Keys::open(&dir.join("keys"))?;
        bootstrap(&*client, &keys).await?;
        let clock = Arc::new(ManualClock::at(now));
        let tasks = Tasks::new();
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let auth = Auth::open(Arc::clone(&client), config(&keys), shared, &tasks).await?;
        Ok(Self {
            log,
            client,
            keys,
            clock,
            tasks,
            auth,
        })
    }

    /// A second issuer on the same log, with the same keys.
    pub(crate) async fn another(&self) -> Fallible<Auth> {
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&self.clock);
        let client = self.log.client(Auth::log_scope());
        Ok(Auth::open(client, config(&self.keys), shared, &self.tasks).await?)
    }

    pub(crate) async fn stop(self) -> bool {
        let ended = self.tasks.shutdown(WATCHDOG).await;
        self.log.close().await;
        ended && self.tasks.failure().is_none()
    }

    pub(crate) fn platform(&self) -> PlatformId {
        PlatformId::of(&self.keys.root.public())
    }

    /// A proof of the owner's, made now by the platform's clock.
    pub(crate) fn proof(&self, jti: &str) -> Fallible<String> {
        let proof = OwnerProof::new(self.platform(), OWNER, jti, self.clock.now());
        Ok(proof.sign(&self.keys.owner)?)
    }

    pub(crate) async fn append(&self, event: Event) -> Fallible<()> {
        let event = NewEvent::new(Segment::auth(), "key", &event)?;
        self.client.append(Append::of(vec![event])).await?;
        Ok(())
    }

    pub(crate) async fn history(&self) -> Fallible<Vec<Arc<Recorded>>> {
        Ok(self
            .client
            .read(Filter::default(), Position(0), 10_000)
            .await?
            .events)
    }

    /// How many events of a type there are.
    pub(crate) async fn count(&self, kind: &str) -> Fallible<usize> {
        let history = self.history().await?;
        Ok(history.iter().filter(|event| event.kind == kind).count())
    }

    /// A token of the owner's.
    pub(crate) async fn owner(&self) -> Fallible<String> {
        let proof = self.proof(&EventId::mint().to_string())?;
        Ok(self.auth.exchange(&proof).await?.token)
    }

    /// A token of a role's.
    pub(crate) async fn role(&self, role: &str, scopes: &[&str]) -> Fallible<String> {
        let issued = self.auth.service_token(role, scopes, "tabbify-api").await?;
        Ok(issued.token)
    }

    /// A registered person with the usual password; a token for the console.
    pub(crate) async fn person(&self, user: &str, role: Role) -> Fallible<String> {
        let owner = self.owner().await?;
        let invite = InviteRequest {
            user: user.to_owned(),
            role,
            email: Some(secret("somebody@example.com")),
        };
        let invited = self.auth.invite(Caller::bearer(&owner), invite).await?;
        let accept = AcceptRequest {
            invitation: secret(&invited.invitation),
            password: secret(PASSWORD),
        };
        Ok(self.auth.accept(Caller::bearer(""), accept).await?.token)
    }

    /// A join token for `box2`.
    pub(crate) async fn join_token(&self) -> Fallible<String> {
        let owner = self.owner().await?;
        Ok(self
            .auth
            .issue(Caller::bearer(&owner), join_order())
            .await?
            .token)
    }

    pub(crate) fn jwks_len(&self) -> usize {
        self.auth.jwks()["keys"].as_array().map_or(0, Vec::len)
    }
}

pub(crate) async fn until(mut holds: impl FnMut() -> bool) -> Fallible<()> {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    Ok(tokio::time::timeout(WATCHDOG, waiting).await?)
}

/// As tests have it: cheap hashes, and refusals written down when a test says so.
pub(crate) fn config(keys: &Keys) -> Config {
    Config {
        password: CHEAP,
        refusals_every: Duration::from_secs(3600),
        ..Config::of(keys)
    }
}

pub(crate) fn secret(text: &str) -> Secret {
    Secret::new(text.to_owned())
}

pub(crate) fn join_order() -> TokenOrder {
    TokenOrder::Join {
        host: "box2".parse().expect("INVARIANT: it is a name"),
        tenant: None,
        tags: vec!["gpu".to_owned()],
        capabilities: vec!["docker".to_owned()],
        coordinator: "digest-of-a-key".to_owned(),
        life_s: None,
    }
}

pub(crate) fn agent_order(name: &str, scopes: &[&str]) -> TokenOrder {
    TokenOrder::Agent {
        name: name.to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        life_s: None,
    }
}

pub(crate) fn invalid<T: std::fmt::Debug>(answer: &Result<T, RequestError>) -> bool {
    matches!(answer, Err(RequestError::Caller(AuthError::Invalid(_))))
}

pub(crate) fn forbidden<T: std::fmt::Debug>(answer: &Result<T, RequestError>) -> bool {
    matches!(answer, Err(RequestError::Forbidden(_)))
}
