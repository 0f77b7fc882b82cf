//! The coordinator as another process has it: asks over the network, believes only what the platform has
//! signed, remembers it, and hears what changes.
//!
//! ```text
//!   who is there? ─▶ cache ──known, and told if it changes──▶ answer
//!                      │ else
//!                      ▼
//!            coordinators, one after the other ─▶ checks ─▶ cache, answer
//!                      │ none can be reached
//!                      ▼
//!            what was known, for the outage grace
//! ```
//!
//! Spawns two tasks: `coordinator-watch` hears changes, `coordinator-report` says where keys may be
//! reached and that we live.

mod cache;
mod changes;
mod check;
mod doors;
mod feed;
mod joining;
mod names;

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::coordinator::{
    Ask, CERTIFICATE_PATH, CertificateRequest, EndorsedKey, ISSUERS_PATH, Joined, LEASE_PATH,
    LEAVE_PATH, LeaseRequest, RESOLVE_PATH, Resolved, SignedLease, Spawn,
};
use tabbify_api::mesh::{Changed, Changes, Lease, Leases, PeerRecord, ResolveError, Resolver};
use tabbify_api::policy::Ports;
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_http::{Again, AnswerError, Client};
use tabbify_process::connect::Connect;
use tabbify_process::{Clock, Importance, Tasks, chain};
use tabbify_token::{DocumentType, SecretKey, Verifier};
use tabbify_types::{Digest, MeshKey, VerifyingKeyBytes};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use crate::life::LEASE_LIFE;
use crate::proof::MeshSecret;
use crate::tls::{Door, TlsKeyError};

use cache::{Cache, Known};
use changes::Heard;
use check::Root;
pub use joining::{Invited, JoinFailed, Membership, consent, join};

/// LIMIT: bytes of an answer: a certificate and the leases of the platform's machines.
const ANSWER_LEN_MAX: usize = 512 * 1024;
/// LIMIT: how long the head of an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// LIMIT: keys whose outer addresses are reported.
const REPORTED_MAX: usize = 16 * 1024;
/// LIMIT: changes, and keys that ended, that a listener has not taken yet; then it lags, and is told so.
const GONE_MAX: usize = 1024;

/// What a member knows of its platform from joining.
#[derive(Debug, Clone)]
pub struct RemoteConfig {
    /// The root key, as the join token pinned it.
    pub root: VerifyingKeyBytes,
    /// The issuer keys that are known already; newer ones are asked for.
    pub issuers: Vec<EndorsedKey>,
    /// How long a lease that has ended may be used while no coordinator can be reached; zero is strict.
    pub outage_grace: Duration,
}

/// What was refused here, and what was used although it had ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemoteStats {
    /// Answers whose signature, address or key is not right.
    pub forged: u64,
    /// Answers with an older epoch than one that was seen.
    pub fenced: u64,
    /// Answers that our clock or theirs makes no sense of.
    pub clock: u64,
    /// Questions that were asked of a coordinator.
    pub asked: u64,
    /// Questions that were answered from what was known.
    pub known: u64,
    /// Questions that were answered, in an outage, from what had ended or may have changed.
    pub outage: u64,
    /// Questions that were answered from what may have changed, since a coordinator is there and has no time.
    pub busy: u64,
    /// Changes that were heard.
    pub heard: u64,
}

#[derive(Debug, Default)]
struct Counters {
    forged: AtomicU64,
    fenced: AtomicU64,
    clock: AtomicU64,
    asked: AtomicU64,
    known: AtomicU64,
    outage: AtomicU64,
    busy: AtomicU64,
    heard: AtomicU64,
}

/// A coordinator, or several on one log, over the network. Clones are the same one.
#[derive(Debug, Clone)]
pub struct RemoteCoordinator(Arc<Inner>);

