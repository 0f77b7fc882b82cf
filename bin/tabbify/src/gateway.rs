//! The gateway of `tabbify up`, if it is told where to listen: people's stock WireGuard clients come in
//! through it. Devices are added over a socket in the data directory.
//!
//! It has an end of the mesh of its own, with a key and an address of its own: what comes from this machine's
//! comes from the node, whose word about people apps believe.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use tabbify_auth::OWNER;
use tabbify_coordinator::Coordinator;
use tabbify_mesh::{Mesh, PrivateKey};
use tabbify_mesh_gateway::{Config, Gateway, Service};
use tabbify_process::{Importance, Tasks};

use crate::data_dir::DataDir;
use crate::member::{Member, relays};
use crate::substrate::bind;

/// Name of the gateway's socket in the data directory.
pub(crate) const GATEWAY_SOCKET: &str = "gateway.sock";
/// Name of the gateway's key there: clients know it, so it stays.
const KEY: &str = "gateway.key";
/// Name of the key there by which the mesh knows it.
const MESH_KEY: &str = "gateway-mesh.key";

/// `[gateway]`.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Section {
    /// Where people's WireGuard clients reach it (UDP). Default: there is no gateway.
    pub(crate) listen: Option<SocketAddr>,
    /// What clients are told, as `host:port`. Default: where it listens.
    pub(crate) endpoint: Option<String>,
}

impl Section {
    /// Whether it can be one, before anything is made.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.listen {
            Some(listen) => Gateway::check(listen, self.endpoint.as_deref()).context("[gateway]"),
            None => Ok(()),
        }
    }

    /// Starts the gateway beside this machine's end of the mesh, if there is to be one; it ends with the
    /// tasks.
    pub(crate) async fn start(
        &self,
        data: &DataDir,
        coordinator: &Coordinator,
        beside: &Member,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let Some(listen) = self.listen else {
            return Ok(());
        };
        let key = PrivateKey::load_or_create(&data.path().join(KEY))?;
        let mesh = own_end(data, coordinator, beside, tasks).await?;
        let mut config = Config::new(listen, key);
        config.endpoint.clone_from(&self.endpoint);
        let gateway = Gateway::start(config, Arc::new(coordinator.clone()), mesh, tasks);
        let gateway = gateway.context("[gateway]")?;
        let listener = bind(data.path(), GATEWAY_SOCKET)?;
        let service = Service::new(gateway.clone(), OWNER.to_owned(), tasks);
        tasks.spawn("gateway service", Importance::Essential, async move {
            service.serve_unix(listener).await;
        });
        let (listen, key) = (gateway.listen(), gateway.public_key());
        tracing::info!(role = "gateway", %listen, peer = %key, "people's devices come in here");
        Ok(())
    }
}

/// The gateway's end of the mesh. It calls and is not called, so that nobody needs to be told where it is.
async fn own_end(
    data: &DataDir,
    coordinator: &Coordinator,
    beside: &Member,
    tasks: &Tasks,
) -> anyhow::Result<Mesh> {
    let key = PrivateKey::load_or_create(&data.path().join(MESH_KEY))?;
    let public = key.public();
    let address = coordinator.settle_gateway(public).await;
    let address = address.context("the gateway cannot be a member of the mesh")?;
    let helpers = beside.coordinator_at().helpers;
    let addresses = vec![address.addr()];
    let mut config = tabbify_mesh::Config::new(key, addresses, beside.runner_underlay());
    config.relays = relays(&helpers);
    config.stun.clone_from(&helpers.stun);
    Ok(Mesh::bind(config, coordinator.resolver(public), tasks)?)
}
