//! Who may come and where to, in memory, judged by the platform's own policy.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tabbify_api::device::{Device, DeviceOrder, DeviceRemoval, Devices, DevicesUnknown};
use tabbify_api::policy::{Party, Policy, Ports, Who};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_types::event::v1::AllowRule;
use tabbify_types::{DeviceUla, MeshKey, Position, Tenant};
use tokio::sync::watch;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct People {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    last: u32,
    devices: Vec<Device>,
    there: BTreeMap<Ipv6Addr, Party>,
    policy: Policy,
}

impl People {
    /// An app that answers at `address`.
    pub(crate) fn app(&self, address: Ipv6Addr, tenant: &Tenant) {
        let party = Party {
            who: Who::App(tabbify_types::AppId::mint()),
            tenant: tenant.clone(),
            tags: Vec::new(),
        };
        self.state().there.insert(address, party);
    }

    /// All rules of a tenant.
    pub(crate) fn rules(&self, tenant: &Tenant, rules: Vec<AllowRule>) {
        self.state().policy.set(tenant.clone(), rules);
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|changed| *changed += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices for People {
    fn by_key(&self, key: &MeshKey) -> Result<Option<Device>, DevicesUnknown> {
        let state = self.state();
        Ok(state
            .devices
            .iter()
            .find(|device| device.key == *key)
            .cloned())
    }

    fn all(&self) -> Result<Vec<Device>, DevicesUnknown> {
        Ok(self.state().devices.clone())
    }

    fn reach(&self, key: &MeshKey, to: Ipv6Addr) -> Result<Option<Ports>, DevicesUnknown> {
        let Some(device) = self.by_key(key)? else {
            return Ok(None);
        };
        let person = Party {
            who: Who::Person(device.user),
            tenant: device.tenant,
            tags: Vec::new(),
        };
        let state = self.state();
        let there = state.there.get(&to);
        Ok(there.and_then(|there| state.policy.ports(&person, there)))
    }

    fn changed(&self, after: Position) -> BoxFuture<'_, Position> {
        let mut changed = self.changed.subscribe();
        Box::pin(async move {
            let newer = changed.wait_for(|changed| *changed > after.get()).await;
            let newer = newer.map(|changed| Position(*changed)).ok();
            match newer {
                Some(position) => position,
                None => std::future::pending().await,
            }
        })
    }

    fn add(&self, order: DeviceOrder, _: String) -> BoxFuture<'_, Result<Device, Problem>> {
        let mut state = self.state();
        state.last += 1;
        let device = Device {
            user: order.user,
            tenant: order.tenant,
            name: order.name,
            key: order.key,
            address: DeviceUla::new(state.last),
        };
        state.devices.push(device.clone());
        drop(state);
        self.tell();
        Box::pin(async move { Ok(device) })
    }

    fn remove(&self, removal: DeviceRemoval, _: String) -> BoxFuture<'_, Result<Device, Problem>> {
        let mut state = self.state();
        let mut devices = state.devices.iter();
        let found = devices.position(|it| it.user == removal.user && it.name == removal.name);
        let removed = found.map(|found| state.devices.remove(found));
        drop(state);
        self.tell();
        let none = || Problem::new(ErrorCode::NotFound, "no such device");
        Box::pin(async move { removed.ok_or_else(none) })
    }
}
