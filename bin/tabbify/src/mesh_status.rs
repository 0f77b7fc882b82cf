//! What this process tells about its end of the mesh: `mesh.sock` in its data directory, for `tabbify mesh`.
//!
//! Spawns `mesh status` (one), one task a connection, and `mesh ping` for each ping that is under way.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tabbify_api::endpoint::{
    CandidateFrom, CandidateView, ENDPOINT_BODY_LEN_MAX, EXPLAIN_PATH, EndpointStatus,
    ExplainRequest, Explained, MESH_SOCKET, Nat, OwnSide, PING_INTERVAL_MS_MIN, PING_MS_MAX,
    PING_PATH, PINGS_MAX, PathView, PeerView, PingLine, PingRequest, STATUS_PATH, TriedPath,
};
use tabbify_api::names::{MeshName, NameAsk, NameError, Named, Names};
use tabbify_api::{ErrorCode, Problem};
use tabbify_http::{Handle, Limits, Server, answer};
use tabbify_mesh::{
    Candidate, CandidateKind, DialError, Mesh, OwnStatus, Path, PeerStatus, Pinged, Source,
    StackInUse,
};
use tabbify_process::{Importance, Tasks, chain};
use tokio::sync::mpsc;

use crate::data_dir::DataDir;
use crate::substrate::bind;

/// LIMIT: connections at once.
const CONNECTIONS_MAX: usize = 16;
/// LIMIT: how long the body of a request may take.
const BODY_WITHIN: Duration = Duration::from_secs(5);
/// LIMIT: names of peers that are asked for in one answer; the others are shown without.
const NAMES_MAX: usize = 256;
/// LIMIT: how long they may take.
const NAMES_WITHIN: Duration = Duration::from_secs(2);
/// LIMIT: lines that wait for whoever reads them.
const LINES_MAX: usize = 16;

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Result<Response<Body>, Box<Problem>>;

/// Tells about `mesh` in the data directory until the tasks end, with names as `names` has them.
pub(crate) fn serve(
    data: &DataDir,
    mesh: &Mesh,
    names: Arc<dyn Names>,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let listener = bind(data.path(), MESH_SOCKET)?;
    let limits = Limits {
        connections: CONNECTIONS_MAX,
        buffer_len: 16 * 1024,
        idle: Duration::from_secs(30),
        stalled: Some(Duration::from_secs(30)),
    };
    let teller = Teller {
        mesh: mesh.clone(),
        names,
        tasks: tasks.child(),
    };
    let server = Server::new("mesh status connection", limits, tasks);
    tasks.spawn("mesh status", Importance::Detached, async move {
        server.serve(listener, move |_| teller.clone()).await;
    });
    Ok(())
}

/// Answers one connection.
#[derive(Debug, Clone)]
struct Teller {
    mesh: Mesh,
    names: Arc<dyn Names>,
    tasks: Tasks,
}

impl Handle for Teller {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let answer = match (request.method(), request.uri().path()) {
            (&Method::GET, STATUS_PATH) => self.status().await,
            (&Method::POST, PING_PATH) => self.ping(request).await,
            (&Method::POST, EXPLAIN_PATH) => self.explain(request).await,
            (_, path @ (STATUS_PATH | PING_PATH | EXPLAIN_PATH)) => {
                let code = ErrorCode::MethodNotAllowed;
                Err(Box::new(Problem::new(code, path)))
            }
            (_, path) => Err(Box::new(Problem::new(ErrorCode::NotFound, path))),
        };
        answer.unwrap_or_else(|problem| refusal(&problem))
    }
}

impl Teller {
    async fn status(&self) -> Answer {
        let statuses = self.mesh.peers();
        let asking = statuses
            .iter()
            .take(NAMES_MAX)
            .map(|peer| self.name_of(peer));
        let asked = tokio::time::timeout(NAMES_WITHIN, join_all(asking)).await;
        let mut names = asked.unwrap_or_default().into_iter();
        let mut peers: Vec<PeerView> = statuses
            .into_iter()
            .map(|status| view(status, names.next().flatten()))
            .collect();
        // Those without a name last.
        peers.sort_by_key(|peer| (peer.name.is_none(), peer.name.clone(), peer.key.to_string()));
        Ok(json(&EndpointStatus {
            own: self.own()?,
            peers,
            counters: self.mesh.stats().named(),
        }))
    }

