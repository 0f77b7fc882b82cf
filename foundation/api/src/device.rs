//! People's devices behind a gateway: what is recorded of them, how one is added and taken away, and
//! what a gateway asks before it lets anything through.

use std::fmt;
use std::net::Ipv6Addr;

use serde::{Deserialize, Serialize};
use tabbify_types::{DeviceName, DeviceUla, MeshKey, Position, Tenant};

use crate::policy::Ports;
use crate::{BoxFuture, Problem};

/// On the gateway's socket: `GET` the list of [`Device`]; `POST` a [`DeviceOrder`] for a [`Connection`].
pub const DEVICES_PATH: &str = "/v1/devices";
/// On the gateway's socket: `POST` a [`DeviceRemoval`] for the [`Device`] that was removed.
pub const REMOVE_PATH: &str = "/v1/devices/remove";

/// LIMIT: devices of one person in one tenant.
pub const DEVICES_PER_PERSON_MAX: usize = 64;
/// LIMIT: body of a request about devices, in bytes.
pub const BODY_LEN_MAX: usize = 4 * 1024;

/// A device, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Whose, as subject, such as `user:anna`.
    pub user: String,
    /// The tenant in which the person goes.
    pub tenant: Tenant,
    /// Its name among the person's devices.
    pub name: DeviceName,
    /// Its WireGuard key.
    pub key: MeshKey,
    /// Its address.
    pub address: DeviceUla,
}

/// A device that is to be added. The same order twice adds it once; a device of the same name with
/// another key is refused until it is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceOrder {
    /// Whose.
    pub user: String,
    /// In which tenant; the person belongs to it.
    pub tenant: Tenant,
    /// Its name.
    pub name: DeviceName,
    /// Its WireGuard key; the private half stays where it was made.
    pub key: MeshKey,
}

/// A device that is to be taken away: its connections end, and its address is never given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRemoval {
    /// Whose.
    pub user: String,
    /// In which tenant.
    pub tenant: Tenant,
    /// Its name.
    pub name: DeviceName,
}

/// What a stock WireGuard client needs beside its private key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The device.
    pub device: Device,
    /// The gateway's key: the client's only peer.
    pub gateway: MeshKey,
    /// Where the gateway is reached, as `host:port`.
    pub endpoint: String,
}

/// Who may come through a gateway and where to, from the log: the coordinator of the gateway's process.
pub trait Devices: Send + Sync + fmt::Debug {
    /// The device that has `key`; `None` if none has it now.
    ///
    /// # Errors
    /// [`DevicesUnknown`].
    fn by_key(&self, key: &MeshKey) -> Result<Option<Device>, DevicesUnknown>;

    /// Every device, by address.
    ///
    /// # Errors
    /// [`DevicesUnknown`].
    fn all(&self) -> Result<Vec<Device>, DevicesUnknown>;

    /// The ports of whoever answers at `to` that the person of the device with `key` may reach. `None` if
    /// there are none, nobody answers there, or nobody has the key: which of it is not told.
    ///
    /// # Errors
    /// [`DevicesUnknown`].
    fn reach(&self, key: &MeshKey, to: Ipv6Addr) -> Result<Option<Ports>, DevicesUnknown>;

    /// Waits until the answers to the above may be others than those given at `after`; gives the position
    /// of what changed. Begins with position 0, and with the one before after that.
    fn changed(&self, after: Position) -> BoxFuture<'_, Position>;

    /// Adds a device, in the name of `by`; gives it as it is recorded.
    fn add(&self, order: DeviceOrder, by: String) -> BoxFuture<'_, Result<Device, Problem>>;

    /// Takes a device away, in the name of `by`; gives it as it was recorded.
    fn remove(&self, removal: DeviceRemoval, by: String) -> BoxFuture<'_, Result<Device, Problem>>;
}

/// What is known is too old to act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("who may come is not known now: {0}")]
pub struct DevicesUnknown(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_strict() {
        let order = r#"{"user":"user:anna","tenant":"main","name":"laptop",
            "key":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="}"#;
        let read: DeviceOrder = serde_json::from_str(order).unwrap();
        assert_eq!(read.name.as_str(), "laptop");
        let again = serde_json::to_string(&read).unwrap();
        assert_eq!(serde_json::from_str::<DeviceOrder>(&again).unwrap(), read);
        for (from, to) in [
            ("laptop", "Lap top"),
            ("\"main\"", "\"\""),
            ("BwcH", "Bwc"),
            ("\"user\"", "\"by\":\"x\",\"user\""),
        ] {
            let bad = order.replace(from, to);
            assert!(serde_json::from_str::<DeviceOrder>(&bad).is_err(), "{bad}");
        }
    }
}
