//! A coordinator with the right TLS key that says what is not true: the member believes nothing that the
//! platform has not signed, for what was asked, in its time.

use std::error::Error;

use http::Response;
use hyper::body::Incoming;
use tabbify_api::coordinator::{HostLease, ResolvedLease};
use tabbify_http::{Handle, Limits, Server};
use tabbify_process::ManualClock;
use tabbify_process::connect::TcpSocket;
use tabbify_token::{PlatformId, Signer, endorse_issuer};
use tabbify_types::{
    AppId, AppUla, Epoch, HostUla, InstanceId, InstanceUla, SlotId, Tenant, Timestamp,
};
use tokio::net::TcpListener;

use super::*;
use crate::life::LEASE_LIFE;
use crate::proof::{self, MeshSecret};
use crate::tls::TlsKey;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const HOUR: Duration = Duration::from_secs(3600);
const WATCHDOG: Duration = Duration::from_secs(30);

/// What the liar answers: the answer to every question, and its issuer keys; or a problem.
#[derive(Default)]
struct Said {
    resolved: Option<Resolved>,
    issuers: Vec<EndorsedKey>,
    /// Instead of any answer.
    problem: Option<ErrorCode>,
}

struct Liar(Arc<Mutex<Said>>);

impl Handle for Liar {
    type Body = Full<Bytes>;

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(code) = said.problem {
            let problem = serde_json::to_vec(&Problem::new(code, "no"));
            let mut answer = Response::new(Full::from(problem.unwrap_or_default()));
            *answer.status_mut() = http::StatusCode::from_u16(code.status()).unwrap_or_default();
            return answer;
        }
        let json = match request.uri().path() {
            RESOLVE_PATH => serde_json::to_vec(&said.resolved),
            ISSUERS_PATH => serde_json::to_vec(&said.issuers),
            _ => Ok(Vec::new()),
        };
        let json = json.unwrap_or_default();
        let mut answer = Response::new(Full::from(json.clone()));
        if json.is_empty() {
            *answer.status_mut() = http::StatusCode::NOT_FOUND;
        }
        answer
    }
}

struct World {
    said: Arc<Mutex<Said>>,
    member: RemoteCoordinator,
    clock: Arc<ManualClock>,
    root: SecretKey,
    tasks: Tasks,
    _dir: tempfile::TempDir,
}

fn issuer() -> SecretKey {
    SecretKey::from_seed(&[2; 32])
}

impl World {
    async fn start() -> Result<Self, Box<dyn Error>> {
        let (dir, tasks) = (tempfile::tempdir()?, Tasks::new());
        let tls = TlsKey::load_or_create(&dir.path().join("key"))?;
        let said = Arc::<Mutex<Said>>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let limits = Limits {
            connections: 16,
            buffer_len: 16 * 1024,
            idle: WATCHDOG,
            stalled: None,
        };
        let server = Server::new("liar", limits, &tasks);
        let (liar, key) = (Arc::clone(&said), tls.clone());
        tasks.spawn("liars", Importance::Detached, async move {
            let accepted = server.accept(listener, |server, stream, _| {
                let (liar, key) = (Liar(Arc::clone(&liar)), key.clone());
                async move {
                    let Ok((mut stream, binding)) = key.accept(stream).await else {
                        return;
                    };
                    if proof::demand(&mut stream, &binding).await.is_ok() {
                        server.connection(stream, liar).await;
                    }
                }
            });
            accepted.await;
        });
        let root = SecretKey::from_seed(&[1; 32]);
        let clock = Arc::new(ManualClock::at(NOW));
        let door = Door::new(
            Arc::new(TcpSocket { address }),
            tls.pin(),
            MeshSecret::from_bytes(&[9; 32]),
        )?;
        let config = RemoteConfig {
            root: root.public(),
            issuers: vec![endorsed(&root, &issuer())],
            outage_grace: HOUR,
        };
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let member = RemoteCoordinator::start(vec![door], config, shared, &tasks)?;
        Ok(Self {
            said,
            member,
            clock,
            root,
            tasks,
            _dir: dir,
        })
    }

    fn platform(&self) -> PlatformId {
        PlatformId::of(&self.root.public())
    }

    fn sign(&self, key: &SecretKey, lease: &Lease) -> Result<String, Box<dyn Error>> {
        let signer = Signer::new(key.clone(), self.platform());
        Ok(signer.sign_document(DocumentType::Lease, lease)?)
    }

