//! A gateway, the platform's end of the mesh behind it, apps, and devices whose clients speak WireGuard.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tabbify_api::BoxFuture;
use tabbify_api::device::{Device, DeviceOrder, DeviceRemoval, Devices as _};
use tabbify_api::mesh::{PeerRecord, ResolveError, Resolver, Roster};
use tabbify_mesh::{Config as MeshConfig, Mesh, PrivateKey, StackChoice};
use tabbify_mesh_gateway::{Config, Gateway, Limits};
use tabbify_process::Tasks;
use tabbify_types::{APP_PORT, AppId, AppUla, HostUla, MeshKey, Tenant};

use crate::people::People;

pub(crate) type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Ends a stuck test.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// An app's address that nobody has.
pub(crate) const NOBODY: Ipv6Addr = Ipv6Addr::new(0xfd5a, 0x1f02, 9, 9, 9, 0, 0, 1);

/// What a device's client knows: its gateway, behind which everything is.
#[derive(Debug)]
struct OnlyGateway {
    key: MeshKey,
    at: SocketAddr,
    behind: Vec<Ipv6Addr>,
}

impl OnlyGateway {
    fn record(&self) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let record = PeerRecord::unrestricted(self.key, self.behind.clone(), vec![self.at]);
        Box::pin(async move { Ok(record) })
    }
}

impl Resolver for OnlyGateway {
    fn by_address(&self, _: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.record()
    }

    fn by_key(&self, _: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        self.record()
    }
}

/// See the module.
pub(crate) struct Net {
    pub(crate) people: Arc<People>,
    pub(crate) gateway: Gateway,
    /// Everybody of the platform's mesh.
    roster: Arc<Roster>,
    pub(crate) tasks: Tasks,
    behind: Mutex<Vec<Ipv6Addr>>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// The first of an app's addresses, and its port.
pub(crate) fn to(address: Ipv6Addr) -> SocketAddrV6 {
    SocketAddrV6::new(address, APP_PORT, 0, 0)
}

impl Net {
    pub(crate) fn new(limits: Limits) -> Fallible<Self> {
        let (tasks, roster) = (Tasks::new(), Arc::<Roster>::default());
        let host = HostUla::new(1, 1).addr();
        let config = MeshConfig::new(PrivateKey::generate(), vec![host], loopback());
        let mesh = Mesh::bind(config, Arc::clone(&roster) as _, &tasks)?;
        let at = vec![mesh.underlay_addr()?];
        roster.put(PeerRecord::unrestricted(mesh.public_key(), vec![host], at));
        let people = Arc::<People>::default();
        let mut config = Config::new(loopback(), PrivateKey::generate());
        config.limits = limits;
        let gateway = Gateway::start(config, Arc::clone(&people) as _, mesh, &tasks)?;
        Ok(Self {
            people,
            gateway,
            roster,
            tasks,
            behind: Mutex::new(vec![host, NOBODY]),
        })
    }

    /// An app of `tenant`: its end of the mesh, and its address.
    pub(crate) fn app(&self, tenant: &Tenant) -> Fallible<(Mesh, Ipv6Addr)> {
        let address = AppUla::derive(AppId::mint()).addr();
        let config = MeshConfig::new(PrivateKey::generate(), vec![address], loopback());
        let mesh = Mesh::bind(config, Arc::clone(&self.roster) as _, &self.tasks)?;
        let at = vec![mesh.underlay_addr()?];
        let record = PeerRecord::unrestricted(mesh.public_key(), vec![address], at);
        self.roster.put(record);
        self.people.app(address, tenant);
        let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        behind.push(address);
        Ok((mesh, address))
    }

    /// A device of `user` that is recorded, and its client.
    pub(crate) async fn device(&self, user: &str, name: &str) -> Fallible<(Device, Mesh)> {
        let key = PrivateKey::generate();
        let order = DeviceOrder {
            user: user.to_owned(),
            tenant: Tenant::main(),
            name: name.parse()?,
            key: key.public(),
        };
        let device = self.people.add(order, "test".to_owned()).await;
        let device = device.map_err(|problem| problem.detail)?;
        let client = self.client(key, device.address.addr())?;
        Ok((device, client))
    }

    /// A stock client in the manner of ours: an endpoint that knows the gateway alone.
    pub(crate) fn client(&self, key: PrivateKey, address: Ipv6Addr) -> Fallible<Mesh> {
        let behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
        let gateway = OnlyGateway {
            key: self.gateway.public_key(),
            at: self.gateway.listen(),
            behind: behind.clone(),
        };
        drop(behind);
        let mut config = MeshConfig::new(key, vec![address], loopback());
        config.stack = StackChoice::Userspace;
        Ok(Mesh::bind(config, Arc::new(gateway), &self.tasks)?)
    }

    pub(crate) async fn remove(&self, device: &Device) -> Fallible {
        let removal = DeviceRemoval {
            user: device.user.clone(),
            tenant: device.tenant.clone(),
            name: device.name.clone(),
        };
        let removed = self.people.remove(removal, "test".to_owned()).await;
        removed.map_err(|problem| problem.detail)?;
        Ok(())
    }
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Fallible {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WATCHDOG, waiting)
        .await
        .map_err(|_| format!("{what}: not in time").into())
}