struct Inner {
    /// One for each coordinator; the first of them that answers is asked first the next time.
    clients: RwLock<Arc<[Client]>>,
    first: AtomicUsize,
    /// They are others now.
    moved: Notify,
    /// What kept connections end with.
    kept: Tasks,
    /// What further doors prove.
    secret: Option<MeshSecret>,
    own: MeshKey,
    root: Root,
    verifier: RwLock<Verifier>,
    cache: Mutex<Cache>,
    names: names::Asked,
    doors: doors::Kept,
    /// Whether changes are heard.
    live: AtomicBool,
    reported: Mutex<std::collections::BTreeMap<MeshKey, Vec<SocketAddr>>>,
    report: Notify,
    /// Whether a coordinator has heard where our own key may be reached.
    found: watch::Sender<bool>,
    /// There is a reason to believe that a watch that was refused is let in now.
    admitted: Notify,
    /// Changes were heard, and are not any more.
    unheard: Notify,
    gone: broadcast::Sender<MeshKey>,
    changed: broadcast::Sender<Changed>,
    counters: Counters,
    outage_grace: Duration,
    clock: Arc<dyn Clock>,
}

/// A lease of ours, as it was just given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// What it says. When it ends is said by the coordinator's clock, which ours need not agree with.
    pub lease: Lease,
    /// For how long it lasts from now on.
    pub life: Duration,
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailed {
    /// The coordinator refuses.
    #[error("the coordinator refuses: {}: {}", .0.code.as_str(), .0.detail)]
    Refused(Box<Problem>),
    /// No coordinator can be asked.
    #[error("no coordinator can be asked: {0}")]
    Unreachable(String),
}

impl RequestFailed {
    /// Whether it says nothing about what was asked: another coordinator, or the same one later, may answer.
    #[must_use]
    pub fn is_no_answer(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Refused(problem) => matches!(
                problem.code,
                ErrorCode::Unavailable | ErrorCode::RateLimited | ErrorCode::Internal
            ),
        }
    }

    /// Whether a coordinator is there and has no time.
    fn is_busy(&self) -> bool {
        matches!(self, Self::Refused(problem) if problem.code == ErrorCode::RateLimited)
    }
}

impl RemoteCoordinator {
    /// The coordinators behind `doors`, all on one log. Watches and reports until `tasks` end.
    ///
    /// # Errors
    /// [`JoinFailed::Root`] if the root key cannot be one.
    pub fn start(
        doors: Vec<Door>,
        config: RemoteConfig,
        clock: Arc<dyn Clock>,
        tasks: &Tasks,
    ) -> Result<Self, JoinFailed> {
        let root = Root::new(config.root)?;
        let verifier = RwLock::new(root.verifier(&config.issuers));
        let own = doors.first().map_or(MeshKey([0; 32]), Door::key);
        let secret = doors.first().map(|door| door.secret().clone());
        // Kept connections end with their client: nobody waits for them.
        let kept = tasks.child();
        let this = Self(Arc::new(Inner {
            clients: RwLock::new(clients(doors, &kept)),
            first: AtomicUsize::new(0),
            moved: Notify::new(),
            kept,
            secret,
            own,
            root,
            verifier,
            cache: Mutex::default(),
            names: names::Asked::default(),
            doors: doors::Kept::default(),
            live: AtomicBool::new(false),
            reported: Mutex::default(),
            report: Notify::new(),
            found: watch::Sender::new(false),
            admitted: Notify::new(),
            unheard: Notify::new(),
            gone: broadcast::Sender::new(GONE_MAX),
            changed: broadcast::Sender::new(GONE_MAX),
            counters: Counters::default(),
            outage_grace: config.outage_grace,
            clock,
        }));
        let (watching, stop) = (this.clone(), tasks.token());
        tasks.spawn("coordinator-watch", Importance::Essential, async move {
            let _ = stop.run_until_cancelled(watching.watch()).await;
        });
        let (reporting, stop) = (this.clone(), tasks.token());
        tasks.spawn("coordinator-report", Importance::Essential, async move {
            let _ = stop.run_until_cancelled(reporting.report()).await;
        });
        Ok(this)
    }

