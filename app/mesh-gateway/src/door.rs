//! Who comes in, and where to: recorded devices from their own addresses, to what policy lets their
//! person reach.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::sync::Arc;

use tabbify_api::BoxFuture;
use tabbify_api::device::{Devices, DevicesUnknown};
use tabbify_api::mesh::{Changed, Changes, PeerRecord, ResolveError, Resolver};
use tabbify_mesh::Gate;
use tabbify_types::{DeviceUla, MeshKey, Position};

use crate::live::Live;
use crate::stats::{Counters, count};
use crate::stock::PREFIXES;

/// The keeper of the door.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) devices: Arc<dyn Devices>,
    pub(crate) live: Live,
    pub(crate) counters: Arc<Counters>,
}

impl Door {
    /// Whether the person of the device may reach that port, as far as it is known now.
    ///
    /// # Errors
    /// If it is not.
    pub(crate) fn allows(
        &self,
        device: &MeshKey,
        to: &SocketAddrV6,
    ) -> Result<bool, DevicesUnknown> {
        let ports = self.devices.reach(device, *to.ip())?;
        Ok(ports.is_some_and(|ports| ports.admit(to.port())))
    }
}

impl Gate for Door {
    fn covers(&self, address: Ipv6Addr) -> bool {
        let [first, second, ..] = address.segments();
        PREFIXES.iter().any(|prefix| {
            let prefix = prefix.segments();
            (first, second) == (prefix[0], prefix[1])
        })
    }

    fn admits(&self, peer: MeshKey, to: SocketAddrV6) -> bool {
        let allowed = self.allows(&peer, &to).unwrap_or_default();
        if !allowed {
            tracing::debug!(%peer, %to, "not for this person");
            count(&self.counters.refused);
            return false;
        }
        let has_room = self.live.has_room();
        if !has_room {
            count(&self.counters.refused_full);
        }
        has_room
    }

    fn shows(&self, peer: MeshKey, to: Ipv6Addr) -> bool {
        matches!(self.devices.reach(&peer, to), Ok(Some(_)))
    }
}

impl Resolver for Door {
    fn by_address(&self, address: Ipv6Addr) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        // Nobody reaches a device.
        Box::pin(async move { Err(ResolveError::NoLease(address)) })
    }

    fn by_key(&self, key: MeshKey) -> BoxFuture<'_, Result<PeerRecord, ResolveError>> {
        let found = match self.devices.by_key(&key) {
            // Which of the ports behind the door it may reach is the gate's to say.
            Ok(Some(device)) => Ok(PeerRecord::unrestricted(
                key,
                vec![device.address.addr()],
                Vec::new(),
            )),
            Ok(None) => Err(ResolveError::UnknownKey(key)),
            Err(unknown) => Err(ResolveError::Unreachable(unknown.to_string())),
        };
        Box::pin(async move { found })
    }

    fn changes(&self) -> Option<Box<dyn Changes>> {
        let devices = Arc::clone(&self.devices);
        let known = known(&*devices).unwrap_or_default();
        Some(Box::new(Departures {
            devices,
            after: Position::default(),
            known,
            gone: VecDeque::new(),
        }))
    }
}

/// Tells which devices are none any more.
#[derive(Debug)]
struct Departures {
    devices: Arc<dyn Devices>,
    after: Position,
    known: BTreeMap<MeshKey, DeviceUla>,
    gone: VecDeque<MeshKey>,
}

fn known(devices: &dyn Devices) -> Result<BTreeMap<MeshKey, DeviceUla>, DevicesUnknown> {
    let all = devices.all()?.into_iter();
    Ok(all.map(|device| (device.key, device.address)).collect())
}

impl Changes for Departures {
    fn next(&mut self) -> BoxFuture<'_, Option<Changed>> {
        Box::pin(async move {
            loop {
                if let Some(key) = self.gone.pop_front() {
                    return Some(Changed::Gone(key));
                }
                self.after = self.devices.changed(self.after).await;
                // What was not known at this change shows at the next.
                let Ok(now) = known(&*self.devices) else {
                    continue;
                };
                let before = std::mem::replace(&mut self.known, now).into_iter();
                // A key that came back has another address, which its session must not keep.
                let gone = before.filter(|(key, address)| self.known.get(key) != Some(address));
                self.gone.extend(gone.map(|(key, _)| key));
            }
        })
    }
}