    async fn name_of(&self, peer: &PeerStatus) -> Option<MeshName> {
        let address = *peer.addresses.first()?;
        let named = self.names.find(NameAsk::Address(address)).await;
        named.ok().map(|named| named.name)
    }

    fn own(&self) -> Result<OwnSide, Box<Problem>> {
        let own = self.mesh.own();
        own.map(own_side)
            .map_err(|error| Box::new(Problem::new(ErrorCode::Internal, error.to_string())))
    }

    /// Who is meant: an inner address, or a name.
    async fn find(
        &self,
        text: &str,
    ) -> Result<(std::net::Ipv6Addr, Option<MeshName>), Box<Problem>> {
        let ask = match (text.parse(), text.parse::<MeshName>()) {
            (Ok(address), _) => NameAsk::Address(address),
            (_, Ok(name)) => NameAsk::Name(name),
            (_, Err(error)) => {
                let problem = Problem::new(ErrorCode::BadRequest, error.to_string());
                let fix =
                    "Give an address of the mesh (fd5a:…), or a name such as shop.main.internal.";
                return Err(Box::new(problem.with_fix(fix)));
            }
        };
        match (self.names.find(ask.clone()).await, ask) {
            (Ok(Named { name, .. }), NameAsk::Address(address)) => Ok((address, Some(name))),
            // An address needs no name.
            (Err(_), NameAsk::Address(address)) => Ok((address, None)),
            (Ok(Named { name, address }), NameAsk::Name(_)) => Ok((address, Some(name))),
            (Err(error @ NameError::Unknown(_)), NameAsk::Name(name)) => {
                let fix = unknown(&name);
                let code = match &name {
                    MeshName::App { .. } => ErrorCode::UnknownApp,
                    MeshName::Host(_) => ErrorCode::NotFound,
                };
                let problem = Problem::new(code, error.to_string());
                Err(Box::new(problem.with_fix(fix)))
            }
            (Err(error @ NameError::Unreachable(_)), NameAsk::Name(_)) => {
                let problem = Problem::new(ErrorCode::Unavailable, error.to_string());
                Err(Box::new(problem.with_fix("Give its address instead.")))
            }
        }
    }