    /// The coordinators, with the digests of their TLS keys, are here from now on and nowhere else; none changes
    /// nothing. They are those of the same platform: its root key stays, and so does the key that we prove.
    ///
    /// # Errors
    /// [`TlsKeyError::Tls`].
    pub fn move_to(&self, places: Vec<(Arc<dyn Connect>, Digest)>) -> Result<(), TlsKeyError> {
        let inner = &self.0;
        let Some(secret) = inner.secret.as_ref().filter(|_| !places.is_empty()) else {
            return Ok(());
        };
        let doors = places.into_iter();
        let doors = doors.map(|(connect, pin)| Door::new(connect, pin, secret.clone()));
        let clients = clients(doors.collect::<Result<_, _>>()?, &inner.kept);
        *inner
            .clients
            .write()
            .unwrap_or_else(PoisonError::into_inner) = clients;
        inner.first.store(0, Ordering::Relaxed);
        inner.moved.notify_one();
        inner.report.notify_one();
        Ok(())
    }

    fn clients(&self) -> Arc<[Client]> {
        let clients = self.0.clients.read();
        Arc::clone(&clients.unwrap_or_else(PoisonError::into_inner))
    }

    /// Our own WireGuard key.
    #[must_use]
    pub fn own(&self) -> MeshKey {
        self.0.own
    }

    /// Returns once a coordinator has heard where our own key may be reached: from then on, others find us.
    pub async fn found(&self) {
        // The sender lives as long as we do.
        let _ = self.0.found.subscribe().wait_for(|found| *found).await;
    }

