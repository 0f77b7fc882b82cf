//! People's devices behind a gateway: folded, decided, answered. A device goes where policy lets its
//! person go; it is no member of the mesh, and nobody reaches it.
//!
//! Every addition writes under the address of the next number and expects nobody there: of two that
//! decide at the same time the log takes one, and the other looks again. So no number, no name and no key
//! is given twice, whoever gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use tabbify_api::coordinator::Ask;
use tabbify_api::device::{
    DEVICES_PER_PERSON_MAX, Device, DeviceOrder, DeviceRemoval, Devices, DevicesUnknown,
};
use tabbify_api::log::{Append, Expect};
use tabbify_api::policy::{Party, Ports, Who};
use tabbify_api::{BoxFuture, ErrorCode, Problem};
use tabbify_types::event::Event;
use tabbify_types::event::v1::{DeviceAdded, DeviceRemoved};
use tabbify_types::{DeviceUla, MeshKey, NewEvent, Position, Segment, Tenant};

use crate::coordinator::Coordinator;
use crate::join::JoinError;
use crate::leases::holder;
use crate::refusal::Refusal;
use crate::state::State;

/// Events of `platform.auth` that say who belongs where.
pub(crate) const ABOUT_PEOPLE: [&str; 3] = ["user_registered", "role_changed", "subject_erased"];

/// The fold of devices, and of who may have one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceTable {
    /// The highest number ever.
    last: u32,
    by_address: BTreeMap<DeviceUla, Device>,
    by_key: BTreeMap<MeshKey, DeviceUla>,
    /// The tenants that each person belongs to.
    people: BTreeMap<String, BTreeSet<Tenant>>,
    /// The newest event that may have changed where devices get.
    changed: Position,
}

impl DeviceTable {
    /// Notes that devices may get elsewhere from here on.
    pub(crate) fn touch(&mut self, position: Position) {
        self.changed = position;
    }

    /// Takes an event of a device's.
    pub(crate) fn event(&mut self, position: Position, event: Event) {
        match event {
            Event::DeviceAdded(data) => self.added(data),
            Event::DeviceRemoved(data) => self.forget(|device| device.address == data.address),
            _ => return,
        }
        self.touch(position);
    }

    /// Takes one of [`ABOUT_PEOPLE`]. Who leaves a tenant leaves it with every device.
    pub(crate) fn person(&mut self, position: Position, event: Event) {
        match event {
            Event::UserRegistered(data) => self.belongs(data.user, data.tenant),
            Event::RoleChanged(data) if data.role.is_some() => self.belongs(data.user, data.tenant),
            Event::RoleChanged(data) => {
                if let Some(tenants) = self.people.get_mut(&data.user) {
                    tenants.remove(&data.tenant);
                }
                self.forget(|device| device.user == data.user && device.tenant == data.tenant);
                self.touch(position);
            }
            Event::SubjectErased(data) => {
                self.people.remove(&data.subject);
                self.forget(|device| device.user == data.subject);
                self.touch(position);
            }
            _ => {}
        }
    }

    fn belongs(&mut self, user: String, tenant: Tenant) {
        self.people.entry(user).or_default().insert(tenant);
    }

    fn added(&mut self, data: DeviceAdded) {
        self.last = self.last.max(data.address.number());
        let tenants = self.people.get(&data.user);
        if !tenants.is_some_and(|tenants| tenants.contains(&data.tenant)) {
            // The person left while it was written.
            return;
        }
        // Whoever wrote it has looked; a log that says otherwise gives each key to one device only.
        self.forget(|device| device.key == data.key || device.address == data.address);
        self.by_key.insert(data.key, data.address);
        let device = Device {
            user: data.user,
            tenant: data.tenant,
            name: data.name,
            key: data.key,
            address: data.address,
        };
        self.by_address.insert(data.address, device);
    }

    fn forget(&mut self, which: impl Fn(&Device) -> bool) {
        let by_key = &mut self.by_key;
        self.by_address.retain(|_, device| {
            let gone = which(device);
            if gone {
                by_key.remove(&device.key);
            }
            !gone
        });
    }

    fn with_key(&self, key: &MeshKey) -> Option<&Device> {
        self.by_address.get(self.by_key.get(key)?)
    }

    fn named(&self, user: &str, tenant: &Tenant, name: &str) -> Option<&Device> {
        let mut devices = self.by_address.values();
        devices.find(|it| it.user == user && it.tenant == *tenant && it.name.as_str() == name)
    }
}

