//! The service: connections of callers with an inner address, one file a request.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tabbify_api::ErrorCode;
use tabbify_http::{Accept, Handle, Limits as HttpLimits, Origin, Server};
use tabbify_process::{Tasks, chain};

use crate::answer::{self, Body};
use crate::path::{Asked, PathError};
use crate::places::Places;
use crate::stats::{Counters, Stats, count};

/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 64 * 1024;
/// LIMIT: how long a connection may be open without a request.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// LIMIT: how long a caller may take nothing of a file.
const STALLED_MAX: Duration = Duration::from_secs(30);
/// LIMIT: how long the store may take to begin with a file.
const OPEN_WITHIN: Duration = Duration::from_secs(20);

/// What the service bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one inner address at once; further ones are closed as they come.
    pub connections_each: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            connections_each: 16,
        }
    }
}

/// Serves the artifacts of an object store. Clones share the limits.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    places: Arc<Places>,
    server: Server,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    counters: Arc<Counters>,
}

impl Service {
    /// A service of `store`, as the node lays it out. It ends with `tasks`: what is being sent is sent.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, limits: &Limits, tasks: &Tasks) -> Self {
        let http = HttpLimits {
            connections: limits.connections,
            buffer_len: BUFFER_LEN_MAX,
            idle: IDLE_MAX,
            stalled: Some(STALLED_MAX),
        };
        let counters = Arc::default();
        Self {
            shared: Arc::new(Shared { store, counters }),
            places: Places::new(limits.connections_each),
            server: Server::new("registry connection", http, tasks),
        }
    }

    /// Serves the connections of `listener` until the tasks end. Where they come from says who they are:
    /// the listener's word for it must be good, as that of the mesh is.
    pub async fn serve(self, listener: impl Accept) {
        let Self {
            shared,
            places,
            server,
        } = self;
        server
            .accept(listener, move |server, stream, origin| {
                let (shared, caller) = (Arc::clone(&shared), inner(origin));
                let place = places.take(IpAddr::V6(caller));
                async move {
                    let Some(_place) = place else {
                        count(&shared.counters.limited);
                        tracing::debug!(%caller, "a connection too many is closed");
                        return;
                    };
                    server.connection(stream, Caller { shared, caller }).await;
                }
            })
            .await;
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.stats()
    }
}

/// The inner address of whoever has connected; whoever has none has an address that is no app's.
fn inner(origin: Origin) -> Ipv6Addr {
    match origin {
        Origin::At(address) => match address.ip() {
            IpAddr::V6(address) => address,
            IpAddr::V4(address) => address.to_ipv6_mapped(),
        },
        Origin::Local => Ipv6Addr::UNSPECIFIED,
    }
}

/// One connection of one caller.
struct Caller {
    shared: Arc<Shared>,
    caller: Ipv6Addr,
}

impl Handle for Caller {
    type Body = Body;

    async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let counters = &self.shared.counters;
        if request.method() != Method::GET {
            count(&counters.malformed);
            return answer::problem(ErrorCode::MethodNotAllowed, "files are read with GET");
        }
        match Asked::read(request.uri().path()) {
            Ok(asked) if asked.may_go_to(self.caller) => self.shared.file(&asked).await,
            Ok(asked) => {
                count(&counters.denied);
                let caller = self.caller;
                let detail = format!("{caller} is not an address of the app {}", asked.app);
                answer::problem(ErrorCode::Forbidden, detail)
            }
            Err(PathError::Elsewhere) => {
                count(&counters.missing);
                answer::problem(ErrorCode::NotFound, "nothing is at this path")
            }
            Err(PathError::Malformed(why)) => {
                count(&counters.malformed);
                answer::problem(ErrorCode::BadRequest, why)
            }
        }
    }
}

impl Shared {
    async fn file(&self, asked: &Asked) -> Response<Body> {
        let (key, counters) = (Key::from(asked.key()), &self.counters);
        let unavailable = |why: String| {
            count(&counters.unavailable);
            tracing::warn!(role = "registry", %key, why, "the object store cannot be read");
            let detail = format!("{key} cannot be read now; try again");
            answer::problem(ErrorCode::Unavailable, detail)
        };
        match tokio::time::timeout(OPEN_WITHIN, self.store.get(&key)).await {
            Ok(Ok(got)) => {
                count(&counters.served);
                let counters = Arc::clone(counters);
                answer::file(got, move || count(&counters.broken))
            }
            Ok(Err(object_store::Error::NotFound { .. })) => {
                count(&counters.missing);
                let detail = format!("{key} is not in the object store");
                answer::problem(ErrorCode::NotFound, detail)
            }
            Ok(Err(error)) => unavailable(chain(&error).to_string()),
            Err(_) => unavailable(format!("no answer within {} s", OPEN_WITHIN.as_secs())),
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}
