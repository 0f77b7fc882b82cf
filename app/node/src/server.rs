//! The node's life: bind early, follow the log, serve once the view is complete, drain.

use std::net::SocketAddr;
use std::sync::Arc;

use tabbify_process::fold::Follow;
use tabbify_process::{Importance, chain};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::config::{CONNECTIONS_MAX, Config};
use crate::listen;
use crate::node::{Deps, Node};
use crate::pool::{Pool, PoolStats};
use crate::view::{Urls, View};

/// Why the node cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Nowhere to listen.
    #[error("the node needs at least one address to listen on")]
    NoAddress,
    /// Nothing binds beyond loopback before the owner's account has been claimed.
    #[error(
        "{0} is beyond loopback, and the owner's account has not been claimed; use 127.0.0.1 or [::1]"
    )]
    NotLoopback(SocketAddr),
    /// The address is taken, or may not be used.
    #[error("{address} cannot be bound")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
}

/// Looks at a node's connections to apps.
#[derive(Debug, Clone)]
pub struct PoolWatch(Arc<Pool>);

impl PoolWatch {
    /// What was done so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.0.stats()
    }
}

/// A node that is bound and does not serve yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    address: SocketAddr,
    node: Arc<Node>,
    follow: Follow<View>,
}

impl Server {
    /// Binds every address of `config`.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(config: Config, deps: Deps) -> Result<Self, BindError> {
        let mut listeners = Vec::with_capacity(config.listen.len());
        let mut first = None;
        for &address in &config.listen {
            if !address.ip().is_loopback() {
                return Err(BindError::NotLoopback(address));
            }
            let failed = |source| BindError::Bind { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let bound = listener.local_addr().map_err(failed)?;
            first.get_or_insert(bound);
            listeners.push(listener);
        }
        let address = first.ok_or(BindError::NoAddress)?;
        let urls = Urls {
            base: config.base_host.clone(),
            port: address.port(),
        };
        let (node, follow) = Node::new(config, urls, deps);
        Ok(Self {
            listeners,
            address,
            node: Arc::new(node),
            follow,
        })
    }

    /// The first address, with the port that it really has.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.address
    }

    /// For whoever wants to know, while it serves, what it does with connections to apps.
    #[must_use]
    pub fn pool(&self) -> PoolWatch {
        PoolWatch(Arc::clone(&self.node.pool))
    }

    /// Serves until `shutdown` is cancelled, then stops accepting and returns once every request
    /// has ended or the drain time is over. Connections that come before the view of the log is
    /// complete, or has turned out to be all there is for now, wait in the socket's own queue.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            listeners,
            node,
            mut follow,
            ..
        } = self;
        match shutdown.run_until_cancelled(follow.catch_up()).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::error!(error = %chain(&error), "the node cannot follow the log");
                return;
            }
            None => return,
        }
        follow.spawn("node projection", Importance::Essential, &node.tasks);
        node.tasks
            .spawn("node pool", Importance::Detached, sweep(Arc::clone(&node)));

        let limit = node.config.connections.min(CONNECTIONS_MAX);
        let permits = Arc::new(Semaphore::new(limit));
        let accepting = listeners.into_iter().map(|listener| {
            listen::accept(
                listener,
                Arc::clone(&node),
                Arc::clone(&permits),
                shutdown.clone(),
            )
        });
        futures_util::future::join_all(accepting).await;
        // Every connection and tunnel holds a permit until it ends.
        let all = u32::try_from(limit).expect("the limit is a small constant");
        let drained = permits.acquire_many(all);
        if tokio::time::timeout(node.config.timeouts.drain, drained)
            .await
            .is_err()
        {
            let left = limit - permits.available_permits();
            tracing::warn!(left, "connections were cut at the end of the drain time");
        }
    }
}

async fn sweep(node: Arc<Node>) {
    let token = node.tasks.token();
    while token
        .run_until_cancelled(tokio::time::sleep(node.config.timeouts.pooled))
        .await
        .is_some()
    {
        node.pool.sweep();
    }
}