    fn says(&self, lease: ResolvedLease, now: Timestamp) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.resolved = Some(Resolved {
            lease,
            ports: Ports::All,
            reverse: None,
            rules_of: Vec::new(),
            now,
        });
    }

    /// What the member makes of a lease that the issuer has signed.
    async fn told(
        &self,
        ask: Ask,
        lease: &Lease,
    ) -> Result<Result<PeerRecord, ResolveError>, Box<dyn Error>> {
        let signed = self.sign(&issuer(), lease)?;
        self.says(ResolvedLease::App(signed), self.clock.now());
        Ok(self.asked(ask).await)
    }

    async fn asked(&self, ask: Ask) -> Result<PeerRecord, ResolveError> {
        // Nothing that was answered before stands in the way.
        self.member.cache().remove(&ask);
        self.member.peer(ask).await.map(|(record, _)| record)
    }
}

fn endorsed(root: &SecretKey, issuer: &SecretKey) -> EndorsedKey {
    EndorsedKey {
        public: issuer.public(),
        signature: endorse_issuer(root, &issuer.public()),
    }
}

fn lease(app: AppId, epoch: u32) -> Lease {
    Lease {
        app,
        tenant: Tenant::main(),
        slot: SlotId::FIRST,
        epoch: Epoch(epoch),
        instance: InstanceId(epoch),
        key: MeshKey([7; 32]),
        host: "box1".parse().expect("INVARIANT: it is a name"),
        candidates: Vec::new(),
        not_after: NOW.plus(LEASE_LIFE),
        door: None,
    }
}

