//! The coordinator over a network: TLS, then the proof of a WireGuard key, then HTTP/1.1. Nothing is read
//! of a request before its connection has proven a key, and whoever asks is that key.
//!
//! Runs one task a connection, on the tasks it was made with.

mod handle;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::auth::IssuedToken;
use tabbify_api::auth::issue::{Admission, AdmitRequest, Caller, Issuer, RequestError, TokenOrder};
use tabbify_api::coordinator::HostCertificate;
use tabbify_http::{Accept, Limits as HttpLimits, Origin, Server};
use tabbify_membership::proof::{self, PROOF_WITHIN};
use tabbify_membership::{Binding, TlsKey};
use tabbify_process::Tasks;
use tabbify_process::connect::Bearer;
use tabbify_types::MeshKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;

use crate::coordinator::Coordinator;
use crate::limits::Limiter;
use crate::stats::count;

use handle::Handler;

/// LIMIT: bytes of one connection that wait to be read or written, and so of a request's head.
const BUFFER_LEN_MAX: usize = 16 * 1024;
/// LIMIT: how long a connection may be open without a request.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// LIMIT: how long a watcher may take nothing of what it is told.
const STALLED_MAX: Duration = Duration::from_secs(30);

/// What the service bears.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections with a proven key, at once.
    pub connections: usize,
    /// Connections that have not proven a key yet, at once; further ones are closed as they come.
    pub handshakes: usize,
    /// Connections of one address (of IPv6: its /64) at once, and how often one more.
    pub by_address: (u32, Duration),
    /// Requests of one key at once, and how often one more.
    pub by_key: (u32, Duration),
    /// Join tokens that are tried from one address at once, and how often one more.
    pub joins: (u32, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshakes: 256,
            by_address: (128, Duration::from_millis(200)),
            by_key: (2048, Duration::from_millis(5)),
            joins: (10, Duration::from_secs(6)),
        }
    }
}

/// Uses join tokens up and gives machines theirs: auth, wherever it is.
pub trait Admit: Send + Sync + fmt::Debug {
    /// Uses a join token up for one key.
    fn admit(&self, request: AdmitRequest) -> BoxFuture<'_, Result<Admission, RequestError>>;

    /// Gives a machine that was just certified what it shows to the services of the platform.
    fn host_token<'a>(
        &'a self,
        certificate: &'a HostCertificate,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>>;
}

/// The order of the token of kind `host` that goes with a certificate.
#[must_use]
pub fn host_order(certificate: &HostCertificate) -> TokenOrder {
    TokenOrder::Host {
        host: certificate.host.clone(),
        tenant: certificate.tenant.clone(),
        tags: certificate.tags.clone(),
        ulas: vec![certificate.address.addr()],
        key: certificate.key,
        audience: None,
    }
}

/// Asks an issuer with a service token of the coordinator's own.
#[derive(Clone)]
pub struct ByIssuer {
    issuer: Arc<dyn Issuer>,
    bearer: Bearer,
}

impl ByIssuer {
    /// `bearer` gives a token of a service that may admit machines.
    #[must_use]
    pub fn new(issuer: Arc<dyn Issuer>, bearer: Bearer) -> Self {
        Self { issuer, bearer }
    }
}

impl Admit for ByIssuer {
    fn admit(&self, request: AdmitRequest) -> BoxFuture<'_, Result<Admission, RequestError>> {
        Box::pin(async move {
            let token = (self.bearer)();
            self.issuer.admit(Caller::bearer(&token), request).await
        })
    }

    fn host_token<'a>(
        &'a self,
        certificate: &'a HostCertificate,
    ) -> BoxFuture<'a, Result<IssuedToken, RequestError>> {
        Box::pin(async move {
            let (token, order) = ((self.bearer)(), host_order(certificate));
            self.issuer.issue(Caller::bearer(&token), order).await
        })
    }
}

impl fmt::Debug for ByIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByIssuer")
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// Serves a coordinator. Clones share the limits.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    server: Server,
}

/// What every connection needs.
pub(crate) struct Shared {
    coordinator: Coordinator,
    admit: Arc<dyn Admit>,
    handshakes: Semaphore,
    by_address: Limiter<IpAddr>,
    by_key: Limiter<MeshKey>,
    joins: Limiter<IpAddr>,
    tasks: Tasks,
}

