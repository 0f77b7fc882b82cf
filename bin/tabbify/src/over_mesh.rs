//! The platform's services on this machine's address in the mesh, and the way to those of others. Who
//! connects has proven a WireGuard key, so tokens that are bound to it count.
//!
//! | port | service |
//! |---|---|
//! | 8700 | the log |
//! | 8701 | the read model |
//! | 8080 | auth |
//! | 8702 | the vault |
//! | 5000 | artifacts |
//! | 8730 | what the apps of this machine print |
//! | 8732 | those who come for apps that are asleep on this machine |

use std::io;
use std::net::SocketAddrV6;
use std::sync::Arc;

use anyhow::Context as _;
use tabbify_api::BoxFuture;
use tabbify_api::logs::SUPERVISOR_PORT;
use tabbify_api::secrets::VAULT_PORT;
use tabbify_auth::Peer;
use tabbify_http::{Accept, Origin};
use tabbify_mesh::{Incoming, Listener, Mesh};
use tabbify_process::connect::{Connect, Stream};
use tabbify_process::{Importance, Tasks};
use tabbify_supervisor::{Doorbell, FileLogs, FileVolumes, Guest, LogService};
use tokio::sync::Mutex;

use crate::authorize::Tokens;
use crate::member::Member;

/// Where the log is.
pub(crate) const LOG_PORT: u16 = 8700;
/// Where the read model is.
pub(crate) const READ_PORT: u16 = 8701;
/// Where auth is.
pub(crate) const AUTH_PORT: u16 = 8080;

/// Serves the log to members.
pub(crate) fn log(
    mesh: &Mesh,
    service: tabbify_log::Service,
    tokens: &Tokens,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let begin = move |tokens: Arc<Tokens>, stream| service.authorized_by(tokens).connection(stream);
    by_token(mesh, LOG_PORT, "log over the mesh", tokens, tasks, begin)
}

/// Serves the read model to members.
pub(crate) fn read_model(
    mesh: &Mesh,
    service: tabbify_read::Service,
    tokens: &Tokens,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let begin = move |tokens: Arc<Tokens>, stream| service.authorized_by(tokens).connection(stream);
    by_token(mesh, READ_PORT, "read over the mesh", tokens, tasks, begin)
}

/// Serves whoever has a token that counts for the key that it has proven.
fn by_token<F>(
    mesh: &Mesh,
    port: u16,
    name: &'static str,
    tokens: &Tokens,
    tasks: &Tasks,
    begin: impl Fn(Arc<Tokens>, tabbify_mesh::Stream) -> F + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let tokens = tokens.clone();
    serve(mesh, port, name, tasks, move |incoming| {
        begin(Arc::new(tokens.of_peer(incoming.peer)), incoming.stream)
    })
}

/// Serves auth to members.
pub(crate) fn auth(
    mesh: &Mesh,
    service: tabbify_auth::Service,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    serve(
        mesh,
        AUTH_PORT,
        "auth over the mesh",
        tasks,
        move |incoming| {
            let peer = Peer {
                proven: Some(incoming.peer),
                ..Peer::at(incoming.remote.ip())
            };
            service.clone().connection(incoming.stream, peer)
        },
    )
}

/// Serves the vault to instances.
pub(crate) fn vault(
    mesh: &Mesh,
    service: tabbify_gateway::Service,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let name = "vault over the mesh";
    serve(mesh, VAULT_PORT, name, tasks, move |incoming| {
        let peer = tabbify_gateway::Peer::on_mesh(incoming.peer, *incoming.remote.ip());
        service.clone().connection(incoming.stream, peer)
    })
}

/// Shows what the apps of this machine print and keep to public edges, and to nobody else.
pub(crate) fn machine(
    mesh: &Mesh,
    logs: FileLogs,
    volumes: FileVolumes,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    let service = LogService::new(Arc::new(logs), tasks).with_volumes(Arc::new(volumes));
    let name = "machine over the mesh";
    serve(mesh, SUPERVISOR_PORT, name, tasks, move |incoming| {
        let admitted = incoming.is_node.then(|| service.clone());
        async move {
            if let Some(service) = admitted {
                service.connection(incoming.stream).await;
            }
        }
    })
}

/// Lets those in who come for apps that are asleep on this machine.
pub(crate) fn doorbell(member: &Member, doorbell: Doorbell, tasks: &Tasks) -> anyhow::Result<()> {
    let listener = member.mesh().doorbell(member.is_node());
    let mut listener = listener.context("the mesh has no doorbell")?;
    let (stop, connections, name) = (tasks.token(), tasks.clone(), "doorbell");
    tasks.spawn(name, Importance::Essential, async move {
        while let Some(Ok(incoming)) = stop.run_until_cancelled(listener.accept()).await {
            let guest = Guest {
                peer: incoming.peer,
                remote: incoming.remote,
                is_node: incoming.is_node,
            };
            let doorbell = doorbell.clone();
            let serving = async move { doorbell.serve(guest, incoming.stream).await };
            connections.spawn(name, Importance::Detached, serving);
        }
    });
    Ok(())
}

/// Hands each connection to a port to `begin`, whose work runs as a task, until the tasks end. How many
/// there are at once is the service's to limit, and the mesh's for each peer.
fn serve<F>(
    mesh: &Mesh,
    port: u16,
    name: &'static str,
    tasks: &Tasks,
    begin: impl Fn(Incoming) -> F + Send + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let cannot = || format!("cannot listen on port {port} of the mesh");
    let mut listener = mesh.listen(port).with_context(cannot)?;
    let (stop, connections) = (tasks.token(), tasks.clone());
    tasks.spawn(name, Importance::Essential, async move {
        // It ends with the mesh as well, which ends with the process.
        while let Some(Ok(incoming)) = stop.run_until_cancelled(listener.accept()).await {
            connections.spawn(name, Importance::Detached, begin(incoming));
        }
    });
    Ok(())
}

/// A port of the mesh, for services that know their callers by address.
#[derive(Debug)]
pub(crate) struct Port(Mutex<Listener>);

impl Port {
    /// The port on this machine's address.
    pub(crate) fn open(mesh: &Mesh, port: u16) -> anyhow::Result<Self> {
        let cannot = || format!("cannot listen on port {port} of the mesh");
        Ok(Self(Mutex::new(mesh.listen(port).with_context(cannot)?)))
    }
}

impl Accept for Port {
    type Stream = tabbify_mesh::Stream;

    async fn accept(&self) -> io::Result<(Self::Stream, Origin)> {
        match self.0.lock().await.accept().await {
            Ok(incoming) => Ok((incoming.stream, Origin::At(incoming.remote.into()))),
            // The mesh has ended, and the process is about to.
            Err(_) => std::future::pending().await,
        }
    }
}

/// A service of another machine.
#[derive(Debug, Clone)]
pub(crate) struct MeshSocket {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddrV6,
}

impl Connect for MeshSocket {
    fn connect(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let dialed = self.mesh.dial(self.address).await;
            let stream = dialed.map_err(io::Error::other)?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}