    /// Whether changes are heard; without, what was resolved is asked for again sooner.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.0.live.load(Ordering::Relaxed)
    }

    /// Keys that are nobody's any more, as they are heard of: sessions with them end.
    #[must_use]
    pub fn gone(&self) -> broadcast::Receiver<MeshKey> {
        self.0.gone.subscribe()
    }

    /// Returns when changes are not heard any more, from now on: the coordinator is away, or lets us in no
    /// more.
    pub async fn unheard(&self) {
        self.0.unheard.notified().await;
    }

    /// What was refused and used so far.
    #[must_use]
    pub fn stats(&self) -> RemoteStats {
        let at = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        RemoteStats {
            forged: at(&counters.forged),
            fenced: at(&counters.fenced),
            clock: at(&counters.clock),
            asked: at(&counters.asked),
            known: at(&counters.known),
            outage: at(&counters.outage),
            busy: at(&counters.busy),
            heard: at(&counters.heard),
        }
    }

    /// The lease of an instance that was just spawned, for our key.
    ///
    /// # Errors
    /// [`RequestFailed`].
    pub async fn spawned(&self, spawn: Spawn) -> Result<Leased, RequestFailed> {
        let request = LeaseRequest { spawn: Some(spawn) };
        let lease = self.lease(&request).await?;
        // Before, we were nobody: what was refused then need not wait its time out.
        self.0.admitted.notify_one();
        self.0.report.notify_one();
        Ok(lease)
    }

    /// From here on another coordinator is asked first, if there is one: for whoever doubts an answer.
    pub fn ask_elsewhere(&self) {
        let inner = &self.0;
        let next = inner.first.load(Ordering::Relaxed).wrapping_add(1);
        inner
            .first
            .store(next % self.clients().len().max(1), Ordering::Relaxed);
    }

    /// Tries at once what waits for a coordinator to be there: for whoever knows that one is.
    pub fn look_again(&self) {
        if !self.is_live() {
            self.0.admitted.notify_one();
            self.0.report.notify_one();
        }
    }

    /// The lease of our key, anew. At half of its life is the time for it.
    ///
    /// # Errors
    /// [`RequestFailed`]; with [`ErrorCode::LeaseFenced`] the instance is to end.
    pub async fn renewed(&self) -> Result<Leased, RequestFailed> {
        self.lease(&LeaseRequest::default()).await
    }

    async fn lease(&self, request: &LeaseRequest) -> Result<Leased, RequestFailed> {
        let signed: SignedLease = self.post(LEASE_PATH, request).await?;
        let opened = self.open::<Lease>(DocumentType::Lease, &signed.lease).await;
        let lease = opened.map_err(|error| RequestFailed::Unreachable(error.to_string()))?;
        // Both times are the coordinator's; one that does not tell its own gives whole lives.
        let told = signed.now.map(|now| lease.not_after.since(now));
        let life = told.unwrap_or(LEASE_LIFE).min(LEASE_LIFE);
        Ok(Leased { lease, life })
    }

    /// A new certificate of our machine's, with a signing key.
    ///
    /// # Errors
    /// [`JoinFailed`].
    pub async fn certificate(&self, signing: &SecretKey) -> Result<Membership, JoinFailed> {
        let request = CertificateRequest {
            signing: signing.public(),
            consent: consent(self.0.root.platform(), self.0.own, signing)?,
        };
        let joined = self.post::<Joined>(CERTIFICATE_PATH, &request).await;
        let joined = joined.map_err(JoinFailed::Request)?;
        let expected = joining::Expected {
            host: None,
            key: self.0.own,
            signing: signing.public(),
        };
        joining::checked(&self.0.root, joined, &expected, self.0.clock.now())
    }

    /// Takes our machine out of the mesh.
    ///
    /// # Errors
    /// [`RequestFailed`].
    pub async fn leave(&self) -> Result<(), RequestFailed> {
        self.post(LEAVE_PATH, &()).await
    }

    /// Who is asked for, and the ports that may be reached: of them, or by a key, of us.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn peer(&self, ask: Ask) -> Result<(PeerRecord, Ports), ResolveError> {
        let known = self.known(ask).await?;
        Ok((known.record, known.ports))
    }

    async fn known(&self, ask: Ask) -> Result<Known, ResolveError> {
        let inner = &self.0;
        let now = inner.clock.now();
        let cached = self.cache().get(&ask);
        if let Some(known) = cached
            .as_ref()
            .filter(|known| known.is_good(now, self.is_live()))
        {
            count(&inner.counters.known);
            return Ok(known.clone());
        }
        count(&inner.counters.asked);
        let version = self.cache().version();
        match self.post::<Resolved>(RESOLVE_PATH, &ask).await {
            Ok(resolved) => {
                let known = self.check(ask, &resolved).await?;
                self.cache().put(ask, known.clone(), version, now);
                Ok(known)
            }
            Err(error) if error.is_no_answer() => match cached {
                // Who has no time for us is there: what has ended stays ended. Who cannot decide yet, as one that has
                // just started, or breaks over the question, is as good as away.
                Some(known) if error.is_busy() => {
                    if known.not_after <= now {
                        return Err(ResolveError::Unreachable(error.to_string()));
                    }
                    count(&inner.counters.busy);
                    Ok(known)
                }
                Some(known) if now < known.not_after.plus(inner.outage_grace) => {
                    count(&inner.counters.outage);
                    Ok(known)
                }
                _ => Err(ResolveError::Unreachable(error.to_string())),
            },
            Err(error) => {
                self.cache().remove(&ask);
                Err(refused(ask, error))
            }
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: &impl Serialize,
    ) -> Result<T, RequestFailed> {
        let body = serde_json::to_vec(body).expect("INVARIANT: our own shapes serialize");
        self.ask(Method::POST, path, body.into()).await
    }

    /// Asks one coordinator after the other, until one answers. Whatever is asked may be asked twice.
    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Result<T, RequestFailed> {
        let inner = &self.0;
        let (clients, first) = (self.clients(), inner.first.load(Ordering::Relaxed));
        let mut why = RequestFailed::Unreachable("none is configured".to_owned());
        for n in 0..clients.len() {
            let at = (first + n) % clients.len();
            let request = request(&method, path, body.clone());
            match answer(&clients[at], request).await {
                Err(error) if error.is_no_answer() => why = error,
                answered => {
                    inner.first.store(at, Ordering::Relaxed);
                    return answered;
                }
            }
        }
        Err(match why {
            // Whoever waits for a coordinator waits for one that can decide.
            RequestFailed::Refused(problem) if problem.code == ErrorCode::Unavailable => {
                RequestFailed::Unreachable(problem.detail)
            }
            why => why,
        })
    }

    /// What the platform has signed; if by a key that we have not heard of, we ask for the keys first.
    async fn open<T: DeserializeOwned>(
        &self,
        typ: DocumentType,
        text: &str,
    ) -> Result<T, tabbify_token::TokenError> {
        let verifier = self.verifier();
        match verifier.verify_document(typ, text) {
            Err(tabbify_token::TokenError::UnknownKey) => {
                self.refresh_issuers().await;
                self.verifier().verify_document(typ, text)
            }
            opened => opened,
        }
    }

    async fn refresh_issuers(&self) {
        let asked = self.ask::<Vec<EndorsedKey>>(Method::GET, ISSUERS_PATH, Bytes::new());
        match asked.await {
            Ok(keys) => {
                let verifier = self.0.root.verifier(&keys);
                // An answer without any key that counts is no reason to believe nobody.
                if !verifier.keys().is_empty() {
                    *self
                        .0
                        .verifier
                        .write()
                        .unwrap_or_else(PoisonError::into_inner) = verifier;
                }
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the issuer keys cannot be asked for");
            }
        }
    }

    fn verifier(&self) -> Verifier {
        let verifier = self.0.verifier.read();
        verifier.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.0.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn clients(doors: Vec<Door>, kept: &Tasks) -> Arc<[Client]> {
    let client =
        |door: Door| Client::new("coordinator client", Arc::new(door), ANSWER_WITHIN, kept);
    doors.into_iter().map(client).collect()
}

/// One more.
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn request(method: &Method, path: &'static str, body: Bytes) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "coordinator")
        .body(Full::new(body))
        .expect("INVARIANT: our paths and headers are plain text")
}

/// One coordinator's answer.
async fn answer<T: DeserializeOwned>(
    client: &Client,
    request: Request<Full<Bytes>>,
) -> Result<T, RequestFailed> {
    let unreachable = RequestFailed::Unreachable;
    let asked = client.ask(request, Again::Harmless, ANSWER_LEN_MAX).await;
    let (parts, bytes) =
        asked.map_err(|error: AnswerError| unreachable(chain(&error).to_string()))?;
    if parts.status.is_success() {
        let read = serde_json::from_slice(&bytes);
        return read.map_err(|_| unreachable("its answer is not understood".to_owned()));
    }
    Err(match serde_json::from_slice::<Problem>(&bytes) {
        Ok(problem) => RequestFailed::Refused(Box::new(problem)),
        Err(_) => unreachable(format!(
            "status {} without a problem document",
            parts.status
        )),
    })
}

fn refused(ask: Ask, error: RequestFailed) -> ResolveError {
    let problem = match error {
        RequestFailed::Refused(problem) => problem,
        RequestFailed::Unreachable(why) => return ResolveError::Unreachable(why),
    };
    match (problem.code, ask) {
        (ErrorCode::NoLease, Ask::Address(address)) => ResolveError::NoLease(address),
        (ErrorCode::NoLease, Ask::Key(key)) => ResolveError::UnknownKey(key),
        _ => ResolveError::Refused(format!("{}: {}", problem.code.as_str(), problem.detail)),
    }
}

impl Leases for RemoteCoordinator {
    fn resolve(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<String, ResolveError>> {
        Box::pin(async move {
            let known = self.known(Ask::Address(address)).await?;
            known.lease.ok_or(ResolveError::NoLease(address))
        })
    }

    fn report_candidates(&self, key: MeshKey, candidates: Vec<SocketAddr>) {
        let mut reported = self
            .0
            .reported
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if reported.len() >= REPORTED_MAX && !reported.contains_key(&key) {
            tracing::warn!(peer = %key, "no room for its outer addresses");
            return;
        }
        if reported.get(&key) != Some(&candidates) {
            reported.insert(key, candidates);
            self.0.report.notify_one();
        }
    }
}

impl Resolver for RemoteCoordinator {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move { Ok(self.known(Ask::Address(address)).await?.record) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        Box::pin(async move { Ok(self.known(Ask::Key(key)).await?.record) })
    }

    fn doubt(&self, address: Ipv6Addr) {
        self.cache().doubt(&Ask::Address(address), Instant::now());
    }

    fn changes(&self) -> Option<Box<dyn Changes>> {
        Some(Box::new(Heard(self.0.changed.subscribe())))
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