impl Service {
    /// A service of `coordinator` that ends with `tasks`; join tokens are `admit`'s to judge.
    #[must_use]
    pub fn new(
        coordinator: Coordinator,
        admit: Arc<dyn Admit>,
        limits: &Limits,
        tasks: &Tasks,
    ) -> Self {
        let http = HttpLimits {
            connections: limits.connections,
            buffer_len: BUFFER_LEN_MAX,
            idle: IDLE_MAX,
            stalled: Some(STALLED_MAX),
        };
        let limiter = |(burst, refill)| Limiter::new(burst, refill);
        let shared = Shared {
            coordinator,
            admit,
            handshakes: Semaphore::new(limits.handshakes),
            by_address: limiter(limits.by_address),
            by_key: Limiter::new(limits.by_key.0, limits.by_key.1),
            joins: limiter(limits.joins),
            tasks: tasks.clone(),
        };
        Self {
            shared: Arc::new(shared),
            server: Server::new("coordinator connection", http, tasks),
        }
    }

    /// Serves whoever comes over a socket, with TLS, until the tasks end.
    pub async fn serve_tls(self, listener: impl Accept, key: TlsKey) {
        let shared = self.shared;
        self.server
            .accept(listener, move |server, stream, origin| {
                let (shared, key) = (Arc::clone(&shared), key.clone());
                async move {
                    let Some(source) = shared.let_in(origin) else {
                        return;
                    };
                    let Some(waiting) = shared.handshakes.try_acquire().ok() else {
                        count(&shared.coordinator.0.counters.limited);
                        return;
                    };
                    let secured = tokio::time::timeout(PROOF_WITHIN, key.accept(stream)).await;
                    let Ok(Ok((stream, binding))) = secured else {
                        count(&shared.coordinator.0.counters.unproven);
                        return;
                    };
                    let proven = shared.proven(stream, &binding).await;
                    drop(waiting);
                    if let Some((stream, key)) = proven {
                        let handler = Handler::new(Arc::clone(&shared), key, source);
                        server.connection(stream, handler).await;
                    }
                }
            })
            .await;
    }

    /// Serves one connection that is secure already, to its end: `binding` is the same at both ends, and
    /// of no other connection. `source` is where it comes from.
    pub async fn connection<S>(self, stream: S, binding: Binding, source: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Some((stream, key)) = self.shared.proven(stream, &binding).await {
            let handler = Handler::new(self.shared, key, source);
            self.server.connection(stream, handler).await;
        }
    }
}

impl Shared {
    /// Where a connection comes from, unless too many come from there. Whoever can open our unix socket
    /// comes as often as there are instances on this machine.
    fn let_in(&self, origin: Origin) -> Option<IpAddr> {
        let source = match origin {
            Origin::Local => return Some(IpAddr::V6(Ipv6Addr::LOCALHOST)),
            Origin::At(address) => prefix(address),
        };
        if self.by_address.take(&source) {
            return Some(source);
        }
        count(&self.coordinator.0.counters.limited);
        None
    }

    async fn proven<S>(&self, mut stream: S, binding: &Binding) -> Option<(S, MeshKey)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let counters = &self.coordinator.0.counters;
        match proof::demand(&mut stream, binding).await {
            Ok(key) => {
                count(&counters.proven);
                Some((stream, key))
            }
            Err(error) => {
                count(&counters.unproven);
                tracing::debug!(role = "coordinator", %error, "a connection proves no key");
                None
            }
        }
    }
}

/// What one customer of a network provider has at least: an address, or a /64.
fn prefix(address: SocketAddr) -> IpAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_in_a_prefix_are_one() {
        let of = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(of("[2001:db8::1]:1"), of("[2001:db8::ffff:1]:2"));
        assert_ne!(of("[2001:db8::1]:1"), of("[2001:db8:0:1::1]:1"));
        assert_ne!(of("192.0.2.1:1"), of("192.0.2.2:1"));
        assert_eq!(of("192.0.2.1:1"), of("[::ffff:192.0.2.1]:9"));
    }
}