    async fn ping(&self, request: Request<Incoming>) -> Answer {
        let asked: PingRequest = body(request).await?;
        let within = PING_INTERVAL_MS_MIN..=PING_MS_MAX;
        let fits = (1..=PINGS_MAX).contains(&asked.count)
            && within.contains(&asked.interval_ms)
            && (1..=PING_MS_MAX).contains(&asked.timeout_ms);
        if !fits {
            let detail = format!(
                "1 to {PINGS_MAX} pings, {PING_INTERVAL_MS_MIN} to {PING_MS_MAX} ms apart, \
                 1 to {PING_MS_MAX} ms for each answer"
            );
            return Err(Box::new(Problem::new(ErrorCode::BadRequest, detail)));
        }
        let (address, name) = self.find(&asked.to).await?;
        let reached = self.mesh.reach(address).await.map_err(unreached)?;
        let (sender, receiver) = mpsc::channel(LINES_MAX);
        self.tasks
            .spawn("mesh ping", Importance::Detached, async move {
                let to = PingLine::To {
                    address,
                    key: reached.key(),
                    name,
                };
                let handshake = reached.handshake();
                let handshake = handshake.map(|took| PingLine::Handshake { took_us: us(took) });
                for line in [Some(to), handshake].into_iter().flatten() {
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
                let timeout = Duration::from_millis(asked.timeout_ms);
                let mut ticks = tokio::time::interval(Duration::from_millis(asked.interval_ms));
                for seq in 1..=asked.count {
                    ticks.tick().await;
                    let line = match reached.ping(timeout).await {
                        Pinged {
                            path: Some(path),
                            rtt: Some(rtt),
                        } => PingLine::Answer {
                            seq,
                            rtt_us: us(rtt),
                            path: path_view(path),
                        },
                        Pinged { path, .. } => PingLine::Lost {
                            seq,
                            path: path.map(path_view),
                        },
                    };
                    // Nobody reads any more.
                    if sender.send(line).await.is_err() {
                        return;
                    }
                }
            });
        Ok(lines(receiver))
    }

    async fn explain(&self, request: Request<Incoming>) -> Answer {
        let asked: ExplainRequest = body(request).await?;
        let peers = self.mesh.peers();
        let by_key = |peer: &&PeerStatus| {
            asked.peer.len() >= 4 && peer.key.to_string().starts_with(&asked.peer)
        };
        let mut found = peers.iter().find(by_key).cloned();
        if found.is_none() {
            let (address, _) = self.find(&asked.peer).await?;
            // Asked for, so that there is something to tell; what is in the way shows below.
            if let Err(error) = self.mesh.reach(address).await
                && matches!(error, DialError::NoLease(_) | DialError::Resolve { .. })
            {
                return Err(unreached(error));
            }
            let peers = self.mesh.peers();
            let mut peers = peers.into_iter();
            found = peers.find(|peer| peer.addresses.contains(&address));
        }
        let examined = found.as_ref().and_then(|peer| self.mesh.examine(peer.key));
        let Some((peer, examined)) = found.zip(examined) else {
            let detail = format!("there is no session with {}", asked.peer);
            return Err(Box::new(Problem::new(ErrorCode::AppUnreachable, detail)));
        };
        let own = self.mesh.own();
        let own =
            own.map_err(|error| Box::new(Problem::new(ErrorCode::Internal, error.to_string())))?;
        let said = tabbify_mesh::explain(&own, &peer, &examined);
        let name = self.name_of(&peer).await;
        Ok(json(&Explained {
            own: own_side(own),
            peer: view(peer, name),
            probes: examined.speaks,
            their_nat: match (examined.called, examined.theirs_hard) {
                (false, _) => Nat::Unknown,
                (true, true) => Nat::Hard,
                (true, false) => Nat::Easy,
            },
            tried: examined.paths.iter().map(tried).collect(),
            why_not_direct: said.why,
            advice: said.advice,
        }))
    }
}

/// What to do about a name that nobody has, or nobody whom this machine may know.
const fn unknown(name: &MeshName) -> &'static str {
    match name {
        MeshName::App { .. } => {
            "Look with `tcli apps` how it is called; this machine sees what policy lets it reach."
        }
        MeshName::Host(_) => {
            "Look with `tcli machines list` how it is called. Machines with a role of the platform (a tag \
             role:…) see every machine, others only those: ask from the platform's own machine."
        }
    }
}

fn unreached(error: DialError) -> Box<Problem> {
    let code = match error {
        DialError::NoLease(_) | DialError::Forbidden(_) => ErrorCode::NoLease,
        DialError::Resolve { .. } | DialError::Closed | DialError::Busy { .. } => {
            ErrorCode::Unavailable
        }
        DialError::Refused(_) | DialError::TimedOut(_) | DialError::Unreachable(_) => {
            ErrorCode::AppUnreachable
        }
    };
    let fix = match code {
        ErrorCode::AppUnreachable => "Run: tabbify mesh explain, with the same name or address.",
        ErrorCode::NoLease => {
            "Nobody runs there now, or policy keeps this machine from it: machines see those with a role of \
             the platform, and are seen by them."
        }
        _ => "Try again; look whether the coordinator runs.",
    };
    Box::new(Problem::new(code, chain(&error).to_string()).with_fix(fix))
}

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn path_view(path: Path) -> PathView {
    match path {
        Path::Direct(to) => PathView::Direct(to),
        Path::Spare(_, to) => PathView::Spare(to),
        Path::Relayed(relay, _) => PathView::Relay(relay),
    }
}