fn refused<T: fmt::Debug>(answer: Result<T, ResolveError>) {
    assert!(
        matches!(answer, Err(ResolveError::Refused(_))),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_the_platform_has_not_signed_for_this_is_not_believed() {
    let world = World::start().await.unwrap();
    let (app, other) = (AppId::mint(), AppId::mint());
    let ask = Ask::Address(AppUla::derive(app).addr());
    let record = world.told(ask, &lease(app, 1)).await.unwrap().unwrap();
    assert_eq!(record.key, MeshKey([7; 32]));

    // Another app's lease, an instance's for another instance's address, another key's.
    refused(world.told(ask, &lease(other, 1)).await.unwrap());
    let instance = Ask::Address(InstanceUla::derive(app, InstanceId(2)).addr());
    refused(world.told(instance, &lease(app, 1)).await.unwrap());
    refused(
        world
            .told(Ask::Key(MeshKey([8; 32])), &lease(app, 1))
            .await
            .unwrap(),
    );
    // Signed by somebody else, or not at all, or another document.
    let thief = SecretKey::from_seed(&[3; 32]);
    for text in [
        world.sign(&thief, &lease(app, 1)).unwrap(),
        world
            .sign(&issuer(), &lease(app, 1))
            .unwrap()
            .replace('.', "_"),
        String::new(),
    ] {
        world.says(ResolvedLease::App(text), NOW);
        refused(world.asked(ask).await);
    }
    let host = HostLease {
        host: "box1".parse().unwrap(),
        address: HostUla::new(1, 1),
        tenant: Tenant::system(),
        tags: Vec::new(),
        key: MeshKey([7; 32]),
        candidates: Vec::new(),
        not_after: NOW.plus(LEASE_LIFE),
    };
    let signer = Signer::new(issuer(), world.platform());
    let signed = signer
        .sign_document(DocumentType::HostLease, &host)
        .unwrap();
    world.says(ResolvedLease::App(signed.clone()), NOW);
    refused(world.asked(ask).await);
    world.says(ResolvedLease::Host(signed.clone()), NOW);
    refused(world.asked(ask).await);
    let own = Ask::Address(HostUla::new(1, 1).addr());
    assert_eq!(world.asked(own).await.unwrap().key, MeshKey([7; 32]));
    assert_eq!(world.member.stats().forged, 8);
    assert!(world.tasks.shutdown(WATCHDOG).await);
}

#[tokio::test]
async fn an_address_does_not_go_back_to_an_older_epoch() {
    let world = World::start().await.unwrap();
    let app = AppId::mint();
    let ask = Ask::Address(AppUla::derive(app).addr());
    assert!(world.told(ask, &lease(app, 3)).await.unwrap().is_ok());
    for old in [1, 2] {
        refused(world.told(ask, &lease(app, old)).await.unwrap());
        // On its own address the old instance still is who it was.
        let own = Ask::Address(InstanceUla::derive(app, InstanceId(old)).addr());
        assert!(world.told(own, &lease(app, old)).await.unwrap().is_ok());
    }
    assert!(world.told(ask, &lease(app, 3)).await.unwrap().is_ok());
    assert!(world.told(ask, &lease(app, 4)).await.unwrap().is_ok());
    assert_eq!(world.member.stats().fenced, 2);
    assert!(world.tasks.shutdown(WATCHDOG).await);
}

#[tokio::test]
async fn a_clock_that_is_an_hour_off_is_found_out() {
    let world = World::start().await.unwrap();
    let app = AppId::mint();
    let ask = Ask::Address(AppUla::derive(app).addr());
    let good = || ResolvedLease::App(world.sign(&issuer(), &lease(app, 1)).unwrap());
    for theirs in [NOW.plus(HOUR), Timestamp::from_secs(NOW.secs() - 3600)] {
        world.says(good(), theirs);
        let answer = world.asked(ask).await.unwrap_err();
        let text = answer.to_string();
        assert!(
            text.contains("3600 s") && text.contains("set this machine's clock"),
            "{text}"
        );
    }
    // A lease that has ended, and one that lasts longer than any.
    for not_after in [NOW, NOW.plus(HOUR)] {
        let odd = Lease {
            not_after,
            ..lease(app, 1)
        };
        refused(world.told(ask, &odd).await.unwrap());
    }
    world.says(good(), NOW.plus(Duration::from_secs(20)));
    assert!(
        world.asked(ask).await.is_ok(),
        "clocks may be a little apart"
    );
    assert_eq!(world.member.stats().clock, 4);
    assert!(world.tasks.shutdown(WATCHDOG).await);
}

/// A coordinator that has just started cannot decide yet, and knows nothing that would end what is known here.
#[tokio::test]
async fn who_cannot_decide_ends_nothing_before_the_grace_does() {
    let world = World::start().await.unwrap();
    let app = AppId::mint();
    let ask = Ask::Address(AppUla::derive(app).addr());
    world.told(ask, &lease(app, 1)).await.unwrap().unwrap();
    let fails = |code| {
        let mut said = world.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.problem = Some(code);
    };
    world.clock.advance(LEASE_LIFE + Duration::from_secs(1));
    for code in [ErrorCode::Unavailable, ErrorCode::Internal] {
        fails(code);
        let (record, _) = world.member.peer(ask).await.unwrap();
        assert_eq!(record.key, MeshKey([7; 32]), "{code:?}");
    }
    assert_eq!(world.member.stats().outage, 2);
    fails(ErrorCode::RateLimited);
    let answer = world.member.peer(ask).await;
    assert!(
        matches!(answer, Err(ResolveError::Unreachable(_))),
        "{answer:?}"
    );
    world.clock.advance(HOUR);
    fails(ErrorCode::Unavailable);
    let answer = world.member.peer(ask).await;
    assert!(
        matches!(answer, Err(ResolveError::Unreachable(_))),
        "{answer:?}"
    );
    assert!(world.tasks.shutdown(WATCHDOG).await);
}

#[tokio::test]
async fn issuer_keys_count_with_the_root_keys_word_and_two_of_them() {
    let world = World::start().await.unwrap();
    let app = AppId::mint();
    let ask = Ask::Address(AppUla::derive(app).addr());
    let keys: Vec<SecretKey> = [3, 4, 5]
        .map(|byte| SecretKey::from_seed(&[byte; 32]))
        .into();
    let offer = |keys: Vec<EndorsedKey>| {
        world
            .said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .issuers = keys;
    };
    let signed_by = |key: &SecretKey| {
        world.says(
            ResolvedLease::App(world.sign(key, &lease(app, 1)).unwrap()),
            NOW,
        );
    };
    // Endorsed by somebody else: the keys from before stay.
    let impostor = SecretKey::from_seed(&[6; 32]);
    offer(vec![endorsed(&impostor, &keys[0])]);
    signed_by(&keys[0]);
    refused(world.asked(ask).await);
    signed_by(&issuer());
    assert!(world.asked(ask).await.is_ok());
    // Rotated twice: the newest two count, whoever was first does not any more.
    offer(keys.iter().map(|key| endorsed(&world.root, key)).collect());
    signed_by(&keys[2]);
    assert!(world.asked(ask).await.is_ok());
    signed_by(&keys[1]);
    assert!(world.asked(ask).await.is_ok());
    for old in [&keys[0], &issuer()] {
        signed_by(old);
        refused(world.asked(ask).await);
    }
    assert!(world.tasks.shutdown(WATCHDOG).await);
}
