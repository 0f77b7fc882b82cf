//! `platform.mesh.peers`: networks, hosts, leases, claimed addresses, who may reach whom.

use serde::{Deserialize, Serialize};

use super::{Home, home};
use crate::{
    AppId, AppUla, DeviceName, DeviceUla, Epoch, HostName, HostUla, InstanceId, MeshKey, SlotId,
    Tenant,
};

const PEERS: Home = home("platform.mesh.peers", "coordinator");
const CLAIMED: Home = home("platform.mesh.peers", "node");

/// Lets connections pass that the default forbids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowRule {
    /// Who may connect: `app:<id>`, `user:<name>`, `tag:<claimed tag>` or `tenant:<slug>`.
    pub from: String,
    /// To whom, in the same form.
    pub to: String,
    /// To which ports; none means all.
    #[serde(default)]
    pub ports: Vec<u16>,
}

events! {
    /// A network of hosts has a number.
    NetworkAllocated = "network_allocated" at [PEERS] key "the network's name" {
        network: String => "The network's name; the first is `main`.",
        number: u16 => "Its number in host addresses.",
    }

    /// A host is part of the mesh.
    PeerJoined = "peer_joined" at [PEERS] key "the host" {
        host: HostName => "The host's name.",
        network: String => "Its network.",
        index: u16 => "Its number in the network, never reused.",
        address: HostUla => "Its address, from the two numbers.",
        key: MeshKey => "Its WireGuard key.",
        #[serde(default)] tags: Vec<String> => "Tags that its token claimed; these authorize.",
    }

    /// A host is no longer part of the mesh.
    PeerLeft = "peer_left" at [PEERS] key "the host" {
        host: HostName => "The host's name.",
    }

    /// An app's address is taken, for ever: `expect: none` refuses a second claim.
    AppAddressClaimed = "app_address_claimed" at [CLAIMED] key "the address" {
        address: AppUla => "The address.",
        app: AppId => "The only app that may ever have it.",
    }

    /// An instance's key may answer for its app.
    LeaseGranted = "lease_granted" at [PEERS] key "the app" {
        app: AppId => "The app.",
        tenant: Tenant => "Its tenant.",
        slot: SlotId => "The slot it fills.",
        epoch: Epoch => "Fences earlier holders of the slot.",
        instance: InstanceId => "The instance.",
        key: MeshKey => "The key it made at spawn.",
        host: HostName => "The machine it runs on.",
    }

    /// An instance's key may no longer answer for its app.
    LeaseReleased = "lease_released" at [PEERS] key "the app" {
        app: AppId => "The app.",
        instance: InstanceId => "The instance whose lease ended.",
    }

    /// These rules, and no earlier ones, say who may reach whom beside the default.
    PolicyChanged = "policy_changed" at [PEERS] key "the tenant" {
        tenant: Tenant => "The tenant whose apps the rules open.",
        allow: Vec<AllowRule> =>
            "All its rules; none is the default: everything within the tenant, nothing else.",
    }

    /// A person's device may go through a gateway to what policy lets the person reach.
    DeviceAdded = "device_added" at [PEERS] key "the device's address" {
        user: String => "Whose, as subject, such as `user:anna`.",
        tenant: Tenant => "The tenant in which the person goes.",
        name: DeviceName => "Its name among the person's devices.",
        key: MeshKey => "Its WireGuard key; the private half is on the device alone.",
        address: DeviceUla => "Its address, from a number that is never given again.",
        by: String => "Who asked for it.",
    }

    /// A person's device goes nowhere any more.
    DeviceRemoved = "device_removed" at [PEERS] key "the device's address" {
        address: DeviceUla => "Its address.",
        by: String => "Who asked for it.",
    }
}
