//! The gateway of `tabbify up`, if it is told where to listen: people's stock WireGuard clients come in
//! through it. Devices are added over a socket in the data directory.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use tabbify_api::device::Devices;
use tabbify_auth::OWNER;
use tabbify_gateway::{Config, Gateway, Service};
use tabbify_mesh::{Mesh, PrivateKey};
use tabbify_process::{Importance, Tasks};

use crate::data_dir::DataDir;
use crate::substrate::bind;

/// Name of the gateway's socket in the data directory.
pub(crate) const GATEWAY_SOCKET: &str = "gateway.sock";
/// Name of the gateway's key there: clients know it, so it stays.
const KEY: &str = "gateway.key";

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
    /// Starts the gateway over this machine's end of the mesh, if there is to be one; it ends with the
    /// tasks.
    pub(crate) fn start(
        &self,
        data: &DataDir,
        devices: Arc<dyn Devices>,
        mesh: &Mesh,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let Some(listen) = self.listen else {
            return Ok(());
        };
        let key = PrivateKey::load_or_create(&data.path().join(KEY))?;
        let mut config = Config::new(listen, key);
        config.endpoint.clone_from(&self.endpoint);
        let gateway = Gateway::start(config, devices, mesh.clone(), tasks);
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