fn view(status: PeerStatus, name: Option<MeshName>) -> PeerView {
    PeerView {
        key: status.key,
        name,
        path: status.path.map(path_view),
        rtt_us: status.rtt.map(us),
        handshake_age_ms: status.handshake.map(ms),
        silent_ms: status.silent.map(ms),
        bytes_in: status.bytes_in,
        bytes_out: status.bytes_out,
        changes: status.changes,
        why_relayed: status.why_relayed.map(str::to_owned),
        addresses: status.addresses,
    }
}

fn own_side(own: OwnStatus) -> OwnSide {
    let nat = nat(&own);
    let (stack, why_not_kernel) = match own.stack {
        StackInUse::Userspace { reason } => ("user space".to_owned(), Some(reason)),
        kernel @ StackInUse::Kernel { .. } => (kernel.to_string(), None),
    };
    let candidate = |candidate: &Candidate| CandidateView {
        address: candidate.address,
        from: match candidate.kind {
            CandidateKind::Local => CandidateFrom::Interface,
            CandidateKind::Reflexive => CandidateFrom::Stun,
            CandidateKind::Mapped => CandidateFrom::Mapped,
        },
    };
    OwnSide {
        key: own.key,
        addresses: own.addresses,
        underlay: own.underlay,
        stack,
        why_not_kernel,
        candidates: own.candidates.iter().map(candidate).collect(),
        nat,
        relays_configured: own.relays_configured,
        relays_connected: own.relays_connected,
    }
}

/// What the candidates say about the NAT.
fn nat(own: &OwnStatus) -> Nat {
    let of = |kind| {
        let candidates = own.candidates.iter();
        candidates
            .filter(move |it| it.kind == kind)
            .map(|it| it.address.ip())
    };
    let mut seen = of(CandidateKind::Reflexive).peekable();
    if own.hard {
        Nat::Hard
    } else if seen.peek().is_none() {
        Nat::Unknown
    } else if seen.all(|seen| of(CandidateKind::Local).any(|local| local == seen)) {
        Nat::Open
    } else {
        Nat::Easy
    }
}

fn tried(path: &tabbify_mesh::PathStatus) -> TriedPath {
    TriedPath {
        path: path_view(path.path),
        from: path.source.map(|source| match source {
            Source::Interface => CandidateFrom::Interface,
            Source::Stun => CandidateFrom::Stun,
            Source::Mapped => CandidateFrom::Mapped,
            Source::Record => CandidateFrom::Record,
            Source::Seen => CandidateFrom::Seen,
        }),
        in_use: path.in_use,
        proven_ms: path.proven.map(ms),
        heard_ms: path.heard.map(ms),
        asked_ms: path.asked.map(ms),
        rtt_us: path.rtt.map(us),
        unanswered: path.unanswered,
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Box<Problem>> {
    let bad = |detail: String| Box::new(Problem::new(ErrorCode::BadRequest, detail));
    let limited = Limited::new(request.into_body(), ENDPOINT_BODY_LEN_MAX).collect();
    let received = tokio::time::timeout(BODY_WITHIN, limited).await;
    let received = received
        .map_err(|_| bad("the body did not arrive in time".to_owned()))?
        .map_err(|error| bad(error.to_string()))?;
    serde_json::from_slice(&received.to_bytes()).map_err(|error| bad(error.to_string()))
}

fn lines(receiver: mpsc::Receiver<PingLine>) -> Response<Body> {
    let lines = stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        let mut text = bytes_of(&line);
        text.push(b'\n');
        Some((Ok::<_, Infallible>(Frame::data(text.into())), receiver))
    });
    answer::typed(
        "application/x-ndjson",
        StreamBody::new(lines).boxed_unsync(),
    )
}

fn json(document: &impl Serialize) -> Response<Body> {
    answer::json(document).map(BodyExt::boxed_unsync)
}

fn refusal(problem: &Problem) -> Response<Body> {
    answer::problem(problem).map(BodyExt::boxed_unsync)
}

fn bytes_of(document: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(document).expect("INVARIANT: our own shapes serialize")
}

#[cfg(test)]
mod tests;