/// What is missing in the log for the device to be there; `None` if nothing is.
///
/// # Errors
/// [`Refusal::Invalid`] or [`Refusal::Conflict`].
fn add(state: &State, order: &DeviceOrder, by: &str) -> Result<Option<Append>, Refusal> {
    let table = &state.devices;
    let DeviceOrder {
        user,
        tenant,
        name,
        key,
    } = order;
    let person = table.people.get(user);
    if !person.is_some_and(|tenants| tenants.contains(tenant)) {
        let text = format!("{user} does not belong to tenant {tenant}");
        return Err(Refusal::Invalid(text));
    }
    if let Some(known) = table.named(user, tenant, name.as_str()) {
        if known.key == *key {
            return Ok(None);
        }
        let text = format!("{user} has a device {name} with another key; remove that first");
        return Err(Refusal::Conflict(text));
    }
    let is_taken = table.by_key.contains_key(key)
        || state.host_keys.contains_key(key)
        || state.keys.contains_key(key);
    if is_taken {
        let text = "another device, machine or app has this WireGuard key: every one needs its own";
        return Err(Refusal::Conflict(text.to_owned()));
    }
    let own = table.by_address.values();
    let own = own.filter(|device| device.user == *user && device.tenant == *tenant);
    if own.count() >= DEVICES_PER_PERSON_MAX {
        let text = format!("{user} has {DEVICES_PER_PERSON_MAX} devices, which is the most");
        return Err(Refusal::Conflict(text));
    }
    let number = table.last.checked_add(1);
    let number = number.ok_or_else(|| Refusal::Conflict("no number is left".to_owned()))?;
    let address = DeviceUla::new(number);
    let added = DeviceAdded {
        user: user.clone(),
        tenant: tenant.clone(),
        name: name.clone(),
        key: *key,
        address,
        by: by.to_owned(),
    };
    batch(address, &added.into(), Expect::None).map(Some)
}

/// What is missing in the log for the device not to be there; `None` if nothing is.
fn remove(state: &State, address: DeviceUla, by: &str) -> Result<Option<Append>, Refusal> {
    if !state.devices.by_address.contains_key(&address) {
        return Ok(None);
    }
    let key = (Segment::peers(), address.to_string());
    let rev = state.revs.get(&key).copied();
    let removed = DeviceRemoved {
        address,
        by: by.to_owned(),
    };
    let expect = rev.map_or(Expect::None, Expect::Rev);
    batch(address, &removed.into(), expect).map(Some)
}

fn batch(address: DeviceUla, event: &Event, expect: Expect) -> Result<Append, Refusal> {
    let (segment, key) = (Segment::peers(), address.to_string());
    let new = NewEvent::new(segment.clone(), &key, event);
    let mut batch = Append::default();
    batch
        .events
        .push(new.map_err(|error| Refusal::from(JoinError::Event(error)))?);
    Ok(batch.expecting(segment, &key, expect))
}

/// The ports of whoever is at `to` that the person of the device with `key` may reach.
fn reach(state: &State, key: &MeshKey, to: Ipv6Addr) -> Option<Ports> {
    let device = state.devices.with_key(key)?;
    let person = Party {
        who: Who::Person(device.user.clone()),
        tenant: device.tenant.clone(),
        tags: Vec::new(),
    };
    let there = holder(state, Ask::Address(to))?;
    state.policy.ports(&person, &there.party())
}

impl Coordinator {
    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> Result<T, DevicesUnknown> {
        self.read(look)
            .map_err(|refusal| DevicesUnknown(refusal.to_string()))
    }

    async fn add_device(&self, order: &DeviceOrder, by: &str) -> Result<Device, Refusal> {
        self.settle(|state| add(state, order, by)).await?;
        let added = self.read(|state| {
            let added = state.devices.with_key(&order.key);
            added.filter(|device| device.name == order.name).cloned()
        })?;
        // Somebody was faster to take it away again.
        added.ok_or_else(|| Refusal::Conflict("the device was removed meanwhile".to_owned()))
    }

    async fn remove_device(&self, removal: &DeviceRemoval, by: &str) -> Result<Device, Problem> {
        let DeviceRemoval { user, tenant, name } = removal;
        let known = self.read(|state| {
            let known = state.devices.named(user, tenant, name.as_str());
            known.cloned()
        });
        let known = known.map_err(|refusal| refusal.problem())?;
        let known = known.ok_or_else(|| {
            let text = format!("{user} has no device {name} in tenant {tenant}");
            Problem::new(ErrorCode::NotFound, text)
        })?;
        let removed = self.settle(|state| remove(state, known.address, by)).await;
        removed.map_err(|refusal| refusal.problem())?;
        Ok(known)
    }
}

impl Devices for Coordinator {
    fn by_key(&self, key: &MeshKey) -> Result<Option<Device>, DevicesUnknown> {
        self.look(|state| state.devices.with_key(key).cloned())
    }

    fn all(&self) -> Result<Vec<Device>, DevicesUnknown> {
        self.look(|state| state.devices.by_address.values().cloned().collect())
    }

    fn reach(&self, key: &MeshKey, to: Ipv6Addr) -> Result<Option<Ports>, DevicesUnknown> {
        self.look(|state| reach(state, key, to))
    }

    fn changed(&self, after: Position) -> BoxFuture<'_, Position> {
        Box::pin(async move {
            let newer = |state: &State| {
                let changed = state.devices.changed;
                (changed > after).then_some(changed)
            };
            match self.0.folded.find(|view| newer(&view.state)).await {
                Some(changed) => changed,
                // Nothing is followed any more, and so nothing changes.
                None => std::future::pending().await,
            }
        })
    }

    fn add(&self, order: DeviceOrder, by: String) -> BoxFuture<'_, Result<Device, Problem>> {
        Box::pin(async move {
            let added = self.add_device(&order, &by).await;
            added.map_err(|refusal| refusal.problem())
        })
    }

    fn remove(&self, removal: DeviceRemoval, by: String) -> BoxFuture<'_, Result<Device, Problem>> {
        Box::pin(async move { self.remove_device(&removal, &by).await })
    }
}
